"""`python -m benchmarks.plans`: the measurements behind the thresholds of csrc/cpu/plan.cpp.

    benchmarks/results/<name>/plans.json   every figure
                              plans.md     made from it, to read

For each thing that a plan decides, sizes on both sides of its threshold are run in every possible
way, all in turn (fusedrnn/testing/timing.py). The table gives the time of each way divided by that
of the plan's own, so a number below 1.00 is what the plan gives away there. On another processor
the thresholds may lie elsewhere: this says where.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fusedrnn
from benchmarks import machine
from benchmarks.peers import OURS, STREAMING, Peer
from benchmarks.peers.peer import make_data
from benchmarks.report import RESULTS
from benchmarks.tables import NAMES
from benchmarks.workloads import Case, Row
from fusedrnn._engine import ops
from fusedrnn.testing import timing

BUDGET, QUICK_BUDGET = 2.0, 0.5  # seconds for all ways of a size
MULTIPLES = (0.25, 0.5, 2.0, 4.0)  # of a chunk's steps

Results = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What a plan decides, the ways there are (as FUSEDRNN_PLAN spells them), sizes to try."""

    threshold: str
    text: str
    ways: dict[str, str]
    cases: list[Case]
    peer: Peer = OURS


def questions(threads: int) -> list[Question]:
    """All that a plan decides on a machine of so many threads."""

    def cases(cells: Iterable[str], mode: str, sizes: Iterable[tuple[int, int, int, int]],
              ) -> list[Case]:  # fmt: skip
        rows = [
            Row(name=f"T{t}-I{i}-H{h}-B{b}", source="plans", T=t, I=i, H=h, B=b)
            for t, i, h, b in sizes
        ]
        return [Case(row=r, cell=c, mode=mode, threads=threads) for r in rows for c in cells]

    def team(split: str) -> dict[str, str]:
        return {"one thread": "threads=1,split=none", split: f"threads={threads},split={split}"}

    in_place = {"in place": "weights_in_place=1", "panels": "weights_in_place=0"}
    found = [
        Question(
            "kInPlaceRows", "Are the weights read where they are, or made panels first?", in_place,
            cases(("lstm", "rnn"), "forward", ((1, 256, 256, b) for b in (1, 2, 4, 6, 8, 16))),
        ),
        Question(
            "kFuseRows, kFuseWeights", "Does the tile project its input, or a chunk ahead?",
            {"in the tile": "fuse_input=1", "ahead": "fuse_input=0"},
            cases(("lstm", "gru"), "forward",
                  [*((50, 128, 128, b) for b in (2, 4, 8, 32)),
                   *((50, n, n, 32) for n in (256, 512, 1024)), (50, 1024, 256, 64)]),
        ),
    ]  # fmt: skip
    if threads > 1:
        found += [
            Question(
                "kSerialWork", "One thread, or each its sequences?", team("batch"),
                cases(("lstm",), "forward", ((1, n, n, 32) for n in (16, 32, 64, 96, 128))),
            ),
            Question(
                "kSerialWeights", "One thread, or each its units? One step of one sequence.",
                team("units"),
                cases(("lstm", "rnn"), "forward", ((1, n, n, 1) for n in (128, 192, 256, 384))),
            ),
            Question(
                "kSerialBytes", "The same on panels made ahead, by a stream.", team("units"),
                cases(("lstm", "rnn"), "forward",
                      ((1, n, n, 1) for n in (96, 128, 192, 256, 384, 512))), STREAMING,
            ),
            Question(
                "kWeightsInCache, kRowsPerThread, kRowsHideWeights, kRowsOfCall",
                "Does a thread have sequences, or units and a barrier per step?",
                {s: f"threads={threads},split={s}" for s in ("batch", "units")},
                cases(("lstm", "gru"), "forward",
                      [*((20, h, h, b) for h in (128, 256, 512, 1024) for b in (4, 8, 32, 192)),
                       *((t, 128, 128, 16) for t in (1, 5, 100))]),
            ),
        ]  # fmt: skip
    chunked = [(28, 28, 128, 150), (256, 100, 128, 32), (70, 400, 1150, 20), (100, 512, 512, 64)]
    for mode, field, threshold in (
        ("forward", "forward_steps", "kForwardBytes, kForwardRows, kMostForwardRows"),
        ("train", "backward_steps", "kBackwardRows"),
    ):
        found += [
            Question(
                threshold, f"How many steps has a chunk ({mode})? Times what the plan says.",
                {f"x {m:g}": f"{field}={max(1, round(m * steps_of(case, field)))}"
                 for m in MULTIPLES},
                [case],
            )
            for case in cases(("lstm",), mode, chunked)
        ]  # fmt: skip
    return found


