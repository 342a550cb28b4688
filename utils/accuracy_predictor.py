"""The accuracy predictor: a small MLP from a subnet's features to its accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apq import files
from apq.errors import ApqError
from apq.paths import find_in
from apq.provenance import card_path, read_card
from apq.space import PAPER_SPACE, SearchSpace, as_genes
from apq.subnet import Subnet
from utils import checkpoint
from utils.converter import Converter

HIDDEN = 400
QUANTIZED_NAME = "acc_quant.pt"
# Bounds the memory of a large query: 4096 rows of the hidden layers take 6 MB each.
PREDICT_BATCH = 4096


class AccuracyPredictor(nn.Module):
    """The paper's predictor: h = ReLU(W0 a + b0) + (Wq q + bq), two hidden layers, one number.

    a are the architecture's features, q those of the bits. A full-precision predictor
    (`quantized=False`) has no Wq and ignores the bits. The parameters' names are those of the
    authors' `acc_quant.pt` and `acc.pt`. `card` says what it was trained on, as far as known.
    """

    def __init__(
        self, space: SearchSpace = PAPER_SPACE, hidden: int = HIDDEN, quantized: bool = True
    ) -> None:
        super().__init__()
        self.space = space
        self.quantized = quantized
        self.card: dict[str, Any] = {}
        self.sha256 = ""
        self._kept_columns: tuple[list, tuple[Tensor, Tensor | None]] | None = None
        self.converter = Converter(space)
        n_inputs = (self.converter.n_arch_features, hidden, hidden)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(n, hidden), nn.ReLU(inplace=True)) for n in n_inputs
        )
        if quantized:
            self.quantize_fc = nn.Linear(self.converter.n_bit_features, hidden)
        self.regressor = nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return accuracies (N,), about 0..1, for features (N, n_features)."""
        n_arch = self.converter.n_arch_features
        x = self.layers[0](features[:, :n_arch])
        if self.quantized:
            x = x + self.quantize_fc(features[:, n_arch:])
        return self._head(x)

    def _head(self, x: Tensor) -> Tensor:
        for layer in self.layers[1:]:
            x = layer(x)
        return self.regressor(x).squeeze(-1)

    def forward_positions(self, arch: Tensor, bits: Tensor) -> Tensor:
        """Do as `forward` with the positions of the features that are 1 (`Converter.positions`).

        A product with zeros and ones is a sum of columns: a third of the time.
        """
        first = self.layers[0][0]
        arch_columns, bit_columns = self._columns()
        x = F.embedding_bag(arch, arch_columns, mode="sum").add_(first.bias).relu_()
        if bit_columns is not None:
            x += F.embedding_bag(bits, bit_columns, mode="sum").add_(self.quantize_fc.bias)
        return self._head(x)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.regressor.weight.device

    def train(self, mode: bool = True) -> Self:
        """Do as any module; what was kept of the weights is forgotten, as they may have changed."""
        self._kept_columns = None
        return super().train(mode)

    def _columns(self) -> tuple[Tensor, Tensor | None]:
        """Return the first weights' columns as rows, with a row of zeros below; kept."""
        weights = [self.layers[0][0].weight]
        weights += [self.quantize_fc.weight] if self.quantized else []
        # Most writes in place count the version up. Fused optimizers do not: see `train`.
        state = [(weight.data_ptr(), weight._version) for weight in weights]
        if self.training or self._kept_columns is None or self._kept_columns[0] != state:
            rows = [F.pad(weight.detach().T, (0, 0, 0, 1)).contiguous() for weight in weights]
            self._kept_columns = state, (*rows, None)[:2]
        return self._kept_columns[1]

    def predict(self, subnets: np.ndarray | Sequence[Subnet]) -> np.ndarray:
        """Return predicted accuracies in 0..1, float64 (N,), of subnets or genes (N, n_genes).

        A subnet without bits reads as one with the widest bits. Raises ApqError when the genes
        are not of the predictor's space.
        """
        genes = as_genes(self.space, subnets)
        accuracy = np.empty(len(genes))
        with torch.inference_mode():
            for part, positions in positions_by_part(self.converter, genes, self.device):
                accuracy[part] = self.forward_positions(*positions).cpu().numpy()
        return accuracy

    def gradients(self, subnets: np.ndarray | Sequence[Subnet]) -> np.ndarray:
        """Return how the accuracy changes with each feature, float32 (N, n_features).

        To first order, setting a gene to another choice changes the accuracy by the difference
        of the two choices' gradients. Raises ApqError as `predict`.
        """
        return gradients_of(self, as_genes(self.space, subnets))

    # ---- files ----

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        space: SearchSpace = PAPER_SPACE,
        *,
        name: str = QUANTIZED_NAME,
        hidden: int = HIDDEN,
    ) -> AccuracyPredictor:
        """Load a predictor from a file, or from the file `name` of a folder.

        Those under `models` are looked for among the shipped ones, too, as commands do. Whether it
        is quantized shows in its weights. Raises ApqError when the file is missing or damaged, or
        when a weight is missing, foreign, of another shape or not finite.
        """
        path = find_weights(find_in(path, name), name)
        content = checkpoint.load(path)
        with files.naming(path):
            predictor = cls.from_weights(checkpoint.state_dict(content), space, hidden=hidden)
        predictor.card, predictor.sha256 = read_card(path), files.sha256(path)
        return predictor.to(device).eval()

    @classmethod
    def from_weights(
        cls, weights: dict[str, Tensor], space: SearchSpace = PAPER_SPACE, *, hidden: int = HIDDEN
    ) -> AccuracyPredictor:
        """Build a predictor from its state dict; raises ApqError at the first wrong weight."""
        quantized = any(key.startswith("quantize_fc.") for key in weights)
        predictor = cls(space, hidden, quantized)
        _check(weights, predictor.state_dict())
        predictor.load_state_dict(weights)
        return predictor

    def save(self, path: str | Path) -> None:
        """Write the weights atomically and drop an older card; raises ApqError."""
        checkpoint.save(path, {key: value.cpu() for key, value in self.state_dict().items()})
        card_path(path).unlink(missing_ok=True)  # it would describe other weights


