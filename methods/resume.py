"""Going on with a stopped search: from its best candidates, with what is left of its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from methods.run import SearchRecord, SearchResult
from methods.settings import SearchSettings

# Setting that limits a search -> what of a record counts against it.
BUDGETS = {"generations": "step", "evaluations": "n_evaluated", "seconds": "seconds"}
# The least time a search is given: a budget of 0 s would stand for none.
_LEAST_SECONDS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """What a stopped search left behind."""

    genes: np.ndarray
    """Its best candidates, (N, n_genes)."""
    history: tuple[SearchRecord, ...]
    """Of the whole search, earlier sittings included."""


def rest_of(settings: SearchSettings, done: SearchRecord) -> SearchSettings:
    """Return settings with the budget that is left, and a seed of their own.

    The seed follows from the old one and the step: the same draws again would find nothing new,
    and the same stop is always followed by the same search.
    """
    left = {}
    for name, spent in BUDGETS.items():
        if total := getattr(settings, name, 0):  # 0 stands for no limit
            least = _LEAST_SECONDS if name == "seconds" else 1
            left[name] = max(total - getattr(done, spent), least)
    state = np.random.SeedSequence([settings.seed, done.step]).generate_state(1)
    return replace(settings, **left, seed=int(state[0]))


def joined(earlier: Sequence[SearchRecord], result: SearchResult) -> SearchResult:
    """Return a result as if the search had not been stopped, with one history."""
    last = earlier[-1]
    later = [
        replace(
            record,
            step=record.step + last.step,
            n_evaluated=record.n_evaluated + last.n_evaluated,
            seconds=record.seconds + last.seconds,
        )
        # Step 0 looks again at what the earlier search ended with.
        for record in result.history
        if record.step
    ]
    return replace(
        result,
        history=(*earlier, *later),
        n_evaluated=result.n_evaluated + last.n_evaluated,
        seconds=result.seconds + last.seconds,
    )
