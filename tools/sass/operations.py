"""What each instruction does to a warp. `OPERATIONS` has a function for each name, which turns an
instruction into a function of the warp. Control flow is in machine.py.

Integers, predicates and addresses are computed for real. Of floating point only what quotients of
integers are made of is (I2F, MUFU.RCP, F2I); anything else gives 1.0. See assumptions.py.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .code import Instruction
from .operands import (
    FLOAT_ONE,
    Bits,
    Read,
    UnknownInstruction,
    Values,
    address,
    constant,
    is_predicate,
    pair,
    predicate,
    signed,
    value,
    value64,
    whole,
    write,
    write64,
    write_predicate,
)

if TYPE_CHECKING:
    from .machine import Warp

Run = Callable[["Warp"], None]
Make = Callable[[Instruction], Run]

ZERO = whole(0)
ONE = whole(FLOAT_ONE)
EVEN_LANES = np.arange(32) % 2 == 0
LANES = np.arange(32)
FALSE = np.array([False])


def has(i: Instruction, modifier: str) -> bool:
    """Whether an opcode has a modifier."""
    return modifier in i.opcode.split(".")[1:]


def leading_predicates(i: Instruction, first: int) -> list[str]:
    """The predicates among the operands from `first` on, up to the first operand that is none."""
    found = []
    for operand in i.operands[first:]:
        if not is_predicate(operand):
            break
        found.append(operand)
    return found


# ---- Integers -----------------------------------------------------------------------------------


def move(i: Instruction) -> Run:
    to, read = write(i.operands[0]), value(i.operands[1])
    return lambda w: to(w, read(w))


def multiply_add(i: Instruction) -> Run:
    """IMAD and its many uses: .MOV, .IADD, .SHL and others are the same sum."""
    to, a, b = i.operands[:3]
    if has(i, "WIDE") or has(i, "HI"):
        return _multiply_wide(i)
    write_to, x, y, z = write(to), value(a), value(b), value(i.operands[3])
    if has(i, "X"):
        carry = predicate(i.operands[4])
        return lambda w: write_to(w, x(w) * y(w) + z(w) + carry(w).astype(np.uint32))
    return lambda w: write_to(w, x(w) * y(w) + z(w))


def _multiply_wide(i: Instruction) -> Run:
    to, a, b, c = (o for o in i.operands if not is_predicate(o))
    if len(i.operands) > 4:
        raise UnknownInstruction(str(i))
    x, y, z = value(a), value(b), value64(c)
    kind = np.uint64 if has(i, "U32") else np.int64

    def wide(values: Values) -> npt.NDArray[Any]:
        return (values if kind is np.uint64 else signed(values)).astype(kind)

    def product(w: Warp) -> npt.NDArray[np.uint64]:
        result: npt.NDArray[np.uint64] = (wide(x(w)) * wide(y(w))).astype(np.uint64) + z(w)
        return result

    if has(i, "HI"):
        upper = write(to)
        return lambda w: upper(w, (product(w) >> np.uint64(32)).astype(np.uint32))
    both = write64(to)
    return lambda w: both(w, product(w))


def add3(i: Instruction) -> Run:
    """IADD3, with carries out and, as IADD3.X, in."""
    carries = leading_predicates(i, 1)
    a, b, c, *into = i.operands[1 + len(carries) :]
    to, reads = write(i.operands[0]), [value(o) for o in (a, b, c)]
    x, y, z = reads
    if not carries and not into:
        return lambda w: to(w, x(w) + y(w) + z(w))
    negative = [o.startswith("-") for o in (a, b, c)]
    outs, ins = [write_predicate(o) for o in carries], [predicate(o) for o in into]

    def add(w: Warp) -> None:
        total = np.zeros(32, np.uint64)
        for read, is_negative in zip(reads, negative, strict=True):
            words = read(w)
            total = total + words
            if is_negative:  # not(b) + 1, whose carry says that nothing was borrowed
                total = total + ((words == 0).astype(np.uint64) << np.uint64(32))
        for bits in ins:
            total = total + bits(w)
        to(w, total.astype(np.uint32))
        for at, out in enumerate(outs):
            out(w, total >> np.uint64(32) > at)

    return add


def add2(i: Instruction) -> Run:
    to, x, y = write(i.operands[0]), value(i.operands[1]), value(i.operands[2])
    return lambda w: to(w, x(w) + y(w))


def least_or_most(i: Instruction) -> Run:
    """VIMNMX, VIMNMX3 and VIADDMNMX: the last operand says which, the last but it is compared."""
    to, *operands, which = i.operands
    reads, is_least = [value(o) for o in operands], predicate(which)
    to_write = write(to)
    added = i.name == "VIADDMNMX"
    view = (lambda values: values) if has(i, "U32") else signed

    def run(w: Warp) -> None:
        words = [read(w) for read in reads]
        if added:
            words = [words[0] + words[1], *words[2:]]
        least = most = view(words[0])
        for other in words[1:]:
            least, most = np.minimum(least, view(other)), np.maximum(most, view(other))
        to_write(w, np.where(is_least(w), least, most).view(np.uint32))

    return run


def absolute(i: Instruction) -> Run:
    to, read = write(i.operands[0]), value(i.operands[1])
    return lambda w: to(w, np.abs(signed(read(w))).view(np.uint32))


def select(i: Instruction) -> Run:
    to, x, y = write(i.operands[0]), value(i.operands[1]), value(i.operands[2])
    which = predicate(i.operands[3])
    return lambda w: to(w, np.where(which(w), x(w), y(w)))


def load_address(i: Instruction) -> Run:
    """LEA: (a << shift) + b, or with .HI the upper half of the 64 bits of a with those above it."""
    carries = leading_predicates(i, 1)
    operands = list(i.operands[1 + len(carries) :])
    into = predicate(operands.pop()) if has(i, "X") else None
    shift = np.uint64(int(operands.pop(), 16))
    to, a, b = write(i.operands[0]), value(operands[0]), value(operands[1])
    upper = value(operands[2]) if len(operands) > 2 else None
    outs = [write_predicate(o) for o in carries]
    is_high, is_signed = has(i, "HI"), has(i, "SX32")

    def run(w: Warp) -> None:
        low = a(w)
        if is_signed:
            whole_a = signed(low).astype(np.int64).view(np.uint64)
        else:
            whole_a = pair(low, upper(w) if upper else ZERO)
        shifted = whole_a << shift
        part = shifted >> np.uint64(32) if is_high else shifted & np.uint64(0xFFFFFFFF)
        total = part + b(w)
        if into:
            total = total + into(w)
        to(w, total.astype(np.uint32))
        for out in outs:
            out(w, total >> np.uint64(32) > 0)

    return run


def shift(i: Instruction) -> Run:
    """SHF: 64 bits, of which the first operand is the lower half and the third the upper."""
    to, a, by, c = i.operands
    to_write, low, count, high = write(to), value(a), value(by), value(c)
    left, is_signed = has(i, "L"), has(i, "S32") or has(i, "S64")
    most = 63 if has(i, "U64") or has(i, "S64") else 32
    wraps, upper = has(i, "W"), has(i, "HI")

    def run(w: Warp) -> None:
        n = count(w)
        n = (n & np.uint32(31) if wraps else np.minimum(n, np.uint32(most))).astype(np.uint64)
        both = pair(low(w), high(w))
        if left:
            shifted = both << n
        elif is_signed:
            shifted = (both.view(np.int64) >> n.astype(np.int64)).view(np.uint64)
        else:
            shifted = both >> n
        to_write(w, (shifted >> np.uint64(32) if upper else shifted).astype(np.uint32))

    return run


def _by_table(table: int, *terms: Any) -> Any:
    """The function of three bits whose values are the table's eight, of each bit of the terms."""
    total = zeros = terms[0] ^ terms[0]
    for at in range(8):
        if table >> at & 1:
            term = ~zeros
            for place, bits in enumerate(terms):
                term = term & (bits if at >> (2 - place) & 1 else ~bits)
            total = total | term
    return total


