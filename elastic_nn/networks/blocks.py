"""The building blocks of both networks; attribute names are those of published checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from elastic_nn.modules import (
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepthwiseConv2d,
)


class ConvLayer(nn.Module):
    """Convolution and batch normalization, and ReLU6 where the reader is no convolution.

    A convolution that reads a rectified input applies ReLU6 itself (`QuantizedLayer`).
    """

    def __init__(
        self, conv: ElasticConv2d | ElasticDepthwiseConv2d, activation: bool = False
    ) -> None:
        super().__init__()
        self.conv = conv
        self.bn = ElasticBatchNorm2d(conv.out_channels)
        self.activation = activation

    def affine(self, in_channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what batch norm multiplies and adds with its running statistics, (C',) each."""
        n = self.conv.active_filter(in_channels).size(0)
        gain = self.bn.weight[:n] / torch.sqrt(self.bn.running_var[:n] + self.bn.eps)
        return gain, self.bn.bias[:n] - self.bn.running_mean[:n] * gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        x = self.bn(self.conv(x))
        return F.relu6(x, inplace=True) if self.activation else x


class InvertedConv(nn.Module):
    """1x1 expand (absent in the first block), KxK depthwise, 1x1 project."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        kernels: tuple[int, ...],
        stride: int,
        expand: bool,
    ) -> None:
        super().__init__()
        self.inverted_bottleneck = None
        if expand:
            # The input left the block before without an activation: it has a sign.
            self.inverted_bottleneck = ConvLayer(
                ElasticConv2d(in_channels, width, signed_input=True)
            )
        self.depth_conv = ConvLayer(ElasticDepthwiseConv2d(width, kernels, stride))
        self.point_linear = ConvLayer(ElasticConv2d(width, out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if self.inverted_bottleneck is not None:
            x = self.inverted_bottleneck(x)
        return self.point_linear(self.depth_conv(x))


class InvertedBlock(nn.Module):
    """An inverted residual whose kernel, width and bits can be chosen."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        kernels: tuple[int, ...],
        stride: int,
        shortcut: bool,
        expand: bool = True,
    ) -> None:
        super().__init__()
        self.mobile_inverted_conv = InvertedConv(
            in_channels, width, out_channels, kernels, stride, expand
        )
        self.shortcut = shortcut
        self.active_width = width

    def activate(self, kernel: int, width: int) -> None:
        """Choose kernel size and expanded channels."""
        self.active_width = width
        self.mobile_inverted_conv.inverted_bottleneck.conv.active_out_channels = width
        self.mobile_inverted_conv.depth_conv.conv.active_kernel = kernel

    def set_bits(self, pw: tuple[int, int] | None, dw: tuple[int, int] | None) -> None:
        """Choose (weight, activation) bits of the 1x1 convolutions and of the depthwise one."""
        inner = self.mobile_inverted_conv
        for layer in (inner.inverted_bottleneck, inner.point_linear):
            if layer is not None:
                layer.conv.set_bits(*(pw or (None, None)))
        inner.depth_conv.conv.set_bits(*(dw or (None, None)))

    def layers(self) -> Iterator[tuple[str, ConvLayer, int]]:
        """Yield name, layer and active input channels of the two or three convolutions."""
        inner = self.mobile_inverted_conv
        if inner.inverted_bottleneck is not None:
            expand = inner.inverted_bottleneck
            yield "mobile_inverted_conv.inverted_bottleneck", expand, expand.conv.in_channels
        yield "mobile_inverted_conv.depth_conv", inner.depth_conv, self.active_width
        yield "mobile_inverted_conv.point_linear", inner.point_linear, self.active_width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        y = self.mobile_inverted_conv(x)
        return x + y if self.shortcut else y
