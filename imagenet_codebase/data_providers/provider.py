"""A data set ready to learn from, and the loaders that hand out its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from apq.checks import check_choice
from apq.errors import ApqError
from apq.streams import Stream
from imagenet_codebase.data_providers.kept import KeptImages
from imagenet_codebase.data_providers.splits import Split
from imagenet_codebase.data_providers.workers import Request, Workers

CPU = torch.device("cpu")
KEPT_AT_ONCE = 256
SPLITS = ("train", "val", "test", "train_unaugmented")


@dataclass(frozen=True)
class Shard:
    """The share of one process out of `n_processes` that work on the same data."""

    index: int = 0
    n_processes: int = 1


WHOLE = Shard()


@dataclass(frozen=True, kw_only=True, eq=False)
class DataProvider:
    """A data set's splits; what is learned is chosen on `val`, and `test` is only ever measured."""

    name: str
    image_size: int
    """Side of the images in pixels."""
    class_names: tuple[str, ...]
    train: Split
    train_unaugmented: Split
    """The training images prepared as for evaluation: for batch statistics and calibration."""
    val: Split
    test: Split
    _workers: dict[tuple[int, bool], Workers] = field(init=False, repr=False, default_factory=dict)
    """Decoding processes by their number: they serve all splits and epochs."""

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def facts(self) -> dict[str, Any]:
        """Return plain values that tell whether two runs saw the same data."""
        return {
            "dataset": self.name,
            "image_size": self.image_size,
            "class_names": list(self.class_names),
            "n_train": self.n_images("train"),
            "train_images": self._digests["train"],
            "val_images": self._digests["val"],
            "randaugment": self.train.randaugment,
        }

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {name: self.split(name).digest() for name in ("train", "val")}

    def split(self, name: str) -> Split:
        """Return a split by name; raises ApqError when there is none of that name."""
        check_choice("split", name, SPLITS)
        return getattr(self, name)

    def n_images(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self.split(split))

    def loader(
        self,
        split: str,
        batch_size: int,
        n_workers: int = 0,
        shuffle: bool | None = None,
        seed: int = 0,
        epoch: int = 0,
        first_batch: int = 0,
        shard: Shard = WHOLE,
        device: torch.device = CPU,
    ) -> Loader:
        """Return batches of a split from `first_batch` on; equal arguments give equal batches.

        Only `train` is shuffled unless `shuffle` says otherwise, and only `train` drops an
        incomplete last batch (never its only one). With a shard, the batches of the same number in
        all processes make up one of n times the size; of other splits each process gets a share of
        the images, equal within one. Images in memory use no workers: they are ready faster than a
        worker could send them. Images and labels come on the device. Raises ApqError.
        """
        if batch_size < 1 or n_workers < 0:
            raise ApqError(
                f"batch_size is {batch_size} and n_workers {n_workers}: "
                f"they must be at least 1 and 0"
            )
        images = self.split(split)
        order = np.arange(len(images))
        if shuffle is None:
            shuffle = split == "train"
        if shuffle:
            order = Stream.ORDER_OF_IMAGES.generator(seed, epoch).permutation(order)
        if split == "train":
            batches = _equal_batches(order, batch_size, shard)
        else:
            order = np.array_split(order, shard.n_processes)[shard.index]
            batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        requests = [(split, seed, epoch, positions) for positions in batches[first_batch:]]
        return Loader(
            self._workers_for(images, n_workers, device),
            requests,
            images.source.normalize,
            device,
        )

    def keep(self, split: str, n_images: int, n_workers: int = 0, seed: int = 0) -> KeptImages:
        """Return `n_images` random images of a split, or all if there are no more, in its order.

        Raises ApqError.
        """
        images = self.split(split)
        chosen = Stream.KEPT_IMAGES.generator(seed).permutation(len(images))[:n_images]
        chosen.sort()
        parts = np.array_split(chosen, -(-len(chosen) // KEPT_AT_ONCE))
        requests = [(split, seed, 0, positions) for positions in parts]
        decoded = list(self._workers_for(images, n_workers).batches(requests))
        pixels, labels = map(torch.cat, zip(*decoded, strict=True))
        return KeptImages(pixels=pixels, labels=labels, normalize=images.source.normalize)

    def _workers_for(self, images: Split, n_workers: int, device: torch.device = CPU) -> Workers:
        splits, pinned = {name: self.split(name) for name in SPLITS}, device.type == "cuda"
        if images.source.in_memory or not n_workers:
            return Workers(splits, 0, pinned)
        kind = (n_workers, pinned)
        if kind not in self._workers:
            self._workers[kind] = Workers(splits, *kind)
        return self._workers[kind]


def _equal_batches(order: np.ndarray, batch_size: int, shard: Shard) -> list[np.ndarray]:
    """Return one process's part of each whole batch that all of them share.

    Parts of one batch are equal, so that a mean of their means is the batch's.
    """
    n = shard.n_processes
    if len(order) // n < 2:  # one image has no variance, which batch norm divides by
        raise ApqError(
            f"{len(order)} training images are too few for {n} processes: each takes two or more"
        )
    whole = min(batch_size, len(order) // n) * n
    parts = order[: len(order) // whole * whole].reshape(-1, n, whole // n)
    return list(parts[:, shard.index])


class Loader:
    """Batches of images (B, 3, S, S) float32 and labels (B,) int64, in a fixed order."""

    def __init__(
        self,
        workers: Workers,
        requests: list[Request],
        normalize: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
    ) -> None:
        self.n_images = sum(len(positions) for *_, positions in requests)
        """Images that one pass hands out."""
        self._workers, self._requests = workers, requests
        self._normalize, self._device = normalize, device

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pixels, labels in self._workers.batches(self._requests):
            # As bytes to the device: a quarter of the way, and it normalises for nothing.
            pixels, labels = (t.to(self._device, non_blocking=True) for t in (pixels, labels))
            yield self._normalize(pixels), labels
