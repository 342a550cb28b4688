"""A network that is finetuned: its batch statistics at the start, and those that are kept."""

import copy

import pytest
import torch

from apq import Experiment
from apq.subnet import smallest
from imagenet_codebase.run_manager import finetune as module
from imagenet_codebase.run_manager.evaluate import evaluate
from imagenet_codebase.run_manager.finetune import finetune, load_trained, starting_network
from imagenet_codebase.run_manager.measuring import bn_batches
from imagenet_codebase.run_manager.recipes import FinetuneSettings
from tests.imagenet_codebase.helpers import CPU, statistics


def assert_statistics_are_of(net, batches):
    again = copy.deepcopy(net)
    again.reset_bn_statistics(batches)
    for name, wanted in again.named_buffers():
        if "running" in name:
            torch.testing.assert_close(net.get_buffer(name), wanted, msg=name)


def test_a_calibrated_network_starts_with_statistics_of_rounded_values(supernet_file, toy_data):
    batches = statistics(toy_data)
    subnet = smallest().with_bits(4)
    net = starting_network(subnet, supernet_file, toy_data, batches, CPU, "lsq")
    assert_statistics_are_of(net, batches)


def test_statistics_of_what_is_kept_are_taken_anew_where_asked_for(
    supernet_file, toy_data, tmp_path
):
    subnet = smallest().with_bits(8)
    experiment = Experiment.create("small", subnet, 3.0, {"image_size": 64}, root=tmp_path)
    settings = FinetuneSettings(n_epochs=1, batch_size=12, reset_bn=True)
    finetune(experiment, supernet_file, toy_data, settings, CPU)
    batches = bn_batches(toy_data, module.N_BN_IMAGES, module.BN_BATCH_SIZE, CPU)
    assert_statistics_are_of(load_trained(experiment).net, batches)


def test_figures_are_of_the_average_where_it_is_what_is_kept(supernet_file, toy_data, tmp_path):
    # In full precision, where the folded network measures the same to rounding.
    experiment = Experiment.create("small", smallest(), 3.0, {"image_size": 64}, root=tmp_path)
    settings = FinetuneSettings(n_epochs=1, batch_size=12, ema=0.9, lr=0.01)
    result = finetune(experiment, supernet_file, toy_data, settings, CPU)
    kept = evaluate(load_trained(experiment).net, toy_data.loader("val", 12))
    assert result.history[0]["val_loss"] == pytest.approx(kept.loss, rel=1e-4)
