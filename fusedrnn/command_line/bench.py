"""Times fusedrnn against torch.nn, both in turn in one process.

Without sizes it takes two problems: sentences of embedded words, and filter banks of speech through
two bidirectional layers. Each pass is timed after its results were found to be torch.nn's.
"ratio" is how many times faster fusedrnn is: the median of the rounds' ratios, with its quartiles
(fusedrnn/testing/timing.py says why). "forward" is inference; "forward+backward" has the gradients
of the input and of all parameters. Other work on the machine makes the quartiles wide.

The keys of --json:
  versions  as of `fusedrnn info`
  cpu       the processor's model
  gpu       the CUDA device's name, null on the CPU
  device, dtype, threads, budget
  rows      problem (its sizes), cell, pass, rounds, and as median, low and high (the quartiles):
            fusedrnn_seconds, torch_seconds, ratio; error (what was raised, or null, and then no
            figures: null)
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import fusedrnn
from fusedrnn.command_line.arguments import (
    DTYPES,
    PROJECTED_CELLS,
    Problem,
    add_problem,
    add_threads,
    cells_for,
    check_device,
    device,
    problem_of,
    seconds,
    threads,
)
from fusedrnn.command_line.info import cpu_model, versions
from fusedrnn.command_line.tables import Table, progress
from fusedrnn.testing.oracles import TORCH_CELLS, TORCH_MODULES
from fusedrnn.testing.parity import Case, check_parity
from fusedrnn.testing.timing import Repeat, finished, measure, ratio, spread

PROBLEMS = (
    Problem(time=256, batch=32, input_size=100, hidden_size=128),
    Problem(time=200, batch=16, input_size=80, hidden_size=512, layers=2, bidirectional=True),
)
"""Rows D and F of the project's own benchmark."""

CELLS = tuple(TORCH_MODULES.values())
PROJECTED = tuple(cell for cell in CELLS if cell in PROJECTED_CELLS)
PASSES = ("forward", "forward+backward")
BUDGET = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    add_problem(parser)
    parser.add_argument(
        "--cell",
        choices=TORCH_CELLS,
        action="append",
        help=f"may be repeated ({', '.join(CELLS)}; {', '.join(PROJECTED)} with a projection)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(float32)")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument(
        "--budget", type=seconds, default=BUDGET, metavar="S",
        help=f"seconds in all, about ({BUDGET:.0f}); large problems take what they need",
    )  # fmt: skip
    add_threads(parser)


def collect(given: argparse.Namespace) -> dict[str, Any]:
    """All times, see --json in the help."""
    problem = problem_of(given)
    check_device(given.device)
    problems = PROBLEMS if problem is None else (problem,)
    wanted = [
        (problem, cell, name)
        for problem in problems
        for cell in cells_for(problem, given.cell or (PROJECTED if problem.proj_size else CELLS))
        for name in PASSES
    ]
    budget = given.budget / len(wanted)
    with threads(given.threads):
        count = torch.get_num_threads()
        rows = [
            time_one(*which, given.dtype, given.device, budget)
            for which in progress(wanted, "timing")
        ]
    on_gpu = torch.device(given.device).type == "cuda"
    return {
        "versions": versions(),
        "cpu": cpu_model(),
        "gpu": torch.cuda.get_device_name(given.device) if on_gpu else None,
        "device": given.device,
        "dtype": given.dtype,
        "threads": count,
        "budget": given.budget,
        "rows": rows,
    }


def failed(report: Mapping[str, Any]) -> bool:
    """Whether a row could not be timed."""
    return any(row["error"] for row in report["rows"])


def show(report: Mapping[str, Any]) -> list[Table | str]:
    """The report as a table."""
    count = report["threads"]
    where = report["gpu"] or f"{report['cpu']}, {count} thread{'s' if count > 1 else ''}"
    columns = ("problem", "cell", "pass", ">fusedrnn ms", ">torch.nn ms", ">ratio", "quartiles")
    rows = []
    for row in report["rows"]:
        figures = ("-",) * 4
        if not row["error"]:
            found = row["ratio"]
            figures = (
                f"{row['fusedrnn_seconds']['median'] * 1e3:.3g}",
                f"{row['torch_seconds']['median'] * 1e3:.3g}",
                f"{found['median']:.2f}",
                f"{found['low']:.2f} to {found['high']:.2f}",
            )
        rows.append((str(Problem(**row["problem"])), row["cell"], row["pass"], *figures))
    title = f"{report['dtype']}, {where}, torch {report['versions']['torch']}"
    parts: list[Table | str] = [Table(title, columns, rows)]
    parts += [
        f"{Problem(**row['problem'])} {row['cell']} {row['pass']} failed: {row['error']}"
        for row in report["rows"]
        if row["error"]
    ]
    return parts


def time_one(
    problem: Problem, cell: str, name: str, dtype: str, where: str, budget: float
) -> dict[str, Any]:
    """One row: a pass of a problem. What is raised is kept in the row."""
    row: dict[str, Any] = {
        "problem": problem.as_dict(), "cell": cell, "pass": name, "rounds": None,
        "fusedrnn_seconds": None, "torch_seconds": None, "ratio": None, "error": None,
    }  # fmt: skip
    case = Case(
        cell=cell, T=problem.time, B=problem.batch, I=problem.input_size, H=problem.hidden_size,
        layers=problem.layers, bidirectional=problem.bidirectional, P=problem.proj_size, hx=False,
    )  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.nn's, that oneDNN has no projections
            samples = _samples(case, name == PASSES[1], dtype, where, budget)
    except Exception as error:  # no memory, perhaps; the other rows still count
        return row | {"error": f"{type(error).__name__}: {error}"}
    ours, theirs = samples["fusedrnn"], samples["torch.nn"]
    return row | {
        "rounds": len(ours),
        "fusedrnn_seconds": spread(ours).as_dict(),
        "torch_seconds": spread(theirs).as_dict(),
        "ratio": ratio(ours, theirs).as_dict(),
    }


def _samples(
    case: Case, grads: bool, dtype: str, where: str, budget: float
) -> dict[str, list[float]]:
    inputs = case.inputs()
    modules = {
        name: case.module(package, getattr(torch, dtype)).to(where).train(grads)
        for name, package in (("fusedrnn", fusedrnn), ("torch.nn", nn))
    }
    ours, theirs = (case.run(module, inputs, grads) for module in modules.values())
    # On a GPU torch.nn rounds float32 products to tf32 where the program lets it, and so do we.
    bound = "tf32" if dtype == "float32" and torch.device(where).type == "cuda" else dtype
    check_parity(ours, theirs, dtype=bound, peer="torch.nn")
    del ours, theirs
    sides = {
        name: finished(_repeat(module, inputs["input"], grads), where)
        for name, module in modules.items()
    }
    return measure(sides, budget=budget)


def _repeat(module: nn.Module, inputs: torch.Tensor, grads: bool) -> Repeat:
    weight = next(module.parameters())
    x = inputs.to(weight).requires_grad_(grads)
    leaves = [x, *module.parameters()] if grads else []
    with torch.no_grad():
        gradient = torch.randn_like(module(x)[0])

    def repeat(calls: int) -> None:
        with torch.set_grad_enabled(grads):
            for _ in range(calls):
                output, _ = module(x)
                if grads:
                    torch.autograd.grad(output, leaves, gradient)

    return repeat
