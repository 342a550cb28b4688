"""How a predictor is trained."""

import math
from dataclasses import dataclass

from apq.errors import ApqError


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a predictor is trained."""

    n_epochs: int = 150
    batch_size: int = 128
    lr: float = 3e-3
    transfer_lr: float = 1e-3
    """Learning rate when the weights come from a full-precision predictor; a larger one would
    unlearn them."""
    weight_decay: float = 1e-2
    held_out: float = 0.2
    """Share of the pairs that the figures come from; no predictor ever sees them."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ApqError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "transfer_lr"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ApqError(f"{name} is {value}; it must be a positive number")
        if not 0 < self.held_out < 1:
            raise ApqError(f"held_out is {self.held_out}; it must lie between 0 and 1")
