"""What cells are: those that the kernels are compiled with, and those that users write."""

from __future__ import annotations

from fusedrnn.cells.facts import (
    CELLS,
    PARAMETER,
    RESERVE_UNITS,
    W_HH,
    W_IH,
    Cell,
    by_option,
    cell_named,
)

__all__ = ["CELLS", "PARAMETER", "RESERVE_UNITS", "W_HH", "W_IH", "Cell", "by_option", "cell_named"]
