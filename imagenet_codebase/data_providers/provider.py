"""A data set ready to learn from, and the loaders that hand out its batches."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from apq.errors import ApqError, closest
from imagenet_codebase.data_providers.splits import Split

SPLITS = ("train", "val", "test", "train_unaugmented")


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

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """Return a split by name; raises ApqError when there is none of that name."""
        if name not in SPLITS:
            raise ApqError(
                f"there is no split '{name}'{closest(name, SPLITS)}: use {', '.join(SPLITS)}"
            )
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
    ) -> Loader:
        """Return batches of a split from `first_batch` on; equal arguments give equal batches.

        Only `train` is shuffled unless `shuffle` says otherwise, and only `train` drops an
        incomplete last batch (never its only one). Images in memory use no workers: they are
        ready faster than a worker could send them. Raises ApqError.
        """
        if batch_size < 1 or n_workers < 0:
            raise ApqError(
                f"batch_size is {batch_size} and n_workers {n_workers}: "
                f"they must be at least 1 and 0"
            )
        images = self.split(split).at(seed, epoch)
        order = np.arange(len(images))
        if shuffle is None:
            shuffle = split == "train"
        if shuffle:
            order = np.random.default_rng((3, seed, epoch)).permutation(order)
        if split == "train" and len(order) > batch_size:
            order = order[: len(order) // batch_size * batch_size]
        order = order[first_batch * batch_size :]
        return Loader(images, order, batch_size, 0 if images.source.in_memory else n_workers)


class Loader:
    """Batches of images (B, 3, S, S) float32 and labels (B,) int64, in a fixed order."""

    def __init__(self, split: Split, order: np.ndarray, batch_size: int, n_workers: int) -> None:
        self.n_images = len(order)
        """Images that one pass hands out."""
        self._batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self._loader = DataLoader(
            _BatchDataset(split),
            batch_size=None,
            sampler=self._batches,
            num_workers=n_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=n_workers > 0,
            worker_init_fn=_leave_interrupts_to_the_parent,
            # Without one of its own, a DataLoader draws from the global generator.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self._loader:
            if isinstance(batch, ApqError):
                # A new one: raised itself, `batch` would hold this frame, and so the workers.
                raise ApqError(*batch.args)
            yield batch


class _BatchDataset(Dataset):
    """Whole batches as items.

    An ApqError is handed over as a value: torch would wrap it in a worker's traceback.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor] | ApqError:
        try:
            return self.split.batch(positions)
        except ApqError as error:
            return error


def _as_it_is(batch: object) -> object:
    return batch


def _leave_interrupts_to_the_parent(worker: int) -> None:
    # Ctrl-C reaches workers too; the parent decides what it means, and ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
