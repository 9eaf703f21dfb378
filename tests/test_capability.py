"""The kernels of every instruction set that this processor has compute the same layer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import Case, check

import fusedrnn

LEVELS = ["portable", "avx2", "avx512", "avx512_bf16"]
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
    assert done.stdout == f"{level}\n", done.stderr[-2000:]


def test_plan_is_printable_and_pure() -> None:
    sizes = dict(time=50, batch=64, input_size=100, hidden_size=128)
    first = fusedrnn.plan("lstm", **sizes, threads=4)
    assert first == fusedrnn.plan("lstm", **sizes, threads=4)
    assert first.threads <= 4 and first.split == "batch"
    assert fusedrnn.plan("lstm", **sizes, threads=1).threads == 1
    one = fusedrnn.plan("lstm", time=50, batch=1, input_size=1536, hidden_size=1536, threads=4)
    assert one.split == "units" and "units" in str(one)
    both = fusedrnn.plan("gru", **sizes, bidirectional=True, threads=2)
    assert both.direction_teams == 2 and both.split == "none"
    assert fusedrnn.plan("gru", time=1, batch=1, input_size=9, hidden_size=9).weights_in_place


def test_a_chunk_does_not_depend_on_threads() -> None:
    """What decides how sums are cut must not, or numbers would depend on the machine's size."""
    for cell in ("lstm", "gru", "rnn_tanh"):
        for batch in (1, 8, 64, 500):
            plans = {
                (p.forward_steps, p.backward_steps, p.weights_in_place, p.fuse_input)
                for p in (
                    fusedrnn.plan(cell, time=90, batch=batch, input_size=70, hidden_size=300,
                                  threads=threads)
                    for threads in (1, 2, 7, 64)
                )
            }  # fmt: skip
            assert len(plans) == 1
