"""The raw ops as torch.library wants them; modules under compilers are in test_compile.py."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, UNMODIFIED
from torch.library import opcheck
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn._engine import ops
from fusedrnn._engine.sequences import padded_backward, padded_forward
from fusedrnn.cells import cell_named


def arguments(cell: str, *, bidirectional=False, bias=True, packed=False, P=0, grad=False):
    """Positional arguments of layer_forward, save=True."""
    torch.manual_seed(0)
    facts = cell_named(cell)
    H, D = 16, 2 if bidirectional else 1

    def leaf(*shape):
        return (torch.randn(shape, dtype=torch.float64) / 4).requires_grad_(grad)

    weights = [leaf(*shape) for shape in [*facts.shapes(3, H, P, biases=bias).values()] * D]
    x, sizes = (leaf(6, 3), torch.tensor([3, 2, 1])) if packed else (leaf(4, 3, 3), None)
    hx = [leaf(D, 3, H if i else P or H) for i in range(len(facts.states))]
    return (x, sizes, hx, weights, facts.spec, bias, P > 0, bidirectional, True)


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
    *operands, save = given
    y, hn, reserve = ops.layer_forward(*given)
    for grad_hn in ([torch.randn_like(state) for state in hn], []):
        grads = (torch.randn_like(y), grad_hn)
        results = opcheck(
            ops.layer_backward, (*grads, *operands[:4], y, reserve, *operands[4:], -1)
        )
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("cell", [name for name in CELLS if cell_named(name).saved])
def test_all_of_the_reserve_is_written(cell: str) -> None:
    """Also beyond the last unit: it is a tensor, the same for the same call."""
    facts = cell_named(cell)
    shapes = facts.shapes(3, 5, biases=False).values()
    weights = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    x = torch.randn(26, 5, 3, dtype=torch.float64)
    found = []
    for _ in range(2):
        call = (x, None, [], weights, facts.spec, False, False, False, True)
        reserve = ops.layer_forward(*call)[2]
        found.append(reserve.clone())
        reserve.fill_(torch.nan)  # what the next call finds in its memory
        del reserve
    assert torch.equal(*found)


LENGTHS = torch.tensor([2, 4, 1])


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "packed"])
def test_opcheck_padded(variant: str, k: int) -> None:
    given = arguments(**VARIANTS[variant], grad=True)
    padded = (given[0], LENGTHS, *given[2:4], *UNMODIFIED, *given[4:], k)
    assert set(opcheck(padded_forward, padded).values()) == {"SUCCESS"}
    x, _, hx, weights, *layer, save = arguments(**VARIANTS[variant])
    given = (x, LENGTHS, hx, weights, *UNMODIFIED)
    y, hn, reserve = padded_forward(*given, *layer, save, k)
    grads = (torch.randn_like(y), [torch.randn_like(state) for state in hn])
    operands = (*grads, *given, y, reserve)
    results = opcheck(padded_backward, (*operands, *layer, k, -1))
    assert set(results.values()) == {"SUCCESS"}


def test_padded_ops_have_first_derivatives_alone() -> None:
    x, _, hx, weights, *layer = arguments("lstm", grad=True)
    rest = (hx, weights, *UNMODIFIED, *layer)
    y = padded_forward(x, LENGTHS, *rest)[0]
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(torch.autograd.grad(y.sum(), x, create_graph=True)[0].sum(), x)
    with pytest.raises(RuntimeError, match="save=False"):
        padded_forward(x, LENGTHS, *rest[:-1], False)[0].sum().backward()


def test_gradients_not_asked_for_are_empty() -> None:
    given = arguments("lstm")
    input, _, states, parameters, *layer, _ = given
    y, _, reserve = ops.layer_forward(*given)
    for needs in (0, 1, 2, 4, 8, 64, 9):
        x, hx, weights = ops.layer_backward(
            torch.ones_like(y), [], *given[:4], y, reserve, *layer, needs
        )
        for i, (grad, operand) in enumerate(
            zip([x, *hx, *weights], [input, *states, *parameters], strict=True)
        ):
            assert grad.shape == (operand.shape if needs >> i & 1 else (0,)), (needs, i)


def test_packed_of_a_model_under_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        module = fusedrnn.LSTM(5, 6)
        hx = torch.zeros(1, 3, 6)
        data, sizes = torch.zeros(6, 5), mode.from_tensor(torch.tensor([3, 2, 1]))
        output = ops.layer_forward(
            data, sizes, [hx, hx], list(module.parameters()), "lstm", True, False, False, False
        )
    assert output[0].shape == (6, 6) and output[1][0].shape == (1, 3, 6)
    assert isinstance(PackedSequence(output[0], sizes).data, torch.Tensor)


def test_a_gradient_of_one_state_only() -> None:
    """In its place in the list; the other is of shape [0]."""
    given = arguments("lstm")
    *operands, _ = given
    y, hn, reserve = ops.layer_forward(*given)
    none = torch.empty(0, dtype=y.dtype)
    for i, state in enumerate(hn):
        grad = torch.randn_like(state)
        alone = [grad if j == i else none for j in range(2)]
        zeros = [grad if j == i else torch.zeros_like(grad) for j in range(2)]
        found, expected = (
            ops.layer_backward(None, grads, *operands[:4], y, reserve, *operands[4:], -1)
            for grads in (alone, zeros)
        )
        for a, b in zip([found[0], *found[1], *found[2]], [expected[0], *expected[1], *expected[2]],
                        strict=True):  # fmt: skip
            assert torch.equal(a, b)


@pytest.mark.parametrize("op", ["layer_forward", "checkpointed_forward", "padded_forward"])
def test_gradients_of_lists_are_complete(op: str) -> None:
    """Of states in, by states out, with the ops' own autograd."""
    x, _, hx, weights, *layer, save = arguments("lstm", P=4, grad=True)
    function = getattr(torch.ops.fusedrnn, op)
    second = LENGTHS if op == "padded_forward" else None
    keep = 2 if op == "checkpointed_forward" else True
    modifiers = () if op == "layer_forward" else UNMODIFIED
    _, hn, *_ = function(x, second, hx, weights, *modifiers, *layer, keep)
    found = torch.autograd.grad(sum(state.square().sum() for state in hn), [x, *hx, *weights])
    module = fusedrnn.LSTM(3, 16, proj_size=4, dtype=torch.float64)
    for own, weight in zip(module.parameters(), weights, strict=True):
        own.data = weight.detach()
    _, hn = module(x, tuple(hx), lengths=second)
    leaves = [x, *hx, *module.parameters()]
    expected = torch.autograd.grad(sum(state.square().sum() for state in hn), leaves)
    torch.testing.assert_close(found, expected)


def test_wrong_lists_are_refused() -> None:
    x, sizes, hx, weights, *layer, save = arguments("lstm")
    for states in (hx[:1], [*hx, hx[0]]):
        with pytest.raises(RuntimeError, match=r"hx: expected 2 state\(s\) \(h c\) .* lstm, got"):
            ops.layer_forward(x, sizes, states, weights, *layer, save)
    for given in (weights[:3], [*weights, weights[0]]):
        with pytest.raises(RuntimeError, match=r"weights: expected 4 tensors .*\(w_ih, w_hh, b_ih"):
            ops.layer_forward(x, sizes, hx, given, *layer, save)
    _, biases, _, both = layer
    with pytest.raises(RuntimeError, match="projected: the cell gru cannot be projected"):
        ops.layer_forward(x, sizes, hx, weights, "gru", biases, True, both, save)
    y, hn, reserve = ops.layer_forward(x, sizes, hx, weights, *layer, save)
    with pytest.raises(RuntimeError, match=r"grad_hn: expected 2 state\(s\)"):
        ops.layer_backward(y, hn[:1], x, sizes, hx, weights, y, reserve, *layer, -1)
