"""Checks of names, and of settings' fields, made when the settings are."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable
from typing import Any

from apq.errors import ApqError, closest

TOO_LARGE = 1e18
"""No cost of a network, nor any other figure, is as large; sums of such numbers stay finite."""


def check_whole(settings: Any, *names: str, least: int) -> None:
    """Raise ApqError unless the fields are integers of `least` or more."""
    for name in names:
        value = getattr(settings, name)
        if not _is_whole(value) or value < least:
            raise ApqError(f"{name} is {value!r}; it must be an integer of {least} or more")


def check_rising(settings: Any, *names: str, least: int) -> None:
    """Raise ApqError unless the fields are tuples of integers that rise from `least` or more."""
    for name in names:
        values = getattr(settings, name)
        rising = isinstance(values, tuple) and values
        rising = rising and all(_is_whole(value) and value >= least for value in values)
        if not rising or any(b <= a for a, b in itertools.pairwise(values)):
            raise ApqError(
                f"{name} is {values!r}; it must be a tuple of integers that rise from {least} or "
                "more"
            )


def check_positive(settings: Any, *names: str) -> None:
    """Raise ApqError unless the fields are finite numbers above zero."""
    for name in names:
        value = getattr(settings, name)
        if not _is_finite(value) or value <= 0:
            raise ApqError(f"{name} is {value!r}; it must be a positive number")


def check_within(settings: Any, *names: str, high: float = math.inf) -> None:
    """Raise ApqError unless the fields are finite numbers from 0 to `high`."""
    for name in names:
        value = getattr(settings, name)
        if not _is_finite(value) or not 0 <= value <= high:
            range_text = f"from 0 to {high:g}" if math.isfinite(high) else "of 0 or more"
            raise ApqError(f"{name} is {value!r}; it must be a number {range_text}")


def check_decay(settings: Any, *names: str) -> None:
    """Raise ApqError unless the fields, decays per step, are numbers from 0 to below 1."""
    for name in names:
        value = getattr(settings, name)
        if not _is_finite(value) or not 0 <= value < 1:
            raise ApqError(f"{name} is {value!r}; it must be a number from 0 to below 1")


def check_choice(what: str, name: str, choices: Iterable[str]) -> None:
    """Raise ApqError unless the name of `what` is one of the choices."""
    choices = list(choices)
    if name not in choices:
        raise ApqError(
            f"no {what} '{name}'{closest(str(name), choices)}; there are {', '.join(choices)}"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # an integer may be above it
