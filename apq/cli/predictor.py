"""`apq predictor`: train the accuracy predictors on measured pairs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq import files
from apq.cli import parser as cli
from apq.cli.tables import format_table
from apq.errors import ApqError
from apq.provenance import figure_of, read_card, write_card
from methods.prediction.cards import (
    ABOUT_SEARCHED,
    FULL,
    KINDS,
    LAST_ROUND,
    NOISE,
    SAMPLING_NOISE,
    TRANSFER,
)
from methods.prediction.settings import FitSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from apq.subnet import Subnet
    from methods.prediction.fit import Fit, Quality
    from methods.prediction.inputs import Inputs
    from methods.prediction.kinds import AllFits

OUTPUTS = ("acc.pt", "acc_quant.pt")
PRECISE = "on precise pairs"
"""How a card names the figures by subnets that were measured more precisely."""
HEADERS = (
    "predictor",
    "trained on",
    "held out",
    "spread (points)",
    "RMSE (points)",
    "Kendall tau",
    "Spearman rho",
    "tau at equal cost",
)


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(
        prog=prog,
        description="Train the full-precision predictor (acc.pt), transfer it to the quantized\n"
        "one (acc_quant.pt), and compare that with training from scratch, on held-out pairs.",
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        default=Path("models/pairs.json"),
        metavar="FILE",
        help="pairs of random subnets ('apq collect'); default %(default)s",
    )
    parser.add_argument(
        "--searched",
        type=Path,
        metavar="FILE",
        help="pairs from searches to train on, too ('apq collect --n_searched'); default: those "
        "beside --pairs, where there are any",
    )
    parser.add_argument(
        "--precise",
        type=Path,
        metavar="FILE",
        help="some of the subnets measured more precisely, to judge the predictors by, too;\n"
        "default: those beside --pairs, where there are any",
    )
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path("models"),
        metavar="DIR",
        help="folder of the predictors written; default %(default)s",
    )
    parser.add_argument(
        "--n_steps",
        type=cli.whole_number(1),
        default=FitSettings.n_steps,
        metavar="N",
        help="training steps of each predictor; default %(default)s",
    )
    parser.add_argument(
        "--lr",
        type=cli.positive_number,
        default=FitSettings.lr,
        help="learning rate at the start; default %(default)s",
    )
    parser.add_argument(
        "--held_out",
        type=float,
        default=FitSettings.held_out,
        metavar="SHARE",
        help="share of the pairs for the figures, default %(default)s; the predictors written "
        "learn from all",
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
    parser.add_argument(
        "--overwrite", action="store_true", help="replace predictors of other data, too"
    )
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, print the figures, write the predictors with their cards."""
    from methods.prediction.fit import Fitting
    from methods.prediction.inputs import read_inputs
    from methods.prediction.kinds import fit_all
    from utils.devices import pick_device
    from utils.latency_predictor import LatencyPredictor

    inputs, settings = read_inputs(args.pairs, args.searched, args.precise), _settings(args)
    for note in inputs.notes:
        cli.warn(note)
    device = pick_device(args.device)
    _check(args, inputs, settings)
    facts = {
        "dataset": inputs.dataset,
        "image_size": inputs.source.get("image_size"),
        "seed": args.seed,
        "settings": asdict(settings),
        **inputs.hashes,
    }
    fitting = Fitting(
        settings=settings,
        cost_fn=LatencyPredictor("latency", inputs.image_size).predict,
        device=device,
    )
    pairs = (inputs.full, inputs.quantized)
    fits = fit_all(*pairs, inputs.searched, fitting, inputs.precise)
    _write_predictors(args.out_dir, fits, inputs, facts)
    _tell(fits, inputs, args.out_dir)
    rest = {"fitting": fitting, "precise": inputs.precise}
    if args.ensemble:
        _make_ensemble(args, pairs, fits.besides, facts, rest)
    if args.study:
        _make_study(args.study, pairs, rest)
    return 0


def _check(args: argparse.Namespace, inputs: Inputs, settings: FitSettings) -> None:
    """Raise ApqError, before time is spent on training, when something is missing at its end."""
    from methods.prediction.ensemble import split_for_ensemble
    from methods.prediction.fit import need_scipy
    from methods.prediction.study import TABLE_NAME
    from utils.ensemble import ENSEMBLE_NAME

    need_scipy()
    outputs = list(OUTPUTS)
    if args.ensemble:
        split_for_ensemble(inputs.quantized, settings, inputs.precise)
        outputs.append(ENSEMBLE_NAME)
    _check_free([args.out_dir / name for name in outputs], inputs.dataset, args.overwrite)
    if args.study:
        files.check_writable(args.study / TABLE_NAME)


def _settings(args: argparse.Namespace) -> FitSettings:
    return FitSettings(
        n_steps=args.n_steps,
        lr=args.lr,
        held_out=args.held_out,
        seed=args.seed,
    )


