"""What functions are in the kernels, and their gradients: those that take more than a line.

A rule `f(x, ...)` gives the value of a function, `f_gradient(d, y, x, ...)` the gradients of its
operands, d being that of the result y. Nodes are those of the kernels' operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from fusedrnn.cells.graph import Graph, Node, Operand

Gradients = Sequence[Node | None]

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def node(op: str, *args: Operand) -> Node:
    """An operation of the kernels."""
    return _graph_of(args).make(op, *args)


def where(mask: Node, a: Operand, b: Operand) -> Node:
    return mask.graph.where(mask, a, b)


def _graph_of(args: Sequence[Operand]) -> Graph:
    return next(arg.graph for arg in args if isinstance(arg, Node))


def operation(op: str) -> Callable[..., Node]:
    return partial(node, op)


def no_gradient(d: Node, y: Node, *args: Operand) -> Gradients:
    return ()


# Arithmetic.


def div_gradient(d: Node, y: Node, a: Operand, b: Operand) -> Gradients:
    share = d / b
    return share, -(share * y)


def power(x: Node, exponent: float) -> Node:
    if exponent < 0.0:
        return 1.0 / power(x, -exponent)
    if exponent == 0.5:
        return node("sqrt", x)
    square = x * x
    return {1.0: x, 2.0: square, 3.0: square * x, 4.0: square * square}[exponent]


def power_gradient(d: Node, y: Node, x: Node, exponent: float) -> Gradients:
    if exponent == 0.5:
        return (d * (0.5 / y),)
    if exponent < 0.0:  # from y / x and not from y y x, which is NaN where x is 0
        return (d * (exponent * (y / x)),)
    return (d * (exponent * power(x, exponent - 1.0)),)


def lerp(a: Operand, b: Operand, weight: Operand) -> Operand:
    """As PyTorch, from the nearer end, if the weight is a number; else from a."""
    if not isinstance(weight, Node) and abs(weight) >= 0.5:
        return b - (b - a) * (1.0 - weight)
    return a + weight * (b - a)


def addcdiv_gradient(
    d: Node, y: Node, a: Operand, b: Operand, c: Operand, value: float = 1.0
) -> Gradients:
    share = d * (value / c)
    return d, share, -(share * (b / c))


# Activations.


def relu_gradient(d: Node, y: Node, x: Node) -> Gradients:
    return (where(node("ge", 0.0, y), 0.0, d),)


def leaky_relu(x: Node, slope: float) -> Node:
    if 0.0 < slope < 1.0:
        return node("maximum", x, x * slope)
    return where(node("gt", x, 0.0), x, x * slope)


def leaky_relu_gradient(d: Node, y: Node, x: Node, slope: float) -> Gradients:
    return (where(node("gt", y if slope > 0.0 else x, 0.0), d, d * slope),)


def elu(x: Node, alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> Node:
    below = node("expm1", x * input_scale) * (alpha * scale)
    return where(node("ge", 0.0, x), below, x * scale)


def elu_gradient(
    d: Node, y: Node, x: Node, alpha: float, scale: float = 1.0, input_scale: float = 1.0
) -> Gradients:
    if alpha >= 0.0:
        is_below = node("ge", 0.0, y)
        below = (y + alpha * scale) * input_scale
    else:
        is_below = node("ge", 0.0, x)
        below = node("exp", x * input_scale) * (alpha * scale * input_scale)
    return (d * where(is_below, below, scale),)


def celu(x: Node, alpha: float) -> Node:
    return elu(x, alpha, 1.0, 1.0 / alpha)


def celu_gradient(d: Node, y: Node, x: Node, alpha: float) -> Gradients:
    return elu_gradient(d, y, x, alpha, 1.0, 1.0 / alpha)


def selu(x: Node) -> Node:
    return elu(x, SELU_ALPHA, SELU_SCALE)


def selu_gradient(d: Node, y: Node, x: Node) -> Gradients:
    return elu_gradient(d, y, x, SELU_ALPHA, SELU_SCALE)


def normal_cdf(x: Node) -> Node:
    return 0.5 * (1.0 + node("erf", x * math.sqrt(0.5)))


def gelu_gradient(d: Node, y: Node, x: Node) -> Gradients:
    density = node("exp", -0.5 * (x * x)) * (1.0 / math.sqrt(2.0 * math.pi))
    return (d * (normal_cdf(x) + x * density),)


GELU_CUBIC = 0.044715


def gelu_tanh_of(x: Node) -> Node:
    inner = math.sqrt(2.0 / math.pi) * (x + GELU_CUBIC * (x * x * x))
    return node("tanh", inner)


def gelu_tanh_gradient(d: Node, y: Node, x: Node) -> Gradients:
    t = gelu_tanh_of(x)
    inner = math.sqrt(2.0 / math.pi) * (1.0 + (3.0 * GELU_CUBIC) * (x * x))
    return (d * (0.5 * (1.0 + t) + (0.5 * x) * (1.0 - t * t) * inner),)


def silu_gradient(d: Node, y: Node, x: Node) -> Gradients:
    s = node("sigmoid", x)
    return (d * (s + y * (1.0 - s)),)


def mish_gradient(d: Node, y: Node, x: Node) -> Gradients:
    t = node("tanh", node("softplus", x))
    return (d * (t + x * node("sigmoid", x) * (1.0 - t * t)),)


def softplus(x: Node, beta: float, threshold: float) -> Node:
    steep = x * beta
    return where(node("gt", steep, threshold), x, node("softplus", steep) / beta)


def softplus_gradient(d: Node, y: Node, x: Node, beta: float, threshold: float) -> Gradients:
    steep = x * beta
    return (where(node("gt", steep, threshold), d, d * node("sigmoid", steep)),)


def softsign_gradient(d: Node, y: Node, x: Node) -> Gradients:
    root = 1.0 - node("abs", y)
    return (d * (root * root),)


def clamp(x: Node, low: Operand, high: Operand) -> Node:
    return node("minimum", node("maximum", x, low), high)


def hardtanh_gradient(d: Node, y: Node, x: Node, low: float, high: float) -> Gradients:
    return (where(either(node("ge", low, y), node("ge", y, high)), 0.0, d),)


def hardsigmoid(x: Node) -> Node:
    return clamp(x * (1.0 / 6.0) + 0.5, 0.0, 1.0)


SIXTH = 0.1666666716337204
"""PyTorch's slope of hardsigmoid, in float64, too: 1 / 6 in float32."""


