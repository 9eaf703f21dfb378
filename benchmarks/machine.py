"""What the figures were measured on, and how fast that machine could be at best.

The limit is the rate of fused multiply-adds in float32, measured by a loop that does nothing else
(`fusedrnn._C.fma_peak`). Figures in bfloat16 are set against the same float32 peak, and may pass
100 % where the chip has dot-product instructions.
"""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

PEAK_SECONDS = 0.2
PEAK_TRIES = 3


def describe(thread_counts: Iterable[int], versions: dict[str, str]) -> dict[str, Any]:
    """Everything about machine, software and moment that a reader of the figures needs."""
    # Not above: `commit` is asked for where fusedrnn does not load, too.
    from fusedrnn.command_line.info import cores, cpu_model, environment

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "capability": {
            "torch": torch.backends.cpu.get_cpu_capability(),
            "fusedrnn": introspect("cpu_capability"),
        },
        "environment": {
            name: value for name, value in sorted(environment().items()) if value is not None
        },
        "commit": commit(),
        "load_average_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "fma_peak": {str(threads): fma_peak(threads) for threads in thread_counts},
    }


def fma_peak(threads: int) -> float | None:
    """The most FLOP/s (float32) that `threads` threads reached in a few tries, or None."""
    rates = [introspect("fma_peak", threads, PEAK_SECONDS) for _ in range(PEAK_TRIES)]
    measured = [rate for rate in rates if rate]
    return max(measured) if measured else None


def introspect(function: str, *arguments: object) -> Any:
    """`fusedrnn._C.function(*arguments)`, or None where the build has no such function."""
    try:
        native = importlib.import_module("fusedrnn._C")
    except ImportError:
        return None
    found = getattr(native, function, None)
    return None if found is None else found(*arguments)


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def commit() -> str | None:
    """The commit of the working tree, `+changes` when it has any; outside of git $COMMIT."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ("git", *arguments),
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    found = git("rev-parse", "--short=12", "HEAD")
    if found is None:
        return os.environ.get("COMMIT")
    return found + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
