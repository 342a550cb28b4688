"""The costs that a subnet has: what each is called, what it is counted in, how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CostKind:
    """One kind of cost."""

    unit: str
    column: str
    """Its name with its unit, as in files and flags."""
    from_table: bool
    """Whether a table holds it layer by layer; else it follows from the layers' shapes and bits,
    and is always the whole network's."""


COSTS = {
    "latency": CostKind(unit="ms", column="latency_ms", from_table=True),
    "energy": CostKind(unit="mJ", column="energy_mj", from_table=True),
    "bitops": CostKind(unit="BitOps", column="bitops", from_table=False),
    "size": CostKind(unit="bytes", column="size_bytes", from_table=False),
}
QUANTITIES = tuple(name for name, cost in COSTS.items() if cost.from_table)
"""What a table tells of a layer."""
_WHOLE_NUMBERS = {cost.unit for cost in COSTS.values() if not cost.from_table}


def amount(value: float, unit: str) -> str:
    """Return a cost with its unit; bytes and bit operations are whole numbers."""
    return f"{value:,.0f} {unit}" if unit in _WHOLE_NUMBERS else f"{value:.3f} {unit}"


def budget(value: float, unit: str) -> str:
    """Return the limit of a cost with its unit, as short as it was given."""
    return f"{value:,.0f} {unit}" if unit in _WHOLE_NUMBERS else f"{value:g} {unit}"


def what_counts(types: Sequence[str], accounting: str) -> str:
    """Return which layers are in costs of these types; in bit operations and size all are."""
    return f"{accounting} accounting" if set(types) & set(QUANTITIES) else "whole network"
