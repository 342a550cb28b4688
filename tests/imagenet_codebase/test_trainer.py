"""Training runs: the schedule, what resuming restores, what a broken run leaves."""

import csv
import math
import os
import pickle
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from apq import ApqError, files
from apq.subnet import smallest
from elastic_nn.networks import MobileNet
from imagenet_codebase.run_manager.evaluate import evaluate, pick_device
from imagenet_codebase.run_manager.settings import TrainingSettings
from imagenet_codebase.run_manager.trainer import Trainer, make_optimizer
from utils import checkpoint

SETTINGS = TrainingSettings(n_epochs=3, batch_size=8, lr=0.05, seed=1)


@pytest.fixture
def start(toy_data, tiny_space, tmp_path):
    """Return a function that makes a trainer of a small quantized network in a folder."""

    def make(folder="run", settings=SETTINGS, on_step=None, **facts):
        torch.manual_seed(0)
        net = MobileNet.from_subnet(smallest(tiny_space).with_bits(8), toy_data.n_classes)

        def step(images, labels, key):
            if on_step:
                on_step(key)
            logits = net(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            return loss.detach(), (logits.argmax(1) == labels).sum()

        def validate():
            return {"val_top1": evaluate(net, toy_data.loader("val", 8)).top1}

        return Trainer(net, toy_data, settings, step, validate, tmp_path / folder, facts)

    return make


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_schedule_by_hand():
    settings = TrainingSettings(n_epochs=10, lr=2.0)
    assert settings.lr_at(0, 0, 4) == 2.0
    assert settings.lr_at(5, 0, 4) == pytest.approx(1.0)
    assert settings.lr_at(9, 3, 4) == pytest.approx(1 + math.cos(math.pi * 0.975))
    warm = replace(settings, warmup_epochs=2)
    assert [warm.lr_at(0, i, 4) for i in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert warm.lr_at(2, 0, 4) == 2.0
    assert warm.lr_at(6, 0, 4) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_epochs": 0}, "n_epochs is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": -1.0}, "lr is -1"),
        ({"momentum": float("inf")}, "momentum is inf"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ApqError, match=message):
        TrainingSettings(**change)


def test_only_filters_decay(start):
    net = start().net
    decayed, kept = make_optimizer(net, SETTINGS).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (4e-5, 0.0)
    assert all(p.dim() > 1 for p in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(net.parameters()))
    assert decayed["nesterov"]


def test_a_run_learns_and_explains_itself(start):
    trainer = start(settings=replace(SETTINGS, n_epochs=20), dataset="toy")
    assert trainer.run()
    assert trainer.history[-1]["val_top1"] > 0.9
    with open(trainer.folder / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 21)]
    assert float(rows[-1]["val_top1"]) == trainer.history[-1]["val_top1"]
    best = checkpoint.load(trainer.folder / "model_best.pth.tar")
    assert best["dataset"] == "toy"
    assert best["val_top1"] == max(row["val_top1"] for row in trainer.history)


def test_stopping_at_any_step_changes_nothing(start):
    undisturbed = start("undisturbed")
    undisturbed.run()
    for stop_at in ((0, 0), (0, 2), (1, 1), (2, 2)):

        def press_ctrl_c(key, stop_at=stop_at):
            if key[1:] == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        folder = f"stopped-{stop_at}"
        stopped = start(folder, on_step=press_ctrl_c)
        assert not stopped.run()
        assert (stopped.epoch, stopped.next_step) == (stop_at[0], stop_at[1] + 1)
        resumed = start(folder)
        assert resumed.resume()
        assert resumed.run()
        assert same(weights(resumed), weights(undisturbed))
        for row, expected in zip(resumed.history, undisturbed.history, strict=True):
            assert {k: v for k, v in row.items() if k != "seconds"} == {
                k: v for k, v in expected.items() if k != "seconds"
            }


def test_a_crash_goes_on_from_the_last_save(start):
    class Crash(Exception):
        pass

    def crash(key):
        if key[1:] == (1, 2):
            raise Crash

    settings = replace(SETTINGS, save_every_s=1e-9)  # after every step
    undisturbed = start("undisturbed", settings)
    undisturbed.run()
    with pytest.raises(Crash):
        start("crashed", settings, crash).run()
    resumed = start("crashed", settings)
    assert resumed.resume()
    assert (resumed.epoch, resumed.next_step) == (1, 2)
    resumed.run()
    assert same(weights(resumed), weights(undisturbed))


def test_a_finished_run_stays_as_it_is(start):
    first = start()
    first.run()
    again = start()
    assert again.resume()
    assert again.done
    assert again.run()
    assert same(weights(again), weights(first))


def test_other_settings_do_not_go_on_from_a_run(start):
    start(arch="a").run()
    for settings, facts, name in (
        (replace(SETTINGS, lr=0.1), {"arch": "a"}, "lr"),
        (SETTINGS, {"arch": "b"}, "arch"),
    ):
        with pytest.raises(ApqError, match=f"another {name}: .*--restart"):
            start(settings=settings, **facts).resume()
    free = replace(SETTINGS, n_workers=3, save_every_s=1.0)
    assert start(settings=free, arch="a").resume()
    trainer = start(arch="b")
    trainer.forget()
    assert not trainer.resume()


def test_a_file_that_is_no_state_of_the_run_is_named(start):
    trainer = start(arch="a")
    trainer.save()
    state = checkpoint.load(trainer.last_path)
    for change in ({"state_dict": {}}, {"optimizer": 3}, {"optimizer": {}}):
        checkpoint.save(trainer.last_path, {**state, **change})
        with pytest.raises(ApqError, match="is no state of this run"):
            start(arch="a").resume()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(start):
    def poison(key):
        if key[1:] == (1, 1):
            poison.net.first_conv.conv.weight.data[:] = float("nan")

    trainer = start(on_step=poison)
    poison.net = trainer.net
    with pytest.raises(ApqError, match=r"no longer a number in epoch 2.*lower --lr"):
        trainer.run()
    state = checkpoint.load(trainer.last_path)
    assert state["epoch"] == 1
    assert state["state_dict"]["first_conv.conv.weight"].isfinite().all()


def test_a_full_disk_keeps_the_last_checkpoint(start, monkeypatch):
    trainer = start()
    trainer.save()
    before = trainer.last_path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ApqError, match=r"cannot write .*: No space left.*nothing was changed"):
        trainer.run()
    assert trainer.last_path.read_bytes() == before


