"""Sides that take turns, what their times say, and the report: for modifiers.py and cells.py.

    case --families--> races --timed--> lines        <name>.json   every figure
                                                     <name>.md     made from it, to read

A family makes the races of a case, and has found that a race's sides compute the same when it
yields it. Each comparison within a race becomes a line of the table. Whatever fails is kept with
its message and ends the run with an error, but the others still count. Both files are written as
figures come.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import machine, runner
from benchmarks.peers import OURS, TORCH_NN
from benchmarks.peers.peer import Step
from benchmarks.report import RESULTS
from benchmarks.tables import NAMES, PASS_NAMES, machine_in_short
from benchmarks.whole import write_whole
from benchmarks.workloads import PASSES, Case, Row, rows_named, several
from fusedrnn.testing import timing
from fusedrnn.testing.parity import check_parity

BUDGET, QUICK_BUDGET = 3.0, 0.8  # seconds for two sides

Results = dict[str, Any]
Steps = dict[str, Step]


@dataclass(frozen=True)
class Target:
    """What a ratio is meant to be.

    If an option should cost `at_most` so much, the ratio is its time over the other side's; if it
    should be worth `at_least` so much, the other side's time over its own.
    """

    at_most: float | None = None
    at_least: float | None = None

    def ratio(self, option: list[float], other: list[float]) -> timing.Spread:
        """The ratio that this is a target for, by two sides' times in every round."""
        return timing.ratio(other, option) if self.at_most else timing.ratio(option, other)

    def met(self, ratio: float) -> bool | None:
        """Whether a ratio is as meant; None if nothing is."""
        if self.at_most:
            return ratio <= self.at_most
        return ratio >= self.at_least if self.at_least else None

    def __str__(self) -> str:
        if self.at_most:
            return f"at most {self.at_most:g}"
        return f"at least {self.at_least:g}" if self.at_least else "-"


@dataclass(frozen=True)
class Comparison:
    """Two of the sides that take turns, by name."""

    option: str
    other: str
    target: Target


@dataclass(frozen=True)
class Race:
    """Sides that take turns, found to compute the same, and what to read from their times."""

    sides: Steps
    comparisons: list[Comparison]


