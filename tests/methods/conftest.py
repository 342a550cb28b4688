"""What the tests of the search share: additive scores and costs, whose optima are easy to know."""

from collections.abc import Callable

import numpy as np
import pytest

from apq.domain import Domain
from apq.options import block_options
from apq.space import PAPER_SPACE, SearchSpace, Stage
from methods.problem import Limit, SearchProblem
from utils.latency_predictor import LatencyPredictor


class Additive:
    """A score that adds up over the genes of active blocks, and remembers what it was asked.

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
        self.seen: list[np.ndarray] = []

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        self.seen.append(genes)
        values = self.values[np.arange(self.space.n_genes), genes][:, self.space.n_stages :]
        active = np.tile(self.space.active(genes), 6)
        return (values * active).sum(axis=1) / active.shape[1]


class RandomCost:
    """A cost to which every gene of a block adds what a random generator says; 1 on top."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator, type: str = "latency") -> None:
        self.space = space
        self.type = type
        self.unit = {"latency": "ms", "energy": "mJ"}[type]
        self.fixed_cost = 1.0
        self.option_costs = np.concatenate(
            [
                sum(np.ix_(*(rng.random(size) for size in shape))).ravel()
                for shape in block_options(space).shapes
            ]
        )
        self.option_costs[~Domain.whole(space).allowed_options] = np.inf


def additive_values(problem: SearchProblem, rng: np.random.Generator) -> tuple:
    """Return a random additive score, its gradients, and its value for every option."""
    space = problem.space
    n_features = int(space.gene_sizes[space.n_stages :].sum())
    weights = rng.random(n_features) / (6 * space.n_blocks)
    starts = np.cumsum(space.gene_sizes[space.n_stages :]) - space.gene_sizes[space.n_stages :]

    def score(genes: np.ndarray) -> np.ndarray:
        active = np.tile(space.active(genes), 6)
        return (weights[genes[:, space.n_stages :] + starts] * active).sum(axis=1)

    def gradients(genes: np.ndarray) -> np.ndarray:
        return np.tile(weights, (len(genes), 1))

    values = np.concatenate(
        [
            sum(
                weights[
                    starts[f * space.n_blocks + b] : starts[f * space.n_blocks + b] + n
                ].reshape([-1 if axis == f else 1 for axis in range(6)])
                for f, n in enumerate(shape)
            ).ravel()
            for b, shape in enumerate(problem.options.shapes)
        ]
    )
    return score, gradients, values


@pytest.fixture(scope="session", name="additive_values")
def additive_values_fixture() -> Callable[..., tuple]:
    """The function that makes a score of which gradients and options' values are known."""
    return additive_values


@pytest.fixture(scope="session")
def toy_space() -> SearchSpace:
    """One stage of one or two blocks with two choices a gene: 32,768 subnets."""
    return SearchSpace(
        first_block_channels=8,
        stages=(Stage(out_channels=8, stride=2, max_depth=2, depths=(1, 2)),),
        kernels=(3, 7),
        width_step=16,
        bits=(4, 8),
    )


@pytest.fixture(scope="session")
def toy_genes(toy_space: SearchSpace) -> np.ndarray:
    """Every legal subnet of the toy space, (N, n_genes)."""
    sizes = tuple(toy_space.gene_sizes)
    genes = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)
    return genes[toy_space.is_legal(genes)]


@pytest.fixture(scope="session")
def latency() -> LatencyPredictor:
    """The latency of the paper's space."""
    return LatencyPredictor("latency")


@pytest.fixture
def additive() -> type[Additive]:
    """The class of additive scores."""
    return Additive


@pytest.fixture
def random_cost() -> type[RandomCost]:
    """The class of random costs."""
    return RandomCost


@pytest.fixture
def bounded(latency: LatencyPredictor) -> Callable[..., SearchProblem]:
    """Make a problem of the paper's space: the most additive score under a latency in ms."""

    def make(maximum: float, score: Callable[[np.ndarray], np.ndarray]) -> SearchProblem:
        return SearchProblem(PAPER_SPACE, score, (Limit(latency, maximum),))

    return make
