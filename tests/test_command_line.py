"""The command line: what it prints is what the API says, and a fault is found and told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPILED

import fusedrnn
from benchmarks.workloads import rows_named
from fusedrnn import functional
from fusedrnn._C import cpu_capability
from fusedrnn.cells import cell_named
from fusedrnn.command_line import bench, info, main, tables, verify
from fusedrnn.command_line.arguments import DTYPES

SIZES = ["--time", "9", "--batch", "4", "--input-size", "5", "--hidden-size", "6"]
ONE_THREAD = ["--threads", "1"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Runs a command with --json: its exit status and the document."""

    def call(*arguments: str) -> tuple[int, Any]:
        status = main([*arguments, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return call


@pytest.fixture(params=["rich", "plain"])
def shown(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str]]:
    """Runs a command that prints tables, with rich and as if there were none."""
    if request.param == "rich":
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)

    def call(*arguments: str) -> tuple[int, str]:
        status = main(arguments)
        return status, capsys.readouterr().out

    return call


# info


def test_info_is_what_the_api_says(run: Callable[..., tuple[int, Any]]) -> None:
    status, found = run("info")
    assert status == 0
    assert list(found) == ["versions", "build", "cpu", "cuda", "environment", "problem", "plans"]
    assert found["build"] == fusedrnn.build_info()
    assert found["versions"]["fusedrnn"] == fusedrnn.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["cpu"]["threads"] == torch.get_num_threads() == 2
    assert found["cpu"]["capability"] == cpu_capability()
    assert found["cpu"]["capability"] in found["cpu"]["capabilities"]
    usable = torch.cuda.is_available() and fusedrnn.build_info()["cuda"]
    assert found["cuda"]["usable"] == usable and bool(found["cuda"]["why_not"]) != usable
    assert len(found["cuda"]["devices"]) == torch.cuda.device_count()
    assert found["problem"] is None and found["plans"] == []


