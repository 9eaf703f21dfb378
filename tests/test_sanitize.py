"""The CPU kernels on random problems, watched by sanitizers (sanitize/driver.cpp says how).

float32 without instructions of its own is compiled in seconds, and has all that is shared: walks,
threads, memory. `make sanitize` and the thorough form have the other kernels, too.
"""

from __future__ import annotations

import re
import subprocess

import pytest
from conftest import COMPILED
from sanitize import run

by_each_sanitizer = pytest.mark.parametrize("sanitizer", list(run.SANITIZERS))


def driven(sanitizer: str, kernels: run.Kernels | None, *arguments: object):
    try:
        return run.run(run.built(sanitizer, kernels), *arguments)
    except run.Missing as missing:
        pytest.skip(str(missing))


def assert_clean(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


@by_each_sanitizer
def test_every_cell_with_every_split(sanitizer: str) -> None:
    cells = len(COMPILED) + 1  # and programs
    problems = cells * 3 * 2 * 2  # splits; packed or not; projected inside the walk or not
    done = driven(sanitizer, run.FEW, "--problems", problems)
    assert_clean(done)
    assert done.stdout == f"{problems} problems\n"


@by_each_sanitizer
def test_a_fault_is_seen_and_the_problem_named(sanitizer: str) -> None:
    done = driven(sanitizer, run.FEW, "--fault", 1)
    assert done.returncode != 0
    assert {"address": "heap-buffer-overflow", "thread": "data race"}[sanitizer] in done.stderr
    assert re.search(r"while computing\n  .*/driver --fault 1\n$", done.stderr)


@by_each_sanitizer
def test_a_team_does_without_threads_that_come_late(sanitizer: str) -> None:
    """A parallel_for need not run all of its threads at once."""
    done = driven(sanitizer, run.FEW, "--late", 1)
    assert_clean(done)
    assert done.stdout == "0 of 1\n"


@pytest.mark.thorough
@by_each_sanitizer
def test_all_kernels(sanitizer: str) -> None:
    assert_clean(driven(sanitizer, None, "--problems", 100_000, "--seconds", 60))
