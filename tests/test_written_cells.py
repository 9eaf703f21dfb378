"""Cells written in Python: what is read from a function, and what both passes then compute.

No kernel runs here: tests/program_passes.py is the layer that runs a program, line by line.
"""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program_passes import Sizes, by_evaluation, gates_using, largest_error, random_operands
from random_cells import random_cell
from torch import Tensor

from fusedrnn.cells.arguments import Product
from fusedrnn.cells.definition import CellError
from fusedrnn.cells.program import Program
from fusedrnn.cells.written import WrittenCell, cell

sigmoid, tanh = torch.sigmoid, torch.tanh
TOLERANCE = 1e-10


@cell(gates="a")
def rnn_tanh(x, u, h):
    return tanh(x.a + u.a)


@cell(gates="a")
def rnn_relu(x, u, h):
    return torch.relu(x.a + u.a)


@cell(gates="a")
def rnn_softsign(x, u, h):
    return F.softsign(x.a + u.a)


@cell(gates="a")
def rnn_gelu(x, u, h):
    return F.gelu(x.a + u.a, approximate="tanh")


@cell(gates="i f g o", states="h c")
def lstm(x, u, h, c):
    """Long short-term memory."""
    i, f, o = sigmoid(x.i + u.i), sigmoid(x.f + u.f), sigmoid(x.o + u.o)
    c = f * c + i * tanh(x.g + u.g)
    return o * tanh(c), c


@cell(gates="i f g o", states="h c")
def lstm_hard(x, u, h, c):
    i, f, o = (F.hardsigmoid(getattr(x, g) + getattr(u, g)) for g in "ifo")
    c = f * c + i * F.softsign(x.g + u.g)
    return o * F.softsign(c), c


@cell(gates="i f g o", states="h c")
def lstm_with_skip(x, u, h, c):
    i, f, o = sigmoid(x.i + u.i), sigmoid(x.f + u.f), sigmoid(x.o + u.o)
    c = f * c + i * tanh(x.g + u.g)
    return o * tanh(c) + 0.5 * h, c


@cell(gates="i f g o", states="h c", weights="p_i p_f p_o", init="zeros ones 0.5")
def lstm_with_peepholes(x, u, w, h, c):
    i, f = sigmoid(x.i + w.p_i * c + u.i), sigmoid(u.f + (w.p_f * c + x.f))
    c = f * c + i * tanh(x.g + u.g)
    return sigmoid(x.o + u.o + w.p_o * c) * tanh(c), c


@cell(gates="f g o", states="h c")
def cifg(x, u, h, c):
    f, o = sigmoid(x.f + u.f), sigmoid(x.o + u.o)
    c = f * c + (1 - f) * tanh(x.g + u.g)
    return o * tanh(c), c


@cell(gates="r z n")
def gru(x, u, h):
    r, z = sigmoid(x.r + u.r), sigmoid(x.z + u.z)
    n = tanh(x.n + r * u.n)
    return (1 - z) * n + z * h


@cell(gates="r z n")
def gru_by_difference(x, u, h):
    r, z = sigmoid(x.r + u.r), sigmoid(x.z + u.z)
    n = tanh(x.n + r * u.n)
    return n + z * (h - n)


@cell(gates="r z n")
def gru_reset_before(x, u, h):
    r, z = sigmoid(x.r + u.r), sigmoid(x.z + u.z)
    n = tanh(x.n + u.n(r * h))
    return n + z * (h - n)


@cell(gates="f n")
def mgu(x, u, h):
    f = sigmoid(x.f + u.f)
    n = tanh(x.n + f * u.n)
    return (1 - f) * h + f * n


@cell(gates="f g")
def janet(x, u, h):
    s = x.f + u.f
    return sigmoid(s) * h + (1 - sigmoid(s - 1)) * tanh(x.g + u.g)


@cell(gates="z a")
def ligru(x, u, h):
    z = sigmoid(x.z + u.z)
    return z * h + (1 - z) * torch.relu(x.a + u.a)


@cell(gates="g c")
def ugrnn(x, u, h):
    return torch.lerp(tanh(x.c + u.c), h, sigmoid(x.g + u.g + 1.0))


