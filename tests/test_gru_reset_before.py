"""`reset_after=False`: what is seen of it beside its numbers, which the grids of all cells hold.

Numbers, gradients, packed sequences, threads, instruction sets, devices, checkpoints and streams
are in test_parity.py, test_gradients.py, test_capability.py, test_cells.py, test_streaming.py and
their like, where the cell is "gru_reset_before" and the oracle plain_gru.py.
"""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import functional
from fusedrnn._engine import ops
from fusedrnn.cells import CELLS, cell_named
from fusedrnn.testing.parity import Case, check
from fusedrnn.testing.plain_gru import ResetBeforeGRU

CELL = "gru_reset_before"


def both() -> tuple[fusedrnn.GRU, fusedrnn.GRU]:
    """A network with the reset gate before the product, and one after it; the same weights."""
    before = fusedrnn.GRU(5, 6, num_layers=2, reset_after=False)
    after = fusedrnn.GRU(5, 6, num_layers=2)
    after.load_state_dict(before.state_dict())
    return before, after


def test_by_hand() -> None:
    """One unit, one feature, one step, in numbers that can be checked with a pocket calculator."""
    cell = fusedrnn.GRUCell(1, 1, dtype=torch.float64, reset_after=False)
    values = {
        "weight_ih": [[0.0], [0.0], [1.0]], "weight_hh": [[0.0], [0.0], [2.0]],
        "bias_ih": [0.0, 0.0, 0.1], "bias_hh": [0.0, 0.0, 0.3],
    }  # fmt: skip
    cell.load_state_dict({n: torch.tensor(v, dtype=torch.float64) for n, v in values.items()})
    x, h = torch.tensor([[[0.2]], [[0.4]]], dtype=torch.float64)
    h = cell(x, h)
    # r = z = 1/2; before: n = tanh(0.2 + 0.1 + 2 (0.4 / 2) + 0.3); after: b_hn were halved, too.
    n = torch.tensor(1.0, dtype=torch.float64).tanh()
    torch.testing.assert_close(h[0, 0], (n + 0.4) / 2, rtol=1e-14, atol=0)


def test_it_is_another_network() -> None:
    before, after = both()
    x = torch.randn(7, 3, 5)
    assert not torch.allclose(before(x)[0], after(x)[0], atol=1e-3)
    after.reset_after = False
    assert torch.equal(before(x)[0], after(x)[0])


def test_module() -> None:
    torch.manual_seed(0)
    ours = fusedrnn.GRU(5, 6, 2, bidirectional=True, reset_after=False, checkpoint=3)
    torch.manual_seed(0)
    theirs = nn.GRU(5, 6, 2, bidirectional=True)
    assert repr(ours) == repr(theirs)[:-1] + ", checkpoint=3, reset_after=False)"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    cell = fusedrnn.GRUCell(5, 6, reset_after=False)
    assert repr(cell) == "GRUCell(5, 6, reset_after=False)"
    x = torch.randn(4, 3, 5)
    for module, input in ((ours, x), (cell, x[0])):
        copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
        for other in copies:
            assert other.reset_after is False
            assert torch.equal(other(input)[0], module(input)[0])


def test_modules_without_the_attribute() -> None:
    """Those that `replace` turned, and pickles of older versions, are as torch.nn's."""
    model = nn.ModuleList([nn.GRU(5, 6), nn.GRUCell(5, 6)])
    expected = [model[0](torch.ones(2, 3, 5))[0], model[1](torch.ones(3, 5))]
    fusedrnn.replace(model)
    for module in model:
        assert "reset_after" not in vars(module) and module.reset_after is True
    torch.testing.assert_close(model[0](torch.ones(2, 3, 5))[0], expected[0])
    torch.testing.assert_close(model[1](torch.ones(3, 5)), expected[1])
    state = vars(fusedrnn.GRU(5, 6)).copy()
    del state["reset_after"]
    older = fusedrnn.GRU.__new__(fusedrnn.GRU)
    older.__setstate__(state)
    assert older.reset_after is True and "reset_after" not in repr(older)
    older(torch.ones(2, 3, 5))


@pytest.mark.parametrize("value", [None, 0, 1, "no", torch.tensor(True)], ids=repr)
def test_only_a_bool(value: Any) -> None:
    message = "reset_after: expected a bool, .*, got "
    for kind in (fusedrnn.GRU, fusedrnn.GRUCell):
        with pytest.raises(TypeError, match=message):
            kind(5, 6, reset_after=value)
        module = kind(5, 6)
        module.reset_after = value
        with pytest.raises(TypeError, match=message):
            module(torch.ones(2, 5))
    module = fusedrnn.GRU(5, 6)
    with pytest.raises(TypeError, match=message):
        functional.gru(torch.ones(2, 5), None, list(module.parameters()), reset_after=value)
    with pytest.raises(TypeError):
        fusedrnn.GRU(5, 6, 1, True, False, 0.0, False, None, None, False)  # only by keyword
    for kind in (fusedrnn.LSTM, fusedrnn.RNN):
        with pytest.raises(TypeError, match="reset_after"):
            kind(5, 6, reset_after=False)


