"""From predictors and a budget to the best subnet found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from apq.subnet import Subnet
from methods.evolution import EvolutionSettings, GenerationRecord, SearchResult, search
from utils.accuracy_predictor import AccuracyPredictor
from utils.latency_predictor import LatencyPredictor


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best subnet within a budget, and how it was found."""

    subnet: Subnet
    accuracy: float
    """Predicted, in 0..1."""
    cost: float
    constraint: float
    settings: EvolutionSettings
    result: SearchResult


def find_subnet(
    accuracy: AccuracyPredictor,
    cost: LatencyPredictor,
    constraint: float,
    settings: EvolutionSettings,
    on_generation: Callable[[GenerationRecord], None] | None = None,
) -> Found:
    """Search the most accurate subnet whose cost is at most `constraint`, in the cost's unit.

    Raises ApqError at once when no subnet is that cheap; `check_constraint` tells more.
    """
    space = cost.space
    _, cheapest = cost.minimum()
    result = search(
        space,
        accuracy.predict,
        cost.predict,
        constraint,
        settings,
        cheapest=space.encode([cheapest]),
        on_generation=on_generation,
    )
    return Found(
        subnet=space.decode(result.genes)[0],
        accuracy=result.accuracy,
        cost=result.cost,
        constraint=constraint,
        settings=settings,
        result=result,
    )
