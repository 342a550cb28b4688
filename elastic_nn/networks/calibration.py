"""Where the ranges of a layer start: from its filter, and from an input that it is shown."""

from __future__ import annotations

from functools import partial

import torch

from elastic_nn.modules import QuantizedLayer
from elastic_nn.modules.kernels import RELU6_CEILING
from elastic_nn.modules.quantizers import (
    SMALLEST_LIMIT,
    quantize_relu6,
    quantize_signed,
)

# Share of an input's values that its calibrated range covers: the rare largest ones would cost
# the rest their resolution at 4 bits.
QUANTILE = 0.999
SAMPLE = 1_000_000
# For the range of least error fewer values do: it is tried at each of these shares of the largest.
ERROR_SAMPLE = 100_000
ERROR_SHARES = tuple((i + 1) / 64 for i in range(64))


@torch.no_grad()
def set_activation_range(
    layer: QuantizedLayer, inputs: tuple[torch.Tensor], a_bits: int | None
) -> None:
    """Set a layer's activation range from its input, before any ReLU6 that the layer applies.

    `a_bits` are those it will run with. A layer that sees only zeros keeps its range: a range of
    zero has no step.
    """
    values = inputs[0].detach().flatten().float()
    if not layer.signed_input:
        values = values.clamp(0, RELU6_CEILING)
    if layer.quantizer.learned and a_bits is not None:
        values = _thin(values, ERROR_SAMPLE)[None]
        limit = _least_error(values, a_bits, layer.signed_input, layer.quantizer.full)
        limit = torch.where(values.abs().max() > 0, limit.reshape(1), layer.activation_range)
    else:
        values = _thin(values.abs(), SAMPLE)
        limit = values.kthvalue(max(1, int(QUANTILE * values.numel()))).values
        limit = torch.where(limit > 0, limit, layer.activation_range)
    layer.activation_range.data.copy_(limit)


@torch.no_grad()
def set_weight_range(layer: QuantizedLayer, in_channels: int) -> None:
    """Set a layer's weight range, or ranges, from its active filter and its weight bits."""
    weight = layer.active_filter(in_channels).detach()
    if layer.quantizer.learned and layer.w_bits is not None:
        groups = weight.reshape(layer.weight_range.numel(), -1)
        limit = _least_error(groups, layer.w_bits, True, layer.quantizer.full).flatten()
    else:
        limit = weight.abs().max()
    layer.weight_range.data.copy_(limit)


def _thin(values: torch.Tensor, n: int) -> torch.Tensor:
    """Return about n of the values, evenly taken."""
    return values[:: max(1, values.numel() // n)]


def _least_error(values: torch.Tensor, bits: int, signed: bool, full: bool) -> torch.Tensor:
    """Return the ranges (groups, 1) at which rounding `values` (groups, n) errs least, squared."""
    quantize = partial(quantize_signed, full=full) if signed else quantize_relu6
    most = values.abs().amax(1, keepdim=True).clamp(min=SMALLEST_LIMIT)
    best, least = most, torch.full_like(most, torch.inf)
    for share in ERROR_SHARES:
        error = (quantize(values, share * most, bits) - values).square().mean(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, share * most, best), torch.where(better, error, least)
    return best
