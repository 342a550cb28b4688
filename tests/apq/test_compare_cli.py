"""`apq compare` and `apq correlate` from flags to files, on a small folder of images."""

import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from apq import ApqError, Experiment, Subnet
from apq.provenance import read_card
from apq.space import PAPER_SPACE
from apq.subnet import smallest
from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.files import save_supernet
from methods.prediction.draws import draw_subnets
from tests.images import save_colours
from utils.latency_predictor import LatencyPredictor

DATA = ("--dataset=folder", "--data_dir=images", "--image_size=32")
RECIPE = ("--epoch_images=16", "--batch_size=8", "--lr=0.02")
BUDGET = 0.5


@pytest.fixture
def place(home):
    """A working folder with images, an untrained supernet and the experiment `found`."""
    save_colours(home / "images", n_train=20, n_test=5, n_classes=4)
    torch.manual_seed(0)
    save_supernet(OnceForAllNet(n_classes=4), home / "models" / "supernet.pth.tar")
    subnet = smallest(PAPER_SPACE).with_bits(4)
    assert LatencyPredictor("latency", 64).predict([subnet])[0] < BUDGET
    report = {"type": "latency", "constraint": BUDGET, "image_size": 64, "accounting": "paper"}
    Experiment.create("found", subnet, 0.4, report, root=home / "exps")
    return home


def test_compare_finetunes_and_tells_how_direct_accuracy_ranks(place, call, monkeypatch):
    flags = ("--supernet=models/supernet.pth.tar", "--exp_names=found", "--n_random=3")
    status, out, err = call("compare", *flags, *RECIPE, *DATA)
    assert status == 0, err
    assert re.search(r"found +0\.5 ms", out)
    assert "of 3 random subnets: Kendall tau" in out
    (result,) = json.loads((place / "models" / "comparison.json").read_text())
    assert len(result["random"]) == 3
    rivals = [Subnet.from_json(rival["arch"]) for rival in result["random"]]
    costs = LatencyPredictor("latency", 64).predict(rivals)
    assert ((costs <= BUDGET) & (costs > 0.98 * BUDGET)).all()
    kept = {p.name: json.loads(p.read_text()) for p in Path("models/comparison.json.run").iterdir()}
    (name,) = (name for name in kept if name.endswith("-2.json"))
    assert result["random"][1] == kept[name]
    assert result["arch"] == Experiment.open(place / "exps" / "found").subnet().to_json()
    assert read_card(place / "models" / "comparison.json")["correlation"]["n_subnets"] == 3
    assert Experiment.open(place / "exps" / "found").best_checkpoint.exists()

    before = (place / "models" / "comparison.json").read_bytes()
    shutil.copytree("exps/found", "exps/other")
    status, _, err = call("compare", flags[0], "--exp_names=other", *RECIPE, *DATA)
    assert status == 2
    assert "compares other experiments (found): choose another --out" in err
    assert (place / "models" / "comparison.json").read_bytes() == before
    # What is no comparison tells of none.
    (place / "models" / "comparison.json").write_text("1")
    assert call("compare", *flags, *RECIPE, *DATA)[0] == 0
    assert (place / "models" / "comparison.json").read_bytes() == before

    # Hours of finetuning are not lost for want of a library.
    def without_scipy(outcomes):
        raise ApqError("rank correlations need scipy")

    monkeypatch.setattr("methods.validation.correlate.correlate", without_scipy)
    (place / "models" / "comparison.json").unlink()
    status, _, err = call("compare", *flags, *RECIPE, *DATA)
    assert status == 0
    assert "rank correlations need scipy" in err
    assert json.loads((place / "models" / "comparison.json").read_text()) == [result]


def test_direct_comparison_keeps_no_weights_and_correlates_nothing(place, call):
    flags = ("--supernet=models/supernet.pth.tar", "--exp_names=found", "--n_random=1", "--direct")
    status, out, err = call("compare", *flags, *DATA)
    assert status == 0, err
    assert "Kendall" not in out
    card = read_card(place / "models" / "comparison.json")
    assert card["settings"] is None
    assert card["correlation"] is None
    assert not Experiment.open(place / "exps" / "found").checkpoint_dir.exists()


def test_a_supernet_of_other_classes_is_not_measured_directly(place, call):
    save_supernet(OnceForAllNet(n_classes=7), place / "models" / "supernet.pth.tar")
    flags = ("--supernet=models/supernet.pth.tar", "--exp_names=found", "--n_random=1")
    status, _, err = call("compare", *flags, "--direct", *DATA)
    assert status == 2
    assert "knows other classes (7) than folder (4): name another with --supernet" in err
    status, _, err = call("compare", *flags, *RECIPE, "--out=tuned.json", *DATA)
    assert status == 0, err
    (result,) = json.loads((place / "tuned.json").read_text())
    assert result["searched"]["direct_top1"] is None
    assert read_card(place / "tuned.json")["correlation"] is None


@pytest.mark.parametrize("command", ["compare", "correlate"])
def test_results_of_another_run_are_kept(place, call, command):
    own = {"compare": ("--exp_names=found",), "correlate": ()}[command]
    flags = ("--supernet=models/supernet.pth.tar", "--out=kept.json", *own)
    (place / "kept.json").write_text("precious")
    status, _, err = call(command, *flags, *DATA)
    assert status == 2
    assert "kept.json exists: choose another --out, or replace it with --overwrite" in err
    assert (place / "kept.json").read_text() == "precious"


def test_correlate_writes_every_outcome(place, call):
    flags = ("--supernet=models/supernet.pth.tar", "--n_subnets=2")
    status, out, err = call("correlate", *flags, *RECIPE, *DATA)
    assert status == 0, err
    assert "of 2 random subnets: Kendall tau" in out
    figures = json.loads((place / "models" / "correlation.json").read_text())
    assert figures["n_subnets"] == 2
    subnets = [Subnet.from_json(row["arch"]) for row in figures["subnets"]]
    assert subnets == list(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 2))


def test_correlate_asks_for_scipy_before_it_finetunes(place, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    flags = ("--supernet=models/supernet.pth.tar", "--n_subnets=2")
    status, _, err = call("correlate", *flags, *RECIPE, *DATA)
    assert status == 2
    assert "rank correlations need scipy" in err
    assert not (place / "models" / "correlation.json.run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table_sha256": "another"}, "was searched with a table of costs of its own"),
        ({"limits": {"latency": 0.5, "energy": 1.0}}, "was searched under several limits"),
        ({"constraint": "slow"}, r"search.json: it is damaged: 'constraint' is 'slow'"),
    ],
)
def test_a_search_that_random_subnets_cannot_follow_is_refused(place, call, change, message):
    path = place / "exps" / "found" / "search.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    flags = ("--supernet=models/supernet.pth.tar", "--exp_names=found", "--n_random=1", "--direct")
    status, _, err = call("compare", *flags, *DATA)
    assert status == 2
    assert message in err