def logic(i: Instruction) -> Run:
    """LOP3.LUT: any function of three words, bit by bit; the predicate says that it is not zero."""
    outs = leading_predicates(i, 0)
    to, a, b, c, table, *_ = i.operands[len(outs) :]
    to_write, x, y, z = write(to), value(a), value(b), value(c)
    to_bits = [write_predicate(o) for o in outs]
    lut = int(table, 16)
    shortcut: dict[int, Callable[..., Values]] = {
        0xC0: lambda p, q, r: p & q,
        0xFC: lambda p, q, r: p | q,
        0x3C: lambda p, q, r: p ^ q,
    }
    combine = shortcut.get(lut, partial(_by_table, lut))

    def run(w: Warp) -> None:
        words = combine(x(w), y(w), z(w))
        to_write(w, words)
        for to in to_bits:
            to(w, words != 0)

    return run


def predicate_logic(i: Instruction) -> Run:
    """PLOP3.LUT: two functions of three predicates."""
    first, second, a, b, c, table, other = i.operands
    to, to_second = write_predicate(first), write_predicate(second)
    reads = [predicate(o) for o in (a, b, c)]
    lut, second_lut = int(table, 16), int(other, 16)

    def run(w: Warp) -> None:
        bits = [read(w) for read in reads]
        result, other = _by_table(lut, *bits), _by_table(second_lut, *bits)
        to(w, result)
        to_second(w, other)

    return run


