"""How predictors rank subnets that were measured more precisely than the pairs they learn from.

python -m benchmarks.predictor_truth [--precise FILE] [--pairs models/pairs.json] [--seeds 5]

Figures on held-out pairs blame a predictor for the noise of the pairs. Here it learns from pairs
of other subnets than the precise file's (from four fifths of them, as for its figures, or from all,
as those to be used do), and is judged by the precise accuracies. Beside it stands how one
measurement as in the pairs ranks the same subnets, where the pairs hold them. The figures are means
over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from apq.cli.tables import format_table
from apq.provenance import figure_of, read_card
from apq.space import PAPER_SPACE
from apq.subnet import Subnet
from methods.prediction.collect import KINDS, NOISE
from methods.prediction.fit import GenesFn, Quality, quality
from methods.prediction.kinds import fit_all
from methods.prediction.pairs import as_arrays, read_pairs, searched_path, split_pairs
from methods.prediction.settings import FitSettings
from utils.latency_predictor import LatencyPredictor

Pairs = Mapping[Subnet, float]
MEASUREMENT = "one measurement as in the pairs"
HEADERS = ("ranked by", "subnets", "Kendall tau", "Spearman rho", "tau at equal cost")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precise", type=Path, default=Path("models/pairs-precise.json"))
    parser.add_argument("--pairs", type=Path, default=Path("models/pairs.json"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    precise, pairs = read_pairs(args.precise), read_pairs(args.pairs)
    beside = searched_path(args.pairs)
    searched = read_pairs(beside) if beside.exists() else {}
    card = read_card(args.precise)
    cost = LatencyPredictor("latency", card.get("image_size", 224)).predict
    judged = dict(zip(KINDS, split_pairs(precise), strict=True))
    by_name: dict[str, list[Quality]] = {}
    for kind, some in judged.items():
        spread = np.std(list(some.values()))
        noise = figure_of(card, NOISE, kind) or 0
        print(f"{len(some)} {KINDS[kind]}: spread {spread:.2f} points, noise {noise:.2f}")
        same = {subnet: top1 for subnet, top1 in some.items() if subnet in pairs}
        measured = np.array([pairs[subnet] for subnet in same]) / 100
        by_name[f"{MEASUREMENT}, {KINDS[kind]}"] = [_judge(measured, same, cost)]
    full, quantized = split_pairs({s: a for s, a in pairs.items() if s not in precise})
    rest = {subnet: top1 for subnet, top1 in searched.items() if subnet not in precise}
    for seed in range(args.seeds):
        fits = fit_all(full, quantized, rest, replace(FitSettings(), seed=seed), cost)
        some_held_out = {name: fit.predictor for name, fit in fits.by_name.items()}
        on_all = {f"{name}, on all pairs": predictor for name, predictor in fits.to_use.items()}
        for name, predictor in {**some_held_out, **on_all}.items():
            some = judged["quantized" if predictor.quantized else "full"]
            predicted = predictor.predict(PAPER_SPACE.encode(some))
            by_name.setdefault(name, []).append(_judge(predicted, some, cost))
    print(format_table(HEADERS, [_row(*item) for item in by_name.items()]))


def _judge(ranking: np.ndarray, precise: Pairs, cost: GenesFn) -> Quality:
    genes, accuracy = as_arrays(precise, PAPER_SPACE)
    return quality(ranking, accuracy, cost(genes))


def _row(name: str, figures: list[Quality]) -> tuple[str, ...]:
    numbers = [(q.kendall_tau, q.spearman_rho, q.band_tau) for q in figures]
    means = np.mean(numbers, axis=0)
    return (name, str(figures[0].n_held_out), *(f"{mean:.3f}" for mean in means))


if __name__ == "__main__":
    main()
