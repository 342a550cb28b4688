"""What every search mode promises: by brute force, by exact optimum, by property."""

import copy
from collections.abc import Callable

import numpy as np
import pytest

from apq.domain import Domain
from apq.errors import ApqError
from apq.space import PAPER_SPACE
from methods.modes import DEFAULT_MODE, MODES
from methods.problem import Limit, SearchProblem
from methods.run import SearchResult
from methods.settings import SearchSettings
from utils.latency_predictor import LatencyPredictor

SHORT = {"evolution": {"generations": 20}, "guided": {"evaluations": 2100}}
# Shares of the optimum where a third of the options cannot run.
LACKING = {"evolution": 0.5, "guided": 0.9}
EVERY_MODE = pytest.mark.parametrize("mode", MODES)


def run(mode: str, problem: SearchProblem, start: np.ndarray | None = None, **more) -> SearchResult:
    """Run a mode for about 2100 evaluations."""
    settings = MODES[mode].settings(**{**SHORT[mode], **more})
    return MODES[mode].search(problem, settings, start=start)


def optimum(problem: SearchProblem, values: np.ndarray) -> tuple[float, float]:
    """Return the best additive score met within one limit, and an upper bound on any.

    `values` (n_options,) are the options' scores. Lagrangian: for every price of the cost the
    best net score is exact, and bounds the score under the limit.
    """
    best, bound, low, high = -np.inf, np.inf, 0.0, 1.0
    costs, limit = problem.option_costs[0], problem.maximum[0]
    padded = np.append(values, 0.0)
    for _ in range(60):
        price = (low + high) / 2
        with np.errstate(invalid="ignore"):
            genes = problem.domain.least(price * costs - values)
        score = padded[problem.options.numbers(genes)].sum()
        cost = problem.costs(genes)[0, 0]
        bound = min(bound, score + price * (limit - cost))
        if cost <= limit:
            best, high = max(best, score), price
        else:
            low = price
    return best, bound


@pytest.fixture(scope="module")
def problem(
    latency: LatencyPredictor, additive_values: Callable[..., tuple]
) -> tuple[SearchProblem, list[np.ndarray], np.ndarray]:
    """An additive problem under 11 ms, the batches it was asked for, and its options' scores."""
    bare = SearchProblem(PAPER_SPACE, len, (Limit(latency, 11.0),))
    score, gradients, values = additive_values(bare, np.random.default_rng(3))
    seen: list[np.ndarray] = []

    def remembered(genes: np.ndarray) -> np.ndarray:
        seen.append(genes.copy())
        return score(genes)

    return (
        SearchProblem(PAPER_SPACE, remembered, (Limit(latency, 11.0),), gradient_fn=gradients),
        seen,
        values,
    )


def test_evolution_is_the_default() -> None:
    assert DEFAULT_MODE == "evolution"
    assert set(MODES) == set(SHORT)
    assert all(issubclass(mode.settings, SearchSettings) for mode in MODES.values())


@EVERY_MODE
def test_only_feasible_subnets_are_evaluated(mode: str, problem, latency) -> None:
    problem, seen, _ = problem
    seen.clear()
    result = run(mode, problem)
    genes = np.concatenate(seen)
    assert (latency.predict(genes) <= 11.0).all()
    assert PAPER_SPACE.is_legal(genes).all()
    assert result.accuracy == problem.score_fn(genes).max()
    assert result.costs == (latency.predict(result.genes)[0],)
    assert result.n_evaluated == pytest.approx(2100, rel=0.1)


@EVERY_MODE
def test_the_ten_best_are_distinct_and_the_best(mode: str, problem) -> None:
    problem, seen, _ = problem
    seen.clear()
    ten = run(mode, problem).candidates
    everything = np.concatenate(seen)
    _, first = np.unique(PAPER_SPACE.canonical(everything), axis=0, return_index=True)
    best = np.sort(problem.score_fn(everything[first]))[::-1][:10]
    assert ten.accuracy == pytest.approx(best, abs=1e-12)
    assert (problem.score_fn(ten.genes) == ten.accuracy).all()
    assert (problem.costs(ten.genes) == ten.costs).all()
    assert len(np.unique(PAPER_SPACE.canonical(ten.genes), axis=0)) == 10


