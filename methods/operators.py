"""Mutation, crossover and repair of whole gene arrays.

All of them work on units, the pieces that heredity never splits: each stage's depth, and each
block with its kernel, width and bits. A block taken whole stays one that the accelerator can
run. A unit mask has shape (N, n_units), depths first.
"""

from collections.abc import Callable

import numpy as np

from apq.domain import Domain
from apq.space import BLOCK_FIELDS

Feasible = Callable[[np.ndarray], np.ndarray]
"""Genes (N, n_genes) to bool (N,)."""

# Small steps, so that a repair ends just inside the constraint; of a subnet's 27 units next to
# none differ after all the rounds.
REPAIR_KEEPS = 0.8
REPAIR_ROUNDS = 20
# Subnets drawn at a time.
BANK = 2000


class Operators:
    """The genetic operators on one domain, drawing from one random generator."""

    def __init__(self, domain: Domain, rng: np.random.Generator) -> None:
        self.domain = domain
        self.rng = rng
        self._bank = domain.sample(rng, 0)
        space = domain.space
        self.n_units = space.n_stages + space.n_blocks
        blocks = np.arange(space.n_stages, self.n_units)
        self._unit_of_gene = np.concatenate(
            [np.arange(space.n_stages), np.tile(blocks, len(BLOCK_FIELDS))]
        )

    def combine(self, units: np.ndarray, taken: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """Return genes with the masked units from `taken` and the others from `rest`."""
        return np.where(units[:, self._unit_of_gene], taken, rest)

    def fresh(self, n: int) -> np.ndarray:
        """Return random legal subnets (N, n_genes); drawn many at a time, which is faster."""
        if n > len(self._bank):
            self._bank = self.domain.sample(self.rng, max(n, BANK))
        taken, self._bank = self._bank[:n], self._bank[n:]
        return taken

    def mutate(self, parents: np.ndarray, probability: float) -> np.ndarray:
        """Return a child of each parent: units redrawn with a probability, one at least."""
        n = len(parents)
        units = self.rng.random((n, self.n_units)) < probability
        # A child like its parent would waste an evaluation.
        units[np.arange(n), self.rng.integers(self.n_units, size=n)] |= ~units.any(axis=1)
        return self.combine(units, self.fresh(n), parents)

    def cross(self, mothers: np.ndarray, fathers: np.ndarray) -> np.ndarray:
        """Return a child of each pair, every unit from either with equal probability."""
        units = self.rng.random((len(mothers), self.n_units)) < 0.5
        return self.combine(units, mothers, fathers)

    def repair(self, genes: np.ndarray, origins: np.ndarray, feasible: Feasible) -> np.ndarray:
        """Return feasible genes: rows that are not go back to their origins, unit by unit.

        Every round undoes a random fifth of what still differs, in the rows that still need it;
        a row which that does not mend becomes its origin. The origins must be feasible.
        """
        genes = genes.copy()
        wrong = np.arange(len(genes))
        for _ in range(REPAIR_ROUNDS):
            if not len(wrong):
                return genes
            units = self.rng.random((len(wrong), self.n_units)) < REPAIR_KEEPS
            genes[wrong] = self.combine(units, genes[wrong], origins[wrong])
            wrong = wrong[~feasible(genes[wrong])]
        genes[wrong] = origins[wrong]
        return genes
