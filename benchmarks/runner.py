"""Runs cases: ours and every peer that can do the case, checked against torch.nn, then timed.

A case that fails (an exception, or results that differ beyond all rounding) is reported as it
happens, kept in the results with its message, and makes the whole run exit with an error; the
other cases are still measured. A peer beside torch.nn that cannot do a case, or fails at it, is
left out there and the record says why. Timings are never asserted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import PEERS, STREAMING, TORCH_NN, Peer, lead
from benchmarks.peers.peer import Step, make_data
from benchmarks.timing import Repeat, measure, ratio, spread
from benchmarks.workloads import Case

# Relative difference (of norms) beyond which two sides did not compute the same thing. Loose on
# purpose: the tests hold the numbers rule, this only keeps us from timing something wrong. int8 is
# compared with torch.nn in float32.
PARITY_BOUND = {
    "float64": 1e-8, "float32": 1e-3, "tf32": 0.03, "float16": 0.1, "bfloat16": 0.25, "int8": 0.15,
}  # fmt: skip


class ParityError(Exception):
    """Two sides of a case gave different results."""


def skipped(case: Case) -> str | None:
    """Why the case cannot be measured here, or None when it can."""
    if why := TORCH_NN.missing(case):
        why = f"{TORCH_NN.name}: {why}"
    return lead(case).missing(case) or why


def run(
    case: Case, *, budget: float, peak: float | None, peers: Sequence[Peer] = PEERS
) -> dict[str, Any]:
    """Measures one case for about `budget` seconds, more where sides are more than two.

    Returns what JSON keeps of it. `ratios` are of the case's leading side, `kept` are those of
    `fusedrnn.Streaming` where it runs beside it; `accuracy` is there for int8 alone.
    """
    torch.set_num_threads(case.threads)
    record = _identity(case)
    ours = lead(case).name
    try:
        with precision(case):
            steps = _steps(case, peers, record)
            repeats = {name: _finished(step.repeat, case) for name, step in steps.items()}
            samples = measure(repeats, budget=budget * len(steps) / 2)
    except Exception as error:  # any failure of one case: the other cases still count
        return record | {"error": f"{type(error).__name__}: {error}"}
    record["lead"] = ours
    record["sides"] = {
        name: spread(seconds).as_dict()
        | {"best": min(seconds), "peak_fraction": peak_fraction(case, spread(seconds).median, peak)}
        for name, seconds in samples.items()
    }
    record["ratios"] = _ratios(samples, ours)
    if STREAMING.name in samples:
        record["kept"] = _ratios(samples, STREAMING.name)
    record["rounds"] = len(samples[ours])
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


def _steps(case: Case, peers: Sequence[Peer], record: dict[str, Any]) -> dict[str, Step]:
    """The sides of a case, each checked; what was left out and how exact int8 is, in `record`."""
    data = make_data(case)
    ours = lead(case)
    steps = {peer.name: peer.build(case, data) for peer in (ours, TORCH_NN)}
    expected = steps[TORCH_NN.name].results()
    results = {ours.name: steps[ours.name].results()}
    check_parity(results[ours.name], expected, dtype=case.dtype, peer=TORCH_NN.name)
    record["left_out"] = {}
    for peer in dict.fromkeys((STREAMING, *peers)):
        if peer.name in steps or (peer is STREAMING and peer.missing(case)):
            continue
        try:
            why = peer.missing(case) if peer.available() else "is not installed"
            if why is None:
                step = peer.build(case, data)
                results[peer.name] = step.results()
                check_parity(results[peer.name], expected, dtype=case.dtype, peer=TORCH_NN.name)
                steps[peer.name] = step
        except Exception as error:  # a fault of a peer's is not ours
            why = f"failed: {type(error).__name__}: {error}"
        if why is not None:
            record["left_out"][peer.name] = why
    if case.dtype == "int8":
        record["accuracy"] = {
            name: accuracy(result["output"], expected["output"])
            for name, result in results.items()
            if name in steps
        }
    return steps


def accuracy(got: Tensor, expected: Tensor) -> dict[str, float]:
    """How far an output is from torch.nn's in float32: the largest difference, and the rms."""
    difference = got.double() - expected.double()
    return {
        "max": float(difference.abs().max()),
        "rms": float(difference.square().mean().sqrt()),
    }


def _ratios(samples: dict[str, list[float]], ours: str) -> dict[str, dict[str, float]]:
    return {
        name: ratio(samples[ours], seconds).as_dict()
        for name, seconds in samples.items()
        if name != ours
    }


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
