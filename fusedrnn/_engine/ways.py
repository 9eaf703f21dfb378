"""Ways of computing a layer on CUDA, and that none is used on a GPU before it agreed there.

A way is a team that walks a cell's steps, in an arithmetic, forward or backward. A process's first
call asks, from within the library of CUDA kernels (csrc/cuda/ways.h), whether the ways are fit:

    what the record of this kind of GPU says (record.py)
    else  one process of eight, under a lock  ->  a child  ->  small problems by each way
                                                               (fusedrnn/testing/ways.py)

A child may fault or hang without harm to this process: it says which way comes next before it
begins, and is replaced by another child for the ways that are left. A way that disagrees with the
reference, faults or hangs is struck off, with one warning for all of them, and plans take another.
Compiled cells are checked together, a written one when a call wants it. A process that finds no way
to check uses no teams, since stepwise kernels wait for nobody.

FUSEDRNN_CHECK=0 trusts all ways. Under an override of plans (FUSEDRNN_PLAN) nothing is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import fusedrnn
from fusedrnn import _C
from fusedrnn._engine import native, processes
from fusedrnn._engine.cache import Unusable
from fusedrnn._engine.layer_shapes import (
    PASSES,
    TEAMS,
    LayerShape,
    TeamChoice,
    name_of_cell,
    team_choice,
)
from fusedrnn._engine.record import Kind, Record
from fusedrnn.cells import CELLS
from fusedrnn.cells.facts import cell_of_spec

ARITHMETICS = ("float32", "tf32", "bfloat16", "float16", "float64")
"""In the order of csrc/cuda/ways.h."""

# Seconds until a child that could not start is given up, or a way that does not end. It takes
# milliseconds, on a machine that may have much else to do; a child's first way loads the kernels,
# and a written cell's walks are compiled first.
START_SECONDS, FIRST_WAY_SECONDS, WAY_SECONDS, WRITTEN_WAY_SECONDS = 180.0, 60.0, 20.0, 120.0
ALL_SECONDS = 300.0  # for all ways together

FAILED = ("disagreed", "faulted", "hung")
RESULTS = ("agreed", "absent", *FAILED)
"""What a record may say of a way; an entry that says anything else counts as none."""


class Way(NamedTuple):
    """A way of computing one pass of a layer. `cell` is a cell's name or its program's text."""

    cell: str
    team: str
    arithmetic: str
    step: str  # a member of PASSES

    @property
    def key(self) -> str:
        """What a record calls it."""
        return f"{name_of_cell(self.cell)} {self.team} {self.arithmetic} {self.step}"

    def __str__(self) -> str:
        name = cell_of_spec(self.cell).name
        return f"{self.team} of {name} in {self.arithmetic}, {self.step}"


class Verdict(NamedTuple):
    """What came of a way's check: one of RESULTS, or "unchecked", of which no record is kept.

    "absent" is a team that this GPU does not have.
    """

    result: str
    detail: str = ""


class Unavailable(Exception):
    """Why ways cannot be checked by a process of their own."""


class Ended(Exception):
    """How a child ended before its work did."""


class Child(Protocol):
    """A process that checks ways."""

    def line(self, seconds: float) -> dict[str, Any] | None:
        """The next thing that it says; None if that takes longer.

        Raises:
            Ended: nothing will come.
        """


class Timer(Protocol):
    """A clock of the device's."""

    def mark(self) -> None:
        """Notes when the device comes to this point of its work."""

    def gaps(self) -> list[float]:
        """The seconds between marks, once the device has come to the last."""


class Gpu(Protocol):
    """What has to be asked of a kind of device; tests have one without a GPU."""

    def index_of(self, tensor: Tensor) -> int:
        """The index of the device that a tensor is on."""

    def facts(self, index: int) -> dict[str, Any]:
        """What plans ask of a device, by the names of `fusedrnn.Gpu`."""

    def is_capturing(self, index: int) -> bool:
        """Whether a device's work is captured now, and not done."""

    def timer(self, index: int) -> Timer:
        """A new one of a device, which has done all that it was given."""

    def clock(self) -> float:
        """Seconds of this process."""

    def current(self) -> int | None:
        """The index of the current device; None if there is none."""

    def kind(self, index: int) -> Kind:
        """What the device of an index is."""

    def child(self, index: int, ways: Sequence[Way]) -> AbstractContextManager[Child]:
        """Starts a process that checks ways there. It ends with the block.

        Raises:
            Unavailable: none can be started.
        """


