"""Written cells on the CUDA kernels.

In the emulation, g++ compiles the source that a program becomes, as it compiles every kernel there;
each program and dtype takes a second the first time, and each walk of a team one more. NVRTC, which
compiles it on a machine with a GPU, needs none to do so: what it makes for each architecture is
looked at, and not run.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_modifiers
import torch
from conftest import cases_of
from cuda_emulation import backend as emulated
from processes import under_address_sanitizer
from program_texts import program_of
from random_cells import random_cell
from test_step_inputs import gated, leaky, staged
from test_written_layers import check_against_reference, tensors
from torch import Tensor
from written_cells import WRITTEN, mgu, reset_before, wide

import fusedrnn
from fusedrnn import _C
from fusedrnn._engine import compiling, ops
from fusedrnn._engine.autograd import runs_elsewhere
from fusedrnn._engine.layer import Modifiers, Operands, layer_of
from fusedrnn.cells import WrittenCell, cell_named, cell_of_written, facts
from fusedrnn.cells.zoo import ZOO
from fusedrnn.testing.parity import Case, check

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=emulated.missing())

STEPWISE = "team=stepwise"
HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (torch.float64, *HALF_AND_SINGLE)
NAMES = [cell.name for cell in WRITTEN]


@fusedrnn.cell(gates="n r z a b")
def unordered(x, u, h):  # type: ignore[no-untyped-def]
    """The second product's gates are neither together nor last; there are gates without a sum."""
    r, z = torch.sigmoid(x.r + u.r), torch.sigmoid(u.z)
    a, v = torch.tanh(x.a) * u.a, r * h
    return z * h + (1 - z) * torch.tanh(x.n + u.n(v) * torch.sigmoid(x.b) + u.b(v)) + 0.1 * a


@fusedrnn.cell(gates="a n")
def only_later(x, u, h):  # type: ignore[no-untyped-def]
    """Nothing is multiplied before the second product."""
    return torch.tanh(x.n + u.n(torch.tanh(h) * 0.5) + torch.sigmoid(x.a))


STATES = [ZOO["slstm"], ZOO["peephole_lstm"], ZOO["lem"]]  # several, and unit weights
READERS = [gated, staged, ZOO["phased_lstm"]]  # of step inputs


def check_everything(written: WrittenCell, seeds: int) -> None:
    """Layers and modified layers of some sizes, in float64."""
    cells = (cell_of_written(written),)
    with emulated.installed(seed=1, plan=STEPWISE) as emulation:
        before = emulation.fusedrnn_emulation_launches()
        for seed in range(seeds):
            check_against_reference(written, seed)
            drawn = test_modifiers.draw(seed, cells=cells)
            test_modifiers.compare(
                drawn,
                test_modifiers.numbers_of(drawn, test_modifiers.ours(drawn)),
                test_modifiers.numbers_of(drawn, test_modifiers.theirs(drawn)),
            )
        assert emulation.fusedrnn_emulation_launches() > before


@pytest.mark.parametrize("written", [*WRITTEN, *STATES, *READERS, unordered, only_later], ids=str)
def test_layers(written: WrittenCell) -> None:
    check_everything(written, seeds=6)


@pytest.mark.parametrize("seed", range(4))
def test_random_cells(seed: int) -> None:
    check_random(seed)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(4, 100))
def test_many_random_cells(seed: int) -> None:
    check_random(seed)


def check_random(seed: int) -> None:
    check_everything(random_cell(seed), seeds=3)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    check_everything(ZOO[name], seeds=4)


