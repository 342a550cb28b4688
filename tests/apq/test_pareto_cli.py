"""`apq pareto`: a front that only rises, its files, and going on where it was stopped."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import methods.run
from apq import Experiment
from apq.space import PAPER_SPACE
from apq.subnet import smallest
from utils.accuracy_predictor import AccuracyPredictor
from utils.latency_predictor import LatencyPredictor

QUICK = "--generations=4"


def front(name: str = "front") -> list[dict[str, str]]:
    with open(Path("exps") / name / "front.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.plots
def test_a_looser_budget_is_never_worse(home, call):
    flags = ("--exp_name=front", "--from=4", "--to=16", "--points=5", QUICK)
    status, out, err = call("pareto", *flags)
    assert (status, err) == (0, "")
    rows = front()
    assert [float(row["max_latency_ms"]) for row in rows] == [4, 7, 10, 13, 16]
    accuracies = [float(row["predicted_accuracy"]) for row in rows]
    assert (np.diff(accuracies) >= -1e-6).all()
    for row in rows:
        experiment = Experiment.open(Path("exps") / row["experiment"])
        report = experiment.report()
        assert experiment.dir.name == f"front-{row['max_latency_ms'].removesuffix('.0')}"
        assert report["limits"] == {"latency": float(row["max_latency_ms"])}
        assert float(row["latency_ms"]) == report["cost"] <= float(row["max_latency_ms"])
        predicted = AccuracyPredictor.load("models").predict([experiment.subnet()])[0]
        assert predicted == pytest.approx(float(row["predicted_accuracy"]), abs=1e-6)
        assert row["experiment"] in out
    assert Path("exps/front/front.png").read_bytes().startswith(b"\x89PNG")
    assert "learned on digits at 64 px" in out


def test_a_grid_of_two_costs(home, call):
    flags = ("--exp_name=front", "--type=latency,energy", "--budgets=12,5/5,9,6", QUICK)
    assert call("pareto", *flags, "--max_size_bytes=4e6")[0] == 0
    rows = front()
    budgets = [(float(r["max_latency_ms"]), float(r["max_energy_mj"])) for r in rows]
    assert budgets == [(5, 5), (5, 6), (5, 9), (12, 5), (12, 6), (12, 9)]
    found = {b: float(r["predicted_accuracy"] or "nan") for b, r in zip(budgets, rows, strict=True)}
    assert np.isnan(found[5, 5])  # below the least energy
    for tight in budgets:
        for loose in budgets:
            if tight[0] <= loose[0] and tight[1] <= loose[1] and not np.isnan(found[tight]):
                assert found[loose] >= found[tight] - 1e-6
    assert all(float(row["size_bytes"]) <= 4e6 for row in rows if row["experiment"])
    assert rows[0]["experiment"] == ""
    assert {row["efficient"] for row in rows[1:]} <= {"yes", "no", ""}


def test_what_no_subnet_meets_is_left_out_with_a_word(home, call):
    status, _, err = call("pareto", "--exp_name=front", "--budgets=2,5", QUICK)
    assert status == 0
    assert "front-2 left out: no subnet meets the latency constraint of 2 ms" in err
    assert [row["experiment"] for row in front()] == ["", "front-5"]
    status, _, err = call("pareto", "--exp_name=none", "--budgets=1,2", QUICK)
    assert status == 2
    assert err.splitlines()[-1].startswith("apq pareto: error: no subnet meets the latency")


def test_a_front_that_cannot_be_written_is_told_before_the_search(home, call):
    Path("exps").mkdir()
    Path("exps/front").symlink_to("nowhere")
    status, _, err = call("pareto", "--exp_name=front", "--budgets=5", QUICK)
    assert status == 2
    assert err.startswith("apq pareto: error: cannot write exps/front/front.csv: ")
    assert [path.name for path in Path("exps").iterdir()] == ["front"]


def test_what_ranks_is_printed(home, call):
    for name in ("one", "two"):
        AccuracyPredictor().save(home / name / "acc_quant.pt")
    flags = ("--acc_predictor_dir=one,two", "--budgets=5,7", QUICK)
    status, out, _ = call("pareto", "--exp_name=front", *flags)
    assert status == 0
    assert "accuracy  lower bound" in out
    for row in front():
        for figure in ("predicted_accuracy", "lower_bound"):
            assert f"{float(row[figure]):.2%}" in out


def test_it_goes_on_where_it_was_stopped(home, call, monkeypatch):
    flags = ("pareto", "--exp_name=front", "--budgets=5,7,9", "--generations=20")
    assert call(*flags)[0] == 0
    whole = front()
    for path in Path("exps").glob("front*"):
        path.rename(home / path.name)
    record, calls = methods.run.SearchRecord, []

    def interrupt(**fields):
        calls.append(fields["step"])
        if len(calls) == 30:  # within the second search of 21 records each
            raise KeyboardInterrupt
        return record(**fields)

    with monkeypatch.context() as patch:
        patch.setattr(methods.run, "SearchRecord", interrupt)
        status, out, _ = call(*flags)
    assert status == 130
    assert "front-5" in out
    assert [row["experiment"] for row in front()] == ["front-5", "", ""]
    assert Experiment.open("exps/front-7").report()["interrupted"]
    written = Path("exps/front-5/search.json").stat().st_mtime_ns
    assert call(*flags)[0] == 0
    assert Path("exps/front-5/search.json").stat().st_mtime_ns == written
    # What the table needs of it is gone: then it is no point of this front.
    report = json.loads(Path("exps/front-5/search.json").read_text())
    Path("exps/front-5/search.json").write_text(
        json.dumps({k: v for k, v in report.items() if k != "predicted_accuracy"})
    )
    status, _, err = call(*flags)
    assert status == 2
    assert "experiment exps/front-5 exists" in err
    Path("exps/front-5/search.json").write_text(json.dumps(report))
    assert not Experiment.open("exps/front-7").report()["interrupted"]
    assert front()[0] == whole[0] | {"seconds": front()[0]["seconds"]}
    accuracies = [float(row["predicted_accuracy"]) for row in front()]
    assert (np.diff(accuracies) >= -1e-6).all()


def test_points_are_added_and_what_is_there_stays(home, call):
    flags = ("pareto", "--exp_name=front", QUICK)
    assert call(*flags, "--budgets=9")[0] == 0
    before = Experiment.open("exps/front-9").subnet()
    assert call(*flags, "--budgets=9,11")[0] == 0
    old, new = AccuracyPredictor.load("models").predict(
        [before, Experiment.open("exps/front-9").subnet()]
    )
    assert new >= old - 1e-6
    accuracies = [float(row["predicted_accuracy"]) for row in front()]
    assert accuracies[1] >= accuracies[0] - 1e-6
    written = {path: path.stat().st_mtime_ns for path in Path("exps").glob("front-*/arch")}
    assert call(*flags, "--budgets=9,11")[0] == 0
    assert written == {path: path.stat().st_mtime_ns for path in Path("exps").glob("front-*/arch")}


def test_a_tighter_point_takes_over_what_a_looser_one_found_for_it(home, call):
    flags = ("pareto", "--exp_name=front", "--budgets=10,10.5,11,11.5,12,40", "--population=4")
    assert call(*flags, "--generations=1")[0] == 0
    subnets = [Experiment.open(Path("exps") / row["experiment"]).subnet() for row in front()]
    accuracy = AccuracyPredictor.load("models").predict(subnets)
    latency = LatencyPredictor("latency").predict(subnets)
    for row, own in zip(front(), accuracy, strict=True):
        fits = latency <= float(row["max_latency_ms"])
        assert own >= accuracy[fits].max() - 2e-6
        history = (Path("exps") / row["experiment"] / "history.csv").read_text().splitlines()
        assert float(history[-1].split(",")[3]) == pytest.approx(own, abs=1e-6)


def test_a_finetuned_point_is_never_replaced(home, call):
    flags = ("pareto", "--exp_name=front", "--budgets=9,20")
    assert call(*flags, "--generations=1", "--population=4")[0] == 0
    tight = Experiment.open("exps/front-9")
    loose = Experiment.open("exps/front-20")
    loose.checkpoint_dir.mkdir()
    # Pretend that finetuning went on with the worst there is: the tighter point beats it.
    models = AccuracyPredictor.load("models")
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 500)
    worst = PAPER_SPACE.decode(genes[models.predict(genes).argmin()][None])[0]
    assert models.predict([worst])[0] < models.predict([tight.subnet()])[0]
    (loose.dir / "arch").write_text(worst.to_json())
    status, _, err = call(*flags, "--generations=1", "--population=4")
    assert status == 0
    assert "exps/front-20 is finetuned and stays; a better subnet is known" in err
    assert Experiment.open("exps/front-20").subnet() == worst


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--from=9", "--to=5"], "budgets cannot run from 9 to 5"),
        (["--budgets=5", "--points=3"], "--budgets names them all: leave --points out"),
        (["--type=latency,latency"], "--type=latency,latency names a cost twice"),
        (["--from=5", "--to=9", "--points=1"], "one point cannot reach --to=9 from 5: name it"),
        (["--type=latency,energy", "--from=5"], "--from is given for 1 costs and --type"),
        (["--type=latency,energy", "--budgets=5,6"], "--budgets is given for 1 costs and --type"),
        (["--budgets=5", "--max_latency_ms=9"], "--max_latency_ms bounds it too"),
        (["--budgets=5,x"], "--budgets: 'x' is not a number"),
        (["--type=latncy"], "--type: 'latncy' is none of"),
        (["--exp_name=a/b"], "'a/b' is not a plain name"),
        (["--budgets=5"], "exps/front-5 exists: choose another --exp_name"),
    ],
)
def test_mistakes_are_told_in_one_line(home, call, flags, message):
    Experiment.create("front-5", smallest().with_bits(8), 3.0, {})
    status, out, err = call("pareto", "--exp_name=front", QUICK, *flags)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not Path("exps/front").exists()


def test_another_front_is_not_replaced(home, call):
    assert call("pareto", "--exp_name=front", "--budgets=8,12", QUICK)[0] == 0
    before = Path("exps/front/front.csv").read_bytes()
    for flags in (("--type=energy", "--budgets=10,14"), ("--budgets=12",)):
        status, _, err = call("pareto", "--exp_name=front", *flags, QUICK)
        assert status == 2
        assert "front.csv is a front of other budgets" in err
    assert Path("exps/front/front.csv").read_bytes() == before
    assert call("pareto", "--exp_name=front", "--budgets=12", QUICK, "--overwrite")[0] == 0
    assert [row["max_latency_ms"] for row in front()] == ["12.0"]


def test_a_front_is_not_put_into_an_experiment(home, call):
    Experiment.create("front", smallest(PAPER_SPACE).with_bits(4), 5.0, {}, root=home / "exps")
    status, _, err = call("pareto", "--exp_name=front", "--budgets=12", QUICK)
    assert status == 2
    assert "exps/front is an experiment" in err
