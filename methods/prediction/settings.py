"""How predictors are trained, and how the accuracies are measured that they learn from."""

from dataclasses import dataclass

from apq.checks import check_positive, check_whole, check_within


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a predictor is trained."""

    n_steps: int = 500
    batch_size: int = 256
    """Random subnets of each step."""
    lr: float = 1e-3
    """Of Adam, at the start of a cosine."""
    held_out: float = 0.2
    """Share of the pairs that the figures come from; what they judge has not learned from them."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(self, "n_steps", "batch_size", least=1)
        check_whole(self, "seed", least=0)
        check_positive(self, "lr", "held_out")
        check_within(self, "held_out", high=0.9)


@dataclass(frozen=True, kw_only=True)
class MeasuringSettings:
    """What a subnet's accuracy is measured with, under the supernet's weights."""

    n_bn_images: int = 512
    """Training images that its batch statistics are taken from."""
    n_draws: int = 1
    """Draws of them, over which its accuracy is the mean: with each one, images between two classes
    fall to the other side, and more images to a draw change little."""
    n_val_images: int = 0
    """Validation images that it runs on, those that subnets disagree about; 0: all there are."""
    batch_size: int = 256
    n_workers: int = 0
    """Processes that decode images; only for data that does not fit in memory."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(self, "batch_size", "n_draws", least=1)
        check_whole(self, "n_bn_images", least=2)
        check_whole(self, "n_val_images", "n_workers", "seed", least=0)

    def leaves_out(self, n_images: int) -> bool:
        """Whether some of so many validation images are not run."""
        return 0 < self.n_val_images < n_images
