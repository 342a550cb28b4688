"""Small images that are decoded once, kept in memory and prepared a whole batch at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from apq.streams import Stream
from imagenet_codebase.data_providers.normalization import Normalization

N_DRAWS = 3
"""Random numbers in 0..1 that the augmentation of one image uses."""

Augmentation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes images (B, C, h, w) uint8 and draws (B, 3); returns images like them."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MemorySource:
    """All images of a data set as one uint8 tensor, read when the first batch is asked for."""

    read: Callable[[], torch.Tensor]
    """Returns the pixels, uint8 of shape (N, h, w, 1 or 3)."""
    labels: np.ndarray
    image_size: int
    normalize: Normalization
    augmentation: Augmentation
    names = None
    in_memory = True

    @cached_property
    def pixels(self) -> torch.Tensor:
        """The images as they are stored, uint8 (N, h, w, C)."""
        return self.read()

    def batch(self, indices: np.ndarray, key: tuple[int, int] | None) -> torch.Tensor:
        """Return images (B, S, S, 1 or 3) uint8, augmented when there is a key."""
        images = self.pixels[torch.from_numpy(indices)].permute(0, 3, 1, 2)
        if key is not None:
            draws = _epoch_draws(key, len(self.labels))[indices]
            images = self.augmentation(images, torch.from_numpy(draws))
        return resize(images, self.image_size).permute(0, 2, 3, 1)


@lru_cache(maxsize=2)
def _epoch_draws(key: tuple[int, int], n_images: int) -> np.ndarray:
    """Return what one epoch's augmentation draws, float32 (n_images, 3), whatever the batches."""
    return Stream.CROPS_IN_MEMORY.generator(*key).random((n_images, N_DRAWS), dtype=np.float32)


def resize(images: torch.Tensor, image_size: int) -> torch.Tensor:
    """Return images (B, C, S, S), bilinear, of images (B, C, h, w), uint8 or floating."""
    if images.shape[-2:] == (image_size, image_size):
        return images
    # Antialiasing matters only where images shrink.
    size = (image_size, image_size)
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def crop_and_flip(images: torch.Tensor, draws: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """Crop at random out of a black border of `padding` pixels, and mirror every second image."""
    height, width = images.shape[-2:]
    border = (0, 0, padding, padding, padding, padding)
    padded = F.pad(images.permute(0, 2, 3, 1), border).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    top, left = (draws[:, :2] * (2 * padding + 1)).long().numpy().T
    crops = windows[np.arange(len(images)), top, left]
    mirrored = draws[:, 2].numpy() < 0.5
    crops[mirrored] = crops[mirrored, ..., ::-1]
    return torch.from_numpy(crops)


def shift_and_rotate(
    images: torch.Tensor, draws: torch.Tensor, shift: float = 0.08, degrees: float = 10.0
) -> torch.Tensor:
    """Move images by up to `shift` of their side each way, and turn them by up to `degrees`."""
    signed = 2 * draws - 1
    angle = signed[:, 0] * math.radians(degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # affine_grid measures in half sides.
    x, y = 2 * shift * signed[:, 1], 2 * shift * signed[:, 2]
    matrix = torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)
    grid = F.affine_grid(matrix, images.shape, align_corners=False)
    moved = F.grid_sample(images.to(torch.float32), grid, align_corners=False)
    return moved.round_().to(torch.uint8)
