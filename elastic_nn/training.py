"""How the supernet learns: several subnets a step, of which the largest may teach the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from apq.space import BIT_FIELDS
from apq.subnet import Subnet, largest, smallest
from elastic_nn.networks import OnceForAllNet


@dataclass(frozen=True, kw_only=True)
class SandwichSettings:
    """What one step of supernet training runs."""

    elastic: bool = True
    """Train smaller subnets too; without it, the largest alone."""
    quantized_share: float = 0.0
    """Share of the smaller subnets that run with random bit widths."""
    n_random: int = 2
    """Random subnets a step, beside the largest and the smallest."""
    sandwich_every: int = 1
    """The largest and the smallest run in one of so many steps, the random ones in each."""
    label_smoothing: float = 0.1
    small_image_size: int = 0
    """Side to which images are shrunk in the first epochs, which then take less time; 0: none."""
    small_epochs: int = 0
    """How many epochs that are."""


AnswersFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps images (N, 3, S, S) and labels (N,) to probabilities (N, n_classes)."""


class SandwichStep:
    """One step: forward and backward of the largest, the smallest and random subnets.

    The largest, in full precision, learns from the labels; the rest from its softened answers
    (sandwich rule and in-place distillation: universally slimmable networks, ICCV 2019). As it
    costs more than the rest together, it may be left out of some steps, with the smallest: then
    the random ones learn from the labels. With a teacher, all of them learn from its answers to the
    very images they see, though it sees them before they are shrunk.
    """

    def __init__(
        self, net: OnceForAllNet, settings: SandwichSettings, teacher: AnswersFn | None = None
    ) -> None:
        self.net, self.settings, self.teacher = net, settings, teacher
        self.largest, self.smallest = largest(net.space), smallest(net.space)

    def subnets(self, key: tuple[int, ...]) -> list[Subnet]:
        """Return the smallest and random subnets of the step named by `key`, always the same."""
        rng, space, n = np.random.default_rng(key), self.net.space, self.settings.n_random
        genes = np.concatenate([space.sample(rng, 1), space.sample_spread(rng, n)])
        narrow, *drawn = space.decode(genes)
        # The smallest architecture takes the bits of the first draw.
        bits = {name: getattr(narrow, name) for name in BIT_FIELDS}
        candidates = [replace(self.smallest, **bits), *drawn]
        keep_bits = rng.random(n + 1) < self.settings.quantized_share
        return [
            subnet if keep else subnet.full_precision()
            for subnet, keep in zip(candidates, keep_bits, strict=True)
        ]

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, key: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of one batch; return its first subnet's loss and right answers.

        The key is (seed, epoch, step).
        """
        answers = self.teacher(images, labels) if self.teacher else labels
        if self.settings.small_image_size and key[1] < self.settings.small_epochs:
            size = (self.settings.small_image_size,) * 2
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        if not self.settings.elastic:
            subnets = [self.largest]
        elif key[2] % self.settings.sandwich_every:
            subnets = self.subnets(key)[1:]
        else:
            subnets = [self.largest, *self.subnets(key)]
        logits, loss = self._learn(subnets[0], images, answers)
        if subnets[0] is self.largest and not self.teacher:
            answers = logits.softmax(1)
        for subnet in subnets[1:]:
            self._learn(subnet, images, answers)
        return loss, (logits.argmax(1) == labels).sum()

    def _learn(
        self, subnet: Subnet, images: torch.Tensor, answers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a subnet's gradients; labels (N,) are smoothed, a teacher's answers (N, C) not."""
        self.net.activate(subnet)
        logits = self.net(images)
        smoothing = self.settings.label_smoothing if answers.dim() == 1 else 0.0
        loss = F.cross_entropy(logits, answers, label_smoothing=smoothing)
        loss.backward()
        return logits.detach(), loss.detach()


def calibrate_activations(net: OnceForAllNet, batches: Iterable[torch.Tensor]) -> None:
    """Start the quantized phase: activation ranges of every layer from the largest subnet.

    Weight ranges stay open, so that each subnet uses its own filter's largest magnitude.
    """
    batches = list(batches)
    net.activate(largest(net.space))
    net.reset_bn_statistics(batches)
    net.calibrate(batches[0], weights=False)
