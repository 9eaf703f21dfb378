"""From a definition to a program: what each stage of a step computes, forward and backward.

Forward, a value that depends on the second product is computed in the second stage, and all others
that it needs come from the first: handed on, or computed again, whichever is less. Backward goes
the other way. Each time, the same minimum cut decides what a pass or a stage leaves for the next:

                       has                                gives
    forward   stage 0  products of h                      the operand v; values handed on
              stage 1  products of v; what is handed on   the states
    backward  stage 1  gradients of the states            its own gradients; others handed on
              stage 0  the gradient of v; what is so      its own gradients; v again, for W_hh

A cell without a second product has one stage, which does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fusedrnn.cells.definition import CellError, Definition, Signature
from fusedrnn.cells.derivative import gradients, total, values_of
from fusedrnn.cells.graph import Graph, Node, Operand, reach
from fusedrnn.cells.keeping import depending, to_keep
from fusedrnn.cells.layout import Layout, layout_of
from fusedrnn.cells.naming import names_of
from fusedrnn.cells.passes import Line, can_be_read, fused, lines_of
from fusedrnn.cells.program import Program, Stage

__all__ = ["program_of"]

KEPT, HANDED_ON, OF_OUTPUT = 100, 40, 10
"""What a slot costs, as keeping.py counts: one of the reserve goes to memory and comes back; one
that is handed on within a step stays in the cache; and h is in memory as the output, anyway."""

LIMITS = {
    "operations of a pass": 1000,
    "names of a pass": 200,
    "saved values": 24,
    "values handed on": 8,
}

Outputs: TypeAlias = list[tuple[str, Operand]]


def program_of(definition: Definition, *, projected: bool = False) -> Program:
    """The program of a cell.

    Args:
        definition: the cell.
        projected: whether it is for layers whose h is projected, where backward computes again what
            h was before the projection.

    Raises:
        CellError: the cell is larger than programs can be, or its h cannot be projected.
    """
    cell = _lowered(definition)
    _check_size(cell)
    if projected:
        _check_projection(cell)
    backward = _backward_outputs(cell, projected)
    kept, given = _kept(cell, backward, projected)
    names = names_of(kept, cell.layout, cell.signature, cell.values)
    in_second = depending([*cell.roots, *names], cell.inputs_of(1)) if cell.has_two else {}
    saved = [[node for node in names if (node in in_second) == bool(i)] for i in cell.stages]
    slots = {node: f"save{i}" for i, node in enumerate(node for stage in saved for node in stage)}
    forwards = _forward_passes(cell, saved, slots)
    backwards = _backward_passes(cell, backward, slots | given)
    stages = [
        Stage(
            gates=cell.layout.stages[i],
            saved=tuple(names[node] for node in saved[i]),
            needs=_needs(cell, given, backwards[i]),
            forward=forwards[i],
            backward=backwards[i],
        )
        for i in cell.stages
    ]
    _check_size(cell, stages)
    return Program.of(definition, tuple(stages))


@dataclass(frozen=True, eq=False)
class _Cell:
    """A cell in the kernels' operations, forward.

    Attributes:
        signature: of its definition.
        layout: likewise.
        graph: where the operations are.
        values: those of the definition's nodes.
    """

    signature: Signature
    layout: Layout
    graph: Graph
    values: Mapping[Node, Operand]

    @property
    def stages(self) -> range:
        return range(len(self.layout.stages))

    @property
    def has_two(self) -> bool:
        return len(self.layout.stages) == 2

    @property
    def roots(self) -> list[Operand]:
        """The states after a step, and the operand of second products if there are any."""
        return [self.values[root] if isinstance(root, Node) else root for root in self.layout.roots]

    @property
    def results(self) -> list[Operand]:
        """The states after a step."""
        return self.roots[: len(self.signature.states)]

    def inputs_of(self, stage: int) -> list[Node]:
        """The products and late inputs of a stage."""
        return [*map(self.graph.input, self.layout.stages[stage].inputs)]

    @property
    def always(self) -> dict[Node, str]:
        """What every pass of every stage has, and its slots: unit weights and step inputs."""
        return {
            self.graph.input(f"{space}.{name}"): f"{space}{i}"
            for space, names in (
                ("w", self.signature.unit_weights),
                ("e", self.signature.step_inputs),
            )
            for i, name in enumerate(names)
        }

    @property
    def states(self) -> dict[Node, str]:
        """The states before a step, and their slots."""
        return {
            self.graph.input(state): f"s{i}" if i else "h"
            for i, state in enumerate(self.signature.states)
        }

    @property
    def gradients(self) -> list[Node]:
        """The gradients of the states after a step."""
        return [self.graph.input(f"d {state}") for state in self.signature.states]

    @property
    def gradient_of_operand(self) -> Node:
        return self.graph.input("d of the operand")

    @property
    def carry(self) -> Node:
        """The gradient that the later stage left for h."""
        return self.graph.input("carry")


def _lowered(definition: Definition) -> _Cell:
    layout, graph = layout_of(definition), Graph()
    values = values_of(layout.nodes, graph)
    cell = _Cell(definition.signature, layout, graph, values)
    in_second = depending(cell.roots, cell.inputs_of(1)) if cell.has_two else {}
    # A product of the first stage is handed on as one value, and its factors would be two.
    became = fused(
        cell.roots,
        others=[*values.values()],
        may_fuse=lambda sum, product: (sum in in_second) == (product in in_second),
    )
    values = {
        node: became[value] if isinstance(value, Node) else value for node, value in values.items()
    }
    return _Cell(definition.signature, layout, graph, values)


# Backward, before it is known what is kept.


def _backward_outputs(cell: _Cell, projected: bool) -> list[Outputs]:
    """What each stage computes in the backward pass."""
    seeds = [*zip(cell.layout.outputs, cell.gradients, strict=True)]
    if cell.layout.operand is not None:
        seeds.append((cell.layout.operand, cell.gradient_of_operand))
    found = gradients(cell.layout.nodes, cell.values, seeds)
    terms = [term for each in found.values() for term in each]
    of_operand = depending(terms, [cell.gradient_of_operand])

    def split(name: str) -> tuple[Operand, Operand]:
        """The gradient of an input: what is known in the last stage, and the rest."""
        terms = found.get(name, [])
        at_once = total([term for term in terms if term not in of_operand])
        return at_once, total([term for term in terms if term in of_operand])

    outputs: list[Outputs] = [[] for _ in cell.stages]
    for name, slot in _gradient_slots(cell).items():
        at_once, by_operand = split(name)
        is_first = isinstance(by_operand, Node) or name in cell.layout.stages[0].inputs
        outputs[0 if is_first else -1].append((slot, _plus(at_once, by_operand)))
    h, *_ = cell.signature.states
    if h in found:
        at_once, by_operand = split(h)
        outputs[-1].append(("carry", at_once))
        if cell.has_two:
            left: Operand = cell.carry if isinstance(at_once, Node) else 0.0
            outputs[0].append(("carry", _plus(left, by_operand)))
    if cell.has_two:
        outputs[0].append(("r", cell.roots[-1]))
    if projected:
        outputs[-1].append(("r", cell.results[0]))
    return outputs


def _plus(a: Operand, b: Operand) -> Operand:
    """A sum in which 0 stands for no gradient."""
    if isinstance(a, Node) and isinstance(b, Node):
        return a + b
    return a if isinstance(a, Node) else b


def _gradient_slots(cell: _Cell) -> dict[str, str]:
    """The slots of the gradients of all inputs but h, by the inputs' names."""
    names = [name for stage in cell.layout.stages for name in stage.inputs]
    names += [f"w.{name}" for name in cell.signature.unit_weights]
    slots = {name: f"g{i}" for i, name in enumerate(names)}
    slots |= {f"e.{name}": f"de{i}" for i, name in enumerate(cell.signature.step_inputs)}
    return slots | {state: f"ds{i}" for i, state in enumerate(cell.signature.states) if i}


