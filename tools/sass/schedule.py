"""In which cycle each instruction is issued, from the traces of a block's warps.

A warp's next instruction can be issued when three things are over:

    the stall count of the one before          results of fixed latency, and branches
    the scoreboards that it waits for          results that take as long as they take
    barriers, and waits for mbarriers          other warps

and then it needs its scheduler, which issues one instruction a cycle of all its warps, and the pipe
that executes it. Each cycle of a warp belongs to the instruction that was waited for, so that the
cycles of a stretch of time add up by the lines that they come from.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .assumptions import Assumptions
from .code import NO_SCOREBOARD, Control, Instruction, Kernel
from .machine import Event, Meeting


@dataclass(slots=True)
class Issued:
    """When an instruction was issued, and what it had waited for since the one before."""

    cycle: int
    stalled_until: int  # by the one before: its stall count, a branch, a barrier
    data_until: int  # by the instruction at `producer`
    producer: int  # an index in the trace of the same warp


@dataclass
class Timeline:
    """All that the warps issued."""

    kernel: Kernel
    traces: list[list[Event]]
    issued: list[list[Issued]] = field(default_factory=list)  # as the traces
    over: dict[Meeting, int] = field(default_factory=dict)  # when a meeting was over
    last: dict[Meeting, tuple[int, int]] = field(default_factory=dict)  # warp, index in its trace

    def instruction(self, warp: int, index: int) -> Instruction:
        """That of an event."""
        return self.kernel.instructions[self.traces[warp][index].at]

    def path(self, warp: int, index: int, start: int) -> Iterator[tuple[Instruction, int]]:
        """The cycles from `start` to the issue of an event, backwards, and what they went to.

        Where the warp waited at a barrier, the path goes on along the warp that came last.
        """
        to = self.issued[warp][index].cycle
        while to > start and index > 0:
            now = self.issued[warp][index]
            before = index - 1
            own = [
                (warp, index, now.data_until),  # what is left: the scheduler, or a pipe
                (warp, now.producer, now.stalled_until),
                (warp, before, self.issued[warp][before].cycle),
            ]
            meeting = self.traces[warp][before].meeting
            if meeting is not None and self.traces[warp][before].waits and meeting in self.last:
                last_warp, last_index = self.last[meeting]
                own[-1] = (warp, before, self.issued[last_warp][last_index].cycle)
                warp, before = last_warp, last_index
            for of_warp, of, since in own:
                since = max(since, start)
                if to > since:
                    yield self.instruction(of_warp, of), to - since
                    to = since
            index = before


@dataclass
class _Progress:
    """Where a warp is in its trace."""

    index: int = 0
    stalled_until: int = 0
    boards: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * 6)  # cycle, producer
    pending: list[list[int]] = field(default_factory=lambda: [[] for _ in range(6)])


def _pipe_of(instruction: Instruction, pipes: dict[str, tuple[str, int]]) -> tuple[str, int]:
    """The pipe of an instruction and how long it keeps it busy, by its name and its width."""
    width = instruction.opcode.split(".")[-1]
    return pipes.get(f"{instruction.name}.{width}") or pipes.get(instruction.name) or ("", 0)


def schedule(kernel: Kernel, traces: list[list[Event]], assumptions: Assumptions) -> Timeline:
    """Issues what the warps' traces have, in the order of time."""
    line = Timeline(kernel, traces, [[] for _ in traces])
    code = kernel.instructions
    controls = [i.control for i in code]
    is_depbar = [i.name == "DEPBAR" for i in code]
    pipes = [_pipe_of(i, assumptions.pipes) for i in code]
    latencies = [assumptions.latency_of(i.name) for i in code]
    progress = [_Progress() for _ in traces]
    issue_free = [0] * assumptions.schedulers
    busy: dict[tuple[str, int], int] = {}
    arrived: Counter[Meeting] = Counter()
    blocked: dict[Meeting, list[int]] = {}
    # (cycle, warp, stalled until, data until, producer)
    ready = [(0, w, 0, 0, 0) for w, trace in enumerate(traces) if trace]
    heapq.heapify(ready)

    def push_next(warp: int) -> None:
        """Makes a warp a candidate for its next instruction."""
        at = progress[warp]
        trace = traces[warp]
        if at.index >= len(trace):
            return
        place = trace[at.index].at
        data, producer = at.stalled_until, at.index
        for board in controls[place].waits:
            cycle, of = at.boards[board]
            if cycle > data:
                data, producer = cycle, of
        if is_depbar[place]:
            data = max(data, _at_most(at, code[place]))
        heapq.heappush(ready, (data, warp, at.stalled_until, data, producer))

    def release(meeting: Meeting, cycle: int) -> None:
        line.over[meeting] = cycle
        for warp in blocked.pop(meeting, []):
            at = progress[warp]
            after = code[traces[warp][at.index - 1].at]
            if after.name == "BAR":
                at.stalled_until = cycle + assumptions.barrier + max(1, after.control.stall)
            else:
                at.stalled_until = cycle + max(1, after.control.stall)
                latency = latencies[traces[warp][at.index - 1].at]
                _set_boards(at, after.control, at.index - 1, cycle, latency)
            push_next(warp)

    while ready or blocked:
        if not ready:  # who is waited for waits, too: an mbarrier's phase was over before
            meeting = min(blocked, key=lambda m: line.issued[blocked[m][0]][-1].cycle)
            release(meeting, max(line.issued[w][-1].cycle for w in blocked[meeting]))
            continue
        cycle, warp, stalled, data, producer = heapq.heappop(ready)
        at = progress[warp]
        event = traces[warp][at.index]
        control = controls[event.at]
        pipe, occupied = pipes[event.at]
        scheduler = warp % assumptions.schedulers
        result = cycle
        if assumptions.contention:
            free = issue_free[scheduler]
            if event.executes and pipe and pipe != "shared":
                free = max(free, busy.get((pipe, scheduler), 0))
            if free > cycle:
                heapq.heappush(ready, (free, warp, stalled, data, producer))
                continue
            issue_free[scheduler] = cycle + 1
            if event.executes and pipe:
                unit = (pipe, scheduler if pipe != "shared" else 0)
                result = max(cycle, busy.get(unit, 0))  # shared memory has a queue
                busy[unit] = result + occupied
        line.issued[warp].append(Issued(cycle, stalled, data, producer))
        at.index += 1
        at.stalled_until = cycle + max(1, control.stall)
        if event.jumps:
            at.stalled_until += assumptions.taken_branch
        if (met := event.meeting) is not None:
            arrived[met] += 1
            line.last[met] = warp, at.index - 1
            if event.waits:
                blocked.setdefault(met, []).append(warp)
            else:
                push_next(warp)
            if arrived[met] == met.warps:
                release(met, cycle)
            continue
        if control.sets_boards:
            latency = latencies[event.at] if event.executes else 0
            _set_boards(at, control, at.index - 1, result, latency, assumptions.operands_read)
        push_next(warp)
    return line


def _set_boards(
    at: _Progress, control: Control, index: int, cycle: int, latency: int, read: int = 0
) -> None:
    """The scoreboards that an instruction sets are released when its result is there."""
    for board, until in ((control.written, cycle + latency), (control.have_read, cycle + read)):
        if board == NO_SCOREBOARD:
            continue
        if until > at.boards[board][0]:
            at.boards[board] = until, index
        at.pending[board] = [other for other in at.pending[board] if other > cycle] + [until]


def _at_most(at: _Progress, instruction: Instruction) -> int:
    """DEPBAR.LE SB0, n: when at most n of a scoreboard's instructions are still to finish."""
    board, left = instruction.operands[0], int(instruction.operands[1], 16)
    pending = sorted(at.pending[int(board[2:])])
    return pending[-1 - left] if len(pending) > left else 0


def cycles_by(
    path: Iterable[tuple[Instruction, int]], part_of: Callable[[Instruction], str]
) -> Counter[str]:
    """The cycles of a path, by a name for each instruction."""
    total: Counter[str] = Counter()
    for instruction, cycles in path:
        total[part_of(instruction)] += cycles
    return total
