"""The scripts with --nproc 2: as a user types them, in two processes that nobody sees."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from apq import Experiment, cli
from apq.subnet import smallest
from elastic_nn.networks.files import load_supernet

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder with an experiment that is quick to finetune."""
    monkeypatch.chdir(tmp_path)
    subnet = smallest().with_bits(8)
    Experiment.create("small", subnet, 3.0, {"image_size": 64}, root=tmp_path / "exps")
    return tmp_path


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(script, *flags):
    argv = [sys.executable, str(REPOSITORY / script), *flags]
    return subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def test_two_processes_finetune_and_test_as_one(home, capsys):
    recipe = ("--n_epochs=1", "--epoch_images=64", "--batch_size=16")
    data = ("--dataset=digits", "--image_size=32")
    done = run("quant_aware.py", "--exp_name=small", "--nproc=2", *recipe, *data)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert sum("2 processes, 16 images each: batches of 32" in line for line in lines) == 1
    assert sum(line.startswith("epoch   1/1") for line in lines) == 1
    two = run("test.py", "--exp_dir=exps/small", "--nproc=2")
    assert (two.returncode, two.stderr) == (0, "")
    assert "on the 360 test images of digits at 32 px" in two.stdout
    assert cli.run("test", ["--exp_dir=exps/small"], "test.py") == 0
    assert capsys.readouterr().out == two.stdout


def test_two_processes_collect_the_same_pairs(home, capsys):
    what = ("--n_full=2", "--n_quantized=3", "--n_bn_images=64", "--n_val_images=64")
    flags = (*what, "--n_noise=2", "--image_size=32")
    done = run("apq/__main__.py", "collect", *flags, "--nproc=2", "--out=pairs2.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "pairs: pairs2.json"
    assert cli.run("collect", [*flags, "--out=pairs1.json"], "apq collect") == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [line.replace("pairs2", "pairs1") for line in done.stdout.splitlines()]
    one, two = (json.loads((home / f"pairs{n}.json").read_text()) for n in (1, 2))
    assert list(one) == list(two)
    # Batches of another process may be summed in another order: one image of 64 may differ.
    assert all(abs(one[arch] - two[arch]) <= 100 / 64 for arch in one)
    assert not list(home.glob("*.log"))


def test_two_processes_train_a_supernet(home):
    for name, n in (("train", 6), ("test", 2)):
        for c in "ab":
            folder = home / "images" / name / c
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (32, 32), (20 * i, 9, 200 * (c == "a"))).save(folder / f"{i}.png")
    epochs = ("--largest_epochs=0", "--elastic_epochs=1", "--quantized_epochs=0")
    recipe = (*epochs, "--batch_size=2", "--n_random=1", "--sandwich_every=2", "--nproc=2")
    data = ("--dataset=folder", "--data_dir=images", "--image_size=32")
    done = run("apq/__main__.py", "supernet", *recipe, *data, "--out=s.pth.tar")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 processes, 2 images each: batches of 4" in done.stdout
    assert done.stdout.splitlines()[-1] == "supernet: s.pth.tar"
    card = json.loads((home / "s.pth.tar.card.json").read_text())
    assert card["settings"]["sandwich_every"] == 2
    assert load_supernet("s.pth.tar").net.n_classes == 2


def test_killed_while_two_processes_run_leaves_none_of_them_behind(home):
    recipe = ("--n_epochs=1000", "--epoch_images=64", "--batch_size=16", "--save_every=1")
    flags = ("--exp_name=small", "--nproc=2", "--dataset=digits", "--image_size=32", *recipe)
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "quant_aware.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    try:
        seen = next((line for line in process.stdout if line.startswith("epoch")), None)
        assert seen
        process.kill()
        process.wait()
        # The pipe ends when the last process that could write to it has ended.
        process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (home / "exps" / "small" / "checkpoint" / "last.pth.tar").is_file()


def test_a_mistake_is_told_once(home):
    done = run("quant_aware.py", "--exp_name=small", "--nproc=2", "--dataset=folder")
    assert done.returncode == 2
    assert done.stderr.startswith("quant_aware.py: error: the data set 'folder' needs")
    assert len(done.stderr.splitlines()) == 1
