"""Tables of costs on the command line: `apq lut`, and `--lut` of other commands."""

import json
import re
from pathlib import Path

import pytest

from apq import Experiment, files
from apq.space import PAPER_SPACE
from apq.subnet import smallest
from lut import table as lut_table
from lut.accelerator import Accelerator
from lut.layers import fixed_layers
from utils.latency_predictor import LatencyPredictor

SEARCH = ("search", "--exp_name=found", "--constraint=12.80", "--generations=3")


def test_testing_with_another_table_than_the_search_is_said(home, call):
    call(*SEARCH)
    _, out, _ = call("test", "--exp_dir=exps/found")
    assert "searched under 12.8 ms: latency" in out
    assert "another table" not in out
    _, out, _ = call("test", "--exp_dir=exps/found", "--image_size=64")
    assert "the search used another table of costs" in out


def test_the_authors_table_gives_the_same_search(home, call, reference):
    path = reference / "BitFusion_new.b1.dict"
    assert call(*SEARCH, "--exp_name=ours")[0] == 0
    assert call(*SEARCH, "--exp_name=theirs", f"--lut={path}")[0] == 0
    ours, theirs = (Experiment.open(home / "exps" / name) for name in ("ours", "theirs"))
    assert ours.subnet() == theirs.subnet()


def test_costs_of_a_device_are_not_mixed_with_computed_ones(home, call):
    Experiment.create("small", smallest().with_bits(8), 1.0, {}, root="exps")
    own = lut_table.for_image_size(64)
    layers = {
        key: {name: 1000 * value for name, value in entry.items()}
        for key, entry in own.layers.items()
    }
    files.write_json(home / "device.json", layers)
    test = ("test", "--exp_dir=exps/small", "--lut=device.json")
    status, out, err = call(*test, "--layers")
    assert status == 0, err
    assert "whole network" not in out.split("note:")[0]
    told = "tells no accelerator, and nothing of first_depthwise, first_project, classifier"
    assert told in out
    assert "\n       classifier" not in out
    search = ("search", "--exp_name=x", "--constraint=5000", "--lut=device.json", "--generations=2")
    status, _, err = call(*search, "--accounting=full")
    assert status == 2
    assert "the table lacks first_depthwise, '(32, 32, 32, 3, 1, 1, 32)-W8A8'; " in err
    # With their entries the whole network is known.
    fixed = fixed_layers(PAPER_SPACE, 64)
    for name in ("first_depthwise", "first_project", "classifier"):
        layers[fixed[name].key(8, 8)] = {"latency": 2.0, "energy": 3.0}
    files.write_json(home / "device.json", layers)
    _, out, _ = call(*test)
    rows = dict(re.findall(r"^(latency.*?)  +([\d.]+)", out, re.MULTILINE))
    assert float(rows["latency, whole network"]) == pytest.approx(float(rows["latency"]) + 6)
    assert call(*search, "--accounting=full")[0] == 0


def test_costs_that_nothing_published_checks_are_told(home, call):
    Experiment.create("small", smallest().with_bits(8), 1.0, {}, root="exps")
    assert call("lut", "build", "--image_size=32", "--out=own.json")[0] == 0
    other = lut_table.build(32, accelerator=Accelerator(array_rows=32))
    lut_table.save(other, home / "other.json")
    for command in (("test", "--exp_dir=exps/small", "--lut"), ("lut", "show")):
        for name, told in (("own.json", False), ("other.json", True)):
            status, _, err = call(*command, name)
            assert status == 0, err
            note = f"note: {name} is computed for another accelerator than the authors' table"
            assert (note in err) == told


def test_lut_builds_shows_and_compares(home, call, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    status, out, _ = call("lut", "build", "--image_size=64", "--out=own.json")
    assert status == 0
    assert "own.json" in out
    status, out, _ = call("lut", "show", "own.json", "--filter=(96, 384, 4, 1", "--limit=2")
    assert status == 0
    assert "(96, 384, 4, 1, 1, 0, 1)-W4A4" in out
    assert "dram" in out
    assert "and 7 more" in out
    assert call("lut", "show", "--limit=2", "--filter", "(96, 384, 4, 1", "own.json")[1] == out
    table = json.loads(Path("own.json").read_text())
    table["layers"]["tail"]["latency"] *= 1.01
    Path("other.json").write_text(json.dumps(table))
    status, out, _ = call("lut", "diff", "own.json", "other.json")
    assert status == 0
    assert "tail" in out
    assert "9.9e-03" in out
    assert "they differ" in out
    assert call("lut", "diff", "own.json")[0] == 0
    status, _, err = call("lut", "diff")
    assert status == 2
    assert "'lut diff' takes 1 or 2 table files; got 0" in err
    status, _, err = call("lut")
    assert status == 2
    assert "TABLE" not in err  # it may be left out
    assert call("lut", "show", "--filter=(97,")[0] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("show", "t.json", "--image_size=96"),
            "--image_size has no effect on a table from",
        ),
        (("show", "--out=x.json"), "--out has no effect on 'lut show'"),
        (("diff", "t.json", "--filter=zz"), "--filter has no effect on 'lut diff'"),
        (("build", "--limit=3"), "--limit has no effect on 'lut build'"),
    ],
)
def test_a_flag_that_an_action_of_lut_does_not_take_is_refused(home, call, flags, message):
    status, _, err = call("lut", *flags)
    assert status == 2
    assert message in err


def test_a_layer_that_a_table_lacks_is_named(home, call, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    call(*SEARCH)
    call("lut", "build", "--out=table.json")
    table = json.loads(Path("table.json").read_text())
    subnet = Experiment.open("exps/found").subnet()
    row = LatencyPredictor("latency").breakdown(subnet)[5]
    key = row.layer.key(row.w_bits, row.a_bits)
    for part in ("layers", "components"):
        del table[part][key]
    Path("partial.json").write_text(json.dumps(table))
    status, out, err = call("test", "--exp_dir=exps/found", "--lut=partial.json")
    assert status == 2
    assert key in err
    assert "inf" not in out


def test_what_the_search_was_told_counts_when_it_is_tested(home, call, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    limits = ("--max_size_bytes=2e6", "--n_classes=10", "--generations=3")
    assert call("search", "--exp_name=small", *limits)[0] == 0
    report = Experiment.open(home / "exps" / "small").report()
    _, out, _ = call("test", "--exp_dir=exps/small")
    assert "10 classes" in out
    assert re.search(rf"model size +{report['size_bytes'] / 1e6:.3f} ", out)
    assert call("lut", "build", "--image_size=64", "--out=t64.json")[0] == 0
    flags = ("--exp_dir=exps/small", "--lut=t64.json")
    assert "cost at 64 px" in call("test", *flags)[1]
    status, _, err = call("test", *flags, "--image_size=224")
    assert status == 2
    assert "the table is for image size 64, not 224" in err
