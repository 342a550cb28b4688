"""How commands end: the system refuses, the reader has gone, the user has had enough."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apq import cli
from apq.interrupts import deferred_interrupt

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "models/locked"), "models/locked: Permission"),
        (OSError(36, "File name too long", "a" * 300), "File name too long"),
        (MemoryError("Unable to allocate 9 TiB"), "out of memory: Unable to allocate 9 TiB"),
        (RuntimeError("CPUAllocator: can't allocate memory: 9\nat"), "can't allocate memory: 9;"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "--n_workers"),
    ],
)
def test_what_the_system_refuses_is_told_in_a_line(monkeypatch, capsys, error, message):
    def fail(args):
        raise error

    monkeypatch.setattr(__import__("apq.cli.lut", fromlist=["run"]), "run", fail)
    assert cli.run("lut", ["show"], "apq lut") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("apq lut: error: ")
    assert err.count("\n") == 1


def test_other_errors_of_torch_are_not_hidden(monkeypatch):
    def fail(args):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(__import__("apq.cli.lut", fromlist=["run"]), "run", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.run("lut", ["show"], "apq lut")


def test_interrupts_elsewhere_end_without_a_traceback(monkeypatch, capsys):
    module = __import__("apq.cli.lut", fromlist=["run"])
    monkeypatch.setattr(module, "run", lambda args: os.kill(os.getpid(), signal.SIGINT))
    assert cli.run("lut", ["show"], "apq lut") == 130
    assert capsys.readouterr().err == "apq lut: interrupted\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")  # of several processes: the first one has told it
    assert cli.run("lut", ["show"], "apq lut") == 130
    assert capsys.readouterr().err == ""


def test_a_schedulers_sigterm_ends_the_work_as_ctrl_c_does(monkeypatch, capsys):
    def work(args):
        with deferred_interrupt() as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupted  # the step goes on to its end, and what there is gets saved
            return 130

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(__import__("apq.cli.lut", fromlist=["run"]), "run", work)
    assert cli.run("lut", ["show"], "apq lut") == 130
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_is_heard_where_ctrl_c_is_ignored(monkeypatch, capsys):
    def work(args):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(__import__("apq.cli.lut", fromlist=["run"]), "run", work)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's background
    try:
        assert cli.run("lut", ["show"], "apq lut") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "apq lut: interrupted\n"


def test_one_of_several_processes_is_ended_by_sigterm_at_once(monkeypatch):
    handlers = []
    monkeypatch.setattr(
        __import__("apq.cli.lut", fromlist=["run"]),
        "run",
        lambda args: handlers.append(signal.getsignal(signal.SIGTERM)) or 0,
    )
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run("lut", ["show"], "torchrun") == 0
    assert handlers == [before]


def test_a_reader_that_has_gone_is_no_mistake_but_ends_long_work(monkeypatch, capsys):
    def fail(args):
        raise BrokenPipeError

    for command, status in (("lut", 0), ("collect", 1)):
        name = f"apq.cli.{command}"
        monkeypatch.setattr(__import__(name, fromlist=["run"]), "run", fail)
        argv = ["show"] if command == "lut" else []
        assert cli.run(command, argv, f"apq {command}") == status
        told = "apq collect: stopped, since nobody reads what it prints\n"
        assert capsys.readouterr().err == (told if status else "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_work_is_done_where_an_output_is_closed(tmp_path, closed):
    script = f"exec {sys.executable} -m apq lut build --image_size=32 --out=t.json {closed}"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=env, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.json").exists()


@pytest.mark.parametrize("argv", [["search", "--help"], ["lut", "show"]])
def test_a_closed_pipe_is_no_mistake(argv):
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "apq", *argv]
    done = subprocess.run(
        command, cwd=REPOSITORY, stdout=writing, stderr=-1, text=True, env=buffered, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_texts_are_utf_8_whatever_the_terminal_knows(home, tmp_path):
    (tmp_path / "flags.yaml").write_text("# für Müller\nlimit: 1\n", encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "import sys; from apq.cli import main; print('\\xb1') if main(sys.argv[1:]) == 0 else 0"
    argv = [sys.executable, "-c", code, "lut", "show", f"--config={tmp_path / 'flags.yaml'}"]
    env = {**os.environ, **locale, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(argv, cwd=home, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == b"?"
