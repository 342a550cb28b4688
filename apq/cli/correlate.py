"""`apq correlate`: does accuracy measured directly rank subnets as finetuning does?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from apq import files
from apq.cli import parser as cli
from apq.cli.data import add_data, open_data
from apq.cli.outputs import check_free, run_folder
from apq.cli.processes import add_nproc, in_processes
from apq.cli.recipe import add_recipe, recipe
from apq.cli.weights import find_supernet
from apq.provenance import write_card
from apq.space import PAPER_SPACE

if TYPE_CHECKING:
    import torch

    from imagenet_codebase.run_manager.recipes import FinetuneSettings


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(
        prog=prog,
        description="Finetune random quantized subnets under one recipe, and correlate their\n"
        "ranks with those of their accuracy before. Goes on where it was stopped.",
    )
    parser.add_argument(
        "--n_subnets",
        type=cli.whole_number(2),
        default=24,
        metavar="N",
        help="how many; default %(default)s",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("models/correlation.json"),
        metavar="FILE",
        help="the result; default %(default)s",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a result that this run did not make"
    )
    add_nproc(parser)
    add_recipe(parser, {"n_epochs": 1})
    add_data(parser, default="cifar10")
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Finetune, print the correlations and write them, in as many processes as asked for."""
    from methods.prediction.fit import need_scipy

    settings = recipe(args)
    need_scipy()  # before hours of finetuning
    return in_processes(args, lambda device: _correlate(args, settings, device))


def _correlate(args: argparse.Namespace, settings: FinetuneSettings, device: torch.device) -> int:
    from imagenet_codebase.run_manager import distributed
    from methods.validation.bench import FinetuningBench
    from methods.validation.correlate import correlate, measure_random

    distributed.from_first(lambda: check_free(args.out, args.overwrite))
    data = open_data(args)
    supernet = find_supernet(args.supernet, data.name)
    folder = run_folder(args.out)
    bench = FinetuningBench(supernet, data, settings, folder, device)
    outcomes = measure_random(bench, PAPER_SPACE, args.n_subnets, args.seed)
    if outcomes is None:
        print(f"stopped; the same command goes on from {folder}")
        return 130
    if not distributed.is_first():
        return 0
    figures = correlate(list(outcomes.values()))
    rows = [{"arch": subnet.to_json(), **asdict(o)} for subnet, o in outcomes.items()]
    files.write_json(args.out, {**asdict(figures), "subnets": rows})
    write_card(
        args.out,
        dataset=data.name,
        image_size=data.image_size,
        seed=args.seed,
        settings=asdict(settings),
        supernet_sha256=files.sha256(supernet),
    )
    print(f"{figures}\n{args.out}")
    return 0
