"""Layers whose active part can shrink and whose inputs and weights can be quantized.

One set of classes serves full precision (no bits set), quantization, the supernet and the
extracted subnet: a layer built with a single choice is a plain one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from elastic_nn.modules.depthwise import depthwise_conv2d
from elastic_nn.modules.kernels import RELU6_CEILING
from elastic_nn.modules.quantizers import (
    SMALLEST_LIMIT,
    lowest_level,
    n_levels,
    quantize_relu6,
    quantize_signed,
)
from elastic_nn.quantizer_kinds import PAPER, Quantizer

LEAST_SHARE = 0.125
"""Of its largest weight, what a learned range keeps: with 4 bits one of the seven levels."""


@dataclass(frozen=True)
class InputLevels:
    """The levels that values are rounded to: whole steps from the lowest to the largest."""

    step: torch.Tensor
    """(1,)"""
    lowest: int
    largest: int


class QuantizedLayer(nn.Module):
    """Base of every layer with weights: quantizes input and filter when bits are set.

    An input without a sign is what its writer computed before ReLU6, which is applied here: with
    a quantizer both are one operation. `activation_range` (1,) is learned. `weight_range` is (1,),
    and 0 until it is calibrated, which reads as the largest magnitude of the active filter; with a
    quantizer that learns it, a parameter, and (out channels,) where there is one for each.
    """

    def init_quantizer(self, signed_input: bool) -> None:
        """Add the quantizer's state; `signed_input` tells an input that no ReLU has passed."""
        self.signed_input = signed_input
        self.quantizer = PAPER
        self.w_bits: int | None = None
        self.a_bits: int | None = None
        self.activation_range = nn.Parameter(torch.full((1,), RELU6_CEILING))
        self.register_buffer("weight_range", torch.zeros(1))

    def set_bits(self, w_bits: int | None, a_bits: int | None) -> None:
        """Choose the bit widths of weights and input; None leaves them in full precision."""
        self.w_bits, self.a_bits = w_bits, a_bits

    def set_quantizer(self, quantizer: Quantizer) -> None:
        """Choose how ranges are learned; another kind begins at the largest magnitudes."""
        if quantizer == self.quantizer:
            return
        self.quantizer = quantizer
        n = self.weight.size(0) if quantizer.per_channel else 1
        most = self.weight.detach().reshape(n, -1).abs().amax(1)
        del self.weight_range
        if quantizer.learned:
            self.weight_range = nn.Parameter(most)
        else:
            self.register_buffer("weight_range", torch.zeros_like(most))

    def active_filter(self, in_channels: int) -> torch.Tensor:
        """Return the filter the active subnet uses, before quantization."""
        return self.weight

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input as the accelerator would see it."""
        learned, full = self.quantizer.learned, self.quantizer.full
        if self.signed_input:
            if self.a_bits is None:
                return x
            return quantize_signed(x, self.activation_range, self.a_bits, learned, len(x), full)
        if self.a_bits is None:
            # Batch norm, which wrote the input, does not need it for its backward pass.
            return F.relu6(x, inplace=True)
        return quantize_relu6(x, self.activation_range, self.a_bits, learned)

    def input_levels(self) -> InputLevels | None:
        """Return the levels of the input, or None in full precision."""
        if self.a_bits is None:
            return None
        largest = n_levels(self.a_bits, self.signed_input)
        lowest = lowest_level(self.a_bits, self.signed_input, self.quantizer.full)
        return InputLevels(
            self.activation_range.clamp(min=SMALLEST_LIMIT) / largest, lowest, largest
        )

    def quantized_filter(self, in_channels: int) -> torch.Tensor:
        """Return the active filter as the accelerator would see it."""
        weight = self.active_filter(in_channels)
        if self.w_bits is None:
            return weight
        learned, full = self.quantizer.learned, self.quantizer.full
        limit = self._filter_limit(weight)
        return quantize_signed(weight, limit, self.w_bits, learned=learned, full=full)

    def filter_step(self, in_channels: int) -> torch.Tensor | None:
        """Return the step of the active filter's levels, None in full precision.

        (1,), or (out channels, 1, ...) where each one has its own.
        """
        if self.w_bits is None:
            return None
        limit = self._filter_limit(self.active_filter(in_channels))
        return limit.clamp(min=SMALLEST_LIMIT) / n_levels(self.w_bits, signed=True)

    def _filter_limit(self, weight: torch.Tensor) -> torch.Tensor:
        if self.quantizer.learned:
            return self.weight_range.view(-1, *[1] * (weight.dim() - 1))
        most = weight.detach().abs().max().reshape(1)
        return torch.where(self.weight_range > 0, self.weight_range, most)

    @torch.no_grad()
    def keep_ranges(self) -> None:
        """Keep ranges above zero, and learned weight ranges from where no weight learns.

        There they clip nearly all. A range below zero works as the smallest one does, but has to
        come back all the way before it works otherwise.
        """
        self.activation_range.clamp_(min=SMALLEST_LIMIT)
        if self.quantizer.learned:
            dims = tuple(range(self.quantizer.per_channel, self.weight.dim()))
            most = self.weight.abs().amax(dims)  # a sixth of what vector_norm takes
            self.weight_range.clamp_(min=most.view_as(self.weight_range) * LEAST_SHARE)

    def active_state(self, in_channels: int) -> dict[str, torch.Tensor]:
        """Return the state dict of a compact layer that computes the same."""
        state = {
            "weight": self.active_filter(in_channels),
            "activation_range": self.activation_range,
            "weight_range": self.weight_range,
        }
        return {name: tensor.detach().clone() for name, tensor in state.items()}


class ElasticConv2d(QuantizedLayer, nn.Conv2d):
    """A dense convolution that runs with its first input and its first output channels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        signed_input: bool = False,
    ) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.init_quantizer(signed_input)
        self.active_out_channels = out_channels

    def active_filter(self, in_channels: int) -> torch.Tensor:
        """Return the first channels' filter, shape (out, in, K, K)."""
        return self.weight[: self.active_out_channels, :in_channels]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (N, C, H, W)."""
        weight = self.quantized_filter(x.size(1))
        return F.conv2d(self.quantized_input(x), weight, None, self.stride, self.padding)


class ElasticDepthwiseConv2d(QuantizedLayer, nn.Conv2d):
    """A depthwise convolution with elastic channels and kernel size.

    A smaller kernel is the centre of the next larger one through a learned matrix, named
    `7to5_matrix` and so on, shape (k*k, k*k); the identity at the start (the paper, and
    once-for-all, ICLR 2020).
    """

    def __init__(self, channels: int, kernels: tuple[int, ...], stride: int) -> None:
        largest = max(kernels)
        nn.Conv2d.__init__(
            self,
            channels,
            channels,
            largest,
            stride,
            largest // 2,
            groups=channels,
            bias=False,
        )
        self.init_quantizer(signed_input=False)
        self.kernels = tuple(sorted(kernels))
        self.active_kernel = largest
        for small, large in zip(self.kernels, self.kernels[1:], strict=False):
            matrix = nn.Parameter(torch.eye(small * small))
            self.register_parameter(f"{large}to{small}_matrix", matrix)

    def active_filter(self, in_channels: int) -> torch.Tensor:
        """Return the transformed filter, shape (C, 1, k, k)."""
        weight = self.weight[:in_channels]
        descending = self.kernels[::-1]
        for large, small in itertools.pairwise(descending):
            if large <= self.active_kernel:
                break
            margin = (large - small) // 2
            centre = weight[:, :, margin:-margin, margin:-margin].reshape(-1, small * small)
            matrix = getattr(self, f"{large}to{small}_matrix")
            weight = F.linear(centre, matrix).view(-1, 1, small, small)
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (N, C, H, W)."""
        weight = self.quantized_filter(x.size(1))
        return depthwise_conv2d(self.quantized_input(x), weight, self.stride[0])


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """The classifier."""

    def __init__(self, in_features: int, out_features: int) -> None:
        nn.Linear.__init__(self, in_features, out_features)
        self.init_quantizer(signed_input=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_features) to (N, out_features)."""
        return F.linear(self.quantized_input(x), self.quantized_filter(x.size(1)), self.bias)

    def active_state(self, in_channels: int) -> dict[str, torch.Tensor]:
        """Return the state dict of a compact layer that computes the same."""
        return super().active_state(in_channels) | {"bias": self.bias.detach().clone()}


class ElasticBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of the first channels; eps and momentum are the paper's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize (N, C, H, W)."""
        c = x.size(1)
        return F.batch_norm(
            x,
            self.running_mean[:c],
            self.running_var[:c],
            self.weight[:c],
            self.bias[:c],
            self.training,
            self.momentum,
            self.eps,
        )

    def active_state(self, channels: int) -> dict[str, torch.Tensor]:
        """Return the state dict of a compact layer that computes the same."""
        return {
            name: (tensor[:channels] if tensor.dim() else tensor).detach().clone()
            for name, tensor in self.state_dict().items()
        }
