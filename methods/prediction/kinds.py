"""The kinds of predictors that one set of pairs gives, and how right they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from apq.subnet import Subnet
from methods.prediction.fit import Fit, GenesFn, fit
from methods.prediction.pairs import hold_out
from methods.prediction.searched import SearchedQuality, searched_quality
from methods.prediction.settings import FitSettings

FULL, SCRATCH = "full precision", "quantized, from scratch"
TRANSFER, SEARCHED = "quantized, by transfer", "quantized, with searched pairs"


@dataclass(frozen=True, kw_only=True)
class AboutSearched:
    """How right predictors are about searched subnets that were held out, some of every round."""

    n_held_out: int
    own: SearchedQuality
    """Of the predictor that has learned from the other ones."""
    without: SearchedQuality
    """Of the one that has learned from random subnets alone."""

    def __str__(self) -> str:
        return (
            f"about {self.n_held_out} searched subnets held out: {self.own}; the one that has "
            f"learned from random subnets alone is {self.without}"
        )

    def figures(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "n_held_out": self.n_held_out,
            **asdict(self.own),
            "without": asdict(self.without),
        }


@dataclass(frozen=True, kw_only=True)
class AllFits:
    """Every kind of predictor by its name, and the searched pairs that one of them learned from."""

    by_name: dict[str, Fit]
    besides: dict[Subnet, float]
    about_searched: AboutSearched | None

    @property
    def to_search_with(self) -> str:
        """The name of the quantized kind that knows what searches find, where there is one."""
        return SEARCHED if SEARCHED in self.by_name else TRANSFER


def fit_all(
    full: Mapping[Subnet, float],
    quantized: Mapping[Subnet, float],
    searched: Mapping[Subnet, float],
    settings: FitSettings,
    cost_fn: GenesFn,
    device: torch.device | str = "cpu",
) -> AllFits:
    """Train all kinds on pairs of accuracies in %; `searched` are of subnets that searches found.

    Raises ApqError when there are too few pairs to hold some out.
    """
    fits = {FULL: fit(full, False, settings, cost_fn, device=device)}
    start = fits[FULL].predictor

    def transfer(besides: Mapping[Subnet, float] | None = None) -> Fit:
        return fit(quantized, True, settings, cost_fn, start, device=device, besides=besides)

    fits[SCRATCH] = fit(quantized, True, settings, cost_fn, device=device)
    fits[TRANSFER] = transfer()
    if not searched:
        return AllFits(by_name=fits, besides={}, about_searched=None)
    besides, judged = hold_out(searched, settings.held_out, settings.seed)
    fits[SEARCHED] = transfer(besides)
    about = AboutSearched(
        n_held_out=len(judged),
        own=searched_quality(fits[SEARCHED].predictor, judged),
        without=searched_quality(fits[TRANSFER].predictor, judged),
    )
    return AllFits(by_name=fits, besides=besides, about_searched=about)
