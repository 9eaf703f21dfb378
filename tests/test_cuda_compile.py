"""Every CUDA source compiles for every architecture, without warnings, and no kernel spills.

Runs wherever nvcc is; no GPU is needed. `make test` compiles sources for one architecture each, in
turn: every cell in two arithmetics, one cell in all, and few of the walks that are compiled for a
team; --thorough everything for all. What each kernel takes of a multiprocessor is committed in
cuda_kernels.txt, so that a change that costs registers shows in its diff:

    python tests/test_cuda_compile.py        # writes it anew
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cuda_emulation.build import fixed_teams, load_setup
from cuda_emulation.registers import ARCHITECTURES, TABLE, rows, short

import step_cycles
from fusedrnn.cells import CELLS

ROOT = Path(__file__).resolve().parents[1]
NVCC = shutil.which(
    "nvcc", path=f"{os.environ['CUDA_HOME']}/bin" if "CUDA_HOME" in os.environ else None
)

ARITHMETICS = ("Bf16", "F16", "Tf32", "F32")  # that teams walk in

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the path")


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of a kernel, in bytes except for the registers (per thread)."""

    name: str
    registers: int
    shared: int
    stack: int
    spilled: int


@dataclass(frozen=True)
class Source:
    """A file, and the flags of a variant of it."""

    file: Path
    variant: str = ""
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file.stem} {self.variant}".strip().replace(" ", "-")


SOURCES = [Source(file, name, tuple(flags)) for file, name, flags in load_setup().cuda_files()]


