"""Whether a constraint makes sense, known before the search starts."""

import math
from numbers import Real
from typing import Protocol

from apq.errors import ApqError
from apq.subnet import Subnet


class CostRange(Protocol):
    """A cost whose extremes over the space are known, such as `LatencyPredictor`."""

    type: str
    unit: str

    def minimum(self) -> tuple[float, Subnet]:
        """Return the least cost and its subnet."""

    def maximum(self) -> tuple[float, Subnet]:
        """Return the greatest cost and its subnet."""


def check_constraint(constraint: float, cost: CostRange) -> str | None:
    """Return a note when the constraint, in `cost.unit`, binds nothing; None when it does.

    Raises ApqError when it is no positive number, or when even the cheapest subnet breaks it.
    """
    number = isinstance(constraint, Real) and not isinstance(constraint, bool)
    if not number or not math.isfinite(constraint) or constraint <= 0:
        raise ApqError(
            f"the {cost.type} constraint is {constraint}; it must be a positive number "
            f"of {cost.unit}"
        )
    minimum, _ = cost.minimum()
    if constraint < minimum:
        raise ApqError(
            f"no subnet meets the {cost.type} constraint of {constraint} {cost.unit}: the "
            f"cheapest subnet costs {_round_up(minimum)} {cost.unit}; "
            f"raise the constraint to that or more"
        )
    maximum, _ = cost.maximum()
    if constraint >= maximum:
        return (
            f"the {cost.type} constraint of {constraint} {cost.unit} binds nothing: the dearest "
            f"subnet costs {_round_up(maximum)} {cost.unit}"
        )
    return None


def _round_up(value: float) -> str:
    """Return six decimals, rounded up: typed in as a constraint, the text must not fail again."""
    text = f"{math.ceil(value * 1e6) / 1e6:.6f}"
    return text.rstrip("0").rstrip(".")
