"""A stream computes what its module computes, one piece after the other, and keeps up with it."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import pickle
import threading
from typing import Any

import pytest
import torch
from conftest import CELLS, MODULES, cases_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_capability import LEVELS, check_at
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn.utils import prune
from torch.utils._pytree import tree_map

import fusedrnn
from fusedrnn._engine import ops
from fusedrnn.cells import cell_named
from fusedrnn.testing.parity import Case, check

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


class Streamed(nn.Module):
    """A network that is called like its module, and streams the input piece by piece."""

    def __init__(self, module: nn.Module, lengths: list[int]) -> None:
        super().__init__()
        self.module, self.lengths = module, lengths

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        module, lengths = self.module, iter(self.lengths)
        time = 1 if module.batch_first else 0
        stream = fusedrnn.Streaming(module, input.size(1 - time))
        stream.state = hx
        pieces, at = [], 0
        while at < input.size(time):
            length = next(lengths, 0)
            if length:
                piece = input.narrow(time, at, min(length, input.size(time) - at))
                pieces.append(stream(piece))
                at += piece.size(time)
            else:  # one step, without its dimension
                pieces.append(stream(input.select(time, at)).unsqueeze(time))
                at += 1
        return torch.cat(pieces, time), stream.state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("B", [1, 3, 17])
@pytest.mark.parametrize("case", cases_of(CELLS, [Case(), Case(P=5)]), ids=str)
def test_step_by_step(case: Case, B: int, dtype: torch.dtype) -> None:
    case = dataclasses.replace(case, T=6, B=B, I=9, H=37, layers=2)
    check(case, dtype, inference=lambda module: Streamed(module, []))


@settings(max_examples=60)
@given(
    st.builds(
        Case,
        cell=st.sampled_from(CELLS),
        T=st.integers(1, 12),
        B=st.integers(1, 19),
        I=st.integers(1, 70),
        H=st.integers(1, 90),
        layers=st.integers(1, 3),
        bias=st.booleans(),
        batch_first=st.booleans(),
        hx=st.booleans(),
        strided=st.booleans(),
        seed=st.integers(0, 9),
    ),
    st.integers(0, 8),
    st.lists(st.integers(0, 5), max_size=6),
    st.sampled_from(DTYPES),
)
def test_pieces(case: Case, P: int, lengths: list[int], dtype: torch.dtype) -> None:
    if P < case.H:
        case = dataclasses.replace(case, P=P).of(case.cell)
    check(case, dtype, inference=lambda module: Streamed(module, lengths))


@pytest.mark.parametrize("cell", CELLS)
def test_layers_that_are_not_packed(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices other than the CPU."""
    monkeypatch.setitem(fusedrnn.streaming.KINDS, "same", fusedrnn.streaming._PlainLayers)
    case = Case(T=9, B=3, I=4, H=6, P=2, layers=2).of(cell)
    check(case, torch.float32, inference=lambda module: Streamed(module, [3, 0, 0, 4]))
    one = Case(cell=cell, T=1, B=1, I=4, H=6)
    check(one, torch.float32, inference=lambda module: Streamed(module, []))
    module = case.module(dtype=torch.float32)
    x = torch.randn(4)
    assert fusedrnn.Streaming(module)(x).shape == (2 if case.P else 6,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_bits_do_not_depend_on_threads(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = getattr(fusedrnn, name)(70, 300, dtype=dtype)
    for B, T in ((1, 1), (1, 5), (3, 1), (20, 4)):
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            stream = fusedrnn.Streaming(module, B)
            generator = torch.Generator().manual_seed(1)
            for _ in range(3):
                y = stream(torch.randn(T, B, 70, generator=generator).to(dtype))
            results.append(y)
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2]), (B, T)


def pair(name: str = "LSTM", **options: Any) -> tuple[nn.Module, fusedrnn.Streaming]:
    torch.manual_seed(0)
    module = getattr(fusedrnn, name)(6, 8, **options)
    return module, fusedrnn.Streaming(module, 3)


def test_modules_of_torch() -> None:
    torch.manual_seed(0)
    for module in (nn.LSTM(6, 8, num_layers=2, dropout=0.5), nn.GRU(6, 8), nn.RNN(6, 8)):
        x = torch.randn(5, 3, 6)
        expected, _ = module.eval()(x)
        y = fusedrnn.Streaming(module.train(), 3)(x)  # dropout is off
        torch.testing.assert_close(y, expected)
        assert module.training and not y.requires_grad


