"""A bad installation is an ImportError that says what is wrong; it never ends the interpreter.

Each case is a copy of the package, damaged, that a process of its own imports. A module named torch
that has nothing but a version shows that its version and _C are looked at before anything of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from test_build import setup

import fusedrnn
from fusedrnn._engine import native as _native

PACKAGE = Path(fusedrnn.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
INTROSPECTION = Path(str(fusedrnn._C.__file__)).name
OPS, CUDA = "lib/libfusedrnn.so", "lib/libfusedrnn_cuda.so"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, in a folder that has nothing else."""
    ignored = shutil.ignore_patterns("__pycache__", "*.o")
    return Path(shutil.copytree(PACKAGE, tmp_path / "site" / "fusedrnn", ignore=ignored))


def stub_torch(folder: Path, code: str) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(code, encoding="utf-8")


def run(copy: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120,
        cwd=copy.parent, env=os.environ | {"PYTHONPATH": str(copy.parent)},
    )  # fmt: skip


def refusal(copy: Path, code: str = "import fusedrnn") -> str:
    """What the ImportError says. Two attempts, as a session would make: neither may crash."""
    again = f"try:\n    {code}\nexcept ImportError:\n    pass\n{code}"
    done = run(copy, again)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr[-2000:])
    kind, _, message = done.stderr.strip().splitlines()[-1].partition(": ")
    assert kind == "ImportError", done.stderr[-2000:]
    return message


def cut(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)


def patch(path: Path, position: int, byte: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(bytes([byte]))


@pytest.mark.parametrize(
    "code, words",
    [
        ("__version__ = '2.9.1'", ["PyTorch 2.10 or later", "found torch 2.9.1 in"]),
        ("__version__ = '1.13.0+cu117'", ["PyTorch 2.10 or later", "found torch 1.13.0+cu117"]),
        ("", ["PyTorch 2.10 or later", "the package torch in", "is something else"]),
        ("import sympy_that_is_not_there", ["sympy_that_is_not_there"]),
    ],
)
def test_torch_is_looked_at_first(copy: Path, code: str, words: list[str]) -> None:
    cut(copy / INTROSPECTION, 100)  # nothing native is touched
    stub_torch(copy.parent, code)
    done = run(copy, "import fusedrnn")
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and re.match(r"(ImportError|ModuleNotFoundError): ", message)
    assert all(word in message for word in words), message


def test_no_torch(copy: Path) -> None:
    message = refusal(copy, "import sys; sys.modules['torch'] = None; import fusedrnn")
    assert "PyTorch 2.10 or later, and no torch is installed: `pip install torch`" in message


def test_a_folder_named_torch(copy: Path) -> None:
    (copy.parent / "torch").mkdir()
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]"
    assert "something else" in refusal(copy, f"{code}; import fusedrnn")


@pytest.mark.parametrize("version", ["2.10.0a0+git1234", "main", "10.0"])
def test_other_versions_of_torch_are_tried(copy: Path, version: str) -> None:
    done = run(
        copy,
        f"""
        import torch
        torch.__version__ = {version!r}
        import fusedrnn
        print(fusedrnn.RNN(2, 3)(torch.zeros(1, 2))[0].shape)
        """,
    )
    assert done.returncode == 0 and done.stdout.strip() == "torch.Size([1, 3])", done.stderr


def missing(path: Path) -> None:
    path.unlink()


def of_another_python(path: Path) -> None:
    path.rename(path.with_name("_C.cpython-37m-x86_64-linux-gnu.so"))


