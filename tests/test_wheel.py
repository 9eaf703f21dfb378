"""What is released: the sources hold all that is needed, the wheel is right, and runs without them.

One chain, as a user would meet it: this checkout's files are packed into an sdist, the sdist is
unpacked and built, the wheel is installed beside the torch that is here, with no compiler on PATH.
Objects that are compiled already are taken along, so that nothing but a change is compiled again;
with --thorough the wheel is for all instruction sets, as a released one is.
`make wheel-check` does the last part with other versions of Python and torch.
"""

from __future__ import annotations

import email.message
import email.parser
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import fusedrnn

ROOT = Path(__file__).resolve().parent.parent
NINJA = Path("build", "ninja")
NOT_IN_THE_SDIST = (".gitignore", "benchmarks/results/")
SITE = Path(torch.__file__).parent.parent


def output(*command: str | Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=os.environ | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git has, or would have."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # not deleted since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def torch_alarm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which importing torch fails: a build only reads its headers and version."""
    folder = tmp_path_factory.mktemp("alarm")
    (folder / "torch.py").write_text("raise AssertionError('torch is imported')", encoding="utf-8")
    return {"PYTHONPATH": str(folder), "FUSEDRNN_TORCH": str(Path(torch.__file__).parent)}


@pytest.fixture(scope="module")
def sdist(checkout: Path, torch_alarm: dict[str, str]) -> Path:
    pack = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    output(sys.executable, "-c", pack, folder=checkout, **torch_alarm)
    (file,) = (checkout / "dist").glob("*.tar.gz")
    return file


@pytest.fixture(scope="module")
def wheel(sdist: Path, torch_alarm: dict[str, str], thorough: bool) -> Path:
    if not list((ROOT / NINJA).glob("*/.ninja_log")):
        pytest.skip("this checkout has no compiled objects: `make build`")
    folder = sdist.parent.parent / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    (source,) = folder.iterdir()
    shutil.copytree(ROOT / NINJA, source / NINJA)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder]
    targets = {} if thorough else {"FUSEDRNN_CPU_TARGETS": "native"}
    output(sys.executable, "-m", "pip", "wheel", *options, source, folder=folder,
           **torch_alarm, **targets)  # fmt: skip
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The folder of an environment that has the wheel, and torch and its like from ours."""
    folder = wheel.parent / "environment"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    words = ["install", "--no-deps", "--no-index", wheel]
    output(sys.executable, "-m", "pip", "--python", python, *words, folder=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(f"{SITE}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))


def test_sdist_has_what_git_has(checkout: Path, sdist: Path) -> None:
    outside = (checkout / "dist", checkout / "unpacked", checkout / "fusedrnn.egg-info")
    files = {
        str(path.relative_to(checkout))
        for path in checkout.rglob("*")
        if path.is_file() and not any(folder in path.parents for folder in outside)
    }
    with tarfile.open(sdist) as archive:
        packed = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    made = {name for name in packed if name.startswith("fusedrnn.egg-info/")}
    assert packed - made - files == {"PKG-INFO", "setup.cfg"}
    assert not [name for name in files - packed if not name.startswith(NOT_IN_THE_SDIST)]


def included_by(folder: Path, header: str) -> set[str]:
    """A header and those of the folder that it includes, as the compiler lists them."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    rule = output(*compiler, "-std=c++17", "-MM", "-I.", "-x", "c++", header, folder=folder)
    words = rule.replace("\\\n", " ").split()[1:]
    return {os.path.normpath(word) for word in words}


