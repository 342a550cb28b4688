"""What several processes of few threads gain on a CPU over one process of many, side by side.

python -m benchmarks.processes [--n 2] [--image_size 64] [--batch_size 48] [--steps 10]

Trains the largest subnet and random ones of a supernet, in full precision, on random images: first
in one process with N threads and N batches at once, then in N processes of one thread and one
batch each, gradients averaged. Prints images a second, and the ratio.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import multiprocessing

from apq.space import PAPER_SPACE
from apq.subnet import Subnet, largest
from elastic_nn.networks import OnceForAllNet
from imagenet_codebase.run_manager import distributed
from utils.allocator import keep_freed_memory

KINDS = ("largest", "random")
PORT = 29_533


def subnets(kind: str, n: int) -> list[Subnet]:
    """Return n subnets in full precision, always the same."""
    if kind == "largest":
        return [largest(PAPER_SPACE).full_precision()] * n
    genes = PAPER_SPACE.sample_spread(np.random.default_rng(0), n)
    return [subnet.full_precision() for subnet in PAPER_SPACE.decode(genes)]


def images_a_second(args: argparse.Namespace, kind: str, batch_size: int) -> float:
    """Return the speed of this process."""
    torch.manual_seed(0)
    net = OnceForAllNet(n_classes=10).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch_size, 3, args.image_size, args.image_size)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size) % 10

    def step(subnet: Subnet) -> None:
        optimizer.zero_grad()
        net.activate(subnet)
        F.cross_entropy(net(images), labels).backward()
        distributed.average_gradients(net)
        optimizer.step()

    chosen = subnets(kind, args.steps)
    for subnet in chosen:  # the first call of each shape is slow
        step(subnet)
    start = time.perf_counter()
    for subnet in chosen:
        step(subnet)
    return batch_size * len(chosen) / (time.perf_counter() - start)


def work(rank: int, args: argparse.Namespace, speeds: torch.Tensor) -> None:
    """Measure as one of N processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(args.n)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(PORT)}
    torch.set_num_threads(1)
    keep_freed_memory()
    with distributed.group(torch.device("cpu")):
        for i, kind in enumerate(KINDS):
            speeds[rank, i] = images_a_second(args, kind, args.batch_size)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, value in (("n", 2), ("image_size", 64), ("batch_size", 48), ("steps", 10)):
        parser.add_argument(f"--{flag}", type=int, default=value)
    args = parser.parse_args()
    speeds = torch.zeros(args.n, len(KINDS)).share_memory_()
    multiprocessing.spawn(work, (args, speeds), nprocs=args.n)
    torch.set_num_threads(args.n)
    keep_freed_memory()
    for kind, several in zip(KINDS, speeds.sum(0).tolist(), strict=True):
        one = images_a_second(args, kind, args.n * args.batch_size)
        print(
            f"{kind}: one process {one:.0f} images/s, {args.n} processes {several:.0f}: "
            f"{several / one:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
