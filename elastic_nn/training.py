"""How the supernet learns: several subnets a step, the largest of which teaches the others."""

from __future__ import annotations

from collections.abc import Iterable
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
    label_smoothing: float = 0.1
    small_image_size: int = 0
    """Side to which images are shrunk in the first epochs, which then take less time; 0: none."""
    small_epochs: int = 0
    """How many epochs that are."""


class SandwichStep:
    """One step: forward and backward of the largest, the smallest and random subnets.

    The largest, in full precision, learns from the labels; the rest from its softened answers
    (sandwich rule and in-place distillation: universally slimmable networks, ICCV 2019).
    """

    def __init__(self, net: OnceForAllNet, settings: SandwichSettings) -> None:
        self.net, self.settings = net, settings
        self.largest, self.smallest = largest(net.space), smallest(net.space)

    def subnets(self, key: tuple[int, ...]) -> list[Subnet]:
        """Return the smaller subnets of the step named by `key`; the same key draws the same."""
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
        """Add the gradients of one batch; return the largest's loss and number of right answers.

        The key is (seed, epoch, step).
        """
        if self.settings.small_image_size and key[1] < self.settings.small_epochs:
            size = (self.settings.small_image_size,) * 2
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        self.net.activate(self.largest)
        logits = self.net(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
        loss.backward()
        if self.settings.elastic:
            teacher = logits.detach().softmax(1)
            for subnet in self.subnets(key):
                self.net.activate(subnet)
                F.cross_entropy(self.net(images), teacher).backward()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def calibrate_activations(net: OnceForAllNet, batches: Iterable[torch.Tensor]) -> None:
    """Start the quantized phase: activation ranges of every layer from the largest subnet.

    Weight ranges stay open, so that each subnet uses its own filter's largest magnitude.
    """
    batches = list(batches)
    net.activate(largest(net.space))
    net.reset_bn_statistics(batches)
    net.calibrate(batches[0], weights=False)
