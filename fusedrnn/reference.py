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
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn._engine.layer import Layer, Modifiers, Operands, States
from fusedrnn.cells import CELLS
from fusedrnn.cells import Cell as Facts


class Weights(NamedTuple):
    """The weights of one direction by their roles; None where there are none."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None
    w_unit: Tensor | None = None
    recurrent_factor: Tensor | None = None  # no weight: what the operands of W_hh are times
    step_inputs: Tensor | None = None  # nor are these, [B, K, H]: what the cell reads at this step

    def masked(self, operand: Tensor) -> Tensor:
        """An operand of W_hh, [B, R], as it is multiplied."""
        return operand if self.recurrent_factor is None else operand * self.recurrent_factor


Cell = Callable[[Tensor, Sequence[Tensor], Weights], States]


def rnn_tanh_cell(x: Tensor, states: Sequence[Tensor], weights: Weights) -> States:
    """One step of the simple recurrent network (Elman, "Finding structure in time", 1990).

    h' = tanh(x + W_hh h + b_hh)              x = W_ih x_t + b_ih
    """
    (h,) = states
    return (torch.tanh(x + F.linear(weights.masked(h), weights.w_hh, weights.b_hh)),)


def rnn_relu_cell(x: Tensor, states: Sequence[Tensor], weights: Weights) -> States:
    """The same with another activation.

        h' = relu(x + W_hh h + b_hh)              x = W_ih x_t + b_ih

    Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified linear
    units", 2015.
    """
    (h,) = states
    return (torch.relu(x + F.linear(weights.masked(h), weights.w_hh, weights.b_hh)),)


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
    i, f, g, o = (x + F.linear(weights.masked(h), weights.w_hh, weights.b_hh)).chunk(4, dim=-1)
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
    hr, hz, hn = F.linear(weights.masked(h), weights.w_hh, weights.b_hh).chunk(3, dim=-1)
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
    translation", 2014, in its later version (arXiv v3); Keras' GRU with `reset_after=False` and
    ONNX's with `linear_before_reset=0`. The candidate n waits for r of all units: two products a
    step.
    """
    (h,) = states
    xr, xz, xn = x.chunk(3, dim=-1)
    w_hr, w_hz, w_hn = weights.w_hh.chunk(3)
    b_hr, b_hz, b_hn = (None, None, None) if weights.b_hh is None else weights.b_hh.chunk(3)
    masked = weights.masked(h)
    r = torch.sigmoid(xr + F.linear(masked, w_hr, b_hr))
    z = torch.sigmoid(xz + F.linear(masked, w_hz, b_hz))
    n = torch.tanh(xn + F.linear(weights.masked(r * h), w_hn, b_hn))
    return (n + z * (h - n),)


STEP: dict[str, Cell] = {cell.name: globals()[f"{cell.name}_cell"] for cell in CELLS}
"""The function of each cell, by the cell's name."""


def _step_of(cell: Facts) -> Cell:
    return STEP[cell.name] if cell.program is None else partial(_program_cell, cell)


def _program_cell(cell: Facts, x: Tensor, states: Sequence[Tensor], weights: Weights) -> States:
    """One step of a cell that a user wrote, by torch's own functions."""
    program = cell.program
    assert program is not None
    masked = weights.masked(states[0])
    w_hh = weights.w_hh.chunk(len(cell.hidden))
    b_hh = [None] * len(w_hh) if weights.b_hh is None else weights.b_hh.chunk(len(w_hh))
    products: dict[str, Any] = {}
    for gate, weight, bias in zip(cell.hidden, w_hh, b_hh, strict=True):
        if gate in program.definition.called:
            products[gate] = partial(_product, weights, weight, bias)
        else:
            products[gate] = F.linear(masked, weight, bias)
    inputs = dict(zip(cell.inputs, x.chunk(len(cell.inputs), dim=-1), strict=True))
    units = () if weights.w_unit is None else weights.w_unit
    unit = dict(zip(cell.unit_weights, units, strict=True))
    steps = () if weights.step_inputs is None else weights.step_inputs.unbind(-2)
    of_step = dict(zip(cell.step_inputs, steps, strict=True))
    return program.evaluate(states, inputs, products, unit, of_step)


def _product(weights: Weights, rows: Tensor, bias: Tensor | None, operand: Tensor) -> Tensor:
    return F.linear(weights.masked(operand), rows, bias)


def layer(layer: Layer, operands: Operands) -> tuple[Tensor, States]:
    """One layer in one or both directions: what `torch.ops.fusedrnn.layer_forward` computes.

    Returns:
        output [T, B, D*R] or, packed, [N, D*R], D being the number of directions; the final
        states, [D, B, R] and, of those after h, [D, B, H].
    """
    output, *states = results(layer, operands)
    return output, tuple(states[: len(layer.cell.states)])


def results(layer: Layer, operands: Operands) -> tuple[Tensor, ...]:
    """All results of a layer, modified or not, one after the other: `Layer.results` of them.

    The output, the final states, and with `layer.all_states` those after h as they are after every
    step, laid out as the output.
    """
    directions = walks(layer, operands)
    every = [[torch.cat(steps) for steps in zip(*each, strict=True)] for each, _ in directions]
    steps = [torch.cat(both, dim=-1) for both in zip(*every, strict=True)]
    if operands.batch_sizes is None:
        steps = [each.unflatten(0, operands.input.shape[:2]) for each in steps]
    output, *others = steps
    finals = [torch.stack(both) for both in zip(*(final for _, final in directions), strict=True)]
    return output, *finals, *(others if layer.all_states else ())


