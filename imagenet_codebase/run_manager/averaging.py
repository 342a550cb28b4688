"""The running average of a network's weights, kept beside them and measured in their place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class RunningAverage:
    """A copy of a network that follows it step by step, without waiting for the device.

    At first it follows faster, with a decay of (1 + n) / (10 + n) at step n: short runs would else
    end with an average of mostly their first weights. Buffers, such as batch statistics, are the
    network's latest. torch's own `AveragedModel` reads its counter from the device at every step.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(net)
        self.decay, self.n_steps = decay, 0

    @torch.no_grad()
    def follow(self, net: nn.Module) -> None:
        """Take one step towards the network's weights."""
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        own, new = list(self.module.parameters()), list(net.parameters())
        get_ema_multi_avg_fn(decay)(own, new, None)
        for buffer, latest in zip(self.module.buffers(), net.buffers(), strict=True):
            buffer.copy_(latest)
        self.n_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {"module": self.module.state_dict(), "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state as one's own; raises KeyError or RuntimeError when it is none."""
        self.module.load_state_dict(state["module"])
        self.n_steps = state["n_steps"]
