"""How long a cell of one's own takes to define, and its layer to be called for the first time.

Each figure is of a fresh process that has imported torch and fusedrnn, which are not counted, and
has no other cell: the zoo is not imported. So this module imports nothing else of the benchmarks.
The process begins with an empty cache of compiled cells; "cached" is of another, which finds the
cell there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import fusedrnn

if TYPE_CHECKING:
    from benchmarks.workloads import Row

PROCESSES = 3
TIMEOUT = 300.0
# Defining, making a layer, the first two calls, and then waiting for compiled code.
PARTS = ("define", "layer", "first", "second", "compiled")

Seconds = dict[str, float]


def measure(row: Row, *, mode: str, threads: int, processes: int = PROCESSES) -> list[Seconds]:
    """The seconds of each part in so many processes.

    Raises:
        RuntimeError, SubprocessError: a process failed, or took too long.
    """
    arguments = (mode, *map(str, (threads, row.T, row.I, row.H, row.B)))
    return [_with_cache(*arguments) for _ in range(processes)]


def _with_cache(*arguments: str) -> Seconds:
    with tempfile.TemporaryDirectory() as cache:
        first, next_one = (_child(*arguments, cache=cache) for _ in range(2))
    return first | {"cached": next_one["compiled"]}


def _child(*arguments: str, cache: str) -> Seconds:
    command = [sys.executable, "-m", "benchmarks.first_call", *arguments]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, cwd=root,
        env=os.environ | {"FUSEDRNN_CACHE": cache, "FUSEDRNN_CELL_COMPILE": "1"},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{' '.join(arguments)}: exit code {done.returncode}: {last}")
    seconds: Seconds = json.loads(done.stdout.splitlines()[-1])
    return seconds


def parts(mode: str, threads: int, T: int, I: int, H: int, B: int) -> Seconds:  # noqa: E741
    """In the child: the seconds of each part."""
    torch.set_num_threads(threads)
    input = torch.randn(T, B, I)

    def call() -> None:
        if mode == "train":
            layer(input)[0].square().mean().backward()
        else:
            with torch.no_grad():
                layer(input)

    times = [time.perf_counter()]
    mgu = _defined()
    times.append(time.perf_counter())
    layer = fusedrnn.Recurrent(mgu, I, H)
    times.append(time.perf_counter())
    for _ in range(2):
        call()
        times.append(time.perf_counter())
    with contextlib.suppress(RuntimeError):  # there is no compiler
        mgu.compile()
    times.append(time.perf_counter())
    return {part: end - start for part, start, end in zip(PARTS, times, times[1:], strict=False)}


def _defined() -> Any:
    """The cell that stands in the documentation of `fusedrnn.cell`."""

    @fusedrnn.cell(gates="f n")
    def mgu(x: Any, u: Any, h: torch.Tensor) -> torch.Tensor:
        f = torch.sigmoid(x.f + u.f)
        n = torch.tanh(x.n + f * u.n)
        return (1 - f) * h + f * n

    return mgu


if __name__ == "__main__":
    print(json.dumps(parts(sys.argv[1], *map(int, sys.argv[2:]))))
