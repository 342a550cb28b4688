"""The optimizer of every training run, and what several processes make of the recipe."""

from __future__ import annotations

import torch
from torch import nn

from elastic_nn.modules.layers import QuantizedLayer
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.settings import TrainingSettings


def make_optimizer(net: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; only filters decay, and after a step ranges stay positive.

    Decay would pull kernel transforms away from the identity and ranges away from the data.
    """
    parameters = list(net.named_parameters())
    decays = [p.dim() > 1 and not name.endswith("_matrix") for name, p in parameters]
    groups = [
        {
            "params": [p for (_, p), d in zip(parameters, decays, strict=True) if d == decayed],
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.999))
    else:
        options = {"momentum": settings.momentum, "nesterov": settings.momentum > 0}
        optimizer = torch.optim.SGD(groups, lr=settings.lr, **options)
    layers = [m for m in net.modules() if isinstance(m, QuantizedLayer)]

    def keep_ranges(*_: object) -> None:
        for layer in layers:
            layer.keep_ranges()

    optimizer.register_step_post_hook(keep_ranges)
    return optimizer


def clip_gradients(net: nn.Module, largest: float) -> None:
    """Shorten the gradient of the weights to a norm of `largest`, and that of the ranges.

    Apart, as what a range's gradient is scaled by says nothing about the weights' steps.
    """
    weights, ranges = [], []
    for name, parameter in net.named_parameters():
        (ranges if name.endswith("_range") else weights).append(parameter)
    for parameters in (weights, ranges):
        nn.utils.clip_grad_norm_(parameters, largest)


def lr_factor(settings: TrainingSettings) -> int:
    """Return what the recipe's learning rate is multiplied by."""
    return distributed.shard().n_processes if settings.scale_lr else 1


def describe_batches(settings: TrainingSettings) -> str:
    """Say how large the batches of all processes are, and what that does to the learning rate."""
    n, lr = distributed.shard().n_processes, settings.lr * lr_factor(settings)
    scaled = "scaled by" if settings.scale_lr else "not scaled by the"
    return (
        f"{n} processes, {settings.batch_size} images each: batches of {n * settings.batch_size}. "
        f"The learning rate is {lr:g}, {scaled} {n} processes"
    )
