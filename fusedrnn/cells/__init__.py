"""What cells are: those that the kernels are compiled with, those that users write, and a zoo.

    fusedrnn.cells.mgu           a cell of the zoo, for `fusedrnn.Recurrent`; `ZOO` has all of them
    fusedrnn.cells.cell_named    what a compiled cell has, as data; `CELLS` has all of them

`fusedrnn.cell` makes a cell of a function:

    tracing       the function, called once, becomes a `Definition` in PyTorch's functions
    derivative    its gradients, and `keeping` what backward needs of forward
    stages        both as lines for the kernels, which a `Program` writes down as text
    facts         what the rest of the package asks of a cell, compiled or written
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fusedrnn.cells.definition import CellError
from fusedrnn.cells.facts import (
    CELLS,
    PARAMETER,
    RESERVE_UNITS,
    W_HH,
    W_IH,
    Cell,
    by_option,
    cell_named,
    cell_of_program,
    cell_of_spec,
    cell_of_written,
)
from fusedrnn.cells.written import WrittenCell

if TYPE_CHECKING:
    from fusedrnn.cells.zoo import *  # noqa: F403

__all__ = [
    "CELLS",
    "PARAMETER",
    "RESERVE_UNITS",
    "W_HH",
    "W_IH",
    "Cell",
    "CellError",
    "WrittenCell",
    "by_option",
    "cell_named",
    "cell_of_program",
    "cell_of_spec",
    "cell_of_written",
]


def __getattr__(name: str) -> Any:
    """The zoo's: it takes a tenth of a second to make, so it is made when it is asked for."""
    if not name.startswith("_") and name in (zoo := _zoo()).__all__:
        return getattr(zoo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_zoo().__all__})


def _zoo() -> Any:
    return import_module("fusedrnn.cells.zoo")  # `from fusedrnn.cells import` would ask here first
