"""Accuracy of a network over a data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from apq.errors import ApqError
from apq.progress import track


@dataclass(frozen=True)
class Accuracy:
    """Shares in 0..1 over `n_images`, and the mean cross-entropy."""

    top1: float
    top5: float
    loss: float
    n_images: int


@torch.inference_mode()
def evaluate(
    net: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], description: str = ""
) -> Accuracy:
    """Run the network in evaluation mode over batches of images (N, 3, S, S) and labels (N,).

    Counts stay on the device until the end. Raises ApqError when there is no image.
    """
    device = next(net.parameters()).device
    training = net.training
    net.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    n_images = 0
    try:
        for images, labels in track(batches, description):
            logits = net(to_device(images, device))
            labels = labels.to(device, non_blocking=True)
            ranked = logits.topk(min(5, logits.size(1)), dim=1).indices
            hits = ranked == labels[:, None]
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            totals += torch.stack([hits[:, 0].sum(), hits.sum(), loss]).to(torch.float64)
            n_images += len(labels)
    finally:
        net.train(training)
    if not n_images:
        raise ApqError("there are no images to measure the accuracy on")
    top1, top5, loss = (totals / n_images).tolist()
    return Accuracy(top1, top5, loss, n_images)


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move images (N, 3, S, S) and lay them out channels-last, which both CPU and GPU prefer."""
    return images.to(device, non_blocking=True, memory_format=torch.channels_last)


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; `auto` is CUDA where it is there, else the CPU.

    Raises ApqError when torch does not know it or cannot reach it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ApqError(f"--device {name} cannot be used here; try auto, cpu or cuda")
    return device
