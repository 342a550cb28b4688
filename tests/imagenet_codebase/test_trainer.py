"""Training runs: the schedule, what resuming restores, what a broken run leaves."""

import csv
import json
import math
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from apq import ApqError
from imagenet_codebase.data_providers import Shard
from imagenet_codebase.run_manager import distributed, health
from imagenet_codebase.run_manager.averaging import RunningAverage
from imagenet_codebase.run_manager.evaluate import evaluate
from imagenet_codebase.run_manager.optimizer import clip_gradients, make_optimizer
from imagenet_codebase.run_manager.settings import TrainingSettings
from imagenet_codebase.run_manager.trainer import Trainer
from tests.imagenet_codebase.helpers import (
    TRAINING,
    same_weights,
    weights,
)
from utils import checkpoint
from utils.devices import pick_device


def test_the_schedule_by_hand():
    settings = TrainingSettings(n_epochs=10, lr=2.0)
    assert settings.lr_at(0, 0, 4) == 2.0
    assert settings.lr_at(5, 0, 4) == pytest.approx(1.0)
    assert settings.lr_at(9, 3, 4) == pytest.approx(1 + math.cos(math.pi * 0.975))
    warm = replace(settings, warmup_epochs=2)
    assert [warm.lr_at(0, i, 4) for i in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert warm.lr_at(2, 0, 4) == 2.0
    assert warm.lr_at(6, 0, 4) == pytest.approx(1.0)
    # A warmup that ends inside a step does not overshoot.
    short = replace(settings, warmup_epochs=0.2)
    assert [short.lr_at(0, i, 7) for i in (0, 1)] == pytest.approx([2 / 1.4, 2.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_epochs": 0}, "n_epochs is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": -1.0}, "lr is -1"),
        ({"momentum": float("inf")}, "momentum is inf"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be a number from 0 to below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ({"n_epochs": 2, "warmup_epochs": 2.0}, "warmup_epochs is 2 and n_epochs 2"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ApqError, match=message):
        TrainingSettings(**change)


def test_the_average_by_hand():
    net = torch.nn.BatchNorm1d(1, affine=True)
    average = RunningAverage(net, decay=0.15)
    weights = []
    for value in (2.0, 3.0, 5.0):
        net.weight.data.fill_(value)
        net.running_mean.fill_(value)
        average.follow(net)
        weights.append(average.module.weight.item())
    # It starts at 1, with decays of 1/10, then 0.15 instead of 2/11 and 3/12.
    first = 0.1 * 1 + 0.9 * 2
    second = 0.15 * first + 0.85 * 3
    assert weights == pytest.approx([first, second, 0.15 * second + 0.85 * 5])
    assert average.module.running_mean.item() == 5
    again = RunningAverage(net, decay=0.15)
    again.load_state_dict(average.state_dict())
    assert again.n_steps == 3
    assert torch.equal(again.module.weight, average.module.weight)


def test_only_filters_decay(start):
    net = start().net
    decayed, kept = make_optimizer(net, TRAINING).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (4e-5, 0.0)
    assert all(p.dim() > 1 for p in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(net.parameters()))
    assert decayed["nesterov"]
    adamw = make_optimizer(net, replace(TRAINING, optimizer="adamw", momentum=0.8))
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["weight_decay"] for group in adamw.param_groups] == [4e-5, 0.0]
    assert adamw.defaults["betas"] == (0.8, 0.999)
    with pytest.raises(ApqError, match=r"no optimizer 'adam' \(did you mean 'adamw'\?\)"):
        replace(TRAINING, optimizer="adam")


def test_weights_and_ranges_are_clipped_apart(start):
    net = start().net
    for name, parameter in net.named_parameters():
        parameter.grad = torch.full_like(parameter, 100.0 if name.endswith("_range") else 1e-5)
    clip_gradients(net, 2.0)
    norms = {True: 0.0, False: 0.0}
    for name, parameter in net.named_parameters():
        norms[name.endswith("_range")] += parameter.grad.square().sum().item()
    assert norms[True] == pytest.approx(4.0, rel=1e-4)
    # Not shortened, as it would be together with the ranges'.
    assert norms[False] == pytest.approx(1e-10 * n_weights(net))


def n_weights(net):
    return sum(p.numel() for name, p in net.named_parameters() if not name.endswith("_range"))


@pytest.mark.parametrize("quantizer", ["paper", "lsq-channel"])
def test_no_step_takes_a_range_below_zero(start, quantizer):
    net = start().net
    net.set_quantizer(quantizer)
    optimizer = make_optimizer(net, replace(TRAINING, lr=10.0, momentum=0.0))
    layer = net.first_conv.conv
    layer.activation_range.grad = torch.ones_like(layer.activation_range)
    layer.weight_range.grad = torch.ones_like(layer.weight_range)
    optimizer.step()
    assert 0 < layer.activation_range.item() < 1e-4
    if quantizer == "paper":  # its weight ranges are no parameters
        return
    most = layer.weight.detach().abs().amax((1, 2, 3))
    torch.testing.assert_close(layer.weight_range.detach(), most / 8)


def test_a_run_learns_and_explains_itself(start):
    trainer = start(settings=replace(TRAINING, n_epochs=20), dataset="toy")
    assert trainer.run()
    assert trainer.history[-1]["val_top1"] > 0.9
    with open(trainer.folder / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 21)]
    assert float(rows[-1]["val_top1"]) == trainer.history[-1]["val_top1"]
    best = checkpoint.load(trainer.folder / "model_best.pth.tar")
    assert best["dataset"] == "toy"
    assert best["val_top1"] == max(row["val_top1"] for row in trainer.history)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopping_at_any_step_changes_nothing(start, optimizer):
    start = partial(start, settings=replace(TRAINING, optimizer=optimizer), decay=0.9)
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
        assert same_weights(weights(resumed), weights(undisturbed))
        assert same_weights(*(t.average.module.state_dict() for t in (resumed, undisturbed)))
        for row, expected in zip(resumed.history, undisturbed.history, strict=True):
            assert {k: v for k, v in row.items() if k != "seconds"} == {
                k: v for k, v in expected.items() if k != "seconds"
            }


def test_every_step_takes_the_scheduled_rate_and_the_clipped_gradient(start):
    settings = replace(TRAINING, warmup_epochs=1, grad_clip=0.01)
    trainer, taken = start(settings=settings), []
    step = trainer.optimizer.step

    def spy():
        squares = [p.grad.square().sum() for p in trainer.net.parameters() if p.grad is not None]
        rates = {group["lr"] for group in trainer.optimizer.param_groups}
        taken.append((float(torch.stack(squares).sum().sqrt()), rates))
        step()

    trainer.optimizer.step = spy
    assert trainer.run()
    n_steps = len(taken) // settings.n_epochs
    expected = [settings.lr_at(e, i, n_steps) for e in range(3) for i in range(n_steps)]
    assert len(set(expected)) > 2
    for (norm, rates), lr in zip(taken, expected, strict=True):
        assert list(rates) == [pytest.approx(lr)]
        assert norm < 0.01 * 2**0.5 * 1.001  # weights and ranges, each clipped on their own


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        ("weight", "loss is no longer .* the output of first_conv.conv is the first that is not"),
        (
            "gradient",
            "weights are no longer .* the gradient of blocks.1.*depth_conv.conv.weight is",
        ),
        ("explosion", "loss has grown to .* the output of classifier.linear is the largest, up to"),
    ],
)
def test_a_run_gone_astray_names_the_layer_and_keeps_the_last_good_state(start, damage, cause):
    def poison(key):
        if key[1:] == (1, 1):
            net = trainer.net
            if damage == "weight":
                net.first_conv.conv.weight.data[:] = float("nan")
            elif damage == "gradient":
                depthwise = net.blocks[1].mobile_inverted_conv.depth_conv.conv
                depthwise.weight.register_hook(lambda grad: grad * float("inf"))
            else:
                net.classifier.linear.weight.data *= 1e6

    trainer = start(settings=replace(TRAINING, save_every=1), on_step=poison)
    with pytest.raises(ApqError, match=f"the {cause}.*; .*lower --lr") as error:
        trainer.run()
    assert "in epoch 2, step 2: " in str(error.value)
    state = checkpoint.load(trainer.last_path)
    assert (state["epoch"], state["next_step"]) == (1, 1)
    assert all(t.isfinite().all() for t in state["state_dict"].values())


