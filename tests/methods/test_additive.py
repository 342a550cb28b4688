"""The model in which every choice adds its part."""

import numpy as np
import pytest

from apq.space import PAPER_SPACE
from methods.prediction.additive import ALONE, PRESENCE, STEPS, fit_additive, prior_factor
from methods.prediction.draws import sample_both
from utils.converter import Converter

CONVERTER = Converter(PAPER_SPACE)


def features(n, seed=0):
    """Features of random quantized subnets, (n, n_features)."""
    genes = sample_both(PAPER_SPACE, np.random.default_rng(seed), n, True)
    return CONVERTER.features(genes).astype(float)


@pytest.fixture
def worth():
    """What each choice is worth, (n_features,)."""
    return np.random.default_rng(9).normal(size=CONVERTER.n_features) / 50


def test_what_choices_are_worth_is_found(worth):
    known, new = features(1200), features(200, seed=1)
    model = fit_additive(known, 0.8 + known @ worth, CONVERTER)
    error = model.predict(new) - (0.8 + new @ worth)
    assert np.sqrt(np.mean(error**2)) < 0.1 * (new @ worth).std()


def test_noise_is_not_learned(worth):
    known, new = features(400), features(200, seed=1)
    noise = np.random.default_rng(2).normal(size=400)
    model = fit_additive(known, 0.8 + noise, CONVERTER)
    assert model.predict(new).std() < 0.1
    assert model.predict(new).mean() == pytest.approx(0.8 + noise.mean(), abs=0.1)
    assert model.left_out_rmse == pytest.approx(noise.std(), rel=0.1)


def test_the_error_about_those_left_out_is_exact(worth, monkeypatch):
    monkeypatch.setattr("methods.prediction.additive.PENALTIES", [3.0])
    n = 12
    known = features(n)
    values = known @ worth + np.random.default_rng(3).normal(size=n) / 20
    whole = fit_additive(known, values, CONVERTER)
    errors = [
        fit_additive(np.delete(known, i, 0), np.delete(values, i), CONVERTER).predict(known[[i]])[0]
        - values[i]
        for i in range(n)
    ]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(whole.left_out_rmse)


def test_the_penalty_is_the_one_that_errs_least(worth, monkeypatch):
    known = features(60)
    values = known @ worth + np.random.default_rng(3).normal(size=60) / 20
    chosen = fit_additive(known, values, CONVERTER).left_out_rmse
    for penalty in (0.1, 1.0, 10.0, 100.0):
        monkeypatch.setattr("methods.prediction.additive.PENALTIES", [penalty])
        assert fit_additive(known, values, CONVERTER).left_out_rmse > 0.999 * chosen


def test_neighbours_are_alike_by_hand():
    factor = prior_factor(CONVERTER)
    covariance = factor @ factor.T
    # The first group: the three kernels of the first block.
    steps = STEPS / 2 * np.array([[0, 0, 0], [0, 1, 1], [0, 1, 2]])
    assert covariance[:3, :3] == pytest.approx(ALONE * np.eye(3) + steps + PRESENCE)
    assert not covariance[:3, 3:].any()


def test_values_without_pairs_of_a_choice_follow_their_neighbours(worth):
    # Of the first block's widths, the middle one never occurs; accuracy rises with the width.
    group = slice(*CONVERTER.starts[PAPER_SPACE.n_blocks : PAPER_SPACE.n_blocks + 2])
    known = features(800)
    size = group.stop - group.start
    middle = group.start + size // 2
    known = known[known[:, middle] == 0]
    model = fit_additive(known, known[:, group] @ np.arange(size) / 10, CONVERTER)
    low, here, high = model.weights[middle - 1 : middle + 2]
    assert low < here < high
