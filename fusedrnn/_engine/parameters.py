"""The parameters of a network: which there are, and how they begin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, init

from fusedrnn.cells import PARAMETER, Cell


def weights_of_layers(
    cell: Cell,
    input_size: int,
    hidden_sizes: Sequence[int],
    proj_size: int,
    biases: bool,
    directions: int,
    device: Any,
    dtype: torch.dtype | None,
) -> list[dict[str, Parameter]]:
    """The weights of each layer and direction, by the names that torch.nn gives them; of no value.

    `hidden_sizes` has one for each layer.
    """
    found, features = [], input_size
    for layer, hidden_size in enumerate(hidden_sizes):
        shapes = cell.shapes(features, hidden_size, proj_size, biases=biases)
        for suffix in ("", "_reverse")[:directions]:
            found.append(
                {
                    f"{PARAMETER[role]}_l{layer}{suffix}": Parameter(
                        torch.empty(shape, device=device, dtype=dtype)
                    )
                    for role, shape in shapes.items()
                }
            )
        features = (proj_size or hidden_size) * directions
    return found


@torch.no_grad()
def initialise(cell: Cell, weights: dict[str, Tensor], kind: str) -> None:
    """Gives the weights of a direction, by their roles, their first values.

    "uniform" is torch.nn's way, from -1/sqrt(H) to 1/sqrt(H). "orthogonal" is that of Keras: each
    gate's part of W_hh is orthogonal (Saxe et al., 2014), as W_hr is; its part of W_ih is uniform
    as in Glorot and Bengio, 2010; all others are zero. Unit weights of a cell that a user wrote
    begin as it says, whatever the kind.
    """
    inputs, hidden = len(cell.inputs), len(cell.hidden)
    bound = 1 / math.sqrt(weights["w_hh"].size(0) // hidden)
    for role, weight in weights.items():
        if role == "w_unit" and cell.program is not None:
            for row, rule in zip(weight, cell.program.signature.unit_init, strict=True):
                _initialise_unit(row, rule, bound)
        elif kind == "uniform":
            init.uniform_(weight, -bound, bound)
        elif role == "w_ih":
            for gate in weight.chunk(inputs):
                init.xavier_uniform_(gate)
        elif role == "w_hh":
            for gate in weight.chunk(hidden):
                _make_orthogonal(gate)
        elif role == "w_hr":
            _make_orthogonal(weight)
        else:
            init.zeros_(weight)


@torch.no_grad()
def set_forget_bias(cell: Cell, weights: dict[str, Tensor], value: float) -> None:
    """Makes `value` the bias of the forget gate, whose two biases are added."""
    for role, gates in (("b_ih", cell.inputs), ("b_hh", cell.hidden)):
        if "f" in gates:
            weights[role].chunk(len(gates))[gates.index("f")].fill_(value)
            value = 0.0


def _initialise_unit(values: Tensor, rule: str | float, bound: float) -> None:
    """Gives a unit weight [H] its first values: "zeros", "ones", "uniform" or a number."""
    if rule == "uniform":
        init.uniform_(values, -bound, bound)
    else:
        init.constant_(values, _NUMBERS.get(rule, rule))


_NUMBERS: dict[Any, Any] = {"zeros": 0.0, "ones": 1.0}


def _make_orthogonal(weight: Tensor) -> None:
    # Through a dtype that the decomposition is there for.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight.copy_(init.orthogonal_(torch.empty_like(weight, dtype=dtype)))
