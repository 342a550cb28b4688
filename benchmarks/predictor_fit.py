"""How the training of a predictor generalizes: to random subnets, and to those that searches find.

python -m benchmarks.predictor_fit [--pairs models/pairs.json] [--seeds 3]

Each recipe trains on random pairs alone, and is judged on those held out and on all the pairs from
searches, which lie where a search goes. A linear model of the same features (ridge regression)
stands beside them. The figures are means over the seeds, each of which holds other pairs out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from apq.cli.tables import format_table
from apq.provenance import figure_of, read_card
from apq.space import PAPER_SPACE, as_genes
from apq.subnet import Subnet
from methods.prediction.collect import NOISE
from methods.prediction.fit import Quality, fit, quality
from methods.prediction.pairs import as_arrays, hold_out, read_pairs, searched_path, split_pairs
from methods.prediction.searched import SearchedQuality, searched_quality
from methods.prediction.settings import FitSettings
from utils.converter import Converter
from utils.latency_predictor import LatencyPredictor

Pairs = Mapping[Subnet, float]
RECIPES = (
    FitSettings(),
    FitSettings(dropout=0.0),
    FitSettings(dropout=0.0, n_epochs=20),
    FitSettings(dropout=0.0, n_epochs=80),
    FitSettings(dropout=0.0, weight_decay=10.0),
    FitSettings(n_epochs=80),
    FitSettings(dropout=0.4),
    FitSettings(weight_decay=0.1),
)
PENALTIES = (30.0, 100.0)
HEADERS = ("recipe", "RMSE", "tau", "tau at equal cost", "searched: RMSE", "too hopeful by")


@dataclass(frozen=True)
class Row:
    """What one recipe reaches under one seed."""

    held_out: Quality
    searched: SearchedQuality

    def numbers(self) -> tuple[float, ...]:
        """Return the figures in the order of the table."""
        q, s = self.held_out, self.searched
        return (q.rmse, q.kendall_tau, q.band_tau, s.rmse, s.bias)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, default=Path("models/pairs.json"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    full, quantized = split_pairs(read_pairs(args.pairs))
    searched = read_pairs(searched_path(args.pairs))
    card = read_card(args.pairs)
    cost = LatencyPredictor("latency", card.get("image_size", 224)).predict
    print(f"{len(full)} + {len(quantized)} random pairs, {len(searched)} from searches")
    table = []
    for name, judge in recipes(full, quantized, searched, cost):
        rows = [judge(seed) for seed in range(args.seeds)]
        means = np.mean([row.numbers() for row in rows], axis=0)
        table.append((name, *(f"{figure:.3f}" for figure in means)))
    print(format_table(HEADERS, table))
    if (noise := figure_of(card, NOISE, "quantized")) is not None:
        best = np.mean([row.held_out.best_tau(noise) for row in rows])
        print(f"a perfect predictor would have a tau of about {best:.3f}")


def recipes(
    full: Pairs, quantized: Pairs, searched: Pairs, cost: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[str, Callable[[int], Row]]]:
    """Yield the name of each recipe and a function from a seed to its figures."""

    def transfer(settings: FitSettings) -> Callable[[int], Row]:
        def judge(seed: int) -> Row:
            seeded = replace(settings, seed=seed)
            start = fit(full, False, seeded, cost).predictor
            fitted = fit(quantized, True, seeded, cost, start)
            return Row(fitted.quality, searched_quality(fitted.predictor, searched))

        return judge

    for settings in RECIPES:
        yield _name(settings), transfer(settings)
    for penalty in PENALTIES:
        name = f"linear, penalty {penalty:g}"
        yield name, lambda seed, p=penalty: _linear(p, seed, quantized, searched, cost)


def _name(settings: FitSettings) -> str:
    changed = [
        f"{name} {getattr(settings, name):g}"
        for name in ("n_epochs", "weight_decay", "dropout")
        if getattr(settings, name) != getattr(FitSettings(), name)
    ]
    return ", ".join(changed) or "default"


def _linear(
    penalty: float,
    seed: int,
    quantized: Pairs,
    searched: Pairs,
    cost: Callable[[np.ndarray], np.ndarray],
) -> Row:
    """Fit a ridge regression to quantized pairs, without any in full precision."""
    from sklearn.linear_model import Ridge

    converter = Converter(PAPER_SPACE)
    train, held_out = hold_out(quantized, FitSettings().held_out, seed)
    genes, accuracy = as_arrays(train, PAPER_SPACE)
    model = Ridge(alpha=penalty).fit(converter.features(genes), accuracy)

    def predict(subnets: np.ndarray | Sequence[Subnet]) -> np.ndarray:
        return model.predict(converter.features(as_genes(PAPER_SPACE, subnets)))

    genes, accuracy = as_arrays(held_out, PAPER_SPACE)
    figures = quality(predict(genes), accuracy, cost(genes), len(train))
    predictor = SimpleNamespace(space=PAPER_SPACE, predict=predict)
    return Row(figures, searched_quality(predictor, searched))


if __name__ == "__main__":
    main()
