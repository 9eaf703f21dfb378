"""Written cells by compiled code: the interpreter's bits, and a cache that is nobody else's."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import program_texts
import pytest
import random_cells
import torch
import written_cells
from torch import Tensor

import fusedrnn
from fusedrnn import _C
from fusedrnn._engine import cache, compiling
from fusedrnn._engine.compiling import HEADERS, Compilation
from fusedrnn.cells.facts import cell_of_spec

COMPILER = next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), "")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing compiled."""
    monkeypatch.setenv("FUSEDRNN_CELL_COMPILE", "1")
    monkeypatch.setenv("FUSEDRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_compilations", {})
    yield tmp_path / "cache"
    for compilation in compiling._compilations.values():
        compilation.done.wait()


@fusedrnn.cell(gates="a")
def tiny(x, u, h):  # type: ignore[no-untyped-def]
    """Quickly compiled."""
    return torch.tanh(x.a + u.a) - 0.5 * h


def renamed(program: str, name: str) -> str:
    """The program under another name."""
    version, _, rest = program.partition("\n")
    return f"{' '.join(version.split()[:2])} {name}\n{rest}"


def results(program: str, dtype: torch.dtype) -> list[Tensor]:
    """The output, states and all gradients of two directions, packed, whose tiles are not full."""
    facts = cell_of_spec(program)
    generator = torch.Generator().manual_seed(1)

    def drawn(*sizes: int) -> Tensor:
        values = torch.rand(sizes, generator=generator, dtype=torch.float64) - 0.5
        return values.to(dtype).requires_grad_()

    shapes = [*facts.shapes(5, 37).values()] * 2
    weights = [drawn(*shape) for shape in shapes]
    lengths = torch.tensor([9, 9, 7, 7, 7, 6, 5, 2, 1, 1, 1])
    batch_sizes = torch.tensor([int((lengths > t).sum()) for t in range(9)])
    x = drawn(int(lengths.sum()), 5)
    hx = [drawn(2, len(lengths), 37) for _ in facts.states]
    given, layer = (x, batch_sizes, hx, weights), (program, True, False, True, True)
    kinds = len(facts.step_inputs)
    steps = [drawn(9, 2, len(lengths), kinds, 37)] * bool(kinds)
    if steps:
        output, hn, _ = torch.ops.fusedrnn.modified_forward(
            *given, None, None, None, None, *steps, *layer, False, False
        )
    else:
        output, hn, _ = torch.ops.fusedrnn.layer_forward(*given, *layer, False)
    found = [output, *hn]
    sum(value.double().square().sum() for value in found).backward()
    return [*(value.detach() for value in found), *(v.grad for v in (x, *hx, *weights, *steps))]