def test_the_example() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(fusedrnn.Streaming, globs={"fusedrnn": fusedrnn, "torch": torch})
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(failed=0, attempted=4)


def test_one_sequence_without_batch() -> None:
    module, _ = pair("GRU")
    stream, same = fusedrnn.Streaming(module), fusedrnn.Streaming(module)
    for x in torch.randn(4, 6):
        y = stream(x)
        assert y.shape == (8,) and torch.equal(y, same(x[None])[0])


def test_state_is_a_copy_and_can_be_set() -> None:
    module, stream = pair(num_layers=2)
    x = torch.randn(4, 3, 6)
    first, before = stream(x), stream.state
    assert [s.shape for s in before] == [(2, 3, 8)] * 2
    kept = [s.clone() for s in before]
    second = stream(x)
    assert all(map(torch.equal, before, kept))  # the stream went on, the copy did not
    stream.state = before
    assert torch.equal(stream(x), second)
    before[0].zero_()
    stream.state = None
    assert torch.equal(stream(x), first)
    stream.state = [s.transpose(0, 1).contiguous().transpose(0, 1) for s in kept]
    assert torch.equal(stream(x), second)


@pytest.mark.parametrize("name", MODULES)
def test_reset(name: str) -> None:
    _, stream = pair(name)
    x = torch.randn(4, 3, 6)
    fresh = stream(x)
    going_on = stream(x)
    stream.reset()
    assert torch.equal(stream(x), fresh)
    stream.reset(torch.tensor([True, False, True]))
    y = stream(x)
    assert torch.equal(y[:, 0::2], fresh[:, 0::2]) and torch.equal(y[:, 1], going_on[:, 1])
    stream.state = tree_map(lambda state: state.fill_(float("nan")), stream.state)
    stream.reset(torch.tensor([True] * 3))
    assert torch.equal(stream(x), fresh)


def changed_in_place(module: nn.Module) -> None:
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.5)


def loaded(module: nn.Module) -> None:
    module.load_state_dict({k: v * 0.5 for k, v in module.state_dict().items()})


def optimised(module: nn.Module) -> None:
    module(torch.randn(2, 3, 6))[0].sum().backward()
    torch.optim.SGD(module.parameters(), 0.5).step()


def replaced(module: nn.Module) -> None:
    module.bias_ih_l0 = nn.Parameter(torch.ones_like(module.bias_ih_l0))


def pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)


@pytest.mark.parametrize("change", [changed_in_place, loaded, optimised, replaced, pruned])
def test_weights_that_change_are_packed_again(change: Any) -> None:
    module, stream = pair()
    x = torch.randn(4, 3, 6)
    before = stream(x)
    stream.reset()
    change(module)
    y = stream(x)
    torch.testing.assert_close(y, module(x)[0].detach())
    assert not torch.allclose(y, before)


def test_refresh_sees_what_torch_does_not_count() -> None:
    module, stream = pair("RNN")
    x = torch.randn(4, 3, 6)
    module.weight_ih_l0.data.mul_(0.5)
    stream.refresh()
    torch.testing.assert_close(stream(x), module(x)[0].detach())


def test_another_view_of_the_same_memory_is_packed_again() -> None:
    torch.manual_seed(0)
    module = fusedrnn.RNN(6, 8)
    stream = fusedrnn.Streaming(module, 3)
    x = torch.randn(4, 3, 6)
    stream(x)
    stream.reset()
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().t())
    torch.testing.assert_close(stream(x), module(x)[0].detach())


def test_dtype_follows_the_module() -> None:
    module, stream = pair()
    x = torch.randn(4, 3, 6)
    stream(x)
    other = copy.deepcopy(stream)
    other.module.double()
    assert copy.deepcopy(other)(x.double()).dtype == torch.float64
    other.state = tuple(s.double() for s in stream.state)
    assert other.state[0].dtype == torch.float64
    expected = module.double()(x.double(), tuple(s.double() for s in stream.state))[0]
    y = stream(x.double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, expected.detach())


def test_streams_of_one_module_are_apart() -> None:
    module, one = pair()
    two = fusedrnn.Streaming(module, 3)
    x = torch.randn(6, 3, 6)
    expected = fusedrnn.Streaming(module, 3)(x)
    for t in range(6):
        assert torch.equal(one(x[t]), two(x[t]))
    torch.testing.assert_close(one.state[0][0], expected[-1])


