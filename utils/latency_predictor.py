"""What subnets cost: latency and energy on the accelerator, bit operations and model size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

import numpy as np

from apq.checks import check_choice
from apq.domain import Domain
from apq.errors import ApqError
from apq.options import BlockOptions, block_options
from apq.space import PAPER_SPACE, Block, SearchSpace, as_genes
from apq.subnet import Subnet
from lut import table as lut_table
from lut.complexity import Bits, bitops, size_bytes
from lut.costs import COSTS, QUANTITIES
from lut.layers import (
    IMAGENET_CLASSES,
    PAPER_FIXED_LAYERS,
    Layer,
    block_layers,
    fixed_layers,
    input_sizes,
)

CostType = Literal["latency", "energy", "bitops", "size"]
Accounting = Literal["paper", "full"]
BLOCK_LAYER_NAMES = ("expand", "depthwise", "project")


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """One layer of a subnet and all that it costs."""

    block: int | None
    """Number of the block, from 1; None for a layer that no subnet changes."""
    name: str
    """`expand`, `depthwise`, `project`, or the name of a fixed layer (`lut.layers`)."""
    layer: Layer
    width: int | None
    """Expanded channels of the block; None for a fixed layer."""
    w_bits: int
    a_bits: int
    latency_ms: float
    energy_mj: float
    components: dict[str, float] | None
    """Energy in mJ of each part of the accelerator; None if the table does not tell."""
    bitops: int
    size_bytes: float

    @property
    def kernel(self) -> int:
        """Side of the layer's filters."""
        return self.layer.kernel


