"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels that need no download."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from apq.errors import ApqError
from imagenet_codebase.data_providers.memory import (
    MemorySource,
    resize,
    shift_and_rotate,
)
from imagenet_codebase.data_providers.normalization import Normalization
from imagenet_codebase.data_providers.splits import OpenedSplits, Split, carve

N_TEST = 360
TEST_SEED = 0
"""The test images are the same for everybody, whatever seed a run has."""

# Of the 1,437 images outside the test split, at 8 x 8 pixels, rounded.
NORMALIZATION = Normalization(mean=(0.305,) * 3, std=(0.376,) * 3)


def read_digits(image_size: int) -> OpenedSplits:
    """Open the images, 360 of them set aside for testing.

    Raises ApqError when scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ApqError("the digits come with scikit-learn: pip install scikit-learn") from None
    grey, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(np.rint(grey * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    source = MemorySource(
        read=partial(_enlarge, small, image_size),
        labels=labels.astype(np.int64),
        image_size=image_size,
        normalize=NORMALIZATION,
        augmentation=shift_and_rotate,
    )
    learn, test = carve(source.labels, N_TEST, TEST_SEED)
    return OpenedSplits(
        class_names=tuple("0123456789"),
        train=Split(source=source, indices=learn),
        val=None,
        test=Split(source=source, indices=test),
    )


def _enlarge(small: torch.Tensor, image_size: int) -> torch.Tensor:
    return resize(small, image_size).permute(0, 2, 3, 1).contiguous()