def assert_equal_bits(program: str, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    again = renamed(program, "again")
    for dtype in dtypes:
        found = compiling.compiled(again, dtype)
        assert found.file is not None and found.program == again
        for ours, theirs in zip(results(again, dtype), results(program, dtype), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_equal_bits_as_text(name: str) -> None:
    assert_equal_bits(program_texts.program_of(name))


@needs_compiler
@pytest.mark.parametrize("name", ["mgu", "wide"])
def test_equal_bits(name: str) -> None:
    assert_equal_bits(getattr(written_cells, name).program)


@fusedrnn.cell(gates="a b")
def with_sign_of_h(x, u, h):  # type: ignore[no-untyped-def]
    """It reads h, but no gradient passes by the products."""
    return torch.tanh(x.a + u.a) * torch.sigmoid(x.b + u.b) + 0.1 * torch.sign(h)


@needs_compiler
def test_equal_bits_where_h_has_no_gradient_of_its_own() -> None:
    assert_equal_bits(with_sign_of_h.program, (torch.float32,))


@needs_compiler
@pytest.mark.parametrize("name", ["phased_lstm", "t_lstm"])
def test_equal_bits_with_step_inputs(name: str) -> None:
    assert_equal_bits(getattr(fusedrnn.cells, name).program)


def assert_random_cells_equal(first: int, count: int) -> None:
    for seed in range(first, first + count):
        written = random_cells.random_cell(seed)
        assert_equal_bits(written.program, (torch.float64, torch.float32))


@needs_compiler
def test_equal_bits_of_random_cells() -> None:
    assert_random_cells_equal(0, 4)


@needs_compiler
@pytest.mark.thorough
@pytest.mark.parametrize("first", range(10, 210, 20))
def test_equal_bits_of_many_random_cells(first: int) -> None:
    assert_random_cells_equal(first, 20)


def run(*lines: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python's, in a process of its own, that has imported what these lines need."""
    imports = "import os, sys, time, torch, fusedrnn; from test_compiling import tiny"
    return subprocess.run(
        [sys.executable, "-c", "\n".join((imports, *lines))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def compiler(tmp_path: Path, *lines: str) -> str:
    """A compiler that does this first."""
    script = tmp_path / "compiler"
    script.write_text("\n".join(("#!/bin/sh", *lines, f'exec {COMPILER} "$@"')))
    script.chmod(0o700)
    return str(script)


@needs_compiler
def test_the_first_call_compiles_and_the_next_process_loads(folder: Path) -> None:
    rnn = fusedrnn.Recurrent(tiny, 3, 4)
    x = torch.randn(5, 2, 3)
    before = rnn(x)[0]
    assert "interpreted, while the compiler runs" in tiny.explain()
    tiny.compile()
    assert torch.equal(rnn(x)[0], before)
    (file,) = folder.glob("*")  # and neither locks nor temporary files
    assert f"float32, bfloat16, float16: compiled, {file}" in tiny.explain()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    compiling._compilations.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "_run", lambda *_: pytest.fail("compiled again"))
        assert compiling.wanted(rnn.cell.spec, torch.float32).file == file
    assert compiling.compiled(rnn.cell.spec, torch.float64).file not in (None, file)


@needs_compiler
def test_streams_and_graphs_ask_for_it_too() -> None:
    rnn = fusedrnn.Recurrent(tiny, 3, 4)
    fusedrnn.Streaming(rnn)
    assert compiling.told(rnn.cell.spec)
    compiling.compiled(rnn.cell.spec, torch.float32)
    compiling._compilations.clear()
    torch.export.export(rnn, (torch.randn(5, 2, 3),))
    assert compiling.told(rnn.cell.spec)


@needs_compiler
def test_two_processes_compile_once(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = compiler(tmp_path, f"echo x >> {log}", "sleep 1")
    twice = "children = [os.fork() for _ in range(2)]"  # four processes, which begin together
    done = run(twice, "tiny.compile()", "[os.waitpid(c, 0) for c in children if c]", CXX=command)
    assert done.returncode == 0, done.stderr
    assert log.read_text() == "x\n"
    assert len([*folder.glob("*")]) == 1


@needs_compiler
def test_the_end_of_a_process_ends_its_compiler(folder: Path, tmp_path: Path) -> None:
    command = compiler(tmp_path, "exec sleep 100")
    call = "fusedrnn.Recurrent(tiny, 3, 4)(torch.randn(5, 2, 3))"
    wait = f"while not list(os.scandir({str(folder)!r})): time.sleep(0.01)"
    done = run(call, f"os.makedirs({str(folder)!r}, exist_ok=True)", wait, CXX=command)
    assert done.returncode == 0, done.stderr
    assert not [*folder.glob("tmp*")]


@needs_compiler
def test_a_fork_while_the_compiler_runs(tmp_path: Path) -> None:
    started = tmp_path / "started"
    command = compiler(tmp_path, f"touch {started}; sleep 1")
    call = "fusedrnn.Recurrent(tiny, 3, 4)(torch.randn(5, 2, 3))"
    wait = f"while not os.path.exists('{started}'): time.sleep(0.01)"
    child = "child = os.fork()"
    check = "assert 'float32, bfloat16, float16: compiled, ' in tiny.explain()"
    end = "assert not child or os.waitpid(child, 0)[1] == 0"
    done = run(call, wait, child, "tiny.compile()", check, end, CXX=command)
    assert done.returncode == 0, done.stderr


@needs_compiler
@pytest.mark.parametrize(
    "change",
    [lambda b: b[:100], lambda b: b"", lambda b: b[:500] + b"x" + b[501:], lambda b: b + b"x"],
    ids=["cut off", "empty", "changed", "longer"],
)
def test_a_corrupt_file_is_made_again(folder: Path, change: Callable[[bytes], bytes]) -> None:
    program = tiny.program
    file = compiling.compiled(program, torch.float32).file
    assert file is not None
    whole = file.read_bytes()
    file.unlink()  # another inode: this process has mapped the old one
    file.write_bytes(change(whole))
    file.chmod(0o600)
    compiling._compilations.clear()
    assert compiling.compiled(program, torch.float32).file == file
    assert compiling.wanted(program, torch.float32).kept == ""


@needs_compiler
def test_a_file_of_another_program_is_not_run(folder: Path) -> None:
    file = compiling.compiled(tiny.program, torch.float32).file
    found = Compilation(written_cells.wide.program, "float")
    found.key = "0" * 64
    assert file is not None
    with pytest.raises(cache.Unusable, match="was not compiled of this cell by this version"):
        found._load(file)
    assert found.file is None


@needs_compiler
@pytest.mark.parametrize("of", ["folder", "file"])
def test_what_others_may_write_to_is_not_loaded(folder: Path, of: str) -> None:
    program = tiny.program
    file = compiling.compiled(program, torch.float32).file
    assert file is not None
    (folder if of == "folder" else file).chmod(0o772)
    compiling._compilations.clear()
    found = compiling.wanted(program, torch.float32)
    assert found.file != file
    found.done.wait()
    if of == "file":  # in a folder of one's own, it is replaced
        assert found.file == file and stat.S_IMODE(file.stat().st_mode) == 0o600
    else:
        assert found.file is not None and found.file.parent != folder
        assert "compiled, and not kept: other users may write to" in tiny.explain()


@needs_compiler
def test_a_folder_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny.program
    compiling.compiled(program, torch.float32)
    compiling._compilations.clear()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    found = compiling.compiled(program, torch.float32)
    assert f"belongs to another user (number {user})" in found.kept


@needs_compiler
def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CACHE", "/proc/no/such")
    tiny.compile()
    assert "compiled, and not kept: " in tiny.explain()


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("CXX", "no-such-compiler", "no C++ compiler was found (looked for CXX=no-such-compiler)"),
        ("CXX", "false", "false failed: it ended with 1"),
        ("FUSEDRNN_CELL_COMPILE", "0", "FUSEDRNN_CELL_COMPILE=0 forbids compiling it"),
        ("FUSEDRNN_CELL_COMPILE", "2", "expected 0 or 1 or nothing, got '2'"),
    ],
)
def test_without_a_compiler(
    variable: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    rnn = fusedrnn.Recurrent(tiny, 3, 4)
    output, _ = rnn(torch.randn(5, 2, 3))
    assert output.isfinite().all()
    with pytest.raises(RuntimeError) as error:
        tiny.compile()
    assert why in str(error.value)
    assert f"interpreted, since {str(error.value).removeprefix('compile: ')}" in (tiny.explain())


@needs_compiler
def test_a_failing_compilers_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "HEADERS", tmp_path)
    shutil.copy(HEADERS / "flags.json", tmp_path)
    with pytest.raises(RuntimeError, match="failed: .*compiled_cell.h") as error:
        tiny.compile()
    assert "\n" not in str(error.value)


def test_a_build_without_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "HEADERS", tmp_path / "none")
    with pytest.raises(RuntimeError, match="no headers to compile it with"):
        tiny.compile()


def test_the_code_is_told() -> None:
    assert "void forward_saving_0(At& at)" in tiny.explain(code=True)
    assert "void" not in tiny.explain()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEDRNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/of/mine")
    assert cache.cache_folder() == Path("/of/mine/fusedrnn")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.cache_folder() == Path("/home/me/.cache/fusedrnn")


def test_compiled_source_says_what_it_expects() -> None:
    with pytest.raises(RuntimeError, match="cell: expected the program of a cell"):
        _C.compiled_source("mgu", "float")


# ---- What is compiled for CUDA -------------------------------------------------------------------


def images(folder: Path) -> list[Path]:
    return [*folder.glob("*.cuda")]


def test_an_image_is_made_once(folder: Path) -> None:
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"code %d" % len(made))
        return made[-1]

    for _ in range(2):
        assert compiling.image(b"recipe", make) == b"code 0"
    assert compiling.image(b"another recipe", make) == b"code 1"
    assert len(images(folder)) == 2
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in images(folder))
    assert not [file for file in folder.iterdir() if file.suffix != ".cuda"]


