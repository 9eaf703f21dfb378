"""Compiles CUDA sources with g++ and links them with the emulated device.

    library()                    all of csrc/cuda          build/cuda_emulation/plain/kernels.so
    library("race")              ... checked for races     build/cuda_emulation/race/kernels.so
    library("asan", [Path(..)])  other sources, with AddressSanitizer and UBSan

The kernels are the project's own .cu files, unchanged: in front of CUDA's include folder stands
shim/, whose <cuda_runtime.h> and <cooperative_groups.h> are the emulation's. What else they include
(cuda_fp16.h, cuda_bf16.h, the runtime's types) are CUDA's own headers; no library and no nvcc.

Variants:
    plain  fast; sees deadlocks, bad launches, writes outside shared memory, wrong results
    race   checks every access for happens-before, and reads of what was never written
    asan   checks every access's address, and undefined behaviour; needs `asan_environment` in a
           process of its own, which the first fault ends
    teams  has the kernels of all teams of csrc/cuda/team/fixed.h, the others those of FIXED_TEAMS

A rebuild compiles what changed: ninja compares times (by depfiles) and command lines.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "cuda_emulation"


@functools.cache
def load_setup() -> ModuleType:
    """setup.py, which knows what the libraries are compiled from."""
    spec = importlib.util.spec_from_file_location("fusedrnn_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# Device and host side of the CUDA backend. cuBLAS is found, and kernels of programs are made, by
# other files here (cublas.cpp, programs.cpp).
EMBEDDED = BUILD / "embedded_headers.cpp"
KERNELS: tuple[Path, ...] = (
    HERE / "kernels" / "poison.cpp",
    HERE / "kernels" / "programs.cpp",
    ROOT / "csrc" / "layer" / "plan_override.cpp",
    *sorted((ROOT / "csrc" / "cells").glob("*.cpp")),
    *(
        path
        for path in sorted((ROOT / "csrc" / "cuda").rglob("*.c*"))
        if path.suffix in (".cu", ".cpp")
        and path.name not in ("cublas_library.cpp", "program_library.cpp")
    ),
    EMBEDDED,
)

COMPILER = "g++"  # of GCC: the race build relies on how it instruments memory accesses
COMMON = "-std=c++17 -fPIC -fvisibility=hidden -fno-gnu-unique -fno-ipa-icf".split()
COMMON += "-ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas -pthread".split()
# Some of csrc/cuda/team/fixed.h: one block and several, 8 and 16 sequences. A group there has one
# warp or several, whose number divides the depth or, in fp32, does not.
FIXED_TEAMS = (
    "{1, 64, 8, Arithmetics::tensor_cores}, {8, 16, 8, Arithmetics::all}, "
    "{8, 16, 16, Arithmetics::half}"
)
# Lines for the reports, and no more: kernels run as fast as with -O2 and compile in half the time.
COMMON += "-O1 -g1 -fno-var-tracking".split()
SANITIZERS = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=vptr"
TSAN = "--param tsan-distinguish-volatile=1 --param tsan-instrument-func-entry-exit=0"
# For kernels only: they call the check in race.cpp, which is compiled without them. Kernels that
# run only a few times are not optimised, and so compile in half the time.
RACE = ["-O0", "-fsanitize=thread", *TSAN.split()]
KERNEL_FLAGS: dict[str, list[str]] = {"plain": [], "race": RACE, "asan": ["-O0"], "teams": ["-O0"]}
FEW = f"-DFUSEDRNN_FIXED_TEAMS={FIXED_TEAMS}"
FLAGS: dict[str, list[str]] = {
    "plain": [FEW],
    "race": [FEW, "-DFUSEDRNN_EMULATION_RACE"],
    "asan": [FEW, *SANITIZERS.split()],
    "teams": [],
}

# Symbols of the sanitizers' libraries are found when a library is loaded.
DEFINED = {variant: [] if variant == "asan" else ["-Wl,-z,defs"] for variant in FLAGS}


class MissingHeaders(Exception):
    """CUDA's headers, or g++, are nowhere to be found."""


def fixed_teams() -> list[tuple[int, int, int, str]]:
    """The list of csrc/cuda/team/fixed.h: blocks, units, rows, and the name of its arithmetics."""
    text = (ROOT / "csrc" / "cuda" / "team" / "fixed.h").read_text()
    found = re.findall(r"\{(\d+), (\d+), (\d+), Arithmetics::(\w+)\}", text)
    assert found
    return [(int(b), int(u), int(r), arithmetics) for b, u, r, arithmetics in found]


def cuda_include() -> Path:
    """CUDA's include folder: of CUDA_HOME, next to nvcc, of the usual place, or of pip's wheels."""
    if shutil.which(COMPILER) is None:
        raise MissingHeaders(f"{COMPILER} was not found: the CUDA emulation is compiled by GCC")
    candidates = [
        Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ
    ]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(Path(nvcc).resolve().parent.parent)
    candidates.append(Path("/usr/local/cuda"))
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        candidates += sorted(Path(folder).glob("cu[0-9]*"))
    for candidate in candidates:
        include = candidate / "include"
        if all((include / name).exists() for name in ("cuda_fp16.h", "cuda_runtime_api.h", "crt")):
            return include
    raise MissingHeaders(
        "CUDA's headers were not found: set CUDA_HOME, put nvcc on PATH, or install the wheels "
        "nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl (26 MB); looked in "
        + ", ".join(str(candidate / "include") for candidate in candidates)
    )


