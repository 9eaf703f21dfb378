"""Compiles the programs of written cells, where there is a compiler, and keeps what was compiled.

The kernels of the CPU interpret a program tile by tile. What they do to the values of a tile can
also be compiled: that is one C++ file of some kilobytes (`_C.compiled_source`), half a second to a
few seconds of a compiler in the background. When it is done, the kernels call it, in the middle of
whatever runs; it computes the same bits.

    wanted(program, dtype)     before each call of a layer; the first time it looks into the cache,
                               or starts a compiler
    compiled(program, dtype)   the same, and waits
    image(recipe, compile)     for CUDA, whose library calls NVRTC; only the cache is here

The cache (cache.py) holds a library for each program, value type, version and instruction set, and
for CUDA an image for each source, version, NVRTC and compute capability. Each file ends in a digest
of itself.

FUSEDRNN_CELL_COMPILE=0 forbids compiling for the CPU and using the cache. CXX names the compiler.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fusedrnn
from fusedrnn import _C
from fusedrnn._engine import cache, native, processes
from fusedrnn._engine.cache import Unusable

__all__ = ["Compilation", "compiled", "told", "wanted"]

HEADERS = native.LIBRARY.with_name("include")
FLAGS = "-std=c++17 -O2 -DNDEBUG -shared -fPIC -fvisibility=hidden -fno-math-errno -Wno-psabi"
# The interpreter rounds each product; what it adds in one rounding is spelled out.
FLAGS += " -ffp-contract=off"
# Otherwise g++ moves the computation of each row of a tile down to where the row is stored. Rows
# then no longer overlap, and a cell takes half as long again.
FLAGS += " -fno-tree-sink"
SECONDS = 120  # that a compiler may take
DIGEST = 32  # bytes at the end of a file


class Failed(Unusable):
    """The compiler's fault."""


class Compilation:
    """A program on its way to compiled code, or there."""

    def __init__(self, program: str, type: str) -> None:
        self.program, self.type = program, type
        self.file: Path | None = None  # that was loaded
        self.reason = ""  # why none will be
        self.kept = ""  # why the cache has none, though it was loaded
        self.done = threading.Event()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Loads what the cache has, or starts a thread that compiles it."""
        try:
            if not _is_allowed():
                raise Unusable("FUSEDRNN_CELL_COMPILE=0 forbids compiling it")
            self.source, self.flags = _C.compiled_source(self.program, self.type), _flags()
            self.key = _key(self.source, self.flags)
            if self._load_cached():
                return
            self.compiler = _compiler()
        except Unusable as unusable:
            self._end(str(unusable))
            return
        self.thread = threading.Thread(
            target=self._compile, name=f"fusedrnn compiles {self.key[:8]}", daemon=True
        )
        self.thread.start()

    def _end(self, reason: str = "") -> None:
        self.reason = reason
        self.done.set()

    def _load_cached(self) -> bool:
        """Loads the file of the cache; if there is none that can be used, says why in `kept`."""
        try:
            file = cache.cache_folder() / f"{self.key}.so"
            if _read(file) is None:
                return False
            self._load(file)
        except (Unusable, OSError) as error:
            self.kept = str(error)
            return False
        return True

    def _load(self, file: Path) -> None:
        use = ctypes.CDLL(str(native.LIBRARY)).fusedrnn_use_compiled
        use.argtypes, use.restype = [ctypes.c_char_p] * 3, ctypes.c_char_p
        error = use(self.program.encode(), self.key.encode(), os.fsencode(file))
        if error is not None:
            raise Unusable(error.decode(errors="replace"))
        self.file = file
        self._end()

    def _compile(self) -> None:
        try:
            try:
                self._compile_into_cache()
            except Failed:
                raise
            except (Unusable, OSError) as error:
                self.kept = str(error)
                with tempfile.TemporaryDirectory(prefix="fusedrnn-") as folder:
                    self._load(self._run_compiler(Path(folder)))
        except (Unusable, OSError) as error:
            self._end(str(error))
        except BaseException:
            self._end("the compiler's thread ended")
            raise

    def _compile_into_cache(self) -> None:
        folder = cache.made_folder()
        with cache.alone(folder / f"{self.key}.lock"):
            if self._load_cached():  # another process was first
                return
            file = folder / f"{self.key}.so"
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                made = self._run_compiler(Path(temporary))
                cache.write(file, _with_digest(made.read_bytes()))
        self.kept = ""
        self._load(file)

    def _run_compiler(self, folder: Path) -> Path:
        """The file that the compiler makes."""
        source, file = folder / "cell.cpp", folder / "cell.so"
        source.write_text(self.source, encoding="utf-8")
        command = [*self.compiler, *self.flags, f"-I{HEADERS}", f'-DFUSEDRNN_KEY="{self.key}"']
        code, errors = _run([*command, str(source), "-o", str(file)], folder / "errors")
        if code or not file.exists():
            lines = [line for line in errors.splitlines() if "error" in line.lower()]
            lines = lines or errors.splitlines() or [f"it ended with {code}"]
            raise Failed(f"{shlex.join(self.compiler)} failed: {lines[0].strip()}")
        return file


def wanted(program: str, dtype: torch.dtype) -> Compilation:
    """The compilation of a program for tensors of a dtype. The first call starts it."""
    found = _compilations.get((program, dtype))
    if found is None:
        # Half precision is computed in float32.
        computed = dtype if dtype == torch.float64 else torch.float32
        with _lock:
            found = _compilations.get((program, computed))
            if found is None:
                found = Compilation(program, _TYPES[computed])
                found.start()
            _compilations[program, computed] = _compilations[program, dtype] = found
    return found


def compiled(program: str, dtype: torch.dtype) -> Compilation:
    """The compilation of a program, once it has ended.

    Raises:
        RuntimeError: the program cannot be compiled.
    """
    found = wanted(program, dtype)
    found.done.wait()
    if found.reason:
        raise RuntimeError(f"compile: {found.reason}")
    return found


def told(program: str) -> list[str]:
    """What runs a program, for the dtypes that it was wanted for."""
    lines = []
    for dtype, dtypes in (
        (torch.float32, "float32, bfloat16, float16"),
        (torch.float64, "float64"),
    ):
        found = _compilations.get((program, dtype))
        if found is None:
            continue
        if not found.done.is_set():
            lines.append(f"{dtypes}: interpreted, while the compiler runs")
        elif found.file is None:
            lines.append(f"{dtypes}: interpreted, since {found.reason}")
        elif found.kept:
            lines.append(f"{dtypes}: compiled, and not kept: {found.kept}")
        else:
            lines.append(f"{dtypes}: compiled, {found.file}")
    return lines


def image(recipe: bytes, compile: Callable[[], bytes | None]) -> bytes | None:
    """What `compile` makes for CUDA, from the cache if that has it; None if it makes nothing.

    `recipe` is all that it depends on, beside this version.
    """
    made: list[bytes | None] = []

    def make() -> bytes | None:
        if not made:
            made.append(compile())
        return made[0]

    try:
        if not _is_allowed():
            return make()
        key = hashlib.sha256(fusedrnn.__version__.encode() + b"\0" + recipe).hexdigest()
        folder = cache.made_folder()
        file = folder / f"{key}.cuda"
        with cache.alone(folder / f"{key}.lock"):
            with contextlib.suppress(Unusable):
                found = _read(file)
                if found is not None:
                    return found
            found = make()
            if found is not None:
                cache.write(file, _with_digest(found))
            return found
    except (Unusable, OSError):  # each process compiles for itself
        return make()


def keep_images_of(library: ctypes.CDLL) -> None:
    """Has a library of CUDA kernels keep what NVRTC compiles of written cells in the cache."""
    library.fusedrnn_cuda_keep_images_by(_KEEP_IMAGE)


def _keep_image(recipe: bytes, compile: Any, work: int, size: Any) -> int | None:
    """As csrc/cuda/program_kernels.h has it."""

    def compiled() -> bytes | None:
        of = ctypes.c_uint64()
        address = compile(work, ctypes.byref(of))
        return ctypes.string_at(address, of.value) if address else None

    found = image(recipe, compiled)
    if found is None:
        return None
    _thread.image = ctypes.create_string_buffer(found, len(found))
    size[0] = len(found)
    return ctypes.addressof(_thread.image)


def _is_allowed() -> bool:
    asked = os.environ.get("FUSEDRNN_CELL_COMPILE", "")
    if asked not in ("", "0", "1"):
        raise Unusable(f"FUSEDRNN_CELL_COMPILE: expected 0 or 1 or nothing, got {asked!r}")
    return asked != "0"


def _flags() -> list[str]:
    """The compiler's, for the instruction set that the kernels run with."""
    try:
        of_capability = json.loads((HEADERS / "flags.json").read_text())
    except (OSError, ValueError) as error:
        raise Unusable(f"this build has no headers to compile it with: {error}") from None
    return [*FLAGS.split(), *of_capability[_C.cpu_capability()]]


