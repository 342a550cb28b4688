"""Whether this process is one of several that a launcher has started, by its environment."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether `torchrun` or the like has started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def tells_for_all() -> bool:
    """Whether this process is alone, or the one of several that tells what all of them meet."""
    return not launched() or os.environ["RANK"] == "0"
