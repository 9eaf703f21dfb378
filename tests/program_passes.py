"""Both passes of a layer, run line by line as a program says: what every backend has to compute.

One layer in one direction, without packing; slow and strict: a line that reads what it must not
read yet, or a slot that is written twice or never, is an error.

    weights   w_ih [X*H, IN], b_ih [X*H]   rows of the gates that use x, in declared order
              w_hh [U*H, H], b_hh [U*H]   rows of the gates that use u
              w_unit [K, H]
    e         [T, E, B, H], the step inputs
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from fusedrnn.cells.passes import Line
from fusedrnn.cells.program import Program, Stage

OPERATIONS = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "fma": lambda a, b, c: a * b + c,
    "fms": lambda a, b, c: a * b - c,
    "fnma": lambda a, b, c: c - a * b,
    "where": lambda m, a, b: torch.where(m != 0, a, b),
    "copy": torch.clone,
    "neg": torch.neg,
    "reciprocal": torch.reciprocal,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sign": torch.sign,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "softplus": lambda x: torch.relu(x) + torch.log1p(torch.exp(-x.abs())),
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
}


@dataclass
class Operands:
    """What a layer is given; or the gradients of it."""

    input: Tensor  # [T, B, IN]
    states: list[Tensor]  # [B, H] each
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor
    w_unit: Tensor
    e: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All of them, by name."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "states"}
        return named | {f"state {i}": state for i, state in enumerate(self.states)}


def gates_using(program: Program, spaces: str) -> list[str]:
    """The gates that use x, or u, in declared order: those of the rows of W_ih, or W_hh."""
    used = {name for stage in program.stages for name in stage.gates.inputs}
    return [
        gate
        for gate in program.signature.gates
        if any(f"{space}.{gate}" in used for space in spaces)
    ]


class Sizes(NamedTuple):
    """Steps, sequences, features and units."""

    T: int = 4
    B: int = 3
    IN: int = 4
    H: int = 5


SMALL = Sizes()


def random_operands(program: Program, sizes: Sizes = SMALL, seed: int = 0) -> Operands:
    """Operands in float64, of moderate size."""
    T, B, IN, H = sizes
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    X, U = len(gates_using(program, "px")), len(gates_using(program, "pu"))
    signature = program.signature
    return Operands(
        input=random(T, B, IN),
        states=[random(B, H) for _ in signature.states],
        w_ih=random(X * H, IN),
        w_hh=random(U * H, H) / H**0.5,
        b_ih=random(X * H),
        b_hh=random(U * H),
        w_unit=random(len(signature.unit_weights), H),
        e=random(T, len(signature.step_inputs), B, H),
    )


def by_evaluation(program: Program, operands: Operands) -> tuple[Tensor, list[Tensor]]:
    """The output [T, B, H] and the final states: the definition, evaluated step by step."""
    H = operands.states[0].size(-1)
    of_x, of_u = gates_using(program, "px"), gates_using(program, "pu")
    called, signature = program.definition.called, program.signature
    w_hh = dict(zip(of_u, operands.w_hh.split(H), strict=True)) if of_u else {}
    b_hh = dict(zip(of_u, operands.b_hh.split(H), strict=True)) if of_u else {}
    states, outputs = operands.states, []
    for t, row in enumerate(operands.input):
        x = (row @ operands.w_ih.T + operands.b_ih).split(H, dim=-1) if of_x else ()

        def product(gate: str, operand: Tensor) -> Tensor:
            return operand @ w_hh[gate].T + b_hh[gate]

        states = list(
            program.evaluate(
                states,
                x=dict(zip(of_x, x, strict=True)),
                u={
                    gate: (lambda v, gate=gate: product(gate, v))
                    if gate in called
                    else product(gate, states[0])
                    for gate in of_u
                },
                w=dict(zip(signature.unit_weights, operands.w_unit, strict=True)),
                e=dict(zip(signature.step_inputs, operands.e[t], strict=True)),
            )
        )
        outputs.append(states[0])
    return torch.stack(outputs), states


class Slots:
    """The slots of one pass of one stage.

    Args:
        given: those that there are at first.
        read_again: the kinds of slots that can be read after they were written.
        written: the kinds that are written besides temporaries, each slot once.
    """

    def __init__(self, given: dict[str, Tensor], read_again: str, written: str) -> None:
        self.values = dict(given)
        self.read_again = {"t", *read_again.split()}
        self.kinds = {*written.split()}
        self.written: dict[str, Tensor] = {}

    def run(self, lines: Sequence[Line], like: Tensor) -> dict[str, Tensor]:
        """What the lines write, temporaries aside."""
        for line in lines:
            sources = [self.read(source, like) for source in line.sources]
            result = OPERATIONS[line.op](*sources).to(like.dtype).expand_as(like)
            kind = line.destination.rstrip("0123456789")
            if kind != "t":
                assert kind in self.kinds, f"{line}: nothing of this kind is written here"
                assert line.destination not in self.written, f"{line}: written twice"
                self.written[line.destination] = result
            self.values.pop(line.destination, None)
            if kind in self.read_again:
                self.values[line.destination] = result
        return self.written

    def read(self, name: str, like: Tensor) -> Tensor:
        if name.startswith("#"):
            return like.new_full((), float(name[1:]))
        assert name in self.values, f"{name} is read before it is there"
        return self.values[name]


def numbered(kind: str, tensors: Sequence[Tensor], first: int = 0) -> dict[str, Tensor]:
    return {f"{kind}{i}": tensor for i, tensor in enumerate(tensors, first)}


def taken(kind: str, slots: dict[str, Tensor]) -> dict[str, Tensor]:
    """The slots of a kind, which are no longer there."""
    return {name: slots.pop(name) for name in [*slots] if re.fullmatch(rf"{kind}\d*", name)}


@dataclass
class Step:
    """What a step leaves for backward."""

    before: list[Tensor]  # the states
    after: list[Tensor]
    saves: dict[str, Tensor] = field(default_factory=dict)
    results: list[Tensor] = field(default_factory=list)  # of each stage: the operand v, and h


class Layer:
    """A program with weights, that keeps what backward needs."""

    def __init__(self, program: Program, operands: Operands) -> None:
        self.program, self.operands = program, operands
        self.H = operands.states[0].size(-1)
        self.of_x, self.of_u = gates_using(program, "px"), gates_using(program, "pu")
        self.steps: list[Step] = []
        # The gradients of stage i begin at slot firsts[i], those of unit weights at the last.
        counts = [len(stage.gates.inputs) for stage in program.stages]
        self.firsts = [0, *accumulate(counts)]

    def rows_of_x(self, weight: Tensor, gate: str) -> Tensor:
        return weight.unflatten(0, (-1, self.H))[self.of_x.index(gate)]

    def rows_of_u(self, weight: Tensor, gate: str) -> Tensor:
        return weight.unflatten(0, (-1, self.H))[self.of_u.index(gate)]

    def always(self, t: int) -> dict[str, Tensor]:
        """What every pass of every stage can read."""
        return numbered("w", self.operands.w_unit) | numbered("e", self.operands.e[t])

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        """The output and the final states."""
        states = self.operands.states
        for t in range(len(self.operands.input)):
            states = self.step(t, states)
        return torch.stack([step.after[0] for step in self.steps]), states

    def step(self, t: int, states: list[Tensor]) -> list[Tensor]:
        """The states after step t."""
        step = Step(states, [])
        handed: dict[str, Tensor] = {}
        for stage in self.program.stages:
            is_last = stage is self.program.stages[-1]
            operand = step.results[0] if step.results else states[0]
            given = {"h": states[0]} | numbered("s", states[1:], 1) | handed | self.always(t)
            given |= self.accumulators(t, stage, operand)
            written = "save r s" if is_last else "save r k"
            found = Slots(given, "save s", written).run(stage.forward, states[0])
            saves = taken("save", found)
            assert {*saves} == {f"save{len(step.saves) + i}" for i in range(len(stage.saved))}
            step.saves |= saves
            step.results.append(found.pop("r"))
            handed = found
        step.after = [step.results[-1], *(found.pop(f"s{i}") for i in range(1, len(states)))]
        assert not found
        self.steps.append(step)
        return step.after

    def accumulators(self, t: int, stage: Stage, operand: Tensor) -> dict[str, Tensor]:
        """The products and late inputs of a stage."""
        o = self.operands

        def x(gate: str) -> Tensor:
            return o.input[t] @ self.rows_of_x(o.w_ih, gate).T + self.rows_of_x(o.b_ih, gate)

        def u(gate: str) -> Tensor:
            return operand @ self.rows_of_u(o.w_hh, gate).T + self.rows_of_u(o.b_hh, gate)

        found = {"p": lambda gate: x(gate) + u(gate), "u": u, "x": x}
        products = [found[name[0]](name[2:]) for name in stage.gates.products]
        late = [found[name[0]](name[2:]) for name in stage.gates.late_inputs]
        return numbered("p", products) | numbered("x", late)

    def backward(self, d_output: Tensor, d_final: Sequence[Tensor]) -> Operands:
        """The gradients of all operands."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in self.operands.tensors().items()}
        named = {name: tensor for name, tensor in zeros.items() if " " not in name}
        grads = Operands(states=[], **named)
        d_states = list(d_final)
        for t in reversed(range(len(self.steps))):
            d_states[0] = d_states[0] + d_output[t]
            d_states = self.step_back(t, d_states, grads)
        grads.states = d_states
        return grads

    def step_back(self, t: int, d_states: list[Tensor], grads: Operands) -> list[Tensor]:
        """The gradients of the states before step t; adds to those of what all steps have."""
        d_result, ds = d_states[0], numbered("ds", d_states[1:], 1)
        expected = {*ds}
        left: dict[str, Tensor] = {}  # by the later stage
        g: dict[str, Tensor] = {}
        de: dict[str, Tensor] = {}
        done: dict[str, Tensor] = {}
        for index in reversed(range(len(self.program.stages))):
            given = {"dr": d_result} | ds | left
            left = self.stage_back(t, index, given)
            assert not ({*g} | {*de} | {*done}) & {*left}, "written by both stages"
            de |= taken("de", left)
            done |= taken("ds", left)
            ds = {name: d for name, d in ds.items() if name not in done}
            of_stage = taken("g", left)
            g |= of_stage
            d_result = self.through_products(t, index, g, grads)
        assert {*done} == expected and len(g) == self.firsts[-1] + len(grads.w_unit)
        assert len(de) == grads.e.size(1)
        for k in range(len(grads.w_unit)):
            grads.w_unit[k] += g[f"g{self.firsts[-1] + k}"].sum(0)
        for k in range(grads.e.size(1)):
            grads.e[t, k] = de[f"de{k}"]
        d_h = d_result + left.pop("carry") if self.program.has_carry else d_result
        assert not left
        return [d_h, *(done[f"ds{i}"] for i in range(1, len(d_states)))]

    def stage_back(self, t: int, index: int, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a stage writes; the result that it restores, if it does, is compared."""
        stage, step = self.program.stages[index], self.steps[t]
        given = given | step.saves | self.always(t)
        if stage.needs != "nothing":
            given["h"] = (step.before if stage.needs == "h_prev" else step.after)[0]
        written = "g ds de"
        written += " carry" if self.program.has_carry else ""
        written += " dk" if index == 1 else ""
        restores = index + 1 < len(self.program.stages)
        if restores or any(line.destination == "r" for line in stage.backward):
            written += " r"
        found = Slots(given, "g ds de", written).run(stage.backward, given["dr"])
        if "r" in written.split():
            restored = found.pop("r")
            torch.testing.assert_close(restored, step.results[index], rtol=1e-14, atol=1e-14)
        assert ("carry" in found) == self.program.has_carry
        return found

    def through_products(self, t: int, index: int, g: dict[str, Tensor], grads: Operands) -> Tensor:
        """The gradient of a stage's operand; adds to those of weights and the input."""
        o, step = self.operands, self.steps[t]
        operand = step.results[0] if index else step.before[0]
        d_operand = torch.zeros_like(operand)
        for i, name in enumerate(self.program.stages[index].gates.inputs, self.firsts[index]):
            kind, gate, d = name[0], name[2:], g[f"g{i}"]
            if kind in "pu":
                d_operand += d @ self.rows_of_u(o.w_hh, gate)
                self.rows_of_u(grads.w_hh, gate).add_(d.T @ operand)
                self.rows_of_u(grads.b_hh, gate).add_(d.sum(0))
            if kind in "px":
                grads.input[t] += d @ self.rows_of_x(o.w_ih, gate)
                self.rows_of_x(grads.w_ih, gate).add_(d.T @ o.input[t])
                self.rows_of_x(grads.b_ih, gate).add_(d.sum(0))
        return d_operand


def largest_error(program: Program, sizes: Sizes = SMALL, seed: int = 0) -> dict[str, float]:
    """By name, of outputs and all gradients, against autograd of the definition."""
    operands = random_operands(program, sizes, seed)
    leaves = {name: leaf for name, leaf in operands.tensors().items() if leaf.numel()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    output, final = by_evaluation(program, operands)
    results = {"output": output} | {f"final {i}": state for i, state in enumerate(final)}
    draw = torch.Generator().manual_seed(seed + 1)
    ds = {
        name: torch.rand(value.shape, generator=draw, dtype=torch.float64) - 0.5
        for name, value in results.items()
    }
    learned = [name for name, value in results.items() if value.requires_grad]
    of_leaves = torch.autograd.grad(
        [results[name] for name in learned],
        [*leaves.values()],
        [ds[name] for name in learned],
        allow_unused=True,
    )
    expected = {name: value.detach() for name, value in results.items()}
    for (name, leaf), gradient in zip(leaves.items(), of_leaves, strict=True):
        expected[f"d {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    with torch.no_grad():
        layer = Layer(program, operands)
        output, final = layer.forward()
        found = {"output": output} | {f"final {i}": state for i, state in enumerate(final)}
        d_output, *d_final = ds.values()
        gradients = layer.backward(d_output, d_final).tensors()
        found |= {f"d {name}": value for name, value in gradients.items()}
    errors = {}
    for name, value in expected.items():
        assert torch.isfinite(value).all(), f"{name}: the test itself is no good"
        scale = max(1.0, float(value.abs().max()))
        errors[name] = float((found[name] - value).abs().max()) / scale
    return errors
