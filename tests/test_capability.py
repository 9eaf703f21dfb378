"""The kernels of every instruction set that this processor has compute the same layer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedrnn
from fusedrnn.parity import Case, check

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ["portable", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16"]
CASES = [
    Case(cell=cell, T=7, B=11, I=9, H=37, bidirectional=True, packed="unsorted", P=P)
    for cell, P in (
        ("lstm", 0),
        ("lstm", 9),
        ("gru", 0),
        ("gru_reset_before", 0),
        ("rnn_tanh", 0),
        ("rnn_relu", 0),
    )
] + [
    Case(cell=cell, T=3, B=1, I=40, H=66)
    for cell in ("lstm", "gru", "gru_reset_before", "rnn_tanh")
]


def check_all() -> None:
    for case in CASES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            check(case, dtype)


def check_at(level: str, check_all: str) -> None:
    """Runs a function, as "module.function", where kernels are of this instruction set."""
    if level not in (has := fusedrnn._C.cpu_capabilities()):
        pytest.skip(f"this processor has {', '.join(has)}")
    module = check_all.partition(".")[0]
    code = f"import fusedrnn, {module}; {check_all}(); print(fusedrnn._C.cpu_capability())"
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT / "tests",
        env=os.environ | {"FUSEDRNN_CPU_CAPABILITY": level, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == f"{level}\n", done.stderr[-2000:]


def test_a_processor_has_all_that_its_best_builds_on() -> None:
    """Whatever this process was told to use, portable code runs everywhere."""
    found = fusedrnn._C.cpu_capabilities()
    assert found == sorted(found, key=LEVELS.index, reverse=True)
    assert found[-1] == "portable" and fusedrnn._C.cpu_capability() in found


@pytest.mark.parametrize("level", LEVELS)
def test_level(level: str) -> None:
    check_at(level, "test_capability.check_all")
