"""Timing several ways of doing one thing against each other, and what to say of the samples.

Machines drift: the clock changes, a neighbour wakes up. So the sides take turns within a round,
the order of turns reversed in every second round, and it is the round's ratio that counts: both
its times were taken within the same few milliseconds. The figure given is the median of these
ratios, which a burst in some rounds does not move and which drift leaves alone (the ratio of the
two medians does neither when the sides caught different stretches of a drift); its spread is the
range from the first to the third quartile.

    round 0:  [ lead-in | sample of ours ] [ lead-in | sample of theirs ]
    round 1:  [ lead-in | sample of theirs ] [ lead-in | sample of ours ]

A sample times as many calls as fill `SAMPLE` seconds and divides. The lead-in is untimed: it lets
the threads that the other side left spinning go to sleep, and brings this side's data back into
the caches, as in a program that uses only one of them.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

SAMPLE = 0.025  # seconds that one sample lasts at least
LEAD_IN = 0.005  # seconds of untimed calls before a sample ...
LEAD_IN_UP_TO = 0.030  # ... unless one call is longer than this, and has its own lead-in
MIN_ROUNDS = 6  # taken even when they need more than the budget ...
MAX_OVERRUN = 2.5  # ... unless they need this many times the budget; two rounds always

Repeat = Callable[[int], None]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """A sample's middle: median, first and third quartile."""

    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers, for JSON."""
        return asdict(self)


def measure(
    sides: Mapping[str, Repeat], *, budget: float, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call of every side, one number per round; about `budget` seconds in all.

    `sides[name](n)` makes n calls.
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        turns = {name: _prepare(repeat, clock) for name, repeat in sides.items()}
        return _rounds(sides, turns, budget=budget, clock=clock)
    finally:
        if collecting:
            gc.enable()


def finished(repeat: Repeat, device: torch.device | str) -> Repeat:
    """`repeat` until all is done: a GPU's calls return before their work is."""
    if torch.device(device).type == "cpu":
        return repeat

    def run(calls: int) -> None:
        repeat(calls)
        torch.cuda.synchronize(device)

    return run


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of `values`."""
    if not values:
        raise ValueError("values: expected at least one number, got none")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times faster ours is: median and quartiles of theirs / ours, round by round."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of positive numbers."""
    return statistics.geometric_mean(values)


@dataclass(frozen=True)
class _Turn:
    """What one side does in a round: untimed calls, then timed ones."""

    lead_in: int
    calls: int


def _prepare(repeat: Repeat, clock: Clock) -> _Turn:
    """Warms a side up and finds how many calls make a sample."""
    repeat(1)
    calls = 1
    while True:
        begin = clock()
        repeat(calls)
        elapsed = clock() - begin
        if elapsed >= SAMPLE / 4:
            break
        calls *= 2
    per_call = elapsed / calls
    return _Turn(
        lead_in=0 if per_call > LEAD_IN_UP_TO else math.ceil(LEAD_IN / per_call),
        calls=max(1, math.ceil(SAMPLE / per_call)),
    )


def _rounds(
    sides: Mapping[str, Repeat], turns: Mapping[str, _Turn], *, budget: float, clock: Clock
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    start = clock()
    finished = 0
    while True:
        for name in order:
            turn = turns[name]
            if turn.lead_in:
                sides[name](turn.lead_in)
            begin = clock()
            sides[name](turn.calls)
            samples[name].append((clock() - begin) / turn.calls)
        order.reverse()
        finished += 1
        if finished % 2:  # an even number of rounds: every order as often as the other
            continue
        spent = clock() - start
        if spent >= budget and (finished >= MIN_ROUNDS or spent >= MAX_OVERRUN * budget):
            return samples
