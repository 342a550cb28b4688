"""`apq collect` and `apq predictor` from flags to files, with pairs from searches."""

import itertools
import re

import pytest
import torch

from apq import files
from apq.provenance import read_card, write_card
from apq.space import PAPER_SPACE
from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.files import save_supernet
from methods.prediction.draws import draw_subnets
from methods.prediction.pairs import read_pairs, write_pairs
from utils.accuracy_predictor import AccuracyPredictor


def test_collect_measures_random_and_searched_subnets(home, call, monkeypatch):
    monkeypatch.setattr("methods.prediction.images.N_REFERENCES", 3)
    torch.manual_seed(0)
    save_supernet(OnceForAllNet(n_classes=10), home / "supernet.pth.tar")

    def collect(n_searched):
        return call(
            "collect",
            "--supernet=supernet.pth.tar",
            "--image_size=32",
            "--n_full=1",
            "--n_quantized=1",
            "--n_val_images=16",
            "--n_bn_images=16",
            "--n_draws=2",
            "--n_noise=0",
            f"--n_searched={n_searched}",
        )

    status, out, err = collect(1)
    assert status == 0, err
    assert "pairs: models/pairs.json" in out
    assert "about the 1 subnets found last the predictor was off by" in out
    assert len(read_pairs(home / "models" / "pairs.json")) == 2
    path = home / "models" / "pairs-searched.json"
    (first,) = read_pairs(path)
    # More of them are found with the predictor of that time.
    assert collect(2)[0] == 0
    assert next(iter(read_pairs(path))) == first
    assert len(read_pairs(path)) == 2
    card = read_card(path)
    assert card["predictor_sha256"] == files.sha256(home / "models" / "acc_quant.pt")
    assert card["last_round"]["n_found"] == 1
    # A sitting that finds nothing leaves what was said of the last one that did.
    AccuracyPredictor().save(home / "models" / "acc_quant.pt")
    assert collect(2)[0] == 0
    for name in ("predictor_sha256", "last_round"):
        assert read_card(path)[name] == card[name]
    for name in ("supernet_sha256", "n_bn_images", "n_images", "dataset"):
        assert read_card(path)[name] == read_card(home / "models" / "pairs.json")[name]
    assert read_card(path)["n_draws"] == 2


@pytest.mark.parametrize(
    ("quantized", "dataset", "message"),
    [
        (True, "cifar10", "has learned from cifar10, not digits: name another"),
        (False, "digits", "knows nothing of bits: name another"),
    ],
)
def test_a_predictor_of_something_else_is_refused_first(home, call, quantized, dataset, message):
    save_supernet(OnceForAllNet(n_classes=10), home / "supernet.pth.tar")
    AccuracyPredictor(quantized=quantized).save(home / "other.pt")
    write_card(home / "other.pt", dataset=dataset, image_size=64)
    flags = ("--supernet=supernet.pth.tar", "--n_searched=1", "--acc_predictor_dir=other.pt")
    status, _, err = call("collect", *flags)
    assert status == 2
    assert f"other.pt {message}" in err
    assert not (home / "models" / "pairs.json.log").exists()


@pytest.fixture
def pairs(home):
    """Files of random and of searched pairs, whose accuracies grow with every gene."""

    def write(name, subnets, **facts):
        genes = PAPER_SPACE.canonical(PAPER_SPACE.encode(subnets))
        write_pairs(name, dict(zip(subnets, 70 + genes.sum(1) / 40, strict=True)))
        write_card(name, dataset="digits", image_size=64, supernet_sha256="a" * 64, **facts)

    full = itertools.islice(draw_subnets(PAPER_SPACE, 0, False), 20)
    quantized = list(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 30))
    write(home / "models" / "pairs.json", [*full, *quantized[:20]])
    last_round = {"n_found": 10, "rmse": 2.5, "bias": 2.25}
    write(home / "models" / "pairs-searched.json", quantized[20:], last_round=last_round)
    return home / "models"


def test_a_predictor_learns_from_searched_pairs_too_and_says_how_right_it_is(pairs, call):
    status, out, err = call("predictor", "--n_steps=5")
    assert status == 0, err
    assert re.search(r"quantized, by transfer +16 +4 ", out)
    assert re.search(r"quantized, with searched pairs +24 +4 ", out)
    assert "about 2 searched subnets held out: off by" in out
    card = read_card(pairs / "acc_quant.pt")
    figures = card["figures"]["searched"]
    assert figures["n_held_out"] == 2
    assert figures["rmse"] != figures["without"]["rmse"]
    assert card["searched_sha256"] == files.sha256(pairs / "pairs-searched.json")
    _, out, _ = call("search", "--exp_name=x", "--constraint=12", "--generations=3")
    assert figures["last_round"] == {"n_found": 10, "rmse": 2.5, "bias": 2.25}
    assert "expect about 2.2 points less: the last searched subnets measured that much below" in out


