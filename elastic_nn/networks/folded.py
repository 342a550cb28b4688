"""The form of a network for measuring: batch norm folded into the filters, one pass to round.

Between two layers values stay in steps of the reader's quantizer: the writer's filter is divided
by that step and the reader's multiplied by it, so that quantizing is a clamp and a rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from elastic_nn.modules import QuantizedLayer
from elastic_nn.modules.kernels import RELU6_CEILING
from elastic_nn.modules.quantizers import SMALLEST_LIMIT, lowest_level, n_levels
from elastic_nn.networks.blocks import ConvLayer
from elastic_nn.networks.mobile_net import MobileNet


@torch.no_grad()
def fold(net: MobileNet) -> nn.Module:
    """Return a network for evaluation only that computes what the active subnet does.

    Maps images (N, 3, S, S) to logits (N, n_classes), from the running batch statistics. Sums are
    rounded in another order: a value on the edge between two levels may take the other one.
    """
    net_layers = {name: (layer, c) for name, layer, c in net.conv_layers()}
    stem = net_layers.pop("first_conv")
    features = net_layers.pop("feature_mix_layer")
    blocks = []
    for name, block in net.running_blocks():
        layers = [net_layers[n] for n in net_layers if n.startswith(f"{name}.")]
        blocks.append((layers, block.shortcut))
    first_reader = blocks[0][0][0][0]
    parts: list[nn.Module] = [_FoldedConv(*stem, first_reader)]
    for layers, shortcut in blocks:
        readers = [layer for layer, _ in layers[1:]] + [None]
        folded = [_FoldedConv(*pair, reader) for pair, reader in zip(layers, readers, strict=True)]
        parts.append(_FoldedBlock(folded, shortcut))
    parts.append(_FoldedConv(*features, None))
    return nn.Sequential(*parts, _Head(net.classifier.linear)).eval()


def _step(layer: QuantizedLayer) -> tuple[torch.Tensor, tuple[int, int]] | None:
    """Return step, and lowest and largest level, of a layer's input, or None in full precision."""
    if layer.a_bits is None:
        return None
    levels = n_levels(layer.a_bits, layer.signed_input)
    lowest = lowest_level(layer.a_bits, layer.signed_input, layer.quantizer.full)
    return layer.activation_range.clamp(min=SMALLEST_LIMIT) / levels, (lowest, levels)


class _FoldedConv(nn.Module):
    """One layer; `reader` is the layer that alone reads its output, through a ReLU6."""

    def __init__(self, layer: ConvLayer, in_channels: int, reader: ConvLayer | None) -> None:
        super().__init__()
        conv, bn = layer.conv, layer.bn
        weight = conv.quantized_filter(in_channels)
        n = weight.size(0)
        gain = bn.weight[:n] / torch.sqrt(bn.running_var[:n] + bn.eps)
        bias = bn.bias[:n] - bn.running_mean[:n] * gain
        own, read = _step(conv), _step(reader.conv) if reader is not None else None
        # An unsigned input was rounded by the layer that wrote it.
        step, self.levels = own if own and conv.signed_input else (None, (0, 0))
        self.register_buffer("step", step)
        ceiling = RELU6_CEILING
        if read:
            gain, bias = gain / read[0], bias / read[0]
            ceiling = min(RELU6_CEILING / float(read[0]), float(read[1][1]))
        if own:
            weight = weight * own[0]
        weight = (weight * gain.view(-1, 1, 1, 1)).to(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.stride, self.padding = conv.stride, weight.size(-1) // 2
        self.groups = n if conv.groups > 1 else 1
        self.ceiling = ceiling if reader is not None or layer.activation else None
        self.rounds = read is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.step is not None:
            x = _round(x, self.step, self.levels)
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        if self.ceiling is not None:
            x.clamp_(0, self.ceiling)
        return x.round_() if self.rounds else x


class _FoldedBlock(nn.Module):
    def __init__(self, layers: Sequence[nn.Module], shortcut: bool) -> None:
        super().__init__()
        self.layers, self.shortcut = nn.Sequential(*layers), shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        return y.add_(x) if self.shortcut else y


class _Head(nn.Module):
    """Average pool and classifier."""

    def __init__(self, linear: QuantizedLayer) -> None:
        super().__init__()
        step, self.levels = _step(linear) or (None, (0, 0))
        self.register_buffer("step", step)
        weight = linear.quantized_filter(linear.in_features)
        weight = weight.clone() if step is None else weight * step
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(linear.bias.clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3))
        if self.step is not None:
            x = _round(x, self.step, self.levels)
        return F.linear(x, self.weight, self.bias)


def _round(x: torch.Tensor, step: torch.Tensor, levels: tuple[int, int]) -> torch.Tensor:
    """Return values in whole steps."""
    return x.div(step).clamp_(*levels).round_()
