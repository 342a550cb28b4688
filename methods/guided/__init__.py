"""Guided search: along the predictor's gradients, with exact costs; the strongest mode."""

from methods.guided.search import search
from methods.guided.settings import GuidedSettings

__all__ = ["GuidedSettings", "search"]
