"""A run's figures of each epoch."""

import pytest
import torch

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
