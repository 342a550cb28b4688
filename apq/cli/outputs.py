"""Where a command keeps what it has so far, and what it may replace in the end."""

from __future__ import annotations

from pathlib import Path

from apq import files
from apq.errors import ApqError


def run_folder(out: Path) -> Path:
    """Return the folder beside a result that holds what a stopped run goes on from."""
    return out.with_name(f"{out.name}.run")


def check_free(out: Path, overwrite: bool) -> None:
    """Raise ApqError when a result would replace one that no run of this name made, or can't be."""
    files.check_writable(out)
    if out.exists() and not run_folder(out).exists() and not overwrite:
        raise ApqError(f"{out} exists: choose another --out, or replace it with --overwrite")
