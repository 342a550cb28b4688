"""Fronts: the order of budgets, what is carried over, and what dominates."""

import math

import numpy as np
import pytest

from apq.errors import ApqError
from apq.space import PAPER_SPACE
from methods import pareto
from methods.problem import Limit, SearchProblem
from methods.run import SearchRecord
from utils.latency_predictor import LatencyPredictor


@pytest.fixture(scope="module")
def problem() -> SearchProblem:
    def score(genes):
        return genes[:, PAPER_SPACE.columns["widths"]].sum(axis=1) / 1000

    return SearchProblem(PAPER_SPACE, score, (Limit(LatencyPredictor("latency"), 20.0),))


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((5, 14, 4), (5, 8, 11, 14)),
        ((5, 5, 3), (5,)),
        ((2.95915, 3.2, 2), (2.96, 3.2)),
        ((12345678.0, 2e7, 2), (12350000, 20000000)),
        ((0.00123456, 0.5, 2), (0.001235, 0.5)),
        ((3, 4, 1), (3,)),
    ],
)
def test_budgets_are_even_and_never_rounded_down(ends, expected):
    assert pareto.even_budgets(*ends) == pytest.approx(expected, rel=1e-12)
    assert min(pareto.even_budgets(*ends)) >= ends[0]


def test_budgets_must_rise():
    with pytest.raises(ApqError, match="cannot run from 9 to 5"):
        pareto.even_budgets(9, 5, 3)
    for ends in ((math.nan, 1.0), (1.0, math.inf)):
        with pytest.raises(ApqError, match="budgets cannot run"):
            pareto.even_budgets(*ends, 2)


def test_what_costs_nothing_cannot_be_swept():
    with pytest.raises(ApqError, match="some subnets cost nothing by this table"):
        pareto.even_budgets(0.0, 0.0, 3)


def test_no_combination_comes_before_a_tighter_one():
    budgets = {"latency": (7, 5, 9, 5), "energy": (10, 8)}
    grid = pareto.grid(budgets)
    assert len(grid) == 6
    assert grid[0] == {"latency": 5, "energy": 8}
    for i, earlier in enumerate(grid):
        for later in grid[i + 1 :]:
            assert any(later[type_] > earlier[type_] for type_ in budgets)


def test_only_what_keeps_the_limits_is_carried_over(problem):
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 200)
    usable = pareto.usable(problem, genes)
    assert 0 < len(usable) == problem.feasible(genes).sum() < 200
    assert (np.diff(problem.score(usable)) <= 0).all()
    assert len(pareto.usable(problem, genes[:0])) == 0


def test_a_point_is_beaten_only_by_a_clearly_better_one(problem):
    genes = pareto.usable(problem, PAPER_SPACE.sample(np.random.default_rng(0), 200))
    assert pareto.is_beaten(problem, genes[-1:], genes)
    assert not pareto.is_beaten(problem, genes[:1], genes)
    assert not pareto.is_beaten(problem, genes[:1], genes[:0])


def test_what_is_adopted_adds_a_step_and_no_network_twice(problem):
    genes = pareto.usable(problem, PAPER_SPACE.sample(np.random.default_rng(0), 200))
    last = SearchRecord(step=7, best_accuracy=0.1, best_costs=(9.0,), n_evaluated=800, seconds=2.0)
    result = pareto.adopted(problem, np.concatenate([genes[:2], genes]), (last,))
    assert (result.candidates.genes == genes[:10]).all()
    assert result.history[0] == last
    assert result.history[1].step == 8
    assert result.history[1].best_accuracy == problem.score(genes[:1])[0] == result.accuracy
    assert result.n_evaluated == 800


def test_efficient_by_hand():
    scores = [0.9, 0.8, 0.9, 0.7, 0.9]
    costs = np.array([[5, 5], [4, 6], [6, 5], [6, 7], [5, 5]])
    # The third costs more than the first, the fourth worse in everything, the fifth its copy.
    assert pareto.efficient(scores, costs).tolist() == [True, True, False, False, False]


def test_efficient_points_are_those_that_none_dominates():
    rng = np.random.default_rng(0)
    scores, costs = rng.integers(0, 5, 60), rng.integers(0, 5, (60, 2))
    efficient = pareto.efficient(scores, costs)
    values = [(-s, *c) for s, c in zip(scores.tolist(), costs.tolist(), strict=True)]
    for i, value in enumerate(values):
        dominated = any(
            all(o <= v for o, v in zip(other, value, strict=True)) and (other != value or j < i)
            for j, other in enumerate(values)
            if j != i
        )
        assert efficient[i] == (not dominated)
