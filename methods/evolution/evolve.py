"""The evolutionary search of the paper, on whole gene arrays.

A random first generation; then each generation's best are the parents of the next, half of it by
mutation, half by crossover. Only feasible subnets are ever evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from methods.evolution.settings import EvolutionSettings
from methods.pool import Drawn, Pool
from methods.problem import SearchProblem
from methods.run import ProgressFn, Run, SearchResult

# How often infeasible subnets are drawn anew before they are mended instead. Near the cheapest
# subnet next to none is feasible by chance, and drawing more would only cost time.
REDRAWS = 4


def search(
    problem: SearchProblem,
    settings: EvolutionSettings,
    on_progress: ProgressFn | None = None,
    start: np.ndarray | None = None,
) -> SearchResult:
    """Find the most accurate subnet of a problem.

    `start` are feasible subnets' genes (N, n_genes) to put into the first generation: what is
    found is at least as good. Where random subnets are too expensive, they are moved towards the
    problem's cheapest. `on_progress` is called after each generation. Ctrl-C after the first one
    returns the best so far. Raises ApqError when no subnet is feasible, or an accuracy not finite.
    """
    return _Evolution(problem, settings).search(on_progress, start)


class _Evolution(Run):
    settings: EvolutionSettings

    def steps(self, start: np.ndarray) -> Iterator[Pool]:
        """Yield each generation, the random one first."""
        population = self.evaluator.scored(self._first_generation(start)).ranked()
        yield population
        for _ in range(self.settings.generations):
            parents = population.best(self.settings.n_parents)
            children = self.evaluator.scored(self._children(parents.genes))
            population, _ = parents.merged(children)
            yield population

    def _first_generation(self, start: np.ndarray) -> Drawn:
        n_random = max(0, self.settings.population - len(start))
        origins = np.repeat(
            self.problem.domain.settle(self.problem.feasible_subnet), n_random, axis=0
        )
        drawn = self._draw(lambda rows: self.operators.fresh(len(rows)), origins)
        return Drawn.of(np.concatenate([start, drawn.genes]), self.problem)

    def _children(self, parents: np.ndarray) -> Drawn:
        """Return `population` feasible children of the parents, each of random ones."""
        n, n_mutations = self.settings.population, self.settings.n_mutations
        first = self.rng.integers(len(parents), size=n)
        # Two different parents, or the child is a copy; but at the tightest constraint there is
        # only one network.
        other = (first + self.rng.integers(1, max(2, len(parents)), size=n)) % len(parents)
        mothers, fathers = parents[first], parents[other]
        probability = self.settings.mutation_prob

        def draw(rows: np.ndarray) -> np.ndarray:
            mutants, crossed = np.split(rows, [np.searchsorted(rows, n_mutations)])
            return np.concatenate(
                [
                    self.operators.mutate(mothers[mutants], probability),
                    self.operators.cross(mothers[crossed], fathers[crossed]),
                ]
            )

        return self._draw(draw, mothers)

    def _draw(self, draw: Callable[[np.ndarray], np.ndarray], origins: np.ndarray) -> Drawn:
        """Return a feasible subnet for each row of `origins`, which are feasible themselves.

        `draw` takes ascending row numbers and returns a candidate for each. The infeasible ones
        are drawn again, a few times; what remains is moved towards its origin.
        """
        problem = self.problem
        drawn = Drawn.of(draw(np.arange(len(origins))), problem)
        wrong = np.flatnonzero(~problem.within(drawn.costs))
        for _ in range(REDRAWS):
            if not len(wrong):
                return drawn
            again = Drawn.of(draw(wrong), problem)
            drawn.put(wrong, again)
            wrong = wrong[~problem.within(again.costs)]
        mended = self.operators.repair(drawn.genes[wrong], origins[wrong], problem.feasible)
        drawn.put(wrong, Drawn.of(mended, problem))
        return drawn
