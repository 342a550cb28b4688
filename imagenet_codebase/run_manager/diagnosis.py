"""Where a run that has failed went wrong: its last steps once more, every layer watched."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from imagenet_codebase.run_manager import distributed, health

if TYPE_CHECKING:
    from imagenet_codebase.run_manager.trainer import Trainer


def repeat_watched(trainer: Trainer, last: int) -> tuple[int, float, str]:
    """Repeat the steps from the last save up to number `last` of the epoch, until one fails.

    Returns the failing step, counted from 1, its loss, and where the first bad value appeared. The
    trainer is of no use afterwards.
    """
    trainer.restore(distributed.from_first(trainer.states.load))
    loader, n_steps = trainer.batches()
    first = trainer.next_step
    trainer.net.train()
    for i, (images, labels) in enumerate(itertools.islice(loader, last - first), start=first):
        losses: list[float] = []

        def run_step(images=images, labels=labels, i=i, losses=losses) -> torch.Tensor:
            loss = trainer.run_step(images, labels, i, n_steps)
            losses.append(float(loss))
            return loss

        found = distributed.gather(
            (health.cause(trainer.net, run_step, trainer.highest_loss), losses[0])
        )
        # To the other processes it came by the update, with the mean of the gradients.
        for cause, loss in sorted(found, key=lambda told: health.BY_UPDATE in told[0]):
            if cause:
                return i + 1, loss, cause
    return last, float("nan"), "it did not happen again when the steps were repeated"
