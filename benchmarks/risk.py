"""Whether ranking by an ensemble's lower bound finds better subnets than ranking by its mean.

python -m benchmarks.risk [--pairs models/pairs.json] [--supernet models/supernet.pth.tar]
    [--dataset digits] [--image_size 64] [--seeds 3] [--generations 150]

Trains one predictor and an ensemble on the pairs, searches with each of them under four latency
budgets, and measures what was found with the supernet's weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from apq.cli.data import add_data, open_data
from apq.cli.parser import Parser
from apq.cli.tables import format_table
from apq.subnet import Subnet
from elastic_nn.networks.files import load_supernet
from imagenet_codebase.run_manager.supernet import bn_batches, measure
from methods.diagnostics import accuracy_rows
from methods.evolution import EvolutionSettings
from methods.find import find_subnet
from methods.prediction.ensemble import fit_ensemble
from methods.prediction.fit import fit
from methods.prediction.pairs import read_pairs, split_pairs
from methods.prediction.settings import FitSettings
from methods.problem import Limit, SearchProblem
from utils.accuracy_predictor import AccuracyPredictor
from utils.ensemble import PredictorEnsemble
from utils.latency_predictor import LatencyPredictor

RISKS = (0.0, 1.0, 2.0, 4.0)
# In units of the least latency there is.
BUDGETS = (1.3, 1.8, 2.5, 4.0)
N_BN_IMAGES, BATCH_SIZE = 512, 256
HEADERS = ("ranked by", "validation", "error", "test", "error", "predicted", "spread")


class Measured:
    """The accuracy of subnets with a supernet's weights."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.data = open_data(args)
        device = torch.device("cpu")
        self.net = load_supernet(args.supernet).net
        self.batches = list(bn_batches(self.data, N_BN_IMAGES, BATCH_SIZE, device))

    def top1(self, subnet: Subnet, split: str) -> float:
        """Return a subnet's share of right answers on a split."""
        return measure(self.net, subnet, self.batches, self.data.loader(split, BATCH_SIZE)).top1


def train(args: argparse.Namespace, cost: LatencyPredictor) -> dict[str, AccuracyPredictor]:
    """Return what candidates are ranked by, by name; the ensemble's mean has risk 0."""
    full, quantized = split_pairs(read_pairs(args.pairs))
    settings = FitSettings()
    start = fit(full, False, settings, cost.predict).predictor
    single = fit(quantized, True, settings, cost.predict, start).predictor
    members = fit_ensemble(full, quantized, args.members, settings, cost.predict).members
    bounds = {f"mean - {risk:g} x spread": PredictorEnsemble(members, risk) for risk in RISKS}
    return {"one predictor": single, **bounds}


def main() -> None:
    """Search, measure, print the table of means over budgets and seeds."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, default=Path("models/pairs.json"))
    parser.add_argument("--supernet", type=Path, default=Path("models/supernet.pth.tar"))
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--generations", type=int, default=150)
    add_data(parser, default="digits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured = Measured(args)
    cost = LatencyPredictor("latency", measured.data.image_size)
    scores = train(args, cost)
    ensemble = scores["mean - 1 x spread"]
    rows = []
    for name, predictor in scores.items():
        figures = []
        for maximum in (factor * cost.minimum()[0] for factor in BUDGETS):
            problem = SearchProblem(cost.space, predictor.predict, (Limit(cost, maximum),))
            for seed in range(args.seeds):
                settings = EvolutionSettings(generations=args.generations, seed=seed)
                found = find_subnet(problem, "evolution", settings)
                told, *_ = accuracy_rows(predictor, found.result.candidates)
                shares = [measured.top1(found.subnet, split) for split in ("val", "test")]
                spread = float(ensemble.spread([found.subnet])[0])
                figures.append([*shares, told["predicted_accuracy"], spread])
        means = np.mean(figures, axis=0)
        errors = np.std(figures, axis=0, ddof=1) / np.sqrt(len(figures))
        values = (means[0], errors[0], means[1], errors[1], means[2], means[3])
        rows.append((name, *(f"{value:.2%}" for value in values)))
    print(format_table(HEADERS, rows))


if __name__ == "__main__":
    main()
