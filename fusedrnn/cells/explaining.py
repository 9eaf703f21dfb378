"""A program in words: what `WrittenCell.explain` tells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from fusedrnn.cells.graph import Graph, Operand
from fusedrnn.cells.keeping import TRANSCENDENTAL
from fusedrnn.cells.passes import Line
from fusedrnn.cells.program import Program

__all__ = ["explained"]

Again: TypeAlias = set[tuple[int, int]]

WIDTH = 12  # of the first column
SIGNS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "fma": "{} * {} + {}",
    "fms": "{} * {} - {}",
    "fnma": "{2} - {0} * {1}",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "where": "{1} if {0} else {2}",
    "copy": "{}",
    "neg": "-{}",
    "reciprocal": "1 / {}",
}


def explained(program: Program, run_by: Sequence[str] = ()) -> str:
    """How a cell is run.

    Args:
        program: of the cell.
        run_by: lines that say which way it is run.
    """
    again = _computed_again(program)
    lines = [f"{program.signature.name}({', '.join(program.signature.parameters)})", ""]
    lines += _summary(program, again, run_by)
    first_to_last = [*range(len(program.stages))]
    for name, order in (("forward", first_to_last), ("backward", first_to_last[::-1])):
        for index in order:
            stage = f", {('first', 'second')[index]} product" if len(order) == 2 else ""
            lines += ["", f"{name}{stage}", *_listing(program, index, name, again)]
    return "\n".join(lines)


def _summary(program: Program, again: Again, run_by: Sequence[str]) -> Iterator[str]:
    signature, stages = program.signature, program.stages
    uses = [f"{gate}: {_use_of(gate, program)}" for gate in signature.gates]
    yield from _rows("gates", uses)
    yield from _rows("states", [" ".join(signature.states)])
    rules = zip(signature.unit_weights, signature.unit_init, strict=True)
    yield from _rows("weights", [f"{name}, at first {rule}" for name, rule in rules])
    yield from _rows("step inputs", [" ".join(signature.step_inputs)] * bool(signature.step_inputs))
    count, h = len(program.saved), signature.states[0]
    kept = [f"{count} for each unit and step: {' '.join(program.saved)}" if count else "nothing"]
    needs = {stage.needs for stage in stages}
    kept += [f"{h} before the step is read from the output"] if "h_prev" in needs else []
    kept += [f"{h} after the step is read from the output"] if "h" in needs else []
    yield from _rows("kept", kept)
    yield from _rows("forward", [_size([line for stage in stages for line in stage.forward])])
    backward = _size([line for stage in stages for line in stage.backward])
    yield from _rows("backward", [f"{backward}; {len(again)} had been computed in forward"])
    yield from _rows("program", [f"{len(program.text)} characters"])
    yield from _rows("run by", run_by)


def _rows(head: str, texts: Sequence[str]) -> Iterator[str]:
    for i, text in enumerate(texts):
        yield f"{'' if i else head:{WIDTH}}{text}"


def _use_of(gate: str, program: Program) -> str:
    """How the input and the product of a gate are used."""
    for stage in program.stages:
        of = "(v)" if stage.gates.is_second else ""
        if gate in stage.gates.joint:
            return f"x.{gate} + u.{gate}{of}"
        if gate in stage.gates.apart:
            is_late = any(gate in each.gates.late for each in program.stages)
            return f"x.{gate}, and u.{gate}{of} apart" if is_late else f"u.{gate}{of} only"
    return f"x.{gate} only"


def _size(lines: Sequence[Line]) -> str:
    functions = sum(line.op in TRANSCENDENTAL for line in lines)
    return f"{len(lines)} operations, {functions} of them transcendental"


def _computed_again(program: Program) -> Again:
    """The lines of backward whose results forward had, too: their stages and numbers."""
    graph = Graph()
    values: dict[str, Operand] = {}

    def run(line: Line) -> Operand:
        """The value of a line, as a node of what forward was given."""
        sources = [
            float(name[1:]) if name.startswith("#") else values.get(name, graph.input(name))
            for name in line.sources
        ]
        values[line.destination] = (
            sources[0] if line.op == "copy" else graph.make(line.op, *sources)
        )
        return values[line.destination]

    def forget(kinds: str) -> None:
        """Slots of these kinds hold something else from now on."""
        for name in [name for name in values if re.fullmatch(rf"({kinds})\d*", name)]:
            del values[name]

    had: set[Operand] = set()
    for i, stage in enumerate(program.stages):
        forget("t|p|x")
        values |= {f"p{j}": graph.input(f"{i} p{j}") for j in range(len(stage.gates.products))}
        values |= {f"x{j}": graph.input(f"{i} x{j}") for j in range(len(stage.gates.late))}
        had |= {run(line) for line in stage.forward}
    result = values["r"]
    again = set()
    for i in reversed(range(len(program.stages))):
        forget("t")
        values["h"] = result if program.stages[i].needs == "h" else graph.input("h")
        for number, line in enumerate(program.stages[i].backward):
            if run(line) in had and line.op != "copy":
                again.add((i, number))
    return again


def _listing(program: Program, index: int, name: str, again: Again) -> Iterator[str]:
    """The lines of a pass of a stage, in the cell's own names."""
    stage = program.stages[index]
    names = _names(program, index)
    for number, line in enumerate(stage.forward if name == "forward" else stage.backward):
        sources = [_word(source, names) for source in line.sources]
        if line.op in SIGNS:
            is_simple = line.op == "copy"
            sources = [f"({s})" if " " in s and not is_simple else s for s in sources]
            value = SIGNS[line.op].format(*sources)
        else:
            value = f"{line.op}({', '.join(sources)})"
        for kind, states in (("s", "{}_next"), ("ds", "d{}")):  # these now hold other values
            if re.fullmatch(rf"{kind}\d", line.destination):
                state = program.signature.states[int(line.destination.removeprefix(kind))]
                names[line.destination] = states.format(state)
        is_again = name == "backward" and (index, number) in again
        mark = "    (again)" if is_again else ""
        yield f"    {_word(line.destination, names)} = {value}{mark}"


