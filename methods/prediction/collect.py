"""Measures subnets with the supernet's weights: the pairs a predictor learns from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from apq.progress import Counter, deferred_interrupt
from apq.space import SearchSpace
from apq.subnet import Subnet
from elastic_nn.networks import OnceForAllNet
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager.supernet import bn_batches, measure
from methods.prediction.pairs import PairLog

DRAW_AT_ONCE = 64


def draw_subnets(space: SearchSpace, seed: int, quantized: bool) -> Iterator[Subnet]:
    """Yield distinct subnets without end: half uniform, half spread along the budget axis."""
    rng = np.random.default_rng([seed, quantized])
    seen: set[bytes] = set()
    while True:
        uniform = space.sample(rng, DRAW_AT_ONCE)
        spread = space.sample_spread(rng, DRAW_AT_ONCE)
        genes = np.stack([uniform, spread], axis=1).reshape(-1, space.n_genes)
        if not quantized:
            genes[:, space.columns["pw_w_bits"].start :] = len(space.bits) - 1
        for row, subnet in zip(space.canonical(genes), space.decode(genes), strict=True):
            if row.tobytes() not in seen:
                seen.add(row.tobytes())
                yield subnet if quantized else subnet.full_precision()


def collect(
    net: OnceForAllNet,
    data: DataProvider,
    path: Path,
    n_full: int,
    n_quantized: int,
    facts: dict[str, Any],
    seed: int = 0,
    n_bn_images: int = 512,
    batch_size: int = 256,
    n_workers: int = 0,
) -> bool:
    """Measure subnets on the validation split until the file has the wanted numbers of pairs.

    `facts` name the supernet; with those of the data they are kept beside the pairs. Goes on
    where an earlier call was stopped; returns False when Ctrl-C stopped this one. Raises
    ApqError when the file holds pairs that something else measured.
    """
    device, started = next(net.parameters()).device, time.perf_counter()
    measured_with = {
        **facts,
        "dataset": data.name,
        "image_size": data.image_size,
        "n_images": data.n_images("val"),
        "n_bn_images": n_bn_images,
        "seed": seed,
    }
    log = PairLog(path, measured_with, net.space)
    statistics = bn_batches(data, n_bn_images, batch_size, device, seed, n_workers)
    with deferred_interrupt() as interrupted:
        for quantized, wanted in ((False, n_full), (True, n_quantized)):
            have = sum(subnet.quantized == quantized for subnet in log.pairs)
            bar = Counter("quantized pairs" if quantized else "full-precision pairs", wanted, have)
            for subnet in draw_subnets(net.space, seed, quantized):
                if interrupted or have >= wanted:
                    break
                if subnet in log.pairs:
                    continue
                batches = data.loader("val", batch_size, n_workers)
                accuracy = measure(net, subnet, statistics, batches)
                log.add(subnet, round(100 * accuracy.top1, 4))
                have += 1
                bar.step(f"{accuracy.top1:.1%}")
            bar.close()
    log.finish((time.perf_counter() - started) / 60)
    return not interrupted
