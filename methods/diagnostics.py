"""What a search tells of itself: its history, its best candidates, what binds, what is heavy."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apq import files
from apq.errors import ApqError
from apq.subnet import Subnet
from lut.costs import COSTS
from methods.problem import SearchProblem
from methods.run import Candidates, SearchRecord
from utils.latency_predictor import CostRow, LatencyPredictor

if TYPE_CHECKING:
    from utils.accuracy_predictor import AccuracyPredictor
    from utils.ensemble import PredictorEnsemble

HISTORY_COLUMNS = ("step", "n_evaluated", "seconds", "best_accuracy")


def cost_columns(problem: SearchProblem) -> list[str]:
    """Return the names of the limits' costs, units included."""
    return [COSTS[limit.cost.type].column for limit in problem.limits]


def history_csv(history: Iterable[SearchRecord], problem: SearchProblem) -> bytes:
    """Return a row for each step: what was evaluated by then, and the best subnet's figures."""
    columns = (*HISTORY_COLUMNS, *cost_columns(problem))
    rows = (
        (r.step, r.n_evaluated, round(r.seconds, 4), r.best_accuracy, *r.best_costs)
        for r in history
    )
    return files.table_csv(dict(zip(columns, row, strict=True)) for row in rows).encode()


def read_history(text: str, problem: SearchProblem) -> tuple[SearchRecord, ...]:
    """Read what `history_csv` wrote; raises ApqError when it is damaged or of other limits."""
    columns = [*HISTORY_COLUMNS, *cost_columns(problem)]
    try:
        rows = list(csv.reader(io.StringIO(text)))
        if len(rows) < 2 or rows[0] != columns:
            raise ApqError("it is no history of a search under these limits")
        if any(len(row) != len(columns) for row in rows):
            raise ApqError("it is damaged: its rows are not of one length")
        history = tuple(
            SearchRecord(
                step=int(step),
                n_evaluated=int(n_evaluated),
                seconds=float(seconds),
                best_accuracy=float(accuracy),
                best_costs=tuple(map(float, costs)),
            )
            for step, n_evaluated, seconds, accuracy, *costs in rows[1:]
        )
    except (ValueError, csv.Error) as error:
        raise ApqError(f"it is damaged: {error}") from None
    if min(min(row.step, row.n_evaluated, row.seconds) for row in history) < 0:
        raise ApqError("it is damaged: it counts below 0")
    return history


def all_costs(
    subnets: Sequence[Subnet], costs: Mapping[str, LatencyPredictor]
) -> list[dict[str, float]]:
    """Return every cost of every subnet, by name with unit."""
    columns = {COSTS[kind].column: model.predict(subnets) for kind, model in costs.items()}
    return [{name: float(v[i]) for name, v in columns.items()} for i in range(len(subnets))]


def accuracy_rows(
    predictor: AccuracyPredictor | PredictorEnsemble, candidates: Candidates
) -> list[dict[str, float]]:
    """Return what is predicted of each candidate; an ensemble's rows tell what ranked them."""
    scores = candidates.accuracy.tolist()
    if not hasattr(predictor, "mean_and_spread"):
        return [{"predicted_accuracy": score} for score in scores]
    mean, spread = (values.tolist() for values in predictor.mean_and_spread(candidates.genes))
    return [
        {"predicted_accuracy": m, "spread": s, "lower_bound": score}
        for m, s, score in zip(mean, spread, scores, strict=True)
    ]


def candidate_rows(
    genes: np.ndarray,
    accuracies: Sequence[Mapping[str, float]],
    costs: Mapping[str, LatencyPredictor],
) -> list[dict[str, Any]]:
    """Return candidates, best first: what is predicted of each, every cost, and the subnet."""
    subnets = next(iter(costs.values())).space.decode(genes)
    figures = zip(accuracies, all_costs(subnets, costs), subnets, strict=True)
    return [
        {"rank": i + 1, **accuracy, **cost, "arch": subnet.to_paper()}
        for i, (accuracy, cost, subnet) in enumerate(figures)
    ]


def limit_rows(problem: SearchProblem, costs: Sequence[float]) -> list[dict[str, Any]]:
    """Return what is known of each limit: how much of it the costs (one a limit) use and leave.

    `slack_share` is the share of the maximum that is left; `least` and `most` are the exact ends
    of this cost in what is left to choose from. `tightest` marks the limit with the least left.
    """
    rows = []
    for i, limit in enumerate(problem.limits):
        slack = limit.maximum - costs[i]
        rows.append(
            {
                "type": limit.cost.type,
                "unit": limit.cost.unit,
                "maximum": limit.maximum,
                "cost": costs[i],
                "slack": slack,
                "slack_share": slack / limit.maximum,
                "least": float(problem.minima[i]),
                "most": float(problem.maxima[i]),
            }
        )
    tightest = min(rows, key=lambda row: row["slack_share"])
    return [{**row, "tightest": row is tightest} for row in rows]


def layers_csv(rows: Sequence[CostRow]) -> bytes:
    """Return a row for each layer that counts: shape, bits, costs, shares of time and energy."""
    total_ms, total_mj = (_total(rows, name) for name in ("latency_ms", "energy_mj"))
    table = (
        {
            "block": row.block,
            "layer": row.name,
            "shape": row.layer.description,
            "w_bits": row.w_bits,
            "a_bits": row.a_bits,
            "latency_ms": row.latency_ms,
            "energy_mj": row.energy_mj,
            "latency_share": row.latency_ms / total_ms,
            "energy_share": row.energy_mj / total_mj,
            "bitops": row.bitops,
            "size_bytes": row.size_bytes,
        }
        for row in rows
    )
    return files.table_csv(table).encode()


def _total(rows: Sequence[CostRow], figure: str) -> float:
    """Return what shares are of; 1 where all is 0, as in a table without energies."""
    return sum(getattr(row, figure) for row in rows) or 1.0


def heaviest(rows: Sequence[CostRow], figure: str, n: int = 5) -> list[dict[str, Any]]:
    """Return the n layers with the most of a figure, such as `latency_ms`, and their shares."""
    total = _total(rows, figure)
    largest = sorted(rows, key=lambda row: -getattr(row, figure))[:n]
    return [
        {
            "block": row.block,
            "layer": row.name,
            figure: getattr(row, figure),
            "share": getattr(row, figure) / total,
        }
        for row in largest
    ]
