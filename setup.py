"""Builds the native part of fusedrnn. Everything else that packaging needs is in pyproject.toml.

    fusedrnn/lib/libfusedrnn.so   csrc/ops/ and csrc/cpu/: the ops. libtorch's stable ABI and no
                                  Python, so one binary runs on every torch from 2.10 on.
    fusedrnn/lib/libfusedrnn_cuda.so
                                  csrc/cuda/: the CUDA kernels, with nvcc and cudart and without
                                  torch, for fusedrnn/_engine/ops.py to load where CUDA is.
                                  `cuda_library` decides whether it can be built, and says why not.
    fusedrnn/_C.<abi>.so          csrc/introspection.cpp: version, build info, cpu capability, plan.
                                  pybind11 and no torch.

Each carries the version of the package: fusedrnn/_engine/native.py refuses one of another version.

`build_ext` writes one build.ninja and runs it: ninja compiles in parallel, reads the compilers'
depfiles and compares command lines, so that a rebuild compiles only what a change touches. Its
folder, build/ninja/<platform>, stays between calls; pip's temporary folders do not. All versions of
Python share it: only what csrc/introspection.cpp compiles to is each one's own.

Environment: CXX, CXXFLAGS, LDFLAGS, MAX_JOBS (parallel compilations), DEBUG=1 (-O0 -g, assertions),
FUSEDRNN_BUILD_CUDA=0/1, CUDA_HOME, TORCH_CUDA_ARCH_LIST; nvcc itself reads NVCC_APPEND_FLAGS.
FUSEDRNN_CPU_TARGETS: the CPU's kernels for "native", this machine, the default of builds that stay
here (in place, editable); for "all", the default of wheels; or for names of CAPABILITIES.
FUSEDRNN_TORCH: the folder of a torch package, for its headers, where this Python has no torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OPS = "fusedrnn.lib.libfusedrnn"
CUDA = "fusedrnn.lib.libfusedrnn_cuda"
INTROSPECTION = "fusedrnn._C"
MINIMUM_SETUPTOOLS = 77  # knows licenses as pyproject.toml names ours
REQUIRED = ("torch", "ninja", "pybind11")
MINIMUM_TORCH = (2, 10)
STABLE_ABI = "0x020a000000000000"  # MINIMUM_TORCH as torch/headeronly/version.h encodes it

ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = "-mavx2 -mfma -mf16c -mbmi2".split()
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mprefer-vector-width=512".split()
# The flags of each instruction set. The least demanding comes first, and stays first on the link
# line: of an inline function that several objects carry (std::vector's, say) the linker keeps the
# first, and that one must run on every processor.
INSTRUCTION_SETS = {
    "portable": [],
    "avx2": AVX2,
    "avx2_vnni": [*AVX2, "-mavxvnni"],
    "avx512": [*AVX512, *AVX2],
    "avx512_vnni": [*AVX512, *AVX2, "-mavx512vnni"],
    "avx512_bf16": [*AVX512, *AVX2, "-mavx512bf16"],
}
# What a processor can be capable of, and the instruction sets whose kernels it then runs: for bf16,
# for int8 weights, for all else. csrc/cpu/kernels.cpp has the same table.
CAPABILITIES = {"portable": ("portable", "portable", "portable")}
if ON_X86:
    CAPABILITIES |= {
        "avx2": ("avx2", "avx2", "avx2"),
        "avx2_vnni": ("avx2", "avx2_vnni", "avx2"),
        "avx512": ("avx512", "avx512", "avx512"),
        "avx512_vnni": ("avx512", "avx512_vnni", "avx512"),
        "avx512_bf16": ("avx512_bf16", "avx512_vnni", "avx512"),
    }
# Seconds that a core takes for a file of csrc/cpu/isa/ and for another one, roughly.
KERNEL_SECONDS, OTHER_SECONDS = 8, 2

# Plain C++ of csrc/ that every library carries, and that the introspection module carries, too.
SHARED = ("layer/plan_override.cpp", "layer/version.cpp")
INTROSPECTED = (
    *SHARED,
    *(
        f"cpu/{name}.cpp"
        for name in ("capability", "compiled", "fork", "peak", "plan", "processors", "team")
    ),
    "cuda/plan.cpp",
)

# Where torch's own names for families of GPUs point (TORCH_CUDA_ARCH_LIST).
CUDA_FAMILIES = dict(
    Turing="7.5", Ampere="8.0;8.6", Ada="8.9", Hopper="9.0a", Blackwell="10.0;12.0"
)
# Chips newer than the last of these run its PTX.
CUDA_DEFAULT = "7.5;8.0;9.0a;10.0"
# cudart inside, and nothing of it to be seen: a process may have torch's, of another version.
CUDART = "-lcudart_static -ldl -lrt -lpthread -Wl,--exclude-libs,ALL -Wl,-z,defs".split()

# csrc/cuda/instance.cu is compiled for each cell in each of these: names of csrc/cuda/kernels.h.
CUDA_ARITHMETICS = ("F64", "F32", "Tf32", "Bf16", "F16")


def fail(message: str) -> SystemExit:
    return SystemExit(f"\nfusedrnn: cannot build: {message}\n")


def check_setuptools() -> None:
    """Older ones stop at pyproject.toml, and say something else."""
    if int(setuptools.__version__.split(".")[0]) < MINIMUM_SETUPTOOLS:
        raise fail(
            f"setuptools {MINIMUM_SETUPTOOLS} or later is required, found {setuptools.__version__}"
            f"; `pip install 'setuptools>={MINIMUM_SETUPTOOLS}'`."
        )


def package_folder(name: str) -> Path:
    """Where a build requirement is installed. Not imported: importing torch takes seconds."""
    elsewhere = os.environ.get("FUSEDRNN_TORCH") if name == "torch" else None
    if elsewhere:
        if not Path(elsewhere, "version.py").is_file():
            raise fail(f"FUSEDRNN_TORCH: expected the folder of a torch package, got {elsewhere!r}")
        return Path(elsewhere)
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        wanted = [n for n in REQUIRED if n != "torch" or not os.environ.get("FUSEDRNN_TORCH")]
        missing = [other for other in wanted if importlib.util.find_spec(other) is None]
        raise fail(
            f"not installed in {sys.executable}'s environment: {', '.join(missing or [name])}. "
            "`pip install .` brings all build requirements; with --no-build-isolation `pip install "
            f"{' '.join(REQUIRED)}` first."
        )
    return Path(spec.submodule_search_locations[0])


def torch_says(name: str) -> Any:
    """`torch.version`'s value of this name."""
    return runpy.run_path(str(package_folder("torch") / "version.py"))[name]


