"""Evolutionary search: the most accurate subnet within a cost constraint."""

from methods.evolution.constraint import check_constraint
from methods.evolution.evolve import GenerationRecord, SearchResult, search
from methods.evolution.settings import EvolutionSettings

__all__ = ["EvolutionSettings", "GenerationRecord", "SearchResult", "check_constraint", "search"]
