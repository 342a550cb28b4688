"""The running average of a network's weights, which validates better than the last of them."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class RunningAverage:
    """A copy of a network that follows it step by step, without waiting for the device.

    torch's own `AveragedModel` reads its step counter at every step, which a GPU would have to be
    waited for. Buffers, such as batch statistics, are the network's latest.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(net)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def follow(self, net: nn.Module) -> None:
        """Take one step towards the network's weights."""
        own, new = list(self.module.parameters()), list(net.parameters())
        self._average(own, new, None)
        for buffer, latest in zip(self.module.buffers(), net.buffers(), strict=True):
            buffer.copy_(latest)
