"""The form of a network for measuring: batch norm folded into the filters, one pass to round.

Between two layers values stay in steps of the reader's quantizer: the writer's filter is divided
by that step and the reader's multiplied by it, so that quantizing is a clamp and a rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from elastic_nn.modules import InputLevels, QuantizedLayer
from elastic_nn.modules.kernels import RELU6_CEILING
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


class _FoldedConv(nn.Module):
    """One layer; `reader` is the layer that alone reads its output, through a ReLU6."""

    def __init__(self, layer: ConvLayer, in_channels: int, reader: ConvLayer | None) -> None:
        super().__init__()
        conv = layer.conv
        weight = conv.quantized_filter(in_channels)
        gain, bias = layer.affine(in_channels)
        own, read = conv.input_levels(), reader.conv.input_levels() if reader is not None else None
        # An unsigned input was rounded by the layer that wrote it.
        self.rounding = _Rounding(own if conv.signed_input else None)
        ceiling = RELU6_CEILING
        if read:
            gain, bias = gain / read.step, bias / read.step
            ceiling = min(RELU6_CEILING / float(read.step), float(read.largest))
        if own:
            weight = weight * own.step
        weight = (weight * gain.view(-1, 1, 1, 1)).to(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.stride, self.padding = conv.stride, weight.size(-1) // 2
        self.groups = weight.size(0) if conv.groups > 1 else 1
        self.ceiling = ceiling if reader is not None or layer.activation else None
        self.rounds = read is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.rounding(x)
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
        grid = linear.input_levels()
        self.rounding = _Rounding(grid)
        weight = linear.quantized_filter(linear.in_features)
        weight = weight * grid.step if grid else weight.clone()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(linear.bias.clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.rounding(x.mean((2, 3))), self.weight, self.bias)


class _Rounding(nn.Module):
    """Turns values into whole steps of a grid; without one it leaves them as they are."""

    def __init__(self, grid: InputLevels | None) -> None:
        super().__init__()
        self.register_buffer("step", grid and grid.step)
        self.levels = (grid.lowest, grid.largest) if grid else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.levels is None else x.div(self.step).clamp_(*self.levels).round_()
