"""Cells with a memory c beside the output h: the long short-term memory and its relatives.

In the equations W is what multiplies the input, U what multiplies h, * a product of each unit with
itself; biases are left out, since `x.g` and `u.g` have theirs. States are those before the step;
c', h' are those after it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn.cells.written import WrittenCell, cell
from fusedrnn.cells.zoo.activations import Activation, function_of
from fusedrnn.cells.zoo.integration import integrated

__all__ = [
    "cifg",
    "lstm",
    "lstm_without_forget_gate",
    "mi_lstm",
    "multiplicative_lstm",
    "nas",
    "peephole_lstm",
    "ran",
    "slstm",
]

States = tuple[Tensor, Tensor]


def lstm(
    activation: str | Activation = "tanh",
    recurrent_activation: str | Activation = "sigmoid",
    *,
    output_activation: str | Activation | None = None,
    peephole: bool = False,
    input_forget: bool = False,
    cell_clip: float | None = None,
) -> WrittenCell:
    """The long short-term memory with what Keras, ONNX and TensorFlow 1 let one choose.

        i = s(W_i x + U_i h + p_i * c)            f = s(W_f x + U_f h + p_f * c)
        c' = f * c + i * t(W_g x + U_g h)
        o = s(W_o x + U_o h + p_o * c')           h' = o * t'(c')

    Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers, Schmidhuber and Cummins,
    "Learning to forget", 2000; peepholes p: Gers, Schraudolph and Schmidhuber, "Learning precise
    timing with LSTM recurrent networks", 2002.

    Args:
        activation: t.
        recurrent_activation: s.
        output_activation: t'; None: t.
        peephole: whether there are p_i, p_f, p_o, one number for each unit.
        input_forget: f = 1 - i, and no weights of f (ONNX's attribute of that name).
        cell_clip: the largest absolute value of c'.
    """
    gate, candidate = function_of(recurrent_activation), function_of(activation)
    squashed = candidate if output_activation is None else function_of(output_activation)

    def step(x: Any, u: Any, w: Any, c: Tensor) -> States:
        of_i, of_o = x.i + u.i, x.o + u.o
        i = gate(of_i + w.p_i * c if peephole else of_i)
        if input_forget:
            f = 1 - i
        else:
            f = gate(x.f + u.f + w.p_f * c if peephole else x.f + u.f)
        c = f * c + i * candidate(x.g + u.g)
        if cell_clip is not None:
            c = torch.clamp(c, -cell_clip, cell_clip)
        o = gate(of_o + w.p_o * c if peephole else of_o)
        return o * squashed(c), c

    gates = "i g o" if input_forget else "i f g o"
    if not peephole:

        @cell(gates=gates, states="h c")
        def lstm(x: Any, u: Any, h: Tensor, c: Tensor) -> States:
            return step(x, u, None, c)

        return lstm

    @cell(gates=gates, states="h c", weights="p_i p_o" if input_forget else "p_i p_f p_o")
    def peephole_lstm(x: Any, u: Any, w: Any, h: Tensor, c: Tensor) -> States:
        return step(x, u, w, c)

    return peephole_lstm


peephole_lstm = lstm(peephole=True)
"""The LSTM whose gates see its memory, with the usual functions."""


@cell(gates="f g o", states="h c")
def cifg(x: Any, u: Any, h: Tensor, c: Tensor) -> States:
    """The LSTM with coupled gates: what is forgotten makes room for what comes in.

        f = sigmoid(W_f x + U_f h)                o = sigmoid(W_o x + U_o h)
        c' = f * c + (1 - f) * tanh(W_g x + U_g h)
        h' = o * tanh(c')

    Greff, Srivastava, Koutnik, Steunebrink and Schmidhuber, "LSTM: a search space odyssey", 2017,
    where the gate is i = 1 - f.
    """
    f, g = torch.sigmoid(x.f + u.f), torch.tanh(x.g + u.g)
    c = g + f * (c - g)
    return torch.sigmoid(x.o + u.o) * torch.tanh(c), c


@cell(gates="i g o", states="h c")
def lstm_without_forget_gate(x: Any, u: Any, h: Tensor, c: Tensor) -> States:
    """The LSTM as it was at first: nothing is ever forgotten.

        i = sigmoid(W_i x + U_i h)                o = sigmoid(W_o x + U_o h)
        c' = c + i * tanh(W_g x + U_g h)
        h' = o * tanh(c')

    Hochreiter and Schmidhuber, "Long short-term memory", 1997, with tanh in both places.
    """
    c = c + torch.sigmoid(x.i + u.i) * torch.tanh(x.g + u.g)
    return torch.sigmoid(x.o + u.o) * torch.tanh(c), c


@cell(gates="m i f g o", states="h c")
def multiplicative_lstm(x: Any, u: Any, h: Tensor, c: Tensor) -> States:
    """The LSTM whose recurrent weights depend on the input: m takes the place of h.

        m = (W_m x) * (U_m h)
        i, f, o = sigmoid(W_ifo x + U_ifo m)
        c' = f * c + i * tanh(W_g x + U_g m)
        h' = o * tanh(c')

    Krause, Murray, Renals and Lu, "Multiplicative LSTM for sequence modelling", 2016.
    """
    m = x.m * u.m
    i, f, o = (torch.sigmoid(gate) for gate in (x.i + u.i(m), x.f + u.f(m), x.o + u.o(m)))
    c = f * c + i * torch.tanh(x.g + u.g(m))
    return o * torch.tanh(c), c


@cell(
    gates="i f g o", states="h c",
    weights="alpha_i alpha_f alpha_g alpha_o", init="ones ones ones ones",
)  # fmt: skip
def mi_lstm(x: Any, u: Any, w: Any, h: Tensor, c: Tensor) -> States:
    """The LSTM with multiplicative integration: input and h multiply, too, and not only add.

        [i, f, g, o] = alpha * (W x) * (U h) + W x + U h
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')

    Wu, Zhang, Zhang, Bengio and Salakhutdinov, "On multiplicative integration with recurrent neural
    networks", 2016. Their factors beta of the sums are factors of the rows of W and U here.
    """
    i = torch.sigmoid(integrated(w.alpha_i, x.i, u.i))
    f = torch.sigmoid(integrated(w.alpha_f, x.f, u.f))
    o = torch.sigmoid(integrated(w.alpha_o, x.o, u.o))
    c = f * c + i * torch.tanh(integrated(w.alpha_g, x.g, u.g))
    return o * torch.tanh(c), c


@cell(gates="i f z o", states="h c n m")
def slstm(
    x: Any, u: Any, h: Tensor, c: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The LSTM with an exponential input gate, a normaliser n and a stabiliser m; U is full here.

        m' = max(log sigmoid(W_f x + U_f h) + m, W_i x + U_i h)
        i = exp(W_i x + U_i h - m')               f = exp(log sigmoid(W_f x + U_f h) + m - m')
        c' = f * c + i * tanh(W_z x + U_z h)      n' = f * n + i
        h' = sigmoid(W_o x + U_o h) * c' / n'

    Beck et al., "xLSTM: extended long short-term memory", 2024. Where n is 0, which is before the
    first step, there is no past to compare with, and m' is the input gate's part.
    """
    log_i, log_f = x.i + u.i, F.logsigmoid(x.f + u.f) + m
    m = torch.where(n == 0, log_i, torch.maximum(log_f, log_i))
    i, f = torch.exp(log_i - m), torch.exp(torch.clamp(log_f - m, max=0))
    c, n = f * c + i * torch.tanh(x.z + u.z), f * n + i
    return torch.sigmoid(x.o + u.o) * c / n, c, n, m


