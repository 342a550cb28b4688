"""How good every search mode is after so many seconds, and the page that says so.

python -m benchmarks.search_modes run [--predictor models] [--predictor rugged] [--seeds 5]
python -m benchmarks.search_modes report

`run` searches under latency and energy budgets spread over their ranges and adds a line to the
log for each run; started again, it goes on where it was stopped. Seconds are those of the
processor, one thread, so that other programs count little. `report` writes docs/search-quality.md's
table and its plot from the log. Remove the log after a change of the modes or the predictors.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.predictors import by_name
from methods.modes import MODES
from methods.problem import Limit, SearchProblem
from methods.run import SearchRecord
from utils.latency_predictor import LatencyPredictor

LOG = Path("benchmarks/search_modes.jsonl")
PAGE, PLOT = Path("docs/search-quality.md"), Path("docs/search-quality.png")
BEGIN, END = "<!-- search_modes: begin -->", "<!-- search_modes: end -->"
TIMES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# Budgets lie between these shares of the way from the cheapest subnet to the most expensive.
SHARES = (0.02, 0.6)
NO_LIMIT = {"evolution": {"generations": 10**9}, "guided": {"evaluations": 10**12}}
LONG_SEED = 1000


class Clock:
    """Notes the best so far at each of the times, and ends the search after the last."""

    def __init__(self, times: tuple[float, ...]) -> None:
        self.times = times
        self.curve = [float("nan")] * len(times)
        self.started = time.process_time()

    def __call__(self, record: SearchRecord) -> None:
        """Take note of a step."""
        now = time.process_time() - self.started
        for i, t in enumerate(self.times):
            if now <= t:
                self.curve[i] = record.best_accuracy
        if now >= self.times[-1]:
            raise KeyboardInterrupt  # the search returns its best so far


def budgets(cost: LatencyPredictor, n: int) -> list[float]:
    """Return budgets, evenly spaced on a logarithmic scale."""
    low, high = cost.minimum()[0], cost.maximum()[0]
    first, last = (low + share * (high - low) for share in SHARES)
    return [float(f"{b:.4g}") for b in np.geomspace(first, last, n)]


def tasks(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what there is to run; all budgets with one seed before the next seed."""
    costs = {kind: LatencyPredictor(kind) for kind in ("latency", "energy")}
    for seed in [*range(args.seeds), LONG_SEED]:
        for predictor in args.predictor:
            for kind, cost in costs.items():
                for budget in budgets(cost, args.budgets):
                    for mode in ["guided"] if seed == LONG_SEED else MODES:
                        yield {
                            "predictor": predictor,
                            "type": kind,
                            "budget": budget,
                            "mode": mode,
                            "seed": seed,
                        }


def run(args: argparse.Namespace) -> None:
    """Run what the log does not hold yet."""
    torch.set_num_threads(1)
    done = {tuple(list(entry.values())[:5]) for entry in read_log()}
    predictors = {name: by_name(name) for name in args.predictor}
    costs = {kind: LatencyPredictor(kind) for kind in ("latency", "energy")}
    for task in tasks(args):
        if tuple(task.values()) in done:
            continue
        predictor, cost = predictors[task["predictor"]], costs[task["type"]]
        limits = (Limit(cost, task["budget"]),)
        problem = SearchProblem(
            cost.space, predictor.predict, limits, gradient_fn=predictor.gradients
        )
        mode = MODES[task["mode"]]
        settings = mode.settings(seed=task["seed"], **NO_LIMIT[task["mode"]])
        is_long = task["seed"] == LONG_SEED
        clock = Clock((*TIMES, args.long_seconds) if is_long else TIMES)
        result = mode.search(problem, settings, clock)
        entry = {**task, "curve": clock.curve, "n": result.n_evaluated, "best": result.accuracy}
        with LOG.open("a") as log:
            log.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)


