"""Photographs read from their files batch by batch, prepared as is usual for ImageNet."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from apq.streams import Stream
from imagenet_codebase.data_providers.normalization import IMAGENET
from imagenet_codebase.data_providers.tree import ImageTree

EVALUATION_RATIO = 256 / 224
"""Shorter side before the centre crop, relative to the crop."""
CROP_SHARES = (0.08, 1.0)
"""Share of the area that a training crop keeps (Inception, CVPR 2015)."""
CROP_ASPECTS = (3 / 4, 4 / 3)
"""Width over height of a training crop."""
BRIGHTNESS, SATURATION = 32 / 255, 0.5
"""How far each factor may stray from 1."""
LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in the grey that an image without saturation has (BT.601)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSource:
    """The images of one folder, decoded whenever they are asked for."""

    tree: ImageTree
    image_size: int
    normalize = IMAGENET
    in_memory = False

    @property
    def labels(self) -> np.ndarray:
        """Classes (N,) int64."""
        return self.tree.labels

    @property
    def names(self) -> np.ndarray:
        """Paths below the class folders, bytes (N,)."""
        return self.tree.names

    def batch(self, indices: np.ndarray, key: tuple[int, int] | None) -> torch.Tensor:
        """Return images (B, S, S, 3) uint8, augmented when there is a key.

        What augmentation draws depends on the key and the image alone, so that workers and
        batches do not change it. Raises ApqError that names a damaged file.
        """
        pixels = np.empty((len(indices), self.image_size, self.image_size, 3), dtype=np.uint8)
        for row, index in zip(pixels, indices.tolist(), strict=True):
            image = self.tree.open(index)
            if key is None:
                row[:] = centre_crop(image, self.image_size)
            else:
                rng = Stream.CROPS_OF_FILES.generator(*key, index)
                random_view(image, self.image_size, rng, out=row)
        return torch.from_numpy(pixels)


def centre_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Resize the shorter side to 256/224 of `image_size`, and keep the centre."""
    return TF.center_crop(TF.resize(image, round(image_size * EVALUATION_RATIO)), [image_size] * 2)


def random_view(
    image: Image.Image, image_size: int, rng: np.random.Generator, out: np.ndarray
) -> None:
    """Put a random part of the image, mirrored or not, its colours shifted, into uint8 (S, S, 3).

    The product of all pixels with one matrix stands for two operations on images, which would take
    as long as the crop.
    """
    top, left, height, width = crop_box(image.width, image.height, rng)
    box = (left, top, left + width, top + height)
    view = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    brightness = rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)
    saturation = rng.uniform(1 - SATURATION, 1 + SATURATION)
    pixels = np.asarray(view).astype(np.float32).reshape(-1, 3)
    shifted = pixels @ colour_matrix(brightness, saturation)
    np.clip(shifted.reshape(out.shape), 0, 255, out=out, casting="unsafe")


def colour_matrix(brightness: float, saturation: float) -> np.ndarray:
    """Return what multiplies rows of red, green and blue, float32 (3, 3).

    Saturation blends a pixel with its grey, and brightness with black.
    """
    grey = np.outer(LUMA, np.ones(3))
    matrix = brightness * (saturation * np.eye(3) + (1 - saturation) * grey)
    return matrix.astype(np.float32)


def crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random part of an image, in pixels.

    Area and aspect are drawn until the part fits; after ten tries it is the largest centred
    part with an allowed aspect.
    """
    low, high = CROP_ASPECTS
    for _ in range(10):
        area = width * height * rng.uniform(*CROP_SHARES)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = max(1, min(width, round(height * high)))
    h = max(1, min(height, round(width / low)))
    return (height - h) // 2, (width - w) // 2, h, w
