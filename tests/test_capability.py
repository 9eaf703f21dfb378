"""The kernels of every instruction set that this processor has compute the same layer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import Case, check

import fusedrnn

LEVELS = ["portable", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16"]
CASES = [
    Case(cell=cell, T=7, B=11, I=9, H=37, bidirectional=True, packed="unsorted", P=P)
    for cell, P in (("lstm", 0), ("lstm", 9), ("gru", 0), ("rnn_tanh", 0), ("rnn_relu", 0))
] + [Case(cell=cell, T=3, B=1, I=40, H=66) for cell in ("lstm", "gru", "rnn_tanh")]


def check_all() -> None:
    for case in CASES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            check(case, dtype)
    print(fusedrnn._C.cpu_capability())


@pytest.mark.parametrize("level", LEVELS)
def test_level(level: str) -> None:
    best = LEVELS.index(fusedrnn._C.cpu_capability())
    if LEVELS.index(level) > best:
        pytest.skip(f"this processor has {LEVELS[best]} at best")
    code = "import test_capability; test_capability.check_all()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=os.path.dirname(__file__),
        env=os.environ | {"FUSEDRNN_CPU_CAPABILITY": level},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if level == "avx2_vnni" and done.returncode == 0 and done.stdout != f"{level}\n":
        pytest.skip("this processor has AVX-512 without it")
    assert done.stdout == f"{level}\n", done.stderr[-2000:]
