"""Ensembles from pairs: what members share and what not, and the command that makes them."""

import numpy as np
import pytest

from apq import cli
from apq.errors import ApqError
from apq.provenance import read_card, write_card
from apq.space import PAPER_SPACE
from methods.prediction.ensemble import fit_ensemble
from methods.prediction.fit import Fitting
from methods.prediction.pairs import as_arrays, write_pairs
from methods.prediction.settings import FitSettings
from utils.ensemble import ENSEMBLE_NAME, load_members
from utils.latency_predictor import LatencyPredictor

QUICK = FitSettings(n_steps=10, batch_size=64)


@pytest.fixture(scope="module")
def pairs():
    """Sixty full-precision and a hundred quantized pairs; wide subnets are the better ones."""
    genes = PAPER_SPACE.sample_spread(np.random.default_rng(0), 160)
    widths = genes[:, PAPER_SPACE.columns["widths"]].mean(axis=1)
    subnets = PAPER_SPACE.decode(genes)
    accuracy = (70 + widths).tolist()
    full = {s.full_precision(): a for s, a in zip(subnets[:60], accuracy[:60], strict=True)}
    return full, dict(zip(subnets[60:], accuracy[60:], strict=True))


@pytest.fixture(scope="module")
def fitting():
    return Fitting(QUICK, LatencyPredictor("latency").predict)


def test_members_differ_and_their_mean_is_measured_on_pairs_none_has_seen(pairs, fitting):
    full, quantized = pairs
    ensemble = fit_ensemble(full, quantized, 3, fitting)
    assert len(ensemble.members) == 3
    predictions = [m.predict(list(quantized)) for m in ensemble.members]
    assert np.std(predictions, axis=0).min() > 0
    single = fitting.fit(quantized, True)
    assert ensemble.quality.n_held_out == single.quality.n_held_out == 20
    order = np.random.default_rng(QUICK.seed).permutation(100)
    held_out = [list(quantized)[i] for i in order[:20]]
    measured = np.array([quantized[s] for s in held_out])
    mean = 100 * np.mean([m.predict(held_out) for m in ensemble.members], axis=0)
    rmse = np.sqrt(np.mean((mean - measured) ** 2))
    assert ensemble.quality.rmse == pytest.approx(rmse, rel=1e-4)
    spread = 100 * np.std([m.predict(held_out) for m in ensemble.members], axis=0).mean()
    assert ensemble.spread == pytest.approx(spread, rel=1e-3)


def test_members_do_not_learn_from_what_was_measured_more_precisely(pairs, fitting):
    full, quantized = pairs
    precise = dict.fromkeys(list(quantized)[:30], 0.0)
    ensemble = fit_ensemble(full, quantized, 2, fitting, precise=precise)
    assert (ensemble.quality.n_train, ensemble.quality.n_held_out) == (70, 30)
    genes, measured = as_arrays({s: quantized[s] for s in precise}, PAPER_SPACE)
    mean = np.mean([m.predict(genes) for m in ensemble.members], axis=0)
    rmse = 100 * np.sqrt(np.mean((mean - measured) ** 2))
    assert ensemble.quality.rmse == pytest.approx(rmse, rel=1e-4)


def test_members_learn_from_the_pairs_besides(pairs, fitting):
    full, quantized = pairs
    # Of no accuracy at all: whoever has seen them thinks less of every subnet.
    besides = dict.fromkeys(PAPER_SPACE.decode(PAPER_SPACE.sample(np.random.default_rng(9), 60)), 0)
    mean = []
    for some in ({}, besides):
        ensemble = fit_ensemble(full, quantized, 2, fitting, besides=some)
        mean.append([m.predict(list(quantized)).mean() for m in ensemble.members])
    assert all(low < high - 0.005 for high, low in zip(*mean, strict=True))


def test_the_same_seed_gives_the_same_ensemble(pairs, fitting):
    subnets = list(pairs[1])[:5]
    first, again = (fit_ensemble(*pairs, 2, fitting).members for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert (one.predict(subnets) == other.predict(subnets)).all()


def test_one_predictor_is_no_ensemble(pairs, fitting):
    with pytest.raises(ApqError, match="at least two predictors, not 1"):
        fit_ensemble(*pairs, 1, fitting)


def test_the_command_writes_an_ensemble_that_a_search_can_use(tmp_path, monkeypatch, capsys, pairs):
    monkeypatch.chdir(tmp_path)
    write_pairs("pairs.json", {**pairs[0], **pairs[1]})
    write_card("pairs.json", dataset="toys", image_size=64)
    flags = ["--pairs=pairs.json", "--out_dir=models", "--n_steps=20", "--ensemble=2"]
    assert cli.run("predictor", flags, "apq predictor") == 0
    assert "ensemble of 2: models/acc_ensemble.pt" in capsys.readouterr().out
    path = tmp_path / "models" / ENSEMBLE_NAME
    assert len(load_members(path)) == 2
    assert read_card(path)["n_members"] == 2
    flags = ["--exp_name=found", "--constraint=9", "--risk=1", "--generations=2"]
    assert cli.run("search", flags, "apq search") == 0
    assert "of 2 predictors" in capsys.readouterr().out
