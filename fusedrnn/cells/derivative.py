"""From a definition to what the kernels compute: values, and by reverse mode their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusedrnn.cells.functions import FUNCTIONS
from fusedrnn.cells.graph import Graph, Node, Operand

__all__ = ["gradients", "values_of"]


def values_of(nodes: Sequence[Node], graph: Graph) -> dict[Node, Operand]:
    """The value of each node of a definition, as a node of `graph`; inputs keep their names."""
    values: dict[Node, Operand] = {}
    for node in nodes:
        if node.op == "input":
            values[node] = graph.input(node.name)
        else:
            values[node] = FUNCTIONS[node.op].value(*_replaced(node.args, values))
    return values


def gradients(
    nodes: Sequence[Node], values: Mapping[Node, Operand], seeds: Sequence[tuple[Operand, Node]]
) -> dict[str, list[Node]]:
    """The gradients of the inputs of a definition, by their names, as terms of a sum.

    Args:
        nodes: of the definition, operands first.
        values: of each.
        seeds: results of the definition, each with its gradient.
    """
    found: dict[str, list[Node]] = {}
    sums: dict[Node, Node] = {}

    def add(operand: Operand, gradient: Node | None) -> None:
        if isinstance(operand, Node) and gradient is not None:
            if operand.op == "input":
                found.setdefault(operand.name, []).append(gradient)
            else:
                sums[operand] = _sum(sums[operand], gradient) if operand in sums else gradient

    for result, seed in seeds:
        add(result, seed)
    for node in reversed(nodes):
        if node in sums:
            value = values[node]
            of_operands = FUNCTIONS[node.op].gradient(
                sums[node], value, *_replaced(node.args, values)
            )
            for operand, gradient in zip(node.args, of_operands, strict=False):
                add(operand, gradient)
    return found


def total(terms: Sequence[Node]) -> Operand:
    """The sum of gradients; 0 if there are none."""
    if not terms:
        return 0.0
    sum_so_far, *rest = terms
    for term in rest:
        sum_so_far = _sum(sum_so_far, term)
    return sum_so_far


def _sum(a: Node, b: Node) -> Node:
    """a + b. A factor that both have multiplies their sum: one multiplication less."""
    one, other = (term.nodes[0] if term.op == "neg" else term for term in (a, b))
    for i, factor in enumerate(one.args if one.op == other.op == "mul" else ()):
        if isinstance(factor, Node) and factor in other.args:
            p, q = one.args[1 - i], other.args[1 - other.args.index(factor)]
            if a.op == b.op == "neg":
                return -(factor * (p + q))
            if a.op == "neg":
                return factor * (q - p)
            return factor * (p - q if b.op == "neg" else p + q)
    return a + b


def _replaced(args: Sequence[Operand], values: Mapping[Node, Operand]) -> list[Operand]:
    return [values[arg] if isinstance(arg, Node) else arg for arg in args]
