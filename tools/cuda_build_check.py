"""Checks a build with CUDA on a machine that need not have a GPU. `make cuda-build-check` calls it.

It checks that the library loads, what it exports and needs, that what it looks up in torch's
process is there, and that a machine without a driver is told so. Checking numbers needs a GPU:
tools/gpu_check.sh.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import fusedrnn
import fusedrnn._engine.ops

FOLDER = Path(fusedrnn.__file__).parent / "lib"
OPS, CUDA = FOLDER / "libfusedrnn.so", FOLDER / "libfusedrnn_cuda.so"
ENTRY = "fusedrnn_cuda_backend"
EXPORTS = [
    ENTRY, "fusedrnn_cuda_device", "fusedrnn_cuda_keep_images_by", "fusedrnn_cuda_make_program",
    "fusedrnn_cuda_without_programs",
    "fusedrnn_override_plan", "fusedrnn_version",  # of every library
]  # fmt: skip
WANTED = {  # what the libraries look up by name in the process, and where
    "libtorch_cuda.so": (
        "aoti_torch_get_current_cuda_stream",
        "torch_get_current_cuda_blas_handle",
    ),
    "libcublas.so.*": (
        "cublasGemmEx",
        "cublasGemmStridedBatchedEx",
        "cublasGetMathMode",
        "cublasSetMathMode",
    ),
}


def output(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def loaded(pattern: str) -> ctypes.CDLL:
    """The library of this name that the process has already; none is loaded."""
    maps = Path("/proc/self/maps").read_text().split()
    found = sorted({path for path in maps if Path(path).match(pattern)})
    assert found, f"no {pattern} in the process"
    return ctypes.CDLL(found[0], mode=os.RTLD_NOLOAD | os.RTLD_NOW)


def build() -> str:
    """The build says that it has CUDA, and torch is for CUDA."""
    assert torch.version.cuda, f"torch {torch.__version__} is a CPU build"
    info = fusedrnn.build_info()
    assert info["cuda"] is True, info
    return f"{info}, run with torch {torch.__version__}"


def entry() -> str:
    """The library loads and its entry point answers; beside it are those of every library."""
    function = getattr(ctypes.CDLL(str(CUDA)), ENTRY)
    function.restype = ctypes.c_void_p
    assert function(), f"{ENTRY}() returned null"
    shown = output("nm", "-D", "--defined-only", CUDA).splitlines()
    names = [line.split()[-1] for line in shown if line.split()[-2] == "T"]
    assert sorted(names) == sorted(EXPORTS), f"exported: {names}"
    return f"{ENTRY}, {CUDA.stat().st_size / 1e6:.1f} MB"


def dependencies() -> str:
    """No library is missing, and torch, cudart and cublas are not linked."""
    lines = output("ldd", CUDA).splitlines()
    assert not any("not found" in line for line in lines), lines
    names = [line.split()[0] for line in lines]
    linked = [name for name in names if name.startswith(("libtorch", "libc10", "libcu"))]
    assert not linked, linked
    return " ".join(Path(name).name for name in names)


def kernels() -> str:
    """The ops have kernels of their own for CUDA tensors."""
    ops = [f"fusedrnn::layer_{which}" for which in ("forward", "backward")]
    lacking = [op for op in ops if not torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA")]
    assert not lacking, f"no CUDA kernel: {lacking}"
    return " ".join(ops)


def symbols() -> str:
    """What is looked up by name is there, and no weak reference to torch's CUDA part is null."""
    for pattern, names in WANTED.items():
        library = loaded(pattern)
        for name in names:
            assert hasattr(library, name), f"no {name} in {library._name}"
    # libtorch_cuda is nobody's dependency here and not in the global scope: the linker does not
    # bind a weak reference to it.
    weak = output("nm", "-D", "--undefined-only", OPS).splitlines()
    unbound = [line.split()[-1] for line in weak if line.split()[0] == "w"]
    ours, torch_cuda, everywhere = (
        ctypes.CDLL(str(OPS)),
        loaded("libtorch_cuda.so"),
        ctypes.CDLL(None),
    )
    null = [
        name
        for name in unbound
        if hasattr(torch_cuda, name) and not hasattr(ours, name) and not hasattr(everywhere, name)
    ]
    assert not null, f"{OPS.name} has weak references that stay null: {null}"
    return " ".join(name for names in WANTED.values() for name in names)


def driver() -> str:
    """Without a driver torch says so; with one, a layer computes."""
    if torch.cuda.is_available():
        output_, _ = fusedrnn.LSTM(8, 8, device="cuda")(torch.randn(3, 2, 8, device="cuda"))
        assert bool(output_.isfinite().all())
        return torch.cuda.get_device_name()
    try:
        fusedrnn.LSTM(8, 8, device="cuda")
    except (RuntimeError, AssertionError) as error:
        assert "NVIDIA" in str(error), error
        return f"no GPU: {str(error).splitlines()[0]}"
    raise AssertionError("device='cuda' without a GPU raised nothing")


CHECKS: tuple[Callable[[], str], ...] = (build, entry, dependencies, kernels, symbols, driver)


def main() -> int:
    failed = 0
    for check in CHECKS:
        try:
            print(f"ok    {check.__name__}: {check()}")
        except (AssertionError, OSError, subprocess.CalledProcessError) as error:
            failed += 1
            print(f"FAIL  {check.__name__}: {error}")
    print(f"cuda-build-check: {failed} of {len(CHECKS)} checks failed" if failed else
          f"cuda-build-check: all {len(CHECKS)} checks passed")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