def text(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n" * 20, encoding="utf-8")


def half(path: Path) -> None:
    cut(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    cut(path, 0)


def of_another_processor(path: Path) -> None:
    patch(path, 18, 0xF3)  # e_machine: RISC-V


def of_32_bits(path: Path) -> None:
    patch(path, 4, 1)  # e_ident[EI_CLASS]


def another_module(path: Path) -> None:
    shutil.copy(path.parent / OPS, path)


@pytest.mark.parametrize(
    "damage, words",
    [
        (missing, ["no native module _C for this Python", sys.implementation.cache_tag]),
        (of_another_python, ["no native module _C", "but _C.cpython-37m-x86_64-linux-gnu.so"]),
        (text, ["is cut off or no library: it has 860 bytes"]),
        (empty, ["is cut off or no library: it has 0 bytes"]),
        (half, ["is cut off: "]),
        (of_another_processor, ["for another kind of processor than this Python"]),
        (of_32_bits, ["for another kind of processor than this Python"]),
    ],
)
def test_a_bad_introspection_module(
    copy: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    stub_torch(copy.parent, "__version__ = '2.13.0'")
    damage(copy / INTROSPECTION)
    message = refusal(copy)
    assert all(word in message for word in [*words, str(copy), "Install it again"]), message


def test_what_the_system_says_is_passed_on(copy: Path) -> None:
    another_module(copy / INTROSPECTION)
    message = refusal(copy, "import torch; import fusedrnn")
    assert "could not be loaded: dynamic module does not define" in message


@pytest.mark.parametrize(
    "damage, words",
    [
        (missing, ["is missing"]),
        (half, ["is cut off: "]),
        (of_another_processor, ["for another kind of processor"]),
    ],
)
def test_a_bad_library(copy: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    damage(copy / OPS)
    message = refusal(copy)
    assert all(word in message for word in [*words, str(copy / OPS), "Install it again"]), message


def test_a_library_that_the_system_refuses(copy: Path) -> None:
    """A symbol that is nowhere, as with a torch or a C library that is too old."""
    library = copy / OPS
    data = library.read_bytes()
    assert b"\0torch_call_dispatcher\0" in data
    library.write_bytes(data.replace(b"\0torch_call_dispatcher\0", b"\0torch_call_dispatchez\0"))
    message = refusal(copy)
    assert "could not be loaded beside torch" in message and "torch_call_dispatchez" in message


def other_version(path: Path) -> None:
    data, version = path.read_bytes(), fusedrnn.__version__.encode()
    assert data.count(version + b"\0") == 1
    path.write_bytes(data.replace(version + b"\0", version[:-1] + b"x\0"))


@pytest.mark.parametrize("name", [INTROSPECTION, OPS])
def test_what_is_left_of_another_version(copy: Path, name: str) -> None:
    other_version(copy / name)
    message, version = refusal(copy), fusedrnn.__version__
    expected = f"{copy / name} is of version {version[:-1]}x, its Python files of {version}"
    assert expected in message and "Install it again" in message


def test_sources_that_were_not_built(copy: Path) -> None:
    (copy.parent / "csrc").mkdir()
    (copy.parent / "setup.py").touch()
    (copy / INTROSPECTION).unlink()
    message = refusal(copy)
    assert f"build it there, in {copy.parent}" in message and "--no-build-isolation" in message


def test_two_copies_in_one_process(copy: Path) -> None:
    """The second library would register the same ops, which ends the process."""
    done = run(
        copy,
        f"""
        import sys
        import fusedrnn
        for name in [name for name in sys.modules if name.split(".")[0] == "fusedrnn"]:
            del sys.modules[name]
        sys.path.insert(0, {str(PACKAGE.parent)!r})
        import fusedrnn
        """,
    )
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and f"another copy of it, {copy / OPS}. Start a new" in message


CUDA_BESIDE_CUDA_TORCH = """
    import sys, warnings
    import torch
    torch.version.cuda = "13.0"
    from fusedrnn import _C# imports fusedrnn: its own CUDA library, if any, is loaded or not
    from fusedrnn._engine import ops
    from fusedrnn._engine import native as _native
    _C.build_info = lambda: {"cuda_targets": ["sm_80"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ops.WITHOUT_CUDA = ops._load_cuda()
    import fusedrnn
    info = fusedrnn.build_info()
    assert info["cuda"] is False, info
    assert [w.category for w in caught] == [RuntimeWarning], caught
    assert info["without_cuda"] in str(caught[0].message), caught
    fusedrnn.LSTM(3, 4)(torch.zeros(2, 3))  # the CPU is served
    print(info["without_cuda"])
"""


@pytest.mark.parametrize("damage", ["missing", "half", "another"])
def test_a_bad_cuda_library_leaves_the_cpu(copy: Path, damage: str) -> None:
    library = copy / CUDA
    library.unlink(missing_ok=True)
    if damage == "half":
        shutil.copy(copy / OPS, library)
        half(library)
    elif damage == "another":
        shutil.copy(copy / INTROSPECTION, library)
        other_version(library)
    done = run(copy, CUDA_BESIDE_CUDA_TORCH)
    assert done.returncode == 0, done.stderr[-2000:]
    words = {"missing": "is missing", "half": "is cut off", "another": "is of version"}
    assert str(library) in done.stdout and words[damage] in done.stdout


def test_without_cuda_says_why() -> None:
    info = fusedrnn.build_info()
    assert info["cuda"] == (info["without_cuda"] is None)
    if not info["cuda"]:
        assert re.search("torch .* has no CUDA|has no CUDA kernels", info["without_cuda"])


def test_wherever_a_file_is_cut(tmp_path: Path) -> None:
    whole = (PACKAGE / INTROSPECTION).read_bytes()
    path, refused = tmp_path / "library.so", []
    sizes = [0, 1, 63, 64, 65, 120, 500, *range(4096, len(whole), 4096), len(whole)]
    for size in sizes:
        path.write_bytes(whole[:size])
        try:
            _native._check_file(path)
        except ImportError:
            refused.append(size)
    assert refused == sizes[: len(refused)] and len(whole) not in refused
    assert len(refused) > 10  # the end of a file is tables for debuggers, which nobody maps


def test_one_minimum_of_torch_and_setuptools() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    torch = ".".join(map(str, _native.MINIMUM_TORCH))
    assert setup.MINIMUM_TORCH == _native.MINIMUM_TORCH
    assert f'dependencies = ["torch>={torch}"]' in project
    assert f'requires = ["setuptools>={setup.MINIMUM_SETUPTOOLS}", "torch>={torch}"' in project
