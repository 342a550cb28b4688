"""The folded form: it computes what the network does."""

import numpy as np
import pytest
import torch

from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.folded import fold


@pytest.fixture
def net(tiny_space, randomize):
    torch.manual_seed(0)
    net = randomize(OnceForAllNet(tiny_space, n_classes=5))
    net.classifier.linear.weight.data *= 100  # outputs that tell networks apart
    # Ranges of their own, below and above the ceiling of ReLU6.
    for i, (_, layer, _) in enumerate(net.conv_layers()):
        layer.conv.activation_range.data.fill_((1.5, 3.0, 7.0)[i % 3])
    return net


@pytest.fixture
def images():
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_full_precision_agrees_to_rounding(net, images):
    for subnet in net.space.decode(net.space.sample(np.random.default_rng(0), 4)):
        net.activate(subnet.full_precision())
        torch.testing.assert_close(fold(net)(images), net(images), atol=1e-4, rtol=1e-4)


def test_quantized_agrees_in_double_precision(net, images):
    # In double precision next to no value lies between two levels within rounding.
    net, images = net.double(), images.double()
    for subnet in net.space.decode(net.space.sample(np.random.default_rng(1), 6)):
        net.activate(subnet)
        wanted = net(images)
        torch.testing.assert_close(fold(net)(images), wanted, atol=1e-9, rtol=1e-9)
        net.activate(subnet, quantize=False)
        assert (net(images) - wanted).abs().max() > 1e-2  # quantization does something here


def test_a_range_above_relu6_changes_nothing_of_it(net, images):
    for layer in (layer for _, layer, _ in net.conv_layers()):
        layer.conv.activation_range.data.fill_(9.0)
        layer.bn.bias.data += 5  # many values are above 6
    net, images = net.double(), images.double()
    net.activate(net.space.decode(net.space.sample(np.random.default_rng(1), 1))[0])
    torch.testing.assert_close(fold(net)(images), net(images), atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_a_full_grid_agrees_in_double_precision(net, images):
    subnet = net.space.decode(net.space.sample(np.random.default_rng(1), 1))[0].with_bits(4)
    net.activate(subnet)
    compact, images = net.extract().double(), images.double()
    outputs = []
    for name in ("lsq-channel", "lsq-full"):
        compact.set_quantizer(name)
        outputs.append(compact(images))
        torch.testing.assert_close(fold(compact)(images), outputs[-1], atol=1e-9, rtol=1e-9)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4  # some values take the lowest level


def test_it_is_a_copy(net, images):
    folded = fold(net)
    before = folded(images)
    for parameter in net.parameters():
        parameter.data.zero_()
    assert torch.equal(folded(images), before)


def test_all_of_it_moves_to_a_device(net, images):
    net.activate(net.space.decode(net.space.sample(np.random.default_rng(1), 1))[0])
    assert fold(net).to("meta")(images.to("meta")).shape == (16, 5)
