"""A training step with torch's weight gradient of depthwise convolutions and with ours, in turns.

python -m benchmarks.depthwise [--image_size 64] [--batch_size 48] [--steps 8] [--threads 1]

Forward and backward of the largest subnet and of random ones, in full precision, on random images:
milliseconds an image, and the ratio.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import torch
import torch.nn.functional as F

from benchmarks.processes import KINDS, subnets
from elastic_nn.modules import depthwise
from elastic_nn.networks import OnceForAllNet
from utils.allocator import keep_freed_memory


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, value in (("image_size", 64), ("batch_size", 48), ("steps", 8), ("threads", 1)):
        parser.add_argument(f"--{flag}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    net = OnceForAllNet(n_classes=10).to(memory_format=torch.channels_last).train()
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(args.batch_size) % 10

    def seconds(subnet: object) -> float:
        net.activate(subnet)
        start = time.perf_counter()
        F.cross_entropy(net(images), labels).backward()
        return time.perf_counter() - start

    for kind in KINDS:
        ours = theirs = 0.0
        for subnet in subnets(kind, args.steps):
            for measured in (False, True):  # the first call of each shape is slow
                with mock.patch.object(depthwise, "_is_slow", return_value=False):
                    theirs += measured * seconds(subnet)
                ours += measured * seconds(subnet)
        scale = 1000 / args.steps / args.batch_size
        print(
            f"{kind}: torch's gradient {theirs * scale:.2f} ms an image, ours {ours * scale:.2f}: "
            f"{theirs / ours:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
