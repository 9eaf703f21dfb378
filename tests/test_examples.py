"""The examples run as their users run them."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

import pytest
import torch
from processes import ROOT, python

FRAMEWORKS = {"lightning_module": "lightning", "skorch_classifier": "skorch",
              "hf_trainer": "transformers"}  # fmt: skip
"""The package that an example of examples/frameworks needs."""


def test_digits(tmp_path: Path) -> None:
    plot = tmp_path / "digits.png"
    done = python("examples/digits.py", "--epochs", "20", "--out", str(plot))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "accuracy on held-out digits" in done.stdout and "FAILED" not in done.stdout
    assert plot.stat().st_size > 10_000


def test_digits_that_did_not_learn_fail(tmp_path: Path) -> None:
    done = python("examples/digits.py", "--epochs", "1", "--out", str(tmp_path / "digits.png"))
    assert done.returncode == 1
    assert "FAILED: accuracy is not above 95%" in done.stdout


def test_digits_says_what_is_missing(tmp_path: Path) -> None:
    done = python("examples/digits.py", "--mnist", str(tmp_path))
    assert done.returncode == 1
    assert "train-images-idx3-ubyte" in done.stderr


SHORT = ("--cell", "gru", "--iterations", "30")
"""In that many iterations a GRU has long learned its way through the mazes."""


def success_rate(printed: str) -> float:
    rate = re.search(r"success rate of the last 1000 +([\d.]+)\n", printed)
    assert rate is not None, printed
    return float(rate[1])


@pytest.fixture
def mazes(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example as a module: a process of its own takes longer to start than to learn."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    threads = torch.get_num_threads()
    yield importlib.import_module("rl_memory")
    torch.set_num_threads(threads)


def test_mazes_are_solved_with_memory() -> None:
    done = python("examples/rl_memory.py", *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert success_rate(done.stdout) >= 0.95


def test_mazes_are_not_solved_without_memory(
    mazes: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rl_memory.py", "--no-memory", *SHORT])
    assert mazes.main() == 0
    assert 0.4 <= success_rate(capsys.readouterr().out) <= 0.6


def test_mazes_that_were_not_solved_fail(
    mazes: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if one rollout were the default length; the runs above are shorter, and not blamed."""
    monkeypatch.setattr(mazes, "ITERATIONS", 1)
    monkeypatch.setattr(sys, "argv", ["rl_memory.py", "--iterations", "1", "--environments", "4"])
    assert mazes.main() == 1
    assert "FAILED: success rate" in capsys.readouterr().out


def run_offline(example: str, folder: Path, *words: str) -> CompletedProcess[str]:
    """Runs it in an empty folder, with the network forbidden to the hub's client."""
    script = ROOT / "examples" / "frameworks" / f"{example}.py"
    return python(script, *words, folder=folder, HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("example", FRAMEWORKS)
def test_frameworks_learn(example: str, tmp_path: Path) -> None:
    pytest.importorskip(FRAMEWORKS[example])
    if example == "hf_trainer":
        pytest.importorskip("accelerate")
    done = run_offline(example, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "accuracy on held-out sequences" in done.stdout
    assert list(tmp_path.iterdir()) == []  # what a trainer writes is in a folder of its own


def test_what_did_not_learn_fails(tmp_path: Path) -> None:
    pytest.importorskip("skorch")
    done = run_offline("skorch_classifier", tmp_path, "--epochs", "0")
    assert done.returncode == 1
    assert "FAILED: accuracy is not above 90%" in done.stdout, done.stderr[-2000:]
