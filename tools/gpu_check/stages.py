"""The stages in their order, and the items of each with the seconds that they are expected to take.

What we most need to know comes first: what the machine is, whether every way of computing a layer
is right at all, what a step is made of, how fast we are against cuDNN. A stage's seconds are its
share of the time that is left when it begins (scheduler.py).
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.gpu_check.channel import FAILED, UNFINISHED
from tools.gpu_check.device import Device
from tools.gpu_check.scheduler import NUMBER, WORKER, Item, Pool, Stage

if TYPE_CHECKING:
    from benchmarks.workloads import Case

NAMES = (
    "machine", "library", "occupancy", "ways", "ceilings", "probes", "forward", "training",
    "complaints", "kernels", "teams", "tests", "memcheck", "racecheck",
)  # fmt: skip
CASE_SECONDS = 0.6  # that a case's two sides are given
TEAM_CASES = (  # of which other teams than the plan's are measured, too
    ("g7", "lstm", "float16"), ("g8", "gru", "bfloat16"), ("g5", "lstm", "bfloat16"),
    ("g3", "lstm", "bfloat16"), ("g9", "lstm", "bfloat16"),
)  # fmt: skip
MOST_TEST_WORKERS = 6
SANITIZERS = ("memcheck", "racecheck")
MOST_OF_LOG = 400_000  # characters of a sanitizer's


@dataclass(frozen=True)
class Plan:
    """All that is to be run."""

    stages: list[Stage]
    pools: dict[str, Pool]


def plan(device: Device, out: Path, total: float) -> Plan:
    """The stages for a device, and the workers that they need."""
    cache = tempfile.mkdtemp(prefix="gpu-check-cache-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    shared = {
        "FUSEDRNN_CHECKED_DEVICE": device.name,
        "FUSEDRNN_TUNE": "0",  # what is timed is the plan's own way,
        "FUSEDRNN_CHECK": "0",  # a way that fails is to be seen failing,
        "FUSEDRNN_CACHE": cache,  # and what was found earlier has no say
    }
    tests = min(MOST_TEST_WORKERS, max(1, (os.cpu_count() or 1) // 2))
    pools = {
        "device": Pool(kept=True, spare=not device.stands_in, environment=shared),
        "tests": Pool((*WORKER, "--tests"), workers=1 if device.stands_in else tests,
                      spare=not device.stands_in, environment=shared),
    }  # fmt: skip
    if not device.stands_in:
        pools |= {tool: sanitizer(tool, out, shared) for tool in SANITIZERS}
    return Plan(_stages(device, out, total), pools)


def pool_of(device: Device, tool: str) -> str:
    """The workers that a sanitizer watches; on a stand-in those that do all else."""
    return "device" if device.stands_in else tool


def sanitizer(tool: str, out: Path, environment: dict[str, str]) -> Pool:
    """Workers that a sanitizer watches."""
    program = shutil.which("compute-sanitizer") or "compute-sanitizer"
    command = [
        # A worker is there long before it is given something to do, and uses no GPU until then.
        program, f"--tool={tool}", "--launch-timeout", "600",
        f"--log-file={out / log_of(tool, NUMBER)}",
        "--kernel-name", "kernel_substring=fusedrnn",
    ]  # fmt: skip
    # Without the caching allocator each tensor has bounds of its own.
    more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Pool((*command, *WORKER), environment=environment | more)


def log_of(tool: str, number: str) -> str:
    """What a sanitizer writes for each of its workers; it goes into the log in the end."""
    return f"{tool}-{number}.log"


def _stages(device: Device, out: Path, total: float) -> list[Stage]:
    def one(name: str, kind: str, seconds: float, limit: float) -> Callable[[], list[Item]]:
        return lambda: [Item(name, kind, seconds=seconds, limit=limit)]

    return [
        Stage("machine", 10, one("what it is", "machine", 3, 60), "torch, nvidia-smi, nvcc",
              required=True, most=60),
        Stage("library", 5, one("load or build", "library", 1, total / 2), "loading it",
              required=True, most=total / 2),
        Stage("occupancy", 5, one("clusters", "occupancy", 1, 20),
              "cudaOccupancyMaxActiveClusters, of blocks that take a whole multiprocessor"),
        Stage("ways", 45, ways,
              "fusedrnn.testing.parity: our error against the float64 oracle, over what the "
              "numbers rule allows; forward and backward, in one direction, and packed in both"),
        Stage("ceilings", 5, one("rates", "ceilings", 2, 20), TIMED_BY),
        Stage("probes", 20, lambda: probed(device),
              "clock64() of one thread around all rounds, over their number; of a walk, between "
              "the marks of its steps, medians; what they move and compute is checked"),
        Stage("forward", 105, lambda: timed("forward", "replay"), RACED_BY),
        Stage("training", 105, lambda: timed("train"), RACED_BY),
        Stage("complaints", 30, complaints, RACED_BY),
        Stage("kernels", 25, kernels,
              "torch.profiler, of one forward call of each side: the three that took longest"),
        Stage("teams", 35, teams,
              "torch.profiler: device time of the walk's kernels of a call, over its steps and "
              "layers; of all others where a pass runs stepwise; mean of three calls",
              ahead=["tests"]),
        Stage("tests", 70, one("collecting, and then each test", "collect", 5, 90),
              "pytest, the tests marked `cuda`, each with a time limit of its own", pool="tests",
              ahead=sorted({pool_of(device, tool) for tool in SANITIZERS})),
        Stage("memcheck", 35, watched, watched_with(device, "memcheck"),
              pool=pool_of(device, "memcheck"), finish=finish(device, out, "memcheck")),
        Stage("racecheck", 25, watched,
              watched_with(device, "racecheck") + "; stores to other blocks that an mbarrier "
              "orders may be reported, so it is told and no gate",
              pool=pool_of(device, "racecheck"), finish=finish(device, out, "racecheck"),
              gate=False),
    ]  # fmt: skip


TIMED_BY = "host clock around calls that follow each other, to the end of the last on the GPU"
RACED_BY = (
    f"{TIMED_BY}; sides take turns (fusedrnn.testing.timing), medians and quartiles of the rounds"
)

# What follows imports what needs the library: it loads by then, or has been built.


def ways() -> list[Item]:
    """Every way of computing a layer."""
    from tools.gpu_check import problems

    return [
        Item(f"{way['cell']} {way['arithmetic']} {way['team']}", "way", way, seconds=0.3, limit=8,
             group=way["team"])
        for way in problems.ways()
    ]  # fmt: skip


def probed(device: Device) -> list[Item]:
    """The microbenchmarks."""
    from benchmarks import probes

    return [
        Item(probe["name"], "probe", {k: v for k, v in probe.items() if k != "name"}, seconds=0.3,
             limit=10, group=probe["what"])
        for probe in probes.all_probes(emulated=device.stands_in)
    ]  # fmt: skip


def timed(*modes: str) -> list[Item]:
    """Cases against torch.nn."""
    from benchmarks import gpu

    items = []
    for case in gpu.chosen(*modes):
        seconds = gpu.expected_seconds(case, CASE_SECONDS)
        more = {"seconds": CASE_SECONDS}
        items.append(
            Item(case.label, "timed", arguments(case) | more, seconds, limit=10 + 4 * seconds)
        )
    return items


def complaints() -> list[Item]:
    """What users of other libraries complain of."""
    from benchmarks.complaints import COMPLAINTS

    return [
        Item(name, "complaint", {"name": name}, seconds=complaint.seconds, limit=30)
        for name, complaint in COMPLAINTS.items()
    ]


def kernels() -> list[Item]:
    """The names of both sides' kernels."""
    from benchmarks import gpu

    return [
        Item(label(case), "kernels", arguments(case), seconds=0.5, limit=20)
        for case in gpu.chosen("forward")
        if not case.row.resets
    ]


