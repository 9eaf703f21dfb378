"""How many registers the kernels take, of which the emulation knows nothing by itself.

g++ compiles the kernels for another machine, and `__launch_bounds__` is only a promise of how many
threads a launch has. What counts on a GPU is what ptxas made of a kernel: tests/cuda_kernels.txt,
which test_cuda_compile.py compares with the compiler. The emulated device refuses a launch of more
threads than fit 65536 registers by that table, in which the greediest architecture counts. Kernels
that are compiled at run time are not in it, and are not checked.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping
from pathlib import Path

TABLE = Path(__file__).parents[1] / "cuda_kernels.txt"
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a", "sm_100")


def short(name: str) -> str:
    """`void fusedrnn::cuda::forward_cell<fusedrnn::LstmCell, ...>(...)` without what repeats."""
    for noise in ("void ", "(anonymous namespace)::", "fusedrnn::cuda::", "fusedrnn::", "__nv_"):
        name = name.replace(noise, "")
    return name.split("(")[0]


def rows() -> dict[str, tuple[list[int], int]]:
    """The committed table: a kernel's registers for each architecture, and its shared memory."""
    found = {}
    for line in TABLE.read_text().splitlines()[1:]:
        *numbers, name = line.split(maxsplit=len(ARCHITECTURES) + 1)
        *registers, shared = map(int, numbers)
        found[name] = (registers, shared)
    return found


def most_registers() -> dict[str, int]:
    return {name: max(registers) for name, (registers, _) in rows().items()}


def tell(loaded: ctypes.CDLL, library: Path, registers: Mapping[str, int]) -> set[str]:
    """Tells the emulated device what kernels of its library take; returns those that it has."""
    command = ["nm", "-C", "--defined-only", str(library)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines, found = [], set()
    for symbol in symbols.splitlines():
        address, _, name = symbol.split(maxsplit=2)
        if (kernel := short(name)) in registers:
            found.add(kernel)
            lines.append(f"{int(address, 16)} {registers[kernel]}\n")
    assert loaded.fusedrnn_emulation_registers("".join(lines).encode()) == 0
    return found
