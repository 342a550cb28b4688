"""From pixels to what a network reads."""

from __future__ import annotations

from dataclasses import dataclass

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
        mean, std = (
            torch.tensor(v[:n_channels], device=images.device).repeat(width)
            for v in (self.mean, self.std)
        )
        # Whole rows of pixels at once: a loop over three channels is four times slower.
        rows = images.reshape(n, height, width * n_channels)
        values = (rows * (1 / (255 * std))).sub_(mean / std)
        values = values.view(n, height, width, n_channels).expand(-1, -1, -1, 3)
        return values.contiguous().permute(0, 3, 1, 2)
