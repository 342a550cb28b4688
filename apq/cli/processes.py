"""Running a command in as many processes as were asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from apq.cli.parser import Parser, same_command, whole_number

if TYPE_CHECKING:
    import torch


def add_nproc(parser: Parser) -> None:
    """Add the flag of the commands that run in several processes."""
    parser.add_argument(
        "--nproc",
        type=whole_number(1),
        metavar="N",
        help="processes on this machine; default: one for each visible GPU",
    )


def in_processes(args: argparse.Namespace, work: Callable[[torch.device], int]) -> int:
    """Do the command's work in each process of `--nproc` and `--device`; return its exit status.

    What can be wrong with the flags is to be told before.
    """
    from imagenet_codebase.run_manager import distributed
    from imagenet_codebase.run_manager.launch import relaunch
    from utils.devices import pick_device

    again = same_command(args)
    status = relaunch(args.nproc, args.device, again)
    if status is not None:
        return status
    with distributed.group(pick_device(args.device), again) as device:
        return work(device)
