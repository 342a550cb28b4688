"""What each subnet is measured with: images that are drawn for it alone.

Whatever one draw favours by chance, a certain kernel for instance, all subnets measured on that
draw are favoured by: a predictor learns it as if it were accuracy, and more pairs do not help.
Errors of draws that have nothing to do with each other average out instead.
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
from imagenet_codebase.run_manager.evaluate import which_right
from imagenet_codebase.run_manager.measuring import measure, ready_to_measure, with_variance
from methods.prediction.cards import KINDS
from methods.prediction.settings import MeasuringSettings
from utils.devices import to_device

POOL = 8192
"""Images of a split that draws are made from: 1.2 GB of bytes at 224 px. Twice as many as a draw
takes, where that is more and the split has them: else any two draws would be nearly alike."""
N_REFERENCES = 4
"""Subnets of each of `KINDS` that tell easy images from hard ones."""


class OwnImages:
    """Measures a supernet's subnets, each with images of its own.

    Several processes make this together, and then measure each for itself.
    """

    def __init__(self, net: OnceForAllNet, data: DataProvider, settings: MeasuringSettings) -> None:
        self._net, self._data, self._settings = net, data, settings
        self._device = next(net.parameters()).device
        self._train = self._keep("train_unaugmented", settings.n_bn_images)
        self._val = None
        if 0 < settings.n_val_images < data.n_images("val"):
            self._val = self._keep("val", settings.n_val_images)
            # Some draws are easier than others, for all subnets alike: that part of the noise is
            # known, and taken out (a control variate).
            self._ease = self._references_right.mean(axis=0)

    def _keep(self, split: str, n_drawn: int) -> KeptImages:
        n_kept = max(2 * n_drawn, POOL)
        return self._data.keep(split, n_kept, self._settings.n_workers, self._settings.seed)

    def top1(self, subnet: Subnet, draw: int = 0) -> float:
        """Return a subnet's accuracy, 0..1; another `draw` takes other images."""
        rng = self._rng(draw, subnet.to_json())
        statistics = self._statistics(rng)
        if self._val is None:
            return measure(self._net, subnet, statistics, self._all_val_images()).top1
        drawn = rng.choice(len(self._val), self._settings.n_val_images, replace=False)
        images = self._val.batches(drawn, self._settings.batch_size, self._device)
        top1 = measure(self._net, subnet, statistics, images).top1
        return float(np.clip(top1 - self._ease[drawn].mean() + self._ease.mean(), 0, 1))

    def _rng(self, draw: int, what: str) -> np.random.Generator:
        # From the subnet, not from a count: the same ones whatever was measured before.
        key = hashlib.sha256(what.encode()).digest()[:8]
        return np.random.default_rng([self._settings.seed, draw, int.from_bytes(key, "big")])

    def _statistics(self, rng: np.random.Generator) -> list[torch.Tensor]:
        n = min(self._settings.n_bn_images, len(self._train))
        drawn = rng.choice(len(self._train), n, replace=False)
        batches = self._train.batches(drawn, self._settings.batch_size, self._device)
        return with_variance([to_device(images, self._device) for images, _ in batches])

    def sampling_noise(self) -> dict[str, float]:
        """Return, for each of `KINDS`, how far accuracies on all of these images stray, in points.

        That is from accuracies on all images like them (`sampling_noise`).
        """
        subnets, right = self._references, self._references_right
        quantized = np.array([subnet.quantized for subnet in subnets])
        of_kinds = (right[~quantized], right[quantized])
        return {kind: sampling_noise(some) for kind, some in zip(KINDS, of_kinds, strict=True)}

    def _all_val_images(self) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Return batches of all validation images that accuracies may come from, and labels."""
        batch_size = self._settings.batch_size
        if self._val is None:
            n_workers = self._settings.n_workers
            return self._data.loader("val", batch_size, n_workers, device=self._device)
        return self._val.batches(np.arange(len(self._val)), batch_size, self._device)

    @property
    def _references(self) -> list[Subnet]:
        return references(self._net.space, self._settings.seed)

    @cached_property
    def _references_right(self) -> np.ndarray:
        """Which validation images the reference subnets recognise, bool (n_subnets, n_images)."""

        def right(subnet: Subnet) -> np.ndarray:
            statistics = self._statistics(self._rng(0, subnet.to_json()))
            ready = ready_to_measure(self._net, subnet, statistics)
            return which_right(ready, self._all_val_images()).numpy()

        subnets = self._references
        rows = []
        with Counter("reference subnets" if distributed.is_first() else "", len(subnets)) as bar:
            for _, row in distributed.each(subnets, right):
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
    """Return `N_REFERENCES` random subnets quantized and as many in full precision."""
    subnets = space.decode(space.sample(Stream.REFERENCE_SUBNETS.generator(seed), 2 * N_REFERENCES))
    return [
        subnet if number % 2 else subnet.full_precision() for number, subnet in enumerate(subnets)
    ]
