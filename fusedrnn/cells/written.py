"""Cells of one's own: a function of PyTorch's pointwise functions becomes a recurrent cell."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fusedrnn import _C
from fusedrnn.cells.definition import CellError, Definition, Signature
from fusedrnn.cells.explaining import explained
from fusedrnn.cells.program import Program
from fusedrnn.cells.stages import program_of
from fusedrnn.cells.tracing import trace

__all__ = ["WrittenCell", "cell"]

Init = str | float | Mapping[str, str | float]


def cell(
    *,
    gates: str,
    states: str = "h",
    weights: str = "",
    step_inputs: str = "",
    init: Init = "uniform",
) -> Callable[[Callable[..., Any]], WrittenCell]:
    """Makes a cell of the function that it decorates.

    The function says what one unit of one sequence does in a step:

        @fusedrnn.cell(gates="f n")
        def mgu(x, u, h):
            f = torch.sigmoid(x.f + u.f)
            n = torch.tanh(x.n + f * u.n)
            return (1 - f) * h + f * n

    `x.f` is the projected input of the gate f, W_f x + b_f, and `u.f` its recurrent product,
    U_f h + b_f. Either may be used without the other, and both otherwise than in a sum. `u.n(v)` is
    the product of a gate with v in place of h: one such v in a step. After x and u come w and e, if
    unit weights and step inputs are declared, with an attribute for each, and then the states.

    It may compute anything that PyTorch's pointwise functions can, and gradients are PyTorch's.
    Numbers from outside become part of the cell: the function runs once, here, to be read.

    Args:
        gates: their names, in the order of the weights' rows.
        states: the names of what goes from step to step, in the order of the function's arguments.
            The first is what `u` multiplies, and the output. At most four.
        weights: the names of weights that have one value for each unit, such as peepholes.
        step_inputs: the names of values that are given for each step, sequence and unit, beside the
            input: a time gap, a mask, a decay. At most four.
        init: how these weights begin: "zeros", "ones", "uniform" as the others, or a number; one
            rule for all, one for each in turn ("zeros ones 0.5"), or rules by name.

    Returns:
        the decorator, which makes a `WrittenCell` of a function.

    Raises:
        CellError: when it decorates: the function cannot be a cell, or isn't as declared.
    """

    def decorate(function: Callable[..., Any]) -> WrittenCell:
        name = getattr(function, "__name__", "cell")
        unit_weights = tuple(weights.split())
        signature = Signature(
            name=name if name.isascii() and name.isidentifier() else "cell",
            gates=tuple(gates.split()),
            states=tuple(states.split()),
            unit_weights=unit_weights,
            unit_init=_rules(init, unit_weights),
            step_inputs=tuple(step_inputs.split()),
        )
        return WrittenCell(trace(function, signature), function)

    return decorate


class WrittenCell:
    """A cell that was written in Python. Two are equal if they have the same program.

    Copies and pickles have the program and not the function, so that who loads one needs nothing of
    the code that defined it.
    """

    def __init__(self, definition: Definition, function: Callable[..., Any] | None = None) -> None:
        self.definition = definition
        self._function = function
        self._programs: dict[bool, Program] = {}
        if function is not None:
            functools.update_wrapper(self, function, updated=())
        self.compiled()  # refuses what is too large, where it is defined

    @property
    def name(self) -> str:
        """The function's."""
        return self.definition.signature.name

    @property
    def gates(self) -> tuple[str, ...]:
        """In the order of the weights' rows."""
        return self.definition.signature.gates

    @property
    def states(self) -> tuple[str, ...]:
        """Those that go from step to step, the output first."""
        return self.definition.signature.states

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that have a value for each unit."""
        return self.definition.signature.unit_weights

    @property
    def step_inputs(self) -> tuple[str, ...]:
        """What is given for each step besides the input."""
        return self.definition.signature.step_inputs

    @property
    def init(self) -> tuple[str | float, ...]:
        """How each of `weights` begins: "zeros", "ones", "uniform" or a number."""
        return self.definition.signature.unit_init

    @property
    def program(self) -> str:
        """The text that the kernels run."""
        return self.program_for(projected=False)

    def program_for(self, *, projected: bool) -> str:
        """The text for layers whose output is projected, or isn't.

        Raises:
            CellError: the output of this cell cannot be projected.
        """
        return self.compiled(projected=projected).text

    def compiled(self, *, projected: bool = False) -> Program:
        """The same, as an object."""
        if projected not in self._programs:
            self._programs[projected] = program_of(self.definition, projected=projected)
        return self._programs[projected]

    def __call__(self, x: Any, u: Any, *others: Any) -> Tensor | tuple[Tensor, ...]:
        """One step, by PyTorch: the function itself. x, u and so on have the attributes it uses."""
        if self._function is not None:
            return self._function(x, u, *others)
        spaces = dict(zip(self.definition.signature.parameters, (x, u, *others), strict=True))
        given = {
            space: {name: getattr(spaces[space], name) for name in self._used(space)}
            for space in "xuwe"
            if space in spaces
        }
        states = others[len(others) - len(self.states) :]
        after = self.compiled().evaluate(states, **given)
        return after if len(after) > 1 else after[0]

    def _used(self, space: str) -> list[str]:
        """The names of x, u, w or e that there are."""
        nodes = self.definition.nodes
        called = [*self.definition.called] if space == "u" else []
        inputs = [node.name for node in nodes if node.op == "input"]
        return called + [name[2:] for name in inputs if name.startswith(f"{space}.")]

    def compile(self, dtype: torch.dtype = torch.float32) -> None:
        """Waits until the CPU's kernels run compiled code for this cell.

        They compile it in the background at its first call, and interpret it until that is done. To
        wait for it is worth it before timings, say. Compiled code gives the same bits as the
        interpreter. It is kept on disk: `FUSEDRNN_CACHE`, or fusedrnn in the user's cache folder.

        Args:
            dtype: of the layer. float32, bfloat16 and float16 share what is compiled.

        Raises:
            RuntimeError: it cannot be compiled: no compiler was found (CXX, g++, c++, clang++), it
                failed, or `FUSEDRNN_CELL_COMPILE=0` forbids it.
        """
        from fusedrnn._engine import compiling

        compiling.compiled(self.program, dtype)

    def explain(self, *, code: bool = False) -> str:
        """How this cell is run: its gates, what is kept for backward, and both passes.

        Args:
            code: with the C++ that is compiled of it.
        """
        told = explained(self.compiled(), run_by=self._ways())
        return f"{told}\n\ncode\n{_C.compiled_source(self.program, 'float')}" if code else told

    def _ways(self) -> list[str]:
        """What runs it, by device."""
        from fusedrnn._engine import compiling, ops

        asked = compiling.told(self.program)
        asked = asked or ["interpreted in each tile, and compiled when it is first called"]
        on_cuda = ["one kernel a step and product, which NVRTC compiles when it is first needed"]
        if _C.is_walked(self.program):
            on_cuda = [
                "one kernel a step and product, or a team's walk where that is predicted to be",
                "      faster; NVRTC compiles them when they are first needed",
            ]
        if ops.WITHOUT_CUDA is None and ops.WITHOUT_PROGRAMS is not None:
            on_cuda = [f"PyTorch's functions, step by step: {ops.WITHOUT_PROGRAMS}"]
        return [
            f"CPU: the kernels for {_C.cpu_capability()}",
            *(f"     {line}" for line in asked),
            f"CUDA: {on_cuda[0]}",
            *on_cuda[1:],
            "other devices: PyTorch's functions, step by step",
        ]

    def __repr__(self) -> str:
        options = {
            "gates": self.gates,
            "states": self.states,
            "weights": self.weights,
            "step_inputs": self.step_inputs,
        }
        told = [f"{option}={' '.join(names)!r}" for option, names in options.items() if names]
        return f"<cell {self.name}({', '.join(told)})>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrittenCell) and self.program == other.program

    def __hash__(self) -> int:
        return hash(self.program)

    def __reduce__(self) -> tuple[object, ...]:
        return _from_program, (self.program,)


def _from_program(text: str) -> WrittenCell:
    return WrittenCell(Program.parse(text).definition)


def _rules(init: Init, weights: tuple[str, ...]) -> tuple[str | float, ...]:
    """How each weight begins."""
    if isinstance(init, Mapping):
        unknown = [name for name in init if name not in weights]
        if unknown:
            raise CellError(f"init: {unknown[0]!r} is none of the weights {', '.join(weights)}")
        return tuple(_rule(init.get(name, "uniform")) for name in weights)
    rules = tuple(map(_rule, init.split() if isinstance(init, str) else [init]))
    if len(rules) == 1:
        rules *= len(weights)
    if len(rules) != len(weights):
        expected = f"one rule, or one for each of the weights ({len(weights)})"
        raise CellError(f"init: expected {expected}, got {len(rules)}")
    return rules


def _rule(rule: str | float) -> str | float:
    try:
        return float(rule)
    except ValueError:
        return rule
