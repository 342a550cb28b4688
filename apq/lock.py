"""Keeps two processes from working on the same files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from apq.errors import ApqError

PATIENCE_S = 10.0
"""Decoding processes may outlive by seconds the one that was killed, and hold what it held."""


class Lock:
    """A claim to a folder or a file, which is made where it is missing.

    Nothing is left to be cleared away: the system knows who holds it, and forgets it with the
    process. A file must not be replaced by another one while it is held, only written in place.
    """

    def __init__(self, path: Path, work: str, is_folder: bool = False) -> None:
        """`work` says what the other process does there, as in `another process trains in X`."""
        self._path, self._work, self._is_folder = path, work, is_folder
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Keep other processes away until `release`; raises ApqError when one is at work."""
        give_up = time.monotonic() + PATIENCE_S
        while not self._try():
            if time.monotonic() > give_up:
                raise ApqError(
                    f"another process {self._work} {self._path}: wait for its end, or stop it"
                )
            time.sleep(0.1)

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it meanwhile, unless it is held already; raises ApqError as `acquire` does."""
        if self._descriptor is not None:
            yield
            return
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def check(self) -> None:
        """Raise ApqError as `acquire` does, and hold nothing."""
        with self.held():
            pass

    def _try(self) -> bool:
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise ApqError(f"cannot write {self._path}: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError:
            pass  # a file system without locks
        if not self._is_current():  # it was removed by the process that held it
            self.release()
            return False
        return True

    def _open(self) -> int:
        if self._is_folder:
            self._path.mkdir(parents=True, exist_ok=True)
            return os.open(self._path, os.O_RDONLY)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False


def training_lock(folder: Path) -> Lock:
    """Return the claim to a folder of states that a training run writes."""
    return Lock(folder, "trains in", is_folder=True)
