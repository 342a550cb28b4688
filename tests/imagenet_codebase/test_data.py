"""Splits, order, augmentation and preparation of images, on the digits and on tiny trees."""

import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from apq.errors import ApqError
from imagenet_codebase.data_providers import Shard, open_dataset
from imagenet_codebase.data_providers.cifar10 import NORMALIZATION
from imagenet_codebase.data_providers.splits import carve
from tests.imagenet_codebase.helpers import (
    batches,
    same_batches,
    write_tree,
)

# ---- splits ----


def test_digits_are_split_as_documented(digits):
    assert [len(s) for s in (digits.train, digits.val, digits.test)] == [1077, 360, 360]
    parts = [digits.train.indices, digits.val.indices, digits.test.indices]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    assert (digits.n_classes, digits.class_names[3], digits.image_size) == (10, "3", 64)
    assert digits.n_images("val") == 360
    assert np.array_equal(digits.train.indices, digits.train_unaugmented.indices)


def test_the_seed_moves_validation_images_and_never_test_images(digits):
    again, other = open_dataset("digits", seed=0), open_dataset("digits", seed=1)
    assert np.array_equal(again.val.indices, digits.val.indices)
    assert not np.array_equal(other.val.indices, digits.val.indices)
    assert np.array_equal(other.test.indices, digits.test.indices)


@pytest.mark.parametrize(("counts", "n"), [((50, 30, 20), 30), ((7, 7, 7), 10), ((1, 99), 60)])
def test_carving_takes_from_each_class_in_proportion(counts, n):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    stay, taken = carve(labels, n, seed=3)
    assert len(taken) == n
    assert sorted([*stay, *taken]) == list(range(len(labels)))
    fair = np.array(counts) * n / sum(counts)
    assert (abs(np.bincount(labels[taken], minlength=len(counts)) - fair) <= 1).all()
    assert (np.bincount(labels[stay], minlength=len(counts)) >= 1).all()


@pytest.mark.parametrize("n", [-1, 0, 5])
def test_carving_leaves_every_class_an_image(n):
    with pytest.raises(ApqError, match="can spare 4 at most"):
        carve(np.array([0, 0, 0, 1, 1, 1]), n, seed=0)


@pytest.mark.parametrize(
    ("name", "present", "val", "test", "n_train", "n_val"),
    [
        ("folder", ("test",), "train", "test", 18, 2),
        ("folder", ("val",), "train", "val", 18, 2),
        ("folder", ("val", "test"), "val", "test", 20, 4),
        ("imagenet", ("val",), "train", "val", 18, 2),
        ("imagenet", ("val", "test"), "train", "val", 18, 2),
    ],
)
def test_folders_are_used_by_their_names(tmp_path, name, present, val, test, n_train, n_val):
    write_tree(tmp_path / "train", {"a": 10, "b": 10})
    for split in present:
        write_tree(tmp_path / split, {"a": 2, "b": 2})
    data = open_dataset(name, tmp_path, image_size=32)
    assert data.val.source.tree.folder == tmp_path / val
    assert data.test.source.tree.folder == tmp_path / test
    assert (len(data.train), len(data.val), len(data.test)) == (n_train, n_val, 4)
    assert data.class_names == ("a", "b")


def test_train_and_validation_share_no_file(photos):
    data = open_dataset("folder", photos, image_size=32, val_size=5, seed=4)
    assert sorted([*data.train.indices, *data.val.indices]) == list(range(20))
    assert np.bincount(data.val.labels).tolist() == [3, 2]


# ---- order and randomness ----


@pytest.mark.parametrize("name", ["digits", "cifar10", "folder"])
def test_equal_seed_and_epoch_give_equal_batches(name, photos, cifar):
    root = {"digits": None, "cifar10": cifar, "folder": photos}[name]
    data = open_dataset(name, root, image_size=32, val_size=4)
    size = len(data.train) // 2
    first = batches(data.loader("train", size, seed=5, epoch=2))
    loader = data.loader("train", size, seed=5, epoch=2)
    assert same_batches(first, batches(loader))
    assert same_batches(first, batches(loader))
    assert not same_batches(first, batches(data.loader("train", size, seed=5, epoch=3)))
    assert not same_batches(first, batches(data.loader("train", size, seed=6, epoch=2)))


