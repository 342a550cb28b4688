"""Which choices of each gene a search may use: all of a space, or what flags leave of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from apq.errors import ApqError
from apq.options import BlockOptions, block_options
from apq.space import BIT_FIELDS, BLOCK_FIELDS, SearchSpace


@dataclass(frozen=True, eq=False)
class Domain:
    """A part of a search space, given by the choices each gene may take.

    `asked` is a bool array (n_genes, largest number of choices). Raises ApqError when a gene has
    no choice left that the accelerator can run; genes of blocks that are never active are free.
    """

    space: SearchSpace
    asked: np.ndarray

    def __post_init__(self) -> None:
        shape = (self.space.n_genes, int(self.space.gene_sizes.max()))
        if self.asked.shape != shape or self.asked.dtype != bool:
            raise ApqError(
                f"a domain is a bool array of shape {shape}, not "
                f"{self.asked.dtype} of shape {self.asked.shape}"
            )
        asked = self.asked & _real_choices(self.space)
        asked.setflags(write=False)
        object.__setattr__(self, "asked", asked)
        empty = ~self.allowed.any(axis=1)
        if empty.any():
            raise ApqError(
                f"nothing is left to choose from for the {self._name_of_empty(empty)}: "
                f"exclude or freeze less"
            )

    def _name_of_empty(self, empty: np.ndarray) -> str:
        """Name a gene without a choice, or two of which no choices may stand together."""
        nothing_asked = np.flatnonzero(empty & ~self.asked.any(axis=1))
        if len(nothing_asked):
            return gene_name(self.space, nothing_asked[0])
        block = np.flatnonzero(empty[self.space.columns["kernels"]])[0]
        names = (
            gene_name(self.space, self.space.columns[name].start + block)
            for name in ("dw_a_bits", "kernels")
        )
        return " together with the ".join(names)

    @classmethod
    def whole(cls, space: SearchSpace) -> Domain:
        """Return the domain that allows all choices of a space."""
        return cls(space, _real_choices(space))

    @cached_property
    def sha256(self) -> str:
        """What tells two domains of one space apart."""
        return hashlib.sha256(self.asked.tobytes()).hexdigest()

    # ---- smaller domains ----

    def keep(self, columns: slice | Sequence[int] | np.ndarray, mask: np.ndarray) -> Domain:
        """Return the domain where the gene columns keep only the choices in `mask`.

        `mask` is bool, (n_columns, largest number of choices) or one row for all the columns.
        """
        asked = self.asked.copy()
        asked[columns] &= mask
        return Domain(self.space, asked)

    def exclude(
        self, columns: slice | Sequence[int] | np.ndarray, choices: Sequence[int]
    ) -> Domain:
        """Return the domain without these choices (indices) of each of the gene columns."""
        mask = np.ones(self.asked.shape[1], dtype=bool)
        mask[list(choices)] = False
        return self.keep(columns, mask)

    def fix(self, columns: slice | Sequence[int] | np.ndarray, values: np.ndarray) -> Domain:
        """Return the domain where each gene column has one choice left, its entry of `values`."""
        return self.keep(columns, np.arange(self.asked.shape[1]) == np.asarray(values)[:, None])

    # ---- what is allowed in effect ----

    @cached_property
    def reachable(self) -> np.ndarray:
        """Which blocks the allowed depths can switch on, bool (n_blocks,)."""
        sizes = self.space.gene_sizes[: self.space.n_stages]
        depths = [row[:n].nonzero()[0] for row, n in zip(self.asked, sizes, strict=False)]
        deepest = np.zeros((1, self.space.n_genes), dtype=np.int64)
        deepest[0, : self.space.n_stages] = [max(d, default=0) for d in depths]
        return self.space.active(deepest)[0]

    @cached_property
    def allowed(self) -> np.ndarray:
        """The choices that lead somewhere, bool as `asked`; what search and sampling draw from.

        Kernels whose every activation width is forbidden or not asked for go, and the other way
        round. A block that no allowed depth reaches keeps one legal choice of each gene.
        """
        allowed = self.asked.copy()
        kernels, a_bits, pairs = self._kernels_with_bits(allowed)
        kernels[:], a_bits[:] = pairs.any(axis=2), pairs.any(axis=1)
        legal_kernel, legal_bits = np.argwhere(self.space.allowed)[0]
        idle = np.flatnonzero(~self.reachable)
        for name in BLOCK_FIELDS:
            columns = self.space.columns[name].start + idle
            allowed[columns] = False
            choice = {"kernels": legal_kernel, "dw_a_bits": legal_bits}.get(name, 0)
            allowed[columns, choice] = True
        allowed.setflags(write=False)
        return allowed

    @cached_property
    def is_whole(self) -> bool:
        """Whether every choice of the space is asked for."""
        return bool((self.asked == _real_choices(self.space)).all())

    @cached_property
    def leaves_bits_open(self) -> bool:
        """Whether some block that can be switched on has a choice of bits."""
        first_bit_gene = self.space.columns[BIT_FIELDS[0]].start
        return bool((self.allowed[first_bit_gene:].sum(axis=1) > 1).any())

    def contains(self, genes: np.ndarray) -> np.ndarray:
        """Return which subnets lie in the domain and can run, bool (N,); idle blocks may differ."""
        inside = self.asked[np.arange(self.space.n_genes), genes]
        idle = ~self.space.active(genes)
        inside[:, self.space.n_stages :] |= np.tile(idle, len(BLOCK_FIELDS))
        return inside.all(axis=1) & self.space.is_legal(genes)

    def settle(self, genes: np.ndarray) -> np.ndarray:
        """Return the same networks with every gene allowed, those of idle blocks included.

        A search that wakes an idle block up then stays in the domain. Expects genes that the
        domain contains.
        """
        genes = genes.copy()
        idle = np.tile(~self.space.active(genes), len(BLOCK_FIELDS))
        blocks = genes[:, self.space.n_stages :]
        blocks[idle] = np.broadcast_to(self._first[self.space.n_stages :], blocks.shape)[idle]
        return genes

    # ---- drawing ----

    @cached_property
    def _choices(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of allowed choices of each gene, and the choices themselves, packed left."""
        order = np.argsort(~self.allowed, axis=1, kind="stable")
        return self.allowed.sum(axis=1), order

    def _kernels_with_bits(self, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return views of the blocks' choices of kernels and of dw_a_bits, and which pairs of them
        may stand together, bool (n_blocks, n_kernels, n_bits)."""
        kernels = choices[self.space.columns["kernels"], : len(self.space.kernels)]
        a_bits = choices[self.space.columns["dw_a_bits"], : len(self.space.bits)]
        return kernels, a_bits, kernels[:, :, None] & a_bits[:, None, :] & self.space.allowed

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which (kernel, dw_a_bits) of each block may stand together; then as `_choices`."""
        _, _, pairs = self._kernels_with_bits(self.allowed)
        return pairs, pairs.sum(axis=2), np.argsort(~pairs, axis=2, kind="stable")

    @cached_property
    def _first(self) -> np.ndarray:
        """One legal, allowed subnet, (n_genes,)."""
        return self.sample(np.random.default_rng(0), 1)[0]

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw N legal subnets, each gene uniform over what is allowed; int64 (N, n_genes)."""
        counts, order = self._choices
        # Single precision never rounds a count up to itself, so no index runs over.
        drawn = (rng.random((n, len(counts)), dtype=np.float32) * counts).astype(np.int64)
        genes = drawn if self.is_whole else order[np.arange(len(counts)), drawn]
        pairs, n_legal, legal = self._pairs
        kernels = genes[:, self.space.columns["kernels"]]
        a_bits = genes[:, self.space.columns["dw_a_bits"]]
        rows, blocks = np.nonzero(~pairs[np.arange(self.space.n_blocks), kernels, a_bits])
        at = kernels[rows, blocks]
        picked = (rng.random(len(rows)) * n_legal[blocks, at]).astype(np.int64)
        a_bits[rows, blocks] = legal[blocks, at, picked]
        return genes

    # ---- what adds up over blocks ----

    @cached_property
    def options(self) -> BlockOptions:
        """The numbering of the space's block options."""
        return block_options(self.space)

    @cached_property
    def allowed_options(self) -> np.ndarray:
        """Which block options the domain allows, bool (n_options,)."""
        masks = []
        for b, shape in enumerate(self.options.shapes):
            mask = np.ones(shape, dtype=bool)
            for axis, (name, size) in enumerate(zip(BLOCK_FIELDS, shape, strict=True)):
                row = self.allowed[self.space.columns[name].start + b, :size]
                mask &= row.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            legal = self.space.allowed.reshape(shape[0], 1, 1, 1, 1, shape[-1])
            masks.append((mask & legal).ravel())
        return np.concatenate(masks)

    def extreme(self, costs: np.ndarray, sign: int) -> np.ndarray:
        """Return the genes (1, n_genes) of the cheapest subnet (sign 1) or the most expensive (-1).

        `costs` are those of the options, (n_options,), not finite where one cannot be had; errors
        as in `least`.
        """
        return self.least(np.where(np.isfinite(costs), sign * costs, np.inf))

    def least(self, values: np.ndarray) -> np.ndarray:
        """Return the genes (1, n_genes) whose active blocks' option values sum to the least.

        `values` has shape (n_options,), infinite for what cannot be had. Exact: blocks, and then
        depths, are decided one by one. Raises ApqError when every sum is infinite.
        """
        space = self.space
        values = np.where(self.allowed_options, values, np.inf)
        numbers = [s.start + int(np.argmin(values[s])) for s in self.options.slices]
        genes = np.zeros((1, space.n_genes), dtype=np.int64)
        fields = [self.options.genes_at(b, number) for b, number in enumerate(numbers)]
        genes[0, space.n_stages :] = np.stack(fields, axis=1).ravel()
        best = values[numbers]
        first = 0
        for s, stage in enumerate(space.stages):
            ends = [first + min(d, stage.max_depth) for d in stage.depths]
            sums = np.array([best[first:end].sum() for end in ends])
            sums[~self.allowed[s, : len(sums)]] = np.inf
            # Of equal sums the shallowest; a stage whose block is always there has one depth.
            genes[0, s] = np.argmin(sums)
            if np.isinf(sums).all():
                block = first + int(np.argmax(np.isinf(best[first:])))
                raise ApqError(
                    f"no choice left for block {block + 1} can be costed: exclude or freeze less, "
                    f"or take a table that holds its layers"
                )
            first += stage.max_depth
        return genes


def gene_name(space: SearchSpace, column: int) -> str:
    """Return what a gene column stands for, such as `width of block 3`."""
    if column < space.n_stages:
        return f"depth of stage {column + 1}"
    field, block = divmod(column - space.n_stages, space.n_blocks)
    name = {"kernels": "kernel", "widths": "width"}.get(BLOCK_FIELDS[field], BLOCK_FIELDS[field])
    return f"{name} of block {block + 1}"


def _real_choices(space: SearchSpace) -> np.ndarray:
    return np.arange(space.gene_sizes.max()) < space.gene_sizes[:, None]