SHAPES = [
    Case(T=3, B=5, I=3, H=7, bidirectional=True),
    Case(T=4, B=6, I=3, H=16, bidirectional=True, packed="sorted"),
]


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("case", cases_of(NAMES, SHAPES), ids=str)
def test_in_other_dtypes(case: Case, dtype: torch.dtype) -> None:
    """As every layer is held to it: twice the error of plain PyTorch at most."""
    with emulated.installed(seed=2, plan=STEPWISE):
        check(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_sixteen_bytes_a_thread(name: str, dtype: torch.dtype) -> None:
    case = Case(cell=name, T=3, B=3, I=3, H=16, bidirectional=True)
    with emulated.installed(seed=3, plan=f"{STEPWISE},units_per_thread=8"):
        check(case, dtype)


STEPPED = (cell_of_written(leaky), cell_of_written(staged))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_step_inputs_in_other_dtypes(dtype: torch.dtype) -> None:
    with emulated.installed(seed=2, plan=STEPWISE):
        for seed in range(8):
            test_modifiers.compare_in(dtype, test_modifiers.draw(seed, cells=STEPPED))


def layouts(dtype: torch.dtype, *sizes: int) -> dict[str, Tensor]:
    """Step inputs of these sizes. Those of the last two may not be read 16 bytes at a time."""
    normal = functools.partial(torch.randn, dtype=dtype)
    T, D, B, K, H = sizes
    odd = normal(T, D, B, K + 1, 1)[..., 1:, :]
    return {
        "as gradients are": normal(sizes),
        "each by itself": normal(K, D, T, B, H).permute(2, 1, 3, 0, 4),
        "one row for all": normal(H).expand(sizes),
        "for all units": normal(T, D, B, K, 1).expand(sizes),
        "one for all": normal(1).expand(sizes),
        "for all units, at odd addresses": odd.expand(sizes),
        "every second unit": normal(T, D, B, K, 2 * H)[..., ::2],
        "at odd addresses": normal(T, D, B, K, H + 1)[..., 1:],
        "one further": normal(T * D * B * K * H + 1)[1:].view(sizes),
    }


def check_layouts(written: WrittenCell, dtype: torch.dtype, variant: str = "plain") -> None:
    """A thread that has one unit and one that has 16 bytes of them compute the same bits."""
    T, B, I, H = 3, 4, 3, 16  # noqa: E741
    cell, sizes = cell_of_written(written), torch.tensor([4, 3, 3])
    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=dtype) / 4 for shape in cell.shapes(I, H).values()] * 2
    layer = layer_of(cell.spec, True, False, True)._replace(modified=True, all_states=True)
    x = torch.randn(10, I, dtype=dtype)
    for name, steps in layouts(dtype, T, 2, B, len(cell.step_inputs), H).items():
        found = []
        for units, given in ((1, steps.contiguous()), (8, steps)):
            operands = Operands(x, sizes, [], weights, Modifiers(step_inputs=given))
            with emulated.installed(
                variant, seed=units, plan=f"{STEPWISE},units_per_thread={units}"
            ):
                output, states, reserve = ops.forward(layer, operands, save=True)
                results = output, *states
                back = ops.backward(layer, operands, results, output, reserve, -1)
            found.append(tensors([*results, *back]))
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs), f"{written} in {dtype}: {name}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("written", [leaky, staged], ids=str)
def test_step_inputs_of_any_strides(written: WrittenCell, dtype: torch.dtype) -> None:
    check_layouts(written, dtype)


@pytest.mark.parametrize("case", cases_of(NAMES, SHAPES[:1]), ids=str)
def test_no_races_and_no_unwritten_memory(case: Case) -> None:
    for seed in (0, 1):
        with emulated.installed("race", seed=seed, plan=STEPWISE):
            check(case, torch.float32)


def test_no_races_of_step_inputs() -> None:
    check_layouts(staged, torch.float32, "race")


def test_what_was_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells that differ in a name of Python's have the same kernels."""
    monkeypatch.setenv("FUSEDRNN_CELL_COMPILE", "1")
    monkeypatch.setenv("FUSEDRNN_CACHE", str(tmp_path))
    compiled: list[bytes] = []

    @emulated.CompileBy
    def compile(source: bytes, names: bytes) -> int | None:
        compiled.append(source)
        return emulated._compile_program("plain", source, names)

    def run(name: str) -> Tensor:
        def step(x, u, h):  # type: ignore[no-untyped-def]
            return torch.tanh(x.a + u.a) * 0.75 + h * 0.125

        step.__name__ = name
        torch.manual_seed(0)
        layer = fusedrnn.Recurrent(fusedrnn.cell(gates="a")(step), 3, 5)
        output: Tensor = layer(torch.randn(4, 2, 3))[0]
        return output

    with emulated.installed(plan=STEPWISE) as emulation:
        emulation.fusedrnn_emulation_compile_by(compile)
        try:
            first = run("first")
            (file,) = tmp_path.glob("*.cuda")
            assert torch.equal(run("second"), first) and len(compiled) == 1
            # What cannot be loaded is compiled again.
            kept = compiling.image
            monkeypatch.setattr(compiling, "image", lambda recipe, make: b"/no/such/library")
            assert torch.equal(run("third"), first) and len(compiled) == 2
            monkeypatch.setattr(compiling, "image", kept)
        finally:
            emulation.fusedrnn_emulation_compile_by(emulated._KEPT["plain"])
    assert file.exists()


