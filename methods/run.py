"""One run of a search engine: what every engine shares, from its budget to its result."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from apq.errors import ApqError
from methods.operators import Operators
from methods.pool import Evaluator, Pool
from methods.problem import SearchProblem
from methods.settings import SearchSettings

N_CANDIDATES = 10


@dataclass(frozen=True)
class Candidates:
    """Evaluated feasible subnets, best first, no network twice."""

    genes: np.ndarray
    accuracy: np.ndarray
    costs: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """What is known after a step; step 0 is the first generation, or the starting point."""

    step: int
    best_accuracy: float
    best_costs: tuple[float, ...]
    """One for each limit, in its unit."""
    n_evaluated: int
    """Subnets evaluated so far."""
    seconds: float = field(compare=False)
    """Since the search began."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best subnets found, and how the search went."""

    candidates: Candidates
    """The ten best, or as many as there were."""
    history: tuple[SearchRecord, ...]
    n_evaluated: int
    seconds: float
    interrupted: bool
    """Whether Ctrl-C ended the search; the best until then is what it returns."""

    @property
    def genes(self) -> np.ndarray:
        """The best subnet, shape (1, n_genes)."""
        return self.candidates.genes[:1]

    @property
    def accuracy(self) -> float:
        """The best subnet's predicted accuracy."""
        return float(self.candidates.accuracy[0])

    @property
    def costs(self) -> tuple[float, ...]:
        """The best subnet's costs, one for each limit."""
        return tuple(self.candidates.costs[0].tolist())


ProgressFn = Callable[[SearchRecord], None]


def check_start(problem: SearchProblem, start: np.ndarray | None) -> np.ndarray:
    """Return the subnets to start from, (N, n_genes), N 0 without any, ready to be changed.

    Raises ApqError when one is outside the domain or breaks a limit.
    """
    if start is None:
        return np.empty((0, problem.space.n_genes), dtype=np.int64)
    problem.space.check_genes(start)
    if not problem.domain.contains(start).all():
        raise ApqError("a subnet to start from is not one of those left to choose from")
    if not problem.feasible(start).all():
        raise ApqError("a subnet to start from does not keep the constraints")
    return problem.domain.settle(start)


class Run(ABC):
    """A search of one problem: an engine is a subclass that says what a step is."""

    def __init__(self, problem: SearchProblem, settings: SearchSettings) -> None:
        self.problem = problem
        self.settings = settings
        self.evaluator = Evaluator(problem)
        self.rng = np.random.default_rng(settings.seed)
        self.operators = Operators(problem.domain, self.rng)
        self.started = 0.0

    @abstractmethod
    def steps(self, start: np.ndarray) -> Iterator[Pool]:
        """Yield the best subnets known, first after the starting step and then after every step.

        `start` are feasible subnets to begin with, perhaps none. The caller stops iterating
        once time or patience is spent.
        """

    def search(self, on_progress: ProgressFn | None, start: np.ndarray | None) -> SearchResult:
        """Run to the end and return what was found.

        Ctrl-C after the starting step returns what there is. `on_progress` is called after each
        step but that. Raises ApqError when nothing is feasible, when a start is not, or when an
        accuracy is not finite.
        """
        self.started, history, interrupted = time.perf_counter(), [], False
        best: Pool | None = None
        stale = 0
        try:
            for step, pool in enumerate(self.steps(check_start(self.problem, start))):
                stale = stale + 1 if best and pool.accuracy[0] <= best.accuracy[0] else 0
                history.append(self._record(step, pool))
                best = pool
                if on_progress and step:
                    on_progress(history[-1])
                if self._is_spent(history[-1].seconds, stale):
                    break
        except KeyboardInterrupt:
            if best is None:
                raise
            interrupted = True
        ten = best.best(N_CANDIDATES)
        return SearchResult(
            candidates=Candidates(ten.genes, ten.accuracy, ten.costs),
            history=tuple(history),
            n_evaluated=history[-1].n_evaluated,
            seconds=time.perf_counter() - self.started,
            interrupted=interrupted,
        )

    def _record(self, step: int, best: Pool) -> SearchRecord:
        return SearchRecord(
            step=step,
            best_accuracy=float(best.accuracy[0]),
            best_costs=tuple(best.costs[0].tolist()),
            n_evaluated=self.evaluator.n_evaluated,
            seconds=time.perf_counter() - self.started,
        )

    def _is_spent(self, seconds: float, stale: int) -> bool:
        """Return whether time or patience is over."""
        limits = self.settings
        return bool(
            (limits.seconds and seconds >= limits.seconds)
            or (limits.patience and stale >= limits.patience)
        )
