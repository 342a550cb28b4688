"""How predicted accuracy ranks finetuned random subnets, beside how measured accuracy does.

python -m benchmarks.prediction_ranks [--comparison models/comparison.json] [--predictor models]

The subnets are the random ones of a comparison (`apq compare`), of all its budgets together; a
pair is among them by chance only. "Measured" is with the supernet's weights, before finetuning.
"""

import argparse
from pathlib import Path

import numpy as np

from apq import Subnet, files
from methods.prediction.fit import kendall_and_spearman
from utils.accuracy_predictor import AccuracyPredictor


def main() -> None:
    """Print rank correlations of both with the accuracy after finetuning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparison", type=Path, default=Path("models/comparison.json"))
    parser.add_argument("--predictor", type=Path, default=Path("models"))
    args = parser.parse_args()
    # Two experiments under one budget have the same rivals.
    rivals = {row["arch"]: row for one in files.read_json(args.comparison) for row in one["random"]}
    predictor = AccuracyPredictor.load(args.predictor)
    predicted = predictor.predict([Subnet.from_json(arch) for arch in rivals])
    measured, val, test = np.array(
        [[row[f"{name}_top1"] for name in ("direct", "val", "test")] for row in rivals.values()]
    ).T
    print(f"{len(rivals)} random subnets: Kendall tau with the accuracy")
    print("             measured   finetuned, validation   finetuned, test")
    for name, ranks, others in (
        ("predicted", predicted, (measured, val, test)),
        ("measured", measured, (None, val, test)),
    ):
        taus = ["" if o is None else f"{kendall_and_spearman(ranks, o)[0]:.3f}" for o in others]
        print(f"{name:<12} {taus[0]:<10} {taus[1]:<23} {taus[2]}")


if __name__ == "__main__":
    main()
