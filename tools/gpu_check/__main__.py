"""`tools/gpu_check.sh OUT`: all that a machine with an NVIDIA GPU can say, within nine minutes."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tools.gpu_check import stages
from tools.gpu_check.device import GPU, ROOT, STAND_INS, Device
from tools.gpu_check.report import EVERY, Report
from tools.gpu_check.scheduler import Scheduler, Stage

TOTAL = 540.0  # seconds


def main(arguments: list[str] | None = None) -> int:
    """Runs the stages that are asked for; 0 if all that count passed."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(prog="tools/gpu_check.sh", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for report.json, report.md and check.log")
    parser.add_argument("stages", nargs="*", help="some of them by name; all if none")
    parser.add_argument("--total", type=float, default=TOTAL, help="seconds in all")
    parser.add_argument("--every", type=float, default=EVERY, help="seconds between writings")
    parser.add_argument(
        "--library", type=Path, metavar="FOLDER",
        help="a fusedrnn folder with libraries built elsewhere for this Python: _C*.so and lib/",
    )  # fmt: skip
    parser.add_argument("--stand-in", choices=STAND_INS, help="run without a GPU, on this")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and how long")
    parser.add_argument("--items", type=int, help="at most so many items of each stage")
    given = parser.parse_args(arguments)
    for name in given.stages:
        if name not in stages.NAMES:
            parser.error(f"stages: expected some of {', '.join(stages.NAMES)}, got {name}")
    if given.library:
        try:
            take_library(given.library.resolve())
        except FileNotFoundError as error:
            parser.error(f"--library: {error}")
    device = Device(given.stand_in or GPU)
    plan = stages.plan(device, given.out.resolve(), given.total)
    chosen = [stage for stage in plan.stages if stage.name in (given.stages or stages.NAMES)]
    if given.items is not None:
        chosen = [shortened(stage, given.items) for stage in chosen]
    if given.dry_run:
        print(in_words(chosen, given.total))
        return 0
    about = {"stand_in": STAND_INS.get(device.name)}
    report = Report(given.out.resolve(), every=given.every, about=about)
    for old in report.out.glob(stages.log_of("*", "*")):  # of a run that was killed
        old.unlink()
    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        with Scheduler(report, plan.pools) as scheduler:
            passed = scheduler.run(chosen, begin + given.total)
    except KeyboardInterrupt:
        report.note("interrupted")
        return 1
    except Exception as error:  # what was found so far is written
        report.note(f"the check itself failed: {type(error).__name__}: {error}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0 if passed else 1


def interrupted(signal_number: int, frame: object) -> None:
    """A polite end is like Ctrl-C."""
    raise KeyboardInterrupt


def shortened(stage: Stage, items: int) -> Stage:
    """A stage with its first items only."""
    return replace(stage, items=lambda: stage.items()[:items])


def take_library(folder: Path) -> None:
    """Copies what was built elsewhere to where it is loaded from.

    Raises:
        FileNotFoundError: it is not there.
    """
    introspection = sorted(folder.glob("_C*.so"))
    if not introspection or not (folder / "lib" / "libfusedrnn.so").exists():
        raise FileNotFoundError(f"expected _C*.so and lib/libfusedrnn.so in {folder}")
    package = ROOT / "fusedrnn"
    if folder == package:
        return
    for file in introspection:
        shutil.copy2(file, package / file.name)
    shutil.copytree(folder / "lib", package / "lib", dirs_exist_ok=True)


def in_words(chosen: Sequence[Stage], total: float) -> str:
    """The order, and the seconds that are expected."""
    lines = [f"seconds  within {total:.0f}, each stage within its share of what is left"]
    shares = sum(stage.seconds for stage in chosen)
    for stage in chosen:
        items = stage.items()
        expected = sum(item.seconds for item in items)
        share = total * stage.seconds / shares
        lines.append(f"{expected:7.1f}  {stage.name}, at most {share:.0f} s as planned")
        lines += [f"{item.seconds:7.1f}      {item.name}" for item in items]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
