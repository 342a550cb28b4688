"""The data sets by name: where they are, how large their images are, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from apq.checks import check_choice
from apq.errors import ApqError
from imagenet_codebase.data_providers import cifar10, digits, tree
from imagenet_codebase.data_providers.normalization import IMAGENET, Normalization
from imagenet_codebase.data_providers.provider import DataProvider
from imagenet_codebase.data_providers.splits import OpenedSplits, Split, carve


@dataclass(frozen=True, kw_only=True)
class DatasetDefaults:
    """What a data set is opened with when nothing else is asked for."""

    root: Path | None
    """Folder of the images; None: it has to be named, or there is none."""
    image_size: int
    """Side in pixels."""
    val_size: int | None
    """Validation images taken out of the training images; None: a tenth of them.

    A tenth, too, of a smaller copy, where this number would be more than half of them.
    """
    normalization: Normalization
    """What becomes of pixels before a network sees them."""


DATASETS = {
    "digits": DatasetDefaults(
        root=None, image_size=64, val_size=360, normalization=digits.NORMALIZATION
    ),
    "cifar10": DatasetDefaults(
        root=Path("dataset/cifar10"),
        image_size=64,
        val_size=5_000,
        normalization=cifar10.NORMALIZATION,
    ),
    "imagenet": DatasetDefaults(
        root=Path("dataset/imagenet"), image_size=224, val_size=10_000, normalization=IMAGENET
    ),
    "folder": DatasetDefaults(root=None, image_size=224, val_size=None, normalization=IMAGENET),
}


def open_dataset(
    name: str,
    root: str | Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
    augment: bool = True,
    randaugment: bool = False,
    val_size: int | None = None,
    download: bool = False,
) -> DataProvider:
    """Open a data set by name, with images of `image_size` pixels a side.

    `seed` picks the validation images among the training images, where the data set has none of
    its own, and nothing else. Raises ApqError when the name is unknown, the images are missing or
    a size is impossible.
    """
    check_choice("data set", name, DATASETS)
    defaults = DATASETS[name]
    if image_size is None:
        image_size = defaults.image_size
    if image_size < 1:
        raise ApqError(f"image_size is {image_size}; it must be at least 1 pixel")
    if download and name != "cifar10":
        raise ApqError(f"'{name}' cannot be downloaded, only cifar10 can")
    root = defaults.root if root is None else Path(root)
    opened = _open(name, root, image_size, download)
    train, val = opened.train, opened.val
    if val is None:
        if val_size is None:
            val_size = _default_val_size(defaults, len(train))
        train, val = _carved(train, val_size, seed)
    elif val_size is not None:
        raise ApqError(f"{root} has its own folder 'val': leave the number of images to it")
    if len(train) < 2:  # one has no variance, which batch norm divides by
        raise ApqError(f"{root} has {len(train)} image to train on; there must be two or more")
    return DataProvider(
        name=name,
        image_size=image_size,
        class_names=opened.class_names,
        train=replace(train, augment=augment, randaugment=randaugment),
        train_unaugmented=train,
        val=val,
        test=opened.test,
    )


def _open(name: str, root: Path | None, image_size: int, download: bool) -> OpenedSplits:
    if name == "digits":
        if root is not None:
            raise ApqError("the digits come with scikit-learn: leave --data_dir out")
        return digits.read_digits(image_size)
    if root is None:
        raise ApqError(f"the data set '{name}' needs the path of its images: --data_dir DIR")
    if name == "cifar10":
        return cifar10.read_cifar10(root, image_size, download)
    if not root.is_dir():
        raise ApqError(
            f"there is no folder {root}: put the images of '{name}' there, as train/<class>/*.jpg "
            f"and val/<class>/*.jpg, or name another folder with --data_dir"
        )
    from imagenet_codebase.data_providers.folder import FileSource  # torchvision is slow to import

    return tree.open_tree(
        root,
        lambda images: FileSource(tree=images, image_size=image_size),
        # ImageNet's own test labels are secret, so that all the world tests on `val`.
        val_is_test=name == "imagenet",
    )


def _default_val_size(defaults: DatasetDefaults, n_train: int) -> int:
    """Return the usual number, or a tenth where there is none or the images are too few for it."""
    usual = defaults.val_size
    return usual if usual and 2 * usual <= n_train else max(1, n_train // 10)


def _carved(train: Split, n: int, seed: int) -> tuple[Split, Split]:
    """Return the training split without its validation images, and those."""
    stay, taken = carve(train.labels, n, seed)
    return tuple(replace(train, indices=train.indices[part]) for part in (stay, taken))
