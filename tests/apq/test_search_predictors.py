"""The predictors that a search ranks by: several, and those that do not fit."""

import json

import numpy as np
import pytest

from apq.provenance import write_card
from apq.space import PAPER_SPACE
from methods import saving
from tests.apq.helpers import QUICK, found
from utils.accuracy_predictor import AccuracyPredictor
from utils.ensemble import PredictorEnsemble, load_members, save_members


@pytest.fixture
def ensemble(home):
    members = [AccuracyPredictor() for _ in range(3)]
    save_members(home / "models" / "acc_ensemble.pt", members)
    write_card(home / "models" / "acc_ensemble.pt", dataset="digits", image_size=64)
    return members


def test_a_predictor_of_pairs_without_a_card_is_of_unknown_origin(home, call, ensemble):
    # What 'apq predictor' writes of pairs that came without a card.
    write_card(home / "models" / "acc_ensemble.pt", dataset="unknown", image_size=None)
    status, out, err = call("search", "--exp_name=found", "--constraint=9", "--risk=2", QUICK)
    assert status == 0
    assert "of unknown origin" in out
    assert "None px" not in out + err


@pytest.mark.parametrize(("risk", "told"), [("2", "lower bound of"), ("0", "predicted accuracy")])
def test_the_plot_tells_what_is_ranked_by(home, call, ensemble, monkeypatch, risk, told):
    told_of = []
    monkeypatch.setattr(saving.plots, "progress_png", lambda *args: told_of.append(args) or b"")
    call("search", "--exp_name=found", "--constraint=9", f"--risk={risk}", QUICK)
    assert told_of[0][-1].startswith(told)


def test_risk_ranks_by_a_lower_bound(home, call, ensemble):
    status, out, _ = call("search", "--exp_name=found", "--constraint=9", "--risk=2", QUICK)
    assert status == 0
    report, subnet = found().report(), found().subnet()
    mean, spread = PredictorEnsemble(ensemble).mean_and_spread([subnet])
    assert report["predicted_accuracy"] == pytest.approx(mean[0], abs=1e-6)
    assert report["lower_bound"] == pytest.approx(mean[0] - 2 * spread[0], abs=1e-6)
    assert report["risk"] == 2
    assert f"- 2 x spread {spread[0]:.2%} of 3 predictors = {mean[0] - 2 * spread[0]:.2%}" in out
    (member, *_) = load_members(home / "models" / "acc_ensemble.pt")
    assert report["predictor_sha256"] == member.sha256
    rows = json.loads((found().dir / "candidates.json").read_text())
    bounds = [row["lower_bound"] for row in rows]
    assert bounds == sorted(bounds, reverse=True)


def test_guided_search_follows_an_ensembles_gradients(home, call, ensemble):
    flags = ("search", "--constraint=9", "--mode=guided", "--evaluations=3000", "--risk=1")
    assert call(*flags, "--exp_name=found")[0] == 0
    bound = PredictorEnsemble(ensemble).predict(PAPER_SPACE.sample(np.random.default_rng(0), 3000))
    assert found().report()["lower_bound"] > bound.max()


def test_several_folders_are_an_ensemble(home, call):
    for name in ("one", "two"):
        AccuracyPredictor().save(home / name / "acc_quant.pt")
    flags = ("--acc_predictor_dir=one,two/acc_quant.pt", "--constraint=9", QUICK)
    status, out, _ = call("search", "--exp_name=found", *flags)
    assert status == 0
    assert "- 1 x spread" in out
    assert "of 2 predictors" in out


def test_a_predictor_that_knows_no_bits_needs_them_fixed(home, call):
    AccuracyPredictor(quantized=False).save(home / "mine" / "acc.pt")
    flags = ("--exp_name=found", "--constraint=14", "--acc_predictor_dir=mine/acc.pt", QUICK)
    status, _, err = call("search", *flags)
    assert status == 2
    assert "mine/acc.pt knows nothing of bits" in err
    figures = {"full precision": {"rmse": 0.62}, "searched": {"last_round": {"bias": 3.0}}}
    write_card(home / "mine" / "acc.pt", dataset="digits", image_size=64, figures=figures)
    status, out, _ = call("search", *flags, "--exclude_bits=4,6")
    assert status == 0
    assert "off by 0.6 points (RMSE) on random subnets held out" in out
    assert "note: the accuracy is of the subnet in full precision" in out


def test_an_ensemble_of_other_pairs_is_refused(home, call, ensemble):
    for name, pairs in (("acc_quant.pt", "new"), ("acc_ensemble.pt", "old")):
        write_card(home / "models" / name, dataset="digits", image_size=64, pairs_sha256=pairs)
    flags = ("--exp_name=found", "--constraint=11", QUICK)
    status, _, err = call("search", *flags, "--risk=1")
    assert status == 2
    assert "acc_ensemble.pt has learned from other pairs than acc_quant.pt beside it" in err
    assert call("search", *flags)[0] == 0
