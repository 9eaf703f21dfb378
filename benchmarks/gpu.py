"""The rows of a GPU against `torch.nn`, which is cuDNN there: what tools/gpu_check.sh measures.

A call's time is what a program sees: calls follow each other without waiting, and the clock stops
when the GPU has done them all. What a ratio means depends on which algorithm cuDNN chose, so one
call of each side is also traced for the names of its kernels, after all timings: a profiler that
was there slows down what follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import runner
from benchmarks.peers import OURS, PEERS
from benchmarks.peers.peer import Step, make_data
from benchmarks.workloads import GPU_ROWS, PASSES, REPLAY, Case, cases

ORDER = (
    "g7 g8 g5 g3 g2 g18 g9 g6 g4 g11 g14 g16 g15 g13 g21 g10 g20 g12 g19 g17 g1".split()
)  # what we most need to know comes first

CALL_SECONDS = {"forward": 10e-6, "train": 30e-6, REPLAY: 10e-6}  # of a step of cuDNN's, roughly
PACKED = 15  # times longer
CALLS = 14  # of each side, at least, and those that make ready
SET_UP = 0.4  # seconds


def chosen(*modes: str) -> list[Case]:
    """All cases of the given passes, in the order in which they are measured."""
    found = cases(GPU_ROWS, threads=[1], modes=modes)
    return sorted(found, key=lambda case: ORDER.index(case.row.letter))


def expected_seconds(case: Case, seconds: float) -> float:
    """What measuring a case takes, when its two sides are given so many seconds."""
    row = case.row
    call = CALL_SECONDS[case.mode] * row.T * row.layers * row.directions
    return SET_UP + max(seconds, CALLS * call * (PACKED if row.packed else 1))


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Times a case on both sides, for about so many seconds, after comparing their results.

    The record is runner.py's, and its `error` says what failed.
    """
    record = runner.run(case, budget=seconds, peak=None)
    if case.row.device != "cpu":
        torch.cuda.empty_cache()
    return record | {"sizes": case.row.sizes}


def kernels_of(case: Case) -> dict[str, list[str]]:
    """The kernels of one call of each side, those that took longest first."""
    data = make_data(case)
    names: dict[str, list[str]] = {}
    for peer in (OURS, *PEERS):
        with runner.precision(case):
            events = traced(peer.build(case, data), case.row.device, calls=1)
        longest = sorted(events.items(), key=lambda event: event[1].seconds, reverse=True)
        names[peer.name] = [f"{event.count}x {name[:100]}" for name, event in longest[:3]]
    return names


class Event:
    """What a profiler says of all calls of a kernel."""

    def __init__(self, count: int, seconds: float) -> None:
        self.count, self.seconds = count, seconds


def traced(step: Step, device: str, *, calls: int) -> dict[str, Event]:
    """The kernels of `calls` calls by name; on a CPU, torch's operators."""
    on_gpu = device != "cpu"

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    step.repeat(2)
    wait()
    # What torch.profiler.profile does, which also imports torch's compilers: seconds.
    with torch.autograd.profiler.profile(
        use_cpu=not on_gpu, use_device="cuda" if on_gpu else None, use_kineto=True
    ) as profile:
        step.repeat(calls)
        wait()
    return {
        event.key: Event(
            event.count,
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total) * 1e-6,
        )
        for event in profile.key_averages()
    }


def ceilings() -> dict[str, float]:
    """What the GPU reaches at best just now."""
    return {
        "copy_bytes_per_second": _copy_rate(),
        "bf16_flop_per_second": _matmul_rate(),
        "launch_seconds": _launch_time(),
    }


def _per_call(call: Callable[[], object], calls: int) -> float:
    """Seconds of one call among many that follow each other."""
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / calls


def _launch_time() -> float:
    tiny = torch.ones(1, device="cuda")
    return _per_call(lambda: tiny.add_(1), 1000)


def _copy_rate() -> float:
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / _per_call(lambda: target.copy_(source), 10)


def _matmul_rate() -> float:
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / _per_call(lambda: a @ b, 10)


assert set(ORDER) == {row.letter for row in GPU_ROWS} and set(CALL_SECONDS) == {*PASSES, REPLAY}
