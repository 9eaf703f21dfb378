"""`python -m benchmarks.walks OUT`: a step of every GPU row's walk, predicted and measured.

    OUT/walks.json   every figure as it comes
    OUT/walks.md     made from it, to read

It writes, for each row, cell, dtype and pass: the team that the plan chooses, the nanoseconds that
it predicts for a step, and, if there is a GPU, the nanoseconds that a step takes there, in the
walk's kernels only (without a team, in all others of a call). If there is none, it writes
predictions for an H200. `--all` also measures every other number of blocks, and stepwise: what the
plan gives away.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import fusedrnn
from benchmarks import gpu, gpu_report, machine, runner
from benchmarks.peers import OURS
from benchmarks.peers.peer import make_data
from benchmarks.whole import write_whole
from benchmarks.workloads import GPU_ROWS, Case, Row, cases, rows_named
from fusedrnn._engine import ops
from fusedrnn._engine.tuning import untuned

CALLS = 3
TILE = 16  # a block's units are a multiple of it (kTile of csrc/cuda/team/walk.h)
KERNELS = {"forward": "walk_forward", "backward": "walk_backward"}

Results = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Writes the table, and prints where; 1 if a walk failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walks", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for walks.json and walks.md")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=["*"], help="g1,g9*")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds in all")
    parser.add_argument("--all", action="store_true", help="measure other teams, too")
    given = parser.parse_args(arguments)
    try:
        rows = rows_named(given.rows, GPU_ROWS)
    except ValueError as error:
        parser.error(str(error))
    with untuned():  # torch.nn's kernels are none of ours
        results = run(rows, given.out, budget=given.budget, every=given.all)
    print(given.out / "walks.md")
    return 1 if any("error" in walk for walk in results["walks"]) else 0


def run(rows: list[Row], out: Path, *, budget: float, every: bool) -> Results:
    """Predicts all walks of `rows`, and measures those for which there is time."""
    deadline = time.monotonic() + budget
    out.mkdir(parents=True, exist_ok=True)
    there = torch.cuda.is_available() and fusedrnn.build_info()["cuda"]
    results: Results = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name() if there else None,
        "commit": machine.commit(),
        "walks": [],
    }
    chosen = [c for c in cases(rows, threads=[1]) if c.mode == "forward" and not c.row.resets]
    for case in chosen:
        for asked in ["", *(alternatives(case) if every and there else ())]:
            ops.override_plan(asked)
            try:
                found = predictions(case)
                if there and time.monotonic() < deadline:
                    measure(case, found)
            finally:
                ops.override_plan("")
            results["walks"] += [walk | {"asked": asked} for walk in found]
            write_whole(out / "walks.json", json.dumps(results, indent=1) + "\n")
            write_whole(out / "walks.md", markdown(results))
    return results


def alternatives(case: Case) -> Iterator[str]:
    """Other ways to walk than the plan's own."""
    yield "team=stepwise"
    yield "team=block"
    H = case.row.H
    units = {-(-H // (n * TILE)) * TILE for n in range(2, 17)}
    yield from (f"team=cluster,blocks={n}" for n in sorted({-(-H // u) for u in units} - {1}))


def predictions(case: Case) -> list[dict[str, Any]]:
    """What the plan says of both passes."""
    row = case.row
    dtype = "float32" if case.dtype == "tf32" else case.dtype
    plan = fusedrnn.plan(
        case.facts.name, device="cuda", time=row.T, batch=row.B,
        input_size=row.I if row.layers == 1 else row.directions * row.H, hidden_size=row.H,
        proj_size=row.proj_size, bidirectional=row.directions == 2, dtype=getattr(torch, dtype),
        training=True, allow_tf32=case.dtype == "tf32",
    )  # fmt: skip
    assert isinstance(plan, fusedrnn.CudaPlan)
    return [
        {"row": row.name, "sizes": row.sizes, "cell": case.cell, "dtype": case.dtype, "pass": name}
        | asdict(getattr(plan, name))
        for name in ("forward", "backward")
        if name == "forward" or "train" in row.modes
    ]


def measure(case: Case, walks: list[dict[str, Any]]) -> None:
    """Adds `measured_ns`, a step of one layer, to each of a case's walks; or `error`.

    On a CPU, which has no such kernels, it is the time of all of torch's operators.
    """
    row = case.row
    passes = [walk["pass"] for walk in walks]
    mode = "train" if "backward" in passes else "forward"
    full = Case(row=row, cell=case.cell, mode=mode, threads=1, dtype=case.dtype)
    try:
        with runner.precision(full):
            events = gpu.traced(OURS.build(full, make_data(full)), row.device, calls=CALLS)
    except Exception as error:  # the other walks stand without it
        for walk in walks:
            walk["error"] = f"{type(error).__name__}: {error}"
        return
    times = {name: event.seconds / CALLS * 1e9 for name, event in events.items()}
    by_team = [w for w in walks if w["team"] != "stepwise" and row.device != "cpu"]
    walked = {
        w["pass"]: sum(t for name, t in times.items() if KERNELS[w["pass"]] in name)
        for w in by_team
    }
    others = sum(times.values()) - sum(walked.values())
    for walk in walks:
        found = walked.get(walk["pass"], others / max(1, len(walks) - len(walked)))
        if found:
            walk["measured_ns"] = found / (row.T * row.layers)
        else:
            walk["error"] = f"no kernel is named {KERNELS[walk['pass']]}, among {', '.join(times)}"


def markdown(results: Results) -> str:
    """The whole report."""
    lines = [
        "# A step of every GPU row's walk",
        "",
        f"- {results['gpu'] or 'no GPU: nothing was measured, predictions are for an H200'}; "
        f"commit {results['commit']}, {results['date']}",
        "- predicted: by the model of csrc/cuda/plan.cpp (docs/kernels.md), of all waves; "
        "measured: of the walk's kernels only; without a team, of all others of a call",
        "",
        *gpu_report.walks(results["walks"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