def permute(i: Instruction) -> Run:
    """PRMT: four bytes, each chosen by four bits from the eight of a and b, or its sign."""
    to, a, choice, b = i.operands
    to_write, x, selector, y = write(to), value(a), value(choice), value(b)

    def run(w: Warp) -> None:
        bytes_of = pair(x(w), y(w))
        chosen, result = selector(w).astype(np.uint64), np.zeros(1, np.uint64)
        for at in range(4):
            nibble = chosen >> np.uint64(4 * at) & np.uint64(15)
            byte = bytes_of >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(255)
            sign = (byte >> np.uint64(7)) * np.uint64(255)
            byte = np.where(nibble > 7, sign, byte)
            result = result | byte << np.uint64(8 * at)
        to_write(w, result.astype(np.uint32))

    return run


COMPARISONS = {
    "EQ": operator.eq, "NE": operator.ne, "LT": operator.lt, "LE": operator.le,
    "GT": operator.gt, "GE": operator.ge,
}  # fmt: skip
COMBINATIONS = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


def _one_of(i: Instruction, table: dict[str, Any]) -> Any:
    for modifier in i.opcode.split(".")[1:]:
        if modifier in table:
            return table[modifier]
    raise UnknownInstruction(str(i))


def _writes_both(i: Instruction) -> Callable[[Warp, Bits], None]:
    """Writes a comparison to one predicate, its inverse to another, each combined with a third."""
    to, inverse, _, _, with_, *_ = i.operands
    combine, other = _one_of(i, COMBINATIONS), predicate(with_)
    to_first, to_second = write_predicate(to), write_predicate(inverse)

    def write_both(w: Warp, result: Bits) -> None:
        also = other(w)
        first, second = combine(result, also), combine(~result, also)
        to_first(w, first)
        to_second(w, second)

    return write_both


def compare(i: Instruction) -> Run:
    """ISETP: .EX compares upper halves, and its last operand says how the lower ones compared."""
    _, _, a, b, _, *lower = i.operands
    compared, write_both = _one_of(i, COMPARISONS), _writes_both(i)
    x, y = value(a), value(b)
    view = (lambda values: values) if has(i, "U32") else signed
    below = predicate(lower[0]) if has(i, "EX") else None
    strict = {operator.ge: operator.gt, operator.le: operator.lt}.get(compared, compared)

    def run(w: Warp) -> None:
        left, right = view(x(w)), view(y(w))
        result = compared(left, right)
        if below is not None:
            if compared is operator.ne:
                result = result | below(w)
            else:
                equal = left == right
                result = equal & below(w)
                if compared is not operator.eq:
                    result = result | strict(left, right)
        write_both(w, result)

    return run


def registers_of_predicates(i: Instruction) -> Run:
    """P2R: the predicates that a mask chooses, as bits; the others from a register."""
    to, _, kept, mask = i.operands
    to_write, read, chosen = write(to), value(kept), int(mask, 16)

    def run(w: Warp) -> None:
        bits = np.zeros(32, np.uint32)
        for number in range(7):
            bits |= w.p[number].astype(np.uint32) << np.uint32(number)
        to_write(w, bits & np.uint32(chosen) | read(w) & ~np.uint32(chosen))

    return run


def predicates_of_register(i: Instruction) -> Run:
    """R2P: the predicates that a mask chooses, from bits."""
    _, source, mask = i.operands
    read, chosen = value(source), int(mask, 16)
    writes = [(n, write_predicate(f"P{n}")) for n in range(7) if chosen >> n & 1]

    def run(w: Warp) -> None:
        bits = read(w)
        for number, to in writes:
            to(w, bits >> np.uint32(number) & np.uint32(1) != 0)

    return run