def test_a_sound_run_is_looked_at_every_twenty_steps_only(start, monkeypatch):
    looks = []
    real = Trainer._look
    monkeypatch.setattr(Trainer, "_look", lambda self, bar=None: looks.append(1) or real(self, bar))
    start(settings=replace(TRAINING, n_epochs=2, batch_size=2)).run()  # 12 steps an epoch
    assert len(looks) == 2  # at the end of each epoch


def test_every_look_is_at_the_loss_since_the_last_one_of_its_epoch(start, monkeypatch):
    means, is_sound = [], health.is_sound
    monkeypatch.setattr(
        health, "is_sound", lambda mean, most: means.append(mean) or is_sound(mean, most)
    )
    trainer = start()
    trainer.run()
    assert means == pytest.approx([row["train_loss"] for row in trainer.history])


@pytest.mark.parametrize(("n_processes", "n_steps"), [(1, 5), (2, 2)])
def test_the_images_of_an_epoch_are_those_of_all_processes(
    start, monkeypatch, n_processes, n_steps
):
    shard = Shard(index=0, n_processes=n_processes)
    monkeypatch.setattr(distributed, "shard", lambda: shard)
    trainer = start(settings=replace(TRAINING, batch_size=4, epoch_images=20))
    assert trainer.batches()[1] == n_steps


