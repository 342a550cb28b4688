"""How the training of a predictor generalizes: to random subnets, and to those that searches find.

python -m benchmarks.predictor_fit [--pairs models/pairs.json] [--seeds 3]

Each recipe learns from random pairs alone, and is judged on those held out and on all the pairs
from searches, where there are any, which lie where a search goes. Beside the recipes stand the
additive model that predictors follow, the same without a prior that knows which choices are
neighbours (an ordinary ridge regression), and the predictor's network trained on the pairs
themselves. The figures are means over the seeds, each of which holds other pairs out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from apq.cli.tables import format_table
from apq.provenance import figure_of, read_card
from apq.space import PAPER_SPACE, as_genes
from apq.subnet import Subnet
from methods.prediction.additive import PENALTIES, fit_additive
from methods.prediction.cards import NOISE
from methods.prediction.fit import Fitting, Quality, quality
from methods.prediction.pairs import as_arrays, hold_out, read_pairs, searched_path, split_pairs
from methods.prediction.searched import SearchedQuality, searched_quality
from methods.prediction.settings import FitSettings
from utils.accuracy_predictor import AccuracyPredictor
from utils.converter import Converter
from utils.latency_predictor import LatencyPredictor

Pairs = Mapping[Subnet, float]
PredictFn = Callable[[np.ndarray | Sequence[Subnet]], np.ndarray]
NONE = SearchedQuality(rmse=math.nan, bias=math.nan)
RECIPES = (FitSettings(), FitSettings(n_steps=1500), FitSettings(n_steps=4500))
NETWORK_EPOCHS, NETWORK_BATCH, NETWORK_DROPOUT, NETWORK_DECAY = 40, 128, 0.2, 1.0
"""What errs least of the networks trained on the pairs themselves (2026-11-26)."""
HEADERS = ("recipe", "RMSE", "tau", "tau at equal cost", "searched: RMSE", "overestimates by")


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
    beside = searched_path(args.pairs)
    searched = read_pairs(beside) if beside.exists() else {}
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
            fitting = Fitting(replace(settings, seed=seed), cost)
            start = fitting.fit(full, False).predictor
            fitted = fitting.fit(quantized, True, start)
            about = searched_quality(fitted.predictor, searched) if searched else NONE
            return Row(fitted.quality, about)

        return judge

    def alone(learn: Callable[[Pairs, int], PredictFn]) -> Callable[[int], Row]:
        def judge(seed: int) -> Row:
            train, held_out = hold_out(quantized, FitSettings().held_out, seed)
            predictor = SimpleNamespace(space=PAPER_SPACE, predict=learn(train, seed))
            genes, accuracy = as_arrays(held_out, PAPER_SPACE)
            figures = quality(predictor.predict(genes), accuracy, cost(genes), len(train))
            return Row(figures, searched_quality(predictor, searched) if searched else NONE)

        return judge

    for settings in RECIPES:
        yield _name(settings), transfer(settings)
    yield "additive model", alone(_additive)
    yield "ridge regression", alone(_ridge)
    yield "network on the pairs", alone(_network)


def _name(settings: FitSettings) -> str:
    return "default" if settings == FitSettings() else f"n_steps {settings.n_steps}"


def _additive(train: Pairs, seed: int) -> PredictFn:
    converter = Converter(PAPER_SPACE)
    genes, accuracy = as_arrays(train, PAPER_SPACE)
    model = fit_additive(converter.features(genes), accuracy, converter)
    return lambda subnets: model.predict(converter.features(as_genes(PAPER_SPACE, subnets)))


def _ridge(train: Pairs, seed: int) -> PredictFn:
    from sklearn.linear_model import RidgeCV

    converter = Converter(PAPER_SPACE)
    genes, accuracy = as_arrays(train, PAPER_SPACE)
    model = RidgeCV(PENALTIES).fit(converter.features(genes).astype(float), accuracy)
    return lambda subnets: model.predict(converter.features(as_genes(PAPER_SPACE, subnets)))


def _network(train: Pairs, seed: int) -> PredictFn:
    torch.manual_seed(seed)
    genes, accuracy = as_arrays(train, PAPER_SPACE)
    predictor = AccuracyPredictor()
    layers = [layer for layer in predictor.modules() if isinstance(layer, nn.ReLU)]
    for layer in layers[1:]:  # the bits join behind the first one
        layer.register_forward_hook(
            lambda _, __, out: F.dropout(out, NETWORK_DROPOUT, predictor.training)
        )
    nn.init.constant_(predictor.regressor.bias, float(accuracy.mean()))
    features = torch.from_numpy(predictor.converter.features(genes))
    targets = torch.from_numpy((accuracy - accuracy.mean()) / accuracy.std()).float()
    filters = [p for p in predictor.parameters() if p.dim() > 1]
    biases = [p for p in predictor.parameters() if p.dim() == 1]
    groups = [{"params": filters, "weight_decay": NETWORK_DECAY}, {"params": biases}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)
    n_steps = NETWORK_EPOCHS * -(-len(targets) // NETWORK_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    predictor.train()
    for _ in range(NETWORK_EPOCHS):
        for batch in torch.randperm(len(targets)).split(NETWORK_BATCH):
            predicted = (predictor(features[batch]) - accuracy.mean()) / accuracy.std()
            optimizer.zero_grad()
            F.mse_loss(predicted, targets[batch]).backward()
            optimizer.step()
            schedule.step()
    return predictor.eval().predict


if __name__ == "__main__":
    main()
