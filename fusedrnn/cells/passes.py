"""From expressions to the lines of a pass: what is fused, in what order, and in which slots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fusedrnn.cells.graph import Node, Operand, reach

__all__ = ["Line", "can_be_read", "fused", "lines_of"]


@dataclass(frozen=True)
class Line:
    """One operation of a pass: `destination = op sources`."""

    destination: str
    op: str
    sources: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.destination, "=", self.op, *self.sources))


def fused(
    roots: Sequence[Operand],
    others: Sequence[Operand] = (),
    given: Collection[Node] = (),
    apart: Collection[Operand] = (),
    may_fuse: Callable[[Node, Node], bool] = lambda sum, product: True,
) -> dict[Node, Operand]:
    """What becomes of each node when sums and differences are fused with a product.

    A product that nothing else uses is fused with the sum that it is a term of, and is not rounded
    itself; of two, the first. Compilers would do the same, each in its own way; so it is decided
    here, and the kernels compute what is written.

    Args:
        roots: what is computed.
        others: more nodes, to be told what becomes of them; they do not use anything.
        given: what is not computed.
        apart: roots whose slots cannot be read again: a sum gains nothing from them.
        may_fuse: whether a sum may be fused with a product that only it uses.
    """
    computed = dict.fromkeys(reach(roots, given))
    uses = _uses_in([root for root in roots if root not in apart], [*computed])
    became: dict[Node, Operand] = {node: node for node in given}

    def now(operand: Operand) -> Operand:
        return became[operand] if isinstance(operand, Node) else operand

    def is_fused(sum: Node, operand: Operand) -> bool:
        return (
            isinstance(operand, Node)
            and operand.op == "mul"
            and operand not in given
            and uses.get(operand) == 1
            and may_fuse(sum, operand)
        )

    for node in reach((*roots, *others), given):
        op, args = node.op, node.args
        if op in ("add", "sub") and node in computed:
            first, second = args
            if is_fused(node, first):
                op, args = "fma" if op == "add" else "fms", (*_operands(first), second)
            elif is_fused(node, second):
                op, args = "fma" if op == "add" else "fnma", (*_operands(second), first)
        became[node] = node.graph.make(op, *map(now, args), name=node.name)
    return became


def lines_of(outputs: Sequence[tuple[str, Operand]], given: Mapping[Node, str]) -> tuple[Line, ...]:
    """The lines that compute outputs.

    Args:
        outputs: slots, and what is written to each.
        given: slots that are read, by what they hold. One that is also written holds the old value
            until then.
    """
    steps = _steps(outputs, given)
    orders = [_as_written(steps), _few_at_once(steps)]
    return min((_in_slots(order) for order in orders), key=temporaries)


def temporaries(lines: Sequence[Line]) -> int:
    """How many temporaries lines have."""
    return len({line.destination for line in lines if line.destination.startswith("t")})


def _uses_in(roots: Sequence[Operand], nodes: Sequence[Node]) -> dict[Node, int]:
    """How often each node is an operand of one of these, or a root."""
    uses: dict[Node, int] = {}
    for used in (*roots, *(arg for node in nodes for arg in node.args)):
        if isinstance(used, Node):
            uses[used] = uses.get(used, 0) + 1
    return uses


@dataclass(eq=False)
class _Step:
    """One operation, before it has its place.

    Attributes:
        op: the operation.
        sources: its operands: other steps, or names.
        slot: where the result goes; empty for a temporary.
        after: steps that must come first: those whose results it needs, and those that read what it
            overwrites.
    """

    op: str
    sources: list[_Step | str]
    slot: str = ""
    after: list[_Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.after += [source for source in self.sources if isinstance(source, _Step)]


def _operands(operand: Operand) -> tuple[Operand, ...]:
    assert isinstance(operand, Node)
    return operand.args


def _steps(outputs: Sequence[tuple[str, Operand]], given: Mapping[Node, str]) -> list[_Step]:
    """All steps, those that write outputs in the order of these."""
    nodes = reach([operand for _, operand in outputs], given)
    uses = _uses_in([operand for _, operand in outputs], nodes)
    slot_of: dict[Node, str] = {}
    for slot, operand in outputs:
        if isinstance(operand, Node) and operand not in given and operand not in slot_of:
            if uses[operand] == 1 or can_be_read(slot):
                slot_of[operand] = slot
    made: dict[Node, _Step] = {}

    def source(operand: Operand) -> _Step | str:
        if not isinstance(operand, Node):
            return f"#{operand!r}"
        return made[operand] if operand in made else given[operand]

    for node in nodes:
        if node.op == "input":
            raise AssertionError(f"{node} is not given")
        made[node] = _Step(node.op, [*map(source, node.args)], slot_of.get(node, ""))
    steps = [*made.values()]
    for slot, operand in outputs:
        if not isinstance(operand, Node) or slot_of.get(operand) != slot:
            steps.append(_Step("copy", [source(operand)], slot))
    for slot in given.values():
        _overwrite_last(slot, steps)
    return steps


def can_be_read(slot: str) -> bool:
    """Whether a slot can be read after it was written."""
    return slot.startswith(("save", "g", "s", "ds", "de"))


def _overwrite_last(slot: str, steps: list[_Step]) -> None:
    """Has whatever writes a slot come after all that reads its old value."""
    writer = next((step for step in steps if step.slot == slot), None)
    if writer is None:
        return
    readers = [step for step in steps if slot in step.sources and step is not writer]
    if any(_needs(reader, writer) for reader in readers):  # then by way of a temporary
        writer.slot = ""
        writer = _Step("copy", [writer], slot)
        steps.append(writer)
    writer.after += readers


def _needs(step: _Step, other: _Step) -> bool:
    """Whether a step must come after another."""
    seen, waiting = {step}, [step]
    while waiting:
        for before in waiting.pop().after:
            if before is other:
                return True
            if before not in seen:
                seen.add(before)
                waiting.append(before)
    return False


def _as_written(steps: Sequence[_Step]) -> list[_Step]:
    """Steps in an order in which each comes just before it is needed."""
    order: list[_Step] = []
    known: set[_Step] = set()
    writers = [step for step in steps if step.slot]
    for last in writers:
        waiting = [(last, False)]
        while waiting:
            step, is_ready = waiting.pop()
            if is_ready:
                order.append(step)
            elif step not in known:
                known.add(step)
                waiting.append((step, True))
                waiting += [(before, False) for before in reversed(step.after)]
    return order


def _few_at_once(steps: Sequence[_Step]) -> list[_Step]:
    """Steps in an order in which few temporaries are alive: each time the one that adds fewest."""
    waiting = _as_written(steps)
    left = _uses(waiting)
    order: list[_Step] = []
    done: set[_Step] = set()

    def added(step: _Step) -> int:
        ends = sum(left[source] == 1 for source in _temporaries(step))
        return (not step.slot) - ends

    while waiting:
        ready = [step for step in waiting if done.issuperset(step.after)]
        best = min(ready, key=added)  # the first of them
        for source in _temporaries(best):
            left[source] -= 1
        order.append(best)
        waiting.remove(best)
        done.add(best)
    return order


def _temporaries(step: _Step) -> list[_Step]:
    """The temporaries that a step reads, each once."""
    each = dict.fromkeys(source for source in step.sources if isinstance(source, _Step))
    return [source for source in each if not source.slot]


def _uses(steps: Sequence[_Step]) -> dict[_Step, int]:
    """How many steps read each temporary."""
    uses = dict.fromkeys(steps, 0)
    for step in steps:
        for source in _temporaries(step):
            uses[source] += 1
    return uses


def _in_slots(order: Sequence[_Step]) -> tuple[Line, ...]:
    """The lines of steps; a temporary is free again after its last use."""
    left = _uses(order)
    names: dict[_Step, str] = {}
    free: list[int] = []
    count = 0
    lines = []
    for step in order:
        sources = [names[each] if isinstance(each, _Step) else each for each in step.sources]
        for source in _temporaries(step):
            left[source] -= 1
            if not left[source]:
                free.append(int(names[source].removeprefix("t")))
        if step.slot:
            names[step] = step.slot
        else:
            if not free:
                free.append(count)
                count += 1
            number = min(free)
            free.remove(number)
            names[step] = f"t{number}"
        lines.append(Line(names[step], step.op, tuple(sources)))
    return tuple(lines)
