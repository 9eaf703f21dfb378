"""Truncated backpropagation through time: long sequences in windows, with the state carried on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedrnn._engine.checks import (
    as_lengths,
    check_length_values,
    check_lengths,
    check_reset,
    kind_of,
    reject_no_steps,
)

__all__ = ["Window", "truncated_bptt"]


class Window(NamedTuple):
    """Some steps of long sequences, as `truncated_bptt` gives them.

    Attributes:
        output: of these steps, laid out as the input.
        hn: the final states of the window, or of the sequences that end in it, as the module gives
            them. The next window begins with these numbers, and no gradient passes between.
        steps: which steps they are: of targets [B, T] of a `batch_first` module, these are
            `targets[:, window.steps]`.
        lengths: how many of these steps each sequence has, int64 [B]; None if all have all.
    """

    output: Tensor
    hn: Any
    steps: slice
    lengths: Tensor | None

    @property
    def carried(self) -> Any:
        """`hn` without its graph: the `hx` of a call that goes on from here."""
        return _map(Tensor.detach, self.hn)


def truncated_bptt(
    module: Callable[..., Any],
    input: Tensor,
    window: int,
    hx: Any = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    reset_states: Any = None,
    step_inputs: Mapping[str, Any] | None = None,
) -> Iterator[Window]:
    """Runs a recurrent module over its input window by window, to learn after each.

    A window goes on from the states of the one before, and gradients end at its beginning
    (Williams and Peng, "An efficient gradient-based algorithm for on-line training of recurrent
    network trajectories", 1990): memory and the time of a backward are those of one window,
    however long the sequences are. If the window covers them, this is all of backpropagation
    through time. Each window is run when it is asked for, with the weights of then, so that an
    optimizer may step in between:

        for window in fusedrnn.truncated_bptt(lstm, input, 35):
            loss = loss_of(head(window.output), targets[window.steps])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Args:
        module: an `LSTM`, `GRU` or `RNN` of fusedrnn or torch.nn, or a module that is called in the
            same way and has the attribute `batch_first` if it is true. It must not be
            bidirectional: the reverse direction would have to begin at the end of the sequences.
        input: [T, B, I], [B, T, I] if the module is `batch_first`, or [T, I] for one sequence.
        window: how many steps a window has; the last has what is left.
        hx: the first states, as the module takes them; gradients flow into them.
        lengths: how many steps each sequence has, as fusedrnn's modules take them. The final state
            of a sequence stays what it was at its end.
        reset: where sequences begin anew, as fusedrnn's modules take it: [T, B], or as the input.
        reset_states: with what they begin, as fusedrnn's modules take it.
        step_inputs: what a written cell reads at each step, as `fusedrnn.Recurrent` takes it.

    Yields:
        Each window, from the first step to the last.

    Raises:
        ValueError: the module is bidirectional, the window is less than 1, or `input` is neither
            2-D nor 3-D.
        TypeError: `window` is no int, or `lengths` no integers.
        RuntimeError: a shape does not fit.
        AttributeError: `input` is not a tensor.
    """
    if not isinstance(window, int) or isinstance(window, bool):
        raise TypeError(f"window: expected a positive int, got {window!r} of {kind_of(window)}")
    if window < 1:
        raise ValueError(f"window: expected a positive int, got {window}")
    if not isinstance(input, Tensor):
        raise AttributeError(f"input: expected a torch.Tensor, got {kind_of(input)}")
    if input.dim() not in (2, 3):
        raise ValueError(f"input: expected 2 or 3 dimensions, got shape {tuple(input.shape)}")
    if getattr(module, "bidirectional", False):
        raise ValueError(
            "module: expected one direction, got a bidirectional module, whose second direction "
            "begins at the end of the sequences, and not of a window"
        )
    by_batch = input.dim() == 3 and bool(getattr(module, "batch_first", False))
    time = 1 if by_batch else 0
    if input.size(time) == 0:
        reject_no_steps()
    of_each: Tensor | None = None
    if lengths is not None:
        of_each = as_lengths(lengths)
        check_lengths(of_each, input.transpose(0, 1) if by_batch else input)
        check_length_values(of_each, input.size(time))
    if reset is not None:
        check_reset(reset, tuple(input.shape[:-1]))
    _map(_check_steps(module, input, time), reset_states)
    for name, given in (step_inputs or {}).items():
        _map(_check_step_inputs(name, input, time), given)
    return _windows(module, input, window, time, hx, of_each, reset, reset_states, step_inputs)


def _check_step_inputs(name: str, input: Tensor, time: int) -> Callable[[Tensor], Tensor]:
    """A check that step inputs are for all steps."""
    steps = input.size(time)

    def check(given: Tensor) -> Tensor:
        extra = given.dim() - input.dim()
        if extra not in (0, 1) or given.size(time + extra) != steps:
            raise RuntimeError(
                f"step_inputs[{name!r}]: expected values for each of {steps} steps, laid out as "
                f"the input of shape {tuple(input.shape)}, got shape {tuple(given.shape)}"
            )
        return given

    return check


def _check_steps(module: Any, input: Tensor, time: int) -> Callable[[Tensor], Tensor]:
    """A check that states for every step are for all of them."""
    steps, at = input.size(time), _time_of_states(module, input)

    def check(states: Tensor) -> Tensor:
        if states.dim() == input.dim() + 1 and states.size(at) != steps:
            raise RuntimeError(
                f"reset_states: expected one set, or one for each of {steps} steps, got shape "
                f"{tuple(states.shape)}"
            )
        return states

    return check


def _time_of_states(module: Any, input: Tensor) -> int:
    """The dimension of steps in states of every step."""
    return 1 if input.dim() == 3 and getattr(module, "states_batch_first", False) else 0


def _windows(
    module: Callable[..., Any],
    input: Tensor,
    window: int,
    time: int,
    hx: Any,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_states: Any,
    step_inputs: Mapping[str, Any] | None,
) -> Iterator[Window]:
    steps = input.size(time)
    of_steps = _time_of_states(module, input)

    def of_window(begin: int, size: int) -> Callable[[Tensor], Tensor]:
        def part(states: Tensor) -> Tensor:
            every = states.dim() == input.dim() + 1  # a set for every step
            return states.narrow(of_steps, begin, size) if every else states

        return part

    for begin in range(0, steps, window):
        size = min(window, steps - begin)
        options: dict[str, Any] = {}
        if lengths is not None:
            options["lengths"] = (lengths.to(torch.int64) - begin).clamp(0, size)
        if reset is not None:
            options["reset"] = reset.narrow(time, begin, size)
        if reset_states is not None:
            options["reset_states"] = _map(of_window(begin, size), reset_states)
        if step_inputs is not None:
            own = partial(_narrowed, time - input.dim(), begin, size)
            options["step_inputs"] = {name: _map(own, e) for name, e in step_inputs.items()}
        output, hn = module(input.narrow(time, begin, size), hx, **options)
        done = Window(output, hn, slice(begin, begin + size), options.get("lengths"))
        yield done
        hx = done.carried


def _narrowed(dim: int, begin: int, size: int, tensor: Tensor) -> Tensor:
    return tensor.narrow(dim, begin, size)


def _map(function: Callable[[Tensor], Tensor], states: Any) -> Any:
    """The function of each tensor in states, which may be tuples of tuples."""
    if isinstance(states, (tuple, list)):
        return tuple(_map(function, state) for state in states)
    return function(states) if isinstance(states, Tensor) else states
