"""Ctrl-C between two steps instead of within one, and SIGTERM as if it were Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from apq.launched import launched


class Interruption:
    """Whether Ctrl-C was pressed."""

    requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextmanager
def deferred_interrupt(told: bool = True) -> Iterator[Interruption]:
    """Turn the first Ctrl-C into a flag to look at between two steps; the second one interrupts.

    A step is then never cut in two, so that what is saved is consistent. With `told`, the user is
    told that it was heard.
    """
    interruption = Interruption()

    def on_signal(number: int, frame: Any) -> None:
        if interruption.requested:
            raise KeyboardInterrupt
        interruption.requested = True
        if told:
            print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)

    with _handled(signal.SIGINT, on_signal):
        yield interruption


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, which schedulers send before they kill, end the work as Ctrl-C does.

    What there is gets saved then, and a launcher stops its processes by Ctrl-C. One of several
    processes is left as it is: it is ended so when others are lost, with whom it would have to
    finish its step.
    """

    def on_signal(number: int, frame: Any) -> None:
        on_interrupt = signal.getsignal(signal.SIGINT)
        if not callable(on_interrupt):  # Ctrl-C is ignored, as in the background of a script
            raise KeyboardInterrupt
        on_interrupt(signal.SIGINT, frame)

    if launched():
        yield
        return
    with _handled(signal.SIGTERM, on_signal):
        yield


@contextmanager
def _handled(number: int, handler: Any) -> Iterator[None]:
    try:
        previous = signal.signal(number, handler)
    except ValueError:  # not in the main thread: the caller's own handling stays
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, previous)
