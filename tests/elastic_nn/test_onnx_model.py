"""The ONNX model, run by a runtime that knows nothing of ours."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from apq.errors import ApqError
from apq.subnet import Subnet
from elastic_nn.networks import MobileNet
from elastic_nn.networks.folded import fold
from elastic_nn.networks.onnx_model import to_onnx
from elastic_nn.quantizer_kinds import QUANTIZERS

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
SIZE = 16


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(1)
    # Not noise alone: large areas, too, as photographs have them.
    coarse = torch.randint(0, 256, (12, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture(scope="module")
def images(pixels):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


@pytest.fixture
def make(tiny_space, randomize, images):
    """The function that makes a calibrated network with a quantizer, None for full precision."""

    def network(quantizer, seed=0):
        rng = np.random.default_rng(seed)
        subnet = tiny_space.decode(tiny_space.sample(rng, 1))[0]
        if quantizer is None:
            subnet = subnet.full_precision()
        torch.manual_seed(seed)
        net = randomize(MobileNet.from_subnet(subnet, 5), seed)
        with torch.no_grad():
            for number, (_, layer, _) in enumerate(net.conv_layers()):
                layer.bn.weight[0] *= -1
                layer.bn.weight[1] = 0
                layer.bn.bias[3] = 6.5  # beyond what ReLU6 passes
                if number % 2:
                    layer.bn.weight[2], layer.bn.bias[2] = 1e-9, 3.0
        net.reset_bn_statistics([images])
        if quantizer:
            net.set_quantizer(quantizer)
            net.calibrate(images)
            with torch.no_grad():
                for number, (layer, _) in enumerate(net.quantized_layers().values()):
                    # Many values below the lowest level; and a range beyond what ReLU6 passes.
                    if layer.signed_input:
                        layer.activation_range *= 0.4
                    elif number % 2:
                        layer.activation_range.fill_(7.5)
        return net.eval()

    return network


def session(model):
    options = onnxruntime.SessionOptions()
    # As it is written: a runtime's own changes round otherwise.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def values_of(model, pixels):
    """Return what every operator of the model makes of the pixels, by name."""
    del model.graph.output[:]
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            info = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
            model.graph.output.append(info)
    names = [output.name for output in model.graph.output]
    made = session(model).run(names, {"pixels": pixels.numpy()})
    return {name: torch.from_numpy(value) for name, value in zip(names, made, strict=True)}


def assert_layer_is(layer, in_channels, name, before, values):
    """Compare a layer of the network with the model's, given what the model hands to it."""
    read = layer.conv.quantized_input(before.clone())
    given = values.get(f"{name}.x", before)
    # Not all: a value on the edge between two levels may take either.
    close = torch.isclose(given, read, atol=1e-6, rtol=1e-6)
    assert close.float().mean() > 0.999, name
    weight, grid = layer.conv.quantized_filter(in_channels), layer.conv.input_levels()
    groups = in_channels if layer.conv.groups > 1 else 1
    margin = weight.size(-1) // 2
    wanted = layer.bn(F.conv2d(given, weight, None, layer.conv.stride, margin, groups=groups))
    most = torch.full(wanted.shape[1:2], 1e-4)
    if grid is not None:  # the bias is rounded to whole products of the two steps
        gain, bias = layer.affine(in_channels)
        step = layer.conv.filter_step(in_channels).flatten() * grid.step
        most += 0.5 * (step * gain).abs() + 1e-6 * bias.abs()
    off = (values[name] - wanted).abs().amax((0, 2, 3))
    assert (off <= most).all(), (name, off, most)


