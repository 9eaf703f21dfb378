"""Ways are measured on the calls themselves, within bounds, and the fastest stays.

The device is emulated, and its time counts launches (emulated_gpu.py): torch's own path is the
fastest unless a test plants seconds there, a walk comes next, and steps one by one are slow.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import written_cells
from cuda_emulation import backend as emulated
from emulated_gpu import KIND, LAUNCH, EmulatedGpu, busy, but, checked_by
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fusedrnn
from fusedrnn import _C, functional
from fusedrnn._engine import record, torch_network, tuning, ways
from fusedrnn._engine.layer import Operands
from fusedrnn._engine.layer_shapes import LayerShape, shapes_of_network
from fusedrnn._engine.record import Record
from fusedrnn._engine.torch_private import DispatchMode
from fusedrnn._engine.tuning import OURS, ROUNDS, TORCH, Tuner
from fusedrnn._engine.ways import Way
from fusedrnn.command_line import main

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=emulated.missing())

T, B, I, H = 8, 2, 5, 20  # noqa: E741


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nothing was said."""
    monkeypatch.setenv("FUSEDRNN_CACHE", str(tmp_path / "cache"))
    for name in ("FUSEDRNN_CHECK", "FUSEDRNN_TUNE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(record, "_said", [])
    torch.set_num_threads(1)  # the tests' own: these tensors are small
    return tmp_path / "cache"


@contextlib.contextmanager
def tuned_by(
    gpu: EmulatedGpu, allowance: float = 1e9, rounds: int = 1, **options: Any
) -> Iterator[Tuner]:
    """Networks on the emulated device are run by a tuner, which may measure at once."""
    with checked_by(gpu, **options) as of, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "ROUNDS", rounds)
        tuner = Tuner(of)
        tuner.allowance = allowance
        patch.setitem(tuning.TUNERS, "cpu", tuner)
        yield tuner


@pytest.fixture
def slow_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EmulatedGpu]]:
    """The devices of this list are planted seconds in torch's path."""
    gpus: list[EmulatedGpu] = []
    original = torch_network._call

    def slow(*given: Any, **options: Any) -> Any:
        for gpu in gpus:
            gpu.extra += 1.0
        return original(*given, **options)

    monkeypatch.setattr(torch_network, "_call", slow)
    return gpus


