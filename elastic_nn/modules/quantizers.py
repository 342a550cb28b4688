"""Uniform quantization with straight-through gradients: the paper's, and learned step sizes.

Both round to whole steps of a range: `limit` is the range, of shape (1,) or, for weights,
(out channels, 1, 1, 1); a step is limit / levels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

# Keeps the step above zero, for filters of zeros and for ranges that training drives down.
SMALLEST_LIMIT = 1e-5
RELU6_CEILING = 6.0
# A residual of rounding, -0.5..0.5 of a step, is kept in one byte as -125..125.
RESIDUAL_SCALE = 250.0
# 1 MB of float32: with what is made of it, it stays in a core's second-level cache.
PART_VALUES = 2**18


def n_levels(bits: int, signed: bool) -> int:
    """Return the largest integer level: 2^(b-1) - 1 when signed, 2^b - 1 otherwise."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def quantize_signed(
    x: torch.Tensor, limit: torch.Tensor, bits: int, learned: bool = False
) -> torch.Tensor:
    """Round `x` to the levels of [-limit, limit], and return it as float.

    The gradient passes straight through where `x` is inside; the values clipped at the limit hand
    theirs to it. With `learned` the rounding errors inside have their say as well, scaled as in
    LSQ (learned step size quantization, ICLR 2020).
    """
    return _quantize(x, limit, n_levels(bits, signed=True), True, learned)


def quantize_relu6(
    x: torch.Tensor, limit: torch.Tensor, bits: int, learned: bool = False
) -> torch.Tensor:
    """Pass `x` through ReLU6 and round it to the levels of [0, limit], in one operation.

    Gradients as in `quantize_signed`. The backward pass needs one byte a value, not the values.
    """
    return _quantize(x, limit, n_levels(bits, signed=False), False, learned)


def _quantize(
    x: torch.Tensor, limit: torch.Tensor, levels: int, signed: bool, learned: bool
) -> torch.Tensor:
    if x.dtype in (torch.bfloat16, torch.float16):  # fewer bits than the levels may need
        x = x.float()
    if torch.is_grad_enabled() and (x.requires_grad or limit.requires_grad):
        function = _Learned if learned else _Clipped
        return function.apply(x, limit, levels, signed)
    limit = limit.clamp(min=SMALLEST_LIMIT)
    y = torch.empty_like(x)
    for part, rounded in _parts(limit, x, y):
        _clip(part, limit, signed, rounded).div_(limit / levels).round_().mul_(limit / levels)
    return y


# All passes over the values are of floats, or of bytes, as far as can be: comparisons and other
# operations that turn one into the other take five times as long on a CPU.


def _clip(x: torch.Tensor, limit: torch.Tensor, signed: bool, out: torch.Tensor) -> torch.Tensor:
    """Clip to [-limit, limit], or to [0, limit] and ReLU6's ceiling."""
    if signed:
        return torch.maximum(torch.minimum(x, limit, out=out), -limit, out=out)
    return torch.minimum(x, limit.clamp(max=RELU6_CEILING), out=out).clamp_(min=0)


def _parts(limit: torch.Tensor, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the same slices of tensors (N, ...) under one limit, small enough for a CPU's cache.

    Quantizing is a dozen passes over the values: from main memory each would take as long as a
    layer of the network.
    """
    first = tensors[0]
    if first.device.type != "cpu" or first.dim() < 4 or limit.numel() > 1 or not len(first):
        yield tensors
        return
    n = max(1, PART_VALUES // first[0].numel())
    yield from zip(*(tensor.split(n) for tensor in tensors), strict=True)


class _Clipped(torch.autograd.Function):
    """The paper's gradients; the byte kept is the side at which a value was clipped: -1, 0, 1."""

    @staticmethod
    def forward(ctx, x, limit, levels, signed):
        limit = limit.clamp(min=SMALLEST_LIMIT)
        step = limit / levels
        y, side = torch.empty_like(x), torch.empty_like(x, dtype=torch.int8)
        for part, rounded, code in _parts(limit, x, y, side):
            _clip(part, limit, signed, rounded)
            code.copy_(torch.sub(part, rounded).sign_())
            rounded.div_(step).round_().mul_(step)
        # Where ReLU6's ceiling is lower than the range, it is not the range that clips.
        ctx.signed, ctx.clips = signed, None if signed else limit < RELU6_CEILING
        ctx.save_for_backward(side)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (side,) = ctx.saved_tensors
        grad_x, grad_limit = torch.empty_like(grad), grad.new_zeros(1)
        for part, code, inside in _parts(grad_limit, grad, side, grad_x):
            torch.mul(part, 1 - code * code, out=inside)
            if ctx.needs_input_grad[1]:
                grad_limit += (part * (code if ctx.signed else code.clamp(min=0))).sum()
        if not ctx.signed:
            grad_limit *= ctx.clips
        return (
            grad_x if ctx.needs_input_grad[0] else None,
            grad_limit if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


class _Learned(torch.autograd.Function):
    """The gradients of LSQ, for the range instead of the step: limit = levels * step.

    LSQ scales the step's gradient by 1 / sqrt(n * levels), n values a range; for the same relative
    change of the range, its own gradient is to be scaled by levels^1.5 / sqrt(n). The byte kept is
    what rounding added, -125..125 for half a step down or up, or +-127 for a clipped value.
    """

    @staticmethod
    def forward(ctx, x, limit, levels, signed):
        limit = limit.clamp(min=SMALLEST_LIMIT)
        step = limit / levels
        y, added = torch.empty_like(x), torch.empty_like(x, dtype=torch.int8)
        for part, rounded, code in _parts(limit, x, y, added):
            scaled = _clip(part, limit, signed, torch.empty_like(part))
            side = torch.sub(part, scaled).sign_()
            torch.round(scaled.div_(step), out=rounded)
            residual = scaled.sub_(rounded).mul_(-RESIDUAL_SCALE).round_()
            # Far beyond a byte, so that the side outweighs the residual.
            code.copy_(residual.add_(side, alpha=3 * RESIDUAL_SCALE).clamp_(-127, 127))
            rounded.mul_(step)
        ctx.levels, ctx.signed = levels, signed
        ctx.save_for_backward(added, limit)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        added, limit = ctx.saved_tensors
        grad_x, grad_limit = torch.empty_like(grad), torch.zeros_like(limit)
        # Where ReLU6's ceiling is lower than the range, it is not the range that clips.
        clips = 1.0 if ctx.signed else (limit < RELU6_CEILING).to(grad.dtype)
        for part, code, inside in _parts(limit, grad, added, grad_x):
            share = code.to(grad.dtype)
            side = share.div(126).trunc_()
            kept = side.square().neg_().add_(1)
            torch.mul(part, kept, out=inside)
            if ctx.needs_input_grad[1]:
                share.mul_(kept).div_(RESIDUAL_SCALE * ctx.levels)
                share.add_(side if ctx.signed else side.clamp_(min=0).mul_(clips))
                grad_limit += share.mul_(part).sum_to_size(limit.shape)
        n = grad.numel() / limit.numel() / (1 if ctx.signed else len(grad))
        grad_limit *= ctx.levels**1.5 / n**0.5
        return (
            grad_x if ctx.needs_input_grad[0] else None,
            grad_limit if ctx.needs_input_grad[1] else None,
            None,
            None,
        )
