"""Every cell and layer in plain PyTorch: the definition that the kernels are tested against.

Nothing here is fast and everything here is differentiable, to any order and by any transform, so
this file has three uses: in float64 it is the oracle of the tests; differentiated, it gives the
second derivatives of the fused ops; and under `torch.func.vmap` and `jvp` it takes their place.

A layer is a walk over the steps t. What does not depend on the previous step, `W_ih x_t + b_ih`,
is computed for all steps at once; a cell is the rest of one step. Sizes and indices: T steps of
B sequences with I features; H hidden units; G gates of a cell, their rows stacked in `w_ih` and
`w_hh`; R the width of h, which is P when the layer is projected and H when it is not.

    input  [T, B, I]  --  W_ih, b_ih  -->  x  [T, B, G*H]  --  the walk  -->  output  [T, B, R]

A cell is a function `<its name>_cell(x, states, weights)` that returns the states after the step,
of which the first, h, is not projected yet: that is the walk's part, and the same for all cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn._engine.layer import Layer, Operands, States
from fusedrnn.cells import CELLS


class Weights(NamedTuple):
    """The weights of one direction by their roles; None where there are none."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None
    w_unit: Tensor | None = None


Cell = Callable[[Tensor, Sequence[Tensor], Weights], States]


def rnn_tanh_cell(x: Tensor, states: Sequence[Tensor], weights: Weights) -> States:
    """One step of the simple recurrent network (Elman, "Finding structure in time", 1990).

    h' = tanh(x + W_hh h + b_hh)              x = W_ih x_t + b_ih
    """
    (h,) = states
    return (torch.tanh(x + F.linear(h, weights.w_hh, weights.b_hh)),)


def rnn_relu_cell(x: Tensor, states: Sequence[Tensor], weights: Weights) -> States:
    """The same with another activation.

        h' = relu(x + W_hh h + b_hh)              x = W_ih x_t + b_ih

    Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified linear
    units", 2015.
    """
    (h,) = states
    return (torch.relu(x + F.linear(h, weights.w_hh, weights.b_hh)),)


