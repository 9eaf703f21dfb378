"""Says what is here: versions, processor, CUDA devices, and how a problem would be run.

With the sizes of a problem it shows the plan of each layer on the CPU and, where the build or the
machine has CUDA or --device asks for it, on a CUDA device; nothing is computed.

The keys of --json:
  versions     fusedrnn, torch, torch_cuda (null: a CPU build), python, system
  build        fusedrnn.build_info()
  cpu          model, cores (that may be used), threads, capability (the instruction set in use),
               capabilities (those to choose from: this processor's that are in this build, the
               best first), supports (all of this processor)
  cuda         driver_cuda (the CUDA version of the driver, null: no driver), usable, why_not,
               devices: index, name, capability, memory_gib, target (of cuda_targets, the code that
               runs there; null: none does)
  environment  each variable that matters; null where it is not set
  problem      the problem as given with cell, dtype, threads and training, or null
  plans        for each device and kind of layer: device, layers, gpu (whose sizes the plan is for,
               null on the CPU), plan: the fields of fusedrnn.Plan or fusedrnn.CudaPlan
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import fusedrnn
from fusedrnn._C import (
    cpu_capabilities,
    cpu_capability,
    cpu_capability_error,
    processor_capabilities,
)
from fusedrnn.command_line.arguments import (
    CELL_NAMES,
    DTYPES,
    Problem,
    UsageError,
    add_problem,
    add_threads,
    cells_for,
    cuda_is_missing,
    no_device,
    problem_of,
)
from fusedrnn.command_line.tables import Table
from fusedrnn.plans import threads_of_a_call

VARIABLES = {
    "FUSEDRNN_CACHE": "compiled cells, records of GPUs; in the user's cache folder if not set",
    "FUSEDRNN_CELL_COMPILE": "0: written cells are interpreted, never compiled",
    "FUSEDRNN_CHECK": "0: ways of computing on a GPU are trusted, not checked first",
    "FUSEDRNN_CPU_CAPABILITY": "a lower instruction set",
    "FUSEDRNN_NVRTC": "the compiler of written cells on CUDA; torch's if not set",
    "FUSEDRNN_PLAN": "overrides plans, for measuring",
    "FUSEDRNN_POOL_MB": "memory that the CPU's pool holds when idle; 512 if not set",
    "FUSEDRNN_PROCESSORS": "processors for the threads of a team; by affinity and quota if not set",
    "FUSEDRNN_TUNE": "0: no way of computing on a GPU is timed",
    "OMP_NUM_THREADS": "threads of torch on the CPU",
    "OMP_PROC_BIND": "whether these threads stay on their cores",
    "GOMP_CPU_AFFINITY": "the cores of these threads",
    "CUDA_VISIBLE_DEVICES": "the CUDA devices that torch sees",
}
"""What changes how fusedrnn runs, and what each does."""

PREFIXES = ("FUSEDRNN_", "OMP_", "MKL_", "GOMP_", "KMP_", "ONEDNN_")
"""Variables of these names are shown if they are set."""

MEANINGS = {
    "backend": "whose kernels run",
    "capability": "the instruction set",
    "team": "what walks the steps",
    "threads": "of a team",
    "direction_teams": "teams that walk at the same time, one for each direction",
    "split": "what the team shares out: batch (nobody waits), units (a barrier per step), none",
    "weights_in_place": "the recurrent weights are read where they are, no panels made",
    "fuse_input": "the input is projected inside the walk, tile by tile",
    "forward_steps": "steps whose input projection is computed at once",
    "backward_steps": "steps whose gradients of the weights are computed at once",
    "step_ns": "predicted time of a step in nanoseconds",
    "arithmetic": "how a team multiplies",
    "blocks": "of a team",
    "units": "hidden units of a block",
    "rows": "sequences of a team",
    "fixed": "the kernel was compiled for a team of these sizes",
    "warps": "of a block",
    "shared_bytes": "of a block",
    "teams": "of a call",
    "at_once": "teams that the device has room for at the same time",
    "units_per_thread": "of the stepwise kernels",
    "runs": "fusedrnn's kernels, or torch.nn's own path if that was faster on this GPU",
    "measured": "milliseconds of a call, on this GPU",
    "struck_off": "teams that did not agree with the reference on this GPU",
}
"""The fields of a plan in a few words; fusedrnn.Plan and fusedrnn.CudaPlan say more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    add_problem(parser)
    parser.add_argument("--cell", choices=CELL_NAMES, default="lstm", help="(lstm)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(float32)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="plans for this kind only")
    parser.add_argument("--training", action="store_true", help="with gradients")
    add_threads(parser)


def collect(given: argparse.Namespace) -> dict[str, Any]:
    """All that there is to say, see --json in the help."""
    problem = problem_of(given)
    details = {name: getattr(given, name) for name in ("cell", "dtype", "training")}
    details["threads"] = given.threads or threads_of_a_call()
    if problem:
        cells_for(problem, [given.cell])
    elif given.device or given.training:
        flag = "--device" if given.device else "--training"
        raise UsageError(f"argument {flag}: needs the sizes of a problem beside it")
    return {
        "versions": versions(),
        "build": fusedrnn.build_info(),
        "cpu": {
            "model": cpu_model(),
            "cores": cores(),
            "threads": details["threads"],
            "capability": cpu_capability(),
            "capabilities": cpu_capabilities(),
            "supports": processor_capabilities(),
        },
        "cuda": _cuda(),
        "environment": environment(),
        "problem": problem.as_dict() | details if problem else None,
        "plans": _plans(problem, given.device, **details) if problem else [],
    }


def failed(report: Mapping[str, Any]) -> bool:
    """Nothing here can fail."""
    return False


def show(report: Mapping[str, Any]) -> list[Table | str]:
    """The report as tables."""
    versions, build, cpu, cuda = (report[key] for key in ("versions", "build", "cpu", "cuda"))
    parts: list[Table | str] = [
        _pairs(
            "Versions",
            ("fusedrnn", versions["fusedrnn"]),
            ("torch", versions["torch"]),
            ("torch's CUDA", versions["torch_cuda"] or "none: a CPU build"),
            ("Python", versions["python"]),
            ("system", versions["system"]),
            ("built by", f"{build['compiler']}, against torch {build['torch']}"),
        ),
        _pairs(
            "Processor",
            ("model", cpu["model"]),
            ("cores", str(cpu["cores"])),
            ("threads", str(cpu["threads"])),
            ("kernels", _kernels(report)),
            ("kernels built for", ", ".join(build["cpu_targets"])),
            ("it supports", ", ".join(cpu["supports"])),
        ),
        _pairs(
            "CUDA",
            ("kernels for", " ".join(build["cuda_targets"]) or "none: built without CUDA"),
            ("driver", _driver_in_words(cuda["driver_cuda"])),
            ("usable", "yes" if cuda["usable"] else f"no: {cuda['why_not']}"),
            *((f"device {found['index']}", _device_in_words(found)) for found in cuda["devices"]),
        ),
        Table(
            "Environment",
            ("variable", "value", "what it does"),
            [
                (name, "-" if value is None else value, VARIABLES.get(name, ""))
                for name, value in report["environment"].items()
            ],
        ),
    ]
    parts += [_plan_table(report["problem"], entry) for entry in report["plans"]]
    return parts


def versions() -> dict[str, str | None]:
    """The versions of everything that takes part."""
    return {
        "fusedrnn": fusedrnn.__version__,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def cores() -> int | None:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def environment() -> dict[str, str | None]:
    """The variables that matter, None where not set, and what else is set of their kind."""
    names = sorted(set(os.environ) - set(VARIABLES))
    others = [name for name in names if name.startswith(PREFIXES)]
    return {name: os.environ.get(name) for name in (*VARIABLES, *others)}


def code_for(capability: tuple[int, int], targets: Iterable[str]) -> str | None:
    """Which of a library's CUDA targets runs on a device of this compute capability.

    Machine code (sm_XY) runs on devices of the same major version and this or a later minor one;
    with an "a" on that very capability. Intermediate code (compute_XY) is compiled by the driver
    for that or any later capability, and follows machine code.
    """
    found = {}
    for target in targets:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", target)
        if match is None:
            continue
        kind, major, minor, suffix = match.groups()
        of = (int(major), int(minor))
        same = capability == of or (suffix != "a" and capability[0] == of[0] and capability > of)
        later = kind == "compute" and suffix == "" and capability > of
        if same or later:
            found[(kind == "sm", of, suffix)] = target
    return found[max(found)] if found else None


def _cuda() -> dict[str, Any]:
    why_not = cuda_is_missing()
    devices = []
    for index in range(0 if no_device() else torch.cuda.device_count()):
        properties: Any = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        devices.append(
            {
                "index": index,
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "target": code_for(capability, fusedrnn.build_info()["cuda_targets"]),
            }
        )
    if why_not is None and not any(found["target"] for found in devices):
        why_not = "the library has no code for the devices here"
    return {
        "driver_cuda": _driver_cuda(),
        "usable": why_not is None,
        "why_not": why_not,
        "devices": devices,
    }


def _driver_cuda() -> str | None:
    """The newest CUDA version that the driver serves, or None without a driver."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _plans(
    problem: Problem, device: str | None, *, cell: str, dtype: str, threads: int, training: bool
) -> list[dict[str, Any]]:
    if device:
        devices = [device]
    else:
        gpu = fusedrnn.build_info()["cuda"] or torch.cuda.is_available()
        devices = ["cpu", "cuda"] if gpu else ["cpu"]
    width = (problem.proj_size or problem.hidden_size) * (2 if problem.bidirectional else 1)
    kinds = {problem.input_size: [1]}
    for layer in range(2, problem.layers + 1):
        kinds.setdefault(width, []).append(layer)
    entries = []
    for name in devices:
        for input_size, layers in kinds.items():
            try:
                plan = fusedrnn.plan(
                    cell,
                    device=name,
                    time=problem.time,
                    batch=problem.batch,
                    input_size=input_size,
                    hidden_size=problem.hidden_size,
                    proj_size=problem.proj_size,
                    bidirectional=problem.bidirectional,
                    dtype=getattr(torch, dtype),
                    threads=threads,
                    training=training,
                )
            except ValueError as error:
                raise UsageError(str(error)) from None
            entry = {"device": name, "layers": layers, "gpu": _gpu(name), "plan": asdict(plan)}
            entries.append(entry)
    return entries


def _gpu(device: str) -> str | None:
    if device == "cpu":
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "an H200, none is here"


def _kernels(report: Mapping[str, Any]) -> str:
    if cpu_capability_error():
        return f"none: {cpu_capability_error()}"
    used, best = report["cpu"]["capability"], report["cpu"]["capabilities"][0]
    return used if used == best else f"{used}, lowered by FUSEDRNN_CPU_CAPABILITY"


def _driver_in_words(cuda: str | None) -> str:
    return "no NVIDIA driver found" if cuda is None else f"serves CUDA up to {cuda}"


def _device_in_words(found: Mapping[str, Any]) -> str:
    code = f"runs {found['target']}" if found["target"] else "the library has no code for it"
    return f"{found['name']}, {found['capability']}, {found['memory_gib']} GiB: {code}"


def _pairs(title: str, *rows: tuple[str, str]) -> Table:
    return Table(title, ("", ""), rows)


def _plan_table(problem: Mapping[str, Any], entry: Mapping[str, Any]) -> Table:
    sizes = Problem(**{name: problem[name] for name in Problem.__dataclass_fields__})
    layers = entry["layers"]
    title = f"Plan of {problem['cell']} {sizes}, {problem['dtype']}, "
    title += "training" if problem["training"] else "inference"
    if sizes.layers > 1:
        title += f", layer {layers[0]}" + (f" to {layers[-1]}" if len(layers) > 1 else "")
    title += f", on {entry['device']}" + (f" ({entry['gpu']})" if entry["gpu"] else "")
    rows = []
    for name, value in entry["plan"].items():
        if name == "measured" and value:
            value = ", ".join(f"{way} {seconds * 1e3:.3g}" for way, seconds in value.items())
        walk = value if isinstance(value, Mapping) else {name: value}
        for field, found in walk.items():
            if found is not None:
                label = field if walk is not value else f"{name}.{field}"
                rows.append((label, _in_words(found), MEANINGS[field]))
    return Table(title, ("field", "value", "what it is"), rows)


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
