"""Accuracy of a network over a data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from apq.errors import ApqError
from apq.progress import track
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager import distributed
from utils.devices import to_device


@dataclass(frozen=True)
class Accuracy:
    """Shares in 0..1 over `n_images`, and the mean cross-entropy."""

    top1: float
    top5: float
    loss: float
    n_images: int


def evaluate(
    net: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], description: str = ""
) -> Accuracy:
    """Run the network in evaluation mode over batches of images (N, 3, S, S) and labels (N,).

    Counts stay on the device until the end. Raises ApqError when there is no image.
    """
    return _accuracy(_count(net, batches, description))


def evaluate_split(
    net: nn.Module,
    data: DataProvider,
    split: str,
    batch_size: int = 256,
    n_workers: int = 0,
    description: str = "",
) -> Accuracy:
    """Return the accuracy over all images of a split, each of them seen by one of the processes.

    Every process has to call this, and all return the same. Raises ApqError when there is no
    image.
    """
    share, device = distributed.shard(), next(net.parameters()).device
    loader = data.loader(split, batch_size, n_workers, shard=share, device=device)
    description = description if distributed.is_first() else ""
    return _accuracy(distributed.total(_count(net, loader, description)))


@torch.inference_mode()
def margins_of(
    net: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Return how surely a network in evaluation mode recognises images: (N,), on the CPU.

    The logit of the right class less the largest of the others: above zero where it is right.
    """
    device = next(net.parameters()).device
    margins = []
    for images, labels in batches:
        logits, right = net(to_device(images, device)), labels.to(device)[:, None]
        others = logits.scatter(1, right, -torch.inf).amax(dim=1)
        margins.append(logits.gather(1, right)[:, 0] - others)
    return torch.cat(margins).cpu()


@torch.inference_mode()
def _count(
    net: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], description: str
) -> torch.Tensor:
    """Return right answers at 1 and at 5, the sum of losses and the number of images."""
    device = next(net.parameters()).device
    training = net.training
    net.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    try:
        for images, labels in track(batches, description):
            logits = net(to_device(images, device))
            labels = labels.to(device, non_blocking=True)
            ranked = logits.topk(min(5, logits.size(1)), dim=1).indices
            hits = ranked == labels[:, None]
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            count = torch.full_like(loss, len(labels))
            totals += torch.stack([hits[:, 0].sum(), hits.sum(), loss, count])
    finally:
        net.train(training)
    return totals


def _accuracy(totals: torch.Tensor) -> Accuracy:
    *sums, n_images = totals.tolist()
    if not n_images:
        raise ApqError("there are no images to measure the accuracy on")
    return Accuracy(*(value / n_images for value in sums), int(n_images))
