"""The search space as data, and its gene arrays: N subnets as integers of shape (N, 132)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from apq.checks import check_rising, check_whole
from apq.errors import ApqError

if TYPE_CHECKING:
    from apq.subnet import Subnet

# What every network begins with, whatever the space.
IMAGE_CHANNELS = 3
STEM_KERNEL, STEM_STRIDE = 3, 2
FIRST_BLOCK_KERNEL = 3
# The four bit widths of a block, in the order of the genes and of the encoder's features.
BIT_FIELDS = ("pw_w_bits", "pw_a_bits", "dw_w_bits", "dw_a_bits")
BLOCK_FIELDS = ("kernels", "widths", *BIT_FIELDS)
# How narrowly the genes of a leaning subnet follow its lean: the sum of the Beta's parameters.
_LEAN = 3.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of blocks with one output width; the first block may have a stride of 2.

    Raises ApqError on what no network can have.
    """

    out_channels: int
    stride: int
    max_depth: int = 4
    depths: tuple[int, ...] = (2, 3, 4)
    """A subnet's depth here; `max_depth` where it is more."""

    def __post_init__(self) -> None:
        check_whole(self, "out_channels", "stride", "max_depth", least=1)
        check_rising(self, "depths", least=1)
        if self.stride > 2:
            raise ApqError(f"a stage's stride is {self.stride}; it must be 1 or 2")


@dataclass(frozen=True, kw_only=True)
class Block:
    """The fixed facts of one searchable inverted-residual block."""

    index: int
    stage: int
    position: int
    in_channels: int
    out_channels: int
    stride: int
    widths: tuple[int, ...]

    @property
    def has_shortcut(self) -> bool:
        """Whether the block adds its input to its output."""
        return self.stride == 1 and self.in_channels == self.out_channels


