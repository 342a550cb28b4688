"""Checking what a table file holds, ours or the authors', before anything relies on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from apq.checks import TOO_LARGE
from apq.errors import ApqError
from apq.space import IMAGE_CHANNELS, STEM_STRIDE
from lut.accelerator import Accelerator
from lut.bitfusion import COMPONENTS
from lut.costs import QUANTITIES
from lut.layers import PAPER_FIXED_LAYERS, check_image_size
from lut.lookup import is_key, parse_key

OURS = ("model_version", "image_size", "accelerator", "component_names", "layers", "components")
# Components are printed to the last digit, so that only a wrong file misses their sum by this.
SUM_TOLERANCE = 1e-9


def parse(data: Any) -> dict[str, Any]:
    """Return the fields of a `lut.table.Table` from a file's JSON.

    Raises ApqError that names the entry that is wrong.
    """
    if not isinstance(data, dict):
        raise ApqError("not a cost table: expected a JSON object of layer entries")
    if any(name in data for name in OURS):
        return _parse_ours(data)
    _check_entries(data)
    return {
        "layers": data,
        "components": None,
        "image_size": _image_size_of(data),
        "accelerator": Accelerator(),
        "model_version": None,
    }


def _parse_ours(data: dict[str, Any]) -> dict[str, Any]:
    for name in OURS:
        if name not in data:
            raise ApqError(f"not a cost table: it has no '{name}'; build it anew (apq lut build)")
    version = data["model_version"]
    if isinstance(version, bool) or not isinstance(version, int):
        raise ApqError(f"model_version is {version!r}; it must be an integer")
    check_image_size(data["image_size"])
    if data["component_names"] != list(COMPONENTS):
        raise ApqError(f"component_names must be {', '.join(COMPONENTS)}")
    _check_entries(data["layers"])
    return {
        "layers": data["layers"],
        "components": _components(data["components"], data["layers"]),
        "image_size": data["image_size"],
        "accelerator": Accelerator.from_dict(data["accelerator"]),
        "model_version": version,
    }


def _check_entries(layers: Any) -> None:
    """Raise ApqError unless every key is a layer's and every value a pair of sound numbers."""
    if not isinstance(layers, dict):
        raise ApqError("'layers' must be a JSON object of entries")
    for key, entry in layers.items():
        if key not in PAPER_FIXED_LAYERS and not is_key(key):
            raise ApqError(
                f"entry {key!r} names no layer: expected a key such as "
                f"'(96, 456, 14, 1, 1, 0, 1)-W4A4', or {' or '.join(PAPER_FIXED_LAYERS)}"
            )
        if not isinstance(entry, dict):
            raise ApqError(f"entry {key!r} must be an object with latency (ms) and energy (mJ)")
        for name in QUANTITIES:
            if not _sound(entry.get(name)):
                raise ApqError(
                    f"entry {key!r}: {name} is {entry.get(name)!r}; "
                    f"it must be a number from 0 to below {TOO_LARGE:g}"
                )
    for name in PAPER_FIXED_LAYERS:
        if name not in layers:
            raise ApqError(f"not a cost table: it has no entry '{name}'")


def _sound(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < TOO_LARGE


def _components(rows: Any, layers: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the components by name; raises ApqError unless they add up to each entry's energy."""
    if not isinstance(rows, dict) or rows.keys() != layers.keys():
        raise ApqError("'components' must be a JSON object with the same keys as 'layers'")
    try:
        table = np.array(list(rows.values()))
    except ValueError:  # rows of different lengths
        table = np.empty(0)
    if table.shape != (len(rows), len(COMPONENTS)) or table.dtype.kind not in "iuf":
        raise ApqError(f"'components' must hold {len(COMPONENTS)} numbers for each entry")
    energy = np.array([layers[key]["energy"] for key in rows])
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(table.sum(axis=1) - energy) <= SUM_TOLERANCE * energy
    # A NaN is close to nothing, and an infinity not to any energy.
    wrong = np.flatnonzero(~close | (table < 0).any(axis=1))
    if len(wrong):
        raise ApqError(
            f"components of {list(rows)[wrong[0]]!r} are not numbers of 0 or more "
            f"that add up to its energy"
        )
    return {key: dict(zip(COMPONENTS, row, strict=True)) for key, row in rows.items()}


def _image_size_of(layers: dict[str, Any]) -> int:
    """Return the image size of a file that does not tell it, from its largest layers."""
    # The input's channels and side; the first convolution sees the image itself.
    inputs = [(numbers[0], numbers[2]) for key in layers if (numbers := parse_key(key))]
    if not inputs:
        raise ApqError("not a cost table: it has no entries of layers")
    image_size = max(
        side if channels == IMAGE_CHANNELS else side * STEM_STRIDE for channels, side in inputs
    )
    check_image_size(image_size)
    return image_size
