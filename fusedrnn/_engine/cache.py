"""The folder in which things are kept between processes, and in which only this user can write.

It holds compiled programs and images of CUDA kernels (compiling.py), which are code, and records of
GPUs (record.py), which decide what code runs. So the folder and each file must belong to this user,
and nobody else may write to them. A file gets its name when it is complete.

FUSEDRNN_CACHE names the folder; without it, it is fusedrnn in XDG_CACHE_HOME, or in ~/.cache.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fusedrnn._engine import processes


class Unusable(Exception):
    """Why a file of the cache, or the cache, cannot be used."""


def cache_folder() -> Path:
    """Where things are kept.

    Raises:
        Unusable: there is no such place.
    """
    asked = os.environ.get("FUSEDRNN_CACHE")
    if asked:
        return Path(asked).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base, "fusedrnn")
    try:
        return Path.home() / ".cache" / "fusedrnn"
    except RuntimeError as error:
        raise Unusable(f"no cache: {error}") from None


def made_folder() -> Path:
    """The cache's folder, which is made if it is not there."""
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)
    return folder


def read(file: Path) -> bytes | None:
    """What a file of the cache has, or None if there is none.

    Raises:
        Unusable: others could have written it.
    """
    _check_private(file.parent)
    if not file.exists():
        return None
    _check_private(file)
    return file.read_bytes()


def write(file: Path, content: bytes) -> None:
    """Makes or replaces a file of the cache, at once."""
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        new = Path(temporary, "new")
        new.write_bytes(content)
        new.chmod(0o600)
        os.replace(new, file)


@contextlib.contextmanager
def alone(lock: Path, seconds: float = math.inf) -> Iterator[None]:
    """No other process is in a block of this lock's meanwhile.

    On a file system without locks, others may be.

    Raises:
        Unusable: another process was in its block for so many seconds, perhaps since it is stopped.
        OSError: the lock's file cannot be made.
    """
    file = _locked(lock, seconds)
    with file:
        try:
            yield
        finally:
            # Those who wait for this file will find that it is gone, and make another one.
            lock.unlink(missing_ok=True)
            _unlock(file)
            _locks.discard(file)


def _locked(lock: Path, seconds: float) -> IO[str]:
    import fcntl

    end = time.monotonic() + seconds
    while True:
        with processes.without_forks():
            file = open(  # noqa: SIM115, `alone` closes it
                lock, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)
            )
            _locks.add(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
            _unlock(file)
        except FileNotFoundError:  # whoever had it has removed it
            _unlock(file)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # no locks here
            return file
        _locks.discard(file)
        file.close()
        if time.monotonic() > end:
            raise Unusable(f"another process has had {lock} for {seconds:.0f} s")


def _unlock(file: IO[str]) -> None:
    import fcntl

    with contextlib.suppress(OSError):  # closing does not unlock it while a fork has it
        fcntl.flock(file, fcntl.LOCK_UN)


def _check_private(path: Path) -> None:
    """Only this user can have written what is there. Nothing being there is right, too."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise Unusable(f"{path} belongs to another user (number {status.st_uid})")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(status.st_mode)
            raise Unusable(f"other users may write to {path} (mode {mode:o})")


def _in_a_fork() -> None:
    for file in _locks:  # otherwise the child would wait for a lock that it holds itself
        file.close()
    _locks.clear()


_locks: set[IO[str]] = set()
os.register_at_fork(after_in_child=_in_a_fork)
