"""Builds and runs driver.cpp, the CPU kernels on random problems, once with each sanitizer.

    python -m sanitize.run          20 seconds of problems with each, on this machine's kernels
    python -m sanitize.run thread --seed 5 --seconds 600
                                    other problems, and more of them, with one sanitizer

Kernels are compiled as setup.py compiles them, but without optimisation. That takes a third of the
time, and no access in the source is optimised away.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cuda_emulation.build import COMPILER, ROOT, compiled

HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "sanitize"

# UBSan without the checks that would check every access a second time.
UNDEFINED = "-fsanitize=undefined -fno-sanitize-recover "
UNDEFINED += "-fno-sanitize=null,object-size,pointer-overflow,vptr"
SANITIZERS = {
    "address": ["-fsanitize=address", *UNDEFINED.split(), "-DFUSEDRNN_POISON_GAPS"],
    "thread": ["-fsanitize=thread"],
}
PLAIN: tuple[str, ...] = ("cells/program.cpp", "layer/plan_override.cpp")
PLAIN += tuple(f"cpu/{name}.cpp" for name in ("fork", "plan", "processors", "team"))

Kernels = Sequence[tuple[str, str, str]]  # instruction set, file of csrc/cpu/isa/, dtype or ""
FEW: Kernels = [
    *(("portable", name, "f32") for name in ("forward", "backward", "tiles")),
    ("portable", "table", ""),
]


class Missing(Exception):
    """There is no compiler, or its sanitizers do not run here."""


def all_kernels(setup: dict) -> Kernels:
    """This machine's and the portable ones, without f64 and f16, which share their templates."""
    files = setup["kernel_files"](dict.fromkeys(["portable", setup["native_capability"]()]))
    return [file for file in files if file[2] in ("f32", "bf16", "")]


def built(sanitizer: str, kernels: Kernels | None = None) -> Path:
    """Builds the driver with some kernels, or with all."""
    if shutil.which(COMPILER) is None:
        raise Missing(f"{COMPILER} was not found")
    setup = runpy.run_path(str(ROOT / "setup.py"))
    folder = BUILD / f"{sanitizer}-{'few' if kernels else 'all'}"
    kernels = kernels or all_kernels(setup)
    flags = SANITIZERS[sanitizer]
    command = [COMPILER, "-std=c++17", "-O0", "-g1", f"-I{ROOT / 'csrc'}", "-pthread", *flags]
    command += "-Wall -Wextra -Wno-psabi -fno-math-errno -ffp-contract=fast".split()
    sources = {
        f"{name}.{isa}-{dtype}": (
            ROOT / "csrc" / "cpu" / "isa" / f"{name}.cpp",
            [
                f"-DFUSEDRNN_ISA={isa}",
                *setup["INSTRUCTION_SETS"][isa],
                *([f"-DFUSEDRNN_DTYPE={dtype}"] if dtype else []),
                *(f"-DFUSEDRNN_TABLE_{kind}=1" for kind in setup["compiled_for"](isa, kernels)),
            ],
        )
        for isa, name, dtype in sorted(kernels, key=lambda file: file[1] != "tiles")
    }
    sources |= {Path(name).name: (ROOT / "csrc" / name, []) for name in PLAIN}
    tables = " ".join(f"of({isa})" for isa, name, _ in sorted(kernels) if name == "table")
    programs = f'-DFUSEDRNN_PROGRAMS="{HERE / "programs.txt"}"'
    sources["driver.cpp"] = (HERE / "driver.cpp", [f"-DFUSEDRNN_SANITIZED(of)={tables}", programs])
    folder.mkdir(parents=True, exist_ok=True)
    with setup["alone"](folder):
        compiled(folder, command, sources, folder / "driver", link=flags)
    return folder / "driver"


def run(driver: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the driver, with fixed addresses if the sanitizer needs them."""
    command = [str(driver), *map(str, arguments)]
    for prefix in ([], ["setarch", "--addr-no-randomize"]):
        if prefix and shutil.which(prefix[0]) is None:
            break
        done = subprocess.run([*prefix, *command], capture_output=True, text=True)
        if "unexpected memory mapping" not in done.stderr:
            return done
    raise Missing(f"the sanitizer does not run here: {done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sanitize.run")
    parser.add_argument("sanitizer", nargs="?", choices=SANITIZERS, help="both if none is named")
    for name, value in (("seed", 1), ("first", 0), ("problems", 100_000), ("seconds", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    one = given.pop("sanitizer")
    for sanitizer in [one] if one else SANITIZERS:
        driver = built(sanitizer)
        arguments = [word for name, value in given.items() for word in (f"--{name}", value)]
        done = run(driver, *arguments)
        print(f"{sanitizer}: {done.stdout}{done.stderr}", end="", flush=True)
        if done.returncode:
            return 1
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
