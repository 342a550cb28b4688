"""Runs that are killed, and two processes that train, measure and stop as one."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apq import ApqError
from elastic_nn.networks.files import load_supernet
from imagenet_codebase.data_providers import open_dataset
from imagenet_codebase.run_manager import launch
from utils import checkpoint

SCRIPT = Path(__file__).with_name("processes")
ROOT = Path(__file__).parents[2]
STATES = ("last.pth.tar", "previous.pth.tar", "model_best.pth.tar")


def run(what, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, str(SCRIPT), what, str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder in which two processes worked as one, and one alone."""
    folder = tmp_path_factory.mktemp("pair")
    told = run("pair", folder).stderr
    # By the one that was alone: of two, the first one tells it, and the second one was pressed.
    assert told.split("\n") == [
        "",
        "stopping after this step; press Ctrl-C again to stop at once",
        "",
    ]
    return folder


@pytest.fixture(scope="module")
def found(together):
    """What the same scenarios found in one process and in two."""
    return [torch.load(together / name / "found.pt") for name in ("one", "two")]


def assert_same(value, other, tolerance=1e-4):
    if isinstance(value, dict):
        assert value.keys() == other.keys()
        for key in value:
            assert_same(value[key], other[key], tolerance)
    elif isinstance(value, list):
        assert len(value) == len(other)
        for mine, theirs in zip(value, other, strict=True):
            assert_same(mine, theirs, tolerance)
    elif isinstance(value, torch.Tensor):
        torch.testing.assert_close(value, other, atol=tolerance, rtol=tolerance)
    else:
        assert value == pytest.approx(other, abs=tolerance)


def flat(value, name=""):
    """Yield name and value of all that nested dicts and lists hold."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    if not isinstance(value, dict | list):
        yield name, value
    for key, inner in items:
        yield from flat(inner, f"{name}.{key}")


def test_twenty_kills_change_no_bit_and_lose_few_steps(tmp_path):
    run("kill", tmp_path)
    assert torch.load(tmp_path / "kills.pt")["kills"] == 20
    for name in STATES:
        killed, undisturbed = (
            dict(flat(checkpoint.load(tmp_path / folder / name)))
            for folder in ("killed", "undisturbed")
        )
        assert killed.keys() == undisturbed.keys()
        for key, value in killed.items():
            expected = undisturbed[key]
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, expected), f"{name}{key}"
            elif not key.endswith("seconds"):
                assert value == expected, f"{name}{key}"
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    done = losses = 0
    for line in lines:
        if line.startswith("from "):
            start = int(line.removeprefix("from "))
            losses += start < done
            # The step under way when the process died is not done yet.
            assert done - start <= 4
        else:
            done = int(line)
    assert losses > 3  # or nothing was put to the test
    assert not list((tmp_path / "killed").glob(".*"))


def test_two_processes_train_as_one_with_the_double_batch(found):
    one, two = found
    assert len(one["train"]["losses"]) == 6
    for name in ("losses", "rows"):
        assert_same(one["train"][name], two["train"][name])
    # A sum in another order moves a value over the edge of a quantization step now and then.
    assert_same(one["train"]["weights"], two["train"]["weights"], 2e-3)
    assert not torch.allclose(two["scaled"]["losses"], two["train"]["losses"], atol=1e-4)


def test_all_processes_stop_after_the_same_step_and_go_on(found):
    _, two = found
    assert two["stop"]["stopped"] == [(False, 1, 1)] * 2
    # Two halves of an epoch have the same figures as a whole one of one process.
    assert [row["epoch"] for row in two["stop"]["rows"]] == [1, 2]
    assert_same(two["stop"]["rows"], two["undisturbed"]["rows"], 1e-9)
    assert_same(two["stop"]["weights"], two["undisturbed"]["weights"], 0.0)


def test_all_processes_validate_the_network_that_is_kept(found):
    _, two = found
    first, second = two["undisturbed"]["means"]  # gathered over the images of each one alone
    assert torch.equal(first, second)


def test_batch_norm_sees_the_images_of_all_processes(found):
    one, two = found
    assert one["norms"]["half_is_close"]
    assert_same(one["norms"], two["norms"], 1e-5)


def test_a_supernets_step_averages_gradients(found):
    one, two = found
    assert one["sandwich"]
    assert_same(one["sandwich"], two["sandwich"], 1e-6)


def test_two_processes_finetune_and_measure_a_subnet_as_one(found):
    one, two = found
    (alone,), (outcome, same) = one["bench"]["outcome"], two["bench"]["outcome"]
    assert outcome == same
    # Of 12 images, and of 11 for the test; a sum in another order may move one of them.
    assert outcome["direct_top1"] == pytest.approx(alone["direct_top1"], abs=1 / 12 + 1e-6)
    for name, n in (("direct_top1", 12), ("val_top1", 12), ("test_top1", 11)):
        assert outcome[name] * n == pytest.approx(round(outcome[name] * n))
    assert one["bench"]["left"] == two["bench"]["left"] == ["a.json", "recipe.json"]


def test_each_image_is_seen_once_an_epoch_by_one_process(found):
    one, two = found
    (whole,) = one["seen"]["batches"]
    halves = two["seen"]["batches"]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    flat_positions = [p for batches in halves for batch in batches for p in batch]
    assert len(flat_positions) == len(set(flat_positions)) == 24  # of 26, in whole batches of 12
    assert (one["seen"]["n"], two["seen"]["n"]) == ([24], [12, 12])


def test_eleven_images_are_counted_exactly_once(found):
    for each in found:
        accuracies = each["accuracies"]
        assert accuracies["shared"]["n_images"] == 11
        assert_same(accuracies["shared"], accuracies["whole"], 1e-6)
        assert accuracies["shared"]["top1"] * 11 == pytest.approx(
            round(accuracies["shared"]["top1"] * 11)
        )


def test_a_mistake_of_the_first_process_is_told_by_all(found):
    assert found[1]["accuracies"]["told"] == ["a mistake of the first"] * 2


def test_a_mistake_that_all_meet_is_told_by_one_that_lives_to_tell_it(together):
    first, second = ((together / f"told-{number}.txt").read_text() for number in (0, 1))
    assert (first, second) == ("", "a mistake of all\nand ended well\n")


def test_a_lost_process_is_told_by_the_launcher_if_it_does_or_else_by_another(together):
    alone, launched = (
        (together / f"lost-{name}.txt").read_text() for name in ("alone", "launched")
    )
    assert (alone, launched) == (
        "another process of this run is lost; the same command goes on from the last save\n",
        f"status {launch.LOST_STATUS}\n",
    )


def test_work_is_dealt_out_and_its_results_are_told_to_all(found):
    one, two = (each["accuracies"] for each in found)
    assert one["squares"] == two["squares"] == [(i, i * i) for i in range(11)]
    assert one["worked"] == [list(range(11))]
    assert two["worked"] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which commands ran in two processes, and alone."""
    folder = tmp_path_factory.mktemp("commands")
    assert run("commands", folder).stderr == ""
    return folder


