"""Every cell and layer in plain PyTorch: the definition that the kernels are tested against.

Nothing here is fast and everything here is differentiable, to any order and by any transform, so
this file has three uses: in float64 it is the oracle of the tests; differentiated, it gives the
second derivatives of the fused ops; and under `torch.func.vmap` and `jvp` it takes their place.

A layer is a walk over the steps t. What does not depend on the previous step, `W_ih x_t + b_ih`,
is computed for all steps at once; a cell is the rest of one step. Sizes and indices: T steps of
B sequences with I features; H hidden units; G gates of a cell, their rows stacked in `w_ih` and
`w_hh`; R the width of h, which is P when the layer is projected and H when it is not.

    input  [T, B, I]  --  W_ih, b_ih  -->  x  [T, B, G*H]  --  the walk  -->  output  [T, B, R]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RNN_TANH, RNN_RELU, LSTM, GRU, GRU_RESET_BEFORE = range(5)
"""The cells, as the ops number them."""

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before")
"""The name of each cell, by its number."""

GATES = (1, 1, 4, 3, 3)
"""How many gates each cell has, by its number."""


def rnn_cell(
    x: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor | None, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """One step of the simple recurrent network (Elman, "Finding structure in time", 1990).

        h' = activation(x + W_hh h + b_hh)        x = W_ih x_t + b_ih

    The activation is tanh, or relu (Le, Jaitly and Hinton, "A simple way to initialize recurrent
    networks of rectified linear units", 2015).
    """
    return activation(x + F.linear(h, w_hh, b_hh))


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
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
    i, f, g, o = (x + F.linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else F.linear(h, w_hr)), c


def gru_cell(x: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor | None) -> Tensor:
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
    xr, xz, xn = x.chunk(3, dim=-1)
    hr, hz, hn = F.linear(h, w_hh, b_hh).chunk(3, dim=-1)
    r = torch.sigmoid(xr + hr)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + r * hn)
    return n + z * (h - n)


def gru_reset_before_cell(x: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor | None) -> Tensor:
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
    xr, xz, xn = x.chunk(3, dim=-1)
    w_hr, w_hz, w_hn = w_hh.chunk(3)
    b_hr, b_hz, b_hn = (None, None, None) if b_hh is None else b_hh.chunk(3)
    r = torch.sigmoid(xr + F.linear(h, w_hr, b_hr))
    z = torch.sigmoid(xz + F.linear(h, w_hz, b_hz))
    n = torch.tanh(xn + F.linear(r * h, w_hn, b_hn))
    return n + z * (h - n)


def layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer in one or both directions: what `torch.ops.fusedrnn.layer_forward` computes.

    Args:
        input: [T, B, I], or [N, I] when packed.
        batch_sizes: [T], how many sequences are alive at each step, or None when not packed.
        hx: the first h, [D, B, R] with D directions; None stands for zeros.
        cx: the first c, [D, B, H]; LSTM only, given exactly when `hx` is.
        weights: for each direction w_ih [G*H, I], w_hh [G*H, R], then b_ih and b_hh [G*H] if
            `has_biases`, then w_hr [P, H] if the layer is projected.
        cell: the number of the cell, see `CELLS`.

    Returns:
        output [T, B, D*R] or [N, D*R]; hn [D, B, R]; cn [D, B, H], of shape [0] without LSTM.
    """
    directions = 2 if bidirectional else 1
    count = len(weights) // directions
    hidden_size = weights[0].size(0) // GATES[cell]
    if batch_sizes is None:
        rows, sizes = input.flatten(0, 1), [input.size(1)] * input.size(0)
    else:
        rows, sizes = input, batch_sizes.tolist()
    if hx is None:
        hx = input.new_zeros(directions, sizes[0], weights[1].size(1))
        cx = input.new_zeros(directions, sizes[0], hidden_size) if cell == LSTM else None

    outputs: list[Tensor] = []
    hn: list[Tensor] = []
    cn: list[Tensor] = []
    for direction in range(directions):
        own = weights[direction * count : (direction + 1) * count]
        first = hx[direction], None if cx is None else cx[direction]
        output, h, c = _walk(rows, sizes, first, own, cell, has_biases, reverse=direction == 1)
        outputs.append(output)
        hn.append(h)
        if c is not None:
            cn.append(c)
    output = torch.cat(outputs, dim=-1)
    if batch_sizes is None:
        output = output.unflatten(0, input.shape[:2])
    return output, torch.stack(hn), torch.stack(cn) if cn else input.new_empty(0)


def _walk(
    rows: Tensor,
    sizes: list[int],
    first: tuple[Tensor, Tensor | None],
    weights: Sequence[Tensor],
    cell: int,
    has_biases: bool,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One direction: the walk over the steps, from the last to the first if `reverse`.

    `rows` are those of all steps, one step after the other, `sizes[t]` of them for step t.
    Sequences stand longest first, so the ones alive at step t are the first `sizes[t]` rows. The
    rows below keep their state: forward it is their final one, in reverse still their first one.
    """
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if has_biases else (None, None)
    w_hr = weights[-1] if len(weights) % 2 == 1 else None
    xs = F.linear(rows, w_ih, b_ih).split(sizes)
    h, c = first
    outputs = []
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        alive = sizes[t]
        c_new = None
        if cell == LSTM:
            assert c is not None
            h_new, c_new = lstm_cell(xs[t], h[:alive], c[:alive], w_hh, b_hh, w_hr)
        elif cell == GRU:
            h_new = gru_cell(xs[t], h[:alive], w_hh, b_hh)
        elif cell == GRU_RESET_BEFORE:
            h_new = gru_reset_before_cell(xs[t], h[:alive], w_hh, b_hh)
        else:
            activation = torch.tanh if cell == RNN_TANH else torch.relu
            h_new = rnn_cell(xs[t], h[:alive], w_hh, b_hh, activation)
        outputs.append(h_new)
        h = _over(h_new, h)
        c = None if c_new is None or c is None else _over(c_new, c)
    if reverse:
        outputs.reverse()
    return torch.cat(outputs), h, c


def _over(new: Tensor, old: Tensor) -> Tensor:
    """`old` with its first rows replaced by `new`."""
    return new if len(new) == len(old) else torch.cat([new, old[len(new) :]])
