"""The evolutionary search: its operators by property, its result by brute force and golden run."""

import numpy as np
import pytest

from apq.errors import ApqError
from apq.space import PAPER_SPACE, SearchSpace, Stage
from methods.evolution import EvolutionSettings, SearchResult, check_constraint, search
from methods.evolution.evolve import REDRAWS
from methods.evolution.operators import REPAIR_ROUNDS, Operators
from utils.latency_predictor import LatencyPredictor

TOY = SearchSpace(
    first_block_channels=8,
    stages=(Stage(out_channels=8, stride=2, max_depth=2, depths=(1, 2)),),
    kernels=(3, 7),
    width_step=16,
    bits=(4, 8),
)


class Additive:
    """A score, or a cost, that adds up over active blocks: an optimum is easy to know.

    Without `rng` every gene counts as its share of its largest value, and the last choice
    everywhere gives exactly 1.
    """

    def __init__(self, space: SearchSpace, rng: np.random.Generator | None = None) -> None:
        self.space = space
        largest = space.gene_sizes.max()
        self.values = (
            np.tile(np.arange(largest), (space.n_genes, 1))
            / (np.maximum(space.gene_sizes - 1, 1)[:, None])
        )
        if rng is not None:
            self.values = rng.random((space.n_genes, largest))
        self.n_calls = 0
        self.seen: list[np.ndarray] = []

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        self.n_calls += 1
        self.seen.append(genes)
        values = self.values[np.arange(self.space.n_genes), genes][:, self.space.n_stages :]
        active = np.tile(self.space.active(genes), 6)
        return (values * active).sum(axis=1) / active.shape[1]


@pytest.fixture(scope="module")
def latency() -> LatencyPredictor:
    return LatencyPredictor("latency")


@pytest.fixture(scope="module")
def cheapest(latency: LatencyPredictor) -> np.ndarray:
    return PAPER_SPACE.encode([latency.minimum()[1]])


@pytest.fixture
def operators() -> Operators:
    return Operators(PAPER_SPACE, np.random.default_rng(0))


def units_of(genes: np.ndarray, space: SearchSpace = PAPER_SPACE) -> list[np.ndarray]:
    """Return the genes of each unit: (N, 1) for a depth, (N, 6) for a block."""
    depths = [genes[:, [s]] for s in range(space.n_stages)]
    fields = genes[:, space.n_stages :].reshape(len(genes), 6, space.n_blocks)
    return depths + [fields[:, :, b] for b in range(space.n_blocks)]


# ---- operators ----


def test_mutation_raises_and_lowers_every_gene(operators: Operators) -> None:
    parent = np.ones((2000, PAPER_SPACE.n_genes), dtype=int)  # No gene at either end.
    children = operators.mutate(parent, 0.1)
    assert (children > parent).any(axis=0).all()
    assert (children < parent).any(axis=0).all()


def test_mutation_redraws_a_tenth_of_the_blocks_whole(operators: Operators) -> None:
    parents = PAPER_SPACE.sample(np.random.default_rng(1), 3000)
    children = operators.mutate(parents, 0.1)
    assert PAPER_SPACE.is_legal(children).all()
    changed = np.stack(
        [
            (child != parent).any(axis=1)
            for child, parent in zip(units_of(children), units_of(parents), strict=True)
        ],
        axis=1,
    )
    # A redrawn block equals the old one about once in a thousand; a redrawn depth once in three.
    assert changed[:, PAPER_SPACE.n_stages :].mean() == pytest.approx(0.1, abs=0.005)
    assert changed[:, : PAPER_SPACE.n_stages].mean() == pytest.approx(0.1 * 2 / 3, abs=0.01)


def test_mutation_without_probability_still_redraws_one_unit(operators: Operators) -> None:
    parents = PAPER_SPACE.sample(np.random.default_rng(1), 500)
    children = operators.mutate(parents, 0.0)
    n_changed = sum(
        (child != parent).any(axis=1)
        for child, parent in zip(units_of(children), units_of(parents), strict=True)
    )
    assert n_changed.max() == 1
    assert (n_changed == 1).mean() > 0.8


def test_crossover_takes_every_unit_whole_from_one_parent(operators: Operators) -> None:
    mothers, fathers = PAPER_SPACE.sample(np.random.default_rng(2), 400).reshape(2, 200, -1)
    children = operators.cross(mothers, fathers)
    assert PAPER_SPACE.is_legal(children).all()
    for child, mother, father in zip(*map(units_of, (children, mothers, fathers)), strict=True):
        is_mothers = (child == mother).all(axis=1)
        is_fathers = (child == father).all(axis=1)
        assert (is_mothers | is_fathers).all()
        assert is_mothers.mean() > 0.3
        assert is_fathers.mean() > 0.3


