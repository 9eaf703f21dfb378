"""`python -m benchmarks.cells`: what cells written in Python reach.

    benchmarks/results/<name>/cells.json   every figure
                              cells.md     made from it, to read

A layer of such a cell, `fusedrnn.Recurrent`, is compared with what does the same without it:

    rows A, B, D, J      the LSTM and GRU of the zoo: against fusedrnn.LSTM and GRU, whose cells are
                         built in; as much as these, if it costs nothing that a cell is a program
    rows A, B, C, D, K   the MGU: against the loop that one writes in PyTorch (peers/loops.py)
                         each of these twice: interpreted, and compiled if there is a compiler
    row B                the MGU, with `--compile`: against that loop under torch.compile, and how
                         long that takes to compile
    row B                the MGU: seconds that it takes to define and to call for the first time, in
                         a process of its own (first_call.py)

Both sides of a comparison take turns in one run, as everywhere (fusedrnn/testing/timing.py), and
first it is checked that what they compute is the same. It takes about 3:20 minutes, one with
`--quick`, and with `--compile` as much more as compiling takes.
"""

from __future__ import annotations

import functools
import os
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch

import fusedrnn
from benchmarks import first_call, races
from benchmarks.peers import OURS
from benchmarks.peers.loops import MGU
from benchmarks.peers.modules import step_of
from benchmarks.peers.peer import Data, Step, make_data, module_arguments
from benchmarks.races import Comparison, Race, Report, Results, Target, check_same
from benchmarks.tables import PASS_NAMES
from benchmarks.workloads import ROWS, Case, Row, rows_named
from fusedrnn._engine import compiling
from fusedrnn.cells.zoo import ZOO
from fusedrnn.testing import timing

OF_BUILT_IN = {  # by way and pass
    "interpreted": {"forward": Target(at_least=0.95), "train": Target(at_least=0.93)},
    "compiled": {"forward": Target(at_least=0.98), "train": Target(at_least=0.98)},
}
OF_LOOP = {
    "A": Target(at_least=8), "B": Target(at_least=2.2), "C": Target(at_least=4),
    "D": Target(at_least=2.2), "K": Target(at_least=8),
}  # fmt: skip
BUILT_IN = ("A", "B", "D", "J")
ROWS_OF = {"lstm": BUILT_IN, "gru": BUILT_IN, "mgu": tuple(OF_LOOP)}  # cells of the zoo
MEASURED: tuple[Row, ...] = tuple(row for row in ROWS if row.name in (*BUILT_IN, *OF_LOOP))
BY_COMPILER = "B"  # the row whose loop is compiled, which takes a minute
FIRST = rows_named(["B"])[0]
MOST = 1.0  # seconds until a new cell has been called once
MOST_COMPILED = 15.0  # and until compiled code runs it


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the tables and writes them; 1 if something failed."""
    parser = races.parser(REPORT, __doc__, rows=MEASURED, cells=[*ROWS_OF])
    parser.add_argument("--compile", action="store_true", help="also against torch.compile")
    given = parser.parse_args(arguments)
    chosen = [
        Case(row=row, cell=cell, mode=mode, threads=given.threads)
        for cell in given.cells
        for row in given.rows
        if row.name in ROWS_OF[cell]
        for mode in given.passes
    ]
    results = races.begin(chosen, given)
    results["first_calls"] = []
    for mode in given.passes:
        try:
            results["first_calls"].append(first_calls(mode, given.threads, quick=given.quick))
        except Exception as error:  # the races still count
            races.failed(results, f"first call, {mode}", error)
    families = (against_built_in, against_loop, *([against_compiler] if given.compile else []))
    return races.run(REPORT, results, chosen, families, given)


def against_built_in(case: Case) -> Iterator[Race]:
    """A cell of torch.nn's, written, and as the kernels have it built in."""
    if case.cell == "mgu":
        return
    data = make_data(case)
    built_in = {f"fusedrnn.{case.facts.module}": OURS.build(case, data)}
    yield race(case, data, built_in, {way: of[case.mode] for way, of in OF_BUILT_IN.items()})


def against_loop(case: Case) -> Iterator[Race]:
    """A cell that torch.nn has not, and the loop that one writes instead."""
    if case.cell != "mgu":
        return
    data = data_of_written(case)
    loop = {"a loop over the steps": step_of(case, MGU(case.row.I, case.row.H), data)}
    yield race(case, data, loop, dict.fromkeys(OF_BUILT_IN, OF_LOOP[case.row.name]))