# What is kept.


def _kept(
    cell: _Cell, backward: Sequence[Outputs], projected: bool
) -> tuple[list[Node], dict[Node, str]]:
    """What is kept; and what backward is given besides, with its slots."""
    wanted = [value for outputs in backward for _, value in outputs]
    gradients = [*cell.gradients, cell.gradient_of_operand, cell.carry]
    h, result = next(iter(cell.states)), cell.results[0]
    free, there = dict.fromkeys(cell.always, 0), {*reach(cell.roots)}
    if isinstance(result, Node) and not cell.has_two and not projected:
        # A cell that gets along with its own h needs no reserve at all, nor the h before.
        if not to_keep(wanted, gradients, free | {result: OF_OUTPUT}, KEPT, there):
            if to_keep(wanted, gradients, free, KEPT, there):
                return [], cell.always | {result: "h"}
    kept = _at_most(
        LIMITS["saved values"],
        lambda factor: to_keep(wanted, gradients, free | {h: OF_OUTPUT}, factor * KEPT, there),
    )
    return kept, cell.always | {h: "h"}


def _at_most(limit: int, keep: Callable[[int], list[Node]]) -> list[Node]:
    """What is kept if a slot costs so much more that the values are not too many, if it helps."""
    kept = keep(1)
    for factor in (4, 16, 64):
        if len(kept) > limit:
            kept = keep(factor)
    return kept


def _needs(cell: _Cell, given: Mapping[Node, str], backward: Sequence[Line]) -> str:
    """What backward reads as h."""
    if not any("h" in line.sources for line in backward):
        return "nothing"
    return "h_prev" if next(iter(cell.states)) in given else "h"


