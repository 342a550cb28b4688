"""Whether accuracy measured directly, with the supernet's weights, ranks like finetuning does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apq.errors import ApqError
from apq.space import SearchSpace
from apq.subnet import Subnet
from methods.prediction.draws import draw_subnets
from methods.prediction.fit import kendall_and_spearman
from methods.validation.bench import FinetuningBench, Outcome


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Rank correlations between direct accuracy and accuracy after finetuning."""

    val_tau: float
    val_rho: float
    test_tau: float
    test_rho: float
    n_subnets: int

    def __str__(self) -> str:
        return (
            f"direct against finetuned accuracy of {self.n_subnets} random subnets: Kendall tau "
            f"{self.val_tau:.3f}, Spearman rho {self.val_rho:.3f} (validation); "
            f"{self.test_tau:.3f}, {self.test_rho:.3f} (test)"
        )


def measure_random(
    bench: FinetuningBench, space: SearchSpace, n: int, seed: int
) -> dict[Subnet, Outcome] | None:
    """Return the outcomes of n random quantized subnets; None when Ctrl-C stopped it."""
    outcomes = {}
    for i, subnet in enumerate(itertools.islice(draw_subnets(space, seed, True), n), start=1):
        outcome = bench.measure(f"random{i}", subnet)
        if outcome is None:
            return None
        outcomes[subnet] = outcome
    return outcomes


def correlate(outcomes: Sequence[Outcome]) -> Correlation:
    """Return how direct accuracy ranks two or more subnets, against finetuned accuracy.

    Raises ApqError when all are equally accurate, or scipy is missing.
    """
    direct, val, test = np.array([(o.direct_top1, o.val_top1, o.test_top1) for o in outcomes]).T
    if not all(map(np.ptp, (direct, val, test))):
        raise ApqError(
            f"the {len(outcomes)} random subnets are all equally accurate, before or after "
            f"finetuning: there are no ranks; measure more subnets, or on more images"
        )
    val_tau, val_rho = kendall_and_spearman(direct, val)
    test_tau, test_rho = kendall_and_spearman(direct, test)
    return Correlation(
        val_tau=val_tau,
        val_rho=val_rho,
        test_tau=test_tau,
        test_rho=test_rho,
        n_subnets=len(outcomes),
    )