@cell(gates="a b t", states="h c", inputs="rate mask")
def with_inputs(x, u, e, h, c):
    c = torch.where(e.mask > 0, c * e.rate, c) + tanh(x.t)
    return tanh(x.a + u.a + c) * sigmoid(u.b), c


KEPT = {
    rnn_tanh: ("", "h"),
    rnn_relu: ("", "h"),
    rnn_softsign: ("", "h"),
    rnn_gelu: ("v0", "nothing"),
    lstm: ("i f g o c_prev", "nothing"),
    lstm_hard: ("g c_prev v0 v1 v2", "nothing"),
    lstm_with_skip: ("i f g o c_prev", "nothing"),
    lstm_with_peepholes: ("i f g o c_prev", "nothing"),
    cifg: ("f g o c_prev", "nothing"),
    gru: ("n' r z n", "h_prev"),
    gru_by_difference: ("n' r z n", "h_prev"),
    gru_reset_before: ("r z n", "h_prev h_prev"),
    mgu: ("n' f n", "h_prev"),
    janet: ("f g v0", "h_prev"),
    ligru: ("z a", "h_prev"),
    ugrnn: ("g c", "h_prev"),
    with_inputs: ("a b t c_prev", "nothing"),
}


@pytest.mark.parametrize("written", KEPT, ids=lambda written: written.name)
def test_what_is_kept(written: WrittenCell) -> None:
    """As little as in the cells written by hand."""
    program = written.compiled()
    needs = " ".join(stage.needs for stage in program.stages)
    assert (" ".join(program.saved), needs) == KEPT[written]


@pytest.mark.parametrize("written", KEPT, ids=lambda written: written.name)
def test_passes_of_known_cells(written: WrittenCell) -> None:
    errors = largest_error(written.compiled())
    assert max(errors.values()) < TOLERANCE, errors


PROJECTABLE = [rnn_tanh, rnn_gelu, lstm, lstm_hard, lstm_with_peepholes, cifg, with_inputs]


@pytest.mark.parametrize("written", PROJECTABLE, ids=lambda written: written.name)
def test_projected_layers_restore_h(written: WrittenCell) -> None:
    program = written.compiled(projected=True)
    assert [stage.needs for stage in program.stages] == ["nothing"]
    assert any(line.destination == "r" for line in program.stages[-1].backward)
    errors = largest_error(program)  # the layer compares the restored h
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (gru, "uses h itself"),
        (lstm_with_skip, "uses h itself"),
        (gru_reset_before, "second product"),
    ],
)
def test_what_cannot_be_projected(written: WrittenCell, why: str) -> None:
    with pytest.raises(CellError, match=f"{written.name}: its h cannot be projected: .*{why}"):
        written.program_for(projected=True)


# Programs of random cells.


@pytest.mark.parametrize("first", range(0, 150, 10))
def test_passes_of_random_cells(first: int) -> None:
    for seed in range(first, first + 10):
        written = random_cell(seed)
        program = Program.parse(written.program)
        assert Program.of(program.definition, program.stages).text == written.program
        assert program.stages == written.compiled().stages
        for variant in {program, projected_if_possible(written)}:
            errors = largest_error(variant, Sizes(T=3), seed)
            assert max(errors.values()) < TOLERANCE, (seed, variant.text, errors)


def projected_if_possible(written: WrittenCell) -> Program:
    try:
        return written.compiled(projected=True)
    except CellError:
        return written.compiled()


