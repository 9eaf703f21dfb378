"""`python -m benchmarks.modifiers`: what resets, lengths, dropouts and all states cost.

    benchmarks/results/<name>/modifiers.json   every figure
                              modifiers.md     made from it, to read

torch.nn's layers have none of these, so a layer is compared with itself without the option, which
says what it costs, and with what a program does that has torch.nn only (peers/loops.py), which
says what it is worth:

    row R            resets of probability 0.01 and 0.1: against none; against a cell for each step,
                     and a layer for each stretch of steps without a reset
    rows D, I and J  lengths uniform in 1..T: against none. In training, each dropout, and the
                     states after every step, as part of the loss: against none

Both sides of a comparison take turns in one run, as everywhere (fusedrnn/testing/timing.py), and
first it is checked that what they compute is the same. A dropout has no second side that would
draw the same, so there it is checked that it draws. It takes about seven minutes, three with
`--quick`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import machine, runner
from benchmarks.peers import OURS, TORCH_NN
from benchmarks.peers.loops import Padded, SplitAtResets, StepByStep, With
from benchmarks.peers.modules import ModulePeer, TrainingStepOfStates, step_of
from benchmarks.peers.peer import SEED, Data, Step, make_data
from benchmarks.report import RESULTS, write_whole
from benchmarks.tables import NAMES, PASS_NAMES, machine_in_short
from benchmarks.workloads import CELLS, PASSES, ROWS, Case, Row, cases, rows_named, several
from fusedrnn.testing import timing
from fusedrnn.testing.parity import ParityError, check_parity

MEASURED: tuple[Row, ...] = tuple(row for row in ROWS if row.name in ("D", "I", "J", "R"))
RESETS = (0.01, 0.1)
DROPOUTS: tuple[dict[str, Any], ...] = (
    {"input_dropout": 0.25},
    {"input_dropout": 0.25, "dropout_mask": "step"},
    {"output_dropout": 0.25},
    {"output_dropout": 0.25, "dropout_mask": "step"},
    {"recurrent_dropout": 0.25},
    {"recurrent_dropout": 0.25, "dropout_mask": "step"},
    {"zoneout": 0.1},
    {"weight_dropout": 0.25},
)
NONE = "without"  # the layer itself, without the option
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


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; 1 if something failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.modifiers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--rows", type=lambda text: text.split(","), default=["*"], help="some of D,I,J,R")
    add("--cells", type=several(CELLS), default=list(CELLS), help=f"some of {','.join(CELLS)}")
    add("--passes", type=several(PASSES), default=list(PASSES), help="some of forward,train")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--budget", type=float, help=f"seconds for two sides, {BUDGET:g} if not given")
    add("--quick", action="store_true", help=f"{QUICK_BUDGET:g} seconds for two sides")
    add("--name", help="folder under benchmarks/results, cpu-<date> if not given")
    add("--dry", action="store_true", help="print only, write nothing")
    given = parser.parse_args(arguments)
    try:
        rows = rows_named(given.rows, MEASURED)
    except ValueError as error:
        parser.error(str(error))
    chosen = cases(
        rows, cells=given.cells, modes=given.passes, threads=[given.threads], dtypes=["float32"]
    )
    folder = None
    if not given.dry:
        folder = RESULTS / (given.name or f"cpu-{datetime.date.today().isoformat()}")
    budget = given.budget or (QUICK_BUDGET if given.quick else BUDGET)
    results = run(chosen, folder, threads=given.threads, budget=budget)
    print(table(results))
    if folder:
        print(f"wrote {folder}")
    return 1 if results["failed"] else 0


def run(chosen: list[Case], folder: Path | None, *, threads: int, budget: float) -> Results:
    """Measures, and keeps each figure in `folder` as it comes."""
    versions = {peer.name: peer.version() for peer in (OURS, TORCH_NN)}
    results: Results = {
        "machine": machine.describe([threads], versions), "threads": threads,
        "sizes": {case.row.name: case.row.sizes for case in chosen}, "lines": [], "failed": [],
    }  # fmt: skip
    torch.set_num_threads(threads)
    bar = tqdm(chosen, unit="case", disable=None)
    for case in bar:
        bar.set_description(case.label)
        for races in (resets, lengths, dropouts, states):
            try:
                for race in races(case):
                    results["lines"] += lines_of(case, race, budget)
            except Exception as error:  # any failure of one race: the others still count
                why = f"{case.label}, {races.__name__}: {type(error).__name__}: {error}"
                results["failed"].append(why)
                tqdm.write(f"failed: {why}")
            if folder:
                write(folder, results)
    return results


def resets(case: Case) -> Iterator[Race]:
    """Resets at random steps, more or less often."""
    if not case.row.resets:
        return
    data, name = make_data(case), case.facts.module
    for probability in RESETS:
        reset = reset_of(replace(case.row, resets=probability))
        option = f"reset, {probability:g}"
        ours = step_of(case, With(OURS.module(case), reset=reset), data)
        modules = {
            f"torch.nn.{name}Cell for each step": StepByStep(TORCH_NN.module(case), reset=reset),
            f"torch.nn.{name}, split at resets": SplitAtResets(TORCH_NN.module(case), reset),
            f"fusedrnn.{name}, split at resets": SplitAtResets(OURS.module(case), reset),
        }
        loops = {side: step_of(case, module, data) for side, module in modules.items()}
        check_same(ours, loops)
        yield Race(
            {option: ours, NONE: OURS.build(case, data)},
            [Comparison(option, NONE, Target(at_most=1.05))],
        )
        targets = (Target(at_least=5), Target(at_least=2), Target())
        yield Race(
            {option: ours, **loops},
            [Comparison(option, loop, t) for loop, t in zip(loops, targets, strict=True)],
        )


def reset_of(row: Row) -> torch.Tensor:
    """Which steps [T, B] begin anew, by a fixed draw."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.rand(row.T, row.B, generator=generator) < row.resets


