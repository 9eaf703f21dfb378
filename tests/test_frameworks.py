"""The framework examples run as their users run them, where the framework is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = {"lightning_module": "lightning", "skorch_classifier": "skorch",
            "hf_trainer": "transformers"}  # fmt: skip


def run(example: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs it in an empty folder, with the network forbidden to the hub's client."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "frameworks" / f"{example}.py"), *words],
        cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_learns(example: str, tmp_path: Path) -> None:
    pytest.importorskip(EXAMPLES[example])
    if example == "hf_trainer":
        pytest.importorskip("accelerate")
    done = run(example, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "accuracy on held-out sequences" in done.stdout
    assert list(tmp_path.iterdir()) == []  # what a trainer writes is in a folder of its own


def test_what_did_not_learn_fails(tmp_path: Path) -> None:
    pytest.importorskip("skorch")
    done = run("skorch_classifier", tmp_path, "--epochs", "0")
    assert done.returncode == 1
    assert "FAILED: accuracy is not above 90%" in done.stdout, done.stderr[-2000:]
