"""Looking into a network: gates against their equations, gradients against autograd, pictures.

The equations are written out here once more, on the module's weights and on the states that the
module itself gives after every step.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CELLS, COMPILED, TORCH_MODULES
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from fusedrnn.cells import Cell, cell_named
from fusedrnn.inspect import (
    GradientFlow,
    Trace,
    gradient_flow,
    plot_gates,
    plot_gradient_flow,
    trace,
    write_report,
)

T, B, I, H = 7, 3, 4, 6  # noqa: E741
Gates = dict[str, Tensor]


def lstm_gates(x: Tensor, h: Tensor, w: dict[str, Tensor]) -> Gates:
    i, f, g, o = (x @ w["ih"].T + w["b_ih"] + h @ w["hh"].T + w["b_hh"]).chunk(4, -1)
    return {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}


def gru_gates(x: Tensor, h: Tensor, w: dict[str, Tensor]) -> Gates:
    (xr, xz, xn) = (x @ w["ih"].T + w["b_ih"]).chunk(3, -1)
    (hr, hz, hn) = (h @ w["hh"].T + w["b_hh"]).chunk(3, -1)
    r = (xr + hr).sigmoid()
    return {"r": r, "z": (xz + hz).sigmoid(), "n": (xn + r * hn).tanh()}


def gru_reset_before_gates(x: Tensor, h: Tensor, w: dict[str, Tensor]) -> Gates:
    (xr, xz, xn) = (x @ w["ih"].T + w["b_ih"]).chunk(3, -1)
    (w_r, w_z, w_n), (b_r, b_z, b_n) = w["hh"].chunk(3), w["b_hh"].chunk(3)
    r, z = (xr + h @ w_r.T + b_r).sigmoid(), (xz + h @ w_z.T + b_z).sigmoid()
    return {"r": r, "z": z, "n": (xn + (r * h) @ w_n.T + b_n).tanh()}


EQUATIONS: dict[str, Callable[[Tensor, Tensor, dict[str, Tensor]], Gates]] = {
    "lstm": lstm_gates,
    "gru": gru_gates,
    "gru_reset_before": gru_reset_before_gates,
}


def made(cell: Cell, *sizes: Any, package: Any = fusedrnn, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"dtype": torch.float64} | cell.options | options
    if package is nn:
        options.pop("reset_after", None)
    module = getattr(package, cell.module)(I, *(sizes or (H,)), **options)
    return module.eval()


def input_of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(shape or (T, B, I)), dtype=dtype)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def flat(states: Any) -> list[Tensor]:
    return [states] if isinstance(states, Tensor) else [t for each in states for t in flat(each)]


def check_gates(
    module: Any, cell: Cell, traced: Trace, x: Tensor, first: Tensor, tolerance: float = 1e-10
) -> None:
    """The gates of every part against the equations; x [T, B, I], first [parts, B, R]."""
    for at, part in enumerate(traced.layers):
        layer, reverse = int(re.findall(r"\d+", part)[0]), part.endswith("_reverse")
        w = {
            name: getattr(module, f"{full}_{part}").detach()
            for name, full in (("ih", "weight_ih"), ("hh", "weight_hh"), ("b_ih", "bias_ih"),
                               ("b_hh", "bias_hh"))
        }  # fmt: skip
        h = traced[part]["h"]
        before = (
            torch.cat([h[1:], first[at][None]]) if reverse else torch.cat([first[at][None], h[:-1]])
        )
        if layer:
            names = [p for p in traced.layers if re.match(rf"l{layer - 1}(_|$)", p)]
            x_of_layer = torch.cat([traced[name]["h"] for name in names], -1)
        else:
            x_of_layer = x
        expected = EQUATIONS[cell.name](x_of_layer, before, w)
        assert list(expected) == [name for name in traced[part] if name not in cell.states]
        for name, gate in expected.items():
            close(traced[part][name], gate, tolerance)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", EQUATIONS)
def test_gates_are_those_of_the_equations(
    name: str, bidirectional: bool, device: torch.device
) -> None:
    cell = cell_named(name)
    module = made(cell, num_layers=2, bidirectional=bidirectional).to(device)
    parts = 4 if bidirectional else 2
    hx = [input_of(parts, B, H).to(device) for _ in cell.states]
    x = input_of().to(device)
    traced = trace(module, x, tuple(hx) if len(hx) > 1 else hx[0])
    check_gates(module, cell, traced, x, hx[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EQUATIONS)
def test_gates_in_other_dtypes(name: str, dtype: torch.dtype) -> None:
    cell = cell_named(name)
    module = made(cell, dtype=dtype)
    x = input_of(dtype=dtype)
    traced = trace(module, x)
    assert {values.dtype for values in traced["l0"].values()} == {dtype}
    exact = trace(copy.deepcopy(module).double(), x.double())
    for gate, values in traced["l0"].items():
        close(values.double(), exact["l0"][gate], 20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", CELLS)
def test_states_are_those_of_the_module(name: str) -> None:
    cell = cell_named(name)
    module = made(cell, num_layers=2, bidirectional=True, batch_first=True)
    x = input_of(B, T, I)
    output, hn, states = module(x, return_states=True)
    traced = trace(module, x)
    assert traced.layers == ("l0", "l0_reverse", "l1", "l1_reverse")
    for state, values in zip(cell.states, flat(states), strict=True):
        for part, expected in zip(traced.layers, values, strict=True):
            close(traced[part][state], expected)
    close(traced.output, output)
    for found, expected in zip(flat(traced.hn), flat(hn), strict=True):
        close(found, expected)
    assert not traced["l0"]["h"].requires_grad


@pytest.mark.parametrize("name", TORCH_MODULES)
def test_modules_of_torch(name: str) -> None:
    cell = next(cell for cell in map(cell_named, COMPILED) if cell.module == name)
    theirs = made(cell, num_layers=2, package=nn)
    ours = made(cell, num_layers=2)
    x = input_of()
    traced, expected = trace(theirs, x), trace(ours, x)
    for part in expected:
        for key, values in expected[part].items():
            close(traced[part][key], values)
    close(traced.output, theirs(x)[0])


def test_it_is_the_module_in_evaluation_and_leaves_it_alone() -> None:
    module = made(cell_named("lstm"), num_layers=2, dropout=0.5, input_dropout=0.5).train()
    x = input_of()
    state = torch.get_rng_state()
    traced = trace(module, x)
    assert module.training and torch.equal(torch.get_rng_state(), state)
    close(traced.output, module.eval()(x)[0])


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}])
def test_autocast_is_not_applied(options: dict[str, Any]) -> None:
    module = made(cell_named("lstm"), num_layers=2, dtype=torch.float32, **options)
    x = input_of(dtype=torch.float32)
    traced, flow = trace(module, x), gradient_flow(module, x, loss_of)
    with torch.autocast("cpu"):
        again, flow_again = trace(module, x), gradient_flow(module, x, loss_of)
    for part in traced:
        for key, values in traced[part].items():
            assert torch.equal(again[part][key], values)
        for key, norms in flow[part].items():
            assert torch.equal(flow_again[part][key], norms)


@pytest.mark.parametrize("shape", [(1, B, I), (T, 0, I), (1, 1, I)])
def test_small_inputs(shape: tuple[int, ...]) -> None:
    module = made(cell_named("gru"), num_layers=2, bidirectional=True)
    x = input_of(*shape)
    traced, flow = trace(module, x), gradient_flow(module, x, loss_of)
    for part in traced.layers:
        assert {values.shape for values in traced[part].values()} == {(*shape[:2], H)}
        assert flow[part]["h"].shape == shape[:1]
    close(traced.output, module(x)[0])


def test_inference_mode() -> None:
    """A module, an input and states that were made in it, which autograd refuses, are copied."""
    with torch.inference_mode():
        module, x = made(cell_named("lstm")), input_of()
        hx = (input_of(1, B, H), input_of(1, B, H))
        within = gradient_flow(module, x, loss_of, hx)
    flow, traced = gradient_flow(module, x, loss_of, hx), trace(module, x, hx)
    close(flow["l0"]["c"], within["l0"]["c"])
    assert flow.loss == within.loss == pytest.approx(loss_of(traced.output, traced.hn).item())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_and_packed(bidirectional: bool) -> None:
    """A sequence of a batch has what it has by itself, and zeros after its end."""
    cell = cell_named("lstm")
    module = made(cell, num_layers=2, bidirectional=bidirectional)
    parts = 4 if bidirectional else 2
    hx = (input_of(parts, B, H), input_of(parts, B, H))
    x, lengths = input_of(), [7, 2, 5]
    padded = trace(module, x, hx, lengths=lengths)
    nothing = trace(module, x, hx, lengths=[7, 0, 5])
    assert not nothing["l0"]["f"][:, 1].any() and not nothing["l0"]["h"][:, 1].any()
    packed = trace(module, pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False), hx)
    assert padded.lengths is not None and padded.lengths.tolist() == lengths
    for sequence, length in enumerate(lengths):
        alone = trace(module, x[:length, sequence], (hx[0][:, sequence], hx[1][:, sequence]))
        for part in alone:
            for key, values in alone[part].items():
                for found in (padded[part][key], packed[part][key]):
                    close(found[:length, sequence], values)
                    assert not found[length:, sequence].any()


@pytest.mark.parametrize("options, sizes", [
    ({"residual": True, "num_layers": 3}, (H,)),
    ({"num_layers": 2}, ([5, 3],)),
    ({"zoneout": 0.3, "num_layers": 2}, (H,)),
    ({"learn_initial_state": True, "states_batch_first": True}, (H,)),
    ({"batch_first": True, "states_batch_first": True, "bidirectional": True}, (H,)),
    ({"proj_size": 3, "num_layers": 2, "bidirectional": True}, (H,)),
])  # fmt: skip
@pytest.mark.parametrize("given", [False, True])
def test_options(options: dict[str, Any], sizes: tuple[Any, ...], given: bool) -> None:
    """Every step of the cell from its gates and the c before it."""
    module = made(cell_named("lstm"), *sizes, **options)
    if options.get("learn_initial_state"):
        for name, parameter in module.named_parameters():
            if "_0_" in name:
                nn.init.normal_(parameter)
    x = input_of()
    hx = map_states(torch.randn_like, module(x)[1]) if given else None
    output, hn = module(x, hx)
    traced = trace(module, x, hx)
    close(traced.output, output)
    for found, expected in zip(flat(traced.hn), flat(hn), strict=True):
        close(found, expected)
    keep = 0.3 if options.get("zoneout") else 0.0
    time = 1 if module.batch_first else 0
    for part in traced:
        of = {name: values.movedim(time, 0) for name, values in traced[part].items()}
        forward = slice(None, -1) if part.endswith("_reverse") else slice(1, None)
        before = slice(1, None) if part.endswith("_reverse") else slice(None, -1)
        c_before = of["c"][before]
        c = of["f"][forward] * c_before + of["i"][forward] * of["g"][forward]
        close(of["c"][forward], keep * c_before + (1 - keep) * c)
        if not options.get("proj_size"):
            h = of["o"][forward] * c.tanh()
            close(of["h"][forward], keep * of["h"][before] + (1 - keep) * h)


def map_states(change: Callable[[Tensor], Tensor], states: Any) -> Any:
    if isinstance(states, Tensor):
        return change(states)
    return tuple(map_states(change, state) for state in states)


# Gradients.


def loss_of(output: Tensor, hn: Any) -> Tensor:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return (output * weight).sum() + sum(state.square().sum() for state in flat(hn))


@pytest.mark.parametrize("name", COMPILED)
def test_gradients_are_those_of_a_call_that_is_cut(name: str) -> None:
    """h after step t as a leaf between two calls; what c adds by way of h comes on top by hand."""
    cell = cell_named(name)
    module = made(cell)
    x = input_of()
    flow, traced = gradient_flow(module, x, loss_of), trace(module, x)
    assert flow.layers == ("l0",) and list(flow["l0"]) == list(cell.states)
    for t in range(T - 1):
        output, hn = module(x[: t + 1])
        leaves = [state.detach().requires_grad_() for state in flat(hn)]
        rest, last = module(x[t + 1 :], tuple(leaves) if len(leaves) > 1 else leaves[0])
        loss = loss_of(torch.cat([output[:t], leaves[0], rest]), last)
        dh, *others = torch.autograd.grad(loss, leaves)
        close(flow["l0"]["h"][t], dh.norm())
        if others:
            through_h = dh[0] * traced["l0"]["o"][t] * (1 - traced["l0"]["c"][t].tanh().square())
            close(flow["l0"]["c"][t], (others[0][0] + through_h).norm())
    assert flow.loss == pytest.approx(loss_of(*module(x)).item(), rel=1e-12)


def test_gradients_of_layers_and_directions() -> None:
    """Two bidirectional layers of tanh, as a loop whose states keep their gradients."""
    module = made(cell_named("rnn_tanh"), num_layers=2, bidirectional=True, batch_first=True)
    x = input_of(B, T, I)
    kept: dict[str, list[Tensor]] = {}
    steps, finals = [*x.unbind(1)], []
    for layer in range(2):
        for suffix in ("", "_reverse"):
            part = f"l{layer}{suffix}"
            w_ih, w_hh, b_ih, b_hh = (
                getattr(module, f"{name}_{part}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h, walked = torch.zeros(B, H, dtype=x.dtype), []
            for step in steps[::-1] if suffix else steps:
                h = torch.tanh(step @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
                h.retain_grad()
                walked.append(h)
            finals.append(h)
            kept[part] = walked[::-1] if suffix else walked
        both = zip(kept[f"l{layer}"], kept[f"l{layer}_reverse"], strict=True)
        steps = [torch.cat(pair, -1) for pair in both]
    loss_of(torch.stack(steps, 1), torch.stack(finals)).backward()
    flow = gradient_flow(module, x, loss_of)
    for part, states in kept.items():
        norms = torch.stack([state.grad.norm() for state in states])  # type: ignore[union-attr]
        close(flow[part]["h"], norms)


@pytest.mark.parametrize("options, sizes", [
    ({"residual": True, "num_layers": 3}, (H,)),
    ({"num_layers": 2, "states_batch_first": True}, ([5, 3],)),
    ({"zoneout": 0.3}, (H,)),
    ({"learn_initial_state": True}, (H,)),
    ({"proj_size": 3}, (H,)),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(T, B, I), (T, I)])
def test_the_loss_is_that_of_the_module(
    options: dict[str, Any], sizes: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    module = made(cell_named("lstm"), *sizes, **options)
    x = input_of(*shape)
    flow = gradient_flow(module, x, loss_of)
    assert flow.loss == pytest.approx(loss_of(*module(x)).item(), rel=1e-10)
    assert all(norms.shape == (T,) for states in flow.values() for norms in states.values())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_plain_gradients_vanish_and_a_remembering_cell_carries() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 2, I)
    plain = gradient_flow(fusedrnn.RNN(I, H), x, lambda output, hn: output[-1].sum())
    lstm = fusedrnn.LSTM(I, H, forget_bias=6.0)
    carrying = gradient_flow(lstm, x, lambda output, hn: output[-1].sum())
    vanished = plain["l0"]["h"][0] / plain["l0"]["h"][-1]
    carried = carrying["l0"]["c"][0] / carrying["l0"]["c"][-1]
    assert vanished < 1e-6 < 0.1 < carried


# What is not there.


def test_bad_input() -> None:
    lstm = made(cell_named("lstm"))
    with pytest.raises(TypeError, match="module: expected an LSTM, GRU or RNN .* got Linear"):
        trace(nn.Linear(3, 4), input_of())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="module: .* got LSTMCell"):
        gradient_flow(fusedrnn.LSTMCell(3, 4), input_of(), loss_of)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="input.size"):
        trace(lstm, input_of(T, B, I + 1))
    with pytest.raises(ValueError, match="lengths: expected None with a packed input"):
        trace(lstm, pack_padded_sequence(input_of(), torch.tensor([7, 5, 2])), lengths=[7, 5, 2])
    with pytest.raises(TypeError, match="input: .* nested"):
        trace(lstm, torch.nested.nested_tensor([input_of(2, I)], layout=torch.jagged))
    with pytest.raises(TypeError, match="input: expected a tensor"):
        gradient_flow(lstm, pack_padded_sequence(input_of(), [7, 5, 2]), loss_of)  # type: ignore
    with pytest.raises(TypeError, match="input: expected a tensor, got NoneType"):
        trace(lstm, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="input: expected a tensor with values, got one on the"):
        trace(copy.deepcopy(lstm).to("meta"), input_of().to("meta"))
    with pytest.raises(KeyError, match="expected one of l0, got 'l1'"):
        trace(lstm, input_of())["l1"]


@pytest.mark.parametrize("loss, said", [
    (lambda output, hn: output, r"got torch.float64 of shape \(7, 3, 6\)"),
    (lambda output, hn: output.argmax(), r"got torch.int64 of shape \(\)"),
    (lambda output, hn: 1.0, "expected to return a scalar tensor, got float"),
    (lambda output, hn: torch.zeros(()), "expected to depend on output or hn"),
    (lambda output, hn: (nn.Linear(H, 1).double()(output.detach())).sum(), "expected to depend"),
])  # fmt: skip
def test_losses_that_are_none(loss: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^loss: .*{said}"):
        gradient_flow(made(cell_named("lstm")), input_of(), loss)


def test_results_can_be_compared_and_kept_in_sets() -> None:
    one, other = (trace(made(cell_named("gru")), input_of()) for _ in range(2))
    assert one == one and one != other and len({one, other}) == 2


def test_first_states_of_gradients() -> None:
    module, x = made(cell_named("gru")), input_of()
    hx = input_of(1, B, H)
    flow = gradient_flow(module, x, loss_of, hx)
    assert flow.loss == pytest.approx(loss_of(*module(x, hx)).item(), rel=1e-12)


# Pictures.


@pytest.fixture
def traced() -> Trace:
    return trace(made(cell_named("lstm"), num_layers=2), input_of(), lengths=[T, 4, T])


@pytest.fixture
def flow() -> GradientFlow:
    return gradient_flow(made(cell_named("lstm")), input_of(), loss_of)


def test_plot_gates(traced: Trace) -> None:
    figure = plot_gates(traced, "l1", sequence=1, steps=[*"abcd"], title="of a test")
    pictures = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in pictures] == [
        "input gate i", "forget gate f", "candidate g", "output gate o", "hidden state h",
        "cell state c",
    ]  # fmt: skip
    for axis, values in zip(pictures, traced["l1"].values(), strict=True):
        shown = torch.as_tensor(axis.images[0].get_array())
        close(shown.double(), values[:4, 1].T, 1e-6)
        least, largest = axis.images[0].get_clim()
        assert least <= shown.min() and shown.max() <= largest and least in (0, -largest)
    assert [label.get_text() for label in pictures[-1].get_xticklabels()] == [*"abcd"]
    assert pictures[-1].get_xlabel() == "step" and pictures[0].get_ylabel() == "unit"
    assert figure.get_suptitle() == "of a test"


def test_plot_gates_of_unequal_heights_and_of_one_step() -> None:
    module = made(cell_named("lstm"), proj_size=2)
    for steps in (T, 1):
        figure = plot_gates(trace(module, input_of(steps, B, I)), names=["f", "h"], steps=None)
        heights = [axis.get_ylim() for axis in figure.axes if axis.images]
        assert heights == [(H - 0.5, -0.5), (1.5, -0.5)]


@pytest.mark.parametrize("values, expected", [
    ([0.5, 0.2], (0, 1)), ([0.5, -3.0], (-3, 3)), ([2.0, float("nan")], (0, 2)),
    ([float("inf"), -1.0], (-1, 1)), ([float("nan")], (0, 1)),
])  # fmt: skip
def test_scales(values: list[float], expected: tuple[float, float]) -> None:
    assert sys.modules["fusedrnn.inspect.plots"].scale_of(torch.tensor(values)) == expected


def test_plot_gates_refuses(traced: Trace, flow: GradientFlow) -> None:
    with pytest.raises(KeyError, match="expected one of l0, l1, got 'l2'"):
        plot_gates(traced, "l2")
    with pytest.raises(KeyError, match="names: expected some of i, f, g, o, h, c, got 'z'"):
        plot_gates(traced, names=["z"])
    with pytest.raises(IndexError, match="sequence: expected one of 3, from 0, got 3"):
        plot_gates(traced, sequence=3)
    with pytest.raises(ValueError, match="names: expected some of i, f, g, o, h, c, got none"):
        plot_gates(traced, names=[])
    with pytest.raises(TypeError, match="trace: expected what .* gives, got GradientFlow"):
        plot_gates(flow)  # type: ignore[arg-type]
    module = made(cell_named("lstm"))
    with pytest.raises(IndexError, match="sequence: expected one of 1, from 0, got 2"):
        plot_gates(trace(module, input_of(T, I)), sequence=2)
    with pytest.raises(ValueError, match="sequence: expected one that has steps, got 1"):
        plot_gates(trace(module, input_of(), lengths=[T, 0, T]), sequence=1)
    with pytest.raises(ValueError, match="steps: expected 7, one for each step, got 2"):
        plot_gates(traced, steps=["a", "b"])


def test_plot_gradient_flow(flow: GradientFlow) -> None:
    (axis,) = plot_gradient_flow({"one": flow, "other": flow}).axes
    assert axis.get_yscale() == "log" and axis.get_ylabel() and axis.get_xlabel() == "step t"
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == [f"{one} l0: dL/d{state}_t" for one in ("one", "other") for state in "hc"]
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == 4
    close(torch.tensor(axis.lines[0].get_ydata(), dtype=torch.float64), flow["l0"]["h"])


def test_labels_are_no_mathematics(traced: Trace, flow: GradientFlow, tmp_path: Path) -> None:
    figure = plot_gradient_flow({"$^$": flow, "_a": flow})
    figure.savefig(tmp_path / "a.png")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0].startswith("$^$ l0") and labels[2].startswith("_a l0")
    plot_gates(traced, steps=["$a_$"] * T).savefig(tmp_path / "b.png")


def test_many_layers_look_different() -> None:
    flow = gradient_flow(made(cell_named("lstm"), num_layers=4, bidirectional=True), input_of(),
                         loss_of)  # fmt: skip
    (axis,) = plot_gradient_flow(flow).axes
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.lines}
    assert len(looks) == len(axis.lines) == 16


def test_plot_gradient_flow_refuses(traced: Trace) -> None:
    with pytest.raises(TypeError, match="flow: expected what .* gives, got Trace"):
        plot_gradient_flow(traced)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="flow: expected at least one, got none"):
        plot_gradient_flow({})


def test_plots_say_that_matplotlib_is_missing(
    traced: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_gates(traced)


def test_report(traced: Trace, flow: GradientFlow, tmp_path: Path) -> None:
    steps = ["<", "</script>", "'", '"', "&", "é", "\n"]
    path = write_report(
        tmp_path / "new" / "r.html", traced, {"a": flow}, steps=steps, title="1 < 2"
    )
    page = path.read_text(encoding="utf-8")
    assert "<title>1 &lt; 2</title>" in page and "{{" not in page
    assert re.findall(r"https?://[^\"' ]+", page) == ["http://www.w3.org/2000/svg"]  # a name only
    assert page.count("</script>") == 2
    text = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    data = json.loads(text[1])
    assert data["steps"] == steps
    for part, name in zip(data["parts"], traced.layers, strict=True):
        assert part["name"] == name and part["T"] == T
        for shown in part["values"]:
            values = struct.unpack(f"<{shown['H'] * T}f", base64.b64decode(shown["base64"]))
            expected = traced[name][shown["name"]][:, 0].T
            close(torch.tensor(values, dtype=torch.float64).view(H, T), expected, 1e-6)
    assert [curve["label"] for curve in data["curves"]] == ["a l0: dL/dh_t", "a l0: dL/dc_t"]
    assert data["curves"][1]["norms"] == flow["l0"]["c"].tolist()


def test_report_of_what_exploded(tmp_path: Path) -> None:
    """JSON has neither NaN nor infinity."""
    lstm = made(cell_named("lstm"))
    x = input_of()
    x[3] = torch.nan
    flow = gradient_flow(lstm, x, loss_of)
    path = write_report(tmp_path / "r.html", trace(lstm, x), flow, title="{{data}}")
    page = path.read_text(encoding="utf-8")
    assert "<title>{{data}}</title>" in page
    text = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    data = json.loads(text[1], parse_constant=lambda name: pytest.fail(name))
    assert "nan" in data["curves"][0]["norms"]
    assert data["parts"][0]["values"][1]["scale"] == [0, 1]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_page_of_a_report_runs(tmp_path: Path) -> None:
    lstm = made(cell_named("lstm"), num_layers=2)
    x = input_of()
    x[3] = torch.nan
    path = write_report(tmp_path / "r.html", trace(lstm, x), gradient_flow(lstm, x, loss_of))
    pointing = """<script>
      const box = document.querySelectorAll("canvas")[7].getBoundingClientRect();
      document.querySelectorAll("canvas")[7].dispatchEvent(new PointerEvent("pointermove",
        {clientX: box.left + box.width * 1.5 / 7, clientY: box.top + box.height * 2.5 / 6}));
    </script></body>"""
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", pointing))
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.count("<canvas") == 12 and done.stdout.count("<path") == 4
    said = re.search(r'id="said"[^>]*>(.*?)</div>\s*<script', done.stdout, re.DOTALL)
    assert said is not None and "layer l1, unit 2, step 1" in said[1]
    expected = trace(lstm, x)["l1"]["f"][1, 0, 2].item()
    shown = re.search(r'class="now">f ([-\d.e]+)<', said[1])
    assert shown is not None and float(shown[1]) == pytest.approx(expected, rel=1e-3)


def test_report_refuses(traced: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="steps: expected 7"):
        write_report(tmp_path / "r.html", traced, steps=["a"])
    with pytest.raises(IndexError, match="sequence: expected one of 3, from 0, got -1"):
        write_report(tmp_path / "r.html", traced, sequence=-1)
    with pytest.raises(TypeError, match="flow: expected what .* gives, got Trace"):
        write_report(tmp_path / "r.html", traced, traced)  # type: ignore[arg-type]
    monkeypatch.setattr(sys.modules["fusedrnn.inspect.report"], "LARGEST", 100)
    with pytest.raises(ValueError, match="and 100 values in a report, got 7 and 504"):
        write_report(tmp_path / "r.html", traced)
    assert not (tmp_path / "r.html").exists()
