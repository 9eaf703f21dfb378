"""A written cell as its function says: run step by step in plain PyTorch, for the tests.

Nothing of the library is used but the function itself, so that nothing which is wrong in tracing or
in the kernels can be wrong here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fusedrnn.cells.written import WrittenCell


@dataclass
class Gate:
    """The weights of one gate: w_x [H, I], w_h [H, H], b_x [H], b_h [H]. What it lacks is None."""

    w_x: Tensor | None = None
    w_h: Tensor | None = None
    b_x: Tensor | float = 0.0
    b_h: Tensor | float = 0.0


@dataclass
class Weights:
    """The weights of a cell by the names of its gates, and those of each unit by their own."""

    gates: dict[str, Gate]
    units: dict[str, Tensor] = field(default_factory=dict)


class Product(Tensor):
    """U h + b, or of another operand if it is called. Results of computing with it are plain."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    of: Callable[[Tensor], Tensor]

    def __call__(self, operand: Tensor) -> Tensor:
        return self.of(operand)


def run_eagerly(
    cell: WrittenCell,
    weights: Weights,
    inputs: Tensor,
    states: Sequence[Tensor],
    step_inputs: dict[str, Tensor] | None = None,
) -> list[tuple[Tensor, ...]]:
    """The states after every step; inputs [T, B, I], states [B, H] each, step inputs [T, B, H]."""
    found = []
    for t, x_t in enumerate(inputs):
        e = {name: values[t] for name, values in (step_inputs or {}).items()}
        found.append(step_eagerly(cell, weights, x_t, states, e))
        states = found[-1]
    return found


def step_eagerly(
    cell: WrittenCell,
    weights: Weights,
    x_t: Tensor,
    states: Sequence[Tensor],
    step_inputs: dict[str, Tensor],
) -> tuple[Tensor, ...]:
    """The states after one step."""
    h = states[0]
    x, u = SimpleNamespace(), SimpleNamespace()
    for name in cell.gates:
        gate = weights.gates[name]
        if gate.w_x is not None:
            setattr(x, name, x_t @ gate.w_x.T + gate.b_x)
        if gate.w_h is not None:
            setattr(u, name, product(gate, h))
    unit: tuple[Any, ...] = (SimpleNamespace(**weights.units),) if cell.weights else ()
    of_step: tuple[Any, ...] = (SimpleNamespace(**step_inputs),) if cell.step_inputs else ()
    after = cell(x, u, *unit, *of_step, *states)
    return after if isinstance(after, tuple) else (after,)


def product(gate: Gate, h: Tensor) -> Product:
    w_h, b_h = gate.w_h, gate.b_h
    assert w_h is not None

    def of(operand: Tensor) -> Tensor:
        return operand @ w_h.T + b_h

    found = of(h).as_subclass(Product)
    found.of = of
    return found
