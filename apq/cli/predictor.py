"""`apq predictor`: train the accuracy predictors on measured pairs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq import files
from apq.cli import parser as cli
from apq.cli.tables import format_table
from apq.errors import ApqError
from apq.paths import find_model
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
    from methods.prediction.ensemble import EnsembleFit
    from methods.prediction.fit import Fit, Quality
    from methods.prediction.kinds import AllFits

OUTPUTS = ("acc.pt", "acc_quant.pt")
MIN_SEARCHED = 5
PRECISE = "on precise pairs"
"""How a card names the figures by subnets that were measured more precisely."""
MEASURED_ALIKE = (
    "supernet_sha256",
    "dataset",
    "image_size",
    "n_images",
    "n_bn_images",
    "own_images",
    "seed",
)
# A precise accuracy is of the same thing, measured with more images.
MEASURED_OF = ("supernet_sha256", "dataset", "image_size")
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


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """The pairs, and what their cards say of them."""

    full: dict[Subnet, float]
    quantized: dict[Subnet, float]
    searched: dict[Subnet, float]
    precise: dict[Subnet, float]
    source: dict[str, Any]
    """The card of the random pairs."""
    precise_source: dict[str, Any]
    """That of the more precise ones; empty where there are none."""
    last_round: Any
    """What that of the searched ones tells of the last search; None where it does not."""
    hashes: dict[str, str]

    @property
    def image_size(self) -> int:
        return self.source.get("image_size", 224)


def run(args: argparse.Namespace) -> int:
    """Train, print the figures, write the predictors with their cards."""
    from imagenet_codebase.run_manager.evaluate import pick_device
    from methods.prediction.ensemble import fit_ensemble, split_for_ensemble
    from methods.prediction.fit import need_scipy
    from methods.prediction.kinds import fit_all
    from methods.prediction.study import FIGURES, TABLE_NAME, run_study, summarize, write_study
    from utils.ensemble import ENSEMBLE_NAME
    from utils.latency_predictor import LatencyPredictor

    inputs, settings = _read(args), _settings(args)
    if args.ensemble:
        # Too few pairs are told before anything is written.
        split_for_ensemble(inputs.quantized, settings, inputs.precise)
    device = pick_device(args.device)
    need_scipy()  # before time is spent on training
    dataset = inputs.source.get("dataset", "unknown")
    outputs = [*OUTPUTS, *([ENSEMBLE_NAME] if args.ensemble else [])]
    _check_free([args.out_dir / name for name in outputs], dataset, args.overwrite)
    if args.study:
        files.check_writable(args.study / TABLE_NAME)
    facts = {
        "dataset": dataset,
        "image_size": inputs.source.get("image_size"),
        "seed": args.seed,
        "settings": asdict(settings),
        **inputs.hashes,
    }
    pairs = (inputs.full, inputs.quantized)
    latency = LatencyPredictor("latency", inputs.image_size).predict
    fits = fit_all(*pairs, inputs.searched, settings, latency, device, inputs.precise)
    _write_predictors(args.out_dir, fits, inputs, facts)
    _tell(fits, inputs, args.out_dir)
    if args.ensemble:
        ensemble = fit_ensemble(
            *pairs,
            args.ensemble,
            settings,
            latency,
            device=device,
            besides=fits.besides,
            precise=inputs.precise,
        )
        _write_ensemble(args.out_dir / ENSEMBLE_NAME, ensemble, facts)
    if args.study:
        rows = run_study(*pairs, settings, latency, device=device, precise=inputs.precise)
        headers = ("quantized predictor", "trained on", *FIGURES.values())
        written = write_study(rows, args.study)  # first: nobody may be there to read
        print(format_table(headers, summarize(rows)))
        print("study: " + ", ".join(map(str, written)))
    return 0


def _settings(args: argparse.Namespace) -> FitSettings:
    return FitSettings(
        n_steps=args.n_steps,
        lr=args.lr,
        held_out=args.held_out,
        seed=args.seed,
    )


def _read(args: argparse.Namespace) -> _Inputs:
    from methods.prediction.pairs import precise_path, read_pairs, searched_path, split_pairs

    path = find_model(args.pairs)
    full, quantized = split_pairs(read_pairs(path))
    from_searches = _given_or_beside(args.searched, searched_path(path))
    searched = _read_searched(from_searches, path) if from_searches else {}
    precisely = _given_or_beside(args.precise, precise_path(path))
    precise = _read_alike(precisely, path, MEASURED_OF) if precisely else {}
    if precisely and not precise:
        cli.warn(f"{precisely} holds no pairs to judge by")
    hashes = {"pairs_sha256": files.sha256(path)}
    if searched:
        hashes["searched_sha256"] = files.sha256(from_searches)
    if precise:
        hashes["precise_sha256"] = files.sha256(precisely)
    return _Inputs(
        full=full,
        quantized=quantized,
        searched=searched,
        precise=precise,
        source=read_card(path),
        precise_source=read_card(precisely) if precise else {},
        last_round=read_card(from_searches).get(LAST_ROUND) if searched else None,
        hashes=hashes,
    )


def _given_or_beside(given: Path | None, beside: Path) -> Path | None:
    """Return the file that a flag names, or the one that lies there; None without either."""
    return find_model(given) if given else beside if beside.exists() else None


def _tell(fits: AllFits, inputs: _Inputs, folder: Path) -> None:
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


def _write_predictors(folder: Path, fits: AllFits, inputs: _Inputs, facts: dict[str, Any]) -> None:
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


def _about_noise(fits: Mapping[str, Fit], inputs: _Inputs) -> Iterator[str]:
    """Yield what the noise of the measurements leaves for a predictor to get right."""
    for (kind, words), name in zip(KINDS.items(), (FULL, TRANSFER), strict=True):
        fit = fits[name]
        if (noise := figure_of(inputs.source, NOISE, kind)) is not None:
            yield (
                f"accuracies measured {words} vary by {noise:.2f} points with the images drawn: "
                f"even a perfect predictor would have a Kendall tau of about "
                f"{fit.quality.best_tau(noise):.2f}"
            )
        sampling = figure_of(inputs.source, SAMPLING_NOISE, kind)
        if fit.precise and sampling is not None:
            noise = math.hypot(sampling, figure_of(inputs.precise_source, NOISE, kind) or 0.0)
            yield (
                f"the more precise ones vary by {noise:.2f} points, as other validation images "
                f"might have been taken: a predictor of the accuracy on all images like them "
                f"would have a Kendall tau of about {fit.precise.best_tau(noise):.2f}"
            )


def _row(name: str, figures: Quality) -> tuple[str, ...]:
    errors = (figures.spread, figures.rmse)
    ranks = (figures.kendall_tau, figures.spearman_rho, figures.band_tau)
    numbers = (*errors, *ranks)
    return (name, f"{figures.n_train}", f"{figures.n_held_out}", *(f"{n:.3f}" for n in numbers))


def _read_searched(path: Path, pairs: Path) -> dict[Subnet, float]:
    """Return the pairs from searches, none where they are too few to learn from and judge by.

    Raises ApqError when they were not measured as the random ones were.
    """
    searched = _read_alike(path, pairs, MEASURED_ALIKE)
    if len(searched) < MIN_SEARCHED:
        cli.warn(f"{path} holds {len(searched)} pairs: too few to learn from, left out")
        return {}
    return searched


def _read_alike(path: Path, pairs: Path, facts: Sequence[str]) -> dict[Subnet, float]:
    """Return the pairs of a file whose card agrees with that of the random ones on all facts.

    Raises ApqError when it does not.
    """
    from methods.prediction.pairs import read_pairs

    read, cards = read_pairs(path), (read_card(path), read_card(pairs))
    for name in facts:
        own, other = (card.get(name, "unknown") for card in cards)
        if own != other:
            raise ApqError(
                f"{path} was measured with {name} {own}, {pairs} with {other}: measure one of "
                f"them again, or move it away"
            )
    return read


def _write_ensemble(path: Path, ensemble: EnsembleFit, facts: dict[str, Any]) -> None:
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
