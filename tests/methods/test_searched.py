"""Pairs from where searches go: what is drawn, and what learning from it mends."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apq import ApqError
from apq.space import PAPER_SPACE
from apq.subnet import largest, smallest
from methods.prediction.draws import draw_subnets
from methods.prediction.fit import Fitting
from methods.prediction.kinds import fit_all
from methods.prediction.pairs import hold_out
from methods.prediction.searched import (
    SHARES,
    searched_quality,
    searched_quota,
    searched_subnets,
)
from methods.prediction.settings import FitSettings
from utils.accuracy_predictor import AccuracyPredictor
from utils.latency_predictor import LatencyPredictor


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return AccuracyPredictor()


@pytest.fixture(scope="module")
def found(predictor):
    return list(itertools.islice(searched_subnets(predictor, 64, seed=3), 4))


def test_searches_find_better_subnets_than_random_ones_that_cost_more(predictor, found):
    assert len(set(found)) == 4
    assert all(subnet.quantized for subnet in found)
    genes = PAPER_SPACE.encode(found)
    assert np.array_equal(genes, PAPER_SPACE.canonical(genes))
    latency = LatencyPredictor("latency", 64)
    random = list(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 400))
    costs, predicted = latency.predict(random), predictor.predict(random)
    for subnet in found[::2]:  # those under a latency budget
        costlier = predicted[costs >= latency.predict([subnet])[0]]
        assert predictor.predict([subnet])[0] > np.quantile(costlier, 0.9)


def test_searches_use_up_budgets_of_latency_and_energy_by_turns(found):
    costs = [LatencyPredictor(type_, 64) for type_ in ("latency", "energy")]
    for number, subnet in enumerate(found):
        cost = costs[number % 2]
        low, high = np.log([cost.minimum()[0], cost.maximum()[0]])
        share = np.random.default_rng([3, number]).uniform(*SHARES)
        budget = np.exp(low + share * (high - low))
        assert 0.9 * budget < cost.predict([subnet])[0] <= budget


def test_searches_go_on_by_their_number(predictor, found):
    assert list(itertools.islice(searched_subnets(predictor, 64, 3, first=2), 2)) == found[2:]
    quota = searched_quota(predictor, 64, 9, seed=3)
    assert quota.wanted == 9
    assert next(quota.draw(1)) == found[1]


def test_quality_by_hand():
    pairs = {largest(): 80.0, smallest(): 70.0}
    predictor = SimpleNamespace(space=PAPER_SPACE, predict=lambda genes: np.array([0.83, 0.69]))
    figures = searched_quality(predictor, pairs)
    assert figures.bias == pytest.approx(1.0)
    assert figures.rmse == pytest.approx((10 / 2) ** 0.5)


def test_pairs_besides_are_learned_and_leave_the_held_out_ones_alone():
    # Random subnets are all alike; those of the cheap corner are ten points worse.
    drawn = itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 60)
    random = {subnet: 80 + 0.1 * (i % 3) for i, subnet in enumerate(drawn)}
    corner = [
        replace(smallest(PAPER_SPACE).with_bits(b), kernels=(k,) * PAPER_SPACE.n_blocks)
        for b in (4, 6)
        for k in (3, 5)
    ]
    besides = dict.fromkeys(corner, 70.0)
    settings = FitSettings(n_steps=60, batch_size=64)

    def cost(genes):
        return genes.sum(1)

    without = Fitting(settings, cost).fit(random, True)
    with_ = Fitting(settings, cost).fit(random, True, besides=besides)
    assert with_.quality.n_held_out == without.quality.n_held_out == 12
    assert (without.quality.n_train, with_.quality.n_train) == (48, 52)
    biases = [searched_quality(fit.predictor, besides).bias for fit in (without, with_)]
    assert biases[0] > 8
    assert biases[1] < biases[0] - 3
    assert with_.quality.rmse < 2


def test_a_share_is_held_out_the_same_each_time():
    pairs = dict.fromkeys(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 10), 80.0)
    train, held_out = hold_out(pairs, 0.3, seed=1)
    assert (len(train), len(held_out)) == (7, 3)
    assert train | held_out == pairs
    assert hold_out(pairs, 0.3, seed=1) == (train, held_out)
    assert set(hold_out(pairs, 0.3, seed=2)[1]) != set(held_out)
    # Some that are judged by in any case take the places of others, or more places than there are.
    first = set(list(train)[:2])
    assert set(hold_out(pairs, 0.3, 1, first)[1]) == {*first, next(iter(held_out))}
    assert set(hold_out(pairs, 0.3, 1, set(train))[0]) == set(held_out)


def test_the_kind_that_has_learned_from_searches_is_searched_with_and_judged_by_them():
    # All subnets are alike, but for those that searches find, which are five points worse.
    def alike(subnets, top1=80.0):
        return {subnet: top1 + 0.1 * (i % 3) for i, subnet in enumerate(subnets)}

    quantized = list(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 40))
    full = alike(itertools.islice(draw_subnets(PAPER_SPACE, 0, False), 20))
    random, searched = alike(quantized[:20]), alike(quantized[20:], 75.0)
    settings = FitSettings(n_steps=60, batch_size=64)

    def cost(genes):
        return genes.sum(1)

    fits = fit_all(full, random, searched, Fitting(settings, cost))
    assert list(fits.to_use) == ["full precision", "quantized, with searched pairs"]
    assert len(fits.besides) == 16
    about = fits.about_searched
    assert about.n_held_out == 4
    assert about.without.bias == pytest.approx(5, abs=0.5)
    assert abs(about.own.bias) < about.without.bias - 1
    without = fit_all(full, random, {}, Fitting(FitSettings(n_steps=1, batch_size=64), cost))
    assert without.about_searched is None
    assert list(without.to_use) == ["full precision", "quantized, by transfer"]


def test_no_predictor_learns_from_the_searched_pairs_it_is_judged_by(monkeypatch):
    subnets = list(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 60))
    pairs = {subnet: 70.0 + i for i, subnet in enumerate(subnets[:20])}
    full = {subnet.full_precision(): top1 for subnet, top1 in pairs.items()}
    searched = dict.fromkeys(subnets[20:], 75.0)
    learned, judged, learn = [], [], Fitting.learn

    def spy_learn(self, pairs, *args):
        learned.append(pairs)
        return learn(self, pairs, *args)

    def spy_quality(predictor, held_out):
        judged.append(set(held_out))
        return searched_quality(predictor, held_out)

    monkeypatch.setattr("methods.prediction.kinds.searched_quality", spy_quality)
    monkeypatch.setattr(Fitting, "learn", spy_learn)
    fit_all(full, pairs, searched, Fitting(FitSettings(n_steps=1), lambda genes: genes.sum(1)))
    *to_judge, known_full, known = learned
    assert len(to_judge[-1].keys() & searched) == 32
    for held_out in judged:
        assert len(held_out) == 8
        assert held_out <= set(searched)
        assert not held_out & set().union(*to_judge)
    assert (known_full, known) == (full, pairs | searched)  # those to use know them all


def test_nothing_is_learned_of_subnets_that_predictors_are_judged_by_precisely(monkeypatch):
    subnets = list(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 60))
    pairs = {subnet: 70.0 + i for i, subnet in enumerate(subnets[:30])}
    full = {subnet.full_precision(): top1 for subnet, top1 in pairs.items()}
    searched = dict.fromkeys(subnets[30:], 75.0)
    precise = dict.fromkeys([*subnets[10:14], *subnets[40:43], *list(full)[:3]], 60.0)
    learned, learn = [], Fitting.learn

    def spy_learn(self, pairs, *args):
        learned.append(set(pairs))
        return learn(self, pairs, *args)

    monkeypatch.setattr(Fitting, "learn", spy_learn)
    fitting = Fitting(FitSettings(n_steps=1), lambda genes: genes.sum(1))
    fits = fit_all(full, pairs, searched, fitting, precise)
    assert len(learned) == 6
    assert not set(precise) & set().union(*learned[:4])  # the last two are those to use
    for name, fitted in fits.by_name.items():
        assert fitted.precise.n_held_out == (3 if name == "full precision" else 7)
        assert fitted.precise.spread == 0
        assert fitted.quality.n_held_out == 6
        assert fitted.precise.rmse != fitted.quality.rmse
    alone = fitting.fit(pairs, True)
    assert alone.precise is None
    with pytest.raises(ApqError, match="29 of 30 quantized pairs are measured more precisely, to"):
        fitting.fit(pairs, True, precise=dict.fromkeys(subnets[:29], 60.0))


def test_a_round_tells_how_right_the_predictor_was_before_it_learned(predictor, found):
    quota = searched_quota(predictor, 64, 9, seed=3)
    genes = PAPER_SPACE.encode(found[:2])
    predicted = 100 * predictor.predict(genes)
    new = dict(zip(found[:2], [predicted[0] - 3, predicted[1] + 1], strict=True))
    said = quota.facts(new)
    assert set(said) == set(quota.fact_names)
    assert said["last_round"]["n_found"] == 2
    assert said["last_round"]["bias"] == pytest.approx(1.0, abs=1e-3)
    assert said["last_round"]["rmse"] == pytest.approx(5**0.5, abs=1e-3)
