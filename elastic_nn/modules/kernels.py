"""The passes over the values that quantizing takes: plain formulas, and how they are run.

As they are, they go through the values part by part, each small enough for a CPU's cache. Compiled
(`compile_kernels`), a pass is one loop that reads and writes every value once. What the backward
pass has to know of a value is kept in one byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from apq.errors import ApqError

# A residual of rounding, -0.5..0.5 of a step, is kept in one byte as -125..125.
RESIDUAL_SCALE = 250.0
# 1 MB of float32: with what is made of it, it stays in a core's second-level cache.
PART_VALUES = 2**18
# With fewer values, calling a compiled pass takes longer than the pass.
COMPILED_VALUES = 2**15

Pair = tuple[torch.Tensor, torch.Tensor]
Kernel = Callable[..., Pair]

_compiled: dict[Kernel, Kernel] = {}


# All operations are on floats, or on bytes, as far as can be: comparisons and what else turns one
# into the other take five times as long on a CPU.


def clipped_forward(
    x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, step: torch.Tensor
) -> Pair:
    """Return rounded values, and the side at which each was clipped: -1, 0 or 1."""
    inside = torch.maximum(torch.minimum(x, high), low)
    side = torch.sign(x - inside)
    return torch.round(inside / step) * step, side.to(torch.int8)


def clipped_backward(
    grad: torch.Tensor, side: torch.Tensor, least: torch.Tensor, clips: torch.Tensor
) -> Pair:
    """Return the gradients of the values and of the range.

    `least` is -1 where the lower bound moves with the range, else 0; `clips` is 0 where it is not
    the range that clips above, else 1; both have the range's shape.
    """
    side = side.to(grad.dtype)
    shares = grad * (torch.maximum(side, least) * clips)
    return grad * (1 - side * side), shares.sum_to_size(least.shape)


def learned_forward(
    x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, step: torch.Tensor
) -> Pair:
    """Return rounded values, and what rounding added to each, or +-127 where it was clipped."""
    inside = torch.maximum(torch.minimum(x, high), low)
    scaled = inside / step
    rounded = torch.round(scaled)
    residual = torch.round((rounded - scaled) * RESIDUAL_SCALE)
    # Far beyond a byte, so that the side outweighs the residual.
    added = residual + torch.sign(x - inside) * (3 * RESIDUAL_SCALE)
    return rounded * step, added.clamp(-127, 127).to(torch.int8)


def learned_backward(
    grad: torch.Tensor,
    added: torch.Tensor,
    least: torch.Tensor,
    clips: torch.Tensor,
    unit: torch.Tensor,
) -> Pair:
    """Return the gradients of the values and of the range.

    As `clipped_backward`; `unit` is what one of the byte's units of a step is of the range.
    """
    added = added.to(grad.dtype)
    side = torch.trunc(added * (1 / 126))
    kept = 1 - side * side
    shares = grad * (added * kept * unit + torch.maximum(side, least) * clips)
    return grad * kept, shares.sum_to_size(least.shape)


@torch.no_grad()
def run_forward(kernel: Kernel, x: torch.Tensor, *bounds: torch.Tensor) -> Pair:
    """Return a forward kernel's values and bytes, laid out like `x`; the bounds broadcast."""
    if _runs_compiled(kernel, x, bounds[-1]):
        y, code = _compiled[kernel](_in_a_row(x), *(b.reshape(1) for b in bounds))
        return _shaped(y, x), _shaped(code, x)
    y, code = torch.empty_like(x), torch.empty_like(x, dtype=torch.int8)
    for part, y_part, code_part in parts(bounds[-1], x, y, code):
        values, codes = kernel(part, *bounds)
        y_part.copy_(values)
        code_part.copy_(codes)
    return y, code


@torch.no_grad()
def run_backward(
    kernel: Kernel, grad: torch.Tensor, code: torch.Tensor, *bounds: torch.Tensor
) -> Pair:
    """Return a backward kernel's gradients, of the values laid out like `grad`."""
    if _runs_compiled(kernel, grad, bounds[-1]):
        # torch turns bytes into floats by itself several times as fast as inside a compiled loop.
        code = code.to(grad.dtype).contiguous(memory_format=_memory_format(grad))
        rows = (_in_a_row(grad), _in_a_row(code))
        grad_x, grad_limit = _compiled[kernel](*rows, *(b.reshape(1) for b in bounds))
        return _shaped(grad_x, grad), grad_limit.reshape(bounds[-1].shape)
    grad_x, grad_limit = torch.empty_like(grad), torch.zeros_like(bounds[-1])
    for part, code_part, x_part in parts(grad_limit, grad, code, grad_x):
        inside, of_limit = kernel(part, code_part, *bounds)
        x_part.copy_(inside)
        grad_limit += of_limit
    return grad_x, grad_limit


def parts(limit: torch.Tensor, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
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


# ---- compiled ----


@torch.no_grad()
def compile_kernels(device: torch.device) -> None:
    """Run every kernel as one compiled loop from now on, where one range serves many values.

    Takes some seconds, the first time. Raises ApqError when torch cannot compile here, and leaves
    all as it was.
    """
    if _compiled:
        return
    n_arguments = {  # values, then bounds
        clipped_forward: (1, 3),
        clipped_backward: (2, 2),
        learned_forward: (1, 3),
        learned_backward: (2, 3),
    }
    made = {kernel: torch.compile(kernel, dynamic=True) for kernel in n_arguments}
    try:
        for kernel, (n_values, n_bounds) in n_arguments.items():
            # Tensors of their own: one given twice would be taken for the rule.
            values = (torch.ones(COMPILED_VALUES, device=device) for _ in range(n_values))
            made[kernel](*values, *(torch.ones(1, device=device) for _ in range(n_bounds)))
    except Exception as error:  # whatever this machine's compilers may have to say
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ApqError(
            f"torch cannot compile here ({reason}): install a C++ compiler, or use --no-compile"
        ) from None
    _compiled.update(made)


def _runs_compiled(kernel: Kernel, x: torch.Tensor, limit: torch.Tensor) -> bool:
    is_dense = x.is_contiguous(memory_format=_memory_format(x))
    return kernel in _compiled and limit.numel() == 1 and x.numel() >= COMPILED_VALUES and is_dense


def _memory_format(x: torch.Tensor) -> torch.memory_format:
    is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _in_a_row(x: torch.Tensor) -> torch.Tensor:
    """Return the values in the order of memory, (n,): one loop then serves every shape.

    Not as a view: a compiled loop is for the shape of what it is a view of.
    """
    row = torch.empty(0, dtype=x.dtype, device=x.device)
    return row.set_(x.untyped_storage(), x.storage_offset(), (x.numel(),), (1,))


def _shaped(row: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return row.as_strided(like.shape, like.stride())
