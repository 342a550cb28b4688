"""The passes over the values that quantizing takes: plain formulas, and how they are run.

A pass sees its values as rows (R, n), in the order of memory, each row with a range of its own:
`limit`, (R, 1). As they are, the formulas go through many values part by part, each small enough
for a CPU's cache. Compiled (`compile_kernels`), a pass is one loop that reads and writes every
value once. What the backward pass has to know of a value is kept in one byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch

from apq.errors import ApqError
from elastic_nn.quantizer_kinds import Quantizer

# A residual of rounding, -0.5..0.5 of a step, is kept in one byte as -125..125.
RESIDUAL_SCALE = 250.0
# 1 MB of float32: with what is made of it, it stays in a core's second-level cache.
PART_VALUES = 2**18
RELU6_CEILING = 6.0

Pair = tuple[torch.Tensor, torch.Tensor]
Kernel = Callable[..., Pair]

_compiled: dict[tuple[Kernel, bool, str], Kernel] = {}
"""Kernels as compiled loops, for one row (False) and for several (True), by type of device."""
_in_use: dict[tuple[Kernel, bool, str], Kernel] = {}
"""Those of them that the passes run as."""


class Grid(NamedTuple):
    """The levels that a range is divided into, as tensors (1,) that the passes can take."""

    levels: torch.Tensor
    """The largest integer level; a step is the range over it."""
    bottom: torch.Tensor
    """The low end in ranges: where values have signs -1, or a step below it, else 0."""
    ceiling: torch.Tensor
    """Where ReLU6 clips, whatever the range; infinite where values have signs."""


@lru_cache(maxsize=64)
def make_grid(lowest: int, levels: int, device: torch.device, dtype: torch.dtype) -> Grid:
    """Return the grid from the lowest to the largest level; equal ones share their tensors."""
    values = (levels, lowest / levels, torch.inf if lowest else RELU6_CEILING)
    # Filled on the device: copied there, they would make it wait. Of use inside and outside of
    # inference mode, whoever asks first.
    with torch.inference_mode(False):
        return Grid(*(torch.full((1,), v, device=device, dtype=dtype) for v in values))


# All operations are on floats, or on bytes, as far as can be: comparisons and what else turns one
# into the other take five times as long on a CPU.


def clipped_forward(x: torch.Tensor, limit: torch.Tensor, *grid: torch.Tensor) -> Pair:
    """Return rounded values, and the side at which each was clipped: -1, 0 or 1."""
    inside, step = _clip(x, limit, *grid)
    side = torch.sign(x - inside)
    return torch.round(inside / step) * step, side.to(torch.int8)


def clipped_backward(
    grad: torch.Tensor, side: torch.Tensor, limit: torch.Tensor, *grid: torch.Tensor
) -> Pair:
    """Return the gradients of the values and, summed up, of the ranges."""
    shares = grad * _share_of_clipped(side, limit, *grid)
    return grad * (1 - side * side), shares.sum(1, keepdim=True)


def learned_forward(x: torch.Tensor, limit: torch.Tensor, *grid: torch.Tensor) -> Pair:
    """Return rounded values, and what rounding added to each, or +-127 where it was clipped."""
    inside, step = _clip(x, limit, *grid)
    scaled = inside / step
    rounded = torch.round(scaled)
    residual = torch.round((rounded - scaled) * RESIDUAL_SCALE)
    # Far beyond a byte, so that the side outweighs the residual.
    added = residual + torch.sign(x - inside) * (3 * RESIDUAL_SCALE)
    return rounded * step, added.clamp(-127, 127).to(torch.int8)


def learned_backward(
    grad: torch.Tensor, added: torch.Tensor, limit: torch.Tensor, *grid: torch.Tensor
) -> Pair:
    """Return the gradients of the values and, summed up, of the ranges."""
    side = torch.trunc(added * (1 / 126))
    kept = 1 - side * side
    # What one of the byte's units of a step is of the range.
    unit = 1 / (RESIDUAL_SCALE * grid[0])
    shares = grad * (added * kept * unit + _share_of_clipped(side, limit, *grid))
    return grad * kept, shares.sum(1, keepdim=True)


def _clip(x: torch.Tensor, limit: torch.Tensor, *grid: torch.Tensor) -> Pair:
    """Return the values inside the range, and its step."""
    low, high, step = _bounds(limit, *grid)
    return torch.maximum(torch.minimum(x, high), low), step


def _bounds(
    limit: torch.Tensor, levels: torch.Tensor, bottom: torch.Tensor, ceiling: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the ranges' low and high ends and their steps; ReLU6 may clip below the high end."""
    return limit * bottom, torch.minimum(limit, ceiling), limit / levels


def _share_of_clipped(
    side: torch.Tensor,
    limit: torch.Tensor,
    levels: torch.Tensor,
    bottom: torch.Tensor,
    ceiling: torch.Tensor,
) -> torch.Tensor:
    """Return how much of a value's gradient the range gets, by the side it was clipped at.

    At ReLU6's ends it is not the range that clips: at zero, and at its ceiling where that is
    lower. Where both are equal the range counts as what clips, or none that starts there (the
    paper's all do) would ever be learned.
    """
    moves = (limit <= ceiling).to(limit.dtype)
    return (side.clamp(min=0) - side.clamp(max=0) * bottom) * moves


def run_forward(kernel: Kernel, x: torch.Tensor, limit: torch.Tensor, grid: Grid) -> Pair:
    """Return a forward kernel's values and bytes, laid out like `x`, which is dense."""
    rows = as_rows(x, len(limit))
    compiled = _compiled_for(kernel, rows)
    if compiled:
        y, code = compiled(rows, limit, *grid)
    elif _fits(rows):
        y, code = kernel(rows, limit, *grid)
    else:
        y, code = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.int8)
        for part, y_part, code_part in _parts(rows, y, code):
            values, codes = kernel(part, limit, *grid)
            y_part.copy_(values)
            code_part.copy_(codes)
    return _shaped(y, x), _shaped(code, x)


