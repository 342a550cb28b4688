"""Uniform quantization with straight-through gradients: the paper's, and learned step sizes.

Both round to whole steps of a range: `limit` is the range, of shape (1,) or, for weights,
(out channels, 1, 1, 1); a step is limit / levels.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from elastic_nn.modules.kernels import (
    Kernel,
    clipped_backward,
    clipped_forward,
    dense,
    learned_backward,
    learned_forward,
    make_grid,
    round_inside,
    run_backward,
    run_forward,
)

# Keeps the step above zero, for filters of zeros and for ranges that training drives down.
SMALLEST_LIMIT = 1e-5


def n_levels(bits: int, signed: bool) -> int:
    """Return the largest integer level: 2^(b-1) - 1 when signed, 2^b - 1 otherwise."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def lowest_level(bits: int, signed: bool, full: bool = False) -> int:
    """Return the smallest integer level: 0, or minus the largest, or with `full` one below that."""
    return -n_levels(bits, signed) - full if signed else 0


def quantize_signed(
    x: torch.Tensor,
    limit: torch.Tensor,
    bits: int,
    learned: bool = False,
    n_images: int = 1,
    full: bool = False,
) -> torch.Tensor:
    """Round `x` to the levels of [-limit, limit], with `full` to one below too; return it as float.

    The gradient passes straight through where `x` is inside; the values clipped at the limit hand
    theirs to it. With `learned` the rounding errors inside have their say as well, scaled as in
    LSQ (learned step size quantization, ICLR 2020), which asks for the number of images that `x`
    is the layer's input for; a filter counts as one.
    """
    lowest = lowest_level(bits, True, full)
    return _quantize(x, limit, lowest, n_levels(bits, signed=True), learned, n_images)


def quantize_relu6(
    x: torch.Tensor, limit: torch.Tensor, bits: int, learned: bool = False
) -> torch.Tensor:
    """Pass `x` through ReLU6 and round it to the levels of [0, limit], in one operation.

    Gradients as in `quantize_signed`. The backward pass needs one byte a value, not the values.
    """
    return _quantize(x, limit, 0, n_levels(bits, signed=False), learned, len(x))


def _quantize(
    x: torch.Tensor, limit: torch.Tensor, lowest: int, levels: int, learned: bool, n_images: int
) -> torch.Tensor:
    if x.dtype in (torch.bfloat16, torch.float16):  # fewer bits than the levels may need
        x = x.float()
    if torch.is_grad_enabled() and (x.requires_grad or limit.requires_grad):
        if learned:
            scale = _lsq_scale(x.numel() / n_images, levels)
            return _Learned.apply(x, limit, lowest, levels, scale)
        return _Clipped.apply(x, limit, lowest, levels)
    rows, x = _rows(limit), dense(x.detach())
    return round_inside(x, rows, make_grid(lowest, levels, x.device, x.dtype))


def _rows(limit: torch.Tensor) -> torch.Tensor:
    """Return the ranges as the kernels take them, (R, 1)."""
    return limit.detach().reshape(-1, 1).clamp(min=SMALLEST_LIMIT)


class _Clipped(torch.autograd.Function):
    """The paper's gradients."""

    @staticmethod
    def forward(ctx, x, limit, lowest, levels):
        return _forward(ctx, clipped_forward, x, limit, lowest, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_x, grad_limit = _backward(ctx, clipped_backward, grad)
        return grad_x, grad_limit.view(ctx.limit_shape), None, None


class _Learned(torch.autograd.Function):
    """The gradients of LSQ, for the range instead of the step: limit = levels * step.

    LSQ scales the step's gradient by 1 / sqrt(n * levels), n values a layer; for the same relative
    change of the range, its own gradient is to be scaled by levels^1.5 / sqrt(n). Ranges of a layer
    by channel share its n: with that of a channel, some ten values of a depthwise filter, they
    would leap, and end below zero.
    """

    @staticmethod
    def forward(ctx, x, limit, lowest, levels, scale):
        ctx.scale = scale
        return _forward(ctx, learned_forward, x, limit, lowest, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_x, grad_limit = _backward(ctx, learned_backward, grad)
        return grad_x, (grad_limit * ctx.scale).view(ctx.limit_shape), None, None, None


def _lsq_scale(n_values: float, levels: int) -> float:
    """Return what a range's gradient is scaled by; of activations, one image's values count."""
    return levels**1.5 / n_values**0.5


def _forward(
    ctx, kernel: Kernel, x: torch.Tensor, limit: torch.Tensor, lowest: int, levels: int
) -> torch.Tensor:
    rows, grid = _rows(limit), make_grid(lowest, levels, x.device, x.dtype)
    y, code = run_forward(kernel, dense(x), rows, grid)
    ctx.grid, ctx.limit_shape = grid, limit.shape
    ctx.save_for_backward(code, rows)
    return y


def _backward(ctx, kernel: Kernel, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    code, rows = ctx.saved_tensors
    return run_backward(kernel, grad, code, rows, ctx.grid)
