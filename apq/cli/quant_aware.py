"""`apq quant-aware`, `quant_aware.py`: finetune what a search found."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from apq.cli import parser as cli
from apq.cli.data import add_data, open_data
from apq.cli.processes import add_nproc, in_processes
from apq.cli.recipe import add_recipe, recipe
from apq.cli.weights import find_supernet
from apq.experiment import EXPERIMENTS_DIR, Experiment

if TYPE_CHECKING:
    import torch

    from imagenet_codebase.run_manager.recipes import FinetuneSettings


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser; the recipe's defaults are the paper's."""
    parser = cli.Parser(prog=prog, description="Finetune an experiment, quantization-aware.")
    parser.add_argument("--exp_name", required=True, help="experiment under exps/")
    parser.add_argument("--restart", action="store_true", help="drop an earlier run and begin anew")
    add_nproc(parser)
    add_recipe(parser)
    add_data(parser, default="imagenet", trains=True)
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Finetune and say how it went, in as many processes as were asked for."""
    experiment = Experiment.open(Experiment.path_for(args.exp_name))
    experiment.subnet()  # a broken file is told before the data are read
    settings = recipe(args)
    return in_processes(args, lambda device: _finetune(args, experiment, settings, device))


def _finetune(
    args: argparse.Namespace,
    experiment: Experiment,
    settings: FinetuneSettings,
    device: torch.device,
) -> int:
    from imagenet_codebase.run_manager import distributed
    from imagenet_codebase.run_manager.finetune import finetune
    from imagenet_codebase.run_manager.states import LAST_NAME

    data = open_data(args)
    supernet = find_supernet(args.supernet, data.name)
    # Started again after a loss, a run goes on: what it saved is its own.
    restart = args.restart and not distributed.restarted()
    result = finetune(experiment, supernet, data, settings, device, restart)
    if not result.finished:
        last = experiment.checkpoint_dir / LAST_NAME
        print(f"stopped; {cli.same_command(args)} goes on from {last}")
        return 130
    print(
        f"best validation top-1 {result.best_top1:.2%}: {experiment.best_checkpoint}\n"
        f"next: {cli.to_type(args, 'test')} --exp_dir={EXPERIMENTS_DIR / args.exp_name}"
    )
    return 0
