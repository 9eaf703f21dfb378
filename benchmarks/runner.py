"""Runs cases: ours and every peer that can do the case, checked against each other, then timed.

A case that fails (an exception, or results that differ beyond all rounding) is reported as it
happens, kept in the results with its message, and makes the whole run exit with an error; the
other cases are still measured. Timings are never asserted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.peers.peer import Data, make_data
from benchmarks.timing import Repeat, measure, ratio, spread
from benchmarks.workloads import Case

# Relative difference (of norms) beyond which two sides did not compute the same thing. Loose on
# purpose: the tests hold the numbers rule, this only keeps us from timing something wrong.
PARITY_BOUND = {
    "float64": 1e-8, "float32": 1e-3, "tf32": 0.03, "float16": 0.1, "bfloat16": 0.25,
}  # fmt: skip


class ParityError(Exception):
    """Two sides of a case gave different results."""


def skipped(case: Case) -> str | None:
    """Why the case cannot be measured here, or None when it can."""
    return OURS.missing(case) or (
        None if _rivals(case) else "; ".join(f"{p.name}: {p.missing(case)}" for p in PEERS)
    )


def run(case: Case, *, budget: float, peak: float | None) -> dict[str, Any]:
    """Measures one case for about `budget` seconds and returns what JSON keeps of it."""
    torch.set_num_threads(case.threads)
    record = _identity(case)
    try:
        with precision(case):
            samples = _samples(case, budget)
    except Exception as error:  # any failure of one case: the other cases still count
        return record | {"error": f"{type(error).__name__}: {error}"}
    record["sides"] = {
        name: spread(seconds).as_dict()
        | {"best": min(seconds), "peak_fraction": peak_fraction(case, spread(seconds).median, peak)}
        for name, seconds in samples.items()
    }
    record["ratios"] = {
        name: ratio(samples[OURS.name], seconds).as_dict()
        for name, seconds in samples.items()
        if name != OURS.name
    }
    record["rounds"] = len(samples[OURS.name])
    return record


def peak_fraction(case: Case, seconds: float, peak: float | None) -> float | None:
    """Which part of the machine's multiply-add rate a call of `seconds` makes use of."""
    return case.flops / (seconds * peak) if peak else None


def check_parity(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, dtype: str, peer: str
) -> None:
    """Raises ParityError when any of our results is not, roughly, the peer's."""
    if ours.keys() != theirs.keys():
        raise ParityError(f"results: expected those of {peer}, {[*theirs]}; got {[*ours]}")
    for name, expected in theirs.items():
        got = ours[name]
        if got.shape != expected.shape:
            raise ParityError(
                f"{name}: expected shape {tuple(expected.shape)} as from {peer}, "
                f"got {tuple(got.shape)}"
            )
        difference = _relative_difference(got.double(), expected.double())
        if not difference <= PARITY_BOUND[dtype]:  # also when it is NaN
            raise ParityError(
                f"{name}: expected within {PARITY_BOUND[dtype]:g} of {peer}'s (relative), "
                f"got {difference:.3g}"
            )


def _rivals(case: Case) -> list[Peer]:
    return [peer for peer in PEERS if peer.available() and peer.missing(case) is None]


def _samples(case: Case, budget: float) -> dict[str, list[float]]:
    data: Data = make_data(case)
    peers: Sequence[Peer] = (OURS, *_rivals(case))
    steps = {peer.name: peer.build(case, data) for peer in peers}
    ours = steps[OURS.name].results()
    for peer in peers[1:]:
        check_parity(ours, steps[peer.name].results(), dtype=case.dtype, peer=peer.name)
    return measure({n: _finished(s.repeat, case) for n, s in steps.items()}, budget=budget)


def _finished(repeat: Repeat, case: Case) -> Repeat:
    """`repeat` until all is done: a GPU's calls return before their work is."""
    if case.row.device == "cpu":
        return repeat

    def run(calls: int) -> None:
        repeat(calls)
        torch.cuda.synchronize()

    return run


@contextmanager
def precision(case: Case) -> Iterator[None]:
    """tf32 on a GPU where the case says so, and nowhere else."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.rnn.fp32_precision
    cudnn.rnn.fp32_precision = "tf32" if case.dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        cudnn.rnn.fp32_precision = before


def _relative_difference(got: Tensor, expected: Tensor) -> float:
    difference = float((got - expected).norm())
    scale = float(expected.norm())
    if not difference:
        return 0.0
    return difference / scale if scale else math.inf


def _identity(case: Case) -> dict[str, Any]:
    return {
        "row": case.row.name,
        "cell": case.cell,
        "mode": case.mode,
        "threads": case.threads,
        "dtype": case.dtype,
        "flops": case.flops,
    }