# ---- Between lanes, and what is the same for all -------------------------------------------------


def special(i: Instruction) -> Run:
    """S2R and CS2R: who a thread is."""
    name = i.operands[1]
    if i.name == "CS2R":
        if name != "SRZ":
            raise UnknownInstruction(str(i))
        both = write64(i.operands[0])
        zero = np.zeros(1, np.uint64)
        low = write(i.operands[0])
        return (lambda w: low(w, ZERO)) if has(i, "32") else (lambda w: both(w, zero))
    to = write(i.operands[0])
    if name not in SPECIAL:
        raise UnknownInstruction(str(i))
    read = SPECIAL[name]
    return lambda w: to(w, read(w))


SPECIAL: dict[str, Read] = {
    "SR_TID.X": lambda w: (w.number * 32 + LANES).astype(np.uint32),
    "SR_TID.Y": lambda w: ZERO,
    "SR_TID.Z": lambda w: ZERO,
    "SR_LANEID": lambda w: LANES.astype(np.uint32),
    "SR_CTAID.X": lambda w: whole(w.machine.block),
    "SR_CTAID.Y": lambda w: ZERO,
    "SR_CTAID.Z": lambda w: ZERO,
    "SR_CgaCtaId": lambda w: whole(w.machine.rank),
}


def _executing(w: Warp) -> Bits:
    return np.ones(32, np.bool_) if w.lanes is None else w.lanes


def to_uniform(i: Instruction) -> Run:
    """R2UR: the first lane's."""
    to, read = write(i.operands[0]), value(i.operands[1])
    return lambda w: to(w, np.broadcast_to(read(w), 32)[[int(_executing(w).argmax())]])


def vote(i: Instruction) -> Run:
    """VOTE: whether all lanes, or any, say yes; a register before it: who does."""
    *to, source = i.operands
    bits = predicate(source)
    is_all, is_any = has(i, "ALL"), has(i, "ANY")
    if not (is_all or is_any):
        raise UnknownInstruction(str(i))
    outs = [write_predicate(o) for o in to if is_predicate(o)]
    ballots = [write(o) for o in to if not is_predicate(o)]

    def run(w: Warp) -> None:
        executing = _executing(w)
        said = executing & bits(w)
        result = np.array([bool((said == executing).all() if is_all else said.any())])
        for out in outs:
            out(w, result)
        for ballot in ballots:
            ballot(w, whole(int((said.astype(np.uint64) << LANES.astype(np.uint64)).sum())))

    return run


def elect(i: Instruction) -> Run:
    """ELECT: one lane of those that execute it, the first."""
    to = write_predicate(i.operands[0])
    return lambda w: to(w, LANES == int(_executing(w).argmax()))


def shuffle(i: Instruction) -> Run:
    """SHFL: each lane reads another's register."""
    ok, to, source, by, _ = i.operands
    to_bits, to_write, read, amount = write_predicate(ok), write(to), value(source), value(by)
    kinds = {
        "BFLY": lambda n: LANES ^ n,
        "IDX": lambda n: np.broadcast_to(n % 32, 32),
        "UP": lambda n: LANES - n,
        "DOWN": lambda n: LANES + n,
    }
    others = _one_of(i, kinds)

    def run(w: Warp) -> None:
        lanes = others(amount(w).astype(np.int64))
        there = (lanes >= 0) & (lanes < 32)
        words = np.broadcast_to(read(w), 32)[np.where(there, lanes, LANES)]
        to_write(w, words)
        to_bits(w, there)

    return run


# ---- Memory -------------------------------------------------------------------------------------

WIDTHS = {"64": 2, "128": 4}


def words_of(i: Instruction) -> int:
    """How many registers an access has."""
    return next((WIDTHS[m] for m in i.opcode.split(".") if m in WIDTHS), 1)


def load_constant(i: Instruction) -> Run:
    found = re.fullmatch(r"c\[0x0\]\[(.*)\]", i.operands[1])
    if found is None:
        raise UnknownInstruction(str(i))
    size = 1 if has(i, "U8") else 2 if has(i, "U16") else 4
    if has(i, "S8") or has(i, "S16"):
        raise UnknownInstruction(str(i))
    moves = [
        (write(i.operands[0], word), constant(found[1], 4 * word, size))
        for word in range(words_of(i))
    ]
    if len(moves) == 1:
        to, read = moves[0]
        return lambda w: to(w, read(w))

    def run(w: Warp) -> None:
        words = [read(w) for _, read in moves]  # all before an address may be overwritten
        for (to, _), word in zip(moves, words, strict=True):
            to(w, word)

    return run