def walks(
    layer: Layer, operands: Operands
) -> list[tuple[list[Sequence[Tensor]], Sequence[Tensor]]]:
    """The states of each direction after every step, in the order of time, and the final states.

    A state after a step is the very tensor that the next step was computed from and, without
    zoneout, the step's other states, so that its gradient is that of all of them.
    """
    input, batch_sizes, hx, weights, _ = operands
    if batch_sizes is None:
        rows, sizes = input.flatten(0, 1), [input.size(1)] * input.size(0)
    else:
        rows, sizes = input, batch_sizes.tolist()
    roles = layer.roles
    found = []
    for direction in range(layer.directions):
        own = weights[direction * len(roles) : (direction + 1) * len(roles)]
        by_role = Weights(**dict(zip(roles, own, strict=True)))
        first = [state[direction] for state in hx] or _zeros(layer, input, by_role, sizes)
        modifiers = _of_direction(operands.modifiers, direction, sizes) if layer.modified else None
        found.append(_walk(layer, rows, sizes, first, by_role, direction == 1, modifiers))
    return found


def _zeros(layer: Layer, input: Tensor, weights: Weights, sizes: list[int]) -> list[Tensor]:
    """First states of one direction where none are given."""
    return [input.new_zeros(sizes[0], width) for width in layer.cell.widths(weights.w_hh)]


def _of_direction(modifiers: Modifiers, direction: int, sizes: list[int]) -> Modifiers:
    """The modifiers of one direction, with a value for each step and sequence: [T, B, ...]."""

    def whole(tensor: Tensor, of_sequences: int) -> Tensor:
        if of_sequences == 1:  # boundaries
            return tensor
        own = tensor[:, direction if tensor.size(1) > 1 else 0]
        return own.expand(len(sizes), sizes[0], *own.shape[2:])

    return modifiers.each(whole)


def _walk(
    layer: Layer,
    rows: Tensor,
    sizes: list[int],
    first: Sequence[Tensor],
    weights: Weights,
    reverse: bool,
    modifiers: Modifiers | None,
) -> tuple[list[Sequence[Tensor]], Sequence[Tensor]]:
    """One direction: the walk over the steps, from the last to the first if `reverse`.

    `rows` are those of all steps, one step after the other, `sizes[t]` of them for step t.
    Sequences stand longest first, so the ones alive at step t are the first `sizes[t]` rows. The
    rows below keep their state: forward it is their final one, in reverse still their first one.

    Returns every state after every step, and the final states.
    """
    step = _step_of(layer.cell)
    xs = F.linear(rows, weights.w_ih, weights.b_ih).split(sizes)
    states = first
    every: list[Sequence[Tensor]] = []
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        now: Sequence[Tensor] = [state[: sizes[t]] for state in states]
        if modifiers is not None:
            now = _replaced(now, modifiers, t + 1 if reverse else t, sizes)
            if modifiers.recurrent_factor is not None:
                factor = modifiers.recurrent_factor[t, : sizes[t]]
                weights = weights._replace(recurrent_factor=factor)
            if modifiers.step_inputs is not None:
                weights = weights._replace(step_inputs=modifiers.step_inputs[t, : sizes[t]])
        h, *others = step(xs[t], now, weights)
        if weights.w_hr is not None:
            h = F.linear(h, weights.w_hr)
        after: Sequence[Tensor] = (h, *others)
        if modifiers is not None:
            after = _mixed(now, after, modifiers, t)
        every.append(after)
        states = [_over(new, old) for new, old in zip(after, states, strict=True)]
    if reverse:
        every.reverse()
    return every, states


def _replaced(
    states: Sequence[Tensor], modifiers: Modifiers, t: int, sizes: list[int]
) -> Sequence[Tensor]:
    """The states that go on across the boundary before step t, if there is one."""
    if modifiers.reset is None or t == len(sizes):
        return states
    # In reverse, sequences may begin with the step on this side of the boundary.
    count = min(sizes[t], len(states[0]))
    crossing = modifiers.reset[t, :count, None]
    by = [state[t, :count] for state in modifiers.reset_states]
    by = by or [torch.zeros_like(state[:count]) for state in states]
    return [
        _over(torch.where(crossing, new, old[:count]), old)
        for new, old in zip(by, states, strict=True)
    ]


def _mixed(
    before: Sequence[Tensor], after: Sequence[Tensor], modifiers: Modifiers, t: int
) -> Sequence[Tensor]:
    """The states after step t, of which something is kept from before."""
    if not modifiers.keep:
        return after
    shares = [None if share is None else share[t, : len(after[0])] for share in modifiers.keep]
    return [
        new if share is None else share * old + (1 - share) * new
        for share, old, new in zip(shares, before, after, strict=True)
    ]


def _over(new: Tensor, old: Tensor) -> Tensor:
    """`old` with its first rows replaced by `new`."""
    return new if len(new) == len(old) else torch.cat([new, old[len(new) :]])