@pytest.mark.parametrize("name", ["digits", "cifar10", "folder"])
def test_augmentation_depends_on_the_epoch_and_the_image_alone(name, photos, cifar):
    root = {"digits": None, "cifar10": cifar, "folder": photos}[name]
    data = open_dataset(name, root, image_size=32, val_size=4)
    whole, _ = data.train.at(1, 1).batch(range(6))
    assert torch.equal(data.train.at(1, 1)[4][0], whole[4])
    assert not torch.equal(data.train.at(1, 2).batch(range(6))[0], whole)
    unaugmented, _ = data.train_unaugmented.at(1, 1).batch(range(6))
    assert not torch.equal(unaugmented, whole)
    plain = open_dataset(name, root, image_size=32, val_size=4, augment=False)
    assert torch.equal(plain.train.at(1, 2).batch(range(6))[0], unaugmented)
    further = open_dataset(name, root, image_size=32, val_size=4, randaugment=True)
    changed, _ = further.train.at(1, 1).batch(range(6))
    assert torch.equal(further.train.at(1, 1)[4][0], changed[4])
    assert not torch.equal(further.train.at(1, 2).batch(range(6))[0], changed)
    assert not torch.equal(changed, whole)
    assert torch.equal(further.train_unaugmented.at(1, 1).batch(range(6))[0], unaugmented)
    assert (further.facts()["randaugment"], data.facts()["randaugment"]) == (True, False)


def test_workers_change_nothing(photos):
    data = open_dataset("folder", photos, image_size=32)
    alone = batches(data.loader("train", 4, seed=1))
    assert same_batches(alone, batches(data.loader("train", 4, n_workers=2, seed=1)))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_kept_images_are_those_of_the_split(photos, n_workers):
    data = open_dataset("folder", photos, image_size=32)
    kept = data.keep("train_unaugmented", 99, n_workers)
    assert len(kept) == len(data.train)
    positions = np.array([2, 0, 1])
    batches = list(kept.batches(positions, 2))
    assert [len(labels) for _, labels in batches] == [2, 1]
    images, labels = map(torch.cat, zip(*batches, strict=True))
    wanted, wanted_labels = data.train_unaugmented.batch(positions)
    assert torch.equal(images, wanted)
    assert torch.equal(labels, wanted_labels)
    assert kept.pixels.dtype == torch.uint8


def test_some_images_are_kept_of_a_split(digits):
    labels = [digits.keep("val", 300, seed=seed).labels.tolist() for seed in (0, 0, 1)]
    assert [len(some) for some in labels] == [300] * 3
    assert labels[0] == labels[1] != labels[2]
    assert labels[0] != digits.val.labels[:300].tolist()


def test_global_generators_are_left_alone(digits, photos):
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    further = open_dataset("digits", randaugment=True)
    for data in (digits, further, open_dataset("folder", photos, image_size=32)):
        batches(data.loader("train", 64))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_only_training_drops_a_short_batch_and_is_shuffled(digits):
    train, val = digits.loader("train", 100), digits.loader("val", 100)
    assert (len(train), train.n_images) == (10, 1000)
    assert (len(val), val.n_images) == (4, 360)
    assert [len(labels) for _, labels in val] == [100, 100, 100, 60]
    assert np.array_equal(torch.cat([y for _, y in val]).numpy(), digits.val.labels)
    assert not np.array_equal(next(iter(train))[1].numpy(), digits.train.labels[:100])
    in_order = next(iter(digits.loader("train", 100, shuffle=False)))[1]
    assert np.array_equal(in_order.numpy(), digits.train.labels[:100])
    assert [len(labels) for _, labels in digits.loader("train", 5000)] == [1077]
    assert len(digits.loader("train_unaugmented", 100)) == 11


def test_a_shuffled_pass_sees_every_image_once(cifar):
    data = open_dataset("cifar10", cifar, image_size=32)
    seen = torch.cat([x for x, _ in data.loader("train_unaugmented", 5, shuffle=True, seed=9)])
    stored, _ = data.train_unaugmented.batch(range(len(data.train)))
    assert not torch.equal(seen, stored)
    assert sorted(seen.sum((1, 2, 3)).tolist()) == sorted(stored.sum((1, 2, 3)).tolist())


# ---- preparation ----


def test_splits_are_torch_datasets(digits, photos):
    for data in (digits, open_dataset("folder", photos, image_size=48)):
        image, label = data.test[0]
        assert image.shape == (3, data.image_size, data.image_size)
        assert image.dtype == torch.float32
        assert isinstance(label, int)
        images, labels = next(iter(torch.utils.data.DataLoader(data.test, batch_size=2)))
        assert torch.equal(images[0], image)
        assert (labels[0], labels.dtype) == (label, torch.int64)


