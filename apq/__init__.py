"""APQ: search architecture, channel widths and bit widths together, under a budget."""

from apq.errors import ApqError
from apq.experiment import Experiment
from apq.space import SearchSpace
from apq.subnet import Subnet

__version__ = "0.1.0"
__all__ = ["ApqError", "Experiment", "SearchSpace", "Subnet", "__version__"]
