"""The kernels of every instruction set that this processor has compute the same layer."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CELLS, KINDS, cases_of
from processes import in_a_process

import fusedrnn
from fusedrnn.testing.parity import Case, check

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ["portable", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16"]
PLAIN = Case(T=7, B=11, I=9, H=37, bidirectional=True, packed="unsorted")
CASES = cases_of(CELLS, [PLAIN, replace(PLAIN, P=9)])
CASES += cases_of(KINDS, [Case(T=3, B=1, I=40, H=66)])


def check_all() -> None:
    for case in CASES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            check(case, dtype)


def check_at(level: str, check_all: str) -> None:
    """Runs a function, as "module.function", where kernels are of this instruction set."""
    if level not in (has := fusedrnn._C.cpu_capabilities()):
        pytest.skip(f"this build has kernels for {', '.join(has)} here")
    module = check_all.partition(".")[0]
    code = f"import fusedrnn, {module}; {check_all}(); print(fusedrnn._C.cpu_capability())"
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT / "tests",
        env=os.environ | {"FUSEDRNN_CPU_CAPABILITY": level, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == f"{level}\n", done.stderr[-2000:]


def test_what_can_be_chosen_is_built_and_supported() -> None:
    supported, built = fusedrnn._C.processor_capabilities(), fusedrnn.build_info()["cpu_targets"]
    for found in (supported, built):
        assert found == sorted(found, key=LEVELS.index, reverse=True)
    assert supported[-1] == "portable"  # runs everywhere
    possible = [level for level in supported if level in built]
    assert fusedrnn._C.cpu_capabilities() == possible
    assert fusedrnn._C.cpu_capability() in possible


@pytest.mark.parametrize("asked", ["unheard-of", "AVX2", "portable ", "missing"])
def test_what_cannot_be_had_is_refused(asked: str) -> None:
    missing = [level for level in LEVELS if level not in fusedrnn._C.cpu_capabilities()]
    if asked == "missing" and not missing:
        pytest.skip("this processor and this build have them all")
    asked = missing[-1] if asked == "missing" else asked
    out = in_a_process(
        """
        import fusedrnn, torch
        x, lstm = torch.zeros(2, 3, 4), fusedrnn.LSTM(4, 5)
        for call in (lambda: lstm(x), lambda: fusedrnn.Streaming(lstm, weights="int8"),
                     lambda: fusedrnn.plan("lstm", time=1, batch=1, input_size=1, hidden_size=1)):
            try:
                call()
                print("ran")
            except (RuntimeError, ValueError) as error:
                print(str(error).splitlines()[0])
        """,
        FUSEDRNN_CPU_CAPABILITY=asked,
    )
    possible = ", ".join(fusedrnn._C.cpu_capabilities())
    expected = f"FUSEDRNN_CPU_CAPABILITY: expected one of {possible} "
    lines = out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(expected) and line.endswith(f'got "{asked}"'), line


@pytest.mark.parametrize("level", LEVELS)
def test_level(level: str) -> None:
    check_at(level, "test_capability.check_all")
