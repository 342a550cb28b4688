"""Splits, order, augmentation and preparation of images, on the digits and on tiny trees."""

import builtins
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch.utils._python_dispatch import TorchDispatchMode

from apq.errors import ApqError
from imagenet_codebase.data_providers import DATASETS, Shard, folder, memory, open_dataset
from imagenet_codebase.data_providers.cifar10 import NORMALIZATION
from imagenet_codebase.data_providers.normalization import Normalization
from imagenet_codebase.data_providers.splits import carve


def write_tree(folder: Path, n_images: dict[str, int], size: tuple[int, int] = (32, 32)) -> Path:
    """Write noise as PNG files, n_images of each class; no two images are alike."""
    rng = np.random.default_rng(sum(map(ord, folder.name)))
    for class_name, n in n_images.items():
        (folder / class_name).mkdir(parents=True)
        for i in range(n):
            noise = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / class_name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A root with `train` and `val`: 20 training and 6 test images of two classes."""
    root = tmp_path_factory.mktemp("photos")
    write_tree(root / "train", {"cat": 12, "dog": 8}, size=(40, 30))
    write_tree(root / "val", {"cat": 3, "dog": 3}, size=(40, 30))
    return root


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    write_tree(root / "train", {"cat": 10, "dog": 10})
    write_tree(root / "test", {"cat": 2, "dog": 2})
    return root


def batches(loader):
    return [(images.clone(), labels.clone()) for images, labels in loader]


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(a[i][j], b[i][j]) for i in range(len(a)) for j in range(2)
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
    assert same(first, batches(loader))
    assert same(first, batches(loader))
    assert not same(first, batches(data.loader("train", size, seed=5, epoch=3)))
    assert not same(first, batches(data.loader("train", size, seed=6, epoch=2)))


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
    assert same(alone, batches(data.loader("train", 4, n_workers=2, seed=1)))


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


def test_digits_are_the_8_by_8_images_enlarged(digits):
    from sklearn.datasets import load_digits

    index = digits.test.indices[7]
    grey = torch.tensor(load_digits().images[index], dtype=torch.float32)[None, None] / 16
    large = F.interpolate(grey, size=64, mode="bilinear", align_corners=False)[0]
    expected = ((large - 0.305) / 0.376).expand(3, -1, -1)
    # Two levels of 255: pixels are rounded before and after.
    torch.testing.assert_close(digits.test[7][0], expected, atol=2 / 255 / 0.376, rtol=0)


def test_cifar_pixels_are_normalised_by_channel(cifar):
    data = open_dataset("cifar10", cifar, image_size=32)
    pixels = np.asarray(Image.open(cifar / "test" / "dog" / "1.png")) / 255
    expected = (pixels - [0.491, 0.482, 0.447]) / [0.245, 0.243, 0.261]
    np.testing.assert_allclose(data.test[3][0].permute(1, 2, 0), expected, atol=1e-5)
    assert data.test[3][1] == 1


def test_crops_are_windows_of_the_padded_image():
    images = torch.arange(4 * 36).reshape(4, 1, 6, 6).to(torch.uint8)
    # Top and left out of 0..2, and whether mirrored: below one half.
    draws = torch.tensor([[0.5, 0.5, 0.9], [0.0, 0.0, 0.9], [0.99, 0.5, 0.9], [0.5, 0.5, 0.1]])
    crops = memory.crop_and_flip(images, draws, padding=1)
    assert torch.equal(crops[0], images[0])
    assert torch.equal(crops[1], F.pad(images[1, :, :5, :5], (1, 0, 1, 0)))
    assert torch.equal(crops[2], F.pad(images[2, :, 1:], (0, 0, 0, 1)))
    assert torch.equal(crops[3], images[3].flip(-1))


def test_shifts_are_small_and_their_centre_is_the_image_itself():
    images = torch.zeros(3, 1, 20, 20, dtype=torch.uint8)
    images[:, :, 10, 10] = 255
    # No shift; one pixel (0.05 of 20) to the left; one pixel up.
    draws = torch.tensor([[0.5, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]])
    moved = memory.shift_and_rotate(images, draws, shift=0.05)
    peaks = [divmod(int(image.argmax()), 20) for image in moved]
    assert peaks == [(10, 10), (10, 9), (9, 10)]


def test_evaluation_shows_the_centre():
    # At 28 pixels, 28/32 of the height are seen: 35 of 40 columns in the middle of 80.
    for half_width, all_blue in ((20, True), (15, False)):
        image = Image.new("RGB", (80, 40), "red")
        image.paste("blue", (40 - half_width, 0, 40 + half_width, 40))
        colours = folder.centre_crop(image, 28).getcolors()
        assert (colours == [(28 * 28, (0, 0, 255))]) == all_blue


@pytest.mark.parametrize(("width", "height"), [(40, 30), (500, 10), (10, 500), (1, 1)])
def test_random_crops_lie_in_the_image(width, height):
    rng = np.random.default_rng(0)
    boxes = np.array([folder.crop_box(width, height, rng) for _ in range(200)])
    top, left, h, w = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] > 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    if (width, height) == (40, 30):
        assert (h * w).min() < 0.2 * 1200 < 0.8 * 1200 < (h * w).max()
        assert len(set(map(tuple, boxes))) > 150


def test_colours_shift_as_pillow_shifts_them():
    colours = np.array([[200.0, 100.0, 50.0]], dtype=np.float32)
    # Grey of the pixel: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2.
    np.testing.assert_allclose(colours @ folder.colour_matrix(1.0, 0.0), [[124.2] * 3], rtol=1e-5)
    np.testing.assert_allclose(colours @ folder.colour_matrix(1.1, 1.0), 1.1 * colours, rtol=1e-5)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image, view = Image.fromarray(noise), np.empty((32, 32, 3), dtype=np.uint8)
    for seed in range(5):
        folder.random_view(image, 32, np.random.default_rng(seed), out=view)
        rng = np.random.default_rng(seed)
        top, left, height, width = folder.crop_box(80, 60, rng)
        box = (left, top, left + width, top + height)
        expected = image.resize((32, 32), Image.Resampling.BILINEAR, box)
        if rng.random() < 0.5:
            expected = ImageOps.mirror(expected)
        brightness, saturation = rng.uniform(1 - 32 / 255, 1 + 32 / 255), rng.uniform(0.5, 1.5)
        expected = ImageEnhance.Brightness(expected).enhance(brightness)
        expected = np.asarray(ImageEnhance.Color(expected).enhance(saturation)).astype(int)
        assert abs(expected - view).max() <= 3 or (expected == 255).any()
        assert np.median(abs(expected - view)) <= 1


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
    assert same(first, again)
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


def test_too_few_images_for_the_processes_are_told(photos):
    data = open_dataset("folder", photos, image_size=32)
    with pytest.raises(ApqError, match="18 training images are too few for 19 processes"):
        data.loader("train", 4, shard=Shard(0, 19))


# ---- mistakes ----


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


def test_images_of_more_than_eight_bits_keep_their_greys_or_are_refused(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    for part in ("train", "test"):
        write_tree(tmp_path / part, {"cat": 4, "dog": 4})
    path = tmp_path / "test" / "cat" / "0.png"
    Image.fromarray(ramp.astype(np.uint16)).save(path)
    image = open_dataset("folder", tmp_path, image_size=32).test.source.tree.open(0)
    assert np.array_equal(np.asarray(image)[..., 0], (ramp.astype(int) >> 8))
    path.unlink()
    path = path.with_suffix(".tif")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(path)
    with pytest.raises(ApqError, match=r"0.tif \(its channels have more than 8 bits\): replace"):
        open_dataset("folder", tmp_path, image_size=32).test.source.tree.open(0)


def test_a_link_to_where_one_has_been_adds_no_images(tmp_path):
    for part in ("train", "test"):
        write_tree(tmp_path / part, {"cat": 4, "dog": 4})
    (tmp_path / "train" / "cat" / "again").symlink_to(".")
    elsewhere = write_tree(tmp_path / "elsewhere", {"more": 3})
    (tmp_path / "train" / "cat" / "more").symlink_to(elsewhere / "more")
    data = open_dataset("folder", tmp_path, image_size=32)
    assert len(data.train) + len(data.val) == 8 + 3


def test_nothing_to_tell_apart_and_nothing_to_learn_from_are_refused(tmp_path):
    for part in ("train", "test"):
        write_tree(tmp_path / "one" / part, {"cat": 4})
    with pytest.raises(ApqError, match="has one class folder, 'cat'"):
        open_dataset("folder", tmp_path / "one", image_size=32)
    with pytest.raises(ApqError, match="they can spare none"):
        carve(np.array([0, 1]), 1, seed=0)


def test_a_loader_can_begin_in_the_middle(digits):
    whole = list(digits.loader("train", 100, seed=1, epoch=2))
    rest = list(digits.loader("train", 100, seed=1, epoch=2, first_batch=7))
    assert len(rest) == len(whole) - 7
    for (images, labels), (expected, of) in zip(rest, whole[7:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, of)
    assert not list(digits.loader("train", 100, first_batch=len(whole)))


def test_only_the_first_batch_brings_constants_to_the_device():
    class Constants(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += func.overloadpacket in (aten.full, aten.lift_fresh, aten._to_copy)
            return func(*args, **(kwargs or {}))

    aten = torch.ops.aten
    normalize = Normalization(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8)
    counts = []
    for _ in range(2):
        with Constants() as constants:
            values = normalize(images)
        counts.append(constants.seen)
    assert counts[0] > 0
    assert counts[1] == 0
    expected = (images / 255 - torch.tensor(normalize.mean)) / torch.tensor(normalize.std)
    torch.testing.assert_close(values, expected.permute(0, 3, 1, 2))