def _tell(fits: AllFits, inputs: Inputs, folder: Path) -> None:
    rows = [_row(name, fit.quality) for name, fit in fits.by_name.items()]
    print(format_table(HEADERS, rows))
    if precise := [_row(name, fit.precise) for name, fit in fits.by_name.items() if fit.precise]:
        print("the same, judged by subnets that were measured more precisely:")
        print(format_table(HEADERS, precise))
    for line in _about_noise(fits.by_name, inputs):
        print(line)
    if fits.about_searched:
        print(fits.about_searched)
    for file, name in zip(OUTPUTS, fits.to_use, strict=True):
        print(f"{name}, trained on all pairs: {folder / file}")


def _write_predictors(folder: Path, fits: AllFits, inputs: Inputs, facts: dict[str, Any]) -> None:
    figures: dict[str, Any] = {name: asdict(fit.quality) for name, fit in fits.by_name.items()}
    figures |= {
        f"{name}, {PRECISE}": asdict(fit.precise)
        for name, fit in fits.by_name.items()
        if fit.precise
    }
    if fits.about_searched:
        figures[ABOUT_SEARCHED] = {**fits.about_searched.figures(), LAST_ROUND: inputs.last_round}
    for file, predictor in zip(OUTPUTS, fits.to_use.values(), strict=True):
        predictor.save(folder / file)
        write_card(folder / file, **facts, figures=figures)


def _check_free(paths: Sequence[Path], dataset: str, overwrite: bool) -> None:
    """Raise ApqError, before time is spent, when a predictor could not be written.

    Nor may it replace one of other data, unless told to.
    """
    for path in paths:
        files.check_writable(path)
        if overwrite:
            continue
        known = read_card(path).get("dataset", "unknown")
        if path.exists() and known != dataset:
            raise ApqError(
                f"{path} has learned from other data ({known}) than these pairs ({dataset}): "
                f"choose another --out_dir, or replace it with --overwrite"
            )


def _about_noise(fits: Mapping[str, Fit], inputs: Inputs) -> Iterator[str]:
    """Yield what the noise of the measurements leaves for a predictor to get right."""
    for (kind, words), name in zip(KINDS.items(), (FULL, TRANSFER), strict=True):
        fit = fits[name]
        if (noise := figure_of(inputs.source, NOISE, kind)) is not None:
            yield (
                f"accuracies measured {words} have a noise of {noise:.2f} points: even a perfect "
                f"predictor would have a Kendall tau of about {fit.quality.best_tau(noise):.2f}"
            )
        sampling = figure_of(inputs.source, SAMPLING_NOISE, kind)
        if fit.precise and sampling is not None:
            noise = math.hypot(sampling, figure_of(inputs.precise_source, NOISE, kind) or 0.0)
            yield (
                f"the more precise ones have one of {noise:.2f} points, as the validation images "
                f"are a sample: a predictor of the accuracy on all images like them would have a "
                f"Kendall tau of about {fit.precise.best_tau(noise):.2f}"
            )


def _row(name: str, figures: Quality) -> tuple[str, ...]:
    errors = (figures.spread, figures.rmse)
    ranks = (figures.kendall_tau, figures.spearman_rho, figures.band_tau)
    numbers = (*errors, *ranks)
    return (name, f"{figures.n_train}", f"{figures.n_held_out}", *(f"{n:.3f}" for n in numbers))


def _make_ensemble(
    args: argparse.Namespace,
    pairs: tuple[Mapping[Subnet, float], Mapping[Subnet, float]],
    besides: Mapping[Subnet, float],
    facts: dict[str, Any],
    how: dict[str, Any],
) -> None:
    """Train the ensemble, write it and say how good it is."""
    from methods.prediction.ensemble import fit_ensemble
    from utils.ensemble import ENSEMBLE_NAME, save_members

    path = args.out_dir / ENSEMBLE_NAME
    ensemble = fit_ensemble(*pairs, args.ensemble, besides=besides, **how)
    quality, n_members = ensemble.quality, len(ensemble.members)
    save_members(path, ensemble.members)
    write_card(path, **facts, n_members=n_members, figures={TRANSFER: asdict(quality)})
    print(
        f"ensemble of {n_members}: {path}; its mean is off by {quality.rmse:.3f} points (RMSE) on "
        f"pairs held out, where its spread is {ensemble.spread:.3f} points and goes along with the "
        f"error by a Kendall tau of {ensemble.spread_tau:.3f}"
    )


def _make_study(
    folder: Path,
    pairs: tuple[Mapping[Subnet, float], Mapping[Subnet, float]],
    how: dict[str, Any],
) -> None:
    """Study how many pairs it takes; write the result, and print it."""
    from methods.prediction.study import FIGURES, run_study, summarize, write_study

    rows = run_study(*pairs, **how)
    written = write_study(rows, folder)  # first: nobody may be there to read
    print(format_table(("quantized predictor", "trained on", *FIGURES.values()), summarize(rows)))
    print("study: " + ", ".join(map(str, written)))
