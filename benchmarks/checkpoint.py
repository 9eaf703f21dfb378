"""`python -m benchmarks.checkpoint`: what `checkpoint=k` costs in time and saves in memory.

    benchmarks/results/<name>/checkpoint.json   every figure
                              checkpoint.md     made from it, to read
                              checkpoint.png    made from it, to look at

It runs a training step (forward, backward) of LSTM and GRU on rows J and D, without checkpoints and
with k from 4 to T; beside it `torch.nn`, without checkpoints and with `torch.utils.checkpoint`
around chunks of k steps. All sides take turns, as everywhere (fusedrnn/testing/timing.py); peak
memory is measured by memory.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import figures, machine, memory, runner
from benchmarks.figures import Label
from benchmarks.peers import OURS, TORCH_NN, Peer, checkpointed, checkpointed_torch
from benchmarks.peers.peer import make_data
from benchmarks.report import RESULTS
from benchmarks.tables import NAMES, TITLES, machine_in_short, threads_in_words
from benchmarks.whole import write_whole
from benchmarks.workloads import FACTS, Case, rows_named
from fusedrnn.testing import timing
from fusedrnn.testing.parity import check_parity

ROWS = ("J", "D")
CELLS = tuple(name for name, cell in FACTS.items() if cell.saved)
STEPS = (4, 8, 16, 32, 64)  # and T
BUDGET, QUICK_BUDGET = 60.0, 15.0  # seconds for all sides of a row and a cell
SIDES = figures.looks_of([TORCH_NN.name, OURS.name])

Results = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; 1 if something failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--rows", type=lambda text: text.split(","), default=list(ROWS), help="names: J,D")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--quick", action="store_true", help="fewer rounds, one process for each memory figure")
    add("--name", help="folder under benchmarks/results, cpu-<date> if not given")
    given = parser.parse_args(arguments)
    try:
        rows = rows_named(given.rows)
    except ValueError as error:
        parser.error(str(error))
    folder = RESULTS / (given.name or f"cpu-{datetime.date.today().isoformat()}")
    versions = {peer.name: peer.version() for peer in (OURS, TORCH_NN)}
    results: Results = {
        "machine": machine.describe([given.threads], versions), "threads": given.threads,
        "quick": given.quick, "curves": [],
    }  # fmt: skip
    for row in rows:
        for cell in CELLS:
            case = Case(row=row, cell=cell, mode="train", threads=given.threads)
            results["curves"].append(curve(case, quick=given.quick))
            write(folder, results)
    print(table(results))
    print(f"wrote {folder}")
    return 1 if any("error" in curve for curve in results["curves"]) else 0


def curve(case: Case, *, quick: bool) -> Results:
    """Time and memory of every side of a case."""
    row = case.row
    sides: dict[str, Peer] = {OURS.name: OURS, TORCH_NN.name: TORCH_NN}
    for k in (*(k for k in STEPS if k < row.T), row.T):
        for peer in (checkpointed(k), checkpointed_torch(k)):
            sides[peer.name] = peer
    torch.set_num_threads(case.threads)
    data = make_data(case)
    steps = {name: peer.build(case, data) for name, peer in sides.items()}
    expected = steps[OURS.name].results()
    for name, step in steps.items():
        check_parity(step.results(), expected, dtype=case.dtype, peer=name)
    seconds = timing.measure(
        {name: step.repeat for name, step in steps.items()},
        budget=QUICK_BUDGET if quick else BUDGET,
        clock=runner.clock_of(case.threads),
    )
    without = seconds[OURS.name]
    processes = 1 if quick else memory.PROCESSES
    peaks = memory.measure_sides([*sides], row.name, case.cell, case.threads, processes=processes)
    found: Results = {"row": row.name, "sizes": row.sizes, "cell": case.cell, "sides": {}}
    if "error" in peaks:
        return found | {"error": peaks["error"]}
    for name, samples in seconds.items():
        found["sides"][name] = {
            "seconds": timing.spread(samples).as_dict(),
            "ratio": timing.ratio(without, samples).as_dict(),
            "bytes": peaks["peak_bytes"][name],
        }
    return found | {"rounds": len(without), "T": row.T}


def write(folder: Path, results: Results) -> None:
    """All three files, of what was measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "checkpoint.json", json.dumps(results, indent=1) + "\n")
    remake(folder)


def remake(folder: Path) -> None:
    """Makes the Markdown and the picture from the JSON."""
    results = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.md").write_text(markdown(results))
    if picture := figure(results):
        figures.save(picture, folder / "checkpoint.png")