def lstm_cell(x: Tensor, states: Sequence[Tensor], weights: Weights) -> States:
    """One step of the long short-term memory, to (h', c').

        i, f, g, o = x + W_hh h + b_hh            x = W_ih x_t + b_ih
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')
        h' = W_hr h'                              if the layer is projected

    Hochreiter and Schmidhuber, "Long short-term memory", 1997; the forget gate f is that of Gers,
    Schmidhuber and Cummins, "Learning to forget", 2000; the projection that of Sak, Senior and
    Beaufays, "Long short-term memory recurrent neural network architectures for large scale
    acoustic modeling", 2014.
    """
    h, c = states
    i, f, g, o = (x + F.linear(h, weights.w_hh, weights.b_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(x: Tensor, states: Sequence[Tensor], weights: Weights) -> States:
    """One step of the gated recurrent unit.

        xr, xz, xn = x = W_ih x_t + b_ih          hr, hz, hn = W_hh h + b_hh
        r = sigmoid(xr + hr)
        z = sigmoid(xz + hz)
        n = tanh(xn + r * hn)
        h' = n + z * (h - n)

    Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", 2014, in the form of cuDNN and torch: the reset gate r applies after the product
    with W_hh and not before it, so that all three gates are one product.
    """
    (h,) = states
    xr, xz, xn = x.chunk(3, dim=-1)
    hr, hz, hn = F.linear(h, weights.w_hh, weights.b_hh).chunk(3, dim=-1)
    r = torch.sigmoid(xr + hr)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + r * hn)
    return (n + z * (h - n),)


def gru_reset_before_cell(x: Tensor, states: Sequence[Tensor], weights: Weights) -> States:
    """One step of the gated recurrent unit with the reset gate before the recurrent product.

        xr, xz, xn = x = W_ih x_t + b_ih          hr, hz = W_hr h + b_hr, W_hz h + b_hz
        r = sigmoid(xr + hr)
        z = sigmoid(xz + hz)
        n = tanh(xn + W_hn (r * h) + b_hn)
        h' = n + z * (h - n)

    Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", 2014, in its first version; Keras' GRU with `reset_after=False` and ONNX's with
    `linear_before_reset=0`. The candidate n waits for r of all units: two products a step.
    """
    (h,) = states
    xr, xz, xn = x.chunk(3, dim=-1)
    w_hr, w_hz, w_hn = weights.w_hh.chunk(3)
    b_hr, b_hz, b_hn = (None, None, None) if weights.b_hh is None else weights.b_hh.chunk(3)
    r = torch.sigmoid(xr + F.linear(h, w_hr, b_hr))
    z = torch.sigmoid(xz + F.linear(h, w_hz, b_hz))
    n = torch.tanh(xn + F.linear(r * h, w_hn, b_hn))
    return (n + z * (h - n),)


STEP: dict[str, Cell] = {cell.name: globals()[f"{cell.name}_cell"] for cell in CELLS}
"""The function of each cell, by the cell's name."""


def layer(layer: Layer, operands: Operands) -> tuple[Tensor, States]:
    """One layer in one or both directions: what `torch.ops.fusedrnn.layer_forward` computes.

    Returns:
        output [T, B, D*R] or, packed, [N, D*R], D being the number of directions; the final
        states, [D, B, R] and, of those after h, [D, B, H].
    """
    input, batch_sizes, hx, weights = operands
    if batch_sizes is None:
        rows, sizes = input.flatten(0, 1), [input.size(1)] * input.size(0)
    else:
        rows, sizes = input, batch_sizes.tolist()
    roles = layer.roles
    outputs: list[Tensor] = []
    finals: list[Sequence[Tensor]] = []
    for direction in range(layer.directions):
        own = weights[direction * len(roles) : (direction + 1) * len(roles)]
        by_role = Weights(**dict(zip(roles, own, strict=True)))
        first = [state[direction] for state in hx] or _zeros(layer, input, by_role, sizes)
        output, final = _walk(layer, rows, sizes, first, by_role, reverse=direction == 1)
        outputs.append(output)
        finals.append(final)
    output = torch.cat(outputs, dim=-1)
    if batch_sizes is None:
        output = output.unflatten(0, input.shape[:2])
    return output, tuple(torch.stack(states) for states in zip(*finals, strict=True))


def _zeros(layer: Layer, input: Tensor, weights: Weights, sizes: list[int]) -> list[Tensor]:
    """First states of one direction where none are given."""
    hidden_size = weights.w_ih.size(0) // len(layer.cell.gates)
    _, *others = layer.cell.states
    widths = [weights.w_hh.size(1), *[hidden_size] * len(others)]
    return [input.new_zeros(sizes[0], width) for width in widths]


def _walk(
    layer: Layer,
    rows: Tensor,
    sizes: list[int],
    first: Sequence[Tensor],
    weights: Weights,
    *,
    reverse: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """One direction: the walk over the steps, from the last to the first if `reverse`.

    `rows` are those of all steps, one step after the other, `sizes[t]` of them for step t.
    Sequences stand longest first, so the ones alive at step t are the first `sizes[t]` rows. The
    rows below keep their state: forward it is their final one, in reverse still their first one.
    """
    step = STEP[layer.cell.name]
    xs = F.linear(rows, weights.w_ih, weights.b_ih).split(sizes)
    states = first
    outputs = []
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        h, *others = step(xs[t], [state[: sizes[t]] for state in states], weights)
        if weights.w_hr is not None:
            h = F.linear(h, weights.w_hr)
        outputs.append(h)
        states = [_over(new, old) for new, old in zip((h, *others), states, strict=True)]
    if reverse:
        outputs.reverse()
    return torch.cat(outputs), states


def _over(new: Tensor, old: Tensor) -> Tensor:
    """`old` with its first rows replaced by `new`."""
    return new if len(new) == len(old) else torch.cat([new, old[len(new) :]])
