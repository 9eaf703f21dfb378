"""The arguments that commands share: a problem's sizes, the dtype, the device, the threads.

What argparse cannot see by itself, such as a projection of a GRU, is a `UsageError` that names the
argument; `main` turns it into argparse's own message and exit status.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

import fusedrnn
from fusedrnn._engine import ops
from fusedrnn.cells import CELLS, cell_named

DTYPES = tuple(str(dtype).removeprefix("torch.") for dtype in ops.DTYPES)
CELL_NAMES = tuple(cell.name for cell in CELLS)
PROJECTED_CELLS = tuple(cell.name for cell in CELLS if cell.projects)

_SIZES = ("time", "batch", "input_size", "hidden_size")


class UsageError(Exception):
    """An argument that makes no sense; the message names it."""


@dataclass(frozen=True)
class Problem:
    """The sizes of a network and its input, named as the arguments are."""

    time: int
    batch: int
    input_size: int
    hidden_size: int
    layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0

    def __str__(self) -> str:
        text = f"T{self.time} B{self.batch} I{self.input_size} H{self.hidden_size}"
        text += f" layers{self.layers}" if self.layers > 1 else ""
        text += " dirs2" if self.bidirectional else ""
        return text + (f" proj{self.proj_size}" if self.proj_size else "")

    def as_dict(self) -> dict[str, int | bool]:
        """For JSON."""
        return asdict(self)


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of an argument that is a whole number within bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            expected = f"expected a whole number from {low} to {high}, got {text!r}"
            raise argparse.ArgumentTypeError(expected)
        return value

    return parse


def seconds(text: str) -> float:
    """The type of an argument that is a time."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return value


def device(text: str) -> str:
    """The type of an argument that is a device of the CPU or of CUDA."""
    try:
        kind = torch.device(text).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:<index>, got {text!r}")
    return text


def add_problem(parser: argparse.ArgumentParser) -> None:
    """The sizes of a problem."""
    group = parser.add_argument_group("a problem, all four sizes or none")
    group.add_argument("--time", type=whole(1), metavar="T", help="steps")
    group.add_argument("--batch", type=whole(1), metavar="B", help="sequences")
    group.add_argument("--input-size", type=whole(1), metavar="I", help="features of the input")
    group.add_argument("--hidden-size", type=whole(1), metavar="H", help="features of the state")
    group.add_argument("--layers", type=whole(1), metavar="N", help="layers (1)")
    group.add_argument("--bidirectional", action="store_true", help="both directions")
    group.add_argument(
        "--proj-size", type=whole(0), metavar="P", help="features of a projected h (0: none)"
    )


def problem_of(given: argparse.Namespace) -> Problem | None:
    """The problem that was given, or None if there was none."""
    sizes: dict[str, int | None] = {name: getattr(given, name) for name in _SIZES}
    absent = [_flag(name) for name, size in sizes.items() if size is None]
    if len(absent) == len(sizes):
        for name in ("layers", "bidirectional", "proj_size"):
            if getattr(given, name):
                raise UsageError(f"argument {_flag(name)}: needs {', '.join(absent)} beside it")
        return None
    if absent:
        raise UsageError(f"a problem needs all four sizes; not given: {', '.join(absent)}")
    problem = Problem(
        **{name: size for name, size in sizes.items() if size is not None},
        layers=given.layers or 1,
        bidirectional=given.bidirectional,
        proj_size=given.proj_size or 0,
    )
    if problem.proj_size >= problem.hidden_size:
        raise UsageError(
            f"argument --proj-size: expected less than --hidden-size, {problem.hidden_size}, got "
            f"{problem.proj_size}"
        )
    return problem


def cells_for(problem: Problem, asked: Sequence[str]) -> list[str]:
    """The cells that were asked for, if all of them can do the problem."""
    for cell in asked:
        if problem.proj_size and not cell_named(cell).projects:
            able = " or ".join(PROJECTED_CELLS)
            raise UsageError(f"argument --proj-size: expected --cell {able} with it, got {cell}")
    return list(dict.fromkeys(asked))


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The threads of the CPU."""
    parser.add_argument(
        "--threads", type=whole(1, 1024), metavar="N", help="threads of the CPU (torch's number)"
    )


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """As many threads of torch's for a while; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cuda_is_missing() -> str | None:
    """Why no layer can run on a CUDA device here, or None where one can."""
    why: str | None = fusedrnn.build_info()["without_cuda"]
    return why or no_device()


def no_device() -> str | None:
    """Why torch finds no CUDA device here, or None if it finds one."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # no or an old driver; a CPU build of torch
        return str(error).partition("\n")[0] or type(error).__name__
    return None if torch.cuda.device_count() else "torch finds no CUDA device"


def check_device(name: str) -> None:
    """Refuses a device that cannot be computed on."""
    found: Any = torch.device(name)
    if found.type != "cuda":
        return
    if why := cuda_is_missing():
        raise UsageError(f"argument --device: {name}: {why}")
    if (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"argument --device: {name}: there are {count} CUDA devices here")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
