"""What measuring a quantized subnet of a supernet costs, against plain evaluation, side by side.

python -m benchmarks.collect [--image_size 64] [--bn_images 512] [--val_images 1000] [--threads 2]

Plain is the subnet in full precision, cut out once: batch statistics taken anew, then an ordinary
evaluation. The others begin at the supernet, as `apq collect` does. Images are random and ready in
memory; the subnets take turns, and the figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from apq.cli.tables import format_table
from apq.space import PAPER_SPACE
from elastic_nn.networks import OnceForAllNet
from imagenet_codebase.run_manager.evaluate import evaluate
from imagenet_codebase.run_manager.measuring import ready_to_measure
from utils.allocator import keep_freed_memory

BATCH = 256


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--bn_images", type=int, default=512)
    parser.add_argument("--val_images", type=int, default=1000)
    parser.add_argument("--subnets", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    supernet = OnceForAllNet(n_classes=10).to(memory_format=torch.channels_last)

    def batches(n: int) -> list[torch.Tensor]:
        images = torch.randn(n, 3, args.image_size, args.image_size)
        return list(images.to(memory_format=torch.channels_last).split(BATCH))

    bn = batches(args.bn_images)
    val = [
        (images, torch.zeros(len(images), dtype=torch.long)) for images in batches(args.val_images)
    ]
    subnets = PAPER_SPACE.decode(PAPER_SPACE.sample(np.random.default_rng(0), args.subnets))
    times: dict[str, list[float]] = {"plain": [], "full precision": [], "quantized": []}
    for i, subnet in enumerate([subnets[0], *subnets]):
        supernet.activate(subnet.full_precision())
        compact = supernet.extract().to(memory_format=torch.channels_last)

        def plain(compact=compact) -> None:
            compact.reset_bn_statistics(bn)
            evaluate(compact, val)

        row = {
            "plain": seconds(plain),
            "full precision": seconds(
                lambda s=subnet: evaluate(ready_to_measure(supernet, s.full_precision(), bn), val)
            ),
            "quantized": seconds(lambda s=subnet: evaluate(ready_to_measure(supernet, s, bn), val)),
        }
        if i:  # the first calls are slow
            for name, value in row.items():
                times[name].append(value)
    n_images = args.bn_images + args.val_images
    base = statistics.median(times["plain"])
    print(f"{args.bn_images} + {args.val_images} images of {args.image_size} px")
    print(
        format_table(
            ("subnet", "seconds", "images a second", "time"),
            [
                (name, f"{m:.2f}", f"{n_images / m:.0f}", f"{m / base:.2f} x")
                for name, m in ((n, statistics.median(t)) for n, t in times.items())
            ],
        )
    )


if __name__ == "__main__":
    main()
