"""From the flags of a search to its request, and running it with a bar."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apq.cli import parser as cli
from apq.cli import search_flags
from apq.domain import Domain
from apq.errors import ApqError
from apq.experiment import Experiment
from apq.progress import Counter
from methods.find import Found, find_subnet
from methods.problem import Limit, SearchProblem
from methods.request import SearchRequest
from methods.resume import BUDGETS
from methods.saving import read_stopped
from methods.settings import SearchSettings

if TYPE_CHECKING:
    from methods.request import Predictor
    from methods.run import SearchRecord
    from utils.latency_predictor import LatencyPredictor


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all searches of one command have in common."""

    mode: str
    settings: SearchSettings
    domain: Domain
    accuracy: Predictor
    costs: Mapping[str, LatencyPredictor]

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> Shared:
        """Make of the flags what they ask for; raises ApqError as `search_flags` does."""
        settings, domain = search_flags.settings_of(args), search_flags.domain_of(args)
        return cls(
            mode=args.mode,
            settings=settings,
            domain=domain,
            costs=search_flags.cost_models(args),
            accuracy=search_flags.predictor_of(args, domain),
        )

    def request(self, name: str, maxima: Mapping[str, float]) -> SearchRequest:
        """Return the search for an experiment of this name, with these limits by kind of cost."""
        limits = tuple(Limit(self.costs[kind], maximum) for kind, maximum in maxima.items())
        domain, accuracy = self.domain, self.accuracy
        return SearchRequest(
            name=name,
            mode=self.mode,
            problem=SearchProblem(
                domain.space, accuracy.predict, limits, domain, accuracy.gradients
            ),
            settings=self.settings,
            accuracy=accuracy,
            costs=self.costs,
        )


def find(
    request: SearchRequest, start: np.ndarray | None = None, stopped: Experiment | None = None
) -> Found:
    """Search with a bar; `start` as in `find_subnet`, `stopped` as `stopped_of` returns it."""
    try:
        earlier = read_stopped(stopped, request.problem) if stopped else None
    except ApqError as error:
        raise ApqError(f"{error}; to start over, remove {stopped.dir}") from None
    before = None
    if earlier:
        before = earlier.history[-1]
        cli.warn(f"going on with {stopped.dir}, stopped after step {before.step}")
    done, total = _progress(request, before)
    with Counter(f"searching within {request.limits_text}", total, done) as bar:
        return find_subnet(
            request.problem,
            request.mode,
            request.settings,
            lambda record: bar.update(
                *_progress(request, before, record), f"{record.best_accuracy:.2%}"
            ),
            start,
            earlier,
        )


def _progress(request: SearchRequest, *records: SearchRecord | None) -> tuple[float, float]:
    """Return what is spent of the budget that will end the search, by now, and that budget."""
    shares = []
    for name, spent in BUDGETS.items():
        if total := getattr(request.settings, name, 0):
            done = sum(getattr(record, spent) for record in records if record)
            shares.append((done, total))
    return max(shares, key=lambda share: share[0] / share[1])
