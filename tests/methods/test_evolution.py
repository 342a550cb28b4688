"""The evolutionary search: its own promises, and a golden run; those of all modes: test_modes."""

import tracemalloc

import numpy as np
import pytest

from apq.errors import ApqError
from apq.space import PAPER_SPACE
from methods.evolution import EvolutionSettings, search
from methods.evolution.evolve import REDRAWS
from methods.operators import REPAIR_ROUNDS


@pytest.mark.parametrize("constraint", [2.9622, 11.0])
def test_every_generation_is_evaluated_once(bounded, additive, constraint: float) -> None:
    score = additive(PAPER_SPACE)
    result = search(bounded(constraint, score), EvolutionSettings(generations=20))
    assert [len(genes) for genes in score.seen] == [100] * 21
    assert result.n_evaluated == 2100
    assert [record.step for record in result.history] == list(range(21))
    assert [record.n_evaluated for record in result.history] == list(range(100, 2101, 100))


def test_a_tight_constraint_takes_a_bounded_effort(bounded, additive, latency) -> None:
    least = latency.minimum()[0]
    problem = bounded(least * 1.01, additive(PAPER_SPACE))
    n_calls, costs = 0, problem.costs_of

    def counted(numbers: np.ndarray) -> np.ndarray:
        nonlocal n_calls
        n_calls += 1
        return costs(numbers)

    problem.costs_of = counted
    result = search(problem, EvolutionSettings(generations=30))
    assert 30 < n_calls <= 31 * (REDRAWS + REPAIR_ROUNDS + 3) + 2
    assert least < result.costs[0] <= least * 1.01


def test_golden_run(bounded, additive) -> None:
    # The optimum without a constraint is 1. To be blessed anew only for a change on purpose.
    settings = EvolutionSettings(generations=100)
    free = search(bounded(1000.0, additive(PAPER_SPACE)), settings)
    bound = search(bounded(11.0, additive(PAPER_SPACE)), settings)
    assert free.accuracy == pytest.approx(0.884193121693, abs=1e-9)
    assert free.costs[0] == pytest.approx(35.76189, abs=1e-9)
    assert bound.accuracy == pytest.approx(0.698015873016, abs=1e-9)
    assert bound.costs[0] == pytest.approx(10.940028, abs=1e-9)


def test_memory_does_not_grow_with_the_candidates(bounded) -> None:
    peaks, n_evaluated = [], []
    problem = bounded(1000.0, lambda genes: genes.mean(axis=1))
    for generations in (200, 500):
        tracemalloc.start()
        result = search(problem, EvolutionSettings(generations=generations))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        n_evaluated.append(result.n_evaluated)
    # A candidate's genes alone are 1,056 bytes; a generation's record is a few hundred.
    assert (peaks[1] - peaks[0]) / (n_evaluated[1] - n_evaluated[0]) < 20


def test_of_equally_accurate_subnets_the_cheapest_wins(bounded, latency) -> None:
    seen = []

    def score(genes: np.ndarray) -> np.ndarray:
        seen.append(genes)
        return np.full(len(genes), 0.5)

    result = search(bounded(11.0, score), EvolutionSettings(generations=20))
    assert result.costs[0] == latency.predict(np.concatenate(seen)).min()


def test_the_smallest_settings_work(bounded, additive) -> None:
    problem = bounded(11.0, additive(PAPER_SPACE))
    smallest = EvolutionSettings(population=2, generations=5)
    assert search(problem, smallest).n_evaluated == 12
    assert search(problem, EvolutionSettings(generations=0)).n_evaluated == 100
    for ratio in (0.0, 1.0):
        settings = EvolutionSettings(mutation_ratio=ratio, generations=20)
        assert search(problem, settings).n_evaluated == 2100


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("population", 1),
        ("population", 10.0),
        ("generations", -1),
        ("generations", True),
        ("seed", -1),
        ("parent_ratio", 1.5),
        ("mutation_ratio", -0.1),
        ("mutation_prob", float("nan")),
        ("mutation_prob", "0.1"),
        ("seconds", -1.0),
        ("seconds", 10**400),
        ("patience", 1.5),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ApqError, match=f"{name} is .*; it must be"):
        EvolutionSettings(**{name: value})


def test_the_papers_settings_are_the_defaults() -> None:
    settings = EvolutionSettings()
    assert (settings.population, settings.n_parents, settings.n_mutations) == (100, 25, 50)
    assert (settings.generations, settings.mutation_prob) == (500, 0.1)
