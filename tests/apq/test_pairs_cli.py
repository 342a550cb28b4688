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
from methods.prediction.collect import draw_subnets
from methods.prediction.pairs import read_pairs, write_pairs


def test_collect_measures_random_and_searched_subnets(home, call):
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
            "--n_noise=0",
            f"--n_searched={n_searched}",
        )

    status, out, err = collect(1)
    assert status == 0, err
    assert "pairs: models/pairs.json" in out
    assert len(read_pairs(home / "models" / "pairs.json")) == 2
    path = home / "models" / "pairs-searched.json"
    (first,) = read_pairs(path)
    # More of them are found with the predictor of that time.
    assert collect(2)[0] == 0
    assert next(iter(read_pairs(path))) == first
    assert len(read_pairs(path)) == 2
    for name in ("supernet_sha256", "n_bn_images", "n_images", "dataset"):
        assert read_card(path)[name] == read_card(home / "models" / "pairs.json")[name]


@pytest.fixture
def pairs(home):
    """Files of random and of searched pairs, whose accuracies grow with every gene."""

    def write(name, subnets):
        genes = PAPER_SPACE.canonical(PAPER_SPACE.encode(subnets))
        write_pairs(name, dict(zip(subnets, 70 + genes.sum(1) / 40, strict=True)))
        write_card(name, dataset="digits", image_size=64, supernet_sha256="a" * 64)

    full = itertools.islice(draw_subnets(PAPER_SPACE, 0, False), 20)
    quantized = list(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 30))
    write(home / "models" / "pairs.json", [*full, *quantized[:20]])
    write(home / "models" / "pairs-searched.json", quantized[20:])
    return home / "models"


def test_a_predictor_learns_from_searched_pairs_too_and_says_how_right_it_is(pairs, call):
    status, out, err = call("predictor", "--n_epochs=2")
    assert status == 0, err
    assert re.search(r"quantized, by transfer +16 +4 ", out)
    assert re.search(r"quantized, with searched pairs +24 +4 ", out)
    assert "about 2 searched subnets held out: off by" in out
    card = read_card(pairs / "acc_quant.pt")
    figures = card["figures"]["searched"]
    assert figures["n_held_out"] == 2
    assert figures["rmse"] != figures["without"]["rmse"]
    assert card["searched_sha256"] == files.sha256(pairs / "pairs-searched.json")
    _, out, _ = call("search", "--exp_name=x", "--constraint=12", "--type=latency")
    assert f"off by {figures['rmse']:.1f} points on searched subnets held out" in out


def test_without_searched_pairs_nothing_is_said_of_them(pairs, call):
    (pairs / "pairs-searched.json").unlink()
    status, out, err = call("predictor", "--n_epochs=2")
    assert status == 0, err
    assert "searched" not in out
    assert "searched" not in read_card(pairs / "acc_quant.pt")["figures"]
    _, out, _ = call("search", "--exp_name=x", "--constraint=12", "--type=latency")
    assert "points on random subnets held out" in out


def test_pairs_of_two_supernets_are_not_mixed(pairs, call):
    path = pairs / "pairs-searched.json"
    write_card(path, dataset="digits", image_size=64, supernet_sha256="b" * 64)
    before = (pairs / "acc_quant.pt").read_bytes()
    status, _, err = call("predictor", "--n_epochs=2")
    assert status == 2
    assert "were not measured with the same supernet" in err
    assert (pairs / "acc_quant.pt").read_bytes() == before
