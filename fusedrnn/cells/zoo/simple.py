"""Cells without gates that see h, or that are steps of a differential equation.

In the equations W is what multiplies the input, U what multiplies h, * a product of each unit with
itself; biases are left out, since `x.g` and `u.g` have theirs. h is the state before the step, h'
that after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedrnn.cells.written import WrittenCell, cell
from fusedrnn.cells.zoo.activations import Activation, function_of

__all__ = [
    "antisymmetric_rnn",
    "cornn",
    "fast_grnn",
    "fast_rnn",
    "gated_antisymmetric_rnn",
    "leaky_rnn",
    "lem",
    "mi_rnn",
    "rnn",
    "scrn",
]


def rnn(activation: str | Activation = "tanh") -> WrittenCell:
    """The simple recurrent network with any function, as in Keras and ONNX.

        h' = t(W x + U h)

    Elman, "Finding structure in time", 1990.

    Args:
        activation: t.
    """
    function = function_of(activation)

    @cell(gates="n")
    def rnn(x: Any, u: Any, h: Tensor) -> Tensor:
        return function(x.n + u.n)

    return rnn


def leaky_rnn(leak: float, activation: str | Activation = "tanh") -> WrittenCell:
    """The leaky integrator: a step of length `leak` of the continuous-time network.

        h' = (1 - leak) * h + leak * t(W x + U h)

    Jaeger, Lukosevicius, Popovici and Siewert, "Optimization and applications of echo state
    networks with leaky-integrator neurons", 2007.

    Args:
        leak: from 0, which keeps everything, to 1, the simple recurrent network.
        activation: t.
    """
    function = function_of(activation)

    @cell(gates="n")
    def leaky_rnn(x: Any, u: Any, h: Tensor) -> Tensor:
        return (1 - leak) * h + leak * function(x.n + u.n)

    return leaky_rnn


@cell(gates="n", weights="alpha beta_h beta_x", init="1.0 0.5 0.5")
def mi_rnn(x: Any, u: Any, w: Any, h: Tensor) -> Tensor:
    """The simple network with multiplicative integration: input and h multiply, and add.

        h' = tanh(alpha * (W x) * (U h) + beta_h * (U h) + beta_x * (W x))

    Wu, Zhang, Zhang, Bengio and Salakhutdinov, "On multiplicative integration with recurrent neural
    networks", 2016.
    """
    return torch.tanh((w.alpha * x.n + w.beta_h) * u.n + w.beta_x * x.n)


@cell(gates="n", weights="alpha beta", init="-3.0 3.0")
def fast_rnn(x: Any, u: Any, w: Any, h: Tensor) -> Tensor:
    """The simple network with a residual connection, both weighted.

        h' = sigmoid(alpha) * tanh(W x + U h) + sigmoid(beta) * h

    Kusupati et al., "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated recurrent
    neural network", 2018. Their alpha and beta are one number each; here each unit has its own.
    """
    return torch.sigmoid(w.alpha) * torch.tanh(x.n + u.n) + torch.sigmoid(w.beta) * h


@cell(gates="n", weights="zeta nu b_z", init="1.0 -4.0 zeros")
def fast_grnn(x: Any, u: Any, w: Any, h: Tensor) -> Tensor:
    """The gated one: gate and candidate share one pair of matrices, and differ in their bias.

        z = sigmoid(W x + U h + b_z)              n = tanh(W x + U h)
        h' = (sigmoid(zeta) * (1 - z) + sigmoid(nu)) * n + z * h

    Kusupati et al., "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated recurrent
    neural network", 2018. Their zeta and nu are one number each; here each unit has its own. The
    bias of the candidate is that of `x.n` and `u.n`; b_z is what that of the gate has more.
    """
    s = x.n + u.n
    z, n = torch.sigmoid(s + w.b_z), torch.tanh(s)
    return (torch.sigmoid(w.zeta) * (1 - z) + torch.sigmoid(w.nu)) * n + z * h


def scrn(alpha: float = 0.95) -> WrittenCell:
    """The structurally constrained network: slow units c beside the hidden ones.

        c' = (1 - alpha) * (W_s x) + alpha * c
        h' = sigmoid(W_n x + U_n h + U_s c')

    Mikolov, Joulin, Chopra, Mathieu and Ranzato, "Learning longer memory in recurrent neural
    networks", 2014, with as many slow units as hidden ones. A linear layer over h and c, which
    `return_states` returns, is the paper's output.

    Args:
        alpha: what is kept of the slow units.
    """

    @cell(gates="s n", states="h c")
    def scrn(x: Any, u: Any, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        c = (1 - alpha) * x.s + alpha * c
        return torch.sigmoid(x.n + u.n + u.s(c)), c

    return scrn


def antisymmetric_rnn(epsilon: float = 0.01, gamma: float = 0.01) -> WrittenCell:
    """A step of Euler's method for a stable differential equation, if U is antisymmetric.

        h' = h + epsilon * tanh(W x + U h - gamma * h)

    Chang, Chen, Haber and Chi, "AntisymmetricRNN: a dynamical system view on recurrent neural
    networks", 2019. U is V - V^T there: register that on `weight_hh_l0` by
    `torch.nn.utils.parametrize`, since a cell cannot make it so.

    Args:
        epsilon: the length of a step.
        gamma: damping, for the stability of Euler's method.
    """

    @cell(gates="n")
    def antisymmetric_rnn(x: Any, u: Any, h: Tensor) -> Tensor:
        return h + epsilon * torch.tanh(x.n + u.n - gamma * h)

    return antisymmetric_rnn


def gated_antisymmetric_rnn(epsilon: float = 0.01, gamma: float = 0.01) -> WrittenCell:
    """The same with a gate, which shares the recurrent product.

        z = sigmoid(W_z x + U h - gamma * h)
        h' = h + epsilon * z * tanh(W_n x + U h - gamma * h)

    Chang, Chen, Haber and Chi, "AntisymmetricRNN: a dynamical system view on recurrent neural
    networks", 2019; of U see `antisymmetric_rnn`.

    Args:
        epsilon: the length of a step.
        gamma: damping, for the stability of Euler's method.
    """

    @cell(gates="z n")
    def gated_antisymmetric_rnn(x: Any, u: Any, h: Tensor) -> Tensor:
        s = u.n - gamma * h
        return h + epsilon * torch.sigmoid(x.z + s) * torch.tanh(x.n + s)

    return gated_antisymmetric_rnn


def cornn(dt: float = 0.1, gamma: float = 1.0, epsilon: float = 1.0) -> WrittenCell:
    """Coupled, driven and damped oscillators, h where they are and v how fast they move.

        v' = v + dt * (tanh(W x + U_n h + U_m v) - gamma * h - epsilon * v)
        h' = h + dt * v'

    Rusch and Mishra, "Coupled oscillatory recurrent neural network (coRNN): an accurate and
    (gradient) stable architecture for learning long time dependencies", 2021.

    Args:
        dt: the length of a step.
        gamma: the square of the oscillators' frequency.
        epsilon: their damping.
    """

    @cell(gates="n m", states="h v")
    def cornn(x: Any, u: Any, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = v + dt * (torch.tanh(x.n + u.n + u.m(v)) - gamma * h - epsilon * v)
        return h + dt * v, v

    return cornn


def lem(dt: float = 1.0) -> WrittenCell:
    """Long expressive memory: a differential equation with a time scale for each unit and step.

        a = dt * sigmoid(W_a x + U_a h)           b = dt * sigmoid(W_b x + U_b h)
        c' = (1 - a) * c + a * tanh(W_g x + U_g h)
        h' = (1 - b) * h + b * tanh(W_n x + U_n c')

    Rusch, Mishra, Erichson and Mahoney, "Long expressive memory for sequence modeling", 2022.

    Args:
        dt: the length of the longest step.
    """

    @cell(gates="a b g n", states="h c")
    def lem(x: Any, u: Any, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a, b = dt * torch.sigmoid(x.a + u.a), dt * torch.sigmoid(x.b + u.b)
        c = c + a * (torch.tanh(x.g + u.g) - c)
        return h + b * (torch.tanh(x.n + u.n(c)) - h), c

    return lem
