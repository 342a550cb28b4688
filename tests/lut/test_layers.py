"""Shapes of layers, worked out by hand."""

import pytest

from apq.errors import ApqError
from apq.space import PAPER_SPACE
from lut import complexity
from lut.layers import Layer, block_layers, fixed_layers, input_sizes, space_layers

EXPAND = Layer(96, 456, 14, 1, 1, 0, 1)


def test_key_is_the_authors_format():
    assert EXPAND.key(4, 6) == "(96, 456, 14, 1, 1, 0, 1)-W4A6"


def test_a_dense_layer_by_hand():
    layer = Layer(3, 32, 224, 3, 2, 1, 1)
    assert layer.output_size == 112
    assert layer.n_weights == 3 * 32 * 9
    assert layer.macs == 3 * 32 * 9 * 112 * 112
    assert not layer.depthwise


def test_a_depthwise_layer_by_hand():
    layer = Layer(64, 64, 15, 5, 2, 2, 64)
    assert layer.output_size == 8
    assert layer.n_weights == 64 * 25
    assert layer.macs == 64 * 25 * 64
    assert layer.depthwise


def test_complexity_by_hand():
    layer = Layer(2, 3, 5, 1, 1, 0, 1)  # 6 weights, 150 MACs
    assert complexity.bitops(layer, 4, 6) == 150 * 24
    assert complexity.size_bytes(layer, 6) == 6 * 6 / 8 + 3 * 4


def test_a_block_with_stride_two():
    block = PAPER_SPACE.blocks[0]
    expand, depthwise, project = block_layers(block, 17, 5, 72)
    assert expand == Layer(16, 72, 17, 1, 1, 0, 1)
    assert depthwise == Layer(72, 72, 17, 5, 2, 2, 72)
    assert project == Layer(72, 24, 9, 1, 1, 0, 1)


@pytest.mark.parametrize(
    ("image_size", "sides"),
    [
        (224, [112, 56, 28, 14, 14, 7]),
        (64, [32, 16, 8, 4, 4, 2]),
        (33, [17, 9, 5, 3, 3, 2]),
        (32, [16, 8, 4, 2, 2, 1]),
    ],
)
def test_input_sizes(image_size, sides):
    firsts = [b.index for b in PAPER_SPACE.blocks if b.position == 0]
    assert [input_sizes(PAPER_SPACE, image_size)[i] for i in firsts] == sides


@pytest.mark.parametrize("image_size", [32, 45, 65, 101, 224])
def test_every_block_feeds_the_next_at_any_size(image_size):
    sides = input_sizes(PAPER_SPACE, image_size)
    tail = fixed_layers(PAPER_SPACE, image_size)["tail"]
    for kernel in PAPER_SPACE.kernels:
        outputs = [
            block_layers(b, side, kernel, b.widths[0])[2].output_size
            for b, side in zip(PAPER_SPACE.blocks, sides, strict=True)
        ]
        assert outputs == [*sides[1:], tail.input_size]


def test_fixed_layers_at_224():
    layers = fixed_layers(PAPER_SPACE, 224, n_classes=10)
    assert layers == {
        "head": Layer(3, 32, 224, 3, 2, 1, 1),
        "first_depthwise": Layer(32, 32, 112, 3, 1, 1, 32),
        "first_project": Layer(32, 16, 112, 1, 1, 0, 1),
        "tail": Layer(320, 1280, 7, 1, 1, 0, 1),
        "classifier": Layer(1280, 10, 1, 1, 1, 0, 1),
    }


@pytest.mark.parametrize("image_size", [32, 33, 99])
def test_fixed_layers_feed_each_other_at_any_size(image_size):
    layers = fixed_layers(PAPER_SPACE, image_size)
    assert layers["head"].output_size == layers["first_depthwise"].input_size
    assert layers["first_depthwise"].output_size == layers["first_project"].input_size
    assert layers["first_project"].output_size == input_sizes(PAPER_SPACE, image_size)[0]


def test_space_layers_are_730_distinct_shapes():
    # (6,567 entries + 7x7 depthwise at 3 x 1 pairs with 4-bit activations) / 9 pairs
    distinct = set(space_layers(PAPER_SPACE, 224))
    sevens = sum(layer.kernel == 7 for layer in distinct)
    assert len(distinct) * 9 == 6567 + 3 * sevens


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((96, 456.0, 14, 1, 1, 0, 1), "must be an integer"),
        ((96, True, 14, 1, 1, 0, 1), "must be an integer"),
        ((96, 0, 14, 1, 1, 0, 1), "1 or more"),
        ((96, 456, 14, 1, 1, -1, 1), "1 or more"),
        ((96, 96, 14, 3, 1, 1, 2), "groups must be 1"),
        ((96, 48, 14, 3, 1, 1, 96), "groups must be 1"),
        ((96, 96, 3, 7, 1, 1, 96), "larger than the padded input"),
    ],
)
def test_bad_shapes_are_refused(shape, message):
    with pytest.raises(ApqError, match=message):
        Layer(*shape)


@pytest.mark.parametrize("image_size", [31, 0, -224, 224.0, "224", True, None])
def test_bad_image_sizes_are_refused(image_size):
    with pytest.raises(ApqError, match="image size is"):
        input_sizes(PAPER_SPACE, image_size)
