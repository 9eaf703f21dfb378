"""What is checked: the GPU, or what stands in for it where there is none.

    cuda        the GPU
    emulation   CUDA's kernels on the CPU, through tests/cuda_emulation, at small sizes
    cpu         the CPU's own kernels, at small sizes

The two that stand in show that the check itself works. Their times mean nothing, and the report
says that they are no GPU's.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what imports torch is imported where it is needed
    from benchmarks.workloads import Row

ROOT = Path(__file__).resolve().parents[2]
GPU = "cuda"
STAND_INS = {
    "emulation": "the emulation of tests/cuda_emulation at small sizes",
    "cpu": "the CPU's own kernels at small sizes",
}
SMALL = {"T": 3, "B": 4, "I": 8, "H": 24}  # a stand-in's sizes, at most


@dataclass(frozen=True)
class Device:
    """`GPU` or one of `STAND_INS`, as worker processes use it."""

    name: str

    @property
    def stands_in(self) -> bool:
        """Whether it is no GPU."""
        return self.name != GPU

    @property
    def type(self) -> str:
        """Where tensors are."""
        return "cpu" if self.stands_in else "cuda"

    def library(self) -> ctypes.CDLL | None:
        """The library of the CUDA kernels; None if they do not run here."""
        if self.name == "emulation":
            return _emulation()
        return None if self.stands_in else _cuda()

    def set_up(self) -> None:
        """Has layers computed by the kernels that are checked."""
        if self.name == "emulation":
            from fusedrnn._engine import ops

            ops.use_backend("cpu", _emulation().fusedrnn_emulated_backend())

    @contextmanager
    def planned(self, text: str) -> Iterator[None]:
        """Plans as FUSEDRNN_PLAN would have them."""
        from fusedrnn._engine import ops

        def override(text: str) -> None:
            ops.override_plan(text)
            if self.name == "emulation":
                _emulation().fusedrnn_override_plan(text.encode())

        override(text)
        try:
            yield
        finally:
            override("")

    def row(self, row: Row) -> Row:
        """A row as it is measured here."""
        if not self.stands_in:
            return row
        sizes = {name: min(getattr(row, name), most) for name, most in SMALL.items()}
        return replace(
            row, **sizes, layers=min(row.layers, 2), proj_size=min(row.proj_size, 8), device="cpu",
            modes=tuple(mode for mode in row.modes if mode != "replay"),
        )  # fmt: skip

    def synchronize(self) -> None:
        """Waits for all that was started; raises what went wrong meanwhile."""
        if not self.stands_in:
            import torch

            torch.cuda.synchronize()


@cache
def _emulation() -> ctypes.CDLL:
    sys.path.append(str(ROOT / "tests"))
    from cuda_emulation import backend

    loaded: ctypes.CDLL = backend.load()
    loaded.fusedrnn_emulation_configure(0, b"")
    return loaded


@cache
def _cuda() -> ctypes.CDLL:
    from fusedrnn._engine import native

    return native.load(native.CUDA_LIBRARY)
