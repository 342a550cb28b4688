"""Recipes of quantization-aware finetuning: the paper's, and what has paid since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apq.checks import check_decay, check_within
from elastic_nn.quantizer_kinds import find_quantizer
from imagenet_codebase.run_manager.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainingSettings):
    """A finetuning run; the defaults are the paper's."""

    quantizer: str = "paper"
    """How ranges are found and learned: see `elastic_nn.quantizer_kinds`."""
    ema: float = 0.0
    """Decay per step of the running average of the weights that is kept as the result; 0: none."""
    distill: float = 0.0
    """Share of the loss that the answers of the supernet's largest subnet make up."""
    reset_bn: bool = False
    """Take batch statistics anew before each validation."""
    bf16: bool = False
    """Run convolutions in bfloat16 (automatic mixed precision); ranges stay in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        find_quantizer(self.quantizer)
        check_within(self, "distill", high=1)
        check_decay(self, "ema")


RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "best": {
        "quantizer": "lsq-channel",
        "lr": 0.01,
        "warmup_epochs": 0.2,
        "grad_clip": 5.0,
    },
}
