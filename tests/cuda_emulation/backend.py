"""The project's CUDA backend, built for the emulation, in the place of the CPU's.

    with installed(seed=1):
        fusedrnn.LSTM(3, 4)(x)        # CPU tensors; the CUDA kernels compute

Everything above the kernels is the real thing: modules, autograd, the ops and their checks, the
driver that enqueues kernels and products. Below them are the emulation and its cuBLAS.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from cuda_emulation import registers
from cuda_emulation.build import MissingHeaders, cuda_include, library, program_kernels

from fusedrnn._engine import compiling, ops


def missing() -> str:
    """Why the emulation cannot be built here; empty if it can."""
    try:
        cuda_include()
    except MissingHeaders as error:
        return str(error)
    return ""


@functools.cache
def load(variant: str = "plain") -> ctypes.CDLL:
    """The emulated backend, built if need be."""
    path = library(variant)
    loaded = ctypes.CDLL(str(path))
    loaded.fusedrnn_emulated_backend.restype = ctypes.c_void_p
    loaded.fusedrnn_emulation_launches.restype = ctypes.c_uint64
    loaded.fusedrnn_emulation_configure.argtypes = [ctypes.c_uint64, ctypes.c_char_p]
    loaded.fusedrnn_emulation_without_nvrtc.restype = ctypes.c_char_p
    loaded.fusedrnn_emulation_nvrtc.restype = ctypes.c_char_p
    loaded.fusedrnn_emulation_nvrtc_walk.restype = ctypes.c_char_p
    registers.tell(loaded, path, registers.most_registers())
    _KEPT[variant] = CompileBy(partial(_compile_program, variant))
    loaded.fusedrnn_emulation_compile_by(_KEPT[variant])
    compiling.keep_images_of(loaded)
    return loaded


CompileBy = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
_KEPT: dict[str, object] = {}  # what C++ has the address of


def _compile_program(variant: str, source: bytes, names: bytes) -> int | None:
    """Makes the kernels of a program, and returns the address of their library's path."""
    try:
        library = program_kernels(variant, source.decode(), names.decode().splitlines())
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return None
    path = _KEPT[f"{variant} path"] = ctypes.create_string_buffer(os.fsencode(library))
    return ctypes.addressof(path)


@contextmanager
def installed(
    variant: str = "plain", *, seed: int = 0, options: str = "", plan: str = ""
) -> Iterator[ctypes.CDLL]:
    """CPU tensors are computed by the CUDA kernels, in the order of threads that `seed` gives.

    `plan` overrides plans as FUSEDRNN_PLAN does, only for the emulated device, and instead of it.
    Results and scratch begin as NaN (kernels/poison.cpp): memory that no kernel wrote shows.
    """
    emulation = load(variant)
    if emulation.fusedrnn_emulation_configure(seed, options.encode()):
        raise ValueError(f"options: expected those of runtime.h, got {options!r}")
    emulation.fusedrnn_override_plan((plan or os.environ.get("FUSEDRNN_PLAN", "")).encode())
    before = ops.use_backend("cpu", emulation.fusedrnn_emulated_backend())
    try:
        yield emulation
    finally:
        ops.use_backend("cpu", before)
