"""Times the ways of computing networks on a GPU ahead, and keeps which are fastest.

A process that runs such networks later reads it, and measures nothing; otherwise each finds out
while it works. Name the sizes of a problem, or MODEL, a function "package.module:name" that is
called with nothing and returns a model and its input (or a tuple of them); it is run as it is, in
training mode also backward. Without either, the problems of `fusedrnn bench` are timed.

The record stays in the cache of this machine. --output also writes it to a file, which --read takes
on another machine that has the same kind of GPU, driver, CUDA, torch and version of fusedrnn.

The keys of --json:
  kind      the GPU and the versions of what runs on it
  file      where the record is, or null
  rows      network (cell, sizes, dtype and what for, as the record has them), way (fusedrnn or
            torch.nn; null: there is nothing to choose from), seconds (by team or way: of a call,
            with its backward pass in training)
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusedrnn._engine import record
from fusedrnn._engine.cache import Unusable
from fusedrnn._engine.tuning import TUNERS
from fusedrnn._engine.ways import is_on
from fusedrnn.command_line.arguments import (
    DTYPES,
    PROJECTED_CELLS,
    UsageError,
    add_problem,
    cells_for,
    check_device,
    device,
    problem_of,
)
from fusedrnn.command_line.bench import CELLS, PROBLEMS
from fusedrnn.command_line.tables import Table, progress
from fusedrnn.testing.oracles import TORCH_CELLS
from fusedrnn.testing.parity import Case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help='"package.module:function"')
    add_problem(parser)
    parser.add_argument(
        "--cell", choices=TORCH_CELLS, action="append", help=f"may be repeated ({', '.join(CELLS)})"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(float32)")
    parser.add_argument("--device", type=device, default="cuda", help="(cuda)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="writes the record there, too")
    parser.add_argument("--read", type=Path, metavar="FILE", help="takes a record in")


def collect(given: argparse.Namespace) -> dict[str, Any]:
    """What is known afterwards, see --json in the help."""
    check_device(given.device)
    where = torch.device(given.device)
    tuner = TUNERS.get(where.type)
    if tuner is None:
        raise UsageError(f"argument --device: {where}: there is one way only to compute on it")
    if not is_on("FUSEDRNN_TUNE") or tuner.ways.is_overridden():
        raise UsageError("FUSEDRNN_TUNE=0 and FUSEDRNN_PLAN forbid it: unset them")
    of_gpu = tuner.ways.record(tuner.ways.index_of(where))
    if given.read is not None:
        _take(given.read, of_gpu)
        names = [*of_gpu.entries["networks"]]
    else:
        tuner.allowance = math.inf
        before = set(tuner.names)
        _run(given, where)
        names = [name for name in tuner.names if name not in before]
    if given.output is not None:
        try:
            given.output.write_text(of_gpu.text(), encoding="utf-8")
        except OSError as error:  # what was timed is in the cache
            raise UsageError(f"argument --output: {given.output}: {error}") from None
    known = of_gpu.entries["networks"]
    nothing: dict[str, Any] = {"way": None, "seconds": {}}
    rows = [{"network": name} | nothing | known.get(name, {}) for name in names]
    return {"kind": dataclasses.asdict(of_gpu.kind), "file": of_gpu.place, "rows": rows}


def failed(report: Mapping[str, Any]) -> bool:
    """Nothing here can fail."""
    return False


def show(report: Mapping[str, Any]) -> list[Table | str]:
    """The report as a table."""
    kind = report["kind"]
    rows = [
        (
            row["network"],
            row["way"] or "-",
            ", ".join(
                f"{name} {seconds * 1e3:.3g}"
                for name, seconds in sorted(row["seconds"].items(), key=lambda item: item[1])
            ),
        )
        for row in report["rows"]
    ]
    parts: list[Table | str] = [
        Table(f"{kind['gpu']}, driver {kind['driver']}", ("network", "way", "milliseconds"), rows)
    ]
    if report["file"]:
        parts.append(f"The record is {report['file']}.")
    return parts


def _take(file: Path, of_gpu: record.Record) -> None:
    try:
        content = file.read_bytes()
        found = record.entries_of(content, of_gpu.kind)
    except (OSError, Unusable) as error:
        raise UsageError(f"argument --read: {file}: {error}") from None
    if not any(found.values()):
        raise UsageError(
            f"argument --read: {file}: expected a record of {of_gpu.kind} and fusedrnn "
            f"{of_gpu.kind.fusedrnn}, whose library is {of_gpu.kind.library}; got one of something "
            "else"
        )
    for section, entries in found.items():
        of_gpu.add(section, entries)


def _run(given: argparse.Namespace, where: torch.device) -> None:
    problem = problem_of(given)
    if given.model is not None:
        if problem is not None or given.cell:
            raise UsageError("argument MODEL: expected no sizes and no --cell beside it")
        module, inputs = _model(given.model)
        for training in {module.training, False}:
            with torch.set_grad_enabled(training):
                module(*inputs)
        return
    problems = PROBLEMS if problem is None else (problem,)
    wanted = [
        (problem, cell, training)
        for problem in problems
        for cell in cells_for(
            problem, given.cell or (PROJECTED_CELLS if problem.proj_size else CELLS)
        )
        for training in (False, True)
    ]
    for each, cell, training in progress(wanted, "timing"):
        case = Case(
            cell, each.time, each.batch, each.input_size, each.hidden_size, each.layers,
            each.bidirectional, P=each.proj_size, hx=False,
        )  # fmt: skip
        module = case.module(dtype=getattr(torch, given.dtype)).to(where)
        input = case.inputs()["input"].to(next(module.parameters()))
        with torch.set_grad_enabled(training):
            module(input)


def _model(text: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model of a function, and its input."""
    place, _, name = text.partition(":")
    sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        function = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"argument MODEL: {text}: {error}") from None
    finally:
        sys.path.remove(os.getcwd())
    made = function()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise UsageError(
            f"argument MODEL: {text}: expected a pair of a model and its input, got "
            f"{type(made).__name__}"
        )
    module, inputs = made
    return module, inputs if isinstance(inputs, tuple) else (inputs,)
