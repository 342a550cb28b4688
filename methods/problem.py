"""What a search is asked: the most accurate subnet of a domain within one or more limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Protocol

import numpy as np

from apq.checks import TOO_LARGE
from apq.domain import Domain
from apq.errors import ApqError
from apq.space import SearchSpace
from methods import dual

ScoreFn = Callable[[np.ndarray], np.ndarray]
"""Genes (N, n_genes) to predicted accuracies (N,)."""

GradientFn = Callable[[np.ndarray], np.ndarray]
"""Genes (N, n_genes) to the score's gradients (N, n_features), in the order of the one-hot
features: all choices of all genes of the blocks."""

# How often one limit is raised in search of what the others leave it, for an error's text.
LIFTS = 20


class Cost(Protocol):
    """A cost that adds up over blocks, such as `LatencyPredictor`."""

    type: str
    space: SearchSpace
    fixed_cost: float

    @property
    def unit(self) -> str:
        """Unit of the cost."""

    @property
    def option_costs(self) -> np.ndarray:
        """The cost of every block option, (n_options,); infinite where it cannot run."""


@dataclass(frozen=True)
class Limit:
    """At most `maximum` of one cost, in the cost's unit; raises ApqError unless it is positive."""

    cost: Cost
    maximum: float

    def __post_init__(self) -> None:
        number = isinstance(self.maximum, Real) and not isinstance(self.maximum, bool)
        if not number or not 0 < self.maximum < TOO_LARGE:
            raise ApqError(
                f"the {self.cost.type} constraint is {self.maximum}; it must be a positive "
                f"number of {self.cost.unit}"
            )

    def __str__(self) -> str:
        return f"{self.cost.type} constraint of {self.maximum:.12g} {self.cost.unit}"


