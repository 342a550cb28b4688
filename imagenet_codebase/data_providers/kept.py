"""Images kept in memory as bytes, to take any of them out again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from imagenet_codebase.data_providers.normalization import Normalization


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class KeptImages:
    """Some images of a split, as they come from decoding."""

    pixels: torch.Tensor
    """uint8 (N, S, S, 1 or 3)."""
    labels: torch.Tensor
    """int64 (N,)."""
    normalize: Normalization

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, positions: np.ndarray, batch_size: int, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images (B, 3, S, S) float32 and labels (B,) of positions (n,), on the device."""
        for part in torch.from_numpy(positions).split(batch_size):
            pixels, labels = (t[part].to(device) for t in (self.pixels, self.labels))
            yield self.normalize(pixels), labels
