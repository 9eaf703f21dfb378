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

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks import races
from benchmarks.peers import OURS, TORCH_NN
from benchmarks.peers.loops import Padded, SplitAtResets, StepByStep, With
from benchmarks.peers.modules import ModulePeer, TrainingStepOfStates, step_of
from benchmarks.peers.peer import SEED, Data, Step, make_data
from benchmarks.races import Comparison, Race, Report, Steps, Target, check_same
from benchmarks.workloads import CELLS, ROWS, Case, Row, cases
from fusedrnn.testing.parity import ParityError

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

REPORT = Report(
    name="modifiers",
    title="What resets, lengths, dropouts and all states cost",
    explanation=(
        "A layer in float32, inference or a training step (forward, backward). Where the target is "
        "at most so much, the ratio is our time with the option over that without; where it is at "
        "least so much, the time of a loop around torch.nn over ours."
    ),
)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; 1 if something failed."""
    given = races.parser(REPORT, __doc__, rows=MEASURED, cells=CELLS).parse_args(arguments)
    chosen = cases(
        given.rows, cells=given.cells, modes=given.passes, threads=[given.threads],
        dtypes=["float32"],
    )  # fmt: skip
    families = (resets, lengths, dropouts, states)
    return races.run(REPORT, races.begin(chosen, given), chosen, families, given)


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


def check_draws(step: Step, name: str) -> None:
    """Raises ParityError if two calls give the same output."""
    first, second = (step.results()["output"] for _ in range(2))
    if torch.equal(first, second):
        raise ParityError(f"output: expected another at each call with {name}, got the same twice")


if __name__ == "__main__":
    sys.exit(main())
