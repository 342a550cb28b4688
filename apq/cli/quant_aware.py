"""`apq quant-aware`, `quant_aware.py`: finetune what a search found."""

from __future__ import annotations

import argparse
from pathlib import Path

from apq.cli import parser as cli
from apq.cli.data import add_data, open_data
from apq.errors import ApqError
from apq.experiment import EXPERIMENTS_DIR, Experiment
from apq.paths import find_model
from imagenet_codebase.run_manager.settings import TrainingSettings

SUPERNETS = (Path("models/imagenet-OFA"), Path("models/supernet.pth.tar"))


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser; the recipe's defaults are the paper's."""
    parser = cli.Parser(prog=prog, description="Finetune an experiment, quantization-aware.")
    parser.add_argument("--exp_name", required=True, help="experiment under exps/")
    parser.add_argument(
        "--supernet",
        type=Path,
        metavar="FILE",
        help="weights to start from; default: models/imagenet-OFA for ImageNet where it is there, "
        "else the shipped models/supernet.pth.tar",
    )
    parser.add_argument("--restart", action="store_true", help="drop an earlier run and begin anew")
    group = parser.add_argument_group("recipe")
    group.add_argument("--n_epochs", type=cli.whole_number(1), default=TrainingSettings.n_epochs)
    group.add_argument(
        "--batch_size", type=cli.whole_number(2), default=TrainingSettings.batch_size
    )
    group.add_argument("--lr", type=cli.positive_number, default=TrainingSettings.lr)
    group.add_argument("--momentum", type=float, default=TrainingSettings.momentum)
    group.add_argument(
        "--grad_clip", type=float, default=TrainingSettings.grad_clip, help="0 leaves it alone"
    )
    group.add_argument("--weight_decay", type=float, default=TrainingSettings.weight_decay)
    group.add_argument("--label_smoothing", type=float, default=TrainingSettings.label_smoothing)
    group.add_argument("--warmup_epochs", type=float, default=TrainingSettings.warmup_epochs)
    group.add_argument(
        "--save_every_s",
        type=cli.positive_number,
        default=TrainingSettings.save_every_s,
        help="seconds between saves",
    )
    add_data(parser, default="imagenet")
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Finetune and say how it went."""
    from imagenet_codebase.run_manager.evaluate import pick_device
    from imagenet_codebase.run_manager.finetune import finetune

    experiment = Experiment.open(Experiment.path_for(args.exp_name))
    experiment.subnet()  # a broken file is told before the data are read
    device = pick_device(args.device)
    settings = TrainingSettings(
        n_epochs=args.n_epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        momentum=args.momentum,
        grad_clip=args.grad_clip,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        warmup_epochs=args.warmup_epochs,
        save_every_s=args.save_every_s,
        n_workers=args.n_workers,
        seed=args.seed,
    )
    data = open_data(args)
    supernet = find_supernet(args.supernet, data.name)
    result = finetune(experiment, supernet, data, settings, device, args.restart)
    if not result.finished:
        print(f"stopped; the same command goes on from {experiment.checkpoint_dir}/last.pth.tar")
        return 130
    print(
        f"best validation top-1 {result.best_top1:.2%}: {experiment.best_checkpoint}\n"
        f"next: python test.py --exp_dir={EXPERIMENTS_DIR / args.exp_name}"
    )
    return 0


def find_supernet(given: Path | None, dataset: str) -> Path:
    """Return the supernet file to start from; raises ApqError where there is none."""
    candidates = SUPERNETS if dataset == "imagenet" else SUPERNETS[::-1]
    found = [find_model(path) for path in ([given] if given else candidates)]
    for path in found:
        if path.is_file():
            return path
    raise ApqError(f"there is no supernet at {found[0]}; name one with --supernet FILE")
