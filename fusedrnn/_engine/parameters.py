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
    as in Glorot and Bengio, 2010; all others are zero.
    """
    gates = len(cell.gates)
    bound = 1 / math.sqrt(weights["w_hh"].size(0) // gates)
    for role, weight in weights.items():
        if kind == "uniform":
            init.uniform_(weight, -bound, bound)
        elif role == "w_ih":
            for gate in weight.chunk(gates):
                init.xavier_uniform_(gate)
        elif role == "w_hh":
            for gate in weight.chunk(gates):
                _make_orthogonal(gate)
        elif role == "w_hr":
            _make_orthogonal(weight)
        else:
            init.zeros_(weight)


@torch.no_grad()
def set_forget_bias(cell: Cell, weights: dict[str, Tensor], value: float) -> None:
    """Makes `value` the bias of the forget gate, whose two biases are added."""
    f = cell.gates.index("f")
    weights["b_ih"].chunk(len(cell.gates))[f].fill_(value)
    weights["b_hh"].chunk(len(cell.gates))[f].zero_()


def _make_orthogonal(weight: Tensor) -> None:
    # Through a dtype that the decomposition is there for.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight.copy_(init.orthogonal_(torch.empty_like(weight, dtype=dtype)))
