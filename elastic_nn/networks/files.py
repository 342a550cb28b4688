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


@dataclass(frozen=True)
class StartingWeights:
    """Weights that a supernet's training may start from."""

    state: dict[str, torch.Tensor]
    of_supernet: bool

    @classmethod
    def read(cls, source: str, space: SearchSpace = PAPER_SPACE) -> StartingWeights:
        """Read `efficientnet-lite0`'s, or those of a supernet file; raises ApqError."""
        if source == efficientnet_lite.NAME:
            return cls(efficientnet_lite.read_weights(), of_supernet=False)
        return cls(load_supernet(source, space).net.state_dict(), of_supernet=True)

    def copy_into(
        self,
        net: OnceForAllNet,
        batches: Iterable[torch.Tensor],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Make them a supernet's own; a classifier of other classes stays as it is.

        `batches` are images to learn from, normalised by `mean` and `std`, for weights that were
        made for other images.
        """
        if not self.of_supernet:
            efficientnet_lite.load(net, self.state, batches, mean, std)
            return
        own = net.state_dict()
        fitting = {n: t if t.shape == own[n].shape else own[n] for n, t in self.state.items()}
        net.load_state_dict(fitting)


def save_supernet(net: OnceForAllNet, path: str | Path) -> None:
    """Write a supernet under the authors' names, atomically."""
    state = {name: tensor.detach().cpu() for name, tensor in net.paper_state_dict().items()}
    checkpoint.save(path, {"state_dict": state})
