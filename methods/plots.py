"""Plots of a search and of a front as PNG files, drawn with matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.plots import COLOURS, MARKERS, new_axes, to_png

if TYPE_CHECKING:
    from methods.run import SearchRecord


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a front: points of (budget, predicted accuracy in 0..1), by rising budget."""

    label: str
    points: tuple[tuple[float, float], ...]


def progress_png(history: Sequence[SearchRecord], title: str, figure_of_merit: str) -> bytes:
    """Return the plot of the best figure of merit so far against the subnets evaluated."""
    figure, axes = new_axes(title)
    evaluated = [record.n_evaluated for record in history]
    best = [100 * record.best_accuracy for record in history]
    axes.step(evaluated, best, where="post", color=COLOURS[0])
    axes.plot(evaluated[-1:], best[-1:], "o", color=COLOURS[0])
    axes.annotate(
        f"{best[-1]:.2f} %",
        (evaluated[-1], best[-1]),
        (4, 7),  # above the curve, which comes from the lower left
        textcoords="offset points",
        ha="right",
    )
    axes.margins(y=0.1)
    axes.set_xlabel("subnets evaluated")
    axes.set_ylabel(f"best {figure_of_merit} so far (%)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return to_png(figure)


def front_png(
    curves: Sequence[Curve], budget_label: str, title: str, figure_of_merit: str
) -> bytes:
    """Return the plot of the figure of merit against a budget, a line for each curve."""
    figure, axes = new_axes(title)
    for i, curve in enumerate(curves):
        budgets, accuracies = zip(*curve.points, strict=True)
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(budgets, [100 * a for a in accuracies], label=curve.label, markersize=5, **style)
    if len(curves) > 1:
        axes.legend(frameon=False)
    axes.set_xlabel(budget_label)
    axes.set_ylabel(f"{figure_of_merit} (%)")
    return to_png(figure)
