"""The evolutionary search of the paper, on whole gene arrays.

A random first generation; then each generation's best are the parents of the next, half of it by
mutation, half by crossover. Only feasible subnets are ever evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apq.errors import ApqError
from apq.space import SearchSpace
from methods.evolution.operators import Operators
from methods.evolution.settings import EvolutionSettings

GenesFn = Callable[[np.ndarray], np.ndarray]
"""Genes (N, n_genes) to one number each, (N,)."""

# How often infeasible subnets are drawn anew before they are mended instead. Near the cheapest
# subnet next to none is feasible by chance, and drawing more would only cost time.
REDRAWS = 4


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """What is known after a generation; generation 0 is the random one."""

    generation: int
    best_accuracy: float
    best_cost: float
    n_evaluated: int
    """Subnets evaluated so far."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best subnet found, and how the search went."""

    genes: np.ndarray
    """The best subnet, shape (1, n_genes)."""
    accuracy: float
    cost: float
    history: tuple[GenerationRecord, ...]
    n_evaluated: int
    seconds: float
    interrupted: bool
    """Whether Ctrl-C ended the search; the best until then is what it returns."""


@dataclass(frozen=True)
class _Population:
    """Evaluated subnets, best first, no network twice."""

    genes: np.ndarray
    accuracy: np.ndarray
    cost: np.ndarray

    def best(self, n: int) -> _Population:
        return _Population(self.genes[:n], self.accuracy[:n], self.cost[:n])

    def record(self, generation: int, n_evaluated: int) -> GenerationRecord:
        return GenerationRecord(
            generation=generation,
            best_accuracy=float(self.accuracy[0]),
            best_cost=float(self.cost[0]),
            n_evaluated=n_evaluated,
        )


def search(
    space: SearchSpace,
    accuracy_fn: GenesFn,
    cost_fn: GenesFn,
    constraint: float,
    settings: EvolutionSettings,
    *,
    cheapest: np.ndarray,
    on_generation: Callable[[GenerationRecord], None] | None = None,
) -> SearchResult:
    """Find the most accurate subnet whose cost is at most `constraint` (in units of `cost_fn`).

    `cheapest` are the genes (1, n_genes) of a subnet that meets it, the cheapest for the best
    effect: where random subnets are too dear, they are moved towards it. `on_generation` is
    called after each generation. Ctrl-C after the first one returns the best so far. Raises
    ApqError when `cheapest` breaks the constraint, or when an accuracy is not finite.
    """
    run = _Run(space, accuracy_fn, cost_fn, constraint, settings)
    return run.search(cheapest, on_generation)


class _Run:
    def __init__(
        self,
        space: SearchSpace,
        accuracy_fn: GenesFn,
        cost_fn: GenesFn,
        constraint: float,
        settings: EvolutionSettings,
    ) -> None:
        self.space = space
        self.accuracy_fn = accuracy_fn
        self.cost_fn = cost_fn
        self.constraint = constraint
        self.settings = settings
        self.rng = np.random.default_rng(settings.seed)
        self.operators = Operators(space, self.rng)

    def search(
        self, cheapest: np.ndarray, on_generation: Callable[[GenerationRecord], None] | None
    ) -> SearchResult:
        started = time.perf_counter()
        n = self.settings.population
        population = self._evaluate(self._first_generation(n, cheapest))
        history = [population.record(0, n)]
        interrupted = False
        try:
            for generation in range(1, self.settings.generations + 1):
                parents = population.best(self.settings.n_parents)
                population = self._evaluate(self._children(parents.genes), parents)
                history.append(population.record(generation, n * (generation + 1)))
                if on_generation:
                    on_generation(history[-1])
        except KeyboardInterrupt:
            interrupted = True
        return SearchResult(
            genes=population.genes[:1].copy(),
            accuracy=float(population.accuracy[0]),
            cost=float(population.cost[0]),
            history=tuple(history),
            n_evaluated=history[-1].n_evaluated,
            seconds=time.perf_counter() - started,
            interrupted=interrupted,
        )

    def _feasible(self, genes: np.ndarray) -> np.ndarray:
        return self.cost_fn(genes) <= self.constraint

    def _first_generation(self, n: int, cheapest: np.ndarray) -> np.ndarray:
        if not self._feasible(cheapest).all():
            raise ApqError(
                f"no subnet meets a constraint of {self.constraint}: "
                f"the cheapest one costs {float(self.cost_fn(cheapest)[0])}"
            )
        origins = np.repeat(cheapest, n, axis=0)
        return self._draw(lambda rows: self.space.sample(self.rng, len(rows)), origins)

    def _children(self, parents: np.ndarray) -> np.ndarray:
        """Return feasible children (population, n_genes) of the parents, each of random ones."""
        n, n_mutations = self.settings.population, self.settings.n_mutations
        first = self.rng.integers(len(parents), size=n)
        # Two different parents, or the child is a copy; but at the tightest constraint there is
        # only one network.
        other = (first + self.rng.integers(1, max(2, len(parents)), size=n)) % len(parents)
        mothers, fathers = parents[first], parents[other]
        probability = self.settings.mutation_prob

        def draw(rows: np.ndarray) -> np.ndarray:
            mutants, crossed = rows[rows < n_mutations], rows[rows >= n_mutations]
            return np.concatenate(
                [
                    self.operators.mutate(mothers[mutants], probability),
                    self.operators.cross(mothers[crossed], fathers[crossed]),
                ]
            )

        return self._draw(draw, mothers)

    def _draw(self, draw: GenesFn, origins: np.ndarray) -> np.ndarray:
        """Return a feasible subnet for each row of `origins`, which are feasible themselves.

        `draw` takes ascending row numbers and returns a candidate for each. The infeasible ones
        are drawn again, a few times; what remains is moved towards its origin.
        """
        genes = draw(np.arange(len(origins)))
        wrong = np.flatnonzero(~self._feasible(genes))
        for _ in range(REDRAWS):
            if not len(wrong):
                return genes
            genes[wrong] = draw(wrong)
            wrong = wrong[~self._feasible(genes[wrong])]
        genes[wrong] = self.operators.repair(genes[wrong], origins[wrong], self._feasible)
        return genes

    def _evaluate(self, genes: np.ndarray, parents: _Population | None = None) -> _Population:
        """Return new subnets and their evaluated parents as one population, best first."""
        accuracy, cost = self.accuracy_fn(genes), self.cost_fn(genes)
        if not np.isfinite(accuracy).all():
            raise ApqError("the accuracy predictor returned a number that is not finite")
        if parents:
            genes = np.concatenate([parents.genes, genes])
            accuracy = np.concatenate([parents.accuracy, accuracy])
            cost = np.concatenate([parents.cost, cost])
        order = np.lexsort((cost, -accuracy))  # Of equally accurate ones the cheaper first.
        # Without this the copies of one good network soon are all the parents there are.
        order = order[_first_of_each(self.space.canonical(genes[order]))]
        return _Population(genes[order], accuracy[order], cost[order])


def _first_of_each(rows: np.ndarray) -> np.ndarray:
    """Return, ascending, where each distinct row stands first."""
    # One opaque value a row: much faster than numpy's unique over an axis.
    keys = np.ascontiguousarray(rows, dtype=np.int16)
    keys = keys.view(f"V{keys.shape[1] * keys.itemsize}").ravel()
    return np.sort(np.unique(keys, return_index=True)[1])