def steps_of(case: Case, field: str) -> int:
    """The steps of a chunk in the plan for a case."""
    steps: int = getattr(plan_of(case), field)
    return steps


def plan_of(case: Case, *, panels: bool = False) -> fusedrnn.Plan:
    """The plan for a case, as it is overridden at the moment."""
    row = case.row
    plan = fusedrnn.plan(
        case.facts.name, time=row.T, batch=row.B,
        input_size=row.I, hidden_size=row.H, threads=case.threads, training=case.mode == "train",
        panels=panels,
    )  # fmt: skip
    assert isinstance(plan, fusedrnn.Plan)
    return plan


def in_words(plan: fusedrnn.Plan) -> str:
    """What a plan has decided, in short."""
    team = "one thread" if plan.threads == 1 else f"{plan.threads} threads by {plan.split}"
    if plan.weights_in_place:
        return f"{team}, in place"
    where = "in the tile" if plan.fuse_input else f"{plan.forward_steps} steps ahead"
    return f"{team}, input {where}, backward {plan.backward_steps} steps"


@contextmanager
def overridden(text: str) -> Iterator[None]:
    """Plans made meanwhile are overridden, as by FUSEDRNN_PLAN."""
    ops.override_plan(text)
    try:
        yield
    finally:
        ops.override_plan("")


def answer(question: Question, case: Case, budget: float) -> Results:
    """Times every way, and the plan's own, against each other."""
    torch.set_num_threads(case.threads)
    step = question.peer.build(case, make_data(case))

    def run(text: str) -> Callable[[int], None]:
        def repeat(calls: int) -> None:
            with overridden(text):
                step.repeat(calls)

        return repeat

    own = "the plan's"
    sides = {own: run("")} | {name: run(text) for name, text in question.ways.items()}
    seconds = timing.measure(sides, budget=budget)
    return {
        "sizes": case.row.sizes,
        "cell": case.cell,
        "plan": in_words(plan_of(case, panels=question.peer is STREAMING)),
        "seconds": timing.spread(seconds[own]).as_dict(),
        "rounds": len(seconds[own]),
        "ways": {
            name: timing.ratio(seconds[own], seconds[name]).as_dict() for name in question.ways
        },
    }


def markdown(results: Results) -> str:
    """The whole report."""
    m = results["machine"]
    lines = [
        "# What plans decide, and what the other ways cost",
        "",
        f"- {m['cpu']}, {m['cores']} cores, {results['threads']} threads; load average before: "
        f"{m['load_average_before']}",
        f"- torch {torch.__version__}, fusedrnn {m['versions'][OURS.name]}, commit {m['commit']}, "
        f"{m['date']}",
        "",
        "Time of each way over that of the plan's own, medians with quartiles: below 1.00 the "
        "other way is faster, and near 1.00 it is the plan's own or makes no difference.",
    ]
    heading = ""
    for found in results["answers"]:
        title = f"## {found['threshold']}"
        if title != heading:
            heading = title
            lines += ["", title, "", found["text"], ""]
            lines.append(f"| cell | sizes | the plan | us | {' | '.join(found['ways'])} |")
            lines.append("|---" * (4 + len(found["ways"])) + "|")
        for case in found["cases"]:
            ways = " | ".join(
                f"{r['median']:.2f} ({r['low']:.2f}–{r['high']:.2f})" for r in case["ways"].values()
            )
            us = case["seconds"]["median"] * 1e6
            lines.append(
                f"| {NAMES[case['cell']]} | {case['sizes']} | {case['plan']} | {us:.4g} | {ways} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes both files."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plans", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", default="", help="questions whose threshold has this in its name")
    parser.add_argument("--name", help="folder under benchmarks/results, cpu-<date> if not given")
    given = parser.parse_args(arguments)
    folder = RESULTS / (given.name or f"cpu-{datetime.date.today().isoformat()}")
    results: Results = {
        "machine": machine.describe([given.threads], {OURS.name: OURS.version()}),
        "threads": given.threads, "answers": [],
    }  # fmt: skip
    budget = QUICK_BUDGET if given.quick else BUDGET
    for question in questions(given.threads):
        if given.only not in question.threshold:
            continue
        cases = [answer(question, case, budget) for case in question.cases]
        results["answers"].append(
            {"threshold": question.threshold, "text": question.text,
             "ways": list(question.ways), "cases": cases}
        )  # fmt: skip
        write(folder, results)
    print(markdown(results))
    print(f"wrote {folder}")
    return 0


def write(folder: Path, results: Results) -> None:
    """Both files, of what was measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "plans.md").write_text(markdown(results))


if __name__ == "__main__":
    sys.exit(main())
