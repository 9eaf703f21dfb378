"""Every function that a cell can use: its value and its gradients are PyTorch's, at ties, too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from program_passes import Slots
from torch import Tensor, nn

from fusedrnn.cells.functions import FUNCTIONS
from fusedrnn.cells.written import WrittenCell, cell

POINTS = [-21.0, -6.0, -3.0, -1.0, -0.5, -0.3, -0.0, 0.0, 0.3, 0.5, 1.0, 3.0, 6.0, 21.0, math.nan]


def without_gradient(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    with torch.no_grad():
        return function(y)


FUNCTIONS_OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda y: y + 0.5,
    "radd": lambda y: 2 + y,
    "rsub": lambda y: 1 - y,
    "sub_number": lambda y: torch.sub(y, 0.5, alpha=3),
    "mul": lambda y: y * -2.5,
    "div": lambda y: y / 3,
    "rdiv": lambda y: 3 / y,
    "neg": torch.neg,
    "pos": lambda y: +y,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    **{f"pow {p}": lambda y, p=p: y**p for p in (-4, -3, -2, -1, 1, 2, 3, 4, 0.5, -0.5)},
    "pow 0": lambda y: y**0 * y,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "sign": torch.sign,
    "sgn": torch.sgn,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "two to the power of": lambda y: 2**y,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log1p": torch.log1p,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "sigmoid": torch.sigmoid,
    "expit": torch.special.expit,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "leaky_relu 0": lambda y: F.leaky_relu(y, 0.0),
    "leaky_relu down": lambda y: F.leaky_relu(y, -0.3),
    "leaky_relu steep": lambda y: F.leaky_relu(y, 1.5),
    "elu": F.elu,
    "elu down": lambda y: F.elu(y, -0.5),
    "celu": lambda y: F.celu(y, 2.0),
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "softplus": F.softplus,
    "softplus at its threshold": lambda y: F.softplus(y, beta=2.0, threshold=6.0),
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "threshold": lambda y: F.threshold(y, 0.5, -2.0),
    "clamp": lambda y: y.clamp(-1, 1),
    "clamp_min": lambda y: torch.clamp(y, min=0),
    "clamp_max": lambda y: torch.clamp_max(y, 0.5),
    "clamp in vain": lambda y: y.clamp(1, -1),
    "maximum of a number": lambda y: torch.maximum(y, torch.tensor(0.5)),
    "masks": lambda y: (y > 0).float() * y + (y <= -1).to(y.dtype),
    "mask times": lambda y: (y >= 0.5) * y,
    "masks of masks": lambda y: (((y > 0) & ~(y > 3)) ^ (y == 1) | (y < -3)).double() * y,
    "sums of masks": lambda y: ((y > 0) + (y > 1)).to(y.dtype) - (y > 3) * 1 + y,
    "logical": lambda y: torch.logical_and(y, torch.logical_not(y > 1)).to(y.dtype) * y,
    "where of numbers": lambda y: torch.where(y != 0.5, 0.25, -2.0) * y,
    "masked_fill": lambda y: y.masked_fill(y > 0, 0.7),
    "detach": lambda y: y.detach() * y,
    "straight through": lambda y: y + (torch.sign(y) - y).detach(),
    "without gradient": lambda y: without_gradient(torch.sin, y) * y,
    "in place": lambda y: (y + 1).mul_(2.0).sub_(y).sigmoid_(),
    "in place, where": lambda y: (y * 2).masked_fill_(y > 0, 0.5).clamp_(min=-3),
    "constants": lambda y: torch.ones_like(y) - y * torch.full_like(y, 2) + torch.zeros_like(y),
    "numbers from outside": lambda y: y * torch.tensor(0.3) + np.float64(2.0) * y + math.pi,
    "casts in vain": lambda y: y.to(torch.float64).clone().contiguous(),
}
FUNCTIONS_OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "add scaled": lambda a, b: torch.add(a, b, alpha=2),
    "add scaled, either": lambda a, b: torch.add(a, b, alpha=2) * torch.add(b, a, alpha=2),
    "sub": torch.sub,
    "sub scaled": lambda a, b: torch.sub(a, b, alpha=0.5),
    "rsub": torch.rsub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "max": torch.max,
    "clamp": lambda a, b: torch.clamp(a, b, b + 1),
    "clamp in vain": lambda a, b: torch.clamp(a, b, b - 1),
    "clamp_min": lambda a, b: torch.clamp(a, min=b),
    "clamp_max": lambda a, b: torch.clamp(a, max=b),
    "where": lambda a, b: torch.where(a > b, a * b, a - b),
    "comparisons": lambda a, b: (a < b) * a + (a <= b) * b - (a.eq(b) | a.ne(-b)) * (a * b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "lerp to the other end": lambda a, b: torch.lerp(a, b, 0.8),
    "lerp by a value": lambda a, b: torch.lerp(a, b, b),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
    "addcdiv": lambda a, b: torch.addcdiv(a, a, b),
    "xor": lambda a, b: ((a > 0) != (b > 0)).to(a.dtype) * a * b,
}


def unit_gradients(written: WrittenCell, values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """h of a cell that only adds its gates' inputs and products, and the gradients of the sums."""
    (stage,) = written.compiled().stages
    given = {f"p{i}": value for i, value in enumerate(values)} | {"h": values[0] * 0}
    found = Slots(given, "save", "save r").run(stage.forward, values[0])
    h = found.pop("r")
    found |= {"dr": torch.ones_like(h), "h": h if stage.needs == "h" else values[0] * 0}
    grads = Slots(found, "g", "g carry").run(stage.backward, h)
    return h, [grads[f"g{i}"] for i in range(len(values))]


