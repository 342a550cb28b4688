"""The table of layer costs of one accelerator at one image size: build, look up, read, write."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from apq import files
from apq.checks import check_choice
from apq.errors import ApqError
from apq.progress import Counter
from apq.space import PAPER_SPACE, SearchSpace
from lut.accelerator import Accelerator
from lut.bitfusion import (
    COMPONENTS,
    MODEL_VERSION,
    LayerCost,
    Progress,
    layer_cost,
    layer_costs,
)
from lut.compare import LargestDifference, TableDiff, diff
from lut.layers import (
    IMAGENET_CLASSES,
    PAPER_FIXED_LAYERS,
    Layer,
    check_image_size,
    fixed_layers,
    space_layers,
)
from lut.lookup import missing_entry
from lut.parsing import parse

__all__ = [
    "LargestDifference",
    "Table",
    "TableDiff",
    "build",
    "build_with_bar",
    "diff",
    "for_image_size",
    "load",
    "save",
]

SAME = 1e-6
"""Relative difference up to which two costs are one, printed with other digits."""
SHIPPED_DIR = Path(__file__).parent / "tables"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Layer costs by key; two entries, `head` and `tail`, are layers that every subnet has."""

    layers: dict[str, dict[str, float]]
    """Key -> `{"latency": ms, "energy": mJ}`, as in the authors' file."""
    components: dict[str, dict[str, float]] | None
    """Key -> energy in mJ of each of `lut.bitfusion.COMPONENTS`; None in the authors' file."""
    image_size: int
    accelerator: Accelerator
    """The default one for the authors' file, which does not tell."""
    model_version: int | None
    """`lut.bitfusion.MODEL_VERSION` when the table was built; None in the authors' file."""

    def cost(self, layer: Layer, w_bits: int, a_bits: int) -> dict[str, float]:
        """Return `{"latency": ms, "energy": mJ}` of a layer.

        Raises ApqError that names the layer, the nearest entries and how to get a table with it.
        """
        entry = self.layers.get(layer.key(w_bits, a_bits))
        if entry is None:
            raise missing_entry(layer, w_bits, a_bits, self)
        return entry

    def fixed(
        self, name: str, space: SearchSpace = PAPER_SPACE, n_classes: int = IMAGENET_CLASSES
    ) -> dict[str, float]:
        """Return `{"latency": ms, "energy": mJ}` of a layer that no subnet changes.

        `name` is a key of `lut.layers.fixed_layers`. The table holds `head` and `tail`; what it
        lacks of the others is computed, for `space` and `n_classes` (but see `lacking`). Raises
        ApqError for another name.
        """
        if key := self._fixed_key(name, space, n_classes):
            return self.layers[key]
        return _entry(self._fixed_cost(name, space, n_classes))

    def fixed_components(
        self, name: str, space: SearchSpace = PAPER_SPACE, n_classes: int = IMAGENET_CLASSES
    ) -> dict[str, float] | None:
        """Return a fixed layer's energy in mJ by component, None where the table has none."""
        if self.components is None:
            return None
        if key := self._fixed_key(name, space, n_classes):
            return self.components[key]
        return self._fixed_cost(name, space, n_classes).components

    def lacking(
        self, space: SearchSpace = PAPER_SPACE, n_classes: int = IMAGENET_CLASSES
    ) -> dict[str, str]:
        """Return name and key of the fixed layers whose costs would be of another accelerator.

        Those are all that a table lacks which neither tells its accelerator nor costs what
        BitFusion does, such as one that was measured on a device.
        """
        if self.is_bitfusions(space):
            return {}
        bits, layers = space.fixed_bits, fixed_layers(space, self.image_size, n_classes)
        return {
            name: layer.key(bits, bits)
            for name, layer in layers.items()
            if not self._fixed_key(name, space, n_classes)
        }

    def is_bitfusions(self, space: SearchSpace) -> bool:
        """Whether the costs are of an accelerator that the model computes, the authors' included.

        Else they are of a device, and only measuring tells what the table lacks.
        """
        return self.model_version is not None or self.is_computed_for(space)

    def is_computed_for(self, space: SearchSpace) -> bool:
        """Whether head and tail cost what the model computes for a space's."""
        computed = _head_and_tail(self.image_size, space, self.accelerator)
        return all(
            math.isclose(self.layers[name][quantity], value, rel_tol=SAME)
            for name, cost in computed.items()
            for quantity, value in _entry(cost).items()
        )

    def _fixed_key(self, name: str, space: SearchSpace, n_classes: int) -> str | None:
        """Return under which key the table holds a fixed layer, None where it does not."""
        if name in PAPER_FIXED_LAYERS:
            return name
        key = self._fixed_layer(name, space, n_classes).key(space.fixed_bits, space.fixed_bits)
        return key if key in self.layers else None

    def _fixed_layer(self, name: str, space: SearchSpace, n_classes: int) -> Layer:
        layers = fixed_layers(space, self.image_size, n_classes)
        check_choice("fixed layer", name, layers)
        return layers[name]

    def _fixed_cost(self, name: str, space: SearchSpace, n_classes: int) -> LayerCost:
        layer = self._fixed_layer(name, space, n_classes)
        return layer_cost(layer, space.fixed_bits, space.fixed_bits, self.accelerator)

    def sha256(self) -> str:
        """Return the SHA-256 of the layers' costs: equal tables have equal digests."""
        return self._sha256

    @cached_property  # a front asks for it several times a point
    def _sha256(self) -> str:
        lines = (
            f"{key} {e['latency']!r} {e['energy']!r}\n" for key, e in sorted(self.layers.items())
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def extrapolated(self) -> bool:
        """Whether the model computed it for an accelerator that no published table is of."""
        return self.model_version is not None and self.accelerator != Accelerator()

    @property
    def current(self) -> bool:
        """Whether this version of the code, with its default accelerator, would build the same."""
        return self.model_version == MODEL_VERSION and self.accelerator == Accelerator()


def build(
    image_size: int = 224,
    space: SearchSpace = PAPER_SPACE,
    accelerator: Accelerator | None = None,
    progress: Progress | None = None,
) -> Table:
    """Compute the cost of every layer that the space can ask for, in about a second.

    Layers that the accelerator cannot run have no entry. `progress` is called with the number
    of convolutions done and their total. Raises ApqError on a bad image size, or when the head
    or the tail cannot run.
    """
    accelerator = accelerator or Accelerator()
    wanted = {
        layer.key(w_bits, a_bits): (layer, w_bits, a_bits)
        for layer in dict.fromkeys(space_layers(space, image_size))
        for w_bits in space.bits
        for a_bits in space.bits
    }
    found = layer_costs(wanted.values(), accelerator, progress=progress)
    costs = {key: cost for key, cost in zip(wanted, found, strict=True) if cost is not None}
    costs |= _head_and_tail(image_size, space, accelerator)
    return Table(
        layers={key: _entry(cost) for key, cost in costs.items()},
        components={key: cost.components for key, cost in costs.items()},
        image_size=image_size,
        accelerator=accelerator,
        model_version=MODEL_VERSION,
    )


def build_with_bar(image_size: int) -> Table:
    """Build the default accelerator's table as `build` does, with a bar where somebody watches."""
    with Counter(f"{image_size} px", 1) as bar:
        return build(image_size, progress=bar.update)


def _head_and_tail(
    image_size: int, space: SearchSpace, accelerator: Accelerator
) -> dict[str, LayerCost]:
    fixed, bits = fixed_layers(space, image_size), space.fixed_bits
    return {
        name: layer_cost(fixed[name], bits, bits, accelerator, im2col)
        for name, im2col in (("head", True), ("tail", False))
    }


def load(path: str | Path) -> Table:
    """Read a table that `save` wrote, or the authors' file; raises ApqError naming the entry.

    The authors' file does not tell its image size: it is twice the largest side of its layers.
    """
    data = files.read_json(path)
    with files.naming(path):
        return Table(**parse(data))


def save(table: Table, path: str | Path) -> None:
    """Write a table atomically, one entry a line; raises ApqError when it cannot be written."""
    files.write_text(path, "\n".join(_lines(table)) + "\n")


def for_image_size(image_size: int) -> Table:
    """Return the default accelerator's table: the shipped one, the user's cached one, or a new one.

    A new one is announced on stderr and kept in the cache if it can be. A file that another
    version of the model wrote is not used. Raises ApqError on a bad image size.
    """
    check_image_size(image_size)
    name = f"bitfusion_{image_size}.json"
    cached = cache_dir() / name
    for path in (SHIPPED_DIR / name, cached):
        table = _load_current(path, image_size)
        if table:
            return table
    print(f"building the cost table for image size {image_size}: {cached}", file=sys.stderr)
    table = build_with_bar(image_size)
    try:
        save(table, cached)
    except ApqError as error:
        print(f"the table is not kept: {error}", file=sys.stderr)
    return table


def cache_dir() -> Path:
    """Return the folder of tables built on demand: $XDG_CACHE_HOME/apq, or ~/.cache/apq."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))) / "apq"


def _load_current(path: Path, image_size: int) -> Table | None:
    """Return the table in a file, None when it is missing, damaged or out of date."""
    try:
        table = load(path)
    except ApqError:
        return None  # Whatever is wrong with a cached file, building it anew mends it.
    return table if table.current and table.image_size == image_size else None


def _entry(cost: LayerCost) -> dict[str, float]:
    return {"latency": cost.latency_ms, "energy": cost.energy_mj}


def _lines(table: Table) -> Iterator[str]:
    """Yield the lines of a table's file; one without components is in the authors' format."""
    if table.components is None:
        yield from _object_lines(table.layers, "")
        return
    yield "{"
    yield f'"model_version": {json.dumps(table.model_version)},'
    yield f'"image_size": {table.image_size},'
    yield f'"accelerator": {json.dumps(table.accelerator.to_dict(), indent=1)},'
    yield f'"component_names": {json.dumps(COMPONENTS)},'
    yield '"layers":'
    yield from _object_lines(table.layers, ",")
    yield '"components":'
    rows = {key: list(energies.values()) for key, energies in table.components.items()}
    yield from _object_lines(rows, "")
    yield "}"


def _object_lines(entries: dict, end: str) -> Iterator[str]:
    yield "{"
    yield ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
    yield "}" + end
