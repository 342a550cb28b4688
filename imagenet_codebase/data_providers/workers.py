"""Processes that decode images, kept from one pass over the data to the next."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from apq.errors import LOST_WORKER, ApqError
from imagenet_codebase.data_providers.splits import Split

Request = tuple[str, int, int, np.ndarray]
"""A batch: name of the split, seed, epoch, and positions in the split (B,)."""


class Workers:
    """Answers requests in their order: in `n_workers` processes, or in this one when that is 0.

    The processes start with the first pass and end with this object. They serve one pass at a
    time; beginning another ends it. Batches come `pinned` in memory that a GPU can read by itself.
    """

    def __init__(self, splits: dict[str, Split], n_workers: int, pinned: bool) -> None:
        self._requests: list[Request] = []
        self._passes = 0
        self._loader = DataLoader(
            _Batches(splits),
            batch_size=None,
            sampler=self._requests,
            num_workers=n_workers,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            persistent_workers=n_workers > 0,
            worker_init_fn=_leave_interrupts_to_the_parent,
            # Without one of its own, a DataLoader draws from the global generator.
            generator=torch.Generator(),
        )

    def batches(self, requests: list[Request]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images (B, S, S, 1 or 3) uint8 and labels (B,) of each request; raises ApqError."""
        self._passes += 1
        this_pass = self._passes
        self._requests[:] = requests
        answers = iter(self._loader)
        while (batch := _next(answers)) is not None:
            if isinstance(batch, ApqError):
                # A new one: raised itself, `batch` would hold this frame, and so the workers.
                raise ApqError(*batch.args)
            yield batch
            if self._passes != this_pass:
                raise RuntimeError("the workers have begun another pass: finish one at a time")


def _next(answers: Iterator[Any]) -> Any:
    """Return the next answer, None after the last; raises ApqError when a process is lost."""
    try:
        return next(answers, None)
    except (ConnectionError, EOFError):
        raise ApqError(LOST_WORKER) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ApqError(LOST_WORKER) from None


class _Batches(Dataset):
    """Whole batches as items.

    An ApqError is handed over as a value: torch would wrap it in a worker's traceback.
    """

    def __init__(self, splits: dict[str, Split]) -> None:
        self.splits = splits

    def __getitem__(self, request: Request) -> tuple[torch.Tensor, torch.Tensor] | ApqError:
        split, seed, epoch, positions = request
        try:
            return self.splits[split].at(seed, epoch).pixels(positions)
        except ApqError as error:
            return error


def _as_it_is(batch: object) -> object:
    return batch


def _leave_interrupts_to_the_parent(worker: int) -> None:
    # Ctrl-C reaches workers too; the parent decides what it means, and ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
