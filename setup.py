"""Builds the native part of fusedrnn. Everything else that packaging needs is in pyproject.toml.

    fusedrnn/lib/libfusedrnn.so   csrc/ops.cpp and csrc/cpu/: the ops. libtorch's stable ABI and no
                                  Python, so one binary runs on every torch from 2.10 on.
    fusedrnn/_C.<abi>.so          csrc/python.cpp: version, build info, cpu capability, plan.
                                  pybind11 and no torch.
    fusedrnn/lib/libfusedrnn_cuda.so   csrc/cuda/: the CUDA backend. No torch, cudart inside; cuBLAS
                                  is torch's own, found at run time. `cuda_toolkit` decides
                                  whether it is built; the log's last line says so, and why not.

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
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OPS = "fusedrnn.lib.libfusedrnn"
CUDA = "fusedrnn.lib.libfusedrnn_cuda"
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


def cuda_architectures(offered: list[str]) -> list[str]:
    """nvcc's -gencode flags for TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX", "Hopper"), or our default.

    `offered` is what this nvcc can compile for ("90"). What it lacks of our default is left out;
    what it lacks of the environment's is an error.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    ours = wanted in ("", "native")
    if ours:
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
            if not {arch, arch.rstrip("af")} & set(offered):
                if ours:
                    continue
                raise fail(
                    f"TORCH_CUDA_ARCH_LIST: nvcc cannot compile for {version}; "
                    f"it offers {', '.join(offered)}."
                )
            flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if (
            plus and flags and flags[-1].endswith(f"sm_{arch}")
        ):  # PTX of an entry's last architecture, as torch does it
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return list(dict.fromkeys(flags))


@dataclass(frozen=True)
class Toolkit:
    """What the CUDA library is compiled with; `nvcc` is empty when it is left out."""

    nvcc: str = ""
    architectures: tuple[str, ...] = ()
    reason: str = ""

    @property
    def targets(self) -> list[str]:
        """What the library has code for, such as sm_90a."""
        return re.findall(r",code=(\w+)", " ".join(self.architectures))

    def log(self) -> str:
        """The line that the build ends with."""
        if not self.nvcc:
            return f"CUDA library: left out, {self.reason}."
        return f"built fusedrnn/lib/libfusedrnn_cuda.so ({', '.join(self.targets)})"


def cuda_toolkit(torch: str) -> Toolkit:
    """Decides whether the CUDA library is built: where nvcc is, for a CUDA build of torch.

    Nothing of torch is needed to build it, so that FUSEDRNN_BUILD_CUDA=1 builds it for any torch.
    """
    asked = os.environ.get("FUSEDRNN_BUILD_CUDA", "")
    if asked not in ("", "0", "1"):
        raise fail(f"FUSEDRNN_BUILD_CUDA: expected 0 or 1 or nothing, got {asked!r}.")
    if asked == "0":
        return Toolkit(reason="FUSEDRNN_BUILD_CUDA=0")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    missing = []
    if runpy.run_path(str(package_folder("torch") / "version.py"))["cuda"] is None and not asked:
        missing.append(
            f"torch {torch} is a CPU build (FUSEDRNN_BUILD_CUDA=1 builds it all the same)"
        )
    if not nvcc:
        missing.append(f"nvcc not found ({f'in {home}/bin' if home else 'on PATH; set CUDA_HOME'})")
    if missing and asked:
        raise fail(f"FUSEDRNN_BUILD_CUDA=1, but {'; '.join(missing)}.")
    if missing or not nvcc:
        return Toolkit(reason="; ".join(missing))
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    offered = re.findall(r"sm_(\w+)", listed.stdout)
    return Toolkit(nvcc, tuple(cuda_architectures(offered)))


