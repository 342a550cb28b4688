"""The command `apq`: one module a subcommand, each of which imports what is heavy only when run."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from apq.errors import LOST_WORKER, ApqError, closest
from apq.interrupts import sigterm_as_interrupt
from apq.launched import tells_for_all

# Command -> (module, what it does).
COMMANDS = {
    "search": ("search", "find a subnet under a latency or energy budget"),
    "pareto": ("pareto", "find the best subnets under a whole range of budgets"),
    "quant-aware": ("quant_aware", "finetune an experiment's subnet, quantization-aware"),
    "test": ("test", "measure an experiment: cost, size, accuracy"),
    "export": ("export", "write a finetuned network as an ONNX file"),
    "lut": ("lut", "build, show and compare tables of layer costs"),
    "supernet": ("supernet", "train a quantization-aware once-for-all supernet"),
    "collect": ("collect", "measure subnets: the pairs a predictor learns from"),
    "predictor": ("predictor", "train the accuracy predictors on pairs"),
    "compare": ("compare", "finetune what was found and random subnets of the same cost"),
    "correlate": ("correlate", "tell whether direct measurement ranks like finetuning"),
}

STOPS_UNREAD = {"supernet", "collect", "predictor", "quant-aware", "compare", "correlate"}
"""Commands that print before their work is done."""


def main(argv: Sequence[str] | None = None, prog: str = "apq") -> int:
    """Run `apq COMMAND ...`; return the exit status: 0, 2 on a mistake, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from apq import __version__

        print(f"apq {__version__}")
        return 0
    return run(argv[0], argv[1:], f"{prog} {argv[0]}")


def run(command: str, argv: Sequence[str], prog: str) -> int:
    """Run one command under the name that the user typed; return the exit status."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may know no signs but ASCII's
    try:
        return _run(command, argv, prog)
    except ApqError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if tells_for_all():
            print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        _drop_stdout()
        if command not in STOPS_UNREAD:
            return 0
        with contextlib.suppress(OSError):  # that may be closed as well
            print(f"{prog}: stopped, since nobody reads what it prints", file=sys.stderr)
        return 1
    except OSError as error:  # a locked folder, a name too long: nothing to look at or write to
        _drop_stdout()
        where = f"{error.filename}: " if error.filename else ""
        print(f"{prog}: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        print(f"{prog}: error: {_known_reason(error)}", file=sys.stderr)
        return 2


def _run(command: str, argv: Sequence[str], prog: str) -> int:
    try:
        if command not in COMMANDS:
            raise ApqError(f"unknown command '{command}'{closest(command, COMMANDS)}")
        module = importlib.import_module(f"apq.cli.{COMMANDS[command][0]}")
        parser = module.make_parser(prog)
        args = parser.parse(argv)
        with sigterm_as_interrupt():
            return module.run(args)
    finally:
        sys.stdout.flush()  # what cannot be written is to be told here, not while Python ends


def _drop_stdout() -> None:
    """Keep Python, which flushes once more when it ends, from failing at what fails now."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            number = sys.stdout.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _known_reason(error: Exception) -> str:
    """Return what to tell of an error of the machine; raises those that are the program's."""
    text = str(error)
    # torch has no class of its own for memory on the CPU.
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return f"out of memory: {text.partition(chr(10))[0]}; smaller images or batches take less"
    if "DataLoader worker" not in text:
        raise error
    return LOST_WORKER  # torch says so wherever this process happens to be


def usage() -> str:
    """Return the overview of all commands."""
    lines = [
        "usage: apq COMMAND [flags]",
        "",
        "Search network architecture, channel widths and bit widths together, under a budget.",
        "",
        *(f"  {name:<12} {what}" for name, (_, what) in COMMANDS.items()),
        "",
        "'apq COMMAND --help' lists a command's flags.",
    ]
    return "\n".join(lines)
