"""The layers of a subnet as the accelerator sees them: shapes, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from apq.errors import ApqError
from apq.space import (
    FIRST_BLOCK_KERNEL,
    IMAGE_CHANNELS,
    STEM_KERNEL,
    STEM_STRIDE,
    Block,
    SearchSpace,
)

IMAGENET_CLASSES = 1000
PAPER_FIXED_LAYERS = ("head", "tail")
"""Of `fixed_layers`, those that the paper's accounting counts, and that tables have entries of."""
MIN_IMAGE_SIZE = 32  # The network halves its input five times.
MAX_IMAGE_SIZE = 16384  # Far beyond any camera; costs stay exact in 64-bit integers.


@dataclass(frozen=True)
class Layer:
    """One convolution on a square input; a linear layer is a 1x1 on an input of side 1.

    Channels and sides are counts, `groups` is 1 (dense) or the number of channels (depthwise).
    Raises ApqError for a shape that is neither, or that has no output.
    """

    in_channels: int
    out_channels: int
    input_size: int
    kernel: int
    stride: int
    padding: int
    groups: int

    def __post_init__(self) -> None:
        shape = self.shape
        if any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
            raise ApqError(f"layer {shape}: every number of its shape must be an integer")
        if self.padding < 0 or min(*shape[:5], self.groups) < 1:
            raise ApqError(f"layer {shape}: every number must be 1 or more; the padding may be 0")
        if self.groups != 1 and not self.groups == self.in_channels == self.out_channels:
            raise ApqError(
                f"layer {shape}: groups must be 1 (dense) or equal to both channel counts "
                f"(depthwise); the accelerator model knows no other kind"
            )
        if self.kernel > self.input_size + 2 * self.padding:
            raise ApqError(f"layer {shape}: the kernel is larger than the padded input")

    @property
    def shape(self) -> tuple[int, int, int, int, int, int, int]:
        """The fields in order, as they stand in a table's keys."""
        return (
            self.in_channels,
            self.out_channels,
            self.input_size,
            self.kernel,
            self.stride,
            self.padding,
            self.groups,
        )

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved on its own."""
        return self.groups > 1

    @property
    def output_size(self) -> int:
        """Side of the square output."""
        return (self.input_size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def n_weights(self) -> int:
        """Number of weights, biases not counted."""
        return self.out_channels * (self.in_channels // self.groups) * self.kernel**2

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, those on the padding included."""
        return self.n_weights * self.output_size**2

    @property
    def description(self) -> str:
        """The shape in words, for messages."""
        kind = "depthwise" if self.depthwise else "dense"
        return (
            f"{self.kernel}x{self.kernel} {kind} convolution, {self.in_channels} -> "
            f"{self.out_channels} channels, stride {self.stride}, "
            f"on {self.input_size}x{self.input_size}"
        )

    def key(self, w_bits: int, a_bits: int) -> str:
        """Return the entry's name in a table, in the format of the authors' file."""
        return f"{self._shape_text}-W{w_bits}A{a_bits}"

    @cached_property
    def _shape_text(self) -> str:
        return str(self.shape)  # once: a table is asked for every layer at many bit widths


def check_image_size(image_size: int) -> None:
    """Raise ApqError unless the image side is an integer that the network can take."""
    if isinstance(image_size, bool) or not isinstance(image_size, int):
        raise ApqError(f"image size is {image_size!r}; it must be an integer, such as 224")
    if image_size < MIN_IMAGE_SIZE:
        raise ApqError(f"image size is {image_size}; it must be {MIN_IMAGE_SIZE} or more")
    if image_size > MAX_IMAGE_SIZE:
        raise ApqError(f"image size is {image_size}; it must be {MAX_IMAGE_SIZE} or less")


def block_layers(
    block: Block, input_size: int, kernel: int, width: int
) -> tuple[Layer, Layer, Layer]:
    """Return the expand, depthwise and project layers of a block.

    `input_size` is the side of the block's input, `width` its expanded channels.
    """
    depthwise = _depthwise(width, input_size, kernel, block.stride)
    return (
        _pointwise(block.in_channels, width, input_size),
        depthwise,
        _pointwise(width, block.out_channels, depthwise.output_size),
    )


def input_sizes(space: SearchSpace, image_size: int) -> tuple[int, ...]:
    """Return the input side of each searchable block, in order; raises ApqError on a bad size."""
    return _sides(space, image_size)[:-1]


def space_layers(space: SearchSpace, image_size: int) -> Iterator[Layer]:
    """Yield the layers of every block, width and kernel; equal layers may come more than once."""
    for block, side in zip(space.blocks, input_sizes(space, image_size), strict=True):
        for width in block.widths:
            for kernel in space.kernels:
                yield from block_layers(block, side, kernel, width)


def fixed_layers(
    space: SearchSpace, image_size: int, n_classes: int = IMAGENET_CLASSES
) -> dict[str, Layer]:
    """Return the layers that no subnet changes, by name, in the order they run.

    All run at `space.fixed_bits`. `head` is the first convolution, which the accelerator runs
    with im2col; `tail` the 1x1 to the features; `classifier` the linear layer as a 1x1.
    """
    sides = _sides(space, image_size)
    stem, features = space.stem_channels, space.feature_channels
    return {
        "head": Layer(
            IMAGE_CHANNELS, stem, image_size, STEM_KERNEL, STEM_STRIDE, STEM_KERNEL // 2, 1
        ),
        "first_depthwise": _depthwise(stem, sides[0], FIRST_BLOCK_KERNEL, 1),
        "first_project": _pointwise(stem, space.first_block_channels, sides[0]),
        "tail": _pointwise(space.stages[-1].out_channels, features, sides[-1]),
        "classifier": _pointwise(features, n_classes, 1),
    }


def _sides(space: SearchSpace, image_size: int) -> tuple[int, ...]:
    """Return the input side of each block, and the output side of the last."""
    check_image_size(image_size)
    sides = [-(-image_size // STEM_STRIDE)]
    for block in space.blocks:
        # An odd kernel with padding kernel // 2 leaves one output for each started stride.
        sides.append(-(-sides[-1] // block.stride))
    return tuple(sides)


def _pointwise(in_channels: int, out_channels: int, input_size: int) -> Layer:
    return Layer(in_channels, out_channels, input_size, 1, 1, 0, 1)


def _depthwise(channels: int, input_size: int, kernel: int, stride: int) -> Layer:
    return Layer(channels, channels, input_size, kernel, stride, kernel // 2, channels)
