"""Progress for people: `tqdm` over data, `progress` bars for counted steps, silence elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
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
    """A `progress` bar over a known number of steps; none without a description or a terminal.

    As a context: its line ends with it.
    """

    def __init__(self, description: str, total: float, done: float = 0) -> None:
        self._bar = None
        if description and is_terminal():
            from progress.bar import Bar

            self._bar = Bar(description, max=total, suffix="%(index)d/%(max)d  %(note)s%(left)d s ")
            self._bar.note, self._bar.left = "", 0
            self._bar.index = min(done, total)
            self._share_before = self._bar.progress
            self._started = time.monotonic()

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.finish()

    def step(self, note: str = "") -> None:
        """Go one step on; `note` is shown beside the count."""
        if self._bar is not None:
            self.update(self._bar.index + 1, self._bar.max, note)

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show that `done` of `total` is behind, in any unit; `note` is shown beside the count."""
        if self._bar is not None:
            self._bar.max, self._bar.index = total, min(done, total)
            self._bar.note = f"{note}  " if note else ""
            # The bar's own estimate is from its last ten calls, and needs whole steps of one unit.
            gone = self._bar.progress - self._share_before
            if gone > 0:
                passed = time.monotonic() - self._started
                self._bar.left = round(passed * (1 - self._bar.progress) / gone)
            self._bar.update()
