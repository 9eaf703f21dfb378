"""What cannot be a cell is refused where it is defined, in words that say why and what to do."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedrnn.cells.definition import CellError
from fusedrnn.cells.written import WrittenCell, cell

VECTOR, LEARNED = torch.ones(5), nn.Parameter(torch.tensor(2.0))
LINEAR, RANDOM = nn.Linear(3, 3), random.Random(0)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y * 2

    @staticmethod
    def backward(ctx, d):
        return d


def returned(make: Callable[..., Any], **options: str) -> Callable[[], WrittenCell]:
    """Defines a cell of one gate a that returns `make(y, h)`, y being x.a + u.a."""

    def define() -> WrittenCell:
        def written(x, u, h):
            return make(x.a + u.a, h)

        return cell(gates="a", **options)(written)

    return define


def written_to(h: Tensor) -> Tensor:
    return h.mul_(0.5)


def many_times(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    for _ in range(1200):
        y = function(y)
    return y


def written_without_gradient(y: Tensor) -> Tensor:
    with torch.no_grad():
        y += 1
    return y


def indexed(y: Tensor) -> Tensor:
    y[y > 0] = 0.5
    return y


NOT_POINTWISE = "is not pointwise, and a cell sees one unit of one sequence at a time"
BODIES: dict[str, tuple[Callable[..., Any], str]] = {
    "branch": (lambda y, h: y if h > 0 else h, r"__bool__: a branch .* torch\.where"),
    "branch on all": (lambda y, h: y if (h > 0).all() else h, r"Tensor\.all .* torch\.where"),
    "max of Python": (lambda y, h: max(y, h), r"a branch on a tensor's values"),
    "equal": (lambda y, h: y if torch.equal(y, h) else h, r"torch\.equal: a branch"),
    "item": (lambda y, h: y * h[0, 0].item(), f"__getitem__ {NOT_POINTWISE}"),
    "float": (lambda y, h: y * float(h), r"__float__ needs a tensor's values"),
    "math": (lambda y, h: math.tanh(y), "not those of math or numpy"),
    "numpy": (lambda y, h: np.tanh(y), "not those of math or numpy"),
    "numpy and back": (lambda y, h: torch.from_numpy(y.numpy()), "not those of math or numpy"),
    "softmax": (lambda y, h: torch.softmax(y, -1), f"torch.softmax {NOT_POINTWISE}.*outside"),
    "layer_norm": (lambda y, h: F.layer_norm(y, (3,)), f"layer_norm {NOT_POINTWISE}"),
    "batch_norm": (lambda y, h: F.batch_norm(y, VECTOR, VECTOR), f"batch_norm {NOT_POINTWISE}"),
    "mean": (lambda y, h: y - h.mean(), f"Tensor.mean {NOT_POINTWISE}"),
    "cumsum": (lambda y, h: y.cumsum(-1), f"Tensor.cumsum {NOT_POINTWISE}"),
    "matmul": (lambda y, h: y @ h.T, f"Tensor.T {NOT_POINTWISE}"),
    "weights": (lambda y, h: y @ torch.ones(3, 3), f"Tensor.matmul {NOT_POINTWISE}.* a gate for"),
    "module": (lambda y, h: LINEAR(y), f"linear {NOT_POINTWISE}.*u.<gate>"),
    "index": (lambda y, h: y * h[:, 0], f"Tensor.__getitem__ {NOT_POINTWISE}"),
    "index of a mask": (lambda y, h: indexed(y + 0.1), r"__setitem__ .*torch\.where"),
    "chunk": (lambda y, h: y.chunk(2)[0], f"Tensor.chunk {NOT_POINTWISE}.* a gate for each part"),
    "glu": (lambda y, h: F.glu(y), f"glu {NOT_POINTWISE}.* a gate for each part"),
    "cat": (lambda y, h: torch.cat([y, h]), f"torch.cat {NOT_POINTWISE}"),
    "roll": (lambda y, h: torch.roll(y, 1), f"torch.roll {NOT_POINTWISE}.*products u"),
    "view": (lambda y, h: y.view(-1), f"Tensor.view {NOT_POINTWISE}.*same shape"),
    "shape": (lambda y, h: y / h.shape[-1], r"Tensor\.shape: .* does not know how many"),
    "len": (lambda y, h: y / len(h), r"Tensor\.__len__: .* does not know how many"),
    "zeros": (lambda y, h: y + torch.zeros(h.size()), r"size.*torch\.zeros_like"),
    "dropout": (lambda y, h: F.dropout(y), "dropout is random.*features of the input"),
    "rand_like": (lambda y, h: y * torch.rand_like(h), r"torch\.rand_like is random"),
    "rand": (lambda y, h: y * torch.rand(()), r"torch\.rand is random"),
    "randomness of Python": (lambda y, h: y * RANDOM.random(), "something else when it runs again"),
    "parameter": (lambda y, h: y * LEARNED, 'a parameter from outside .* weights="name"'),
    "tensor": (lambda y, h: y * VECTOR, r"a tensor of shape \(5,\) from outside"),
    "new tensor": (lambda y, h: y + torch.ones(2, 3), r"shape \(2, 3\) from outside"),
    "prelu": (lambda y, h: F.prelu(y, torch.ones(1)), "prelu .*w.slope"),
    "in place": (lambda y, h: written_to(h) + y, r"mul_ writes to an argument"),
    "in place, shared": (lambda y, h: y.detach() + y.mul_(2), "shares its memory"),
    "in place, no_grad": (lambda y, h: written_without_gradient(y), "without gradient"),
    "out": (lambda y, h: torch.tanh(y, out=torch.empty_like(y)), "with out=..."),
    "cast": (lambda y, h: y.half(), "changes the dtype of a value"),
    "floor": (lambda y, h: torch.floor(y), r"torch\.floor .* flat"),
    "floor division": (lambda y, h: y // 2, "__floordiv__ .* flat"),
    "rounding division": (lambda y, h: torch.div(y, 2, rounding_mode="floor"), "has no gradient"),
    "nan_to_num": (lambda y, h: torch.nan_to_num(y), r"nan_to_num .* torch\.where"),
    "fmax": (lambda y, h: torch.fmax(y, h), r"fmax .* torch\.maximum"),
    "atan": (lambda y, h: torch.atan(y), r"atan is not a function .* There are add, sub"),
    "power": (lambda y, h: y**1.5, r"a power of 1\.5: known are .* torch\.exp"),
    "power of a value": (lambda y, h: y**h, "exponent that is no number"),
    "power of a number": (lambda y, h: 10**y, r"torch\.exp\(y \* math\.log\(number\)\)"),
    "own gradient": (lambda y, h: Doubled.apply(y), "Doubled is a torch.autograd.Function"),
    "too many states": (lambda y, h: (y, h), r"as many states as are declared \(h\), got 2"),
    "nothing": (lambda y, h: None, "a tensor as the next h, got NoneType"),
    "constant": (lambda y, h: torch.ones_like(y), "the next h is 1, whatever the input is"),
    "too large": (lambda y, h: many_times(torch.sin, y), "too large: .* 1000 operations"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_refused(name: str) -> None:
    body, why = BODIES[name]
    with pytest.raises(CellError, match=why) as refusal:
        returned(body)()
    assert str(refusal.value).startswith("written: ")
    if name not in ("too many states", "nothing", "constant", "too large", "own gradient"):
        found = [frame.name for frame in refusal.traceback]
        assert "written" in found or "again" in why, "the user's line is in the traceback"


def second_products(gates: str, make: Callable[..., Any]) -> Callable[[], WrittenCell]:
    return lambda: cell(gates=gates)(lambda x, u, h: make(u, h))


DECLARATIONS: dict[str, tuple[Callable[[], WrittenCell], str]] = {
    "unknown gate": (second_products("f n", lambda u, h: u.g), "u.g: no gate is called g;.* f, n"),
    "unused gate": (second_products("f n", lambda u, h: u.f), "depends on the gate n: use x.n or"),
    "no product": (lambda: cell(gates="f")(lambda x, u, h: x.f), "no gate uses u"),
    "set": (second_products("f", lambda u, h: setattr(u, "f", h)), "u.f = ...: arguments stay"),
    "both ways": (second_products("f", lambda u, h: u.f + u.f(h * 2)), "u.f is used both"),
    "two operands": (second_products("f n", lambda u, h: u.f(h * 2) + u.n(h * 3)), "got another"),
    "third product": (second_products("f n", lambda u, h: u.f(u.n(h * 2))), "has only one"),
    "product of a number": (second_products("f", lambda u, h: u.f(2.0)), "a value of the cell"),
    "unused weight": (
        lambda: cell(gates="f", weights="p")(lambda x, u, w, h: u.f),
        "depends on w.p",
    ),
    "unused input": (
        lambda: cell(gates="f", step_inputs="s")(lambda x, u, e, h: u.f),
        "depends on e.s",
    ),
    "arguments": (
        lambda: cell(gates="f", states="h c", weights="p")(lambda x, u, h, c: (u.f, c)),
        r"expected a function of \(x, u, w, h, c\), got one of \(x, u, h, c\)",
    ),
    "name": (lambda: cell(gates="f-1")(lambda x, u, h: h), "gates: 'f-1' cannot be a name"),
    "keyword": (lambda: cell(gates="in")(lambda x, u, h: h), "gates: 'in' cannot be a name"),
    "number": (
        lambda: cell(gates="f", states="inf")(lambda x, u, inf: inf),
        "states: 'inf' cannot",
    ),
    "twice": (lambda: cell(gates="f f")(lambda x, u, h: h), "gates: 'f' is there twice"),
    "none": (lambda: cell(gates="")(lambda x, u, h: h), "gates: expected at least one"),
    "five states": (lambda: cell(gates="f", states="a b c d e")(print), "at most 4 names, got 5"),
    "rule": (lambda: cell(gates="f", weights="p", init="normal")(print), "init: .* got 'normal'"),
    "rules": (lambda: cell(gates="f", weights="p q r", init="ones ones")(print), "init: .* got 2"),
    "rule of none": (lambda: cell(gates="f", weights="p", init={"q": 1})(print), "'q' is none of"),
}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_declarations_that_are_refused(name: str) -> None:
    define, why = DECLARATIONS[name]
    with pytest.raises(CellError, match=why):
        define()


def test_an_unknown_name_is_an_attribute_error() -> None:
    def written(x, u, h):
        return u.f if hasattr(x, "q") else torch.tanh(x.f + u.f)

    assert cell(gates="f")(written).gates == ("f",)
    with pytest.raises(AttributeError, match="written: x.q: no gate is called q; declared: f"):
        returned_by_name()


def returned_by_name() -> WrittenCell:
    @cell(gates="f")
    def written(x, u, h):
        return x.q

    return written


def test_errors_of_the_function_are_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        returned(lambda y, h: y * (1 // 0))()
