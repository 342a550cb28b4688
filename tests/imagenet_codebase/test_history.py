"""A run's figures of each epoch, and the average that follows its steps."""

import pytest
import torch

from imagenet_codebase.run_manager.averaging import RunningAverage
from imagenet_codebase.run_manager.settings import TrainingSettings
from imagenet_codebase.run_manager.trainer import Trainer


def test_an_epochs_figures_are_of_its_own_images_alone(toy_data, tmp_path):
    net = torch.nn.Linear(1, 1)

    def step(images, labels, key):
        _, epoch, number = key
        loss = net(torch.ones(1, 1)).sum() * 0 + 10 * epoch + number
        loss.backward()
        return loss.detach(), torch.tensor(epoch + 1)

    settings = TrainingSettings(n_epochs=3, batch_size=8)  # three steps each
    trainer = Trainer(net, toy_data, settings, step, lambda: {"val_top1": 0.5}, tmp_path, {})
    assert trainer.run()
    assert [row["epoch"] for row in trainer.history] == [1, 2, 3]
    assert [row["train_loss"] for row in trainer.history] == pytest.approx([1, 11, 21])
    assert [row["train_top1"] for row in trainer.history] == pytest.approx([1 / 8, 2 / 8, 3 / 8])


def test_the_average_takes_part_in_every_step(toy_data, tmp_path):
    net = torch.nn.Linear(1, 1)
    own, average, n_steps = RunningAverage(net, 0.5), RunningAverage(net, 0.5), 0

    def step(images, labels, key):
        nonlocal n_steps
        if n_steps:
            own.follow(net)  # as the step before has left it
        n_steps += 1
        loss = net(torch.ones(1, 1)).sum()
        loss.backward()
        return loss.detach(), torch.tensor(0)

    settings = TrainingSettings(n_epochs=2, batch_size=8, lr=0.1)
    validate = lambda: {"val_top1": average.module.weight.item()}  # noqa: E731
    trainer = Trainer(net, toy_data, settings, step, validate, tmp_path, {}, average=average)
    assert trainer.run()
    own.follow(net)
    assert n_steps == average.n_steps == 6
    assert trainer.result is average.module
    torch.testing.assert_close(average.module.weight, own.module.weight)
    assert (average.module.weight - net.weight).abs().item() > 1e-3
    assert trainer.history[0]["val_top1"] != trainer.history[1]["val_top1"]
