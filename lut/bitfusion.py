"""The BitFusion cost model: cycles and energy of one layer, or of thousands at once.

Formulas and limits: docs/cost-model.md. A layer becomes a dense convolution on the array
(`Job`), the convolution is cut into tiles (lut.tiling), each tile and loop order gets its cycles
and energy, and the fastest one stands for the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from apq.errors import ApqError
from lut.accelerator import Accelerator
from lut.layers import Layer
from lut.tiling import (
    DEPENDS_ON,
    LOOP_ORDERS,
    OPERANDS,
    Convolutions,
    Tiles,
    candidates,
    legal,
    residency,
    usable_bits,
)

__all__ = ["COMPONENTS", "MODEL_VERSION", "Accelerator", "LayerCost", "layer_cost", "layer_costs"]

# Raise it with every change that can alter a number: tables of other versions are rebuilt.
MODEL_VERSION = 1
COMPONENTS = ("array", "leakage", "dram", "weight_buffer", "input_buffer", "output_buffer")

MJ_PER_NJ = 1e-6
# Convolutions searched at a time: enough to amortise numpy's calls, few enough for the cache.
CHUNK = 128

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one layer costs on one image."""

    cycles: int
    latency_ms: float
    energy_mj: float
    components: dict[str, float]
    """Energy in mJ of each of `COMPONENTS`; they add up to `energy_mj`."""


@dataclass(frozen=True)
class Job:
    """A layer as the array runs it: the same dense convolution, some times over."""

    convolution: tuple[int, ...]
    """The fields of `Convolutions`."""
    repeats: int


def layer_cost(
    layer: Layer,
    w_bits: int,
    a_bits: int,
    accelerator: Accelerator | None = None,
    im2col: bool = False,
) -> LayerCost:
    """Return the cost of one layer; `im2col` is for a network's first convolution.

    Raises ApqError for bits that the accelerator lacks, or when no tile fits its buffers.
    """
    accelerator = accelerator or Accelerator()
    (cost,) = layer_costs([(layer, w_bits, a_bits)], accelerator, im2col)
    if cost is None:
        reason = why_illegal(to_job(layer, w_bits, a_bits, accelerator, im2col), accelerator)
        raise ApqError(
            f"layer {layer.key(w_bits, a_bits)} ({layer.description}) cannot run on the "
            f"accelerator: {reason}; use a smaller kernel, other bits or a larger buffer"
        )
    return cost


def layer_costs(
    layers: Iterable[tuple[Layer, int, int]],
    accelerator: Accelerator | None = None,
    im2col: bool = False,
    progress: Progress | None = None,
) -> list[LayerCost | None]:
    """Return the costs of many (layer, weight bits, activation bits), None where no tile fits.

    Layers that run the same convolution on the array share one search. `progress` is called with
    the number of searched convolutions and their total. Raises ApqError for bits out of range.
    """
    accelerator = accelerator or Accelerator()
    jobs = [to_job(layer, w, a, accelerator, im2col) for layer, w, a in layers]
    distinct = list(dict.fromkeys(job.convolution for job in jobs))
    best: dict[tuple[int, ...], tuple[int, list[float]]] = {}
    for start in range(0, len(distinct), CHUNK):
        chunk = distinct[start : start + CHUNK]
        for index, cycles, energies in _search(Convolutions.from_rows(chunk), accelerator):
            best[chunk[index]] = cycles, energies
        if progress:
            progress(start + len(chunk), len(distinct))
    return [
        _scaled(*best[job.convolution], job.repeats, accelerator)
        if job.convolution in best
        else None
        for job in jobs
    ]


