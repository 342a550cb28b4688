"""What quantization costs a training step: time and memory against full precision, side by side.

python -m benchmarks.qat [--image_size 64] [--batch_size 64] [--steps 10] [--threads 2] [--compile]

The subnet is the same in every row: drawn with seed 0, cut out of the supernet. The first row is
its full precision. Steps of all rows take turns, so that a busy machine slows all of them; the
ratio is that of the medians. Memory is the peak of a process of its own that runs three steps,
less what it had before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from apq.cli.tables import format_table
from apq.space import PAPER_SPACE
from elastic_nn.modules.kernels import compile_kernels
from elastic_nn.networks import MobileNet, OnceForAllNet
from elastic_nn.quantizer_kinds import QUANTIZERS
from utils.allocator import keep_freed_memory

FULL = "full precision"
ELASTIC = "paper, inside the supernet"


def make_net(row: str) -> MobileNet:
    """Return the network of a row, in training mode."""
    torch.manual_seed(0)
    subnet = PAPER_SPACE.decode(PAPER_SPACE.sample(np.random.default_rng(0), 1))[0]
    supernet = OnceForAllNet(n_classes=1000)
    supernet.activate(subnet.full_precision() if row == FULL else subnet)
    if row == ELASTIC:
        return supernet.to(memory_format=torch.channels_last).train()
    net = supernet.extract().to(memory_format=torch.channels_last).train()
    if row != FULL:
        net.set_quantizer(row)
    return net


def make_step(row: str, image_size: int, batch_size: int) -> Callable[[], tuple[float, float]]:
    """Return a function that runs one step and returns seconds forward and backward."""
    net = make_net(row)
    images = torch.randn(batch_size, 3, image_size, image_size)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch_size,))

    def step() -> tuple[float, float]:
        net.zero_grad(set_to_none=True)
        start = time.perf_counter()
        loss = F.cross_entropy(net(images), labels)
        middle = time.perf_counter()
        loss.backward()
        return middle - start, time.perf_counter() - middle

    return step


def peak_bytes(row: str, image_size: int, batch_size: int) -> int:
    """Return the growth of the process's largest size while it runs three steps."""
    step = make_step(row, image_size, batch_size)
    # A tiny step first: what torch loads once is not the step's.
    make_step(row, 32, 2)()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main() -> None:
    """Measure all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="the quantizers' passes")
    args = parser.parse_args()
    size = (args.image_size, args.batch_size)
    rows = (FULL, ELASTIC, *QUANTIZERS)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {row: pool.apply(peak_bytes, (row, *size)) for row in rows}
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    if args.compile:
        started = time.perf_counter()
        for quantizer in QUANTIZERS.values():
            compile_kernels(quantizer, torch.device("cpu"))
        print(f"compiled in {time.perf_counter() - started:.1f} s")
    steps = {row: make_step(row, *size) for row in rows}
    times: dict[str, list[tuple[float, float]]] = {row: [] for row in rows}
    for i in range(args.steps + 2):
        for row, step in steps.items():
            seconds = step()
            if i >= 2:  # the first calls of each shape are slow
                times[row].append(seconds)
    medians = {
        row: [statistics.median(part) for part in zip(*seconds, strict=True)]
        for row, seconds in times.items()
    }
    base_f, base_b = medians[FULL]
    print(f"{args.image_size} px, batch {args.batch_size}, {args.threads} threads")
    print(
        format_table(
            ("step", "forward ms", "backward ms", "time", "peak MB", "memory"),
            [
                (
                    row,
                    f"{1000 * f:.0f}",
                    f"{1000 * b:.0f}",
                    f"{(f + b) / (base_f + base_b):.2f} x",
                    f"{peaks[row] / 1e6:.0f}",
                    f"{peaks[row] / peaks[FULL]:.2f} x",
                )
                for row, (f, b) in medians.items()
            ],
        )
    )


if __name__ == "__main__":
    main()
