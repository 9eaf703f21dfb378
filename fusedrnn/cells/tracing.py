"""From a user's function to its definition: it runs once, on tiny tensors, and is watched.

Two modes watch. One is told of each function of PyTorch's that is called, as the user wrote it; it
knows the names for error messages, and refuses what asks for values or shapes. The other is told of
each op that the functions come down to. An op whose operands are the cell's arguments, or were made
of them, becomes a node of the definition if it is pointwise and known; else it is refused. What has
nothing to do with the arguments just runs, and its result is a number from outside, or refused when
it meets a tensor of the cell.

The tensors are real ones of 2 x 3 and not of the meta device, whose first use in a process imports
for seconds. Their values decide nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fusedrnn._engine.torch_private import DispatchMode, writes
from fusedrnn.cells import refusals
from fusedrnn.cells.arguments import NoSuchName, Product, Space
from fusedrnn.cells.calls import CALLS, as_mask, as_value, call, is_mask
from fusedrnn.cells.definition import CellError, Definition, Signature
from fusedrnn.cells.graph import Graph, Node, Operand, reach
from fusedrnn.cells.refusals import Refused
from fusedrnn.cells.rerun import check_by_running

__all__ = ["trace"]

SHAPE = (2, 3)

ASK_FOR_VALUES = (
    "__array__ __array_wrap__ __bool__ __complex__ __contains__ __float__ __index__ __int__ "
    "allclose data_ptr equal is_nonzero item numpy tolist"
).split()
ASK_FOR_SHAPE = "__len__ nelement numel shape size stride".split()
COPIES = ("alias", "clone", "detach", "lift_fresh")
CONSTANTS = ("full_like", "ones_like", "zeros_like")
KNOWN = {*CALLS, *COPIES, *CONSTANTS, "_to_copy", "copy", "fill", "zero"}


def trace(function: Callable[..., Any], signature: Signature) -> Definition:
    """The definition of a cell.

    Args:
        function: takes `signature.parameters`, of which x, u, w and e have an attribute for each
            name; returns the states after the step.
        signature: what the cell declares.

    Raises:
        CellError: the function cannot be a cell's.
    """
    try:
        _check_parameters(function, signature)
        definition = _traced(function, signature)
        _check_uses(definition)
        with _as_anywhere():
            check_by_running(function, definition)
    except NoSuchName as error:
        raise NoSuchName(f"{signature.name}: {error}").with_traceback(error.__traceback__) from None
    except Refused as error:
        raise CellError(f"{signature.name}: {error}").with_traceback(error.__traceback__) from None
    return definition


def _traced(function: Callable[..., Any], signature: Signature) -> Definition:
    calls = _Calls()
    ops = _Ops(calls)
    with _as_anywhere():
        arguments = ops.arguments(signature)
        with ops, calls:
            results = function(*arguments)
    return Definition(signature, ops.outputs_of(results, signature.states))


@contextmanager
def _as_anywhere() -> Iterator[None]:
    """Without the modes that are on where a cell is defined, and need not be where it runs."""
    with torch.inference_mode(False), torch.enable_grad():
        with torch.amp.autocast("cpu", enabled=False), torch.device("cpu"):
            yield


def _check_parameters(function: Callable[..., Any], signature: Signature) -> None:
    try:
        takes = inspect.signature(function)
    except ValueError:  # nothing is known of it
        return
    try:
        takes.bind(*signature.parameters)
    except TypeError as error:
        expected = f"expected a function of ({', '.join(signature.parameters)}), got one of {takes}"
        raise Refused(expected) from error


def _check_uses(definition: Definition) -> None:
    signature = definition.signature
    used = {node.name for node in definition.nodes if node.op == "input"}
    if not isinstance(definition.outputs[0], Node):
        h, number = signature.states[0], definition.outputs[0]
        raise Refused(f"the next {h} is {number:g}, whatever the input is")
    for gate in signature.gates:
        if gate in definition.called and f"u.{gate}" in used:
            raise Refused(f"u.{gate} is used both as it is and called with another value")
        if gate not in definition.called and not used & {f"x.{gate}", f"u.{gate}"}:
            raise Refused(f"no state depends on the gate {gate}: use x.{gate} or u.{gate}")
    for space, names in (("w", signature.unit_weights), ("e", signature.step_inputs)):
        for name in names:
            if f"{space}.{name}" not in used:
                raise Refused(f"no state depends on {space}.{name}")
    if not definition.called and not any(name.startswith("u.") for name in used):
        raise Refused("no gate uses u, so that there is nothing recurrent for W_hh to multiply")
    if not any(name.startswith("x.") for name in used):
        raise Refused("no gate uses x, so that the cell never sees its input")


class _Calls(TorchFunctionMode):
    """Remembers which function of PyTorch's is running, and refuses what cannot be answered."""

    def __init__(self) -> None:
        super().__init__()
        self.function: Any = None
        self.is_of_cell: Callable[[Any], bool] = lambda value: False

    @property
    def name(self) -> str:
        """What users call the function: torch.tanh, Tensor.mean, torch.nn.functional.gelu."""
        name: str = self.function.__name__
        if name == "__get__":
            name = self.function.__self__.__name__
        module = getattr(self.function, "__module__", None)
        where = {None: "Tensor", "torch._tensor": "Tensor", "torch._C._nn": "torch.nn.functional"}
        return f"{where.get(module, module)}.{name}"

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.function = func
        if not args or not self.is_of_cell(args[0]):
            return func(*args, **(kwargs or {}))
        name = self.name.rpartition(".")[2]
        if name in ASK_FOR_VALUES:
            raise Refused(refusals.no_values(self.name))
        if name in ASK_FOR_SHAPE:
            raise Refused(refusals.no_shape(self.name))
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if refusals.is_known(self.name):  # and PyTorch was first to refuse the tiny tensors
                raise Refused(refusals.unusable(self.name, is_pointwise=False)) from error
            raise


