"""Smaller domains by name: parts of a subnet frozen; bits, kernels and widths excluded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apq.checks import check_choice
from apq.domain import Domain
from apq.errors import ApqError
from apq.space import BIT_FIELDS, BLOCK_FIELDS, SearchSpace
from apq.subnet import Subnet


def frozen_parts(space: SearchSpace) -> dict[str, np.ndarray]:
    """Return the gene columns of each part that can be frozen.

    The parts are `architecture` (depths, kernels and widths), `bits`, and `stage1`, `stage2`, ...
    with all that is in them.
    """
    n_fields, columns = len(BLOCK_FIELDS), np.arange(space.n_genes)
    stage_of_block = np.array([block.stage for block in space.blocks])
    stage_of_gene = np.concatenate([np.arange(space.n_stages), np.tile(stage_of_block, n_fields)])
    first_bit_gene = space.columns[BIT_FIELDS[0]].start
    parts = {"architecture": columns[:first_bit_gene], "bits": columns[first_bit_gene:]}
    stages = {f"stage{s + 1}": columns[stage_of_gene == s] for s in range(space.n_stages)}
    return {**parts, **stages}


def freeze(domain: Domain, parts: Sequence[str], subnet: Subnet) -> Domain:
    """Return the domain in which these parts are as they are in the subnet.

    Bits of blocks that the subnet lacks stay free where another depth may bring these in. Raises
    ApqError on an unknown part, on bits of a subnet that has none, and where the domain lacks a
    choice of the subnet.
    """
    known = frozen_parts(domain.space)
    for part in parts:
        check_choice("part to freeze", part, known)
    if set(parts) != {"architecture"} and not subnet.quantized:
        raise ApqError("the subnet to freeze from has no bits: freeze its architecture alone")
    if not parts:
        return domain
    genes = domain.space.encode([subnet])
    if "architecture" not in parts:
        known["bits"] = known["bits"][np.tile(domain.space.active(genes)[0], len(BIT_FIELDS))]
    columns = np.unique(np.concatenate([known[part] for part in parts]))
    return domain.fix(columns, genes[0, columns])


def exclude_bits(domain: Domain, bits: Sequence[int]) -> Domain:
    """Return the domain without these bit widths; raises ApqError on one the space lacks."""
    choices = _indices("bit width", bits, domain.space.bits)
    first = domain.space.columns[BIT_FIELDS[0]].start
    return domain.exclude(slice(first, domain.space.n_genes), choices)


def exclude_kernels(domain: Domain, kernels: Sequence[int]) -> Domain:
    """Return the domain without these kernel sizes; raises ApqError on one the space lacks."""
    choices = _indices("kernel", kernels, domain.space.kernels)
    return domain.exclude(domain.space.columns["kernels"], choices)


def limit_width_ratio(domain: Domain, maximum: float) -> Domain:
    """Return the domain of blocks expanded to at most `maximum` times their input channels.

    Raises ApqError where that leaves a block no width, or is more than the space goes to.
    """
    space = domain.space
    low, high = space.expand_ratios
    if maximum > high:
        raise ApqError(
            f"a width ratio of {maximum:g} excludes nothing: take one from {low} to {high}"
        )
    mask = np.zeros((space.n_blocks, domain.asked.shape[1]), dtype=bool)
    for row, block in zip(mask, space.blocks, strict=True):
        row[: len(block.widths)] = np.array(block.widths) <= maximum * block.in_channels
    return domain.keep(space.columns["widths"], mask)


def _indices(what: str, values: Sequence[int], choices: tuple[int, ...]) -> list[int]:
    listed = ", ".join(map(str, choices))
    for value in values:
        if value not in choices:
            raise ApqError(f"there is no {what} {value} to exclude; there are {listed}")
    if set(values) == set(choices):
        raise ApqError(f"every {what} is excluded; leave one of {listed}")
    return [choices.index(value) for value in values]