class Cuda:
    """CUDA devices."""

    def current(self) -> int | None:  # noqa: D102
        return torch.cuda.current_device() if torch.cuda.is_available() else None

    def index_of(self, tensor: Tensor) -> int:  # noqa: D102
        return tensor.get_device()

    def facts(self, index: int) -> dict[str, Any]:  # noqa: D102
        found: Any = torch.cuda.get_device_properties(index)
        return {
            "capability": (found.major, found.minor),
            "multiprocessors": found.multi_processor_count,
            "shared_bytes": found.shared_memory_per_block_optin,
        }

    def is_capturing(self, index: int) -> bool:  # noqa: D102
        with torch.cuda.device(index):
            return torch.cuda.is_current_stream_capturing()

    def timer(self, index: int) -> Timer:  # noqa: D102
        return _Events(torch.cuda.current_stream(index))

    def clock(self) -> float:  # noqa: D102
        return time.perf_counter()

    @cache  # noqa: B019, there is one object
    def kind(self, index: int) -> Kind:  # noqa: D102
        found: Any = torch.cuda.get_device_properties(index)
        return Kind(
            found.name, found.multi_processor_count, driver_version(), str(torch.version.cuda),
            torch.__version__, fusedrnn.__version__, _digest_of_library(),
        )  # fmt: skip

    def child(  # noqa: D102
        self, index: int, ways: Sequence[Way]
    ) -> AbstractContextManager[Child]:
        if not sys.executable or getattr(sys, "frozen", False):
            raise Unavailable("this program is not run by a Python that could be started again")
        command = [sys.executable, "-m", "fusedrnn.testing.ways"]
        return child_of(command, f"cuda:{index}", ways)


class _Events:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream
        self.events: list[Any] = []
        stream.synchronize()

    def mark(self) -> None:
        self.events.append(torch.cuda.Event(enable_timing=True))
        self.events[-1].record(self.stream)

    def gaps(self) -> list[float]:
        self.events[-1].synchronize()
        pairs = zip(self.events, self.events[1:], strict=False)
        return [begin.elapsed_time(end) * 1e-3 for begin, end in pairs]


@cache
def _digest_of_library() -> str:
    return hashlib.sha256(native.CUDA_LIBRARY.read_bytes()).hexdigest()[:16]


def driver_version() -> str:
    """The NVIDIA driver's, or that of the CUDA which it serves where it does not tell its own."""
    with contextlib.suppress(OSError):
        return Path("/sys/module/nvidia/version").read_text().strip()
    version = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"


@contextlib.contextmanager
def child_of(command: Sequence[str], device: str, ways: Sequence[Way]) -> Iterator[Child]:
    """A child by its command, which is given a file that says what to check."""
    paths = os.pathsep.join(
        filter(None, [str(native.PACKAGE.parent), os.environ.get("PYTHONPATH")])
    )
    environment = os.environ | {
        "PYTHONPATH": paths, "FUSEDRNN_CHECK": "0", "FUSEDRNN_TUNE": "0",
        "PYTHONSAFEPATH": "1",  # modules of the folder that this process happens to be in
    }  # fmt: skip
    environment.pop("FUSEDRNN_PLAN", None)
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fusedrnn-")))
            request, said = folder / "request", folder / "said"
            request.write_text(json.dumps({"device": device, "ways": ways}))
            output = stack.enter_context(open(said, "wb"))
            errors = stack.enter_context(open(folder / "errors", "wb"))
            process = stack.enter_context(
                processes.running([*command, str(request)], output, errors, environment)
            )
        except OSError as error:
            raise Unavailable(f"no process could be started: {error}") from None
        with open(said, encoding="utf-8", errors="replace") as lines:
            yield _Running(process, lines, folder / "errors")


