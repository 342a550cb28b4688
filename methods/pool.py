"""Evaluated subnets, ranked, each network once: what the engines breed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from methods.problem import SearchProblem

# Fixed, so that the same rows always have the same sum; 64 bits make a chance equality of two
# networks in a search of 10^9 as likely as one in 30.
_WEIGHTS = np.random.default_rng(0x5EED).integers(1, 2**63, size=256, dtype=np.int64) | 1


@dataclass(frozen=True)
class Pool:
    """Evaluated feasible subnets; once ranked, best first and no network twice."""

    genes: np.ndarray
    accuracy: np.ndarray
    costs: np.ndarray
    networks: np.ndarray
    """A number for each network, int64 (N,); equal networks have equal ones."""

    def __len__(self) -> int:
        return len(self.genes)

    def take(self, rows: np.ndarray | slice) -> Pool:
        """Return some of them."""
        return Pool(self.genes[rows], self.accuracy[rows], self.costs[rows], self.networks[rows])

    def best(self, n: int) -> Pool:
        """Return the first n."""
        return self.take(slice(0, n))

    def order(self) -> np.ndarray:
        """Return the rows best first, of equal networks only one.

        Of equally accurate ones the cheaper comes first, measured by the first limit.
        """
        order = np.lexsort((self.costs[:, 0], -self.accuracy))
        _, first = np.unique(self.networks[order], return_index=True)
        return order[np.sort(first)]

    def ranked(self) -> Pool:
        """Return them in order."""
        return self.take(self.order())

    def merged(self, other: Pool) -> tuple[Pool, np.ndarray]:
        """Return these and the others as one, and which row of the two, joined, each was."""
        joined = Pool(
            np.concatenate([self.genes, other.genes]),
            np.concatenate([self.accuracy, other.accuracy]),
            np.concatenate([self.costs, other.costs]),
            np.concatenate([self.networks, other.networks]),
        )
        rows = joined.order()
        return joined.take(rows), rows


@dataclass(frozen=True)
class Drawn:
    """Subnets before they are scored, with what their costs were computed from."""

    genes: np.ndarray
    numbers: np.ndarray
    """Option numbers (N, n_blocks)."""
    costs: np.ndarray

    @classmethod
    def of(cls, genes: np.ndarray, problem: SearchProblem) -> Drawn:
        """Compute the costs of subnets (N, n_genes)."""
        numbers = problem.options.numbers(genes)
        return cls(genes, numbers, problem.costs_of(numbers))

    def take(self, rows: np.ndarray) -> Drawn:
        """Return some of them."""
        return Drawn(self.genes[rows], self.numbers[rows], self.costs[rows])

    def put(self, rows: np.ndarray, other: Drawn) -> None:
        """Replace rows, in place, by those of another."""
        self.genes[rows], self.numbers[rows] = other.genes, other.numbers
        self.costs[rows] = other.costs


class Evaluator:
    """Scores the subnets of one run, and counts them."""

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        self.n_evaluated = 0

    def scored(self, drawn: Drawn) -> Pool:
        """Score feasible subnets; the pool is not ranked yet."""
        self.n_evaluated += len(drawn.genes)
        networks = drawn.numbers @ _WEIGHTS[: drawn.numbers.shape[1]]
        return Pool(drawn.genes, self.problem.score(drawn.genes), drawn.costs, networks)
