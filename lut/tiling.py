"""How a convolution may be cut into tiles, and how often each loop order fetches its operands.

Everything here works on many convolutions at once: arrays of shape (n,), int64, one element a
convolution or a tile. Candidates, footprints and residency follow docs/cost-model.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import permutations

import numpy as np

from lut.accelerator import Accelerator

OPERANDS = ("weights", "activations", "outputs")

# Which loops an operand's data depends on. A tile is square, so the loops over output columns
# and rows have the same length and the same dependents: both are called 'side'.
DEPENDS_ON = {
    "weights": {"in", "out"},
    "activations": {"side", "in"},
    "outputs": {"side", "out"},
}
# The 24 orders of four loops, innermost first; swapping the two 'side' loops leaves 12.
LOOP_ORDERS = sorted(set(permutations(("side", "side", "in", "out"))))


@dataclass(frozen=True, kw_only=True)
class Convolutions:
    """Dense convolutions as the array runs them; every field has shape (n,)."""

    in_channels: np.ndarray
    out_channels: np.ndarray
    output_size: np.ndarray
    kernel: np.ndarray
    stride: np.ndarray
    unrolled: np.ndarray
    """Values that im2col gives each input channel: kernel * kernel, then `kernel` is 1; else 1."""
    w_bits: np.ndarray
    a_bits: np.ndarray

    @classmethod
    def from_rows(cls, rows: list[tuple[int, ...]]) -> Convolutions:
        """Build from one tuple a convolution, in the order of the fields."""
        names = [f.name for f in fields(cls)]
        columns = np.array(rows, dtype=np.int64).reshape(-1, len(names)).T
        return cls(**dict(zip(names, columns, strict=True)))

    def take(self, index: np.ndarray | slice) -> Convolutions:
        """Return the convolutions at `index`, repeated as it repeats."""
        return Convolutions(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.kernel)

    def effective_rows(self, accelerator: Accelerator) -> np.ndarray:
        """Return R of each convolution: the input values that the array takes at once."""
        # The formula is integer division, which arrays and integers share.
        return accelerator.effective_rows(self.w_bits, self.a_bits)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Candidate tiles; every field has shape (n,), `owner` ascends."""

    owner: np.ndarray
    """Index of the convolution that the tile cuts."""
    conv: Convolutions
    """The owners' convolutions, one a tile."""
    side: np.ndarray
    """Output columns, and as many rows."""
    in_channels: np.ndarray
    out_channels: np.ndarray
    rows: np.ndarray
    """R, see `Accelerator.effective_rows`."""
    accelerator: Accelerator

    def take(self, index: np.ndarray) -> Tiles:
        """Return the tiles at `index`."""
        names = ("owner", "side", "in_channels", "out_channels", "rows")
        return Tiles(
            conv=self.conv.take(index),
            accelerator=self.accelerator,
            **{name: getattr(self, name)[index] for name in names},
        )

    @cached_property
    def depth(self) -> np.ndarray:
        """Length of the reduction at one tap of the kernel."""
        return self.in_channels * self.conv.unrolled

    @cached_property
    def taps(self) -> np.ndarray:
        """Kernel positions, which are never tiled."""
        return self.conv.kernel**2

    @cached_property
    def row_passes(self) -> np.ndarray:
        """How often the array's rows are filled for one tap."""
        return _ceil_div(self.depth, self.rows)

    @cached_property
    def column_passes(self) -> np.ndarray:
        """How often the array's columns are filled."""
        return _ceil_div(self.out_channels, self.accelerator.array_columns)

    @cached_property
    def trips(self) -> dict[str, np.ndarray]:
        """Iterations of each loop over tiles; a last partial tile counts as a whole one."""
        return {
            "side": _ceil_div(self.conv.output_size, self.side),
            "in": _ceil_div(self.conv.in_channels, self.in_channels),
            "out": _ceil_div(self.conv.out_channels, self.out_channels),
        }

    @cached_property
    def n_tiles(self) -> np.ndarray:
        """Number of tiles that the convolution is cut into."""
        return self.trips["side"] ** 2 * self.trips["in"] * self.trips["out"]

    @cached_property
    def patch(self) -> np.ndarray:
        """Input positions of a tile, borders and halos included."""
        return (self.conv.kernel + (self.side - 1) * self.conv.stride) ** 2

    @cached_property
    def traffic_bits(self) -> dict[str, np.ndarray]:
        """What one tile moves from or to DRAM: real values only."""
        conv = self.conv
        return {
            "weights": self.taps * self.depth * self.out_channels * conv.w_bits,
            "activations": self.patch * self.depth * conv.a_bits,
            "outputs": self.side**2 * self.out_channels * self.accelerator.partial_sum_bits,
        }

    @cached_property
    def footprint_bits(self) -> dict[str, np.ndarray]:
        """What one tile occupies in each buffer: padded to the array, bits to a power of two."""
        conv = self.conv
        depth = self.row_passes * self.rows
        columns = self.column_passes * self.accelerator.array_columns
        return {
            "weights": self.taps * depth * columns * _power_of_two(conv.w_bits),
            "activations": self.patch * depth * _power_of_two(conv.a_bits),
            "outputs": self.side**2 * columns * self.accelerator.partial_sum_bits,
        }


