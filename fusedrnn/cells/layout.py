"""What a cell needs of a layer: which gates' products are added to their inputs, and when.

A gate g has an input x.g and a recurrent product u.g. Where a cell uses only their sum, the layer
adds them, and the cell is given the sum, p.g: the gate is `joint`. Else the product is `apart`, the
input `late`, or the gate has only one of them. It does not matter in which order a sum is written:
in x.g + b + u.g, too, x.g and u.g are added first.

If there are products of something other than h (u.g is called), a step has two stages: in the first
the operand is computed, in the second there are its products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusedrnn.cells.definition import Definition
from fusedrnn.cells.graph import Graph, Node, Operand, reach

__all__ = ["GatesOfStage", "Layout", "layout_of"]


@dataclass(frozen=True)
class GatesOfStage:
    """The gates of a stage, each list in declared order.

    The order in a second stage mirrors that in a first one, so that the gradients of the products
    of a stage are contiguous, and those of all inputs x of a cell, too:

        first stage   apart joint late   |   second stage   late joint apart

    Attributes:
        apart: those whose product is not simply added to the input.
        joint: those of which the sum of both is used.
        late: those whose input is used by itself.
        is_second: whether it is a second stage.
    """

    apart: tuple[str, ...]
    joint: tuple[str, ...]
    late: tuple[str, ...]
    is_second: bool = False

    @property
    def products(self) -> list[str]:
        """The products by name, the inputs of joint gates added."""
        groups = [[f"u.{gate}" for gate in self.apart], [f"p.{gate}" for gate in self.joint]]
        first, second = reversed(groups) if self.is_second else groups
        return first + second

    @property
    def late_inputs(self) -> list[str]:
        """The late inputs by name."""
        return [f"x.{gate}" for gate in self.late]

    @property
    def inputs(self) -> list[str]:
        """Both, in the order of their gradients."""
        if self.is_second:
            return self.late_inputs + self.products
        return self.products + self.late_inputs


@dataclass(frozen=True, eq=False)
class Layout:
    """A definition in terms of what a layer gives.

    Attributes:
        outputs: as those of a `Definition`, of the inputs p.g, u.g, x.g, w.name, e.name and states.
        operand: of the second products.
        stages: their gates.
    """

    outputs: tuple[Operand, ...]
    operand: Operand | None
    stages: tuple[GatesOfStage, ...]

    @property
    def nodes(self) -> list[Node]:
        return reach(self.roots)

    @property
    def roots(self) -> tuple[Operand, ...]:
        return self.outputs if self.operand is None else (*self.outputs, self.operand)


def layout_of(definition: Definition) -> Layout:
    """How a layer runs a cell."""
    roots = _joined(definition)
    outputs = roots[: len(definition.outputs)]
    gates, called = definition.signature.gates, definition.called
    used = _inputs_of(roots)
    if not called:
        return Layout(outputs, None, (_stage(gates, gates, used),))
    # The first stage has the inputs that the operand needs, the second all others.
    operand = roots[-1]
    of_operand = _inputs_of([operand])
    first = [gate for gate in gates if f"x.{gate}" in of_operand]
    others = [gate for gate in gates if gate not in first]
    at_once = [gate for gate in gates if gate not in called]
    stages = _stage(at_once, first, used), replace(_stage([*called], others, used), is_second=True)
    return Layout(outputs, operand, stages)


def _inputs_of(roots: Sequence[Operand]) -> set[str]:
    return {node.name for node in reach(roots) if node.op == "input"}


def _stage(products: Sequence[str], inputs: Sequence[str], used: set[str]) -> GatesOfStage:
    """A stage that has the products of some gates, and the inputs of some."""
    return GatesOfStage(
        apart=tuple(gate for gate in products if f"u.{gate}" in used),
        joint=tuple(gate for gate in products if f"p.{gate}" in used),
        late=tuple(gate for gate in inputs if f"x.{gate}" in used),
    )


def _joined(definition: Definition) -> tuple[Operand, ...]:
    """The outputs, and the operand of second products if there is one, of a layer's inputs."""
    roots = (*definition.outputs, *([definition.operand] if definition.operand else []))
    nodes = reach(roots)
    users = _users(nodes, roots)
    inputs = {node.name: node for node in nodes if node.op == "input"}
    joint: dict[Node, str] = {}  # what becomes p.g: one of the terms x.g and u.g
    left_out: dict[Node, Node] = {}  # the other, by the sum that it is a term of
    for gate in definition.signature.gates:
        x, u = inputs.get(f"x.{gate}"), definition.called.get(gate) or inputs.get(f"u.{gate}")
        if x is None or u is None:
            continue
        sums = {term: _sums_with(term, users) for term in (x, u)}
        if not any(sum in sums[x] for sum in sums[u]):
            continue
        for kept, other in ((x, u), (u, x)):
            sum = sums[other][0]
            if sum.op == "add" and len(sum.args) == 2 and sum not in left_out:
                joint[kept], left_out[sum] = f"p.{gate}", other
                break
    became: dict[Node, Operand] = {}
    graph = Graph()
    for node in nodes:
        args = tuple(became[arg] if isinstance(arg, Node) else arg for arg in node.args)
        if node in joint:
            became[node] = graph.input(joint[node])
        elif node in left_out:
            became[node] = args[0] if node.args[1] is left_out[node] else args[1]
        elif node.op == "product":
            became[node] = graph.input(f"u.{node.name}")
        elif args and not any(isinstance(arg, Node) for arg in args):
            became[node] = _number(node.op, [arg for arg in args if not isinstance(arg, Node)])
        else:
            became[node] = graph.make(node.op, *args, name=node.name)
    return tuple(became[root] if isinstance(root, Node) else root for root in roots)


def _users(nodes: Sequence[Node], roots: Sequence[Operand]) -> dict[Node, list[Node | None]]:
    """Which nodes use each node, once for each operand; None for a root."""
    users: dict[Node, list[Node | None]] = {node: [] for node in nodes}
    for node in nodes:
        for operand in node.nodes:
            users[operand].append(node)
    for root in roots:
        if isinstance(root, Node):
            users[root].append(None)
    return users


def _sums_with(term: Node, users: dict[Node, list[Node | None]]) -> list[Node]:
    """The sums of which a node is a term, from the smallest on, as long as only sums use it."""
    sums: list[Node] = []
    while len(users[term]) == 1:
        (user,) = users[term]
        if user is None or not _adds(user, term):
            break
        sums.append(user)
        term = user
    return sums


def _adds(node: Node, term: Node) -> bool:
    """Whether a node is a sum, and adds a term as it is."""
    place = node.args.index(term)
    is_scaled = len(node.args) == 3  # by alpha
    if node.op == "add":
        return place == 0 or not is_scaled
    return (node.op, place) in (("sub", 0), ("rsub", 1))


def _number(op: str, args: Sequence[float]) -> float:
    """The value of a number, or of a sum of which all other terms were left out."""
    if op == "full":
        return args[0]
    a, b, alpha = (*args, 1.0)[:3]
    return {"add": a + alpha * b, "sub": a - alpha * b, "rsub": b - alpha * a}[op]
