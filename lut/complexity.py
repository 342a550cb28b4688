"""Costs that no accelerator is needed for: bit operations and model size.

Conventions, since both are defined in several ways elsewhere. A bit operation is one
multiply-accumulate times the bits of both operands; additions of biases, activations and
shortcuts are not counted. A model's size counts weights at their own bits without padding, and
one 32-bit bias for each output channel: batch norm is folded into the convolution.
"""

import numpy as np

from lut.layers import Layer

Bits = int | np.ndarray
"""A bit width, or an array of them; what they cost has their shape."""

BIAS_BYTES = 4


def bitops(layer: Layer, w_bits: Bits, a_bits: Bits) -> Bits:
    """Return the bit operations of a layer on one image: MACs x weight bits x activation bits."""
    return layer.macs * w_bits * a_bits


def size_bytes(layer: Layer, w_bits: Bits) -> float | np.ndarray:
    """Return the bytes of a layer's weights and biases; 6-bit weights may end within a byte."""
    return layer.n_weights * w_bits / 8 + layer.out_channels * BIAS_BYTES
