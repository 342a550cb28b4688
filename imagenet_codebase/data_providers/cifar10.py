"""CIFAR-10: 60,000 images of 32 x 32 pixels, as a folder tree or as torchvision downloads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import numpy as np
import torch

from apq.errors import ApqError
from apq.progress import track
from imagenet_codebase.data_providers.memory import MemorySource, crop_and_flip
from imagenet_codebase.data_providers.normalization import Normalization
from imagenet_codebase.data_providers.splits import OpenedSplits, Split
from imagenet_codebase.data_providers.tree import ImageTree, open_tree

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

SIDE = 32
ARCHIVE = "cifar-10-batches-py"

# Of the 50,000 training images in a copy of JPEG files, rounded.
NORMALIZATION = Normalization(mean=(0.491, 0.482, 0.447), std=(0.245, 0.243, 0.261))


def read_cifar10(root: Path, image_size: int, download: bool) -> OpenedSplits:
    """Open the images below `root`: its folders `train` and `test`, or torchvision's archive.

    Images are decoded when the first batch is asked for. Raises ApqError.
    """
    if not download and (root / "train").is_dir():
        return open_tree(root, lambda tree: _source(partial(decode, tree), tree.labels, image_size))
    if not download and not (root / ARCHIVE).is_dir():
        raise ApqError(
            f"there is no CIFAR-10 in {root}: neither train/<class>/*.jpg nor {ARCHIVE}/; "
            f"get it with --download, or name its folder with --data_dir"
        )
    return _open_archive(root, image_size, download)


def decode(tree: ImageTree) -> torch.Tensor:
    """Return all images of a folder, uint8 (N, 32, 32, 3); raises ApqError that names a bad one."""
    pixels = np.empty((len(tree.labels), SIDE, SIDE, 3), dtype=np.uint8)
    for index in track(range(len(pixels)), f"reading {tree.folder}"):
        image = tree.open(index)
        if image.size != (SIDE, SIDE):
            raise ApqError(
                f"{tree.path(index)} has {image.width} x {image.height} pixels; CIFAR-10 has "
                f"{SIDE} x {SIDE}: open other images with --dataset folder"
            )
        pixels[index] = image
    return torch.from_numpy(pixels)


def _open_archive(root: Path, image_size: int, download: bool) -> OpenedSplits:
    from torchvision.datasets import CIFAR10

    try:
        # The archive holds pickles: torchvision reads them after their checksums agree.
        train, test = (CIFAR10(root, train=t, download=download) for t in (True, False))
    except (RuntimeError, URLError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ApqError(
            f"cannot use the CIFAR-10 archive in {root} ({reason}): get it anew with --download"
        ) from None
    train_split, test_split = (_sorted(part, image_size) for part in (train, test))
    return OpenedSplits(
        class_names=tuple(train.classes), train=train_split, val=None, test=test_split
    )


def _sorted(part: CIFAR10, image_size: int) -> Split:
    """Return a part of the archive class by class, in the order of its images.

    That is how they lie in folders: the same ones have to be set aside for validation, since a
    supernet that was trained on the folders may be measured on the archive.
    """
    labels = np.array(part.targets)
    order = np.argsort(labels, kind="stable")
    read = partial(torch.from_numpy, part.data[order])
    return _whole(_source(read, labels[order], image_size))


def _source(read: Callable[[], torch.Tensor], labels: np.ndarray, image_size: int) -> MemorySource:
    return MemorySource(
        read=read,
        labels=labels,
        image_size=image_size,
        normalize=NORMALIZATION,
        augmentation=crop_and_flip,
    )


def _whole(source: MemorySource) -> Split:
    return Split(source=source, indices=np.arange(len(source.labels)))
