"""What the repository ships: models and experiments that are complete and belong together."""

import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import yaml

from apq import Experiment, cli, files
from apq.provenance import read_card
from imagenet_codebase.run_manager.finetune import load_trained
from imagenet_codebase.run_manager.recipes import RECIPES, FinetuneSettings
from methods.prediction.pairs import read_pairs, split_pairs
from utils import checkpoint
from utils.latency_predictor import LatencyPredictor

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = REPOSITORY / "models"
SHIPPED = {"cifar10": MODELS, "digits": MODELS / "digits"}
RECIPE = yaml.safe_load((REPOSITORY / "docs/recipes/cifar10-comparison.yaml").read_text())
EXPERIMENTS = [REPOSITORY / "exps" / name for name in RECIPE["exp_names"].split(",")]


@pytest.mark.parametrize("name", ["supernet.pth.tar", "pairs.json", "acc.pt", "acc_quant.pt"])
@pytest.mark.parametrize("dataset", SHIPPED)
def test_every_shipped_model_has_a_true_card(dataset, name):
    path = SHIPPED[dataset] / name
    card = read_card(path)
    assert card["sha256"] == files.sha256(path)
    assert (card["dataset"], card["image_size"]) == (dataset, 64)
    assert {"seed", "command", "date"} <= set(card)


@pytest.mark.parametrize("folder", SHIPPED.values(), ids=SHIPPED)
def test_the_shipped_pairs_and_predictors_belong_together(folder):
    full, quantized = split_pairs(read_pairs(folder / "pairs.json"))
    assert len(full) >= 100
    assert len(quantized) >= 200
    pairs_hash = files.sha256(folder / "pairs.json")
    for name in ("acc.pt", "acc_quant.pt"):
        card = read_card(folder / name)
        assert card["pairs_sha256"] == pairs_hash
        assert card["figures"]["quantized, by transfer"]["n_held_out"] > 0
    supernet_hash = files.sha256(folder / "supernet.pth.tar")
    assert read_card(folder / "pairs.json")["supernet_sha256"] == supernet_hash


def test_the_shipped_searched_pairs_belong_to_the_rest():
    path = MODELS / "pairs-searched.json"
    assert len(read_pairs(path)) >= 100
    assert read_card(MODELS / "acc_quant.pt")["searched_sha256"] == files.sha256(path)
    supernet_hash = files.sha256(MODELS / "supernet.pth.tar")
    assert read_card(path)["supernet_sha256"] == supernet_hash


@pytest.mark.parametrize("folder", SHIPPED.values(), ids=SHIPPED)
def test_shipped_models_hold_no_traces_of_a_machine(folder):
    for path in folder.glob("*.json"):  # the cards, too
        assert_no_machine(path)
    assert set(checkpoint.load(folder / "supernet.pth.tar")) == {"state_dict"}


def assert_no_machine(path):
    text = path.read_text()
    for trace in ("/home", "/tmp", "/root"):
        assert trace not in text, path


def test_an_experiment_is_shipped_for_each_budget_of_the_comparison():
    contests = json.loads((MODELS / "comparison.json").read_text())
    for path, contest in zip(EXPERIMENTS, contests, strict=True):
        experiment = Experiment.open(path)
        report = experiment.report()
        assert contest["experiment"] == path.name
        assert contest["arch"] == experiment.subnet().to_json()
        assert (report["type"], report["constraint"]) == (contest["type"], contest["constraint"])
        assert load_trained(experiment).facts["val_top1"] == contest["searched"]["val_top1"]
        assert len(contest["random"]) == RECIPE["n_random"]
    card = read_card(MODELS / "comparison.json")
    assert card["supernet_sha256"] == files.sha256(MODELS / "supernet.pth.tar")
    of_flags = {f.name: RECIPE[f.name] for f in fields(FinetuneSettings) if f.name in RECIPE}
    settings = FinetuneSettings(**{**RECIPES[RECIPE["recipe"]], "n_epochs": 1, **of_flags})
    assert card["settings"] == asdict(settings)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_a_shipped_experiment_keeps_its_budget_and_belongs_to_the_models(path):
    experiment = Experiment.open(path)
    subnet, report = experiment.subnet(), experiment.report()
    cost = LatencyPredictor(report["type"], 64, accounting="paper").predict([subnet])[0]
    assert cost <= report["constraint"]
    assert report["cost"] == pytest.approx(cost)
    assert report["predictor"]["sha256"] == files.sha256(MODELS / "acc_quant.pt")
    trained = load_trained(experiment)
    assert (trained.facts["dataset"], trained.facts["image_size"]) == ("cifar10", 64)
    assert trained.facts["supernet_sha256"] == files.sha256(MODELS / "supernet.pth.tar")
    assert trained.facts["arch"] == subnet.to_json()
    for pattern in ("*.json", "*.csv", "checkpoint/run.json", "checkpoint/*.csv"):
        for text in experiment.dir.glob(pattern):
            assert_no_machine(text)


def test_the_readmes_table_is_that_of_the_files():
    text = (REPOSITORY / "README.md").read_text()
    rows = re.findall(r"^\| \[(cifar10-\S+)\]\(exps/\S+ \| (.*) \|$", text, re.MULTILINE)
    contests = json.loads((MODELS / "comparison.json").read_text())
    assert [name for name, _ in rows] == [contest["experiment"] for contest in contests]
    for (name, cells), contest in zip(rows, contests, strict=True):
        experiment = Experiment.open(REPOSITORY / "exps" / name)
        report, card = experiment.report(), read_card(experiment.best_checkpoint)
        assert (report["n_classes"], card["n_test_images"]) == (10, 10_000)
        assert card["test_top1"] == pytest.approx(contest["searched"]["test_top1"])
        rivals = 100 * np.array([rival["test_top1"] for rival in contest["random"]])
        assert cells.split(" | ") == [
            f"{report['constraint']:.1f} {report['unit']}",
            f"{report['latency_ms']:.3f}",
            f"{report['energy_mj']:.3f}",
            f"{report['bitops'] / 1e9:.2f}",
            f"{report['size_bytes'] / 1e6:.2f}",
            f"**{100 * card['test_top1']:.2f}**",
            f"{rivals.mean():.2f} ± {rivals.std():.2f}",
            f"{rivals.max():.2f}",
        ]


def test_a_shipped_experiment_is_tested_without_its_images_as_far_as_it_goes(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where there are none
    assert cli.run("test", [f"--exp_dir={EXPERIMENTS[0]}"], "test.py") == 0
    out = capsys.readouterr().out
    assert re.search(r"latency +\d+\.\d+ +ms", out)
    assert "10 classes" in out  # as the weights say; without any it would be 1000
    assert "no accuracy:" in out


def test_the_precise_pairs_are_of_subnets_and_weights_that_the_others_are_of():
    path = MODELS / "pairs-precise.json"
    assert read_card(MODELS / "acc_quant.pt")["precise_sha256"] == files.sha256(path)
    card, of_pairs = read_card(path), read_card(MODELS / "pairs.json")
    assert card["sha256"] == files.sha256(path)
    assert card["supernet_sha256"] == of_pairs["supernet_sha256"]
    assert card["n_images"] > of_pairs["n_images"]
    assert card["n_bn_images"] > of_pairs["n_bn_images"]
    assert set(read_pairs(path)) <= set(read_pairs(MODELS / "pairs.json"))
