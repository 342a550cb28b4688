"""The cost of subnets: by hand, by brute force, by property and by oracle."""

import itertools
import json
import subprocess
import sys
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from apq.errors import ApqError
from apq.space import PAPER_SPACE, SearchSpace, Stage
from apq.subnet import Subnet, largest, smallest
from lut.accelerator import Accelerator
from lut.costs import COSTS
from lut.layers import block_layers, input_sizes
from lut.table import Table, build, for_image_size, load
from utils.latency_predictor import LatencyPredictor

TYPES = tuple(COSTS)
ROW_FIELD = {
    "latency": "latency_ms",
    "energy": "energy_mj",
    "bitops": "bitops",
    "size": "size_bytes",
}

# One stage of one or two blocks; each has 2 kernels, 2 widths and 2 choices of every bit width.
TOY = SearchSpace(
    stem_channels=8,
    first_block_channels=8,
    stages=(Stage(out_channels=8, stride=2, max_depth=2, depths=(1, 2)),),
    feature_channels=16,
    kernels=(3, 7),
    width_step=16,
    bits=(4, 8),
)
TOY_IMAGE_SIZE = 32


@pytest.fixture(scope="module")
def toy_table() -> Table:
    """Random costs, so that the extremes are not simply the smallest and the largest subnet."""
    rng = np.random.default_rng(3)
    layers = {}
    for block, size in zip(TOY.blocks, input_sizes(TOY, TOY_IMAGE_SIZE), strict=True):
        for kernel, width in itertools.product(TOY.kernels, block.widths):
            for layer in block_layers(block, size, kernel, width):
                for w_bits, a_bits in itertools.product(TOY.bits, TOY.bits):
                    latency, energy = rng.uniform(1, 2, 2)
                    layers[layer.key(w_bits, a_bits)] = {"latency": latency, "energy": energy}
    layers["head"] = {"latency": 0.25, "energy": 0.5}
    layers["tail"] = {"latency": 0.125, "energy": 0.75}
    return Table(
        layers=layers,
        components=None,
        image_size=TOY_IMAGE_SIZE,
        accelerator=Accelerator(),
        model_version=None,
    )


@pytest.fixture(scope="module")
def toy_subnet() -> Subnet:
    return Subnet(
        depths=(2,),
        kernels=(3, 7),
        widths=(48, 32),
        pw_w_bits=(4, 8),
        pw_a_bits=(8, 8),
        dw_w_bits=(8, 4),
        dw_a_bits=(4, 8),
        space=TOY,
    )


@cache
def paper(kind: str, accounting: str = "paper") -> LatencyPredictor:
    """Return a predictor of the paper's space, made once."""
    return LatencyPredictor(kind, accounting=accounting)


def all_genes(space: SearchSpace) -> np.ndarray:
    """Return every gene array of a small space, (N, n_genes)."""
    sizes = tuple(space.gene_sizes)
    return np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)


def test_latency_by_hand(toy_table: Table, toy_subnet: Subnet) -> None:
    # Input 32, after the stem 16, after the stride of the first block 8.
    keys = [
        "(8, 48, 16, 1, 1, 0, 1)-W4A8",
        "(48, 48, 16, 3, 2, 1, 48)-W8A4",
        "(48, 8, 8, 1, 1, 0, 1)-W4A8",
        "(8, 32, 8, 1, 1, 0, 1)-W8A8",
        "(32, 32, 8, 7, 1, 3, 32)-W4A8",
        "(32, 8, 8, 1, 1, 0, 1)-W8A8",
    ]
    costs = [toy_table.layers[key]["latency"] for key in keys]
    predictor = LatencyPredictor("latency", TOY_IMAGE_SIZE, TOY, toy_table)
    shallow = replace(toy_subnet, depths=(1,))
    expected = [0.25 + sum(costs) + 0.125, 0.25 + sum(costs[:3]) + 0.125]
    np.testing.assert_allclose(predictor.predict([toy_subnet, shallow]), expected, rtol=1e-15)


