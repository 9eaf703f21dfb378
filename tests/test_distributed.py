"""Training with several processes: DDP, FSDP2, and the example's checkpoints.

The processes are started by torchrun on this machine and find each other over loopback, at a port
that is free (--standalone). What two of them check together is in distributed_checks.py: all of it
in one start, since a start takes seconds.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_checks import CHECKS
from processes import python
from torch import distributed
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

EXAMPLE = "examples/train_distributed.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
SMALL = ("--windows", "64", "--width", "8", "--epochs", "3", "--device", "cpu")

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="this torch has no gloo",
)


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return python(*words, OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What was wrong with each check, for each process."""
    folder = tmp_path_factory.mktemp("distributed")
    done = run(*TORCHRUN, "tests/distributed_checks.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("check", CHECKS)
def test_two_processes(check: str, answers: list[dict[str, str]]) -> None:
    for rank, wrong in enumerate(answers):
        assert wrong[check] == "", f"process {rank}: {wrong[check]}"


def state_of(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """What a checkpoint holds except the settings of the optimizer, its progress unpacked."""
    dcp_to_torch_save(checkpoint, scratch / "whole.pt")
    state = torch.load(scratch / "whole.pt", weights_only=False)
    state["optimizer"] = state["optimizer"]["state"]
    state["progress"] = json.loads(state["progress"])
    assert state["network"] and state["optimizer"]
    return state


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Killed in the middle of a save; then resumed by as many processes, and by a single one."""
    whole, killed, alone = (tmp_path / name for name in ("whole", "killed", "alone"))
    sharded = (*SMALL, "--strategy", "fsdp", "--out", tmp_path / "plot.png", "--checkpoint")

    done = run(*TORCHRUN, EXAMPLE, *sharded, whole)
    assert "FAILED: error" in done.stdout, done.stderr[-3000:]  # that few epochs do not suffice
    assert done.returncode == 1
    assert names(whole) == ["step-12", "step-8"]

    done = run(*TORCHRUN, "tests/killed_while_saving.py", EXAMPLE, *sharded, killed)
    assert done.returncode != 0
    assert names(killed) == ["step-4", "step-8.part"]
    assert any((killed / "step-8.part").iterdir())
    shutil.copytree(killed, alone)

    done = run(*TORCHRUN, EXAMPLE, *sharded, killed)
    assert "goes on from step 4" in done.stdout, done.stderr[-3000:]
    assert names(killed) == ["step-12", "step-8"]
    expected, found = (state_of(path / "step-12", tmp_path) for path in (whole, killed))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert expected["progress"]["step"] == len(expected["progress"]["losses"]) == 12

    done = run(EXAMPLE, *SMALL, "--out", tmp_path / "plot.png", "--checkpoint", alone)
    assert "goes on from step 4" in done.stdout, done.stderr[-3000:]
    found = state_of(alone / "step-12", tmp_path)
    for part in ("network", "optimizer", "progress"):  # the rest are two processes' random numbers
        torch.testing.assert_close(found[part], expected[part], rtol=1e-4, atol=1e-6)


def test_random_numbers_are_resumed(tmp_path: Path) -> None:
    """With dropout, and resumed in the middle of an epoch."""
    options = (*SMALL, "--dropout", "0.2", "--recompute", "block", "--out", tmp_path / "plot.png")
    options = (*options, "--save-every", "3", "--checkpoint")
    run(EXAMPLE, *options, tmp_path / "whole")
    done = run(EXAMPLE, *options, tmp_path / "stopped", "--stop-after", "1")
    assert done.returncode == 0 and "stopped after 1 epochs of 3" in done.stdout, done.stderr
    assert names(tmp_path / "stopped") == ["step-3"]
    run(EXAMPLE, *options, tmp_path / "stopped")
    expected, found = (
        state_of(tmp_path / name / "step-12", tmp_path) for name in ("whole", "stopped")
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_example_says_what_is_wrong(tmp_path: Path) -> None:
    done = run(EXAMPLE, "--windows", "8")
    assert done.returncode == 2 and "--windows: expected 64 or more" in done.stderr
