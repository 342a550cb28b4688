"""Names of tensors in published checkpoints, in both spellings, to and from ours.

The authors wrap elastic layers once more than we do: `.conv.conv.weight`, `.bn.bn.weight`,
`.linear.linear.weight`; some published files leave that level out, as our modules do.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from apq.errors import ApqError, closest

QUANTIZER_STATE = (".activation_range", ".weight_range")


def ours(name: str) -> str:
    """Return our name of a published tensor name."""
    return re.sub(r"\.(conv|bn|linear)\.\1\.", r".\1.", name.removeprefix("module."))


def published(name: str) -> str:
    """Return the authors' full name of one of our tensors."""
    if not re.match(r"blocks\.[1-9]", name):  # the stem, the first block and the head are plain
        return name
    return re.sub(
        r"\.(conv|bn)\.(weight|bias|running_\w+|num_batches_tracked)$", r".\1.\1.\2", name
    )


def export(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the network's tensors under the authors' names."""
    return {published(name): tensor for name, tensor in net.state_dict().items()}


def load(net: nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    """Copy published tensors into the network; quantization ranges may be missing.

    Raises ApqError before anything is copied.
    """
    own = net.state_dict()
    given = {ours(name): tensor for name, tensor in state_dict.items()}
    for name, tensor in given.items():
        if name not in own:
            raise ApqError(f"the checkpoint has an unknown tensor '{name}'{closest(name, own)}")
        if tensor.shape != own[name].shape:
            raise ApqError(
                f"'{name}' has shape {tuple(tensor.shape)} in the checkpoint; "
                f"the network needs {tuple(own[name].shape)}"
            )
    for name in own:
        if name not in given and not name.endswith(QUANTIZER_STATE):
            raise ApqError(f"the checkpoint lacks the tensor '{published(name)}'")
    net.load_state_dict(given, strict=False)
