"""Command-line parsing: mistakes name the closest valid word; a YAML file may hold flags."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from apq import files
from apq.checks import TOO_LARGE
from apq.errors import ApqError, closest
from lut.layers import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE

LARGEST_COUNT = 10**9  # of anything: what follows from it still fits
LARGEST_SEED = 2**63 - 1  # what every generator takes
WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ApqErrors, and which takes no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the message as an ApqError."""
        raise ApqError(message.removeprefix("argument "))

    def flags(self) -> dict[str, argparse.Action]:
        """Return the options by name, without dashes; a switch by what turns it on."""
        return {_name(a): a for a in self._actions if a.option_strings}

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse flags, with defaults from the YAML file of `--config`.

        Raises ApqError that names the closest valid flag.
        """
        config = _config_path(argv)
        if config is not None:
            self._take_defaults(config)
        known = [word for a in self._actions for word in a.option_strings]
        # Before what is required is missed: a mistyped flag is the likely cause of that.
        typed = [word.split("=")[0] for word in argv if word.startswith("--")]
        unknown = [word for word in typed if word not in (*known, "--")]
        namespace, rest = (None, unknown) if unknown else self.parse_known_intermixed_args(argv)
        if rest:
            raise ApqError(f"unknown argument '{rest[0]}'{closest(rest[0], known)}")
        namespace.prog = self.prog
        return namespace

    def _take_defaults(self, path: str) -> None:
        flags = self.flags()
        for name, value in _read_yaml(path).items():
            if name not in flags or name in ("config", "help"):
                known = [n for n in flags if n not in ("config", "help")]
                raise ApqError(f"{path}: unknown setting '{name}'{closest(str(name), known)}")
            action = flags[name]
            with files.naming(path):
                self.set_defaults(**{action.dest: self._typed(action, value)})
            action.required = False

    def _typed(self, action: argparse.Action, value: Any) -> Any:
        if action.nargs == 0:
            if not isinstance(value, str) or value.lower() not in WORDS:
                raise ApqError(f"'{_name(action)}' is {value!r}; it must be true or false")
            return WORDS[value.lower()]
        if isinstance(action.type, ListOf) and isinstance(value, list):
            value = ",".join(map(str, value))  # as it is typed on the command line
        if not isinstance(value, str) or not value:
            raise ApqError(f"'{_name(action)}' is {value!r}; it must be a number or a word")
        try:
            return self._get_value(action, value)
        except argparse.ArgumentError as error:
            raise ApqError(str(error).removeprefix("argument ")) from None


def _name(action: argparse.Action) -> str:
    positive = [w for w in action.option_strings if not w.startswith("--no-")]
    return positive[-1].lstrip("-")


def _config_path(argv: Sequence[str]) -> str | None:
    """Return the value of --config among the flags; raises ApqError when it has several."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", action="append", default=[])
    try:
        paths = first.parse_known_args(argv)[0].config
    except argparse.ArgumentError:
        return None  # the full parse tells what is wrong
    if len(paths) > 1:
        raise ApqError(f"--config names {' and '.join(paths)}: put all settings into one file")
    return paths[0] if paths else None


def _read_yaml(path: str) -> dict[str, Any]:
    import yaml  # only for the few who use a file: it takes a while to import

    class Loader(yaml.BaseLoader):
        """Every value as it is typed: a flag knows best what it means."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            names = [key.value for key, _ in node.value]
            for number, (key, _) in enumerate(node.value):
                if key.value in names[:number]:
                    raise yaml.MarkedYAMLError(
                        problem=f"'{key.value}' is there twice", problem_mark=key.start_mark
                    )
            return super().construct_mapping(node, deep)

    if not path:
        raise ApqError("--config names no file")
    try:
        content = yaml.load(files.read_text(path), Loader)
    except RecursionError:
        raise ApqError(f"{path} is no file of settings: it is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else path
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ApqError(f"{where}: not valid YAML: {what}") from None
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise ApqError(f"{path} must hold settings as 'flag: value' lines")
    return content


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a type for flags that take one of a few words."""

    def check(text: str) -> str:
        if text not in choices:
            listed = ", ".join(choices)
            raise argparse.ArgumentTypeError(
                f"'{text}' is none of {listed}{closest(text, choices)}"
            )
        return text

    return check


def positive_number(text: str) -> float:
    """Parse a finite number above zero."""
    return _number(text, lambda value: value > 0, "positive number")


def number_from_zero(text: str) -> float:
    """Parse a finite number of zero or more."""
    return _number(text, lambda value: value >= 0, "number of 0 or more")


def _number(text: str, is_wanted: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not (math.isfinite(value) and is_wanted(value)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a {what}")
    if value >= TOO_LARGE:
        raise argparse.ArgumentTypeError(f"{text} is too large; below {TOO_LARGE:g}")
    return value


def whole_number(minimum: int, maximum: int = LARGEST_COUNT) -> Callable[[str], int]:
    """Return a type for whole numbers from `minimum` to `maximum`."""

    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is too small; at least {minimum}")
        if value > maximum:
            raise argparse.ArgumentTypeError(f"{value} is too large; at most {maximum}")
        return value

    return check


def device(text: str) -> str:
    """Parse the name of a device; whether it is there, torch will tell."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"'{text}' is none of auto, cpu, cuda, cuda:1 ...")
    return text


class ListOf:
    """A type for flags that take a list: with commas between, or as one of YAML's."""

    def __init__(self, of: Callable[[str], Any]) -> None:
        self._of = of

    def __call__(self, text: str) -> tuple:
        """Parse the words between the commas."""
        return tuple(self._of(word.strip()) for word in text.split(","))


image_size = whole_number(MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
"""The type of the sides of images, in pixels."""


def add_common(parser: Parser) -> None:
    """Add the flags that every command takes."""
    group = parser.add_argument_group("common")
    group.add_argument("--config", metavar="FILE", help="YAML file of 'flag: value' lines")
    group.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="default %(default)s"
    )
    group.add_argument(
        "--device",
        type=device,
        default="auto",
        help="auto (CUDA where it is there), cpu, cuda, cuda:1 ...",
    )


def same_command(args: argparse.Namespace) -> str:
    """Name the command that goes on: one that began anew would do so again."""
    return "the same command" + (" without --restart" if getattr(args, "restart", False) else "")


def to_type(args: argparse.Namespace, command: str) -> str:
    """Return how to type one of the paper's commands: a script where this one is, else `apq`."""
    is_script = args.prog.endswith(".py")
    return f"python {command.replace('-', '_')}.py" if is_script else f"apq {command}"


def warn(message: str) -> None:
    """Print one line that is no error to standard error."""
    print(f"note: {message}", file=sys.stderr)