def test_streams_in_threads() -> None:
    module, _ = pair(num_layers=2)
    x = torch.randn(50, 3, 6)
    expected = torch.stack([*map(fusedrnn.Streaming(module, 3), x)])
    results: list[Tensor] = []

    def run() -> None:
        results.append(torch.stack([*map(fusedrnn.Streaming(module, 3), x)]))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(r, expected) for r in results)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_go_on_alone(copy_of: Any) -> None:
    module, stream = pair("GRU")
    x = torch.randn(4, 3, 6)
    stream(x)
    other = copy_of(stream)
    assert torch.equal(other(x), stream(x))
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    assert not torch.equal(other(x), stream(x))


def test_states_that_share_memory_are_refused() -> None:
    """In a pickle that somebody made: calls update the states where they lie."""
    module, stream = pair()
    stream(torch.randn(3, 6))
    before = stream.state
    one = torch.zeros(2, 1, 3, 8)
    values = stream.__getstate__()
    apart = "state: expected h and c in memory of their own"
    for h, c in ((one[0], one[0]), (one[0], one[1])):
        values["state"] = (h, c)
        with pytest.raises(ValueError, match=apart):
            stream.__setstate__(values)
        assert all(map(torch.equal, stream.state, before))
    stream.__getstate__ = lambda: values | {"state": (h, h)}
    with pytest.raises(ValueError, match=apart):
        pickle.loads(pickle.dumps(stream))
    del stream.__getstate__
    for state, error in (
        (one[0], IndexError),
        ((one[0], None), AttributeError),
        ((one[0], one[1, :, :2].clone()), RuntimeError),
    ):
        values["state"] = state
        with pytest.raises(error, match="hx|hidden"):
            stream.__setstate__(values)
        assert all(map(torch.equal, stream.state, before))
    values["state"] = (one[0].expand(1, 3, 8), torch.zeros(1).expand(1, 3, 8))
    stream.__setstate__(values)  # states of its own are made of them
    torch.testing.assert_close(stream(torch.ones(3, 6)), module(torch.ones(1, 3, 6))[0][0])


def test_under_inference_mode_and_autocast() -> None:
    module, stream = pair()
    x = torch.randn(4, 3, 6)
    expected = stream(x)
    stream.reset()
    with torch.inference_mode():
        assert torch.equal(stream(x), expected)
        stream.reset()
        inside = fusedrnn.Streaming(module, 3)
        inside(x[0])
    y = stream(x.clone().requires_grad_())
    assert torch.equal(y, expected) and not y.requires_grad
    inside.reset(torch.tensor([True, True, True]))
    assert torch.equal(inside(x), expected)
    stream.reset()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stream(x), expected)
        with pytest.raises(ValueError, match="input dtype"):
            stream(x.double())
        with pytest.raises(RuntimeError, match="hx: expected the dtype of the module"):
            stream.state = tuple(s.double() for s in stream.state)


@pytest.mark.parametrize("kind", ["_PanelLayers", "_PlainLayers"])
def test_nothing_is_recorded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fusedrnn.streaming.KINDS, "same", getattr(fusedrnn.streaming, kind))
    module, _ = pair(num_layers=2)
    x = torch.randn(4, 3, 6, requires_grad=True)
    expected = fusedrnn.Streaming(module, 3)(x)
    with torch.inference_mode():
        stream = fusedrnn.Streaming(module, 3)
        stream.reset()
        stream(x)
        stream.reset(torch.tensor([True, True, True]))
        stream.state = stream.state
    y = stream(x)
    assert torch.equal(y, expected) and not y.requires_grad
    assert not any(state.requires_grad for state in stream.state)


def test_no_sequences() -> None:
    module, _ = pair()
    stream = fusedrnn.Streaming(module, 0)
    assert stream(torch.empty(0, 6)).shape == (0, 8)
    assert stream(torch.empty(3, 0, 6)).shape == (3, 0, 8)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("x", AttributeError, "input: expected a torch.Tensor, got str"),
        (torch.zeros(6), ValueError, "2D .*or 3D .*got 1D"),
        (torch.zeros(2, 2, 3, 6), ValueError, "got 4D"),
        (torch.zeros(3, 6, dtype=torch.float64), ValueError, "input dtype"),
        (torch.zeros(3, 7), RuntimeError, "Expected 6, got 7"),
        (torch.zeros(2, 6), RuntimeError, "expected 3 sequences"),
        (torch.zeros(4, 2, 6), RuntimeError, "expected 3 sequences"),
        (torch.zeros(0, 3, 6), RuntimeError, "sequence length"),
        (torch.zeros(3, 6, device="meta"), RuntimeError, "device"),
    ],
)
def test_refused_input_leaves_the_state(given: Any, error: type, says: str) -> None:
    _, stream = pair()
    stream(torch.randn(3, 6))
    before = stream.state
    with pytest.raises(error, match=says):
        stream(given)
    assert all(map(torch.equal, stream.state, before))


