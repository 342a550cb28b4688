"""The paper's quantizers: uniform steps, straight-through gradients, a learned activation range."""

import torch
from torch.autograd.function import once_differentiable

# Keeps the step above zero, for filters of zeros and for ranges that training drives down.
SMALLEST_LIMIT = 1e-5


def n_levels(bits: int, signed: bool) -> int:
    """Return the largest integer level: 2^(b-1) - 1 when signed, 2^b - 1 otherwise."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def fake_quantize(x: torch.Tensor, limit: torch.Tensor, bits: int, signed: bool) -> torch.Tensor:
    """Round `x` to the levels of [-limit, limit] (signed) or [0, limit], and return it as float.

    `limit` has shape (1,). The gradient passes straight through where `x` is inside; the values
    clipped at `limit` hand theirs to `limit`.
    """
    levels = n_levels(bits, signed)
    if torch.is_grad_enabled() and (x.requires_grad or limit.requires_grad):
        return _FakeQuantize.apply(x, limit, levels, signed)
    step = limit.clamp(min=SMALLEST_LIMIT) / levels
    return x.div(step).clamp_(-levels if signed else 0, levels).round_().mul_(step)


class _FakeQuantize(torch.autograd.Function):
    """Keeps one byte a value for the backward pass: which side it was clipped at, if any."""

    @staticmethod
    def forward(ctx, x, limit, levels, signed):
        limit = limit.clamp(min=SMALLEST_LIMIT)
        # On the values themselves: rounding may push the largest one's quotient over the edge.
        clipped = x.gt(limit).to(torch.int8)
        # Unsigned inputs come out of a ReLU, whose own gradient is zero below zero.
        if signed:
            clipped -= x.lt(-limit).to(torch.int8)
        ctx.save_for_backward(clipped)
        step = limit / levels
        return x.div(step).clamp_(-levels if signed else 0, levels).round_().mul_(step)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (clipped,) = ctx.saved_tensors
        grad_limit = None
        if ctx.needs_input_grad[1]:
            grad_limit = (grad * clipped).sum().reshape(1)
        grad_x = grad.masked_fill(clipped != 0, 0) if ctx.needs_input_grad[0] else None
        return grad_x, grad_limit, None, None
