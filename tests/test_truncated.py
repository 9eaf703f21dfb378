"""Truncated backpropagation through time, against calls and loops by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import MODULE_FACTS, MODULES
from torch import Tensor, nn

import fusedrnn
from fusedrnn import truncated_bptt

T, B, I, H = 11, 4, 5, 7  # noqa: E741


def made(name: str, package: Any = fusedrnn, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(package, name)(I, H, dtype=torch.float64, **options)


def input_of(*shape: int) -> Tensor:
    return torch.randn(*(shape or (T, B, I)), dtype=torch.float64)


def states_of(name: str, *shape: int) -> Any:
    states = [input_of(*shape, H).requires_grad_() for _ in MODULE_FACTS[name].states]
    return tuple(states) if len(states) > 1 else states[0]


def flat(states: Any) -> list[Tensor]:
    return [states] if isinstance(states, Tensor) else [t for each in states for t in flat(each)]


def compare(found: Any, expected: Any) -> None:
    for ours, theirs in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"batch_first": True, "num_layers": 2}, {"lengths": [11, 0, 4, 7]}),
    ({"num_layers": 2}, {"reset": True}),
    ({}, {"reset": True, "reset_states": "one", "lengths": torch.tensor([11, 0, 4, 7])}),
    ({"batch_first": True}, {"reset": True, "reset_states": "every"}),
    ({"states_batch_first": True, "num_layers": 2}, {"reset": True, "reset_states": "every"}),
]


def call_of(name: str, options: dict[str, Any], asked: dict[str, Any]) -> tuple[Any, ...]:
    """A module, an input, first states, and the arguments of a call."""
    module = made(name, **options)
    layers = module.num_layers
    sizes = (B, T) if module.batch_first else (T, B)
    by_batch = options.get("states_batch_first", False)
    asked = dict(asked)
    if "reset" in asked:
        asked["reset"] = torch.rand(sizes) < 0.3
        shape = {"one": (), "every": (T,)}.get(asked.get("reset_states", ""), None)
        if shape is not None:
            order = (B, *shape, layers) if by_batch else (*shape, layers, B)
            asked["reset_states"] = states_of(name, *order)
    hx = states_of(name, *((B, layers) if by_batch else (layers, B)))
    return module, input_of(*sizes, I).requires_grad_(), hx, asked


def gradients(loss: Tensor, module: nn.Module, *others: Any) -> list[Tensor]:
    leaves = [*module.parameters(), *(t for other in others for t in flat(other))]
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(leaf) if grad is None else grad
        for leaf, grad in zip(leaves, found, strict=True)
    ]


def loss_of(output: Tensor, steps: slice, module: nn.Module) -> Tensor:
    weights = torch.randn(T, B, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = weights[steps].transpose(0, 1) if module.batch_first else weights[steps]
    return (output * weights).sum()


@pytest.mark.parametrize("options, asked", OPTIONS, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_a_window_of_all_steps_is_all_of_bptt(
    name: str, options: dict[str, Any], asked: dict[str, Any]
) -> None:
    module, input, hx, asked = call_of(name, options, asked)
    others = [input, hx, asked.get("reset_states", ())]
    output, hn = module(input, hx, **asked)
    expected = gradients(loss_of(output, slice(T), module), module, *others)
    for window in (T, T + 3):
        (only,) = truncated_bptt(module, input, window, hx, **asked)
        assert only.steps == slice(0, T)
        compare((only.output, only.hn), (output, hn))
        compare(gradients(loss_of(only.output, only.steps, module), module, *others), expected)


@pytest.mark.parametrize("window", [1, 4, 10])
@pytest.mark.parametrize("options, asked", OPTIONS, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_windows(name: str, options: dict[str, Any], asked: dict[str, Any], window: int) -> None:
    """The numbers are those of one call; gradients those of a call of the window alone."""
    module, input, hx, asked = call_of(name, options, asked)
    time = 1 if module.batch_first else 0
    output, hn = module(input, hx, **asked)
    of_steps = 1 if options.get("states_batch_first") else 0
    end, by = 0, asked.get("reset_states", ())
    lengths = torch.as_tensor(asked["lengths"]) if "lengths" in asked else None
    state = hx
    for done in truncated_bptt(module, input, window, hx, **asked):
        begin, end = end, min(end + window, T)
        assert done.steps == slice(begin, end)
        compare(done.output, output.narrow(time, begin, end - begin))
        own: dict[str, Any] = {}
        if lengths is not None:
            own["lengths"] = (lengths - begin).clamp(0, end - begin)
            assert done.lengths.equal(own["lengths"])
        if "reset" in asked:
            own["reset"] = asked["reset"].narrow(time, begin, end - begin)
        if by != ():
            parts = [
                each.narrow(of_steps, begin, end - begin) if each.dim() == 4 else each
                for each in flat(by)
            ]
            own["reset_states"] = tuple(parts) if len(parts) > 1 else parts[0]
        alone, state = module(input.narrow(time, begin, end - begin), state, **own)
        compare(
            gradients(loss_of(done.output, done.steps, module), module, input, hx, by),
            gradients(loss_of(alone, done.steps, module), module, input, hx, by),
        )
        assert not any(each.requires_grad for each in flat(done.carried))
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
    assert end == T
    compare(done.hn, hn)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_modules_of_torch(name: str) -> None:
    ours, theirs = made(name, num_layers=2), made(name, nn, num_layers=2)
    input = input_of()
    for a, b in zip(truncated_bptt(ours, input, 3), truncated_bptt(theirs, input, 3), strict=True):
        compare((a.output, a.hn), (b.output, b.hn))
        a.output.sum().backward()
        b.output.sum().backward()
    compare([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


def test_one_sequence_and_sizes_by_layer() -> None:
    module = fusedrnn.LSTM(I, [6, 4], dtype=torch.float64, learn_initial_state=True)
    input = input_of(T, I)
    output, hn = module(input, reset=torch.arange(T) == 5)
    windows = [*truncated_bptt(module, input, 4, reset=torch.arange(T) == 5)]
    compare(torch.cat([window.output for window in windows]), output)
    compare(windows[-1].hn, hn)


def test_an_optimizer_may_step_between_windows() -> None:
    """The next window is run with the weights of then, and the states of before."""
    module = made("LSTM").float()
    head = nn.Linear(H, 1)
    optimizer = torch.optim.SGD([*module.parameters(), *head.parameters()], 0.1)
    input, targets = torch.randn(60, B, I), torch.randn(60, B, 1)
    by_hand = made("LSTM").float()
    by_hand.load_state_dict(module.state_dict())
    its_head = nn.Linear(H, 1)
    its_head.load_state_dict(head.state_dict())
    its_optimizer = torch.optim.SGD([*by_hand.parameters(), *its_head.parameters()], 0.1)
    for window in truncated_bptt(module, input, 20):
        loss = (head(window.output) - targets[window.steps]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hx = None
    for begin in (0, 20, 40):
        output, hx = by_hand(input[begin : begin + 20], hx)
        loss = (its_head(output) - targets[begin : begin + 20]).square().mean()
        its_optimizer.zero_grad()
        loss.backward()
        its_optimizer.step()
        hx = tuple(state.detach() for state in hx)
    torch.testing.assert_close([*module.parameters()], [*by_hand.parameters()])


def test_memory_is_that_of_a_window() -> None:
    """Each window's graph ends at its own beginning."""
    module, input = made("GRU"), input_of().requires_grad_()
    _, second, _ = truncated_bptt(module, input, 4)
    (gradient,) = torch.autograd.grad(second.output.sum(), input)
    marked = gradient.flatten(1).any(1)
    assert marked.nonzero().flatten().tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"window": 0}, ValueError, "window: expected a positive int, got 0"),
        ({"window": 2.0}, TypeError, "window: expected a positive int, got 2.0 of float"),
        ({"window": True}, TypeError, "window: expected a positive int"),
        ({"input": [1.0]}, AttributeError, "input: expected a torch.Tensor, got list"),
        ({"input": torch.zeros(I)}, ValueError, "input: expected 2 or 3 dimensions"),
        ({"input": torch.zeros(0, B, I)}, RuntimeError, "larger than 0"),
        ({"lengths": [1, 2]}, RuntimeError, r"lengths: expected .* of shape \(B,\) = \(4,\)"),
        ({"lengths": [1, 2, 3, T + 1]}, RuntimeError, "lengths: expected values from 0 to 11"),
        ({"lengths": 1.5}, TypeError, "lengths: expected an int64"),
        ({"reset_states": torch.zeros(T + 1, 1, B, H)}, RuntimeError, "one for each of 11 steps"),
        ({"reset": torch.zeros(T)}, RuntimeError, r"reset: expected .* of shape \(11, 4\)"),
    ],
)  # fmt: skip
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Said at once, and not when the first window is asked for."""
    arguments = {"module": made("GRU"), "input": input_of(), "window": 4} | change
    with pytest.raises(error, match=message):
        truncated_bptt(**arguments)


def test_two_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="module: expected one direction, got a bidirectional"):
        truncated_bptt(made("GRU", bidirectional=True), input_of(), 4)
