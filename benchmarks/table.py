"""How fast a cost table is built and read.

python -m benchmarks.table [--image_size 224] [--repeats 3]
"""

import argparse
import tempfile
import time
from pathlib import Path

from lut.table import build, load, save


def main() -> None:
    """Build the table a few times and print the best figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="runs; the fastest one counts")
    args = parser.parse_args()
    build_s = load_s = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        for _ in range(args.repeats):
            start = time.perf_counter()
            table = build(args.image_size)
            build_s = min(build_s, time.perf_counter() - start)
            save(table, path)
            start = time.perf_counter()
            load(path)
            load_s = min(load_s, time.perf_counter() - start)
    n = len(table.layers)
    print(f"image size {args.image_size}: {n} layers")
    print(f"build {build_s:.2f} s, {n / build_s:.0f} layers a second")
    print(f"load  {load_s * 1000:.0f} ms")


if __name__ == "__main__":
    main()
