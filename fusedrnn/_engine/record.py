"""What was found on a kind of GPU, kept between processes: which ways agree, and which are fastest.

A record is a JSON file of the cache (cache.py) for each kind of GPU, with sections of entries:

    format    of this file; another one's is not read
    kind      the GPU and the software on it, which the file's name has a digest of
    ways      by way (ways.py): agreed, disagreed, faulted, hung or absent; why, and when
    teams     by a layer's shape and pass (tuning.py): the fastest team, and the seconds of each
    networks  by a network's shape: whose way is faster, and the seconds of each
    digest    of all the rest

Nothing here is an error to the user. A record that is corrupt, that others could have written, or
that is of something else, counts as none, and one that cannot be written is kept only by this
process; a warning says so, once. Two processes that write at the same time add to each other's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusedrnn._engine import cache
from fusedrnn._engine.cache import Unusable

FORMAT = 1
SECTIONS = ("ways", "teams", "networks")
WRITE_SECONDS = 10.0  # that other processes may take to write theirs

Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of GPU, with everything beside it that decides what its kernels compute.

    Attributes:
        gpu: its name.
        multiprocessors: how many of them this process has; a part of a GPU has fewer.
        driver: the version of the driver.
        cuda: the version of CUDA that torch was built for.
        torch: the version of torch.
        fusedrnn: the version of this package.
        library: a digest of its CUDA library.
    """

    gpu: str
    multiprocessors: int
    driver: str
    cuda: str
    torch: str
    fusedrnn: str
    library: str

    def __str__(self) -> str:
        return f"{self.gpu}, driver {self.driver}, CUDA {self.cuda}, torch {self.torch}"


class Record:
    """The record of one kind of GPU, as this process knows it.

    Attributes:
        kind: the kind.
        entries: what is known, by section and name.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.entries: dict[str, Entries] = {section: {} for section in SECTIONS}
        self.read()

    @property
    def file(self) -> Path:
        """Where it is kept.

        Raises:
            Unusable: there is no cache.
        """
        return cache.cache_folder() / f"gpu-{_digest(asdict(self.kind))[:16]}.json"

    @property
    def place(self) -> str | None:
        """The file's path, to be shown; None if there is no cache."""
        try:
            return str(self.file)
        except Unusable:
            return None

    def read(self) -> None:
        """Takes in what other processes have added to the file."""
        try:
            content = cache.read(self.file)
            if content is not None:
                self._take(entries_of(content, self.kind))
        except (Unusable, OSError) as error:
            _warn(f"the record of this GPU was not read: {error}")

    def add(self, section: str, entries: Mapping[str, dict[str, Any]]) -> None:
        """Adds entries, and keeps them; those that are there already stay as they are."""
        if not entries:
            return
        try:
            with self.alone("write", WRITE_SECONDS):
                self.read()
                self._take({section: entries})
                cache.write(self.file, self.text().encode())
        except (Unusable, OSError) as error:
            self._take({section: entries})
            _warn(f"the record of this GPU was not kept: {error}")

    @contextlib.contextmanager
    def alone(self, what: str, seconds: float) -> Iterator[None]:
        """No other process does this with the record of this kind meanwhile.

        Raises:
            Unusable, OSError: there is no cache, so that others cannot be told, or another process
                did not end it in this time.
        """
        cache.made_folder()
        with cache.alone(self.file.with_suffix(f".{what}.lock"), seconds):
            yield

    def text(self) -> str:
        """The file."""
        content = {"format": FORMAT, "kind": asdict(self.kind), **self.entries}
        return json.dumps(content | {"digest": _digest(content)}, indent=1) + "\n"

    def _take(self, found: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
        for section, entries in found.items():
            self.entries[section] = {**entries, **self.entries[section]}


def entries_of(content: bytes, kind: Kind) -> dict[str, Entries]:
    """What a record's file says of a kind of GPU; nothing if it is of another kind or format.

    Raises:
        Unusable: it is corrupt.
    """
    try:
        found = json.loads(content)
        digest = found.pop("digest")
        if _digest(found) != digest:
            raise ValueError("its digest is another one")
        if found["format"] != FORMAT or found["kind"] != asdict(kind):
            return {}
        entries: dict[str, Entries] = {
            section: {name: dict(entry) for name, entry in found[section].items()}
            for section in SECTIONS
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable(f"it is corrupt ({type(error).__name__}: {error})") from None
    return entries


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _warn(what: str) -> None:
    if not _said:  # one warning, whatever else happens
        _said.append(what)
        warnings.warn(
            f"fusedrnn: {what}. Each process finds out anew.", RuntimeWarning, stacklevel=2
        )


_said: list[str] = []
