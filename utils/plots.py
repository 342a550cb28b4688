"""What every plot has in common: whether one can be drawn, its look, its PNG file."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_PLOT = "no plot: matplotlib is missing; pip install matplotlib adds it"
# Colour-blind safe (Okabe and Ito), the darkest first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def new_axes(title: str) -> tuple[Figure, Axes]:
    """Return an empty figure and its axes; needs matplotlib."""
    # Not pyplot: it takes longer to import, and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2))
    # Margins by hand: matplotlib's own layouts draw everything twice.
    axes = figure.add_axes((0.12, 0.13, 0.85, 0.79))
    axes.set_title(title, fontsize=10)
    _style(axes)
    return figure, axes


def new_row(n: int) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its n axes, side by side; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * n, 3.4), layout="constrained")
    row = list(figure.subplots(1, n, squeeze=False)[0])
    for axes in row:
        _style(axes)
    return figure, row


def _style(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.ticklabel_format(useOffset=False)


def to_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
