"""Images a second of one core, against bare torchvision: decoding and RandomResizedCrop, no more.

python -m benchmarks.input_pipeline [--images 64] [--rounds 15] [--image_size 224]

The images are synthetic JPEGs of ImageNet's usual shape (500 x 375 pixels, about 120 kB) in a
temporary folder. All rows take turns, batch by batch, in one process with one thread; times are of
the processor, not of the clock, and the ratio is that of the medians, so that a busy machine bends
it little. "worker" is what a decoding process does, "pipeline" all up to normalised images. The
last line tells how long an epoch's first image takes when workers are new and when they stayed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import RandomResizedCrop

from apq.cli.tables import format_table
from imagenet_codebase.data_providers import DataProvider, open_dataset
from utils.allocator import keep_freed_memory

BATCH_SIZE = 32


def write_photos(root: Path, n_images: int) -> None:
    """Write `train` and `val` folders of JPEGs with the frequencies of photographs."""
    rng = np.random.default_rng(0)
    y, x = np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)
    # Natural images: amplitudes fall with the frequency.
    envelope = 1 / np.maximum(np.hypot(y, x), 1 / 500)
    for folder, n in (("train", n_images), ("val", 2)):
        (root / folder / "a").mkdir(parents=True)
        for i in range(n):
            noise = rng.normal(size=(3, *envelope.shape)) + 1j * rng.normal(
                size=(3, *envelope.shape)
            )
            field = np.fft.irfft2(noise * envelope, s=(375, 500))
            field = 128 + 48 * field / field.std()
            pixels = field.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(pixels).save(root / folder / "a" / f"{i}.jpg", quality=90)


def seconds_of(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return how long a call takes."""
    start = clock()
    work()
    return clock() - start


def first_image(data: DataProvider, epoch: int) -> None:
    """Begin an epoch with one worker."""
    next(iter(data.loader("train", 1, 1, seed=1, epoch=epoch)))


def measure(data: DataProvider, bare: ImageFolder, rounds: int) -> dict[str, float]:
    """Return each row's median of seconds for one image."""
    indices = data.train.indices
    parts = np.array_split(np.arange(len(indices)), len(indices) // BATCH_SIZE)
    times: dict[str, list[float]] = {"torchvision": [], "worker": [], "pipeline": []}
    for epoch in range(rounds):
        split = data.train.at(1, epoch)
        for part in parts:
            for name, work in (
                ("torchvision", lambda part=part: [bare[i] for i in indices[part]]),
                ("worker", lambda part=part, split=split: split.pixels(part)),
                ("pipeline", lambda part=part, split=split: split.batch(part)),
            ):
                times[name].append(seconds_of(work, time.process_time) / len(part))
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--image_size", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every command does
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root, args.images + 1)  # one of them is taken for validation
        data = open_dataset("imagenet", root, args.image_size, val_size=1)
        bare = ImageFolder(root / "train", RandomResizedCrop(args.image_size))
        seconds = measure(data, bare, args.rounds)
        new_s = seconds_of(lambda: first_image(data, 0), time.perf_counter)
        kept_s = min(
            seconds_of(lambda i=i: first_image(data, i), time.perf_counter) for i in range(5)
        )
    print(
        format_table(
            ("row", "images a second", "ratio"),
            [(k, f"{1 / v:.0f}", f"{seconds['torchvision'] / v:.2f}") for k, v in seconds.items()],
        )
    )
    print(f"first image: new worker {new_s * 1000:.0f} ms, kept worker {kept_s * 1000:.0f} ms")


if __name__ == "__main__":
    main()
