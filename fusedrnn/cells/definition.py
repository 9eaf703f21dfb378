"""What a cell is: what it declares, and what its states become, in PyTorch's functions."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fusedrnn.cells.functions import FUNCTIONS
from fusedrnn.cells.graph import Node, Operand, reach

__all__ = ["CellError", "Definition", "Signature", "evaluate"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RULES = ("zeros", "ones", "uniform")
LIMITS = {"gates": 12, "states": 4, "weights": 8, "step_inputs": 4}


class CellError(TypeError):
    """A cell cannot be what its definition says: the one error of all refusals of a definition."""


@dataclass(frozen=True)
class Signature:
    """What a cell declares.

    Attributes:
        name: of its function.
        gates: in the order of the weights' rows.
        states: the first is what W_hh multiplies, and the output.
        unit_weights: parameters with a value for each unit.
        unit_init: how each of these begins: "zeros", "ones", "uniform" or a number.
        step_inputs: what is given for every step besides the input.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...] = ("h",)
    unit_weights: tuple[str, ...] = ()
    unit_init: tuple[str | float, ...] = ()
    step_inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        declared = {
            "gates": self.gates,
            "states": self.states,
            "weights": self.unit_weights,
            "step_inputs": self.step_inputs,
        }
        for option, names in declared.items():
            self._check(option, names)
        for option in ("gates", "states"):
            if not declared[option]:
                raise CellError(f"{self.name}: {option}: expected at least one name, got none")
        for rule in self.unit_init:
            if isinstance(rule, str) and rule not in RULES:
                expected = f"{', '.join(RULES)} or a number"
                raise CellError(f"{self.name}: init: expected {expected}, got {rule!r}")

    def _check(self, option: str, names: tuple[str, ...]) -> None:
        if len(names) > LIMITS[option]:
            limit = f"at most {LIMITS[option]} names, got {len(names)}"
            raise CellError(f"{self.name}: {option}: expected {limit}")
        for name in names:
            # In a program, a state called inf would be a number.
            is_name = NAME.fullmatch(name) and not keyword.iskeyword(name)
            if not is_name or name.startswith("__") or name in ("inf", "nan"):
                raise CellError(f"{self.name}: {option}: {name!r} cannot be a name")
            if names.count(name) > 1:
                raise CellError(f"{self.name}: {option}: {name!r} is there twice")

    @property
    def parameters(self) -> tuple[str, ...]:
        """What the function takes."""
        optional = (("w", self.unit_weights), ("e", self.step_inputs))
        return ("x", "u", *(name for name, names in optional if names), *self.states)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What there is in a step, as a program calls it: x.f, u.f, w.p, e.t and the states."""
        spaces = {
            "x": self.gates, "u": self.gates, "w": self.unit_weights, "e": self.step_inputs
        }  # fmt: skip
        named = (f"{space}.{name}" for space, names in spaces.items() for name in names)
        return (*named, *self.states)


@dataclass(frozen=True, eq=False)
class Definition:
    """A cell, as its function says.

    Attributes:
        signature: what it declares.
        outputs: its states after a step, of which the nodes are PyTorch's functions (`FUNCTIONS`);
            inputs are named as in `Signature.inputs`. A node "product" is the recurrent product of
            the gate `name` with the node's operand in place of h.
    """

    signature: Signature
    outputs: tuple[Operand, ...]

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes, operands first."""
        return reach(self.outputs)

    @cached_property
    def called(self) -> dict[str, Node]:
        """The second products, by their gates in declared order."""
        found = {node.name: node for node in self.nodes if node.op == "product"}
        return {gate: found[gate] for gate in self.signature.gates if gate in found}

    @property
    def operand(self) -> Operand | None:
        """What the second products are of; None if there are none."""
        return next((node.args[0] for node in self.called.values()), None)


Product: TypeAlias = Callable[[Tensor], Tensor]


def evaluate(
    definition: Definition,
    states: Sequence[Tensor],
    x: Mapping[str, Tensor],
    u: Mapping[str, Tensor | Product],
    w: Mapping[str, Tensor] = MappingProxyType({}),
    e: Mapping[str, Tensor] = MappingProxyType({}),
) -> tuple[Tensor, ...]:
    """The states after a step, by PyTorch's own functions: differentiable, in any dtype.

    Args:
        definition: the cell.
        states: those before the step.
        x: the input of each gate that uses one.
        u: the recurrent product of each gate that uses one; for a gate whose product is of
            something else than h, the function that computes it.
        w: the unit weights.
        e: the step inputs.
    """
    given: dict[str, Any] = dict(zip(definition.signature.states, states, strict=True))
    for space, named in {"x": x, "u": u, "w": w, "e": e}.items():
        given |= {f"{space}.{name}": value for name, value in named.items()}
    # Not a state: what is projected, is of another size; and a weight has one value for all.
    like = next(
        (each for each in (*x.values(), *u.values()) if isinstance(each, Tensor)), states[0]
    )
    values: dict[Node, Tensor] = {}
    for node in definition.nodes:
        args = [values[arg] if isinstance(arg, Node) else arg for arg in node.args]
        values[node] = _evaluated(node, args, given, like)
    return tuple(
        values[output].expand_as(like)
        if isinstance(output, Node)
        else torch.full_like(like, output)
        for output in definition.outputs
    )


def _evaluated(node: Node, args: Sequence[Any], given: Mapping[str, Any], like: Tensor) -> Tensor:
    if node.op == "input":
        value = given[node.name]
    elif node.op == "product":
        value = given[f"u.{node.name}"](*args)
    elif node.op == "cast":
        value = args[0].to(like.dtype)
    elif node.op == "full":
        value = like.new_full((), args[0])
    else:
        value = FUNCTIONS[node.op].torch(*args)
    return value
