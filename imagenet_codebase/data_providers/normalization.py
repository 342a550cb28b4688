"""From pixels to what a network reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of the channels red, green, blue, for pixels in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 images (B, 3, S, S) of uint8 images (B, S, S, 1 or 3), on their device.

        They lie in memory with channels last, as networks on CPU and GPU like them.
        """
        n, height, width, n_channels = images.shape
        scale, offset = _scale_and_offset(self, n_channels, width, images.device)
        # Whole rows of pixels at once: a loop over three channels is four times slower.
        rows = images.reshape(n, height, width * n_channels)
        values = (rows * scale).sub_(offset)
        values = values.view(n, height, width, n_channels).expand(-1, -1, -1, 3)
        return values.contiguous().permute(0, 3, 1, 2)


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of ImageNet's training images, as all the field takes it."""


@lru_cache(maxsize=16)
def _scale_and_offset(
    normalize: Normalization, n_channels: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a row of pixels is multiplied by, and what is then taken off; (width * C,)."""
    # Filled on the device, once: every batch would have to wait for what is copied there.
    with torch.inference_mode(False):
        mean, std = (
            torch.cat([torch.full((1,), v, device=device) for v in values[:n_channels]])
            for values in (normalize.mean, normalize.std)
        )
        return (1 / (255 * std)).repeat(width), (mean / std).repeat(width)
