"""One candidate: depths, kernels, expanded widths and bit widths; the paper's JSON in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from apq.errors import ApqError
from apq.space import BIT_FIELDS, PAPER_SPACE, Block, SearchSpace


def nearest_width(channels: float, step: int) -> int:
    """Round channels to the nearest multiple of `step`, halves upwards."""
    return int(channels + step / 2) // step * step


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """A validated, hashable subnet; without bits it is full precision.

    Every block of the space has an entry, those that the depths leave out included. Lists and
    arrays become tuples, and whole numbers of any type integers. Raises ApqError when a value is
    not one of the space's choices, or when an active block asks for what the accelerator cannot
    run.
    """

    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    widths: tuple[int, ...]
    pw_w_bits: tuple[int, ...] | None = None
    pw_a_bits: tuple[int, ...] | None = None
    dw_w_bits: tuple[int, ...] | None = None
    dw_a_bits: tuple[int, ...] | None = None
    space: SearchSpace = field(default=PAPER_SPACE, repr=False, hash=False)

    def __post_init__(self) -> None:
        space, n = self.space, self.space.n_blocks
        given = [name for name in BIT_FIELDS if getattr(self, name) is not None]
        for name in ("depths", "kernels", "widths", *given):
            values = _integers(name, getattr(self, name))
            _check_length(name, values, space.n_stages if name == "depths" else n)
            object.__setattr__(self, name, values)
        for s, depth in enumerate(self.depths):
            _check_choice(f"depth of stage {s + 1}", depth, space.stages[s].depths)
        for b, block in enumerate(space.blocks):
            _check_choice(f"kernel of block {b + 1}", self.kernels[b], space.kernels)
            _check_choice(f"width of block {b + 1}", self.widths[b], block.widths)
        if given and len(given) != len(BIT_FIELDS):
            missing = sorted(set(BIT_FIELDS) - set(given))
            raise ApqError(f"bit widths are incomplete: {', '.join(missing)} missing")
        for name in given:
            for b, bits in enumerate(getattr(self, name)):
                _check_choice(f"{name} of block {b + 1}", bits, space.bits)
        if given:
            self._check_runnable()

    def _check_runnable(self) -> None:
        for block in self.active_blocks:
            kernel, bits = self.kernels[block.index], self.dw_a_bits[block.index]
            if (kernel, bits) in self.space.forbidden:
                raise ApqError(
                    f"block {block.index + 1}: a {kernel}x{kernel} depthwise convolution with "
                    f"{bits}-bit activations cannot run: no tile of it fits the accelerator's "
                    f"weight buffer; use a smaller kernel or more activation bits"
                )

    @property
    def quantized(self) -> bool:
        """Whether the subnet carries bit widths."""
        return self.pw_w_bits is not None

    @property
    def active_blocks(self) -> tuple[Block, ...]:
        """The blocks that the depths keep, in order."""
        return tuple(b for b in self.space.blocks if b.position < self.depths[b.stage])

    def full_precision(self) -> Subnet:
        """Return the same architecture without bits."""
        return replace(self, **dict.fromkeys(BIT_FIELDS))

    def with_bits(self, bits: int) -> Subnet:
        """Return the same architecture with one bit width everywhere.

        A depthwise activation that cannot have it (see `SearchSpace.forbidden`) gets the next
        wider one. Raises ApqError when the space has no such bits.
        """
        _check_choice("bits", bits, self.space.bits)
        n = self.space.n_blocks
        dw_a_bits = tuple(
            min(b for b in self.space.bits if b >= bits and (k, b) not in self.space.forbidden)
            for k in self.kernels
        )
        uniform = dict.fromkeys(BIT_FIELDS, (bits,) * n)
        return replace(self, **{**uniform, "dw_a_bits": dw_a_bits})

    # ---- the paper's JSON: [info, q_info] ----

    def to_paper(self) -> list[dict[str, Any] | None]:
        """Return `[info, q_info]` as in `exps/<name>/arch`; q_info is None in full precision."""
        ratios = [w / b.in_channels for w, b in zip(self.widths, self.space.blocks, strict=True)]
        info = {"wid": None, "ks": list(self.kernels), "e": ratios, "d": list(self.depths)}
        if not self.quantized:
            return [info, None]
        return [info, {f"{name}_setting": list(getattr(self, name)) for name in BIT_FIELDS}]

    @classmethod
    def from_paper(cls, arch: Any, space: SearchSpace = PAPER_SPACE) -> Subnet:
        """Build a subnet from `[info, q_info]`; q_info may be None, missing or merged into info.

        Raises ApqError that names the first entry that is wrong.
        """
        info, q_info = _split_arch(arch)
        values = {key: _numbers(info, key) for key in ("ks", "e", "d")}
        _check_length("e (expand ratios)", values["e"], space.n_blocks)
        _check_length("d (depths)", values["d"], space.n_stages)
        widths = []
        for block, ratio in zip(space.blocks, values["e"], strict=True):
            low, high = space.expand_ratios
            if not low <= ratio <= high:
                raise ApqError(
                    f"expand ratio of block {block.index + 1} is {ratio}; "
                    f"it must lie between {low} and {high}"
                )
            widths.append(nearest_width(block.in_channels * ratio, space.width_step))
        depths = []
        for stage, depth in zip(space.stages, values["d"], strict=True):
            # A stage shorter than its smallest depth is always whole.
            always_whole = stage.max_depth <= depth < stage.depths[0]
            depths.append(stage.depths[0] if always_whole else depth)
        bits = {}
        if q_info is not None:
            bits = {name: tuple(_numbers(q_info, f"{name}_setting")) for name in BIT_FIELDS}
        return cls(
            depths=tuple(depths),
            kernels=tuple(values["ks"]),
            widths=tuple(widths),
            space=space,
            **bits,
        )

    def to_json(self) -> str:
        """Return the paper's arch as a JSON string: the key of a pair."""
        return json.dumps(self.to_paper())

    @classmethod
    def from_json(cls, text: str, space: SearchSpace = PAPER_SPACE) -> Subnet:
        """Read `to_json`'s string; raises ApqError when it is not JSON."""
        try:
            arch = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ApqError(f"not valid JSON: {error}") from None
        return cls.from_paper(arch, space)