def check_function(function: Callable[..., Tensor], points: list[Tensor]) -> None:
    names = "ab"[: len(points)]

    @cell(gates=" ".join(names))
    def written(x, u, h):
        return function(*(getattr(x, name) + getattr(u, name) for name in names))

    leaves = [value.requires_grad_() for value in points]
    expected = function(*leaves)
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    if expected.requires_grad:
        found = torch.autograd.grad(expected.sum(), leaves, allow_unused=True)
        # Some are zeros without memory, whose first use imports for seconds.
        found = [None if d is None else d.clone() for d in found]
        gradients = [zero if d is None else d for zero, d in zip(gradients, found, strict=True)]
    with torch.no_grad():
        h, grads = unit_gradients(written, [leaf.detach() for leaf in leaves])
    for name, ours, theirs in zip(("h", *names), (h, *grads), (expected, *gradients), strict=True):
        same = torch.isclose(ours, theirs.detach(), rtol=1e-12, atol=1e-14, equal_nan=True)
        wrong = [
            (*(leaf[i].item() for leaf in leaves), ours[i].item(), theirs[i].item())
            for i in torch.nonzero(~same).flatten().tolist()
        ]
        assert not wrong, f"{name} at (operands, ours, PyTorch's): {wrong}"


@pytest.mark.parametrize("name", FUNCTIONS_OF_ONE)
def test_functions_of_one(name: str) -> None:
    points = torch.tensor(POINTS, dtype=torch.float64)
    if name in ("rdiv", "reciprocal", "log", "log2", "sqrt", "rsqrt") or "pow -" in name:
        points = points[points != 0]  # see test_functions_at_their_poles
    check_function(FUNCTIONS_OF_ONE[name], [points])


@pytest.mark.parametrize("name", FUNCTIONS_OF_TWO)
def test_functions_of_two(name: str) -> None:
    pairs = torch.tensor([*itertools.product(POINTS, POINTS)], dtype=torch.float64)
    if name in ("div", "addcdiv"):
        pairs = pairs[pairs[:, 1] != 0]
    check_function(FUNCTIONS_OF_TWO[name], [pairs[:, 0].clone(), pairs[:, 1].clone()])


def test_all_functions_are_tested() -> None:
    functions = {**FUNCTIONS_OF_ONE, **{f"{k} of two": f for k, f in FUNCTIONS_OF_TWO.items()}}
    found = set()
    for function in functions.values():

        @cell(gates="a b")
        def written(x, u, h, function=function):
            takes_two = function in FUNCTIONS_OF_TWO.values()
            a, b = x.a + u.a, x.b + u.b
            return function(a, b) if takes_two else function(a) + b

        found |= {node.op for node in written.definition.nodes}
    assert not {*FUNCTIONS} - found
