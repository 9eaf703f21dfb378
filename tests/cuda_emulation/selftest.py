"""The emulated device with the kernels of selftest.cu and faults.cu, called on numpy arrays."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from cuda_emulation import build

SOURCES = [build.HERE / "selftest.cu", build.HERE / "faults.cu"]
LAUNCH_FAILURE = 719  # cudaErrorLaunchFailure

Array = np.ndarray[Any, Any]


class Fault(Exception):
    """What the emulation reported."""


class Device:
    """The emulated device, with the test kernels, in one variant."""

    def __init__(self, variant: str) -> None:
        self.path = build.library(variant, SOURCES, name="selftest")
        self.lib = ctypes.CDLL(str(self.path))
        self.lib.fusedrnn_emulation_report.restype = ctypes.c_char_p
        self.lib.fusedrnn_emulation_launches.restype = ctypes.c_uint64
        self.lib.fusedrnn_last_error.restype = ctypes.c_char_p

    def configure(self, seed: int = 0, options: str = "") -> None:
        assert self.lib.fusedrnn_emulation_configure(ctypes.c_uint64(seed), options.encode()) == 0

    def report(self) -> str:
        return str(self.lib.fusedrnn_emulation_report().decode())

    def check(self, error: int) -> None:
        if error:
            assert error == LAUNCH_FAILURE
            raise Fault(self.report())

    def run(self, name: str, a: Array, out: Array, n: int = 0, b: Array | None = None) -> Array:
        assert a.flags.c_contiguous and out.flags.c_contiguous
        b = a if b is None else b
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, out)]
        self.check(self.lib.fusedrnn_selftest(name.encode(), *pointers, n))
        return out

    def fault(self, name: str, planted: bool, n: int = 256) -> list[float]:
        data = (ctypes.c_float * n)()
        self.check(self.lib.fusedrnn_fault(name.encode(), int(planted), data, n))
        return list(data)


def zeros(*sizes: int, dtype: Any = np.float32) -> Array:
    return np.zeros(sizes, dtype)


def to_bf16(x: Array) -> Array:
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(x: Array) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32)


def to_tf32(x: Array) -> Array:
    return (x.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32)