@EVERY_MODE
def test_the_best_never_gets_worse_and_the_seed_decides_all(mode: str, problem) -> None:
    problem, _, _ = problem
    first, again, other = (run(mode, problem, seed=seed) for seed in (1, 1, 2))
    best = [record.best_accuracy for record in first.history]
    assert best == sorted(best)
    assert best[0] < best[-1] == first.accuracy
    assert [record.step for record in first.history] == list(range(len(best)))
    assert (first.genes == again.genes).all()
    assert first.history == again.history
    assert (first.genes != other.genes).any()


@EVERY_MODE
@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_of_a_small_space_is_found(
    mode: str, seed: int, toy_space, toy_genes, random_cost, additive_values
) -> None:
    rng = np.random.default_rng(seed)
    cost = random_cost(toy_space, rng)
    bare = SearchProblem(toy_space, len, (Limit(cost, 10.0),))
    score, gradients, values = additive_values(bare, rng)
    costs, scores = bare.costs(toy_genes)[:, 0], score(toy_genes)
    for share in (0.02, 0.2, 0.6):
        limit = Limit(cost, float(np.quantile(costs, share)))
        problem = SearchProblem(toy_space, score, (limit,), gradient_fn=gradients)
        exact = scores[costs <= limit.maximum].max()
        longer = {"evolution": {"generations": 150}, "guided": {"evaluations": 15_000}}[mode]
        assert run(mode, problem, seed=seed, **longer).accuracy == pytest.approx(exact, abs=1e-12)
        within, bound = optimum(problem, values)
        assert within - 1e-12 <= exact <= bound + 1e-12


@pytest.mark.parametrize(("mode", "most"), [("evolution", 0.16), ("guided", 0.01)])
def test_the_gap_to_the_exact_optimum(mode: str, most: float, problem) -> None:
    problem, _, values = problem
    best, bound = optimum(problem, values)
    assert bound - best < 0.003 * bound
    gap = 1 - run(mode, problem).accuracy / bound
    assert 0 <= gap < most


@EVERY_MODE
def test_a_start_is_never_lost(mode: str, problem) -> None:
    problem, _, _ = problem
    good = run(mode, problem, seed=5)
    short = {"evolution": {"generations": 1}, "guided": {"evaluations": 1}}[mode]
    for budget in (11.0, 12.0, 40.0):  # what keeps a tight limit keeps a looser one
        limit = Limit(problem.limits[0].cost, budget)
        looser = SearchProblem(
            PAPER_SPACE, problem.score_fn, (limit,), gradient_fn=problem.gradient_fn
        )
        assert run(mode, looser, start=good.genes, **short).accuracy >= good.accuracy
    tighter = Limit(problem.limits[0].cost, good.costs[0] * 0.99)
    tight = SearchProblem(
        PAPER_SPACE, problem.score_fn, (tighter,), gradient_fn=problem.gradient_fn
    )
    with pytest.raises(ApqError, match="does not keep the constraints"):
        run(mode, tight, start=good.genes)


@EVERY_MODE
def test_the_search_stays_in_its_domain(mode: str, problem) -> None:
    problem, seen, _ = problem
    columns = PAPER_SPACE.columns
    kept = PAPER_SPACE.sample(np.random.default_rng(4), 1)
    domain = Domain.whole(PAPER_SPACE).exclude(columns["pw_w_bits"], [0])
    domain = domain.fix(columns["kernels"], kept[0, columns["kernels"]])
    domain = domain.fix([0, 2], kept[0, [0, 2]])
    seen.clear()
    part = SearchProblem(
        PAPER_SPACE, problem.score_fn, problem.limits, domain, gradient_fn=problem.gradient_fn
    )
    assert run(mode, part, seed=2).accuracy > 0
    assert domain.contains(np.concatenate(seen)).all()
    with pytest.raises(ApqError, match="not one of those left to choose from"):
        run(mode, part, start=problem.feasible_subnet)


