"""The stages of tools/gpu_check.sh, each in a process of its own and within its time.

    build      setup.py build_ext --inplace, for this GPU's architecture
    test       the tests marked `cuda`
    sanitize   compute-sanitizer's memcheck and racecheck over tools/gpu_problems.py, both at once
    bench      python -m benchmarks.gpu

A stage that takes longer than its budget is ended with everything that it started, and the report
shows it as unfinished, never as passed. The report is written anew after every stage, so there is
one whatever ends this program. OUT also gets each stage's log, the tests' results as JUnit XML and
the benchmark's own report.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = {  # seconds
    "build": 120.0, "test": 150.0, "sanitize": 90.0, "walks": 40.0, "bench": 120.0,
}  # fmt: skip
GRACE = 5.0  # seconds between asking a stage to end and ending it
TAIL = 15  # lines of a failed stage's log in the report

PASSED, FAILED, UNFINISHED, NOT_RUN = "passed", "failed", "did not finish", "not run"


@dataclass(frozen=True)
class Stage:
    """Commands that run at the same time, and how their traces are read into the report."""

    name: str
    commands: dict[str, Sequence[str]]  # by the name of their log
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    findings: Callable[[Path], dict[str, Any]] = lambda out: {}


def main(arguments: list[str] | None = None) -> int:
    """Runs the stages that are asked for; 0 if all passed."""
    parser = argparse.ArgumentParser(prog="tools/gpu_check.sh", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the report")
    parser.add_argument("stages", nargs="*", help=f"some of {', '.join(BUDGETS)}; all if none")
    parser.add_argument("--budget", action="append", default=[], metavar="STAGE=SECONDS")
    given = parser.parse_args(arguments)
    budgets = dict(BUDGETS)
    for text in given.budget:
        name, _, seconds = text.partition("=")
        if name not in budgets or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", seconds):
            parser.error(f"--budget: expected one of {', '.join(BUDGETS)}=seconds, got {text}")
        budgets[name] = float(seconds)
    for name in given.stages:
        if name not in budgets:
            parser.error(f"stages: expected some of {', '.join(BUDGETS)}, got {name}")
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out.resolve()
    report = Report(out, machine())
    if not report.machine["gpu"]:
        report.note = "no NVIDIA GPU found: torch.cuda.is_available() is false"
        report.write()
        print(report.note, file=sys.stderr)
        return 1
    chosen = [
        s for s in stages(out, budgets, report.machine) if s.name in (given.stages or BUDGETS)
    ]
    return run_stages(chosen, report)


def stages(out: Path, budgets: dict[str, float], gpu: dict[str, Any]) -> list[Stage]:
    """The five stages."""
    python = sys.executable
    major, minor = gpu["capability"].split(".")
    # Hopper's and Blackwell's own instructions come with the `a`.
    architecture = f"{major}.{minor}" + ("a" if int(major) >= 9 else "")
    build = {
        "FUSEDRNN_BUILD_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": architecture,
        "MAX_JOBS": str(os.cpu_count()),
    }
    tests = [python, "-m", "pytest", "-q", "-m", "cuda", f"--junitxml={out / 'tests.xml'}"]
    if importlib.util.find_spec("xdist"):  # a test waits for the host more than for the GPU
        tests += ["-n", str(min(8, os.cpu_count() or 1))]
    sanitizer = shutil.which("compute-sanitizer") or "compute-sanitizer"
    problems = [python, str(ROOT / "tools" / "gpu_problems.py")]
    tools = {
        f"sanitize-{tool}": [
            # Importing torch takes longer than a sanitizer waits for a CUDA process by default.
            sanitizer, f"--tool={tool}", "--launch-timeout", "90", "--error-exitcode=9",
            "--kernel-name", "kernel_substring=fusedrnn", *problems,
        ]
        for tool in ("memcheck", "racecheck")
    }  # fmt: skip
    bench = [python, "-m", "benchmarks.gpu", str(out / "bench")]
    bench += ["--budget", str(budgets["bench"] - 15)]  # importing and measuring the ceilings
    walks = [python, "-m", "benchmarks.walks", str(out / "walks")]
    walks += ["--budget", str(budgets["walks"] - 15)]
    return [
        Stage("build", {"build": [python, "setup.py", "build_ext", "--inplace"]}, budgets["build"],
              build),
        Stage("test", {"test": tests}, budgets["test"], findings=test_findings),
        # Without the caching allocator each tensor has bounds of its own.
        Stage("sanitize", tools, budgets["sanitize"], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
              sanitizer_findings),
        Stage("walks", {"walks": walks}, budgets["walks"], findings=walk_findings),
        Stage("bench", {"bench": bench}, budgets["bench"], findings=bench_findings),
    ]  # fmt: skip


@dataclass
class Report:
    """What is known so far."""

    out: Path
    machine: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""

    def write(self) -> None:
        """Both files."""
        content = {"machine": self.machine, "note": self.note, "stages": self.stages}
        (self.out / "report.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.out / "report.md").write_text(self.markdown())

    def markdown(self) -> str:
        """The report to read."""
        m = self.machine
        lines = [
            "# GPU check",
            "",
            f"- {m['gpu'] or 'no GPU'}, compute capability {m['capability'] or '-'}, driver "
            f"{m['driver']}",
            f"- torch {m['torch']}, CUDA {m['cuda']}, cuDNN {m['cudnn']}, Python {m['python']}, "
            f"{m['nvcc']}",
            f"- commit {m['commit']}, {m['date']}",
        ]
        if self.note:
            lines += ["", f"**{self.note}**"]
        lines += ["", "| stage | result | seconds | of at most | found |", "|---|---|---|---|---|"]
        for name, stage in self.stages.items():
            found = "; ".join(f"{v} {k}" for k, v in stage.get("counts", {}).items())
            lines.append(
                f"| {name} | {stage['status']} | {stage['seconds']:.0f} | {stage['budget']:.0f} "
                f"| {found} |"
            )
        for name, stage in self.stages.items():
            for title in ("failures", "last lines"):
                if stage.get(title):
                    lines += ["", f"## {name}: {title}", "", "```", *stage[title], "```"]
        for name, file in (("walks", "walks/walks.md"), ("bench", "bench/report.md")):
            if name in self.stages and (self.out / file).exists():
                lines += ["", re.sub("^#", "##", (self.out / file).read_text(), flags=re.MULTILINE)]
        return "\n".join(lines) + "\n"


def run_stages(chosen: list[Stage], report: Report) -> int:
    """Runs stages one after the other, and none after a build that failed; 0 if all passed."""
    for stage in chosen:
        report.stages[stage.name] = {"status": NOT_RUN, "seconds": 0.0, "budget": stage.seconds}
    report.write()

    def interrupted(signal_number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        for stage in chosen:
            found = run_stage(stage, report.out)
            report.stages[stage.name] = found
            report.write()
            print(f"{stage.name}: {found['status']} in {found['seconds']:.0f} s", flush=True)
            if stage.name == "build" and found["status"] != PASSED:
                report.note = "the build failed, nothing else was run"
                break
    except KeyboardInterrupt:
        report.note = "interrupted"
    finally:
        signal.signal(signal.SIGTERM, before)
        report.write()
    return 0 if all(s["status"] == PASSED for s in report.stages.values()) else 1


def run_stage(stage: Stage, out: Path) -> dict[str, Any]:
    """Runs a stage's commands at once, each with a log, and ends what is left after its time."""
    begin = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | stage.environment
    running: dict[str, subprocess.Popen[bytes]] = {}
    codes: dict[str, int | None] = {}
    failures: list[str] = []
    try:
        for name, command in stage.commands.items():
            with open(out / f"{name}.log", "wb") as log:
                try:
                    running[name] = subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=log, stderr=log,
                        start_new_session=True,
                    )  # fmt: skip
                except OSError as error:
                    failures.append(f"{command[0]}: {error}")
        for name, process in running.items():
            left = max(0.0, begin + stage.seconds - time.monotonic())
            try:
                codes[name] = process.wait(left)
            except subprocess.TimeoutExpired:
                codes[name] = None
                failures.append(f"{name}: ended after {stage.seconds:.0f} s")
    finally:
        for process in running.values():
            end(process)
    unfinished = any(code is None for code in codes.values())
    failed = any(codes.values()) or len(codes) < len(stage.commands)
    status = FAILED if failed else UNFINISHED if unfinished else PASSED
    found: dict[str, Any] = {
        "status": status, "seconds": time.monotonic() - begin, "budget": stage.seconds,
    }  # fmt: skip
    try:
        found |= stage.findings(out)
    except Exception as error:  # a log cut short may be anything
        failures.append(f"the stage's results cannot be read: {error!r}")
        if status == PASSED:
            found["status"] = FAILED
    status = found["status"]
    found["failures"] = failures + found.get("failures", [])
    if status != PASSED:
        found["last lines"] = [
            line
            for name in stage.commands
            if codes.get(name) != 0 and (out / f"{name}.log").exists()
            for line in (out / f"{name}.log").read_text(errors="replace").splitlines()[-TAIL:]
        ]
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and whatever it started."""
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def test_findings(out: Path) -> dict[str, Any]:
    """Counts of pytest, and the first line of each failure."""
    suite = ElementTree.parse(out / "tests.xml").getroot().find("testsuite")
    assert suite is not None
    total, failed, errors, skipped = (
        int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
    )
    failures = [
        f"{case.get('classname')}::{case.get('name')}: {(trouble.get('message') or '')[:300]}"
        for case in suite.iter("testcase")
        for trouble in (*case.findall("failure"), *case.findall("error"))
    ]
    passed = total - failed - errors - skipped
    counts = {"passed": passed, "failed": failed, "errors": errors, "skipped": skipped}
    found: dict[str, Any] = {"counts": counts, "failures": failures}
    return found if passed else found | {"status": FAILED, "failures": [*failures, "none passed"]}


def sanitizer_findings(out: Path) -> dict[str, Any]:
    """The sanitizers' own counts, and their first reports."""
    counts: dict[str, Any] = {}
    failures = []
    for tool in ("memcheck", "racecheck"):
        lines = (out / f"sanitize-{tool}.log").read_text(errors="replace").splitlines()
        summary = [line for line in lines if "SUMMARY" in line]
        counts[f"by {tool}"] = summary[-1].split("SUMMARY:")[-1].strip() if summary else "no result"
        failures += [line for line in lines if re.search(r"Invalid|hazard|Error:", line)][:10]
    found: dict[str, Any] = {"counts": counts, "failures": failures}
    # A sanitizer that saw no process exits with success, too.
    return found | {"status": FAILED} if "no result" in counts.values() else found


