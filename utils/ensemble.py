"""Several accuracy predictors as one: all members in one pass, ranked by a stated lower bound."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apq import files
from apq.checks import check_within
from apq.errors import ApqError
from apq.paths import find_in
from apq.provenance import card_path, read_card
from apq.space import PAPER_SPACE, SearchSpace, as_genes
from apq.subnet import Subnet
from utils import checkpoint
from utils.accuracy_predictor import (
    HIDDEN,
    QUANTIZED_NAME,
    AccuracyPredictor,
    find_weights,
    gradients_of,
    positions_by_part,
)
from utils.converter import Converter

ENSEMBLE_NAME = "acc_ensemble.pt"
# The root of a variance of exactly 0 has no gradient.
_LEAST_VARIANCE = 1e-12


class PredictorEnsemble(nn.Module):
    """Predictors that score a subnet by mean - risk * spread, the spread their standard deviation.

    Where the members saw no subnets they disagree, and the score falls below their mean. It takes
    the place of an `AccuracyPredictor`: same calls, same unit. Subnets are encoded once for all
    members. Raises ApqError unless there are two members or more, all of one
    space, size and kind, and, as far as their cards tell, of one data set and image size.
    """

    def __init__(self, members: Sequence[AccuracyPredictor], risk: float = 1.0) -> None:
        super().__init__()
        if len(members) < 2:
            raise ApqError(f"an ensemble needs at least two predictors; there are {len(members)}")
        _check_alike(members)
        self.space = members[0].space
        self.quantized = members[0].quantized
        self.risk = risk
        check_within(self, "risk")
        self.card: dict[str, Any] = members[0].card
        self.sha256 = _joint_hash([member.sha256 for member in members])
        self.predictors = nn.ModuleList(members)
        self.converter = Converter(self.space)

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (N,), about 0..1, for features (N, n_features)."""
        members = torch.stack([predictor(features) for predictor in self.predictors])
        variance = members.var(dim=0, correction=0).clamp(min=_LEAST_VARIANCE)
        return members.mean(dim=0) - self.risk * variance.sqrt()

    def predict(self, subnets: np.ndarray | Sequence[Subnet]) -> np.ndarray:
        """Return lower bounds mean - risk * spread, float64 (N,), of subnets or genes.

        Raises ApqError when the genes are not of the predictors' space.
        """
        mean, spread = self.mean_and_spread(subnets)
        return mean - self.risk * spread

    def gradients(self, subnets: np.ndarray | Sequence[Subnet]) -> np.ndarray:
        """Return how the lower bound changes with each feature, float32 (N, n_features)."""
        return gradients_of(self, as_genes(self.space, subnets))

    def spread(self, subnets: np.ndarray | Sequence[Subnet]) -> np.ndarray:
        """Return how far the members disagree: their standard deviation, float64 (N,)."""
        return self.mean_and_spread(subnets)[1]

    def mean_and_spread(
        self, subnets: np.ndarray | Sequence[Subnet]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the members' mean accuracies in 0..1 and their standard deviations, (N,) each."""
        genes = as_genes(self.space, subnets)
        mean, spread = np.empty(len(genes)), np.empty(len(genes))
        device = self.predictors[0].device
        with torch.inference_mode():
            for part, positions in positions_by_part(self.converter, genes, device):
                members = torch.stack([p.forward_positions(*positions) for p in self.predictors])
                members = members.double().cpu().numpy()
                mean[part], spread[part] = members.mean(axis=0), members.std(axis=0)
        return mean, spread


def _check_alike(members: Sequence[AccuracyPredictor]) -> None:
    spaces = {member.space for member in members}
    shapes = {tuple(tensor.shape for tensor in m.state_dict().values()) for m in members}
    if len(spaces) > 1 or len(shapes) > 1:
        raise ApqError("the predictors of an ensemble must be of one space, size and kind")
    for fact in ("dataset", "image_size"):
        told = sorted({str(m.card[fact]) for m in members if m.card.get(fact) is not None})
        if len(told) > 1:
            raise ApqError(
                f"the predictors of an ensemble must have learned one thing; their {fact} is "
                f"{' and '.join(told)}"
            )


def save_members(path: str | Path, members: Sequence[AccuracyPredictor]) -> None:
    """Write predictors into one file, atomically: the names of one, with a first axis of members.

    Drops an older card. Raises ApqError when they do not fit together or cannot be written.
    """
    _check_alike(members)
    states = [member.state_dict() for member in members]
    checkpoint.save(
        path, {name: torch.stack([s[name] for s in states]).cpu() for name in states[0]}
    )
    card_path(path).unlink(missing_ok=True)  # it would describe other weights


def load_members(
    path: str | Path,
    device: str | torch.device = "cpu",
    space: SearchSpace = PAPER_SPACE,
    *,
    hidden: int = HIDDEN,
) -> list[AccuracyPredictor]:
    """Load the predictors of a file, be it an ensemble's or one's, or of a folder's acc_quant.pt.

    Raises ApqError that names the file when it is missing or damaged, or when its weights are not
    of this space.
    """
    path = find_weights(find_in(path, QUANTIZED_NAME), QUANTIZED_NAME)
    content = checkpoint.load(path)
    with files.naming(path):
        weights = checkpoint.state_dict(content)
        # Of a single predictor the regressor's bias has one axis.
        is_single = "regressor.bias" not in weights or weights["regressor.bias"].dim() < 2
        states = [weights] if is_single else _split(weights)
        members = [AccuracyPredictor.from_weights(s, space, hidden=hidden) for s in states]
    card, sha256 = read_card(path), files.sha256(path)
    for member in members:
        member.card, member.sha256 = card, sha256
        member.to(device).eval()
    return members


def _split(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    lengths = {len(tensor) if tensor.dim() else 0 for tensor in weights.values()}
    if len(lengths) != 1:
        raise ApqError("no ensemble of predictors: its weights are not of one number of members")
    return [{name: tensor[i] for name, tensor in weights.items()} for i in range(min(lengths))]


def _joint_hash(hashes: Sequence[str]) -> str:
    """Return one hash for the members' files, or the file's own where it is one."""
    distinct = sorted(set(hashes))
    if len(distinct) == 1:
        return distinct[0]
    return hashlib.sha256("".join(distinct).encode()).hexdigest()