def test_an_image_that_cannot_be_made(folder: Path) -> None:
    assert compiling.image(b"recipe", lambda: None) is None
    assert images(folder) == []


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b"", lambda b: b"x" + b[1:]])
def test_a_corrupt_image_is_made_again(folder: Path, change: Callable[[bytes], bytes]) -> None:
    compiling.image(b"recipe", lambda: b"code")
    (file,) = images(folder)
    file.write_bytes(change(file.read_bytes()))
    assert compiling.image(b"recipe", lambda: b"new code") == b"new code"
    assert compiling.image(b"recipe", lambda: None) == b"new code"


def test_an_image_that_others_may_write_to(folder: Path) -> None:
    compiling.image(b"recipe", lambda: b"code")
    folder.chmod(0o777)
    assert compiling.image(b"recipe", lambda: b"new code") == b"new code"
    folder.chmod(0o700)
    images(folder)[0].chmod(0o666)
    assert compiling.image(b"recipe", lambda: b"newer code") == b"newer code"


def test_images_without_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CELL_COMPILE", "0")
    assert compiling.image(b"recipe", lambda: b"code") == b"code"
    assert not folder.exists()
    folder.write_text("a file")
    monkeypatch.setenv("FUSEDRNN_CELL_COMPILE", "1")
    assert compiling.image(b"recipe", lambda: b"code") == b"code"
