"""Supernet files: ours and the authors', full-precision or quantized."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from apq import files
from apq.errors import ApqError
from apq.space import PAPER_SPACE, SearchSpace
from elastic_nn.networks import efficientnet_lite, paper_names
from elastic_nn.networks.ofa import OnceForAllNet
from utils import checkpoint


@dataclass(frozen=True)
class LoadedSupernet:
    """A supernet read from a file."""

    net: OnceForAllNet
    has_ranges: bool
    """Whether the file brought activation ranges, or they are still at their start."""


def load_supernet(path: str | Path, space: SearchSpace = PAPER_SPACE) -> LoadedSupernet:
    """Read a supernet; the number of classes is the file's.

    Raises ApqError that names the file and, where one is wrong, the tensor.
    """
    content = checkpoint.load(path)
    with files.naming(path):
        return supernet_from(checkpoint.state_dict(content), space)


def supernet_from(
    state_dict: dict[str, torch.Tensor], space: SearchSpace = PAPER_SPACE
) -> LoadedSupernet:
    """Build a supernet from a state dict in the authors' names; raises ApqError."""
    given = {paper_names.ours(name): tensor for name, tensor in state_dict.items()}
    classifier = given.get("classifier.linear.weight")
    if classifier is None or classifier.dim() != 2:
        raise ApqError("no supernet: it lacks the tensor 'classifier.linear.weight'")
    net = OnceForAllNet(space, n_classes=classifier.size(0))
    net.load_paper_state_dict(state_dict)
    return LoadedSupernet(net, any(name.endswith(".activation_range") for name in given))


def start_from(
    net: OnceForAllNet,
    source: str,
    batches: Iterable[torch.Tensor],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Copy starting weights into a supernet: `efficientnet-lite0`, or a supernet file.

    A classifier of other classes stays as it is. `batches` are images to learn from, normalised
    by `mean` and `std`, for weights that were made for other images. Raises ApqError.
    """
    if source == efficientnet_lite.NAME:
        efficientnet_lite.load(net, efficientnet_lite.read_weights(), batches, mean, std)
        return
    state = load_supernet(source, net.space).net.state_dict()
    own = net.state_dict()
    net.load_state_dict({n: t if t.shape == own[n].shape else own[n] for n, t in state.items()})


def save_supernet(net: OnceForAllNet, path: str | Path) -> None:
    """Write a supernet under the authors' names, atomically."""
    state = {name: tensor.detach().cpu() for name, tensor in net.paper_state_dict().items()}
    checkpoint.save(path, {"state_dict": state})
