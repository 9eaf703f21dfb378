"""What setup.py decides about the CUDA library, and what it says where it cannot build anything."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from cuda_emulation.build import load_setup

ROOT = Path(__file__).resolve().parent.parent


setup = load_setup()
NVCC_13 = frozenset("75 80 86 87 88 89 90 100 103 110 120 121".split())
NVCC_12_4 = frozenset("50 52 53 60 61 62 70 72 75 80 86 87 89 90".split())


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "FUSEDRNN_BUILD_CUDA",
        "FUSEDRNN_TORCH",
        "TORCH_CUDA_ARCH_LIST",
        "CUDA_HOME",
        "CUDA_PATH",
    ):
        monkeypatch.delenv(name, raising=False)


def targets(asked: str | None, known: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> str:
    if asked is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    flags, unknown = setup.cuda_architectures("1.0", known)
    text = " ".join(re.findall(r",code=(\w+)", " ".join(flags)))
    return text + "".join(f" -{name}" for name in unknown)


@pytest.mark.parametrize(
    "asked, known, expected",
    [
        (None, NVCC_13, "sm_75 sm_80 sm_90a sm_100 compute_100"),
        ("native", NVCC_13, "sm_75 sm_80 sm_90a sm_100 compute_100"),
        (None, NVCC_12_4, "sm_75 sm_80 sm_90a compute_90 -10.0"),
        ("9.0a", NVCC_13, "sm_90a"),
        ("8.0;9.0a+PTX", NVCC_13, "sm_80 sm_90a compute_90a"),
        ("8.0 8.6, 8.0", NVCC_13, "sm_80 sm_86"),
        ("Ampere+PTX", NVCC_13, "sm_80 sm_86 compute_86"),
        ("7.0;8.0", NVCC_12_4, "sm_70 sm_80"),
    ],
)
def test_architectures(
    asked: str | None, known: frozenset[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert targets(asked, known, monkeypatch) == expected


@pytest.mark.parametrize(
    "asked, message",
    [
        ("7.0;8.0", "nvcc 1.0 has no 7.0; it has 75, 80"),
        ("eight", "got 'eight'"),
        ("8.0+ptx", "got '8.0\\+ptx'"),
    ],
)
def test_unknown_architectures(asked: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=message):
        targets(asked, NVCC_13, monkeypatch)


@pytest.mark.parametrize("asked", ["", "0", "1", "yes"])
@pytest.mark.parametrize("torch_cuda", [None, "12.8", "13.0"])
@pytest.mark.parametrize("nvcc", [False, True], ids=["no nvcc", "nvcc"])
def test_when_cuda_is_built(
    asked: str, torch_cuda: str | None, nvcc: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    (tmp_path / "version.py").write_text(f"cuda = {torch_cuda!r}", encoding="utf-8")
    found = setup.Nvcc("nvcc", "13.0", NVCC_13, [], []) if nvcc else None
    monkeypatch.setattr(setup, "package_folder", lambda name: tmp_path)
    monkeypatch.setattr(setup.Nvcc, "find", lambda: found)
    monkeypatch.setenv("FUSEDRNN_BUILD_CUDA", asked)

    reasons = [
        *(["torch 2.x is a CPU build"] if torch_cuda is None and asked != "1" else []),
        *(["nvcc not found"] if not nvcc else []),
    ]
    if asked == "yes" or (asked == "1" and reasons):
        with pytest.raises(SystemExit) as error:
            setup.cuda_library("2.x")
        message = str(error.value)
        assert all(word in message for word in (reasons if asked == "1" else ["'yes'"])), message
        return
    library, line = setup.cuda_library("2.x")
    if asked == "0" or reasons:
        assert library is None and "left out" in line
        assert asked == "0" or all(reason in line for reason in reasons), line
    else:
        assert library.targets[:2] == ["sm_75", "sm_80"] and "nvcc 13.0" in line
        assert ("newer driver" in line) == (torch_cuda == "12.8")


def test_nvcc_is_looked_for_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup.Nvcc.find() is None  # whatever is on PATH


@pytest.mark.parametrize("command, host", [("g++", "g++"), ("ccache g++ -m64", "g++")])
def test_nvcc_gets_the_compiler_alone(
    command: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "compiler", command.split)
    flags = setup.nvcc_flags()
    assert f"-ccbin={host}" in flags
    assert ("-Xcompiler=-m64" in flags) == ("-m64" in command)


@pytest.mark.parametrize(
    "missing", [["pybind11"], ["ninja", "pybind11"], ["torch", "ninja", "pybind11"]]
)
def test_all_that_is_missing_is_named(missing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        setup.importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    with pytest.raises(SystemExit, match=f"environment: {', '.join(missing)}\\. .*isolation"):
        setup.package_folder(missing[0])


@pytest.mark.parametrize("version, accepted", [("65.5.0", False), ("77.0.3", True), ("84", True)])
def test_old_setuptools(version: str, accepted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.setuptools, "__version__", version)
    if accepted:
        setup.check_setuptools()
        return
    with pytest.raises(SystemExit, match=f"setuptools 77 or later is required, found {version}"):
        setup.check_setuptools()


@pytest.mark.parametrize("version, accepted", [("2.9.1", False), ("2.10.0", True), ("3.0", True)])
def test_torch_elsewhere(
    version: str, accepted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FUSEDRNN_TORCH", str(tmp_path))
    with pytest.raises(SystemExit, match="FUSEDRNN_TORCH: expected the folder of a torch package"):
        setup.torch_version()
    (tmp_path / "version.py").write_text(f"__version__ = {version!r}", encoding="utf-8")
    if accepted:
        assert setup.torch_version() == version
        return
    with pytest.raises(SystemExit, match=f"torch 2.10 or later is required, found torch {version}"):
        setup.torch_version()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match="no C\\+\\+ compiler .*apt install g\\+\\+.*ready-made"):
        setup.compiler()
    monkeypatch.setenv("CXX", "clang++-99 -m64")
    with pytest.raises(SystemExit, match="looked for CXX=clang"):
        setup.compiler()


def test_no_headers_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert setup.python_include()
    monkeypatch.setattr(setup.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=f"no Python.h in {tmp_path}"):
        setup.python_include()


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.sys, "platform", system)
    with pytest.raises(SystemExit, match=f"builds on Linux so far; this is {system}"):
        setup.NinjaBuild.build_extensions(None)


def test_less_optimisation(tmp_path: Path) -> None:
    """CXXFLAGS=-O1: what is always inlined can be, without the analysis of -O2, too."""
    isa = "avx2" if setup.ON_X86 else "portable"
    flags = [f"-DFUSEDRNN_ISA={isa}", *setup.INSTRUCTION_SETS[isa], "-DFUSEDRNN_DTYPE=f32"]
    done = subprocess.run(
        [*setup.compiler(), *setup.common_flags("-O1"), *flags, "-c", "csrc/cpu/isa/backward.cpp",
         "-o", str(tmp_path / "backward.o")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