def largest(space: SearchSpace = PAPER_SPACE) -> Subnet:
    """Return the full-precision subnet with the last choice everywhere."""
    return _uniform(space, -1)


def smallest(space: SearchSpace = PAPER_SPACE) -> Subnet:
    """Return the full-precision subnet with the first choice everywhere."""
    return _uniform(space, 0)


def _uniform(space: SearchSpace, i: int) -> Subnet:
    return Subnet(
        depths=tuple(stage.depths[i] for stage in space.stages),
        kernels=(space.kernels[i],) * space.n_blocks,
        widths=tuple(block.widths[i] for block in space.blocks),
        space=space,
    )


def _split_arch(arch: Any) -> tuple[dict, dict | None]:
    if isinstance(arch, dict):
        arch = [arch]
    if not isinstance(arch, list | tuple) or not 1 <= len(arch) <= 2:
        raise ApqError("an arch is a JSON list [info, q_info]")
    info, q_info = (*arch, None)[:2]
    if not isinstance(info, dict) or not isinstance(q_info, dict | None):
        raise ApqError("an arch is a JSON list [info, q_info] of two objects")
    if q_info is None and any(f"{name}_setting" in info for name in BIT_FIELDS):
        q_info = info  # merged into one, as the authors' code has them in memory
    return info, q_info


def _numbers(table: dict, key: str) -> list:
    """Return the list under `key`."""
    values = table.get(key)
    if not isinstance(values, list):
        raise ApqError(f"an arch needs a list of numbers under '{key}'")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ApqError(f"'{key}' holds {value!r}, which is not a number")
    return values


def _integers(name: str, values: Any) -> tuple:
    """Return a sequence as a tuple, whole numbers of any type as integers."""
    try:
        return tuple(int(v) if v == int(v) else v for v in values)
    except (TypeError, ValueError, OverflowError):
        raise ApqError(f"{name} is {values!r}; it must be a sequence of integers") from None


def _check_length(name: str, values: Any, n: int) -> None:
    if len(values) != n:
        raise ApqError(f"{name} has {len(values)} entries; expected {n}")


def _check_choice(name: str, value: Any, choices: tuple[int, ...]) -> None:
    if value not in choices:
        listed = ", ".join(map(str, choices)) if len(choices) < 8 else _range_text(choices)
        raise ApqError(f"{name} is {value}; it must be one of {listed}")


def _range_text(choices: tuple[int, ...]) -> str:
    return f"{choices[0]}, {choices[1]}, ..., {choices[-1]}"