def network(cell: str = "LSTM", **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(fusedrnn, cell)(I, H, **options)


def data(time: int = T, batch: int = B, width: int = I) -> Tensor:
    return torch.randn(time, batch, width, generator=torch.Generator().manual_seed(1))


def launches(module: nn.Module, x: Tensor) -> int:
    before = int(emulated.load().fusedrnn_emulation_launches())
    with torch.no_grad():
        module(x)
    return int(emulated.load().fusedrnn_emulation_launches()) - before


def networks(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = Record(KIND).entries["networks"]
    return found


# ---- What is chosen -----------------------------------------------------------------------------


def test_torch_s_path_is_taken_where_it_is_fastest(folder: Path) -> None:
    module, x = network(), data()
    with torch.no_grad():
        expected, _ = nn.LSTM.forward(theirs(module), x)
        with tuned_by(EmulatedGpu()):
            found = [module(x)[0] for _ in range(2)]
        with tuned_by(EmulatedGpu()) as tuner:  # another process reads it
            assert launches(module, x) == 0 and tuner.spent == 0
    assert all(torch.equal(each, expected) for each in found)
    ((name, entry),) = networks(folder).items()
    assert name == "lstm T8 B8 I8 H20 float32 inference" and entry["way"] == TORCH
    assert set(entry["seconds"]) == {OURS, TORCH, "stepwise", "block", "cluster"}
    assert entry["seconds"][TORCH] < entry["seconds"]["block"] < entry["seconds"]["stepwise"]


def theirs(module: Any) -> nn.LSTM:
    """torch.nn's with the same weights."""
    made = nn.LSTM(I, H, module.num_layers, bidirectional=module.bidirectional)
    made.load_state_dict(module.state_dict())
    return made


@pytest.mark.parametrize(
    ("slow", "fastest"),
    [(("block",), "cluster"), (("block", "cluster"), "stepwise"), (("cluster",), "block")],
)
def test_the_fastest_team_is_taken(
    slow: tuple[str, ...], fastest: str, slow_torch: list[EmulatedGpu]
) -> None:
    """Planted: some teams are slow, whatever the model says of them, and so is torch's path."""
    module, x = network(), data()
    gpu = EmulatedGpu()
    slow_torch.append(gpu)
    gpu.slow = dict.fromkeys(slow, 1.0)
    with tuned_by(gpu) as tuner:
        launches(module, x)
        assert (launches(module, x) >= T) == (fastest == "stepwise")
        found = tuner.ways.record(0).entries
    ((name, team),) = found["teams"].items()
    assert name == "lstm T8 B8 I8 H20 float32 inference forward" and team["team"] == fastest
    assert {name for name, seconds in team["seconds"].items() if seconds > 0.9} == set(slow)
    ((_, entry),) = found["networks"].items()
    assert entry["way"] == OURS and entry["seconds"][TORCH] > 0.9


def test_each_layer_s_shape_and_pass_has_a_team_of_its_own(slow_torch: list[EmulatedGpu]) -> None:
    module, x = network(num_layers=2, bidirectional=True), data()
    gpu = EmulatedGpu()
    slow_torch.append(gpu)
    with tuned_by(gpu) as tuner:
        module(x)
        found = tuner.ways.record(0).entries
    names = set(found["teams"])
    assert names == {
        f"lstm T8 B8 I{width} H20 dirs2 float32 training {step}"
        for width in (8, 64)  # of the layers
        for step in ("forward", "backward")
    }
    ((name, entry),) = found["networks"].items()
    assert name == "lstm T8 B8 I8 H20 dirs2 float32 training layers2" and entry["way"] == OURS


def test_a_way_that_was_struck_off_is_no_candidate(slow_torch: list[EmulatedGpu]) -> None:
    struck = Way("lstm", "block", "float32", "forward")
    gpu = EmulatedGpu(but(struck, {"result": "disagreed", "detail": ""}))
    slow_torch.append(gpu)
    with tuned_by(gpu), pytest.warns(RuntimeWarning, match="disagreed"), torch.no_grad():
        network()(data())
    assert "block" not in gpu.taken and "cluster" in gpu.taken


def test_tf32_is_float32_where_there_is_none() -> None:
    """On an older GPU, whatever torch allows."""
    struck = Way("lstm", "block", "float32", "forward")
    gpu = EmulatedGpu(but(struck, {"result": "disagreed", "detail": ""}))
    shape = LayerShape("lstm", T, B, I, H, 0, "float32", True, 1, False, False)
    with tuned_by(gpu) as tuner, pytest.warns(RuntimeWarning, match="disagreed"):
        tuner.ways.check(0)
        choice = tuning.Choice("a network", "lstm", [shape])
        assert tuner._teams(0, choice, "forward") == ["stepwise", "block", "cluster"]
        old = asdict(fusedrnn.Gpu((7, 5), 40, 65536))
        assert shape.teams("lstm", old, "forward") == ["stepwise", "block"]
        gpu.facts = lambda index: old  # type: ignore[method-assign]
        assert tuner._teams(0, choice, "forward") == []  # one is left


def test_one_candidate_is_not_measured(folder: Path) -> None:
    gpu = EmulatedGpu()
    with tuned_by(gpu) as tuner, torch.no_grad():
        module = network("GRU", reset_after=False)  # only stepwise, and torch has no such cell
        module(data())
        assert tuner.spent == 0
    assert networks(folder) == {}


def test_a_written_cell_s_teams_are_read_when_it_is_first_met() -> None:
    layer = functional.layer_of(written_cells.mgu.program, True, False, False)
    weights = [torch.randn(shape) for shape in layer.cell.shapes(I, H).values()]
    (shape,) = shapes_of_network(layer, 1, Operands(data(), None, (), weights), False)
    with tuned_by(EmulatedGpu()) as tuner:
        facts = tuner.ways.gpu.facts(0)
        assert shape.teams(layer.cell.spec, facts, "forward") == ["stepwise", "block", "cluster"]
        entry = {"team": "cluster", "shape": shape.as_dict(), "step": "forward"}
        tuner.ways.record(0).add("teams", {"an entry": entry})
        tuner.ways.check(0)
        assert "cluster" not in tuner.ways.gpu.taken
        tuner.ways.check(0, layer.cell.spec)
        assert tuner.ways.gpu.taken[-1] == "cluster"


# ---- What stays ---------------------------------------------------------------------------------


def test_the_same_record_gives_the_same_bits(folder: Path, slow_torch: list[EmulatedGpu]) -> None:
    module, x = network(), data()
    gpu = EmulatedGpu()
    slow_torch.append(gpu)
    gpu.slow = {"block": 1.0, "cluster": 1.0}
    with tuned_by(gpu), torch.no_grad():
        module(x)
        first = module(x)[0]
    content = next(folder.glob("gpu-*.json")).read_bytes()
    other = EmulatedGpu()  # where another way would be faster
    with tuned_by(other) as tuner, torch.no_grad():
        assert torch.equal(module(x)[0], first)
        assert tuner.spent == 0
    assert next(folder.glob("gpu-*.json")).read_bytes() == content


def test_shapes_of_a_class_share_what_was_measured() -> None:
    assert _C.size_class(1, 1, 1) == (1, 8, 1)
    assert _C.size_class(17, 9, 100) == (32, 16, 128)
    assert _C.size_class(1024, 64, 1023) == (1024, 64, 1024)
    assert _C.size_class(1025, 65, 1025) == (2048, 128, 2048)
    with tuned_by(EmulatedGpu()) as tuner, torch.no_grad():
        module = network()
        module(data())
        spent = tuner.spent
        assert spent > 0
        module(data(time=5, batch=8))
        assert tuner.spent == spent
        module(data(time=9))
        assert tuner.spent > spent


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"way": "best", "seconds": {"block": 1.0}},
        {"way": OURS},
        {"way": TORCH, "seconds": {}},
        {"way": TORCH, "seconds": {"block": "fast"}},
    ],
)
def test_an_entry_that_makes_no_sense_is_ignored(entry: dict[str, Any]) -> None:
    of = Record(KIND)
    of.add("networks", {"lstm T8 B8 I8 H20 float32 inference": entry})
    of.add("teams", {"x": {"team": "block"}, "y": {"shape": 3}})
    with tuned_by(EmulatedGpu()) as tuner, torch.no_grad():
        output, _ = network()(data())
        assert output.isfinite().all() and tuner.spent > 0