def lengths(case: Case) -> Iterator[Race]:
    """Padded sequences, which have half of the steps if they are uniform."""
    if case.row.resets:
        return
    data = make_data(case)
    given = torch.tensor(replace(case.row, packed=True).lengths)
    option = f"lengths, {given.sum() / (case.row.T * case.row.B):.0%} of the steps"
    ours = step_of(case, With(OURS.module(case), lengths=given), data)
    packed = step_of(case, Padded(TORCH_NN.module(case), given), data)
    check_same(ours, {"torch.nn, packed": packed})
    yield Race(
        {option: ours, NONE: OURS.build(case, data)},
        [Comparison(option, NONE, Target(at_most=0.65))],
    )


def dropouts(case: Case) -> Iterator[Race]:
    """All dropouts, in training."""
    if case.row.resets or case.mode != "train":
        return
    data = make_data(case)
    sides = {}
    for options in DROPOUTS:
        name = ", ".join(f"{key}={value!r}" for key, value in options.items())
        peer = ModulePeer(name, namespace="fusedrnn", package="fusedrnn", **options)
        sides[name] = peer.build(case, data)
        check_draws(sides[name], name)
    yield against_none(case, data, sides)


def states(case: Case) -> Iterator[Race]:
    """The states after every step, in training, with a gradient each."""
    if case.row.resets or case.mode != "train":
        return
    data = make_data(case)
    steps = []
    for module in (
        With(OURS.module(case), return_states=True),
        StepByStep(TORCH_NN.module(case), return_states=True),
    ):
        module.load_state_dict(data.weights)
        steps.append(TrainingStepOfStates(module, data))
    ours, loop = steps
    check_same(ours, {f"torch.nn.{case.facts.module}Cell for each step": loop})
    yield against_none(case, data, {"return_states": ours})


def against_none(case: Case, data: Data, sides: Steps) -> Race:
    """Sides that each cost a little beside the layer itself, if that."""
    return Race(
        {NONE: OURS.build(case, data), **sides},
        [Comparison(name, NONE, Target(at_most=1.15)) for name in sides],
    )


def check_same(ours: Step, others: Steps) -> None:
    """Raises ParityError if ours does not compute, roughly, what each of the others does."""
    found = ours.results()
    for name, step in others.items():
        check_parity(found, step.results(), dtype="float32", peer=name)


def check_draws(step: Step, name: str) -> None:
    """Raises ParityError if two calls give the same output."""
    first, second = (step.results()["output"] for _ in range(2))
    if torch.equal(first, second):
        raise ParityError(f"output: expected another at each call with {name}, got the same twice")


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


def write(folder: Path, results: Results) -> None:
    """Both files, of what was measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "modifiers.json", json.dumps(results, indent=1) + "\n")
    write_whole(folder / "modifiers.md", markdown(results))


def markdown(results: Results) -> str:
    """The whole report."""
    judged = [line["met"] for line in results["lines"] if line["met"] is not None]
    rounds = [line["rounds"] for line in results["lines"]]
    lines = [
        "# What resets, lengths, dropouts and all states cost",
        "",
        *machine_in_short(results),
        f"- {min(rounds, default=0)} to {max(rounds, default=0)} rounds",
        *(f"- row {name}: {sizes}" for name, sizes in results["sizes"].items()),
        "",
        "A layer in float32, inference or a training step (forward, backward). Where the target is "
        "at most so much, the ratio is our time with the option over that without; where it is at "
        "least so much, the time of a loop around torch.nn over ours. Ratios are medians of the "
        "rounds' ratios, with quartiles; times are medians of a call.",
        "",
        f"{sum(judged)} of {len(judged)} targets are met.",
        "",
        table(results),
    ]
    if results["failed"]:
        lines += ["", "## Failed", "", *(f"- {why}" for why in results["failed"])]
    return "\n".join(lines) + "\n"


def table(results: Results) -> str:
    """A line for each comparison."""
    lines = [
        "| row | cell | pass | option | against | ours ms | other ms | ratio | quartiles | target |"
        " met |",
        "|---" * 11 + "|",
    ]
    for line in results["lines"]:
        ours, other = (line[key]["median"] * 1e3 for key in ("seconds", "other_seconds"))
        ratio = line["ratio"]
        met = {True: "yes", False: "no", None: "-"}[line["met"]]
        lines.append(
            f"| {line['row']} | {NAMES[line['cell']]} | {PASS_NAMES[line['mode']]} "
            f"| {line['option']} | {line['other']} | {ours:.3g} | {other:.3g} "
            f"| {ratio['median']:.2f} | {ratio['low']:.2f} to {ratio['high']:.2f} "
            f"| {Target(**line['target'])} | {met} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
