"""Accuracy of a supernet's subnets with the weights they share, before any finetuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from apq.subnet import Subnet, largest, smallest
from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.folded import fold
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager.evaluate import evaluate_split
from utils.devices import to_device

BN_BATCH_SIZE = 256
N_TESTED = 4
"""Random subnets that a finished supernet is tested by."""


def bn_batches(
    data: DataProvider,
    n_images: int,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    n_workers: int = 0,
) -> list[torch.Tensor]:
    """Return batches of unaugmented training images, `n_images` of them where there are as many.

    A last batch of a single image is left out where there are others: it may have no variance.
    """
    loader = data.loader(
        "train_unaugmented", batch_size, n_workers, shuffle=True, seed=seed, device=device
    )
    batches = []
    for first, (images, _) in zip(range(0, n_images, batch_size), loader, strict=False):
        batches.append(to_device(images[: n_images - first], device))
    return with_variance(batches)


def with_variance(batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the batches (B, ...) without a last one of a single image, where there are others."""
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def ready_to_measure(
    net: OnceForAllNet, subnet: Subnet, bn_batches: Iterable[torch.Tensor]
) -> nn.Module:
    """Return a subnet alone, for evaluation, with the batch statistics of the batches."""
    net.activate(subnet)
    compact = net.extract().to(memory_format=torch.channels_last)
    compact.reset_bn_statistics(bn_batches)
    return fold(compact)


def by_bits(subnets: Mapping[str, Subnet], all_bits: Iterable[int | None]) -> dict[str, Subnet]:
    """Return subnets at each of the bit widths (None: full precision) by their figure's name."""
    return {
        f"{name}_w{bits}a{bits}_top1" if bits else f"{name}_top1": (
            subnet.with_bits(bits) if bits else subnet.full_precision()
        )
        for bits in all_bits
        for name, subnet in subnets.items()
    }


def measure_on_test(
    net: OnceForAllNet,
    data: DataProvider,
    n_bn_images: int,
    n_workers: int = 0,
    elastic: bool = True,
) -> dict[str, float]:
    """Return test accuracies in full precision and with 8 and 4 bits everywhere.

    Of the largest subnet and, where all sizes were trained, of the smallest, and the mean of
    `N_TESTED` random ones, always the same. Several processes share the images.
    """
    device = next(net.parameters()).device
    statistics = bn_batches(data, n_bn_images, BN_BATCH_SIZE, device, n_workers=n_workers)
    genes = net.space.sample(np.random.default_rng(0), N_TESTED)
    figures: dict[str, list[float]] = {}
    sizes = {"largest": [largest(net.space)]}
    if elastic:
        sizes |= {"smallest": [smallest(net.space)], "random": net.space.decode(genes)}
    for size, subnets in sizes.items():
        for one in subnets:
            for name, subnet in by_bits({size: one}, (None, 8, 4)).items():
                ready = ready_to_measure(net, subnet, statistics)
                figures.setdefault(name, []).append(
                    evaluate_split(ready, data, "test", n_workers=n_workers, description=name).top1
                )
    return {name: float(np.mean(values)) for name, values in figures.items()}
