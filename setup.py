"""Builds the native part of fusedrnn. Everything else that packaging needs is in pyproject.toml.

    fusedrnn/lib/libfusedrnn.so   csrc/ops.cpp and csrc/cpu/: the ops. libtorch's stable ABI and no
                                  Python, so one binary runs on every torch from 2.10 on.
    fusedrnn/_C.<abi>.so          csrc/python.cpp: version, build info, cpu capability, plan.
                                  pybind11 and no torch.
    the CUDA library              `cuda_library` decides whether it can be built, and says why not.

`build_ext` writes one build.ninja and runs it: ninja compiles in parallel, reads the compilers'
depfiles and compares command lines, so that a rebuild compiles only what a change touches. Its
folder, build/ninja/<platform and Python>, stays between calls; pip's temporary folders do not.

Environment: CXX, CXXFLAGS, LDFLAGS, MAX_JOBS (parallel compilations), DEBUG=1 (-O0 -g, assertions),
FUSEDRNN_BUILD_CUDA=0/1, CUDA_HOME, TORCH_CUDA_ARCH_LIST.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OPS = "fusedrnn.lib.libfusedrnn"
INTROSPECTION = "fusedrnn._C"
MINIMUM_TORCH = (2, 10)
STABLE_ABI = "0x020a000000000000"  # MINIMUM_TORCH as torch/headeronly/version.h encodes it

ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = "-mavx2 -mfma -mf16c -mbmi2".split()
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mprefer-vector-width=512".split()
# csrc/cpu/isa/ is compiled once for each of these. The least demanding comes first, and stays
# first on the link line: of an inline function that several objects carry (std::vector's, say) the
# linker keeps the first, and that one must run on every processor.
INSTRUCTION_SETS = {"portable": []}
if ON_X86:
    INSTRUCTION_SETS |= {"avx2": AVX2, "avx512": AVX512 + AVX2}
    INSTRUCTION_SETS |= {"avx512_bf16": AVX512 + AVX2 + ["-mavx512bf16"]}
# What an instruction set compiles of csrc/cpu/isa/, where it is not all of it.
KERNELS = {"avx512_bf16": "*_half.cpp"}

# Where torch's own names for families of GPUs point (TORCH_CUDA_ARCH_LIST).
CUDA_FAMILIES = dict(
    Turing="7.5", Ampere="8.0;8.6", Ada="8.9", Hopper="9.0a", Blackwell="10.0;12.0"
)
CUDA_DEFAULT = "7.5;8.0;9.0a;10.0+PTX"


def fail(message: str) -> SystemExit:
    return SystemExit(f"\nfusedrnn: cannot build: {message}\n")


def package_folder(name: str) -> Path:
    """Where a build requirement is installed. Not imported: importing torch takes seconds."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise fail(
            f"the Python package {name!r} is not installed. `pip install .` brings all build "
            "requirements; with --no-build-isolation install torch, ninja and pybind11 first."
        )
    return Path(spec.submodule_search_locations[0])


def torch_version() -> str:
    package_folder("torch")
    version = importlib.metadata.version("torch")
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


