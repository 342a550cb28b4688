"""The last two states of a run on disk, one of which is sound whenever the run is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apq.errors import ApqError
from utils import checkpoint

LAST_NAME = "last.pth.tar"
PREVIOUS_NAME = "previous.pth.tar"
NEXT_NAME = "next.pth.tar"
"""There only between writing a state and giving it its name."""
ORPHANS_END_S = 10.0
"""Decoding processes may outlive by seconds the one that was killed, and hold its folder."""


class SavedStates:
    """The states in one folder: dicts of tensors and plain values."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: int | None = None
        self._newest_first = [folder / name for name in (NEXT_NAME, LAST_NAME, PREVIOUS_NAME)]
        self._next, self.last_path, self._previous = self._newest_first

    def save(self, state: dict[str, Any]) -> None:
        """Write a state; the one before stays. Raises ApqError, with both still there."""
        checkpoint.save(self._next, state)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.last_path, self._previous)
        os.replace(self._next, self.last_path)

    def hold(self) -> None:
        """Keep other processes away until `release`; raises ApqError when one is at work here.

        Nothing is left to be cleared away: the system knows who holds the folder, and forgets it
        with the process.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._held = os.open(self._folder, os.O_RDONLY)
        except OSError as error:
            raise ApqError(f"cannot write {self._folder}: {error.strerror}") from None
        give_up = time.monotonic() + ORPHANS_END_S
        while not self._lock():
            if time.monotonic() > give_up:
                self.release()
                raise ApqError(
                    f"another process trains in {self._folder}: wait for its end, or stop it"
                )
            time.sleep(0.1)

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        return True

    def release(self) -> None:
        """Let others in."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @contextlib.contextmanager
    def _held_meanwhile(self) -> Iterator[None]:
        if self._held is not None:
            yield
            return
        self.hold()
        try:
            yield
        finally:
            self.release()

    def load(self) -> dict[str, Any] | None:
        """Return the newest sound state, or None where there is none at all.

        A damaged one is set aside and told of. Raises ApqError when all of them are damaged, or
        another process is at work here.
        """
        if not self._folder.is_dir():
            return None
        with self._held_meanwhile():
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
        with self._held_meanwhile():
            for path in self._newest_first:
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a process that was killed while it wrote has left (see `apq.files`)."""
        for path in self.last_path.parent.glob(".*.????????"):
            path.unlink(missing_ok=True)
