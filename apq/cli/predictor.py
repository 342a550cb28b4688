"""`apq predictor`: train the accuracy predictors on measured pairs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq import files
from apq.cli import parser as cli
from apq.cli.tables import format_table
from apq.errors import ApqError
from apq.paths import find_model
from apq.provenance import figure_of, read_card, write_card
from methods.prediction.settings import FitSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from apq.subnet import Subnet
    from methods.prediction.ensemble import EnsembleFit
    from methods.prediction.fit import Fit

OUTPUTS = ("acc.pt", "acc_quant.pt")
MIN_SEARCHED = 5
MEASURED_ALIKE = ("supernet_sha256", "dataset", "image_size", "n_images", "n_bn_images", "seed")
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
    parser.add_argument("--pairs", type=Path, default=Path("models/pairs.json"))
    parser.add_argument(
        "--searched",
        type=Path,
        metavar="FILE",
        help="pairs from searches to train on, too ('apq collect --n_searched'); default: those "
        "beside --pairs, where there are any",
    )
    parser.add_argument("--out_dir", type=Path, default=Path("models"))
    parser.add_argument("--n_epochs", type=cli.whole_number(1), default=FitSettings.n_epochs)
    parser.add_argument("--lr", type=cli.positive_number, default=FitSettings.lr)
    parser.add_argument("--weight_decay", type=float, default=FitSettings.weight_decay)
    parser.add_argument("--dropout", type=float, default=FitSettings.dropout)
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
    parser.add_argument(
        "--overwrite", action="store_true", help="replace predictors of other data, too"
    )
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, print the figures, write the predictors with their cards."""
    from imagenet_codebase.run_manager.evaluate import pick_device
    from methods.prediction.ensemble import fit_ensemble, split_for_ensemble
    from methods.prediction.fit import need_scipy
    from methods.prediction.kinds import FULL, fit_all
    from methods.prediction.pairs import read_pairs, searched_path, split_pairs
    from methods.prediction.searched import LAST_ROUND
    from methods.prediction.study import FIGURES, run_study, summarize, write_study
    from utils.ensemble import ENSEMBLE_NAME
    from utils.latency_predictor import LatencyPredictor

    pairs_path = find_model(args.pairs)
    full, quantized = split_pairs(read_pairs(pairs_path))
    beside = searched_path(pairs_path)
    from_searches = find_model(args.searched) if args.searched else beside
    there = args.searched or beside.exists()
    searched = _read_searched(from_searches, pairs_path) if there else {}
    settings = FitSettings(
        n_epochs=args.n_epochs,
        lr=args.lr,
        transfer_lr=args.transfer_lr,
        weight_decay=args.weight_decay,
        dropout=args.dropout,
        held_out=args.held_out,
        seed=args.seed,
    )
    if args.ensemble:
        split_for_ensemble(quantized, settings)  # too few are told before anything is written
    device = pick_device(args.device)
    source = read_card(pairs_path)
    dataset = source.get("dataset", "unknown")
    need_scipy()  # before time is spent on training
    if not args.overwrite:
        outputs = [*OUTPUTS, *([ENSEMBLE_NAME] if args.ensemble else [])]
        _check_free([args.out_dir / name for name in outputs], dataset)
    latency = LatencyPredictor("latency", source.get("image_size", 224)).predict
    facts = {
        "dataset": dataset,
        "image_size": source.get("image_size"),
        "seed": args.seed,
        "settings": asdict(settings),
        "pairs_sha256": files.sha256(pairs_path),
    }
    if searched:
        facts["searched_sha256"] = files.sha256(from_searches)
    fits = fit_all(full, quantized, searched, settings, latency, device)
    print(format_table(HEADERS, [_row(name, fit) for name, fit in fits.by_name.items()]))
    for line in _about_noise(fits.by_name, source):
        print(line)
    figures: dict[str, Any] = {name: asdict(fit.quality) for name, fit in fits.by_name.items()}
    if fits.about_searched:
        print(fits.about_searched)
        last_round = read_card(from_searches).get(LAST_ROUND)
        figures["searched"] = {**fits.about_searched.figures(), LAST_ROUND: last_round}
    for file, name in zip(OUTPUTS, (FULL, fits.to_search_with), strict=True):
        path = args.out_dir / file
        fits.by_name[name].predictor.save(path)
        write_card(path, **facts, figures=figures)
        print(f"{name}: {path}")
    if args.ensemble:
        path = args.out_dir / ENSEMBLE_NAME
        ensemble = fit_ensemble(
            full, quantized, args.ensemble, settings, latency, device=device, besides=fits.besides
        )
        _write_ensemble(path, ensemble, facts)
    if args.study:
        rows = run_study(full, quantized, settings, latency, device=device)
        headers = ("quantized predictor", "trained on", *FIGURES.values())
        print(format_table(headers, summarize(rows)))
        print("study: " + ", ".join(map(str, write_study(rows, args.study))))
    return 0


