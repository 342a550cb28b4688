"""Whether ranking by an ensemble's lower bound finds better subnets than ranking by its mean.

python -m benchmarks.risk --folder DIR [--pairs models/digits/pairs.json]
    [--supernet models/digits/supernet.pth.tar] [--dataset digits] [--image_size 64] [--seeds 3]
    [--generations 150] [--n_epochs 3]

Trains one predictor and an ensemble on the pairs, searches with each of them under four latency
budgets, and measures what was found: with the supernet's weights, and finetuned by the paper's
recipe. DIR keeps what was measured: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from apq.cli.data import add_data, open_data
from apq.cli.parser import Parser
from apq.cli.tables import format_table
from imagenet_codebase.run_manager.recipes import FinetuneSettings
from methods.diagnostics import accuracy_rows
from methods.evolution import EvolutionSettings
from methods.find import find_subnet
from methods.prediction.ensemble import fit_ensemble
from methods.prediction.fit import Fitting
from methods.prediction.pairs import read_pairs, split_pairs
from methods.prediction.settings import FitSettings
from methods.problem import Limit, SearchProblem
from methods.validation.bench import FinetuningBench
from utils.accuracy_predictor import AccuracyPredictor
from utils.devices import pick_device
from utils.ensemble import PredictorEnsemble
from utils.latency_predictor import LatencyPredictor

RISKS = (0.0, 1.0, 2.0, 4.0)
# In units of the least latency there is.
BUDGETS = (1.3, 1.8, 2.5, 4.0)
HEADERS = ("ranked by", "direct", "error", "finetuned, test", "error", "predicted", "spread")


def train(args: argparse.Namespace, cost: LatencyPredictor) -> dict[str, AccuracyPredictor]:
    """Return what candidates are ranked by, by name; the ensemble's mean has risk 0."""
    full, quantized = split_pairs(read_pairs(args.pairs))
    fitting = Fitting(FitSettings(), cost.predict)
    start = fitting.fit(full, False).predictor
    single = fitting.fit(quantized, True, start).predictor
    members = fit_ensemble(full, quantized, args.members, fitting).members
    bounds = {f"mean - {risk:g} x spread": PredictorEnsemble(members, risk) for risk in RISKS}
    return {"one predictor": single, **bounds}


def main() -> None:
    """Search, measure, print the table of means over budgets and seeds."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, default=Path("models/digits/pairs.json"))
    parser.add_argument("--supernet", type=Path, default=Path("models/digits/supernet.pth.tar"))
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--generations", type=int, default=150)
    parser.add_argument("--n_epochs", type=int, default=3, help="of finetuning")
    parser.add_argument("--folder", type=Path, required=True)
    add_data(parser, default="digits")
    args = parser.parse_args()
    device, data = pick_device("cpu"), open_data(args)
    settings = FinetuneSettings(n_epochs=args.n_epochs)
    bench = FinetuningBench(args.supernet, data, settings, args.folder, device)
    cost = LatencyPredictor("latency", data.image_size)
    scores = train(args, cost)
    ensemble = scores["mean - 1 x spread"]
    rows = []
    for number, (name, predictor) in enumerate(scores.items()):
        figures = []
        for factor in BUDGETS:
            limits = (Limit(cost, factor * cost.minimum()[0]),)
            problem = SearchProblem(cost.space, predictor.predict, limits)
            for seed in range(args.seeds):
                search = EvolutionSettings(generations=args.generations, seed=seed)
                found = find_subnet(problem, "evolution", search)
                told, *_ = accuracy_rows(predictor, found.result.candidates)
                outcome = bench.measure(f"{number}-{factor:g}-{seed}", found.subnet)
                if outcome is None:
                    print(f"stopped; the same command goes on from {args.folder}")
                    return
                spread = float(ensemble.spread([found.subnet])[0])
                shares = (outcome.direct_top1, outcome.test_top1)
                figures.append([*shares, told["predicted_accuracy"], spread])
        means = np.mean(figures, axis=0)
        errors = np.std(figures, axis=0, ddof=1) / np.sqrt(len(figures))
        values = (means[0], errors[0], means[1], errors[1], means[2], means[3])
        rows.append((name, *(f"{value:.2%}" for value in values)))
    print(format_table(HEADERS, rows))


if __name__ == "__main__":
    main()
