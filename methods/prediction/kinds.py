"""The kinds of predictors that one set of pairs gives, and how right they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from apq.progress import Counter
from apq.subnet import Subnet
from methods.prediction.cards import FULL, SCRATCH, SEARCHED, TRANSFER
from methods.prediction.fit import Fit, Fitting
from methods.prediction.pairs import hold_out, split_pairs
from methods.prediction.searched import SearchedQuality, searched_quality
from utils.accuracy_predictor import AccuracyPredictor


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
    """Every kind of predictor judged, and those to use."""

    by_name: dict[str, Fit]
    """By the names of the kinds; these have not learned from the pairs held out."""
    besides: dict[Subnet, float]
    """The searched pairs that one of them learned from."""
    about_searched: AboutSearched | None
    to_use: dict[str, AccuracyPredictor]
    """In full precision, and the quantized kind that knows what searches find, where there is one:
    they have learned from all pairs."""


def fit_all(
    full: Mapping[Subnet, float],
    quantized: Mapping[Subnet, float],
    searched: Mapping[Subnet, float],
    fitting: Fitting,
    precise: Mapping[Subnet, float] | None = None,
) -> AllFits:
    """Train all kinds on pairs of accuracies in %; `searched` are of subnets that searches found.

    `precise` holds some subnets of both kinds, measured more precisely: they are judged by, too.
    Once judged by pairs held out, the kinds to use are trained again, on all of the pairs.
    Raises ApqError when there are too few pairs to hold some out.
    """
    precise_full, precise_quantized = split_pairs(precise or {})
    with Counter("predictors", 6 if searched else 5) as bar:

        def fit_quantized(**options: Any) -> Fit:
            result = fitting.fit(quantized, True, precise=precise_quantized, **options)
            bar.step()
            return result

        fits = {FULL: fitting.fit(full, False, precise=precise_full)}
        bar.step()
        start = fits[FULL].predictor
        fits[SCRATCH] = fit_quantized()
        fits[TRANSFER] = fit_quantized(start=start)
        besides, about = {}, None
        if searched:
            besides, judged = hold_out(searched, fitting.settings.held_out, fitting.settings.seed)
            fits[SEARCHED] = fit_quantized(start=start, besides=besides)
            about = AboutSearched(
                n_held_out=len(judged),
                own=searched_quality(fits[SEARCHED].predictor, judged),
                without=searched_quality(fits[TRANSFER].predictor, judged),
            )
        source = fitting.learn(full, False)
        bar.step()
        last = fitting.learn({**quantized, **searched}, True, source)
        bar.step()
    return AllFits(
        by_name=fits,
        besides=besides,
        about_searched=about,
        to_use={FULL: source, SEARCHED if searched else TRANSFER: last},
    )
