"""The functions a cell can be made of: each in PyTorch, in the kernels, and its gradient.

A new function is one entry of `FUNCTIONS`. Gradients follow PyTorch's own, function by function, at
ties (relu at 0, clamp at a bound, maximum of equal values) and where there is NaN: the tests
compare each with autograd there. A gradient that can be had from the result as well as from the
operand is written from the result, because that is what a cell more often keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn.cells import rules
from fusedrnn.cells.graph import Node, Operand
from fusedrnn.cells.rules import Gradients, no_gradient, node, operation

__all__ = ["FUNCTIONS", "POWERS", "Function"]

POWERS = (-4.0, -3.0, -2.0, -1.0, -0.5, 0.5, 2.0, 3.0, 4.0)
"""The exponents of `pow`."""


@dataclass(frozen=True)
class Function:
    """A function of PyTorch's that a cell may use.

    Attributes:
        torch: calls it; operands are tensors and numbers.
        value: what the kernels compute for it, of operands that are nodes and numbers.
        gradient: `gradient(d, y, *operands)`: the gradient of each operand, d being that of the
            result y; None for an operand that has none. Operands at the end may be left out.
        takes_masks: which operands are masks: "none", the "first" or "all".
        gives_mask: whether the result is a mask.
    """

    torch: Callable[..., Tensor]
    value: Callable[..., Operand]
    gradient: Callable[..., Gradients]
    takes_masks: str = "none"
    gives_mask: bool = False


def _in_tensors(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function whose operands are tensors, with numbers among them."""

    def call(*args: Tensor | float) -> Tensor:
        like = next(arg for arg in args if isinstance(arg, Tensor))
        return function(*(a if isinstance(a, Tensor) else like.new_full((), a) for a in args))

    return call


