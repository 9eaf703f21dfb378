"""Microbenchmarks of what a step of a walk is made of (probes.cu), a walk with clocks (walk.cu).

    python -m benchmarks.probes      builds build/probes/libprobes.so with nvcc: no GPU is needed

The library needs neither torch nor Python and can be carried to another machine. Where it is
missing, the first probe builds it, which takes half a minute. In the emulation of the tests it is
compiled by g++: it runs to the end there, and its figures mean nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import statistics
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [Path(__file__).with_name(name) for name in ("probes.cu", "walk.cu")]
LIBRARY = ROOT / "build" / "probes" / "libprobes.so"
ARCHITECTURE = "90a"  # clusters and mbarriers are Hopper's

BLOCKS = (4, 8, 16)
BYTES = (64, 512, 4096)  # of a message from each block to each other
WAYS = ("st.async", "bulk copy")
WAKES = ("arrival in the block", "arrival at another block", "word stored at another block")
TEAMS = ((4, 16), (16, 32), (16, 48))  # blocks, units of each; 8 sequences
EMULATED_TEAMS = TEAMS[:1]
ROUNDS, EMULATED_ROUNDS, CHECKED_ROUNDS = 10_000, 4, 5
STEPS, EMULATED_STEPS = 100, 6
SPIN_CYCLES = 100_000_000

Found = dict[str, Any]


def all_probes(*, emulated: bool = False) -> list[dict[str, Any]]:
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
    found += [
        {"name": f"step of an LSTM's {way} walk, bf16, H = {blocks * units} on {blocks} blocks",
         "what": "walk", "way": way, "blocks": blocks, "units": units}
        for blocks, units in (EMULATED_TEAMS if emulated else TEAMS)
        for way in ("forward", "backward")
    ]  # fmt: skip
    return found


def run(probe: Found, *, emulated: bool = False) -> Found:
    """One probe, checked and timed.

    Raises:
        RuntimeError: CUDA refused it, or what it moved or computed is wrong.
    """
    rounds = EMULATED_ROUNDS if emulated else ROUNDS
    library = _emulated() if emulated else _built()
    if probe["what"] == "walk":
        steps = EMULATED_STEPS if emulated else STEPS
        walk = _ClockedWalk(library, probe["blocks"], probe["units"], steps, emulated)
        return walk.forward() if probe["way"] == "forward" else walk.backward()
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


class _Arrays(ctypes.Structure):
    """As walk.cu has them."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("gates", "w_hh", "y", "save", "h", "c", "grad_y", "grads")
    ]


class _ClockedWalk:
    """A walk of walk.cu, checked against torch.nn.LSTM in float64, and the parts of its steps."""

    ROWS, SAVED, MARKS = 8, 5, 4

    def __init__(
        self, library: ctypes.CDLL, blocks: int, units: int, steps: int, emulated: bool
    ) -> None:
        self._library, self._blocks, self._units, self._steps = library, blocks, units, steps
        self._device = device = "cpu" if emulated else "cuda"
        hidden = blocks * units
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(shape, generator=random) * scale

        row, half = (steps, self.ROWS), torch.bfloat16
        self._tensors = {
            "gates": normal(*row, 4 * hidden),
            "w_hh": normal(4 * hidden, hidden, scale=hidden**-0.5).to(half),
            "y": torch.zeros(*row, hidden, dtype=half),
            "save": torch.zeros(*row, self.SAVED, hidden, dtype=half),
            "h": torch.zeros(self.ROWS, hidden, dtype=half),
            "c": torch.zeros(self.ROWS, hidden, dtype=half),
            "grad_y": normal(*row, hidden).to(half),
            "grads": torch.zeros(*row, 4 * hidden, dtype=half),
        }
        self._tensors = {name: x.to(device) for name, x in self._tensors.items()}
        self._expected_y, self._expected_grads = self._expected()

    def forward(self) -> Found:
        for _ in range(2):  # the first brings the code to the chip
            found = self._run(backward=False)
        self._check("y", self._expected_y)
        return found

    def backward(self) -> Found:
        self.forward()
        for _ in range(2):
            found = self._run(backward=True)
        self._check("grads", self._expected_grads)
        return found

    def _run(self, *, backward: bool) -> Found:
        marks = torch.zeros(
            self._blocks, self._steps, self.MARKS, dtype=torch.int64, device=self._device
        )
        stream = 0 if self._device == "cpu" else torch.cuda.current_stream().cuda_stream
        arrays = _Arrays(**{name: x.data_ptr() for name, x in self._tensors.items()})
        code = self._library.probe_walk(
            ctypes.c_void_p(marks.data_ptr()), int(backward), self._blocks, self._units, self.ROWS,
            self._steps, ctypes.byref(arrays), ctypes.c_void_p(stream),
        )  # fmt: skip
        if code:
            raise RuntimeError(f"a walk with clocks: CUDA's error {code}")
        # Not the first step, which waits for nobody, nor the last, which sends nothing.
        asked, came, first, sent = marks.cpu()[:, 1:-1].unbind(-1)

        def median(x: torch.Tensor) -> float:
            return statistics.median(x.flatten().tolist())

        return {
            "cycles": median(asked[:, 1:] - asked[:, :-1]),
            "waits": median(came - asked),
            "until the first word": median(first - came),
            "sends": median(sent - first),
            "stores and loads": median(asked[:, 1:] - sent[:, :-1]),
        }

    def _expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs and the gradients of the gates."""
        gates, w_hh, grad_y = (
            self._tensors[name].to("cpu", torch.float64) for name in ("gates", "w_hh", "grad_y")
        )
        width, hidden = w_hh.shape
        lstm = torch.nn.LSTM(width, hidden, bias=False, dtype=torch.float64)
        with torch.no_grad():
            lstm.weight_ih_l0.copy_(torch.eye(width))
            lstm.weight_hh_l0.copy_(w_hh)
        gates.requires_grad_()
        y, _ = lstm(gates)
        return y.detach(), torch.autograd.grad(y, gates, grad_y)[0]

    def _check(self, name: str, expected: torch.Tensor) -> None:
        error = (self._tensors[name].to("cpu", torch.float64) - expected).abs().max()
        allowed = 0.02 * float(expected.abs().max())  # of bfloat16, over many steps
        if not float(error) <= allowed:
            raise RuntimeError(f"a walk with clocks: {name} is off by {float(error):.2g}")


@cache
def _built() -> ctypes.CDLL:
    if not LIBRARY.exists() or digest().encode() not in LIBRARY.read_bytes():
        build()
    return ctypes.CDLL(str(LIBRARY))


def digest() -> str:
    """What the sources are, as a library that was compiled from them tells."""
    headers = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh")]
    folder = sorted(path for path in SOURCES[0].parent.iterdir() if path.suffix in (".cu", ".cuh"))
    of_all = hashlib.sha256()
    for path in [*folder, *sorted(headers)]:
        of_all.update(path.read_bytes())
    return of_all.hexdigest()


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
    command += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra", *map(str, SOURCES)]
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
    library = _compilers().library("plain", SOURCES, name="probes", flags=_flags())
    return ctypes.CDLL(str(library))
