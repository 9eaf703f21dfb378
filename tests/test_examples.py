"""The examples run as their users run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_digits(tmp_path: Path) -> None:
    plot = tmp_path / "digits.png"
    done = run("examples/digits.py", "--epochs", "20", "--out", str(plot))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "accuracy on held-out digits" in done.stdout and "FAILED" not in done.stdout
    assert plot.stat().st_size > 10_000


def test_digits_that_did_not_learn_fail(tmp_path: Path) -> None:
    done = run("examples/digits.py", "--epochs", "1", "--out", str(tmp_path / "digits.png"))
    assert done.returncode == 1
    assert "FAILED: accuracy is not above 95%" in done.stdout


def test_digits_says_what_is_missing(tmp_path: Path) -> None:
    done = run("examples/digits.py", "--mnist", str(tmp_path))
    assert done.returncode == 1
    assert "train-images-idx3-ubyte" in done.stderr
