"""An exported file in onnxruntime, against our own network for inference: answers and speed.

python -m benchmarks.onnx_runtime --exp_dir exps/cifar10-1.0ms [--images 10000] [--threads 2]

Both see the same test images, batch by batch; needs onnxruntime.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from apq import Experiment
from apq.cli.tables import format_table
from elastic_nn.networks.folded import fold
from elastic_nn.networks.onnx_model import to_onnx
from imagenet_codebase.data_providers import open_dataset
from imagenet_codebase.run_manager.finetune import load_trained

BATCH = 50


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exp_dir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trained = load_trained(Experiment.open(args.exp_dir))
    size = trained.facts["image_size"]
    data = open_dataset(trained.facts["dataset"], image_size=size)
    kept = data.keep("test", args.images)
    model = to_onnx(trained.net, size, kept.normalize.mean, kept.normalize.std, {})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    ours = fold(trained.net)
    seconds, answers = {"ours": 0.0, "onnxruntime": 0.0}, {"ours": [], "onnxruntime": []}
    with torch.inference_mode():
        for pixels in kept.pixels.expand(-1, -1, -1, 3).split(BATCH):
            images, planes = kept.normalize(pixels), pixels.permute(0, 3, 1, 2).numpy()
            start = time.perf_counter()
            answers["ours"].append(ours(images).argmax(1).numpy())
            between = time.perf_counter()
            answers["onnxruntime"].append(session.run(None, {"pixels": planes})[0].argmax(1))
            seconds["ours"] += between - start
            seconds["onnxruntime"] += time.perf_counter() - between
    labels, n = kept.labels.numpy(), len(kept)
    told = {name: np.concatenate(parts) for name, parts in answers.items()}
    rows = [
        (
            name,
            f"{(told[name] == labels).mean():.2%}",
            f"{(told[name] == told['ours']).mean():.2%}",
            f"{n / seconds[name]:.0f}",
            f"{seconds[name] / seconds['ours']:.2f} x",
        )
        for name in told
    ]
    headers = ("run by", "top-1", "answers as ours", "images a second", "time")
    print(f"{n:,} test images of {data.name} at {size} px")
    print(format_table(headers, rows))


if __name__ == "__main__":
    main()
