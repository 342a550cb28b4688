"""Fronts of accuracy against costs: budgets in a good order, what to carry over, what dominates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from apq.errors import ApqError
from methods.problem import SearchProblem
from methods.run import N_CANDIDATES, Candidates, SearchRecord, SearchResult

# Predictions of one subnet in batches of different sizes differ by about 1e-7.
TOLERANCE = 1e-6
_DIGITS = 4


def even_budgets(low: float, high: float, n: int) -> tuple[float, ...]:
    """Return n budgets from `low` to `high` in even steps, rounded up to four digits.

    Raises ApqError when `low` is above `high`, or one of them is no number.
    """
    if not -math.inf < low <= high < math.inf:
        raise ApqError(f"budgets cannot run from {low:g} to {high:g}: the first must be the least")
    return tuple(dict.fromkeys(_round_up(value) for value in np.linspace(low, high, n).tolist()))


def _round_up(value: float) -> float:
    """Round up, so that the least possible cost stays a budget that can be met.

    Raises ApqError when it is nothing: no budget is as little as that.
    """
    if value <= 0:
        raise ApqError("some subnets cost nothing by this table: there is nothing to sweep")
    digits = _DIGITS - 1 - math.floor(math.log10(value))
    # In decimal text, since a binary quotient may lie a hair above the wanted one.
    rounded = round(value, digits)
    return rounded if rounded >= value else round(rounded + 10.0**-digits, digits)


def grid(budgets: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Return every combination of the budgets of each cost; none comes before a tighter one."""
    rising = [sorted(set(values)) for values in budgets.values()]
    return [
        dict(zip(budgets, combination, strict=True)) for combination in itertools.product(*rising)
    ]


def usable(problem: SearchProblem, genes: np.ndarray) -> np.ndarray:
    """Return those of the subnets (N, n_genes) that keep a problem's limits, best first."""
    genes = genes[problem.feasible(genes)]
    if not len(genes):
        return genes
    return genes[np.argsort(-problem.score(genes), kind="stable")]


def adopted(
    problem: SearchProblem, known: np.ndarray, earlier: Sequence[SearchRecord]
) -> SearchResult:
    """Return known subnets (N, n_genes), best first and within the limits, as what was found.

    `earlier` is the history of the search that they beat; one step is added to it.
    """
    _, first = np.unique(problem.space.canonical(known), axis=0, return_index=True)
    genes = known[np.sort(first)][:N_CANDIDATES]
    candidates = Candidates(genes, problem.score(genes), problem.costs(genes))
    last = earlier[-1]
    record = replace(
        last,
        step=last.step + 1,
        best_accuracy=float(candidates.accuracy[0]),
        best_costs=tuple(candidates.costs[0].tolist()),
    )
    return SearchResult(
        candidates=candidates,
        history=(*earlier, record),
        n_evaluated=last.n_evaluated,
        seconds=last.seconds,
        interrupted=False,
    )


def is_beaten(problem: SearchProblem, own: np.ndarray, others: np.ndarray) -> bool:
    """Whether one of the subnets that keep the limits scores higher than `own` (1, n_genes)."""
    if not len(others):
        return False
    scores = problem.score(np.concatenate([own, others]))
    return bool(scores[1:].max() > scores[0] + TOLERANCE)


def efficient(scores: Sequence[float], costs: np.ndarray) -> np.ndarray:
    """Return which points no other one dominates, bool (N,).

    A point dominates another if it is at least as good in its score and in all its costs
    (N, n_costs), and better in one of these; of equal points the first stays.
    """
    values = np.column_stack([-np.asarray(scores, dtype=float), costs])
    no_worse = (values[:, None] <= values[None]).all(axis=2)
    better = (values[:, None] < values[None]).any(axis=2)
    earlier = np.triu(np.ones((len(values), len(values)), dtype=bool), k=1)
    return ~(no_worse & (better | earlier)).any(axis=0)
