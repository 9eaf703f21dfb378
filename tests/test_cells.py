"""RNNCell, LSTMCell and GRUCell compute torch.nn's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn.testing.plain_gru import ResetBeforeGRUCell

RESET_BEFORE = ("GRUCell", "-reset-before")
KINDS = [("RNNCell", "tanh"), ("RNNCell", "relu"), ("LSTMCell", ""), ("GRUCell", "")]


def build(package: object, kind: tuple[str, str], *sizes: int, **options: object) -> nn.Module:
    torch.manual_seed(3)
    if kind == RESET_BEFORE:
        if package is nn:
            return ResetBeforeGRUCell(*sizes, dtype=torch.float64, **options)
        options["reset_after"] = False
    elif kind[1]:
        options["nonlinearity"] = kind[1]
    return getattr(package, kind[0])(*sizes, dtype=torch.float64, **options)


def run(module: nn.Module, batch: tuple[int, ...], states: bool, steps: int = 3) -> list:
    """The states after some steps, and the gradients of everything."""
    parameter = next(module.parameters())
    generator = torch.Generator().manual_seed(4)
    hidden = module.hidden_size
    lstm = isinstance(module, nn.LSTMCell | fusedrnn.LSTMCell)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(parameter).requires_grad_()

    xs = [leaf(*batch, module.input_size) for _ in range(steps)]
    h, c = leaf(*batch, hidden), leaf(*batch, hidden)
    leaves = [*xs, *([h] if states else []), *([c] if states and lstm else [])]
    state = ((h, c) if lstm else h) if states else None
    for x in xs:
        state = module(x, state)
    results = list(state) if lstm else [state]
    sum((r * r).sum() for r in results).backward()
    return [*results, *(t.grad for t in [*leaves, *module.parameters()])]


@pytest.mark.float64
@pytest.mark.parametrize("kind", [*KINDS, RESET_BEFORE], ids="".join)
@pytest.mark.parametrize("batch", [(), (1,), (7,), (0,)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (5, 9), (40, 33)], ids=str)
@pytest.mark.parametrize("states", [True, False], ids=["hx", "no-hx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_numbers(kind, batch, sizes, states, bias, device) -> None:
    ours = run(build(fusedrnn, kind, *sizes, bias=bias).to(device), batch, states)
    theirs = run(build(nn, kind, *sizes, bias=bias).to(device), batch, states)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, RESET_BEFORE], ids="".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision(kind, dtype, device) -> None:
    module = build(nn, kind, 40, 33).to(dtype)
    exact = run(build(nn, kind, 40, 33).to(dtype).double(), (7,), True)
    theirs = run(module.to(device), (7,), True)
    ours = run(build(fusedrnn, kind, 40, 33).to(device, dtype), (7,), True)
    for a, b, e in zip(ours, theirs, exact, strict=True):
        scale = e.abs().max()
        error, bound = (a.cpu().double() - e).abs().max(), (b.cpu().double() - e).abs().max()
        # Inputs are rounded to dtype in both; four ulp of them move the results by about as much.
        assert error <= 2 * bound + 4 * torch.finfo(dtype).eps * scale


@pytest.mark.parametrize("kind", KINDS, ids="".join)
def test_contract(kind) -> None:
    ours, theirs = build(fusedrnn, kind, 5, 6), build(nn, kind, 5, 6)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("kind", KINDS, ids="".join)
def test_bad_input(kind) -> None:
    ours, theirs = build(fusedrnn, kind, 5, 6), build(nn, kind, 5, 6)
    x = torch.zeros(3, 5, dtype=torch.float64)
    h = torch.zeros(3, 6, dtype=torch.float64)
    pair = (lambda t: (t, t)) if kind[0] == "LSTMCell" else (lambda t: t)
    wrong = [
        (torch.zeros(2, 3, 5, dtype=torch.float64), None),
        (torch.zeros(3, 4, dtype=torch.float64), None),
        (x, pair(h[:2])),
        (x, pair(h[:, :5])),
        (x.float(), None),
    ]
    for input, state in wrong:
        with pytest.raises(Exception) as expected:
            theirs(input, state)
        with pytest.raises(Exception) as found:
            ours(input, state)
        assert issubclass(found.type, expected.type), (expected, found)