def test_repair_stops_once_a_subnet_is_feasible(
    operators: Operators, latency: LatencyPredictor, cheapest: np.ndarray
) -> None:
    genes = PAPER_SPACE.sample(np.random.default_rng(3), 200)

    def feasible(rows: np.ndarray) -> np.ndarray:
        return latency.predict(rows) <= 10

    genes = genes[~feasible(genes)]
    assert len(genes) > 50
    repaired = operators.repair(genes, np.repeat(cheapest, len(genes), axis=0), feasible)
    assert feasible(repaired).all()
    assert latency.predict(repaired).mean() > 7  # Not all the way to the cheapest: 2.96.


# ---- the search ----


def run(
    latency: LatencyPredictor,
    cheapest: np.ndarray,
    constraint: float,
    score: Additive | None = None,
    **settings: int,
) -> SearchResult:
    settings = {"generations": 20, **settings}
    return search(
        PAPER_SPACE,
        score or Additive(PAPER_SPACE),
        latency.predict,
        constraint,
        EvolutionSettings(**settings),
        cheapest=cheapest,
    )


@pytest.mark.parametrize("constraint", [2.9622, 6.0, 11.0, 1000.0])
def test_only_feasible_subnets_are_evaluated(
    latency: LatencyPredictor, cheapest: np.ndarray, constraint: float
) -> None:
    score = Additive(PAPER_SPACE)
    result = run(latency, cheapest, constraint, score)
    assert [len(genes) for genes in score.seen] == [100] * 21
    assert result.n_evaluated == 2100
    seen = np.concatenate(score.seen)
    assert (latency.predict(seen) <= constraint).all()
    assert PAPER_SPACE.is_legal(seen).all()
    assert result.accuracy == score(seen).max() == score(result.genes)[0]
    assert result.cost == latency.predict(result.genes)[0]


def test_the_best_never_gets_worse(latency: LatencyPredictor, cheapest: np.ndarray) -> None:
    result = run(latency, cheapest, 8.0)
    best = [record.best_accuracy for record in result.history]
    assert best == sorted(best)
    assert best[0] < best[-1] == result.accuracy
    assert [record.generation for record in result.history] == list(range(21))
    assert [record.n_evaluated for record in result.history] == list(range(100, 2101, 100))


def test_the_seed_decides_everything(latency: LatencyPredictor, cheapest: np.ndarray) -> None:
    first, again, other = (run(latency, cheapest, 8.0, seed=seed) for seed in (1, 1, 2))
    assert (first.genes == again.genes).all()
    assert first.history == again.history
    assert (first.genes != other.genes).any()


def test_the_exact_minimum_returns_the_cheapest(
    latency: LatencyPredictor, cheapest: np.ndarray
) -> None:
    minimum = latency.minimum()[0]
    result = run(latency, cheapest, minimum)
    assert result.cost == minimum


def test_a_tight_constraint_takes_a_bounded_effort(
    latency: LatencyPredictor, cheapest: np.ndarray
) -> None:
    n_calls = 0

    def cost(genes: np.ndarray) -> np.ndarray:
        nonlocal n_calls
        n_calls += 1
        return latency.predict(genes)

    constraint = latency.minimum()[0] * 1.001
    settings = EvolutionSettings(generations=30)
    score = Additive(PAPER_SPACE)
    result = search(PAPER_SPACE, score, cost, constraint, settings, cheapest=cheapest)
    assert n_calls <= 31 * (REDRAWS + REPAIR_ROUNDS + 2) + 1
    assert latency.minimum()[0] < result.cost <= constraint


def test_the_optimum_of_a_small_space_is_found() -> None:
    rng = np.random.default_rng(7)
    score, cost = Additive(TOY, rng), Additive(TOY, rng)
    sizes = tuple(TOY.gene_sizes)
    genes = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)
    genes = genes[TOY.is_legal(genes)]
    costs, scores = cost(genes), score(genes)
    for share in (0.2, 0.4, 0.7):
        constraint = np.quantile(costs, share)
        result = search(
            TOY,
            score,
            cost,
            constraint,
            EvolutionSettings(generations=60),
            cheapest=genes[[costs.argmin()]],
        )
        assert result.accuracy == scores[costs <= constraint].max()


