"""Elastic and quantized layers."""

from elastic_nn.modules.layers import (
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepthwiseConv2d,
    InputLevels,
    QuantizedLayer,
    QuantizedLinear,
)

__all__ = [
    "ElasticBatchNorm2d",
    "ElasticConv2d",
    "ElasticDepthwiseConv2d",
    "InputLevels",
    "QuantizedLayer",
    "QuantizedLinear",
]
