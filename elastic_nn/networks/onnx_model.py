"""A subnet as an ONNX model: weights and quantized inputs as integers, and what a step is worth.

What `fold` computes, in the standard's operators (opset 13): QuantizeLinear and DequantizeLinear
around each convolution, which runtimes turn into integer arithmetic where they have it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apq import __version__
from apq.errors import ApqError
from elastic_nn.modules import QuantizedLayer
from elastic_nn.modules.kernels import RELU6_CEILING
from elastic_nn.modules.quantizers import lowest_level
from elastic_nn.networks.blocks import ConvLayer
from elastic_nn.networks.mobile_net import MobileNet

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 13, 8
INPUT, OUTPUT = "pixels", "logits"
SMALLEST_STEP = 1e-30  # a product of two steps is to be above zero
LARGEST_BIAS = 2.0**30  # in steps of a sum of products, which are 32 bits wide


@torch.no_grad()
def to_onnx(
    net: MobileNet,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    facts: Mapping[str, Any],
) -> onnx.ModelProto:
    """Return the active subnet with its running batch statistics as an ONNX model.

    Maps `pixels`, uint8 (N, 3, S, S) red, green, blue, to `logits` (N, n_classes); pixels in 0..1
    are normalised by `mean` and `std` inside. The model carries plain `facts` along, and the subnet
    as `arch`. Biases of layers with quantized input and weights are rounded to 32 bits, as
    accelerators have them: a value on the edge between two levels may take the other one. Raises
    ApqError when the package onnx is missing.
    """
    graph = _Graph()
    layers = {name: (layer, channels) for name, layer, channels in net.conv_layers()}
    x = _normalized(graph, mean, std)
    x = _conv(graph, "first_conv", *layers["first_conv"], x)
    for name, block in net.running_blocks():
        y = x
        for inner, layer, channels in block.layers():
            y = _conv(graph, f"{name}.{inner}", layer, channels, y)
        x = graph.add("Add", f"{name}.sum", x, y) if block.shortcut else y
    x = _conv(graph, "feature_mix_layer", *layers["feature_mix_layer"], x)
    x = graph.add("GlobalAveragePool", "pool", x)
    x = graph.add("Flatten", "features", x)
    _classifier(graph, net.classifier.linear, x)
    shape = ["N", 3, image_size, image_size]
    return graph.model(shape, net.n_classes, {"arch": net.subnet.to_json(), **facts})


class _Graph:
    """Operators and constants of a graph in the making; each is named by what it makes."""

    def __init__(self) -> None:
        try:
            import onnx
        except ImportError:
            raise ApqError("ONNX files need a package: pip install onnx") from None
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output; return the output's name."""
        make = self._onnx.helper.make_node
        self._nodes.append(make(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: np.ndarray | torch.Tensor | float) -> str:
        """Add an array, or a number as a float32; return its name."""
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu().numpy()
        values = np.asarray(values)
        if values.dtype == np.float64:
            values = values.astype(np.float32)
        self._constants.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def model(
        self, shape: Sequence[int | str], n_classes: int, facts: Mapping[str, Any]
    ) -> onnx.ModelProto:
        """Return the whole, checked, with facts that it carries along."""
        helper, types = self._onnx.helper, self._onnx.TensorProto
        graph = helper.make_graph(
            self._nodes,
            "subnet",
            [helper.make_tensor_value_info(INPUT, types.UINT8, list(shape))],
            [helper.make_tensor_value_info(OUTPUT, types.FLOAT, ["N", n_classes])],
            self._constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="apq",
            producer_version=__version__,
        )
        helper.set_model_props(model, {k: _text(v) for k, v in facts.items()})
        self._onnx.checker.check_model(model, full_check=True)
        return model


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _normalized(graph: _Graph, mean: Sequence[float], std: Sequence[float]) -> str:
    """Add what turns pixels into the images that networks are trained with."""
    mean, std = (np.reshape(values, (1, 3, 1, 1)) for values in (mean, std))
    x = graph.add("Cast", "pixels.float", INPUT, to=1)  # float32
    x = graph.add("Mul", "pixels.scaled", x, graph.constant("pixels.scale", 1 / (255 * std)))
    return graph.add("Sub", "pixels.normalized", x, graph.constant("pixels.offset", mean / std))


def _conv(graph: _Graph, name: str, layer: ConvLayer, in_channels: int, x: str) -> str:
    """Add a convolution with its batch norm; an unsigned input passes ReLU6 first."""
    conv = layer.conv
    gain, bias = layer.affine(in_channels)
    x = _input(graph, name, conv, x)
    weight, bias = _weights(graph, name, conv, in_channels, gain, bias)
    margin = [conv.active_filter(in_channels).size(-1) // 2] * 4
    groups = in_channels if conv.groups > 1 else 1
    y = graph.add(
        "Conv", name, x, weight, bias, strides=list(conv.stride), pads=margin, group=groups
    )
    return _clipped(graph, f"{name}.relu6", y, 0.0, RELU6_CEILING) if layer.activation else y


def _classifier(graph: _Graph, linear: QuantizedLayer, x: str) -> None:
    x = _input(graph, "classifier", linear, x)
    gain = torch.ones_like(linear.bias)
    weight, bias = _weights(graph, "classifier", linear, linear.in_features, gain, linear.bias)
    graph.add("Gemm", OUTPUT, x, weight, bias, transB=1)


def _input(graph: _Graph, name: str, layer: QuantizedLayer, x: str) -> str:
    """Add what a layer does to its input: ReLU6 where it has no sign, and rounding to levels."""
    grid = layer.input_levels()
    if grid is None:
        return x if layer.signed_input else _clipped(graph, f"{name}.x", x, 0.0, RELU6_CEILING)
    step, lowest, largest = float(grid.step), grid.lowest, grid.largest
    ceiling = largest * step if layer.signed_input else min(largest * step, RELU6_CEILING)
    x = _clipped(graph, f"{name}.x.clipped", x, lowest * step, ceiling)
    zero = np.zeros((), np.int8 if layer.signed_input else np.uint8)
    grid_of = (graph.constant(f"{name}.x.step", step), graph.constant(f"{name}.x.zero", zero))
    x = graph.add("QuantizeLinear", f"{name}.x.levels", x, *grid_of)
    return graph.add("DequantizeLinear", f"{name}.x", x, *grid_of)


def _clipped(graph: _Graph, name: str, x: str, lowest: float, largest: float) -> str:
    ends = (graph.constant(f"{name}.lowest", lowest), graph.constant(f"{name}.largest", largest))
    return graph.add("Clip", name, x, *ends)


def _weights(
    graph: _Graph,
    name: str,
    layer: QuantizedLayer,
    in_channels: int,
    gain: torch.Tensor,
    bias: torch.Tensor,
) -> tuple[str, str]:
    """Add a layer's filter, times `gain` (out channels,), and its bias; return their names."""
    weight, step = layer.quantized_filter(in_channels), layer.filter_step(in_channels)
    per_channel = (-1, *[1] * (weight.dim() - 1))
    if step is None:
        weight = graph.constant(f"{name}.weight", weight * gain.view(per_channel))
        return weight, graph.constant(f"{name}.bias", bias)
    levels, steps = weight.div(step).round(), step.flatten() * gain
    # Steps above zero, where the bits allow it: runtimes may take others for mistakes. The lowest
    # level of a full grid has no opposite.
    lowest = lowest_level(layer.w_bits, signed=True)
    turned = torch.signbit(steps) & (levels.flatten(1).amin(1) >= lowest)
    levels[turned] *= -1
    steps[turned] *= -1
    grid = layer.input_levels()
    # A channel that hardly counts beside its bias would have that run over: its steps are widened.
    least = bias.abs() / (LARGEST_BIAS * grid.step) if grid else torch.zeros_like(bias)
    wide = torch.copysign(torch.maximum(steps.abs(), least), steps)
    wide[wide.abs() < SMALLEST_STEP] = 1  # its levels are as good as zeros
    levels = (levels * (steps / wide).view(per_channel)).round()
    weight = _dequantized(graph, f"{name}.weight", levels.to(torch.int8), wide)
    if grid is None:
        return weight, graph.constant(f"{name}.bias", bias)
    sums = wide * grid.step
    whole = (bias / sums).round().to(torch.int32)
    return weight, _dequantized(graph, f"{name}.bias", whole, sums)


def _dequantized(graph: _Graph, name: str, levels: torch.Tensor, steps: torch.Tensor) -> str:
    """Add integers (C, ...) and their steps, one for each channel (C,)."""
    values = {"levels": levels, "steps": steps}
    if levels.dtype == torch.int8:
        # May be left out by the standard, but onnxruntime 1.18 then fails at the classifier.
        values["zeros"] = torch.zeros_like(steps, dtype=torch.int8)
    constants = [graph.constant(f"{name}.{what}", value) for what, value in values.items()]
    return graph.add("DequantizeLinear", name, *constants, axis=0)
