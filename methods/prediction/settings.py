"""How a predictor is trained."""

from dataclasses import dataclass

from apq.checks import check_positive, check_whole, check_within


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a predictor is trained."""

    n_epochs: int = 40
    batch_size: int = 128
    lr: float = 1e-3
    transfer_lr: float = 3e-4
    """Learning rate when the weights come from a full-precision predictor; a larger one would
    unlearn them."""
    weight_decay: float = 1.0
    """Of AdamW, for weights only."""
    dropout: float = 0.2
    """Share of the hidden units left out of each step. With few pairs, a predictor that fits them
    closely is the one whose errors a search finds. It errs least on pairs held out, of what was
    tried (`benchmarks/predictor_fit.py`)."""
    held_out: float = 0.2
    """Share of the pairs that the figures come from; the predictors do not learn from them."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(self, "n_epochs", "batch_size", least=1)
        check_whole(self, "seed", least=0)
        check_positive(self, "lr", "transfer_lr", "held_out")
        check_within(self, "weight_decay")
        check_within(self, "held_out", high=0.9)
        check_within(self, "dropout", high=0.9)
