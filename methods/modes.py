"""The search modes by name: what `--mode` picks from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from methods import evolution, guided
from methods.problem import SearchProblem
from methods.run import ProgressFn, SearchResult
from methods.settings import SearchSettings


class Engine(Protocol):
    """What every engine's `search` looks like."""

    def __call__(
        self,
        problem: SearchProblem,
        settings: SearchSettings,
        on_progress: ProgressFn | None = None,
        start: np.ndarray | None = None,
    ) -> SearchResult:
        """Find the most accurate subnet of a problem."""


@dataclass(frozen=True)
class Mode:
    """A search engine and the class of its settings."""

    search: Engine
    settings: type[SearchSettings]


DEFAULT_MODE = "evolution"
MODES = {
    "evolution": Mode(evolution.search, evolution.EvolutionSettings),
    "guided": Mode(guided.search, guided.GuidedSettings),
}