def test_a_predictor_is_judged_by_precise_pairs_too(pairs, call):
    path = pairs / "pairs-precise.json"
    some = list(read_pairs(pairs / "pairs.json"))
    write_pairs(path, dict(zip([*some[:3], *some[20:25]], range(60, 68), strict=True)))
    facts = {"dataset": "digits", "image_size": 64, "supernet_sha256": "a" * 64}
    write_card(path, **facts, n_images=5000, noise_points={"quantized": 0.3})
    write_card(pairs / "pairs.json", **facts, sampling_noise_points={"quantized": 0.4})
    status, out, err = call("predictor", "--n_steps=5")
    assert status == 0, err
    _, precisely = out.split("the same, judged by subnets that were measured more precisely:\n")
    assert re.search(r"full precision +16 +3 ", precisely)
    assert re.search(r"quantized, by transfer +15 +5 ", precisely)
    # hypot(0.3, 0.4) of the 1.414 points that 63 to 67 spread by: 2 / pi * arcsin(0.935).
    assert "one of 0.50 points, as the validation images are a sample" in precisely
    assert "would have a Kendall tau of about 0.77\n" in precisely
    card = read_card(pairs / "acc_quant.pt")
    assert card["figures"]["quantized, by transfer, on precise pairs"]["n_held_out"] == 5
    assert card["precise_sha256"] == files.sha256(path)
    path = path.rename(pairs / "elsewhere.json")
    write_card(path, **facts | {"supernet_sha256": "b" * 64})
    status, out, _ = call("predictor", "--n_steps=5")
    assert "precisely" not in out
    status, _, err = call("predictor", "--n_steps=5", f"--precise={path}")
    assert status == 2
    assert "elsewhere.json was measured with supernet_sha256 bbb" in err
    path.write_text("{}")
    write_card(path, **facts)
    status, out, err = call("predictor", "--n_steps=5", f"--precise={path}")
    assert status == 0
    assert "elsewhere.json holds no pairs to judge by" in err
    assert "precisely" not in out


def test_what_cannot_be_written_is_told_before_training(pairs, call, monkeypatch):
    monkeypatch.setattr("methods.prediction.kinds.fit_all", None)
    (pairs.parent / "file").write_text("")
    for flag in ("--out_dir=file", "--study=file"):
        status, _, err = call("predictor", flag)
        assert status == 2
        assert "cannot write file/" in err


def test_without_searched_pairs_nothing_is_said_of_them(pairs, call):
    (pairs / "pairs-searched.json").unlink()
    status, out, err = call("predictor", "--n_steps=5")
    assert status == 0, err
    assert "searched" not in out
    assert "searched" not in read_card(pairs / "acc_quant.pt")["figures"]
    _, out, _ = call("search", "--exp_name=x", "--constraint=12", "--generations=3")
    assert "points (RMSE) on random subnets held out" in out


@pytest.mark.parametrize("change", [{"supernet_sha256": "b" * 64}, {"image_size": 96}, {"seed": 1}])
def test_pairs_that_were_measured_otherwise_are_not_mixed_in(pairs, call, change):
    path = pairs / "pairs-searched.json"
    write_card(
        path, **({"dataset": "digits", "image_size": 64, "supernet_sha256": "a" * 64} | change)
    )
    before = (pairs / "acc_quant.pt").read_bytes()
    status, _, err = call("predictor", "--n_steps=5")
    assert status == 2
    assert f"pairs-searched.json was measured with {next(iter(change))} " in err
    assert (pairs / "acc_quant.pt").read_bytes() == before


def test_too_few_searched_pairs_are_left_out_and_a_missing_file_is_named(pairs, call):
    path = pairs / "pairs-searched.json"
    write_pairs(path, dict(itertools.islice(read_pairs(path).items(), 2)))
    write_card(path, dataset="digits", image_size=64, supernet_sha256="a" * 64)
    status, out, err = call("predictor", "--n_steps=5")
    assert status == 0
    assert "holds 2 pairs: too few to learn from" in err
    assert "searched" not in out
    status, _, err = call("predictor", "--n_steps=5", "--searched=nowhere.json")
    assert status == 2
    assert "cannot read nowhere.json" in err


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        (None, "at 64 px\n"),
        ([1], "at 64 px\n"),
        ({"searched": None}, "at 64 px\n"),
        ({"searched": {"rmse": 0.52}}, "off by 0.5 points (RMSE) on searched subnets held out"),
        ({"searched": {"last_round": {"bias": "?"}}}, "at 64 px\n"),
        ({"searched": {"last_round": {"bias": -1.26}}}, "expect about 1.3 points more: "),
        ({"quantized, by transfer": {"rmse": float("nan")}}, "at 64 px\n"),
    ],
)
def test_whatever_a_card_says_the_search_ends_well(home, call, figures, text):
    path = home / "models" / "acc_quant.pt"
    write_card(path, dataset="digits", image_size=64, figures=figures)
    flags = ("--type=latency", "--image_size=64", "--constraint=2", "--generations=2")
    status, out, err = call("search", "--exp_name=x", *flags)
    assert status == 0, err
    assert text in out


@pytest.mark.parametrize("change", [{"image_size": {"a": 1}}, {"dataset": ["x"]}, {"dataset": ""}])
def test_a_card_that_tells_nonsense_of_its_data_tells_nothing(home, call, change):
    write_card(
        home / "models" / "acc_quant.pt", **({"dataset": "digits", "image_size": 64} | change)
    )
    status, out, err = call("search", "--exp_name=x", "--constraint=12", "--generations=2")
    assert status == 0, err
    assert "%, of unknown origin\n" in out
