"""The cost model against sums by hand, a plain second implementation, and published figures."""

import hashlib
import itertools
import random

import pytest

from apq.errors import ApqError
from apq.space import PAPER_SPACE
from lut.accelerator import Accelerator, Buffer
from lut.bitfusion import COMPONENTS, layer_cost, layer_costs
from lut.layers import Layer, fixed_layers
from lut.lookup import parse_key
from lut.table import SHIPPED_DIR, build, load

# SHA-256 over the sorted lines "<key> <cycles>" of the authors' 6,569 entries.
CYCLES_SHA256 = "b4af166314e42b3a8aab19968c9b68b92b115d4cfeb78462e4eead25075f41e1"

# Latency in ms and energy in mJ from the authors' table: one of each kind of layer, and others.
PUBLISHED = {
    "(1120, 192, 7, 1, 1, 0, 1)-W6A8": (0.047152, 0.09041541455295997),
    "(192, 864, 7, 1, 1, 0, 1)-W6A4": (0.038984, 0.06935291602582401),
    "(992, 992, 7, 3, 1, 1, 992)-W4A6": (0.098208, 0.097875022353724),
    "(968, 968, 7, 5, 1, 2, 968)-W6A8": (0.350174, 0.22568226955511603),
    "(1040, 1040, 7, 7, 1, 3, 1040)-W6A6": (0.694980, 0.4046210352824899),
    "(392, 80, 14, 1, 1, 0, 1)-W4A4": (0.014964, 0.027342074514808003),
    "(80, 368, 14, 1, 1, 0, 1)-W8A4": (0.053390, 0.093010653640992),
    "(544, 544, 14, 3, 1, 1, 544)-W4A6": (0.134368, 0.25405354267156793),
    "(552, 552, 14, 3, 2, 1, 552)-W6A8": (0.091908, 0.0794953096323),
    "(520, 520, 14, 5, 1, 2, 520)-W6A8": (0.663650, 0.7152264966087799),
    "(488, 488, 14, 5, 2, 2, 488)-W6A4": (0.108190, 0.121014069332156),
    "(536, 536, 14, 7, 1, 3, 536)-W8A6": (1.329548, 0.882608220532424),
    "(512, 512, 14, 7, 2, 3, 512)-W4A8": (0.201792, 0.279577001034752),
    "(144, 40, 28, 1, 1, 0, 1)-W8A8": (0.030796, 0.058907372874431985),
    "(40, 168, 28, 1, 1, 0, 1)-W6A4": (0.089536, 0.154198122064044),
    "(208, 208, 28, 3, 1, 1, 208)-W8A8": (0.374816, 0.374978517694144),
    "(160, 160, 28, 3, 2, 1, 160)-W6A4": (0.039080, 0.06694691142496),
    "(200, 200, 28, 5, 1, 2, 200)-W6A6": (0.990300, 0.6653247136103001),
    "(208, 208, 28, 5, 2, 2, 208)-W4A6": (0.137384, 0.19866829629556),
    "(160, 160, 28, 7, 1, 3, 160)-W4A6": (0.776260, 0.56157553734696),
    "(232, 232, 28, 7, 2, 3, 232)-W6A8": (0.578086, 0.4247178278943359),
    "(128, 24, 56, 1, 1, 0, 1)-W8A6": (0.075520, 0.13950627131904),
    "(24, 144, 56, 1, 1, 0, 1)-W4A6": (0.305904, 0.5172971413364961),
    "(144, 144, 56, 3, 1, 1, 144)-W8A4": (0.512838, 0.7920810884593441),
    "(112, 112, 56, 3, 2, 1, 112)-W6A8": (0.202552, 0.2732202084630479),
    "(136, 136, 56, 5, 1, 2, 136)-W4A6": (1.414314, 1.4702134586804636),
    "(96, 96, 56, 5, 2, 2, 96)-W8A4": (0.242820, 0.225945809165496),
    "(112, 112, 56, 7, 1, 3, 112)-W4A6": (2.155706, 1.863259367264848),
    "(128, 128, 56, 7, 2, 3, 128)-W6A6": (1.235200, 0.7647811772043359),
    "(16, 64, 112, 1, 1, 0, 1)-W4A6": (0.547798, 0.9244388781857438),
    "(64, 64, 112, 3, 2, 1, 64)-W4A6": (0.226456, 0.414125876971584),
    "(64, 64, 112, 5, 2, 2, 64)-W4A6": (0.628640, 0.712591255042816),
    "(88, 88, 112, 7, 2, 3, 88)-W6A6": (3.383468, 2.333363372377092),
    "head": (0.295904, 0.5061844841862639),
    "tail": (0.081608, 0.15180756309769594),
    "(552, 552, 14, 3, 1, 1, 552)-W4A8": (0.142590, 0.22607233094376),
    "(1008, 320, 7, 1, 1, 0, 1)-W4A4": (0.034186, 0.06207320444881201),
    "(400, 400, 14, 7, 1, 3, 400)-W4A8": (0.498700, 0.7885639912255998),
    "(880, 880, 7, 5, 1, 2, 880)-W6A6": (0.316140, 0.20134254225151),
    "(192, 768, 7, 1, 1, 0, 1)-W6A6": (0.034892, 0.06578696956196),
    "(440, 192, 7, 1, 1, 0, 1)-W8A4": (0.014212, 0.025994065847174),
    "(944, 944, 7, 3, 1, 1, 944)-W4A4": (0.072660, 0.09003442407839998),
    "(104, 104, 56, 5, 2, 2, 104)-W4A4": (0.163088, 0.229104908506784),
}


