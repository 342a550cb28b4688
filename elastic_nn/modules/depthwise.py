"""Depthwise convolution whose weight gradient is fast where the kernel is larger than the image.

On a CPU the library's routine for that gradient is 10 to 100 times slower there than the forward
pass (a 7x7 kernel on 4x4 or 2x2 images, as the last stages have them at 64 px), and takes half the
time of a training step (`python -m benchmarks.depthwise`).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx, once_differentiable


def depthwise_conv2d(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """Convolve (N, C, H, W) with (C, 1, K, K), K odd, padded by K // 2; as `F.conv2d` does."""
    if _is_slow(x, weight):
        return _DepthwiseConv2d.apply(x, weight, stride)
    if x.device.type == "cpu" and x.shape[2:] == (1, 1) and torch.is_autocast_enabled("cpu"):
        # In bfloat16 oneDNN's weight gradient holds what was in memory before (torch 2.14).
        with torch.autocast("cpu", enabled=False):
            y = depthwise_conv2d(x.float(), weight.float(), stride)
        return y.to(torch.get_autocast_dtype("cpu"))
    return F.conv2d(x, weight, None, stride, weight.size(-1) // 2, groups=x.size(1))


def _is_slow(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and max(x.shape[2:]) < weight.size(-1)
        and torch.is_grad_enabled()
        and weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
    )


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, stride: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.size(-1) // 2, groups=x.size(1))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(x, weight, grad, ctx.stride)
        return grad_x, weight_gradient(x, grad, weight.size(-1), ctx.stride), None


def _input_gradient(
    x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, stride: int
) -> torch.Tensor:
    # Not `torch.nn.grad.conv2d_input`: it forgets that x is channels-last.
    pad = weight.size(-1) // 2
    wanted = (True, False, False)
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, (stride,) * 2, (pad,) * 2, (1, 1), False, (0, 0), x.size(1), wanted
    )[0]


def weight_gradient(x: torch.Tensor, grad: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Return the gradient (C, 1, K, K) from inputs (N, C, H, W) and the output's gradient.

    Every pair of an input and an output position belongs to one place of the kernel, or to none:
    there are few pairs, and a product of two positions is a row of channels, as they lie in memory.
    """
    inputs, outputs = (tensor.permute(0, 2, 3, 1).flatten(1, 2) for tensor in (x, grad))
    pairs = torch.stack([(row.unsqueeze(1) * outputs).sum(0) for row in inputs.unbind(1)])
    places = _places(tuple(x.shape[2:]), tuple(grad.shape[2:]), kernel, stride)
    places = places.to(pairs.device, pairs.dtype)
    return (places @ pairs.flatten(0, 1)).t().reshape(-1, 1, kernel, kernel)


@functools.lru_cache(maxsize=64)
def _places(
    image: tuple[int, int], output: tuple[int, int], kernel: int, stride: int
) -> torch.Tensor:
    """Return 1 where a pair (input, output position) belongs to a place of the kernel, else 0.

    Shape (K * K, H * W * h * w).
    """
    rows, columns = (
        torch.stack([_place(size, n, i, kernel, stride) for i in range(kernel)])
        for size, n in zip(image, output, strict=True)
    )
    return torch.einsum("iac,jbd->ijabcd", rows, columns).reshape(kernel * kernel, -1)


def _place(size: int, n: int, i: int, kernel: int, stride: int) -> torch.Tensor:
    """Return 1 where output position q reads input position p by row i of the kernel: (P, Q)."""
    read = torch.arange(n) * stride - kernel // 2 + i
    return (torch.arange(size)[:, None] == read).float()