class _Ops(DispatchMode):
    """Makes nodes of ops."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self.calls = calls
        self.graph = Graph()
        self.operands: dict[int, Operand] = {}  # what the cell's tensors stand for, by their id
        self.alive: list[Tensor] = []  # all of them, so that ids stay theirs
        self.unwritable: set[int] = set()
        self.second: Operand | None = None  # the operand of u.<gate>(...)
        calls.is_of_cell = self.is_of_cell

    # The arguments and the results of the function.

    def arguments(self, signature: Signature) -> list[Any]:
        """What the function is called with."""
        products = {}
        for gate in signature.gates:
            tensor = torch.zeros(SHAPE, dtype=torch.float64, device="cpu")
            product = Product.made_of(tensor, partial(self.product, gate))
            products[gate] = self.holds(product, self.graph.input(f"u.{gate}"))
        given = {
            "x": Space("x", "gate", {gate: self.input(f"x.{gate}") for gate in signature.gates}),
            "u": Space("u", "gate", products),
            "w": self.space("w", "unit weight", signature.unit_weights),
            "e": self.space("e", "step input", signature.step_inputs),
        }
        spaces = len(signature.parameters) - len(signature.states)
        arguments: list[Any] = [given[name] for name in signature.parameters[:spaces]]
        arguments += [self.input(state) for state in signature.states]
        self.unwritable |= {id(tensor) for tensor in self.alive}
        return arguments

    def space(self, space: str, what: str, names: Sequence[str]) -> Space:
        return Space(space, what, {name: self.input(f"{space}.{name}") for name in names})

    def input(self, name: str) -> Tensor:
        tensor = torch.zeros(SHAPE, dtype=torch.float64, device="cpu")
        return self.holds(tensor, self.graph.input(name))

    def outputs_of(self, results: Any, states: Sequence[str]) -> tuple[Operand, ...]:
        """What the function returned."""
        results = results if isinstance(results, (tuple, list)) else (results,)
        names = ", ".join(states)
        if len(results) != len(states):
            expected = f"expected it to return as many states as are declared ({names})"
            raise Refused(f"{expected}, got {len(results)}")
        for state, result in zip(states, results, strict=True):
            if not isinstance(result, (Tensor, int, float)):
                got = type(result).__name__
                raise Refused(f"expected it to return a tensor as the next {state}, got {got}")
        return tuple(as_value(self.operand(result)) for result in results)

    def product(self, gate: str, operand: Any) -> Tensor:
        """u.<gate>(operand)."""
        value = as_value(self.operand(operand)) if isinstance(operand, Tensor) else operand
        if not isinstance(value, Node):
            raise Refused(f"u.{gate}(...): expected a value of the cell, got {operand!r}")
        if any(node.op == "product" for node in reach([value])):
            raise Refused(f"u.{gate}(...) of another such product: a step has only one")
        if self.second not in (None, value):
            raise Refused(
                f"u.{gate}(...): expected the operand of the other gates called so, got another: "
                "a step has one product after the first, all of whose gates have one operand"
            )
        self.second = value
        tensor = torch.zeros(SHAPE, dtype=torch.float64, device="cpu")
        return self.holds(tensor, self.graph.make("product", value, name=gate))

    # What tensors stand for.

    def holds(self, tensor: Tensor, operand: Operand) -> Tensor:
        """Remembers what a tensor stands for; returns it."""
        self.operands[id(tensor)] = operand
        self.alive.append(tensor)
        return tensor

    def is_of_cell(self, value: Any) -> bool:
        return isinstance(value, Tensor) and id(value) in self.operands

    def operand(self, value: Any) -> Any:
        """What an argument of an op stands for; what is no tensor, for itself."""
        if isinstance(value, bool | int):
            return float(value)
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.operands:
            return self.operands[id(value)]
        if value.ndim or value.requires_grad:
            raise Refused(refusals.outside(tuple(value.shape), value.requires_grad))
        return float(value)

    # Ops.

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Refused(refusals.random(self.calls.name))
        op: str = func.overloadpacket.__name__
        is_of_cell = any(map(self.is_of_cell, _flat((*args, *kwargs.values()))))
        if not is_of_cell or op == "empty_like":
            return func(*args, **kwargs)
        if writes(func):
            op = self.written(op, args, kwargs)
        if op not in KNOWN:
            is_pointwise = torch.Tag.pointwise in func.tags
            raise Refused(refusals.unusable(self.calls.name, is_pointwise))
        operands = [self.operand(arg) for arg in args]
        results = func(*args, **kwargs)
        result = results[0] if isinstance(results, tuple) else results
        value = self.value(op, operands, kwargs, result)
        if isinstance(value, Node) and not is_mask(value) and not torch.is_grad_enabled():
            value = self.graph.make("detach", value)
        if writes(func):
            result = args[0]
        elif result.dtype not in (torch.bool, torch.float64):
            result = result.to(torch.float64)  # numbers of masks are in the layer's dtype
        self.holds(result, value)
        if op in ("alias", "detach"):  # they share their memory: neither may be written to
            self.unwritable |= {id(args[0]), id(result)}
        return (result, *results[1:]) if isinstance(results, tuple) else result

    def written(self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The op that computes what an op in place writes to its first operand."""
        if "out" in kwargs or not op.endswith("_"):
            raise Refused(f"{self.calls.name} with out=...: take its result instead")
        if not self.is_of_cell(args[0]):
            self.operand(args[0])  # refuses it
        if id(args[0]) in self.unwritable or not torch.is_grad_enabled():
            raise Refused(
                f"{self.calls.name} writes to an argument, or to what shares its memory or is "
                "without gradient: compute a new value instead"
            )
        return op.removesuffix("_")

    def value(
        self, op: str, operands: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Operand:
        """What an op computes."""
        first: Operand = operands[0]
        if op in COPIES:
            is_value = op == "detach" and isinstance(first, Node) and not is_mask(first)
            return self.graph.make("detach", first) if is_value else first
        if op in ("copy", "fill"):
            first = operands[1]
            return as_mask(first) if result.dtype == torch.bool else as_value(first)
        if op == "_to_copy":
            return self.cast(first, result)
        if op in (*CONSTANTS, "zero") or not any(isinstance(each, Node) for each in operands):
            return float(result.flatten()[0])
        numbers = {name: self.operand(value) for name, value in kwargs.items()}
        return call(op, operands, numbers, gives_mask=result.dtype == torch.bool)

    def cast(self, operand: Operand, result: Tensor) -> Operand:
        if result.dtype == torch.bool:
            return as_mask(operand)
        if is_mask(operand):
            return as_value(operand)
        if isinstance(operand, Node) and result.dtype != torch.float64:
            raise Refused(
                f"{self.calls.name} changes the dtype of a value: all values of a cell are of the "
                "layer's dtype, and only masks can be cast"
            )
        return operand


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """The arguments of an op, of which lists of tensors are some."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value
