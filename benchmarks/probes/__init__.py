"""Microbenchmarks of what a step of a walk is made of (probes.cu), and building them.

    python -m benchmarks.probes      builds build/probes/libprobes.so with nvcc: no GPU is needed

The library needs neither torch nor Python and can be carried to another machine. Where it is
missing, the first probe builds it, which takes half a minute. In the emulation of the tests it is
compiled by g++: it runs to the end there, and its figures mean nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("probes.cu")
LIBRARY = ROOT / "build" / "probes" / "libprobes.so"
ARCHITECTURE = "90a"  # clusters and mbarriers are Hopper's

BLOCKS = (4, 8, 16)
BYTES = (64, 512, 4096)  # of a message from each block to each other
WAYS = ("st.async", "bulk copy")
WAKES = ("arrival in the block", "arrival at another block", "word stored at another block")
ROUNDS, EMULATED_ROUNDS, CHECKED_ROUNDS = 10_000, 4, 5
SPIN_CYCLES = 100_000_000

Found = dict[str, Any]


def all_probes() -> list[dict[str, Any]]:
    """The arguments of every probe, each with its name."""
    found: list[dict[str, Any]] = [{"name": "clock", "what": "spin"}]
    for way in WAYS:
        found += [
            {"name": f"exchange, {n} blocks, {way}, {bytes_} bytes", "what": "exchange",
             "way": way, "blocks": n, "bytes": bytes_}
            for n in BLOCKS for bytes_ in BYTES
        ]  # fmt: skip
    found += [{"name": f"wake-up by an {w}" if w[0] == "a" else f"wake-up by a {w}",
               "what": "wake", "kind": w} for w in WAKES]  # fmt: skip
    found += [
        {"name": f"mma m16n8k16 bf16, {warps} warps, {chains} chains each", "what": "products",
         "warps": warps, "chains": chains}
        for warps, chains in ((1, 1), (1, 2), (1, 4), (1, 8), (4, 4), (8, 4), (16, 4))
    ]  # fmt: skip
    return found


def run(probe: Found, *, emulated: bool = False) -> Found:
    """One probe, checked and timed.

    Raises:
        RuntimeError: CUDA refused it, or what it moved or computed is wrong.
    """
    rounds = EMULATED_ROUNDS if emulated else ROUNDS
    library = _emulated() if emulated else _built()
    call = _Calls(library, "cpu" if emulated else "cuda")
    if probe["what"] == "spin":
        cycles = 1000 if emulated else SPIN_CYCLES
        call("probe_spin", ctypes.c_int64(1000))  # the clock's rate rises with work
        begin = time.perf_counter()
        took, _ = call("probe_spin", ctypes.c_int64(cycles))
        return {"GHz": took / (time.perf_counter() - begin) * 1e-9}
    if probe["what"] == "exchange":
        bulk, blocks, bytes_ = WAYS.index(probe["way"]), probe["blocks"], probe["bytes"]
        call("probe_exchange", bulk, 1, blocks, bytes_, CHECKED_ROUNDS)
        cycles, _ = call("probe_exchange", bulk, 0, blocks, bytes_, rounds)
        received = (blocks - 1) * bytes_
        return {"cycles": cycles / rounds, "bytes per cycle and block": received * rounds / cycles}
    if probe["what"] == "wake":
        cycles, _ = call("probe_wake", WAKES.index(probe["kind"]), rounds)
        return {"cycles": cycles / rounds / 2}  # both wake each other in a round
    chains, warps = probe["chains"], probe["warps"]
    cycles, _ = call("probe_products", chains, warps, rounds)
    products = chains * warps * rounds
    return {"cycles": cycles / rounds, "products per cycle": products / cycles}


class _Calls:
    """Calls a probe on a fresh pair of numbers, and checks it."""

    def __init__(self, library: ctypes.CDLL, device: str) -> None:
        self._library, self._device = library, device

    def __call__(self, name: str, *arguments: Any) -> tuple[int, int]:
        """Cycles, and how many values were wrong: none, or this raises RuntimeError."""
        found = torch.zeros(2, dtype=torch.int64, device=self._device)
        stream = torch.cuda.current_stream().cuda_stream if self._device == "cuda" else 0
        function = getattr(self._library, name)
        code = function(ctypes.c_void_p(found.data_ptr()), *arguments, ctypes.c_void_p(stream))
        cycles, wrong = found.tolist()  # waits
        if code:
            raise RuntimeError(f"{name}{arguments}: CUDA's error {code}")
        if wrong:
            raise RuntimeError(f"{name}{arguments}: {wrong} threads saw wrong values")
        return int(cycles), int(wrong)


@cache
def _built() -> ctypes.CDLL:
    if not LIBRARY.exists() or digest().encode() not in LIBRARY.read_bytes():
        build()
    return ctypes.CDLL(str(LIBRARY))


def digest() -> str:
    """What the source is, as a library that was compiled from it tells."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def _flags() -> list[str]:
    return [f'-DFUSEDRNN_PROBES_SOURCE="{digest()}"']


def build() -> Path:
    """Compiles the library with nvcc.

    Raises:
        RuntimeError: there is no nvcc, or it failed.
    """
    nvcc = _compilers().load_setup().Nvcc.find()
    if nvcc is None:
        raise RuntimeError("nvcc was not found, and build/probes/libprobes.so is not there")
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    gencode = f"-gencode=arch=compute_{ARCHITECTURE},code=sm_{ARCHITECTURE}"
    command = [nvcc.path, "-std=c++17", "-O3", "-shared", gencode, "-Icsrc", *nvcc.libraries]
    command += _flags()
    command += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra", str(SOURCE)]
    command += ["-o", str(LIBRARY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc failed:\n{done.stdout}{done.stderr}")
    return LIBRARY


@cache
def _compilers() -> ModuleType:
    """The tests' module that compiles CUDA sources for the emulation, and loads setup.py."""
    sys.path.append(str(ROOT / "tests"))
    return importlib.import_module("cuda_emulation.build")


@cache
def _emulated() -> ctypes.CDLL:
    library = _compilers().library("plain", [SOURCE], name="probes", flags=_flags())
    return ctypes.CDLL(str(library))
