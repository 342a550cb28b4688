"""The recipes of training runs, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from apq.checks import check_choice, check_decay, check_positive, check_whole, check_within
from apq.errors import ApqError

OF_IMAGES = {"n_train": "training", "train_images": "training", "val_images": "validation"}
"""Facts of a run that tell which images it sees."""
FREE_SETTINGS = ("n_workers", "save_every_s", "save_every", "compile")
"""What may differ between a run and its resumption: it changes no weight, or by rounding only."""


MAX_LR = 1e6  # far beyond sense, and far within what float32 holds
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The recipe; the defaults are the paper's finetuning."""

    n_epochs: int = 30
    batch_size: int = 64
    """Images a step of each process."""
    epoch_images: int = 0
    """Training images of an epoch, drawn anew for each one; 0 takes all there are."""
    optimizer: str = "sgd"
    """`sgd` with Nesterov momentum, or `adamw`, which wants some 20 times lower learning rates and
    a thousand times higher decay."""
    lr: float = 1e-3
    """Learning rate at the start of the cosine."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from zero."""
    momentum: float = 0.9
    """Of the gradient's running mean, for either optimizer."""
    weight_decay: float = 4e-5
    """Applied to filters only: not to batch norm, biases or quantization ranges."""
    label_smoothing: float = 0.1
    grad_clip: float = 0.0
    """Largest norm of the weights' gradient, and of that of the ranges; 0: no clipping."""
    seed: int = 0
    n_workers: int = 0
    """Processes that decode images; only for data that does not fit in memory."""
    save_every_s: float = 300.0
    """Seconds between two saves inside an epoch."""
    save_every: int = 0
    """Steps between two saves inside an epoch, beside `save_every_s`; 0 leaves it at that."""
    sync_bn: bool = False
    """Take batch statistics in training over all processes' images; otherwise each has its own."""
    scale_lr: bool = False
    """Multiply the learning rate by the number of processes."""
    compile: bool | None = None
    """Run the quantizers' passes as compiled loops; None: where it is worth its seconds."""

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_whole(self, "n_epochs", least=1)
        check_whole(self, "batch_size", least=2)  # batch norm has nothing to go by in one image
        check_whole(self, "seed", "n_workers", "epoch_images", "save_every", least=0)
        check_positive(self, "lr", "save_every_s")
        check_within(self, "lr", high=MAX_LR)
        check_within(self, "warmup_epochs", "weight_decay", "grad_clip")
        check_within(self, "label_smoothing", high=1)
        check_decay(self, "momentum")
        if self.warmup_epochs >= self.n_epochs:
            raise ApqError(
                f"warmup_epochs is {self.warmup_epochs:g} and n_epochs {self.n_epochs}: a run that "
                f"only warms up ends at its highest learning rate"
            )

    def lr_at(self, epoch: int, step: int, n_steps: int) -> float:
        """Return the learning rate of one step: linear warmup, then a cosine down to zero."""
        done = epoch + step / n_steps
        if done < self.warmup_epochs:
            return self.lr * min(1.0, (done + 1 / n_steps) / self.warmup_epochs)
        rest = max(self.n_epochs - self.warmup_epochs, 1e-9)
        return self.lr / 2 * (1 + math.cos(math.pi * (done - self.warmup_epochs) / rest))


@dataclass(frozen=True, kw_only=True)
class SupernetSettings:
    """Epochs and learning rate of each phase; a phase of 0 epochs is left out."""

    largest_epochs: int = 15
    elastic_epochs: int = 30
    quantized_epochs: int = 20
    lr: float = 0.05
    """Learning rate of the first two phases."""
    quantized_lr: float = 0.02
    quantized_share: float = 0.75
    """Share of the smaller subnets that run with random bits in the last phase."""
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(warmup_epochs=1.0, grad_clip=5.0)
    )
    """The rest of the recipe; its epochs and learning rate are replaced phase by phase."""
    n_random: int = 2
    """Random subnets of each step, once sizes differ."""
    sandwich_every: int = 1
    """Every N-th step trains the largest and the smallest subnet, too."""
    small_image_size: int = 0
    """Side of the images in the first part of the phases in full precision, which then take less
    time; 0: that of the data from the start."""
    small_share: float = 0.6
    """Share of those phases' epochs that are spent on such images."""
    n_bn_images: int = 512
    """Images that batch statistics are taken from before a subnet is measured."""
    init: str = ""
    """Weights to start from: `efficientnet-lite0`, a supernet file, or none (random ones)."""
    teacher: str = ""
    """Supernet file whose largest subnet teaches all those of this one, or none."""
    distill: float = 1.0
    """Share of the loss from the teacher's answers; the rest is from labels."""
    teacher_image_size: int = 0
    """Side to which images are enlarged for the teacher; 0: as they come."""

    def __post_init__(self) -> None:
        check_whole(self, "largest_epochs", "elastic_epochs", "quantized_epochs", least=0)
        check_whole(self, "n_random", "small_image_size", "teacher_image_size", least=0)
        check_whole(self, "n_bn_images", "sandwich_every", least=1)
        if self.sandwich_every > 1 and not self.n_random:
            raise ApqError("sandwich_every is above 1: n_random must be at least 1")
        check_positive(self, "lr", "quantized_lr")
        check_within(self, "quantized_share", "small_share", "distill", high=1)
        if not self.largest_epochs + self.elastic_epochs + self.quantized_epochs:
            raise ApqError("every phase has 0 epochs: there is nothing to train")


def first_difference(
    state: dict[str, Any], settings: TrainingSettings, facts: dict[str, Any]
) -> str | None:
    """Return the first setting or fact that a saved state was not made with; None if there is none.

    Raises TypeError when its settings are no mapping.
    """
    # What a run older than a setting did is the setting's default; of images nothing is known.
    defaults = {**asdict(type(settings)()), "randaugment": False, "teacher": {}}
    defaults |= {name: facts[name] for name in OF_IMAGES if name in facts}
    told = {name: state[name] for name in facts if name in state}
    saved = {**defaults, **told, **state.get("settings", {})}
    for name, value in {**asdict(settings), **facts}.items():
        if name not in FREE_SETTINGS and saved.get(name) != value:
            return name
    return None