def run_backward(
    kernel: Kernel, grad: torch.Tensor, code: torch.Tensor, limit: torch.Tensor, grid: Grid
) -> Pair:
    """Return a backward kernel's gradients, of the values laid out like `code`, and (R, 1)."""
    # The same order in memory for both.
    like, code = code, as_rows(code, len(limit))
    if grad.stride() != like.stride():
        grad = torch.empty_like(like, dtype=grad.dtype).copy_(grad)
    rows = as_rows(grad, len(limit))
    compiled = _compiled_for(kernel, rows)
    if compiled:
        # torch turns bytes into floats by itself several times as fast as inside a compiled loop.
        grad_x, grad_limit = compiled(rows, code.to(grad.dtype), limit, *grid)
    elif _fits(rows):
        grad_x, grad_limit = kernel(rows, code.to(grad.dtype), limit, *grid)
    else:
        grad_x, grad_limit = torch.empty_like(rows), torch.zeros_like(limit)
        for part, code_part, x_part in _parts(rows, code, grad_x):
            inside, of_limit = kernel(part, code_part.to(grad.dtype), limit, *grid)
            x_part.copy_(inside)
            grad_limit += of_limit
    return _shaped(grad_x, like), grad_limit


@torch.no_grad()
def round_inside(x: torch.Tensor, limit: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return rounded values alone, laid out like `x`, which is dense."""
    rows = as_rows(x, len(limit))
    low, high, step = _bounds(limit, *grid)
    y = torch.empty_like(rows)
    for part, rounded in _parts(rows, y):
        # Twice as fast as clamp, which has no vectorised loop for bounds that are tensors.
        torch.maximum(torch.minimum(part, high, out=rounded), low, out=rounded)
        rounded.div_(step).round_().mul_(step)
    return _shaped(y, x)


def _compiled_for(kernel: Kernel, rows: torch.Tensor) -> Kernel | None:
    if rows.dtype != torch.float32:
        return None
    return _in_use.get((kernel, len(rows) > 1, rows.device.type))


def _fits(rows: torch.Tensor) -> bool:
    """Whether the values are few enough for a CPU's cache, or cannot be taken part by part."""
    return rows.device.type != "cpu" or len(rows) > 1 or rows.numel() <= PART_VALUES


def _parts(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the same columns of tensors (R, n), few enough for a CPU's cache.

    Quantizing is a dozen passes over the values: from main memory each would take as long as a
    layer of the network.
    """
    if _fits(tensors[0]):
        yield tensors
    else:
        yield from zip(*(tensor.split(PART_VALUES, dim=1) for tensor in tensors), strict=True)


# ---- rows ----


def dense(x: torch.Tensor) -> torch.Tensor:
    """Return the values without gaps between them, row after row of the first dimension."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def as_rows(x: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Return the values in the order of memory, (R, n): one loop then serves every shape.

    Not as a view: a compiled loop is for the shape of what it is a view of.
    """
    n = x.numel() // n_rows
    rows = torch.empty(0, dtype=x.dtype, device=x.device)
    return rows.set_(x.untyped_storage(), x.storage_offset(), (n_rows, n), (n, 1))


def _shaped(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.as_strided(like.shape, like.stride())


# ---- compiled ----


@torch.no_grad()
def compile_kernels(quantizer: Quantizer, device: torch.device) -> None:
    """Run the passes that a quantizer takes as one compiled loop each, until `use_plain_kernels`.

    Takes some seconds, the first time. Raises ApqError when torch cannot compile here, as before
    its version 2.8, and leaves all as it was.
    """
    pair = (
        (learned_forward, learned_backward)
        if quantizer.learned
        else (clipped_forward, clipped_backward)
    )
    # A loop over one row is another than one over several.
    wanted = {
        (kernel, by_row, device.type): (kernel, by_row)
        for by_row in {False, quantizer.per_channel}
        for kernel in pair
    }
    try:
        made = {
            key: _compile(*loop, device) for key, loop in wanted.items() if key not in _compiled
        }
    except Exception as error:  # whatever this machine's compilers may have to say
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ApqError(
            f"torch cannot compile here ({reason}): install a C++ compiler and torch 2.8 or later, "
            f"or use --no-compile"
        ) from None
    _compiled.update(made)
    _in_use.update({key: _compiled[key] for key in wanted})


def use_plain_kernels() -> None:
    """Run all passes as plain formulas; what was compiled is kept for `compile_kernels`."""
    _in_use.clear()


def _compile(kernel: Kernel, by_row: bool, device: torch.device) -> Kernel:
    """Return the kernel for any number of values, and for one row or any number of them.

    Without what `torch.compile` does at each call to see whether anything has changed: it takes
    several times as long as the pass over a filter.
    """
    # Slow to import.
    from torch._inductor import standalone_compile
    from torch.fx.experimental.proxy_tensor import make_fx

    shape = (64, PART_VALUES // 64) if by_row else (1, PART_VALUES)
    n_values = 2 if kernel in (clipped_backward, learned_backward) else 1
    values = (torch.ones(shape, device=device) for _ in range(n_values))
    limit = torch.ones((shape[0], 1), device=device)
    inputs = [*values, limit, *make_grid(-7, 7, device, torch.float32)]
    graph = make_fx(kernel, tracing_mode="symbolic")(*inputs)
    return standalone_compile(graph, inputs, dynamic_shapes="from_graph")