# ---- Teams ---------------------------------------------------------------------------------------

TEAMS = ("block", "cluster")
QUICK = [
    (mgu, torch.float32, "cluster"),
    (mgu, torch.float16, "block"),
    (wide, torch.float32, "block"),
    (wide, torch.bfloat16, "cluster"),
]


def is_walked(written: WrittenCell) -> bool:
    return bool(_C.is_walked(written.program))


def walks() -> list[Any]:
    """Cells, dtypes and teams, of which a few are quick."""
    cells = (mgu, wide, *filter(is_walked, ZOO.values()))
    found = []
    for walk in itertools.product(cells, HALF_AND_SINGLE, TEAMS):
        marks = () if walk in QUICK else pytest.mark.thorough
        found.append(pytest.param(*walk, marks=marks, id="-".join(map(str, walk))))
    return found


@pytest.mark.parametrize(("written", "dtype", "team"), walks())
def test_walks(written: WrittenCell, dtype: torch.dtype, team: str) -> None:
    """Layers of random sizes, with and without modifiers."""
    cells = (cell_of_written(written),)
    kinds = [(), test_modifiers.KINDS]
    if written is ZOO["slstm"]:
        kinds.pop()  # it divides by a state, and some random ones are nearly zero
    with emulated.installed(seed=1, plan=f"team={team}"):
        for seed, some in itertools.product(range(8), kinds):
            test_modifiers.compare_in(dtype, test_modifiers.draw(seed, cells=cells, kinds=some))


# As in test_walk.py: packed, several groups and parts, several eights of sequences, launches.
LARGER = [
    (Case(T=4, B=10, I=3, H=24, bidirectional=True, packed="sorted"), "team=cluster"),
    (Case(T=3, B=3, I=2, H=40, bias=False, hx=False), "team=cluster,forward_steps=2"),
    (Case(T=4, B=30, I=2, H=33, packed="sorted"), "team=cluster,rows=16"),
    (Case(T=3, B=9, I=2, H=130, bidirectional=True), "team=cluster,blocks=9"),
]


@pytest.mark.parametrize(("case", "plan"), LARGER, ids=str)
@pytest.mark.parametrize("name", [mgu.name, wide.name])
def test_ways_through_the_walks(name: str, case: Case, plan: str) -> None:
    with emulated.installed(seed=2, plan=plan):
        check(case.of(name), torch.bfloat16 if name == wide.name else torch.float32)


@pytest.mark.parametrize(("written", "dtype", "team"), [QUICK[0], QUICK[2]], ids=str)
def test_walks_without_races(written: WrittenCell, dtype: torch.dtype, team: str) -> None:
    case = Case(cell=written.name, T=4, B=10, I=3, H=24, bidirectional=True, packed="sorted")
    for seed in (0, 1):
        with emulated.installed("race", seed=seed, plan=f"team={team}"):
            check(case, dtype)


