"""How far two tables are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lut.costs import QUANTITIES

if TYPE_CHECKING:
    from lut.table import Table


@dataclass(frozen=True, kw_only=True)
class LargestDifference:
    """The entry in which two tables differ most in one quantity."""

    quantity: str
    """`latency` (ms) or `energy` (mJ)."""
    key: str
    a: float
    b: float
    relative: float
    """|a - b| over the larger of the two, so 0 for equal and at most 1."""


@dataclass(frozen=True, kw_only=True)
class TableDiff:
    """What `diff` found; `largest` is empty when no entry is common."""

    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    n_common: int
    largest: tuple[LargestDifference, ...]
    """One for latency, one for energy."""

    def agrees(self, tolerance: float = 1e-9) -> bool:
        """Whether both tables have the same entries, equal to the relative tolerance."""
        same_entries = not self.only_in_a and not self.only_in_b
        return same_entries and all(d.relative <= tolerance for d in self.largest)


def diff(a: Table, b: Table) -> TableDiff:
    """Compare two tables entry by entry, whatever their image sizes and accelerators."""
    common = [key for key in a.layers if key in b.layers]
    return TableDiff(
        only_in_a=tuple(key for key in a.layers if key not in b.layers),
        only_in_b=tuple(key for key in b.layers if key not in a.layers),
        n_common=len(common),
        largest=tuple(
            _largest(quantity, common, a.layers, b.layers) for quantity in QUANTITIES if common
        ),
    )


def _largest(quantity: str, keys: list[str], a: Mapping, b: Mapping) -> LargestDifference:
    def relative(key: str) -> float:
        x, y = a[key][quantity], b[key][quantity]
        return abs(x - y) / max(x, y) if x != y else 0.0

    key = max(keys, key=relative)
    return LargestDifference(
        quantity=quantity,
        key=key,
        a=a[key][quantity],
        b=b[key][quantity],
        relative=relative(key),
    )