def torch_version() -> str:
    version = str(torch_says("__version__"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MINIMUM_TORCH:
        raise fail(f"torch 2.10 or later is required, found torch {version}.")
    return version


def compiler() -> list[str]:
    """The C++ compiler's command line: $CXX, else GCC by one of its names."""
    asked = os.environ.get("CXX")
    for command in [asked] if asked else ["g++", "c++"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    looked = f"CXX={asked}" if asked else "g++, c++"
    raise fail(
        f"no C++ compiler (looked for {looked}). Install one (Debian, Ubuntu: `apt install g++`; "
        "Fedora: `dnf install gcc-c++`), set CXX to it, or install a ready-made wheel."
    )


def environment_flags(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def host_flags() -> list[str]:
    """What the C++ compiler is told, called by us or by nvcc."""
    flags = ["-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
    flags += ["-fno-math-errno", "-ffp-contract=fast"]
    return flags + environment_flags("CXXFLAGS")


def is_debug() -> bool:
    return os.environ.get("DEBUG", "0") not in ("", "0")


def common_flags(optimisation: str) -> list[str]:
    """What the C++ compiler and nvcc both understand."""
    return ["-std=c++17", *(["-O0", "-g"] if is_debug() else [optimisation, "-DNDEBUG"]), "-Icsrc"]


def kernel_flags() -> list[str]:
    """Beside -O2: what of -O3 the CPU's kernels gain by. All of it is twice the code of a walk."""
    return [] if is_debug() else ["-fpeel-loops", "-fvect-cost-model=dynamic"]


def nvcc_flags() -> list[str]:
    """nvcc's flags except the architectures; multiply-adds are fused, maths is not approximate."""
    # nvcc wants only a compiler, with no cache before it and no options after it.
    words = compiler()
    while len(words) > 1 and Path(words[0]).name in ("ccache", "sccache", "distcc", "icecc"):
        words = words[1:]
    host = [*words[1:], *host_flags()]
    # Line numbers are most of a library, and compress well.
    flags = [*common_flags("-O3"), "-lineinfo", "-Xfatbin=-compress-all", f"-ccbin={words[0]}"]
    return [*flags, *(f"-Xcompiler={f}" for f in host)]


@dataclass(frozen=True)
class Nvcc:
    """An nvcc that was found, and what it says about itself."""

    path: str
    version: str  # "13.0"
    architectures: frozenset[str]  # "75", "80": those that it compiles for
    includes: list[str]
    libraries: list[str]

    @staticmethod
    def find() -> Nvcc | None:
        """The nvcc of $CUDA_HOME or $CUDA_PATH, else that on PATH, else that of a pip package."""
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        path = shutil.which("nvcc", path=f"{home}/bin" if home else None)
        if path is None and not home:
            spec = importlib.util.find_spec("nvidia")
            folders = list(spec.submodule_search_locations or []) if spec else []
            found = [nvcc for folder in folders for nvcc in Path(folder).glob("cu*/bin/nvcc")]
            path = str(found[0]) if found else None
        return Nvcc.ask(path) if path else None

    @staticmethod
    def ask(path: str) -> Nvcc:
        def run(*arguments: str) -> str:
            done = subprocess.run([path, *arguments], capture_output=True, text=True)
            if done.returncode:
                raise fail(f"{path} {shlex.join(arguments)} failed:\n{done.stdout}{done.stderr}")
            return done.stdout + done.stderr

        version = re.search(r"release (\d+\.\d+)", run("--version"))
        architectures = re.findall(r"compute_(\d+)", run("--list-gpu-arch"))
        # `path` may be a link or a script: only nvcc knows where the toolkit is.
        dry = run("--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
        paths = {
            name: shlex.split(value)
            for name, value in re.findall(r"^#\$ (\w+)= *(.*)$", dry, re.MULTILINE)
            if name in ("INCLUDES", "SYSTEM_INCLUDES", "LIBRARIES")
        }
        includes = [word.replace("-I", "-isystem", 1) for word in paths.get("INCLUDES", [])]
        includes += paths.get("SYSTEM_INCLUDES", [])
        # The nvcc of a pip package looks in lib64, but they have lib.
        libraries = [*paths.get("LIBRARIES", []), f"-L{Path(path).parent.parent / 'lib'}"]
        number = version[1] if version else "0.0"
        return Nvcc(path, number, frozenset(architectures), includes, libraries)


def cuda_architectures(version: str, known: Collection[str]) -> tuple[list[str], list[str]]:
    """nvcc's -gencode flags, and the architectures of our default that it does not know.

    The flags are those of TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX", "Hopper"), which have to be
    `known` ("80", "90") to this version of nvcc, or of our default, from which unknown ones are
    left out.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    by_default = wanted in ("", "native")
    flags, unknown, digits, arch = [], [], "", ""
    for entry in re.split(r"[;,\s]+", CUDA_DEFAULT if by_default else wanted):
        name, plus, ptx = entry.partition("+")
        for asked in CUDA_FAMILIES.get(name, name).split(";"):
            number = re.fullmatch(r"(\d+)\.(\d)([af]?)", asked)
            if number is None or (plus and ptx != "PTX"):
                families = ", ".join(CUDA_FAMILIES)
                raise fail(
                    "TORCH_CUDA_ARCH_LIST: expected entries such as 8.0, 9.0a or 10.0+PTX, or "
                    f"one of {families}; got {entry!r}."
                )
            if number[1] + number[2] not in known:
                unknown.append(asked)
                continue
            digits, arch = number[1] + number[2], "".join(number.groups())
            flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if plus:  # PTX of an entry's last architecture, as torch does it
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    if unknown and (not by_default or not flags):
        raise fail(
            f"{'CUDA' if by_default else 'TORCH_CUDA_ARCH_LIST'}: nvcc {version} has no "
            f"{', '.join(unknown)}; it has {', '.join(sorted(known, key=int))}."
        )
    if by_default:  # not of 9.0a, say, whose PTX runs nowhere else
        flags.append(f"-gencode=arch=compute_{digits},code=compute_{digits}")
    return list(dict.fromkeys(flags)), unknown


@dataclass(frozen=True)
class CudaLibrary:
    """How the CUDA library is built."""

    nvcc: Nvcc
    gencode: list[str]

    @property
    def targets(self) -> list[str]:
        return re.findall(r",code=(\w+)", " ".join(self.gencode))


def cuda_library(torch: str) -> tuple[CudaLibrary | None, str]:
    """Decides on the CUDA library; returns also the line that the build log ends with."""
    asked = os.environ.get("FUSEDRNN_BUILD_CUDA", "")
    if asked not in ("", "0", "1"):
        raise fail(f"FUSEDRNN_BUILD_CUDA: expected 0 or 1 or nothing, got {asked!r}.")
    if asked == "0":
        return None, "CUDA library: left out, FUSEDRNN_BUILD_CUDA=0."
    missing = []
    torch_cuda = torch_says("cuda")
    if torch_cuda is None and asked != "1":  # nothing of torch is needed, but it could not use it
        missing.append(f"torch {torch} is a CPU build")
    nvcc = Nvcc.find()
    if nvcc is None:
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        missing.append(f"nvcc not found ({f'in {home}/bin' if home else 'on PATH; set CUDA_HOME'})")
    if missing and asked == "1":
        raise fail(f"FUSEDRNN_BUILD_CUDA=1, but {'; '.join(missing)}.")
    if missing or nvcc is None:
        return None, f"CUDA library: left out, {'; '.join(missing)}."
    gencode, unknown = cuda_architectures(nvcc.version, nvcc.architectures)
    library = CudaLibrary(nvcc, gencode)
    line = f"CUDA library: {' '.join(library.targets)}, by nvcc {nvcc.version}."
    if unknown:
        line += f" (Not {', '.join(unknown)}, which it does not know.)"
    if torch_cuda and float(nvcc.version.split(".")[0]) > float(torch_cuda.split(".")[0]):
        line += f" (It wants a newer driver than torch, which is for CUDA {torch_cuda}.)"
    return library, line


def cell_count() -> int:
    """How many cells csrc/cells/list.h has.

    A compilation for one cell more than there are fails, and a library that lacks one does not
    link.
    """
    cells = "".join(path.read_text() for path in sorted((ROOT / "csrc/cells").glob("*.h")))
    joined = re.search(r"using Cells = decltype\(joined\((.*?)\)\);", cells, re.DOTALL)
    if joined is None:
        raise fail("csrc/cells/list.h: no `using Cells = decltype(joined(...));` was found.")
    count = 0
    for name in re.findall(r"(\w+)\(\)", joined[1]):
        members = re.search(rf"using {name} = List<(.*?)>;", cells, re.DOTALL)
        if members is None:
            raise fail(f"csrc/cells: no `using {name} = List<...>;` was found.")
        count += len(re.sub(r"<[^<>]*>", "", members[1]).split(","))
    return count


def cuda_instances() -> dict[str, list[str]]:
    """The compilations of csrc/cuda/instance.cu, each with its flags."""
    return {
        f"{cell} {arithmetic}": [
            f"-DFUSEDRNN_CELL_AT={cell}", f"-DFUSEDRNN_ARITHMETIC={arithmetic}"
        ]
        for cell in range(cell_count())
        for arithmetic in CUDA_ARITHMETICS
    }  # fmt: skip


def cuda_files() -> list[tuple[Path, str, list[str]]]:
    """What nvcc compiles, each with the name and the flags of a variant."""
    files: list[tuple[Path, str, list[str]]] = []
    for path in sorted(ROOT.glob("csrc/cuda/**/*.cu")):
        variants = cuda_instances() if path.name == "instance.cu" else {"": []}
        files += [(path, name, flags) for name, flags in variants.items()]
    return files


def with_included(*headers: str) -> dict[str, str]:
    """Headers and all of ours that they include: their text by their path in csrc/.

    They include each other by these paths.
    """
    csrc, texts = ROOT / "csrc", {}

    def add(path: Path) -> str:
        name = str(path.relative_to(csrc))
        if name not in texts:
            texts[name] = ""  # not twice
            texts[name] = re.sub(
                r'^#include "(.+)"$',
                lambda found: f'#include "{add(of_include(path, found[1]))}"',
                path.read_text("utf-8"),
                flags=re.MULTILINE,
            )
        return name

    def of_include(path: Path, name: str) -> Path:
        beside = path.parent / name
        return beside.resolve() if beside.exists() else csrc / name

    for header in headers:
        add(csrc / header)
    return texts


def embedded_headers() -> str:
    """C++ of what NVRTC is given to include: the headers of the kernels, as text."""
    kernels = ("stepwise/stage", "team/walk_forward", "team/walk_backward")
    texts = with_included("cuda/program_pass.cuh", *(f"cuda/{name}.cuh" for name in kernels))
    for path in sorted(ROOT.glob("csrc/cuda/nvrtc/include/*")):  # in place of others' headers
        texts[path.name] = path.read_text("utf-8")
    lines = ['#include "cuda/nvrtc/nvrtc.h"', "namespace fusedrnn::cuda {"]
    lines += ["EmbeddedHeaders embedded_headers() {", "static const EmbeddedHeader headers[] = {"]
    lines += [f'{{"{name}", R"header({text})header"}},' for name, text in texts.items()]
    lines += ["};", f"return {{headers, {len(texts)}}};", "}", "}", ""]
    return "\n".join(lines)


def write_embedded_headers(file: Path) -> Path:
    """Writes them, unless they stand there already, so that nothing is compiled for nothing."""
    text = embedded_headers()
    if not file.exists() or file.read_text("utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return file


def threads(cuda: CudaLibrary) -> int:
    """How many architectures one nvcc compiles at a time: few files fill the machine, too."""
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    return max(1, min(jobs // len(cuda_files()), len(cuda.gencode)))


def cpu_targets(stays_here: bool) -> list[str]:
    """The capabilities that the CPU library gets kernels for, by FUSEDRNN_CPU_TARGETS."""
    asked = os.environ.get("FUSEDRNN_CPU_TARGETS", "").replace(",", " ").split()
    asked = asked or ["native" if stays_here else "all"]
    if unknown := [name for name in asked if name not in ("native", "all", *CAPABILITIES)]:
        raise fail(
            "FUSEDRNN_CPU_TARGETS: expected native, all, or some of "
            f"{', '.join(CAPABILITIES)}, got {' '.join(unknown)!r}."
        )
    if "all" in asked:
        return list(CAPABILITIES)
    found = {native_capability() if name == "native" else name for name in asked}
    return [name for name in CAPABILITIES if name in found]


def native_capability() -> str:
    """The best that this processor is capable of: csrc/cpu/capability.cpp says it."""
    program = """
        #include <cstdio>
        #include "cpu/capability.h"
        using namespace fusedrnn::cpu;
        int main() { std::puts(name_of(processor_capabilities().front())); }
    """
    with tempfile.TemporaryDirectory() as folder:
        ask = Path(folder, "ask")
        words = [*compiler(), "-std=c++17", "-Icsrc", *x86_flags(), "-DFUSEDRNN_HAS_portable=1"]
        words += ["csrc/cpu/capability.cpp", "-x", "c++", "-", "-o", str(ask)]
        done = subprocess.run(words, cwd=ROOT, input=program, capture_output=True, text=True)
        if done.returncode == 0:
            done = subprocess.run([ask], capture_output=True, text=True)
    if done.returncode or done.stdout.strip() not in CAPABILITIES:
        raise fail(
            "FUSEDRNN_CPU_TARGETS=native: a small program that asks the processor what it is "
            f"capable of failed; name the targets, or set it to all.\n{done.stdout}{done.stderr}"
        )
    return done.stdout.strip()


def x86_flags() -> list[str]:
    return ["-DFUSEDRNN_X86=1"] if ON_X86 else []


def kernel_files(capabilities: Collection[str]) -> list[tuple[str, str, str]]:
    """The files of csrc/cpu/isa/ that these need: instruction set, name, dtype ("" for int8)."""
    files = set()
    for name in capabilities:
        bf16, int8, other = CAPABILITIES[name]
        files |= {(int8, "quantized", ""), *((isa, "table", "") for isa in (bf16, int8, other))}
        for isa, dtype in ((other, "f64"), (other, "f32"), (other, "f16"), (bf16, "bf16")):
            files |= {(isa, "forward", dtype), (isa, "backward", dtype)}
        # Half precision has the tiles of f32, except bf16 with instructions of its own.
        tiles = [(other, "f64"), (other, "f32"), *([(bf16, "bf16")] if bf16 != other else [])]
        files |= {(isa, "tiles", dtype) for isa, dtype in tiles}
    order = list(INSTRUCTION_SETS)
    return sorted(files, key=lambda file: (order.index(file[0]), *file[1:]))


def compiled_for(isa: str, files: Collection[tuple[str, str, str]]) -> list[str]:
    """The dtypes that these files have kernels for, by this instruction set; and "int8"."""
    int8 = ["int8"] if (isa, "quantized", "") in files else []
    return [*(dtype for own, name, dtype in files if (own, name) == (isa, "forward")), *int8]


def python_include() -> str:
    """Where the headers of this Python are."""
    folder = sysconfig.get_path("include")
    if not Path(folder, "Python.h").exists():
        raise fail(
            f"no Python.h in {folder}. Install this Python's headers (Debian, Ubuntu: `apt install "
            "python3-dev`; Fedora: `dnf install python3-devel`), or install a ready-made wheel."
        )
    return folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process builds in this folder meanwhile."""
    import fcntl  # Linux's, and `fail` says on other systems that it must be Linux

    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class NinjaBuild(build_ext):
    """Writes build.ninja, runs it, and puts the libraries where setuptools wants them."""

    def get_ext_filename(self, fullname: str) -> str:
        words = fullname.split(".")  # setuptools asks for the whole name, or its last word
        if words[-1] in [name.split(".")[-1] for name in (OPS, CUDA)]:  # no Python inside them
            return os.path.join(*words) + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        self.stays_here = bool(self.inplace or self.editable_mode)  # setuptools forgets the first
        super().run()

    def build_extensions(self) -> None:
        if not sys.platform.startswith("linux"):
            raise fail(f"fusedrnn builds on Linux so far; this is {sys.platform}.")
        torch = torch_version()
        cuda, cuda_line = cuda_library(torch)
        self.capabilities = cpu_targets(self.stays_here)
        self.extensions = [e for e in self.extensions if cuda or e.name != CUDA]
        folder = Path("build", "ninja", sysconfig.get_platform())
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        with alone(ROOT / folder):
            self.build_libraries(folder, torch, cuda)
        if not cuda:  # an earlier build's would be loaded
            Path(self.get_ext_fullpath(CUDA)).unlink(missing_ok=True)
        print(f"fusedrnn: {cuda_line}", flush=True)

    def build_libraries(self, folder: Path, torch: str, cuda: CudaLibrary | None) -> None:
        libraries = self.write_ninja(folder, torch, cuda)
        command = [sys.executable, "-m", "ninja", "-f", str(folder / "build.ninja")]
        if os.environ.get("MAX_JOBS"):
            command += ["-j", os.environ["MAX_JOBS"]]
        self.announce_work(command)
        status = {"NINJA_STATUS": "[%f/%t, %es] "} | os.environ
        if subprocess.run(command, cwd=ROOT, env=status).returncode:
            raise fail("a compilation failed; the compiler's messages are above.")
        for name, library in libraries.items():
            target = Path(self.get_ext_fullpath(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(ROOT / library), str(target))
            print(f"fusedrnn: built {self.get_ext_filename(name)}", end="")
            print(f" (CPU kernels: {', '.join(self.capabilities)})" if name == OPS else "")
        self.copy_cell_headers(Path(self.get_ext_fullpath(OPS)).parent)

    def copy_cell_headers(self, folder: Path) -> None:
        """What a written cell is compiled with: headers, and the flags for each capability."""
        include = folder / "include"
        shutil.rmtree(include, ignore_errors=True)
        for name, text in with_included("cpu/compiled_cell.h").items():
            (include / name).parent.mkdir(parents=True, exist_ok=True)
            (include / name).write_text(text, "utf-8")
        flags = {name: INSTRUCTION_SETS[isas[-1]] for name, isas in CAPABILITIES.items()}
        (include / "flags.json").write_text(json.dumps(flags, indent=1) + "\n")

    def announce_work(self, command: list[str]) -> None:
        """Says what is about to be compiled, and about how long that takes."""
        dry = subprocess.run([*command, "-n"], cwd=ROOT, capture_output=True, text=True)
        files = re.findall(r"^\[\S+ (csrc/\S+)", dry.stdout, re.MULTILINE)
        if not files:
            return
        jobs = min(len(os.sched_getaffinity(0)), int(os.environ.get("MAX_JOBS") or 1 << 30))
        cuda = sum(file.endswith(".cu") for file in files)
        kernels = sum("/isa/" in file for file in files)
        seconds = (kernels * KERNEL_SECONDS + (len(files) - kernels) * OTHER_SECONDS) / jobs
        time = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
        print(
            f"fusedrnn: compiling {len(files)} files for {', '.join(self.capabilities)}"
            f"{f' and CUDA ({cuda} of them, which take minutes more)' if cuda else ''}: "
            f"about {time} with {jobs} at a time",
            flush=True,
        )

    def copy_extensions_to_source(self) -> None:  # after an --inplace or editable build
        (ROOT / "fusedrnn" / "lib").mkdir(exist_ok=True)
        super().copy_extensions_to_source()
        self.copy_cell_headers(ROOT / "fusedrnn" / "lib")
        if CUDA not in (extension.name for extension in self.extensions):
            (ROOT / self.get_ext_filename(CUDA)).unlink(missing_ok=True)

    def write_ninja(self, folder: Path, torch: str, cuda: CudaLibrary | None) -> dict[str, Path]:
        """Writes folder/build.ninja; returns the file that each extension is linked to."""
        torch_folder, pybind = package_folder("torch"), package_folder("pybind11")
        package_folder("ninja")
        from ninja.ninja_syntax import Writer

        x86 = [*x86_flags(), *(f"-DFUSEDRNN_HAS_{name}=1" for name in self.capabilities)]
        stable = [f"-DTORCH_TARGET_VERSION={STABLE_ABI}", f"-isystem{torch_folder / 'include'}"]
        python = [f"-isystem{pybind / 'include'}", f"-isystem{python_include()}"]
        version = [f'-DFUSEDRNN_VERSION="{self.distribution.get_version()}"']
        python += [
            f'-DFUSEDRNN_TORCH_VERSION="{torch}"',
            f'-DFUSEDRNN_CUDA_TARGETS="{" ".join(cuda.targets if cuda else [])}"',
        ]

        with open(ROOT / folder / "build.ninja", "w", encoding="utf-8") as file:
            ninja = Writer(file)
            cxx = shlex.join(compiler()).replace("$", "$$")
            flags = shlex.join(common_flags("-O2") + host_flags()).replace("$", "$$")
            ninja.variable("builddir", str(folder))
            ninja.rule(
                "compile",
                f"{cxx} {flags} $extra -MD -MF $out.d -c $in -o $out",
                description="$in $variant",
                depfile="$out.d",
                deps="gcc",
            )
            sanitizers = [f for f in environment_flags("CXXFLAGS") if f.startswith("-fsanitize")]
            # Function names are for who works on them: half a megabyte.
            names = [] if self.stays_here or is_debug() else ["-Wl,-s"]
            link = ["-shared", "-pthread", *names, *sanitizers, *environment_flags("LDFLAGS")]
            command = f"{cxx} $in {shlex.join(link)} $libs -o $out"
            ninja.rule("link", command, description="link $out")

            if cuda:
                flags = shlex.join([*nvcc_flags(), *cuda.gencode]).replace("$", "$$")
                # ptxas says so where registers did not suffice; tests/test_cuda_compile.py fails.
                ninja.rule(
                    "nvcc",
                    f"{shlex.quote(cuda.nvcc.path)} {flags} --threads={threads(cuda)} "
                    "-Xptxas=-warn-spills $extra -MD -MF $out.d -c $in -o $out",
                    description=f"$in $variant ({' '.join(cuda.targets)})",
                    depfile="$out.d",
                    deps="gcc",
                )

            def compile(source: Path, extra: list[str], variant: str = "") -> str:
                name = source.relative_to(ROOT)
                rule = "nvcc" if source.suffix == ".cu" else "compile"
                kind = variant.replace(" ", "-") or ("cu" if rule == "nvcc" else "")
                suffix = f".{kind}.o" if kind else ".o"
                target = str(folder / name.with_suffix(suffix))
                extra_words = shlex.join(extra).replace("$", "$$")
                variables = {"extra": extra_words, "variant": f"({variant})" if variant else ""}
                ninja.build(target, rule, str(name), variables=variables)
                return target

            def compile_kernels(isa: str, name: str, dtype: str) -> str:
                flags = [*kernel_flags(), f"-DFUSEDRNN_ISA={isa}", *INSTRUCTION_SETS[isa]]
                flags += [f"-DFUSEDRNN_DTYPE={dtype}"] if dtype else []
                if name == "table":
                    flags += [f"-DFUSEDRNN_TABLE_{kind}=1" for kind in compiled_for(isa, files)]
                variant = f"{isa} {dtype}".strip()
                return compile(ROOT / f"csrc/cpu/isa/{name}.cpp", flags, variant)

            files = kernel_files(self.capabilities)
            longest_first = sorted(files, key=lambda file: file[1] != "tiles")
            kernels = {file: compile_kernels(*file) for file in longest_first}
            cpu = {path: compile(path, x86) for path in sorted(ROOT.glob("csrc/cpu/*.cpp"))}
            # Without CUDA, only those that know nothing of it.
            includes = cuda.nvcc.includes if cuda else []
            gpu = {
                path: compile(path, includes)
                for path in sorted(ROOT.glob("csrc/cuda/**/*.cpp"))
                if cuda or f"cuda/{path.name}" in INTROSPECTED
            }
            device = [compile(path, flags, name) for path, name, flags in cuda_files() if cuda]
            shared = {path: compile(path, version) for path in (ROOT / "csrc" / n for n in SHARED)}
            introspected = [ROOT / "csrc" / name for name in INTROSPECTED]
            cells = [compile(path, []) for path in sorted(ROOT.glob("csrc/cells/*.cpp"))]
            objects = {
                OPS: [
                    compile(ROOT / "csrc/ops/layer_ops.cpp", stable),
                    compile(ROOT / "csrc/ops/mask_ops.cpp", [*stable, *kernel_flags()]),
                    compile(ROOT / "csrc/ops/row_ops.cpp", stable),
                    compile(ROOT / "csrc/ops/quantized_ops.cpp", stable),
                    *cells,
                    *shared.values(),
                    *cpu.values(),
                    *(kernels[file] for file in files),
                ],
                INTROSPECTION: [
                    compile(
                        ROOT / "csrc/introspection.cpp", python, str(sys.implementation.cache_tag)
                    ),
                    *cells,
                    *((shared | cpu | gpu)[path] for path in introspected),
                ],
            }
            if cuda:
                embedded = write_embedded_headers(ROOT / folder / "embedded_headers.cpp")
                objects[CUDA] = [
                    *[*cells, *shared.values(), *gpu.values(), *device],
                    compile(embedded, []),
                ]
            # torch's libraries are already loaded when ours is: no path to them is kept inside it.
            libs_of = {
                OPS: [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl", "-Wl,-z,defs"],
                INTROSPECTION: ["-ldl"],
                CUDA: [*(cuda.nvcc.libraries if cuda else []), *CUDART],
            }
            libraries = {name: folder / Path(self.get_ext_filename(name)).name for name in objects}
            for name, library in libraries.items():
                libs = shlex.join(libs_of[name]).replace("$", "$$")
                ninja.build(str(library), "link", objects[name], variables={"libs": libs})
        return libraries


if __name__ == "__main__":
    check_setuptools()
    setup(
        ext_modules=[Extension(name, sources=[]) for name in (OPS, CUDA, INTROSPECTION)],
        cmdclass={"build_ext": NinjaBuild},
    )