def cuda_architectures() -> list[str]:
    """nvcc's -gencode flags for TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX", "Hopper"), or our default."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if wanted in ("", "native"):
        wanted = CUDA_DEFAULT
    flags = []
    for entry in re.split(r"[;,\s]+", wanted.strip()):
        name, plus, ptx = entry.partition("+")
        for version in CUDA_FAMILIES.get(name, name).split(";"):
            number = re.fullmatch(r"(\d+)\.(\d)([af]?)", version)
            if number is None or (plus and ptx != "PTX"):
                known = ", ".join(CUDA_FAMILIES)
                raise fail(
                    "TORCH_CUDA_ARCH_LIST: expected entries such as 8.0, 9.0a or 10.0+PTX, or "
                    f"one of {known}; got {entry!r}."
                )
            arch = "".join(number.groups())
            flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if plus:  # PTX of an entry's last architecture, as torch does it
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return list(dict.fromkeys(flags))


def cuda_library(torch: str) -> str:
    """Decides on the CUDA library; returns the line that the build log ends with."""
    asked = os.environ.get("FUSEDRNN_BUILD_CUDA", "")
    if asked not in ("", "0", "1"):
        raise fail(f"FUSEDRNN_BUILD_CUDA: expected 0 or 1 or nothing, got {asked!r}.")
    if asked == "0":
        return "CUDA library: left out, FUSEDRNN_BUILD_CUDA=0."
    missing = []
    if not list(ROOT.glob("csrc/cuda/*.cu")):
        missing.append("no CUDA sources yet (csrc/cuda/*.cu)")
    if runpy.run_path(str(package_folder("torch") / "version.py"))["cuda"] is None:
        missing.append(f"torch {torch} is a CPU build")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not shutil.which("nvcc", path=f"{home}/bin" if home else None):
        missing.append(f"nvcc not found ({f'in {home}/bin' if home else 'on PATH; set CUDA_HOME'})")
    targets = re.findall(r",code=(\w+)", " ".join(cuda_architectures()))
    if asked == "1":
        raise fail(f"FUSEDRNN_BUILD_CUDA=1, but {'; '.join(missing)}.")
    return f"CUDA library: left out, {'; '.join(missing)}. (Its targets: {' '.join(targets)}.)"


class NinjaBuild(build_ext):
    """Writes build.ninja, runs it, and puts the two libraries where setuptools wants them."""

    def get_ext_filename(self, fullname: str) -> str:
        words = fullname.split(".")  # setuptools asks for the whole name, or its last word
        if words[-1] == OPS.split(".")[-1]:  # no Python inside, so no Python version in its name
            return os.path.join(*words) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        if not sys.platform.startswith("linux"):
            raise fail(f"fusedrnn builds on Linux so far; this is {sys.platform}.")
        torch = torch_version()
        cuda = cuda_library(torch)
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder = Path("build", "ninja", tag)
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        libraries = self.write_ninja(folder, torch)
        command = [sys.executable, "-m", "ninja", "-f", str(folder / "build.ninja")]
        if os.environ.get("MAX_JOBS"):
            command += ["-j", os.environ["MAX_JOBS"]]
        if subprocess.run(command, cwd=ROOT).returncode:
            raise fail("a compilation failed; the compiler's messages are above.")
        for name, library in libraries.items():
            target = Path(self.get_ext_fullpath(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(ROOT / library), str(target))
            print(f"fusedrnn: built {self.get_ext_filename(name)}", end="")
            print(f" (CPU kernels: {', '.join(INSTRUCTION_SETS)})" if name == OPS else "")
        print(f"fusedrnn: {cuda}", flush=True)

    def copy_extensions_to_source(self) -> None:  # after an --inplace or editable build
        (ROOT / "fusedrnn" / "lib").mkdir(exist_ok=True)
        super().copy_extensions_to_source()

    def write_ninja(self, folder: Path, torch: str) -> dict[str, Path]:
        """Writes folder/build.ninja; returns the file that each extension is linked to."""
        torch_folder, pybind = package_folder("torch"), package_folder("pybind11")
        package_folder("ninja")
        from ninja.ninja_syntax import Writer

        debug = os.environ.get("DEBUG", "0") not in ("", "0")
        common = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
        common += ["-O0", "-g"] if debug else ["-O3", "-DNDEBUG"]
        common += ["-fno-math-errno", "-ffp-contract=fast", "-Icsrc"]
        x86 = ["-DFUSEDRNN_X86=1"] if ON_X86 else []
        stable = [f"-DTORCH_TARGET_VERSION={STABLE_ABI}", f"-isystem{torch_folder / 'include'}"]
        python = [f"-isystem{pybind / 'include'}", f"-isystem{sysconfig.get_path('include')}"]
        python += [
            f'-DFUSEDRNN_VERSION="{self.distribution.get_version()}"',
            f'-DFUSEDRNN_TORCH_VERSION="{torch}"',
            "-DFUSEDRNN_WITH_CUDA=0",
        ]

        with open(ROOT / folder / "build.ninja", "w", encoding="utf-8") as file:
            ninja = Writer(file)
            cxx = shlex.join(compiler()).replace("$", "$$")
            flags = shlex.join(common + environment_flags("CXXFLAGS")).replace("$", "$$")
            ninja.variable("builddir", str(folder))
            ninja.rule(
                "compile",
                f"{cxx} {flags} $extra -MD -MF $out.d -c $in -o $out",
                description="$in $variant",
                depfile="$out.d",
                deps="gcc",
            )
            sanitizers = [f for f in environment_flags("CXXFLAGS") if f.startswith("-fsanitize")]
            link = ["-shared", "-pthread", *sanitizers, *environment_flags("LDFLAGS")]
            command = f"{cxx} $in {shlex.join(link)} $libs -o $out"
            ninja.rule("link", command, description="link $out")

            def compile(source: Path, extra: list[str], variant: str = "") -> str:
                name = source.relative_to(ROOT)
                suffix = f".{variant}.o" if variant else ".o"
                target = str(folder / name.with_suffix(suffix))
                extra_words = shlex.join(extra).replace("$", "$$")
                variables = {"extra": extra_words, "variant": f"({variant})" if variant else ""}
                ninja.build(target, "compile", str(name), variables=variables)
                return target

            cpu = {path.name: compile(path, x86) for path in sorted(ROOT.glob("csrc/cpu/*.cpp"))}
            override = compile(ROOT / "csrc/plan_override.cpp", [])
            kernels = [
                compile(source, [f"-DFUSEDRNN_ISA={isa}", *isa_flags], isa)
                for isa, isa_flags in INSTRUCTION_SETS.items()
                for source in sorted((ROOT / "csrc/cpu/isa").glob(KERNELS.get(isa, "*.cpp")))
            ]
            objects = {
                OPS: [compile(ROOT / "csrc/ops.cpp", stable), override, *cpu.values(), *kernels],
                INTROSPECTION: [
                    compile(ROOT / "csrc/python.cpp", python),
                    compile(ROOT / "csrc/cuda/plan.cpp", []),
                    override,
                    *(cpu[name] for name in ("plan.cpp", "capability.cpp", "peak.cpp")),
                ],
            }
            # torch's libraries are already loaded when ours is: no path to them is kept inside it.
            torch_link = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", "-Wl,-z,defs"]
            libraries = {name: folder / Path(self.get_ext_filename(name)).name for name in objects}
            for name, library in libraries.items():
                libs = shlex.join(torch_link if name == OPS else []).replace("$", "$$")
                ninja.build(str(library), "link", objects[name], variables={"libs": libs})
        return libraries


setup(
    ext_modules=[Extension(OPS, sources=[]), Extension(INTROSPECTION, sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
