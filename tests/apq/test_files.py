"""Files are whole or not there, experiments included."""

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest

from apq import ApqError, Experiment, files
from apq.experiment import STOPPED
from apq.lock import training_lock
from apq.provenance import card_path, figure_of, read_card, write_card
from apq.subnet import smallest


def test_write_replaces_in_one_step(tmp_path):
    path = tmp_path / "deep" / "file"
    files.write_text(path, "old")
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_old_file(tmp_path, code):
    path = tmp_path / "file"
    files.write_text(path, "old")

    def fail(file):
        file.write(b"half")
        raise OSError(code, "No space left on device")

    with pytest.raises(ApqError, match=r"cannot write .*file: No space left.*nothing was changed"):
        files.write_atomic(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, interrupted)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_has_no_word_for_are_null(tmp_path):
    figures = {"tau": float("nan"), "rows": [(1, np.float64("inf"), 0.5), {"left": -math.inf}]}
    files.write_json(tmp_path / "file", figures)

    def fail(word):
        raise AssertionError(word)

    read = json.loads((tmp_path / "file").read_text(), parse_constant=fail)
    assert read == {"tau": None, "rows": [[1, None, 0.5], {"left": None}]}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ApqError, match="cannot write"):
        files.write_text(tmp_path / "file" / "below", "text")


def test_reading_names_the_file_and_the_mistake(tmp_path):
    with pytest.raises(ApqError, match=r"cannot read .*gone: No such file"):
        files.read_json(tmp_path / "gone")
    (tmp_path / "bad").write_text('{"a": ')
    with pytest.raises(ApqError, match=r"bad is not valid JSON: .*line 1"):
        files.read_json(tmp_path / "bad")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ApqError, match="not a text file"):
        files.read_text(tmp_path / "binary")
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(ApqError, match="not valid JSON"):
        files.read_json(tmp_path / "deep")


def make(tmp_path, **options):
    subnet = smallest().with_bits(8)
    return Experiment.create("found", subnet, 12.5, {"seed": 1}, root=tmp_path, **options)


def test_an_experiment_is_in_the_paper_form(tmp_path):
    experiment = make(tmp_path)
    subnet = smallest().with_bits(8)
    assert json.loads((tmp_path / "found" / "arch").read_text()) == subnet.to_paper()
    assert json.loads((tmp_path / "found" / "lat").read_text()) == [12.5]
    assert Experiment.open(tmp_path / "found").subnet() == subnet
    assert experiment.report() == {"seed": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["found"]


def test_an_existing_experiment_is_replaced_only_when_asked(tmp_path):
    make(tmp_path)
    (tmp_path / "found" / "checkpoint").mkdir()
    with pytest.raises(ApqError, match=r"found exists.*--overwrite"):
        make(tmp_path)
    assert (tmp_path / "found" / "checkpoint").is_dir()
    make(tmp_path, overwrite=True)
    assert not (tmp_path / "found" / "checkpoint").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["found"]


def test_a_folder_that_is_no_experiment_is_never_replaced(tmp_path):
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "front.csv").write_text("kept")
    for overwrite in (False, True):
        with pytest.raises(ApqError, match=r"found is no experiment, and replacing it would lose"):
            make(tmp_path, overwrite=overwrite)
    assert (tmp_path / "found" / "front.csv").read_text() == "kept"
    (tmp_path / "found" / "front.csv").unlink()
    make(tmp_path, overwrite=True)


def test_an_experiment_that_is_finetuned_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("apq.lock.PATIENCE_S", 0.1)
    make(tmp_path)
    states = tmp_path / "found" / "checkpoint"
    told = "another process trains in .*found/checkpoint: wait for its end"
    with training_lock(states).held():
        with pytest.raises(ApqError, match=told):  # before time is spent
            Experiment.check_free("found", tmp_path, overwrite=True)
        monkeypatch.setattr(Experiment, "check_free", lambda *_: None)
        with pytest.raises(ApqError, match=told):
            make(tmp_path, overwrite=True)
        assert states.is_dir()
        assert [p.name for p in tmp_path.iterdir()] == ["found"]
    make(tmp_path, overwrite=True)
    assert not states.exists()


def test_a_failed_replacement_leaves_the_old_experiment(tmp_path, monkeypatch):
    make(tmp_path)

    def fail(path, value, indent=1):
        raise ApqError(f"cannot write {path}: No space left on device; nothing was changed")

    monkeypatch.setattr(files, "write_json", fail)
    with pytest.raises(ApqError, match="No space left"):
        make(tmp_path, overwrite=True)
    assert Experiment.open(tmp_path / "found").report() == {"seed": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["found"]


def test_ctrl_c_between_two_renames_keeps_the_old_experiment(tmp_path, monkeypatch):
    make(tmp_path)
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, overwrite=True)
    assert Experiment.open(tmp_path / "found").report() == {"seed": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["found"]


def test_what_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "exps").write_text("a file")
    with pytest.raises(ApqError, match="cannot write"):
        Experiment.check_free("found", tmp_path / "exps")
    with pytest.raises(ApqError, match="at most 100 letters"):
        Experiment.check_free("x" * 101, tmp_path)
    Experiment.check_free("x" * 100, tmp_path)
    Experiment.check_free("x" * 100 + STOPPED, tmp_path)


def test_what_cannot_be_a_file_is_known_before_the_work(tmp_path):
    (tmp_path / "file").write_text("a file")
    for path, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "file" / "x" / "y", "Not a dir"),
    ):
        with pytest.raises(ApqError, match=f"cannot write {path}: {reason}"):
            files.check_writable(path)
    files.check_writable(tmp_path / "file")
    files.check_writable(tmp_path / "new" / "folder" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "value", [pytest.param(10**400, id="too large"), "1", None, True, float("nan")]
)
def test_a_figure_that_is_no_number_is_none(value):
    assert figure_of({"a": {"b": value, "c": 2}}, "a", "b") is None
    assert figure_of({"a": {"b": value, "c": 2}}, "a", "c") == 2


def test_a_card_speaks_of_its_own_file_alone(tmp_path):
    path = tmp_path / "v1.2.pt"
    path.write_text("weights")
    write_card(path, dataset="toys")
    assert read_card(path)["dataset"] == "toys"
    assert card_path(path) != card_path(tmp_path / "v1.3.pt")
    path.write_text("other weights")
    assert read_card(path) == {}
    path.unlink()
    assert read_card(path) == {}


@pytest.mark.parametrize(
    "name", ["a/b", "../up", "", ".hidden", "/abs", "a b", "-flag", "a/stopped"]
)
def test_a_name_with_a_path_in_it_is_refused(tmp_path, name):
    with pytest.raises(ApqError, match="not a plain name"):
        Experiment.create(name, smallest(), 1.0, {}, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_opening_what_is_no_experiment_names_those_there_are(tmp_path):
    make(tmp_path)
    with pytest.raises(ApqError, match=r"it has no file 'arch'.*there are: found"):
        Experiment.open(tmp_path / "fond")
    for number in range(8):
        Experiment.create(f"a{number}", smallest(), 1.0, {}, root=tmp_path)
    with pytest.raises(ApqError, match=r"there are: a0, .*, a7 and 1 more$"):
        Experiment.open(str(tmp_path / "fond"))
    assert Experiment(str(tmp_path / "found")).subnet()