def eagerly(written: WrittenCell, program: Program, seed: int) -> tuple[Any, Any]:
    """One step by the function itself and by evaluation of its program."""
    operands = random_operands(program, Sizes(T=1, H=4), seed)
    draw = torch.Generator().manual_seed(seed)

    def values(names: tuple[str, ...]) -> dict[str, Tensor]:
        return {n: torch.rand(3, 4, generator=draw, dtype=torch.float64) * 3 - 1.5 for n in names}

    def product(operand: Tensor) -> Tensor:
        return operand.flip(-1) * 0.7

    x, u = values(written.gates), values(written.gates)
    w, e = values(written.weights), values(written.inputs)
    products = {gate: Product.made_of(tensor, product) for gate, tensor in u.items()}
    spaces = [SimpleNamespace(**names) for names in (x, products, w, e) if names]
    by_function = written(*spaces, *operands.states)
    called = {gate: product if gate in program.definition.called else u[gate] for gate in u}
    return by_function, program.evaluate(operands.states, x, called, w, e)


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_programs_are_the_functions_bit_for_bit(first: int) -> None:
    for seed in range(first, first + 50):
        written = random_cell(seed)
        by_function, by_program = eagerly(written, Program.parse(written.program), seed)
        for one, other in zip(by_function, by_program, strict=True):
            assert torch.equal(one.expand_as(other), other), seed


DIGEST = """
import hashlib, sys
sys.path.insert(0, {tests!r})
from random_cells import random_cell
texts = "".join(random_cell(seed).program for seed in range({count}))
print(hashlib.sha256(texts.encode()).hexdigest(), "torch._dynamo" in sys.modules)
"""


def test_programs_are_the_same_in_every_process() -> None:
    count, tests = 30, os.path.dirname(os.path.abspath(__file__))
    texts = "".join(random_cell(seed).program for seed in range(count))
    found = subprocess.run(
        [sys.executable, "-c", DIGEST.format(tests=tests, count=count)],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        check=True,
        capture_output=True,
        text=True,
    )
    digest, has_imported = found.stdout.split()
    assert digest == hashlib.sha256(texts.encode()).hexdigest()
    assert has_imported == "False", "defining a cell imports Dynamo, which takes seconds"


# How a gate's input and product are used.


@cell(gates="a b c d e")
def all_kinds(x, u, h):
    joint = x.a + (0.5 * x.c + (1.0 + u.a))  # in any order
    return tanh(joint + u.b * x.b) * sigmoid(u.d) + tanh(x.e + u.e(tanh(x.c) * h))


def test_uses_of_gates() -> None:
    first, second = (stage.gates for stage in all_kinds.compiled().stages)
    assert (first.apart, first.joint, first.late) == (("b", "d"), ("a",), ("c",))
    assert (second.apart, second.joint, second.late) == ((), ("e",), ("b",))
    assert first.products == ["u.b", "u.d", "p.a"] and second.inputs == ["x.b", "p.e"]
    assert gates_using(all_kinds.compiled(), "px") == ["a", "b", "c", "e"]
    errors = largest_error(all_kinds.compiled())
    assert max(errors.values()) < TOLERANCE, errors


def test_sums_that_something_else_uses_are_not_joint() -> None:
    @cell(gates="a b c")
    def written(x, u, h):
        a, b = x.a + 1, x.b + u.b
        return tanh(a + u.a) * a + b * tanh(b) + torch.add(x.c, u.c, alpha=2)

    (stage,) = written.compiled().stages
    assert (stage.gates.apart, stage.gates.joint) == (("a", "c"), ("b",))
    assert stage.gates.late == ("a", "c")
    assert max(largest_error(written.compiled()).values()) < TOLERANCE


def test_states_in_place() -> None:
    """States that take each other's place, stay, or are forgotten."""

    @cell(gates="a", states="h c d e")
    def shifted(x, u, h, c, d, e):
        return tanh(x.a + u.a + e), d, c, h

    @cell(gates="a", states="h c d e")
    def kept(x, u, h, c, d, e):
        new = tanh(x.a + u.a)
        return new, c, new * d, torch.zeros_like(e)

    for written in (shifted, kept):
        assert max(largest_error(written.compiled()).values()) < TOLERANCE


def test_second_product_of_what_there_is() -> None:
    """A state, an input, a weight; with no product in the first stage."""

    @cell(gates="a", states="h c")
    def of_state(x, u, h, c):
        new = tanh(x.a + u.a(c))
        return new, 0.5 * c + new

    @cell(gates="a b", weights="w")
    def of_weight(x, u, w, h):
        return tanh(x.a + u.a(w.w) + u.b * h)

    @cell(gates="a b", inputs="s")
    def of_input(x, u, e, h):
        return tanh(u.a(e.s * x.b)) * e.s + x.b

    for written in (of_state, of_weight, of_input):
        assert max(largest_error(written.compiled()).values()) < TOLERANCE