def teams() -> list[Item]:
    """Five rows with the plan's team and with every other one."""
    from benchmarks import walks
    from benchmarks.workloads import GPU_ROWS, Case

    items = []
    for name, cell, dtype in TEAM_CASES:
        row = next(row for row in GPU_ROWS if row.name == name)
        case = Case(row=row, cell=cell, mode="forward", threads=1, dtype=dtype)
        items += [
            Item(f"{label(case)} {asked or 'as planned'}", "team",
                 arguments(case) | {"asked": asked}, seconds=0.4, limit=10)
            for asked in ("", *walks.alternatives(case))
        ]  # fmt: skip
    return items


def watched() -> list[Item]:
    """Problems for a sanitizer."""
    from tools.gpu_check import problems

    return [
        Item(words(problem), "problem", problem, seconds=0.5, limit=20)
        for problem in problems.watched()
    ]


def arguments(case: Case) -> dict[str, Any]:
    """A case by its names."""
    return {"row": case.row.name, "cell": case.cell, "mode": case.mode, "dtype": case.dtype}


def label(case: Case) -> str:
    """A case without its pass."""
    return f"{case.row.name} {case.cell} {case.dtype}"


def words(problem: dict[str, Any]) -> str:
    """A problem for a sanitizer."""
    T, B, features, H = problem["sizes"]
    text = f"{problem['cell']} {problem['dtype']} {problem['plan']} T{T} B{B} I{features} H{H}"
    for name in ("both", "packed", "proj_size"):
        text += f" {name}" if problem[name] else ""
    return text


def watched_with(device: Device, tool: str) -> str:
    """How a sanitizer's problems are looked at."""
    return "nothing: they only ran" if device.stands_in else f"compute-sanitizer --tool={tool}"


def finish(device: Device, out: Path, tool: str) -> Callable[[], dict[str, Any]]:
    """What reads a sanitizer's findings when it has ended."""

    def read() -> dict[str, Any]:
        if device.stands_in:
            return {}
        logs = sorted(out.glob(log_of(tool, "*")), key=lambda file: file.stat().st_mtime)
        if not logs:
            return {"status": UNFINISHED, "by": "it wrote nothing: is compute-sanitizer there?"}
        text = "".join(file.read_text(errors="replace") for file in logs)
        with open(out / "check.log", "a") as log:
            log.write(text[:MOST_OF_LOG])
        for file in logs:
            file.unlink()
        return sanitizer_findings(text)

    return read


def sanitizer_findings(text: str) -> dict[str, Any]:
    """A sanitizer's own summary and its first reports; no summary is no success."""
    lines = text.splitlines()
    summaries = [line.split("SUMMARY:")[-1].strip() for line in lines if "SUMMARY" in line]
    reports = [line for line in lines if re.search(r"Invalid|Misaligned|hazard|Error:", line)]
    reports = [line for line in reports if "SUMMARY" not in line]
    found: dict[str, Any] = {"summary": summaries or "none: it did not end by itself"}
    if reports:
        found["first reports"] = reports[:10]
    if reports or any(not re.match(r"0 (errors|hazards)", summary) for summary in summaries):
        found["status"] = FAILED
    elif not summaries:
        found["status"] = UNFINISHED
    return found
