"""Code that might crash, hang or fork, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from cuda_emulation.build import asan_environment

ROOT = Path(__file__).resolve().parent.parent


def in_a_process(code: str, **environment: str) -> str:
    """Runs Python code; returns what it printed. A crash, an error or two minutes fail the test."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


def python(
    *words: str | Path, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python with these words on its command line, and the repository's modules in reach."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True,
        timeout=300, env=os.environ | {"PYTHONPATH": paths} | environment,
    )  # fmt: skip


def under_address_sanitizer(code: str) -> str:
    """The same in the tests' folder, where emulated kernels of the variant asan can be loaded."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parent,
        env=asan_environment() | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return done.stdout