def _of_tensor(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function whose second operand may be a number, but not the first."""

    def call(a: Tensor | float, b: Tensor | float) -> Tensor:
        return function(a, b) if isinstance(a, Tensor) else _in_tensors(function)(a, b)

    return call


def _add(a: Tensor | float, b: Tensor | float, alpha: float = 1.0) -> Tensor:
    return _of_tensor(partial(torch.add, alpha=alpha))(a, b)


def _sub(a: Tensor, b: Tensor | float, alpha: float = 1.0) -> Tensor:
    return torch.sub(a, b, alpha=alpha)


def _rsub(a: Tensor, b: Tensor | float, alpha: float = 1.0) -> Tensor:
    return torch.rsub(a, b, alpha=alpha)


def _clamp(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return _in_tensors(torch.clamp)(x, low, high)
    return torch.clamp(x, low, high)


def _comparison(function: Callable[..., Tensor], value: Callable[..., Node]) -> Function:
    return Function(_of_tensor(function), value, no_gradient, gives_mask=True)


def _logical(function: Callable[..., Tensor], value: Callable[..., Node]) -> Function:
    return Function(_in_tensors(function), value, no_gradient, takes_masks="all", gives_mask=True)


FUNCTIONS: dict[str, Function] = {
    # Arithmetic.
    "add": Function(
        _add,
        lambda a, b, alpha=1.0: a + b * alpha,
        lambda d, y, a, b, alpha=1.0: (d, d * alpha),
    ),
    "sub": Function(
        _sub,
        lambda a, b, alpha=1.0: a - b * alpha,
        lambda d, y, a, b, alpha=1.0: (d, -(d * alpha)),
    ),
    "rsub": Function(
        _rsub,
        lambda a, b, alpha=1.0: b - a * alpha,
        lambda d, y, a, b, alpha=1.0: (-(d * alpha), d),
    ),
    "mul": Function(_of_tensor(torch.mul), lambda a, b: a * b, lambda d, y, a, b: (d * b, d * a)),
    "div": Function(_of_tensor(torch.div), lambda a, b: a / b, rules.div_gradient),
    "neg": Function(torch.neg, lambda x: -x, lambda d, y, x: (-d,)),
    "reciprocal": Function(torch.reciprocal, lambda x: 1.0 / x, lambda d, y, x: (-(d * (y * y)),)),
    "pow": Function(torch.pow, rules.power, rules.power_gradient),
    "sqrt": Function(torch.sqrt, operation("sqrt"), lambda d, y, x: (d / (2.0 * y),)),
    "rsqrt": Function(
        torch.rsqrt, lambda x: 1.0 / node("sqrt", x), lambda d, y, x: (-0.5 * d * (y * y * y),)
    ),
    "abs": Function(torch.abs, operation("abs"), lambda d, y, x: (d * node("sign", x),)),
    "sign": Function(torch.sign, operation("sign"), no_gradient),
    "lerp": Function(
        _in_tensors(torch.lerp),
        rules.lerp,
        lambda d, y, a, b, weight: (d * (1.0 - weight), d * weight, d * (b - a)),
    ),
    "addcmul": Function(
        lambda a, b, c, value=1.0: _in_tensors(partial(torch.addcmul, value=value))(a, b, c),
        lambda a, b, c, value=1.0: a + b * value * c,
        lambda d, y, a, b, c, value=1.0: (d, d * (c * value), d * (b * value)),
    ),
    "addcdiv": Function(
        lambda a, b, c, value=1.0: _in_tensors(partial(torch.addcdiv, value=value))(a, b, c),
        lambda a, b, c, value=1.0: a + b * value / c,
        rules.addcdiv_gradient,
    ),
    # Exponentials and other transcendental functions.
    "exp": Function(torch.exp, operation("exp"), lambda d, y, x: (d * y,)),
    "exp2": Function(
        torch.exp2,
        lambda x: node("exp", x * math.log(2.0)),
        lambda d, y, x: (d * (y * math.log(2.0)),),
    ),
    "expm1": Function(torch.expm1, operation("expm1"), lambda d, y, x: (d * (y + 1.0),)),
    "log": Function(torch.log, operation("log"), lambda d, y, x: (d / x,)),
    "log2": Function(
        torch.log2,
        lambda x: node("log", x) * (1.0 / math.log(2.0)),
        lambda d, y, x: (d / (x * math.log(2.0)),),
    ),
    "log1p": Function(torch.log1p, operation("log1p"), lambda d, y, x: (d / (x + 1.0),)),
    "erf": Function(
        torch.erf,
        operation("erf"),
        lambda d, y, x: (d * (node("exp", -(x * x)) * (2.0 / math.sqrt(math.pi))),),
    ),
    "sin": Function(torch.sin, operation("sin"), lambda d, y, x: (d * node("cos", x),)),
    "cos": Function(torch.cos, operation("cos"), lambda d, y, x: (-(d * node("sin", x)),)),
    # Activations.
    "sigmoid": Function(torch.sigmoid, operation("sigmoid"), lambda d, y, x: (d * (y - y * y),)),
    "tanh": Function(torch.tanh, operation("tanh"), lambda d, y, x: (d * (1.0 - y * y),)),
    "relu": Function(torch.relu, operation("relu"), rules.relu_gradient),
    "leaky_relu": Function(F.leaky_relu, rules.leaky_relu, rules.leaky_relu_gradient),
    "elu": Function(F.elu, rules.elu, rules.elu_gradient),
    "celu": Function(F.celu, rules.celu, rules.celu_gradient),
    "selu": Function(F.selu, rules.selu, rules.selu_gradient),
    "gelu": Function(F.gelu, lambda x: x * rules.normal_cdf(x), rules.gelu_gradient),
    "gelu_tanh": Function(
        partial(F.gelu, approximate="tanh"),
        lambda x: 0.5 * x * (1.0 + rules.gelu_tanh_of(x)),
        rules.gelu_tanh_gradient,
    ),
    "silu": Function(F.silu, lambda x: x * node("sigmoid", x), rules.silu_gradient),
    "mish": Function(F.mish, lambda x: x * node("tanh", node("softplus", x)), rules.mish_gradient),
    "softplus": Function(F.softplus, rules.softplus, rules.softplus_gradient),
    "softsign": Function(F.softsign, lambda x: x / (1.0 + node("abs", x)), rules.softsign_gradient),
    "logsigmoid": Function(
        F.logsigmoid,
        lambda x: -node("softplus", -x),
        lambda d, y, x: (d * node("sigmoid", -x),),
    ),
    "hardtanh": Function(F.hardtanh, rules.clamp, rules.hardtanh_gradient),
    "hardsigmoid": Function(F.hardsigmoid, rules.hardsigmoid, rules.hardsigmoid_gradient),
    "hardswish": Function(
        F.hardswish, lambda x: x * rules.hardsigmoid(x), rules.hardswish_gradient
    ),
    "softshrink": Function(F.softshrink, rules.softshrink, rules.shrink_gradient),
    "hardshrink": Function(F.hardshrink, rules.hardshrink, rules.shrink_gradient),
    "threshold": Function(F.threshold, rules.threshold, rules.threshold_gradient),
    # Comparisons, masks, and what chooses.
    "gt": _comparison(torch.gt, operation("gt")),
    "ge": _comparison(torch.ge, operation("ge")),
    "lt": _comparison(torch.lt, rules.exchanged("gt")),
    "le": _comparison(torch.le, rules.exchanged("ge")),
    "eq": _comparison(torch.eq, operation("eq")),
    "ne": _comparison(torch.ne, operation("ne")),
    "logical_and": _logical(torch.logical_and, rules.both),
    "logical_or": _logical(torch.logical_or, rules.either),
    "logical_xor": _logical(torch.logical_xor, operation("ne")),
    "logical_not": _logical(torch.logical_not, lambda mask: 1.0 - mask),
    "where": Function(torch.where, rules.where, rules.where_gradient, takes_masks="first"),
    "maximum": Function(_in_tensors(torch.maximum), operation("maximum"), rules.maximum_gradient),
    "minimum": Function(_in_tensors(torch.minimum), operation("minimum"), rules.minimum_gradient),
    "clamp": Function(_clamp, rules.clamp, rules.clamp_gradient),
    "clamp_min": Function(torch.clamp_min, operation("maximum"), rules.clamp_min_gradient),
    "clamp_max": Function(torch.clamp_max, operation("minimum"), rules.clamp_max_gradient),
    # What is no function: `cast` makes numbers of a mask, `full` a value of a number, and
    # `detach` is its operand, without a gradient.
    "cast": Function(torch.Tensor.to, lambda mask: mask, no_gradient, takes_masks="all"),
    "full": Function(torch.Tensor.new_full, lambda number: number, no_gradient),
    "detach": Function(torch.detach, lambda x: x, no_gradient),
}
"""Every function by its name in a program's `define`."""