def compile_for(source: Source, architecture: str, folder: Path) -> list[Kernel]:
    """Compiles to machine code; a warning is an error."""
    assert NVCC is not None
    cubin = folder / f"{source}-{architecture}.cubin"
    done = subprocess.run(
        [NVCC, "-std=c++17", "-O3", "-DNDEBUG", f"-arch={architecture}", "-cubin", "-Xptxas=-v",
         "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror", f"-I{ROOT / 'csrc'}",
         "-lineinfo", *source.flags, str(source.file), "-o", str(cubin)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{source} for {architecture}:\n{done.stderr[-4000:]}"
    if source.file.name == "instance.cu" and architecture == step_cycles.ARCHITECTURE:
        step_cycles.keep(cubin, step_cycles.cubin_place(source.flags, release()))
    return kernels_in(done.stderr)


def kernels_in(log: str) -> list[Kernel]:
    """The kernels that a log of `ptxas -v` speaks of."""
    names = subprocess.run(["c++filt"], input=log, capture_output=True, text=True, check=True)
    found = re.findall(
        r"Compiling entry function '(.+)' for '\w+'\n.*Function properties.*\n"
        r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        names.stdout,
    )
    return [
        Kernel(short(name), int(registers), int(shared or 0), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers, shared in found
    ]


Kernels = dict[str, list[Kernel]]  # by architecture

ALL = [(source, architecture) for source in SOURCES for architecture in ARCHITECTURES]
# Each for one architecture in turn, with one of the walks that are compiled for a team; the LSTM's
# in bf16, whose cycles are counted, with all of them.
FEW_TEAMS = r"-DFUSEDRNN_FIXED_TEAMS={1\,64\,8\,Arithmetics::tensor_cores}"  # nvcc splits at commas
COUNTED = "2 Bf16"


def is_quick(source: Source) -> bool:
    """Whether `make test` compiles it.

    The source for fp16 is that for bf16, and for tf32 that for fp32, except for a few functions.
    The GRU, compiled in all of them, has everything that a walk may have except a second state.
    """
    if source.file.name != "instance.cu":
        return True
    cell, arithmetic = source.variant.split()
    return arithmetic in ("Bf16", "F32") or CELLS[int(cell)].name == "gru"


def once(source: Source, architecture: str) -> tuple[Source, str]:
    """A source for `make test`."""
    if source.variant == COUNTED:
        return source, step_cycles.ARCHITECTURE
    if source.file.name == "instance.cu":
        source = replace(source, flags=(*source.flags, FEW_TEAMS))
    return source, architecture


IN_TURN = itertools.cycle((*ARCHITECTURES[1:], ARCHITECTURES[0]))  # fp16 for Turing
QUICK = [once(*job) for job in zip(filter(is_quick, SOURCES), IN_TURN, strict=False)]


def compile_all(jobs: list[tuple[Source, str]], folder: Path) -> Kernels:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: compile_for(*job, folder), jobs))
    kernels: Kernels = {architecture: [] for architecture in ARCHITECTURES}
    for (_, architecture), found in zip(jobs, results, strict=True):
        kernels[architecture] += found
    return kernels


def release() -> str:
    """nvcc's version, such as 13.0."""
    assert NVCC is not None
    return step_cycles.release_of(NVCC)


def table(kernels: Kernels) -> str:
    """The committed table: registers for each architecture, shared memory, name."""
    lines = [
        f"# nvcc {release()}; registers per thread for {', '.join(ARCHITECTURES)};"
        " bytes of static shared memory; kernel (4 registers: empty, not for that one)"
    ]
    by_name: dict[str, list[Kernel]] = {}
    for architecture in ARCHITECTURES:
        for kernel in kernels[architecture]:
            by_name.setdefault(kernel.name, []).append(kernel)
    for name, found in sorted(by_name.items()):
        registers = " ".join(f"{kernel.registers:3}" for kernel in found)
        lines.append(f"{registers}  {max(kernel.shared for kernel in found):5}  {name}")
    return "\n".join(lines) + "\n"


@needs_nvcc
def test_every_kernel_compiles_and_none_spills(tmp_path: Path, thorough: bool) -> None:
    kernels = compile_all(ALL if thorough else QUICK, tmp_path)
    for architecture, found in kernels.items():
        assert found, architecture
        names = [kernel.name for kernel in found]
        assert sorted(set(names)) == sorted(names), "a kernel is compiled twice"
        wasteful = [k for k in found if k.stack or k.spilled]
        assert not wasteful, f"{architecture}: on the stack or spilled: {wasteful}"
        # A walk's 384 threads may have all registers of a multiprocessor, and one that is compiled
        # for fewer has more of them; of the others, 256 threads of 255 registers would leave one
        # block to it.
        heavy = [k for k in found if k.registers > (168 if k.name.startswith("walk_") else 128)]
        heavy = [k for k in heavy if "Fixed<" not in k.name]
        assert not heavy, f"{architecture}: too many registers: {heavy}"
    committed = rows()
    names = {kernel.name for found in kernels.values() for kernel in found}
    assert names == committed.keys() if thorough else names < committed.keys()
    if not TABLE.read_text().startswith(f"# nvcc {release()};"):
        return  # another compiler, other registers; the kernels are the same
    for column, architecture in enumerate(ARCHITECTURES):
        for kernel in kernels[architecture]:
            registers, shared = committed[kernel.name]
            assert kernel.registers == registers[column], f"write {TABLE.name} anew: {kernel}"
            assert kernel.shared <= shared, f"write {TABLE.name} anew: {kernel}"
    if thorough:
        assert table(kernels) == TABLE.read_text()


def test_every_cell_is_counted() -> None:
    """setup.py reads how many there are; a compilation for one cell more fails."""
    assert load_setup().cell_count() == len(CELLS)


def test_every_walk_is_compiled() -> None:
    """For every cell of one stage and every arithmetic, both passes, by both kinds of team."""
    walks = {name: name[:-1].split("<", 1) for name in rows() if name.startswith("walk_")}
    kinds: dict[str, set[tuple[str, ...]]] = {"walk_forward": set(), "walk_backward": set()}
    for kernel, arguments in walks.values():
        kinds[kernel].add(tuple(arguments.split(", ")))
    cells = {cell for cell, *_ in kinds["walk_forward"]}
    assert len(cells) == sum(cell.stages == 1 for cell in CELLS)
    every = set(itertools.product(cells, ARITHMETICS, ("BlockTeam", "ClusterTeam"), ("Told",)))
    count = {"half": 2, "tensor_cores": 3, "all": 4}  # of ARITHMETICS
    for blocks, units, rows_, arithmetics in fixed_teams():
        kind = "BlockTeam" if blocks == 1 else "ClusterTeam"
        sizes = f"Fixed<{blocks}", str(units), f"{rows_}> "
        every |= {
            (cell, arithmetic, kind, *sizes)
            for cell in cells
            for arithmetic in ARITHMETICS[: count[arithmetics]]
        }
    assert kinds["walk_forward"] == kinds["walk_backward"] == every


def test_every_stage_is_compiled() -> None:
    """In every storage type, both passes, for one unit per thread and for 16 bytes of them."""
    names = rows()
    forward = {name.split("<", 1)[1] for name in names if name.startswith("forward_cell")}
    backward = {name.split("<", 1)[1] for name in names if name.startswith("backward_cell")}
    assert forward == backward
    widths = (("double", 2), ("float", 4), ("bfloat16", 8), ("__half", 8))
    stages = {name.rsplit(", ", 2)[0] for name in forward}
    assert len(stages) == sum(cell.stages for cell in CELLS)
    expected = {
        f"{stage}, {dtype}, {units}>" for stage in stages for dtype, n in widths for units in (1, n)
    }
    assert forward == expected


@needs_nvcc
def test_a_kernel_that_spills_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "greedy.cu"
    source.write_text("""
        __global__ void __launch_bounds__(1024) greedy(float* x, int n) {
          float held[64];
          for (int i = 0; i < 64; ++i) held[i] = x[i * blockDim.x + threadIdx.x];
          __syncthreads();
          for (int i = 0; i < 64; ++i)
            x[(63 - i) * blockDim.x + threadIdx.x] = held[i] * held[i ^ 5];
        }
        __global__ void indexed(float* x, int n) {
          __shared__ float all[256];
          float held[64];
          for (int i = 0; i < 64; ++i) held[i] = x[i];
          for (int i = 0; i < n; ++i) held[i * 7 & 63] += x[i];
          all[threadIdx.x] = held[n & 63];
          __syncthreads();
          x[threadIdx.x] = all[255 - threadIdx.x];
        }
    """)
    found = {kernel.name: kernel for kernel in compile_for(Source(source), "sm_80", tmp_path)}
    assert set(found) == {"greedy", "indexed"}
    assert found["greedy"].spilled > 0
    assert found["indexed"].stack >= 256
    assert found["indexed"].shared == 1024


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        TABLE.write_text(table(compile_all(ALL, Path(folder))))
