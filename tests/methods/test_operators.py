"""The genetic operators, by property."""

import numpy as np
import pytest

from apq.domain import Domain
from apq.space import PAPER_SPACE, SearchSpace
from methods.operators import Operators
from utils.latency_predictor import LatencyPredictor


@pytest.fixture
def operators() -> Operators:
    return Operators(Domain.whole(PAPER_SPACE), np.random.default_rng(0))


def units_of(genes: np.ndarray, space: SearchSpace = PAPER_SPACE) -> list[np.ndarray]:
    """Return the genes of each unit: (N, 1) for a depth, (N, 6) for a block."""
    depths = [genes[:, [s]] for s in range(space.n_stages)]
    fields = genes[:, space.n_stages :].reshape(len(genes), 6, space.n_blocks)
    return depths + [fields[:, :, b] for b in range(space.n_blocks)]


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
    operators: Operators, latency: LatencyPredictor
) -> None:
    genes = PAPER_SPACE.sample(np.random.default_rng(3), 200)

    def feasible(rows: np.ndarray) -> np.ndarray:
        return latency.predict(rows) <= 10

    genes = genes[~feasible(genes)]
    assert len(genes) > 50
    repaired = operators.repair(
        genes, np.repeat(PAPER_SPACE.encode([latency.minimum()[1]]), len(genes), axis=0), feasible
    )
    assert feasible(repaired).all()
    assert latency.predict(repaired).mean() > 7  # Not all the way to the cheapest: 2.96.


def test_mutation_stays_in_the_domain() -> None:
    columns = PAPER_SPACE.columns
    domain = Domain.whole(PAPER_SPACE).exclude(columns["pw_w_bits"], [0])
    domain = domain.exclude(columns["kernels"], [0, 1]).exclude(columns["depths"], [2])
    operators = Operators(domain, np.random.default_rng(0))
    parents = domain.sample(np.random.default_rng(1), 500)
    children = operators.mutate(parents, 0.5)
    assert domain.contains(children).all()
    assert (children != parents).any(axis=1).all()