class _Running:
    def __init__(self, process: Any, lines: Any, errors: Path) -> None:
        self.process, self.lines, self.errors, self.rest = process, lines, errors, ""

    def line(self, seconds: float) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        while True:
            ended = self.process.poll()
            while True:  # all that it has said, then whether there will be more
                self.rest += self.lines.readline()
                if not self.rest.endswith("\n"):
                    break
                text, self.rest = self.rest, ""
                with contextlib.suppress(ValueError):  # other words, of libraries
                    said = json.loads(text)
                    if isinstance(said, dict):
                        return said
                if time.monotonic() > end and ended is None:  # they might never stop
                    break
            if ended is not None:
                *_, last = ["", *self.errors.read_text(errors="replace").split("\n")[-2:-1]]
                raise Ended(f"exit status {ended}" + (f": {last.strip()}" if last else ""))
            if time.monotonic() > end:
                return None
            time.sleep(0.005)


def checked(
    start: Callable[[Sequence[Way]], AbstractContextManager[Child]],
    ways: Sequence[Way],
    gpu: str,
) -> dict[Way, Verdict]:
    """The verdicts on ways, by as many children as it takes, which have to be on this GPU.

    If a later child cannot go on, or the time is over, the ways that are left are "unchecked".

    Raises:
        Unavailable: there is no child, or it cannot compute on the device.
    """
    found: dict[Way, Verdict] = {}
    end = time.monotonic() + ALL_SECONDS
    while left := [way for way in ways if way not in found]:
        before = len(found)
        try:
            if time.monotonic() > end:
                raise Unavailable(f"the others took more than {ALL_SECONDS:.0f} seconds")
            with start(left) as child:
                _judge(child, left, found, gpu, end)
            if len(found) == before:
                raise Unavailable("it checked nothing")
        except Unavailable as unavailable:
            if not found:
                raise
            return found | dict.fromkeys(
                [way for way in left if way not in found], Verdict("unchecked", str(unavailable))
            )
    return found


def _judge(
    child: Child, ways: Sequence[Way], found: dict[Way, Verdict], gpu: str, end: float
) -> None:
    """Writes down what a child says, until it has no more to say or the time for all is over."""
    current: Way | None = None
    before, limit = len(found), START_SECONDS
    while current or len(found) == before or time.monotonic() < end:
        try:
            said = child.line(limit)
        except Ended as ended:
            if current is None:
                raise Unavailable(f"the process that checks them ended: {ended}") from None
            found[current] = Verdict("faulted", f"its process ended: {ended}")
            return
        if said is None:
            if current is None:
                raise Unavailable(f"the process that checks them said nothing for {limit:.0f} s")
            found[current] = Verdict("hung", f"no result after {limit:.0f} s")
            return
        if "unavailable" in said:
            raise Unavailable(str(said["unavailable"]))
        if said.get("ready", gpu) != gpu:
            raise Unavailable(f"the process that checks them has another GPU, {said['ready']}")
        if "begin" in said:
            current = ways[said["begin"]]
            limit = WAY_SECONDS if len(found) > before else FIRST_WAY_SECONDS
            limit = limit if current.cell in _COMPILED else WRITTEN_WAY_SECONDS
        elif "result" in said and current is not None:
            found[current] = Verdict(said["result"], said["detail"])
            current, limit = None, START_SECONDS
            if said["result"] == "faulted":  # the device may be of no more use to it
                return
        elif "end" in said:
            return


