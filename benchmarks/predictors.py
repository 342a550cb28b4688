"""The accuracy predictors that searches are measured on."""

from pathlib import Path

import torch

from utils.accuracy_predictor import AccuracyPredictor


def rugged(seed: int = 0) -> AccuracyPredictor:
    """Return a predictor with random weights: accuracies spread over several units, many optima.

    Weights are normal with variance 2 / inputs (so that the layers neither fade nor explode),
    biases normal with standard deviation 0.1.
    """
    generator = torch.Generator().manual_seed(seed)
    predictor = AccuracyPredictor().eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = (2 / parameter.shape[1]) ** 0.5 if parameter.ndim == 2 else 0.1
            parameter.copy_(scale * noise)
    return predictor


def by_name(name: str) -> AccuracyPredictor:
    """Return `rugged`, or the one of a file or folder."""
    return rugged() if name == "rugged" else AccuracyPredictor.load(Path(name))
