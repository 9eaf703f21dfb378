"""The least time that a case can take on this machine: a floor to hold our times against.

    floor = max(FLOPs / peak, bytes / bandwidth) + steps x barrier + calls x call

where all rates are measured in the same run, with as many threads as the case has
(csrc/cpu/peak.cpp):

    FLOPs      workloads.flops; peak of multiply-adds, or of the dot products of bf16 and int8 where
               the processor has them
    bytes      W_hh (and W_hr) once per step of each pass over time; and once: W_ih, biases, input
               and output of each layer. A training step adds the reserve, written and read, input,
               output and W_ih read again, and all gradients. Caches do the best they can: as much
               of W_hh as a level holds comes from it, the rest from the next; then the other bytes
               in the levels that are left.
    barrier    one per step if the units of a layer have to be split, since there are fewer
               sequences (times directions) than threads; with enough, each thread has its own
    call       an op that copies one value, or an autograd Function that does that, and its
               backward; one per layer

It is a floor, and no more: activations, making panels, and writes (which are counted as reads) cost
more, and neither caches nor the split over threads are ever that good.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.workloads import Case

SECONDS, TRIES = 0.05, 3
CALLS = 20
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
BEYOND_CACHES = 4  # times the last level is read for the bandwidth of memory ...
MOST = 2**30  # ... but no more bytes than this
BYTES = {"float32": 4, "bfloat16": 2, "int8": 4}  # of what passes by; weights of int8 have one
PEAKS = {"bfloat16": "bf16_peak", "int8": "int8_peak"}

Limits = dict[str, Any]


def measure(threads: int, fma_peak: float | None) -> Limits | None:
    """What `threads` threads can do at best, as JSON keeps it; None where a build cannot tell."""
    if fma_peak is None or machine.introspect("barrier_seconds", 1, SECONDS) is None:
        return None
    peaks = {"float32": fma_peak}
    for dtype, name in PEAKS.items():
        peaks[dtype] = _best(lambda name=name: machine.introspect(name, threads, SECONDS))
    levels = cache_sizes(threads)
    last = levels[-1][1] if levels else 2**25
    reads = [(name, size, size // 2) for name, size in levels]
    reads.append(("memory", 0, min(MOST, BEYOND_CACHES * last)))
    torch.set_num_threads(threads)
    return {
        "peak": peaks,
        "levels": [
            {"name": name, "bytes": size, "bandwidth": _best(
                lambda total=total: machine.introspect(
                    "read_bandwidth", max(1, total // threads), threads, SECONDS))}
            for name, size, total in reads
        ],
        "barrier": machine.introspect("barrier_seconds", threads, TRIES * SECONDS),
        "call": {"forward": _call(train=False), "train": _call(train=True)},
    }  # fmt: skip


def floor(case: Case, limits: Limits) -> dict[str, float]:
    """The floor of a case in seconds (`total`) and its parts."""
    row, dtype = case.row, case.dtype
    compute = case.flops / (limits["peak"].get(dtype) or limits["peak"]["float32"])
    steps = max(row.lengths) * (2 if case.mode == "train" else 1)
    memory = 0.0
    for layer in range(row.layers):
        each_step, once = traffic(case, layer)
        recurrent = _read_seconds(limits, each_step)
        memory += steps * recurrent
        memory += _read_seconds(limits, each_step + once) - recurrent
    meets = row.B * row.directions < case.threads
    barriers = row.layers * steps * limits["barrier"] if meets else 0.0
    call = row.layers * limits["call"][case.mode]
    return {
        "compute": compute, "memory": memory, "barriers": barriers, "call": call,
        "total": max(compute, memory) + barriers + call,
    }  # fmt: skip


def traffic(case: Case, layer: int) -> tuple[int, int]:
    """Bytes of one layer: those read in every step, and those that pass once in a call."""
    row = case.row
    item = BYTES[case.dtype]
    weight_item = 1 if case.dtype == "int8" else item
    width = row.proj_size or row.H
    features = row.I if layer == 0 else row.directions * width
    rows = len(case.facts.gates) * row.H
    recurrent = weight_item * row.directions * (rows * width + row.H * row.proj_size)
    from_input = row.directions * (weight_item * rows * features + item * 2 * rows)
    alive = sum(row.lengths)
    input_bytes, output_bytes = item * alive * features, item * alive * row.directions * width
    once = from_input + input_bytes + output_bytes
    if case.mode == "train":
        reserve = item * alive * row.directions * len(case.facts.saved) * row.H
        read_again = from_input + input_bytes + output_bytes
        gradients = from_input + recurrent + input_bytes + output_bytes
        once += 2 * reserve + read_again + gradients
    return recurrent, once


def cache_sizes(threads: int, caches: Path = CACHES) -> list[tuple[str, int]]:
    """Name and bytes of each level of data cache that `threads` cores have together."""
    found = []
    for index in sorted(caches.glob("index*")):
        entry = {name: (index / name).read_text().strip() for name in ("type", "level", "size")}
        if entry["type"] == "Instruction":
            continue
        sharing = _count((index / "shared_cpu_list").read_text())
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}[entry["size"][-1]]
        instances = -(-threads // sharing)
        found.append((f"L{entry['level']}", instances * int(entry["size"][:-1]) * unit))
    return sorted(found, key=lambda level: level[1])


def _count(cpus: str) -> int:
    """How many a list like `0-3,8` names."""
    ends = [part.split("-") for part in cpus.strip().split(",")]
    return sum(int(pair[-1]) - int(pair[0]) + 1 for pair in ends)


def _read_seconds(limits: Limits, size: int) -> float:
    """The time to read `size` bytes that lie in the fastest levels, each filled before the next."""
    *caches, memory = limits["levels"]
    seconds, left = 0.0, size
    for level in caches:
        here = min(left, level["bytes"])
        seconds += here / level["bandwidth"]
        left -= here
    return seconds + left / memory["bandwidth"]


def _best(measured: Callable[[], float | None]) -> float:
    return max(measured() or 0.0 for _ in range(TRIES))


class _Copy(torch.autograd.Function):
    """Does next to nothing, forward and backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _call(*, train: bool) -> float:
    """Seconds of an op that copies one value, or of a Function that does and of its backward.

    The least of many short batches: a lost time slice is not the call's.
    """
    value = torch.ones(1, requires_grad=train)
    grad = torch.ones(1)

    def forward() -> None:
        torch.ops.aten.clone(value)

    def forward_backward() -> None:
        torch.autograd.grad(_Copy.apply(value), value, grad)

    call = forward_backward if train else forward
    least = math.inf
    with torch.set_grad_enabled(train):
        call()  # the first sets things up
        start = time.perf_counter()
        while (begin := time.perf_counter()) - start < TRIES * SECONDS:
            for _ in range(CALLS):
                call()
            least = min(least, (time.perf_counter() - begin) / CALLS)
    return least