class Ways:
    """The ways of the kernels in a library.

    Attributes:
        library: the library, which asks from now on.
        gpu: its devices.
    """

    def __init__(self, library: ctypes.CDLL, gpu: Gpu) -> None:
        self.library, self.gpu = library, gpu
        self.records: dict[Kind, Record] = {}
        self._lock = threading.RLock()
        self._warned: set[str] = set()
        self._unavailable: dict[int, str] = {}
        self._check: Any = _CHECK(self._answer)
        library.fusedrnn_cuda_strike_off.argtypes = [
            ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int
        ]  # fmt: skip
        library.fusedrnn_cuda_choose_team.argtypes = [ctypes.POINTER(TeamChoice)]
        library.fusedrnn_cuda_check_ways_by(self._check)

    def detach(self) -> None:
        """The library asks no more, and forgets what it was told."""
        self.library.fusedrnn_cuda_check_ways_by(_CHECK())

    def record(self, index: int) -> Record:
        """The record of a device's kind."""
        kind = self.gpu.kind(index)
        # Without the lock, which a thread that checks holds for as long as that takes.
        record = self.records.get(kind)
        return record or self.records.setdefault(kind, Record(kind))

    def index_of(self, device: torch.device) -> int:
        """The index of a device, which is the current one if it has none."""
        return device.index if device.index is not None else self.gpu.current() or 0

    def check(self, index: int, program: str = "") -> dict[Way, Verdict]:
        """What is known of the ways of a written cell, or of all compiled ones, on a device.

        Those that are not known are checked now; plans no longer take those that are not fit.

        Raises:
            ValueError: FUSEDRNN_CHECK makes no sense.
        """
        self.choose_recorded(index, program)
        if not is_on("FUSEDRNN_CHECK"):
            return {}
        ways = ways_of([program] if program else _COMPILED)
        with self._lock:
            found = self._known(index, ways)
            if len(found) < len(ways):
                found = self._check_missing(index, ways)
            for way, verdict in found.items():
                if _is_unfit(way, verdict):
                    self._strike_off(index, way)
            failed = {way: v for way, v in found.items() if v.result in FAILED}
            if failed:
                self._warn(_in_words(self.gpu.kind(index), failed))
        return found

    def is_overridden(self) -> bool:
        """Whether somebody measures with plans of his own."""
        return bool(self.library.fusedrnn_plan_is_overridden())

    def choose(self, index: int, cell: str, shape: LayerShape, step: str, team: str | None) -> None:
        """Has calls of a shape take a team, or what the plan takes if that is None."""
        self.library.fusedrnn_cuda_choose_team(team_choice(shape, cell, index, step, team))

    def choose_recorded(self, index: int, program: str = "") -> None:
        """Has calls take the teams that the record has, of a written cell or all compiled ones."""
        by_name = {name_of_cell(cell): cell for cell in ([program] if program else _COMPILED)}
        for entry in [*self.record(index).entries["teams"].values()]:
            with contextlib.suppress(KeyError, TypeError, ValueError):  # it makes no sense
                shape = LayerShape(**entry["shape"])
                if shape.cell in by_name:
                    spec = by_name[shape.cell]
                    self.choose(index, spec, shape, entry["step"], entry["team"])

    def struck_off(self, index: int, cell: str, arithmetic: str) -> list[Way]:
        """The ways of a cell in an arithmetic that are not used on a device."""
        ways = [way for way in _ways_of_cell(cell) if way.arithmetic == arithmetic]
        unknown = Verdict("unchecked" if index in self._unavailable else "agreed")
        found = dict.fromkeys(ways, unknown) | self._known(index, ways)
        return [way for way in ways if _is_unfit(way, found[way])]

    def is_unchecked(self, index: int) -> bool:
        """Whether ways could not be checked on a device, so that this process does not use them."""
        return index in self._unavailable

    def _known(self, index: int, ways: Sequence[Way]) -> dict[Way, Verdict]:
        entries = self.record(index).entries["ways"]
        found = {}
        for way in ways:
            entry = entries.get(way.key, {})
            if entry.get("result") in RESULTS:
                found[way] = Verdict(entry["result"], str(entry.get("detail", "")))
        return found

    def _check_missing(self, index: int, ways: Sequence[Way]) -> dict[Way, Verdict]:
        record = self.record(index)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(Unusable, OSError):  # each process for itself
                stack.enter_context(record.alone("check", 2 * ALL_SECONDS))
                record.read()
            found = self._known(index, ways)
            missing = [way for way in ways if way not in found]
            if not missing:  # another process did it meanwhile
                return found
            now = self._checked_now(index, missing)
            when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            entries = {
                way.key: {"result": verdict.result, "detail": verdict.detail, "when": when}
                for way, verdict in now.items()
                if verdict.result != "unchecked"
            }
            record.add("ways", entries)
        for verdict in now.values():
            if verdict.result == "unchecked":
                self._unavailable[index] = verdict.detail
                self._warn(
                    f"fusedrnn: the ways of computing layers could not be checked on this GPU: "
                    f"{verdict.detail}. What was not checked before runs by stepwise kernels "
                    "in this process, which are slower. `fusedrnn verify`, run before this "
                    "program, checks ahead; FUSEDRNN_CHECK=0 trusts all ways."
                )
        return found | now

    def _checked_now(self, index: int, ways: Sequence[Way]) -> dict[Way, Verdict]:
        """The verdicts of children. What could not be checked is not tried again: it takes long."""
        try:
            if index in self._unavailable:
                raise Unavailable(self._unavailable[index])
            name = self.gpu.kind(index).gpu
            return checked(lambda some: self.gpu.child(index, some), ways, name)
        except Unavailable as unavailable:
            return dict.fromkeys(ways, Verdict("unchecked", str(unavailable)))

    def _strike_off(self, index: int, way: Way) -> None:
        self.library.fusedrnn_cuda_strike_off(
            index, way.cell.encode(), ARITHMETICS.index(way.arithmetic), PASSES.index(way.step),
            TEAMS.index(way.team),
        )  # fmt: skip

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _answer(self, index: int, program: bytes) -> int | None:
        """To the library: nothing, or the address of why a call has to fail."""
        try:
            self.check(index, program.decode())
        except BaseException as error:  # ctypes would drop it, and the ways would count as checked
            text = str(error) or f"the check of ways did not end: {type(error).__name__}"
            _thread.error = ctypes.create_string_buffer(text.encode())
            return ctypes.addressof(_thread.error)
        return None


