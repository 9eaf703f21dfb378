"""What is kept for later, as one minimum cut.

Later work needs values that earlier work had. Each is either kept, in a slot, or computed again
from others that are. Every value v becomes two vertices of a flow network:

    source --(work of v)--> v in --(a slot)--> v out --(if v is needed later)--> sink
                              ^
    out of an operand of v ---'  (infinite: to compute v again takes its operands)

A cut that separates source and sink is a choice: the edge into "v in" is cut if v is computed
again, the edge to "v out" if v is kept; and the least cut is the best choice. What is given later
anyway costs nothing to compute, and what later work cannot have, infinitely much.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from fusedrnn.cells.graph import Node, Operand, reach

__all__ = ["TRANSCENDENTAL", "depending", "to_keep"]

TRANSCENDENTAL = "cos erf exp expm1 log log1p sigmoid sin softplus tanh".split()

NEVER = 1_000_000
"""The cost of what cannot be done: more than that of all that can."""

SETTLES = 10
"""How much dearer it is to keep what is not there anyway: if in doubt, what is there is kept."""

Vertex: TypeAlias = tuple[int, str]
Network: TypeAlias = dict[Vertex, dict[Vertex, int]]

SOURCE, SINK = (-1, "source"), (-1, "sink")


def to_keep(
    wanted: Sequence[Operand],
    later: Collection[Node],
    given: Mapping[Node, int],
    slot: int,
    there: Collection[Node] = (),
) -> list[Node]:
    """The values to keep, in the order in which they were made.

    Args:
        wanted: what is to be computed later.
        later: inputs that only later work has; what depends on them cannot be kept.
        given: values that later work has without a slot, and what it costs to read them.
        slot: what keeping a value costs.
        there: values that earlier work has anyway; others would have to be computed there.
    """
    is_later = depending(wanted, later)
    used = [operand for user in is_later if user not in given for operand in user.nodes]
    roots = [root for root in wanted if isinstance(root, Node)]
    needed = dict.fromkeys(node for node in (*used, *roots) if node not in is_later)
    candidates = reach(needed)
    network: Network = {SOURCE: {}, SINK: {}}
    for node in candidates:
        before, after = _inside(node), _outside(node)
        extra = 0 if node in there else _work(node) + SETTLES
        network[before] = {after: slot + extra}
        network.setdefault(after, {})
        network[SOURCE][before] = given.get(node, NEVER if node.op == "input" else _work(node))
        if node in needed:
            network[after][SINK] = NEVER
        if node not in given:
            for operand in node.nodes:
                network[_outside(operand)][before] = NEVER
    reachable = _source_side(network)
    return [
        node
        for node in sorted(candidates, key=_number)
        if _inside(node) in reachable and _outside(node) not in reachable
    ]


def depending(roots: Sequence[Operand], inputs: Collection[Node]) -> dict[Node, None]:
    """The nodes that roots are made of, and that depend on some inputs; as an ordered set."""
    found = dict.fromkeys(inputs)
    for node in reach(roots):
        if any(operand in found for operand in node.nodes):
            found[node] = None
    return found


def _work(node: Node) -> int:
    """What it costs to compute a value again; a slot costs about 100."""
    cheap = {"div": 20, "sqrt": 20, "reciprocal": 20}
    return 60 if node.op in TRANSCENDENTAL else cheap.get(node.op, 3)


def _number(node: Node) -> int:
    return node.number


def _inside(node: Node) -> Vertex:
    return node.number, "in"


def _outside(node: Node) -> Vertex:
    return node.number, "out"


def _source_side(network: Network) -> set[Vertex]:
    """The vertices on the source's side of a minimum cut; uses the network up.

    By augmenting paths: the capacities are integers and slots are few, so that there are not many.
    """
    while True:
        came_from: dict[Vertex, Vertex] = {SOURCE: SOURCE}
        waiting = [SOURCE]
        while waiting and SINK not in came_from:
            vertex = waiting.pop()
            for following, capacity in network[vertex].items():
                if capacity and following not in came_from:
                    came_from[following] = vertex
                    waiting.append(following)
        if SINK not in came_from:
            return {*came_from}
        path = [SINK]
        while path[-1] != SOURCE:
            path.append(came_from[path[-1]])
        edges = [(start, end) for end, start in zip(path, path[1:], strict=False)]
        flow = min(network[start][end] for start, end in edges)
        for start, end in edges:
            network[start][end] -= flow
            network[end][start] = network[end].get(start, 0) + flow