def test_accuracy_by_hand():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x.flatten(1)

    logits = torch.eye(6).view(6, 6, 1, 1)
    labels = torch.tensor([0, 1, 2, 0, 0, 0])
    # The last three rank class 0 second to sixth among equals: top-5 is settled by a tie-break
    # only if all six classes were asked for; make the order explicit instead.
    logits = logits - torch.linspace(0, 0.1, 6).view(1, 6, 1, 1)
    accuracy = evaluate(Fixed(), [(logits[:4], labels[:4]), (logits[4:], labels[4:])])
    assert accuracy.top1 == 0.5
    assert accuracy.top5 == 1.0
    assert accuracy.n_images == 6
    assert accuracy.loss == pytest.approx(F.cross_entropy(logits.flatten(1), labels).item())
    with pytest.raises(ApqError, match="no images"):
        evaluate(Fixed(), [])


def test_an_unknown_device_is_refused():
    assert pick_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(ApqError, match=f"--device {name}"):
            pick_device(name)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("content", [Evil(), {"state_dict": Evil()}])
def test_a_malicious_file_runs_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "checkpoint")
    (tmp_path / "plain").write_bytes(pickle.dumps(content))
    for name in ("checkpoint", "plain"):
        with pytest.raises(ApqError, match="refused"):
            checkpoint.load(name)
    assert not (tmp_path / "evil").exists()


def test_damaged_checkpoints_are_named(tmp_path):
    path = tmp_path / "checkpoint"
    checkpoint.save(path, {"weight": torch.randn(100)})
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-10], b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(ApqError, match="checkpoint"):
            checkpoint.load(path)
    with pytest.raises(ApqError, match="there is no file"):
        checkpoint.load(tmp_path / "gone")
    torch.save([1], path)
    with pytest.raises(ApqError, match="holds a list"):
        checkpoint.load(path)