def hardsigmoid_gradient(d: Node, y: Node, x: Node) -> Gradients:
    return (where(both(node("gt", x, -3.0), node("gt", 3.0, x)), d * SIXTH, 0.0),)


def hardswish(x: Node) -> Node:
    return x * hardsigmoid(x)


def hardswish_gradient(d: Node, y: Node, x: Node) -> Gradients:
    middle = d * (x * (1.0 / 3.0) + 0.5)
    return (where(node("ge", -3.0, x), 0.0, where(node("gt", 3.0, x), middle, d)),)


def softshrink(x: Node, bound: float) -> Node:
    return x - clamp(x, -bound, bound)


def hardshrink(x: Node, bound: float) -> Node:
    return where(both(node("ge", x, -bound), node("ge", bound, x)), 0.0, x)


def shrink_gradient(d: Node, y: Node, x: Node, bound: float) -> Gradients:
    return (where(both(node("ge", x, -bound), node("ge", bound, x)), 0.0, d),)


def threshold(x: Node, bound: float, value: float) -> Node:
    return where(node("ge", bound, x), value, x)


def threshold_gradient(d: Node, y: Node, x: Node, bound: float, value: float) -> Gradients:
    return (where(node("ge", bound, x), 0.0, d),)


# Comparisons and what depends on them. A mask is 1 or 0.


def both(a: Operand, b: Operand) -> Node:
    return _graph_of((a, b)).product(a, b)


def either(a: Operand, b: Operand) -> Node:
    return node("maximum", a, b)


def exchanged(op: str) -> Callable[..., Node]:
    return lambda a, b: node(op, b, a)


def maximum_gradient(d: Node, y: Node, a: Operand, b: Operand) -> Gradients:
    share = where(node("eq", a, b), 0.5 * d, d)
    return where(node("gt", b, a), 0.0, share), where(node("gt", a, b), 0.0, share)


def minimum_gradient(d: Node, y: Node, a: Operand, b: Operand) -> Gradients:
    of_b, of_a = maximum_gradient(d, y, a, b)
    return of_a, of_b


def where_gradient(d: Node, y: Node, mask: Node, a: Operand, b: Operand) -> Gradients:
    return None, where(mask, d, 0.0), where(mask, 0.0, d)


def clamp_gradient(d: Node, y: Node, x: Node, low: Operand, high: Operand) -> Gradients:
    of_x = where(both(node("ge", x, low), node("ge", high, x)), d, 0.0)
    if not isinstance(low, Node) and not isinstance(high, Node):
        return (of_x,)
    of_low = where(both(node("gt", high, low), node("gt", low, x)), d, 0.0)
    of_high = where(either(node("gt", x, high), node("gt", low, high)), d, 0.0)
    return of_x, of_low, of_high


def clamp_min_gradient(d: Node, y: Node, x: Node, low: Operand) -> Gradients:
    of_low = where(node("gt", low, x), d, 0.0) if isinstance(low, Node) else None
    return where(node("ge", x, low), d, 0.0), of_low


def clamp_max_gradient(d: Node, y: Node, x: Node, high: Operand) -> Gradients:
    of_high = where(node("gt", x, high), d, 0.0) if isinstance(high, Node) else None
    return where(node("ge", high, x), d, 0.0), of_high
