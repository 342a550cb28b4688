"""What a run's folder says of it beside its states: how it was made, its figures, its curves."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apq import files
from apq.provenance import provenance
from elastic_nn.modules import QuantizedLayer
from utils.plots import COLOURS, can_plot, new_axes, to_png

# What one takes to draw twice an hour for nothing is too much for runs of tiny epochs.
PLOT_EVERY_S = 60.0


class RunFolder:
    """Writes `run.json`, `summary.csv`, `ranges.csv`, PNG curves and TensorBoard's scalars."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._plotted_at = time.monotonic()
        self._board: Any = None

    def begin(self, **facts: Any) -> None:
        """Write how the run is made; `facts` are plain values, such as settings."""
        content = {**provenance(), "git_commit": git_commit(), **facts}
        files.write_json(self.folder / "run.json", content)

    def end_epoch(self, history: list[dict[str, float]]) -> None:
        """Write the figures so far: a row for each epoch, the same columns in all."""
        files.write_text(self.folder / "summary.csv", files.table_csv(history))
        self._add_scalars(history[-1])
        if time.monotonic() - self._plotted_at > PLOT_EVERY_S:
            self.plot(history)

    def write_ranges(self, net: nn.Module) -> None:
        """Write the ranges of a network's quantized layers, where there are some."""
        if rows := list(range_rows(net)):
            files.write_text(self.folder / "ranges.csv", files.table_csv(rows))

    def plot(self, history: list[dict[str, float]]) -> None:
        """Draw accuracies and losses against the epoch, where matplotlib is installed.

        Rows may lack figures that others have.
        """
        if not history or not can_plot():
            return
        for kind, label, scale in (("top1", "top-1 accuracy (%)", 100), ("loss", "loss", 1)):
            names = list(dict.fromkeys(n for row in history for n in row if n.endswith(kind)))
            figure, axes = new_axes(str(self.folder))
            for name, colour in zip(names, COLOURS, strict=False):
                values = [scale * row.get(name, math.nan) for row in history]
                axes.plot([row["epoch"] for row in history], values, ".-", color=colour, label=name)
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            if names:
                axes.legend(frameon=False)
                files.write_bytes(self.folder / f"{kind}.png", to_png(figure))
        self._plotted_at = time.monotonic()

    def forget(self) -> None:
        """Remove what an earlier run has written, but for its scalars, which are cut by epoch."""
        for name in ("run.json", "summary.csv", "ranges.csv", "top1.png", "loss.png"):
            (self.folder / name).unlink(missing_ok=True)

    def close(self, history: list[dict[str, float]]) -> None:
        """Draw the curves for the last time and let go of open files."""
        self.plot(history)
        if self._board is not None:
            self._board.close()
            self._board = None

    def _add_scalars(self, row: dict[str, float]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            # Epochs that a run before this one has told of again are told of once.
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=row["epoch"])
        for name, value in row.items():
            if name != "epoch":
                self._board.add_scalar(name, value, row["epoch"])
        self._board.flush()


def range_rows(net: nn.Module) -> Iterable[dict[str, Any]]:
    """Yield name, bits and ranges of every quantized layer; None for an input that is not."""
    for name, layer in net.named_modules():
        if isinstance(layer, QuantizedLayer) and (layer.w_bits or layer.a_bits):
            # One that nothing has set is the largest magnitude, as it is when the layer runs.
            unset, most = layer.weight_range <= 0, layer.weight.detach().abs().max()
            weight_range = torch.where(unset, most, layer.weight_range.detach())
            yield {
                "layer": name,
                "w_bits": layer.w_bits,
                "a_bits": layer.a_bits,
                "activation_range": layer.activation_range.item() if layer.a_bits else None,
                "weight_range_min": float(weight_range.min()),
                "weight_range_max": float(weight_range.max()),
            }


def git_commit() -> str | None:
    """Return the commit of the checkout this code is in, `-dirty` when changed; None outside."""
    here = Path(__file__).resolve()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for question in (("ls-files", "--error-unmatch", here.name), ("describe", "--always")):
            options = ("--dirty", "--abbrev=40", "--exclude=*") if "describe" in question else ()
            argv = ["git", "-C", str(here.parent), *question, *options]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None


def format_row(row: dict[str, float]) -> str:
    """Return an epoch's figures as a line for people."""
    figures = (
        f"{name} {value:.2%}" if "top" in name else f"{name} {value:.3f}"
        for name, value in row.items()
        if name not in ("epoch", "seconds")
    )
    return f"{'  '.join(figures)}  {row['seconds']:.1f} s"
