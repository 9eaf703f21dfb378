"""Messages between the scheduler and its workers: JSON, one a line, through a local socket.

    worker     {"hello": number}
    scheduler  {"item": {"name": ..., "kind": ..., "arguments": {...}}}
    worker     {"end": name, "status": ..., "found": {...}, "why": ..., "machine": {...},
                "retire": "worker" or "pool", "more": [{"name": ..., ...}, ...]}
    ...
    scheduler  closes the socket

A socket with a name in the file system, and not a pipe, so that a worker may be started through
another program, such as compute-sanitizer. What a worker prints goes to the log. A worker, and the
program before it, end with the process that started them: `end_with_parent`.
"""

from __future__ import annotations

import ctypes
import json
import signal
import socket
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"  # a worker says so of an item
HUNG, DIED, UNFINISHED, NOT_RUN = "hung", "died", "did not finish", "not run"  # the scheduler


class Skip(Exception):
    """An item cannot be done here, and that is no failure."""


class Channel:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._rest = b""

    def send(self, message: Message) -> None:
        """Sends one message; OSError if the other end is gone."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """Waits for what comes next, which may be part of a message; EOFError at the end."""
        try:
            got = self.socket.recv(1 << 16)
        except ConnectionError:
            got = b""
        if not got:
            raise EOFError
        *lines, self._rest = (self._rest + got).split(b"\n")
        return [json.loads(line) for line in lines]

    def messages(self) -> Iterator[Message]:
        """All messages until the other end closes."""
        while True:
            try:
                yield from self.receive()
            except EOFError:
                return


_prctl = ctypes.CDLL(None).prctl  # found before a fork, after which little is safe
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def end_with_parent() -> None:
    """Nothing is left running on the GPU when the scheduler is killed."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def connect(address: str, number: int) -> Channel:
    """A worker's end."""
    end = socket.socket(socket.AF_UNIX)
    end.connect(address)
    channel = Channel(end)
    channel.send({"hello": number})
    return channel
