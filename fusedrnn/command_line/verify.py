"""Holds outputs, states and gradients on this machine to the numbers rule.

Every cell runs in every dtype, plain and in each variant (packed, bidirectional, ...), on every
device found. float64 may differ from torch.nn by 1e-10 of a tensor's largest magnitude; in the
other dtypes the error against torch.nn in float64 may be twice that of torch.nn in that dtype, plus
a floor (fusedrnn/testing/parity.py). A cell that torch.nn lacks is held to plain PyTorch in
its place. The figures are the largest error as a part of what is allowed: above 1 the rule is
broken.

On a CUDA device it first checks all ways of computing a layer that were not checked on this kind of
GPU yet, in a process of their own, and shows the record: a way that did not agree is used by no
call here.

The keys of --json:
  passed    whether all rows passed
  seconds   how long it took
  threads   of the CPU
  skipped   devices, their ways, or instruction sets, that were not checked, and why
  rows      device, capability (the instruction set, null on CUDA), cell, dtype, variant, passed,
            output, states, gradients (largest error over what is allowed; null: none computed or
            not finite), worst (the case and tensor that came closest, or broke the rule by most),
            error (what was raised, or null)
  ways      for each CUDA device: device, kind (the GPU and the versions of what runs on it), file
            (where the record is, or null), ways: cell, team, arithmetic, pass, result (agreed,
            absent: this GPU has no such team, disagreed, faulted, hung), detail, when
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fusedrnn._C import cpu_capabilities, cpu_capability
from fusedrnn._engine.tuning import untuned
from fusedrnn._engine.ways import FAILED, WAYS
from fusedrnn.command_line.arguments import (
    CELL_NAMES,
    DTYPES,
    add_threads,
    check_device,
    cuda_is_missing,
    device,
    threads,
)
from fusedrnn.command_line.tables import Table, progress
from fusedrnn.testing.parity import Case, Error, compare, float32_products

VARIANTS = {
    "plain": Case(hx=False),
    "initial state": Case(),
    "packed": Case(packed="unsorted"),
    "lengths": Case(packed="padded"),
    "bidirectional": Case(bidirectional=True, layers=2),
    "batch first": Case(batch_first=True),
    "projected": Case(P=12),  # where a cell may be
}

Sizes = tuple[int, int, int, int]

SIZES: tuple[Sizes, ...] = (  # T, B, I, H
    (9, 7, 17, 33),  # none is a multiple of a vector
    (3, 1, 40, 130),  # threads share the units
    (20, 24, 24, 48),  # threads share the batch
)
QUICK_SIZES = SIZES[:1]

LEVEL_SECONDS = 600  # before another instruction set's process is given up

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "--cell", choices=CELL_NAMES, action="append", help="only this cell; may be repeated"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, action="append", help="only this dtype; may be repeated"
    )
    parser.add_argument("--device", type=device, help="only cpu or cuda (all that are found)")
    parser.add_argument("--quick", action="store_true", help="one size in place of three")
    parser.add_argument(
        "--all-capabilities",
        action="store_true",
        help="also with every other instruction set of the CPU, each in a process of its own",
    )
    add_threads(parser)


def collect(given: argparse.Namespace) -> dict[str, Any]:
    """All checks, see --json in the help."""
    begin = time.monotonic()
    devices, skipped = [given.device], {}
    if given.device:
        check_device(given.device)
    else:
        devices = ["cpu"]
        if why := cuda_is_missing():
            skipped["cuda"] = why
        else:
            devices.append("cuda")
    wanted = [
        (where, cell, dtype, variant)
        for where in devices
        for cell in given.cell or CELL_NAMES
        for dtype in given.dtype or DTYPES
        for variant, case in VARIANTS.items()
        if case.suits(cell)
    ]
    sizes = QUICK_SIZES if given.quick else SIZES
    # Before anything is computed there: a device that serves one process has room for the check's.
    checked = [ways_on(where, skipped) for where in devices if torch.device(where).type in WAYS]
    with threads(given.threads), float32_products("ieee"), untuned():
        count = torch.get_num_threads()
        rows = [check_one(*which, sizes=sizes) for which in progress(wanted, "checking")]
    if given.all_capabilities and torch.device(devices[0]).type == "cpu":
        levels = [level for level in cpu_capabilities() if level != cpu_capability()]
        for level in progress(levels, "checking other instruction sets"):
            rows += _rows_of_level(level, given)
    elif given.all_capabilities:
        skipped["other instruction sets"] = "the CPU was not asked for"
    return {
        "passed": all(row["passed"] for row in rows)
        and not any(way["result"] in FAILED for found in checked for way in found["ways"]),
        "seconds": round(time.monotonic() - begin, 1),
        "threads": count,
        "skipped": skipped,
        "rows": rows,
        "ways": checked,
    }


def failed(report: Mapping[str, Any]) -> bool:
    """Whether any row broke the rule, or any way did not agree."""
    return not report["passed"]


def show(report: Mapping[str, Any]) -> list[Table | str]:
    """The report as tables, one for each device and instruction set."""
    columns = ("cell", "dtype", "variant", ">output", ">states", ">gradients", "verdict")
    places: dict[str, list[Row]] = {}
    for row in report["rows"]:
        place = f"{row['device']}, {row['capability']}" if row["capability"] else row["device"]
        places.setdefault(place, []).append(row)
    parts: list[Table | str] = [
        Table(
            f"Error over what is allowed, {place}",
            columns,
            [
                (
                    row["cell"], row["dtype"], row["variant"],
                    *(_figure(row, group) for group in ("output", "states", "gradients")),
                    "ok" if row["passed"] else "FAIL",
                )
                for row in rows
            ],
        )
        for place, rows in places.items()
    ]  # fmt: skip
    broken = [row for row in report["rows"] if not row["passed"]]
    parts += [
        f"FAIL {row['device']} {row['cell']} {row['dtype']} {row['variant']}: "
        f"{row['error'] or row['worst']}"
        for row in broken
    ]
    parts += [f"Not checked: {what}: {why}." for what, why in report["skipped"].items()]
    for found in report["ways"]:
        parts += _ways_in_words(found)
    verdict = f"{len(broken)} of {len(report['rows'])} FAILED" if broken else "all passed"
    parts.append(f"{len(report['rows'])} rows, {verdict}, in {report['seconds']:.0f} s.")
    return parts


def check_one(
    where: str, cell: str, dtype: str, variant: str, sizes: tuple[Sizes, ...] = SIZES
) -> Row:
    """One row: a variant of a cell at all sizes. What is raised is a failure of the row."""
    row = _row(where, cell, dtype, variant)
    found: list[tuple[Case, Error]] = []
    try:
        for T, B, I, H in sizes:  # noqa: E741 - the names that a Case has
            case = dataclasses.replace(VARIANTS[variant].of(cell), T=T, B=B, I=I, H=H)
            errors = compare(case, getattr(torch, dtype), where)
            found += [(case, error) for error in errors]
    except Exception as error:  # the other rows still count
        row["error"] = f"{type(error).__name__}: {error}"
        return row
    for group in ("output", "states", "gradients"):
        row[group] = _finite(max(_used(e) for _, e in found if _group(e) == group))
    case, worst = max(found, key=lambda pair: _used(pair[1]))
    row["worst"] = (
        f"{case}: {worst.name}: error {worst.error:.2e}, allowed {worst.allowed:.2e}, "
        f"largest {worst.largest:.2e}"
    )
    row["passed"] = all(error.holds for _, error in found)
    return row


def ways_on(where: str, skipped: dict[str, str]) -> dict[str, Any]:
    """The record of a device's ways, after those were checked that it did not have.

    If some could not be, `skipped` says why afterwards.
    """
    device = torch.device(where)
    of_device = WAYS[device.type]
    index = of_device.index_of(device)
    found = of_device.check(index)
    unchecked = [verdict.detail for verdict in found.values() if verdict.result == "unchecked"]
    if unchecked:
        skipped[f"ways of computing on {where}"] = unchecked[0]
    record = of_device.record(index)
    names = ("cell", "team", "arithmetic", "pass")
    return {
        "device": where,
        "kind": dataclasses.asdict(record.kind),
        "file": record.place,
        "ways": [
            dict(zip(names, key.split(), strict=True)) | entry
            for key, entry in record.entries["ways"].items()
        ],
    }


def _ways_in_words(found: Mapping[str, Any]) -> Iterator[Table | str]:
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for way in found["ways"]:
        row = (way["cell"].partition("#")[0], way["arithmetic"], way["team"])
        rows.setdefault(row, {})[way["pass"]] = way["result"]
        rows[row]["when"] = way["when"][:10]
    kind = found["kind"]
    yield Table(
        f"Ways checked on {found['device']}: {kind['gpu']}, driver {kind['driver']}",
        ("cell", "arithmetic", "team", "forward", "backward", "when"),
        [
            (*row, *(of_row.get(name, "-") for name in ("forward", "backward", "when")))
            for row, of_row in rows.items()
        ],
    )
    for way in found["ways"]:
        if way["result"] in FAILED:
            name = " ".join(way[part] for part in ("cell", "team", "arithmetic", "pass"))
            yield f"FAIL {name}: {way['result']}: {way['detail']}"


def _row(where: str, cell: str, dtype: str, variant: str) -> Row:
    capability = cpu_capability() if torch.device(where).type == "cpu" else None
    return {
        "device": where, "capability": capability, "cell": cell, "dtype": dtype,
        "variant": variant, "passed": False, "output": None, "states": None, "gradients": None,
        "worst": None, "error": None,
    }  # fmt: skip


def _group(error: Error) -> str:
    """Where a tensor of a case is shown."""
    if error.name.startswith("grad of"):
        return "gradients"
    return "output" if error.name == "output" else "states"


def _used(error: Error) -> float:
    return math.inf if math.isnan(error.used) else error.used


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _figure(row: Row, group: str) -> str:
    if row["error"]:
        return "-"
    return "not finite" if row[group] is None else f"{row[group]:.2f}"


def _rows_of_level(level: str, given: argparse.Namespace) -> list[Row]:
    """The CPU's rows in a process whose kernels are of another instruction set."""
    command = [sys.executable, "-m", "fusedrnn", "verify", "--json", *_again(given)]
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = {"FUSEDRNN_CPU_CAPABILITY": level, "PYTHONPATH": paths}
    row = _row("cpu", "all", "all", "all") | {"capability": level}
    try:
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True,
            timeout=LEVEL_SECONDS,
        )  # fmt: skip
        rows: list[Row] = json.loads(done.stdout)["rows"]
    except subprocess.TimeoutExpired:
        return [row | {"error": f"not done in {LEVEL_SECONDS} s"}]
    except ValueError:
        return [row | {"error": f"exit status {done.returncode}: {done.stderr[-500:]}"}]
    if any(found["capability"] != level for found in rows):
        return [row | {"error": f"ran with {rows[0]['capability']}"}]
    return rows


def _again(given: argparse.Namespace) -> Iterator[str]:
    yield from ("--device", "cpu")
    for name in ("cell", "dtype"):
        for value in getattr(given, name) or ():
            yield from (f"--{name}", value)
    if given.quick:
        yield "--quick"
    if given.threads:
        yield from ("--threads", str(given.threads))