PAPER_STAGES = (
    Stage(out_channels=24, stride=2),
    Stage(out_channels=40, stride=2),
    Stage(out_channels=80, stride=2),
    Stage(out_channels=96, stride=1),
    Stage(out_channels=192, stride=2),
    # One block that is always there: the paper's files carry a depth for it all the same.
    Stage(out_channels=320, stride=1, max_depth=1),
)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The backbone and every choice a subnet is picked from; the defaults are the paper's.

    Raises ApqError on what no network can have, and on choices that nothing is left of.
    """

    stem_channels: int = 32
    first_block_channels: int = 16
    stages: tuple[Stage, ...] = PAPER_STAGES
    feature_channels: int = 1280
    kernels: tuple[int, ...] = (3, 5, 7)
    expand_ratios: tuple[int, int] = (4, 6)
    width_step: int = 8
    bits: tuple[int, ...] = (4, 6, 8)
    fixed_bits: int = 8
    # (kernel, depthwise activation bits) that the accelerator cannot run: with 4-bit
    # activations the array takes 32 channels at once, and 7x7x32x32 weights of 4 bits and
    # more overflow the usable half of its weight buffer.
    forbidden: tuple[tuple[int, int], ...] = ((7, 4),)

    def __post_init__(self) -> None:
        names = ("stem_channels", "first_block_channels", "feature_channels", "width_step")
        check_whole(self, *names, least=1)
        check_whole(self, "fixed_bits", least=2)  # one bit has no level but zero
        check_rising(self, "kernels", least=1)
        check_rising(self, "bits", least=2)
        low, high = self.expand_ratios
        if not 1 <= low <= high:
            raise ApqError(f"expand_ratios are {low} and {high}; they must be 1 or more, and rise")
        if not self.stages:
            raise ApqError("a search space needs at least one stage")
        for kernel, bits in zip(self.kernels, self.allowed, strict=True):
            if kernel % 2 == 0:
                raise ApqError(f"kernel {kernel} has no middle; kernels must be odd")
            if not bits.any():
                raise ApqError(f"kernel {kernel} is forbidden with all bits; leave it out")

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The searchable blocks in order, as if every stage had its largest depth."""
        blocks: list[Block] = []
        in_channels = self.first_block_channels
        for s, stage in enumerate(self.stages):
            for position in range(stage.max_depth):
                low, high = (in_channels * ratio for ratio in self.expand_ratios)
                blocks.append(
                    Block(
                        index=len(blocks),
                        stage=s,
                        position=position,
                        in_channels=in_channels,
                        out_channels=stage.out_channels,
                        stride=stage.stride if position == 0 else 1,
                        widths=tuple(range(low, high + 1, self.width_step)),
                    )
                )
                in_channels = stage.out_channels
        return tuple(blocks)

    # ---- gene layout: one depth a stage, then the six block fields one after another ----

    @property
    def n_stages(self) -> int:
        """Number of stages, which is the number of depth genes."""
        return len(self.stages)

    @property
    def n_blocks(self) -> int:
        """Number of searchable blocks at full depth."""
        return len(self.blocks)

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Gene columns of each field: `depths`, then the entries of `BLOCK_FIELDS`."""
        columns = {"depths": slice(0, self.n_stages)}
        for i, name in enumerate(BLOCK_FIELDS):
            start = self.n_stages + i * self.n_blocks
            columns[name] = slice(start, start + self.n_blocks)
        return columns

    @cached_property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """The values each gene column picks from; a gene is an index into its tuple."""
        values: list[tuple[int, ...]] = [stage.depths for stage in self.stages]
        values += [self.kernels] * self.n_blocks
        values += [block.widths for block in self.blocks]
        values += [self.bits] * (len(BIT_FIELDS) * self.n_blocks)
        return tuple(values)

    @cached_property
    def gene_sizes(self) -> np.ndarray:
        """Number of choices of each gene, shape (n_genes,)."""
        return np.array([len(values) for values in self.choices])

    @property
    def n_genes(self) -> int:
        """Number of gene columns: 132 in the paper's space."""
        return len(self.choices)

    @cached_property
    def allowed(self) -> np.ndarray:
        """Which (kernel, depthwise activation bits) pairs may be used, shape (kernels, bits)."""
        return np.array([[(k, b) not in self.forbidden for b in self.bits] for k in self.kernels])

    @cached_property
    def _stage_of_block(self) -> np.ndarray:
        return np.array([block.stage for block in self.blocks])

    @cached_property
    def _depth_to_reach(self) -> np.ndarray:
        """Smallest depth gene that switches each block on, shape (n_blocks,)."""
        return np.array(
            [
                next(i for i, depth in enumerate(self.stages[b.stage].depths) if depth > b.position)
                for b in self.blocks
            ]
        )

    # ---- gene arrays ----

    def check_genes(self, genes: np.ndarray) -> None:
        """Raise ApqError unless `genes` are integers (N, n_genes), each one of its choices."""
        if not isinstance(genes, np.ndarray):
            raise ApqError(f"genes are an array of numpy, not a {type(genes).__name__}")
        if genes.ndim != 2 or genes.shape[1] != self.n_genes or genes.dtype.kind not in "iu":
            raise ApqError(
                f"genes have shape {genes.shape} and type {genes.dtype}; "
                f"expected integers of shape (N, {self.n_genes})"
            )
        wrong = (genes < 0) | (genes >= self.gene_sizes)
        if wrong.any():
            n, g = np.argwhere(wrong)[0]
            raise ApqError(
                f"gene {g} of row {n} is {genes[n, g]}; it has {self.gene_sizes[g]} choices"
            )

    def active(self, genes: np.ndarray) -> np.ndarray:
        """Return which blocks each subnet's depths keep, bool of shape (N, n_blocks)."""
        depth = genes[:, self.columns["depths"]][:, self._stage_of_block]
        return depth >= self._depth_to_reach

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw N legal subnets, each gene uniform over what is allowed; genes (N, n_genes)."""
        genes = rng.integers(0, self.gene_sizes, size=(n, self.n_genes))
        return self.make_legal(rng, genes)

    def sample_spread(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw N legal subnets that reach from the cheap end of the space to the expensive one.

        Uniform draws crowd in the middle of the budget axis. Here each subnet leans its own way,
        in architecture and in bits, between the first choices and the last. Shape (N, n_genes).
        """
        first_bit_gene = self.columns[BIT_FIELDS[0]].start
        lean = np.empty((n, self.n_genes))
        lean[:, :first_bit_gene] = rng.random((n, 1))
        lean[:, first_bit_gene:] = rng.random((n, 1))
        shares = rng.beta(_LEAN * lean + 0.05, _LEAN * (1 - lean) + 0.05)
        genes = np.minimum((shares * self.gene_sizes).astype(np.int64), self.gene_sizes - 1)
        return self.make_legal(rng, genes)

    def make_legal(self, rng: np.random.Generator, genes: np.ndarray) -> np.ndarray:
        """Redraw, in place, depthwise activation bits that their kernel forbids."""
        kernels = genes[:, self.columns["kernels"]]
        a_bits = genes[:, self.columns["dw_a_bits"]]
        for k, allowed in enumerate(self.allowed):
            if allowed.all():
                continue
            legal = np.flatnonzero(allowed)
            wrong = (kernels == k) & ~allowed[a_bits]
            a_bits[wrong] = rng.choice(legal, size=int(wrong.sum()))
        return genes

    def is_legal(self, genes: np.ndarray) -> np.ndarray:
        """Return which subnets' active blocks the accelerator can run, bool of shape (N,)."""
        kernels = genes[:, self.columns["kernels"]]
        a_bits = genes[:, self.columns["dw_a_bits"]]
        return (self.allowed[kernels, a_bits] | ~self.active(genes)).all(axis=1)

    def canonical(self, genes: np.ndarray) -> np.ndarray:
        """Return a copy with genes without effect at 0: equal networks become equal rows."""
        out = genes.copy()
        idle = ~self.active(genes)
        for name in BLOCK_FIELDS:
            out[:, self.columns[name]][idle] = 0
        for s, stage in enumerate(self.stages):
            if stage.max_depth <= stage.depths[0]:
                out[:, s] = 0
        return out

    def check_own(self, subnet: Subnet) -> None:
        """Raise ApqError unless it is a subnet, and of this space."""
        from apq.subnet import Subnet  # a subnet names its space, so this way round is local

        if not isinstance(subnet, Subnet):
            raise ApqError(f"expected a subnet, not a {type(subnet).__name__}")
        if subnet.space != self:
            raise ApqError("the subnet belongs to another search space than this one")

    def encode(self, subnets: Iterable[Subnet]) -> np.ndarray:
        """Return genes (N, n_genes) of subnets; full precision reads as the widest bits.

        Raises ApqError for what is no list of this space's subnets.
        """
        if not isinstance(subnets, Iterable):
            raise ApqError(f"expected a list of subnets, not a {type(subnets).__name__}")
        rows = []
        for subnet in subnets:
            self.check_own(subnet)
            values = list(subnet.depths) + list(subnet.kernels) + list(subnet.widths)
            for name in BIT_FIELDS:
                values += getattr(subnet, name) or (self.bits[-1],) * self.n_blocks
            rows.append([c.index(v) for c, v in zip(self.choices, values, strict=True)])
        return np.array(rows, dtype=np.int64).reshape(-1, self.n_genes)

    def decode(self, genes: np.ndarray) -> list[Subnet]:
        """Return the subnets of genes (N, n_genes); raises ApqError on an index out of range."""
        from apq.subnet import Subnet

        self.check_genes(genes)
        subnets = []
        for row in genes.tolist():
            values = [c[i] for c, i in zip(self.choices, row, strict=True)]
            fields = {name: tuple(values[cols]) for name, cols in self.columns.items()}
            subnets.append(Subnet(space=self, **fields))
        return subnets


def as_genes(space: SearchSpace, subnets: np.ndarray | Sequence[Subnet]) -> np.ndarray:
    """Return genes (N, n_genes) for a gene array or for a sequence of subnets."""
    return subnets if isinstance(subnets, np.ndarray) else space.encode(subnets)


PAPER_SPACE = SearchSpace()
