"""The raw ops as torch.library wants them; modules under compilers are in test_compile.py."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn._engine import ops
from fusedrnn._engine.sequences import padded_backward, padded_forward

CELLS = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}


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


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_all_of_the_reserve_is_written(cell: str) -> None:
    """Also beyond the last unit: it is a tensor, the same for the same call."""
    shapes = [(CELLS[cell] * 5, 3), (CELLS[cell] * 5, 5)]
    weights = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    x = torch.randn(26, 5, 3, dtype=torch.float64)
    found = []
    for _ in range(2):
        call = (x, None, None, None, weights, list(CELLS).index(cell), False, False, True)
        reserve = ops.layer_forward(*call)[3]
        found.append(reserve.clone())
        reserve.fill_(torch.nan)  # what the next call finds in its memory
        del reserve
    assert torch.equal(*found)


LENGTHS = torch.tensor([2, 4, 1])


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "packed"])
def test_opcheck_padded(variant: str, k: int) -> None:
    given = arguments(**VARIANTS[variant], grad=True)
    padded = (given[0], LENGTHS, *given[2:9], k)
    assert set(opcheck(padded_forward, padded).values()) == {"SUCCESS"}
    x, _, hx, cx, weights, *rest = arguments(**VARIANTS[variant])
    y, hn, cn, reserve = padded_forward(x, LENGTHS, hx, cx, weights, *rest, k)
    grads = (torch.randn_like(y), torch.randn_like(hn), torch.randn_like(cn) if cx is not None
             else None)  # fmt: skip
    operands = (*grads, x, LENGTHS, hx, cx, weights, y, reserve)
    results = opcheck(padded_backward, (*operands, *rest[:3], k, -1))
    assert set(results.values()) == {"SUCCESS"}


def test_padded_ops_have_first_derivatives_alone() -> None:
    x, _, *rest = arguments("lstm", grad=True)
    y = padded_forward(x, LENGTHS, *rest)[0]
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(torch.autograd.grad(y.sum(), x, create_graph=True)[0].sum(), x)
    with pytest.raises(RuntimeError, match="save=False"):
        padded_forward(x, LENGTHS, *rest[:-1], False)[0].sum().backward()


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
