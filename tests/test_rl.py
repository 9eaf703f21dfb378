"""docs/rl.md is right: what it puts in the place of loops and of padding gives the same numbers.

Its libraries are not needed here. What each does is written down once more, in a few lines of
torch.nn, and the page's functions are held to that, in float64 and with all gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_docs import ROOT, blocks_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close

import fusedrnn

T, B, I, H, LAYERS = 11, 4, 5, 7, 2  # noqa: E741
STATES = {"LSTM": 2, "GRU": 1}


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page defines."""
    names: dict[str, Any] = {}
    for block in blocks_of(ROOT / "docs/rl.md"):
        if block.language == "python" and block.excuse is None:
            block.run(names)
    return names


@pytest.fixture(params=STATES)
def cell(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    name: str = request.param
    return name


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def layers_of(cell: str) -> tuple[nn.RNNBase, nn.RNNBase]:
    """torch.nn's and ours, with the same weights."""
    stock = getattr(nn, cell)(I, H, LAYERS, dtype=torch.float64)
    ours = getattr(fusedrnn, cell)(I, H, LAYERS, dtype=torch.float64)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def hold(
    ours: nn.Module, stock: nn.Module, run: Callable[[nn.Module, Tensor], Any],
    expected: Callable[[nn.Module, Tensor], Any], input: Tensor,
) -> None:  # fmt: skip
    """Results and gradients of the input and of all weights are the same."""
    found = []
    for module, function in ((ours, run), (stock, expected)):
        x = input.clone().requires_grad_()
        results = function(module, x)
        wanted = torch.stack([(result * result).sum() for result in results]).sum()
        found.append((results, torch.autograd.grad(wanted, [x, *module.parameters()])))
    assert_close(found[0], found[1])


def pieces(starts: Tensor) -> list[tuple[int, int, int]]:
    """Sequence, first step and end of each piece, one sequence after the other."""
    found = []
    for b in range(starts.size(1)):
        firsts = [0, *[t for t in range(1, len(starts)) if starts[t, b]]]
        ends = [*firsts[1:], len(starts)]
        found += [(b, first, end) for first, end in zip(firsts, ends, strict=True)]
    return found


def padded(module: nn.Module, x: Tensor, states: list[Tensor], starts: Tensor) -> Tensor:
    """The output [T, B, H] by cutting at `starts` [T, B] and padding.

    Each piece begins with the states of its first step, of those in `states`, [T, LAYERS, B, H].
    """
    parts = pieces(starts)
    input = pad_sequence([x[first:end, b] for b, first, end in parts])
    first_states = [
        torch.stack([state[first, :, b] for b, first, _ in parts], 1) for state in states
    ]
    output, _ = module(input, tuple(first_states) if len(states) > 1 else first_states[0])
    rows = [output[: end - first, i] for i, (_, first, end) in enumerate(parts)]
    return torch.cat(rows).view(B, T, H).transpose(0, 1)


@pytest.mark.parametrize("first_marked", [False, True])
@pytest.mark.parametrize("steps", [1, T])
def test_sb3(page: dict[str, Any], steps: int, first_marked: bool) -> None:
    """A loop over the steps, before each of which the states of marked sequences are zeroed."""
    torch.manual_seed(0)
    stock, ours = layers_of("LSTM")
    hx = draw(LAYERS, B, H), draw(LAYERS, B, H)
    starts = (torch.rand(B, steps) < 0.3).double()
    starts[:, 0] = first_marked

    def by_steps(lstm: nn.Module, features: Tensor) -> tuple[Tensor, ...]:
        states, outputs = hx, []
        for t in range(steps):
            goes_on = (1 - starts[:, t]).view(1, B, 1)
            step = features.view(B, steps, I)[:, t]
            output, states = lstm(step[None], tuple(goes_on * state for state in states))
            outputs.append(output[0])
        return torch.stack(outputs, 1).flatten(0, 1), *states

    def in_one_call(lstm: nn.Module, features: Tensor) -> tuple[Tensor, ...]:
        output, states = page["process_sequence"](features, hx, starts.flatten(), lstm)
        return output, *states

    hold(ours, stock, in_one_call, by_steps, draw(B * steps, I))


def test_rsl_rl(page: dict[str, Any], cell: str) -> None:
    """Pieces that begin after `dones`, padded, with the state stored at their first step."""
    stock, ours = layers_of(cell)
    dones = (torch.rand(T, B, 1) < 0.3).double()
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[1:] = dones[:-1, :, 0] == 1
    # The state of an environment that was done is zero when the next step stores it.
    saved = [
        draw(T, LAYERS, B, H).masked_fill(starts[:, None, :, None], 0) for _ in range(STATES[cell])
    ]

    def in_one_call(rnn: nn.Module, observations: Tensor) -> list[Tensor]:
        parts = []
        for start, stop in ((0, B // 2), (B // 2, B)):  # two minibatches
            states = page["first_of"](saved, start, stop)
            masks = page["starts_of"](dones)[:, start:stop]
            parts.append(rnn(observations[:, start:stop], states, reset=masks)[0])
        return [torch.cat(parts, 1)]

    hold(ours, stock, in_one_call, lambda rnn, x: [padded(rnn, x, saved, starts)], draw(T, B, I))


def test_torchrl(page: dict[str, Any], cell: str) -> None:
    """Pieces that begin at `is_init`, padded, with the state stored at their first step.

    The states in the output are those after every step, of which TorchRL has those at the ends.
    """
    stock, ours = layers_of(cell)
    ours.batch_first = True
    is_init = torch.rand(B, T) < 0.3
    states = [draw(B, T, LAYERS, H) for _ in range(STATES[cell])]
    function = page[f"{cell.lower()}_with_resets"]

    def padded_by_batch(rnn: nn.Module, x: Tensor) -> list[Tensor]:
        by_time = [state.permute(1, 2, 0, 3) for state in states]
        output = padded(rnn, x.transpose(0, 1), by_time, is_init.t())
        return [output.transpose(0, 1)]

    hold(ours, stock, lambda rnn, x: function(rnn, x, *states, is_init)[:1], padded_by_batch,
         draw(B, T, I))  # fmt: skip

    x = draw(B, T, I)
    _, *after = function(ours, x, *states, is_init)
    for b, first, end in pieces(is_init.t()):
        before = [state[b, first].unsqueeze(1) for state in states]
        hx = tuple(before) if len(before) > 1 else before[0]
        _, hn = stock(x[b, first:end].unsqueeze(1), hx)
        for state, expected in zip(after, hn if len(before) > 1 else [hn], strict=True):
            assert_close(state[b, end - 1], expected[:, 0])
