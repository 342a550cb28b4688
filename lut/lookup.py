"""What to tell a user whose layer is not in the table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from apq.errors import ApqError
from apq.space import PAPER_SPACE, SearchSpace
from lut.bitfusion import to_job, why_illegal
from lut.layers import MIN_IMAGE_SIZE, Layer, space_layers

if TYPE_CHECKING:
    from lut.table import Table

_KEY = re.compile(r"\((\d+), (\d+), (\d+), (\d+), (\d+), (\d+), (\d+)\)-W(\d+)A(\d+)")


def parse_key(key: str) -> tuple[int, ...] | None:
    """Return the seven numbers of a layer and its two bit widths, None for another text."""
    match = _KEY.fullmatch(key)
    return tuple(map(int, match.groups())) if match else None


def is_key(text: str) -> bool:
    """Whether a text has the form of a layer's key."""
    return _KEY.fullmatch(text) is not None


def nearest(key: str, keys: Iterable[str], n: int = 3) -> list[str]:
    """Return the `n` keys whose numbers differ least from those of `key`, as ratios."""
    known = [(k, numbers) for k in keys if (numbers := parse_key(k))]
    if not known:
        return []
    # A padding may be 0, hence the 1.
    table = np.log2(np.array([numbers for _, numbers in known], dtype=float) + 1)
    wanted = np.log2(np.array(parse_key(key), dtype=float) + 1)
    distance = np.abs(table - wanted).sum(axis=1)
    return [known[i][0] for i in np.argsort(distance, kind="stable")[:n]]


def image_size_with(layer: Layer, space: SearchSpace) -> int | None:
    """Return an image size at which a layer of the space occurs, None for a foreign layer."""
    base = 1024  # Large enough to be halved evenly wherever the network halves it.
    for candidate in space_layers(space, base):
        if replace(layer, input_size=candidate.input_size) == candidate:
            size = layer.input_size * (base // candidate.input_size)
            return size if size >= MIN_IMAGE_SIZE else None
    return None


def missing_entry(layer: Layer, w_bits: int, a_bits: int, table: Table) -> ApqError:
    """Return the error for a layer that a table lacks: what, the nearest entries, the remedy."""
    key = layer.key(w_bits, a_bits)
    return ApqError(
        f"no entry {key} ({layer.description}, {w_bits}-bit weights, {a_bits}-bit activations) in "
        f"the table for image size {table.image_size}; nearest: "
        f"{', '.join(nearest(key, table.layers))}; {_remedy(layer, w_bits, a_bits, table)}"
    )


def _remedy(layer: Layer, w_bits: int, a_bits: int, table: Table) -> str:
    space = PAPER_SPACE  # The one that `apq lut build` covers.
    if not table.is_bitfusions(space):
        return "the table tells no accelerator to compute it for: measure it, and add its entry"
    accelerator = table.accelerator
    if w_bits not in space.bits or a_bits not in space.bits:
        listed = ", ".join(map(str, space.bits))
        return f"tables hold {listed} bits; lut.bitfusion.layer_cost computes others"
    reason = why_illegal(to_job(layer, w_bits, a_bits, accelerator), accelerator)
    if reason:
        return f"it cannot run on the accelerator: {reason}"
    image_size = image_size_with(layer, space)
    if image_size is None:
        return "the search space has no such layer; lut.bitfusion.layer_cost computes it"
    if table.extrapolated:
        return f"lut.table.build computes a table of this accelerator at {image_size} px"
    return f"`apq lut build --image_size {image_size}` makes a table that has it"
