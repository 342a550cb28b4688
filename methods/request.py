"""A search that was asked for: everything that decides what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lut.costs import budget
from methods.problem import SearchProblem
from methods.settings import SearchSettings

if TYPE_CHECKING:
    from utils.accuracy_predictor import AccuracyPredictor
    from utils.ensemble import PredictorEnsemble
    from utils.latency_predictor import LatencyPredictor

    Predictor = AccuracyPredictor | PredictorEnsemble


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A search that was asked for, and the name of the experiment that it makes."""

    name: str
    mode: str
    problem: SearchProblem
    settings: SearchSettings
    accuracy: Predictor
    costs: Mapping[str, LatencyPredictor]
    """The model of every kind of cost, those that nothing limits included."""

    @property
    def figure_of_merit(self) -> str:
        """What the search ranks subnets by."""
        is_bound = getattr(self.accuracy, "risk", 0) > 0
        return "lower bound of predicted accuracy" if is_bound else "predicted accuracy"

    @property
    def limits_text(self) -> str:
        """The limits, each with its unit."""
        return ", ".join(budget(limit.maximum, limit.cost.unit) for limit in self.problem.limits)

    def facts(self) -> dict[str, Any]:
        """Return all that decides what the search finds, as plain values for JSON."""
        cost = self.costs["latency"]
        return {
            "mode": self.mode,
            "limits": {lim.cost.type: lim.maximum for lim in self.problem.limits},
            "image_size": cost.image_size,
            "accounting": cost.accounting,
            "n_classes": cost.n_classes,
            "domain_sha256": self.problem.domain.sha256,
            "predictor_sha256": self.accuracy.sha256,
            "risk": getattr(self.accuracy, "risk", None),
            "table_sha256": cost.table.sha256(),
            "settings": asdict(self.settings),
        }