class NinjaBuild(build_ext):
    """Writes build.ninja, runs it, and puts the libraries where setuptools wants them."""

    cuda: Toolkit

    def get_ext_filename(self, fullname: str) -> str:
        words = fullname.split(".")  # setuptools asks for the whole name, or its last word
        # No Python inside, so no Python version in its name.
        if words[-1] in (OPS.split(".")[-1], CUDA.split(".")[-1]):
            return os.path.join(*words) + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        if not sys.platform.startswith("linux"):
            raise fail(f"fusedrnn builds on Linux so far; this is {sys.platform}.")
        self.cuda = cuda_toolkit(torch_version())
        if not self.cuda.nvcc:
            self.extensions = [e for e in self.extensions if e.name != CUDA]
        super().run()

    def build_extensions(self) -> None:
        torch = torch_version()
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
            if name != CUDA:
                print(f"fusedrnn: built {self.get_ext_filename(name)}", end="")
                print(f" (CPU kernels: {', '.join(INSTRUCTION_SETS)})" if name == OPS else "")
        print(f"fusedrnn: {self.cuda.log()}", flush=True)

    def copy_extensions_to_source(self) -> None:  # after an --inplace or editable build
        folder = ROOT / "fusedrnn" / "lib"
        folder.mkdir(exist_ok=True)
        if not self.cuda.nvcc:  # not one of an earlier build either: ops.py would load it
            (folder / (CUDA.split(".")[-1] + ".so")).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def write_ninja(self, folder: Path, torch: str) -> dict[str, Path]:
        """Writes folder/build.ninja; returns the file that each extension is linked to."""
        cuda = self.cuda
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
            f'-DFUSEDRNN_CUDA_TARGETS="{" ".join(cuda.targets)}"',
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
            plans = [
                compile(ROOT / name, [])
                for name in ("csrc/plan_override.cpp", "csrc/cuda/plan.cpp")
            ]
            kernels = [
                compile(source, [f"-DFUSEDRNN_ISA={isa}", *isa_flags], isa)
                for isa, isa_flags in INSTRUCTION_SETS.items()
                for source in sorted((ROOT / "csrc/cpu/isa").glob(KERNELS.get(isa, "*.cpp")))
            ]
            objects = {
                OPS: [compile(ROOT / "csrc/ops.cpp", stable), plans[0], *cpu.values(), *kernels],
                INTROSPECTION: [
                    compile(ROOT / "csrc/python.cpp", python),
                    *plans,
                    *(cpu[name] for name in ("plan.cpp", "capability.cpp", "peak.cpp")),
                ],
            }
            # torch's libraries are already loaded when ours is: no path to them is kept inside it.
            torch_link = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", "-Wl,-z,defs"]
            if cuda.nvcc:  # compiles the host's code too, and links: it knows its own folders
                host = "-fPIC,-fvisibility=hidden,-Wall,-Wextra"
                nvcc = shlex.join([cuda.nvcc, f"-ccbin={compiler()[-1]}"]).replace("$", "$$")
                command = ["-std=c++17", "-O3", "-DNDEBUG", "-lineinfo", f"-Xcompiler={host}"]
                command += ["-Icsrc", *cuda.architectures, "-MD", "-MF", "$out.d", "-c"]
                ninja.rule(
                    "compile_cuda",
                    f"{nvcc} {' '.join(command)} $in -o $out",
                    description="$in",
                    depfile="$out.d",
                    deps="gcc",
                )
                link_flags = "-shared -cudart static -Xlinker -z,defs,--exclude-libs,ALL"
                ninja.rule(
                    "link_cuda",
                    f"{nvcc} {link_flags} {' '.join(cuda.architectures)} $in $libs -o $out",
                    description="link $out",
                )
                objects[CUDA] = plans[:]
                for path in sorted([*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("csrc/cuda/*.cpp")]):
                    if path.name != "plan.cpp":
                        name = path.relative_to(ROOT)
                        target = str(folder / name.with_suffix(f"{name.suffix}.o"))
                        objects[CUDA] += ninja.build(target, "compile_cuda", str(name))
            libraries = {name: folder / Path(self.get_ext_filename(name)).name for name in objects}
            for name, library in libraries.items():
                libs = {OPS: shlex.join(torch_link).replace("$", "$$"), CUDA: "-ldl"}.get(name, "")
                rule = "link_cuda" if name == CUDA else "link"
                ninja.build(str(library), rule, objects[name], variables={"libs": libs})
        return libraries


setup(
    ext_modules=[Extension(name, sources=[]) for name in (OPS, INTROSPECTION, CUDA)],
    cmdclass={"build_ext": NinjaBuild},
)
