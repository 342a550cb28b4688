"""A front of searched points: its table, its CSV file and its plot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apq import files
from apq.cli import parser as cli
from apq.cli.found_text import UNBOUND, accuracy_origin
from apq.cli.tables import format_table
from apq.errors import ApqError
from apq.experiment import Experiment
from lut.costs import COSTS, what_counts
from methods import pareto, plots
from utils.plots import NO_PLOT, can_plot

if TYPE_CHECKING:
    from methods.sweep import Point


def check_free(name: str, points: Sequence[Point], overwrite: bool) -> None:
    """Raise ApqError when `write` would replace what these points do not cover."""
    folder = Experiment.path_for(name)
    if (folder / "arch").exists():
        raise ApqError(f"{folder} is an experiment: choose another --exp_name for the front")
    path = folder / "front.csv"
    files.check_writable(path)
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
    print(_as_text(rows, done[0].columns))
    origin, *notes = accuracy_origin(points[0].request)
    print("\n".join([f"predicted accuracy {origin}", *notes]))
    if max(row["predicted_accuracy"] or 0 for row in rows) > 1:
        print(UNBOUND)
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
    figures += [*(cost.column for cost in COSTS.values()), "n_evaluated", "seconds"]
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


def _as_text(rows: Sequence[dict[str, Any]], swept: Sequence[str]) -> str:
    """Return the rows for people: budgets, accuracies and costs of what is swept, the names."""
    accuracies = [figure for figure in ("predicted_accuracy", "lower_bound") if figure in rows[0]]
    columns = [*(f"max_{c}" for c in swept), *accuracies, *swept, "efficient", "experiment"]

    def cell(row: dict[str, Any], column: str) -> Any:
        value = row[column]
        if not isinstance(value, float):
            return value
        return f"{value:.2%}" if column in accuracies else f"{value:.6g}"

    return format_table(
        [column.removeprefix("predicted_").replace("_", " ") for column in columns],
        [[cell(row, column) for column in columns] for row in rows],
    )


def _plot(name: str, point: Point, rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the plot against the first cost's budget, a line for each budget of the others."""
    first, *others = point.columns
    cost, *other_costs = (point.request.costs[type_] for type_ in point.budgets)
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
        f"{name}: the best subnets found by {point.request.mode}",
        point.request.figure_of_merit,
    )
