"""Every number that machine code does not say, in one table.

The code has the latencies of arithmetic in its stall counts. What varies at run time it only waits
for: those numbers are from public microbenchmarks of Hopper (and its neighbours), rounded. None of
them was measured here.
"""

from __future__ import annotations

from dataclasses import dataclass, field


def _latencies() -> dict[str, int]:
    return {
        "LDC": 34,  # a constant at an address that a register has, or of the second constant cache
        "ULDC": 14,
        "LDS": 30,
        "LDSM": 33,
        "LDL": 30,  # spilled registers, from the first cache
        "LDG": 1,  # is there when it is needed: loaded a step ahead, or while h is on its way
        "MUFU": 22,
        "F2F": 14,
        "F2I": 14,
        "I2F": 14,
        "HMMA": 33,
        "MOVM": 33,
        "SHFL": 23,
        "S2R": 28,
        "S2UR": 28,
        "R2UR": 12,
        "VOTEU": 12,
        "SYNCS": 24,  # on an mbarrier of the own block: also from the last byte to who waits for it
        "STS": 20,
        "STL": 20,
        "STG": 20,
        "STAS": 20,
        "UBLKCP": 20,
    }


def _pipes() -> dict[str, tuple[str, int]]:
    return {
        # For each multiprocessor: shared memory, 128 bytes a cycle.
        "LDS": ("shared", 1), "LDS.64": ("shared", 2), "LDS.128": ("shared", 4),
        "STAS": ("shared", 4),
        "STS": ("shared", 1), "STS.64": ("shared", 2), "STS.128": ("shared", 4),
        "LDSM.2": ("shared", 2), "LDSM.4": ("shared", 4), "LDSM": ("shared", 1),
        # For each scheduler: a tensor core, the unit of special functions (and conversions), 16
        # lanes of integers, twice 16 of multiply-adds.
        "HMMA": ("tensor", 8),
        "MUFU": ("special", 8), "F2F": ("special", 8), "F2I": ("special", 8), "I2F": ("special", 8),
        "FFMA": ("multiply", 1), "FMUL": ("multiply", 1), "FADD": ("multiply", 1),
        "IMAD": ("multiply", 2),
        "IADD3": ("integer", 2), "VIADD": ("integer", 2), "LEA": ("integer", 2),
        "LOP3": ("integer", 2), "SHF": ("integer", 2), "ISETP": ("integer", 2),
        "SEL": ("integer", 2), "FSEL": ("integer", 2), "PRMT": ("integer", 2),
        "FSETP": ("integer", 2), "FMNMX": ("integer", 2), "VIMNMX": ("integer", 2),
        "MOV": ("integer", 2), "F2FP": ("integer", 2),
    }  # fmt: skip


@dataclass(frozen=True)
class Assumptions:
    """Cycles, and what stands in for data."""

    # From the issue of an instruction to its result, by its name; any other: `latency`.
    latencies: dict[str, int] = field(default_factory=_latencies)
    latency: int = 14
    operands_read: int = 8  # from the issue to where its operands may be overwritten
    taken_branch: int = 6  # beyond its stall count
    barrier: int = 38  # from the last warp's arrival at a barrier of a block to when all go on
    # Whether warps compete: each scheduler issues one instruction a cycle, the lowest warp's that
    # is ready, and pipes are busy for as many cycles with one instruction of a warp. The committed
    # table has them compete; without, numbers are those of a warp that has all for itself.
    contention: bool = True
    schedulers: int = 4  # warp w is the (w % 4)th's
    pipes: dict[str, tuple[str, int]] = field(default_factory=_pipes)
    # Data are not simulated. Loads from memory give zeros, floating-point instructions give 1.0.
    # Where they are compared the even lanes say yes, the odd lanes no, so that both sides of a
    # branch are executed, one after the other: first where it is not taken. A quotient is never
    # one of the extreme ones that FCHK sends to a function. mbarriers: what a warp waits for has
    # come when the last warp that waits for it is there. There are no bank conflicts, and all
    # instructions are in the cache.

    def latency_of(self, name: str) -> int:
        """Of an instruction without its modifiers."""
        return self.latencies.get(name, self.latency)
