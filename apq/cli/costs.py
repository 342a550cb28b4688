"""Tables of layer costs that the user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apq.cli.parser import warn

if TYPE_CHECKING:
    from lut.table import Table


def load_table(path: Path) -> Table:
    """Read a table, and say so when nothing published checks its costs; raises ApqError."""
    from lut import table as lut_table

    table = lut_table.load(path)
    if table.extrapolated:
        warn(
            f"{path} is computed for another accelerator than the authors' table is of: its costs "
            f"follow the same formulas, which no published figure checks there"
        )
    return table
