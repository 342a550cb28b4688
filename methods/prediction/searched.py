"""Pairs from where searches go: there a predictor has to be right, and random subnets never are.

A search looks for the highest prediction, and so for the predictor's most hopeful error. Measuring
what it finds, and learning from that, is the cure (as in sequential model-based optimization).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from apq.subnet import Subnet
from imagenet_codebase.run_manager import distributed
from lut.costs import QUANTITIES
from methods import guided
from methods.prediction.cards import LAST_ROUND
from methods.prediction.collect import Quota
from methods.prediction.pairs import as_arrays
from methods.problem import Limit, SearchProblem
from utils.accuracy_predictor import AccuracyPredictor
from utils.latency_predictor import LatencyPredictor

# Where between the cheapest subnet and the most expensive, on a logarithmic scale, budgets are
# drawn: next to the ends there are few subnets.
SHARES = (0.02, 0.8)
EVALUATIONS = 4_000


def searched_quota(predictor: AccuracyPredictor, image_size: int, n: int, seed: int) -> Quota:
    """Return the quota of subnets that searches with a predictor find, costs at `image_size` px.

    Of several processes the first one searches.
    """

    def draw(have: int) -> Iterator[Subnet]:
        found = searched_subnets(predictor, image_size, seed, have)
        while True:
            yield distributed.from_first(lambda: next(found))

    def facts(new: Mapping[Subnet, float]) -> dict[str, Any]:
        quality = asdict(searched_quality(predictor, new))
        return {"predictor_sha256": predictor.sha256, LAST_ROUND: {"n_found": len(new), **quality}}

    return Quota(
        what="searched pairs",
        wanted=n,
        includes=lambda _: True,
        draw=draw,
        facts=facts,
        fact_names=("predictor_sha256", LAST_ROUND),
    )


def searched_subnets(
    predictor: AccuracyPredictor, image_size: int, seed: int, first: int = 0
) -> Iterator[Subnet]:
    """Yield what short guided searches find, each under a random latency or energy budget.

    Without end, from the search of number `first`; one that is found again is not yielded again.
    """
    space, seen = predictor.space, set()
    costs = [LatencyPredictor(type_, image_size, space) for type_ in QUANTITIES]
    ends = [np.log([cost.minimum()[0], cost.maximum()[0]]) for cost in costs]
    for number in itertools.count(first):
        rng = np.random.default_rng([seed, number])
        low, high = ends[number % len(costs)]
        maximum = math.exp(low + rng.uniform(*SHARES) * (high - low))
        limit = Limit(costs[number % len(costs)], maximum)
        problem = SearchProblem(space, predictor.predict, (limit,), gradient_fn=predictor.gradients)
        settings = guided.GuidedSettings(evaluations=EVALUATIONS, seed=int(rng.integers(2**31)))
        result = guided.search(problem, settings)
        if result.interrupted:
            raise KeyboardInterrupt
        # Genes without effect do not make another subnet.
        (subnet,) = space.decode(space.canonical(result.genes))
        if subnet not in seen:
            seen.add(subnet)
            yield subnet


@dataclass(frozen=True, kw_only=True)
class SearchedQuality:
    """How right a predictor is about searched subnets, in points of accuracy (%)."""

    rmse: float
    bias: float
    """Mean of predicted less measured: above zero where it overestimates."""

    def __str__(self) -> str:
        way = "above" if self.bias > 0 else "below"
        return f"off by {self.rmse:.2f} points (RMSE), on average {abs(self.bias):.2f} {way}"


def searched_quality(
    predictor: AccuracyPredictor, pairs: Mapping[Subnet, float]
) -> SearchedQuality:
    """Compare predictions with measured pairs, accuracies in %."""
    genes, accuracy = as_arrays(pairs, predictor.space)
    off = 100 * (predictor.predict(genes) - accuracy)
    return SearchedQuality(rmse=float(np.sqrt(np.mean(off**2))), bias=float(off.mean()))
