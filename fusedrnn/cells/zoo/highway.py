"""Cells with one state, part of which goes on as it is and part of which is replaced: no reset.

In the equations W is what multiplies the input, U what multiplies h, * a product of each unit with
itself; biases are left out, since `x.g` and `u.g` have theirs. h is the state before the step, h'
that after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedrnn.cells.written import WrittenCell, cell

__all__ = [
    "atr",
    "cfn",
    "janet",
    "light_ru",
    "ligru",
    "minimal_rnn",
    "rhn",
    "star",
    "ugrnn",
]


@cell(gates="p")
def atr(x: Any, u: Any, h: Tensor) -> Tensor:
    """The addition-subtraction twin-gated cell: two gates out of one pair of products.

        p = W x                                   q = U h
        h' = sigmoid(p + q) * p + sigmoid(p - q) * h

    Zhang, Xiong, Su, Lin and Zhang, "Simplifying neural machine translation with
    addition-subtraction twin-gated recurrent networks", 2018.
    """
    return torch.sigmoid(x.p + u.p) * x.p + torch.sigmoid(x.p - u.p) * h


@cell(gates="f i n")
def cfn(x: Any, u: Any, h: Tensor) -> Tensor:
    """The chaos-free network: without input its state can only decay.

        f = sigmoid(W_f x + U_f h)                i = sigmoid(W_i x + U_i h)
        h' = f * tanh(h) + i * tanh(W_n x)

    Laurent and von Brecht, "A recurrent neural network without chaos", 2017.
    """
    f, i = torch.sigmoid(x.f + u.f), torch.sigmoid(x.i + u.i)
    return f * torch.tanh(h) + i * torch.tanh(x.n)


def janet(beta: float = 1.0) -> WrittenCell:
    """The LSTM with nothing but its forget gate: just another network.

        s = W_f x + U_f h
        h' = sigmoid(s) * h + (1 - sigmoid(s - beta)) * tanh(W_g x + U_g h)

    van der Westhuizen and Lasenby, "The unreasonable effectiveness of the forget gate", 2018. For
    sequences of up to T steps they begin with b_f = log(uniform(1, T - 1)), without which the cell
    forgets too soon, and with all other biases 0.

    Args:
        beta: how much more is accumulated than a coupled gate would.
    """

    @cell(gates="f g")
    def janet(x: Any, u: Any, h: Tensor) -> Tensor:
        s = x.f + u.f
        return torch.sigmoid(s) * h + (1 - torch.sigmoid(s - beta)) * torch.tanh(x.g + u.g)

    return janet


@cell(gates="f n")
def light_ru(x: Any, u: Any, h: Tensor) -> Tensor:
    """The light recurrent unit: the candidate is a function of the input only.

        f = sigmoid(W_f x + U_f h)
        h' = (1 - f) * h + f * tanh(W_n x)

    Ye et al., "Light recurrent unit: towards an interpretable recurrent neural network for modeling
    long-range dependency", 2024.
    """
    f = torch.sigmoid(x.f + u.f)
    return h + f * (torch.tanh(x.n) - h)


@cell(gates="z n")
def ligru(x: Any, u: Any, h: Tensor) -> Tensor:
    """The light GRU, without its batch normalisation: no reset gate, and relu for tanh.

        z = sigmoid(W_z x + U_z h)
        h' = z * h + (1 - z) * relu(W_n x + U_n h)

    Ravanelli, Brakel, Omologo and Bengio, "Light gated recurrent units for speech recognition",
    2018. They normalise W_z x and W_n x over the batch, which keeps relu from growing.
    """
    z, n = torch.sigmoid(x.z + u.z), torch.relu(x.n + u.n)
    return n + z * (h - n)


@cell(gates="n f m")
def minimal_rnn(x: Any, u: Any, h: Tensor) -> Tensor:
    """The cell whose input is mapped first, and whose gate sees what it was mapped to.

        n = tanh(W_n x)                           f = sigmoid(U_f h + U_m n)
        h' = f * h + (1 - f) * n

    Chen, "MinimalRNN: toward more interpretable and trainable recurrent neural networks", 2017.
    """
    n = torch.tanh(x.n)
    f = torch.sigmoid(u.f + u.m(n))
    return n + f * (h - n)


@cell(gates="n t n2 t2")
def rhn(x: Any, u: Any, h: Tensor) -> Tensor:
    """The recurrent highway network of depth two: two layers in each step, one after the other.

        n = tanh(W_n x + U_n h)                   t = sigmoid(W_t x + U_t h)
        s = t * n + (1 - t) * h
        n2 = tanh(U_n2 s)                         t2 = sigmoid(U_t2 s)
        h' = t2 * n2 + (1 - t2) * s

    Zilly, Srivastava, Koutnik and Schmidhuber, "Recurrent highway networks", 2017, with coupled
    gates.
    """
    n, t = torch.tanh(x.n + u.n), torch.sigmoid(x.t + u.t)
    s = h + t * (n - h)
    n, t = torch.tanh(u.n2(s)), torch.sigmoid(u.t2(s))
    return s + t * (n - s)


@cell(gates="z n")
def star(x: Any, u: Any, h: Tensor) -> Tensor:
    """The stackable recurrent cell: gradients keep their size through many layers.

        z = sigmoid(W_z x + U_z h)
        h' = tanh((1 - z) * h + z * tanh(W_n x))

    Turkoglu, D'Aronco, Wegner and Schindler, "Gating revisited: deep multi-layer RNNs that can be
    trained", 2021.
    """
    z = torch.sigmoid(x.z + u.z)
    return torch.tanh(h + z * (torch.tanh(x.n) - h))


@cell(gates="g n")
def ugrnn(x: Any, u: Any, h: Tensor) -> Tensor:
    """The update-gate network: between the simple network and the GRU.

        g = sigmoid(W_g x + U_g h)
        h' = g * h + (1 - g) * tanh(W_n x + U_n h)

    Collins, Sohl-Dickstein and Sussillo, "Capacity and trainability in recurrent neural networks",
    2017. They begin with 1 added to the bias of g.
    """
    g, n = torch.sigmoid(x.g + u.g), torch.tanh(x.n + u.n)
    return n + g * (h - n)
