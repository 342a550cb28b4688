"""The once-for-all supernet: every subnet of the space in one set of shared weights."""

from __future__ import annotations

import torch

from apq.errors import ApqError
from apq.space import PAPER_SPACE, SearchSpace
from apq.subnet import Subnet, largest
from elastic_nn.networks import paper_names
from elastic_nn.networks.blocks import InvertedBlock
from elastic_nn.networks.mobile_net import MobileNet
from elastic_nn.quantizer_kinds import find_quantizer


class OnceForAllNet(MobileNet):
    """The supernet; `activate` picks the subnet that forward runs, the largest at first."""

    def __init__(self, space: SearchSpace = PAPER_SPACE, n_classes: int = 1000) -> None:
        blocks = [
            InvertedBlock(
                b.in_channels, b.widths[-1], b.out_channels, space.kernels, b.stride, b.has_shortcut
            )
            for b in space.blocks
        ]
        super().__init__(space, blocks, n_classes)
        self.activate(largest(space))

    def searched_blocks(self) -> list[InvertedBlock]:
        """The blocks that the active subnet's depths keep."""
        return [self.blocks[1 + b.index] for b in self.subnet.active_blocks]

    def activate(self, subnet: Subnet, quantize: bool = True) -> None:
        """Pick the subnet that forward runs; without `quantize` its bits are ignored.

        Raises ApqError when the subnet belongs to another space.
        """
        if subnet.space != self.space:
            raise ApqError("the subnet belongs to another search space than this supernet")
        for fact in subnet.active_blocks:
            block = self.blocks[1 + fact.index]
            block.activate(subnet.kernels[fact.index], subnet.widths[fact.index])
        self.subnet = subnet
        self._set_subnet(subnet, quantize)

    def set_quantizer(self, name: str) -> None:
        """Accept the paper's quantizer alone; raises ApqError.

        Learned ranges belong to one filter: choose them for the subnet that `extract` returns.
        """
        if find_quantizer(name).learned:
            raise ApqError(
                f"a supernet cannot learn ranges as quantizer '{name}' does: choose it for the "
                f"network that extract() returns"
            )
        super().set_quantizer(name)

    @torch.no_grad()
    def extract(self) -> MobileNet:
        """Return the active subnet alone: compact, a copy of its weights, the same outputs."""
        net = MobileNet.from_subnet(self.subnet, self.n_classes, self.quantize)
        net = net.to(self.classifier.linear.weight.device)
        pairs = zip(self.conv_layers(), net.conv_layers(), strict=True)
        for (_, elastic, in_channels), (_, compact, _) in pairs:
            compact.conv.load_state_dict(elastic.conv.active_state(in_channels))
            compact.bn.load_state_dict(elastic.bn.active_state(compact.bn.num_features))
        linear = self.classifier.linear
        net.classifier.linear.load_state_dict(linear.active_state(linear.in_features))
        return net.train(self.training)

    def load_paper_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Load the authors' names, full-precision or quantized, with or without doubled levels.

        Raises ApqError that names the first missing, unknown or wrongly shaped tensor.
        """
        paper_names.load(self, state_dict)

    def paper_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the weights under the authors' names, the quantization ranges included."""
        return paper_names.export(self)
