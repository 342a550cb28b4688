"""Uniform quantization with straight-through gradients: the paper's, and learned step sizes.

Both round to whole steps of a range: `limit` is the range, of shape (1,) or, for weights,
(out channels, 1, 1, 1); a step is limit / levels.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from elastic_nn.modules.kernels import (
    RESIDUAL_SCALE,
    clipped_backward,
    clipped_forward,
    learned_backward,
    learned_forward,
    parts,
    run_backward,
    run_forward,
)

# Keeps the step above zero, for filters of zeros and for ranges that training drives down.
SMALLEST_LIMIT = 1e-5
RELU6_CEILING = 6.0


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
    low, high, step = _bounds(limit.clamp(min=SMALLEST_LIMIT), levels, signed)
    y = torch.empty_like(x)
    for part, rounded in parts(limit, x, y):
        torch.maximum(torch.minimum(part, high, out=rounded), low, out=rounded)
        rounded.div_(step).round_().mul_(step)
    return y


def _bounds(
    limit: torch.Tensor, levels: int, signed: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the range's low and high ends and its step; ReLU6 may clip below the high end."""
    step = limit / levels
    if signed:
        return -limit, limit, step
    return torch.zeros_like(limit), limit.clamp(max=RELU6_CEILING), step


def _range_ends(limit: torch.Tensor, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what values clipped below and above hand to the range (see `clipped_backward`)."""
    if signed:
        return -torch.ones_like(limit), torch.ones_like(limit)
    # Where ReLU6's ceiling is lower than the range, it is not the range that clips.
    return torch.zeros_like(limit), (limit < RELU6_CEILING).to(limit.dtype)


class _Clipped(torch.autograd.Function):
    """The paper's gradients."""

    @staticmethod
    def forward(ctx, x, limit, levels, signed):
        limit = limit.clamp(min=SMALLEST_LIMIT)
        y, side = run_forward(clipped_forward, x, *_bounds(limit, levels, signed))
        ctx.signed = signed
        ctx.save_for_backward(side, limit)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        side, limit = ctx.saved_tensors
        ends = _range_ends(limit, ctx.signed)
        return *run_backward(clipped_backward, grad, side, *ends), None, None


class _Learned(torch.autograd.Function):
    """The gradients of LSQ, for the range instead of the step: limit = levels * step.

    LSQ scales the step's gradient by 1 / sqrt(n * levels), n values a range; for the same relative
    change of the range, its own gradient is to be scaled by levels^1.5 / sqrt(n).
    """

    @staticmethod
    def forward(ctx, x, limit, levels, signed):
        limit = limit.clamp(min=SMALLEST_LIMIT)
        y, added = run_forward(learned_forward, x, *_bounds(limit, levels, signed))
        ctx.levels, ctx.signed = levels, signed
        ctx.save_for_backward(added, limit)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        added, limit = ctx.saved_tensors
        unit = torch.full_like(limit, 1 / (RESIDUAL_SCALE * ctx.levels))
        grad_x, grad_limit = run_backward(
            learned_backward, grad, added, *_range_ends(limit, ctx.signed), unit
        )
        n = grad.numel() / limit.numel() / (1 if ctx.signed else len(grad))
        return grad_x, grad_limit * (ctx.levels**1.5 / n**0.5), None, None
