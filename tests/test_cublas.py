"""Which cuBLAS serves the calls, with several in a process: the one that torch's handle is from.

The libraries are stand-ins: each says of its math mode which version it is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

FUNCTIONS = ("cublasGemmEx", "cublasGemmStridedBatchedEx", "cublasSetMathMode")
PROBE = """
#include "blas.h"
extern "C" int version() {
  const fusedrnn::cuda::Cublas* const cublas = fusedrnn::cuda::find_cublas();
  int mode = 0;
  if (cublas) cublas->get_math_mode(nullptr, &mode);
  return mode;
}
"""


def compiled(source: str, library: Path, *flags: str | Path) -> None:
    text = library.with_suffix(".cpp")
    text.write_text(source)
    subprocess.run(
        ["g++", "-std=c++17", "-shared", "-fPIC", f"-Wl,-soname,{library.name}",
         "-Wl,--no-as-needed", text, "-o", library, *flags],
        check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cuBLAS 11 to 13, a torch of CUDA 12 and one that depends on none, and our own of 12."""
    folder = tmp_path_factory.mktemp("libraries")
    others = "".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in FUNCTIONS)
    for version in (11, 12, 13):
        mode = f'extern "C" int cublasGetMathMode(void*, int* mode) {{ return *mode = {version}; }}'
        compiled(others + mode, folder / f"libcublas.so.{version}")
    (folder / "bare").mkdir()
    rpath = f"-Wl,-rpath,{folder}"
    compiled("", folder / "libtorch_cuda.so", folder / "libcublas.so.12", rpath)
    compiled("", folder / "bare" / "libtorch_cuda.so")
    (folder / "cuda_runtime_api.h").write_text("#define CUDART_VERSION 12080\n")
    ours = [CUDA / "cublas_library.cpp", f"-I{CUDA}", f"-I{folder}"]
    compiled(PROBE, folder / "probe.so", *ours)
    return folder


def version(folder: Path, libraries: Sequence[str]) -> int:
    """The one that is found in a process that loads these in turn; 0 if there is none."""
    code = f"""if True:
        import ctypes
        for name in {list(libraries)}:
            ctypes.CDLL({str(folder)!r} + "/" + name, ctypes.RTLD_GLOBAL)
        print(ctypes.CDLL({str(folder)!r} + "/probe.so").version())"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(
    ("libraries", "found"),
    [
        (["libtorch_cuda.so"], 12),
        (["libcublas.so.13", "libtorch_cuda.so"], 12),
        (["libcublas.so.11", "libtorch_cuda.so", "libcublas.so.13"], 12),
        # Its dependencies say nothing: by name, our own CUDA's version first.
        (["bare/libtorch_cuda.so", "libcublas.so.13"], 13),
        (["bare/libtorch_cuda.so", "libcublas.so.13", "libcublas.so.12"], 12),
        (["bare/libtorch_cuda.so", "libcublas.so.13", "libcublas.so.11"], 0),
        (["libcublas.so.11"], 11),
        ([], 0),
    ],
    ids=str,
)
def test_finds_the_one_that_torch_uses(folder: Path, libraries: list[str], found: int) -> None:
    assert version(folder, libraries) == found
