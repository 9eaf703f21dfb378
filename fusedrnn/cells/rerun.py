"""A definition against the function that it was read from: it runs again, as users run functions.

What was read may still be wrong for reasons that no op tells: the function may be another one each
time, or part of it have a gradient of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from fusedrnn.cells import refusals
from fusedrnn.cells.arguments import Product, Space
from fusedrnn.cells.definition import Definition, evaluate
from fusedrnn.cells.refusals import Refused

__all__ = ["check_by_running"]


def check_by_running(function: Callable[..., Any], definition: Definition) -> None:
    """Refuses a function that is not what was read."""
    signature = definition.signature
    values = {name: _value(i) for i, name in enumerate(signature.inputs)}

    def named(space: str, names: tuple[str, ...]) -> dict[str, Tensor]:
        return {name: values[f"{space}.{name}"] for name in names}

    x, u = named("x", signature.gates), named("u", signature.gates)
    w, e = named("w", signature.unit_weights), named("e", signature.step_inputs)
    products = {gate: Product.made_of(tensor, _product) for gate, tensor in u.items()}
    states = [values[state] for state in signature.states]
    spaces: dict[str, Mapping[str, Tensor]] = {"x": x, "u": products, "w": w, "e": e}
    given = [Space(name, name, spaces[name]) for name in signature.parameters[: -len(states)]]
    results = function(*given, *states)
    found = results if isinstance(results, (tuple, list)) else (results,)
    called = {gate: _product if gate in definition.called else u[gate] for gate in u}
    expected = evaluate(definition, states, x, called, w, e)
    for result, value in zip(found, expected, strict=True):
        number = result.to(value.dtype) if isinstance(result, Tensor) else value.new_tensor(result)
        # Numbers made of masks may be in float32 there.
        if not torch.allclose(number.expand_as(value), value, 1e-5, 1e-6, equal_nan=True):
            raise Refused(refusals.unstable())
        _check_gradients(number)


def _value(number: int) -> Tensor:
    """A value of an input, which needs a gradient, in no simple relation to those of others."""
    numbers = torch.arange(1, 7, dtype=torch.float64, device="cpu").view(2, 3)
    return torch.sin(numbers * (number + 1.3)).requires_grad_()


def _product(operand: Tensor) -> Tensor:
    """In place of a product with W_hh."""
    return operand.flip(-1) * 0.7


def _check_gradients(result: Tensor) -> None:
    waiting, seen = [result.grad_fn], {result.grad_fn}
    while waiting:
        node = waiting.pop()
        if isinstance(node, BackwardCFunction):
            raise Refused(refusals.with_own_gradient(node.name().removesuffix("Backward")))
        for following, _ in node.next_functions if node is not None else ():
            if following not in seen:
                seen.add(following)
                waiting.append(following)
