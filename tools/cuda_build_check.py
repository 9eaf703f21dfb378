"""Checks an installed CUDA build of fusedrnn beside a CUDA build of torch, with no GPU.

    python tools/cuda_build_check.py       (make cuda-build-check installs both and runs it)

What a GPU alone can show is left to tools/gpu_check.sh. Here: the library is there and complete, it
loads, what it takes from torch's CUDA libraries is in this process, and a call without a driver
ends in an exception.
"""

from __future__ import annotations

import ctypes
import subprocess

import torch

import fusedrnn
from fusedrnn import ops

NEEDED_OF_TORCH = ("aoti_torch_get_current_cuda_stream", "torch_get_current_cuda_blas_handle")
NEEDED_OF_CUBLAS = ("cublasGemmStridedBatchedEx", "cublasGetMathMode", "cublasSetMathMode")


def exports(library: str, names: tuple[str, ...]) -> bool:
    """Whether a library of this process, found by its name there, has these functions."""
    loaded = ctypes.CDLL(library, mode=ctypes.DEFAULT_MODE | 4)  # RTLD_NOLOAD
    return all(hasattr(loaded, name) for name in names)


def cublas_name() -> str:
    major = (torch.version.cuda or "").split(".")[0]
    return f"libcublas.so.{major}"


def refuses_without_a_driver() -> bool:
    if torch.cuda.is_available():
        return True  # nothing to refuse
    try:
        fusedrnn.LSTM(4, 8, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return "driver" in str(error).lower() or "cuda" in str(error).lower()
    return False


def main() -> None:
    """Runs every check, prints one line for each, and fails if one did."""
    links = subprocess.run(["ldd", str(ops.CUDA_LIBRARY)], capture_output=True, text=True).stdout
    backend = ops.use_backend("cuda", None)
    ops.use_backend("cuda", backend)
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    checks = {
        "torch is a CUDA build": torch.version.cuda is not None,
        f"{ops.CUDA_LIBRARY.name} is built": ops.CUDA_LIBRARY.exists(),
        "build_info() says so": bool(fusedrnn.build_info()["cuda"]),
        "nothing it links is missing": bool(links) and "not found" not in links,
        "it is installed as the backend of CUDA tensors": backend is not None,
        "the ops have CUDA kernels": all(
            has_kernel(f"fusedrnn::{op}", "CUDA") for op in ("layer_forward", "layer_backward")
        ),
        "torch has the functions that it takes": exports("libtorch_cuda.so", NEEDED_OF_TORCH),
        f"cuBLAS is in the process as {cublas_name()}": exports(cublas_name(), NEEDED_OF_CUBLAS),
        "no driver, no crash": refuses_without_a_driver(),
    }
    print(f"torch {torch.__version__}, {fusedrnn.build_info()}")
    for what, passed in checks.items():
        print(f"{'ok    ' if passed else 'FAILED'} {what}")
    if not all(checks.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
