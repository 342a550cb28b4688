"""What is told of data that cannot be used: folders, archives, requests."""

import builtins
import errno
import os
import pickle

import numpy as np
import pytest

from apq.errors import ApqError
from imagenet_codebase.data_providers import DATASETS, Shard, open_dataset
from imagenet_codebase.data_providers.splits import carve
from tests.imagenet_codebase.helpers import (
    write_tree,
)


def test_too_few_images_for_the_processes_are_told(photos):
    data = open_dataset("folder", photos, image_size=32)
    assert len(data.loader("train", 4, shard=Shard(0, 9))) == 1
    told = "18 training images are too few for 10 processes: each takes two or more"
    with pytest.raises(ApqError, match=told):  # of a single one, batch norm knows no variance
        data.loader("train", 4, shard=Shard(0, 10))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for part in ("train", "test"):
        write_tree(tmp_path / part, {"cat": 12, "dog": 12})
    (tmp_path / "train" / "cat" / "more").mkdir()
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ApqError, match=r"cannot list .*train/cat/more: Permission denied"):
        open_dataset("folder", tmp_path, image_size=32)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digit", {}, r"no data set 'digit' \(did you mean 'digits'\?\)"),
        ("digits", {"image_size": 0}, "image_size is 0"),
        ("digits", {"root": "somewhere"}, "leave --data_dir out"),
        ("digits", {"val_size": 1430}, "set 1430 of 1437 training images aside"),
        ("digits", {"val_size": 0}, "set 0 of 1437"),
        ("digits", {"download": True}, "'digits' cannot be downloaded"),
        ("folder", {}, "needs the path of its images: --data_dir"),
        ("folder", {"root": "not/here"}, "no folder not/here.*--data_dir"),
        ("cifar10", {"root": "not/here"}, "no CIFAR-10 in not/here.*--download"),
        ("imagenet", {"root": "not/here"}, "images of 'imagenet' there"),
    ],
)
def test_mistakes_are_told(name, options, words):
    with pytest.raises(ApqError, match=words) as caught:
        open_dataset(name, **options)
    assert "\n" not in str(caught.value)


def test_default_folders_are_below_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert DATASETS["imagenet"].image_size == 224
    with pytest.raises(ApqError, match="dataset/imagenet"):
        open_dataset("imagenet")
    with pytest.raises(ApqError, match="dataset/cifar10"):
        open_dataset("cifar10")


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_sklearn(name, *args, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ApqError, match=r"pip install scikit-learn"):
        open_dataset("digits")


def test_broken_trees_name_the_folder(tmp_path):
    def told(words):
        with pytest.raises(ApqError, match=words):
            open_dataset("folder", tmp_path)

    told("no folder .*/train:")
    (tmp_path / "train").mkdir()
    told("no folder .*/test:")
    (tmp_path / "test").mkdir()
    told("/train has no class folders")
    write_tree(tmp_path / "train" / ".hidden", {"x": 1})
    told("/train has no class folders")
    write_tree(tmp_path / "train", {"a": 2, "b": 2})
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / "notes.txt").write_text("no image")
    told("class folder .*/train/c holds no images")
    write_tree(tmp_path / "train" / "c", {"deeper": 2})
    write_tree(tmp_path / "test", {"a": 1, "b": 1})
    told("different class folders: 'c' is in one of them only")
    write_tree(tmp_path / "test" / "c", {"deeper": 1})
    assert open_dataset("folder", tmp_path).n_classes == 3


def test_own_validation_folder_excludes_a_number(tmp_path):
    for split in ("train", "val", "test"):
        write_tree(tmp_path / split, {"a": 2, "b": 2})
    with pytest.raises(ApqError, match="has its own folder 'val'"):
        open_dataset("folder", tmp_path, val_size=1)


@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_a_damaged_image_is_named(tmp_path, damage, n_workers):
    write_tree(tmp_path / "train", {"a": 3, "b": 3})
    write_tree(tmp_path / "test", {"a": 1, "b": 1})
    bad = tmp_path / "test" / "b" / "0.png"
    bad.write_bytes(b"no image" if damage == "text" else bad.read_bytes()[:1000])
    data = open_dataset("folder", tmp_path, image_size=32, val_size=1)
    loader = iter(data.loader("test", 1, n_workers=n_workers))
    next(loader)
    with pytest.raises(ApqError, match=r"cannot read the image .*/test/b/0\.png") as caught:
        next(loader)
    assert "\n" not in str(caught.value)


def test_cifar_images_of_another_size_are_refused(photos):
    data = open_dataset("cifar10", photos)
    with pytest.raises(ApqError, match="has 40 x 30 pixels; CIFAR-10 has 32 x 32"):
        data.test[0]


def test_a_damaged_archive_is_told(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ApqError, match="cannot use the CIFAR-10 archive"):
        open_dataset("cifar10", tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_a_malicious_archive_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ApqError, match="cannot use the CIFAR-10 archive"):
        open_dataset("cifar10", tmp_path)
    assert not (tmp_path / "evil").exists()


def test_loaders_refuse_impossible_requests(digits):
    with pytest.raises(ApqError, match=r"no split 'vall' \(did you mean 'val'\?\)"):
        digits.loader("vall", 10)
    with pytest.raises(ApqError, match="batch_size is 0"):
        digits.loader("val", 0)


def test_nothing_to_tell_apart_and_nothing_to_learn_from_are_refused(tmp_path):
    for part in ("train", "test"):
        write_tree(tmp_path / "one" / part, {"cat": 4})
    with pytest.raises(ApqError, match="has one class folder, 'cat'"):
        open_dataset("folder", tmp_path / "one", image_size=32)
    with pytest.raises(ApqError, match="they can spare none"):
        carve(np.array([0, 1]), 1, seed=0)