# ---- How much is measured -----------------------------------------------------------------------


def test_hopeless_candidates_are_measured_once(slow_torch: list[EmulatedGpu]) -> None:
    gpu = EmulatedGpu()
    slow_torch.append(gpu)
    gpu.slow = {"stepwise": 1.0}
    with tuned_by(gpu, rounds=ROUNDS), torch.no_grad():
        network()(data())
    assert gpu.taken.count("stepwise") == 1
    assert gpu.taken.count("block") == ROUNDS + 1  # and then chosen


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some candidates at a time, as the calls themselves take time; then it is decided."""
    monkeypatch.setattr(tuning, "SHARE", 0.5)
    gpu = EmulatedGpu()
    module, x = network(), data()
    allowance = 0.0005
    with tuned_by(gpu, allowance) as tuner, torch.no_grad():
        spent, calls = [], 0
        while not tuner.ways.record(0).entries["networks"]:
            module(x)
            calls += 1
            longest = 2 * LAUNCH * 2 * T  # of one measurement, stepwise
            assert tuner.spent <= allowance + 0.5 * tuner.worked + longest
            spent.append(tuner.spent)
            assert calls < 10_000
    assert calls > 3 and len(set(spent)) > 1


def test_another_shape_waits_until_there_is_time() -> None:
    with tuned_by(EmulatedGpu(), 0.0) as tuner, torch.no_grad():
        tuner.spent = 1.0
        network()(data())
        assert tuner.spent == 1.0 and not tuner.ways.record(0).entries["networks"]


def test_another_gpu_of_the_kind_takes_what_the_first_has_found(
    slow_torch: list[EmulatedGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it had begun to measure."""
    module, x = network(), data()
    gpu = EmulatedGpu()
    slow_torch.append(gpu)
    here = [0]
    monkeypatch.setattr(gpu, "index_of", lambda tensor: here[0])
    with tuned_by(gpu, 0.0) as tuner, torch.no_grad():
        for here[0] in (1, 0):  # one candidate each
            module(x)
        tuner.allowance = 1e9
        module(x)
        spent, chosen = tuner.spent, len(gpu.taken)
        here[0] = 1
        module(x)
        assert tuner.spent == spent and {*gpu.taken[chosen:]} == {"block"}
        assert {choice.way for choice in tuner._by_name.values()} == {OURS}


