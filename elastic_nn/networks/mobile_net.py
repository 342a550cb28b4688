"""The network that runs: one subnet, in full precision or quantized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from apq.errors import ApqError, closest
from apq.space import (
    BIT_FIELDS,
    FIRST_BLOCK_KERNEL,
    IMAGE_CHANNELS,
    STEM_KERNEL,
    STEM_STRIDE,
    SearchSpace,
)
from apq.subnet import Subnet
from elastic_nn.modules import (
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepthwiseConv2d,
    QuantizedLayer,
    QuantizedLinear,
)
from elastic_nn.networks.blocks import ConvLayer, InvertedBlock
from elastic_nn.networks.calibration import set_activation_range, set_weight_range
from elastic_nn.quantizer_kinds import find_quantizer

# The authors' network rounds the signed input of its 1x1 to the features to 63 levels a side, one
# bit less than its 8 (on the accelerator both cost the same); their weights expect that.
FEATURE_INPUT_LOST_BITS = 1


class MobileNet(nn.Module):
    """Stem, fixed first block, searchable blocks, 1x1 to the features, average pool, classifier.

    Input (N, 3, S, S), output logits (N, n_classes).
    """

    def __init__(self, space: SearchSpace, blocks: Iterable[InvertedBlock], n_classes: int) -> None:
        super().__init__()
        self.space, self.n_classes = space, n_classes
        self.subnet: Subnet | None = None
        self.quantize = False
        stem, first = space.stem_channels, space.first_block_channels
        self.first_conv = ConvLayer(
            ElasticConv2d(IMAGE_CHANNELS, stem, STEM_KERNEL, STEM_STRIDE, signed_input=True)
        )
        first_block = InvertedBlock(
            stem, stem, first, (FIRST_BLOCK_KERNEL,), 1, shortcut=False, expand=False
        )
        self.blocks = nn.ModuleList([first_block, *blocks])
        last = space.blocks[-1].out_channels
        self.feature_mix_layer = ConvLayer(
            ElasticConv2d(last, space.feature_channels, signed_input=True), activation=True
        )
        self.classifier = nn.Module()
        self.classifier.linear = QuantizedLinear(space.feature_channels, n_classes)
        _initialize(self)

    @classmethod
    def from_subnet(cls, subnet: Subnet, n_classes: int, quantize: bool = True) -> MobileNet:
        """Return the compact network of one subnet with fresh weights."""
        blocks = [
            InvertedBlock(
                b.in_channels,
                subnet.widths[b.index],
                b.out_channels,
                (subnet.kernels[b.index],),
                b.stride,
                b.has_shortcut,
            )
            for b in subnet.active_blocks
        ]
        net = MobileNet(subnet.space, blocks, n_classes)
        net._set_subnet(subnet, quantize)
        return net

    def searched_blocks(self) -> list[InvertedBlock]:
        """The blocks of the active subnet, without the fixed first one."""
        return list(self.blocks)[1:]

    def running_blocks(self) -> Iterator[tuple[str, InvertedBlock]]:
        """Yield name and block of every block that forward runs."""
        names = {block: f"blocks.{i}" for i, block in enumerate(self.blocks)}
        for block in [self.blocks[0], *self.searched_blocks()]:
            yield names[block], block

    def _set_subnet(self, subnet: Subnet, quantize: bool) -> None:
        """Remember the subnet and hand out its bits."""
        self.subnet, self.quantize = subnet, quantize and subnet.quantized
        fixed = self.space.fixed_bits if self.quantize else None
        feature_bits = fixed - FEATURE_INPUT_LOST_BITS if self.quantize else None
        pair = (fixed, fixed) if self.quantize else None
        self.first_conv.conv.set_bits(fixed, None)  # the image itself is not quantized
        self.blocks[0].set_bits(pair, pair)
        self.feature_mix_layer.conv.set_bits(fixed, feature_bits)
        self.classifier.linear.set_bits(fixed, fixed)
        facts = subnet.active_blocks
        for fact, block in zip(facts, self.searched_blocks(), strict=True):
            if self.quantize:
                bits = [getattr(subnet, name)[fact.index] for name in BIT_FIELDS]
                block.set_bits((bits[0], bits[1]), (bits[2], bits[3]))
            else:
                block.set_bits(None, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, S, S) to logits (N, n_classes)."""
        x = self.first_conv(x)
        x = self.blocks[0](x)
        for block in self.searched_blocks():
            x = block(x)
        x = self.feature_mix_layer(x).mean((2, 3))
        return self.classifier.linear(x)

    # ---- the layers that forward runs ----

    def conv_layers(self) -> Iterator[tuple[str, ConvLayer, int]]:
        """Yield name, layer and active input channels of every convolution that forward runs."""
        yield "first_conv", self.first_conv, IMAGE_CHANNELS
        for name, block in self.running_blocks():
            for inner, layer, in_channels in block.layers():
                yield f"{name}.{inner}", layer, in_channels
        yield "feature_mix_layer", self.feature_mix_layer, self.feature_mix_layer.conv.in_channels

    def quantized_layers(self) -> dict[str, tuple[QuantizedLayer, int]]:
        """Return every layer with weights that forward runs: name -> (layer, input channels)."""
        layers = {f"{name}.conv": (layer.conv, c) for name, layer, c in self.conv_layers()}
        layers["classifier.linear"] = (self.classifier.linear, self.classifier.linear.in_features)
        return layers

    def replace_classifier(self, n_classes: int) -> None:
        """Begin anew with a classifier of so many classes, quantized as the old one."""
        old = self.classifier.linear
        new = self.classifier.linear = QuantizedLinear(old.in_features, n_classes)
        _initialize(self.classifier)
        new.to(old.weight)
        new.set_bits(old.w_bits, old.a_bits)
        new.set_quantizer(old.quantizer)
        new.activation_range.data.copy_(old.activation_range)  # its input stays what it was
        self.n_classes = n_classes

    # ---- quantization ranges and batch statistics ----

    @torch.no_grad()
    def set_quantization_ranges(
        self, ranges: Mapping[str, tuple[float | torch.Tensor, float | torch.Tensor]]
    ) -> None:
        """Set {layer: (activation_range, weight_range)}, numbers or tensors of the layer's shape.

        Layers that the active subnet leaves out may be named too. Raises ApqError on an unknown
        layer, and on a tensor of another shape.
        """
        modules = dict(self.named_modules())
        for name, (activation_range, weight_range) in ranges.items():
            layer = modules.get(name)
            if not isinstance(layer, QuantizedLayer):
                known = [n for n, m in modules.items() if isinstance(m, QuantizedLayer)]
                raise ApqError(f"no quantized layer is called '{name}'{closest(name, known)}")
            _set(layer.activation_range, activation_range, f"{name}.activation_range")
            _set(layer.weight_range, weight_range, f"{name}.weight_range")

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Leave the bits of the layers that forward runs out of account for a while."""
        layers = [layer for layer, _ in self.quantized_layers().values()]
        bits = [(layer.w_bits, layer.a_bits) for layer in layers]
        try:
            for layer in layers:
                layer.set_bits(None, None)
            yield
        finally:
            for layer, pair in zip(layers, bits, strict=True):
                layer.set_bits(*pair)

    @torch.no_grad()
    def calibrate(self, images: torch.Tensor, weights: bool = True) -> None:
        """Set the active layers' ranges from images (N, 3, S, S), run in full precision.

        The paper's: an activation range covers 99.9 % of the input's magnitudes; a weight range
        (skipped without `weights`) is the filter's largest magnitude. With a quantizer that learns
        its ranges, they start where rounding errs least.
        """
        layers = self.quantized_layers().values()
        training = self.training
        hooks = [
            layer.register_forward_pre_hook(partial(set_activation_range, a_bits=layer.a_bits))
            for layer, _ in layers
        ]
        try:
            self.eval()
            with self.full_precision():
                self(images)
        finally:
            self.train(training)
            for hook in hooks:
                hook.remove()
        if weights:
            for layer, in_channels in layers:
                set_weight_range(layer, in_channels)

    def set_quantizer(self, name: str) -> None:
        """Choose the quantizer of every layer that forward runs; raises ApqError.

        Ranges of another kind than before have to be calibrated or loaded.
        """
        quantizer = find_quantizer(name)
        for layer, _ in self.quantized_layers().values():
            layer.set_quantizer(quantizer)

    @torch.no_grad()
    def reset_bn_statistics(
        self, batches: Iterable[torch.Tensor | tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Replace the active layers' batch statistics by the average over batches of images.

        A batch is images (N, 3, S, S), or a pair of them and labels, as loaders give. Every image
        counts the same. Raises ApqError when there is no batch.
        """
        norms = [m for m in self.modules() if isinstance(m, ElasticBatchNorm2d)]
        momentum, training = norms[0].momentum, self.training
        seen = 0
        try:
            self.eval()
            for norm in norms:
                norm.train()
            for batch in batches:
                images = batch if isinstance(batch, torch.Tensor) else batch[0]
                seen += len(images)
                for norm in norms:
                    norm.momentum = len(images) / seen  # the first batch replaces what was there
                self(images)
        finally:
            for norm in norms:
                norm.momentum = momentum
            self.train(training)
        if not seen:
            raise ApqError("batch statistics cannot be reset without images")


def _set(tensor: torch.Tensor, value: float | torch.Tensor, name: str) -> None:
    """Overwrite a tensor (N,) with a number or with N of them; raises ApqError on others."""
    new = torch.as_tensor(value)
    if new.dim() and new.shape != tensor.shape:
        raise ApqError(f"'{name}' has shape {tuple(new.shape)}; expected {tuple(tensor.shape)}")
    tensor.copy_(new)


def _initialize(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, ElasticConv2d | ElasticDepthwiseConv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, QuantizedLinear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