def positions_by_part(
    converter: Converter, genes: np.ndarray, device: torch.device
) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
    """Yield where some of the genes (N, n_genes) are, and their `Converter.positions` as tensors.

    A few at a time: the hidden layers of all would take much memory.
    """
    for start in range(0, len(genes), PREDICT_BATCH):
        part = slice(start, start + PREDICT_BATCH)
        arch, bits = converter.positions(genes[part])
        yield part, (torch.from_numpy(arch).to(device), torch.from_numpy(bits).to(device))


def gradients_of(predictor: nn.Module, genes: np.ndarray) -> np.ndarray:
    """Return a predictor's gradient with respect to the features, float32 (N, n_features)."""
    device = next(predictor.parameters()).device
    features = torch.from_numpy(predictor.converter.features(genes)).to(device).requires_grad_()
    (gradients,) = torch.autograd.grad(predictor(features).sum(), features)
    return gradients.cpu().numpy()


def find_weights(path: Path, name: str) -> Path:
    """Return a file, or the file `name` of a folder; raises ApqError when there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ApqError(f"no accuracy predictor at {path}: there is no such file or folder")
    if (path / name).is_file():
        return path / name
    known = ", ".join(sorted(file.name for file in path.glob("*.pt"))) or "none"
    raise ApqError(f"no accuracy predictor {name} in {path}; its .pt files: {known}")


def _check(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise ApqError at the first weight that a predictor of this space cannot take."""
    for key, tensor in expected.items():
        value = weights.get(key)
        if value is None:
            raise ApqError(f"no accuracy predictor of this search space: '{key}' is missing")
        if value.shape != tensor.shape:
            raise ApqError(
                f"no accuracy predictor of this search space: "
                f"'{key}' is {tuple(value.shape)}; expected {tuple(tensor.shape)}"
            )
        if not torch.isfinite(value).all():
            raise ApqError(f"'{key}' holds values that are not finite; train the predictor again")
    foreign = sorted(weights.keys() - expected.keys())
    if foreign:
        raise ApqError(
            f"no accuracy predictor of this search space: it has an unknown '{foreign[0]}'"
        )
