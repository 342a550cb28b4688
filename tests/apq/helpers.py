"""What tests of searches on the command line ask again and again."""

from pathlib import Path

from apq import Experiment

QUICK = "--generations=3"


def found(name: str = "found") -> Experiment:
    """The experiment that a search has made."""
    return Experiment.open(Path("exps") / name)
