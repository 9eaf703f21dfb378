"""What each kind of item is: a function of the device and of the item's arguments.

It returns what the worker says of the item ({"found": ...} as a rule, and what of it belongs to
"machine"), raises `Skip` where the item cannot be done here, and anything else where it failed.
Imports that need the library are made inside: a worker must start where it does not load.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import probes
from tools.gpu_check.channel import Message, Skip
from tools.gpu_check.device import ROOT, Device

if TYPE_CHECKING:
    from benchmarks.workloads import Case


def make_ready(device: Device) -> None:
    """Imports, before there is an item, what takes seconds; one that fails is the first item's."""
    with contextlib.suppress(Exception):
        importlib.import_module("benchmarks.gpu")
        # The first call of torch.autograd.backward would.
        importlib.import_module("torch.fx.experimental.symbolic_shapes")
        if device.stands_in:  # whose times mean nothing
            timing = importlib.import_module("fusedrnn.testing.timing")
            timing.SAMPLE = timing.LEAD_IN = 1e-3


def machine(device: Device) -> Message:
    """The GPU and its software; nothing is found out about fusedrnn here."""
    from benchmarks.machine import commit

    def said(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        return done.stdout.strip()

    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit() or "unknown",
        "gpu": None,
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks": said("nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem",
                       "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None,
        "python": sys.version.split()[0],
        "nvcc": (said("nvcc", "--version").splitlines() or ["unknown"])[-1],
        "cores": os.cpu_count(),
    }  # fmt: skip
    if device.stands_in:
        return {"machine": facts, "found": facts}
    if not torch.cuda.is_available():
        raise RuntimeError("no NVIDIA GPU found: torch.cuda.is_available() is false")
    properties = torch.cuda.get_device_properties(0)
    facts |= {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory GiB": round(properties.total_memory / 2**30, 1),
        "cudnn": torch.backends.cudnn.version(),
    }
    return {"machine": facts, "found": facts}


def library(device: Device) -> Message:
    """Loads the library, and builds it if it does not load."""
    why = loads(device)
    if why is None:
        import fusedrnn

        info = fusedrnn.build_info()
        return {"machine": {"build": info}, "found": {"built here": False, "build": info}}
    begin = time.monotonic()
    environment = dict(os.environ)
    if not device.stands_in:
        major, minor = torch.cuda.get_device_capability()
        # Hopper's and Blackwell's own instructions come with the `a`.
        environment["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}" + ("a" if major >= 9 else "")
        environment["FUSEDRNN_BUILD_CUDA"] = "1"
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    seconds = round(time.monotonic() - begin, 1)
    if code:
        raise RuntimeError(f"it did not load ({why}), and building it failed: see the log")
    check = [sys.executable, "-c", "import fusedrnn._engine.ops"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"what was built here does not load either: {done.stderr[-1000:]}")
    found = {"built here": True, "seconds": seconds, "did not load before": why}
    return {"machine": {"build": found}, "found": found, "retire": "pool"}


def loads(device: Device) -> str | None:
    """Why the library that is there cannot be used, or None."""
    try:
        fusedrnn = importlib.import_module("fusedrnn")
        cuda = fusedrnn.build_info()["cuda"]
    except (ImportError, OSError) as error:
        return str(error)
    return None if cuda or device.stands_in else "it has no CUDA kernels"


def occupancy(device: Device) -> Message:
    """How many clusters of each size are resident at once."""
    import ctypes

    library = device.library()
    if library is None:
        raise Skip("the CPU's own kernels have no clusters")
    library.fusedrnn_cuda_device.restype = ctypes.c_char_p
    facts = (ctypes.c_int * 64)()
    if why := library.fusedrnn_cuda_device(facts):
        raise RuntimeError(why.decode())
    capability, multiprocessors, shared_bytes, largest, *clusters = facts
    by_size = {str(n): clusters[n] for n in range(2, largest + 1)}
    found = {
        "capability that kernels are compiled for": capability / 10,
        "multiprocessors": multiprocessors,
        "shared bytes of a block": shared_bytes,
        "clusters at once": by_size,
    }
    return {"machine": {"clusters": by_size}, "found": found}


def ceilings(device: Device) -> Message:
    """The rates of copying, multiplying and launching that this machine reaches."""
    if device.stands_in:
        raise Skip("a stand-in has no ceilings worth a number")
    from benchmarks import gpu

    rates = gpu.ceilings()
    return {"machine": {"ceilings": rates}, "found": rates}


def way(device: Device, **way: str) -> Message:
    """One way of computing a layer, on a small problem."""
    from tools.gpu_check import problems

    if way["team"] == "cluster" and not device.stands_in:
        if torch.cuda.get_device_capability() < (9, 0):
            raise Skip("clusters need compute capability 9.0")
    device.set_up()
    return {"found": problems.check_way(device, **way)}


def problem(device: Device, **problem: Any) -> Message:
    """One problem for a sanitizer to watch."""
    from tools.gpu_check import problems

    device.set_up()
    problems.run_watched(device, **problem)
    return {}


def probe(device: Device, **arguments: Any) -> Message:
    """One microbenchmark."""
    if device.name == "cpu":
        raise Skip("the CPU's own kernels have no such thing")
    return {"found": probes.run(arguments, emulated=device.stands_in)}


def timed(device: Device, *, seconds: float, **names: str) -> Message:
    """One case against torch.nn."""
    from benchmarks import gpu, runner

    case = case_of(device, **names)
    if case.mode not in case.row.modes:
        raise Skip("a stand-in has no CUDA graphs")
    if why := runner.skipped(case):
        raise Skip(why)
    device.set_up()
    record = gpu.measure(case, 0.02 if device.stands_in else seconds)
    found = {"found": record}
    if "error" in record:
        return found | {"status": "failed", "why": record["error"]}
    return found


def kernels(device: Device, **names: str) -> Message:
    """The kernels of one forward call of each side."""
    from benchmarks import gpu

    device.set_up()
    return {"found": gpu.kernels_of(case_of(device, **names))}


def team(device: Device, *, asked: str, **names: str) -> Message:
    """A step of a case's walks as `asked`, an override of the plan."""
    from benchmarks import walks

    case = case_of(device, **names)
    device.set_up()
    with device.planned(asked):
        found = walks.predictions(case)
        walks.measure(case, found)
    found = [walk | {"asked": asked} for walk in found]
    errors = [walk["error"] for walk in found if "error" in walk]
    return {"found": {"walks": found}} | ({"status": "failed", "why": errors[0]} if errors else {})


def complaint(device: Device, *, name: str) -> Message:
    """A thing that users of other libraries complain of."""
    from benchmarks import complaints

    device.set_up()
    return {"found": complaints.run(name, device.type, small=device.stands_in)}


def case_of(device: Device, *, row: str, cell: str, mode: str, dtype: str) -> Case:
    """A case by its names, at the sizes that it has here."""
    from benchmarks.workloads import GPU_ROWS, Case

    found = next(r for r in GPU_ROWS if r.name == row)
    return Case(row=device.row(found), cell=cell, mode=mode, threads=1, dtype=dtype)


KINDS: dict[str, Callable[..., Message]] = {
    function.__name__: function
    for function in (
        machine, library, occupancy, ceilings, way, problem, probe, timed, kernels, team, complaint,
    )
}  # fmt: skip
