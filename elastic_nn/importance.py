"""Orders expanded channels by importance, so that a narrower block keeps the ones that matter."""

import torch

from elastic_nn.networks.blocks import InvertedBlock
from elastic_nn.networks.ofa import OnceForAllNet


@torch.no_grad()
def sort_channels(net: OnceForAllNet) -> None:
    """Sort every searched block's expanded channels, most important first.

    Importance is the L1 norm of what the projection makes of a channel (once-for-all, ICLR
    2020). Subnets of full width compute the same as before; the optimizer's state does not
    follow and has to be made anew.
    """
    for block in list(net.blocks)[1:]:
        importance = block.mobile_inverted_conv.point_linear.conv.weight.abs().sum((0, 2, 3))
        _permute(block, importance.argsort(descending=True, stable=True))


def _permute(block: InvertedBlock, order: torch.Tensor) -> None:
    inner = block.mobile_inverted_conv
    project = inner.point_linear.conv.weight
    project.copy_(project[:, order])
    for layer in (inner.inverted_bottleneck, inner.depth_conv):
        norm = layer.bn
        per_channel = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        for tensor in (layer.conv.weight, *per_channel):
            tensor.copy_(tensor[order])