# The passes.


def _forward_passes(
    cell: _Cell, saved: Sequence[Sequence[Node]], slots: Mapping[Node, str]
) -> list[tuple[Line, ...]]:
    """The lines of each stage, forward."""
    given = cell.always | cell.states
    states = [(f"s{i}" if i else "r", result) for i, result in enumerate(cell.results)]
    outputs: list[Outputs] = [[(slots[node], node) for node in nodes] for nodes in saved]
    outputs[-1] += states[1:] + states[:1]
    handed: list[Node] = []
    if cell.has_two:
        wanted = [value for _, value in outputs[1]]
        handed = _handed_on(wanted, cell.inputs_of(1), given, {*reach(cell.roots)})
        outputs[0] += [(f"k{i}", node) for i, node in enumerate(handed)]
        outputs[0].append(("r", cell.roots[-1]))
    passes = []
    for i in cell.stages:
        names = cell.layout.stages[i]
        own = {cell.graph.input(name): f"p{j}" for j, name in enumerate(names.products)}
        own |= {cell.graph.input(name): f"x{j}" for j, name in enumerate(names.late_inputs)}
        if i == 1:
            own |= {node: f"k{j}" for j, node in enumerate(handed)}
        passes.append(lines_of(outputs[i], given | own))
    return passes


def _backward_passes(
    cell: _Cell, outputs: Sequence[Outputs], given: Mapping[Node, str]
) -> list[tuple[Line, ...]]:
    """The lines of each stage, backward."""
    of_results = {node: f"ds{i}" if i else "dr" for i, node in enumerate(cell.gradients)}
    if not cell.has_two:
        return [_backward_lines(cell, outputs[0], {**given, **of_results})]
    own = {cell.gradient_of_operand: "dr", cell.carry: "carry"}
    wanted = [value for _, value in outputs[0]]
    handed = _handed_on(wanted, own, given, {*reach([value for _, value in outputs[1]])})
    slots = {node: f"dk{i}" for i, node in enumerate(handed)}
    second = outputs[1] + [(slot, node) for node, slot in slots.items()]
    return [
        _backward_lines(cell, outputs[0], {**given, **own, **slots}),
        _backward_lines(cell, second, {**given, **of_results}),
    ]


def _handed_on(
    wanted: Sequence[Operand],
    later: Collection[Node],
    given: Collection[Node],
    there: Collection[Node],
) -> list[Node]:
    """What a stage, which computes what is `there`, hands on to one that is `given` some, too."""
    return _at_most(
        LIMITS["values handed on"],
        lambda factor: to_keep(wanted, later, dict.fromkeys(given, 0), factor * HANDED_ON, there),
    )


def _backward_lines(cell: _Cell, outputs: Outputs, given: Mapping[Node, str]) -> tuple[Line, ...]:
    """The lines of a stage; values that forward had, too, are computed as they were there."""
    forward = {*reach(cell.roots)}
    became = fused(
        [value for _, value in outputs],
        given=given,
        apart=[value for slot, value in outputs if not can_be_read(slot)],
        may_fuse=lambda sum, product: sum not in forward,
    )
    now = [(slot, became[value] if isinstance(value, Node) else value) for slot, value in outputs]
    return lines_of(now, given)


# Whether it fits.


def _check_projection(cell: _Cell) -> None:
    h = cell.signature.states[0]
    if cell.has_two:
        why = "a step has a second product"
    elif cell.graph.input(h) in reach(cell.roots):
        why = f"the cell uses {h} itself, which a projection makes another size, and not only u"
    else:
        return
    raise CellError(f"{cell.signature.name}: its {h} cannot be projected: {why}")


def _check_size(cell: _Cell, stages: Sequence[Stage] = ()) -> None:
    """Refuses a cell that is too large; without its stages, before work is spent on it."""
    passes = [lines for stage in stages for lines in (stage.forward, stage.backward)]
    operations = max(map(len, passes)) if passes else len(reach(cell.roots))
    sizes = {
        "operations of a pass": operations,
        "names of a pass": max((len(_names(lines)) for lines in passes), default=0),
        "saved values": sum(len(stage.saved) for stage in stages),
        "values handed on": max((_count(lines, ("k", "dk")) for lines in passes), default=0),
    }
    for what, size in sizes.items():
        if size > LIMITS[what]:
            expected = f"expected at most {LIMITS[what]} {what}, got {size}"
            raise CellError(f"{cell.signature.name}: too large: {expected}")


def _names(lines: Iterable[Line]) -> set[str]:
    return {name for line in lines for name in (line.destination, *line.sources)}


def _count(lines: Iterable[Line], kinds: tuple[str, ...]) -> int:
    """How many slots of some kinds lines write."""
    return sum(line.destination.rstrip("0123456789") in kinds for line in lines)
