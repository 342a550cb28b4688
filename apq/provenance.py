"""What a result was made with: command, versions, machine, date; and the card beside a file."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apq import files
from apq.errors import ApqError


def command_line() -> str:
    """Return the command as it was typed."""
    program = Path(sys.argv[0])
    is_script = program.suffix == ".py" and program.name != "__main__.py"
    words = ["python", program.name] if is_script else ["apq"]
    return shlex.join([*words, *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """Return what explains a result: plain values for JSON."""
    from importlib import metadata  # a sixth of the time that --help takes

    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": command_line(),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} x {platform.machine()}, {platform.system()}",
        "versions": versions,
    }


def card_path(path: str | Path) -> Path:
    """Return where the card of a file lies: `acc_quant.pt` -> `acc_quant.pt.card.json`."""
    path = Path(path)
    return path.with_name(path.name + ".card.json")


def write_card(path: str | Path, **facts: Any) -> None:
    """Write the card of a finished file: its hash, how it was made, and the facts given."""
    card = {"file": Path(path).name, "sha256": files.sha256(path), **facts, **provenance()}
    files.write_json(card_path(path), card)


def figure_of(card: Mapping[str, Any], *names: str) -> float | None:
    """Return the number under nested names of a card, None where there is no finite one.

    Cards come from others, too, and are only told of: a damaged figure must not end a search.
    """
    value: Any = card
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer may have more digits than a float can hold.
    return float(value) if is_number and abs(value) <= sys.float_info.max else None


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a file, or an empty dict where there is none, or one of another file.

    Raises ApqError when the card is damaged.
    """
    card = card_path(path)
    if not card.is_file() or not Path(path).is_file():
        return {}
    content = files.read_json(card)
    if not isinstance(content, dict):
        raise ApqError(f"{card} is no card: it must hold a JSON object")
    # A file that was replaced must not be described by what was there before.
    return content if content.get("sha256") == files.sha256(path) else {}
