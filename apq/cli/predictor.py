"""`apq predictor`: train the accuracy predictors on measured pairs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from apq import files
from apq.cli import parser as cli
from apq.cli.tables import format_table
from apq.paths import find_model
from apq.provenance import read_card, write_card
from methods.prediction.settings import FitSettings


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
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, print the figures, write the predictors with their cards."""
    from imagenet_codebase.run_manager.evaluate import pick_device
    from methods.prediction.fit import fit
    from methods.prediction.pairs import read_pairs, split_pairs

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
    full_fit = fit(full, False, settings, device=device)
    scratch_fit = fit(quantized, True, settings, device=device)
    transfer_fit = fit(quantized, True, settings, start=full_fit.predictor, device=device)
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
    )
    print(format_table(headers, rows))
    source = read_card(pairs_path)
    for file, name in (("acc.pt", "full precision"), ("acc_quant.pt", "quantized, by transfer")):
        path = args.out_dir / file
        fits[name].predictor.save(path)
        write_card(
            path,
            dataset=source.get("dataset", "unknown"),
            image_size=source.get("image_size"),
            seed=args.seed,
            settings=asdict(settings),
            figures={n: asdict(f.quality) for n, f in fits.items()},
            pairs_sha256=files.sha256(pairs_path),
        )
        print(f"{name}: {path}")
    return 0
