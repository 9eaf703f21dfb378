"""A cell as text: what crosses to the ops, and what a saved graph has of it.

The text has the definition, in PyTorch's functions, which the reference evaluates, and what the
kernels run: for each stage of a step the gates, what is kept, and the lines of both passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

from torch import Tensor

from fusedrnn.cells.definition import Definition, Product, Signature, evaluate
from fusedrnn.cells.functions import FUNCTIONS
from fusedrnn.cells.graph import Graph, Node, Operand
from fusedrnn.cells.layout import GatesOfStage
from fusedrnn.cells.passes import Line

__all__ = ["Program", "Stage"]

VERSION = 1


@dataclass(frozen=True)
class Stage:
    """One product with rows of W_hh, and the pointwise work after it.

    Attributes:
        gates: those of the product, and the late inputs.
        saved: the names of what it keeps for backward.
        needs: what its backward reads as h: "nothing", "h_prev" or "h".
        forward: the lines of the pass.
        backward: likewise.
    """

    gates: GatesOfStage
    saved: tuple[str, ...]
    needs: str
    forward: tuple[Line, ...]
    backward: tuple[Line, ...]


@dataclass(frozen=True)
class Program:
    """A cell, compiled from its definition. Two are equal if their texts are.

    Attributes:
        text: the whole program.
        definition: what the cell computes.
        stages: how the kernels compute it; one or two.
    """

    text: str
    definition: Definition
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, definition: Definition, stages: tuple[Stage, ...]) -> Program:
        """The program of these parts."""
        return cls(
            "".join(f"{line}\n" for line in _written(definition, stages)), definition, stages
        )

    @staticmethod
    def parse(text: str) -> Program:
        """The program of a text.

        Raises:
            ValueError: it is none.
        """
        return _parsed(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"<Program of {self.signature.name}, {len(self.text)} characters>"

    def __reduce__(self) -> tuple[object, ...]:
        return Program.parse, (self.text,)

    @property
    def signature(self) -> Signature:
        return self.definition.signature

    @cached_property
    def saved(self) -> tuple[str, ...]:
        """The names of what is kept for backward, of all stages."""
        return tuple(name for stage in self.stages for name in stage.saved)

    @cached_property
    def has_carry(self) -> bool:
        """Whether h reaches the next one other than through a product."""
        return any(line.destination == "carry" for line in self.stages[0].backward)

    def evaluate(
        self,
        states: Sequence[Tensor],
        x: Mapping[str, Tensor],
        u: Mapping[str, Tensor | Product],
        w: Mapping[str, Tensor] = MappingProxyType({}),
        e: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> tuple[Tensor, ...]:
        """The states after a step, by PyTorch's own functions; see `definition.evaluate`."""
        return evaluate(self.definition, states, x, u, w, e)


def _written(definition: Definition, stages: Sequence[Stage]) -> Iterator[str]:
    """The lines of a program."""
    signature = definition.signature
    yield f"cell {VERSION} {signature.name}"
    heads = {
        "gates": signature.gates,
        "states": signature.states,
        "unit_weights": signature.unit_weights,
        "unit_init": signature.unit_init,
        "step_inputs": signature.step_inputs,
    }
    for head, words in heads.items():
        yield " ".join((head, *map(str, words)))
    yield "define"
    names: dict[Node, str] = {}

    def name_of(operand: Operand) -> str:
        return names[operand] if isinstance(operand, Node) else repr(operand)

    for node in definition.nodes:
        if node.op == "input":
            names[node] = node.name
            continue
        name = f"%{sum(each.startswith('%') for each in names.values())}"
        gate = [node.name] if node.op == "product" else []
        yield " ".join((name, "=", node.op, *gate, *map(name_of, node.args)))
        names[node] = name
    yield " ".join(("return", *map(name_of, definition.outputs)))
    for stage in stages:
        yield "stage"
        yield " ".join(("apart", *stage.gates.apart))
        yield " ".join(("joint", *stage.gates.joint))
        yield " ".join(("late", *stage.gates.late))
        yield " ".join(("saved", *stage.saved))
        yield f"needs {stage.needs}"
        yield "forward"
        yield from map(str, stage.forward)
        yield "backward"
        yield from map(str, stage.backward)
    yield "end"


