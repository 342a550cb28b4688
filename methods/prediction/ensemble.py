"""Fits an ensemble: several predictors whose disagreement tells where none of them knows."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np

from apq.errors import ApqError
from apq.progress import Counter
from apq.subnet import Subnet
from methods.prediction.fit import (
    MIN_PAIRS,
    Fitting,
    Quality,
    kendall_and_spearman,
    quality,
)
from methods.prediction.pairs import as_arrays, hold_out
from methods.prediction.settings import FitSettings
from utils.accuracy_predictor import AccuracyPredictor
from utils.ensemble import PredictorEnsemble

# As in `fit`: each member holds out this share of what the ensemble trains on, a draw of its own.
MEMBER_HELD_OUT = 0.2


@dataclass(frozen=True)
class EnsembleFit:
    """The members of an ensemble, and how good their mean is on pairs that none has seen."""

    members: tuple[AccuracyPredictor, ...]
    quality: Quality
    spread: float
    """Mean standard deviation of the members' predictions there, in points of accuracy (%)."""
    spread_tau: float
    """Kendall tau between that spread and the mean's error: whether it tells what is uncertain."""


def split_for_ensemble(
    quantized: Mapping[Subnet, float], settings: FitSettings, precise: Container[Subnet] = ()
) -> tuple[dict[Subnet, float], dict[Subnet, float]]:
    """Return the pairs that members train on, and those held out of all of them.

    Subnets that were measured more precisely are held out, as in `fit`. Raises ApqError when too
    few are left for every member to hold out some of its own.
    """
    train, held_out = hold_out(quantized, settings.held_out, settings.seed, first=precise)
    if len(train) < MIN_PAIRS:
        raise ApqError(
            f"{len(quantized)} quantized pairs are too few for an ensemble: {len(train)} are left "
            f"when some are held out, and each member needs {MIN_PAIRS}; gather more with "
            f"'apq collect'"
        )
    return train, held_out


def fit_ensemble(
    full: Mapping[Subnet, float],
    quantized: Mapping[Subnet, float],
    n_members: int,
    fitting: Fitting,
    besides: Mapping[Subnet, float] | None = None,
    precise: Container[Subnet] = (),
) -> EnsembleFit:
    """Train predictors by transfer, each on its own draw of the pairs and from its own weights.

    Pairs hold accuracies in %. The quantized ones that `fit` holds out with these settings are
    held out of all members; `besides` and `precise` as there. Raises ApqError when there are
    fewer than two members, or too few pairs.
    """
    if n_members < 2:
        raise ApqError(f"an ensemble needs at least two predictors, not {n_members}")
    train, held_out = split_for_ensemble(quantized, fitting.settings, precise)
    members = []
    with Counter("ensemble", n_members) as bar:
        for i in range(n_members):
            key = [fitting.settings.seed, i]
            seed = int(np.random.SeedSequence(key).generate_state(1)[0])
            own = fitting.with_settings(seed=seed, held_out=MEMBER_HELD_OUT)
            start = own.fit(full, False).predictor
            members.append(own.fit(train, True, start, besides=besides).predictor)
            bar.step()
    genes, accuracy = as_arrays(held_out, fitting.space)
    mean, spread = PredictorEnsemble(members).mean_and_spread(genes)
    return EnsembleFit(
        members=tuple(members),
        quality=quality(mean, accuracy, fitting.cost_fn(genes), len(train) + len(besides or {})),
        spread=float(100 * spread.mean()),
        spread_tau=kendall_and_spearman(spread, np.abs(mean - accuracy))[0],
    )