def read_log() -> list[dict[str, Any]]:
    """Return the runs so far."""
    return [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []


def best_known(entries: list[dict[str, Any]]) -> dict[tuple, float]:
    """Return the best of all runs for each predictor, type and budget.

    What keeps a tighter budget counts too.
    """
    best: dict[tuple, float] = {}
    for entry in entries:
        key = (entry["predictor"], entry["type"], entry["budget"])
        best[key] = max(best.get(key, -np.inf), entry["best"])
    return {
        (predictor, type_, budget): max(
            value
            for (p, t, b), value in best.items()
            if (p, t) == (predictor, type_) and b <= budget
        )
        for predictor, type_, budget in best
    }


def gaps(entries: list[dict[str, Any]], predictor: str, mode: str) -> dict[tuple, np.ndarray]:
    """Return (seeds, times) gaps to the best known for each (type, budget).

    In points of accuracy; for the rugged predictor, whose scale is its own, in % of the best.
    """
    best = best_known(entries)
    found: dict[tuple, list] = {}
    for entry in entries:
        if (entry["predictor"], entry["mode"]) == (predictor, mode) and entry["seed"] < LONG_SEED:
            top = best[predictor, entry["type"], entry["budget"]]
            scale = 100 / abs(top) if predictor == "rugged" else 100
            curve = np.array(entry["curve"][: len(TIMES)])
            found.setdefault((entry["type"], entry["budget"]), []).append(scale * (top - curve))
    return {key: np.array(rows) for key, rows in sorted(found.items(), reverse=True)}


def table(entries: list[dict[str, Any]], predictor: str) -> list[str]:
    """Return a Markdown table: a row a budget, the median gap of each mode after 1 s and 10 s."""
    unit = "% of the best" if predictor == "rugged" else "points"
    at = [TIMES.index(1.0), TIMES.index(10.0)]
    header = [f"{mode} {t:g} s" for mode in MODES for t in (1, 10)]
    lines = ["| budget | best known | " + " | ".join(header) + " |", "| --- " * 6 + "|"]
    best, found = best_known(entries), {mode: gaps(entries, predictor, mode) for mode in MODES}
    for kind, budget in next(iter(found.values())):
        cells = [f"{budget:g} {'ms' if kind == 'latency' else 'mJ'}"]
        cells.append(f"{best[predictor, kind, budget]:.5f}")
        for mode in MODES:
            rows = found[mode].get((kind, budget))
            medians = np.median(rows, axis=0)[at] if rows is not None else [np.nan] * 2
            cells += [f"{gap:.3f}" for gap in medians]
        lines.append("| " + " | ".join(cells) + " |")
    n_seeds = min(len(rows) for by_budget in found.values() for rows in by_budget.values())
    return [f"Predictor `{predictor}`: gap in {unit}, median of {n_seeds} seeds.\n", *lines]


def plot(entries: list[dict[str, Any]], predictors: list[str]) -> None:
    """Draw the gap against time: the median over budgets and seeds, and the middle 80 %."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(predictors), 3.6), layout="constrained")
    for axes, predictor in zip(
        figure.subplots(1, len(predictors), squeeze=False)[0], predictors, strict=True
    ):
        for mode in MODES:
            rows = np.concatenate(list(gaps(entries, predictor, mode).values()))
            low, middle, high = np.nanquantile(rows, [0.1, 0.5, 0.9], axis=0)
            axes.plot(TIMES, middle, marker="o", label=mode)
            axes.fill_between(TIMES, low, high, alpha=0.2)
        axes.set(xscale="log", yscale="symlog", xlabel="seconds", title=f"predictor: {predictor}")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylabel("gap, % of the best" if predictor == "rugged" else "gap, points")
        axes.set_ylim(bottom=0)
        axes.legend()
    FigureCanvasAgg(figure).print_png(PLOT)


def report(args: argparse.Namespace) -> None:
    """Write the tables between the page's marks, and the plot."""
    entries = read_log()
    predictors = list(dict.fromkeys(entry["predictor"] for entry in entries))
    plot(entries, predictors)
    text = "\n\n".join("\n".join(table(entries, predictor)) for predictor in predictors)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
    print(text)


def main() -> None:
    """Run, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--predictor", action="append", help="file, folder or rugged; repeatable")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budgets", type=int, default=10, help="of each cost")
    parser.add_argument("--long_seconds", type=float, default=60.0, help="of the yardstick's run")
    args = parser.parse_args()
    args.predictor = args.predictor or ["models", "rugged"]
    {"run": run, "report": report}[args.what](args)


if __name__ == "__main__":
    main()