@lru_cache(maxsize=256)
def _parsed(text: str) -> Program:
    lines = _Lines(text)
    version, name = lines.after("cell", count=2)
    if version != str(VERSION):
        raise ValueError(f"program of a cell: expected version {VERSION}, got {version}")
    signature = Signature(
        name=name,
        gates=lines.after("gates"),
        states=lines.after("states"),
        unit_weights=lines.after("unit_weights"),
        unit_init=tuple(map(_rule, lines.after("unit_init"))),
        step_inputs=lines.after("step_inputs"),
    )
    lines.after("define", count=0)
    definition = _definition(lines, signature)
    stages: list[Stage] = []
    while lines.next_is("stage"):
        lines.after("stage", count=0)
        stages.append(_stage(lines, is_second=bool(stages)))
    lines.after("end", count=0)
    return Program(text, definition, tuple(stages))


class _Lines:
    """The lines of a text, one after the other, as words."""

    def __init__(self, text: str) -> None:
        self.lines = [line.split(" ") for line in text.splitlines()]
        self.at = 0

    def next_is(self, word: str) -> bool:
        return self.at < len(self.lines) and self.lines[self.at][0] == word

    def after(self, word: str, count: int | None = None) -> tuple[str, ...]:
        """The words of the next line after its first, which is to be this one."""
        if not self.next_is(word):
            self.refuse(word)
        found = tuple(self.lines[self.at][1:])
        if count is not None and len(found) != count:
            self.refuse(f"{word} and {count} more words")
        self.at += 1
        return found

    def assignments(self) -> Iterator[tuple[str, ...]]:
        """The words of lines with an equals sign: destination, operation, sources."""
        while self.at < len(self.lines) and self.lines[self.at][1:2] == ["="]:
            words = self.lines[self.at]
            if len(words) < 3:
                self.refuse("an operation")
            yield (words[0], *words[2:])
            self.at += 1

    def refuse(self, expected: str) -> None:
        got = " ".join(self.lines[self.at]) if self.at < len(self.lines) else "the end"
        raise ValueError(f"program of a cell, line {self.at + 1}: expected {expected}, got {got!r}")


def _rule(word: str) -> str | float:
    return word if word.isalpha() and word not in ("inf", "nan") else float(word)


def _definition(lines: _Lines, signature: Signature) -> Definition:
    graph = Graph()
    known: dict[str, Operand] = {name: graph.input(name) for name in signature.inputs}

    def operand(word: str) -> Operand:
        try:
            return known[word] if word in known else float(word)
        except ValueError:
            lines.refuse("operands that are known")
            raise

    for destination, op, *words in lines.assignments():
        gate = words.pop(0) if op == "product" and words else ""
        if op not in FUNCTIONS and (op != "product" or gate not in signature.gates):
            lines.refuse("a function that a cell can use")
        known[destination] = graph.make(op, *map(operand, words), name=gate)
    outputs = tuple(map(operand, lines.after("return", count=len(signature.states))))
    return Definition(signature, outputs)


def _stage(lines: _Lines, *, is_second: bool) -> Stage:
    apart, joint, late = lines.after("apart"), lines.after("joint"), lines.after("late")
    saved, (needs,) = lines.after("saved"), lines.after("needs", count=1)
    passes = []
    for name in ("forward", "backward"):
        lines.after(name, count=0)
        passes.append(
            tuple(
                Line(destination, op, tuple(sources))
                for destination, op, *sources in lines.assignments()
            )
        )
    forward, backward = passes
    gates = GatesOfStage(apart, joint, late, is_second)
    return Stage(gates, saved, needs, forward, backward)
