"""The accuracy predictor: its formula, its files, and agreement with the authors' network."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from apq.errors import ApqError
from apq.provenance import write_card
from apq.space import PAPER_SPACE
from apq.subnet import Subnet, largest
from utils.accuracy_predictor import AccuracyPredictor
from utils.converter import Converter


@pytest.fixture
def predictor() -> AccuracyPredictor:
    torch.manual_seed(0)
    return AccuracyPredictor(hidden=8)


@pytest.fixture
def genes() -> np.ndarray:
    return PAPER_SPACE.sample(np.random.default_rng(0), 20)


def test_formula_by_hand(genes: np.ndarray) -> None:
    predictor = AccuracyPredictor(hidden=1)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.zero_()
        predictor.layers[0][0].weight.fill_(0.5)
        predictor.layers[0][0].bias.fill_(-100)  # So the first ReLU gives 0, whatever a is,
        predictor.quantize_fc.weight.fill_(0.25)  # and only the bits, which no ReLU cuts, remain.
        predictor.quantize_fc.bias.fill_(-1)
        predictor.layers[1][0].weight.fill_(1)
        predictor.layers[2][0].weight.fill_(1)
        predictor.layers[2][0].bias.fill_(3)
        predictor.regressor.weight.fill_(2)
        predictor.regressor.bias.fill_(0.5)
    n_active = PAPER_SPACE.active(genes).sum(axis=1)
    expected = 2 * ((0.25 * 4 * n_active - 1) + 3) + 0.5
    np.testing.assert_allclose(predictor.predict(genes), expected, rtol=1e-6)


def test_a_full_precision_predictor_ignores_bits(genes: np.ndarray) -> None:
    predictor = AccuracyPredictor(hidden=8, quantized=False)
    other = genes.copy()
    other[:, PAPER_SPACE.columns["pw_w_bits"]] = 0
    assert (predictor.predict(genes) == predictor.predict(other)).all()
    assert not any(key.startswith("quantize_fc") for key in predictor.state_dict())


def test_bits_count_in_a_quantized_one(predictor: AccuracyPredictor) -> None:
    subnets = [largest().with_bits(8), largest().with_bits(6), largest()]
    eight, six, full_precision = predictor.predict(subnets)
    assert eight != six
    assert eight == full_precision


def test_batches_do_not_show(
    predictor: AccuracyPredictor, genes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predictor.predict(genes)
    monkeypatch.setattr("utils.accuracy_predictor.PREDICT_BATCH", 7)
    np.testing.assert_allclose(predictor.predict(genes), whole, atol=1e-6)
    assert predictor.predict(genes[:0]).shape == (0,)


@pytest.mark.parametrize("quantized", [True, False])
def test_saved_and_loaded_it_predicts_the_same(
    tmp_path: Path, genes: np.ndarray, quantized: bool
) -> None:
    predictor = AccuracyPredictor(hidden=8, quantized=quantized)
    predictor.save(tmp_path / "acc_quant.pt")
    write_card(tmp_path / "acc_quant.pt", dataset="toy", image_size=64)
    loaded = AccuracyPredictor.load(tmp_path, hidden=8)
    assert loaded.quantized is quantized
    assert loaded.card["dataset"] == "toy"
    assert loaded.card["image_size"] == 64
    assert (loaded.predict(genes) == predictor.predict(genes)).all()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "acc_quant.pt",
        "acc_quant.pt.card.json",
    ]


def test_saving_drops_the_card_of_older_weights(
    tmp_path: Path, predictor: AccuracyPredictor
) -> None:
    predictor.save(tmp_path / "a.pt")
    write_card(tmp_path / "a.pt", dataset="toy")
    AccuracyPredictor(hidden=8).save(tmp_path / "a.pt")
    assert AccuracyPredictor.load(tmp_path / "a.pt", hidden=8).card == {}


def test_missing_files_are_named(tmp_path: Path, predictor: AccuracyPredictor) -> None:
    with pytest.raises(ApqError, match=r"nowhere.*no such file"):
        AccuracyPredictor.load(tmp_path / "nowhere")
    predictor.save(tmp_path / "other.pt")
    with pytest.raises(ApqError, match=r"acc_quant\.pt in .*other\.pt"):
        AccuracyPredictor.load(tmp_path)
    assert AccuracyPredictor.load(tmp_path, name="other.pt", hidden=8).quantized


def test_damaged_files_are_refused(tmp_path: Path, predictor: AccuracyPredictor) -> None:
    predictor.save(tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for damaged in (b"", b"hello", data[:100], data[: len(data) // 2], data[:-30]):
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(ApqError, match=r"damaged\.pt"):
            AccuracyPredictor.load(tmp_path / "damaged.pt", hidden=8)


def _without(key: str):
    return lambda state: state.pop(key)


def _with(key: str, value: object):
    return lambda state: state.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("layers.1.0.bias"), r"'layers\.1\.0\.bias' is missing"),
        (_without("quantize_fc.weight"), r"'quantize_fc\.weight' is missing"),
        (_with("regressor.weight", torch.zeros(1, 9)), r"'regressor.*\(1, 9\).*\(1, 8\)"),
        (_with("regressor.bias", 3), r"'regressor\.bias' is int, not a tensor"),
        (_with("extra", torch.zeros(2)), "it has an unknown 'extra'"),
        (_with("regressor.bias", torch.tensor([float("nan")])), "not finite"),
    ],
)
def test_wrong_weights_are_named(
    tmp_path: Path, predictor: AccuracyPredictor, change, message: str
) -> None:
    state = dict(predictor.state_dict())
    change(state)
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(ApqError, match=r"wrong\.pt: .*" + message):
        AccuracyPredictor.load(tmp_path / "wrong.pt", hidden=8)


def test_other_torch_files_and_cards_are_refused(
    tmp_path: Path, predictor: AccuracyPredictor
) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ApqError, match=r"list\.pt holds a list"):
        AccuracyPredictor.load(tmp_path / "list.pt")
    predictor.save(tmp_path / "a.pt")
    (tmp_path / "a.pt.card.json").write_text("[]")
    with pytest.raises(ApqError, match=r"a\.pt\.card\.json is no card"):
        AccuracyPredictor.load(tmp_path / "a.pt", hidden=8)


def test_layout_is_the_authors(reference: Path) -> None:
    shapes = json.loads((reference / "acc_quant_state_dict.json").read_text())
    ours = {key: list(value.shape) for key, value in AccuracyPredictor().state_dict().items()}
    assert ours == shapes
    assert list(ours) == list(shapes)


def test_predictions_agree_with_the_authors_network(reference: Path) -> None:
    spec = importlib.util.spec_from_file_location("golden", reference / "golden_weights.py")
    golden_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden_weights)
    shapes = json.loads((reference / "acc_quant_state_dict.json").read_text())
    predictor = AccuracyPredictor()
    predictor.load_state_dict(golden_weights.golden_state_dict(shapes))
    golden = json.loads((reference / "golden_cost.json").read_text())
    got = predictor.predict([Subnet.from_paper(entry["arch"]) for entry in golden])
    expected = [entry["golden_predictor"] for entry in golden]
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    assert Converter(PAPER_SPACE).n_features == predictor.converter.n_features


# ---- the fast ways ----


@pytest.mark.parametrize("quantized", [True, False])
def test_predict_is_the_forward_pass_on_features(quantized: bool) -> None:
    torch.manual_seed(0)
    predictor = AccuracyPredictor(quantized=quantized).eval()
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 200)
    features = torch.from_numpy(predictor.converter.features(genes))
    for _ in range(2):  # again after training wrote into the weights
        with torch.no_grad():
            expected = predictor(features).numpy()
        np.testing.assert_allclose(predictor.predict(genes), expected, atol=1e-6)
        with torch.no_grad():
            for parameter in predictor.parameters():
                parameter.mul_(1.5)
    assert abs(predictor.predict(genes) - expected).max() > 1e-3


def test_training_by_a_fused_optimizer_changes_predictions() -> None:
    """Such an optimizer writes without counting the weights' version up."""
    predictor = AccuracyPredictor(hidden=8).eval()
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 20)
    features = torch.from_numpy(predictor.converter.features(genes))
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.1, fused=True)
    predictor.predict(genes)
    for training in (True, False):
        predictor.train()
        for _ in range(2):  # with a prediction between two steps
            predictor.predict(genes)
            optimizer.zero_grad()
            predictor(features).sum().backward()
            optimizer.step()
        predictor.train(training)
        with torch.no_grad():
            expected = predictor(features).numpy()
        np.testing.assert_allclose(predictor.predict(genes), expected, atol=1e-4)


def test_positions_are_where_the_features_are_one() -> None:
    predictor = AccuracyPredictor()
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 50)
    features = predictor.converter.features(genes)
    arch, bits = predictor.converter.positions(genes)
    for row, a, b in zip(features, arch, bits, strict=True):
        expected = np.zeros(len(row))
        expected[a[a < 520]] = 1
        expected[520 + b[b < 252]] = 1
        assert (row == expected).all()
        assert (a == 520).sum() * 2 == (b == 252).sum()


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    predictor = AccuracyPredictor().eval()
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 2)
    gradients = predictor.gradients(genes)
    assert gradients.shape == (2, 772)
    predictor.double()
    features = torch.from_numpy(predictor.converter.features(genes)).double()
    with torch.no_grad():
        for i in range(0, 772, 37):
            step = torch.zeros(772, dtype=torch.float64)
            step[i] = 1e-6
            rise = (predictor(features + step) - predictor(features - step)) / 2e-6
            np.testing.assert_allclose(gradients[:, i], rise.numpy(), atol=1e-5)