@cell(gates="g0 g1 g2 g3 g4 g5 g6 g7", states="h c")
def nas(x: Any, u: Any, h: Tensor, c: Tensor) -> States:
    """The cell that a search by reinforcement learning found.

        g0, ..., g7 = W x + U h, but g3 = (W_3 x) * (U_3 h)
        p = tanh(sigmoid(g0) * relu(g1))          q = tanh(sigmoid(g2) + relu(g3))
        r = tanh(tanh(g4) * sigmoid(g5))          s = sigmoid(tanh(g6) + sigmoid(g7))
        c' = tanh(p + c) * q                      h' = tanh(c' * tanh(r + s))

    Zoph and Le, "Neural architecture search with reinforcement learning", 2017, as in `NASCell` of
    TensorFlow's contrib.rnn, which is Zoph's.
    """
    p = torch.tanh(torch.sigmoid(x.g0 + u.g0) * torch.relu(x.g1 + u.g1))
    q = torch.tanh(torch.sigmoid(x.g2 + u.g2) + torch.relu(x.g3 * u.g3))
    r = torch.tanh(torch.tanh(x.g4 + u.g4) * torch.sigmoid(x.g5 + u.g5))
    s = torch.sigmoid(torch.tanh(x.g6 + u.g6) + torch.sigmoid(x.g7 + u.g7))
    c = torch.tanh(p + c) * q
    return torch.tanh(c * torch.tanh(r + s)), c


@cell(gates="g i f", states="h c")
def ran(x: Any, u: Any, h: Tensor, c: Tensor) -> States:
    """The recurrent additive network: its memory is a sum of inputs, weighted by two gates.

        i = sigmoid(W_i x + U_i h)                f = sigmoid(W_f x + U_f h)
        c' = i * (W_g x) + f * c                  h' = tanh(c')

    Lee, Levy and Zettlemoyer, "Recurrent additive networks", 2017.
    """
    c = torch.sigmoid(x.i + u.i) * x.g + torch.sigmoid(x.f + u.f) * c
    return torch.tanh(c), c
