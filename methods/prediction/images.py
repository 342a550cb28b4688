"""What each subnet is measured with: the validation images that tell subnets apart.

Most images are easy for all subnets, or hopeless: running them tells nothing. Subnets that are
measured on every image show which those are, and how many of them a subnet recognises that does so
well on the others.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch

from apq.progress import Counter
from apq.space import SearchSpace
from apq.streams import Stream
from apq.subnet import Subnet
from elastic_nn.networks import OnceForAllNet
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.data_providers.kept import KeptImages
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.evaluate import margins_of
from imagenet_codebase.run_manager.measuring import ready_to_measure, with_variance
from methods.prediction.cards import KINDS
from methods.prediction.disputed import Disputed
from methods.prediction.draws import sample_both
from methods.prediction.settings import MeasuringSettings
from utils.devices import to_device

POOL = 8192
"""Images of a split that accuracies and batch statistics come from: 1.2 GB of bytes at 224 px.
Twice as many as one subnet takes, where that is more and the split has them."""
N_REFERENCES = 12
"""Subnets of each of `KINDS` that are measured on every image; the first ones of each show which
images are disputed, every third how the others go with them."""
ALL = slice(None)


class Measurer:
    """Measures a supernet's subnets on all validation images, or on those that are disputed.

    Each one takes its batch statistics from training images of its own: what one draw of them
    favours by chance all subnets would be favoured by, and a predictor learn it as accuracy.
    Several processes make this together, and then measure each for itself.
    """

    def __init__(self, net: OnceForAllNet, data: DataProvider, settings: MeasuringSettings) -> None:
        self._net, self._data, self._settings = net, data, settings
        self._device = next(net.parameters()).device
        self._train = self._keep("train_unaugmented", settings.n_bn_images)
        self._val = self._disputed = None
        if settings.leaves_out(data.n_images("val")):
            self._val = self._keep("val", settings.n_val_images)
            margins, fits = self._reference_margins, np.arange(2 * N_REFERENCES) % 6 > 3
            self._disputed = Disputed.choose(
                margins[~fits], margins[fits] > 0, settings.n_val_images
            )

    def _keep(self, split: str, n_drawn: int) -> KeptImages:
        n_kept = max(2 * n_drawn, POOL)
        return self._data.keep(split, n_kept, self._settings.n_workers, self._settings.seed)

    def top1(self, subnet: Subnet) -> float:
        """Return a subnet's accuracy, 0..1."""
        draws = range(self._settings.n_draws)
        rights = [self._margins(subnet, draw, self._positions) > 0 for draw in draws]
        return float(np.mean([self._told_by(right) for right in rights]))

    def again(self, subnet: Subnet) -> tuple[float, float]:
        """Return its accuracy once more, and that on all images, both 0..1.

        Under the same batch statistics, which come from other images than those of `top1`.
        """
        n = self._settings.n_draws
        rights = [self._margins(subnet, draw) > 0 for draw in range(n, 2 * n)]
        told = [self._told_by(right[self._positions]) for right in rights]
        return float(np.mean(told)), float(np.mean(rights))

    def sampling_noise(self) -> dict[str, float]:
        """Return, for each of `KINDS`, how far accuracies on all of these images stray, in points.

        That is from accuracies on all images like them (`sampling_noise`).
        """
        right = self._reference_margins > 0
        return {kind: sampling_noise(right[i :: len(KINDS)]) for i, kind in enumerate(KINDS)}

    @property
    def _positions(self) -> np.ndarray | slice:
        """Where the validation images stand that `top1` runs."""
        return self._disputed.positions if self._disputed else ALL

    def _told_by(self, right: np.ndarray) -> float:
        """Return the accuracy on all images by which of those at `_positions` are recognised."""
        return self._disputed.top1(right) if self._disputed else float(right.mean())

    def _margins(
        self, subnet: Subnet, draw: int = 0, positions: np.ndarray | slice = ALL
    ) -> np.ndarray:
        """Return how surely a subnet recognises the validation images at the positions."""
        # From the subnet, not from a count: the same images whatever was measured before.
        key = hashlib.sha256(subnet.to_json().encode()).digest()[:8]
        rng = np.random.default_rng([self._settings.seed, draw, int.from_bytes(key, "big")])
        ready = ready_to_measure(self._net, subnet, self._statistics(rng))
        return margins_of(ready, self._val_images(positions)).numpy()

    def _statistics(self, rng: np.random.Generator) -> list[torch.Tensor]:
        n = min(self._settings.n_bn_images, len(self._train))
        drawn = rng.choice(len(self._train), n, replace=False)
        batches = self._train.batches(drawn, self._settings.batch_size, self._device)
        return with_variance([to_device(images, self._device) for images, _ in batches])

    def _val_images(
        self, positions: np.ndarray | slice
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Return batches of the validation images at the positions, and labels."""
        batch_size = self._settings.batch_size
        if self._val is None:
            n_workers = self._settings.n_workers
            return self._data.loader("val", batch_size, n_workers, device=self._device)
        numbers = np.arange(len(self._val))[positions]
        return self._val.batches(numbers, batch_size, self._device)

    @cached_property
    def _reference_margins(self) -> np.ndarray:
        """How surely the reference subnets recognise all images, (n_subnets, n_images)."""
        subnets = references(self._net.space, self._settings.seed)
        rows = []
        with Counter("reference subnets" if distributed.is_first() else "", len(subnets)) as bar:
            for _, row in distributed.each(subnets, self._margins):
                rows.append(row)
                bar.step()
        return np.array(rows)


def sampling_noise(right: np.ndarray) -> float:
    """Return how far accuracies on some images stray from those on all there could be, in points.

    As a standard deviation of one, from the differences between two, which are what ranks go by:
    what is hard for all alike does not count. `right` (n_subnets, n_images) says which subnet
    recognises which image; NaN for a single subnet.
    """
    differences = [np.subtract(*pair) for pair in itertools.combinations(right.astype(float), 2)]
    if not differences:
        return math.nan
    return 100 * math.sqrt(np.mean(np.var(differences, axis=1)) / 2 / right.shape[1])


def references(space: SearchSpace, seed: int) -> list[Subnet]:
    """Return `N_REFERENCES` random subnets in full precision and as many quantized, by turns.

    As pairs are drawn, and apart from them.
    """
    rng = Stream.REFERENCE_SUBNETS.generator(seed)
    full, quantized = (
        space.decode(sample_both(space, rng, N_REFERENCES, kind)) for kind in (False, True)
    )
    by_turns = zip((subnet.full_precision() for subnet in full), quantized, strict=True)
    return list(itertools.chain.from_iterable(by_turns))
