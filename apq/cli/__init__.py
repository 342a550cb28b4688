"""The command `apq`: one module a subcommand, each of which imports what is heavy only when run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from apq.errors import LOST_WORKER, ApqError, closest

# Command -> (module, what it does).
COMMANDS = {
    "search": ("search", "find a subnet under a latency or energy budget"),
    "pareto": ("pareto", "find the best subnets under a whole range of budgets"),
    "quant-aware": ("quant_aware", "finetune an experiment's subnet, quantization-aware"),
    "test": ("test", "measure an experiment: cost, size, accuracy"),
    "lut": ("lut", "build, show and compare tables of layer costs"),
    "supernet": ("supernet", "train a quantization-aware once-for-all supernet"),
    "collect": ("collect", "measure subnets: the pairs a predictor learns from"),
    "predictor": ("predictor", "train the accuracy predictors on pairs"),
    "compare": ("compare", "finetune what was found and random subnets of the same cost"),
    "correlate": ("correlate", "tell whether direct measurement ranks like finetuning"),
}


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
    try:
        if command not in COMMANDS:
            raise ApqError(f"unknown command '{command}'{closest(command, COMMANDS)}")
        module = importlib.import_module(f"apq.cli.{COMMANDS[command][0]}")
        parser = module.make_parser(prog)
        return module.run(parser.parse(argv))
    except ApqError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:  # a locked folder, a name too long: nothing to look at or write to
        where = f"{error.filename}: " if error.filename else ""
        print(f"{prog}: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        # torch says so wherever this process happens to be.
        print(f"{prog}: error: {LOST_WORKER}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"{prog}: error: out of memory: {error}", file=sys.stderr)
        return 2


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
