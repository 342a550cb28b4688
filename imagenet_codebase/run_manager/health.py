"""Tells when training has gone astray, and in which layer it began."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

EXPLODED = 100.0
"""A loss so many times that of guessing, ln(classes), is no training any more."""


BY_UPDATE = ", by the update,"


def highest_loss(n_classes: int) -> float:
    """Return the cross-entropy above which a loss counts as exploded."""
    return EXPLODED * math.log(max(2, n_classes))


def is_sound(loss: float, highest: float) -> bool:
    """Whether a loss is a number, and one that training may have."""
    return math.isfinite(loss) and loss <= highest


def describe(loss: float, highest: float) -> str:
    """Return what to say of a step after which training was no longer sound."""
    if not math.isfinite(loss):
        return "the loss is no longer a number"
    if loss > highest:
        return f"the loss has grown to {loss:.3g}"
    return "the weights are no longer numbers"


def has_finite_state(net: nn.Module) -> bool:
    """Whether all weights and buffers are numbers; waits for the device once."""
    tensors = [t for t in net.state_dict().values() if t.is_floating_point()]
    return bool(torch.stack([t.float().norm() for t in tensors]).isfinite().all())


class Findings:
    """What watching one step has found: the first value that is not finite, the largest output."""

    def __init__(self) -> None:
        self.first = ""
        self.largest = (0.0, "")

    def look(self, what: str, values: torch.Tensor, output: bool = False) -> None:
        """Look at a tensor; the first one to hold inf or NaN is remembered by its name."""
        most = float(values.detach().abs().amax()) if values.numel() else 0.0
        if not math.isfinite(most):
            self.first = self.first or what
        elif output:
            self.largest = max(self.largest, (most, what))


@contextmanager
def watching(net: nn.Module) -> Iterator[Findings]:
    """Look at the output of every layer as it is made, and then at every gradient.

    Each look waits for the device: for a step that is known to fail.
    """
    findings, hooks = Findings(), []

    def on_output(name: str, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        findings.look(f"the output of {name}", output, output=True)

    def on_gradient(name: str, parameter: nn.Parameter) -> None:
        findings.look(f"the gradient of {name}", parameter.grad)

    for name, module in net.named_modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(partial(on_output, name)))
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            hook = parameter.register_post_accumulate_grad_hook(partial(on_gradient, name))
            hooks.append(hook)
    try:
        yield findings
    finally:
        for hook in hooks:
            hook.remove()


def cause(net: nn.Module, run_step: Callable[[], torch.Tensor], highest: float) -> str:
    """Run one step under watch; return where its first bad value is, or "" when there is none.

    `run_step` returns the loss.
    """
    with watching(net) as findings:
        loss = run_step()
    findings.look("the loss", loss)
    for name, parameter in net.named_parameters():
        findings.look(f"{name}{BY_UPDATE}", parameter)
    if findings.first:
        return f"{findings.first} is the first that is not finite"
    if not is_sound(float(loss), highest):
        most, what = findings.largest
        return f"{what} is the largest, up to {most:.3g}"
    return ""
