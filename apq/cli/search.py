"""`apq search`, `search.py`: find the most accurate subnet within one or more budgets."""

from __future__ import annotations

import argparse

from apq.cli import parser as cli
from apq.cli import search_flags
from apq.errors import ApqError
from apq.experiment import Experiment


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser; the search's defaults are the paper's."""
    parser = cli.Parser(
        prog=prog,
        description="Find the most accurate subnet under one or more budgets. A search that Ctrl-C "
        "stopped goes on when the same command is typed again.",
    )
    parser.add_argument("--exp_name", required=True, help="name of the folder made under exps/")
    parser.add_argument(
        "--constraint", type=cli.positive_number, metavar="MAX", help="the budget, in ms or mJ"
    )
    parser.add_argument(
        "--type",
        type=cli.one_of("latency", "energy"),
        help="what --constraint bounds: latency (ms) or energy (mJ); default latency",
    )
    search_flags.add_all(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Search, print the winner, save the experiment."""
    from apq.cli import searching
    from apq.cli.found_text import format_found
    from methods import saving
    from utils.plots import NO_PLOT, can_plot

    Experiment.path_for(args.exp_name)  # a bad name is told first
    maxima = _maxima(args)
    request = searching.Shared.from_flags(args).request(args.exp_name, maxima)
    request.problem.check()
    for note in request.problem.notes():
        cli.warn(note)
    with Experiment.claim(args.exp_name):
        stopped = saving.stopped_of(request)
        saving.check_free(request, stopped, args.overwrite)
        found = searching.find(request, stopped=stopped)
        text = format_found(found, request)
        try:
            experiment = saving.save(request, found, stopped, args.overwrite)
        except (ApqError, KeyboardInterrupt):
            print(text)  # a full disk must not lose it
            raise
    print(text)
    if not can_plot():
        cli.warn(NO_PLOT)
    name = experiment.dir.name
    print(
        f"saved {experiment.dir}; next: {cli.to_type(args, 'quant-aware')} --exp_name={name}, "
        f"then {cli.to_type(args, 'test')} --exp_dir={experiment.dir}"
    )
    return 130 if found.result.interrupted else 0


def _maxima(args: argparse.Namespace) -> dict[str, float]:
    """Return the budgets by type of cost, that of `--constraint` first."""
    others = search_flags.limits_of(args)
    if args.constraint is None:
        if args.type:
            raise ApqError(f"--type={args.type} says what --constraint bounds: give that too")
        if not others:
            flags = ", ".join(f"--{flag}" for flag in search_flags.MAXIMA)
            raise ApqError(f"no budget: give --constraint (with --type), or any of {flags}")
        return others
    type_ = args.type or "latency"
    if type_ in others:
        raise ApqError(
            f"--constraint={args.constraint:g} and {search_flags.flag_of(type_)}="
            f"{others[type_]:g} both bound the {type_}: give one of them"
        )
    return {type_: args.constraint, **others}
