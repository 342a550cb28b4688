"""`apq search` beyond the paper's flags: several limits, less to choose from, what it leaves."""

import csv
import io
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from apq import ApqError, Experiment, cli
from apq.space import BIT_FIELDS, PAPER_SPACE
from apq.subnet import Subnet
from methods import saving
from tests.apq.helpers import QUICK, found
from utils.accuracy_predictor import AccuracyPredictor
from utils.latency_predictor import LatencyPredictor


def cost(subnet: Subnet, type_: str) -> float:
    return float(LatencyPredictor(type_).predict([subnet])[0])


def active_genes(subnet: Subnet) -> np.ndarray:
    """The genes (132,) of a subnet, those without effect at 0."""
    return PAPER_SPACE.canonical(PAPER_SPACE.encode([subnet]))[0]


@pytest.mark.parametrize(
    ("prog", "finetune", "measure"),
    [
        ("search.py", "python quant_aware.py", "python test.py"),
        ("apq search", "apq quant-aware", "apq test"),
    ],
)
def test_the_next_steps_are_typed_as_this_one_was(home, capsys, prog, finetune, measure):
    assert cli.run("search", ["--exp_name=found", "--constraint=9", QUICK], prog) == 0
    out = capsys.readouterr().out
    assert f"next: {finetune} --exp_name=found, then {measure} --exp_dir=exps/found" in out


def test_accuracies_beyond_all_are_said_to_rank_only(home, call):
    model = AccuracyPredictor.load("models")
    with torch.no_grad():
        model.regressor.bias.add_(5.0)
    model.save("models/acc_quant.pt")
    status, out, _ = call("search", "--exp_name=found", "--constraint=9", QUICK)
    assert status == 0
    assert found().report()["predicted_accuracy"] > 1
    assert f"predicted accuracy {found().report()['predicted_accuracy']:.2%}, " in out
    assert "note: the predictor is not bound to 100%; above it, its figures only rank" in out


# ---- several limits ----


def test_several_limits_are_kept_at_once(home, call):
    status, out, err = call(
        "search", "--exp_name=found", "--constraint=11", "--max_energy_mj=11.5",
        "--max_bitops=15e9", "--max_size_bytes=3.2e6", QUICK,
    )  # fmt: skip
    assert (status, err) == (0, "")
    subnet, report = found().subnet(), found().report()
    maxima = {"latency": 11, "energy": 11.5, "bitops": 15e9, "size": 3.2e6}
    assert report["limits"] == maxima
    for row in report["use_of_limits"]:
        assert row["cost"] == pytest.approx(cost(subnet, row["type"]))
        assert 0 <= row["slack"] == maxima[row["type"]] - row["cost"]
        assert row["least"] < row["cost"] < row["most"]
    shares = [row["slack_share"] for row in report["use_of_limits"]]
    assert [row["tightest"] for row in report["use_of_limits"]] == [
        s == min(shares) for s in shares
    ]
    assert f"energy {cost(subnet, 'energy'):.3f} mJ of 11.5 mJ" in out
    _, out, _ = call("test", "--exp_dir=exps/found")
    assert "searched under 11 ms, 11.5 mJ, 15,000,000,000 BitOps, 3,200,000 bytes: latency" in out
    assert json.loads((found().dir / "lat").read_text()) == [cost(subnet, "latency")]


def test_a_limit_alone_needs_no_constraint(home, call):
    status, out, _ = call("search", "--exp_name=found", "--max_size_bytes=2.9e6", QUICK)
    assert status == 0
    assert "at 224 px (whole network)" in out
    assert cost(found().subnet(), "size") <= 2.9e6
    assert found().report()["type"] == "size"
    status, out, _ = call("test", "--exp_dir=exps/found")
    assert status == 0
    assert "searched under 2,900,000 bytes: size " in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no budget: give --constraint (with --type), or any of --max_latency_ms"),
        (["--type=energy", "--max_latency_ms=9"], "--type=energy says what --constraint bounds"),
        (
            ["--constraint=9", "--max_latency_ms=8"],
            "--constraint=9 and --max_latency_ms=8 both bound the latency: give one of them",
        ),
        (["--constraint=9", "--type=energy", "--max_energy_mj=9"], "both bound the energy"),
        (["--max_latency_ms=4", "--max_energy_mj=5.2", "--max_size_bytes=1e6"], "size"),
        (
            ["--constraint=3", "--max_energy_mj=5"],
            "meets the energy constraint of 5 mJ: the cheapest subnet costs 5.107084 mJ; raise the "
            "constraint to that or more; each alone can be as low as latency 2.95915 ms, energy "
            "5.107084 mJ",
        ),
        (["--constraint=9", "--freeze=bits"], "--freeze says what stays and --freeze_from"),
        (["--constraint=9", "--freeze_from=exps/x"], "--freeze says what stays"),
        (["--constraint=9", "--freeze=bits", "--freeze_from=exps/x"], "exps/x is no experiment"),
        (["--constraint=9", "--exclude_bits=5"], "no bit width 5 to exclude; there are 4, 6, 8"),
        (["--constraint=9", "--exclude_bits=4,6,8"], "every bit width is excluded"),
        (["--constraint=9", "--exclude_bits=four"], "'four' is not a whole number"),
        (["--constraint=9", "--exclude_kernels=2"], "no kernel 2 to exclude"),
        (["--constraint=9", "--max_width_ratio=3"], "nothing is left to choose from for the width"),
        (["--constraint=9", "--max_width_ratio=60"], "60 excludes nothing: take one from 4 to 6"),
        (["--constraint=3", "--exclude_bits=4"], "no subnet of what is left to choose from meets"),
        (["--constraint=9", "--risk=1"], "--risk needs several predictors and models has one"),
        (["--constraint=9", "--risk=-1"], "--risk: '-1' is not a number of 0 or more"),
        (["--constraint=9", "--patience=-1"], "--patience: -1 is too small"),
        (["--constraint=9", "--acc_predictor_dir=models,gone"], "no accuracy predictor at gone"),
        (["--constraint=9", "--acc_predictor_dir=models,models"], "names a predictor twice"),
    ],
)
def test_mistakes_are_told_in_one_line(home, call, flags, message):
    status, out, err = call("search", "--exp_name=found", QUICK, *flags)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not (home / "exps").exists()