class SearchProblem:
    """A score to maximise over a domain, within limits; every engine solves one of these.

    `score_fn` takes genes (N, n_genes) and returns (N,) numbers, the higher the better;
    `gradient_fn` tells how they change, for the engines that ask. Raises ApqError when there is no
    limit, or one of another space.
    """

    def __init__(
        self,
        space: SearchSpace,
        score_fn: ScoreFn,
        limits: tuple[Limit, ...],
        domain: Domain | None = None,
        gradient_fn: GradientFn | None = None,
    ) -> None:
        self.space = space
        self.score_fn = score_fn
        self.gradient_fn = gradient_fn
        self.limits = tuple(limits)
        self.domain = Domain.whole(space) if domain is None else domain
        if not self.limits:
            raise ApqError("a search needs at least one limit")
        spaces = [limit.cost.space for limit in self.limits] + [self.domain.space]
        if any(other != space for other in spaces):
            raise ApqError("the limits, the domain and the search are not of one search space")
        self.options = self.domain.options
        self.maximum = np.array([limit.maximum for limit in self.limits], dtype=float)
        self.fixed_costs = np.array([limit.cost.fixed_cost for limit in self.limits])
        self.option_costs = np.stack([limit.cost.option_costs for limit in self.limits])
        # A cost of 0 after the last option: that of an idle block.
        self._padded = np.concatenate([self.option_costs, np.zeros((len(self.limits), 1))], axis=1)

    # ---- what a subnet scores and costs ----

    def score(self, genes: np.ndarray) -> np.ndarray:
        """Return scores (N,); raises ApqError when one is not finite."""
        scores = self.score_fn(genes)
        if not np.isfinite(scores).all():
            raise ApqError("the accuracy predictor returned a number that is not finite")
        return scores

    def gradients(self, genes: np.ndarray) -> np.ndarray:
        """Return the score's gradients (N, n_features); raises ApqError when they are not known."""
        if self.gradient_fn is None:
            raise ApqError(
                "this mode needs a predictor that knows its gradients; use another --mode"
            )
        return self.gradient_fn(genes)

    def costs(self, genes: np.ndarray) -> np.ndarray:
        """Return costs, float64 (N, n_limits) in the limits' units; infinite if it cannot run."""
        return self.costs_of(self.options.numbers(genes))

    def costs_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return costs (N, n_limits) of subnets as option numbers (N, n_blocks)."""
        sums = [padded[numbers].sum(axis=1) for padded in self._padded]
        return np.stack(sums, axis=1) + self.fixed_costs

    def within(self, costs: np.ndarray) -> np.ndarray:
        """Return which costs (N, n_limits) keep all limits, bool (N,)."""
        return (costs <= self.maximum).all(axis=1)

    def feasible(self, genes: np.ndarray) -> np.ndarray:
        """Return which subnets keep all limits and can run, bool (N,)."""
        return self.within(self.costs(genes))

    # ---- the ends of the range ----

    @cached_property
    def minima(self) -> np.ndarray:
        """The exact least of each limit's cost within the domain, (n_limits,)."""
        return np.array([self._extreme(i, 1) for i in range(len(self.limits))])

    @cached_property
    def maxima(self) -> np.ndarray:
        """The exact greatest of each limit's cost within the domain, (n_limits,)."""
        return np.array([self._extreme(i, -1) for i in range(len(self.limits))])

    def _extreme(self, limit: int, sign: int) -> float:
        genes = self.domain.extreme(self.option_costs[limit], sign)
        return float(self.costs(genes)[0, limit])

    @cached_property
    def feasible_subnet(self) -> np.ndarray:
        """A feasible subnet's genes (1, n_genes); of one limit the cheapest there is.

        Raises ApqError that names what breaks which limit, and the least of each cost.
        """
        for limit, least in zip(self.limits, self.minima, strict=True):
            if least > limit.maximum:
                others = f"; {self._least_costs}" if len(self.limits) > 1 else ""
                raise ApqError(
                    f"no subnet{self._of_domain} meets the {limit}: the cheapest subnet costs "
                    f"{round_up(least)} {limit.cost.unit}; raise the constraint to that or "
                    f"more{others}"
                )
        if len(self.limits) == 1:
            return self.domain.least(self.option_costs[0])
        outcome = self._outcome(self.maximum)
        if self.feasible(outcome.genes).all():
            return outcome.genes
        raise ApqError(self._why_infeasible(outcome))

    def check(self) -> None:
        """Raise ApqError when no subnet keeps the limits; finding out takes milliseconds."""
        _ = self.feasible_subnet

    def _outcome(self, maximum: np.ndarray) -> dual.Feasibility:
        return dual.find_feasible(self.domain, self.option_costs, self.fixed_costs, maximum)

    @property
    def _of_domain(self) -> str:
        return "" if self.domain.is_whole else " of what is left to choose from"

    def _why_infeasible(self, outcome: dual.Feasibility) -> str:
        """Return the error's text: what one limit would have to be for the others to hold."""
        i = int(np.argmax(outcome.weights))
        maximum = self.maximum.copy()
        for k in range(LIFTS):
            if outcome.excess <= 0:
                break
            # The bound on the weighted excess is one on this cost where the others are kept.
            # Between bound and truth there may be a gap: then the steps grow.
            maximum[i] *= 1 + max(outcome.bound / outcome.weights[i], 1e-4 * 2**k)
            outcome = self._outcome(maximum)
        limit, together = self.limits[i], " and the ".join(map(str, self.limits))
        needed = float(self.costs(outcome.genes)[0, i])
        return (
            f"no subnet{self._of_domain} meets the {together} together: the least "
            f"{limit.cost.type} that keeps the rest is about {round_up(needed)} "
            f"{limit.cost.unit}; "
            f"{self._least_costs}"
        )

    @property
    def _least_costs(self) -> str:
        least = ", ".join(
            f"{limit.cost.type} {round_up(value)} {limit.cost.unit}"
            for limit, value in zip(self.limits, self.minima, strict=True)
        )
        return f"each alone can be as low as {least}"

    def notes(self) -> list[str]:
        """Return a sentence for each limit that binds nothing within the domain."""
        return [
            f"the {limit} binds nothing: the most expensive subnet{self._of_domain} costs "
            f"{round_up(most)} {limit.cost.unit}"
            for limit, most in zip(self.limits, self.maxima, strict=True)
            if limit.maximum >= most
        ]


def round_up(value: float) -> str:
    """Return six decimals, rounded up: typed in as a constraint, the text must not fail again."""
    millionths = math.ceil(value * 1e6)
    # The product may have lost the hair that a sum of costs lies above its digits.
    return _short((millionths + (millionths / 1e6 < value)) / 1e6)


def _short(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