# The object.


def test_the_object() -> None:
    written = lstm_with_peepholes
    assert (written.name, written.gates, written.states) == (
        "lstm_with_peepholes",
        ("i", "f", "g", "o"),
        ("h", "c"),
    )
    assert written.weights == ("p_i", "p_f", "p_o") and written.init == ("zeros", "ones", 0.5)
    assert written.inputs == () and with_inputs.inputs == ("rate", "mask")
    assert lstm.__doc__ == "Long short-term memory." and lstm.__name__ == "lstm"
    assert repr(mgu) == "<cell mgu(gates='f n', states='h')>"
    by_name = cell(gates="a", weights="p q", init={"q": 0.25})(
        lambda x, u, w, h: (x.a + u.a) * w.p + w.q
    )
    assert by_name.init == ("uniform", 0.25) and by_name.name == "cell"


def test_copies_have_the_program_and_not_the_function() -> None:
    for written in (lstm_with_peepholes, gru_reset_before, with_inputs):
        for again in (pickle.loads(pickle.dumps(written)), copy.deepcopy(written)):
            assert again == written and hash(again) == hash(written) and again is not written
            assert again.program == written.program
            program = written.compiled()
            for one, other in zip(*map(list, eagerly_both(written, again, program)), strict=True):
                assert torch.equal(one, other)
    assert lstm != cifg


def eagerly_both(one: WrittenCell, other: WrittenCell, program: Program) -> list[Any]:
    found = [eagerly(each, program, 0)[0] for each in (one, other)]
    return [each if isinstance(each, tuple) else (each,) for each in found]


def test_closures_are_programs_of_their_own() -> None:
    def leaky(slope: float) -> WrittenCell:
        @cell(gates="a")
        def leaky(x, u, h):
            return F.leaky_relu(x.a + u.a, slope)

        return leaky

    assert leaky(0.1) == leaky(0.1) and leaky(0.1) != leaky(0.2)


def test_defined_anywhere() -> None:
    """The modes of the place where a cell is defined are not part of it."""
    autocast, meta = torch.autocast("cpu", torch.bfloat16), torch.device("meta")
    for mode in (torch.no_grad(), torch.inference_mode(), autocast, meta):
        with mode:
            again = cell(gates="i f g o", states="h c")(lstm._function)
        assert again == lstm


@pytest.mark.parametrize("line", ["cell 2 mgu", "define", "%0 = add x.f u.q", "%0 = what x.f"])
def test_texts_that_are_no_programs(line: str) -> None:
    lines = mgu.program.splitlines()
    number = next(i for i, old in enumerate(lines) if old.split()[0] == line.split()[0])
    with pytest.raises(ValueError, match="program of a cell"):
        Program.parse("\n".join([*lines[:number], line, "?", *lines[number + 1 :]]))


def test_explanation() -> None:
    told = gru_reset_before.explain()
    for words in (
        "gru_reset_before(x, u, h)",
        "n: x.n + u.n(v)",
        "kept        3 for each unit and step: r z n",
        "h before the step is read from the output",
        "forward     7 operations, 3 of them transcendental",
        "    r = sigmoid(x.r + u.r)",
        "    t0 = h - n    (again)",
        "    d(x.n + u.n(v)) = t0 * t1",
    ):
        assert words in told, told


def test_evaluation_has_second_derivatives() -> None:
    program = lstm.compiled()
    operands = random_operands(program, Sizes(T=2, B=2, IN=2, H=3))
    leaves = [leaf.requires_grad_() for leaf in (operands.input, operands.w_ih, operands.w_hh)]

    def output(*leaves: Tensor) -> Tensor:
        operands.input, operands.w_ih, operands.w_hh = leaves
        return by_evaluation(program, operands)[0]

    assert torch.autograd.gradgradcheck(output, leaves, atol=1e-4)