def to_job(
    layer: Layer, w_bits: int, a_bits: int, accelerator: Accelerator, im2col: bool = False
) -> Job:
    """Return the dense convolution that runs a layer, and how often; raises ApqError."""
    accelerator.check_bits(w_bits, a_bits)
    bits = (w_bits, a_bits)
    if im2col:
        if layer.depthwise:
            raise ApqError(f"layer {layer.key(*bits)}: im2col is for dense convolutions")
        shape = (layer.in_channels, layer.out_channels, layer.output_size, 1, 1, layer.kernel**2)
        return Job((*shape, *bits), repeats=1)
    tail = (layer.output_size, layer.kernel, layer.stride, 1, *bits)
    if layer.depthwise:
        group = accelerator.depthwise_channels(*bits)
        return Job((group, group, *tail), repeats=-(-layer.in_channels // group))
    return Job((layer.in_channels, layer.out_channels, *tail), repeats=1)


def _search(conv: Convolutions, accelerator: Accelerator) -> Iterator[tuple[int, int, list[float]]]:
    """Yield (index, cycles, energies in nJ by component) of each convolution that can run."""
    tiles = legal(candidates(conv, accelerator))
    if not len(tiles.owner):
        return
    schedules = [_Schedule.of(tiles, order) for order in LOOP_ORDERS]
    # Shape (orders, tiles); the cheapest order of each tile, then the cheapest tile of each owner.
    cycles = np.stack([s.cycles for s in schedules])
    energy = np.stack([s.energies_nj.sum(axis=0) for s in schedules])
    order = _lexicographic_argmin(cycles, energy)
    columns = np.arange(len(order))
    cycles, energy = cycles[order, columns], energy[order, columns]
    ranked = np.lexsort((energy, cycles, tiles.owner))
    owners, first = np.unique(tiles.owner[ranked], return_index=True)
    for owner, tile in zip(owners.tolist(), ranked[first].tolist(), strict=True):
        energies = schedules[order[tile]].energies_nj[:, tile]
        yield owner, int(cycles[tile]), energies.tolist()


@dataclass(frozen=True)
class _Schedule:
    """All tiles under one loop order."""

    cycles: np.ndarray
    """Shape (tiles,), int64."""
    energies_nj: np.ndarray
    """Shape (components, tiles)."""

    @classmethod
    def of(cls, tiles: Tiles, order: tuple[str, ...]) -> _Schedule:
        usable = usable_bits(tiles.accelerator)
        fed = {
            name: residency(
                order,
                DEPENDS_ON[name],
                tiles.trips,
                tiles.traffic_bits[name],
                tiles.footprint_bits[name],
                usable[name],
            )
            for name in OPERANDS
        }
        traffic = {name: fed[name].traffic for name in OPERANDS}
        resident = {name: fed[name].resident for name in OPERANDS}
        cycles = total_cycles(tiles, traffic, resident)
        return cls(cycles, energies_nj(tiles, traffic, cycles))


def compute_cycles(tiles: Tiles) -> np.ndarray:
    """Return the cycles in which the array multiplies, shape (n,)."""
    per_tile = tiles.side**2 * tiles.taps * tiles.row_passes * tiles.column_passes
    return tiles.n_tiles * per_tile


def total_cycles(
    tiles: Tiles, traffic: dict[str, np.ndarray], resident: dict[str, np.ndarray]
) -> np.ndarray:
    """Return the slower of computing and moving data, in cycles of shape (n,).

    Computing also waits for the first resident sets to arrive and for the last to leave. Partial
    sums come back from DRAM as often as outputs go there.
    """
    width = tiles.accelerator.dram_bits_per_cycle
    writes = traffic["outputs"]
    reads = traffic["weights"] + traffic["activations"] + writes
    fill = -(-(resident["weights"] + resident["activations"] + resident["outputs"]) // width)
    drain = -(-resident["outputs"] // width)
    memory = -(-reads // width) + -(-writes // width)
    return np.maximum(compute_cycles(tiles) + fill + drain, memory)


def energies_nj(tiles: Tiles, traffic: dict[str, np.ndarray], cycles: np.ndarray) -> np.ndarray:
    """Return the energy of each of `COMPONENTS` in nJ, shape (components, n)."""
    acc = tiles.accelerator
    weight, inputs, output = acc.weight_buffer, acc.input_buffer, acc.output_buffer
    # An access of the output buffer reads a partial sum and writes the next one.
    output_nj = output.read_nj_per_word + output.write_nj_per_word
    weight_reads, input_reads, output_accesses = dataflow_bits(tiles)
    moved = traffic["weights"] + traffic["activations"] + 2 * traffic["outputs"]
    return np.stack(
        [
            compute_cycles(tiles) * acc.array_nj_per_cycle,
            cycles * acc.leakage_nj_per_cycle,
            moved * acc.dram_nj_per_bit,
            (traffic["weights"] * weight.write_nj_per_word + weight_reads * weight.read_nj_per_word)
            / acc.word_bits,
            (
                traffic["activations"] * inputs.write_nj_per_word
                + input_reads * inputs.read_nj_per_word
            )
            / acc.word_bits,
            (traffic["outputs"] + output_accesses) * output_nj / acc.word_bits,
        ]
    )


def dataflow_bits(tiles: Tiles) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weight reads, activation reads and output accesses of the array, in bits.

    The array keeps either its outputs in place and reads the weights for each of them, or its
    weights in place and updates the outputs with each; whichever costs its buffers less.
    """
    acc, n = tiles.accelerator, tiles.n_tiles
    positions = tiles.side**2
    weights = n * tiles.traffic_bits["weights"]
    outputs = n * tiles.traffic_bits["outputs"]
    inputs = n * positions * tiles.taps * tiles.depth * tiles.conv.a_bits * tiles.column_passes
    updates = tiles.taps * tiles.row_passes
    weight_nj = acc.weight_buffer.read_nj_per_word
    output_nj = acc.output_buffer.read_nj_per_word + acc.output_buffer.write_nj_per_word
    output_stationary = weights * positions * weight_nj + outputs * output_nj
    weight_stationary = weights * weight_nj + outputs * updates * output_nj
    keep_outputs = output_stationary <= weight_stationary
    return (
        np.where(keep_outputs, weights * positions, weights),
        inputs,
        np.where(keep_outputs, outputs, outputs * updates),
    )


def _lexicographic_argmin(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the row of each column's smallest `first`, the smallest `second` among equals."""
    ties = first == first.min(axis=0)
    return np.where(ties, second, np.inf).argmin(axis=0)


def _scaled(
    cycles: int, energies_nj: list[float], repeats: int, accelerator: Accelerator
) -> LayerCost:
    components = [nj * repeats * MJ_PER_NJ for nj in energies_nj]
    return LayerCost(
        cycles=cycles * repeats,
        latency_ms=cycles * repeats / accelerator.cycles_per_ms,
        energy_mj=sum(components),
        components=dict(zip(COMPONENTS, components, strict=True)),
    )


def why_illegal(job: Job, accelerator: Accelerator) -> str:
    """Say which buffers even the smallest tile overflows; an empty string when the job can run."""
    smallest = candidates(Convolutions.from_rows([job.convolution]), accelerator)
    usable = usable_bits(accelerator)
    reasons = [
        f"its smallest tile needs {int(smallest.footprint_bits[name][0]):,} bits for {name}, "
        f"and the buffer has {usable[name]:,} usable"
        for name in OPERANDS
        if smallest.footprint_bits[name][0] > usable[name]
    ]
    return " and ".join(reasons)