def table(results: Results) -> str:
    """A line for each row, cell and k."""
    lines = [
        "| row | cell | k | ms | time | MB | memory | torch.nn ms | time | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in results["curves"]:
        name = f"| {TITLES[found['row']]} | {NAMES[found['cell']]} "
        if "error" in found:
            lines.append(f"{name}| {found['error']} | | | | | | | |")
            continue
        base = found["sides"][OURS.name]["bytes"]
        for k, ours, theirs in _pairs(found):
            lines.append(
                f"{name}| {k} | {ours['seconds']['median'] * 1e3:.3g} "
                f"| {ours['ratio']['median']:.2f} | {ours['bytes'] / 2**20:.1f} "
                f"| {ours['bytes'] / base:.2f} | {theirs['seconds']['median'] * 1e3:.3g} "
                f"| {theirs['ratio']['median']:.2f} | {theirs['bytes'] / 2**20:.1f} |"
            )
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """The whole report."""
    rounds = [str(found["rounds"]) for found in results["curves"] if "rounds" in found]
    sizes = {TITLES[found["row"]]: found["sizes"] for found in results["curves"]}
    lines = [
        "# Training with `checkpoint=k`: time for memory",
        "",
        *machine_in_short(results),
        f"- {', '.join(rounds)} rounds; memory: {'one process' if results['quick'] else 'median'}",
        *(f"- {row}: {text}" for row, text in sizes.items()),
        "",
        "A training step (forward, backward) in float32. `time` and `memory` are relative to "
        "fusedrnn without checkpoints; MB is what the process grew by over three steps. The last "
        "columns: `torch.nn`, with `torch.utils.checkpoint` around chunks of k steps.",
        "",
        table(results),
        "",
        "![time over memory](checkpoint.png)",
    ]
    return "\n".join(lines) + "\n"


def figure(results: Results) -> Figure | None:
    """A panel for each row and cell: time over memory, a point for each k."""
    curves = [found for found in results["curves"] if "error" not in found]
    if not curves:
        return None
    columns = min(len(CELLS), len(curves))
    lines = math.ceil(len(curves) / columns)
    where = f"{results['machine']['cpu']}, {threads_in_words(results['threads'])}"
    title = f"Training with checkpoint=k, time for memory: {where}"
    drawn = figures.blank(title, width=5.5 * columns, height=0.9 + 4 * lines)
    labels = {}
    for i, found in enumerate(curves, start=1):
        panel = drawn.add_subplot(lines, columns, i)
        panel.set_title(f"{TITLES[found['row']]}, {NAMES[found['cell']]}: {found['sizes']}")
        labels[panel] = _draw(panel, found)
    figures.legend(drawn, _legend())
    figures.place(drawn, labels)
    return drawn


def _draw(panel: Axes, found: Results) -> list[Label]:
    """A curve for each side, and one hollow point without checkpoints; the labels of its points."""
    pairs, labels = _pairs(found), []
    ours, theirs = [ours for _, ours, _ in pairs], [theirs for *_, theirs in pairs]
    for side, records in ((OURS.name, ours), (TORCH_NN.name, theirs)):
        look = SIDES[side]
        at = [record["bytes"] / 2**20 for record in records]
        times = [record["seconds"]["median"] * 1e3 for record in records]
        panel.plot(at[:1], times[:1], ls="none", **look.hollow)
        panel.plot(at[1:], times[1:], ls=look.line, color=look.colour, **look.marked)
        points = zip(pairs[1:], at[1:], times[1:], strict=True)
        labels += [Label(k, x, y) for (k, *_), x, y in points]
    panel.set_xlabel("peak memory of a training step, MB")
    panel.set_ylabel("time of a training step, ms")
    panel.margins(0.1)  # for labels at the edge
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.4)
    figures.tidy(panel)
    return labels


def _legend() -> Iterator[Line2D]:
    for side, look in SIDES.items():
        yield Line2D([], [], ls=look.line, color=look.colour, label=f"{side}, k beside each point",
                     **look.marked)  # fmt: skip
        yield Line2D([], [], ls="none", label=f"{side}, no checkpoints", **look.hollow)


def _pairs(found: Results) -> list[tuple[str, Results, Results]]:
    """(k, ours, torch.nn's), the sides without checkpoints first."""
    sides = found["sides"]
    ks = [name.partition("=")[2] for name in sides if name.startswith(f"{OURS.name} ")]
    pairs = [("none", sides[OURS.name], sides[TORCH_NN.name])]
    for k in ks:
        ours, theirs = (sides[f"{peer} checkpoint={k}"] for peer in (OURS.name, TORCH_NN.name))
        pairs.append((f"{k} = T" if k == str(found["T"]) else k, ours, theirs))
    return pairs


if __name__ == "__main__":
    sys.exit(main())
