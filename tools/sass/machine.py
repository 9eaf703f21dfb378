"""The warps of one block, executed lane by lane, and what each of them did.

A warp has one place in the code for all of its lanes, until a branch parts them. Then one part goes
on while the other waits for its turn, up to the instruction where they meet again:

    BSSY B0, there       those who are here now will meet under the name B0
    @P0 BRA elsewhere    some go elsewhere, the others on
    BSYNC B0             whoever comes first waits for the others

Warps run one after the other from barrier to barrier: nothing that is computed here depends on who
is ahead. When an instruction is issued is another question: schedule.py answers it, from the trace
that each warp leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .code import Instruction, Kernel
from .operands import (
    TRUE,
    Bits,
    ReadBits,
    UnknownInstruction,
    Values,
    is_predicate,
    predicate,
    value,
)
from .operations import OPERATIONS, Run

CONSTANT_BYTES = 65536
PARAMETERS_AT = 0x210  # in the constants of a launch, on sm_90
RESERVED_SHARED = 1024  # bytes of each block's that are not the kernel's
STACK_BYTES = 32768
MOST_INSTRUCTIONS = 2_000_000  # of a warp: more is a loop without end

UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32}
ALL, NONE = bytes([1] * 32), bytes(32)


@dataclass
class Launch:
    """What a block is told: its threads, its place, its constants."""

    parameters: bytes
    threads: int
    shared_bytes: int = 0  # beside RESERVED_SHARED
    block: int = 0
    cluster_blocks: int = 1


@dataclass(eq=False)
class Meeting:
    """Warps that wait for each other: at a barrier, or for the same phase of an mbarrier."""

    warps: int
    what: str


class Event(NamedTuple):
    """An instruction that a warp issued."""

    at: int  # its place in the code
    executes: bool  # in any lane
    jumps: bool = False
    meeting: Meeting | None = None
    waits: bool = False  # in the meeting, and does not only arrive
    sends: bool = False


@dataclass
class Part:
    """Lanes of a warp that are at the same place."""

    at: int
    lanes: Bits


@dataclass
class Convergence:
    """Lanes that meet, and those of them that are there already."""

    expected: Bits
    arrived: Bits
    at: int = 0


@dataclass(eq=False)
class Warp:
    """Registers, predicates and lanes of one warp."""

    machine: Machine
    number: int
    r: list[Values] = field(init=False)
    ur: list[Values] = field(init=False)
    p: list[Bits] = field(init=False)
    up: list[Bits] = field(init=False)
    local: Values = field(init=False)
    lanes: Bits | None = None  # that execute the current instruction; None: all 32
    at: int = 0
    active: Bits = field(default_factory=lambda: np.ones(32, np.bool_))
    alive: Bits = field(default_factory=lambda: np.ones(32, np.bool_))
    parts: list[Part] = field(default_factory=list)  # that wait for their turn
    meetings: dict[str, Convergence] = field(default_factory=dict)
    trace: list[Event] = field(default_factory=list)
    blocked: Meeting | None = None
    waited: dict[int, int] = field(default_factory=dict)  # how often for which mbarrier
    happened: dict[str, Meeting | bool] = field(default_factory=dict)  # in the instruction at hand

    def __post_init__(self) -> None:
        self.r = list(np.zeros((256, 32), np.uint32))
        self.ur = list(np.zeros((64, 1), np.uint32))
        self.p = list(np.zeros((8, 32), np.bool_))
        self.up = list(np.zeros((8, 1), np.bool_))
        self.p[TRUE][:] = self.up[TRUE][:] = True
        self.local = np.zeros((32, STACK_BYTES // 4), np.uint32)

    def wait(self, barrier: int) -> None:
        """For the next phase of an mbarrier."""
        turn = self.waited.get(barrier, 0)
        self.waited[barrier] = turn + 1
        meeting = self.machine.phase(barrier, turn)
        meeting.warps += 1
        self.happened = {"meeting": meeting, "waits": True}

    def send(self) -> None:
        """Bytes to another block."""
        self.happened = {"sends": True}


class Machine:
    """Executes a kernel's block."""

    def __init__(self, kernel: Kernel, launch: Launch) -> None:
        self.kernel, self.launch = kernel, launch
        self.block = launch.block
        self.rank = launch.block % launch.cluster_blocks
        self.bank = np.zeros(CONSTANT_BYTES // 4, np.uint32)
        in_bytes = self.bank.view(np.uint8)
        end = PARAMETERS_AT + len(launch.parameters)
        in_bytes[PARAMETERS_AT:end] = np.frombuffer(launch.parameters, np.uint8)
        self.bank[0:3] = launch.threads, 1, 1
        self.bank[0x28 // 4] = STACK_BYTES // 2
        self.bank[0x140 // 4] = launch.cluster_blocks > 1
        self.shared = np.zeros(RESERVED_SHARED + launch.shared_bytes, np.uint8)
        self.warps = [Warp(self, number) for number in range(-(-launch.threads // 32))]
        self.barriers: dict[int, tuple[Meeting, list[Warp], int]] = {}
        self.phases: dict[tuple[int, int], Meeting] = {}
        self.fixed: dict[tuple[int, int], Values] = {}

    # ---- Memory ---------------------------------------------------------------------------------

    def constant(self, at: int, size: int) -> Values:
        """A constant whose place is the same for all lanes."""
        found = self.fixed.get((at, size))
        if found is None:
            found = self.fixed[at, size] = self.constants_at(np.array([at], np.uint32), size)
        return found

    def constants_at(self, places: Values, size: int) -> Values:
        """Constants at places of the bank, in bytes."""
        at = places // size % (CONSTANT_BYTES // size)
        return self.bank.view(UNSIGNED[size])[at].astype(np.uint32)

    def _shared_at(self, warp: Warp, places: Values, bytes_: int) -> Values:
        """Where shared addresses of the own block point; the upper byte is a block's rank."""
        places = np.broadcast_to(places & np.uint32(0xFFFFFF), 32)
        if warp.lanes is not None:
            places = np.where(warp.lanes, places, 0)
        if places.max() + bytes_ > len(self.shared) or (places % bytes_).any():
            raise RuntimeError(
                f"{self.kernel.instructions[warp.at - 1]}: expected addresses below "
                f"{len(self.shared)} and multiples of {bytes_}, got {places}"
            )
        return places

    def load_shared(self, warp: Warp, places: Values, words: int, size: int) -> list[Values]:
        """`words` registers from shared memory, or one of fewer bytes."""
        at = self._shared_at(warp, places, words * size)
        view = self.shared.view(UNSIGNED[size])
        return [view[at // size + word].astype(np.uint32) for word in range(words)]

    def store_shared(self, warp: Warp, places: Values, words: list[Values], size: int) -> None:
        """Registers to shared memory, or the lower bytes of one."""
        at = self._shared_at(warp, places, len(words) * size)
        dtype = UNSIGNED[size]
        view = self.shared.view(dtype)
        for word, values in enumerate(words):
            values = np.broadcast_to(values, 32).astype(dtype)
            if warp.lanes is None:
                view[at // size + word] = values
            else:
                view[at[warp.lanes] // size + word] = values[warp.lanes]

    # ---- Warps ----------------------------------------------------------------------------------

    def phase(self, barrier: int, turn: int) -> Meeting:
        """All warps' waits for the n-th phase of an mbarrier."""
        return self.phases.setdefault((barrier, turn), Meeting(0, f"mbarrier {barrier:#x}"))

    def run(self) -> list[list[Event]]:
        """Executes the block; returns what each warp issued."""
        waiting = list(self.warps)
        while waiting:
            for warp in waiting:
                self._run_to_barrier(warp)
            waiting = [w for w in waiting if w.alive.any()]
            if waiting and all(w.blocked for w in waiting):
                at = self.kernel.instructions[waiting[0].at - 1]
                raise RuntimeError(f"{len(waiting)} warps wait for others that do not come: {at}")
        return [warp.trace for warp in self.warps]

    def _run_to_barrier(self, warp: Warp) -> None:
        code, done, trace = self.kernel.instructions, self.kernel.prepared, warp.trace
        while not warp.blocked:
            at = warp.at
            if at not in done:
                done[at] = *prepared(self.kernel, code[at]), Event(at, True), Event(at, False)
            guard, run, executed, left_out = done[at]
            warp.at = at + 1
            if guard is None:
                warp.lanes = None if warp.active.tobytes() == ALL else warp.active
            else:
                lanes = guard(warp) & warp.active
                bits = lanes.tobytes()
                if bits == NONE:
                    trace.append(left_out)
                    continue
                warp.lanes = None if bits == ALL else lanes
            run(warp)
            if warp.happened:
                trace.append(Event(at, True, **warp.happened))  # type: ignore[arg-type]
                warp.happened = {}
            else:
                trace.append(executed)
            if warp.at < 0:  # ended
                return
            if len(trace) > MOST_INSTRUCTIONS:
                raise RuntimeError(f"warp {warp.number} does not end: {code[at]}")

    def meet(self, warp: Warp, barrier: int, warps: int, waits: bool) -> None:
        """A barrier of some warps of the block."""
        meeting, there, arrived = self.barriers.get(barrier) or (
            Meeting(warps, f"barrier {barrier}"), [], 0,
        )  # fmt: skip
        if meeting.warps != warps:
            raise RuntimeError(f"barrier {barrier}: {warps} warps, after {meeting.warps}")
        arrived += 1
        if waits:
            there.append(warp)
            warp.blocked = meeting
        warp.happened = {"meeting": meeting, "waits": waits}
        self.barriers[barrier] = meeting, there, arrived
        if arrived == warps:
            for other in there:
                other.blocked = None
            del self.barriers[barrier]


def unknown(kernel: Kernel) -> list[str]:
    """The instructions of a kernel whose meaning is not written here."""
    found = []
    for instruction in kernel.instructions:
        try:
            prepared(kernel, instruction)
        except UnknownInstruction as error:
            found.append(str(error))
    return found


def prepared(kernel: Kernel, instruction: Instruction) -> tuple[ReadBits | None, Run]:
    """What tells in which lanes an instruction executes, and what executes it."""
    guard = predicate(instruction.guard[1:]) if instruction.guard else None
    make = FLOW.get(instruction.name)
    try:
        if make is not None:
            return guard, make(kernel, instruction)
        if instruction.name in OPERATIONS:
            return guard, OPERATIONS[instruction.name](instruction)
    except (UnknownInstruction, ValueError, KeyError, IndexError) as error:
        raise UnknownInstruction(f"{instruction} ({error})") from error
    raise UnknownInstruction(str(instruction))


# ---- Control flow -------------------------------------------------------------------------------


def _lanes(warp: Warp) -> Bits:
    return warp.active if warp.lanes is None else warp.lanes


def _place(kernel: Kernel, operand: str) -> int:
    label = operand.strip("`()")
    if label not in kernel.labels:
        raise UnknownInstruction(f"the label {operand!r}")
    return kernel.labels[label]


def _jump(warp: Warp, to: int, lanes: Bits) -> None:
    """These lanes go elsewhere; if others stay, they go first."""
    warp.happened = {"jumps": True}
    if (lanes == warp.active).all():
        warp.at = to
        return
    warp.parts.append(Part(to, lanes))
    warp.active = warp.active & ~lanes
    warp.happened = {}


def _next_part(warp: Warp) -> None:
    """The lanes at hand wait, or have ended: others' turn."""
    if warp.parts:
        part = warp.parts.pop()
        warp.at, warp.active = part.at, part.lanes
    elif not warp.alive.any():
        warp.at = -1
    else:
        at = warp.machine.kernel.instructions[warp.at - 1]
        raise RuntimeError(f"warp {warp.number}: all lanes wait for others: {at}")


def branch(kernel: Kernel, instruction: Instruction) -> Run:
    """BRA, and its forms for lanes that may have parted."""
    *conditions, target = instruction.operands
    to = _place(kernel, target)
    if ".DIV" in instruction.opcode or ".CONV" in instruction.opcode:
        return lambda warp: _require_all(warp, instruction)  # elsewhere is what parted lanes need
    bits = [predicate(o) for o in conditions if is_predicate(o)]
    if len(bits) != len(conditions):
        raise UnknownInstruction(str(instruction))
    takes_any = instruction.opcode.endswith(".ANY")

    def run(warp: Warp) -> None:
        lanes = _lanes(warp)
        for read in bits:
            lanes = lanes & read(warp)
        if takes_any and lanes.any():
            lanes = warp.active
        if lanes.any():
            _jump(warp, to, lanes)

    return run


def call(kernel: Kernel, instruction: Instruction) -> Run:
    to = _place(kernel, instruction.operands[-1])
    return lambda warp: _jump(warp, to, _lanes(warp))


def give_back(kernel: Kernel, instruction: Instruction) -> Run:
    """RET: to where a register says, counted from the start of the kernel."""
    read = value(instruction.operands[0].split()[0])

    def run(warp: Warp) -> None:
        lanes = _lanes(warp)
        places = set(np.broadcast_to(read(warp), 32)[lanes].tolist())
        if len(places) != 1:
            raise RuntimeError(f"{instruction}: lanes return to different places")
        _jump(warp, places.pop() // 16, lanes)

    return run


def announce(kernel: Kernel, instruction: Instruction) -> Run:
    """BSSY."""
    name = instruction.operands[0]

    def run(warp: Warp) -> None:
        warp.meetings[name] = Convergence(_lanes(warp).copy(), np.zeros(32, np.bool_))

    return run


def _arrive(warp: Warp, name: str, meeting: Convergence) -> None:
    """The lanes at hand wait for those who are expected, or go on with them if all are there."""
    meeting.arrived |= warp.active
    meeting.at = warp.at
    if ((meeting.expected & warp.alive) & ~meeting.arrived).any():
        _next_part(warp)
        return
    warp.active = meeting.arrived & warp.alive
    del warp.meetings[name]


def converge(kernel: Kernel, instruction: Instruction) -> Run:
    """BSYNC."""
    name = instruction.operands[0]

    def run(warp: Warp) -> None:
        if (_lanes(warp) != warp.active).any():
            raise UnknownInstruction(f"{instruction}, for a part of the lanes")
        if name in warp.meetings:
            _arrive(warp, name, warp.meetings[name])

    return run


def leave(kernel: Kernel, instruction: Instruction) -> Run:
    """BREAK: these lanes will not come to a meeting."""
    name = next(o for o in instruction.operands if o.startswith("B"))

    def run(warp: Warp) -> None:
        meeting = warp.meetings.get(name)
        if meeting is None:
            return
        meeting.expected &= ~_lanes(warp)
        if meeting.arrived.any() and not (meeting.expected & ~meeting.arrived).any():
            warp.parts.append(Part(meeting.at, meeting.arrived))
            del warp.meetings[name]

    return run


def converge_all(kernel: Kernel, instruction: Instruction) -> Run:
    """WARPSYNC: all lanes meet."""
    if "COLLECTIVE" in instruction.opcode:
        return lambda warp: _require_all(warp, instruction)

    def run(warp: Warp) -> None:
        meeting = warp.meetings.get("warp")
        if meeting is None:
            meeting = Convergence(warp.alive.copy(), np.zeros(32, np.bool_))
            warp.meetings["warp"] = meeting
        _arrive(warp, "warp", meeting)

    return run


def _require_all(warp: Warp, instruction: Instruction) -> None:
    if (_lanes(warp) != warp.alive).any():
        raise RuntimeError(f"{instruction}: expected all lanes of warp {warp.number}, got a part")


def end(kernel: Kernel, instruction: Instruction) -> Run:
    def run(warp: Warp) -> None:
        lanes = _lanes(warp)
        warp.alive = warp.alive & ~lanes
        stays = warp.active & ~lanes
        for name, meeting in list(warp.meetings.items()):  # that no one else is expected at
            if (
                meeting.arrived.any()
                and not (meeting.expected & warp.alive & ~meeting.arrived).any()
            ):
                warp.parts.append(Part(meeting.at, meeting.arrived & warp.alive))
                del warp.meetings[name]
        if stays.any():
            warp.active = stays
        else:
            _next_part(warp)

    return run


def block_barrier(kernel: Kernel, instruction: Instruction) -> Run:
    """BAR: .SYNC waits for the others, .ARV does not."""
    is_sync, is_arrival = "SYNC" in instruction.opcode, "ARV" in instruction.opcode
    if not (is_sync or is_arrival):
        raise UnknownInstruction(str(instruction))
    which, *count = instruction.operands
    read_barrier = value(which)
    read_threads = value(count[0]) if count else None
    is_packed = bool(count) and count[0].startswith("R")  # number of threads from bit 16 on

    def run(warp: Warp) -> None:
        _require_all(warp, instruction)
        warps = len(warp.machine.warps)
        if read_threads is not None:
            warps = int(read_threads(warp)[0]) >> (16 if is_packed else 0)
            warps //= 32
        warp.machine.meet(warp, int(read_barrier(warp)[0]) & 15, warps, is_sync)

    return run


FLOW = {
    "BRA": branch,
    "CALL": call,
    "RET": give_back,
    "BSSY": announce,
    "BSYNC": converge,
    "BREAK": leave,
    "WARPSYNC": converge_all,
    "ENDCOLLECTIVE": lambda kernel, instruction: lambda warp: _require_all(warp, instruction),
    "EXIT": end,
    "BAR": block_barrier,
}
