"""What a search found, as text: a row a block, totals, and where the accuracy comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apq.cli.tables import format_table
from apq.provenance import figure_of
from lut.costs import amount, budget, what_counts
from methods.diagnostics import accuracy_rows, heaviest
from methods.prediction.cards import ABOUT_SEARCHED, FULL, LAST_ROUND, TRANSFER

if TYPE_CHECKING:
    from apq.subnet import Subnet
    from methods.find import Found
    from methods.request import SearchRequest
    from utils.latency_predictor import CostRow

# The network's output has no bounds, and a search goes where it is high.
UNBOUND = "note: the predictor is not bound to 100%; above it, its figures only rank"
HEADERS = ("block", "kernel", "width", "pw bits", "dw bits", "ms", "mJ")


def format_found(found: Found, request: SearchRequest) -> str:
    """Return the winner as text: a row a block, totals, and where the accuracy comes from."""
    cost, result = request.costs["latency"], found.result
    layers = cost.breakdown(found.subnet)
    used = ", ".join(
        f"{limit.cost.type} {amount(value, limit.cost.unit)} of "
        f"{budget(limit.maximum, limit.cost.unit)}"
        for limit, value in zip(found.problem.limits, found.costs, strict=True)
    )
    counted = what_counts([limit.cost.type for limit in found.problem.limits], cost.accounting)
    lines = [
        format_table(HEADERS, list(_rows(found.subnet, layers))),
        "",
        f"{used} at {cost.image_size} px ({counted}); "
        f"{result.n_evaluated:,} subnets in {result.seconds:.1f} s",
        _what_is_heavy(found, layers),
    ]
    if result.interrupted:
        lines.append("stopped early: this is the best so far; the same command goes on from here")
    return "\n".join([*lines, *_accuracy_lines(found, request)])


def _what_is_heavy(found: Found, layers: Sequence[CostRow]) -> str:
    spare = ", ".join(
        f"{1 - value / limit.maximum:.1%} of the {limit.cost.type}"
        for limit, value in zip(found.problem.limits, found.costs, strict=True)
    )
    heavy = []
    for figure, what in (("latency_ms", "time"), ("energy_mj", "energy")):
        (top,) = heaviest(layers, figure, n=1)
        place = _name(found.subnet, top["block"] - 1) if top["block"] else "fixed"
        heavy.append(f"most {what} in {place}, {top['layer']} ({top['share']:.0%})")
    return f"to spare: {spare}; {'; '.join(heavy)}"


def _accuracy_lines(found: Found, request: SearchRequest) -> list[str]:
    """Return what is predicted of the winner, and what the prediction comes from."""
    origin, *notes = accuracy_origin(request)
    row, *_ = accuracy_rows(request.accuracy, found.result.candidates)
    lines = [f"predicted accuracy {row['predicted_accuracy']:.2%}, {origin}"]
    if row["predicted_accuracy"] > 1:
        notes.append(UNBOUND)
    if "spread" in row:
        lines.append(
            f"ranked by a lower bound: mean {row['predicted_accuracy']:.2%} - "
            f"{request.accuracy.risk:g} x spread {row['spread']:.2%} of "
            f"{len(request.accuracy.predictors)} predictors = {row['lower_bound']:.2%}"
        )
    return [*lines, *notes]


def accuracy_origin(request: SearchRequest) -> list[str]:
    """Return on what data the accuracy was learned, and notes on what it is not of."""
    card, image_size = request.accuracy.card, request.costs["latency"].image_size
    dataset, trained_at = card.get("dataset"), card.get("image_size")
    origin, notes = "of unknown origin", []
    if not request.accuracy.quantized:
        notes.append(
            "note: the accuracy is of the subnet in full precision: this predictor knows no bits"
        )
    # The pairs it learned from may have had no card.
    if isinstance(dataset, str) and dataset and type(trained_at) is int:
        origin = f"learned on {dataset} at {trained_at} px"
        if trained_at != image_size:
            notes.append(
                f"note: the accuracy was learned at {trained_at} px and the cost is at "
                f"{image_size} px; --image_size={trained_at} searches both at one size"
            )
    return [origin + _expected_error(card, request.accuracy.quantized), *notes]


def _expected_error(card: Mapping[str, Any], quantized: bool) -> str:
    """Return how far off the prediction may be, as far as the predictor's card tells."""
    # The card of one that knows no bits tells the figures of its quantized sibling, too.
    told = {ABOUT_SEARCHED: "searched", TRANSFER: "random"} if quantized else {FULL: "random"}
    # A search goes where a predictor is too hopeful: what searches found says how much.
    bias = figure_of(card, "figures", ABOUT_SEARCHED, LAST_ROUND, "bias") if quantized else None
    if bias is not None:
        less, below = ("less", "below") if bias >= 0 else ("more", "above")
        return (
            f"; expect about {abs(bias):.1f} points {less}: the last searched subnets measured "
            f"that much {below} their prediction"
        )
    for name, kind in told.items():
        rmse = figure_of(card, "figures", name, "rmse")
        if rmse is not None:
            return f", off by {rmse:.1f} points (RMSE) on {kind} subnets held out"
    return ""


def _rows(subnet: Subnet, layers: Sequence[CostRow]) -> Iterator[tuple]:
    """Yield the table's rows: the fixed layers, each block, the total."""
    blocks: dict[int | str, list[CostRow]] = {}
    for row in layers:
        blocks.setdefault(row.block or row.name, []).append(row)
    totals = [0.0, 0.0]
    for key, rows in blocks.items():
        figures = [sum(r.latency_ms for r in rows), sum(r.energy_mj for r in rows)]
        totals = [t + f for t, f in zip(totals, figures, strict=True)]
        shown = [f"{f:.3f}" for f in figures]
        if isinstance(key, str):
            bits = f"W{rows[0].w_bits}A{rows[0].a_bits}"
            is_depthwise = "depthwise" in key
            kernel = f"{rows[0].kernel}x{rows[0].kernel}"
            yield (key, kernel, None, *((None, bits) if is_depthwise else (bits, None)), *shown)
        else:
            i = key - 1
            kernel = f"{subnet.kernels[i]}x{subnet.kernels[i]}"
            pw = f"W{subnet.pw_w_bits[i]}A{subnet.pw_a_bits[i]}"
            dw = f"W{subnet.dw_w_bits[i]}A{subnet.dw_a_bits[i]}"
            yield (f"{_name(subnet, i)}", kernel, subnet.widths[i], pw, dw, *shown)
    yield ("total", None, None, None, None, *(f"{t:.3f}" for t in totals))


def _name(subnet: Subnet, index: int) -> str:
    block = subnet.space.blocks[index]
    return f"stage {block.stage + 1}, block {block.position + 1}"
