"""Evolutionary search: the paper's way to the most accurate subnet within limits."""

from methods.evolution.evolve import search
from methods.evolution.settings import EvolutionSettings

__all__ = ["EvolutionSettings", "search"]