def test_one_pass_is_walked_and_one_is_not() -> None:
    """What forward keeps, backward reads, whoever ran it."""
    cell, I, H = cell_of_written(wide), 3, 20  # noqa: E741
    torch.manual_seed(0)
    weights = [torch.randn(shape) / H**0.5 for shape in cell.shapes(I, H, 0).values()] * 2
    x, layer = torch.randn(4, 5, I), (cell.spec, True, False, True)
    plans, found = (STEPWISE, "team=block"), []
    for plan_forward, plan_backward in itertools.product(plans, plans):
        with emulated.installed(plan=plan_forward):
            output, hn, reserve = ops.layer_forward(x, None, None, weights, *layer, True)
        given = (output, hn, x, None, None, weights, output, reserve, *layer, -1)
        with emulated.installed(plan=plan_backward):
            found.append(tensors(ops.layer_backward(*given)))
    for ours in found[1:]:
        for expected, gradient in zip(found[0], ours, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_walk_is_one_launch() -> None:
    launches = []
    for steps in (2, 9):
        case = Case(cell=mgu.name, T=steps, B=9, I=3, H=20, bidirectional=True)
        with emulated.installed(plan="team=cluster") as emulation:
            before = emulation.fusedrnn_emulation_launches()
            case.run(case.module(dtype=torch.float32), case.inputs())
            launches.append(emulation.fusedrnn_emulation_launches() - before)
    assert launches[0] == launches[1]


def plan_of(cell: str, **given: Any) -> fusedrnn.CudaPlan:
    sizes = dict(time=50, batch=8, input_size=64, hidden_size=128, dtype=torch.bfloat16)
    plan = fusedrnn.plan(cell, device="cuda", gpu=fusedrnn.Gpu(), **sizes | given)
    assert isinstance(plan, fusedrnn.CudaPlan)
    return plan


def test_an_lstm_has_the_plan_of_the_lstm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(facts._BY_NAME, "lstm of one's own", cell_of_written(ZOO["lstm"]))
    for hidden in (16, 128, 500, 760, 1000):
        for dtype in (torch.bfloat16, torch.float32):
            given: dict[str, Any] = dict(hidden_size=hidden, dtype=dtype, allow_tf32=True)
            own = plan_of("lstm of one's own", **given)
            ops.override_plan("fixed=0")  # a program has no kernels that were compiled for a team
            compiled = plan_of("lstm", **given)
            ops.override_plan("")
            assert own == compiled


@fusedrnn.cell(gates="a b c d e f g i j")
def nine(x, u, h):  # type: ignore[no-untyped-def]
    sums = [getattr(x, name) + getattr(u, name) for name in "abcdefgij"]
    return torch.tanh(sum(torch.sin(each) for each in sums))


def test_what_no_team_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages, step inputs, more gates than there are registers for."""
    for written in (reset_before, ZOO["phased_lstm"], nine):
        assert not is_walked(written)
        monkeypatch.setitem(facts._BY_NAME, "cell", cell_of_written(written))
        plan = plan_of("cell")
        assert plan.forward.team == plan.backward.team == "stepwise"


@pytest.mark.thorough  # all kernels are compiled once more, for minutes
def test_no_access_out_of_bounds() -> None:
    """AddressSanitizer watches every access of every kernel, in a process of its own."""
    code = """
        import torch, test_written_cuda
        from fusedrnn.testing.parity import check
        from cuda_emulation import backend as emulated
        plan = test_written_cuda.STEPWISE
        for case in test_written_cuda.cases_of(test_written_cuda.NAMES, test_written_cuda.SHAPES):
            with emulated.installed("asan", seed=1, plan=plan):
                check(case, torch.float64)
            with emulated.installed("asan", seed=1, plan=f"{plan},units_per_thread=8"):
                check(case, torch.bfloat16)
        test_written_cuda.check_layouts(test_written_cuda.staged, torch.bfloat16, "asan")
        print("checked")
    """
    assert under_address_sanitizer(code) == "checked\n"


WITH_PROGRAM = ("lstm", "gru", "gru_reset_before", "rnn_relu")


@pytest.mark.parametrize(
    ("cell", "dtype", "plan"),
    [
        *itertools.product(WITH_PROGRAM, [torch.float32], [STEPWISE]),
        ("lstm", torch.float64, STEPWISE),
        ("lstm", torch.float32, "team=cluster"),
        ("gru", torch.float32, "team=block"),
    ],
    ids=str,
)
def test_programs_of_compiled_cells(cell: str, dtype: torch.dtype, plan: str) -> None:
    """The same operations, but for which of two products is rounded before they are added."""
    facts = cell_named(cell)
    for T, B, I, H, P, both in ((3, 2, 4, 5, 0, False), (2, 5, 3, 20, 7, True)):  # noqa: E741
        if P and not facts.projects:
            P = 0
        torch.manual_seed(0)
        shapes = [*facts.shapes(I, H, P).values()] * (1 + both)
        weights = [torch.randn(shape, dtype=dtype) / H**0.5 for shape in shapes]
        x = torch.randn(T, B, I, dtype=dtype)
        found: list[list[Tensor]] = []
        for spec in (cell, program_of(cell, P > 0)):
            layer = (spec, True, P > 0, both)
            with emulated.installed(plan=plan):
                forward = ops.layer_forward(x, None, None, weights, *layer, True)
                output, hn, reserve = forward
                needs = (1 << 1 + len(hn) + len(weights)) - 1
                backward = ops.layer_backward(
                    output, hn, x, None, None, weights, output, reserve, *layer, needs
                )
            found.append(tensors([*forward, *backward]))
        for ours, theirs in zip(*found, strict=True):
            bound = 8 * torch.finfo(dtype).eps * float(ours.abs().max()) if ours.numel() else 0
            torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


def test_two_threads_ask_at_once() -> None:
    """The kernels are made once, for both."""
    other = fusedrnn.cell(gates="n")(lambda x, u, h: torch.tanh(x.n + u.n) * 0.875 + h * 0.125)
    module = fusedrnn.Recurrent(other, 3, 4)
    x, found = torch.randn(2, 1, 3), []
    expected = module(x)[0]
    with emulated.installed(plan=STEPWISE):
        threads = [threading.Thread(target=lambda: found.append(module(x)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for output in found:
        torch.testing.assert_close(output, expected)
    assert len(found) == 2


def test_kernels_are_not_made_in_a_capture() -> None:
    """A graph may be captured once they are there."""
    other = fusedrnn.cell(gates="n")(lambda x, u, h: torch.tanh(x.n + u.n) * 0.75 + h * 0.25)
    module, x = fusedrnn.Recurrent(other, 3, 4), torch.randn(2, 1, 3)
    expected = module(x)[0]
    with emulated.installed(plan=STEPWISE, options="capturing=1"):
        with pytest.raises(RuntimeError, match="call the layer once before the capture"):
            module(x)
    with emulated.installed(plan=STEPWISE):
        torch.testing.assert_close(module(x)[0], expected)
    with emulated.installed(plan=STEPWISE, options="capturing=1"):
        torch.testing.assert_close(module(x)[0], expected)


def test_what_cannot_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = fusedrnn.cell(gates="n")(lambda x, u, h: torch.tanh(x.n + u.n) * 0.5 + h * 0.5)
    module, x = fusedrnn.Recurrent(other, 3, 4), torch.randn(2, 1, 3)
    monkeypatch.setattr(emulated, "program_kernels", lambda *_: "/nowhere/program.so")
    with emulated.installed(plan=STEPWISE):
        for _ in range(2):  # remembered
            with pytest.raises(RuntimeError, match="^cell: no CUDA kernels could be made of "):
                module(x)


def test_why_it_is_slow_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels cannot be made, PyTorch's functions run the cell, and a warning says why."""
    layer = layer_of(cell_of_written(mgu).spec, False, False, False)
    on_cuda: Any = SimpleNamespace(
        is_cpu=False, is_cuda=True, dtype=torch.float32, device=torch.device("cuda")
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for name, value in (
        ("WITHOUT_PROGRAMS", "no NVRTC was found"),
        ("make_program", lambda text, dtype, device: "NVRTC: it failed"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ops, "WITHOUT_PROGRAMS", None)
            patch.setattr(ops, name, value)
            with pytest.warns(RuntimeWarning, match="mgu step by step on CUDA.*NVRTC"):
                assert runs_elsewhere(layer, on_cuda, captured=False)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert runs_elsewhere(layer, on_cuda, captured=False)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "WITHOUT_PROGRAMS", None)
        patch.setattr(ops, "make_program", lambda text, dtype, device: None)
        assert not runs_elsewhere(layer, on_cuda, captured=False)


def test_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CUDA: one kernel a step and product, or a team's walk" in mgu.explain()
    assert "CUDA: one kernel a step and product, which NVRTC" in reset_before.explain()
    monkeypatch.setattr(ops, "WITHOUT_CUDA", None)
    monkeypatch.setattr(ops, "WITHOUT_PROGRAMS", "no NVRTC was found")
    assert "CUDA: PyTorch's functions, step by step: no NVRTC was found" in mgu.explain()


# ---- NVRTC ---------------------------------------------------------------------------------------

ARCHITECTURES = (75, 80, 90, 100)
SPILLED = re.compile(r"(\d+) bytes spill stores")


@pytest.fixture(scope="module")
def nvrtc() -> Iterator[ctypes.CDLL]:
    """The library, which has found an NVRTC: that of a package, if there is no other."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for each in folders for path in Path(each).glob("*/lib/libnvrtc.so.1?")]
    library = emulated.load()
    with pytest.MonkeyPatch.context() as patch:
        if found and "FUSEDRNN_NVRTC" not in os.environ:
            patch.setenv("FUSEDRNN_NVRTC", str(found[-1]))
        if why := library.fusedrnn_emulation_without_nvrtc().decode():
            pytest.skip(why)
        yield library


def compiled_by(nvrtc: ctypes.CDLL, text: str, dtype: torch.dtype, architecture: int) -> str:
    """The log for kernels that NVRTC could compile."""
    size = ctypes.c_uint64()
    log = nvrtc.fusedrnn_emulation_nvrtc(
        text.encode(), DTYPES.index(dtype), architecture, ctypes.byref(size)
    ).decode()
    assert size.value > 1000, log
    return str(log)


@pytest.mark.parametrize("written", [*WRITTEN, staged], ids=str)
def test_nvrtc_compiles_for_every_architecture(nvrtc: ctypes.CDLL, written: WrittenCell) -> None:
    """Each dtype for one of them."""
    for dtype, architecture in zip(DTYPES, ARCHITECTURES, strict=True):
        check_compiled(nvrtc, written, dtype, architecture)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_nvrtc_compiles_the_zoo(nvrtc: ctypes.CDLL, name: str, dtype: torch.dtype) -> None:
    turn = [*ZOO].index(name) + DTYPES.index(dtype)
    check_compiled(nvrtc, ZOO[name], dtype, ARCHITECTURES[turn % len(ARCHITECTURES)])


def check_compiled(
    nvrtc: ctypes.CDLL, written: WrittenCell, dtype: torch.dtype, architecture: int
) -> None:
    log = compiled_by(nvrtc, written.program, dtype, architecture)
    kernels = log.count("Compiling entry function")
    assert kernels == 4 * written.program.count("\nstage\n"), log
    # Eight units of a large cell in half precision are more than fit; a few bytes wait in L1.
    assert sum(map(int, SPILLED.findall(log))) <= 512, log


# The numbers of csrc/cuda/team/walk.h, and architectures of which each is tried for some.
ARITHMETICS = {"float32": 0, "tf32": 1, "bfloat16": 2, "float16": 3}
WALKED_ON = {"float32": 75, "tf32": 80, "bfloat16": 90, "float16": 100}


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("written", [mgu, wide], ids=str)
def test_nvrtc_compiles_walks(nvrtc: ctypes.CDLL, written: WrittenCell, arithmetic: str) -> None:
    check_walks(nvrtc, written, arithmetic)


@pytest.mark.thorough
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("name", [name for name in ZOO if is_walked(ZOO[name])])
def test_nvrtc_compiles_the_walks_of_the_zoo(
    nvrtc: ctypes.CDLL, name: str, arithmetic: str
) -> None:
    check_walks(nvrtc, ZOO[name], arithmetic)


def check_walks(nvrtc: ctypes.CDLL, written: WrittenCell, arithmetic: str) -> None:
    """Both passes compile, and hardly a register of a thread has to wait in memory."""
    architecture = WALKED_ON[arithmetic]
    team = 2 if architecture >= 90 else 1
    size = ctypes.c_uint64()
    for direction in (0, 1):
        log = nvrtc.fusedrnn_emulation_nvrtc_walk(
            written.program.encode(), direction, ARITHMETICS[arithmetic], team, architecture,
            ctypes.byref(size),
        ).decode()  # fmt: skip
        assert size.value > 1000 and log.count("Compiling entry function") == 1, log
        assert sum(map(int, SPILLED.findall(log))) <= (0 if len(written.gates) < 5 else 32), log


def test_nvrtc_knows_no_such_device(nvrtc: ctypes.CDLL) -> None:
    """A device that is newer than NVRTC gets PTX; one that is too old is told of."""
    size = ctypes.c_uint64()
    call = nvrtc.fusedrnn_emulation_nvrtc
    text = mgu.program.encode()
    call(text, 1, 999, ctypes.byref(size))
    assert size.value > 1000
    log = call(text, 1, 30, ctypes.byref(size)).decode()
    assert size.value == 0 and "compute capability 3.0" in log


def test_nvrtc_tells_what_is_wrong(nvrtc: ctypes.CDLL) -> None:
    size = ctypes.c_uint64()
    log = nvrtc.fusedrnn_emulation_nvrtc(b"cell 1 a\n", 1, 90, ctypes.byref(size)).decode()
    assert size.value == 0 and "ends too early" in log
