"""The images that subnets disagree about, and what may be said of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_SPREAD = 0.1
"""Of an image's margins, as a standard deviation: few subnets may agree by chance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Disputed:
    """Some of a split's images, and a line that tells the accuracy on the rest by that on them."""

    positions: np.ndarray
    """Where they stand in the split, in its order, (n,)."""
    n_rest: int
    slope: float
    level: float
    """Share of the rest that subnets recognise: `level` + `slope` x their share of these."""

    @classmethod
    def choose(cls, margins: np.ndarray, right: np.ndarray, n: int) -> Disputed:
        """Choose n images by how near to zero their margins are, as measured by their spread.

        `margins` (n_subnets, n_images) is above zero where a subnet recognises an image. The line
        is fitted to other subnets' answers, `right` (n_others, n_images) bool: those that chose
        agree about the rest by choice.
        """
        spread = margins.std(axis=0) + LEAST_SPREAD
        nearest = np.argsort(np.abs(margins.mean(axis=0)) / spread, kind="stable")
        positions, rest = np.sort(nearest[:n]), nearest[n:]
        shares, others = right[:, positions].mean(axis=1), right[:, rest].mean(axis=1)
        slope = 0.0
        if np.ptp(shares):
            # Who knows more of these never knows less of the rest; few images may say otherwise.
            slope = max(0.0, float(np.cov(shares, others, bias=True)[0, 1] / shares.var()))
        level = float(others.mean() - slope * shares.mean())
        return cls(positions=positions, n_rest=len(rest), slope=slope, level=level)

    def top1(self, right: np.ndarray) -> float:
        """Return a subnet's accuracy on all images, 0..1, by which of these it recognises, (n,)."""
        share, n = float(right.mean()), len(self.positions)
        rest = min(max(self.level + self.slope * share, 0.0), 1.0)
        return (share * n + rest * self.n_rest) / (n + self.n_rest)
