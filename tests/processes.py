"""Code that might crash, hang or fork, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def in_a_process(code: str, **environment: str) -> str:
    """Runs Python code; returns what it printed. A crash, an error or two minutes fail the test."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout
