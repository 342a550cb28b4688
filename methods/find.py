"""From a problem and a search mode to the best subnet found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apq.subnet import Subnet
from methods.modes import MODES
from methods.problem import SearchProblem
from methods.resume import Stopped, joined, rest_of
from methods.run import ProgressFn, SearchResult
from methods.settings import SearchSettings


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best subnet within the limits, and how it was found."""

    subnet: Subnet
    accuracy: float
    """Predicted, in 0..1; the lower bound that ranks, where an ensemble predicts."""
    costs: tuple[float, ...]
    """One for each limit, in its unit."""
    problem: SearchProblem
    settings: SearchSettings
    result: SearchResult


def find_subnet(
    problem: SearchProblem,
    mode: str,
    settings: SearchSettings,
    on_progress: ProgressFn | None = None,
    start: np.ndarray | None = None,
    stopped: Stopped | None = None,
) -> Found:
    """Search the most accurate subnet of a problem with one of the modes.

    `start` are feasible subnets' genes (N, n_genes): what is found is at least as good as each. A
    `stopped` search of the same problem and settings is gone on with, to the budget's end. Raises
    ApqError at once when no subnet keeps the limits.
    """
    todo = settings
    if stopped:
        todo = rest_of(settings, stopped.history[-1])
        parts = [stopped.genes] if start is None else [stopped.genes, start]
        start = np.concatenate(parts)
    result = MODES[mode].search(problem, todo, on_progress, start)
    if stopped:
        result = joined(stopped.history, result)
    return as_found(problem, settings, result)


def as_found(problem: SearchProblem, settings: SearchSettings, result: SearchResult) -> Found:
    """Return an engine's result with the subnet that it found."""
    return Found(
        subnet=problem.space.decode(result.genes)[0],
        accuracy=result.accuracy,
        costs=result.costs,
        problem=problem,
        settings=settings,
        result=result,
    )