def walk_findings(out: Path) -> dict[str, Any]:
    """How many walks were measured, and those that failed."""
    walks = json.loads((out / "walks" / "walks.json").read_text())["walks"]
    failed = [f"{w['row']} {w['cell']} {w['dtype']}: {w['error']}" for w in walks if "error" in w]
    counts = {"walks measured": sum("measured_ns" in w for w in walks), "failed": len(failed)}
    status = {} if counts["walks measured"] else {"status": FAILED}
    return status | {"counts": counts, "failures": failed, "results": walks}


def bench_findings(out: Path) -> dict[str, Any]:
    """How many cases were measured, and those that failed."""
    results = json.loads((out / "bench" / "results.json").read_text())
    failed = [case for case in results["cases"] if "error" in case]
    counts = {
        "cases measured": len(results["cases"]) - len(failed),
        "failed": len(failed),
        "skipped": len(results["skipped"]),
        "not run": len(results["not_run"]),
    }
    return ({} if counts["cases measured"] else {"status": FAILED}) | {
        "counts": counts,
        "failures": [
            f"{c['row']} {c['cell']} {c['mode']} {c['dtype']}: {c['error']}" for c in failed
        ],
        "results": results,
    }


def machine() -> dict[str, Any]:
    """The GPU and the software, as torch and nvcc tell."""
    import torch

    sys.path.insert(0, str(ROOT))
    from benchmarks.machine import commit

    def said(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        return done.stdout.strip()

    there = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if there else None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name() if there else None,
        "capability": ".".join(map(str, capability)) if capability else None,
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if there else None,
        "python": sys.version.split()[0],
        "nvcc": said("nvcc", "--version").splitlines()[-1],
        "commit": commit() or "unknown",
    }


if __name__ == "__main__":
    sys.exit(main())
