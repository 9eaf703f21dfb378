"""What the values that a cell keeps are called: names of its gates, to be read by people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusedrnn.cells.definition import Signature
from fusedrnn.cells.functions import FUNCTIONS
from fusedrnn.cells.graph import Node, Operand
from fusedrnn.cells.layout import Layout

__all__ = ["names_of"]

ARITHMETIC = "add sub rsub mul div neg lerp addcmul addcdiv pow maximum minimum".split()


def names_of(
    kept: Sequence[Node], layout: Layout, signature: Signature, values: Mapping[Node, Operand]
) -> dict[Node, str]:
    """A name for each kept value, in the order in which they are listed.

    The result of a gate's activation has the gate's name. The product of a gate n without its input
    is n', a state before the step h_prev and after it h. All others are v0, v1, ...
    """
    nodes = {node.name: node for node in layout.nodes if node.op == "input"}
    activations = _activations(layout.nodes)
    wanted: list[tuple[str, Operand | None]] = []
    wanted += [(f"{gate}'", nodes.get(f"u.{gate}")) for gate in signature.gates]
    # A gate without an activation is the sum itself.
    wanted += [(gate, activations.get(gate, nodes.get(f"p.{gate}"))) for gate in signature.gates]
    wanted += [(f"{state}_prev", nodes.get(state)) for state in signature.states]
    wanted += zip(signature.states, layout.outputs, strict=True)
    names: dict[Node, str] = {}
    for name, node in wanted:
        value = values[node] if isinstance(node, Node) else node
        is_new = value not in names and name not in names.values()
        if isinstance(value, Node) and value in kept and is_new:
            names[value] = name
    numbers = iter(range(len(kept) + len(names)))
    for value in kept:
        if value not in names:
            names[value] = next(v for v in map("v{}".format, numbers) if v not in names.values())
    return names


def _activations(nodes: Sequence[Node]) -> dict[str, Node]:
    """For each gate, the first function of one operand, which has to do with only this gate."""
    found: dict[str, Node] = {}
    gates: dict[Node, set[str]] = {}  # whose products and inputs a node is made of by arithmetic
    for node in nodes:
        if node.op == "input":
            space, _, gate = node.name.rpartition(".")
            gates[node] = {gate} if space in ("p", "u", "x") else set()
            continue
        of_operands = {gate for operand in node.nodes for gate in gates[operand]}
        gates[node] = of_operands if node.op in ARITHMETIC else set()
        is_activation = (
            node.op not in (*ARITHMETIC, "cast", "detach", "full")
            and not FUNCTIONS[node.op].gives_mask
            and len(node.nodes) == 1
        )
        if is_activation and len(of_operands) == 1:
            found.setdefault(of_operands.pop(), node)
    return found