def _key(source: str, flags: list[str]) -> str:
    """Names a file by all that it is made of."""
    digest = hashlib.sha256()
    for part in (fusedrnn.__version__, source, *flags):
        digest.update(part.encode() + b"\0")
    for header in sorted(HEADERS.rglob("*.h")):
        digest.update(header.read_bytes())
    return digest.hexdigest()


def _compiler() -> list[str]:
    asked = os.environ.get("CXX", "")
    for command in [asked] if asked else ["g++", "c++", "clang++"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    looked = f"CXX={asked}" if asked else "g++, c++, clang++"
    raise Unusable(f"no C++ compiler was found (looked for {looked})")


def _read(file: Path) -> bytes | None:
    """What a file of the cache has before its digest, or None if there is none.

    Raises:
        Unusable: it is not whole, or others could have written it.
    """
    content = cache.read(file)
    if content is None:
        return None
    if len(content) <= DIGEST or hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
        raise Unusable(f"{file} is not complete, or was changed")
    return content[:-DIGEST]


def _with_digest(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def _run(command: list[str], errors: Path) -> tuple[int, str]:
    """Runs a compiler, which the end of this process also ends; how it ended, and what it said."""
    environment = os.environ | {"LC_ALL": "C"}
    with (
        open(errors, "wb") as file,
        processes.running(command, subprocess.DEVNULL, file, environment) as process,
    ):
        try:
            code = process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"{command[0]} took more than {SECONDS} seconds") from None
    return code, errors.read_text(errors="replace")


@atexit.register
def _stop() -> None:
    processes.stop()
    for compilation in [*_compilations.values()]:
        if compilation.thread is not None:
            compilation.thread.join(timeout=1)


def _in_a_fork() -> None:
    """It has none of the threads: what they were at begins anew."""
    global _lock
    _lock = threading.Lock()
    for key in [key for key, found in _compilations.items() if not found.done.is_set()]:
        del _compilations[key]


_lock = threading.Lock()
_TYPES = {torch.float32: "float", torch.float64: "double"}
_compilations: dict[tuple[str, torch.dtype], Compilation] = {}
os.register_at_fork(after_in_child=_in_a_fork)

_thread = threading.local()  # its image stays until its next one
_COUNT = ctypes.POINTER(ctypes.c_uint64)
_COMPILE_IMAGE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, _COUNT)
_KEEP_IMAGE = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_char_p, _COMPILE_IMAGE, ctypes.c_void_p, _COUNT
)(_keep_image)