def test_threads_measure_one_at_a_time() -> None:
    module, x = network(), data()
    gpu = EmulatedGpu()
    results: list[Tensor] = []

    def call() -> None:
        with torch.no_grad():
            results.append(module(x)[0])

    with tuned_by(gpu):
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 4
    for result in results:
        torch.testing.assert_close(result, results[0])
    assert gpu.taken.count("stepwise") == 1


# ---- When nothing is measured -------------------------------------------------------------------


def not_measured(run: Any, **options: Any) -> None:
    gpu = EmulatedGpu()
    gpu.capturing = options.pop("capturing", False)
    with tuned_by(gpu, **options) as tuner:
        run()
        assert tuner.spent == 0


def forward() -> None:
    with torch.no_grad():
        network()(data())


def training(module: nn.Module | None = None) -> None:
    module = network() if module is None else module
    output, _ = module(data())
    output.sum().backward()


def test_nothing_is_measured_in_a_capture() -> None:
    not_measured(forward, capturing=True)


def test_nothing_is_measured_under_an_override() -> None:
    not_measured(forward, plan="team=block")


def test_nothing_is_measured_where_ways_could_not_be_checked(folder: Path) -> None:
    """Stepwise kernels would be measured in the place of teams, and a record would say so."""
    gpu = EmulatedGpu(busy)
    with pytest.warns(RuntimeWarning, match="busy"), tuned_by(gpu) as tuner:
        forward()
        assert tuner.spent == 0
    assert networks(folder) == {}


def test_a_first_call_that_failed_leaves_nothing_half_done() -> None:
    with tuned_by(EmulatedGpu(busy)), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="busy"):
            forward()
        forward()


def test_nothing_is_measured_and_nothing_of_torch_s_taken_without_cudnn() -> None:
    module, x = network(), data()
    with tuned_by(EmulatedGpu()):
        forward()
        assert launches(module, x) == 0
        with torch.backends.cudnn.flags(enabled=False):
            assert launches(module, x) > 0
            not_measured(lambda: network("GRU")(x))