def against_compiler(case: Case) -> Iterator[Race]:
    """The same with the loop compiled, from scratch."""
    if case.cell != "mgu" or case.row.name != BY_COMPILER:
        return
    data = data_of_written(case)
    loop = MGU(case.row.I, case.row.H)
    loop.compile(fullgraph=True, dynamic=False)
    step = step_of(case, loop, data)
    begin = time.perf_counter()
    with warnings.catch_warnings(), torch.compiler.config.patch(force_disable_caches=True):
        warnings.simplefilter("ignore")  # torch's, that there are no caches
        step.results()
    seconds = time.perf_counter() - begin
    compiled = {f"the loop, torch.compile ({seconds:.0f} s to compile)": step}
    yield race(case, data, compiled, dict.fromkeys(OF_BUILT_IN, Target()))


def data_of_written(case: Case) -> Data:
    """A case's data, if its cell is one that only the zoo has."""
    return make_data(case, partial(fusedrnn.Recurrent, ZOO[case.cell]))


def race(case: Case, data: Data, other: dict[str, Step], targets: dict[str, Target]) -> Race:
    """The written cell, each way, against one other side that computes the same."""
    (name,) = other
    ours = {}
    for way, program in ways(case.cell).items():
        layer = fusedrnn.Recurrent(program, **module_arguments(case.row))
        ours[f"{case.cell}, {way}"] = step_of(case, layer, data)
        check_same(ours[f"{case.cell}, {way}"], other)
    comparisons = [
        Comparison(side, name, target) for side, target in zip(ours, targets.values(), strict=False)
    ]
    return Race({**ours, **other}, comparisons)


@functools.cache
def ways(cell: str) -> dict[str, str]:
    """The program of a cell of the zoo for each way that runs it here."""
    program = ZOO[cell].program
    found = {"interpreted": program.replace(f" {cell}\n", f" {cell}_interpreted\n", 1)}
    with mock.patch.dict(os.environ, FUSEDRNN_CELL_COMPILE="0"):
        compiling.wanted(found["interpreted"], torch.float32)
    try:
        ZOO[cell].compile()
    except RuntimeError as error:
        print(f"{cell}: {error}", file=sys.stderr)
    else:
        found["compiled"] = program
    return found


def first_calls(mode: str, threads: int, *, quick: bool) -> Results:
    """What JSON keeps of defining the MGU and of its first calls."""
    found = first_call.measure(
        FIRST, mode=mode, threads=threads, processes=1 if quick else first_call.PROCESSES
    )
    called = [each["define"] + each["layer"] + each["first"] for each in found]
    until = timing.spread(called)
    until_compiled = timing.spread(
        [a + each["second"] + each["compiled"] for a, each in zip(called, found, strict=True)]
    )
    medians = {part: timing.spread([each[part] for each in found]).median for part in found[0]}
    return {
        "row": FIRST.name, "mode": mode, "seconds": medians, "until_called": until.as_dict(),
        "until_compiled": until_compiled.as_dict(), "processes": len(found),
        "at_most": MOST, "at_most_compiled": MOST_COMPILED,
        "met": until.median <= MOST and until_compiled.median <= MOST_COMPILED,
    }  # fmt: skip


def first_calls_section(results: Results) -> list[str]:
    """A line for each pass."""
    if not results["first_calls"]:
        return []
    return [
        "",
        f"## Defining a cell (the MGU) and calling it, row {FIRST.name}: {FIRST.sizes}",
        "",
        "In a fresh process that has imported torch and fusedrnn; the median of several.",
        "",
        "| pass | define ms | make a layer ms | first call ms | second call ms "
        "| until called once s | until compiled s | in the next process ms | targets | met |",
        "|---" * 10 + "|",
        *map(_first_calls_line, results["first_calls"]),
    ]


def _first_calls_line(found: dict[str, Any]) -> str:
    seconds = found["seconds"]
    parts = " | ".join(f"{seconds[part] * 1e3:.3g}" for part in first_call.PARTS[:-1])
    return (
        f"| {PASS_NAMES[found['mode']]} | {parts} | {found['until_called']['median']:.3g} "
        f"| {found['until_compiled']['median']:.3g} | {seconds['cached'] * 1e3:.3g} "
        f"| at most {found['at_most']:g} and {found['at_most_compiled']:g} s "
        f"| {races.met_in_words(found['met'])} |"
    )


REPORT = Report(
    name="cells",
    title="What cells written in Python reach",
    explanation=(
        "Layers of one cell in float32, inference or a training step (forward, backward). The "
        "ratio is the other side's time over ours: against fusedrnn.LSTM and GRU, 1 means that a "
        "cell of one's own is as fast as a built-in one; against a loop, how many times faster "
        "than it the cell is."
    ),
    sections=first_calls_section,
)


if __name__ == "__main__":
    sys.exit(main())