def test_golden_run(latency: LatencyPredictor, cheapest: np.ndarray) -> None:
    # The optimum without a constraint is 1. To be blessed anew only for a change on purpose.
    free = run(latency, cheapest, 1000.0, generations=100)
    bound = run(latency, cheapest, 11.0, generations=100)
    assert free.accuracy == pytest.approx(0.875165343915, abs=1e-9)
    assert free.cost == pytest.approx(39.100184, abs=1e-9)
    assert bound.accuracy == pytest.approx(0.692294973545, abs=1e-9)
    assert bound.cost == pytest.approx(10.967052, abs=1e-9)


def test_of_equally_accurate_subnets_the_cheapest_wins(
    latency: LatencyPredictor, cheapest: np.ndarray
) -> None:
    seen = []

    def score(genes: np.ndarray) -> np.ndarray:
        seen.append(genes)
        return np.full(len(genes), 0.5)

    result = run(latency, cheapest, 11.0, score)
    assert result.cost == latency.predict(np.concatenate(seen)).min()


def test_ctrl_c_keeps_the_best_so_far(latency: LatencyPredictor, cheapest: np.ndarray) -> None:
    score = Additive(PAPER_SPACE)

    def interrupted(genes: np.ndarray) -> np.ndarray:
        if score.n_calls == 5:
            raise KeyboardInterrupt
        return score(genes)

    result = run(latency, cheapest, 11.0, interrupted)
    assert result.interrupted
    assert len(result.history) == 5
    assert result.n_evaluated == 500
    assert result.accuracy == score(np.concatenate(score.seen)).max()
    assert not run(latency, cheapest, 11.0, generations=1).interrupted


def test_progress_is_reported_after_each_generation(
    latency: LatencyPredictor, cheapest: np.ndarray
) -> None:
    records = []
    result = search(
        PAPER_SPACE,
        Additive(PAPER_SPACE),
        latency.predict,
        11.0,
        EvolutionSettings(generations=3),
        cheapest=cheapest,
        on_generation=records.append,
    )
    assert tuple(records) == result.history[1:]
    assert [record.generation for record in records] == [1, 2, 3]


def test_the_smallest_settings_work(latency: LatencyPredictor, cheapest: np.ndarray) -> None:
    assert run(latency, cheapest, 11.0, population=2, generations=5).n_evaluated == 12
    assert run(latency, cheapest, 11.0, generations=0).n_evaluated == 100
    for ratio in (0.0, 1.0):
        assert run(latency, cheapest, 11.0, mutation_ratio=ratio).n_evaluated == 2100


def test_unusable_functions_are_refused(latency: LatencyPredictor, cheapest: np.ndarray) -> None:
    with pytest.raises(ApqError, match=r"cheapest one costs 2\.959"):
        run(latency, cheapest, 2.9)
    with pytest.raises(ApqError, match="not finite"):
        run(latency, cheapest, 11.0, lambda genes: np.full(len(genes), np.nan))


# ---- settings and constraints ----


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
    ],
)
def test_settings_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ApqError, match=f"{name} is .*; it must be"):
        EvolutionSettings(**{name: value})


def test_the_papers_settings_are_the_defaults() -> None:
    settings = EvolutionSettings()
    assert (settings.population, settings.n_parents, settings.n_mutations) == (100, 25, 50)
    assert (settings.generations, settings.mutation_prob) == (500, 0.1)


@pytest.mark.parametrize("constraint", [0, -1.0, float("nan"), float("inf"), "8", True])
def test_a_constraint_must_be_a_positive_number(
    latency: LatencyPredictor, constraint: object
) -> None:
    with pytest.raises(ApqError, match="must be a positive number of ms"):
        check_constraint(constraint, latency)


def test_a_constraint_below_the_minimum_names_it(latency: LatencyPredictor) -> None:
    with pytest.raises(ApqError, match=r"cheapest subnet costs 2\.95915 ms"):
        check_constraint(2.9, latency)
    assert check_constraint(2.95915, latency) is None


def test_the_minimum_a_message_names_is_accepted() -> None:
    energy = LatencyPredictor("energy")
    with pytest.raises(ApqError) as error:
        check_constraint(1, energy)
    named = str(error.value).split("costs ")[1].split(" mJ")[0]
    assert check_constraint(float(named), energy) is None
    assert float(named) == pytest.approx(energy.minimum()[0], abs=1e-6)


def test_a_constraint_above_the_maximum_is_noted(latency: LatencyPredictor) -> None:
    assert check_constraint(46.0, latency) is None
    assert "binds nothing: the dearest subnet costs 46.792338 ms" in check_constraint(47, latency)
