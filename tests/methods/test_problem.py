"""A problem's limits: by brute force on a toy space, and their messages."""

import numpy as np
import pytest

from apq.domain import Domain
from apq.errors import ApqError
from apq.space import PAPER_SPACE
from methods.problem import Limit, SearchProblem, round_up
from utils.latency_predictor import LatencyPredictor


def zero(genes: np.ndarray) -> np.ndarray:
    """Score nothing."""
    return np.zeros(len(genes))


@pytest.fixture
def two_costs(toy_space, random_cost) -> tuple:
    """Two random costs of the toy space."""
    rng = np.random.default_rng(5)
    return tuple(random_cost(toy_space, rng, kind) for kind in ("latency", "energy"))


def test_costs_are_those_of_the_predictors(latency: LatencyPredictor) -> None:
    energy = LatencyPredictor("energy")
    problem = SearchProblem(PAPER_SPACE, zero, (Limit(latency, 11.0), Limit(energy, 12.0)))
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 300)
    costs = problem.costs(genes)
    assert (costs == np.stack([latency.predict(genes), energy.predict(genes)], axis=1)).all()
    expected = (costs[:, 0] <= 11.0) & (costs[:, 1] <= 12.0)
    assert 0 < expected.sum() < 300
    assert (problem.feasible(genes) == expected).all()


def test_several_limits_are_met_or_refused_as_by_brute_force(
    toy_space, toy_genes, two_costs
) -> None:
    free = SearchProblem(toy_space, zero, tuple(Limit(c, 100.0) for c in two_costs))
    costs = free.costs(toy_genes)
    assert free.minima == pytest.approx(costs.min(axis=0))
    assert free.maxima == pytest.approx(costs.max(axis=0))
    rng = np.random.default_rng(1)
    n_met = 0
    for _ in range(20):
        maximum = costs.min(axis=0) * rng.uniform(1, 1.5, 2)
        limits = tuple(Limit(c, float(m)) for c, m in zip(two_costs, maximum, strict=True))
        problem = SearchProblem(toy_space, zero, limits)
        if (costs <= maximum).all(axis=1).any():
            n_met += 1
            assert problem.feasible(problem.feasible_subnet).all()
            continue
        with pytest.raises(ApqError, match="together") as error:
            problem.check()
        # The remedy named is enough, and not far too much.
        kind, text = str(error.value).split("the least ")[1].split(" that keeps the rest is about ")
        i = ["latency", "energy"].index(kind)
        needed = float(text.split()[0])
        others = costs[costs[:, 1 - i] <= maximum[1 - i], i]
        assert others.min() <= needed <= others.min() * 1.1
    assert 4 < n_met < 16


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("seed", "scale", "lacking"),
    [(19, 3, 0), (38, 3, 0), (87, 3, 0), (56, 4, 0.3), (99, 4, 0.3), (131, 4, 0.3)],
)
def test_limits_are_refused_as_by_brute_force_where_costs_differ_by_far(
    toy_space, toy_genes, two_costs, seed, scale, lacking
) -> None:
    rng = np.random.default_rng(seed)
    for cost in two_costs:
        cost.fixed_cost = 0.01
        drawn = np.exp(rng.normal(0, scale, len(cost.option_costs)))
        cost.option_costs = np.where(np.isfinite(cost.option_costs), drawn, np.inf)
    lacks = rng.random(len(drawn)) < lacking  # in a table of the user's
    for cost in two_costs:
        cost.option_costs[lacks] = np.inf
    free = SearchProblem(toy_space, zero, tuple(Limit(c, 1e9) for c in two_costs))
    costs = free.costs(toy_genes)
    costs = costs[np.isfinite(costs).all(axis=1)]
    # Just less than the subnet needs that comes nearest to costs of which one is next to nothing.
    nearest = (costs / costs[rng.integers(len(costs))]).max(axis=1).argmin()
    maximum = 0.97 * costs[nearest]
    assert not (costs <= maximum).all(axis=1).any()
    limits = tuple(Limit(c, float(m)) for c, m in zip(two_costs, maximum, strict=True))
    with pytest.raises(ApqError, match="together") as error:
        SearchProblem(toy_space, zero, limits).check()
    kind, text = str(error.value).split("the least ")[1].split(" that keeps the rest is about ")
    i = ["latency", "energy"].index(kind)
    needed = float(text.split()[0])
    others = costs[costs[:, 1 - i] <= maximum[1 - i], i]
    assert others.min() <= needed <= others.min() * 1.1


def test_the_cheapest_respects_the_domain(latency: LatencyPredictor) -> None:
    columns = PAPER_SPACE.columns
    domain = Domain.whole(PAPER_SPACE).exclude(columns["pw_w_bits"], [0, 1])
    problem = SearchProblem(PAPER_SPACE, zero, (Limit(latency, 20.0),), domain)
    assert domain.contains(problem.feasible_subnet).all()
    least = problem.costs(problem.feasible_subnet)[0, 0]
    assert least == problem.minima[0] > latency.minimum()[0]
    assert (latency.predict(domain.sample(np.random.default_rng(0), 500)) > least).all()
    tight = SearchProblem(PAPER_SPACE, zero, (Limit(latency, 2.96),), domain)
    with pytest.raises(ApqError, match="no subnet of what is left to choose from meets the"):
        tight.check()


@pytest.mark.parametrize("constraint", [0, -1.0, float("nan"), float("inf"), 10**400, "8", True])
def test_a_constraint_must_be_a_positive_number(
    latency: LatencyPredictor, constraint: object
) -> None:
    with pytest.raises(ApqError, match="must be a positive number of ms"):
        Limit(latency, constraint)


def test_a_constraint_below_the_minimum_names_it(bounded) -> None:
    with pytest.raises(ApqError, match=r"constraint of 2.9 ms: the cheapest .* costs 2\.95915 ms"):
        bounded(2.9, zero).check()
    bounded(2.95915, zero).check()


def test_the_minimum_a_message_names_is_accepted() -> None:
    energy = LatencyPredictor("energy")
    with pytest.raises(ApqError) as error:
        SearchProblem(PAPER_SPACE, zero, (Limit(energy, 1.0),)).check()
    named = float(str(error.value).split("costs ")[1].split(" mJ")[0])
    SearchProblem(PAPER_SPACE, zero, (Limit(energy, named),)).check()
    assert named == pytest.approx(energy.minimum()[0], abs=1e-6)


def test_a_constraint_above_the_maximum_is_noted(bounded) -> None:
    assert bounded(46.0, zero).notes() == []
    assert (
        "binds nothing: the most expensive subnet costs 46.792338 ms"
        in bounded(47, zero).notes()[0]
    )


def test_unusable_problems_are_refused(latency, toy_space, random_cost, bounded) -> None:
    with pytest.raises(ApqError, match="at least one limit"):
        SearchProblem(PAPER_SPACE, zero, ())
    toy = random_cost(toy_space, np.random.default_rng(0))
    with pytest.raises(ApqError, match="not of one search space"):
        SearchProblem(PAPER_SPACE, zero, (Limit(latency, 3.0), Limit(toy, 3.0)))
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 3)
    with pytest.raises(ApqError, match="not finite"):
        bounded(11.0, lambda genes: np.full(len(genes), np.nan)).score(genes)


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2"), (1.2345671, "1.234568"), (0.5596140000000001, "0.559615"), (1e-9, "0.000001")],
)
def test_what_a_message_recommends_is_no_less_than_the_cost(value, text):
    assert round_up(value) == text
    assert float(text) >= value