def test_how_a_mask_may_be_given() -> None:
    """As environments say which episodes ended."""
    stream = fusedrnn.Streaming(fusedrnn.GRU(5, 7), 3)
    x = torch.randn(3, 5)
    marks = torch.tensor([True, False, True])
    found = []
    for mask in (
        marks, marks.numpy(), marks.float().numpy(), marks.to(torch.uint8), marks[:, None],
        marks.long()[:, None].numpy(), [True, False, True], [1.0, 0.0, 1.0],
    ):  # fmt: skip
        stream.reset()
        stream(x)
        before = stream.state
        stream.reset(mask)
        found.append(stream.state)
        assert torch.equal(found[-1][:, 1], before[:, 1]) and not found[-1][:, ::2].any()
    assert all(torch.equal(state, found[0]) for state in found)


def test_refused_arguments() -> None:
    module, stream = pair()
    with pytest.raises(TypeError, match="module: expected an LSTM.*got Linear"):
        fusedrnn.Streaming(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="module: expected one direction"):
        fusedrnn.Streaming(fusedrnn.LSTM(2, 2, bidirectional=True))
    with pytest.raises(ValueError, match="module: expected weights of one dtype"):
        mixed = fusedrnn.GRU(2, 2)
        mixed.weight_hh_l0 = nn.Parameter(mixed.weight_hh_l0.detach().double())
        fusedrnn.Streaming(mixed)
    with pytest.raises(ValueError, match="module: expected weights in .*complex64"):
        fusedrnn.Streaming(fusedrnn.GRU(2, 2).to(torch.complex64))
    with pytest.raises(AttributeError, match="batch_size: expected to stay at 3, .*got 4"):
        stream.batch_size = 4
    assert stream.batch_size == 3
    for batch_size, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="batch_size: expected"):
            fusedrnn.Streaming(module, batch_size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights: expected one of same, int8, got 'int3'"):
        fusedrnn.Streaming(module, weights="int3")
    with pytest.raises(TypeError, match="mask: expected bool, or 0 and 1, .* got str"):
        stream.reset("all")
    for mask in (torch.ones(3, 3), torch.ones(2, dtype=torch.bool), [True], 1):
        with pytest.raises(ValueError, match=r"mask: expected .* of shape \(3,\) or \(3, 1\), got"):
            stream.reset(mask)
    with pytest.raises(ValueError, match="mask: expected bool, or 0 and 1, .* got 2"):
        stream.reset(torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 3, 8\)"):
        stream.state = (torch.zeros(1, 3, 8), torch.zeros(1, 2, 8))
    with pytest.raises(AttributeError, match="hx: expected a pair"):
        stream.state = "h"  # type: ignore[assignment]


# ---- the ops ------------------------------------------------------------------------------------


def weights(cell: str = "lstm", I: int = 5, H: int = 20, P: int = 0, bias: bool = True,  # noqa: E741
            directions: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    shapes = [*cell_named(cell).shapes(I, H, P, biases=bias).values()] * directions
    return [torch.randn(s, generator=generator).to(dtype) / 4 for s in shapes]


def layer_of(cell: str = "lstm", bias: bool = True, projected: bool = False, directions: int = 1):
    return cell_named(cell).spec, bias, projected, directions == 2


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_panels_beside_the_weights(cell: str, directions: int) -> None:
    """The walk on panels made ahead is the walk on its own."""
    given, layer = weights(cell, directions=directions), layer_of(cell, directions=directions)
    panels = ops.make_panels(given, *layer)
    assert panels.dtype == torch.uint8 and panels.dim() == 1
    for T, B in ((4, 7), (1, 9)):
        x = torch.randn(T, B, 5)
        plain = ops.layer_forward(x, None, [], given, *layer, True)
        ahead = ops.layer_forward(x, None, [], given, *layer, True, False, panels)
        torch.testing.assert_close(plain, ahead)


def test_wrong_panels_are_refused() -> None:
    given, x = weights(), torch.randn(2, 3, 5)
    panels = ops.make_panels(given, *layer_of())

    def layer(panels: Tensor) -> None:
        ops.layer_forward(x, None, [], given, *layer_of(), False, False, panels)

    def stack(panels: Tensor) -> None:
        ops.panels_forward(x, panels, [torch.zeros(1, 3, 20), torch.zeros(1, 3, 20)])

    layer(panels), stack(panels)
    others = {
        "cell": ops.make_panels(weights("gru"), *layer_of("gru")),
        "input size": ops.make_panels(weights(I=6), *layer_of()),
        "hidden size": ops.make_panels(weights(H=21), *layer_of()),
        "projected": ops.make_panels(weights(P=3), *layer_of(projected=True)),
        "dtype": ops.make_panels(weights(dtype=torch.float64), *layer_of()),
        "directions": ops.make_panels(weights(directions=2), *layer_of(directions=2)),
        "no biases": ops.make_panels(weights(bias=False), *layer_of(bias=False)),
        "cut": panels[:-64].clone(),
        "header only": panels[:128].clone(),
        "less than a header": panels[:64].clone(),
        "empty": panels[:0].clone(),
        "two": torch.cat([panels, panels]),
        "not aligned": torch.cat([panels[:1], panels])[1:],
        "strided": torch.stack([panels, panels], 1)[:, 0],
        "bytes": panels.to(torch.int8),
        "noise": torch.randint(0, 256, panels.shape, dtype=torch.uint8),
        "zeros": torch.zeros_like(panels),
        "meta": panels.to("meta"),
    }
    for name, other in others.items():
        if name != "meta":  # then it would be the fake kernel, as with any operand there
            with pytest.raises(RuntimeError, match="panels"):
                layer(other)
        if name != "no biases":  # the header knows
            with pytest.raises((RuntimeError, NotImplementedError), match=r"panels|input|hx"):
                stack(other)
    header = panels.clone()
    for cell in ("rnn_tanh", "gru"):  # a GRU that says it is projected
        other = ops.make_panels(weights(cell, H=64), *layer_of(cell))
        other[32] = 1
        with pytest.raises(RuntimeError, match="panels: expected what"):
            ops.panels_forward(x, other, [torch.zeros(1, 3, 1)])
    for at in range(8, 128):  # any byte of the header but the mark
        for value in (0, 1, 255):
            broken = header.clone()
            broken[at] = value
            if not torch.equal(broken, header):
                with pytest.raises(RuntimeError, match="panels"):
                    layer(broken)
                if at == 52 and value == 0:
                    continue  # no biases: zeros are in their place, so nothing tells
                with pytest.raises(RuntimeError, match=r"panels|input|hx"):
                    stack(broken)


def test_wrong_states_are_refused() -> None:
    panels = ops.make_panels(weights(), *layer_of())
    x, h, c = torch.randn(3, 5), torch.ones(1, 3, 20), torch.ones(1, 3, 20)
    for states in (
        (h[:, :2], c), (h,), (h, c, c), (h.double(), c), (h.transpose(0, 1), c), (h, c[..., :4]),
        (torch.ones(1, 20, 3).transpose(1, 2), c), (h.to("meta"), c),
    ):  # fmt: skip
        with pytest.raises((RuntimeError, NotImplementedError), match=r"hx(\[[01]\])?: "):
            ops.panels_forward(x, panels, states)
    with pytest.raises(RuntimeError, match=r"hx: expected 1 state\(s\)"):
        gru = ops.make_panels(weights("gru"), *layer_of("gru"))
        ops.panels_forward(x, gru, [h, c])
    assert torch.equal(h, torch.ones_like(h)) and torch.equal(c, torch.ones_like(c))


def test_opcheck() -> None:
    x, h, c = torch.randn(3, 5), torch.zeros(1, 3, 20), torch.zeros(1, 3, 20)
    panels = ops.make_panels(weights(), *layer_of())
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    for op, arguments in (
        (ops.panels_forward, (x, panels, [h, c])),
        (ops.layer_forward,
         (x[None], None, [h, c], weights(), *layer_of(), False, False, panels)),
    ):  # fmt: skip
        assert set(opcheck(op, arguments, test_utils=tests).values()) == {"SUCCESS"}
    found = opcheck(ops.make_panels, (weights(), *layer_of()), test_utils=tests[:1])
    assert set(found.values()) == {"SUCCESS"}


def check_all() -> None:
    for cell in CELLS:
        for B, T in ((1, 5), (6, 3)):
            case = Case(cell=cell, T=T, B=B, I=9, H=37, layers=2)
            for dtype in DTYPES:
                check(case, dtype, inference=lambda module: Streamed(module, [0, 2]))


@pytest.mark.parametrize("level", LEVELS[:-1])
def test_level(level: str) -> None:
    check_at(level, "test_streaming.check_all")
