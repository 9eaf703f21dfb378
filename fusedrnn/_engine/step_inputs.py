"""What a written cell reads at each step beside the input, from a user's dict to the ops' tensor.

    given      a dict of tensors by name, each as the input is laid out, for all parts or each
    placed     for each layer, or for all: [T, parts, B, K, W]   W and parts of 1 are for all
    of a layer [T, D, B, K, H], as the ops take it; what is for all has a stride of 0

A part is a layer and direction. Only `placed` copies, and only where several are put side by side:
so one tensor for all units is never made as wide as these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedrnn._engine import ops
from fusedrnn._engine.autograd import is_captured
from fusedrnn._engine.checks import check_offsets, check_step_inputs
from fusedrnn._engine.layer import Network
from fusedrnn.cells import W_HH, Cell


def placed_step_inputs(
    cell: Cell,
    given: Any,
    shape: Mapping[str, int],
    sizes: Sequence[int],
    directions: int,
    input: Tensor,
) -> list[Tensor]:
    """What the user gives for each step, checked, as one [T, parts, B, K, W] for each layer or all.

    `shape` has the input's steps, "t", and sequences, "b", in the order of its dimensions; what it
    does not have is 1. The others are as in `check_step_inputs`.
    """
    axes = "".join(shape)
    by_layer = check_step_inputs(cell, given, (*shape.values(),), sizes, directions, input)
    if not is_captured():
        for tensors in by_layer:
            named = zip(cell.step_inputs, tensors, strict=True)
            ops.check_storages(**{f"step_inputs[{name!r}]": tensor for name, tensor in named})

    def whole(tensor: Tensor) -> Tensor:
        if tensor.dim() == len(axes) + 1:
            tensor = tensor.unsqueeze(0)  # the parts
        if axes == "bt":
            tensor = tensor.transpose(1, 2)
        if "t" not in axes:
            tensor = tensor.unsqueeze(1)
        if "b" not in axes:
            tensor = tensor.unsqueeze(2)
        return tensor.transpose(0, 1)

    return [_stacked([whole(tensor) for tensor in tensors]) for tensors in by_layer]


def step_inputs_of_layer(
    i: int, step_inputs: Sequence[Tensor], directions: int, hidden_size: int
) -> Tensor:
    """Those of layer `i` as ops take them, [T, D, B, K, H]."""
    own = step_inputs[i if len(step_inputs) > 1 else 0]
    if own.size(1) > directions:
        own = own.narrow(1, i * directions, directions)
    return own.expand(-1, directions, -1, -1, hidden_size)


def step_inputs_as_given(cell: Cell, of_layers: Sequence[Tensor]) -> dict[str, list[Tensor]] | None:
    """The step inputs [T, D, B, K, H] of each layer as a user may give them; None if none."""
    if not cell.step_inputs:
        return None
    return {
        name: [own[:, :, :, k].transpose(0, 1) for own in of_layers]
        for k, name in enumerate(cell.step_inputs)
    }


def sizes_of(network: Network, weights: Sequence[Tensor]) -> list[int]:
    """The units of each layer."""
    layer, count = network.layer, len(network.layer.cell.hidden)
    of_layers = weights[W_HH :: len(layer.roles) * layer.directions]
    return [w_hh.size(0) // count for w_hh in of_layers]


def sequences_of(step_inputs: Any, batch_first: bool) -> int:
    """How many sequences the first of some step inputs claims to have; 0 if it is none."""
    values = [*step_inputs.values()] if isinstance(step_inputs, Mapping) else []
    first = values[0] if values else None
    tensor = first[0] if isinstance(first, (list, tuple)) and first else first
    if not isinstance(tensor, Tensor) or tensor.dim() < 3:
        return 0
    return tensor.size(-3 if batch_first else -2)


def values_of_jagged(step_inputs: Mapping[str, Any], offsets: Tensor) -> dict[str, Any]:
    """Step inputs, of which some are nested as the input is, with all rows one after the other."""
    found = {}
    for name, given in step_inputs.items():
        found[name] = given
        if isinstance(given, Tensor) and given.is_nested:
            check_offsets(f"step_inputs[{name!r}]", given, offsets)
            found[name] = given.values()
    return found


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """[T, parts, B, W] of each as one [T, parts, B, K, W]; parts and W of 1 are for all."""
    if len(tensors) == 1:
        return tensors[0].unsqueeze(3)
    parts, width = (max(tensor.size(dim) for tensor in tensors) for dim in (1, 3))
    return torch.stack([tensor.expand(-1, parts, -1, width) for tensor in tensors], dim=3)
