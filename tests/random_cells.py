"""Random cells for property tests: any functions, gates of all kinds, up to four states.

A cell is drawn as a recipe, a list of steps that each make one more value, and its function follows
the recipe. Operands are kept where functions are finite and gradients moderate, and states bounded,
so that two correct computations agree to rounding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn.cells.written import WrittenCell, cell

OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda y: F.leaky_relu(y, 0.1),
    "leaky_relu_down": lambda y: F.leaky_relu(y, -0.2),
    "elu": lambda y: F.elu(y, 0.7),
    "celu": lambda y: F.celu(y, 1.5),
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softplus_steep": lambda y: F.softplus(y, beta=2.0, threshold=1.0),
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "clamp": lambda y: y.clamp(-0.6, 0.9),
    "clamp_min": lambda y: y.clamp(min=-0.3),
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda y: F.softshrink(y, 0.2),
    "hardshrink": lambda y: F.hardshrink(y, 0.2),
    "threshold": lambda y: F.threshold(y, 0.1, -0.2),
    "neg": torch.neg,
    "abs": torch.abs,
    "square": lambda y: torch.tanh(y).square(),
    "cube": lambda y: torch.tanh(y) ** 3,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": lambda y: torch.exp(torch.tanh(y)),
    "exp2": lambda y: torch.exp2(torch.sin(y)),
    "expm1": lambda y: torch.expm1(torch.tanh(y)),
    "log": lambda y: torch.log(F.softplus(y) + 0.1),
    "log2": lambda y: torch.log2(y * y + 0.5),
    "log1p": lambda y: torch.log1p(y.abs()),
    "sqrt": lambda y: torch.sqrt(y * y + 0.1),
    "rsqrt": lambda y: torch.rsqrt(y * y + 0.5),
    "reciprocal": lambda y: 1 / (1 + y * y),
    "power": lambda y: (y.abs() + 0.5) ** -2,
    "root": lambda y: (y.abs() + 0.5) ** -0.5,
    "affine": lambda y: 0.3 - 0.7 * y,
    "half": lambda y: y / 2 + 0.25,
    "sign": lambda y: torch.sign(y) * y,
    "gated": lambda y: (y > 0.1).to(y.dtype) * y,
    "detach": lambda y: y.detach() * 0.5,
    "in_place": lambda y: (y + 0.1).mul_(0.5).tanh_(),
}
OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "add_scaled": lambda a, b: torch.add(a, b, alpha=0.4),
    "sub": torch.sub,
    "mul": lambda a, b: torch.tanh(a) * b,
    "gate": lambda a, b: torch.sigmoid(a) * b,
    "div": lambda a, b: a / (1 + b.abs()),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": lambda a, b: torch.where((a > b) & ~(b > 0.5), a, b),
    "clamp_between": lambda a, b: torch.clamp(a, torch.minimum(b, a * 0.5), b + 0.3),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
}
OF_THREE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "lerp_by": lambda a, b, c: torch.lerp(a, b, torch.sigmoid(c)),
    "addcmul": lambda a, b, c: torch.addcmul(a, torch.tanh(b), torch.tanh(c), value=0.5),
    "addcdiv": lambda a, b, c: torch.addcdiv(a, torch.tanh(b), 1 + c * c, value=0.5),
    "mixed": lambda a, b, c: torch.sigmoid(a) * b + (1 - torch.sigmoid(a)) * c,
}
FUNCTIONS = {**OF_ONE, **OF_TWO, **OF_THREE}

Values = list[Tensor]


def random_cell(seed: int, *, second_product: bool | None = None) -> WrittenCell:
    """The cell of a number: with a second product or without; if not told, one in three has it."""
    recipe = Recipe(random.Random(seed), second_product)
    function = recipe.function
    return cell(
        gates=" ".join(recipe.kinds),
        states=" ".join(recipe.states),
        weights=" ".join(recipe.weights),
        step_inputs=" ".join(recipe.inputs),
    )(function)


class Recipe:
    """What a random cell computes.

    Values are numbered as they come: what is read, the results of `early` steps, the second
    products and what is read with them, the results of `late` steps. What no step uses goes into
    the last state.
    """

    def __init__(self, draw: random.Random, second_product: bool | None) -> None:
        names = [f"g{i}" for i in range(draw.randint(1, 6))]
        self.kinds = {gate: draw.choice(("joint", "joint", "apart", "x", "u")) for gate in names}
        self.kinds[names[0]] = draw.choice(("joint", "apart", "u"))
        if {*self.kinds.values()} == {"u"}:
            self.kinds[names[0]] = "joint"
        self.states = ["h", "c", "n", "m"][: draw.choice((1, 1, 2, 2, 3, 4))]
        self.weights = [f"w{i}" for i in range(draw.choice((0, 0, 1, 3)))]
        self.inputs = [f"e{i}" for i in range(draw.choice((0, 0, 0, 2)))]
        self.reads_state = [draw.random() < 0.8 for _ in self.states]
        has_second = draw.random() < 1 / 3 if second_product is None else second_product
        may_be_called = [gate for gate in names if self.kinds[gate] != "x" and has_second]
        self.called = [gate for gate in may_be_called if draw.random() < 0.5] or may_be_called[:1]
        self.at_once = [gate for gate in names if gate not in self.called]

        count = self.count(self.at_once) + len(self.weights) + len(self.inputs)
        count += sum(self.reads_state)
        self.early = self.steps(draw, count, draw.randint(1, 5)) if count else []
        count += len(self.early)
        self.operand = draw.randrange(count) if count else None
        count += self.count(self.called)
        self.late = self.steps(draw, count, draw.randint(2, 8))
        count += len(self.late)
        self.news = [max(draw.randrange(count), draw.randrange(count)) for _ in self.states]
        self.shares = [draw.choice((0.0, 0.0, draw.random())) for _ in self.states]
        used = {i for _, picked in (*self.early, *self.late) for i in picked} | {*self.news}
        self.rest = [i for i in range(count) if i not in used]

    def count(self, gates: Sequence[str]) -> int:
        """How many values reading gates gives."""
        return sum(2 if self.kinds[gate] == "apart" else 1 for gate in gates)

    def steps(self, draw: random.Random, count: int, steps: int) -> list[tuple[str, list[int]]]:
        """Functions and the numbers of their operands, when there are `count` values so far."""
        drawn = []
        for last in range(count, count + steps):
            table, arity = draw.choice(((OF_ONE, 1), (OF_TWO, 2), (OF_TWO, 2), (OF_THREE, 3)))
            name = draw.choice([*table])
            # Late values more often than early ones, so that expressions are deep, too.
            picked = [max(draw.randrange(last), draw.randrange(last)) for _ in range(arity)]
            drawn.append((name, picked))
        return drawn

    def function(self, x: Any, u: Any, *others: Any) -> tuple[Tensor, ...]:
        """The function of the cell."""
        *spaces, states = *others[: -len(self.states)], others[-len(self.states) :]
        values = self.read(self.at_once, x, lambda gate: getattr(u, gate))
        for space, names in zip(spaces, filter(None, (self.weights, self.inputs)), strict=True):
            values += [getattr(space, name) for name in names]
        values += [h for h, is_read in zip(states, self.reads_state, strict=True) if is_read]
        self.follow(self.early, values)
        if self.called:
            v = states[0] if self.operand is None else torch.tanh(values[self.operand])
            values += self.read(self.called, x, lambda gate: getattr(u, gate)(v))
        self.follow(self.late, values)
        after = [values[i] for i in self.news]
        for i in self.rest:
            after[-1] = after[-1] + 0.3 * values[i]
        return tuple(
            share * old + (1 - share) * torch.tanh(new) if share else torch.tanh(new)
            for share, old, new in zip(self.shares, states, after, strict=True)
        )

    def read(self, gates: Sequence[str], x: Any, product: Callable[[str], Tensor]) -> Values:
        values = []
        for gate in gates:
            if self.kinds[gate] == "joint":
                values.append(getattr(x, gate) + product(gate))
            if self.kinds[gate] in ("apart", "x"):
                values.append(getattr(x, gate))
            if self.kinds[gate] in ("apart", "u"):
                values.append(product(gate))
        return values

    def follow(self, steps: Sequence[tuple[str, list[int]]], values: Values) -> None:
        for name, picked in steps:
            values.append(FUNCTIONS[name](*(values[i] for i in picked)))
