"""The last two states of a run on disk, one of which is sound whenever the run is killed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from apq.errors import ApqError
from apq.lock import training_lock
from utils import checkpoint

LAST_NAME = "last.pth.tar"
PREVIOUS_NAME = "previous.pth.tar"
NEXT_NAME = "next.pth.tar"
"""There only between writing a state and giving it its name."""


class SavedStates:
    """The states in one folder: dicts of tensors and plain values."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.lock = training_lock(folder)
        """Held while a run writes here."""
        self._newest_first = [folder / name for name in (NEXT_NAME, LAST_NAME, PREVIOUS_NAME)]
        self._next, self.last_path, self._previous = self._newest_first

    def save(self, state: dict[str, Any]) -> None:
        """Write a state; the one before stays. Raises ApqError, with both still there."""
        checkpoint.save(self._next, state)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.last_path, self._previous)
        os.replace(self._next, self.last_path)

    def load(self) -> dict[str, Any] | None:
        """Return the newest sound state, or None where there is none at all.

        A damaged one is set aside and told of. Raises ApqError when all of them are damaged, or
        another process is at work here.
        """
        if not self._folder.is_dir():
            return None
        with self.lock.held():
            self._sweep()
            return self._newest_sound()

    def _newest_sound(self) -> dict[str, Any] | None:
        damaged: dict[Path, ApqError] = {}
        for path in filter(Path.exists, self._newest_first):
            try:
                state = checkpoint.load(path)
            except ApqError as error:
                damaged[path] = error
                continue
            for bad, error in damaged.items():
                print(f"{error}; going on from {path.name}, saved before it", flush=True)
                os.replace(bad, bad.with_name(f"{bad.name}.damaged"))
            return state
        for error in damaged.values():
            raise ApqError(f"{error}; begin anew with --restart")
        return None

    def __bool__(self) -> bool:
        """Whether there are any, sound or not."""
        return any(path.exists() for path in self._newest_first)

    def forget(self) -> None:
        """Drop all states; raises ApqError when another process is at work here."""
        with self.lock.held():
            for path in self._newest_first:
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a process that was killed while it wrote has left (see `apq.files`)."""
        for path in self.last_path.parent.glob(".*.????????"):
            path.unlink(missing_ok=True)