def test_info_of_the_environment(
    run: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_POOL_MB", "17")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = run("info")[1]["environment"]
    assert found["FUSEDRNN_POOL_MB"] == "17" and found["OMP_WAIT_POLICY"] == "passive"
    assert found["OMP_NUM_THREADS"] is None and "HOME" not in found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_info_of_a_problem_has_its_plans(run: Callable[..., tuple[int, Any]], device: str) -> None:
    options = ["--layers", "3", "--bidirectional", "--proj-size", "2", "--dtype", "bfloat16"]
    more = ["--device", device, "--training", "--threads", "5"]
    status, found = run("info", *SIZES, *options, *more)
    assert status == 0
    assert [entry["layers"] for entry in found["plans"]] == [[1], [2, 3]]
    for entry, input_size in zip(found["plans"], (5, 4), strict=True):
        plan = fusedrnn.plan(
            "lstm", device=device, time=9, batch=4, input_size=input_size, hidden_size=6,
            proj_size=2, bidirectional=True, dtype=torch.bfloat16, threads=5, training=True,
        )  # fmt: skip
        assert entry["device"] == device and entry["plan"] == asdict(plan)
    assert found["problem"]["layers"] == 3 and found["problem"]["dtype"] == "bfloat16"


def test_info_in_words(shown: Callable[..., tuple[int, str]]) -> None:
    status, text = shown("info", *SIZES, "--cell", "gru", "--layers", "2", "--device", "cpu")
    assert status == 0
    for words in (
        torch.__version__, cpu_capability(), "FUSEDRNN_PLAN", "forward_steps",
        "Plan of gru T9 B4 I5 H6 layers2, float32, inference, layer 1, on cpu", "layer 2, on cpu",
    ):  # fmt: skip
        assert words in text, words


def test_every_field_of_a_plan_is_explained() -> None:
    plans = (fusedrnn.Plan, fusedrnn.CudaPlan, fusedrnn.CudaWalk)
    names = {field.name for plan in plans for field in fields(plan)}
    assert names - set(info.MEANINGS) == {"forward", "backward"}  # walks, whose fields are there


@pytest.mark.parametrize(
    "capability, expected",
    [
        ((7, 5), "sm_75"), ((7, 0), None), ((8, 0), "sm_80"), ((8, 9), "sm_80"),
        ((9, 0), "sm_90a"), ((10, 0), "sm_100"), ((10, 3), "sm_100"), ((12, 0), "compute_100"),
    ],
)  # fmt: skip
def test_the_code_that_a_device_runs(capability: tuple[int, int], expected: str | None) -> None:
    assert info.code_for(capability, "sm_75 sm_80 sm_90a sm_100 compute_100".split()) == expected


def test_a_feature_of_one_capability_runs_there_alone() -> None:
    assert info.code_for((10, 0), ["sm_90a", "compute_90a"]) is None
    assert info.code_for((10, 3), ["sm_100f"]) == "sm_100f"
    assert info.code_for((8, 6), []) is None


# verify

UNPROJECTED = len(verify.VARIANTS) - 1
"""The variants of a cell that has no projection."""


def test_verify_holds_every_row_to_the_rule(run: Callable[..., tuple[int, Any]]) -> None:
    status, found = run("verify", "--quick", "--device", "cpu", *ONE_THREAD)
    assert status == 0 and found["passed"] and found["threads"] == 1
    rows = {(row["cell"], row["dtype"], row["variant"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    assert set(rows) == {
        (cell, dtype, variant)
        for cell in COMPILED
        for dtype in DTYPES
        for variant in verify.VARIANTS
        if variant != "projected" or cell_named(cell).projects
    }
    for which, row in rows.items():
        assert row["passed"] and row["error"] is None, row
        assert row["device"] == "cpu" and row["capability"] == cpu_capability()
        for group in ("output", "states", "gradients"):
            assert 0 <= row[group] <= 1, (which, group)
        if row["dtype"] != "float64":
            assert row["gradients"] > 0, which
    assert torch.get_num_threads() == 2  # as before


def test_verify_of_another_instruction_set(
    run: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [level for level in fusedrnn._C.cpu_capabilities() if level != cpu_capability()]
    levels = [cpu_capability(), *others[-1:]]
    monkeypatch.setattr(verify, "cpu_capabilities", lambda: levels)  # not all: each takes 3 s
    which = ["--cell", "gru", "--dtype", "float32", "--quick", "--device", "cpu"]
    status, found = run("verify", *which, "--all-capabilities", *ONE_THREAD)
    assert status == 0
    assert [row["capability"] for row in found["rows"]] == [
        level for level in levels for _ in range(UNPROJECTED)
    ]


class _Scaled(torch.autograd.Function):
    """The same numbers with gradients that are a little too large."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 1.001


FAULTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "output": lambda y: y * 1.001,
    "gradients": _Scaled.apply,
    "nothing finite": lambda y: y * float("nan"),
    "shape": lambda y: y[..., :-1],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_finds_a_fault(
    fault: str, run: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = functional.run_network

    def wrong(*arguments: Any) -> tuple[Any, ...]:
        output, *others = right(*arguments)
        return FAULTS[fault](output), *others

    monkeypatch.setattr(functional, "run_network", wrong)
    which = ["--cell", "rnn_tanh", "--dtype", "float32", "--dtype", "float64", "--device", "cpu"]
    status, found = run("verify", "--quick", *which, *ONE_THREAD)
    assert status == 1 and not found["passed"] and len(found["rows"]) == 2 * UNPROJECTED
    for row in found["rows"]:
        assert not row["passed"]
        if fault == "shape":
            assert "shapes: expected" in row["error"]
        elif fault == "nothing finite":
            assert row["output"] is None and row["states"] <= 1
        else:
            assert row[fault] > 1 and row["states"] <= 1
            assert (row["output"] > 1) == (fault == "output")


def test_verify_says_what_failed(
    shown: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    which = ["--cell", "gru", "--dtype", "float32", "--quick", "--device", "cpu", *ONE_THREAD]
    status, text = shown("verify", *which)
    assert status == 0 and f"{UNPROJECTED} rows, all passed" in text and "FAIL" not in text

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("it [would] not")  # brackets are no markup

    monkeypatch.setattr(functional, "run_network", refuse)
    status, text = shown("verify", *which)
    assert status == 1 and f"{UNPROJECTED} rows, {UNPROJECTED} of {UNPROJECTED} FAILED" in text
    assert "FAIL cpu gru float32 packed: RuntimeError: it [would] not" in text


def test_a_process_that_ends_without_rows_is_a_failure(
    run: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def done(command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -4, "", "Illegal instruction")

    monkeypatch.setattr(verify, "cpu_capabilities", lambda: ["portable", "unheard-of"])
    monkeypatch.setattr(verify, "cpu_capability", lambda: "portable")
    monkeypatch.setattr(verify.subprocess, "run", done)
    which = ["--cell", "gru", "--dtype", "float32", "--quick", "--device", "cpu"]
    status, found = run("verify", *which, "--all-capabilities", *ONE_THREAD)
    assert status == 1 and len(found["rows"]) == UNPROJECTED + 1
    assert "Illegal instruction" in found["rows"][-1]["error"]
    assert found["rows"][-1]["capability"] == "unheard-of"


# bench


def test_bench(run: Callable[..., tuple[int, Any]]) -> None:
    cells = ["--cell", "lstm", "--cell", "rnn_relu"]
    status, found = run("bench", *SIZES, *cells, "--budget", "0.1", *ONE_THREAD)
    assert status == 0 and found["threads"] == 1 and found["device"] == "cpu"
    assert [(row["cell"], row["pass"]) for row in found["rows"]] == [
        (cell, name) for cell in ("lstm", "rnn_relu") for name in bench.PASSES
    ]
    for row in found["rows"]:
        assert row["error"] is None and row["rounds"] >= 2
        assert row["problem"]["hidden_size"] == 6
        for key in ("fusedrnn_seconds", "torch_seconds", "ratio"):
            figures = row[key]
            assert 0 < figures["low"] <= figures["median"] <= figures["high"]


def test_bench_in_words(shown: Callable[..., tuple[int, str]]) -> None:
    which = ["--proj-size", "2", "--bidirectional", "--dtype", "bfloat16", "--budget", "0.1"]
    status, text = shown("bench", *SIZES, *which, *ONE_THREAD)
    assert status == 0
    assert "T9 B4 I5 H6 dirs2 proj2" in text and "forward+backward" in text
    assert "lstm" in text and "gru" not in text  # which has no projection


def test_bench_times_nothing_that_is_wrong(
    run: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = functional.run_network
    monkeypatch.setattr(functional, "run_network", lambda *a: (right(*a)[0] * 1.1, *right(*a)[1:]))
    status, found = run("bench", *SIZES, "--cell", "gru", "--budget", "0.1", *ONE_THREAD)
    assert status == 1
    for row in found["rows"]:
        assert "ParityError: output: expected within" in row["error"]
        assert row["ratio"] is None


def test_the_problems_without_sizes_are_the_benchmark_s() -> None:
    for problem, row in zip(bench.PROBLEMS, rows_named(["D", "F"]), strict=True):
        assert str(problem).split()[:4] == [
            f"T{row.T}", f"B{row.B}", f"I{row.I}", f"H{row.H}"
        ]  # fmt: skip
        assert (problem.layers, 1 + problem.bidirectional) == (row.layers, row.directions)


# Wrong arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "arguments are required: COMMAND"),
        (["measure"], "invalid choice: 'measure'"),
        (["info", "--time", "0"], "argument --time: expected a whole number from 1"),
        (["info", "--time", str(2**40)], "argument --time: expected a whole number from 1"),
        (["info", "--time", "9"], "not given: --batch, --input-size, --hidden-size"),
        (["info", "--layers", "2"], "argument --layers: needs --time, --batch"),
        (["info", "--device", "cuda"], "argument --device: needs the sizes of a problem"),
        (["info", *SIZES, "--proj-size", "6"], "argument --proj-size: expected less than"),
        (["info", *SIZES, "--cell", "gru", "--proj-size", "2"], "expected --cell lstm"),
        (["info", *SIZES, "--cell", "mlp"], "argument --cell: invalid choice: 'mlp'"),
        (["bench", "--budget", "0"], "argument --budget: expected a positive number of seconds"),
        (["bench", "--budget", "soon"], "got 'soon'"),
        (["bench", "--device", "meta"], "argument --device: expected cpu, cuda or cuda:<index>"),
        (["bench", "--device", "gpu"], "argument --device: expected cpu, cuda or cuda:<index>"),
        (["verify", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["verify", "--threads", "many"], "argument --threads: expected a whole number"),
    ],
)  # fmt: skip
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    captured = capsys.readouterr()
    assert exit.value.code == 2 and message in captured.err and not captured.out


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_gpu_that_is_not_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--device", "cuda:99"])
    assert exit.value.code == 2
    assert "argument --device: cuda:99: t" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "verify", "bench"])
def test_help_has_the_keys_of_the_document(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0 and "The keys of --json:" in text
    module = {"info": info, "verify": verify, "bench": bench}[command]
    keys = {"info": ["versions", "cuda", "plans"], "verify": ["passed", "rows"], "bench": ["rows"]}
    for key in keys[command]:
        assert f"\n  {key} " in text and module.__doc__


def test_columns_without_rich() -> None:
    table = tables.Table("Title", ("left", ">right"), [("a", "1"), ("longer", "1.25")])
    assert tables._plain(table) == ["Title", "left    right", "a           1", "longer   1.25"]


# In a process of its own


def fusedrnn_command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fusedrnn", *arguments], cwd=Path(__file__).parents[1],
        capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


def test_python_m_fusedrnn() -> None:
    done = fusedrnn_command("info", "--json")
    assert done.returncode == 0 and not done.stderr
    assert json.loads(done.stdout)["build"] == fusedrnn.build_info()


def test_a_plan_that_makes_no_sense_is_told_without_a_traceback() -> None:
    environment = os.environ | {"FUSEDRNN_PLAN": "threads=none"}
    done = fusedrnn_command("info", *SIZES, "--json", env=environment)
    assert done.returncode == 2 and not done.stdout
    assert "FUSEDRNN_PLAN: threads: expected a positive number" in done.stderr
    assert "Traceback" not in done.stderr