def test_two_processes_measure_a_trained_network_as_one(workplace):
    one, two = ((workplace / f"test-{n}.txt").read_text() for n in (1, 2))
    assert "on the 4 test images of images at 32 px" in one
    assert two == one


def test_two_processes_collect_the_same_pairs(workplace):
    one, two = ((workplace / f"collect-{n}.txt").read_text() for n in (1, 2))
    assert one.splitlines()[-1] == "pairs: pairs-1.json"
    assert two == one.replace("pairs-1", "pairs-2")
    one, two = (json.loads((workplace / f"pairs-{n}.json").read_text()) for n in (1, 2))
    assert len(one) == 5
    assert list(one) == list(two)
    # Batches of another process may be summed in another order: one image of 64 may differ.
    assert all(abs(one[arch] - two[arch]) <= 100 / 64 for arch in one)
    assert not list(workplace.glob("*.log"))


def test_two_processes_train_a_supernet(workplace):
    told = (workplace / "supernet-2.txt").read_text()
    assert told.count("2 processes, 2 images each: batches of 4") == 1
    assert told.splitlines()[-1] == "supernet: supernet.pth.tar"
    card = json.loads((workplace / "supernet.pth.tar.card.json").read_text())
    assert card["settings"]["sandwich_every"] == 2
    images = open_dataset("folder", workplace / "images", 32)
    assert card["train_images"] == images.train.digest()
    assert load_supernet(workplace / "supernet.pth.tar").net.n_classes == 2


def test_one_process_is_not_relaunched(monkeypatch):
    assert launch.relaunch(1, "cpu") is None
    assert launch.relaunch(None, "cpu") is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launch.relaunch(4, "auto") is None  # it is one of the four already


@pytest.fixture
def relaunched(monkeypatch):
    """The function that relaunches in as many processes as end, with these statuses."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher import api

    monkeypatch.setattr(logging, "disable", lambda _: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(launch.TELLS_LOSS, "1")  # or what is set stays set

    def relaunch(*statuses):
        def fail(*_):
            failures = {
                rank: ProcessFailure(local_rank=rank, pid=1, exitcode=status, error_file="")
                for rank, status in enumerate(statuses)
                if status
            }
            raise ChildFailedError("python", failures)

        monkeypatch.setattr(api, "elastic_launch", lambda *_: fail)
        return launch.relaunch(len(statuses), "cpu", "the same, but slower")

    return relaunch


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        ((0, -9), "process 1 of 2 was ended by signal 9"),
        ((-15, -9), "process 1 of 2 was ended by signal 9"),  # the other was ended for that
        ((launch.LOST_STATUS, -9), "process 1 of 2 was ended by signal 9"),
        ((launch.LOST_STATUS, -15), "process 1 of 2 was ended by signal 15"),
        ((launch.LOST_STATUS, launch.LOST_STATUS), "the 2 processes have lost each other"),
    ],
)
def test_a_lost_process_is_told_with_what_to_type(relaunched, statuses, told):
    with pytest.raises(ApqError, match=f"{told}; the same, but slower goes on from the last save"):
        relaunched(*statuses)


@pytest.mark.parametrize("statuses", [(2, -15), (-15, 2), (2, 2), (0, 2), (launch.LOST_STATUS, 2)])
def test_of_processes_that_fail_with_one_nothing_is_told(relaunched, statuses):
    assert relaunched(*statuses) == 2
