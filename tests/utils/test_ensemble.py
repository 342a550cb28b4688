"""Ensembles: their formula, their files, and what does not belong together."""

from pathlib import Path

import numpy as np
import pytest
import torch

from apq.errors import ApqError
from apq.provenance import write_card
from apq.space import PAPER_SPACE
from utils.accuracy_predictor import AccuracyPredictor
from utils.ensemble import PredictorEnsemble, load_members, save_members


def _members(n: int = 3, quantized: bool = True, hidden: int = 8) -> list[AccuracyPredictor]:
    torch.manual_seed(0)
    return [AccuracyPredictor(hidden=hidden, quantized=quantized).eval() for _ in range(n)]


@pytest.fixture
def genes() -> np.ndarray:
    return PAPER_SPACE.sample(np.random.default_rng(0), 30)


def test_formula_by_hand(genes: np.ndarray) -> None:
    members = _members(2)
    for member, bias in zip(members, (0.5, 0.9), strict=True):
        torch.nn.init.zeros_(member.regressor.weight)
        torch.nn.init.constant_(member.regressor.bias, bias)
    ensemble = PredictorEnsemble(members, risk=2.0)
    mean, spread = ensemble.mean_and_spread(genes)
    np.testing.assert_allclose(mean, 0.7, rtol=1e-6)
    np.testing.assert_allclose(spread, 0.2, rtol=1e-6)
    np.testing.assert_allclose(ensemble.predict(genes), 0.7 - 2 * 0.2, rtol=1e-6)


@pytest.mark.parametrize("quantized", [True, False])
def test_one_pass_gives_what_the_members_give(genes: np.ndarray, quantized: bool) -> None:
    members = _members(4, quantized)
    ensemble = PredictorEnsemble(members, risk=1.5)
    alone = np.stack([member.predict(genes) for member in members])
    np.testing.assert_allclose(ensemble.mean_and_spread(genes)[0], alone.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(ensemble.spread(genes), alone.std(axis=0), atol=1e-6)
    features = torch.from_numpy(ensemble.converter.features(genes))
    np.testing.assert_allclose(
        ensemble(features).detach().numpy(), ensemble.predict(genes), atol=1e-5
    )


def test_batches_do_not_show(genes: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = PredictorEnsemble(_members())
    whole = ensemble.predict(genes)
    monkeypatch.setattr("utils.accuracy_predictor.PREDICT_BATCH", 7)
    np.testing.assert_allclose(ensemble.predict(genes), whole, atol=1e-6)
    assert ensemble.predict(genes[:0]).shape == (0,)


def test_the_score_has_a_gradient_even_where_members_agree() -> None:
    member = _members(1)[0]
    ensemble = PredictorEnsemble([member, member])
    features = torch.rand(4, ensemble.converter.n_features, requires_grad=True)
    ensemble(features).sum().backward()
    assert torch.isfinite(features.grad).all()
    assert features.grad.abs().sum() > 0


def test_gradients_are_those_of_the_lower_bound(genes: np.ndarray) -> None:
    members = _members(2)
    ensemble = PredictorEnsemble(members, risk=3.0)
    first, second = (member.gradients(genes) for member in members)
    low, high = (member.predict(genes) for member in members)
    # Of two members the spread is half their difference.
    sign = np.sign(low - high)[:, None]
    expected = (first + second) / 2 - 3.0 * sign * (first - second) / 2
    np.testing.assert_allclose(ensemble.gradients(genes), expected, atol=1e-5)


def test_saved_and_loaded_it_predicts_the_same(tmp_path: Path, genes: np.ndarray) -> None:
    members, path = _members(), tmp_path / "acc_ensemble.pt"
    write_members = [save_members, save_members]  # the second write drops the first one's card
    for write in write_members:
        write(path, members)
        assert load_members(path, hidden=8)[0].card == {}
        write_card(path, dataset="toy", image_size=64)
    loaded = load_members(path, hidden=8)
    assert [member.card["dataset"] for member in loaded] == ["toy"] * 3
    assert PredictorEnsemble(loaded).sha256 == loaded[0].sha256
    expected = PredictorEnsemble(members).predict(genes)
    assert (PredictorEnsemble(loaded).predict(genes) == expected).all()


def test_a_file_of_one_predictor_is_one_member(tmp_path: Path, genes: np.ndarray) -> None:
    member = _members(1)[0]
    member.save(tmp_path / "acc_quant.pt")
    (loaded,) = load_members(tmp_path / "acc_quant.pt", hidden=8)
    assert (loaded.predict(genes) == member.predict(genes)).all()
    assert len(loaded.sha256) == 64


def test_the_joint_hash_depends_on_every_file(tmp_path: Path) -> None:
    members = _members(3)
    for i, member in enumerate(members):
        member.save(tmp_path / f"{i}.pt")
    files = [load_members(tmp_path / f"{i}.pt", hidden=8)[0] for i in range(3)]
    joint = PredictorEnsemble(files[:2]).sha256
    assert joint == PredictorEnsemble(files[1::-1]).sha256
    assert len({joint, PredictorEnsemble(files[1:]).sha256, files[0].sha256}) == 3


def test_what_does_not_belong_together_is_refused() -> None:
    members = _members(2)
    with pytest.raises(ApqError, match="at least two predictors; there are 1"):
        PredictorEnsemble(members[:1])
    with pytest.raises(ApqError, match="one space, size and kind"):
        PredictorEnsemble([members[0], _members(1, quantized=False)[0]])
    with pytest.raises(ApqError, match="one space, size and kind"):
        PredictorEnsemble([members[0], _members(1, hidden=9)[0]])
    with pytest.raises(ApqError, match="risk is -1"):
        PredictorEnsemble(members, risk=-1)
    members[0].card, members[1].card = {"dataset": "digits"}, {"dataset": "cifar10"}
    with pytest.raises(ApqError, match="their dataset is cifar10 and digits"):
        PredictorEnsemble(members)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "acc_ensemble.pt"
    save_members(path, _members())
    weights = torch.load(path, weights_only=True)
    torch.save({**weights, "regressor.bias": weights["regressor.bias"][:2]}, path)
    with pytest.raises(ApqError, match=r"acc_ensemble\.pt: .*not of one number of members"):
        load_members(path, hidden=8)
    torch.save({**weights, "regressor.weight": torch.zeros(3, 1, 7)}, path)
    with pytest.raises(ApqError, match=r"'regressor\.weight' is \(1, 7\); expected \(1, 8\)"):
        load_members(path, hidden=8)
    torch.save({"other": torch.zeros(3)}, path)
    with pytest.raises(ApqError, match=r"acc_ensemble\.pt: .*is missing"):
        load_members(path, hidden=8)
