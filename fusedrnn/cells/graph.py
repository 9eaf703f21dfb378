"""Expressions: what a cell computes of one unit of one sequence, as a graph of nodes.

A node is an operation and its operands, which are nodes or numbers. Two nodes with the same
operation and the same operands are one object, so that what is written twice is computed once.

There are two graphs of a cell. The nodes of its *definition* are PyTorch's functions (gelu, lerp,
clamp), as the user called them. The nodes of its *passes*, forward and backward, are the operations
that the kernels know (add, fma, tanh); functions.py says how one is made from the other. The latter
are written with Python's operators, which simplify what has the same value in IEEE arithmetic up to
the sign of a zero: x * 1, x + 0, -(-x), a + (-b). Nothing else is simplified, so that infinities
and NaN arise where PyTorch has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

__all__ = ["Graph", "Node", "Operand", "reach", "rebuilt"]

COMMUTATIVE = ("add", "mul", "maximum", "minimum", "eq", "ne")


class Node:
    """An operation of a graph. Two are the same if they are the same object.

    Attributes:
        op: the operation; "input" for what is given.
        args: its operands.
        name: of an input; the gate of a "product"; else empty.
        number: counts the nodes of a graph as they are made: operands have smaller numbers.
    """

    __slots__ = ("args", "graph", "name", "number", "op")

    def __init__(self, graph: Graph, op: str, args: tuple[Operand, ...], name: str) -> None:
        self.graph, self.op, self.args, self.name = graph, op, args, name
        self.number = len(graph.nodes)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operands that are no numbers."""
        return tuple(arg for arg in self.args if isinstance(arg, Node))

    def __repr__(self) -> str:
        if self.op == "input":
            return self.name
        return f"{self.op}({', '.join(map(repr, self.args))})"

    def __add__(self, other: Operand) -> Node:
        return self.graph.sum(self, other)

    def __radd__(self, other: Operand) -> Node:
        return self.graph.sum(other, self)

    def __sub__(self, other: Operand) -> Node:
        return self.graph.difference(self, other)

    def __rsub__(self, other: Operand) -> Node:
        return self.graph.difference(other, self)

    def __mul__(self, other: Operand) -> Node:
        return self.graph.product(self, other)

    def __rmul__(self, other: Operand) -> Node:
        return self.graph.product(other, self)

    def __truediv__(self, other: Operand) -> Node:
        return self.graph.quotient(self, other)

    def __rtruediv__(self, other: Operand) -> Node:
        return self.graph.quotient(other, self)

    def __neg__(self) -> Node:
        return self.graph.negative(self)


Operand: TypeAlias = Node | float


class Graph:
    """Makes nodes, each once."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[tuple[object, ...], Node] = {}

    def make(self, op: str, *args: Operand, name: str = "") -> Node:
        """The node of an operation, as it is; the operators below simplify first."""
        keys = [_key(arg) for arg in args]
        if op in COMMUTATIVE and len(args) == 2:  # a definition's "add" may have a factor, too
            keys.sort()
        key = (op, name, *keys)
        if key not in self._known:
            self._known[key] = Node(self, op, args, name)
            self.nodes.append(self._known[key])
        return self._known[key]

    def input(self, name: str) -> Node:
        return self.make("input", name=name)

    def sum(self, a: Operand, b: Operand) -> Node:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Node) and _is(other, 0.0):
                return one
        if isinstance(b, Node) and b.op == "neg":
            return self.difference(a, b.args[0])
        if isinstance(a, Node) and a.op == "neg":
            return self.difference(b, a.args[0])
        return self.make("add", a, b)

    def difference(self, a: Operand, b: Operand) -> Node:
        if isinstance(a, Node) and _is(b, 0.0):
            return a
        if isinstance(b, Node) and _is(a, 0.0):
            return self.negative(b)
        if isinstance(b, Node) and b.op == "neg":
            return self.sum(a, b.args[0])
        return self.make("sub", a, b)

    def product(self, a: Operand, b: Operand) -> Node:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Node):
                if _is(other, 1.0):
                    return one
                if _is(other, -1.0):
                    return self.negative(one)
                if one.op == "neg":
                    return self.negative(self.product(*_in_order(a, one, b)))
        return self.make("mul", a, b)

    def quotient(self, a: Operand, b: Operand) -> Node:
        if isinstance(a, Node):
            if _is(b, 1.0):
                return a
            if a.op == "neg":
                return self.negative(self.quotient(a.args[0], b))
        if isinstance(b, Node) and _is(a, 1.0):
            return self.make("reciprocal", b)
        return self.make("div", a, b)

    def negative(self, a: Node) -> Node:
        if a.op == "neg" and isinstance(a.args[0], Node):
            return a.args[0]
        if a.op == "sub":
            return self.difference(a.args[1], a.args[0])
        return self.make("neg", a)

    def where(self, mask: Operand, a: Operand, b: Operand) -> Node:
        if isinstance(a, Node) and a is b:
            return a
        return self.make("where", mask, a, b)


def reach(roots: Iterable[Operand], given: Iterable[Node] = ()) -> list[Node]:
    """The nodes that the roots are made of, operands first, each once; not beyond those given."""
    known = {*given}
    order: list[Node] = []
    for root in roots:
        waiting: list[tuple[Operand, bool]] = [(root, False)]
        while waiting:
            node, is_ready = waiting.pop()
            if not isinstance(node, Node) or (node in known and not is_ready):
                continue
            if is_ready:
                order.append(node)
                continue
            known.add(node)
            waiting.append((node, True))
            waiting.extend((arg, False) for arg in reversed(node.args))
    return order


def rebuilt(
    roots: Sequence[Operand], change: Callable[[Node, tuple[Operand, ...]], Operand]
) -> dict[Node, Operand]:
    """What becomes of each node if `change(node, its operands as they became)` replaces it."""
    became: dict[Node, Operand] = {}
    for node in reach(roots):
        became[node] = change(node, tuple(looked_up(arg, became) for arg in node.args))
    return became


def looked_up(operand: Operand, became: Mapping[Node, Operand]) -> Operand:
    """What an operand became; numbers stay."""
    return became[operand] if isinstance(operand, Node) else operand


def _key(operand: Operand) -> tuple[int, int, str]:
    """What tells operands apart; `repr`, because 0.0 and -0.0 differ and NaN is NaN."""
    return (1, operand.number, "") if isinstance(operand, Node) else (0, 0, repr(float(operand)))


def _is(operand: Operand, value: float) -> bool:
    return not isinstance(operand, Node) and operand == value


def _in_order(a: Operand, negated: Node, b: Operand) -> tuple[Operand, Operand]:
    """a and b with `negated`, which is one of them, without its sign."""
    return (negated.args[0], b) if a is negated else (a, negated.args[0])
