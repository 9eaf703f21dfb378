"""What an instruction's operands are: functions that read them from a warp, or write to it.

Values are uint32 arrays, of 32 lanes or, where all lanes have the same (uniform registers,
constants, literals), of one; predicates are bool arrays. numpy makes the one into the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .machine import Warp

Values = npt.NDArray[np.uint32]
Bits = npt.NDArray[np.bool_]
Read = Callable[["Warp"], Values]
ReadBits = Callable[["Warp"], Bits]

ZERO_REGISTER, ZERO_UNIFORM = 255, 63
TRUE = 7  # the predicate that always is
FLOAT_ONE = 0x3F800000


class UnknownInstruction(Exception):
    """An instruction, or an operand, whose meaning is not written here."""


def whole(value: int) -> Values:
    """One word that all lanes have."""
    return np.array([value & 0xFFFFFFFF], np.uint32)


def pair(low: Values, high: Values) -> npt.NDArray[np.uint64]:
    """64 bits from two registers."""
    return low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)


def signed(values: Values) -> npt.NDArray[np.int32]:
    """The same bits as signed numbers."""
    return values.view(np.int32)


def bare(operand: str) -> str:
    """Without what only the register cache or the width of an access is told."""
    return operand.replace(".reuse", "")


@cache
def register(operand: str) -> tuple[str, int]:
    """The file ("R", "UR", "P", "UP") and the number of a register, without signs before it."""
    found = re.fullmatch(r"(U?[RP])(\d+|Z|T)", bare(operand).lstrip("!-~|").rstrip("|"))
    if found is None:
        raise UnknownInstruction(f"the register {operand!r}")
    file, number = found.groups()
    if number == "Z":
        return file, ZERO_REGISTER if file == "R" else ZERO_UNIFORM
    return file, TRUE if number == "T" else int(number)


@cache
def is_predicate(operand: str) -> bool:
    """Whether it is one, negated or not."""
    return re.fullmatch(r"!?U?P[0-7T]", operand) is not None


def predicate(operand: str) -> ReadBits:
    """Reads a predicate."""
    file, number = register(operand)
    negated = operand.startswith("!")
    if file == "P":
        return (lambda w: ~w.p[number]) if negated else (lambda w: w.p[number])
    if file == "UP":
        return (lambda w: ~w.up[number]) if negated else (lambda w: w.up[number])
    raise UnknownInstruction(f"the predicate {operand!r}")


def value(operand: str, word: int = 0) -> Read:
    """Reads 32 bits of a register, a constant or a literal; `word` 1: the upper ones of 64."""
    text = bare(operand)
    sign = text[0] if text[0] in "-~" and not re.match(r"-(0x|\d|INF)", text) else ""
    read = _plain(text[len(sign) :], word)
    if sign == "-":
        if word:
            raise UnknownInstruction(f"64 bits of {operand!r}")
        return lambda w: np.uint32(0) - read(w)
    return (lambda w: ~read(w)) if sign == "~" else read


def value64(operand: str) -> Callable[[Warp], npt.NDArray[np.uint64]]:
    """Reads 64 bits: two registers, or a literal with its sign."""
    text = bare(operand)
    if re.match(r"-?(0x|\d)", text):
        literal = np.array([int(text, 0) & 0xFFFFFFFFFFFFFFFF], np.uint64)
        return lambda w: literal
    negative = text.startswith("-")
    low, high = _plain(text.lstrip("-"), 0), _plain(text.lstrip("-"), 1)
    if negative:
        return lambda w: np.uint64(0) - pair(low(w), high(w))
    return lambda w: pair(low(w), high(w))


def _plain(text: str, word: int) -> Read:
    if found := re.fullmatch(r"(U?R)(\d+|Z)", text):
        file, number = register(text)
        zero = ZERO_REGISTER if file == "R" else ZERO_UNIFORM
        at = number if number == zero else number + word
        return (lambda w: w.r[at]) if file == "R" else (lambda w: w.ur[at])
    if found := re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text):
        literal = whole(int(text, 0) >> 32 * word)
        return lambda w: literal
    if found := re.fullmatch(r"c\[0x0\]\[(.*)\]", text):
        return constant(found[1], 4 * word)
    if re.fullmatch(r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|INF|QNAN)", text):
        bits = whole(int(np.float32(text.replace("QNAN", "nan")).view(np.uint32)))
        return lambda w: bits
    raise UnknownInstruction(f"the operand {text!r}")


def constant(place: str, beyond: int = 0, size: int = 4) -> Read:
    """Reads the constants of the launch at a place such as 0x24c, R8+0x2a0 or UR4."""
    at = address(f"[{place}]")
    if re.fullmatch(r"0x[0-9a-f]+", place):
        fixed = int(place, 16) + beyond
        return lambda w: w.machine.constant(fixed, size)
    return lambda w: w.machine.constants_at(at(w) + np.uint32(beyond), size)


def address(operand: str) -> Read:
    """Reads the lower 32 bits of an address such as [R8+UR5+0x10], perhaps after a desc[UR8]."""
    found = re.fullmatch(r"(?:desc\[UR\d+\])?\[(.*)\]", bare(operand))
    if found is None:
        raise UnknownInstruction(f"the address {operand!r}")
    terms = [re.sub(r"\.(64|U32|X\d+)$", "", term) for term in found[1].split("+")]
    reads = [value(term) for term in terms if term not in ("RZ", "URZ")]
    if not reads:
        return lambda w: w.r[ZERO_REGISTER]
    if len(reads) == 1:
        return reads[0]
    first, *rest = reads

    def add(w: Warp) -> Values:
        total = first(w)
        for read in rest:
            total = total + read(w)
        return total

    return add


def write(operand: str, word: int = 0) -> Callable[[Warp, Values], None]:
    """Writes 32 bits to a register, in the lanes that execute the instruction."""
    file, number = register(operand)
    if file == "R":
        if number == ZERO_REGISTER:
            return lambda w, values: None
        at = number + word

        def to_lanes(w: Warp, values: Values) -> None:
            if w.lanes is None:
                w.r[at][:] = values
            else:
                np.copyto(w.r[at], values, where=w.lanes)

        return to_lanes
    if number == ZERO_UNIFORM:
        return lambda w, values: None
    at = number + word

    def to_uniform(w: Warp, values: Values) -> None:
        w.ur[at][:] = values[:1]

    return to_uniform


def write64(operand: str) -> Callable[[Warp, npt.NDArray[np.uint64]], None]:
    """Writes 64 bits to two registers."""
    low, high = write(operand), write(operand, 1)

    def both(w: Warp, values: npt.NDArray[np.uint64]) -> None:
        low(w, values.astype(np.uint32))
        high(w, (values >> np.uint64(32)).astype(np.uint32))

    return both


def write_predicate(operand: str) -> Callable[[Warp, Bits], None]:
    """Writes a predicate, in the lanes that execute the instruction."""
    file, number = register(operand)
    if number == TRUE:
        return lambda w, bits: None
    if file == "UP":

        def to_uniform(w: Warp, bits: Bits) -> None:
            w.up[number][:] = bits[:1]

        return to_uniform

    def to_lanes(w: Warp, bits: Bits) -> None:
        if w.lanes is None:
            w.p[number][:] = bits
        else:
            np.copyto(w.p[number], bits, where=w.lanes)

    return to_lanes