def _check_free(paths: Sequence[Path], dataset: str) -> None:
    """Raise ApqError when predictors of other data would be replaced, before time is spent."""
    for path in paths:
        known = read_card(path).get("dataset", "unknown")
        if path.exists() and known != dataset:
            raise ApqError(
                f"{path} has learned from other data ({known}) than these pairs ({dataset}): "
                f"choose another --out_dir, or replace it with --overwrite"
            )


def _about_noise(fits: Mapping[str, Fit], source: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the noise of the measurements leaves for a predictor to get right."""
    from methods.prediction.collect import KINDS, NOISE
    from methods.prediction.kinds import FULL, TRANSFER

    for (kind, words), name in zip(KINDS.items(), (FULL, TRANSFER), strict=True):
        if (noise := figure_of(source, NOISE, kind)) is not None:
            yield (
                f"a measurement {words} strays by {noise:.2f} points: a perfect predictor would "
                f"have a Kendall tau of about {fits[name].quality.best_tau(noise):.2f}"
            )


def _row(name: str, fit: Fit) -> tuple[str, ...]:
    figures = fit.quality
    errors = (figures.spread, figures.rmse)
    ranks = (figures.kendall_tau, figures.spearman_rho, figures.band_tau)
    numbers = (*errors, *ranks)
    return (name, f"{figures.n_train}", f"{figures.n_held_out}", *(f"{n:.3f}" for n in numbers))


def _read_searched(path: Path, pairs: Path) -> dict[Subnet, float]:
    """Return the pairs from searches, none where they are too few to learn from and judge by.

    Raises ApqError when they were not measured as the random ones were.
    """
    from methods.prediction.pairs import read_pairs

    searched, cards = read_pairs(path), (read_card(path), read_card(pairs))
    for name in MEASURED_ALIKE:
        own, other = (card.get(name, "unknown") for card in cards)
        if own != other:
            raise ApqError(
                f"{path} was measured with {name} {own}, {pairs} with {other}: measure one of "
                f"them again, or move it away"
            )
    if len(searched) < MIN_SEARCHED:
        cli.warn(f"{path} holds {len(searched)} pairs: too few to learn from, left out")
        return {}
    return searched


def _write_ensemble(path: Path, ensemble: EnsembleFit, facts: dict[str, Any]) -> None:
    from methods.prediction.kinds import TRANSFER
    from utils.ensemble import save_members

    quality, n_members = ensemble.quality, len(ensemble.members)
    save_members(path, ensemble.members)
    figures = {TRANSFER: asdict(quality)}
    write_card(path, **facts, n_members=n_members, figures=figures)
    print(
        f"ensemble of {n_members}: {path}; its mean is off by {quality.rmse:.3f} points (RMSE) on "
        f"pairs held out, where its spread is {ensemble.spread:.3f} points and goes along with the "
        f"error by a Kendall tau of {ensemble.spread_tau:.3f}"
    )
