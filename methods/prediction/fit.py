"""Fits the accuracy predictors: full precision first, then its transfer to quantized subnets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from apq.errors import ApqError
from apq.space import PAPER_SPACE, SearchSpace
from apq.subnet import Subnet
from methods.prediction.additive import fit_additive
from methods.prediction.draws import sample_both
from methods.prediction.pairs import as_arrays, hold_out
from methods.prediction.settings import FitSettings
from utils.accuracy_predictor import AccuracyPredictor

MIN_PAIRS = 20
BAND_SIZE = 40

GenesFn = Callable[[np.ndarray], np.ndarray]
"""Genes (N, n_genes) to one number each, (N,)."""


@dataclass(frozen=True)
class Quality:
    """How well predictions agree with held-out measurements."""

    rmse: float
    """In points of accuracy (%)."""
    kendall_tau: float
    spearman_rho: float
    band_tau: float
    """Kendall tau among subnets of about the same cost, where a search compares: the mean over
    bands of `BAND_SIZE` held-out pairs next to each other in cost."""
    spread: float
    """Standard deviation of the held-out measurements, in points: the RMSE of their mean."""
    n_train: int
    n_held_out: int

    def best_tau(self, noise: float) -> float:
        """Return about the Kendall tau of a perfect predictor, when a measurement strays by noise.

        In points, as a standard deviation. From the correlation that is left, as if accuracies and
        noise were Gaussian (Greiner: tau = 2 / pi * arcsin(correlation)); 0 where all is noise.
        """
        explained = max(0.0, 1 - (noise / self.spread) ** 2) if self.spread else 0.0
        return 2 / math.pi * math.asin(math.sqrt(explained))


@dataclass(frozen=True)
class Fit:
    """A trained predictor and its quality on pairs it has not seen."""

    predictor: AccuracyPredictor
    quality: Quality
    precise: Quality | None = None
    """By subnets that were measured more precisely than the pairs, where there are some."""


@dataclass(frozen=True)
class Fitting:
    """Makes predictors of pairs: subnets with accuracies in %."""

    settings: FitSettings
    cost_fn: GenesFn
    """The cost that the bands of `Quality` go by."""
    space: SearchSpace = PAPER_SPACE
    device: torch.device | str = "cpu"

    def with_settings(self, **changes: Any) -> Fitting:
        """Return the same with some of the settings changed."""
        return replace(self, settings=replace(self.settings, **changes))

    def fit(
        self,
        pairs: Mapping[Subnet, float],
        quantized: bool,
        start: AccuracyPredictor | None = None,
        *,
        n_train: int | None = None,
        besides: Mapping[Subnet, float] | None = None,
        precise: Mapping[Subnet, float] | None = None,
    ) -> Fit:
        """Train a predictor on some of the pairs, and judge it by those held out.

        It learns as in `learn`. `n_train` limits the pairs to learn from; those held out stay the
        same. Those of `besides` are learned from, too, and none of them is held out. `precise`
        holds subnets of this kind with accuracies that were measured more precisely: nothing is
        learned of them, and it is judged by them, too. Raises ApqError when there are too few
        pairs to hold some out, or to learn from the others.
        """
        kind = "quantized" if quantized else "full-precision"
        if len(pairs) < MIN_PAIRS:
            raise ApqError(
                f"{len(pairs)} {kind} pairs are too few to train on and hold some out; gather at "
                f"least {MIN_PAIRS} with 'apq collect'"
            )
        precise, settings = precise or {}, self.settings
        train, held_out = hold_out(pairs, settings.held_out, settings.seed, first=precise)
        if len(train) < 2:
            raise ApqError(
                f"{len(held_out)} of {len(pairs)} {kind} pairs are measured more precisely, to "
                f"judge by: too few are left to learn from; gather more with 'apq collect'"
            )
        train = dict(itertools.islice(train.items(), n_train))
        train |= {s: top1 for s, top1 in (besides or {}).items() if s not in precise}
        predictor = self.learn(train, quantized, start)

        def judge(measured: Mapping[Subnet, float]) -> Quality:
            genes, accuracy = as_arrays(measured, self.space)
            return quality(predictor.predict(genes), accuracy, self.cost_fn(genes), len(train))

        return Fit(predictor, judge(held_out), judge(precise) if precise else None)

    def learn(
        self,
        pairs: Mapping[Subnet, float],
        quantized: bool,
        start: AccuracyPredictor | None = None,
    ) -> AccuracyPredictor:
        """Train a predictor on all of the pairs, two or more.

        What the pairs say of each choice (`fit_additive`) is what it learns, on as many random
        subnets as it takes. With `start`, a full-precision predictor lends its weights (the
        paper's transfer), and the pairs only have to tell what is different. Raises ApqError when
        training diverges.
        """
        genes, accuracy = as_arrays(pairs, self.space)
        torch.manual_seed(self.settings.seed)
        predictor = AccuracyPredictor(self.space, quantized=quantized)
        known: GenesFn = _nothing if start is None else start.predict
        if start is not None:
            _transfer(start, predictor)
        else:
            _start_from(predictor, float(accuracy.mean()))
        predictor.to(self.device)
        features = predictor.converter.features
        rest = fit_additive(features(genes), accuracy - known(genes), predictor.converter)
        _follow(
            predictor, lambda genes: known(genes) + rest.predict(features(genes)), self.settings
        )
        return predictor


def _nothing(genes: np.ndarray) -> np.ndarray:
    """Return what is known of genes (N, n_genes) before any pair is: zeros (N,)."""
    return np.zeros(len(genes))


def _start_from(predictor: AccuracyPredictor, mean: float) -> None:
    """Let a predictor say the mean of nearly all subnets."""
    torch.nn.init.constant_(predictor.regressor.bias, mean)
    # As they are drawn, its weights spread predictions further than accuracies spread: most of the
    # steps would go into unlearning that.
    with torch.no_grad():
        predictor.regressor.weight.mul_(0.01)


def _transfer(source: AccuracyPredictor, target: AccuracyPredictor) -> None:
    """Copy all that both have; the bits start without a say."""
    target.load_state_dict(source.state_dict(), strict=False)
    if target.quantized:
        torch.nn.init.zeros_(target.quantize_fc.weight)
        torch.nn.init.zeros_(target.quantize_fc.bias)


def _follow(predictor: AccuracyPredictor, accuracy_fn: GenesFn, settings: FitSettings) -> None:
    """Train a predictor to tell the accuracies of random subnets, new ones in each step."""
    device = predictor.regressor.weight.device
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=settings.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.n_steps)
    scale = None  # makes the loss one number for every data set
    predictor.train()
    for _ in range(settings.n_steps):
        genes = sample_both(predictor.space, rng, settings.batch_size, predictor.quantized)
        features = torch.from_numpy(predictor.converter.features(genes)).to(device)
        targets = torch.from_numpy(accuracy_fn(genes)).float().to(device)
        scale = scale or max(float(targets.std()), 1e-6)
        error = (predictor(features) - targets) / scale
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
        schedule.step()
    predictor.eval()
    if not all(tensor.isfinite().all() for tensor in predictor.state_dict().values()):
        raise ApqError(
            f"the predictor's weights grew beyond all bounds: lr {settings.lr:g} is high"
        )


def quality(
    predicted: np.ndarray, measured: np.ndarray, cost: np.ndarray, n_train: int = 0
) -> Quality:
    """Compare predicted with measured accuracies in 0..1 of subnets of known cost, all (N,)."""
    tau, rho = kendall_and_spearman(predicted, measured)
    n_bands = max(1, len(measured) // BAND_SIZE)
    bands = np.array_split(np.argsort(cost, kind="stable"), n_bands)
    taus = np.array([kendall_and_spearman(predicted[band], measured[band])[0] for band in bands])
    ranked = taus[~np.isnan(taus)]
    return Quality(
        rmse=float(100 * np.sqrt(np.mean((predicted - measured) ** 2))),
        kendall_tau=tau,
        spearman_rho=rho,
        band_tau=float(ranked.mean()) if len(ranked) else math.nan,
        spread=float(100 * measured.std()),
        n_train=n_train,
        n_held_out=len(measured),
    )


def need_scipy() -> None:
    """Raise ApqError when scipy, which rank correlations need, is missing."""
    try:
        from scipy import stats  # noqa: F401
    except ImportError:
        raise ApqError("rank correlations need scipy: pip install scipy") from None


def kendall_and_spearman(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return Kendall's tau-b and Spearman's rho of two rankings, both (N,).

    They are NaN where all of one ranking are equal. Raises ApqError when scipy is missing.
    """
    need_scipy()
    from scipy import stats

    if np.ptp(a) == 0 or np.ptp(b) == 0:  # scipy would say so in warnings
        return math.nan, math.nan
    return float(stats.kendalltau(a, b).statistic), float(stats.spearmanr(a, b).statistic)