def escaped(words: Sequence[object]) -> str:
    return shlex.join(str(word) for word in words).replace("$", "$$")


def compiled(
    folder: Path,
    compile: Sequence[object],
    sources: Mapping[str, tuple[Path, Sequence[str]]],
    target: Path | None = None,
    others: Sequence[Path] = (),
    link: Sequence[str] = (),
) -> list[Path]:
    """Brings the sources' objects up to date, and returns them.

    `compile` is the command for each source, `sources` has them by the names of their objects,
    each with its further flags. A target is linked from these and other objects.
    """
    objects = [folder / f"{name}.o" for name in sources]
    lines = [
        f"builddir = {escaped([folder])}",
        "rule compile",
        f"  command = {escaped(compile)} $flags -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    for target_object, (source, flags) in zip(objects, sources.values(), strict=True):
        lines += [f"build {target_object}: compile {source}", f"  flags = {escaped(flags)}"]
    if target:
        command = f"{COMPILER} -pthread $in {escaped([*link, '-o', target])}"
        lines += ["rule link", f"  command = {command}"]
        lines += [f"build {target}: link {' '.join(map(str, [*objects, *others]))}"]
    file, text = folder / "build.ninja", "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    ninja = [sys.executable, "-m", "ninja", "--quiet", "-f", str(file)]
    done = subprocess.run(ninja, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{folder.name} does not compile:\n{done.stdout}{done.stderr}")
    return objects


def command_of(variant: str) -> list[object]:
    """The command that compiles a source for the emulated device."""
    include = cuda_include()
    return [
        *[COMPILER, *COMMON, *FLAGS[variant], f"-I{HERE / 'shim'}", f"-I{ROOT / 'csrc'}"],
        *["-isystem", include, "-isystem", include / "cccl"],
    ]


def library(
    variant: str = "plain",
    sources: Sequence[Path] = KERNELS,
    *,
    name: str = "kernels",
    flags: Sequence[str] = (),
    links: Sequence[str] = (),
) -> Path:
    """Builds the sources and the emulated device to one library, and returns its path.

    `flags` go to the compiler of the sources (further include folders and macros), `links` to the
    linker: what else the sources' symbols are to be found in.
    """
    command = command_of(variant)
    device = {
        path.name: (path, ["-O3"] if path.stem == "cublas" else [])
        for path in sorted(HERE.glob("*.cpp"))
        if path.stem != "race" or variant == "race"
    }
    as_kernels = [*KERNEL_FLAGS[variant], "-x", "c++"]
    kernels: dict[str, tuple[Path, list[str]]] = {}
    for path in sources:
        instances = load_setup().cuda_instances() if path.name == "instance.cu" else {"": []}
        for instance, more in instances.items():
            kernel = f"{path.name} {instance}".strip().replace(" ", "-")
            as_such = as_kernels if path.suffix == ".cu" else []
            kernels[kernel] = (path.resolve(), [*flags, *more, *as_such])
    link = ["-shared", *FLAGS[variant], "-Wl,-Bsymbolic", *links, "-ldl", *DEFINED[variant]]
    target = BUILD / variant / f"{name}.so"
    if EMBEDDED in sources:
        load_setup().write_embedded_headers(EMBEDDED)
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # two processes may want the same library
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = compiled(BUILD / variant / "device", command, device)
        compiled(BUILD / variant / name, command, kernels, target, objects, link)
    return target


def program_kernels(variant: str, source: str, names: Sequence[str]) -> Path:
    """Builds the kernels of a source that a library made; `kernels` has their addresses, in order.

    The library, `kernels.so` of the variant, has the emulated device, and is to be loaded by then.
    """
    table = ", ".join(f"reinterpret_cast<const void*>(&{name})" for name in names)
    text = (
        f"{source}\n"
        'extern "C" __attribute__((visibility("default"))) const void* const kernels[];\n'
        f"const void* const kernels[] = {{{table}}};\n"
        'extern "C" __attribute__((visibility("default"))) const int kernel_count;\n'
        f"const int kernel_count = {len(names)};\n"
    )
    folder = BUILD / variant / "programs" / hashlib.sha256(text.encode()).hexdigest()[:20]
    folder.mkdir(parents=True, exist_ok=True)
    file, target = folder / "program.cu", folder / "program.so"
    link = ["-shared", *FLAGS[variant], *DEFINED[variant]]
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_text(text)
        sources = {"program": (file, ["-O0", *KERNEL_FLAGS[variant], "-x", "c++"])}
        compiled(
            folder, command_of(variant), sources, target, [BUILD / variant / "kernels.so"], link
        )
    return target


def asan_environment() -> dict[str, str]:
    """The environment in which a Python process can load a library of the variant asan."""

    def file_of(library: str) -> str:
        command = [COMPILER, f"-print-file-name={library}"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    # libstdc++, too: else what throws is loaded later, and AddressSanitizer has not found it.
    preload = f"{file_of('libasan.so')} {file_of('libstdc++.so.6')}"
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return {**os.environ, **options, "LD_PRELOAD": preload, "PYTHONMALLOC": "malloc"}
