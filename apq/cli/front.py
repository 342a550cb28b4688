"""A front of searched points: its table, its CSV file and its plot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apq import files
from apq.cli import parser as cli
from apq.cli.found_text import accuracy_origin, what_counts
from apq.cli.tables import format_table
from apq.errors import ApqError
from apq.experiment import Experiment
from methods import diagnostics, pareto, plots
from utils.plots import NO_PLOT, can_plot

if TYPE_CHECKING:
    from apq.cli.searching import Job


@dataclass
class Point:
    """One combination of budgets, and what is known of it."""

    budgets: dict[str, float]
    """Of the costs that are swept, by type."""
    job: Job
    genes: np.ndarray
    """The best subnet, (1, n_genes); (0, n_genes) before there is one."""
    experiment: Experiment | None = None

    @property
    def columns(self) -> list[str]:
        """Names of the swept costs, units included."""
        return [diagnostics.COST_COLUMNS[type_] for type_ in self.budgets]


def check_free(name: str, points: Sequence[Point], overwrite: bool) -> None:
    """Raise ApqError when `write` would replace what these points do not cover."""
    folder = Experiment.path_for(name)
    if (folder / "arch").exists():
        raise ApqError(f"{folder} is an experiment: choose another --exp_name for the front")
    path = folder / "front.csv"
    if overwrite or not path.exists():
        return
    columns = [f"max_{column}" for column in points[0].columns]
    wanted = {tuple(f"{budget}" for budget in point.budgets.values()) for point in points}
    reader = csv.DictReader(files.read_text(path).splitlines())
    try:
        known = [column for column in reader.fieldnames or () if column.startswith("max_")]
        there = {tuple(row[column] for column in known) for row in reader}
    except csv.Error:
        known, there = [], set()  # then it is no front of these budgets
    if known != columns or not there <= wanted:
        raise ApqError(
            f"{path} is a front of other budgets: choose another --exp_name, or replace it with "
            f"--overwrite"
        )


def write(name: str, points: Sequence[Point]) -> None:
    """Write `front.csv` and `front.png` of the points found so far, and print them.

    A point that no subnet can meet, or that is still to come, has a row without figures.
    """
    done = [point for point in points if point.experiment]
    if not done:
        return
    rows = _rows(points, done)
    folder = Experiment.path_for(name)
    files.write_text(folder / "front.csv", files.table_csv(rows))
    shown = (*(f"max_{c}" for c in done[0].columns), "accuracy", *done[0].columns, "efficient")
    accuracies = [row["predicted_accuracy"] for row in rows]
    texts = [{**row, "accuracy": a and f"{a:.2%}"} for row, a in zip(rows, accuracies, strict=True)]
    headers = (*shown, "experiment")
    print(
        format_table(
            [header.replace("_", " ") for header in headers],
            [[_cell(row[header]) for header in headers] for row in texts],
        )
    )
    origin, *notes = accuracy_origin(points[0].job)
    print("\n".join([f"predicted accuracy {origin}", *notes]))
    if max(a for a in accuracies if a) > 1:
        print("note: the predictor is not bound to 100%; above it, its figures only rank")
    if can_plot():
        files.write_bytes(folder / "front.png", _plot(name, points[0], rows))
    else:
        cli.warn(NO_PLOT)
    print(f"saved {folder / 'front.csv'}; each point is an experiment: see its name on the right")


def _rows(points: Sequence[Point], done: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the CSV file's rows, by column."""
    reports = {id(point): point.experiment.report() for point in done}
    scores = [
        report.get("lower_bound", report["predicted_accuracy"]) for report in reports.values()
    ]
    used = np.array([[report[c] for c in done[0].columns] for report in reports.values()])
    is_efficient = dict(zip(reports, pareto.efficient(scores, used), strict=True))
    figures = ["predicted_accuracy", "spread", "lower_bound"]
    if "spread" not in next(iter(reports.values())):
        figures = figures[:1]
    figures += [*diagnostics.COST_COLUMNS.values(), "n_evaluated", "seconds"]
    rows = []
    for point in points:
        report = reports.get(id(point), {})
        found = (
            {
                "efficient": "yes" if is_efficient[id(point)] else "no",
                "experiment": point.experiment.dir.name,
            }
            if report
            else {"efficient": None, "experiment": None}
        )
        budgets = zip(point.columns, point.budgets.values(), strict=True)
        rows.append(
            {
                **{f"max_{column}": budget for column, budget in budgets},
                **{figure: report.get(figure) for figure in figures},
                **found,
            }
        )
    return rows


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _plot(name: str, point: Point, rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the plot against the first cost's budget, a line for each budget of the others."""
    first, *others = point.columns
    cost, *other_costs = (point.job.costs[type_] for type_ in point.budgets)
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["experiment"]:
            label = ", ".join(
                f"{other.type} up to {row[f'max_{column}']:g} {other.unit}"
                for other, column in zip(other_costs, others, strict=True)
            )
            value = row.get("lower_bound") or row["predicted_accuracy"]
            curves.setdefault(label, []).append((row[f"max_{first}"], value))
    counted = what_counts([cost.type], cost.accounting)
    return plots.front_png(
        [plots.Curve(label=label, points=tuple(sorted(c))) for label, c in curves.items()],
        f"{cost.type} budget ({cost.unit}, at {cost.image_size} px, {counted})",
        f"{name}: the best subnets found by {point.job.mode}",
        point.job.figure_of_merit,
    )