def usable_bits(accelerator: Accelerator) -> dict[str, int]:
    """Return the bits that one tile of each operand may fill."""
    buffers = (accelerator.weight_buffer, accelerator.input_buffer, accelerator.output_buffer)
    return {
        name: accelerator.usable_bits(buffer)
        for name, buffer in zip(OPERANDS, buffers, strict=True)
    }


def candidates(conv: Convolutions, accelerator: Accelerator) -> Tiles:
    """Return every candidate tile of every convolution, legal or not, the smallest first.

    Sizes double from the smallest up to the whole: from 1 for the side and the input channels,
    from one filling of the array's columns for the output channels.
    """
    columns = accelerator.array_columns
    column_passes = _ceil_div(conv.out_channels, columns)
    n_side, n_in, n_out = map(_n_doublings, (conv.output_size, conv.in_channels, column_passes))
    count = n_side * n_in * n_out
    owner = np.repeat(np.arange(len(conv)), count)
    # Position among the owner's candidates, read as a number with the three counts as its bases.
    position = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    position, i_out = np.divmod(position, n_out[owner])
    i_side, i_in = np.divmod(position, n_in[owner])
    tiled = conv.take(owner)
    return Tiles(
        owner=owner,
        conv=tiled,
        side=np.minimum(1 << i_side, tiled.output_size),
        in_channels=np.minimum(1 << i_in, tiled.in_channels),
        out_channels=np.minimum(columns << i_out, tiled.out_channels),
        rows=tiled.effective_rows(accelerator),
        accelerator=accelerator,
    )


def legal(tiles: Tiles) -> Tiles:
    """Return the tiles that fit the usable part of all three buffers."""
    usable = usable_bits(tiles.accelerator)
    fits = [tiles.footprint_bits[name] <= usable[name] for name in OPERANDS]
    return tiles.take(np.flatnonzero(np.logical_and.reduce(fits)))


@dataclass(frozen=True)
class Residency:
    """What one operand costs to keep fed, in bits of shape (n,)."""

    traffic: np.ndarray
    """All its traffic between DRAM and its buffer."""
    resident: np.ndarray
    """The largest set that stays in the buffer."""


def residency(
    order: tuple[str, ...],
    depends_on: set[str],
    trips: Mapping[str, np.ndarray],
    tile_bits: np.ndarray,
    footprint_bits: np.ndarray,
    usable: int,
) -> Residency:
    """Walk the loops of `order` outwards and count how often one operand is fetched.

    The tile starts resident. A loop that the operand does not depend on is free while it is
    resident; one that it does depend on makes the resident set larger by the loop's trips, as
    long as that set fits. After that, every loop fetches everything again.
    """
    traffic = resident_set = tile_bits
    footprint = footprint_bits
    resident = np.ones(len(tile_bits), dtype=bool)
    for loop in order:
        if loop in depends_on:
            traffic = traffic * trips[loop]
            footprint = footprint * trips[loop]
            resident = resident & (footprint <= usable)
            resident_set = np.where(resident, traffic, resident_set)
        else:
            traffic = np.where(resident, traffic, traffic * trips[loop])
    return Residency(traffic, resident_set)


def _ceil_div(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    return -(-a // b)


def _n_doublings(size: np.ndarray) -> np.ndarray:
    """Return how many of 1, 2, 4, ... lie below `size`, plus one for `size` itself."""
    return _bit_length(size - 1) + 1


def _power_of_two(bits: np.ndarray) -> np.ndarray:
    """Round up to a power of two."""
    return 1 << _bit_length(bits - 1)


def _bit_length(n: np.ndarray) -> np.ndarray:
    """Return the bit length of integers below 2**53, 0 for 0."""
    return np.frexp(n.astype(np.float64))[1].astype(np.int64)
