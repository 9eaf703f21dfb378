"""Finds, checks and loads the native part; what is wrong with it is an ImportError that says so.

    _C                   introspection, of this Python           imported when this module is
    libfusedrnn.so       the ops                                 `load(LIBRARY)`, by ops.py
    libfusedrnn_cuda.so  the CUDA kernels, if the build has them `load(CUDA_LIBRARY)`, by ops.py

An installation may be half there, cut off, of another version, for another processor or beside a
torch that is too old. A file that was cut off would end the process when the system's loader maps
it (SIGBUS), as would ops that are registered twice, so both are looked for before anything is
loaded. This module is the first that `import fusedrnn` runs: torch's own version comes before all.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import struct
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import fusedrnn

MINIMUM_TORCH = (2, 10)
PACKAGE = Path(__file__).parent.parent
LIBRARY: Path = PACKAGE / "lib" / "libfusedrnn.so"
CUDA_LIBRARY: Path = LIBRARY.with_name("libfusedrnn_cuda.so")


def load(library: Path) -> ctypes.CDLL:
    """Loads a library of ours.

    Raises:
        ImportError: it is not there, not whole, not of this version, or the system refuses it.
    """
    import torch

    _check_file(library)
    if library == LIBRARY and str(library) not in torch.ops.loaded_libraries:
        if hasattr(torch.ops.fusedrnn, "layer_forward"):
            others = [path for path in torch.ops.loaded_libraries if library.name in path]
            raise _broken(
                f"this process has loaded another copy of it, {', '.join(others)}",
                "Start a new one.",
            )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        reason = error.__cause__ or error  # some versions of torch put words of theirs before it
        raise _broken(
            f"{library} could not be loaded beside torch {torch.__version__}: {reason}"
        ) from error
    loaded = ctypes.CDLL(str(library))  # loaded by now: this finds it again
    try:
        loaded.fusedrnn_version.restype = ctypes.c_char_p
        version = loaded.fusedrnn_version().decode()
    except AttributeError:
        version = "unknown"
    _check_version(library, version)
    return loaded


def check_torch() -> None:
    """torch is there and not too old, as far as its version can be understood."""
    needed = f"fusedrnn needs PyTorch {'.'.join(map(str, MINIMUM_TORCH))} or later"
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":  # something that torch needs, which it says best itself
            raise
        raise ImportError(f"{needed}, and no torch is installed: `pip install torch`.") from None
    version = str(getattr(torch, "__version__", ""))
    if not version:
        raise ImportError(f"{needed}, and the package torch in {_place(torch)} is something else.")
    number = re.match(r"(\d+)\.(\d+)", version)
    # A version that cannot be read is tried: the libraries' symbols tell in the end.
    if number and (int(number[1]), int(number[2])) < MINIMUM_TORCH:
        raise ImportError(f"{needed}, found torch {version} in {_place(torch)}.")


def _place(module: ModuleType) -> str:
    return module.__file__ or ", ".join(module.__path__)  # a folder without code has no file


def _import_introspection() -> ModuleType:
    # Only from here: an editable installation would find that of its source folder for any copy.
    spec = PathFinder.find_spec("fusedrnn._C", [str(PACKAGE)])
    if spec is None or spec.origin is None:
        others = sorted(path.name for path in PACKAGE.glob("_C.*.so"))
        raise _broken(
            f"{PACKAGE} has no native module _C for this Python ({sys.implementation.cache_tag})"
            + (f", but {', '.join(others)}" if others else "")
        )
    _check_file(Path(spec.origin))
    try:
        module = importlib.import_module("fusedrnn._C")
    except ImportError as error:
        raise _broken(f"{spec.origin} could not be loaded: {error}") from error
    _check_version(Path(spec.origin), module.version())
    if not module.cpu_capabilities():
        raise _broken(
            f"it was built for {', '.join(module.build_info()['cpu_targets'])}, and this processor "
            f"supports {', '.join(module.processor_capabilities())}",
            "Build it on this machine, or for all with FUSEDRNN_CPU_TARGETS=all.",
        )
    return module


def _check_version(library: Path, version: str) -> None:
    if version != fusedrnn.__version__:
        raise _broken(
            f"{library} is of version {version}, its Python files of {fusedrnn.__version__}"
        )


def _check_file(library: Path) -> None:
    """The file is there, is for this kind of processor, and has all that the loader would map."""
    try:
        with open(library, "rb") as file:
            head, size = file.read(64), os.fstat(file.fileno()).st_size
            if len(head) < 64 or head[:4] != b"\x7fELF":
                raise _broken(f"{library} is cut off or no library: it has {size} bytes")
            if head[4:6] + head[18:20] != (_own_kind() or head[4:6] + head[18:20]):
                raise _broken(f"{library} is for another kind of processor than this Python")
            # A 64-bit ELF file's program headers, 56 bytes each: type, flags, offset, two
            # addresses, bytes in the file, ... Those of type 1 are mapped.
            (at,) = struct.unpack_from("=Q", head, 32)
            (count,) = struct.unpack_from("=H", head, 56)
            file.seek(at)
            table = file.read(56 * count)
    except FileNotFoundError:
        raise _broken(f"{library} is missing") from None
    except OSError as error:
        raise _broken(str(error)) from None
    ends = [at + 56 * count]
    for kind, _, offset, _, _, length, _, _ in struct.iter_unpack(
        "=IIQQQQQQ", table[: len(table) // 56 * 56]
    ):
        ends += [offset + length] if kind == 1 else []
    if max(ends) > size:
        raise _broken(f"{library} is cut off: {size} bytes of at least {max(ends)}")


def _own_kind() -> bytes:
    """Class, byte order and machine of this process's own ELF file; b"" if that is out of reach."""
    try:
        with open("/proc/self/exe", "rb") as file:
            head = file.read(20)
    except OSError:
        return b""
    return head[4:6] + head[18:20]


def _broken(what: str, remedy: str | None = None) -> ImportError:
    source = PACKAGE.parent
    if remedy is None and (source / "setup.py").exists() and (source / "csrc").is_dir():
        remedy = (
            f"This is its source folder; build it there, in {source}, with the Python and the "
            "torch that are used here: `pip install -e . --no-build-isolation`."
        )
    elif remedy is None:
        remedy = "Install it again: its wheel, or `pip install .` in its source folder."
    return ImportError(f"fusedrnn: {what}. {remedy}")


check_torch()
_C = _import_introspection()
