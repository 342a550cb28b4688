"""The weights of a run's best epoch, as a file."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from torch import nn

from apq.errors import ApqError
from apq.experiment import BEST_NAME
from apq.provenance import card_path, figure_of
from utils import checkpoint

EARLIER_NAME = "model_best.earlier{}.pth.tar"


class BestWeights:
    """Keeps the weights of the epoch whose figure `by` is the highest; of equal ones the last.

    Without a `by` none are kept. Several processes agree on what is best; one of them keeps it.
    """

    def __init__(self, folder: Path, by: str) -> None:
        self.path, self.by = folder / BEST_NAME, by
        self.figure: float | None = None
        """That of the epoch whose weights are kept; None before there is one."""

    def take(self, figures: dict[str, float]) -> bool:
        """Take an epoch's figure as the best one where it is; return whether it is."""
        figure = figures.get(self.by)
        if figure is None or (self.figure is not None and not figure >= self.figure):
            return False
        self.figure = figure
        return True

    def keep(self, net: nn.Module, facts: dict[str, Any]) -> None:
        """Write a network's weights, and plain values beside them."""
        checkpoint.save(self.path, {"state_dict": net.state_dict(), **facts})
        card_path(self.path).unlink(missing_ok=True)  # it would describe other weights

    def read_figure(self, done: bool) -> float | None:
        """Return what `figure` is by the file; None, with a note, where the file is lost.

        Raises ApqError when the run is done: no epoch is left to make another one.
        """
        try:
            return figure_of(checkpoint.load(self.path), self.by)
        except ApqError as error:
            if done:
                raise ApqError(f"{error}; the run has ended: begin anew with --restart") from None
            print(f"note: {error}; what is kept is the best epoch from here on", flush=True)
            return None

    def set_aside(self) -> None:
        """Keep weights that no state here belongs to, such as shipped ones, under another name."""
        if self.path.exists():
            names = (EARLIER_NAME.format(f"-{n}" if n > 1 else "") for n in itertools.count(1))
            kept = next(path for path in map(self.path.with_name, names) if not path.exists())
            os.replace(self.path, kept)
            if (card := card_path(self.path)).exists():
                os.replace(card, card_path(kept))
            print(f"note: the weights that were there are kept as {kept}", flush=True)

    def forget(self) -> None:
        """Remove the file, and what was measured of it."""
        for path in (self.path, card_path(self.path)):
            path.unlink(missing_ok=True)
