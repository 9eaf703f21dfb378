"""The machinery of tools/gpu_check.sh, on stages that need no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import gpu, walks
from benchmarks.workloads import GPU_ROWS, ROWS, cases

TOOLS = Path(__file__).resolve().parents[1] / "tools"
NO_GPU = {
    "gpu": "a stand-in", "capability": "9.0", "driver": "1", "torch": "2", "cuda": "13",
    "cudnn": 9, "python": "3", "nvcc": "13", "commit": "abc", "date": "today",
}  # fmt: skip


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


gpu_check = load("gpu_check")


def stage(name: str, code: str, seconds: float = 20.0, **more: Any) -> Any:
    return gpu_check.Stage(name, {name: [sys.executable, "-c", code]}, seconds, **more)


def run(stages: list[Any], out: Path) -> tuple[int, dict[str, Any]]:
    code = gpu_check.run_stages(stages, gpu_check.Report(out, NO_GPU))
    return code, json.loads((out / "report.json").read_text())


def test_a_stage_that_fails_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    code, report = run(
        [stage("test", "print('why it failed'); raise SystemExit(3)"), stage("bench", "print(1)")],
        tmp_path,
    )
    assert code == 1
    assert [s["status"] for s in report["stages"].values()] == ["failed", "passed"]
    assert report["stages"]["test"]["last lines"] == ["why it failed"]
    text = (tmp_path / "report.md").read_text()
    assert "| test | failed |" in text and "| bench | passed |" in text and "why it failed" in text


def test_all_passed(tmp_path: Path) -> None:
    code, report = run([stage("build", ""), stage("test", "")], tmp_path)
    assert code == 0
    assert {s["status"] for s in report["stages"].values()} == {"passed"}


def test_a_stage_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "grandchild"
    code = f"""
        import subprocess, sys, time
        late = "import time; time.sleep(4); open({str(mark)!r}, 'w')"
        subprocess.Popen([sys.executable, "-c", late])
        print("begun", flush=True)
        time.sleep(60)
    """
    begin = time.monotonic()
    result, report = run(
        [stage("bench", "\n".join(map(str.strip, code.splitlines())), 1.5)], tmp_path
    )
    assert result == 1 and time.monotonic() - begin < 20
    found = report["stages"]["bench"]
    assert found["status"] == "did not finish"
    assert found["failures"] == ["bench: ended after 2 s"] and found["last lines"] == ["begun"]
    time.sleep(4)
    assert not mark.exists()


def test_nothing_runs_after_a_build_that_failed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code, report = run(
        [stage("build", "raise SystemExit(1)"), stage("test", f"open({str(mark)!r}, 'w')")],
        tmp_path,
    )
    assert code == 1 and not mark.exists()
    assert report["stages"]["test"]["status"] == "not run"
    assert "the build failed" in report["note"]


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    missing = gpu_check.Stage("sanitize", {"sanitize": ["no-such-sanitizer"]}, 5.0)
    code, report = run([missing], tmp_path)
    assert code == 1 and report["stages"]["sanitize"]["status"] == "failed"
    assert "no-such-sanitizer" in report["stages"]["sanitize"]["failures"][0]


def test_results_that_cannot_be_read_are_no_crash(tmp_path: Path) -> None:
    code, report = run([stage("test", "", findings=gpu_check.test_findings)], tmp_path)
    assert code == 1
    assert "cannot be read" in report["stages"]["test"]["failures"][0]


def test_an_end_from_outside_leaves_a_report(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path[:0] = [{str(TOOLS)!r}]
import gpu_check
stages = [
    gpu_check.Stage("build", {{"build": [sys.executable, "-c", ""]}}, 9.0),
    gpu_check.Stage("test", {{"test": ["sleep", "60"]}}, 99.0),
]
out = gpu_check.Path({str(tmp_path)!r})
raise SystemExit(gpu_check.run_stages(stages, gpu_check.Report(out, {NO_GPU!r})))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("build: passed")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["note"] == "interrupted"
    assert [s["status"] for s in report["stages"].values()] == ["passed", "not run"]


def test_what_pytest_found(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): assert True\n"
        "def test_bad(): assert 1 == 2, 'one is not two'\n"
        "@pytest.mark.skip(reason='no')\n"
        "def test_left_out(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_some.py"]
    subprocess.run([*command, "--junitxml=tests.xml"], cwd=tmp_path, capture_output=True)
    found = gpu_check.test_findings(tmp_path)
    assert found["counts"] == {"passed": 1, "failed": 1, "errors": 0, "skipped": 1}
    assert "test_bad" in found["failures"][0] and "one is not two" in found["failures"][0]
    assert "status" not in found


def test_tests_that_were_all_skipped_are_no_success(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="3" failures="0" errors="0" skipped="3"/></testsuites>'
    )
    code, report = run([stage("test", "", findings=gpu_check.test_findings)], tmp_path)
    assert code == 1
    assert report["stages"]["test"]["status"] == "failed"
    assert report["stages"]["test"]["failures"] == ["none passed"]


def test_what_the_sanitizers_found(tmp_path: Path) -> None:
    (tmp_path / "sanitize-memcheck.log").write_text(
        "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 1 error\n"
    )
    (tmp_path / "sanitize-racecheck.log").write_text("cut short")
    found = gpu_check.sanitizer_findings(tmp_path)
    assert found["counts"] == {"by memcheck": "1 error", "by racecheck": "no result"}
    assert "Invalid __global__ write" in found["failures"][0]
    assert found["status"] == "failed"  # no result is no success


def test_the_stages(tmp_path: Path) -> None:
    stages = {s.name: s for s in gpu_check.stages(tmp_path, gpu_check.BUDGETS, NO_GPU)}
    assert list(stages) == ["build", "test", "sanitize", "walks", "bench"]
    assert stages["build"].environment["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    assert len(stages["sanitize"].commands) == 2
    assert sum(s.seconds for s in stages.values()) < 9 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [str(TOOLS / "gpu_check.sh"), str(tmp_path)]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1 and "no NVIDIA GPU found" in done.stderr
    assert "no NVIDIA GPU found" in (tmp_path / "report.md").read_text()
    done = subprocess.run([*command, "tests"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "expected some of build, test" in done.stderr


def test_gpu_rows() -> None:
    names = [row.name for row in GPU_ROWS]
    assert len(set(names)) == len(names) and not set(names) & {row.name for row in ROWS}
    assert {row.letter for row in GPU_ROWS} == {f"g{i}" for i in range(1, 22)}
    assert all(row.device == "cuda" for row in GPU_ROWS)
    chosen = cases(GPU_ROWS, threads=[1])
    assert {case.dtype for case in chosen} == {"float32", "tf32", "bfloat16", "float16"}
    assert {case.row.name for case in chosen if case.mode == "replay"} == {"g17"}
    assert not [c for c in chosen if c.mode == "train" and c.row.name in ("g12", "g17")]


def test_the_report_of_a_gpu_run(tmp_path: Path) -> None:
    machine = {
        "date": "today", "gpu": "a stand-in", "capability": "9.0", "multiprocessors": 1,
        "memory_gib": 1, "driver": "1", "versions": {"fusedrnn": "0", "torch.nn": "2"}, "cuda": "1",
        "cudnn": 9, "commit": "abc", "copy_bytes_per_second": 1e12, "bf16_flop_per_second": 1e14,
        "launch_seconds": 1e-6,
    }  # fmt: skip
    side = {"median": 2e-3, "low": 1e-3, "high": 3e-3}
    ratio = {"torch.nn": {"median": 2.5, "low": 2.0, "high": 3.0}}
    case = {"row": "g8", "cell": "lstm", "mode": "train", "dtype": "bfloat16", "flops": 10**9}
    results = {
        "machine": machine,
        "cases": [
            case | {"sides": {"fusedrnn": side, "torch.nn": side}, "ratios": ratio},
            case | {"row": "g9", "error": "it failed"},
        ],
        "skipped": {"g9-resets lstm": "no `reset` yet"},
        "not_run": ["g21 rnn forward, bfloat16"],
        "kernels": {"g8 lstm bfloat16": {"torch.nn": ["1x RNN_blockPersist"]}},
    }
    gpu.write(tmp_path, results)
    text = (tmp_path / "report.md").read_text()
    assert "| g8 | T1024 I768 H768 B16 | lstm | train | bfloat16 | 2 | 2 | 2.50 | 2.00 to" in text
    for words in ("it failed", "no `reset` yet", "g21 rnn forward", "blockPersist", "2.50 of 1"):
        assert words in text
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_the_walks_of_the_gpu_rows(tmp_path: Path) -> None:
    """Predictions without a GPU; with one, the same code measures."""
    rows = [row for row in GPU_ROWS if row.name in ("g5", "g10", "g17")]
    results = walks.run(rows, tmp_path, budget=0.0, every=False)
    assert json.loads((tmp_path / "walks.json").read_text()) == results
    found = {(w["row"], w["cell"], w["dtype"], w["pass"]): w for w in results["walks"]}
    assert len(found) == len(results["walks"]) == 2 * (4 + 2) + 2  # g17 has no backward
    speech = found["g5", "lstm", "bfloat16", "forward"]
    assert speech["team"] == "cluster" and speech["blocks"] * speech["units"] == 512
    assert found["g10", "lstm", "tf32", "backward"]["team"] == "stepwise"
    text = (tmp_path / "walks.md").read_text()
    assert f"| forward | cluster | {speech['blocks']} | {speech['units']} |" in text
    assert f"| {speech['step_ns']:.0f} |" in text
    asked = list(walks.alternatives(cases(rows, threads=[1])[0]))
    assert asked[:2] == ["team=stepwise", "team=block"] and "team=cluster,blocks=16" in asked
    assert len(set(asked)) == len(asked)


def test_what_was_found_of_walks(tmp_path: Path) -> None:
    walk = {"row": "g5", "cell": "lstm", "dtype": "bfloat16"}
    (tmp_path / "walks").mkdir()
    file = tmp_path / "walks" / "walks.json"
    file.write_text(json.dumps({"walks": [walk | {"measured_ns": 1.0}, walk | {"error": "no"}]}))
    found = gpu_check.walk_findings(tmp_path)
    assert found["counts"] == {"walks measured": 1, "failed": 1} and "status" not in found
    assert found["failures"] == ["g5 lstm bfloat16: no"]
    file.write_text(json.dumps({"walks": [walk]}))
    assert gpu_check.walk_findings(tmp_path)["status"] == "failed"
