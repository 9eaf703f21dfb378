"""Runs cases: ours and every peer that can do the case, checked against torch.nn, then timed.

A case that fails (an exception, or results that differ beyond all rounding) is reported as it
happens, kept in the results with its message, and makes the whole run exit with an error; the
other cases are still measured. A peer beside torch.nn that cannot do a case, or fails at it, is
left out there and the record says why. Timings are never asserted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import PEERS, STREAMING, TORCH_NN, Peer, lead
from benchmarks.peers.peer import Step, make_data
from benchmarks.workloads import Case
from fusedrnn.testing.parity import check_parity, float32_products
from fusedrnn.testing.timing import Clock, finished, measure, ratio, spread


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
    `fusedrnn.Streaming` where it runs beside it; `accuracy` is there only for int8.
    """
    torch.set_num_threads(case.threads)
    record = _identity(case)
    ours = lead(case).name
    try:
        with precision(case):
            steps = _steps(case, peers, record)
            repeats = {name: finished(step.repeat, case.row.device) for name, step in steps.items()}
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


def clock_of(threads: int) -> Clock:
    """Wall time; with one thread, that thread's own time, which neighbours do not lengthen."""
    return time.thread_time if threads == 1 else time.perf_counter


def peak_fraction(case: Case, seconds: float, peak: float | None) -> float | None:
    """Which part of the machine's multiply-add rate a call of `seconds` makes use of."""
    return case.flops / (seconds * peak) if peak else None


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


def precision(case: Case) -> AbstractContextManager[None]:
    """tf32 on a GPU where the case says so, and nowhere else."""
    return float32_products("tf32" if case.dtype == "tf32" else "ieee")


def _identity(case: Case) -> dict[str, Any]:
    return {
        "row": case.row.name,
        "cell": case.cell,
        "mode": case.mode,
        "threads": case.threads,
        "dtype": case.dtype,
        "flops": case.flops,
    }
