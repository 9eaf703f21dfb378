"""What every cell is, as data: the table of csrc/cells/list.h, which the kernels are compiled from.

No other file knows a cell by its name to tell what it has: whoever needs to know whether there is a
second state, a projection or a bias apart asks the `Cell`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusedrnn import _C

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CELLS", "Cell", "by_option", "cell_named"]

W_IH, W_HH = 0, 1
"""Where these two roles are in `Cell.roles`, and so in the weights of a direction: always first."""

PARAMETER = {
    "w_ih": "weight_ih",
    "w_hh": "weight_hh",
    "b_ih": "bias_ih",
    "b_hh": "bias_hh",
    "w_hr": "weight_hr",
    "w_unit": "weight_unit",
}
"""What a module calls the weight of each role, as torch.nn does."""

RESERVE_UNITS: int = _C.RESERVE_UNITS
"""The reserve is padded to a multiple of this many units."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell. Two are the same if they are the same object.

    Attributes:
        number: of the cell, in the ops' schemas.
        name: "lstm", "gru", ...
        module: the class of the package whose layers these are.
        options: the arguments that make the class this cell.
        gates: their names, in the order of the rows of the weights.
        products: what the recurrent product supplies.
        saved: what the reserve has of each unit and row.
        grads: gradients of each unit and row.
        states: what goes from step to step, h first.
        unit_weights: parameters with one value per unit.
        stages: how many products with W_hh a step has, one after the other.
        has_carry: whether h reaches the next one other than through a product.
        projects: whether h may be projected.
        has_int8: whether its weights may be int8.
    """

    number: int
    name: str
    module: str
    options: dict[str, Any] = field(repr=False)
    gates: tuple[str, ...]
    products: tuple[str, ...]
    saved: tuple[str, ...]
    grads: tuple[str, ...]
    states: tuple[str, ...]
    unit_weights: tuple[str, ...]
    stages: int
    has_carry: bool
    projects: bool
    has_int8: bool

    def __str__(self) -> str:
        return self.name

    def roles(self, biases: bool, projected: bool) -> tuple[str, ...]:
        """What the weights of a direction are, in their order; csrc/ops/weights.h says the same."""
        roles: tuple[str, ...] = ("w_ih", "w_hh")
        if biases:
            roles += ("b_ih", "b_hh")
        if projected:
            roles += ("w_hr",)
        if self.unit_weights:
            roles += ("w_unit",)
        return roles

    def widths(self, w_hh: Tensor) -> tuple[int, ...]:
        """The features of each state, of a layer that has this W_hh: R of h, H of all others."""
        hidden_size = w_hh.size(0) // len(self.gates)
        return (w_hh.size(1), *(hidden_size for _ in self.states[1:]))

    def shapes(
        self, input_size: int, hidden_size: int, proj_size: int = 0, *, biases: bool = True
    ) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights of a direction, by role and in their order."""
        rows, width = len(self.gates) * hidden_size, proj_size or hidden_size
        shapes = {
            "w_ih": (rows, input_size), "w_hh": (rows, width), "b_ih": (rows,), "b_hh": (rows,),
            "w_hr": (proj_size, hidden_size), "w_unit": (len(self.unit_weights), hidden_size),
        }  # fmt: skip
        return {role: shapes[role] for role in self.roles(biases, proj_size > 0)}


def _options(words: tuple[str, ...]) -> dict[str, Any]:
    values = {"True": True, "False": False}
    pairs = (word.split("=") for word in words)
    return {name: values.get(value, value) for name, value in pairs}


def _read(number: int, facts: dict[str, Any]) -> Cell:
    return Cell(number=number, **(facts | {"options": _options(facts["options"])}))


CELLS: tuple[Cell, ...] = tuple(_read(i, facts) for i, facts in enumerate(_C.cells()))
"""Every cell, by its number."""

_BY_NAME = {cell.name: cell for cell in CELLS}


def cell_named(name: str) -> Cell:
    """The cell of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in _BY_NAME:
        raise ValueError(f"cell: expected one of {', '.join(_BY_NAME)}, got {name!r}")
    return _BY_NAME[name]


def by_option(module: str, option: str) -> dict[Any, Cell]:
    """The cells of a class, by the value of the argument that tells them apart."""
    return {cell.options[option]: cell for cell in CELLS if cell.module == module}