@pytest.mark.parametrize("quantizer", [None, *QUANTIZERS])
def test_every_layer_computes_what_ours_does(make, pixels, quantizer):
    net = make(quantizer)
    model = to_onnx(net, SIZE, MEAN, STD, {})
    values = values_of(model, pixels)
    layers = {name: (layer, channels) for name, layer, channels in net.conv_layers()}
    with torch.inference_mode():
        x = values["pixels.normalized"]
        assert_layer_is(*layers["first_conv"], "first_conv", x, values)
        x = values["first_conv"]
        for name, block in net.running_blocks():
            y = x
            for inner, layer, channels in block.layers():
                assert_layer_is(layer, channels, f"{name}.{inner}", y, values)
                y = values[f"{name}.{inner}"]
            if block.shortcut:
                torch.testing.assert_close(values[f"{name}.sum"], x + y)
                y = values[f"{name}.sum"]
            x = y
        name = "feature_mix_layer"
        assert_layer_is(*layers[name], name, x, values)
        features = F.relu6(values[name]).mean((2, 3))
        torch.testing.assert_close(values["features"], features)
        linear = net.classifier.linear
        torch.testing.assert_close(
            values["classifier.x"], linear.quantized_input(features), atol=1e-6, rtol=1e-5
        )
        step = linear.filter_step(linear.in_features), linear.input_levels()
        off = 1e-5 if step[0] is None else 0.5 * float(step[0].max() * step[1].step) + 1e-5
        wanted = F.linear(
            values["classifier.x"], linear.quantized_filter(linear.in_features), linear.bias
        )
        torch.testing.assert_close(values["logits"], wanted, atol=off, rtol=1e-5)


def test_in_full_precision_it_is_the_same_network(make, pixels, images):
    net = make(None, seed=3)
    net.classifier.linear.weight.data *= 20  # so that answers differ from image to image
    (logits,) = session(to_onnx(net, SIZE, MEAN, STD, {})).run(None, {"pixels": pixels.numpy()})
    wanted = fold(net)(images).numpy()
    assert wanted.std(axis=0).min() > 0.05
    np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=1e-4)
    # Any number of images at a time.
    (one,) = session(to_onnx(net, SIZE, MEAN, STD, {})).run(None, {"pixels": pixels[:1].numpy()})
    np.testing.assert_allclose(one, wanted[:1], atol=1e-4, rtol=1e-4)


def test_weights_and_inputs_are_integers_of_their_bits(make):
    net = make("lsq-full", seed=2)
    model = to_onnx(net, SIZE, MEAN, STD, {})
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    for name, layer, _ in net.conv_layers():
        bits, levels = layer.conv.w_bits, constants[f"{name}.weight.levels"]
        assert levels.dtype == np.int8
        assert -(2 ** (bits - 1)) <= levels.min() <= -(2 ** (bits - 2))
        assert 2 ** (bits - 2) <= levels.max() < 2 ** (bits - 1)
        if layer.conv.a_bits is not None:
            assert constants[f"{name}.bias.levels"].dtype == np.int32
            signed = layer.conv.signed_input
            assert constants[f"{name}.x.zero"].dtype == (np.int8 if signed else np.uint8)


@pytest.mark.parametrize("quantizer", ["paper", "lsq-channel"])
def test_steps_are_above_zero_though_batch_norm_turns_a_channel_round(make, quantizer):
    net = make(quantizer)
    model = to_onnx(net, SIZE, MEAN, STD, {})
    steps = [c for c in model.graph.initializer if c.name.endswith(("steps", "step"))]
    assert len(steps) > 10
    assert all((onnx.numpy_helper.to_array(c) > 0).all() for c in steps)


def test_it_carries_what_it_is(make):
    net = make("paper")
    facts = {"dataset": "toy", "class_names": ["a", "b"]}
    model = to_onnx(net, SIZE, MEAN, STD, facts)
    told = {prop.key: prop.value for prop in model.metadata_props}
    assert Subnet.from_json(told["arch"], net.space) == net.subnet
    assert (told["dataset"], json.loads(told["class_names"])) == ("toy", ["a", "b"])
    assert model.producer_name == "apq"


def test_without_the_package_it_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ApqError, match="pip install onnx"):
        to_onnx(make(None), SIZE, MEAN, STD, {})
