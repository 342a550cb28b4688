"""`apq supernet`: train a quantization-aware once-for-all supernet."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq.cli import parser as cli
from apq.cli.data import add_data, open_data
from apq.cli.outputs import check_free, run_folder
from apq.cli.processes import add_nproc, in_processes
from apq.cli.tables import format_table
from apq.errors import ApqError
from apq.paths import find_model
from apq.provenance import figure_of, read_card, write_card
from imagenet_codebase.run_manager.settings import OPTIMIZERS, SupernetSettings

if TYPE_CHECKING:
    import torch

TRAINING = SupernetSettings().training


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(
        prog=prog,
        description="Train a supernet in three phases: the largest subnet, all sizes, all bits.\n"
        "The same command goes on where an earlier one was stopped.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("models/supernet.pth.tar"),
        metavar="FILE",
        help="the supernet; default %(default)s",
    )
    group = parser.add_argument_group("recipe")
    group.add_argument(
        "--init",
        default="",
        metavar="SOURCE",
        help="weights to start from: efficientnet-lite0 (ImageNet's, of the extra 'pretrained') "
        "or a supernet file; default random ones",
    )
    group.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="a supernet file: all subnets learn from its largest one's answers, too",
    )
    group.add_argument(
        "--distill",
        type=cli.number_from_zero,
        help=f"share of the loss from the teacher's answers; default: {SupernetSettings.distill:g}",
    )
    group.add_argument(
        "--teacher_image_size",
        type=cli.whole_number(0),
        metavar="PX",
        help="enlarge images for the teacher; default: to the size in its card",
    )
    phases = {"largest": "the largest subnet", "elastic": "all sizes", "quantized": "all bits"}
    for phase, what in phases.items():
        group.add_argument(
            f"--{phase}_epochs",
            type=cli.whole_number(0),
            default=getattr(SupernetSettings, f"{phase}_epochs"),
            metavar="N",
            help=f"epochs of the phase that trains {what}; default %(default)s",
        )
    group.add_argument(
        "--lr",
        type=cli.positive_number,
        default=SupernetSettings.lr,
        help="learning rate of the first two phases; default %(default)s",
    )
    group.add_argument(
        "--quantized_lr",
        type=cli.positive_number,
        default=SupernetSettings.quantized_lr,
        metavar="LR",
        help="that of the last phase; default %(default)s",
    )
    group.add_argument(
        "--optimizer",
        type=cli.one_of(*OPTIMIZERS),
        default=TRAINING.optimizer,
        help=f"{' or '.join(OPTIMIZERS)}; default %(default)s",
    )
    group.add_argument(
        "--weight_decay",
        type=cli.number_from_zero,
        default=TRAINING.weight_decay,
        metavar="W",
        help="of filters; default %(default)s",
    )
    group.add_argument(
        "--batch_size",
        type=cli.whole_number(2),
        default=TRAINING.batch_size,
        metavar="N",
        help="images a step of each process; default %(default)s",
    )
    group.add_argument(
        "--warmup_epochs",
        type=float,
        default=TRAINING.warmup_epochs,
        metavar="N",
        help="of each phase, over which the learning rate rises from zero; default %(default)s",
    )
    group.add_argument(
        "--n_random",
        type=cli.whole_number(0),
        default=SupernetSettings.n_random,
        metavar="N",
        help="random subnets a step, once sizes differ; default %(default)s",
    )
    group.add_argument(
        "--sandwich_every",
        type=cli.whole_number(1),
        default=SupernetSettings.sandwich_every,
        metavar="STEPS",
        help="run the largest and the smallest subnet, too, in one of so many steps",
    )
    group.add_argument(
        "--small_image_size",
        type=cli.whole_number(0),
        default=SupernetSettings.small_image_size,
        metavar="PX",
        help="shrink the images in the first part of the first two phases, to save time; 0: never",
    )
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="run the quantizers' passes as compiled loops; default: in runs of 500 steps on",
    )
    parser.add_argument("--restart", action="store_true", help="drop an earlier run and begin anew")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a supernet that this run did not make"
    )
    add_nproc(parser)
    add_data(parser, default="digits", trains=True)
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, and write the supernet with its card, in as many processes as were asked for."""
    settings = _settings(args)
    return in_processes(args, lambda device: _train(args, settings, device))


def _settings(args: argparse.Namespace) -> SupernetSettings:
    phases = (args.largest_epochs, args.elastic_epochs, args.quantized_epochs)
    return SupernetSettings(
        largest_epochs=args.largest_epochs,
        elastic_epochs=args.elastic_epochs,
        quantized_epochs=args.quantized_epochs,
        lr=args.lr,
        quantized_lr=args.quantized_lr,
        n_random=args.n_random,
        sandwich_every=args.sandwich_every,
        small_image_size=args.small_image_size,
        init=args.init and str(find_model(args.init)),
        **_teaching(args),
        training=replace(
            TRAINING,
            # Each phase has its own: enough of them here for what warms up the longest one.
            n_epochs=max(TRAINING.n_epochs, *phases),
            optimizer=args.optimizer,
            weight_decay=args.weight_decay,
            batch_size=args.batch_size,
            warmup_epochs=args.warmup_epochs,
            n_workers=args.n_workers,
            seed=args.seed,
            compile=args.compile,
        ),
    )


def _teaching(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that tell of the teacher; raises ApqError."""
    if args.teacher is None:
        for flag in ("distill", "teacher_image_size"):
            if getattr(args, flag) is not None:
                raise ApqError(f"there is no teacher: name one with --teacher, or drop --{flag}")
        return {}
    size, teacher = args.teacher_image_size, find_model(args.teacher)
    if size is None:
        size = figure_of(read_card(teacher), "image_size") or 0
    share = SupernetSettings.distill if args.distill is None else args.distill
    return {"teacher": str(teacher), "distill": share, "teacher_image_size": int(size)}


def _train(args: argparse.Namespace, settings: SupernetSettings, device: torch.device) -> int:
    from elastic_nn.networks.files import save_supernet
    from imagenet_codebase.run_manager import distributed
    from imagenet_codebase.run_manager.measuring import measure_on_test
    from imagenet_codebase.run_manager.supernet import train_supernet

    distributed.from_first(lambda: check_free(args.out, args.overwrite))
    data = open_data(args)
    folder = run_folder(args.out)
    # Started again after a loss, a run goes on: what it saved is its own.
    restart = args.restart and not distributed.restarted()
    trained = train_supernet(data, settings, folder, device, restart=restart)
    if trained is None:
        print(f"stopped; {cli.same_command(args)} goes on from {folder}")
        return 130
    net, history = trained
    elastic = bool(settings.elastic_epochs or settings.quantized_epochs)
    tested = measure_on_test(net, data, settings.n_bn_images, args.n_workers, elastic)
    if not distributed.is_first():
        return 0
    save_supernet(net, args.out)
    write_card(
        args.out,
        **data.facts(),
        seed=args.seed,
        settings=asdict(settings),
        test={name: round(value, 4) for name, value in tested.items()},
        history=[{name: round(value, 4) for name, value in row.items()} for row in history],
        training_minutes=round(sum(row["seconds"] for row in history) / 60, 1),
    )
    rows = [
        (size, *(f"{tested[f'{size}{bits}_top1']:.2%}" for bits in ("", "_w8a8", "_w4a4")))
        for size in ("largest", "smallest", "random")
        if f"{size}_top1" in tested
    ]
    print(f"top-1 on the {data.n_images('test'):,} test images, without finetuning:")
    print(format_table(("subnet", "full precision", "W8A8", "W4A4"), rows))
    print(f"supernet: {args.out}")
    return 0
