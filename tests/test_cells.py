"""RNNCell, LSTMCell and GRUCell compute torch.nn's numbers."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, TORCH_CELLS
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import fusedrnn
from fusedrnn.cells import Cell, cell_named
from fusedrnn.testing.oracles import oracle_of, torch_options
from fusedrnn.testing.plain_gru import ResetBeforeGRUCell

STEPS = [name for name in CELLS if hasattr(fusedrnn, f"{cell_named(name).module}Cell")]
TORCH_STEPS = [name for name in STEPS if name in TORCH_CELLS]


class OneStep(nn.Module):
    """A layer that is called as the class of one step of its cell is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.input_size, self.hidden_size = layer.input_size, layer.hidden_size

    def forward(self, input: Tensor, hx: object = None) -> object:
        final = self.layer(input[None], tree_map(lambda state: state[None], hx))[1]
        return tree_map(lambda state: state[0], final)


def build(package: object, name: str, *sizes: int, **options: object) -> nn.Module:
    """The class of one step of a cell, ours or its oracle; parameters depend on nothing else."""
    torch.manual_seed(3)
    facts, options = cell_named(name), {"dtype": torch.float64} | options
    kind = f"{facts.module}Cell"
    if package is fusedrnn:
        return getattr(fusedrnn, kind)(*sizes, **options, **facts.options)
    if name == "gru_reset_before":
        return ResetBeforeGRUCell(*sizes, **options)
    if name not in TORCH_CELLS:
        return OneStep(oracle_of(name)(*sizes, **options))
    return getattr(nn, kind)(*sizes, **options, **(torch_options(facts) or {}))


def run(
    module: nn.Module, facts: Cell, batch: tuple[int, ...], states: bool, steps: int = 3
) -> list[Tensor]:
    """The states after some steps, and the gradients of everything."""
    parameter = next(module.parameters())
    generator = torch.Generator().manual_seed(4)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(parameter).requires_grad_()

    xs = [leaf(*batch, module.input_size) for _ in range(steps)]
    given = [leaf(*batch, module.hidden_size) for _ in facts.states if states]
    leaves = [*xs, *given]
    state = None if not given else tuple(given) if len(given) > 1 else given[0]
    for x in xs:
        state = module(x, state)
    results = list(state) if isinstance(state, tuple) else [state]
    sum((r * r).sum() for r in results).backward()
    return [*results, *(t.grad for t in [*leaves, *module.parameters()])]


@pytest.mark.float64
@pytest.mark.parametrize("cell", STEPS)
@pytest.mark.parametrize("batch", [(), (1,), (7,), (0,)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (5, 9), (40, 33)], ids=str)
@pytest.mark.parametrize("states", [True, False], ids=["hx", "no-hx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_numbers(cell, batch, sizes, states, bias, device) -> None:
    ours, theirs = (
        run(build(package, cell, *sizes, bias=bias).to(device), cell_named(cell), batch, states)
        for package in (fusedrnn, nn)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision(cell, dtype, device) -> None:
    facts = cell_named(cell)
    exact = run(build(nn, cell, 40, 33).to(dtype).double(), facts, (7,), True)
    theirs = run(build(nn, cell, 40, 33).to(device, dtype), facts, (7,), True)
    ours = run(build(fusedrnn, cell, 40, 33).to(device, dtype), facts, (7,), True)
    for a, b, e in zip(ours, theirs, exact, strict=True):
        scale = e.abs().max()
        error, bound = (a.cpu().double() - e).abs().max(), (b.cpu().double() - e).abs().max()
        # Inputs are rounded to dtype in both; four ulp of them move the results by about as much.
        assert error <= 2 * bound + 4 * torch.finfo(dtype).eps * scale


@pytest.mark.parametrize("cell", TORCH_STEPS)
def test_contract(cell) -> None:
    ours, theirs = build(fusedrnn, cell, 5, 6), build(nn, cell, 5, 6)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("cell", TORCH_STEPS)
def test_bad_input(cell) -> None:
    ours, theirs = build(fusedrnn, cell, 5, 6), build(nn, cell, 5, 6)
    x = torch.zeros(3, 5, dtype=torch.float64)
    h = torch.zeros(3, 6, dtype=torch.float64)
    several = len(cell_named(cell).states) > 1
    pair = (lambda t: (t, t)) if several else (lambda t: t)
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
