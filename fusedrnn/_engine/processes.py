"""Processes that this one starts: they end with it, and a fork of it inherits nothing of them.

Their output goes to files. A fork would inherit the ends of pipes and keep them open.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

KILL_SECONDS = 10.0  # that a killed process may take to end


@contextmanager
def running(
    command: Sequence[str],
    output: IO[bytes] | int,
    errors: IO[bytes] | int,
    environment: Mapping[str, str],
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which is killed if it still runs at the end of the block."""
    with without_forks():  # Popen itself uses a pipe
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment
        )
        _running.add(process)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it
                process.wait(timeout=KILL_SECONDS)
        _running.discard(process)


@contextmanager
def without_forks() -> Iterator[None]:
    """No thread forks meanwhile: for opening what a fork would have to close."""
    with _forking:
        yield


@atexit.register
def stop() -> None:
    """Ends all of them, at the end of this process."""
    for process in [*_running]:
        process.kill()


def _in_a_fork() -> None:
    global _forking
    _forking = threading.Lock()
    _running.clear()


_forking = threading.Lock()
_running: set[subprocess.Popen[bytes]] = set()
os.register_at_fork(
    before=lambda: _forking.acquire(),
    after_in_parent=lambda: _forking.release(),
    after_in_child=_in_a_fork,
)