def test_nothing_is_measured_and_nothing_of_torch_s_taken_where_a_mode_sees_each_op() -> None:
    """It would count what is measured, or have it in its graph."""
    module, x = network(), data()

    class Count(DispatchMode):
        seen: list[str] = []

        def __torch_dispatch__(self, op: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
            self.seen.append(str(op))
            return op(*args, **kwargs or {})

    with tuned_by(EmulatedGpu()):
        forward()
        assert launches(module, x) == 0
        with Count():
            assert launches(module, x) > 0
            not_measured(lambda: network("GRU")(x))
    assert Count.seen.count("fusedrnn.layer_forward.default") == 2


@pytest.mark.parametrize("run", [forward, training])
def test_nothing_is_measured_if_that_is_off(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_TUNE", "0")
    not_measured(run)


def test_a_variable_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_TUNE", "yes")
    with pytest.raises(ValueError, match="FUSEDRNN_TUNE: expected 0 or 1 or nothing, got 'yes'"):
        not_measured(forward)


def test_nothing_is_measured_and_nothing_of_torch_s_taken_if_algorithms_are_deterministic() -> None:
    module, x = network(), data()
    with tuned_by(EmulatedGpu()):
        forward()  # torch's path is the fastest
        assert launches(module, x) == 0
        torch.set_deterministic_debug_mode("error")  # the same, without importing a compiler
        try:
            assert launches(module, x) > 0
            not_measured(lambda: network("GRU")(x))
        finally:
            torch.set_deterministic_debug_mode("default")


def test_nothing_is_measured_in_transforms() -> None:
    module, x = network(), data()

    def total(x: Tensor) -> Tensor:
        result: Tensor = module(x)[0].sum()
        return result

    not_measured(lambda: torch.func.grad(total)(x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        not_measured(lambda: module(dual))


def test_nothing_is_measured_in_a_trace() -> None:
    not_measured(lambda: torch.jit.trace(network(), data(), check_trace=False))


def test_hooks_on_saved_tensors_see_our_kernels_only() -> None:
    """As of a checkpoint, which counts what is kept, and expects as much a second time."""
    module = network()

    def hooked() -> int:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            training(module)
        return len(kept)

    not_measured(hooked)
    with tuned_by(EmulatedGpu(), 0.0):
        undecided = hooked()
    with tuned_by(EmulatedGpu()) as tuner:
        training(module)
        ((_, entry),) = tuner.ways.record(0).entries["networks"].items()
        assert entry["way"] == TORCH and hooked() == undecided


def test_nothing_is_measured_in_a_backward_pass() -> None:
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            forward()
            return grad

    x = torch.zeros(1, requires_grad=True)
    not_measured(lambda: Again.apply(x).backward())  # type: ignore[no-untyped-call]


@pytest.mark.thorough  # the first checkpoint imports a compiler
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_computes_the_same_again(reentrant: bool) -> None:
    module, x = network(), data().requires_grad_()
    with tuned_by(EmulatedGpu()):
        for _ in range(2):
            output, _ = checkpoint(module, x, use_reentrant=reentrant)
            output.sum().backward()
            training(module)


@pytest.mark.thorough  # it imports the compiler
def test_nothing_is_measured_in_a_graph_of_a_compiler() -> None:
    module = network()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    not_measured(lambda: training(compiled))


# ---- That nobody notices ------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_nothing_of_the_caller_s_changes(dropout: float) -> None:
    module, x = network(num_layers=2, dropout=dropout), data().requires_grad_()
    hx = tuple(torch.zeros(2, B, H) for _ in range(2))
    versions = [t._version for t in (x, *hx, *module.parameters())]
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    with tuned_by(EmulatedGpu()) as tuner:
        tuner.ways.check(0)
        output, _ = module(x, hx)
        assert tuner.spent > 0
        if not dropout:
            assert torch.equal(torch.random.get_rng_state(), state)
    assert all(t.grad is None for t in (x, *module.parameters()))
    assert [t._version for t in (x, *hx, *module.parameters())] == versions
    torch.random.set_rng_state(state)
    with emulated.installed():
        expected, _ = module(x, hx)  # the same masks
    torch.testing.assert_close(output, expected)
    output.sum().backward()


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_torch_s_path_gives_the_same(cell: str, packed: bool) -> None:
    """Output, states, gradients and second derivatives, in float64; with states and without."""
    module = network(cell, num_layers=2, bidirectional=True).double()
    x: Any = data().double().requires_grad_()
    hx = torch.randn(4, B, H, dtype=torch.float64).requires_grad_()
    given = (hx, hx) if cell == "LSTM" else hx
    lengths = torch.tensor([T, 3])

    def numbers(states: Any) -> list[Tensor]:
        sequence = nn.utils.rnn.pack_padded_sequence(x, lengths) if packed else x
        output, final = module(sequence, states)
        y = output.data if packed else output
        total = y.square().sum() + sum(each.sum() for each in final)
        leaves = [x, *module.parameters(), *([] if states is None else [hx])]
        first = torch.autograd.grad(total, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        return [y, *final, *first, *second]

    with tuned_by(EmulatedGpu()) as tuner:
        for states in (None, given):
            found = numbers(states)
            ways = {e["way"] for e in tuner.ways.record(0).entries["networks"].values()}
            assert ways == {TORCH}
            with tuned_by(EmulatedGpu(), plan="team=stepwise"):
                expected = numbers(states)
            for ours, other in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-11)


def test_a_graph_of_torch_s_path_is_used_once_unless_it_is_kept() -> None:
    module, x = network(), data()
    with tuned_by(EmulatedGpu()):
        total = module(x)[0].sum()
        total.backward(retain_graph=True)
        first = [parameter.grad.clone() for parameter in module.parameters()]
        total.backward()
        for parameter, grad in zip(module.parameters(), first, strict=True):
            torch.testing.assert_close(parameter.grad, 2 * grad)
        with pytest.raises(RuntimeError, match="a second time"):
            total.backward()


def test_weights_that_change_before_backward_are_refused() -> None:
    module, x = network(), data()
    with tuned_by(EmulatedGpu()):
        total = module(x)[0].sum()
        with torch.no_grad():
            module.weight_hh_l0.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


def test_what_torch_cannot_serve() -> None:
    lstm = functional.layer_of("lstm", True, False, False)
    serves = torch_network.can_serve
    assert serves(lstm, 0.0, True)
    assert not serves(lstm, 0.5, True)  # its masks would be others
    assert not serves(lstm._replace(checkpoint=3), 0.0, True)
    assert serves(lstm._replace(checkpoint=3), 0.0, False)
    assert not serves(lstm._replace(modified=True), 0.0, False)
    assert not serves(functional.layer_of("gru_reset_before", True, False, False), 0.0, False)
    mgu = functional.layer_of(written_cells.mgu.program, True, False, False)
    assert not serves(mgu, 0.0, False)


def test_resets_are_for_our_kernels() -> None:
    reset = torch.zeros(T, B, dtype=torch.bool)
    not_measured(lambda: network()(data(), reset=reset))


def test_a_candidate_that_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> Any:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(torch_network, "_call", refuse)
    with tuned_by(EmulatedGpu()) as tuner:
        training()
        ((_, entry),) = tuner.ways.record(0).entries["networks"].items()
    assert entry["way"] == OURS and TORCH not in entry["seconds"]
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), True),  # the next time there may be some
    ],
    ids=["a limit", "memory"],
)
def test_a_limit_of_torch_s_path_is_none_of_ours(error: RuntimeError, stays: bool) -> None:
    """It goes on to serve the other shapes of that class."""
    module, x, other = network(), data(), data(time=T - 1)

    def refuse(*given: Any, **options: Any) -> Any:
        raise error

    with tuned_by(EmulatedGpu()):
        forward()
        assert launches(module, x) == launches(module, other) == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_network, "_call", refuse)
            assert launches(module, x) > 0
        assert (launches(module, x) == 0) == stays
        assert launches(module, other) == 0


