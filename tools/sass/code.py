"""Kernels as nvdisasm prints them: instructions, their control words, and their source lines.

An instruction has 128 bits. The upper 23 say how the scheduler has to treat it; nvdisasm prints
them in hexadecimal only. From bit 105 on:

    bits     4      1       3         3        6       4
          [stall][yield][written][have read][waits][reuse]

    stall      cycles until this warp's next instruction: how results of fixed latency are waited
               for, which no hardware checks
    written    the scoreboard, one of six counters, that is released when the result is there, or 7
    have read  the one that is released when the operands have been read, or 7
    waits      the scoreboards that have to be at zero before the instruction is issued, a bit each
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

NO_SCOREBOARD = 7
INSTRUCTION_BYTES = 16


@dataclass(frozen=True)
class Control:
    """What the scheduler is told of an instruction."""

    stall: int
    written: int
    have_read: int
    waits: tuple[int, ...]

    @cached_property
    def sets_boards(self) -> bool:
        """Whether a scoreboard is released by it."""
        return self.written != NO_SCOREBOARD or self.have_read != NO_SCOREBOARD

    @staticmethod
    @cache
    def of(bits: int) -> Control:
        """From the bits of an instruction from 105 on."""
        waits = tuple(board for board in range(6) if bits >> 11 >> board & 1)
        return Control(bits & 15, bits >> 5 & 7, bits >> 8 & 7, waits)


@dataclass(frozen=True)
class Line:
    """A line of a source."""

    file: str
    number: int

    def text(self) -> str:
        """What is written there."""
        lines = _lines_of(self.file)
        return lines[self.number - 1] if 0 < self.number <= len(lines) else ""


@lru_cache
def _lines_of(file: str) -> list[str]:
    return Path(file).read_text("utf-8", errors="replace").splitlines()


@dataclass(frozen=True)
class Instruction:
    """One instruction. `lines`: the innermost first, then where that was inlined, and so on."""

    address: int
    guard: str  # "", "@P0", "@!UP1"
    opcode: str  # "IMAD.WIDE.U32"
    operands: tuple[str, ...]
    control: Control
    lines: tuple[Line, ...] = ()

    @cached_property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    def __str__(self) -> str:
        words = f"{self.guard} {self.opcode} {', '.join(self.operands)}".split()
        return f"{self.address:04x}: {' '.join(words)}"


@dataclass
class Kernel:
    """The instructions of a kernel, in order, and the places of its labels among them."""

    name: str  # mangled
    instructions: list[Instruction]
    labels: dict[str, int]
    prepared: dict[int, Any] = field(default_factory=dict, repr=False)  # by machine.py, for reuse


INSTRUCTION = re.compile(
    r"\s*/\*([0-9a-f]{4,})\*/\s+(@\S+\s+)?(\S+?)(?:\s+(.*?))?\s*;\s+/\* 0x([0-9a-f]{16}) \*/"
)
HIGH = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
SOURCE = re.compile(r'\s*//## File "(.+?)", line (\d+)')
SECTION = re.compile(r"\s*\.section\s+\.text\.([\w$]+),")
LABEL = re.compile(r"([.$\w]+):\s*$")


def disassemble(cubin: Path, nvdisasm: str) -> list[Kernel]:
    """The kernels of a file of machine code, as `nvdisasm` reads it."""
    done = subprocess.run(
        [nvdisasm, "-hex", "-c", "-gi", str(cubin)], capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"{nvdisasm} on {cubin}: {done.stderr.strip()[-500:]}")
    return kernels_in(done.stdout)


def kernels_in(text: str) -> list[Kernel]:
    """The kernels of what nvdisasm printed with `-hex -c`, and `-gi` for lines of sources."""
    kernels: list[Kernel] = []
    kernel: Kernel | None = None
    frames: list[Line] = []  # of the next instruction, if anything is said of it
    lines: tuple[Line, ...] = ()
    known: dict[str, Line] = {}  # each is said of many instructions
    rows = iter(text.splitlines())
    for row in rows:
        if row.startswith("\t//##"):
            if row not in known and (found := SOURCE.match(row)):
                known[row] = Line(found[1], int(found[2]))
            if row in known:
                frames.append(known[row])
        elif found := INSTRUCTION.match(row):
            address, guard, opcode, operands, _ = found.groups()
            high = HIGH.match(next(rows, ""))
            if kernel is None or high is None:
                raise ValueError(f"nvdisasm: expected an instruction of two words, got {row!r}")
            if frames:
                lines, frames = tuple(frames), []
            kernel.instructions.append(
                Instruction(
                    int(address, 16),
                    (guard or "").strip(),
                    opcode,
                    tuple(operand.strip() for operand in (operands or "").split(","))
                    if operands
                    else (),
                    Control.of(int(high[1], 16) >> 105 - 64),
                    lines,
                )
            )
        elif found := SECTION.match(row):
            kernel = Kernel(found[1], [], {})
            kernels.append(kernel)
            frames, lines = [], ()
        elif row.lstrip().startswith(".section"):
            kernel = None
        elif kernel is not None and (found := LABEL.match(row)):
            kernel.labels[found[1]] = len(kernel.instructions)
    return kernels
