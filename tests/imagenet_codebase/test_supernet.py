"""A supernet's training: what each phase runs, what it begins with, and what is left at the end."""

import copy

import pytest
import torch

from apq.subnet import largest
from elastic_nn.networks import OnceForAllNet
from elastic_nn.training import SandwichSettings, calibrate_activations
from imagenet_codebase.run_manager.measuring import bn_batches
from imagenet_codebase.run_manager.settings import SupernetSettings, TrainingSettings
from imagenet_codebase.run_manager.supernet import phases, train_supernet

CPU = torch.device("cpu")


def test_each_phase_runs_what_the_settings_say_of_it():
    first, second, third = phases(
        SupernetSettings(
            largest_epochs=2,
            elastic_epochs=10,
            quantized_epochs=4,
            lr=0.3,
            quantized_lr=0.1,
            quantized_share=0.4,
            n_random=3,
            sandwich_every=5,
            small_image_size=16,
            small_share=0.3,
            training=TrainingSettings(label_smoothing=0.2, batch_size=7),
        )
    )
    recipes = [phase.recipe for phase in (first, second, third)]
    assert [(recipe.n_epochs, recipe.lr) for recipe in recipes] == [(2, 0.3), (10, 0.3), (4, 0.1)]
    assert {recipe.batch_size for recipe in recipes} == {7}
    common = {"n_random": 3, "sandwich_every": 5, "label_smoothing": 0.2}
    small = {"small_image_size": 16}
    assert first.sandwich == SandwichSettings(**common, **small, elastic=False, small_epochs=1)
    assert second.sandwich == SandwichSettings(**common, **small, small_epochs=3)
    assert third.sandwich == SandwichSettings(**common, quantized_share=0.4)


def test_without_small_images_the_first_phase_notes_none():
    first, *_ = phases(SupernetSettings())
    assert first.sandwich.small_epochs == 0  # as runs did that began when it never had any


@pytest.fixture
def train(tiny_space, toy_data, tmp_path):
    """The function that trains a supernet through one epoch of one phase."""

    def run(phase, lr=0.01):
        epochs = dict.fromkeys(("largest_epochs", "elastic_epochs", "quantized_epochs"), 0)
        epochs[f"{phase}_epochs"] = 1
        training = TrainingSettings(batch_size=12, seed=3)
        rates = {"lr": lr, "quantized_lr": lr}
        settings = SupernetSettings(**epochs, **rates, training=training, n_bn_images=16)
        net, _ = train_supernet(toy_data, settings, tmp_path, CPU, tiny_space)
        return net

    return run


def test_what_is_left_has_the_statistics_of_the_largest(train, tiny_space, toy_data):
    net = train("elastic")
    assert net.subnet == largest(tiny_space)
    again = copy.deepcopy(net)
    again.reset_bn_statistics(bn_batches(toy_data, 16, 12, CPU))
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, msg=name)


def test_before_sizes_differ_the_channels_that_matter_come_first(train):
    net = train("elastic", lr=1e-12)  # next to no training
    for block in list(net.blocks)[1:]:
        norms = block.mobile_inverted_conv.point_linear.conv.weight.abs().sum((0, 2, 3))
        assert (norms.diff() <= 1e-6).all()


def test_before_bits_differ_activation_ranges_are_calibrated(train, tiny_space, toy_data):
    net = train("quantized", lr=1e-12)
    torch.manual_seed(3)
    wanted = OnceForAllNet(tiny_space, toy_data.n_classes).to(memory_format=torch.channels_last)
    calibrate_activations(wanted, bn_batches(toy_data, 16, 12, CPU))
    layers = wanted.quantized_layers()
    assert len({layer.activation_range.item() for layer, _ in layers.values()}) > 5
    for name, (layer, _) in net.quantized_layers().items():
        torch.testing.assert_close(layer.activation_range, layers[name][0].activation_range)
