"""`python -m benchmarks.gpu OUT`: the rows of a GPU against `torch.nn`, which is cuDNN there.

    OUT/results.json   every figure as it comes, so that an interrupted run keeps what it has
    OUT/report.md      made from it, to read

A call's time is what a program sees: calls follow each other without waiting, and the clock stops
when the GPU has done them all. Rows not reached within `--budget` seconds are listed as not run.
After the timings, one call of each side is traced for the names of its kernels, since what a ratio
means depends on which algorithm cuDNN chose.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, runner
from benchmarks.peers import OURS, PEERS
from benchmarks.peers.peer import make_data
from benchmarks.report import write_whole
from benchmarks.workloads import GPU_ROWS, Case, Row, cases, rows_named
from fusedrnn.testing.timing import geometric_mean

PEER = "torch.nn"
COLUMNS = (
    "row", "sizes", "cell", "pass", "dtype", "ours ms", "torch.nn ms", "ratio", "quartiles",
    "TFLOP/s",
)  # fmt: skip
CASE_SECONDS = 0.6
TRACE_SHARE = 0.15  # of the budget, kept for the names of kernels

Results = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes, and prints a line for each case; 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for results.json and report.md")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=["*"], help="g1,g9*")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds in all")
    parser.add_argument("--seconds", type=float, default=CASE_SECONDS, help="seconds a case")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no NVIDIA GPU found: torch.cuda.is_available() is false")
    try:
        rows = rows_named(given.rows, GPU_ROWS)
    except ValueError as error:
        parser.error(str(error))
    results = run(rows, given.out, budget=given.budget, seconds=given.seconds)
    return 1 if any("error" in case for case in results["cases"]) else 0


def run(rows: list[Row], out: Path, *, budget: float, seconds: float) -> Results:
    """Measures all cases of `rows` until the budget is spent."""
    deadline = time.monotonic() + budget
    out.mkdir(parents=True, exist_ok=True)
    results: Results = {
        "machine": describe(), "cases": [], "skipped": {}, "not_run": [], "kernels": {},
    }  # fmt: skip
    chosen = cases(rows, threads=[1])
    for case in chosen:
        if why := runner.skipped(case):
            results["skipped"][case.label] = why
        elif time.monotonic() > deadline - TRACE_SHARE * budget:
            results["not_run"].append(case.label)
        else:
            record = runner.run(case, budget=seconds, peak=None)
            results["cases"].append(record)
            print(_line(case, record), flush=True)
            torch.cuda.empty_cache()
        write(out, results)
    for case in chosen:
        if time.monotonic() > deadline:
            break
        if case.mode == "forward" and runner.skipped(case) is None:
            name = f"{case.row.name} {case.cell} {case.dtype}"
            try:
                results["kernels"][name] = kernels_of(case)
            except Exception as error:  # the figures above stand without it
                results["kernels"][name] = {"not traced": [f"{type(error).__name__}: {error}"]}
            write(out, results)
    return results


def kernels_of(case: Case) -> dict[str, list[str]]:
    """The kernels of one call of each side, those that took longest first."""
    data = make_data(case)
    names: dict[str, list[str]] = {}
    for peer in (OURS, *PEERS):
        with runner.precision(case):
            step = peer.build(case, data)
            step.repeat(1)
            torch.cuda.synchronize()
            activities = [torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as profile:
                step.repeat(1)
                torch.cuda.synchronize()
        times = sorted(
            profile.key_averages(), key=lambda event: event.self_device_time_total, reverse=True
        )
        names[peer.name] = [f"{event.count}x {event.key[:100]}" for event in times[:3]]
    return names


def describe() -> dict[str, Any]:
    """The GPU, its software, and what it reached at best just now."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver(),
        "versions": {peer.name: peer.version() for peer in (OURS, *PEERS)},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "commit": machine.commit(),
        "copy_bytes_per_second": _copy_rate(),
        "bf16_flop_per_second": _matmul_rate(),
        "launch_seconds": _launch_time(),
    }


def write(out: Path, results: Results) -> None:
    """Both files, whole at any time."""
    write_whole(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_whole(out / "report.md", markdown(results))


def markdown(results: Results) -> str:
    """The whole report."""
    m = results["machine"]
    lines = [
        "# fusedrnn against torch.nn (cuDNN) on a GPU",
        "",
        f"- {m['gpu']} (compute capability {m['capability']}, {m['multiprocessors']} "
        f"multiprocessors, {m['memory_gib']} GiB), driver {m['driver']}",
        f"- torch {m['versions'][PEER]}, CUDA {m['cuda']}, cuDNN {m['cudnn']}, fusedrnn "
        f"{m['versions'][OURS.name]}, commit {m['commit']}, {m['date']}",
        f"- measured then: copy {m['copy_bytes_per_second'] / 1e12:.2f} TB/s (read and written), "
        f"bf16 product {m['bf16_flop_per_second'] / 1e12:.0f} TFLOP/s, one small op "
        f"{m['launch_seconds'] * 1e6:.1f} us",
        "",
        "Ratio: torch.nn's time over ours, measured in turns in one process; the median of the "
        "rounds' ratios, and its quartiles. TFLOP/s: useful operations of ours per second.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    by_name = {row.name: row for row in GPU_ROWS}
    measured = [case for case in results["cases"] if "ratios" in case]
    for case in measured:
        ours, theirs = (case["sides"][side]["median"] for side in (OURS.name, PEER))
        ratio = case["ratios"][PEER]
        lines.append(
            f"| {case['row']} | {by_name[case['row']].sizes} | {case['cell']} | {case['mode']} "
            f"| {case['dtype']} | {ours * 1e3:.3g} | {theirs * 1e3:.3g} | {ratio['median']:.2f} "
            f"| {ratio['low']:.2f} to {ratio['high']:.2f} | {case['flops'] / ours / 1e12:.2f} |"
        )
    for mode in dict.fromkeys(case["mode"] for case in measured):
        for dtype in dict.fromkeys(case["dtype"] for case in measured):
            ratios = [
                case["ratios"][PEER]["median"]
                for case in measured
                if (case["mode"], case["dtype"]) == (mode, dtype)
            ]
            if ratios:
                mean = geometric_mean(ratios)
                lines += ["", f"Geometric mean, {mode}, {dtype}: {mean:.2f} of {len(ratios)}."]
    failed = [
        f"- {c['row']} {c['cell']} {c['mode']} {c['dtype']}: {c['error']}"
        for c in results["cases"]
        if "error" in c
    ]
    skipped = [f"- {label}: {why}" for label, why in results["skipped"].items()]
    not_run = [f"- {label}" for label in results["not_run"]]
    kernels = [
        f"- {label}, {side}: {'; '.join(names)}"
        for label, sides in results["kernels"].items()
        for side, names in sides.items()
    ]
    for title, found in (
        ("Failed", failed), ("Skipped", skipped), ("Not run: the time was over", not_run),
        ("Kernels of one forward call", kernels),
    ):  # fmt: skip
        if found:
            lines += ["", f"## {title}", "", *found]
    return "\n".join(lines) + "\n"


def _line(case: Case, record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{case.label}: failed: {record['error']}"
    ours, theirs = (record["sides"][side]["median"] for side in (OURS.name, PEER))
    ratio = record["ratios"][PEER]["median"]
    return f"{case.label}: {ours * 1e3:.3f} ms, torch.nn {theirs * 1e3:.3f} ms: {ratio:.2f}x"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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


if __name__ == "__main__":
    sys.exit(main())