def test_ctrl_c_during_the_last_validation_is_heard(start):
    trainer = start()
    validate = trainer.validate

    def interrupted():
        if trainer.epoch == TRAINING.n_epochs - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return validate()

    trainer.validate = interrupted
    assert not trainer.run()
    assert trainer.done
    again = start()
    assert again.resume()
    assert again.run()


def test_seconds_add_up_over_sittings(start, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock) / 100)

    def interrupt(key):
        if key[1:] == (0, 1):
            os.kill(os.getpid(), signal.SIGINT)

    first = start(on_step=interrupt)
    assert not first.run()
    spent = first.states.load()["seconds"]
    assert spent > 0
    second = start()
    assert second.resume()
    assert second._seconds >= spent
    assert second.run()
    assert second.history[0]["seconds"] > spent


@pytest.mark.plots
def test_the_folder_explains_the_run(start, monkeypatch):
    trainer = start(arch="a")
    trainer.run()
    run = json.loads((trainer.folder / "run.json").read_text())
    assert run["seed"] == 1
    assert run["settings"]["lr"] == 0.05
    assert {"command", "versions", "git_commit", "arch", "device"} <= set(run)
    with open(trainer.folder / "ranges.csv") as file:
        ranges = {row["layer"]: row for row in csv.DictReader(file)}
    layers = trainer.net.quantized_layers()
    assert ranges.keys() == layers.keys()
    assert ranges["first_conv.conv"]["activation_range"] == ""  # the image is not quantized
    best = checkpoint.load(trainer.best.path)["state_dict"]
    for name, (layer, _) in layers.items():
        if layer.a_bits:
            own = best[f"{name}.activation_range"].item()
            assert float(ranges[name]["activation_range"]) == own
        most = best[f"{name}.weight"].abs().max().item()  # nothing has calibrated the filters
        assert float(ranges[name]["weight_range_max"]) == most


def test_ranges_are_those_of_the_best_epoch(start):
    figures = iter([0.9, 0.1, 0.2])
    trainer = start()
    trainer.validate = lambda: {"val_top1": next(figures)}
    trainer.run()
    with open(trainer.folder / "ranges.csv") as file:
        (row,) = (r for r in csv.DictReader(file) if r["layer"] == "classifier.linear")
    best = checkpoint.load(trainer.best.path)["state_dict"]
    told, last = float(row["weight_range_max"]), trainer.net.classifier.linear.weight
    assert told == best["classifier.linear.weight"].abs().max().item()
    assert told != last.abs().max().item()
    for name in ("top1.png", "loss.png"):
        assert (trainer.folder / name).read_bytes().startswith(b"\x89PNG")


def test_scalars_are_handed_to_tensorboard(start, monkeypatch):
    class Writer:
        """Stands in for the optional package."""

        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, epoch):
            scalars[name, epoch] = value

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    written, scalars = [], {}
    package = SimpleNamespace(__spec__=ModuleSpec("tensorboard", None))
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    bridge = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", bridge)
    trainer = start()
    trainer.run()
    assert written == [(str(trainer.folder / "tensorboard"), 1), "closed"]
    for row in trainer.history:
        for name in row.keys() - {"epoch"}:
            assert scalars.pop((name, row["epoch"])) == row[name]
    assert not scalars


def test_accuracy_by_hand():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x.flatten(1)

    logits = torch.eye(6).view(6, 6, 1, 1)
    labels = torch.tensor([0, 1, 2, 1, 0, 0])
    # Of the rest, later classes rank higher: the fourth label is fifth, the last two are sixth.
    logits = logits + torch.linspace(0, 0.1, 6).view(1, 6, 1, 1)
    accuracy = evaluate(Fixed(), [(logits[:4], labels[:4]), (logits[4:], labels[4:])])
    assert accuracy.top1 == 0.5
    assert accuracy.top5 == pytest.approx(4 / 6)
    assert accuracy.n_images == 6
    assert accuracy.loss == pytest.approx(F.cross_entropy(logits.flatten(1), labels).item())
    with pytest.raises(ApqError, match="no images"):
        evaluate(Fixed(), [])


def test_an_unknown_device_is_refused():
    assert pick_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(ApqError, match=f"--device {name}"):
            pick_device(name)
