"""The accelerator's sizes and rates that nobody changes often: each one counts as it says."""

from dataclasses import replace

import pytest

from lut.accelerator import Accelerator
from lut.bitfusion import layer_cost
from lut.layers import Layer

DEFAULT = Accelerator()
BUFFERS = ("weight_buffer", "input_buffer", "output_buffer")
LARGE = Layer(96, 200, 28, 3, 1, 1, 1)


def with_capacities(accelerator, factor):
    """Return an accelerator with buffers so many times as large."""
    buffers = {name: getattr(accelerator, name) for name in BUFFERS}
    return replace(
        accelerator,
        **{
            name: replace(buffer, capacity_kib=int(factor * buffer.capacity_kib))
            for name, buffer in buffers.items()
        },
    )


def test_energies_of_buffers_are_given_for_words_of_any_length():
    cost = layer_cost(LARGE, 8, 8)
    twice = layer_cost(LARGE, 8, 8, replace(DEFAULT, word_bits=64))
    for name, energy in cost.components.items():
        wanted = energy / 2 if name in BUFFERS else energy
        assert twice.components[name] == pytest.approx(wanted, rel=1e-12)


def test_of_each_buffer_a_tile_fills_one_copy():
    cost = layer_cost(LARGE, 8, 8)
    four = replace(DEFAULT, buffer_copies=4)
    assert layer_cost(LARGE, 8, 8, with_capacities(four, 2)) == cost
    assert layer_cost(LARGE, 8, 8, four).energy_mj > cost.energy_mj
    assert four.usable_bits(four.weight_buffer) == 64 * 1024 * 8 // 4


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_outputs_move_and_are_kept_as_partial_sums(bits):
    small = Layer(16, 32, 4, 1, 1, 0, 1)  # one tile, and one pass of the array for each output
    accelerator = replace(DEFAULT, partial_sum_bits=bits)
    cost = layer_cost(small, 8, 8, accelerator)
    outputs = 4 * 4 * 32 * bits
    moved = 16 * 32 * 8 + 4 * 4 * 16 * 8 + 2 * outputs
    assert cost.components["dram"] == pytest.approx(moved * 0.015e-6, rel=1e-12)
    buffer = accelerator.output_buffer
    access = (buffer.read_nj_per_word + buffer.write_nj_per_word) / 32
    assert cost.components["output_buffer"] == pytest.approx(2 * outputs * access * 1e-6, rel=1e-12)


def test_bits_and_rows_decide_what_the_array_takes_at_once():
    for n, channels in ((1, 16), (2, 8), (4, 4), (16, 1)):
        accelerator = replace(DEFAULT, rows_per_depthwise_channel=n)
        assert accelerator.depthwise_channels(8, 8) == channels
        assert accelerator.depthwise_channels(4, 2) == 8 * channels
    wide = replace(DEFAULT, unit_bits=16)
    assert [wide.macs_per_unit(*pair) for pair in ((16, 16), (8, 16), (8, 4), (3, 5))] == (
        [1, 2, 8, 15]
    )