class LatencyPredictor:
    """Adds up the costs of subnets' layers, for thousands of subnets at once.

    `type` says which cost: `latency` in ms, `energy` in mJ, `bitops` or `size` in bytes
    (conventions: lut.complexity). `accounting` says which fixed layers count in latency and
    energy: `paper` the head and the tail, as the authors' numbers do; `full` all five. Bit
    operations and size are always the whole network's, with a classifier of `n_classes`.
    Subnets without bits cost as much as those with the widest ones. `table` replaces the
    default accelerator's; raises ApqError when it is not for this image size or space.
    """

    def __init__(
        self,
        type: CostType = "latency",
        image_size: int = 224,
        space: SearchSpace = PAPER_SPACE,
        table: lut_table.Table | None = None,
        accounting: Accounting = "paper",
        n_classes: int = IMAGENET_CLASSES,
    ) -> None:
        check_choice("cost type", type, get_args(CostType))
        check_choice("accounting", accounting, get_args(Accounting))
        self.type = type
        self.image_size = image_size
        self.space = space
        self.accounting = accounting
        self.n_classes = n_classes
        # What a table of the user's lacks cannot run, whatever cost is asked for.
        self._table_decides = table is not None
        if table is not None:
            check_table(table, image_size, space)
            self.table = table
        self._input_sizes = input_sizes(space, image_size)
        self.fixed_cost = self._sum_fixed_layers()
        self._padded_costs = self._gather_costs()

    @property
    def unit(self) -> str:
        """Unit of the cost: `ms`, `mJ`, `BitOps` or `bytes`."""
        return COSTS[self.type].unit

    @cached_property
    def table(self) -> lut_table.Table:
        """The table of layer costs; read, or built, when first needed."""
        if self.space == PAPER_SPACE:
            return lut_table.for_image_size(self.image_size)
        return lut_table.build(self.image_size, self.space)

    def predict(self, subnets: np.ndarray | Sequence[Subnet]) -> np.ndarray:
        """Return costs, float64 (N,) in `unit`, of subnets or genes (N, n_genes).

        Infinite for genes that ask for what the accelerator cannot run. Raises ApqError when
        the genes are not of the predictor's space.
        """
        genes = as_genes(self.space, subnets)
        self.space.check_genes(genes)
        numbers = self.options.numbers(genes)
        return self._padded_costs[numbers].sum(axis=1) + self.fixed_cost

    def breakdown(self, subnet: Subnet) -> list[CostRow]:
        """Return a row for each layer that the cost counts, in the order they run.

        The rows' `latency_ms`, `energy_mj`, `bitops` or `size_bytes` add up to `predict`.
        Raises ApqError for what is no subnet of its space, and one that names a layer which the
        table lacks.
        """
        self.space.check_own(subnet)
        subnet = subnet if subnet.quantized else subnet.with_bits(self.space.bits[-1])
        fixed = self._fixed_rows()
        before = [row for row in fixed if row.name not in ("tail", "classifier")]
        blocks = [row for block in subnet.active_blocks for row in self._block_rows(subnet, block)]
        return before + blocks + fixed[len(before) :]

    def minimum(self) -> tuple[float, Subnet]:
        """Return the cost of the cheapest subnet of the space, and that subnet; exact."""
        return self._extreme(sign=1)

    def maximum(self) -> tuple[float, Subnet]:
        """Return the cost of the most expensive subnet of the space, and that subnet; exact."""
        return self._extreme(sign=-1)

    # ---- the cost of every option of every block ----

    @cached_property
    def options(self) -> BlockOptions:
        """The numbering of `option_costs`."""
        return block_options(self.space)

    @property
    def option_costs(self) -> np.ndarray:
        """The cost of every block option, (n_options,); infinite if the accelerator cannot."""
        return self._padded_costs[:-1]

    def _gather_costs(self) -> np.ndarray:
        """Return the options' costs, and a last one of 0 for idle blocks."""
        known: dict[tuple, np.ndarray] = {}  # Most blocks have a twin.
        costs = []
        for block, size in zip(self.space.blocks, self._input_sizes, strict=True):
            kind = (block.in_channels, block.out_channels, block.stride, block.widths, size)
            if kind not in known:
                pw, dw = self._block_tables(block, size)
                # Only the width ties the pointwise layers to the depthwise one.
                known[kind] = (pw[None, :, :, :, None, None] + dw[:, :, None, None, :, :]).ravel()
            costs.append(known[kind])
        return np.concatenate([*costs, [0.0]])

    def _block_tables(self, block: Block, input_size: int) -> tuple[np.ndarray, np.ndarray]:
        kernels = self.space.kernels
        layers = _all_layers(block, input_size, kernels)  # by kernel, then by width
        pw_costs = np.array(
            [self._bit_costs(expand) + self._bit_costs(project) for expand, _, project in layers[0]]
        )
        dw_costs = np.array([[self._bit_costs(layer) for _, layer, _ in row] for row in layers])
        dw_costs[np.broadcast_to(~self.space.allowed[:, None, None, :], dw_costs.shape)] = np.inf
        for costs in (pw_costs, dw_costs):
            if not np.isfinite(costs).any():
                # Nothing of this block can run: let the table say what it lacks, and the remedy.
                w_bits = self.space.bits[-1]
                for layer in layers[0][0]:
                    self.table.cost(layer, w_bits, w_bits)
        return pw_costs, dw_costs

    def _bit_costs(self, layer: Layer) -> np.ndarray:
        """Return a layer's cost at each (weight bits, activation bits), shape (bits, bits)."""
        bits = self.space.bits
        from_table = self.type in QUANTITIES
        entries = []
        if from_table or self._table_decides:
            entries = [self.table.layers.get(layer.key(w, a)) for w in bits for a in bits]
        if from_table:
            costs = np.array([entry[self.type] if entry else np.inf for entry in entries], float)
        else:
            costs = self._computed(layer, *self._bit_pairs).astype(float)
        if self._table_decides:
            costs[[entry is None for entry in entries]] = np.inf
        return costs.reshape(len(bits), len(bits))

    @cached_property
    def _bit_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Every weight bit width with every activation bit width, in the order of the costs."""
        n, bits = len(self.space.bits), np.array(self.space.bits)
        return np.repeat(bits, n), np.tile(bits, n)

    def _computed(self, layer: Layer, w_bits: Bits, a_bits: Bits) -> float | np.ndarray:
        """Return bit operations or bytes, which no table is needed for."""
        return bitops(layer, w_bits, a_bits) if self.type == "bitops" else size_bytes(layer, w_bits)

    def _extreme(self, sign: int) -> tuple[float, Subnet]:
        genes = Domain.whole(self.space).extreme(self.option_costs, sign)
        return float(self.predict(genes)[0]), self.space.decode(genes)[0]

    # ---- the fixed layers, and rows ----

    def _fixed_layers(self) -> dict[str, Layer]:
        """Return the fixed layers that the cost counts, by name."""
        layers = fixed_layers(self.space, self.image_size, self.n_classes)
        if self.accounting == "full" or self.type not in QUANTITIES:
            return layers
        return {name: layers[name] for name in PAPER_FIXED_LAYERS}

    def _sum_fixed_layers(self) -> float:
        if self.type in QUANTITIES:
            self._check_fixed_layers()
            costs = [
                self.table.fixed(name, self.space, self.n_classes) for name in self._fixed_layers()
            ]
            return sum(cost[self.type] for cost in costs)
        bits, layers = self.space.fixed_bits, self._fixed_layers().values()
        return sum(float(self._computed(layer, bits, bits)) for layer in layers)

    def _check_fixed_layers(self) -> None:
        lacking = self.table.lacking(self.space, self.n_classes) if self._table_decides else {}
        counted = [f"{name}, {lacking[name]!r}" for name in self._fixed_layers() if name in lacking]
        if counted:
            raise ApqError(
                f"the table lacks {'; '.join(counted)}, and tells no accelerator to compute them "
                f"for: add their entries, or leave them out with the paper's accounting"
            )

    def _fixed_rows(self) -> list[CostRow]:
        rows = []
        bits = (self.space.fixed_bits,) * 2
        for name, layer in self._fixed_layers().items():
            cost = self.table.fixed(name, self.space, self.n_classes)
            components = self.table.fixed_components(name, self.space, self.n_classes)
            rows.append(_row(None, name, layer, None, bits, cost, components))
        return rows

    def _block_rows(self, subnet: Subnet, block: Block) -> list[CostRow]:
        i = block.index
        size, width = self._input_sizes[i], subnet.widths[i]
        pw_bits = (subnet.pw_w_bits[i], subnet.pw_a_bits[i])
        dw_bits = (subnet.dw_w_bits[i], subnet.dw_a_bits[i])
        layers = block_layers(block, size, subnet.kernels[i], width)
        rows = []
        for name, layer in zip(BLOCK_LAYER_NAMES, layers, strict=True):
            bits = dw_bits if name == "depthwise" else pw_bits
            cost = self.table.cost(layer, *bits)
            components = self.table.components and self.table.components[layer.key(*bits)]
            rows.append(_row(i + 1, name, layer, width, bits, cost, components))
        return rows


@lru_cache(maxsize=256)  # every type of cost asks for the same ones
def _all_layers(
    block: Block, input_size: int, kernels: tuple[int, ...]
) -> tuple[tuple[tuple[Layer, Layer, Layer], ...], ...]:
    """Return the three layers of a block by kernel and by width."""
    return tuple(
        tuple(block_layers(block, input_size, kernel, width) for width in block.widths)
        for kernel in kernels
    )


def _row(
    block: int | None,
    name: str,
    layer: Layer,
    width: int | None,
    bits: tuple[int, int],
    cost: dict[str, float],
    components: dict[str, float] | None,
) -> CostRow:
    w_bits, a_bits = bits
    return CostRow(
        block=block,
        name=name,
        layer=layer,
        width=width,
        w_bits=w_bits,
        a_bits=a_bits,
        latency_ms=cost["latency"],
        energy_mj=cost["energy"],
        components=components,
        bitops=bitops(layer, w_bits, a_bits),
        size_bytes=size_bytes(layer, w_bits),
    )


def check_table(table: lut_table.Table, image_size: int, space: SearchSpace = PAPER_SPACE) -> None:
    """Raise ApqError when a table is of another image size or space than is asked for.

    Layers that every subnet has stand in a table without their shapes: of one that was computed,
    their costs tell the space.
    """
    if table.image_size != image_size:
        raise ApqError(
            f"the table is for image size {table.image_size}, not {image_size}: choose another "
            f"table, or make one with `apq lut build --image_size {image_size}`"
        )
    computed = table.model_version is not None
    if computed and space != PAPER_SPACE and not table.is_computed_for(space):
        raise ApqError(
            "the table is of another search space: its head and tail have other shapes; "
            "lut.table.build makes one of this space"
        )
