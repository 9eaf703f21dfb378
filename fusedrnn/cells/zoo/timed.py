"""Cells that are told more at each step than the input: how much time has passed, or what is open.

    rnn = fusedrnn.Recurrent(zoo.cfc, 3, 16)
    output, hn = rnn(x, step_inputs={"dt": dt})        dt [T, B, 1]: the time since the step before

`e` are the step inputs. What they are computed from by weights of one's own, such as a decay from a
time gap, is a module before the layer, which gets its gradients through them.

In the equations W is what multiplies the input, U what multiplies h, * a product of each unit with
itself; biases are left out, since `x.g` and `u.g` have theirs. States are those before the step;
c', h' are those after it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fusedrnn.cells.written import cell

__all__ = ["cfc", "ct_rnn", "gru_d", "ltc", "phased_lstm", "t_lstm"]

States = tuple[Tensor, Tensor]


@cell(gates="r z n", step_inputs="decay")
def gru_d(x: Any, u: Any, e: Any, h: Tensor) -> Tensor:
    """The GRU whose state decays while nothing is observed.

        d = decay * h
        r = sigmoid(W_r x + U_r d)                z = sigmoid(W_z x + U_z d)
        h' = (1 - z) * d + z * tanh(W_n x + r * U_n d)

    Che, Purushotham, Cho, Sontag and Liu, "Recurrent neural networks for multivariate time series
    with missing values", 2018. There decay is exp(-max(0, W t + b)) of the time t since each
    feature was last observed, and x has the mask of what is observed, too, which is so among the
    features here: both are made before the layer. The reset gate comes after the product, as in
    torch.nn's GRU; in the paper before it, which would be a third product in a step.
    """
    d = e.decay * h
    r, z = torch.sigmoid(x.r + u.r(d)), torch.sigmoid(x.z + u.z(d))
    n = torch.tanh(x.n + r * u.n(d))
    return (1 - z) * d + z * n


@cell(gates="d i f g o", states="h c", step_inputs="dt")
def t_lstm(x: Any, u: Any, e: Any, h: Tensor, c: Tensor) -> States:
    """Time-aware LSTM: the longer the gap, the less is left of the short-term part of the memory.

        s = tanh(U_d c)                           its short-term part
        m = c - s + s / log(e + dt)
        i, f, o = sigmoid(W x + U h)              each with its own W and U
        c' = f * m + i * tanh(W_g x + U_g h)      h' = o * tanh(c')

    Baytas, Xiao, Zhang, Wang, Jain and Zhou, "Patient subtyping via time-aware LSTM networks",
    2017, with the decay that they recommend for long gaps; e is Euler's number. dt is the time
    since the step before.
    """
    s = torch.tanh(u.d(c))
    m = c - s + s / torch.log(math.e + e.dt)
    i, f, o = torch.sigmoid(x.i + u.i), torch.sigmoid(x.f + u.f), torch.sigmoid(x.o + u.o)
    c = f * m + i * torch.tanh(x.g + u.g)
    return o * torch.tanh(c), c


@cell(gates="i f g o", states="h c", weights="p_i p_f p_o", step_inputs="k")
def phased_lstm(x: Any, u: Any, w: Any, e: Any, h: Tensor, c: Tensor) -> States:
    """The LSTM with peepholes whose units are open only in a part of their period.

        i = sigmoid(W_i x + U_i h + p_i * c)      f = sigmoid(W_f x + U_f h + p_f * c)
        d = f * c + i * tanh(W_g x + U_g h)
        o = sigmoid(W_o x + U_o h + p_o * d)
        c' = k * d + (1 - k) * c                  h' = k * o * tanh(d) + (1 - k) * h

    Neil, Pfeiffer and Liu, "Phased LSTM: accelerating recurrent network training for long or
    event-based sequences", 2016. The time gate k, from 0 to 1, is a function of the time stamp and
    of each unit's period, shift and open ratio: it is computed before the layer.
    """
    i, f = torch.sigmoid(x.i + u.i + w.p_i * c), torch.sigmoid(x.f + u.f + w.p_f * c)
    d = f * c + i * torch.tanh(x.g + u.g)
    o = torch.sigmoid(x.o + u.o + w.p_o * d)
    return torch.lerp(h, o * torch.tanh(d), e.k), torch.lerp(c, d, e.k)


@cell(gates="n", weights="tau", init="ones", step_inputs="dt")
def ct_rnn(x: Any, u: Any, w: Any, e: Any, h: Tensor) -> Tensor:
    """The continuous-time network, by one Euler step of the length that has passed.

        h' = h + dt / tau * (tanh(W x + U h) - h)

    Funahashi and Nakamura, "Approximation of dynamical systems by continuous time recurrent neural
    networks", 1993. tau, a time constant for each unit, is learned; at first it is 1. Steps that
    are long beside tau are not stable.
    """
    return h + e.dt / w.tau * (torch.tanh(x.n + u.n) - h)


@cell(gates="f", weights="tau a", init="ones uniform", step_inputs="dt")
def ltc(x: Any, u: Any, w: Any, e: Any, h: Tensor) -> Tensor:
    """Liquid time-constant network: how fast a unit is depends on what it sees.

        f = sigmoid(W x + U h)
        h' = (h + dt * f * a) / (1 + dt * (1 / tau + f))

    Hasani, Lechner, Amini, Rus and Grosu, "Liquid time-constant networks", 2021: one step of their
    fused solver, with a layer of sigmoids for f. tau, which is 1 at first, and a are learned.
    """
    f = torch.sigmoid(x.f + u.f)
    return (h + e.dt * f * w.a) / (1 + e.dt * (1 / w.tau + f))


@cell(gates="g n a b", step_inputs="dt")
def cfc(x: Any, u: Any, e: Any, h: Tensor) -> Tensor:
    """Closed-form continuous-time network: from one candidate to another as time passes.

        g = tanh(W_g x + U_g h)                   n = tanh(W_n x + U_n h)
        s = sigmoid((W_a x + U_a h) * dt + W_b x + U_b h)
        h' = (1 - s) * g + s * n

    Hasani, Lechner, Amini, Liebenwein, Ray, Tschaikowski, Teschl and Rus, "Closed-form
    continuous-time neural networks", 2022, as the authors' code has it: the two are its heads,
    which see x and h here and not through layers in between (its backbone).
    """
    g, n = torch.tanh(x.g + u.g), torch.tanh(x.n + u.n)
    s = torch.sigmoid((x.a + u.a) * e.dt + x.b + u.b)
    return (1 - s) * g + s * n
