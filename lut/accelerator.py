"""The accelerator's configuration: sizes, rates and energies, each with its source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from apq.errors import ApqError, closest

BITS_PER_KIB = 8 * 1024


def _check_names(cls: type, values: Mapping[str, Any], where: str) -> None:
    known = [f.name for f in fields(cls)]
    for name in values:
        if name not in known:
            raise ApqError(f"{where} has no parameter '{name}'{closest(str(name), known)}")


def _check_fields(config: Any) -> None:
    """Raise ApqError unless each field is of its type, positive and finite."""
    for f in fields(config):
        value = getattr(config, f.name)
        where = f"accelerator: {f.name} is {value!r}"
        if f.type == "Buffer":
            if not isinstance(value, Buffer):
                raise ApqError(f"{where}; it must be a Buffer")
            continue
        wanted = int if f.type == "int" else int | float
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ApqError(f"{where}; it must be {'an integer' if wanted is int else 'a number'}")
        if not 0 < value < math.inf:
            raise ApqError(f"{where}; it must be positive and finite")


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """One on-chip buffer; raises ApqError unless its numbers are positive."""

    capacity_kib: int
    """Total capacity in KiB, both halves of the double buffer."""
    read_nj_per_word: float
    """Energy to read one 32-bit word, in nJ."""
    write_nj_per_word: float
    """Energy to write one 32-bit word, in nJ."""

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """BitFusion (Sharma et al., ISCA 2018) as configured for the APQ authors' table.

    Sizes and rates reproduce that table's latencies; every energy names its source. Raises
    ApqError unless all numbers are positive and finite.
    """

    frequency_mhz: float = 500
    """Clock; authors' table."""
    array_rows: int = 16
    """Fusion units along the input channels; authors' table."""
    array_columns: int = 32
    """Fusion units along the output channels; authors' table."""
    unit_bits: int = 8
    """Widest operand of one fusion unit; BitFusion paper."""
    brick_bits: int = 2
    """Narrowest operand of one fusion unit, its smallest building brick; BitFusion paper."""
    partial_sum_bits: int = 32
    """Width of partial sums and of outputs; BitFusion paper."""
    rows_per_depthwise_channel: int = 2
    """A depthwise convolution runs in dense blocks of (rows / this) channels; authors' table."""
    dram_bits_per_cycle: int = 192
    """Width of the DRAM interface; authors' table."""
    buffer_copies: int = 2
    """Parts of each buffer, of which a tile may use one: double buffering; authors' table."""
    word_bits: int = 32
    """Bits of the word that buffer energies are given for."""
    weight_buffer: Buffer = field(
        default=Buffer(capacity_kib=64, read_nj_per_word=0.000683701, write_nj_per_word=0.000925317)
    )
    """Energies from CACTI, 45 nm, 512 banks of 128 B."""
    input_buffer: Buffer = field(
        default=Buffer(capacity_kib=32, read_nj_per_word=0.00190318, write_nj_per_word=0.00363853)
    )
    """Activations. Energies from CACTI, 45 nm, 16 banks of 2 KiB."""
    output_buffer: Buffer = field(
        default=Buffer(capacity_kib=16, read_nj_per_word=0.000947547, write_nj_per_word=0.0020125)
    )
    """Outputs and partial sums. Energies from CACTI, 45 nm, 32 banks of 512 B."""
    dram_nj_per_bit: float = 0.015
    """Default of the public BitFusion simulator."""
    array_nj_per_cycle: float = 0.4766518
    """The whole array while it computes: 238.3259 mW at 500 MHz, fitted to the authors' table."""
    leakage_mw: float = 216.507352
    """Array and buffers together, fitted to the authors' table."""

    def __post_init__(self) -> None:
        _check_fields(self)
        for name, needed in (
            ("brick_bits", self.brick_bits <= self.unit_bits),
            ("rows_per_depthwise_channel", self.rows_per_depthwise_channel <= self.array_rows),
        ):
            if not needed:
                raise ApqError(f"accelerator: {name} is {getattr(self, name)}, which is too large")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Accelerator:
        """Build from `to_dict`'s form, missing fields as by default; raises ApqError."""
        if not isinstance(values, Mapping):
            raise ApqError("accelerator: expected a JSON object of its parameters")
        values = dict(values)
        for name in ("weight_buffer", "input_buffer", "output_buffer"):
            if name in values:
                given = values[name]
                if not isinstance(given, Mapping):
                    raise ApqError(f"accelerator: {name} must be a JSON object")
                # A buffer that is given in part keeps the rest of its defaults.
                default = asdict(cls.__dataclass_fields__[name].default)
                _check_names(Buffer, given, f"accelerator: {name}")
                values[name] = Buffer(**{**default, **given})
        _check_names(cls, values, "accelerator")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all parameters as plain JSON values."""
        return asdict(self)

    def macs_per_unit(self, w_bits: int, a_bits: int) -> int:
        """Return P, the multiplications that one fusion unit does in a cycle."""
        return (self.unit_bits // w_bits) * (self.unit_bits // a_bits)

    def effective_rows(self, w_bits: int, a_bits: int) -> int:
        """Return R, the input channels that the array takes at once."""
        return self.array_rows * self.macs_per_unit(w_bits, a_bits)

    def depthwise_channels(self, w_bits: int, a_bits: int) -> int:
        """Return G, the channels of one dense block of a depthwise convolution."""
        return self.effective_rows(w_bits, a_bits) // self.rows_per_depthwise_channel

    def usable_bits(self, buffer: Buffer) -> int:
        """Return the bits of a buffer that one tile may fill."""
        return buffer.capacity_kib * BITS_PER_KIB // self.buffer_copies

    @property
    def leakage_nj_per_cycle(self) -> float:
        """Leakage energy of one cycle in nJ."""
        return self.leakage_mw / self.frequency_mhz

    @property
    def cycles_per_ms(self) -> float:
        """Clock cycles in a millisecond."""
        return self.frequency_mhz * 1000

    def check_bits(self, w_bits: int, a_bits: int) -> None:
        """Raise ApqError unless the fusion units can multiply these operands."""
        for name, bits in (("weights", w_bits), ("activations", a_bits)):
            if isinstance(bits, bool) or not isinstance(bits, int):
                raise ApqError(f"bits of {name} are {bits!r}; they must be an integer")
            if not self.brick_bits <= bits <= self.unit_bits:
                raise ApqError(
                    f"bits of {name} are {bits}; the accelerator multiplies "
                    f"{self.brick_bits} to {self.unit_bits} bits"
                )