Family = Callable[[Case], Iterable[Race]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is told to a reader of the figures; `sections` makes what follows the table."""

    name: str  # of the module and of both files
    title: str
    explanation: str
    sections: Callable[[Results], list[str]] = lambda results: []


def parser(
    report: Report, help: str | None, *, rows: Sequence[Row], cells: Sequence[str]
) -> argparse.ArgumentParser:
    """The options that every such command has."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{report.name}", description=help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    names = ",".join(row.name for row in rows)
    add = made.add_argument
    add("--rows", type=_some_of(rows), default=list(rows), help=f"some of {names}")
    add("--cells", type=several(cells), default=list(cells), help=f"some of {','.join(cells)}")
    add("--passes", type=several(PASSES), default=list(PASSES), help="some of forward,train")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--budget", type=float, help=f"seconds for two sides, {BUDGET:g} if not given")
    add("--quick", action="store_true", help=f"{QUICK_BUDGET:g} seconds for two sides")
    add("--name", help="folder under benchmarks/results, cpu-<date> if not given")
    add("--dry", action="store_true", help="print only, write nothing")
    return made


def _some_of(rows: Sequence[Row]) -> Callable[[str], list[Row]]:
    """What reads an argument of the command line that names some of these rows."""

    def parse(text: str) -> list[Row]:
        try:
            return rows_named(text.split(","), rows)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def begin(chosen: Iterable[Case], given: argparse.Namespace) -> Results:
    """The results before anything is measured: where it will be, and on what sizes."""
    versions = {peer.name: peer.version() for peer in (OURS, TORCH_NN)}
    return {
        "machine": machine.describe([given.threads], versions), "threads": given.threads,
        "sizes": {case.row.name: case.row.sizes for case in chosen}, "lines": [], "failed": [],
    }  # fmt: skip


def run(
    report: Report,
    results: Results,
    chosen: list[Case],
    families: Sequence[Family],
    given: argparse.Namespace,
) -> int:
    """Measures, prints the table and writes each figure as it comes; 1 if something failed."""
    folder = None
    if not given.dry:
        folder = RESULTS / (given.name or f"cpu-{datetime.date.today().isoformat()}")
    budget = given.budget or (QUICK_BUDGET if given.quick else BUDGET)
    if folder:
        write(report, folder, results)
    torch.set_num_threads(given.threads)
    bar = tqdm(chosen, unit="case", disable=None)
    for case in bar:
        bar.set_description(case.label)
        for family in families:
            try:
                for race in family(case):
                    results["lines"] += lines_of(case, race, budget)
            except Exception as error:  # any failure of one race: the others still count
                name = getattr(family, "__name__", "")
                failed(results, f"{case.label}, {name}", error)
            if folder:
                write(report, folder, results)
    print("\n".join(_tables(report, results)))
    if folder:
        print(f"wrote {folder}")
    return 1 if results["failed"] else 0


def failed(results: Results, what: str, error: Exception) -> None:
    """Keeps what failed and why, and says so."""
    why = f"{what}: {type(error).__name__}: {error}"
    results["failed"].append(why)
    tqdm.write(f"failed: {why}")


def check_same(ours: Step, others: Steps) -> None:
    """Raises ParityError if ours does not compute, roughly, what each of the others does."""
    found = ours.results()
    for name, step in others.items():
        check_parity(found, step.results(), dtype="float32", peer=name)


def lines_of(case: Case, race: Race, budget: float) -> Iterator[Results]:
    """Times a race's sides in turn: what JSON keeps of each comparison."""
    seconds = timing.measure(
        {name: step.repeat for name, step in race.sides.items()},
        budget=budget * len(race.sides) / 2,
        clock=runner.clock_of(case.threads),
    )
    for found in race.comparisons:
        ours, other = seconds[found.option], seconds[found.other]
        ratio = found.target.ratio(ours, other)
        yield {
            "row": case.row.name, "cell": case.cell, "mode": case.mode, "option": found.option,
            "other": found.other, "seconds": timing.spread(ours).as_dict(),
            "other_seconds": timing.spread(other).as_dict(), "ratio": ratio.as_dict(),
            "target": asdict(found.target), "met": found.target.met(ratio.median),
            "rounds": len(ours),
        }  # fmt: skip


def write(report: Report, folder: Path, results: Results) -> None:
    """Both files, of what was measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{report.name}.json", json.dumps(results, indent=1) + "\n")
    write_whole(folder / f"{report.name}.md", markdown(report, results))


def markdown(report: Report, results: Results) -> str:
    """The whole report."""
    judged = [line["met"] for line in results["lines"] if line["met"] is not None]
    rounds = [line["rounds"] for line in results["lines"]]
    lines = [
        f"# {report.title}",
        "",
        *machine_in_short(results),
        f"- {min(rounds, default=0)} to {max(rounds, default=0)} rounds",
        *(f"- row {name}: {sizes}" for name, sizes in results["sizes"].items()),
        "",
        f"{report.explanation} Ratios are medians of the rounds' ratios, with quartiles; times are "
        "medians of a call.",
        "",
        f"{sum(judged)} of {len(judged)} targets are met.",
        "",
        *_tables(report, results),
    ]
    if results["failed"]:
        lines += ["", "## Failed", "", *(f"- {why}" for why in results["failed"])]
    return "\n".join(lines) + "\n"


def _tables(report: Report, results: Results) -> list[str]:
    """A line for each comparison, and what the report has besides."""
    lines = [
        "| row | cell | pass | option | against | ours ms | other ms | ratio | quartiles | target |"
        " met |",
        "|---" * 11 + "|",
    ]
    for line in results["lines"]:
        ours, other = (line[key]["median"] * 1e3 for key in ("seconds", "other_seconds"))
        ratio = line["ratio"]
        lines.append(
            f"| {line['row']} | {NAMES.get(line['cell'], line['cell'].upper())} "
            f"| {PASS_NAMES[line['mode']]} "
            f"| {line['option']} | {line['other']} | {ours:.3g} | {other:.3g} "
            f"| {ratio['median']:.2f} | {ratio['low']:.2f} to {ratio['high']:.2f} "
            f"| {Target(**line['target'])} | {met_in_words(line['met'])} |"
        )
    return lines + report.sections(results)


def met_in_words(met: bool | None) -> str:
    """Whether a target is met, for a table."""
    return {True: "yes", False: "no", None: "-"}[met]