def _narrow(i: Instruction) -> int:
    """Bytes of an access of less than a register, else 4."""
    if has(i, "U8") or has(i, "S8"):
        return 1
    return 2 if has(i, "U16") or has(i, "S16") else 4


def load_shared(i: Instruction) -> Run:
    to, place = i.operands
    at, count, size = address(place), words_of(i), _narrow(i)
    writes = [write(to, word) for word in range(count)]

    def run(w: Warp) -> None:
        words = w.machine.load_shared(w, at(w), count, size)
        for word, to in enumerate(writes):
            to(w, words[word])

    return run


def store_shared(i: Instruction) -> Run:
    place, source = i.operands
    at, count, size = address(place), words_of(i), _narrow(i)
    reads = [value(source, word) for word in range(count)]
    return lambda w: w.machine.store_shared(w, at(w), [read(w) for read in reads], size)


def load_local(i: Instruction) -> Run:
    to, place = i.operands
    at, writes = address(place), [write(to, word) for word in range(words_of(i))]

    def run(w: Warp) -> None:
        first = np.broadcast_to(at(w), 32) // 4
        words = [w.local[LANES, (first + word) % w.local.shape[1]] for word in range(len(writes))]
        for to, word in zip(writes, words, strict=True):
            to(w, word)

    return run


def store_local(i: Instruction) -> Run:
    place, source = i.operands
    at, reads = address(place), [value(source, word) for word in range(words_of(i))]

    def run(w: Warp) -> None:
        first, lanes = np.broadcast_to(at(w), 32) // 4, _executing(w)
        for word, read in enumerate(reads):
            to = (first + word) % w.local.shape[1]
            w.local[LANES[lanes], to[lanes]] = np.broadcast_to(read(w), 32)[lanes]

    return run


def _filled(count: Callable[[Instruction], int], words: Values) -> Make:
    """Writes the same to as many registers."""

    def make(i: Instruction) -> Run:
        writes = [write(i.operands[0], word) for word in range(count(i))]
        if len(writes) == 1:
            only = writes[0]
            return lambda w: only(w, words)

        def run(w: Warp) -> None:
            for to in writes:
                to(w, words)

        return run

    return make


def at_mbarrier(i: Instruction) -> Run:
    """SYNCS: a wait finds that all has come.

    Nothing else is looked at: to initialise, and to arrive where bytes are still to come. Without
    bytes, the arrivals would say when a wait is over.
    """
    if has(i, "PHASECHK"):
        to, at = write_predicate(i.operands[0]), address(i.operands[1])
        yes = np.array([True])

        def run(w: Warp) -> None:
            w.wait(int(at(w)[0]))
            to(w, yes)

        return run
    if i.opcode in ("SYNCS.EXCH.64", "SYNCS.ARRIVE.TRANS64", "SYNCS.ARRIVE.TRANS64.RED.A0TR"):
        return nothing(i)
    raise UnknownInstruction(str(i))


def send(i: Instruction) -> Run:
    """STAS, UBLKCP: bytes to another block."""
    return lambda w: w.send()


def nothing(i: Instruction) -> Run:
    """What has no effect on what is computed here."""
    return lambda w: None


# ---- Floating point -----------------------------------------------------------------------------


def ones(i: Instruction) -> Run:
    return _filled(lambda i: 1, ONE)(i)


def half_pair(i: Instruction) -> Run:
    """HFMA2: of two literals and zeros it is how constants of 32 bits are made; else it is data."""
    to, a, b, *halves = i.operands
    if len(halves) == 2 and a.lstrip("-") == "RZ" and b.lstrip("-") == "RZ":
        high, low = (int(np.float16(text).view(np.uint16)) for text in halves)
        word, to_write = whole(high << 16 | low), write(to)
        return lambda w: to_write(w, word)
    return ones(i)


def compare_floats(i: Instruction) -> Run:
    """FSETP: the lanes disagree."""
    write_both = _writes_both(i)
    return lambda w: write_both(w, EVEN_LANES)


def check_quotient(i: Instruction) -> Run:
    """FCHK: no."""
    to = write_predicate(i.operands[0])
    return lambda w: to(w, FALSE)