def test_function() -> None:
    before, after = both()
    weights, x = list(before.parameters()), torch.randn(4, 3, 5)
    for module in (before, after):
        expected = module(x)
        found = functional.gru(x, None, weights, num_layers=2, reset_after=module.reset_after)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    with pytest.raises(RuntimeError, match="gru_reset_before"):
        functional.gru(x, None, weights[:3], reset_after=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_the_dtypes_of_a_gru(dtype: torch.dtype) -> None:
    before, after = both()
    x, h = torch.randn(4, 3, 5), torch.randn(2, 3, 6)
    cells = [fusedrnn.GRUCell(5, 6, reset_after=flag) for flag in (False, True)]
    x, h = x.to(dtype), h.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours, torch_s = (
            [*module(x, h), cell(x[0], h[0])]
            for module, cell in zip((before, after), cells, strict=True)
        )
    assert [t.dtype for t in ours] == [t.dtype for t in torch_s]


def test_int8_is_refused() -> None:
    module = fusedrnn.GRU(5, 6, reset_after=False)
    with pytest.raises(ValueError, match="weights: .*reset_after=False.* no int8 kernels"):
        fusedrnn.Streaming(module, weights="int8")
    weights = [w.detach() for w in module.parameters()]
    with pytest.raises(RuntimeError, match="cell: gru_reset_before has no int8 kernels"):
        ops.quantize_weights(weights, CELL, True, False)
    # Nor are another cell's bytes taken for it: the cell's number is the sixth word of the header.
    quantized = ops.quantize_weights(weights, "gru", True, False)
    quantized.view(torch.int64)[5] = CELLS.index(cell_named(CELL))
    with pytest.raises(RuntimeError, match="quantized: expected what fusedrnn::quantize_w"):
        ops.quantized_forward(torch.ones(1, 5), quantized, [torch.zeros(1, 1, 6)])


def test_streams() -> None:
    before, after = both()
    x = torch.randn(4, 3, 5)
    streams = [fusedrnn.Streaming(module, 3) for module in (before, after)]
    for stream, module in zip(streams, (before, after), strict=True):
        torch.testing.assert_close(stream(x), module(x)[0])
    after.reset_after = False
    streams[1].reset()
    torch.testing.assert_close(streams[1](x), before(x)[0])
    weights = [w.detach() for w in before.parameters()][:4]
    panels = ops.make_panels(weights, CELL, True, False, False)
    call = (x, None, [], weights, "gru", True, False, False, False, False, panels)
    with pytest.raises(RuntimeError, match=r"panels: .* of gru\(.*, got those of gru_reset_before"):
        ops.layer_forward(*call)


def test_plan() -> None:
    sizes: dict[str, Any] = dict(time=50, batch=16, input_size=64, hidden_size=256)
    cpu = fusedrnn.plan(CELL, **sizes, threads=4)
    assert cpu == fusedrnn.plan("gru", **sizes, threads=4)
    for dtype, asked in itertools.product(
        (torch.float32, torch.bfloat16), ("", "team=block", "team=cluster")
    ):
        ops.override_plan(asked)
        try:
            gpu = fusedrnn.plan(CELL, **sizes, device="cuda", dtype=dtype)
        finally:
            ops.override_plan("")
        assert isinstance(gpu, fusedrnn.CudaPlan)
        assert gpu.forward.team == gpu.backward.team == "stepwise"
    with pytest.raises(ValueError, match="cell: expected one of .*gru_reset_before"):
        fusedrnn.plan("gru_before", **sizes)


@pytest.mark.parametrize("split", ["none", "batch", "units"])
@pytest.mark.parametrize(
    "more", ["", "fuse_input=1", "fuse_input=0", "weights_in_place=1", "backward_steps=2"]
)
def test_every_plan_gives_the_same_numbers(split: str, more: str) -> None:
    torch.manual_seed(0)
    ours = fusedrnn.GRU(9, 70, bidirectional=True, dtype=torch.float64, reset_after=False)
    plain = ResetBeforeGRU(9, 70, bidirectional=True, dtype=torch.float64)
    plain.load_state_dict(ours.state_dict())
    for B, T in ((5, 4), (1, 3), (2, 1)):
        x = torch.randn(T, B, 9, dtype=torch.float64)
        found = []
        for module in (ours, plain):
            leaf = x.clone().requires_grad_()
            ops.override_plan(f"threads=2,direction_teams=1,split={split}," + more)
            try:
                output, hn = module(leaf)
                grads = torch.autograd.grad(
                    output.square().sum() + hn.sum(), [leaf, *module.parameters()]
                )
            finally:
                ops.override_plan("")
            found.append([output, hn, *grads])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [0, 1, 5], ids="lengths-{}".format)
def test_units_split_and_chunks_of_packed_rows(k: int) -> None:
    case = Case(CELL, T=7, B=6, I=5, H=70, bidirectional=True, packed="unsorted", seed=k)
    ops.override_plan("threads=2,split=units,backward_steps=2,forward_steps=2")
    try:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            check(case, dtype)
    finally:
        ops.override_plan("")


def test_compiled() -> None:
    torch._dynamo.reset()
    module, _ = both()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5)
    results = []
    for f in (module, compiled):
        leaf = x.clone().requires_grad_()
        output, hn = f(leaf)
        results.append([output, hn, *torch.autograd.grad(output.square().sum(), leaf)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    program = torch.export.export(module.eval(), (x,))
    torch.testing.assert_close(program.module()(x)[0], module(x)[0])
