"""The settings of the evolutionary search; the defaults are the paper's."""

from dataclasses import dataclass

from apq.checks import check_whole, check_within
from methods.settings import SearchSettings


@dataclass(frozen=True, kw_only=True)
class EvolutionSettings(SearchSettings):
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
    """Generations after the random first one: the steps that `patience` counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "population", least=2)
        check_whole(self, "generations", least=0)
        check_within(self, "parent_ratio", "mutation_ratio", "mutation_prob", high=1)

    @property
    def n_parents(self) -> int:
        """Number of parents: the share asked for, but two at least, since crossover takes two."""
        return max(2, round(self.population * self.parent_ratio))

    @property
    def n_mutations(self) -> int:
        """Number of children of each generation that come from mutation."""
        return round(self.population * self.mutation_ratio)