def test_states_that_cudnn_would_refuse() -> None:
    module = network("GRU")
    scattered = torch.randn(1, H, B).transpose(1, 2)
    expected = module(data(), scattered)[0]
    original = torch._VF.gru

    def strict(input: Tensor, hx: Tensor, *rest: Any) -> Any:
        assert hx.is_contiguous()
        return original(input, hx, *rest)

    with tuned_by(EmulatedGpu()) as tuner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._VF, "gru", strict)
        torch.testing.assert_close(module(data(), scattered)[0], expected)
        ((_, entry),) = tuner.ways.record(0).entries["networks"].items()
        assert entry["way"] == TORCH


def test_an_error_of_ours_reaches_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(functional, "_by_kernels", fail)
    with tuned_by(EmulatedGpu()), pytest.raises(RuntimeError, match="out of memory"):
        network()(data())


def test_scattered_weights_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of functions: torch's warning on them is for those who made the module."""
    weights = [weight.detach().clone() for weight in network().parameters()]
    original = torch._VF.lstm

    def warn(*given: Any) -> Any:  # as cuDNN's does
        warnings.warn("RNN module weights are not part of single contiguous chunk", stacklevel=2)
        return original(*given)

    monkeypatch.setattr(torch._VF, "lstm", warn)
    with tuned_by(EmulatedGpu()), warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.lstm(data(), None, weights)
        filters = [*warnings.filters]
        functional.lstm(data(), None, weights)
        assert warnings.filters == filters
        with pytest.raises(UserWarning, match="not part of single"):  # others still hear it
            torch._VF.lstm(data(), (), weights, True, 1, 0.0, False, False, False)


def test_our_kernels_run_for_whoever_measures_them() -> None:
    module, x = network(), data()
    with tuned_by(EmulatedGpu()):
        forward()
        assert launches(module, x) == 0
        with tuning.untuned():
            assert launches(module, x) > 0
        assert launches(module, x) == 0


def test_nothing_is_asked_without_a_gpu() -> None:
    assert "cpu" not in tuning.TUNERS


# ---- What is shown, and ahead of time -----------------------------------------------------------

SIZES = dict(time=T, batch=B, input_size=I, hidden_size=H)
FLAGS = [f"--{name.replace('_', '-')}={size}" for name, size in SIZES.items()]


def test_a_plan_shows_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, slow_torch: list[EmulatedGpu]
) -> None:
    asked: dict[str, Any] = SIZES | {"device": "cuda", "allow_tf32": False}
    before = fusedrnn.plan("lstm", **asked)
    assert before.measured is None and before.runs == "fusedrnn"
    gpu = EmulatedGpu()
    gpu.slow = {"block": 1.0, "cluster": 1.0}
    slow_torch.append(gpu)
    with tuned_by(gpu) as tuner:
        monkeypatch.setitem(ways.WAYS, "cuda", tuner.ways)
        forward()
        slow_torch.clear()
        training()
        plan = fusedrnn.plan("lstm", **asked)
        trained = fusedrnn.plan("lstm", **asked, training=True)
    assert plan.forward.team == "stepwise" != before.forward.team
    assert plan.runs == "fusedrnn" and trained.runs == "torch.nn"
    assert set(plan.measured) == {"fusedrnn", "torch.nn", "stepwise", "block", "cluster"}
    assert trained.measured["torch.nn"] < 0.5 < trained.measured["block"]
    assert fusedrnn.plan("lstm", **asked, gpu=fusedrnn.Gpu()) == before


