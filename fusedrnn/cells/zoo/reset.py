"""Cells with one state and a gate that decides what of it the candidate sees: the GRU's relatives.

In the equations W is what multiplies the input, U what multiplies h, * a product of each unit with
itself; biases are left out, since `x.g` and `u.g` have theirs. h is the state before the step, h'
that after it. Where U multiplies anything but h, a step has two products, one after the other.
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
    "gru",
    "gru_reset_before",
    "mgu",
    "mgu1",
    "mgu3",
    "mgu_reset_before",
    "mi_gru",
    "mut1",
    "mut2",
    "nbrc",
    "sgu",
]


def gru(
    activation: str | Activation = "tanh",
    recurrent_activation: str | Activation = "sigmoid",
    *,
    reset_after: bool = True,
) -> WrittenCell:
    """The gated recurrent unit with what Keras and ONNX let one choose.

        r = s(W_r x + U_r h)                      z = s(W_z x + U_z h)
        n = t(W_n x + r * (U_n h))                or, reset before: t(W_n x + U_n (r * h))
        h' = (1 - z) * n + z * h

    Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", 2014: its later version resets before the product, its first one after it, as
    cuDNN, torch and Keras do.

    Args:
        activation: t.
        recurrent_activation: s.
        reset_after: Keras' argument; ONNX calls it linear_before_reset.
    """
    gate, candidate = function_of(recurrent_activation), function_of(activation)
    if reset_after:

        @cell(gates="r z n")
        def gru(x: Any, u: Any, h: Tensor) -> Tensor:
            r, z = gate(x.r + u.r), gate(x.z + u.z)
            n = candidate(x.n + r * u.n)
            return n + z * (h - n)

        return gru

    @cell(gates="r z n")
    def gru_reset_before(x: Any, u: Any, h: Tensor) -> Tensor:
        r, z = gate(x.r + u.r), gate(x.z + u.z)
        n = candidate(x.n + u.n(r * h))
        return n + z * (h - n)

    return gru_reset_before


gru_reset_before = gru(reset_after=False)
"""The GRU with two products a step, with the usual functions."""


@cell(gates="f n")
def mgu(x: Any, u: Any, h: Tensor) -> Tensor:
    """The minimal gated unit with one product a step: its gate f applies after it.

        f = sigmoid(W_f x + U_f h)
        n = tanh(W_n x + f * (U_n h))
        h' = (1 - f) * h + f * n

    Zhou, Wu, Zhang and Zhou, "Minimal gated unit for recurrent neural networks", 2016, in the form
    that torch gives the GRU; `mgu_reset_before` is the paper's.
    """
    f = torch.sigmoid(x.f + u.f)
    n = torch.tanh(x.n + f * u.n)
    return h + f * (n - h)


@cell(gates="f n")
def mgu_reset_before(x: Any, u: Any, h: Tensor) -> Tensor:
    """The minimal gated unit: the GRU with one gate for both purposes.

        f = sigmoid(W_f x + U_f h)
        n = tanh(W_n x + U_n (f * h))
        h' = (1 - f) * h + f * n

    Zhou, Wu, Zhang and Zhou, "Minimal gated unit for recurrent neural networks", 2016.
    """
    f = torch.sigmoid(x.f + u.f)
    n = torch.tanh(x.n + u.n(f * h))
    return h + f * (n - h)


@cell(gates="f n")
def mgu1(x: Any, u: Any, h: Tensor) -> Tensor:
    """The minimal gated unit whose gate does not see the input.

        f = sigmoid(U_f h)
        n = tanh(W_n x + U_n (f * h))
        h' = (1 - f) * h + f * n

    MGU1 of Heck and Salem, "Simplified minimal gated unit variations for recurrent neural
    networks", 2017. Their MGU2 is this one without the bias of f.
    """
    f = torch.sigmoid(u.f)
    n = torch.tanh(x.n + u.n(f * h))
    return h + f * (n - h)


@cell(gates="n", weights="b_f", init="zeros")
def mgu3(x: Any, u: Any, w: Any, h: Tensor) -> Tensor:
    """The minimal gated unit whose gate is a number that each unit learns.

        f = sigmoid(b_f)
        n = tanh(W_n x + U_n h)
        h' = (1 - f) * h + f * n

    MGU3 of Heck and Salem, "Simplified minimal gated unit variations for recurrent neural
    networks", 2017. They multiply U_n by f * h; as f is the same in each step, U_n has it here.
    """
    n = torch.tanh(x.n + u.n)
    return h + torch.sigmoid(w.b_f) * (n - h)


@cell(gates="r z n", weights="alpha_r alpha_z alpha_n", init="ones ones ones")
def mi_gru(x: Any, u: Any, w: Any, h: Tensor) -> Tensor:
    """The GRU with multiplicative integration: input and h multiply, too, and not only add.

        r, z = sigmoid(alpha * (W x) * (U h) + W x + U h)
        n = tanh(alpha_n * (W_n x) * (U_n (r * h)) + W_n x + U_n (r * h))
        h' = (1 - z) * h + z * n

    Wu, Zhang, Zhang, Bengio and Salakhutdinov, "On multiplicative integration with recurrent neural
    networks", 2016. Their factors beta of the sums are factors of the rows of W and U here.
    """
    r = torch.sigmoid(integrated(w.alpha_r, x.r, u.r))
    z = torch.sigmoid(integrated(w.alpha_z, x.z, u.z))
    n = torch.tanh(integrated(w.alpha_n, x.n, u.n(r * h)))
    return h + z * (n - h)


@cell(gates="r z n")
def mut1(x: Any, u: Any, h: Tensor) -> Tensor:
    """The first of three cells that a search by mutation found.

        r = sigmoid(W_r x + U_r h)                z = sigmoid(W_z x)
        n = tanh(tanh(W_n x) + U_n (r * h))
        h' = (1 - z) * h + z * n

    MUT1 of Jozefowicz, Zaremba and Sutskever, "An empirical exploration of recurrent network
    architectures", 2015, where the candidate's W_n is the identity.
    """
    r, z = torch.sigmoid(x.r + u.r), torch.sigmoid(x.z)
    n = torch.tanh(torch.tanh(x.n) + u.n(r * h))
    return h + z * (n - h)


@cell(gates="r z n")
def mut2(x: Any, u: Any, h: Tensor) -> Tensor:
    """The second of three cells that a search by mutation found: nearly the GRU.

        r = sigmoid(W_r x + U_r h)                z = sigmoid(W_z x + U_z h)
        n = tanh(W_n x + U_n (r * h))
        h' = (1 - z) * h + z * n

    MUT2 of Jozefowicz, Zaremba and Sutskever, "An empirical exploration of recurrent network
    architectures", 2015, where W_r is the identity.
    """
    r, z = torch.sigmoid(x.r + u.r), torch.sigmoid(x.z + u.z)
    n = torch.tanh(x.n + u.n(r * h))
    return h + z * (n - h)


@cell(gates="a z n")
def nbrc(x: Any, u: Any, h: Tensor) -> Tensor:
    """The recurrently neuromodulated bistable cell: a in (0, 2) lets a unit have two stable states.

        a = 1 + tanh(W_a x + U_a h)               z = sigmoid(W_z x + U_z h)
        h' = z * h + (1 - z) * tanh(W_n x + a * h)

    Vecoven, Ernst and Drion, "A bio-inspired bistable recurrent cell allows for long-lasting
    memory", 2021.
    """
    a, z = 1 + torch.tanh(x.a + u.a), torch.sigmoid(x.z + u.z)
    n = torch.tanh(x.n + a * h)
    return n + z * (h - n)


@cell(gates="g z")
def sgu(x: Any, u: Any, h: Tensor) -> Tensor:
    """The simple gated unit, in which the input multiplies the state and is not added to it.

        g = tanh(U_g ((W_g x) * h))               z = hard_sigmoid(W_z x + U_z h)
        h' = (1 - z) * h + z * softplus(g * h)

    Gao and Glowacka, "Deep gate recurrent neural network", 2016.
    """
    z = F.hardsigmoid(x.z + u.z)
    g = torch.tanh(u.g(x.g * h))
    return h + z * (F.softplus(g * h) - h)
