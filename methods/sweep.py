"""The best subnet under each of many budgets: searches that learn from one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from apq.experiment import Experiment
from lut.costs import COSTS
from methods import pareto, saving
from methods.find import Found, as_found
from methods.request import SearchRequest

SearchFn = Callable[[SearchRequest, np.ndarray | None, Experiment | None], Found]
"""A request, feasible subnets' genes to start from, what a stopped search of it left."""


class Point:
    """One combination of budgets, and what is known of it."""

    def __init__(self, budgets: dict[str, float], request: SearchRequest) -> None:
        self.budgets = budgets  # of the costs that are swept, by kind
        self.request = request
        self.experiment: Experiment | None = None
        # The best subnet, (1, n_genes); (0, n_genes) before there is one.
        self.genes = np.empty((0, request.problem.space.n_genes), dtype=np.int64)

    @property
    def columns(self) -> list[str]:
        """Names of the swept costs, units included."""
        return [COSTS[kind].column for kind in self.budgets]

    def open(self, overwrite: bool) -> None:
        """Take over what an earlier run of the same request found.

        Raises ApqError when there is none and no room for one.
        """
        self.experiment = saving.finished_of(self.request)
        if self.experiment:
            space = self.request.problem.space
            self.genes = space.encode([self.experiment.subnet(space)])
        else:
            saving.check_free(self.request, saving.stopped_of(self.request), overwrite)

    def is_beaten(self, known: np.ndarray) -> bool:
        """Whether one of the subnets (N, n_genes), which keep the limits, beats its own."""
        return pareto.is_beaten(self.request.problem, self.genes, known)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Searches point after point; each starts from the best that is known."""

    points: Sequence[Point]
    """None before a tighter one."""
    search: SearchFn
    tell: Callable[[str], None]
    """Called with what the user should know."""
    overwrite: bool = False

    def run(self) -> bool:
        """Search from tight to loose; return whether Ctrl-C ended it.

        In the end no point is beaten by the subnet of another one that keeps its limits.
        """
        for point in self.points:
            start = self._usable(point)
            if point.experiment and not point.is_beaten(start):
                continue
            if not self._may_replace(point):
                continue
            stopped = saving.stopped_of(point.request)
            found = self.search(point.request, start if len(start) else None, stopped)
            replaces = self.overwrite or point.experiment is not None
            experiment = saving.save(point.request, found, stopped, replaces)
            if found.result.interrupted:
                return True
            point.experiment, point.genes = experiment, found.result.genes
        for point in self.points:
            self._adopt(point, self._usable(point))
        return False

    def _usable(self, point: Point) -> np.ndarray:
        known = np.concatenate([other.genes for other in self.points])
        return pareto.usable(point.request.problem, known)

    def _may_replace(self, point: Point) -> bool:
        """Whether the point's experiment was not worked on since; says so if it was."""
        if point.experiment and point.experiment.checkpoint_dir.exists():
            self.tell(f"{point.experiment.dir} is finetuned and stays; a better subnet is known")
            return False
        return True

    def _adopt(self, point: Point, known: np.ndarray) -> None:
        """Give the point the best of the known subnets (N, n_genes) if its own is beaten."""
        if not point.is_beaten(known) or not self._may_replace(point):
            return
        problem, settings = point.request.problem, point.request.settings
        earlier = saving.read_history(point.experiment, problem)
        found = as_found(problem, settings, pareto.adopted(problem, known, earlier))
        point.experiment = saving.save(point.request, found, None, overwrite=True)
        point.genes = found.result.genes
