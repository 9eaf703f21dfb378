"""The peak memory of a training step, each side in processes of its own; the median of several.

Where the allocators put things is partly luck: one process in three may need half as much again.

What a process mapped earlier says nothing about a step, so the child first runs a tiny problem
of the same cell (which loads the libraries' code), builds the module and its input, notes its
resident size, resets the kernel's high-water mark (`/proc/self/clear_refs`), and then makes three
training steps. The figure is how far the mark rose: output, reserve, scratch, gradients, and
whatever a side keeps in caches and pools of its own. Where the mark cannot be reset, the rise of
`ru_maxrss` over the whole child is taken, which is blind below the child's earlier peak.

The kernel counts pages in batches per core: differences under a megabyte mean nothing.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STEPS = 3
PROCESSES = 3
TIMEOUT = 300.0
MEANINGLESS = 2**20  # bytes


def measure(row: str, cell: str, threads: int, *, processes: int = PROCESSES) -> dict[str, Any]:
    """Peak bytes of a float32 training step of ours and of torch.nn, and what JSON keeps."""
    from benchmarks.peers import OURS, PEERS
    from benchmarks.workloads import Case, rows_named

    case = Case(row=rows_named([row])[0], cell=cell, mode="train", threads=threads)
    names = [
        peer.name for peer in (OURS, *PEERS) if peer.available() and peer.missing(case) is None
    ]
    return measure_sides(names, row, cell, threads, processes=processes)


def measure_sides(
    names: Sequence[str], row: str, cell: str, threads: int, *, processes: int = PROCESSES
) -> dict[str, Any]:
    """The same for the peers of these names, each in so many processes."""
    record: dict[str, Any] = {"row": row, "cell": cell, "threads": threads, "dtype": "float32"}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # memory does not mind company
        children = {
            name: [pool.submit(_child, name, row, cell, threads) for _ in range(processes)]
            for name in names
        }
    try:
        peaks = {name: [child.result() for child in group] for name, group in children.items()}
    except (subprocess.SubprocessError, RuntimeError, ValueError) as error:
        return record | {"error": f"{type(error).__name__}: {error}"}
    record["method"] = peaks[names[0]][0]["method"]
    record["peak_bytes"] = {
        name: statistics.median(peak["bytes"] for peak in group) for name, group in peaks.items()
    }
    record["processes"] = {name: [p["bytes"] for p in group] for name, group in peaks.items()}
    return record


def _child(side: str, row: str, cell: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", side, row, cell, str(threads)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=root)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{side} on row {row}, {cell}: exit code {done.returncode}: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _rise(side: str, row_name: str, cell: str, threads: int) -> dict[str, Any]:
    """In the child: the rise of this process's peak memory over three training steps."""
    import dataclasses

    import torch

    from benchmarks.peers import named
    from benchmarks.peers.peer import make_data
    from benchmarks.workloads import Case, rows_named

    torch.set_num_threads(threads)
    row = rows_named([row_name])[0]
    peer = named(side)
    proj_size = 8 if row.proj_size else 0
    tiny = dataclasses.replace(row, T=2, B=2, I=16, H=16, proj_size=proj_size)
    for problem, steps in ((tiny, 2), (row, STEPS)):
        case = Case(row=problem, cell=cell, mode="train", threads=threads)
        step = peer.build(case, make_data(case))
        gc.collect()
        before = _high_water_mark(reset=True)
        step.repeat(steps)
        after = _high_water_mark(reset=False)
    return {"bytes": max(0, after - before), "method": _method()}


def _method() -> str:
    return "VmHWM" if os.access("/proc/self/clear_refs", os.W_OK) else "ru_maxrss"


def _high_water_mark(*, reset: bool) -> int:
    """The most bytes that were resident so far; with `reset`, counted from now on."""
    if _method() == "VmHWM":
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(json.dumps(_rise(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
