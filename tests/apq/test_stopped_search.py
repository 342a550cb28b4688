"""Searches that were stopped: what goes on, and what half a search may replace."""

import csv
from pathlib import Path

import pytest

from tests.apq.helpers import QUICK, found


def test_a_stopped_search_goes_on_with_the_same_command(home, call, stopped_call):
    flags = ("search", "--exp_name=found", "--constraint=9", "--generations=40")
    status, out, _ = stopped_call(10, *flags)
    assert status == 130
    assert "the same command goes on from here" in out
    stopped = found().report()
    assert stopped["interrupted"]
    assert stopped["n_steps"] == 9
    status, _, err = call(*flags)
    assert status == 0
    assert f"going on with exps/found, stopped after step {stopped['n_steps']}" in err
    report = found().report()
    assert not report["interrupted"]
    assert report["n_steps"] == 40
    assert report["predicted_accuracy"] >= stopped["predicted_accuracy"] - 1e-6
    with open(found().dir / "history.csv") as file:
        history = list(csv.DictReader(file))
    assert [int(row["step"]) for row in history] == list(range(41))
    evaluated = [int(row["n_evaluated"]) for row in history]
    assert evaluated == sorted(evaluated)
    status, _, err = call(*flags)
    assert status == 2  # it is finished: nothing to go on with
    assert "exps/found exists" in err


def test_a_stopped_guided_search_goes_on_too(home, call, stopped_call):
    flags = ("search", "--exp_name=found", "--constraint=9", "--mode=guided")
    assert stopped_call(3, *flags, "--evaluations=4000")[0] == 130
    stopped = found().report()
    assert call(*flags, "--evaluations=4000")[0] == 0
    report = found().report()
    assert not report["interrupted"]
    assert report["n_evaluated"] >= 4000 > stopped["n_evaluated"]
    assert report["predicted_accuracy"] >= stopped["predicted_accuracy"] - 1e-6


@pytest.mark.parametrize("content", ["[]", "{}", "[1]", "3"])
def test_a_stopped_search_without_its_candidates_is_told(home, call, stopped_call, content):
    flags = ("search", "--exp_name=found", "--constraint=9", QUICK)
    stopped_call(2, *flags)
    (found().dir / "candidates.json").write_text(content)
    status, _, err = call(*flags)
    assert status == 2
    assert "candidates.json: it must hold a list of candidates, each with an 'arch'" in err
    assert err.endswith("; to start over, remove exps/found\n")


def test_only_the_same_request_goes_on(home, call, stopped_call):
    flags = ("--exp_name=found", "--generations=40")
    assert stopped_call(10, "search", *flags, "--constraint=9")[0] == 130
    for other in (["--constraint=8"], ["--constraint=9", "--exclude_bits=4"]):
        status, _, err = call("search", *flags, *other)
        assert status == 2
        assert "exps/found exists" in err
    history = found().dir / "history.csv"
    whole = history.read_text()
    for damaged in (whole.rstrip().rpartition(",")[0], whole + '"' + 200_000 * "x"):
        history.write_text(damaged)
        status, _, err = call("search", *flags, "--constraint=9")
        assert status == 2
        assert "exps/found/history.csv: it is damaged" in err
    history.write_text("step\n")
    status, _, err = call("search", *flags, "--constraint=9")
    assert status == 2
    assert "exps/found/history.csv: it is no history of a search under these limits" in err
    (found().dir / "search.json").write_text("{")  # unreadable: some other experiment
    assert "exps/found exists" in call("search", *flags, "--constraint=9")[2]
    assert call("search", *flags, "--constraint=9", "--overwrite")[0] == 0


def test_a_finetuned_half_is_not_replaced(home, call, stopped_call):
    flags = ("--exp_name=found", "--generations=40")
    assert stopped_call(10, "search", *flags, "--constraint=9")[0] == 130
    (found().dir / "checkpoint").mkdir()
    assert "exps/found exists" in call("search", *flags, "--constraint=9")[2]


def test_a_finetuned_half_beside_a_whole_one_is_not_replaced(home, call, stopped_call):
    flags = ("search", "--exp_name=found", "--constraint=9", "--overwrite", "--generations=40")
    call("search", "--exp_name=found", "--constraint=5", QUICK)
    assert stopped_call(10, *flags)[0] == 130
    found("found.stopped").checkpoint_dir.mkdir()
    status, _, err = call(*flags)
    assert status == 2
    assert "exps/found.stopped is finetuned, and stopping this search would replace it" in err
    assert found("found.stopped").checkpoint_dir.exists()


def test_limits_in_another_order_are_another_request(home, call, stopped_call):
    flags = ("search", "--exp_name=found", "--generations=40")
    assert stopped_call(10, *flags, "--constraint=12", "--max_energy_mj=14")[0] == 130
    other = ("--constraint=14", "--type=energy", "--max_latency_ms=12")
    assert "exps/found exists" in call(*flags, *other)[2]
    assert call(*flags, *other, "--overwrite")[0] == 0


def test_half_a_search_beside_a_whole_one_becomes_the_new_one(home, call, stopped_call):
    flags = ("search", "--exp_name=found", "--constraint=9", "--overwrite", "--generations=40")
    call("search", "--exp_name=found", "--constraint=5", QUICK)
    assert stopped_call(10, *flags)[0] == 130
    assert found().report()["constraint"] == 5
    assert found("found.stopped").report()["interrupted"]
    assert call(*flags)[0] == 0
    assert found().report()["constraint"] == 9
    assert found().report()["n_steps"] == 40
    assert not Path("exps/found.stopped").exists()
