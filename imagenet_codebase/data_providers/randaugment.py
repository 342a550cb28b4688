"""RandAugment: two random changes of colour or shape to each image (CVPR workshops, 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import nn


def randaugment(pixels: torch.Tensor, seeds: Iterable[int]) -> torch.Tensor:
    """Return images (B, S, S, 1 or 3) uint8, each changed as its seed (32 bits) says."""
    change = _transform()
    changed = []
    # torchvision draws from torch's global generator, which nobody else shall notice.
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(pixels.permute(0, 3, 1, 2), seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed).permute(0, 2, 3, 1)


@cache
def _transform() -> nn.Module:
    from torchvision.transforms import v2  # slow to import

    return v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)
