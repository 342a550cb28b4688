"""Progress for people: `tqdm` over data, `progress` bars for counted steps, silence elsewhere."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def is_terminal() -> bool:
    """Whether somebody watches: bars go to standard error."""
    return sys.stderr.isatty()


def track(items: Iterable[T], description: str, **options: Any) -> Iterable[T]:
    """Return the items with a tqdm bar around them; none without a description or a terminal."""
    if not description or not is_terminal():
        return items
    from tqdm import tqdm

    return tqdm(items, desc=description, leave=False, dynamic_ncols=True, **options)


class Counter:
    """A `progress` bar over a known number of steps; none without a description or a terminal."""

    def __init__(self, description: str, total: int, done: int = 0) -> None:
        self._bar = None
        if description and is_terminal():
            from progress.bar import Bar

            self._bar = Bar(description, max=total, suffix="%(index)d/%(max)d  %(note)s%(eta)d s ")
            self._bar.note = ""
            self._bar.index = min(done, total)

    def step(self, note: str = "") -> None:
        """Go one step on; `note` is shown beside the count."""
        if self._bar is not None:
            self._bar.note = f"{note}  " if note else ""
            self._bar.next()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` steps of `total` are behind; `note` is shown beside the count."""
        if self._bar is not None:
            self._bar.max = total
            self._bar.note = f"{note}  " if note else ""
            self._bar.goto(min(done, total))

    def close(self) -> None:
        """End the line."""
        if self._bar is not None:
            self._bar.finish()


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

    try:
        previous = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # not in the main thread: the caller's own handling stays
        yield interruption
        return
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, previous)
