"""From another framework's weights to a module of ours, once they are in torch's layout.

Whoever converts brings each direction of each layer into a `Direction`, with the checks and the
conversion of arrays that are here; `assemble` sees to it that they fit each other and makes the
module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fusedrnn import modules
from fusedrnn._engine.ops import DTYPES
from fusedrnn.cells import Cell
from fusedrnn.convert.kinds import Kind
from fusedrnn.modules import (
    GRU,
    LSTM,
    RNN,
    GRUCell,
    LSTMCell,
    Recurrent,
    RecurrentCell,
    RNNCell,
)

Layers: TypeAlias = LSTM | GRU | RNN | Recurrent
Cells: TypeAlias = LSTMCell | GRUCell | RNNCell | RecurrentCell


@dataclass(frozen=True)
class Direction:
    """One direction of one layer in torch's layout.

    Attributes:
        name: what messages call it.
        kind: its cell.
        weights: torch's parameters, a name for each of the layer's roles (`cells.PARAMETER`).
    """

    name: str
    kind: Kind
    weights: dict[str, Tensor]

    def __post_init__(self) -> None:
        dtypes = {str(weight.dtype) for weight in self.weights.values()}
        if len(dtypes) > 1:
            raise ValueError(
                f"{self.name}: expected weights of one dtype, got {', '.join(sorted(dtypes))}"
            )

    @property
    def input_size(self) -> int:
        return self.weights["weight_ih"].size(1)

    @property
    def width(self) -> int:
        """How many features the output has: R."""
        return self.weights["weight_hh"].size(1)

    @property
    def hidden_size(self) -> int:
        return self.weights["weight_hh"].size(0) // len(self.cell.hidden)

    @property
    def cell(self) -> Cell:
        return self.kind.cell(projected="weight_hr" in self.weights)

    def described(self) -> str:
        """All that the directions of one module have in common."""
        return (
            f"{self.kind}, hidden_size={self.hidden_size}, width={self.width}, "
            f"{', '.join(self.weights)}, {self.weights['weight_ih'].dtype}"
        )


def assemble(layers: Sequence[Sequence[Direction]], batch_first: bool) -> Layers:
    """The module with these layers, each of one or two directions, which have to fit each other."""
    first = layers[0][0]
    features = first.input_size
    for layer in layers:
        if len(layer) != len(layers[0]):
            raise ValueError(
                f"{layer[0].name}: expected {len(layers[0])} direction(s), as {first.name} has, "
                f"got {len(layer)}; convert each layer by itself"
            )
        for part in layer:
            if part.cell is not first.cell or part.described() != first.described():
                raise ValueError(
                    f"{part.name}: expected the same as {first.name}, {first.described()}; got "
                    f"{part.described()}; convert each layer by itself"
                )
            if part.input_size != features:
                raise ValueError(
                    f"{part.name}: expected an input of {features} features, got {part.input_size}"
                )
        features = len(layer) * first.width
    module = _empty(
        first, "", num_layers=len(layers), batch_first=batch_first,
        bidirectional=len(layers[0]) == 2,
        **({"proj_size": first.width} if "weight_hr" in first.weights else {}),
    )  # fmt: skip
    module.load_state_dict(
        {
            f"{name}_l{k}{'_reverse' if d else ''}": weight
            for k, layer in enumerate(layers)
            for d, part in enumerate(layer)
            for name, weight in part.weights.items()
        }
    )
    return module


def assemble_cell(part: Direction) -> Cells:
    """The cell with these weights."""
    module = _empty(part, "Cell")
    module.load_state_dict(part.weights)
    return module


def _empty(part: Direction, suffix: str, **options: Any) -> Any:
    """A module, of layers or a "Cell", for weights like `part`'s; its own have no values yet."""
    cell = part.cell
    written = () if cell.program is None else (part.kind.written,)
    module = getattr(modules, cell.module + suffix)(
        *written, part.input_size, part.hidden_size, bias="bias_ih" in part.weights, device="meta",
        dtype=part.weights["weight_ih"].dtype, **options, **cell.options,
    )  # fmt: skip
    return module.to_empty(device="cpu")


def reordered(weight: Tensor, order: Sequence[int], gates: int | None = None) -> Tensor:
    """The gates of [G*H, ...] in another order, which may leave some out if `gates` says G."""
    parts = weight.chunk(gates or len(order))
    return torch.cat([parts[g] for g in order])


def as_tensor(name: str, value: Any) -> Tensor:
    """An array or tensor of anybody's as a tensor on the CPU, in its dtype."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
    else:
        import numpy  # whoever has arrays has it; torch does without

        array = numpy.asarray(value).copy()
        if array.dtype.name == "bfloat16":  # not NumPy's own, and torch does not take it
            tensor = torch.from_numpy(array.view("int16")).view(torch.bfloat16)
        elif array.dtype.kind != "f":
            raise ValueError(f"{name}: expected an array of floating point, got {array.dtype}")
        else:
            tensor = torch.from_numpy(array)
    if tensor.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"{name}: expected one of {known}, got {tensor.dtype}")
    return tensor


def check_shape(name: str, weight: Tensor, shape: tuple[int, ...], shown: tuple[str, ...]) -> None:
    """Checks the shape of a weight, `shape`, which messages also have in letters, `shown`."""
    if weight.shape != shape or 0 in shape:
        raise ValueError(
            f"{name}: expected shape ({', '.join(shown)}), here {shape}, got {tuple(weight.shape)}"
        )