def test_bitops_and_size_by_hand(toy_table: Table, toy_subnet: Subnet) -> None:
    # (weights, outputs a weight is used for, weight bits, activation bits, output channels)
    layers = [
        (3 * 8 * 9, 256, 8, 8, 8),  # head
        (8 * 9, 256, 8, 8, 8),  # first block
        (8 * 8, 256, 8, 8, 8),
        (8 * 48, 256, 4, 8, 48),  # block 1
        (48 * 9, 64, 8, 4, 48),
        (48 * 8, 64, 4, 8, 8),
        (8 * 32, 64, 8, 8, 32),  # block 2
        (32 * 49, 64, 4, 8, 32),
        (32 * 8, 64, 8, 8, 8),
        (8 * 16, 64, 8, 8, 16),  # tail
        (16 * 10, 1, 8, 8, 10),  # classifier
    ]
    arguments = {"image_size": TOY_IMAGE_SIZE, "space": TOY, "n_classes": 10}
    bitops = LatencyPredictor("bitops", **arguments).predict([toy_subnet])
    assert bitops.tolist() == [sum(n * used * w * a for n, used, w, a, _ in layers)]
    size = LatencyPredictor("size", **arguments).predict([toy_subnet])
    assert size.tolist() == [sum(n * w / 8 + 4 * out for n, _, w, _, out in layers)]


@pytest.mark.parametrize("kind", TYPES)
def test_extremes_are_those_of_brute_force(toy_table: Table, kind: str) -> None:
    predictor = LatencyPredictor(kind, TOY_IMAGE_SIZE, TOY, toy_table)
    genes = all_genes(TOY)
    costs = predictor.predict(genes)
    # A block that is left out may hold anything; the others only what can run.
    assert (np.isfinite(costs) == TOY.is_legal(genes)).all()
    assert 0 < np.isfinite(costs).sum() < len(costs)
    for (value, subnet), expected in (
        (predictor.minimum(), costs.min()),
        (predictor.maximum(), costs[np.isfinite(costs)].max()),
    ):
        assert value == expected
        assert predictor.predict([subnet])[0] == value


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("accounting", ["paper", "full"])
def test_rows_add_up_to_the_prediction(kind: str, accounting: str) -> None:
    predictor = paper(kind, accounting)
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 3)
    for subnet, cost in zip(PAPER_SPACE.decode(genes), predictor.predict(genes), strict=True):
        rows = predictor.breakdown(subnet)
        assert sum(getattr(row, ROW_FIELD[kind]) for row in rows) == pytest.approx(cost, rel=1e-12)
        for row in rows:
            assert sum(row.components.values()) == pytest.approx(row.energy_mj, rel=1e-12)


def test_rows_name_the_layers_in_order() -> None:
    subnet = smallest().with_bits(4)
    rows = paper("latency").breakdown(subnet)
    names = [row.name for row in paper("latency", "full").breakdown(subnet)]
    blocks = ["expand", "depthwise", "project"] * 11
    assert names == [
        "head",
        "first_depthwise",
        "first_project",
        *blocks,
        "tail",
        "classifier",
    ]
    assert [row.name for row in rows] == ["head", *blocks, "tail"]
    assert [row.block for row in rows[1:7]] == [1, 1, 1, 2, 2, 2]
    assert rows[-2].block == 21
    row = rows[2]
    assert astuple(row.layer) == (64, 64, 112, 3, 2, 1, 64)
    assert (row.kernel, row.width, row.w_bits, row.a_bits) == (3, 64, 4, 4)