def _names(program: Program, index: int) -> dict[str, str]:
    """What the slots of a stage are called in a listing."""
    signature, stage = program.signature, program.stages[index]
    h, is_last = signature.states[0], index == len(program.stages) - 1
    inputs = [name for each in program.stages for name in each.gates.inputs]
    inputs += [f"w.{name}" for name in signature.unit_weights]
    inputs = [_of_layer(name, program) for name in inputs]
    products = [_of_layer(name, program) for name in stage.gates.products]
    names = {f"p{i}": name for i, name in enumerate(products)}
    names |= {f"x{i}": name for i, name in enumerate(stage.gates.late_inputs)}
    names |= {f"g{i}": f"d({name})" for i, name in enumerate(inputs)}
    names |= {f"w{i}": f"w.{name}" for i, name in enumerate(signature.unit_weights)}
    names |= {f"e{i}": f"e.{name}" for i, name in enumerate(signature.step_inputs)}
    names |= {f"de{i}": f"d(e.{name})" for i, name in enumerate(signature.step_inputs)}
    names |= {f"save{i}": name for i, name in enumerate(program.saved)}
    names |= {f"s{i}": state for i, state in enumerate(signature.states)}
    names |= {f"ds{i}": f"d{state}_next" for i, state in enumerate(signature.states)}
    names |= {"h": f"{h}_next" if stage.needs == "h" else h, "carry": f"d{h}"}
    names |= {"r": f"{h}_next", "dr": f"d{h}_next"} if is_last else {"r": "v", "dr": "dv"}
    return names


def _of_layer(name: str, program: Program) -> str:
    """What a layer gives: the sum of both, of a joint gate."""
    space, _, gate = name.partition(".")
    of = "(v)" if gate in program.definition.called else ""
    return {"p": f"x.{gate} + u.{gate}{of}", "u": f"u.{gate}{of}"}.get(space, name)


def _word(slot: str, names: Mapping[str, str]) -> str:
    return f"{float(slot[1:]):.17g}" if slot.startswith("#") else names.get(slot, slot)
