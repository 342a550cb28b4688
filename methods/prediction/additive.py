"""What pairs say of each choice: a model in which every choice adds its part to the accuracy.

A ridge regression whose prior knows the space: choices next to each other are alike, and those of
one block share the worth of its being there. On a supernet that was trained with all subnets this
ranks better than a network fitted to the pairs themselves (`benchmarks/predictor_fit.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.converter import Converter

# Variances of what a choice is worth: by itself, by the way up to it from the first choice, and by
# its block's being there. Their scale is found for each set of pairs.
ALONE, STEPS, PRESENCE = 0.3, 1.0, 1.0
PENALTIES = 2.0 ** np.arange(-6, 14)


@dataclass(frozen=True)
class AdditiveModel:
    """One weight for each feature, and what is left without any."""

    weights: np.ndarray
    """(n_features,)."""
    bias: float
    left_out_rmse: float
    """Root mean square error about each of the pairs when it is left out."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return values (N,) of features (N, n_features)."""
        return features @ self.weights + self.bias


def fit_additive(features: np.ndarray, values: np.ndarray, converter: Converter) -> AdditiveModel:
    """Fit values (N,) of features (N, n_features), two or more, those of a `Converter`.

    Of `PENALTIES` that one is taken whose squared error is least when each value is predicted from
    all others, which one decomposition tells for all of them (Allen's PRESS).
    """
    factor = prior_factor(converter)
    centre, mean, n = features.mean(axis=0), values.mean(), len(values)
    rest = values - mean
    left, sizes, right = np.linalg.svd((features - centre) @ factor, full_matrices=False)
    along, squares = left.T @ rest, sizes**2

    def left_out_error(penalty: float) -> float:
        kept = squares / (squares + penalty)
        leverage = (left**2) @ kept + 1 / n
        return float(np.mean(((rest - left @ (kept * along)) / (1 - leverage)) ** 2))

    errors = [left_out_error(penalty) for penalty in PENALTIES]
    penalty = PENALTIES[int(np.argmin(errors))]
    weights = factor @ (right.T @ (sizes / (squares + penalty) * along))
    return AdditiveModel(weights, float(mean - centre @ weights), min(errors) ** 0.5)


def prior_factor(converter: Converter) -> np.ndarray:
    """Return L (n_features, n_features) of the prior covariance L L^T of the weights.

    A block of its own for each group of choices, up to the scale that the penalty gives.
    """
    factor = np.zeros((converter.n_features, converter.n_features))
    ends = np.append(converter.starts[1:], converter.n_features)
    for start, end in zip(converter.starts, ends, strict=True):
        n = end - start
        steps = np.tril(np.ones((n, n)), -1)[:, : n - 1]  # (choice, step taken to reach it)
        covariance = (
            ALONE * np.eye(n) + STEPS * steps @ steps.T / max(1, n - 1) + PRESENCE * np.ones((n, n))
        )
        factor[start:end, start:end] = np.linalg.cholesky(covariance)
    return factor