@pytest.fixture(scope="module")
def table():
    return build(224)


# ---- by hand ----


def test_a_memory_bound_layer_by_hand():
    # 1x1, 96 -> 456 at 14x14, W4A4: everything is read once, and the partial sums come back.
    outputs = 196 * 456 * 32
    reads = 96 * 456 * 4 + 96 * 196 * 4 + outputs
    cost = layer_cost(Layer(96, 456, 14, 1, 1, 0, 1), 4, 4)
    assert cost.cycles == (reads + outputs) // 192 == 31096
    assert cost.latency_ms == pytest.approx(0.062192, rel=1e-12)
    assert cost.components["dram"] == pytest.approx((reads + outputs) * 15e-12 * 1e3, rel=1e-12)
    assert cost.components["leakage"] == pytest.approx(31096 * 0.433014704e-6, rel=1e-12)


def test_a_single_tile_by_hand():
    # 1x1, 16 -> 32 on one position, W8A8: one cycle of work; the rest is filling and draining.
    weights, activations, outputs = 16 * 32 * 8, 16 * 8, 32 * 32
    fill, drain = 28, 6  # ceil(5248 / 192), ceil(1024 / 192)
    cost = layer_cost(Layer(16, 32, 1, 1, 1, 0, 1), 8, 8)
    assert cost.cycles == 1 + fill + drain
    expected_nj = {
        "array": 0.4766518,
        "leakage": 35 * 0.433014704,
        "dram": (weights + activations + 2 * outputs) * 0.015,
        "weight_buffer": weights / 32 * (0.000925317 + 0.000683701),
        "input_buffer": activations / 32 * (0.00363853 + 0.00190318),
        "output_buffer": 2 * outputs / 32 * (0.000947547 + 0.0020125),
    }
    for name in COMPONENTS:
        assert cost.components[name] == pytest.approx(expected_nj[name] * 1e-6, rel=1e-12), name
    assert cost.energy_mj == pytest.approx(sum(expected_nj.values()) * 1e-6, rel=1e-12)


def test_a_compute_bound_depthwise_layer_by_hand():
    # 3x3 on 4x4, W8A8: 64 channels are 8 dense blocks of 8 -> 8, 16 positions x 9 taps each.
    weights, activations, outputs = 9 * 8 * 8 * 8, 6 * 6 * 8 * 8, 16 * 8 * 32
    fill, drain = 58, 22  # ceil(11008 / 192), ceil(4096 / 192)
    assert weights + activations + outputs == 11008
    cost = layer_cost(Layer(64, 64, 4, 3, 1, 1, 64), 8, 8)
    assert cost.cycles == 8 * (16 * 9 + fill + drain)
    assert cost.components["array"] == pytest.approx(8 * 144 * 0.4766518e-6, rel=1e-12)


