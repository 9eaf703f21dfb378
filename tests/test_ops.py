"""The raw ops as torch.library wants them, and modules under compilers."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import ops

CELLS = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


def arguments(cell: str, *, bidirectional=False, bias=True, packed=False, P=0, grad=False):
    """Positional arguments of layer_forward, save=True."""
    torch.manual_seed(0)
    gates, H, width, D = CELLS[cell], 16, P or 16, 2 if bidirectional else 1

    def leaf(*shape):
        return (torch.randn(shape, dtype=torch.float64) / 4).requires_grad_(grad)

    weights = []
    for _ in range(D):
        weights += [leaf(gates * H, 3), leaf(gates * H, width)]
        weights += [leaf(gates * H), leaf(gates * H)] if bias else []
        weights += [leaf(P, H)] if P else []
    x, sizes = (leaf(6, 3), torch.tensor([3, 2, 1])) if packed else (leaf(4, 3, 3), None)
    hx = leaf(D, 3, width)
    cx = leaf(D, 3, H) if cell == "lstm" else None
    return (x, sizes, hx, cx, weights, list(CELLS).index(cell), bias, bidirectional, True)


VARIANTS = {
    **{cell: dict(cell=cell) for cell in CELLS},
    "bidirectional": dict(cell="gru", bidirectional=True),
    "no bias": dict(cell="lstm", bias=False),
    "packed": dict(cell="lstm", packed=True, bidirectional=True),
    "projected": dict(cell="lstm", P=4),
}


@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck_forward(variant: str, grad: bool) -> None:
    results = opcheck(ops.layer_forward, arguments(**VARIANTS[variant], grad=grad))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck_backward(variant: str) -> None:
    given = arguments(**VARIANTS[variant])
    y, hn, cn, reserve = ops.layer_forward(*given)
    grads = (torch.randn_like(y), torch.randn_like(hn), torch.randn_like(cn) if given[3] is not None
             else None)  # fmt: skip
    results = opcheck(ops.layer_backward, (*grads, *given[:5], y, reserve, *given[5:8], -1))
    assert set(results.values()) == {"SUCCESS"}


def test_gradients_not_asked_for_are_empty() -> None:
    given = arguments("lstm")
    y, _, _, reserve = ops.layer_forward(*given)
    for needs in (0, 1, 2, 4, 8, 64, 9):
        x, hx, cx, weights = ops.layer_backward(
            torch.ones_like(y), None, None, *given[:5], y, reserve, *given[5:8], needs
        )
        for i, (grad, operand) in enumerate(
            zip([x, hx, cx, *weights], [given[0], given[2], given[3], *given[4]], strict=True)
        ):
            assert grad.shape == (operand.shape if needs >> i & 1 else (0,)), (needs, i)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_compile_whole_graph(name: str) -> None:
    torch._dynamo.reset()
    module = getattr(fusedrnn, name)(5, 6, num_layers=2, bidirectional=True, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for steps in (4, 7):
        x = torch.randn(3, steps, 5)
        results = []
        for f in (module, compiled):
            module.zero_grad()
            leaf = x.clone().requires_grad_()
            output = f(leaf)[0]
            output.square().sum().backward()
            grads = [leaf.grad, *(p.grad.clone() for p in module.parameters())]
            results.append([output.detach(), *grads])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    module = torch.nn.Sequential(torch.nn.Linear(5, 5), fusedrnn.GRU(5, 6)).eval()
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        found = torch.compile(module, fullgraph=True)(x)
        torch.testing.assert_close(found, module(x))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_export(name: str, strict: bool) -> None:
    module = getattr(fusedrnn, name)(5, 6, batch_first=True).eval()
    x = torch.randn(3, 4, 5)
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    program = torch.export.export(
        module, (x,), dynamic_shapes={"input": {0: batch, 1: steps}}, strict=strict
    )
    other = torch.randn(7, 9, 5)
    torch.testing.assert_close(program.module()(other)[0], module(other)[0])


def test_packed_of_a_model_under_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        module = fusedrnn.LSTM(5, 6)
        hx = torch.zeros(1, 3, 6)
        data, sizes = torch.zeros(6, 5), mode.from_tensor(torch.tensor([3, 2, 1]))
        output = ops.layer_forward(
            data, sizes, hx, hx, list(module.parameters()), 2, True, False, False
        )
    assert output[0].shape == (6, 6) and output[1].shape == (1, 3, 6)
    assert isinstance(PackedSequence(output[0], sizes).data, torch.Tensor)