@EVERY_MODE
@pytest.mark.parametrize("n_free", [0, 1])
def test_next_to_nothing_to_choose_from_is_enough(mode: str, n_free: int, problem) -> None:
    problem, seen, _ = problem
    kept = problem.feasible_subnet
    columns = np.arange(PAPER_SPACE.n_genes)[n_free:]
    domain = Domain.whole(PAPER_SPACE).fix(columns, kept[0, columns])
    part = SearchProblem(
        PAPER_SPACE, problem.score_fn, problem.limits, domain, gradient_fn=problem.gradient_fn
    )
    seen.clear()
    with np.errstate(all="raise"):
        found = run(mode, part)
    assert domain.contains(np.concatenate(seen)).all()
    assert (found.genes[:, n_free:] == kept[:, n_free:]).all()


@EVERY_MODE
def test_two_limits_hold_together(mode: str, problem, latency) -> None:
    problem, seen, _ = problem
    energy = LatencyPredictor("energy")
    limits = (Limit(latency, 11.0), Limit(energy, 11.5))
    seen.clear()
    both = SearchProblem(PAPER_SPACE, problem.score_fn, limits, gradient_fn=problem.gradient_fn)
    result = run(mode, both)
    genes = np.concatenate(seen)
    assert (energy.predict(genes) <= 11.5).all()
    assert (latency.predict(genes) <= 11.0).all()
    assert result.costs == (latency.predict(result.genes)[0], energy.predict(result.genes)[0])


@EVERY_MODE
def test_the_exact_minimum_returns_the_cheapest(mode: str, problem, latency) -> None:
    problem, _, _ = problem
    limits = (Limit(latency, latency.minimum()[0]),)
    tight = SearchProblem(PAPER_SPACE, problem.score_fn, limits, gradient_fn=problem.gradient_fn)
    result = run(mode, tight)
    assert result.costs[0] == latency.minimum()[0]
    assert 1 <= len(result.candidates.genes) <= 10


@EVERY_MODE
def test_ctrl_c_before_anything_is_known_ends_the_search(mode: str, problem, monkeypatch) -> None:
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("methods.run.Run._record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(mode, problem[0])


@EVERY_MODE
def test_ctrl_c_patience_and_time_keep_the_best_so_far(mode: str, problem) -> None:
    problem, seen, _ = problem
    seen.clear()
    records = []

    def interrupt(record) -> None:
        records.append(record)
        if record.step == 5:
            raise KeyboardInterrupt

    settings = MODES[mode].settings(**SHORT[mode])
    result = MODES[mode].search(problem, settings, interrupt)
    assert result.interrupted
    assert tuple(records) == result.history[1:]
    assert [record.step for record in records] == [1, 2, 3, 4, 5]
    assert result.accuracy == problem.score_fn(np.concatenate(seen)).max()
    timed = run(mode, problem, seconds=1e-9)
    assert (len(timed.history), timed.interrupted) == (1, False)
    endless = {"evolution": {"generations": 10**6}, "guided": {"evaluations": 0}}[mode]
    flat = SearchProblem(
        PAPER_SPACE,
        lambda genes: np.zeros(len(genes)),
        problem.limits,
        gradient_fn=problem.gradient_fn,
    )
    assert len(run(mode, flat, patience=7, **endless).history) == 8


def test_a_score_without_gradients_is_refused_by_guided(bounded, additive) -> None:
    with pytest.raises(ApqError, match="needs a predictor that knows its gradients"):
        run("guided", bounded(11.0, additive(PAPER_SPACE)))


@EVERY_MODE
def test_options_that_cannot_run_are_neither_found_nor_counted_with(mode, problem, latency):
    asked, _, values = problem
    cost = copy.copy(latency)
    lacking = np.random.default_rng(0).random(latency.option_costs.shape) < 0.3
    cost._padded_costs = np.append(np.where(lacking, np.inf, latency.option_costs), 0.0)
    limits = (Limit(cost, 11.0),)
    short = SearchProblem(PAPER_SPACE, asked.score_fn, limits, gradient_fn=asked.gradient_fn)
    with np.errstate(all="raise", under="ignore"):
        result = run(mode, short)
    numbers = short.options.numbers(result.genes)[0]
    assert np.isfinite(np.append(cost.option_costs, 0.0)[numbers]).all()
    best, _ = optimum(short, np.where(np.isfinite(cost.option_costs), values, -1e3))
    assert result.accuracy > LACKING[mode] * best