def _floats(values: Values) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(values).view(np.float32)


def float_of_integer(i: Instruction) -> Run:
    if has(i, "64") or has(i, "U8") or has(i, "U16") or has(i, "S16") or has(i, "F16"):
        raise UnknownInstruction(str(i))
    to, read = write(i.operands[0]), value(i.operands[1])
    is_unsigned, upwards = has(i, "U32"), has(i, "RP")

    def run(w: Warp) -> None:
        words = read(w)
        exact = (words if is_unsigned else signed(words)).astype(np.float64)
        rounded = exact.astype(np.float32)
        if upwards:
            more = np.nextafter(rounded, np.float32(np.inf))
            rounded = np.where(rounded < exact, more, rounded)
        to(w, rounded.view(np.uint32))

    return run


def integer_of_float(i: Instruction) -> Run:
    if not has(i, "TRUNC") or has(i, "64") or has(i, "F16"):
        raise UnknownInstruction(str(i))
    to, read = write(i.operands[0]), value(i.operands[1])
    low, high = (0, 2**32 - 1) if has(i, "U32") else (-(2**31), 2**31 - 1)

    def run(w: Warp) -> None:
        numbers = np.nan_to_num(_floats(read(w)).astype(np.float64))
        to(w, np.clip(np.trunc(numbers), low, high).astype(np.int64).astype(np.uint32))

    return run


def special_function(i: Instruction) -> Run:
    if not has(i, "RCP"):
        return ones(i)
    to, read = write(i.operands[0]), value(i.operands[1])

    def run(w: Warp) -> None:
        with np.errstate(all="ignore"):
            to(w, (np.float32(1) / _floats(read(w))).view(np.uint32))

    return run


def _accumulators(i: Instruction) -> int:
    return 4 if has(i, "F32") else 2


OPERATIONS: dict[str, Make] = {
    **dict.fromkeys(("MOV", "UMOV"), move),
    **dict.fromkeys(("IMAD", "UIMAD"), multiply_add),
    **dict.fromkeys(("IADD3", "UIADD3"), add3),
    **dict.fromkeys(("VIADD", "UVIADD"), add2),
    **dict.fromkeys(("VIMNMX", "VIMNMX3", "VIADDMNMX", "UVIMNMX"), least_or_most),
    "IABS": absolute,
    **dict.fromkeys(("SEL", "USEL", "FSEL"), select),
    **dict.fromkeys(("LEA", "ULEA"), load_address),
    **dict.fromkeys(("SHF", "USHF"), shift),
    **dict.fromkeys(("LOP3", "ULOP3"), logic),
    **dict.fromkeys(("PLOP3", "UPLOP3"), predicate_logic),
    **dict.fromkeys(("PRMT", "UPRMT"), permute),
    **dict.fromkeys(("ISETP", "UISETP"), compare),
    "P2R": registers_of_predicates,
    "R2P": predicates_of_register,
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), special),
    "R2UR": to_uniform,
    **dict.fromkeys(("VOTE", "VOTEU"), vote),
    "ELECT": elect,
    "SHFL": shuffle,
    **dict.fromkeys(("LDC", "ULDC"), load_constant),
    "LDS": load_shared,
    "STS": store_shared,
    "LDL": load_local,
    "STL": store_local,
    "LDG": _filled(words_of, ZERO),
    "LDSM": _filled(lambda i: int(i.opcode[-1]) if i.opcode[-2] == "." else 1, ZERO),
    "MOVM": _filled(lambda i: 1, ZERO),
    "SYNCS": at_mbarrier,
    **dict.fromkeys(("STAS", "UBLKCP"), send),
    **dict.fromkeys(
        ("STG", "CCTL", "MEMBAR", "ERRBAR", "CGAERRBAR", "FENCE", "NOP", "YIELD", "UCGABAR_ARV",
         "UCGABAR_WAIT", "DEPBAR", "PMTRIG"),
        nothing,
    ),
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "FMNMX", "F2F", "F2FP", "HADD2"), ones),
    "HFMA2": half_pair,
    "HMMA": _filled(_accumulators, ONE),
    "FSETP": compare_floats,
    "FCHK": check_quotient,
    **dict.fromkeys(("I2F", "I2FP"), float_of_integer),
    "F2I": integer_of_float,
    "MUFU": special_function,
}  # fmt: skip