# ---- less to choose from ----


def test_parts_are_frozen_from_an_experiment(home, call):
    call("search", "--exp_name=old", "--constraint=9", QUICK)
    old = found("old").subnet()
    flags = ("--constraint=11", "--freeze_from=exps/old", QUICK, "--seed=5")
    assert call("search", "--exp_name=a", "--freeze=architecture", *flags)[0] == 0
    assert call("search", "--exp_name=b", "--freeze=bits", *flags)[0] == 0
    assert call("search", "--exp_name=s", "--freeze=stage2,stage3", *flags)[0] == 0
    own, new = active_genes(old), active_genes(found("a").subnet())
    n_arch = PAPER_SPACE.columns[BIT_FIELDS[0]].start
    assert (new[:n_arch] == own[:n_arch]).all()
    assert (new[n_arch:] != own[n_arch:]).any()
    new = found("b").subnet()
    assert (active_genes(new)[:n_arch] != own[:n_arch]).any()
    in_both = {b.index for b in new.active_blocks} & {b.index for b in old.active_blocks}
    for name in BIT_FIELDS:
        for index in in_both:
            assert getattr(new, name)[index] == getattr(old, name)[index]
    assert found("s").subnet().depths[1:3] == old.depths[1:3]


def test_an_authors_folder_can_be_frozen_from(home, call):
    arch = PAPER_SPACE.decode(PAPER_SPACE.sample(np.random.default_rng(0), 1))[0].to_paper()
    arch[0]["d"][5] = 1  # as in their files
    (home / "theirs").mkdir()
    (home / "theirs" / "arch").write_text(json.dumps(arch))
    flags = ("--freeze=architecture", "--freeze_from=theirs", "--constraint=40")
    assert call("search", "--exp_name=found", *flags, QUICK)[0] == 0
    theirs = Subnet.from_paper(arch)
    assert active_genes(found().subnet())[:48].tolist() == active_genes(theirs)[:48].tolist()


def test_choices_are_excluded(home, call):
    flags = ("--exclude_bits=4", "--exclude_kernels=3,7", "--max_width_ratio=5")
    assert call("search", "--exp_name=found", "--constraint=20", *flags, QUICK)[0] == 0
    subnet = found().subnet()
    for block in subnet.active_blocks:
        assert subnet.kernels[block.index] == 5
        assert subnet.widths[block.index] <= 5 * block.in_channels
        assert all(getattr(subnet, name)[block.index] in (6, 8) for name in BIT_FIELDS)


# ---- what a search leaves ----


@pytest.mark.plots
def test_the_folder_tells_how_the_search_went(home, call):
    assert call("search", "--exp_name=found", "--constraint=9", "--generations=30")[0] == 0
    experiment = found()
    with open(experiment.dir / "history.csv") as file:
        history = list(csv.DictReader(file))
    assert [int(row["step"]) for row in history] == list(range(31))
    best = [float(row["best_accuracy"]) for row in history]
    assert best == sorted(best)
    assert best[-1] == experiment.report()["predicted_accuracy"]
    assert all(float(row["latency_ms"]) <= 9 for row in history)
    candidates = json.loads((experiment.dir / "candidates.json").read_text())
    subnets = [Subnet.from_paper(row["arch"]) for row in candidates]
    rows = PAPER_SPACE.canonical(PAPER_SPACE.encode(subnets))
    assert len(np.unique(rows, axis=0)) == len(candidates) == 10
    assert subnets[0] == experiment.subnet()
    accuracy = AccuracyPredictor.load("models").predict(subnets)
    np.testing.assert_allclose([r["predicted_accuracy"] for r in candidates], accuracy, atol=1e-6)
    assert (np.diff([row["predicted_accuracy"] for row in candidates]) <= 0).all()
    for type_, column in (("energy", "energy_mj"), ("size", "size_bytes")):
        np.testing.assert_allclose(
            [row[column] for row in candidates], LatencyPredictor(type_).predict(subnets)
        )
    assert (experiment.dir / "search.png").read_bytes().startswith(b"\x89PNG")