def is_on(variable: str) -> bool:
    """Whether a variable of the environment does not switch something off.

    Raises:
        ValueError: it is something else than 0 or 1.
    """
    asked = os.environ.get(variable, "")
    if asked not in ("", "0", "1"):
        raise ValueError(f"{variable}: expected 0 or 1 or nothing, got {asked!r}")
    return asked != "0"


@lru_cache(maxsize=256)
def _ways_of_cell(cell: str) -> tuple[Way, ...]:
    return tuple(
        Way(cell, team, arithmetic, step)
        for arithmetic in ARITHMETICS
        for team in TEAMS
        if team == "stepwise" or (arithmetic != "float64" and _is_walked(cell))
        for step in PASSES
    )


def ways_of(cells: Sequence[str]) -> list[Way]:
    """All ways of some cells. Whether a GPU has the teams is for it to say."""
    return [way for cell in cells for way in _ways_of_cell(cell)]


def _is_unfit(way: Way, verdict: Verdict) -> bool:
    """Whether a way is not used. Stepwise kernels are, even unchecked: they wait for nobody."""
    unchecked = verdict.result == "unchecked" and way.team != "stepwise"
    return unchecked or verdict.result in FAILED


def _is_walked(spec: str) -> bool:
    cell = cell_of_spec(spec)
    return cell.stages == 1 if cell.program is None else _C.is_walked(spec)


def _in_words(kind: Kind, struck: Mapping[Way, Verdict]) -> str:
    of_each = "; ".join(
        f"{way} {verdict.result} ({verdict.detail})" for way, verdict in struck.items()
    )
    return (
        f"fusedrnn: some ways of computing layers are not used on this GPU ({kind}), since they "
        f"did not agree with the reference there: {of_each}. Others that agreed run instead, where "
        "there are any, and may be slower. Please report this with the output of `fusedrnn verify "
        f"--json`{_address()}."
    )


def _address() -> str:
    """Where to, if the package's metadata has it."""
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for url in importlib.metadata.metadata("fusedrnn").get_all("Project-URL") or ():
            if "issue" in url.lower():
                return f" to {url.rpartition(',')[2].strip()}"
    return ""


WAYS: dict[str, Ways] = {}
"""By the type of device: whose kernels' ways are checked. Empty where there are none."""

_COMPILED = tuple(cell.spec for cell in CELLS)
_thread = threading.local()  # its error stays until its next one
_CHECK = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