@pytest.fixture
def tune_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Any]:
    """Runs `fusedrnn tune` on the emulated device; its document."""

    def call(*arguments: str | Path, status: int = 0) -> Any:
        assert main(["tune", "--device=cpu", "--json", *map(str, arguments)]) == status
        return json.loads(capsys.readouterr().out)

    with tuned_by(EmulatedGpu(), 0.0):
        yield call


def test_tune_times_ahead_what_later_processes_read(tune_command: Any, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    found = tune_command(*FLAGS, "--cell=lstm", "--output", file)
    assert [row["network"] for row in found["rows"]] == [
        "lstm T8 B8 I8 H20 float32 inference", "lstm T8 B8 I8 H20 float32 training"
    ]  # fmt: skip
    assert {row["way"] for row in found["rows"]} == {TORCH}
    assert file.read_bytes() == Path(found["file"]).read_bytes()
    with tuned_by(EmulatedGpu()) as tuner:
        forward()
        training()
        assert tuner.spent == 0


def test_a_record_can_be_shipped(
    tune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "record.json"
    tune_command(*FLAGS, "--cell=lstm", "--output", file)
    monkeypatch.setenv("FUSEDRNN_CACHE", str(tmp_path / "another machine"))
    with tuned_by(EmulatedGpu()) as tuner:
        found = tune_command("--read", file)
        assert len(found["rows"]) == 2
        forward()
        assert tuner.spent == 0


def make() -> tuple[nn.Module, Tensor]:
    """A model and its input."""
    return nn.Sequential(fusedrnn.GRU(I, H)).eval(), data()


def make_nothing() -> None:
    """No model."""


def test_tune_of_a_model(tune_command: Any) -> None:
    found = tune_command("test_tuning:make")
    assert [row["network"] for row in found["rows"]] == ["gru T8 B8 I8 H20 float32 inference"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test_tuning:none"], "argument MODEL: test_tuning:none: .*has no attribute 'none'"),
        (["nowhere:make"], "argument MODEL: nowhere:make: No module named 'nowhere'"),
        (["test_tuning:make_nothing"], "expected a pair of a model and its input, got NoneType"),
        (["test_tuning:make", *FLAGS], "argument MODEL: expected no sizes and no --cell beside it"),
        (["--read", "/no/such/file"], "argument --read: /no/such/file: "),
        (["--read", __file__], "argument --read: .*it is corrupt"),
        (["test_tuning:make", "--output", "/no/such/file"], "argument --output: /no/such/file: "),
    ],
)
def test_tune_refuses_nonsense(
    arguments: list[str], message: str, tune_command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tune_command(*arguments)
    assert re.search(message, capsys.readouterr().err)


def test_tune_refuses_what_is_of_another_kind(
    tune_command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.json"
    other = Record(replace(KIND, driver="9"))
    other.add("ways", {"x": {"result": "agreed"}})
    file.write_text(other.text())
    with pytest.raises(SystemExit, match="2"):
        tune_command("--read", file)
    assert "expected a record of emulated GPU, driver 1.2" in capsys.readouterr().err


def test_tune_where_there_is_nothing_to_choose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tune", "--device=cpu"])
    assert "there is one way only to compute on it" in capsys.readouterr().err
    monkeypatch.setenv("FUSEDRNN_TUNE", "0")
    with tuned_by(EmulatedGpu()), pytest.raises(SystemExit, match="2"):
        main(["tune", "--device=cpu"])
    assert "FUSEDRNN_TUNE=0 and FUSEDRNN_PLAN forbid it" in capsys.readouterr().err


def test_tune_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with tuned_by(EmulatedGpu()):
        assert main(["tune", "--device=cpu", *FLAGS, "--cell=gru"]) == 0
    text = capsys.readouterr().out
    assert "emulated GPU, driver 1.2" in text and "gru T8 B8 I8 H20 float32 training" in text
    assert "torch.nn 0, " in text and "The record is " in text
