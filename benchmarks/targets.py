"""How fast a row is meant to be, in a measure that holds on every processor.

A ratio to torch.nn is not such a measure: on a processor with half as many multiply-adds per
second, the two come closer whatever we do, and a faster memory helps the side that waits for it.
There are two kinds of target:

    peers    no peer of a row is faster, at any number of threads
    floor    our time is at most a given multiple of the least that this machine allows: what its
             multiply-adds, bandwidths, barriers and calls, as measured in the same run, add up to
             (roofline.py). 1.25 times the floor is 80 % of what the chip has to give.

The floor leaves out activations, making panels and writes, which weigh most where products are
small, so each row has multiples of its own. Four rows borrow those of rows that they resemble: E
and F, whose products are large, from I and J; P and Q from D.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.peers import OURS
from benchmarks.workloads import PASSES

THREADS, DTYPE = 2, "float32"  # what the second kind is set for
# Times the floor, in the order of PASSES.
TIMES_FLOOR: dict[str, tuple[float, float]] = {
    "A": (4, 3.5),
    "B": (1.25, 1.35),
    "C": (1.5, 1.8),
    "D": (1.2, 1.35),
    "E": (1.1, 1.2),
    "F": (1.1, 1.2),
    "G": (1.5, 2),
    "H": (2.5, 3.5),
    "I": (1.1, 1.2),
    "J": (1.1, 1.2),
    "K": (1.4, 1.6),
    "P": (1.2, 1.35),
    "Q": (1.2, 1.35),
}


class Judgement(NamedTuple):
    """How many times the floor a case takes, and how many it may."""

    reached: float
    meant: float

    @property
    def met(self) -> bool:
        return self.reached <= self.meant


def judge(case: dict[str, Any]) -> Judgement | None:
    """A case of results.json against its target; None where none is set, or no floor measured."""
    if (case["threads"], case["dtype"]) != (THREADS, DTYPE) or "floor" not in case:
        return None
    meant = TIMES_FLOOR.get(case["row"])
    if meant is None:
        return None
    return Judgement(times_floor(case, lead(case)), meant[PASSES.index(case["mode"])])


def times_floor(case: dict[str, Any], side: str) -> float:
    """A side's time over the floor."""
    return float(case["sides"][side]["median"] / case["floor"]["total"])


def lead(case: dict[str, Any]) -> str:
    """The side that a target is about: usually the module, with int8 whatever runs that."""
    return str(case.get("lead", OURS.name))