def test_the_head_by_hand():
    # im2col: a reduction of 27 values fills 16 rows twice, at each of 112 x 112 positions;
    # memory-bound, everything moves once: 27 values a position, 32 outputs there and back.
    positions = 112 * 112
    reads = 27 * 32 * 8 + positions * 27 * 8 + positions * 32 * 32
    cost = layer_cost(fixed_layers(PAPER_SPACE, 224)["head"], 8, 8, im2col=True)
    assert cost.cycles == -(-reads // 192) - (-positions * 32 * 32 // 192) == 147_952
    assert cost.components["array"] == pytest.approx(positions * 2 * 0.4766518e-6, rel=1e-12)


def test_a_frequency_changes_the_time_but_not_the_cycles():
    layer = Layer(96, 456, 14, 1, 1, 0, 1)
    slow = layer_cost(layer, 4, 4, Accelerator(frequency_mhz=250))
    assert slow.cycles == 31096
    assert slow.latency_ms == pytest.approx(2 * 0.062192, rel=1e-12)


# ---- against a second implementation ----


def doublings(size):
    return [n for n in (2**i for i in range(20)) if n < size] + [size]


def plain_cost(layer, w_bits, a_bits, acc, im2col):
    """Return (cycles, energy in mJ) by nested loops over every tile and all 24 orders."""
    rows = acc.array_rows * (acc.unit_bits // w_bits) * (acc.unit_bits // a_bits)
    n_in, n_out, kernel, stride, unrolled = (
        layer.in_channels,
        layer.out_channels,
        layer.kernel,
        layer.stride,
        1,
    )
    repeats, side = 1, layer.output_size
    if layer.groups > 1:
        n_in = n_out = rows // acc.rows_per_depthwise_channel
        repeats = -(-layer.in_channels // n_in)
    if im2col:
        kernel, stride, unrolled = 1, 1, layer.kernel**2
    columns = acc.array_columns
    best = None
    for s, i, o in itertools.product(
        doublings(side), doublings(n_in), doublings(-(-n_out // columns))
    ):
        o = min(o * columns, n_out)
        found = plain_tile(
            (side, n_in, n_out), (s, i, o), kernel, stride, unrolled, w_bits, a_bits, rows, acc
        )
        if found and (best is None or found < best):
            best = found
    return best and (best[0] * repeats, best[1] * repeats * 1e-6)


def plain_tile(sizes, tile, kernel, stride, unrolled, w_bits, a_bits, rows, acc):
    (side, n_in, n_out), (s, i, o) = sizes, tile
    up = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
    taps, depth, patch = kernel * kernel, i * unrolled, (kernel + (s - 1) * stride) ** 2
    row_passes, column_passes = -(-depth // rows), -(-o // acc.array_columns)
    padded_o = column_passes * acc.array_columns
    traffic = [taps * depth * o * w_bits, patch * depth * a_bits, s * s * o * 32]
    footprint = [
        taps * row_passes * rows * padded_o * up[w_bits],
        patch * row_passes * rows * up[a_bits],
        s * s * padded_o * 32,
    ]
    buffers = (acc.weight_buffer, acc.input_buffer, acc.output_buffer)
    usable = [b.capacity_kib * 8192 // 2 for b in buffers]
    if any(f > u for f, u in zip(footprint, usable, strict=True)):
        return None
    trips = {"x": -(-side // s), "y": -(-side // s), "i": -(-n_in // i), "o": -(-n_out // o)}
    tiles = trips["x"] * trips["y"] * trips["i"] * trips["o"]
    compute = tiles * s * s * taps * row_passes * column_passes
    flows = []
    for weights, outputs in ((s * s, 1), (1, taps * row_passes)):
        flows.append(
            tiles * traffic[0] * weights * buffers[0].read_nj_per_word
            + tiles * s * s * taps * depth * a_bits * column_passes * buffers[1].read_nj_per_word
            + tiles
            * traffic[2]
            * outputs
            * (buffers[2].read_nj_per_word + buffers[2].write_nj_per_word)
        )
    best = None
    for order in itertools.permutations("xyio"):
        total, kept = [], []
        for operand, depends in enumerate(("io", "xyi", "xyo")):
            size, moved, largest, inside = footprint[operand], traffic[operand], None, True
            largest = moved
            for loop in order:
                if loop in depends:
                    moved, size = moved * trips[loop], size * trips[loop]
                    inside = inside and size <= usable[operand]
                    largest = moved if inside else largest
                elif not inside:
                    moved *= trips[loop]
            total.append(moved)
            kept.append(largest)
        width = acc.dram_bits_per_cycle
        memory = -(-(sum(total)) // width) - (-total[2] // width)
        fill_drain = -(-sum(kept) // width) - (-kept[2] // width)
        cycles = max(compute + fill_drain, memory)
        output_nj = buffers[2].read_nj_per_word + buffers[2].write_nj_per_word
        energy_nj = (
            compute * acc.array_nj_per_cycle
            + cycles * acc.leakage_mw / acc.frequency_mhz
            + (sum(total) + total[2]) * acc.dram_nj_per_bit
            + total[0] / 32 * buffers[0].write_nj_per_word
            + total[1] / 32 * buffers[1].write_nj_per_word
            + total[2] / 32 * output_nj
            + min(flows) / 32
        )
        if best is None or (cycles, energy_nj) < best:
            best = cycles, energy_nj
    return best


def random_layer(rng):
    channels, size = rng.randint(1, 150), rng.randint(1, 40)
    kernel = rng.choice((1, 3, 5, 7))
    groups = rng.choice((1, channels)) if kernel > 1 else 1
    out = channels if groups > 1 else rng.randint(1, 200)
    return Layer(channels, out, size, kernel, rng.choice((1, 2)), kernel // 2, groups)


def test_any_layer_equals_the_plain_loops():
    rng = random.Random(7)
    small = Accelerator(
        array_rows=12,
        array_columns=20,
        dram_bits_per_cycle=100,
        weight_buffer=Buffer(capacity_kib=7, read_nj_per_word=0.002, write_nj_per_word=0.001),
        input_buffer=Buffer(capacity_kib=5, read_nj_per_word=0.001, write_nj_per_word=0.003),
        output_buffer=Buffer(capacity_kib=3, read_nj_per_word=0.004, write_nj_per_word=0.002),
    )
    illegal = 0
    for n in range(150):
        layer, w_bits, a_bits = random_layer(rng), rng.randint(2, 8), rng.randint(2, 8)
        acc = (Accelerator(), small)[n % 2]
        im2col = layer.groups == 1 and n % 3 == 0
        expected = plain_cost(layer, w_bits, a_bits, acc, im2col)
        (cost,) = layer_costs([(layer, w_bits, a_bits)], acc, im2col)
        if expected is None:
            illegal += 1
            assert cost is None
        else:
            assert cost.cycles == expected[0], (layer, w_bits, a_bits, im2col)
            assert cost.energy_mj == pytest.approx(expected[1], rel=1e-12)
    assert 0 < illegal < 75  # both outcomes were tried


# ---- against the authors' table ----


def test_all_cycle_counts_are_the_published_ones(table):
    assert len(table.layers) == 6569
    lines = sorted(f"{key} {round(c['latency'] * 500_000)}" for key, c in table.layers.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == CYCLES_SHA256


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_entries(table, key):
    latency_ms, energy_mj = PUBLISHED[key]
    assert table.layers[key]["latency"] == pytest.approx(latency_ms, abs=1e-9)
    assert table.layers[key]["energy"] == pytest.approx(energy_mj, rel=1e-9)


def test_every_entry_equals_the_authors_file(table, reference):
    theirs = load(reference / "BitFusion_new.b1.dict")
    assert theirs.layers.keys() == table.layers.keys()
    for key, entry in theirs.layers.items():
        ours = table.layers[key]
        assert ours["latency"] == pytest.approx(entry["latency"], abs=1e-9), key
        assert ours["energy"] == pytest.approx(entry["energy"], rel=1e-9), key


# ---- properties ----


def test_components_add_up(table):
    for key, entry in table.layers.items():
        parts = table.components[key]
        assert tuple(parts) == COMPONENTS
        assert min(parts.values()) > 0
        assert sum(parts.values()) == pytest.approx(entry["energy"], rel=1e-12)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_depthwise_layer_costs_as_many_blocks_as_it_fills(bits):
    group = Accelerator().depthwise_channels(bits, bits)

    def cost(channels):
        return layer_cost(Layer(channels, channels, 14, 3, 1, 1, channels), bits, bits)

    one = cost(group)
    assert cost(group - 1) == one
    assert cost(2 * group + 1).cycles == 3 * one.cycles
    assert cost(2 * group + 1).energy_mj == pytest.approx(3 * one.energy_mj, rel=1e-12)


@pytest.mark.parametrize("image_size", [64, 224])
def test_depthwise_latency_never_falls_with_width_kernel_or_weight_bits(image_size):
    layers = load(SHIPPED_DIR / f"bitfusion_{image_size}.json").layers
    entries = {parse_key(k): v for k, v in layers.items() if parse_key(k)}
    compared = 0
    for (n, m, size, k, s, p, g, w, a), entry in entries.items():
        if g == 1:
            continue
        for more in (
            (n + 8, m + 8, size, k, s, p, g + 8, w, a),
            (n, m, size, k + 2, s, p + 1, g, w, a),
            (n, m, size, k, s, p, g, w + 2, a),
        ):
            if more in entries:
                compared += 1
                assert entries[more]["latency"] >= entry["latency"], more
    assert compared > 5000


def test_a_wider_dram_interface_is_never_slower():
    layers = [
        (Layer(*numbers[:7]), *numbers[7:])
        for numbers in map(parse_key, PUBLISHED)
        if numbers is not None
    ]
    narrow = layer_costs(layers)
    wide = layer_costs(layers, Accelerator(dram_bits_per_cycle=384))
    pairs = list(zip(narrow, wide, strict=True))
    assert all(w.cycles <= n.cycles for n, w in pairs)
    assert any(w.cycles < n.cycles for n, w in pairs)


def test_bulk_equals_one_by_one():
    layers = [
        (Layer(96, 96, 14, 7, 1, 3, 96), 4, 4),  # cannot run
        (Layer(96, 96, 14, 7, 1, 3, 96), 8, 8),
        (Layer(320, 1280, 7, 1, 1, 0, 1), 8, 8),
    ]
    bulk = layer_costs(layers)
    assert bulk[0] is None
    assert bulk[1:] == [layer_cost(*layer) for layer in layers[1:]]


def test_progress_ends_at_its_total():
    calls = []
    layers = [(Layer(8, n, 4, 1, 1, 0, 1), 8, 8) for n in range(1, 301)]
    layer_costs(layers, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) > 1
    assert calls == sorted(calls)
    assert calls[-1] == (300, 300)


# ---- mistakes ----


def test_a_layer_that_does_not_fit_says_why():
    with pytest.raises(ApqError) as caught:
        layer_cost(Layer(960, 960, 7, 7, 1, 3, 960), 8, 4)
    message = str(caught.value)
    assert "(960, 960, 7, 7, 1, 3, 960)-W8A4" in message
    # 49 taps x 32 rows x 32 columns x 8 bits, and half of 64 KiB
    assert "401,408 bits for weights" in message
    assert "262,144 usable" in message
    assert "\n" not in message


@pytest.mark.parametrize("bits", [(9, 8), (8, 1), (0, 8), (8, 4.0), (True, 8), ("8", 8)])
def test_bits_that_the_array_lacks_are_refused(bits):
    with pytest.raises(ApqError, match="bits of"):
        layer_cost(Layer(8, 8, 4, 1, 1, 0, 1), *bits)


def test_im2col_is_refused_for_depthwise():
    with pytest.raises(ApqError, match="im2col"):
        layer_cost(Layer(8, 8, 4, 3, 1, 1, 8), 8, 8, im2col=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dram_bit_per_cycle": 1}, "did you mean 'dram_bits_per_cycle'"),
        ({"array_rows": 0}, "array_rows is 0"),
        ({"array_rows": 16.5}, "must be an integer"),
        ({"leakage_mw": float("nan")}, "positive and finite"),
        ({"frequency_mhz": "500"}, "must be a number"),
        ({"brick_bits": 16}, "too large"),
        ({"rows_per_depthwise_channel": 17}, "too large"),
        ({"weight_buffer": 64}, "must be a JSON object"),
        ({"weight_buffer": {"kib": 64}}, "weight_buffer has no parameter 'kib'"),
        ({"weight_buffer": {"capacity_kib": -1}}, "capacity_kib is -1"),
        ([], "expected a JSON object"),
    ],
)
def test_bad_accelerators_are_refused(values, message):
    with pytest.raises(ApqError, match=message):
        Accelerator.from_dict(values)


def test_accelerators_round_trip_and_take_partial_changes():
    changed = Accelerator.from_dict({"array_rows": 32, "weight_buffer": {"capacity_kib": 128}})
    assert changed.array_rows == 32
    assert changed.weight_buffer.capacity_kib == 128
    assert changed.weight_buffer.read_nj_per_word == 0.000683701
    assert Accelerator.from_dict(changed.to_dict()) == changed
