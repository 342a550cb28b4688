"""A split is some images of a source, and how they are prepared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from apq.errors import ApqError
from apq.streams import Stream
from imagenet_codebase.data_providers.normalization import Normalization
from imagenet_codebase.data_providers.randaugment import randaugment


class ImageSource(Protocol):
    """Where images come from: all of a folder, or all of a tensor."""

    labels: np.ndarray
    names: np.ndarray | None
    """What tells the images apart, bytes (N,); None where their places do."""
    in_memory: bool
    normalize: Normalization
    """Makes float32 images (B, 3, S, S) of what `batch` returns, on the device it is on."""

    def batch(self, indices: np.ndarray, key: tuple[int, int] | None) -> torch.Tensor:
        """Return images (B, S, S, 1 or 3) uint8.

        With a key, they are augmented as the key and each image's index say; without, never.
        """


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Split(Dataset):
    """A torch Dataset of (image float32 (3, S, S), label int)."""

    source: ImageSource
    indices: np.ndarray
    """Which images of the source belong to the split, shape (N,)."""
    augment: bool = False
    randaugment: bool = False
    """Change augmented images further, by RandAugment."""
    seed: int = 0
    epoch: int = 0

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, shape (N,)."""
        return self.source.labels[self.indices]

    def digest(self) -> str:
        """Return what differs between splits of other images: 16 hexadecimal digits."""
        digest = hashlib.sha256(self.indices.tobytes() + self.labels.tobytes())
        if self.source.names is not None:
            digest.update(self.source.names[self.indices].tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        images, labels = self.batch([position])
        return images[0], int(labels[0])

    def batch(self, positions: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, 3, S, S) float32 and labels (B,) int64 of positions in the split."""
        pixels, labels = self.pixels(positions)
        return self.source.normalize(pixels), labels

    def pixels(self, positions: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, S, S, 1 or 3) uint8, not normalised yet, and labels (B,) int64.

        A quarter of the bytes: this is what worker processes send.
        """
        indices = self.indices[np.asarray(positions)]
        key = (self.seed, self.epoch) if self.augment else None
        pixels = self.source.batch(indices, key)
        if key is not None and self.randaugment:
            seeds = (Stream.RANDAUGMENT.seeds(*key, index) for index in indices.tolist())
            pixels = randaugment(pixels, (int(seed.generate_state(1)[0]) for seed in seeds))
        return pixels, torch.from_numpy(self.source.labels[indices])

    def at(self, seed: int, epoch: int) -> Split:
        """Return the split as it looks in one epoch; only augmentation depends on it."""
        return replace(self, seed=seed, epoch=epoch)


def carve(labels: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of what stays and of the n images taken out, both sorted.

    Each class gives in proportion to its size, within one image, and keeps at least one.
    Raises ApqError when n is not between 1 and what they can spare.
    """
    counts = np.bincount(labels)
    spare = len(labels) - np.count_nonzero(counts)
    if not 1 <= n <= spare:
        most = "none; add images"
        if spare:
            most = f"{spare} at most; choose another number or add images"
        raise ApqError(
            f"cannot set {n} of {len(labels)} training images aside for validation: each class "
            f"keeps one, so they can spare {most}"
        )
    shuffled = Stream.VALIDATION_IMAGES.generator(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    of_class = counts[labels[by_class]]
    rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]
    # The images of a class spread evenly over 0..1: the first n of all classes are a fair share.
    place = np.where(rank == of_class - 1, np.inf, (rank + 0.5) / of_class)
    taken = np.zeros(len(labels), dtype=bool)
    taken[by_class[np.argsort(place, kind="stable")[:n]]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedSplits:
    """What a data set comes with, before validation images are set aside."""

    class_names: tuple[str, ...]
    train: Split
    val: Split | None
    """None: validation images have yet to be taken out of `train`."""
    test: Split
