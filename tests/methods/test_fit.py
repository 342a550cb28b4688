"""Predictors from pairs: what they learn, how they are judged, how many pairs it takes."""

import csv
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from apq import ApqError
from apq.space import PAPER_SPACE
from apq.subnet import largest
from methods.prediction.draws import draw_subnets
from methods.prediction.fit import Fitting, quality
from methods.prediction.settings import FitSettings
from methods.prediction.study import BY_TRANSFER, FROM_SCRATCH, run_study, summarize, write_study


def test_a_training_that_diverges_makes_no_predictor():
    subnets = list(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 6))
    pairs = {subnet: 70.0 + i for i, subnet in enumerate(subnets)}
    with pytest.raises(ApqError, match=r"beyond all bounds: lr 1e\+30 is high"):
        Fitting(FitSettings(n_steps=5, lr=1e30), total).learn(pairs, True)


def additive_pairs(n, quantized, seed=0):
    """Pairs whose accuracy is a sum of one term a gene: learnable, and known."""
    terms = np.random.default_rng(9).normal(size=(PAPER_SPACE.n_genes,))
    if not quantized:
        terms[PAPER_SPACE.columns["pw_w_bits"].start :] = 0
    subnets = list(itertools.islice(draw_subnets(PAPER_SPACE, seed, quantized), n))
    genes = PAPER_SPACE.canonical(PAPER_SPACE.encode(subnets))
    score = (genes / (PAPER_SPACE.gene_sizes - 1)) @ terms
    return {s: float(70 + a) for s, a in zip(subnets, score, strict=True)}


FAST = FitSettings(n_steps=200, batch_size=64, lr=3e-3, seed=1)


def total(genes):
    """A cost that grows with every gene."""
    return PAPER_SPACE.canonical(genes).sum(1)


def test_a_predictor_learns_and_transfer_helps_with_few_pairs():
    full = Fitting(FAST, total).fit(additive_pairs(600, False), False)
    assert not full.predictor.quantized
    assert full.quality.kendall_tau > 0.9
    assert (full.quality.n_train, full.quality.n_held_out) == (480, 120)
    few = additive_pairs(300, True)
    settings = replace(FAST, held_out=0.5)
    scratch = Fitting(settings, total).fit(few, True)
    transfer = Fitting(settings, total).fit(few, True, start=full.predictor)
    assert transfer.predictor.quantized
    assert transfer.quality.rmse < scratch.quality.rmse
    assert transfer.quality.kendall_tau > scratch.quality.kendall_tau + 0.03


def test_fitting_is_deterministic():
    pairs = additive_pairs(60, True)
    first, second = (Fitting(FitSettings(n_steps=20), total).fit(pairs, True) for _ in range(2))
    assert first.quality == second.quality
    state = second.predictor.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in first.predictor.state_dict().items())


def test_quality_by_hand():
    measured = np.array([0.1, 0.2, 0.3, 0.4])
    perfect = quality(measured + 0.05, measured, np.arange(4))
    assert perfect.rmse == pytest.approx(5.0)
    assert perfect.kendall_tau == pytest.approx(1.0)
    # One of six pairs the wrong way round: (5 - 1) / 6.
    swapped = quality(np.array([0.2, 0.1, 0.3, 0.4]), measured, np.arange(4))
    assert swapped.kendall_tau == pytest.approx(4 / 6)
    assert swapped.spearman_rho == pytest.approx(0.8)


def test_the_best_rank_is_that_of_the_truth_under_noise():
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(0.9, 0.02, 4000), rng.normal(0, 0.01, 4000)
    perfect = quality(truth, truth + noise, np.arange(4000))
    assert perfect.spread == pytest.approx(100 * (truth + noise).std())
    assert perfect.best_tau(1.0) == pytest.approx(perfect.kendall_tau, abs=0.02)
    assert perfect.best_tau(0.0) == pytest.approx(1.0)
    assert perfect.best_tau(5.0) == 0.0  # noisier than they spread
    assert quality(truth, np.full(4000, 0.9), truth).best_tau(1.0) == 0.0


@pytest.mark.filterwarnings("error")
def test_where_all_are_alike_there_is_no_rank():
    spread, alike = np.linspace(0.1, 0.2, 80), np.full(80, 0.3)
    for predicted, measured in ((spread, alike), (alike, spread)):
        figures = quality(predicted, measured, np.arange(80))
        ranks = (figures.kendall_tau, figures.spearman_rho, figures.band_tau)
        assert np.isnan(ranks).all()
        assert figures.rmse > 0
    # A band without ranks leaves the other's.
    half = np.concatenate([alike[:40], spread[40:]])
    assert quality(spread, half, np.arange(80)).band_tau == pytest.approx(1.0)


def test_bands_compare_subnets_of_about_the_same_cost():
    # Within each half of the cost all is in order; the costlier half is predicted far too low.
    measured = np.concatenate([np.linspace(0.1, 0.2, 40), np.linspace(0.5, 0.6, 40)])
    predicted = np.concatenate([measured[:40], measured[40:] - 0.45])
    cost = np.repeat([1.0, 2.0], 40)
    figures = quality(predicted, measured, cost)
    assert figures.band_tau == pytest.approx(1.0)
    assert figures.kendall_tau < 0.6


def test_the_study_is_judged_by_precise_subnets_where_there_are_some():
    full, quantized = additive_pairs(40, False), additive_pairs(60, True)
    precise = {**dict(itertools.islice(quantized.items(), 20)), next(iter(full)): 70.0}
    rows = run_study(
        full, quantized, Fitting(FitSettings(n_steps=1), total), (10, 999), 1, precise=precise
    )
    # Of 60 pairs 20 are judged by, which is more than a fifth.
    assert [(row.n_train, row.n_held_out) for row in rows] == [(10, 20)] * 2 + [(40, 20)] * 2
    assert len({row.spread for row in rows}) == 1


def test_the_study_covers_all_sizes_and_kinds_under_each_seed(tmp_path):
    fitting = Fitting(FitSettings(n_steps=10), total)
    rows = run_study(additive_pairs(40, False), additive_pairs(60, True), fitting, (10, 30, 999), 2)
    wanted = itertools.product((0, 1), (10, 30, 48), (FROM_SCRATCH, BY_TRANSFER))
    assert {(row.seed, row.n_train, row.kind) for row in rows} == set(wanted)
    assert all(row.n_held_out == 12 for row in rows)
    table, figure = write_study(rows, tmp_path)
    with open(table, newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(line["rmse"]) for line in read] == pytest.approx([r.rmse for r in rows], 1e-5)
    assert figure.read_bytes().startswith(b"\x89PNG")
    mean = np.mean([row.rmse for row in rows if (row.kind, row.n_train) == (FROM_SCRATCH, 30)])
    assert summarize(rows)[1][:2] == (FROM_SCRATCH, "30")
    assert summarize(rows)[1][2].startswith(f"{mean:.3f} ±")


def test_too_few_pairs_and_bad_settings_are_refused():
    with pytest.raises(ApqError, match=r"1 full-precision pairs are too few.*apq collect"):
        Fitting(FAST, total).fit({largest(): 90.0}, False)
    for change in ({"n_steps": 0}, {"lr": 0.0}, {"held_out": 1.0}):
        with pytest.raises(ApqError, match=next(iter(change))):
            FitSettings(**change)
