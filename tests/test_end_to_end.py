"""The product as a user runs it: the three scripts, on real images, with the shipped models."""

import csv
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from apq import Experiment, cli
from apq.provenance import read_card
from imagenet_codebase.run_manager.finetune import load_trained
from utils.latency_predictor import LatencyPredictor

REPOSITORY = Path(__file__).resolve().parents[1]


def run(script, *flags, cwd):
    """Run a script of the repository in another folder; return what it printed."""
    argv = [sys.executable, str(REPOSITORY / script), *flags]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which the main job was run once: search, finetune, test."""
    folder = tmp_path_factory.mktemp("workplace")
    outputs = {
        "search": run(
            "search.py",
            "--mode=evolution",
            "--acc_predictor_dir=models",
            "--exp_name=test",
            "--constraint=12.80",
            "--type=latency",
            cwd=folder,
        ),
        "quant_aware": run(
            "quant_aware.py",
            "--exp_name=test",
            "--dataset=digits",
            "--n_epochs=2",
            "--epoch_images=480",
            "--image_size=32",
            cwd=folder,
        ),
        "test": run("test.py", "--exp_dir=exps/test", cwd=folder),
    }
    return folder, outputs


def test_the_main_job(workplace):
    folder, outputs = workplace
    experiment = Experiment.open(folder / "exps" / "test")
    assert "learned on cifar10 at 64 px" in outputs["search"]
    assert LatencyPredictor().predict([experiment.subnet()])[0] <= 12.80
    with open(experiment.checkpoint_dir / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    # Ten classes, a few steps, at a size the supernet never saw: chance is 10 %.
    assert max(float(row["val_top1"]) for row in rows) > 0.4
    top1 = float(re.search(r"top-1 ([\d.]+)%", outputs["test"]).group(1))
    assert top1 > 40
    assert "on the 360 test images of digits at 32 px" in outputs["test"]
    assert re.search(r"latency +\d+\.\d+ +ms", outputs["test"])
    assert load_trained(experiment).facts["dataset"] == "digits"
    card = read_card(experiment.best_checkpoint)
    assert card["test_top1"] == pytest.approx(top1 / 100, abs=1e-4)
    assert (card["dataset"], card["image_size"], card["n_test_images"]) == ("digits", 32, 360)


def test_weights_that_were_replaced_meanwhile_get_no_card(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace[0])
    experiment = Experiment.open("exps/test")
    card = read_card(experiment.best_checkpoint)
    found = load_trained(experiment)

    def replaced(_):
        with open(experiment.best_checkpoint, "ab") as file:
            file.write(b" ")
        return found

    monkeypatch.setattr("imagenet_codebase.run_manager.finetune.load_trained", replaced)
    before = experiment.best_checkpoint.read_bytes()
    try:
        assert cli.run("test", ["--exp_dir=exps/test"], "test.py") == 0
        out, err = capsys.readouterr()
        assert "top-1" in out
        assert "are not kept: they were replaced meanwhile" in err
        assert read_card(experiment.best_checkpoint) == {}
    finally:
        experiment.best_checkpoint.write_bytes(before)
    assert read_card(experiment.best_checkpoint) == card


def test_finetuning_again_goes_on_from_what_is_there(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace[0])
    flags = ("--exp_name=test", "--dataset=digits", "--n_epochs=2", "--epoch_images=480")
    assert cli.run("quant-aware", [*flags, "--image_size=32"], "quant_aware.py") == 0
    assert "going on after epoch 2" in capsys.readouterr().out


def test_an_energy_search(workplace, monkeypatch):
    monkeypatch.chdir(workplace[0])
    flags = ["--exp_name=green", "--constraint=9.14", "--type=energy", "--generations=50"]
    assert cli.run("search", flags, "search.py") == 0
    subnet = Experiment.open(Path("exps", "green")).subnet()
    assert LatencyPredictor("energy").predict([subnet])[0] <= 9.14


@pytest.mark.plots
def test_a_front_of_bits_for_the_found_architecture(workplace, monkeypatch):
    folder, _ = workplace
    monkeypatch.chdir(folder)
    argv = ["--exp_name=front", "--budgets=9,12.8,20", "--max_energy_mj=15", "--generations=50"]
    argv += ["--freeze=architecture", "--freeze_from=exps/test", "--exclude_bits=8"]
    assert cli.run("pareto", argv, "apq pareto") == 0
    with open(folder / "exps" / "front" / "front.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["experiment"]]
    assert rows
    accuracies = [float(row["predicted_accuracy"]) for row in rows]
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(accuracies))
    found = Experiment.open(folder / "exps" / "test").subnet()
    for row in rows:
        experiment = Experiment.open(folder / "exps" / row["experiment"])
        subnet = experiment.subnet()
        assert subnet.depths == found.depths
        for block in subnet.active_blocks:
            assert subnet.kernels[block.index] == found.kernels[block.index]
            assert subnet.dw_w_bits[block.index] in (4, 6)
        assert LatencyPredictor().predict([subnet])[0] <= float(row["max_latency_ms"])
        assert LatencyPredictor("energy").predict([subnet])[0] <= 15
    assert (folder / "exps" / "front" / "front.png").stat().st_size > 5000
