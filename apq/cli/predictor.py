"""`apq predictor`: train the accuracy predictors on measured pairs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq import files
from apq.cli import parser as cli
from apq.cli.tables import format_table
from apq.paths import find_model
from apq.provenance import read_card, write_card
from methods.prediction.settings import FitSettings

if TYPE_CHECKING:
    from methods.prediction.ensemble import EnsembleFit


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(
        prog=prog,
        description="Train the full-precision predictor (acc.pt), transfer it to the quantized\n"
        "one (acc_quant.pt), and compare that with training from scratch, on held-out pairs.",
    )
    parser.add_argument("--pairs", type=Path, default=Path("models/pairs.json"))
    parser.add_argument("--out_dir", type=Path, default=Path("models"))
    parser.add_argument("--n_epochs", type=cli.whole_number(1), default=FitSettings.n_epochs)
    parser.add_argument("--lr", type=cli.positive_number, default=FitSettings.lr)
    parser.add_argument("--weight_decay", type=float, default=FitSettings.weight_decay)
    parser.add_argument("--transfer_lr", type=cli.positive_number, default=FitSettings.transfer_lr)
    parser.add_argument(
        "--held_out", type=float, default=FitSettings.held_out, help="share for the figures"
    )
    parser.add_argument(
        "--ensemble",
        type=cli.whole_number(2),
        metavar="N",
        help="also train N on draws of the pairs: acc_ensemble.pt, for --risk of a search",
    )
    parser.add_argument(
        "--study",
        type=Path,
        metavar="DIR",
        help="also train on 100 to 2,000 quantized pairs, five seeds each, from scratch and by\n"
        "transfer, and write the table and the figure there",
    )
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, print the figures, write the predictors with their cards."""
    from imagenet_codebase.run_manager.evaluate import pick_device
    from methods.prediction.ensemble import fit_ensemble
    from methods.prediction.fit import fit
    from methods.prediction.pairs import read_pairs, split_pairs
    from methods.prediction.study import FIGURES, run_study, summarize, write_study
    from utils.ensemble import ENSEMBLE_NAME
    from utils.latency_predictor import LatencyPredictor

    pairs_path = find_model(args.pairs)
    full, quantized = split_pairs(read_pairs(pairs_path))
    settings = FitSettings(
        n_epochs=args.n_epochs,
        lr=args.lr,
        transfer_lr=args.transfer_lr,
        weight_decay=args.weight_decay,
        held_out=args.held_out,
        seed=args.seed,
    )
    device = pick_device(args.device)
    source = read_card(pairs_path)
    latency = LatencyPredictor("latency", source.get("image_size", 224)).predict
    full_fit = fit(full, False, settings, latency, device=device)
    scratch_fit = fit(quantized, True, settings, latency, device=device)
    transfer_fit = fit(quantized, True, settings, latency, full_fit.predictor, device=device)
    fits = {
        "full precision": full_fit,
        "quantized, from scratch": scratch_fit,
        "quantized, by transfer": transfer_fit,
    }
    rows = [
        (
            name,
            fit.quality.n_train,
            fit.quality.n_held_out,
            f"{fit.quality.rmse:.3f}",
            f"{fit.quality.kendall_tau:.3f}",
            f"{fit.quality.spearman_rho:.3f}",
            f"{fit.quality.band_tau:.3f}",
        )
        for name, fit in fits.items()
    ]
    headers = (
        "predictor",
        "trained on",
        "held out",
        "RMSE (points)",
        "Kendall tau",
        "Spearman rho",
        "tau at equal cost",
    )
    print(format_table(headers, rows))
    facts = {
        "dataset": source.get("dataset", "unknown"),
        "image_size": source.get("image_size"),
        "seed": args.seed,
        "settings": asdict(settings),
        "pairs_sha256": files.sha256(pairs_path),
    }
    for file, name in (("acc.pt", "full precision"), ("acc_quant.pt", "quantized, by transfer")):
        path = args.out_dir / file
        fits[name].predictor.save(path)
        write_card(path, **facts, figures={n: asdict(f.quality) for n, f in fits.items()})
        print(f"{name}: {path}")
    if args.ensemble:
        path = args.out_dir / ENSEMBLE_NAME
        ensemble = fit_ensemble(full, quantized, args.ensemble, settings, latency, device=device)
        _write_ensemble(path, ensemble, facts)
    if args.study:
        rows = run_study(full, quantized, settings, latency, device=device)
        headers = ("quantized predictor", "trained on", *FIGURES.values())
        print(format_table(headers, summarize(rows)))
        print("study: " + ", ".join(map(str, write_study(rows, args.study))))
    return 0


def _write_ensemble(path: Path, ensemble: EnsembleFit, facts: dict[str, Any]) -> None:
    from utils.ensemble import save_members

    quality, n_members = ensemble.quality, len(ensemble.members)
    save_members(path, ensemble.members)
    figures = {"quantized, by transfer": asdict(quality)}
    write_card(path, **facts, n_members=n_members, figures=figures)
    print(
        f"ensemble of {n_members}: {path}; its mean is off by {quality.rmse:.3f} points (RMSE) on "
        f"pairs held out, where its spread is {ensemble.spread:.3f} points and goes along with the "
        f"error by a Kendall tau of {ensemble.spread_tau:.3f}"
    )
