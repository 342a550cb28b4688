"""`apq collect`: measure subnets, the pairs that predictors learn from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from apq import files
from apq.cli import parser as cli
from apq.cli.data import add_data, open_data
from apq.cli.processes import add_nproc, in_processes
from apq.cli.weights import add_supernet, find_supernet
from apq.errors import ApqError
from apq.paths import find_in
from apq.provenance import figure_of, read_card
from methods.prediction.cards import KINDS, LAST_ROUND, NOISE, SAMPLING_NOISE
from methods.prediction.settings import MeasuringSettings

if TYPE_CHECKING:
    import torch

    from imagenet_codebase.data_providers import DataProvider
    from utils.accuracy_predictor import AccuracyPredictor


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(
        prog=prog,
        description="Measure random subnets with a supernet's weights, each after its batch\n"
        "statistics were taken anew; with --n_searched also subnets that searches find with the\n"
        "predictor at hand. Goes on where an earlier run was stopped or killed.",
    )
    add_supernet(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("models/pairs.json"),
        metavar="FILE",
        help="the pairs; default %(default)s",
    )
    for kind, default in (("full", 400), ("quantized", 800)):
        parser.add_argument(
            f"--n_{kind}",
            type=cli.whole_number(0),
            default=default,
            metavar="N",
            help=f"random subnets to measure {KINDS[kind]}; default %(default)s",
        )
    parser.add_argument(
        "--n_searched",
        type=cli.whole_number(0),
        default=0,
        metavar="N",
        help="found by searches under random budgets; kept in a file of their own beside --out",
    )
    parser.add_argument(
        "--acc_predictor_dir",
        type=Path,
        default=Path("models"),
        metavar="DIR",
        help="folder of acc_quant.pt, or a file, for --n_searched",
    )
    parser.add_argument(
        "--n_bn_images",
        type=cli.whole_number(2),
        default=MeasuringSettings.n_bn_images,
        metavar="N",
        help="training images that each one's batch statistics are taken from; default %(default)s",
    )
    parser.add_argument(
        "--n_draws",
        type=cli.whole_number(1),
        default=MeasuringSettings.n_draws,
        metavar="N",
        help="draws of them, over which an accuracy is the mean; default %(default)s",
    )
    parser.add_argument(
        "--n_val_images",
        type=cli.whole_number(0),
        default=MeasuringSettings.n_val_images,
        metavar="N",
        help="run only the validation images that subnets disagree about most, so many; 0: all",
    )
    parser.add_argument(
        "--n_noise",
        type=cli.whole_number(0),
        default=40,
        metavar="N",
        help="subnets of each kind measured once more at the end, to tell the noise; default "
        "%(default)s",
    )
    add_nproc(parser)
    add_data(parser, default="digits")
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure until the file has the wanted numbers of pairs, in as many processes as asked for."""
    return in_processes(args, lambda device: _collect(args, device))


def _collect(args: argparse.Namespace, device: torch.device) -> int:
    from elastic_nn.networks.files import load_supernet
    from imagenet_codebase.run_manager import distributed
    from imagenet_codebase.run_manager.classes import check_classes
    from methods.prediction.collect import collect, random_quotas
    from methods.prediction.pairs import searched_path
    from methods.prediction.searched import searched_quota

    data = open_data(args)
    supernet = find_supernet(args.supernet, data.name)
    net = load_supernet(supernet).net.to(device)
    check_classes(supernet, net.n_classes, data, "name another with --supernet")
    predictor = _predictor(args.acc_predictor_dir, data) if args.n_searched else None
    facts = {"supernet": supernet.name, "supernet_sha256": files.sha256(supernet)}
    settings = MeasuringSettings(
        n_bn_images=args.n_bn_images,
        n_draws=args.n_draws,
        n_val_images=args.n_val_images,
        n_workers=args.n_workers,
        seed=args.seed,
    )
    quotas = random_quotas(net.space, args.n_full, args.n_quantized, args.seed)
    path = args.out
    finished = collect(net, data, path, quotas, facts, settings, args.n_noise)
    if finished and predictor:
        path = searched_path(path)
        quota = searched_quota(predictor, data.image_size, args.n_searched, args.seed)
        finished = collect(net, data, path, [quota], facts, settings)
        if distributed.is_first():
            _tell_searched(path)
    if not finished:
        print(f"stopped; the same command goes on from {path}")
        return 130
    if distributed.is_first():
        _tell(args.out)
    return 0


def _predictor(given: Path, data: DataProvider) -> AccuracyPredictor:
    """Return the predictor to search with; raises ApqError when it has learned something else."""
    from utils.accuracy_predictor import QUANTIZED_NAME, AccuracyPredictor

    path = find_in(given, QUANTIZED_NAME)
    predictor = AccuracyPredictor.load(path)
    remedy = "name another with --acc_predictor_dir"
    dataset = predictor.card.get("dataset", data.name)
    if dataset != data.name:
        raise ApqError(f"{path} has learned from {dataset}, not {data.name}: {remedy}")
    if not predictor.quantized:
        raise ApqError(f"{path} knows nothing of bits: {remedy}")
    return predictor


def _tell_searched(path: Path) -> None:
    """Print how right the predictor was about what was found with it last."""
    from methods.prediction.searched import SearchedQuality

    if last := read_card(path).get(LAST_ROUND):
        quality = SearchedQuality(rmse=last["rmse"], bias=last["bias"])
        print(f"about the {last['n_found']} subnets found last the predictor was {quality}")
    print(f"pairs from searches: {path}")


def _tell(path: Path) -> None:
    """Print where the pairs are, and what is known of their noise."""
    card = read_card(path)
    sources = "from the images of its batch statistics"
    if card.get("disputed"):
        sources += ", and from those left out"
    for kind, words in KINDS.items():
        if (points := figure_of(card, NOISE, kind)) is not None:
            print(f"noise {words}: {points:.2f} points (standard deviation), {sources}")
        if (points := figure_of(card, SAMPLING_NOISE, kind)) is not None:
            print(
                f"noise {words} on all validation images: {points:.2f} points, as they are a "
                f"sample themselves"
            )
    print(f"pairs: {path}")
