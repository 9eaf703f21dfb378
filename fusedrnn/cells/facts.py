"""What every cell is, as data: of a compiled one the table of csrc/cells/list.h, which the kernels
are compiled from, and of one that a user wrote what its program says.

No other file knows a cell by its name to tell what it has. Code that needs to know whether there is
a second state, a projection or a bias apart asks the `Cell`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusedrnn import _C
from fusedrnn.cells.definition import CellError
from fusedrnn.cells.program import Program
from fusedrnn.cells.written import WrittenCell

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CELLS", "Cell", "by_option", "cell_named", "cell_of_program", "cell_of_spec"]

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
        name: "lstm", "gru", ...
        module: the class of the package whose layers these are.
        options: the arguments that make the class this cell.
        gates: their names, in the order of the rows of the weights.
        inputs: the gates that W_ih has rows for; those of a compiled cell are all.
        hidden: the gates that W_hh has rows for; those of a compiled cell are all.
        products: what the recurrent product supplies.
        saved: what the reserve has of each unit and row.
        grads: gradients of each unit and row.
        states: what goes from step to step, h first.
        unit_weights: parameters with one value per unit.
        step_inputs: what is given for each step beside the input.
        stages: how many products with W_hh a step has, one after the other.
        has_carry: whether h reaches the next one other than through a product.
        projects: whether h may be projected.
        has_int8: whether its weights may be int8.
        program: what it computes, if it is not a compiled one.
        spec: what the ops' schemas have for the cell: its name, or the text of its program.
    """

    name: str
    module: str
    options: dict[str, Any] = field(repr=False)
    gates: tuple[str, ...]
    inputs: tuple[str, ...]
    hidden: tuple[str, ...]
    products: tuple[str, ...]
    saved: tuple[str, ...]
    grads: tuple[str, ...]
    states: tuple[str, ...]
    unit_weights: tuple[str, ...]
    stages: int
    has_carry: bool
    projects: bool
    has_int8: bool
    step_inputs: tuple[str, ...] = ()
    program: Program | None = field(default=None, repr=False)
    spec: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        spec = self.name if self.program is None else self.program.text
        object.__setattr__(self, "spec", spec)

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return cell_of_spec, (self.spec,)

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
        hidden_size = w_hh.size(0) // len(self.hidden)
        return (w_hh.size(1), *(hidden_size for _ in self.states[1:]))

    def shapes(
        self, input_size: int, hidden_size: int, proj_size: int = 0, *, biases: bool = True
    ) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights of a direction, by role and in their order."""
        inputs, hidden = len(self.inputs) * hidden_size, len(self.hidden) * hidden_size
        width = proj_size or hidden_size
        shapes = {
            "w_ih": (inputs, input_size), "w_hh": (hidden, width), "b_ih": (inputs,),
            "b_hh": (hidden,),
            "w_hr": (proj_size, hidden_size), "w_unit": (len(self.unit_weights), hidden_size),
        }  # fmt: skip
        return {role: shapes[role] for role in self.roles(biases, proj_size > 0)}


def _options(words: tuple[str, ...]) -> dict[str, Any]:
    values = {"True": True, "False": False}
    pairs = (word.split("=") for word in words)
    return {name: values.get(value, value) for name, value in pairs}


def _read(facts: dict[str, Any]) -> Cell:
    gates = facts["gates"]
    return Cell(**(facts | {"options": _options(facts["options"])}), inputs=gates, hidden=gates)


CELLS: tuple[Cell, ...] = tuple(map(_read, _C.cells()))
"""Every compiled cell, in the order of their numbers."""

_BY_NAME = {cell.name: cell for cell in CELLS}
_BY_SPEC = dict(_BY_NAME)


def cell_named(name: str) -> Cell:
    """The cell of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in _BY_NAME:
        raise ValueError(f"cell: expected one of {', '.join(_BY_NAME)}, got {name!r}")
    return _BY_NAME[name]


def cell_of_spec(spec: str) -> Cell:
    """The cell that an op's argument stands for: a name, or a program.

    Raises:
        RuntimeError: it is neither.
    """
    cell = _BY_SPEC.get(spec)
    if cell is None:
        if "\n" not in spec:
            names = ", ".join(_BY_NAME)
            raise RuntimeError(f"cell: expected {names}, or the program of a cell, got {spec!r}")
        try:
            cell = cell_of_program(Program.parse(spec))
        except (ValueError, TypeError) as error:
            raise RuntimeError(f"cell: {error}") from None
    return cell


def cell_of_program(program: Program) -> Cell:
    """The cell that a program computes."""
    cell = _BY_SPEC.get(program.text)
    if cell is not None:
        return cell
    signature, stages = program.signature, [stage.gates for stage in program.stages]

    def of_gates(*kinds: str) -> tuple[str, ...]:
        used = {gate for stage in stages for kind in kinds for gate in getattr(stage, kind)}
        return tuple(gate for gate in signature.gates if gate in used)

    def slot(name: str) -> str:
        """A product that stands apart is told from its gate by a prime, as the GRU's n' is."""
        return name[2:] + "'" * name.startswith("u.")

    inputs = [name for stage in stages for name in stage.inputs]
    last = program.stages[-1]
    cell = Cell(
        name=signature.name, module="Recurrent", options={}, gates=signature.gates,
        inputs=of_gates("joint", "late"), hidden=of_gates("joint", "apart"),
        products=tuple(slot(name) for stage in stages for name in stage.products),
        saved=program.saved, grads=(*map(slot, inputs), *signature.unit_weights),
        states=signature.states, unit_weights=signature.unit_weights, stages=len(stages),
        has_carry=program.has_carry,
        projects=len(stages) == 1 and any(line.destination == "r" for line in last.backward),
        has_int8=False, step_inputs=signature.step_inputs, program=program,
    )  # fmt: skip
    return _BY_SPEC.setdefault(program.text, cell)


def cell_of_written(written: WrittenCell | str, projected: bool = False) -> Cell:
    """The cell of what a module takes as one: a written cell, or the text of a program.

    Raises:
        TypeError: it is neither.
        ValueError: its output is to be projected, and cannot be.
    """
    if isinstance(written, str) and "\n" in written:
        try:
            written = WrittenCell(Program.parse(written).definition)
        except (ValueError, TypeError) as error:
            raise TypeError(f"cell: expected a cell that fusedrnn.cell made, {error}") from None
    if not isinstance(written, WrittenCell):
        raise TypeError(
            "cell: expected a cell that fusedrnn.cell made of a function, got "
            f"{repr(written) if isinstance(written, str) else type(written).__name__}"
        )
    try:
        return cell_of_program(written.compiled(projected=projected))
    except CellError as error:
        raise ValueError(f"proj_size: expected 0, since {error}") from None


def by_option(module: str, option: str) -> dict[Any, Cell]:
    """The cells of a class, by the value of the argument that tells them apart."""
    return {cell.options[option]: cell for cell in CELLS if cell.module == module}