def test_layers_add_up_and_the_heaviest_are_named(home, call):
    _, out, _ = call("search", "--exp_name=found", "--constraint=9", QUICK)
    report = found().report()
    with open(found().dir / "layers.csv") as file:
        layers = list(csv.DictReader(file))
    assert sum(float(row["latency_ms"]) for row in layers) == pytest.approx(report["latency_ms"])
    assert sum(float(row["energy_share"]) for row in layers) == pytest.approx(1)
    slowest = max(layers, key=lambda row: float(row["latency_ms"]))
    top = report["most_time"][0]
    assert (str(top["block"] or ""), top["layer"]) == (slowest["block"], slowest["layer"])
    assert f"{slowest['layer']} ({float(slowest['latency_share']):.0%})" in out


def test_without_matplotlib_the_plot_is_left_out_with_a_word(home, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = call("search", "--exp_name=found", "--constraint=9", QUICK)
    assert status == 0
    assert err == "note: no plot: matplotlib is missing; pip install matplotlib adds it\n"
    assert not (found().dir / "search.png").exists()
    assert (found().dir / "history.csv").exists()


def test_patience_ends_a_search_early(home, call):
    flags = ("--constraint=2.95915", "--patience=3", "--generations=1000")
    assert call("search", "--exp_name=found", *flags)[0] == 0
    assert found().report()["n_steps"] < 1000
    assert not found().report()["interrupted"]


def test_guided_search_takes_its_own_flags(home, call):
    flags = ("search", "--constraint=9", "--mode=guided")
    assert call(*flags, "--exp_name=few", "--evaluations=600")[0] == 0
    assert found("few").report()["settings"]["evaluations"] == 600
    assert call(*flags, "--exp_name=timed", "--seconds=0.2")[0] == 0
    assert found("timed").report()["settings"]["evaluations"] == 0
    assert found("timed").report()["seconds"] >= 0.2
    status, _, err = call(*flags, "--exp_name=wrong", "--generations=9")
    assert status == 2
    assert "--generations has no effect on --mode=guided; evolution takes it" in err
    status, _, err = call("search", "--constraint=9", "--exp_name=wrong", "--evaluations=9")
    assert "--evaluations has no effect on --mode=evolution; guided takes it" in err


# ---- nothing that was found is lost ----


def test_what_was_found_outlives_a_reader_that_has_gone(home, monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # it is closed, too
    assert cli.run("search", ["--exp_name=found", "--constraint=9", QUICK], "search.py") == 0
    assert found().report()["cost"] <= 9


def test_a_full_disk_leaves_what_was_found_on_the_screen(home, call, monkeypatch):
    def full(*args, **kwargs):
        raise ApqError("cannot write exps/found: No space left on device")

    monkeypatch.setattr(Experiment, "create", full)
    status, out, err = call("search", "--exp_name=found", "--constraint=9", QUICK)
    assert status == 2
    assert "No space left" in err
    assert "latency" in out
    assert [path.name for path in Path("exps").iterdir()] == []


def test_ctrl_c_waits_until_the_experiment_is_written(home, call, monkeypatch):
    def plot(*args):
        signal.raise_signal(signal.SIGINT)
        return b"png"

    monkeypatch.setattr(saving.plots, "progress_png", plot)
    status, out, _ = call("search", "--exp_name=found", "--constraint=9", QUICK)
    assert status == 130
    assert "latency" in out
    assert (found().dir / "search.png").read_bytes() == b"png"
    assert not found().report()["interrupted"]


@pytest.mark.parametrize(
    ("flags", "held"),
    [
        (("search", "--constraint=9"), "found"),
        (("pareto", "--budgets=9"), "found"),
        (("pareto", "--budgets=9,11"), "found-11"),  # an experiment of one of its points
    ],
)
def test_one_search_at_a_time_works_on_a_name(home, call, monkeypatch, flags, held):
    monkeypatch.setattr("apq.lock.PATIENCE_S", 0.1)
    flags = (*flags, "--exp_name=found", QUICK)
    with Experiment.claim(held):
        status, _, err = call(*flags)
        assert status == 2
        assert "another process searches for an experiment of this name" in err
        assert [path.name for path in Path("exps").iterdir()] == [f".{held}.search"]
    assert call(*flags)[0] == 0
    assert not list(Path("exps").glob(".*"))


# ---- several predictors ----


# ---- stopped and gone on with ----


# ---- predictors that do not fit the request ----