def test_wheel_has_what_runs_and_nothing_else(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = (path for path in (checkout / "fusedrnn").rglob("*") if path.is_file())
    sources = {str(path.relative_to(checkout)) for path in files}
    assert {"fusedrnn/py.typed", "fusedrnn/_C.pyi", "fusedrnn/_engine/native.py"} <= sources
    native = {f"fusedrnn/_C{sysconfig.get_config_var('EXT_SUFFIX')}", "fusedrnn/lib/libfusedrnn.so"}
    if fusedrnn.build_info()["cuda_targets"]:
        native.add("fusedrnn/lib/libfusedrnn_cuda.so")
    # What written cells are compiled with.
    headers = {name for name in names if name.startswith("fusedrnn/lib/include/")}
    assert {header.removeprefix("fusedrnn/lib/include/") for header in headers} == {
        "flags.json",
        *included_by(checkout / "csrc", "cpu/compiled_cell.h"),
    }
    folder = f"fusedrnn-{fusedrnn.__version__}.dist-info"
    info = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    assert names == sources | native | headers | {f"{folder}/{name}" for name in info}


def test_wheel_is_of_this_python_and_this_system(wheel: Path) -> None:
    digits = "".join(platform.python_version_tuple()[:2])
    system = re.sub(r"\W", "_", sysconfig.get_platform())
    assert wheel.name == f"fusedrnn-{fusedrnn.__version__}-cp{digits}-cp{digits}-{system}.whl"


def test_metadata(metadata: email.message.Message, checkout: Path) -> None:
    project = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    assert metadata["Name"] == "fusedrnn" and metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Version"] == fusedrnn.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    required = metadata.get_all("Requires-Dist") or []
    assert [line for line in required if "extra" not in line] == ["torch>=2.10"]
    table = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", table, re.MULTILINE)
    assert metadata.get_all("Provides-Extra") == sorted(extras) != []
    classifiers = metadata.get_all("Classifier") or []
    wheels = re.search(r"WHEEL_PYTHONS := (.*)", (checkout / "Makefile").read_text("utf-8"))
    assert wheels is not None
    for version in wheels[1].split():
        assert f"Programming Language :: Python :: {version}" in classifiers
    assert "Operating System :: POSIX :: Linux" in classifiers and "Typing :: Typed" in classifiers
    text = str(metadata.get_payload())
    assert text.startswith("# fusedrnn") and "\n## Install" in text


def test_one_version(checkout: Path) -> None:
    """The package's, its libraries', and that of the changelog's newest entry."""
    assert fusedrnn.build_info()["version"] == fusedrnn.__version__
    entries = re.findall(r"^## (.*)$", (checkout / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    for entry in entries:
        assert re.fullmatch(r"\d+\.\d+\.\d+ \((unreleased|\d{4}-\d\d-\d\d)\)", entry), entry
    assert entries[0].split()[0] == fusedrnn.__version__
    assert "unreleased" not in "".join(entries[1:])


def test_runs_where_nothing_can_be_compiled(installed: Path) -> None:
    folder = installed.parent
    shutil.copy(ROOT / "tools" / "wheel_check.py", folder)
    done = subprocess.run(
        [installed / "bin" / "python", "wheel_check.py"], cwd=folder, timeout=120,
        env={"PATH": str(installed / "bin")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"ok    fusedrnn {fusedrnn.__version__}, built with torch")
    assert f"torch {torch.__version__}" in done.stdout


USAGE = """
    import torch
    import fusedrnn
    from fusedrnn import functional

    lstm = fusedrnn.LSTM(3, 4, num_layers=2, checkpoint=8)
    output, (h, c) = lstm.forward(torch.zeros(5, 2, 3))
    reveal_type(output)
    reveal_type(c)
    reveal_type(fusedrnn.GRU(3, 4).forward(torch.zeros(5, 2, 3))[1])
    reveal_type(fusedrnn.GRUCell(3, 4).forward(torch.zeros(2, 3)))
    reveal_type(fusedrnn.Streaming(lstm)(torch.zeros(2, 3)))
    reveal_type(fusedrnn.replace(lstm))
    reveal_type(fusedrnn.build_info())
    reveal_type(fusedrnn.__version__)
    fusedrnn.LSTM(3, 4).forward("no tensor")
"""
REVEALED = [
    "torch._tensor.Tensor",
    "torch._tensor.Tensor",
    "torch._tensor.Tensor",
    "torch._tensor.Tensor",
    "torch._tensor.Tensor",
    "fusedrnn.convert.replace.Replacement",
    "dict[str, Any]",
    "str",
]


def test_a_users_code_is_type_checked(installed: Path) -> None:
    """mypy, strict, sees our annotations in the installed package: right uses pass, wrong don't."""
    folder = installed.parent / "usage"
    folder.mkdir()
    (folder / "usage.py").write_text(textwrap.dedent(USAGE), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=/dev/null",
         "--python-executable", installed / "bin" / "python", "usage.py"],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    found = re.findall(r'note: Revealed type is "(.*?)"', done.stdout)
    assert [name.replace("builtins.", "") for name in found] == REVEALED, done.stdout
    errors = re.findall(r"error: (.*)", done.stdout)
    assert len(errors) == 1 and "[call-overload]" in errors[0], done.stdout


def test_the_installed_version_is_the_imported_one() -> None:
    """In the environment of these tests, if it has the package installed from here."""
    try:
        found = importlib.metadata.distribution("fusedrnn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fusedrnn is not installed, but on the path")
    assert found.version == fusedrnn.__version__
