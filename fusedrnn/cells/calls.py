"""From the ops that PyTorch's functions come down to, to the functions of a definition.

functions.py has fewer functions than PyTorch has ops. Here, an op's defaults are filled in, numbers
go where the function takes them, and masks become numbers where they are computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from fusedrnn.cells.functions import FUNCTIONS, POWERS
from fusedrnn.cells.graph import Node, Operand
from fusedrnn.cells.refusals import Refused
from fusedrnn.cells.rules import SELU_ALPHA, SELU_SCALE

__all__ = ["CALLS", "as_mask", "as_value", "call", "is_mask"]

Call: TypeAlias = tuple[str, tuple[Any, ...]]


def call(op: str, args: Sequence[Any], kwargs: dict[str, Any], gives_mask: bool) -> Operand:
    """What an op computes, as a node of the definition.

    Args:
        op: an ATen op of `CALLS`.
        args, kwargs: its arguments, nodes in place of tensors; there is at least one.
        gives_mask: whether its result is of dtype bool.
    """
    name, operands = CALLS[op](*args, **kwargs)
    if gives_mask and not FUNCTIONS[name].gives_mask:
        if name not in _OF_MASKS:
            raise Refused(f"{name} of masks: make numbers of them first, mask.to(h.dtype)")
        name = _OF_MASKS[name]
    return _made(name, operands)


def is_mask(operand: Operand) -> bool:
    """Whether a node is true or false and no number."""
    return (
        isinstance(operand, Node) and operand.op in FUNCTIONS and (FUNCTIONS[operand.op].gives_mask)
    )


def as_value(operand: Operand) -> Operand:
    """An operand to compute with: masks become 1 and 0."""
    if isinstance(operand, Node) and is_mask(operand):
        return operand.graph.make("cast", operand)
    return operand


def as_mask(operand: Operand) -> Operand:
    """An operand as a condition: numbers other than 0 are true."""
    if isinstance(operand, Node) and not is_mask(operand):
        return operand.graph.make("ne", operand, 0.0)
    return operand


def _made(name: str, operands: tuple[Operand, ...]) -> Operand:
    """The node of a function, of operands that are masks where it takes masks."""
    masks = {"none": 0, "first": 1, "all": len(operands)}[FUNCTIONS[name].takes_masks]
    operands = (*map(as_mask, operands[:masks]), *map(as_value, operands[masks:]))
    graph = next(operand.graph for operand in operands if isinstance(operand, Node))
    if name == "pow" and operands[1] in (0.0, 1.0):
        return operands[0] if operands[1] else 1.0
    if name == "where":
        condition, *choices = operands
        if not isinstance(condition, Node):
            return choices[0] if condition else choices[1]
        if not any(isinstance(choice, Node) for choice in choices):
            operands = (condition, graph.make("full", choices[0]), choices[1])
    if name == "div" and _is_softsign(*operands):
        name, operands = "softsign", operands[:1]
    return graph.make(name, *operands)


def _is_softsign(x: Operand, divisor: Operand) -> bool:
    """Whether x is divided by 1 + |x|: then backward needs the quotient only."""
    if not isinstance(x, Node) or not isinstance(divisor, Node) or divisor.op != "add":
        return False
    terms = divisor.args
    sizes = [term for term in terms if isinstance(term, Node)]
    return (
        len(terms) == 2
        and 1.0 in terms
        and len(sizes) == 1
        and (sizes[0].op == "abs" and sizes[0].args == (x,))
    )


# Ops of which the function is another, or which have defaults.


def _same(name: str) -> Callable[..., Call]:
    return lambda *operands: (name, operands)


def _either_way(name: str, exchanged: str = "") -> Callable[..., Call]:
    """A function of two, the first of which is to be a node; `exchanged`, where it has a name."""

    def found(a: Operand, b: Operand) -> Call:
        return (name, (a, b)) if isinstance(a, Node) else (exchanged or name, (b, a))

    return found


def _add(a: Operand, b: Operand, *, alpha: float = 1.0) -> Call:
    if alpha != 1.0:
        return "add", (a, b, float(alpha))
    return _either_way("add")(a, b)


def _sub(a: Operand, b: Operand, *, alpha: float = 1.0) -> Call:
    extra = () if alpha == 1.0 else (float(alpha),)
    return ("sub", (a, b, *extra)) if isinstance(a, Node) else ("rsub", (b, a, *extra))


def _rsub(a: Operand, b: Operand, alpha: float = 1.0) -> Call:
    return _sub(b, a, alpha=alpha)


def _div(a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Call:
    if rounding_mode is not None:
        raise Refused(f"division that rounds ({rounding_mode}) has no gradient")
    return "div", (a, b)


def _pow(x: Operand, exponent: Operand) -> Call:
    if x == 2.0:
        return "exp2", (exponent,)
    if not isinstance(x, Node) or isinstance(exponent, Node):
        raise Refused(
            "a power with an exponent that is no number: torch.exp2(y) or "
            "torch.exp(y * math.log(number)); of two values, torch.exp(exponent * torch.log(y))"
        )
    if exponent not in (0.0, 1.0, *POWERS):
        known = ", ".join(f"{power:g}" for power in POWERS)
        raise Refused(
            f"a power of {exponent:g}: known are {known}; others as torch.exp({exponent:g} * "
            "torch.log(y)), of a positive y"
        )
    return "pow", (x, exponent)


def _elu(x: Node, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Call:
    if (alpha, scale, input_scale) == (SELU_ALPHA, SELU_SCALE, 1.0):
        return "selu", (x,)
    if (scale, input_scale) != (1.0, 1.0):
        raise Refused("elu with scales: multiply its operand and its result instead")
    return "elu", (x, float(alpha))


def _gelu(x: Node, *, approximate: str = "none") -> Call:
    return "gelu" if approximate == "none" else "gelu_tanh", (x,)


def _clamp(x: Node, min: Operand | None = None, max: Operand | None = None) -> Call:
    if max is None:
        return "clamp_min", (x, min)
    return ("clamp_max", (x, max)) if min is None else ("clamp", (x, min, max))


def _with_defaults(name: str, *defaults: float) -> Callable[..., Call]:
    """A function of one operand and these numbers."""

    def found(x: Node, *numbers: float) -> Call:
        return name, (x, *map(float, numbers), *defaults[len(numbers) :])

    return found


def _with_factor(name: str) -> Callable[..., Call]:
    """addcmul and addcdiv."""

    def found(a: Operand, b: Operand, c: Operand, *, value: float = 1.0) -> Call:
        return name, (a, b, c) if value == 1.0 else (a, b, c, float(value))

    return found


CALLS: dict[str, Callable[..., Call]] = {
    **{name: _same(name) for name in FUNCTIONS if name not in ("cast", "full")},
    **{name: _either_way(name) for name in ("mul", "maximum", "minimum", "eq", "ne")},
    **{f"bitwise_{name}": _same(f"logical_{name}") for name in ("and", "or", "xor", "not")},
    "gt": _either_way("gt", "lt"),
    "ge": _either_way("ge", "le"),
    "lt": _either_way("lt", "gt"),
    "le": _either_way("le", "ge"),
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "div": _div,
    "pow": _pow,
    "sgn": _same("sign"),
    "addcmul": _with_factor("addcmul"),
    "addcdiv": _with_factor("addcdiv"),
    "masked_fill": lambda x, mask, value: ("where", (mask, value, x)),
    "clamp": _clamp,
    "elu": _elu,
    "gelu": _gelu,
    "log_sigmoid_forward": _same("logsigmoid"),
    "leaky_relu": _with_defaults("leaky_relu", 0.01),
    "celu": _with_defaults("celu", 1.0),
    "softplus": _with_defaults("softplus", 1.0, 20.0),
    "hardtanh": _with_defaults("hardtanh", -1.0, 1.0),
    "softshrink": _with_defaults("softshrink", 0.5),
    "hardshrink": _with_defaults("hardshrink", 0.5),
    "threshold": _with_defaults("threshold"),
}
"""What an ATen op is, by its name: the function of the definition and its operands."""

_OF_MASKS = {
    "add": "logical_or",
    "mul": "logical_and",
    "maximum": "logical_or",
    "minimum": "logical_and",
}
"""Functions that are others of masks."""