def test_workers_outlive_an_epoch_and_serve_one_pass_at_a_time(photos):
    data = open_dataset("folder", photos, image_size=32)

    def pids():
        return {p.pid for p in multiprocessing.active_children()}

    before = pids()
    first = batches(data.loader("train", 4, n_workers=2, seed=1))
    started = pids() - before
    assert len(started) == 2
    unfinished = iter(data.loader("train", 2, n_workers=2, seed=1))
    next(unfinished)
    again = batches(data.loader("train", 4, n_workers=2, seed=1))
    batches(data.loader("val", 4, n_workers=2))
    assert pids() - before == started
    assert same_batches(first, again)
    with pytest.raises(RuntimeError, match="begun another pass"):
        next(unfinished)


@pytest.mark.parametrize("n", [2, 3])
def test_shards_are_equal_parts_of_the_same_batches(digits, n):
    whole = digits.loader("train", 6 * n, seed=2, epoch=1, first_batch=3)
    parts = [
        digits.loader("train", 6, seed=2, epoch=1, first_batch=3, shard=Shard(i, n))
        for i in range(n)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    for (_, labels), *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([share for _, share in shares]), labels)
    shares = [digits.loader("val", 50, shard=Shard(i, n)) for i in range(n)]
    assert torch.equal(
        torch.cat([y for share in shares for _, y in share]), torch.from_numpy(digits.val.labels)
    )


# ---- mistakes ----


def test_torchvision_s_archive_is_read(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    for name, part in (("data_batch_1", slice(0, 16)), ("test_batch", slice(16, 20))):
        content = {
            "data": pixels[part].reshape(-1, 3072),
            "labels": [i % 2 for i in range(20)][part],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    # These few images stand for the whole archive: no checksums.
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    data = open_dataset("cifar10", tmp_path, image_size=32)
    assert (data.class_names, len(data.train), len(data.val)) == (("cat", "dog"), 15, 1)
    images, labels = data.test.batch(range(4))
    assert labels.tolist() == [0, 0, 1, 1]
    expected = NORMALIZATION(torch.from_numpy(pixels[16:]).permute(0, 2, 3, 1))
    assert torch.equal(images, expected[[0, 2, 1, 3]])
    # The same images in folders: the same ones are set aside, and draws are of the same ones.
    for part, numbers in (("train", range(16)), ("test", range(16, 20))):
        for i in numbers:
            path = tmp_path / "tree" / part / ("cat", "dog")[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i].transpose(1, 2, 0)).save(path)
    tree = open_dataset("cifar10", tmp_path / "tree", image_size=32)
    for split in ("train", "train_unaugmented", "val", "test"):
        ours, theirs = (part.split(split) for part in (data, tree))
        assert ours.indices.tolist() == theirs.indices.tolist()
        for a, b in zip(ours.batch(range(len(ours))), theirs.batch(range(len(ours))), strict=True):
            assert torch.equal(a, b)
    assert data.facts() == tree.facts()


def test_other_training_images_are_told(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    before = open_dataset("folder", tmp_path / "photos", image_size=32).facts()
    assert open_dataset("folder", photos, image_size=32).facts() == before
    (tmp_path / "photos" / "train" / "cat" / "0.png").rename(
        tmp_path / "photos" / "train" / "cat" / "00.png"
    )
    after = open_dataset("folder", tmp_path / "photos", image_size=32).facts()
    assert {name for name in before if before[name] != after[name]} == {"train_images"}


def test_other_validation_images_are_told(tmp_path):
    for part in ("train", "val", "test"):
        write_tree(tmp_path / part, {"cat": 6, "dog": 6})
    before = open_dataset("folder", tmp_path, image_size=32).facts()
    (tmp_path / "test" / "cat" / "0.png").unlink()  # decides nothing
    assert open_dataset("folder", tmp_path, image_size=32).facts() == before
    (tmp_path / "val" / "cat" / "0.png").unlink()
    after = open_dataset("folder", tmp_path, image_size=32).facts()
    assert {name for name in before if before[name] != after[name]} == {"val_images"}


def test_a_link_to_where_one_has_been_adds_no_images(tmp_path):
    for part in ("train", "test"):
        write_tree(tmp_path / part, {"cat": 4, "dog": 4})
    (tmp_path / "train" / "cat" / "again").symlink_to(".")
    elsewhere = write_tree(tmp_path / "elsewhere", {"more": 3})
    (tmp_path / "train" / "cat" / "more").symlink_to(elsewhere / "more")
    data = open_dataset("folder", tmp_path, image_size=32)
    assert len(data.train) + len(data.val) == 8 + 3


def test_a_loader_can_begin_in_the_middle(digits):
    whole = list(digits.loader("train", 100, seed=1, epoch=2))
    rest = list(digits.loader("train", 100, seed=1, epoch=2, first_batch=7))
    assert len(rest) == len(whole) - 7
    for (images, labels), (expected, of) in zip(rest, whole[7:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, of)
    assert not list(digits.loader("train", 100, first_batch=len(whole)))
