"""The scripts with --nproc 2: as a user types them, in two processes that nobody sees."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from apq import ApqError, Experiment, cli
from apq.subnet import smallest
from imagenet_codebase.run_manager import distributed
from tests.images import save_colours

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = ("--dataset=folder", "--data_dir=images", "--image_size=32")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder with images and an experiment that is quick to finetune."""
    monkeypatch.chdir(tmp_path)
    save_colours(tmp_path / "images", n_train=40, n_test=5)
    subnet = smallest().with_bits(8)
    Experiment.create("small", subnet, 3.0, {"image_size": 64}, root=tmp_path / "exps")
    return tmp_path


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(script, *flags):
    argv = [sys.executable, str(REPOSITORY / script), *flags]
    return subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, check=False)


@contextlib.contextmanager
def running(*argv, stderr=subprocess.STDOUT):
    """Start Python with these arguments; what is left of it in the end is killed."""
    process = subprocess.Popen(
        [sys.executable, *argv],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_two_processes_stop_at_a_schedulers_sigterm_and_finish_as_one(home, capsys):
    recipe = ("--n_epochs=4", "--epoch_images=64", "--batch_size=16")
    flags = ("--exp_name=small", "--nproc=2", *DATA, *recipe)
    with running(str(REPOSITORY / "quant_aware.py"), *flags, stderr=subprocess.PIPE) as process:
        assert next((line for line in process.stdout if line.startswith("epoch   1/4")), None)
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this step" in err
    assert "stopped; the same command goes on" in out
    done = run("quant_aware.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "going on" in done.stdout
    lines = done.stdout.splitlines()
    assert sum("2 processes, 16 images each: batches of 32" in line for line in lines) == 1
    assert sum(line.startswith("epoch   4/4") for line in lines) == 1
    assert cli.run("test", ["--exp_dir=exps/small", "--data_dir=images"], "test.py") == 0
    assert "on the 10 test images of images at 32 px" in capsys.readouterr().out


def test_killed_while_two_processes_run_leaves_none_of_them_behind(home):
    recipe = (
        "--n_epochs=1000",
        "--no-compile",
        "--epoch_images=64",
        "--batch_size=16",
        "--save_every=1",
    )
    flags = ("--exp_name=small", "--nproc=2", *DATA, *recipe)
    with running(str(REPOSITORY / "quant_aware.py"), *flags) as process:
        assert next((line for line in process.stdout if line.startswith("epoch")), None)
        process.kill()
        process.wait()
        # The pipe ends when the last process that could write to it has ended.
        process.communicate(timeout=60)
    assert (home / "exps" / "small" / "checkpoint" / "last.pth.tar").is_file()


def test_torchrun_starts_all_again_when_one_is_lost_and_they_go_on(home):
    recipe = ("--n_epochs=2", "--epoch_images=64", "--batch_size=16", "--save_every=1", "--restart")
    flags = ("--exp_name=small", *DATA, *recipe)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=1")
    command = ("-m", *torchrun, str(REPOSITORY / "quant_aware.py"), *flags)
    with running(*command, stderr=subprocess.DEVNULL) as process:
        assert next((line for line in process.stdout if line.startswith("epoch   1/2")), None)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        lines = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0
    assert any(line.startswith("going on after epoch") for line in lines)
    assert sum(line.startswith("epoch   2/2") for line in lines) == 1


@pytest.mark.parametrize(
    ("restarts", "told"),
    [
        ({}, "the same command goes on from the last save"),
        (
            {"MAX_RESTARTS": "2", "RESTART_COUNT": "1"},
            "torchrun starts all again, and the run goes",
        ),
        (
            {"MAX_RESTARTS": "2", "RESTART_COUNT": "2"},
            "the same command goes on from the last save",
        ),
    ],
)
def test_what_follows_a_loss_is_told(monkeypatch, restarts, told):
    for name, value in restarts.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    with (
        pytest.raises(ApqError, match=f"another process of this run is lost; {told}"),
        distributed.loss_explained("the same command"),
    ):
        raise RuntimeError("Connection closed by peer")


def test_a_process_that_is_lost_while_all_connect_is_told_as_one_lost_later(monkeypatch):
    def fail(*_, **__):
        raise dist.DistBackendError("Gloo connectFullMesh failed: Connection closed by peer")

    monkeypatch.setattr(dist, "init_process_group", fail)
    monkeypatch.setattr(distributed, "rendezvous", lambda: (dist.HashStore(), 1, 0, 2))
    monkeypatch.setattr(distributed, "_end_with_parent", lambda: None)
    monkeypatch.setattr(distributed.signal, "signal", lambda *_: None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ApqError, match="another process of this run is lost; the same command"),
        distributed.group(torch.device("cpu")),
    ):
        pass


def test_a_mistake_is_told_once(home):
    done = run("quant_aware.py", "--exp_name=small", "--nproc=2", "--dataset=folder")
    assert done.returncode == 2
    assert done.stderr.startswith("quant_aware.py: error: the data set 'folder' needs")
    assert len(done.stderr.splitlines()) == 1
