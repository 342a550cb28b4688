"""Changing what batch norm computes with, but not what the network computes in full precision."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from apq.errors import ApqError
from elastic_nn.modules import ElasticBatchNorm2d
from elastic_nn.modules.quantizers import SMALLEST_LIMIT, n_levels
from elastic_nn.networks.blocks import ConvLayer
from elastic_nn.networks.mobile_net import MobileNet


@torch.no_grad()
def adopt_batch_statistics(net: MobileNet, batches: Iterable[torch.Tensor]) -> None:
    """Replace the active layers' running statistics by those of images, (N, 3, S, S) a batch.

    Scale and bias make up for it: with its running statistics the network computes the same as
    before, and so it does, about, when training takes those of a batch. Only for layers that run
    with all their channels. Raises ApqError when there is no batch.
    """
    norms = [m for m in net.modules() if isinstance(m, ElasticBatchNorm2d)]
    # Images seen, sum of the batches' means and of their mean squares, weighted by images.
    sums: dict[ElasticBatchNorm2d, tuple[int, torch.Tensor, torch.Tensor]] = {}

    def watch(norm: ElasticBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        x, exactly = inputs[0], {"dim": (0, 2, 3), "dtype": torch.float64}
        n = x.size(0)
        seen, mean, square = sums.get(norm, (0, 0, 0))
        mean, square = mean + n * x.mean(**exactly), square + n * x.square().mean(**exactly)
        sums[norm] = (seen + n, mean, square)

    hooks = [norm.register_forward_pre_hook(watch) for norm in norms]
    training = net.training
    try:
        net.eval()
        for images in batches:
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
        net.train(training)
    if not sums:
        raise ApqError("batch statistics cannot be taken without images")
    for norm, (n, mean, square) in sums.items():
        _renormalize(norm, mean / n, square / n - (mean / n).square())


def _renormalize(norm: ElasticBatchNorm2d, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Give the layer other statistics (C,), and the same function of its input."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    norm.bias += scale * (mean - norm.running_mean)
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


@torch.no_grad()
def center_streams(net: MobileNet) -> None:
    """Centre what blocks hand on, channel by channel, on the levels of a full grid.

    Their middle is half a step below zero. A mean costs a range that all channels share its
    resolution, and tells the reader nothing: its batch norm takes away what comes of it. So in full
    precision the network computes the same as before. Steps are those of the ranges as they are.
    """
    blocks = [block for _, block in net.running_blocks()]
    inner = [block.mobile_inverted_conv for block in blocks]
    readers = [conv.inverted_bottleneck for conv in inner[1:]] + [net.feature_mix_layer]
    moved: torch.Tensor | float = 0.0
    for block, reader in zip(blocks, readers, strict=True):
        norm = block.mobile_inverted_conv.point_linear.bn
        # A shortcut brings a stream that is centred already.
        middle = 0.0 if block.shortcut else _middle(reader)
        by = middle - norm.bias
        norm.bias += by
        moved = moved + by if block.shortcut else by
        filters = reader.conv.active_filter(reader.conv.in_channels)
        reader.bn.running_mean += filters.sum((2, 3)) @ moved


def _middle(reader: ConvLayer) -> torch.Tensor | float:
    """Return the middle of the levels of a layer's signed input; 0 in full precision."""
    conv = reader.conv
    if conv.a_bits is None:
        return 0.0
    limit = conv.activation_range.clamp(min=SMALLEST_LIMIT)
    return -limit / n_levels(conv.a_bits, signed=True) / 2