def test_full_accounting_adds_the_layers_the_paper_leaves_out() -> None:
    table = for_image_size(224)
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 5)
    for kind in ("latency", "energy"):
        head_and_tail, full = (paper(kind, a).predict(genes) for a in ("paper", "full"))
        left_out = ("first_depthwise", "first_project", "classifier")
        expected = sum(table.fixed(name)[kind] for name in left_out)
        np.testing.assert_allclose(full - head_and_tail, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", TYPES)
def test_extremes_bound_the_papers_space(kind: str) -> None:
    predictor = paper(kind)
    costs = predictor.predict(PAPER_SPACE.sample(np.random.default_rng(0), 500))
    (least, cheapest), (most, most_expensive) = predictor.minimum(), predictor.maximum()
    assert least < costs.min()
    assert costs.max() < most
    assert predictor.predict([cheapest, most_expensive]).tolist() == [least, most]


def test_known_extremes() -> None:
    assert paper("latency").minimum()[0] == pytest.approx(2.95915, abs=1e-9)
    assert paper("energy").minimum()[0] == pytest.approx(5.107083273, abs=1e-9)
    assert paper("latency").maximum()[0] == pytest.approx(46.792338, abs=1e-9)


def test_subnets_without_bits_cost_as_much_as_with_eight() -> None:
    predictor = paper("latency")
    full_precision, eight_bits = predictor.predict([largest(), largest().with_bits(8)])
    assert full_precision == eight_bits
    assert predictor.breakdown(largest()) == predictor.breakdown(largest().with_bits(8))


def test_what_cannot_run_costs_infinitely_much() -> None:
    genes = np.zeros((2, PAPER_SPACE.n_genes), dtype=int)
    genes[0, PAPER_SPACE.columns["kernels"].start] = 2  # 7x7 in block 1, 4-bit activations
    genes[1, PAPER_SPACE.columns["kernels"].start + 2] = 2  # the same in block 3, left out
    for kind in TYPES:
        assert np.isfinite(paper(kind).predict(genes)).tolist() == [False, True]


def test_mistakes_are_named(toy_table: Table) -> None:
    with pytest.raises(ApqError, match=r"no cost type 'latencyy' \(did you mean 'latency'"):
        LatencyPredictor("latencyy")
    with pytest.raises(ApqError, match="no accounting 'ful'"):
        LatencyPredictor(accounting="ful")
    with pytest.raises(ApqError, match=r"image size 32, not 224.*--image_size 224"):
        LatencyPredictor(table=toy_table)
    with pytest.raises(ApqError, match=r"no entry \(16, 64, 16,"):
        LatencyPredictor(image_size=TOY_IMAGE_SIZE, table=toy_table)
    predictor = LatencyPredictor("latency", TOY_IMAGE_SIZE, TOY, toy_table)
    computed = build(TOY_IMAGE_SIZE, TOY)
    LatencyPredictor("latency", TOY_IMAGE_SIZE, TOY, computed)
    wider = replace(TOY, feature_channels=1280)
    with pytest.raises(ApqError, match="the table is of another search space: its head and tail"):
        LatencyPredictor("latency", TOY_IMAGE_SIZE, wider, computed)
    with pytest.raises(ApqError, match="another search space"):
        predictor.breakdown(largest())
    with pytest.raises(ApqError, match="shape"):
        predictor.predict(np.zeros((1, 5), dtype=int))


def test_an_entry_that_lacks_is_infinite_and_its_rows_name_it(
    toy_table: Table, toy_subnet: Subnet
) -> None:
    key = "(32, 32, 8, 7, 1, 3, 32)-W4A8"
    layers = {k: cost for k, cost in toy_table.layers.items() if k != key}
    table = replace(toy_table, layers=layers)
    for kind in TYPES:
        predictor = LatencyPredictor(kind, TOY_IMAGE_SIZE, TOY, table)
        assert predictor.predict([toy_subnet]).tolist() == [np.inf]
        with pytest.raises(ApqError, match=r"\(32, 32, 8, 7, 1, 3, 32\)-W4A8"):
            predictor.breakdown(toy_subnet)


def test_a_table_of_whole_numbers_costs_as_one_of_fractions(
    toy_table: Table, toy_subnet: Subnet
) -> None:
    whole = {key: {"latency": 1, "energy": 2} for key in toy_table.layers}
    lacking = {key: cost for key, cost in whole.items() if not key.startswith("(32, 32, 8, 7,")}
    for layers, finite in ((whole, True), (lacking, False)):
        table = replace(toy_table, layers=layers)
        for kind in ("latency", "energy"):
            predictor = LatencyPredictor(kind, TOY_IMAGE_SIZE, TOY, table)
            assert np.isfinite(predictor.predict([toy_subnet])).tolist() == [finite]


def test_cost_needs_no_torch() -> None:
    code = "import sys, utils.latency_predictor; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_costs_agree_with_the_authors(reference: Path) -> None:
    golden = json.loads((reference / "golden_cost.json").read_text())
    subnets = [Subnet.from_paper(entry["arch"]) for entry in golden]
    latency_ms = [entry["latency_ms"] for entry in golden]
    energy_mj = [entry["energy_mj"] for entry in golden]
    for table in (None, load(reference / "BitFusion_new.b1.dict")):
        got = LatencyPredictor("latency", table=table).predict(subnets)
        np.testing.assert_allclose(got, latency_ms, rtol=0, atol=1e-9)
        got = LatencyPredictor("energy", table=table).predict(subnets)
        np.testing.assert_allclose(got, energy_mj, rtol=1e-9)
