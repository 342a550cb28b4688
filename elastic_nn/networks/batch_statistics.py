"""Changing the statistics that batch norm normalises by, but not what it computes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from apq.errors import ApqError
from elastic_nn.modules import ElasticBatchNorm2d
from elastic_nn.networks.mobile_net import MobileNet


@torch.no_grad()
def adopt_batch_statistics(net: MobileNet, batches: Iterable[torch.Tensor]) -> None:
    """Replace the active layers' running statistics by those of images, (N, 3, S, S) a batch.

    Scale and bias make up for it: with its running statistics the network computes the same as
    before, and so it does, about, when training takes those of a batch. Only for layers that run
    with all their channels. Raises ApqError when there is no batch.
    """
    norms = [m for m in net.modules() if isinstance(m, ElasticBatchNorm2d)]
    # Images seen, sum of the batches' means and of their mean squares, weighted by images.
    sums: dict[ElasticBatchNorm2d, tuple[int, torch.Tensor, torch.Tensor]] = {}

    def watch(norm: ElasticBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        x, exactly = inputs[0], {"dim": (0, 2, 3), "dtype": torch.float64}
        n = x.size(0)
        seen, mean, square = sums.get(norm, (0, 0, 0))
        mean, square = mean + n * x.mean(**exactly), square + n * x.square().mean(**exactly)
        sums[norm] = (seen + n, mean, square)

    hooks = [norm.register_forward_pre_hook(watch) for norm in norms]
    training = net.training
    try:
        net.eval()
        for images in batches:
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
        net.train(training)
    if not sums:
        raise ApqError("batch statistics cannot be taken without images")
    for norm, (n, mean, square) in sums.items():
        _renormalize(norm, mean / n, square / n - (mean / n).square())


def _renormalize(norm: ElasticBatchNorm2d, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Give the layer other statistics (C,), and the same function of its input."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    norm.bias += scale * (mean - norm.running_mean)
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
