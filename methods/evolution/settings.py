"""The settings of the evolutionary search; the defaults are the paper's."""

import math
from dataclasses import dataclass

from apq.errors import ApqError


@dataclass(frozen=True, kw_only=True)
class EvolutionSettings:
    """How large, how long and how wild the search is; raises ApqError on a value out of range."""

    population: int = 100
    """Children of each generation, and subnets of the first one; at least 2."""
    parent_ratio: float = 0.25
    """Share of the population, the best, that has children; two parents at least."""
    mutation_ratio: float = 0.5
    """Share of the children that come from mutation; the rest come from crossover."""
    mutation_prob: float = 0.1
    """Probability that a mutation redraws a block, and that it redraws a stage's depth."""
    generations: int = 500
    """Generations after the random first one."""
    seed: int = 0
    """Seed of all random choices; the same seed finds the same subnet."""

    def __post_init__(self) -> None:
        for name, least in (("population", 2), ("generations", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ApqError(f"{name} is {value!r}; it must be an integer of {least} or more")
        for name in ("parent_ratio", "mutation_ratio", "mutation_prob"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 <= value <= 1:
                raise ApqError(f"{name} is {value!r}; it must be a number from 0 to 1")

    @property
    def n_parents(self) -> int:
        """Number of parents: the share asked for, but two at least, since crossover takes two."""
        return max(2, round(self.population * self.parent_ratio))

    @property
    def n_mutations(self) -> int:
        """Number of children of each generation that come from mutation."""
        return round(self.population * self.mutation_ratio)
