"""A kind of GPU for the tests of ways and of tuning: the emulated device, with planted faults.

What a child says of its ways is a script's. Time is the number of kernels that were launched, a
tenth of a millisecond each, so that it is the same each time: a walk is one, steps are many, and
torch's own path launches none. What is planted comes on top.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from cuda_emulation import backend as emulated
from torch import Tensor

import fusedrnn
from fusedrnn._engine.layer_shapes import LayerShape
from fusedrnn._engine.record import Kind
from fusedrnn._engine.ways import Way, Ways

KIND = Kind("emulated GPU", 132, "1.2", "13.0", "2.13", fusedrnn.__version__, "0123")
LAUNCH = 1e-4  # seconds

Said = dict[str, Any]
Script = Callable[[Sequence[Way]], Iterator[Said | None]]


def agreeing(of: Sequence[Way]) -> Iterator[Said | None]:
    """What a child says where all is well."""
    yield {"ready": KIND.gpu}
    for i in range(len(of)):
        yield {"begin": i}
        yield {"result": "agreed", "detail": ""}
    yield {"end": len(of)}


def busy(of: Sequence[Way]) -> Iterator[Said | None]:
    """A child of a device that serves one process only."""
    yield {"unavailable": "CUDA-capable device(s) is/are busy or unavailable"}


def but(way: Way, *said: Said | None | BaseException) -> Script:
    """A child that says this instead of agreeing when it comes to a way."""

    def script(of: Sequence[Way]) -> Iterator[Said | None]:
        yield {"ready": KIND.gpu}
        for i, each in enumerate(of):
            yield {"begin": i}
            if each == way:
                for what in said:
                    if isinstance(what, BaseException):
                        raise what
                    yield what
                if said[-1] is None:
                    return
            else:
                yield {"result": "agreed", "detail": ""}
        yield {"end": len(of)}

    return script


class EmulatedGpu:
    """The device.

    Attributes:
        asked: the ways that each child was given.
        slow: further seconds of each pass while a team is taken.
        taken: the teams that calls were told to take, in order; None undoes it.
        extra: further seconds, of what is no kernel.
        capturing: whether a graph is captured.
    """

    def __init__(self, script: Script = agreeing, kind: Kind = KIND) -> None:
        self.script, self._kind = script, kind
        self.asked: list[Sequence[Way]] = []
        self.slow: dict[str, float] = {}
        self.taken: list[str | None] = [None]
        self.extra = 0.0
        self.capturing = False

    def current(self) -> int | None:
        return 0

    def index_of(self, tensor: Tensor) -> int:
        return 0

    def facts(self, index: int) -> dict[str, Any]:
        return asdict(fusedrnn.Gpu())

    def is_capturing(self, index: int) -> bool:
        return self.capturing

    def timer(self, index: int) -> Timer:
        return Timer(self)

    def clock(self) -> float:
        return LAUNCH * int(emulated.load().fusedrnn_emulation_launches()) + self.extra

    def kind(self, index: int) -> Kind:
        return self._kind

    @contextlib.contextmanager
    def child(self, index: int, of: Sequence[Way]) -> Iterator[Any]:
        self.asked.append(list(of))
        said = self.script(of)

        class Said:
            def line(self, seconds: float) -> dict[str, Any] | None:
                return next(said)

        yield Said()


class Timer:
    def __init__(self, gpu: EmulatedGpu) -> None:
        self.gpu = gpu
        self.marks: list[float] = []

    def mark(self) -> None:
        team = self.gpu.taken[-1]
        if self.marks and team is not None:
            self.gpu.extra += self.gpu.slow.get(team, 0.0)
        self.marks.append(self.gpu.clock())

    def gaps(self) -> list[float]:
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [round(after - before, 9) for before, after in pairs]  # the same each time, indeed


class WaysOfEmulation(Ways):
    """Ways that tell the device which team is taken."""

    gpu: EmulatedGpu

    def choose(self, index: int, cell: str, shape: LayerShape, step: str, team: str | None) -> None:
        self.gpu.taken.append(team)
        super().choose(index, cell, shape, step, team)


@contextlib.contextmanager
def checked_by(gpu: EmulatedGpu, **options: Any) -> Iterator[WaysOfEmulation]:
    """The emulated kernels, which ask whether ways are fit."""
    with emulated.installed(**options) as emulation:
        of = WaysOfEmulation(emulation, gpu)
        try:
            yield of
        finally:
            of.detach()
