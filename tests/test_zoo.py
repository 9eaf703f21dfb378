"""Every cell of the zoo against an oracle that nobody here wrote, or else against the paper.

The functions run eagerly, step by step, in float64; that the kernels compute what the functions say
is the business of other tests. torchrecurrent (MIT) and torch.nn have most of the cells. Where
theirs is another parametrisation of the same cell, or says something else than the paper, the
weights or the step are adapted, and a comment says how.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eager_cells import Gate, Weights, run_eagerly
from torch import Tensor, nn

from fusedrnn.cells import zoo
from fusedrnn.cells.written import WrittenCell

IN, H, B = 4, 5, 3  # features, hidden units, sequences
States = tuple[Tensor, ...]
Step = Callable[[Tensor, States], States]
Adapt = Callable[[Any, Weights], None]
LENGTHS = [pytest.param(1, id="one step"), pytest.param(7, id="seven steps")]


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(
    cell: WrittenCell,
    weights: Weights,
    step: Step,
    length: int,
    step_inputs: dict[str, Tensor] | None = None,
) -> None:
    """The function of the cell against a step of an oracle, from random states."""
    inputs, states = torch.randn(length, B, IN), tuple(torch.randn(B, H) for _ in cell.states)
    steps, expected = run_eagerly(cell, weights, inputs, states, step_inputs), states
    for t, (found, x_t) in enumerate(zip(steps, inputs, strict=True)):
        expected = step(x_t, expected)
        for name, ours, theirs in zip(cell.states, found, expected, strict=True):
            error = float((ours - theirs).abs().max())
            assert ours.shape == (B, H) and error <= 1e-12, f"step {t}, {name}: off by {error}"


def randomized(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.8, 0.8)
    return module.requires_grad_(False)


def gates_of(rows: str, w: Tensor, b: Tensor | None = None) -> list[tuple[str, Tensor, Any]]:
    """Rows of a matrix and its bias by gate. A bias that is too short is that of the last gates."""
    names = rows.split()
    biases = [0.0] * len(names) + ([] if b is None else [*b.split(H)])
    return list(zip(names, w.split(H), biases[-len(names) :], strict=True))


def weights_of(
    module: nn.Module, inputs: str, products: dict[str, str], units: dict[str, str] | None = None
) -> Weights:
    """The weights of a module that names them `weight_ih`, `bias_hh` and the like.

    Args:
        module: whose weights.
        inputs: the gates whose rows weight_ih has.
        products: the gates whose rows another one has, by the end of its name.
        units: names of our unit weights, those in one tensor by the tensor's name.
    """
    gates: dict[str, Gate] = {}
    bias = getattr(module, "bias_ih", None)
    for name, w, b in gates_of(inputs, module.weight_ih, bias):
        gates[name] = Gate(w_x=w, b_x=b)
    for suffix, rows in products.items():
        w_h, bias = getattr(module, f"weight_{suffix}"), getattr(module, f"bias_{suffix}", None)
        for name, w, b in gates_of(rows, w_h, bias):
            gate = gates.setdefault(name, Gate())
            gate.w_h, gate.b_h = w, b
    found = {}
    for tensor, names in (units or {}).items():
        values = getattr(module, tensor)
        for name, value in zip(names.split(), values.split(min(H, len(values))), strict=True):
            found[name] = value.expand(H)
    return Weights(gates, found)


# --- other libraries ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Theirs:
    """A cell of torchrecurrent or torch.nn and how its weights are ours.

    Attributes:
        cell: ours.
        module: the name of its class.
        inputs, products, units: of `weights_of`.
        options: the arguments of the class.
        adapt: what is to be done to the weights of both, where they are not the same.
        step: what is a step, if it is not a call.
    """

    cell: WrittenCell
    module: str
    inputs: str
    products: dict[str, str]
    units: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    adapt: Adapt | None = None
    step: Callable[[Any, Tensor, States], States] | None = None

    def __str__(self) -> str:
        options = ",".join(f"{value}" for value in self.options.values())
        return f"{self.cell.name}-{self.module}" + (f"({options})" if options else "")

    def made(self) -> nn.Module:
        """Their module with random weights; their package may be missing."""
        package, _, name = self.module.rpartition(".")
        module = getattr(pytest.importorskip(package), name)(IN, H, **self.options)
        return randomized(module)

    def steps(self, module: Any, x: Tensor, states: States) -> States:
        if self.step is not None:
            return self.step(module, x, states)
        after = module(x, states if len(states) > 1 else states[0])
        return after if isinstance(after, tuple) else (after,)


def plain(cell: WrittenCell, module: str, gates: str, **more: Any) -> Theirs:
    """A cell whose gates are rows of both matrices, in one order."""
    return Theirs(cell, module, gates, {"hh": gates}, **more)


def one_bias_more(module: Any, weights: Weights) -> None:
    """FastGRNN: their two biases are ours of the candidate, and what that of the gate has more."""
    (gate, n), (hidden_gate, hidden_n) = module.bias_ih.chunk(2), module.bias_hh.chunk(2)
    weights.gates["n"].b_x, weights.gates["n"].b_h = n, hidden_n
    weights.units["b_z"] = gate + hidden_gate - n - hidden_n


def antisymmetric(module: Any, weights: Weights) -> None:
    """Their matrix is made antisymmetric in each step, ours is so."""
    weights.gates["n"].w_h = module.weight_hh - module.weight_hh.T


def gated_antisymmetric(module: Any, weights: Weights) -> None:
    """And the bias of the product, which both gates share, is only that of the second one."""
    antisymmetric(module, weights)
    gate = weights.gates["n"]
    gate.b_x, gate.b_h = gate.b_x + gate.b_h, 0.0


def sum_of_g3(module: Any, weights: Weights) -> None:
    """NAS: they add what Zoph multiplies. x + 0 and x * 1 are the same; the rest is compared."""
    rows = slice(3 * H, 4 * H)
    module.weight_hh[rows], module.bias_hh[rows] = 0, 0
    weights.gates["g3"].w_h, weights.gates["g3"].b_h = torch.zeros(H, H), torch.ones(H)


def one_beta(module: Any, _: Weights) -> None:
    """JANET: their beta is learnt, ours is a number."""
    module.beta.fill_(1.0)


def hidden_as_output(module: Any, _: Weights) -> None:
    """SCRN: a readout that can be undone, and a number for alpha, which they learn."""
    module.alpha.fill_(0.95)
    module.weight_hh[H:], module.bias_hh[H:] = torch.eye(H), 0
    module.weight_ch[H:], module.bias_ch[H:] = 0, 0


def before_readout(module: Any, x: Tensor, states: States) -> States:
    """SCRN: they give back the readout, and so multiply that; the paper multiplies the hidden."""
    y, c = module(x, states)
    return torch.atanh(y), c


def c_first(module: Any, x: Tensor, states: States) -> States:
    """LEM: h sees c of before the step there; in the paper and its code, c of after it."""
    _, c = module(x, states)
    return module(x, (states[0], c))[0], c


def h_twice(module: Any, x: Tensor, states: States) -> States:
    """JANET: there h and c are one value in two states."""
    return module(x, (states[0], states[0]))[:1]


def no_input_of_f(module: Any, weights: Weights) -> None:
    """MGU1 is the MGU with a gate that does not see the input."""
    module.weight_ih[:H], module.bias_ih[:H] = 0, 0


def constant_f(module: Any, weights: Weights) -> None:
    """MGU3 is the MGU with a gate that sees nothing; our U has its f."""
    no_input_of_f(module, weights)
    module.weight_hh[:H] = 0
    f = torch.sigmoid(module.bias_hh[:H])
    weights.units["b_f"] = module.bias_hh[:H]
    weights.gates["n"].w_h = module.weight_hh[H:] * f


def leaks(module: Any, _: Weights) -> None:
    """The leaky integrator is the FastRNN with two factors that add up to one."""
    leak = torch.tensor(0.3)
    module.alpha[:], module.beta[:] = torch.logit(leak), torch.logit(1 - leak)


def rows_alike(row: int, other: int, gate: str) -> Adapt:
    """The rows of one gate in theirs are minus those of another, and ours lacks it."""

    def adapt(module: Any, weights: Weights) -> None:
        for each in module.parameters():
            each[row * H : row * H + H] = -each[other * H : other * H + H]
        weights.gates.pop(gate)

    return adapt


def mgu_of_gru(module: Any, weights: Weights) -> None:
    """The MGU is the GRU whose z is 1 - r."""
    rows_alike(1, 0, "z")(module, weights)
    weights.gates["f"] = weights.gates["r"]


def negated(name: str) -> Adapt:
    """One gate is 1 minus theirs."""

    def adapt(_: Any, weights: Weights) -> None:
        gate = weights.gates[name]
        gate.w_x, gate.w_h, gate.b_x, gate.b_h = -gate.w_x, -gate.w_h, -gate.b_x, -gate.b_h

    return adapt


def lstm_like(t: str, s: str) -> Theirs:
    return plain(
        zoo.lstm(t, s, peephole=True), "torchrecurrent.PeepholeLSTMCell", "i f g o",
        units={"weight_ph": "p_i p_f p_o"}, options={"nonlinearity": t, "gate_nonlinearity": s},
    )  # fmt: skip


EULER = {"epsilon": 0.3, "gamma": 0.1}
OSCILLATORS = {"dt": 0.2, "gamma": 1.5, "epsilon": 0.7}

TORCHRECURRENT = [
    lstm_like("tanh", "sigmoid"),
    lstm_like("relu", "hard_sigmoid"),
    lstm_like("elu", "sigmoid"),
    lstm_like("silu", "hard_sigmoid"),
    plain(zoo.lstm_without_forget_gate, "torchrecurrent.OriginalLSTMCell", "i g o"),
    Theirs(zoo.multiplicative_lstm, "torchrecurrent.MultiplicativeLSTMCell", "m i f g o",
           {"hh": "m", "mh": "i f g o"}),
    plain(zoo.nas, "torchrecurrent.NASCell", "g0 g1 g2 g3 g4 g5 g6 g7", adapt=sum_of_g3),
    Theirs(zoo.ran, "torchrecurrent.RANCell", "g i f", {"hh": "i f"}),
    plain(zoo.gru_reset_before, "torchrecurrent.MUT2Cell", "z r n", adapt=negated("z")),
    plain(zoo.mgu_reset_before, "torchrecurrent.MGUCell", "f n"),
    plain(zoo.mgu1, "torchrecurrent.MGUCell", "f n", adapt=no_input_of_f),
    plain(zoo.mgu3, "torchrecurrent.MGUCell", "f n", adapt=constant_f),
    Theirs(zoo.mut1, "torchrecurrent.MUT1Cell", "z r n", {"hh": "r n"}),
    plain(zoo.mut2, "torchrecurrent.MUT2Cell", "z r n"),
    Theirs(zoo.nbrc, "torchrecurrent.NBRCell", "a z n", {"hh": "a z"}),
    plain(zoo.sgu, "torchrecurrent.SGUCell", "g z"),
    plain(zoo.atr, "torchrecurrent.ATRCell", "p"),
    Theirs(zoo.cfn, "torchrecurrent.CFNCell", "f i n", {"hh": "f i"}),
    plain(zoo.janet(), "torchrecurrent.JANETCell", "f g", adapt=one_beta, step=h_twice),
    Theirs(zoo.light_ru, "torchrecurrent.LightRUCell", "n f", {"hh": "f"}),
    plain(zoo.ligru, "torchrecurrent.LiGRUCell", "z n"),
    Theirs(zoo.minimal_rnn, "torchrecurrent.MinimalRNNCell", "n", {"hh": "f", "mm": "m"}),
    Theirs(zoo.star, "torchrecurrent.STARCell", "n z", {"hh": "z"}),
    plain(zoo.ugrnn, "torchrecurrent.UGRNNCell", "n g"),
    plain(zoo.leaky_rnn(0.3), "torchrecurrent.FastRNNCell", "n", adapt=leaks),
    plain(zoo.leaky_rnn(0.3, "relu"), "torchrecurrent.FastRNNCell", "n",
          options={"nonlinearity": "relu"}, adapt=leaks),
    plain(zoo.fast_rnn, "torchrecurrent.FastRNNCell", "n",
          units={"alpha": "alpha", "beta": "beta"}),
    plain(zoo.fast_grnn, "torchrecurrent.FastGRNNCell", "n", units={"zeta": "zeta", "nu": "nu"},
          options={"nonlinearity": "sigmoid"}, adapt=one_bias_more),
    Theirs(zoo.scrn(), "torchrecurrent.SCRNCell", "s n", {"hh": "n _", "ch": "s _"},
           adapt=hidden_as_output, step=before_readout),
    plain(zoo.antisymmetric_rnn(**EULER), "torchrecurrent.AntisymmetricRNNCell", "n",
          options=EULER, adapt=antisymmetric),
    Theirs(zoo.gated_antisymmetric_rnn(**EULER), "torchrecurrent.GatedAntisymmetricRNNCell", "z n",
           {"hh": "n"}, options=EULER, adapt=gated_antisymmetric),
    Theirs(zoo.cornn(**OSCILLATORS), "torchrecurrent.coRNNCell", "n", {"hh": "n", "ch": "m"},
           options=OSCILLATORS),
    Theirs(zoo.lem(0.5), "torchrecurrent.LEMCell", "b a g n", {"hh": "b a g", "ch": "n"},
           options={"dt": 0.5}, step=c_first),
]  # fmt: skip

TORCH = [
    plain(zoo.lstm(), "torch.nn.LSTMCell", "i f g o"),
    # The coupled gate is the one whose rows are minus those of the other.
    plain(zoo.cifg, "torch.nn.LSTMCell", "i f g o", adapt=rows_alike(0, 1, "i")),
    plain(zoo.lstm(input_forget=True), "torch.nn.LSTMCell", "i f g o",
          adapt=rows_alike(1, 0, "f")),
    plain(zoo.gru(), "torch.nn.GRUCell", "r z n"),
    plain(zoo.mgu, "torch.nn.GRUCell", "r z n", adapt=mgu_of_gru),
    plain(zoo.rnn(), "torch.nn.RNNCell", "n"),
    plain(zoo.rnn("relu"), "torch.nn.RNNCell", "n", options={"nonlinearity": "relu"}),
]  # fmt: skip


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("theirs", TORCHRECURRENT + TORCH, ids=str)
def test_theirs(theirs: Theirs, length: int) -> None:
    module = theirs.made()
    weights = weights_of(module, theirs.inputs, theirs.products, theirs.units)
    if theirs.adapt is not None:
        theirs.adapt(module, weights)
    check(theirs.cell, weights, lambda x, states: theirs.steps(module, x, states), length)


# --- the papers --------------------------------------------------------------------------------


def random_weights(cell: WrittenCell) -> Weights:
    def drawn(*shape: int) -> Tensor:
        return torch.empty(*shape).uniform_(-0.8, 0.8)

    gates = {name: Gate(drawn(H, IN), drawn(H, H), drawn(H), drawn(H)) for name in cell.gates}
    return Weights(gates, {name: drawn(H) for name in cell.weights})


def products(weights: Weights, x: Tensor, h: Tensor) -> Callable[[str], Tensor]:
    """W x + U h + b of a gate."""

    def of(name: str, operand: Tensor = h) -> Tensor:
        gate = weights.gates[name]
        return F.linear(x, gate.w_x) + F.linear(operand, gate.w_h) + gate.b_x + gate.b_h

    return of


def recurrent(weights: Weights, name: str, operand: Tensor) -> Tensor:
    """U h + b of a gate."""
    gate = weights.gates[name]
    return F.linear(operand, gate.w_h, gate.b_h)


def slstm(weights: Weights, x: Tensor, states: States) -> States:
    """Without the stabiliser: c and n are exp(m) times those of the cell."""
    h, c, n, m = states
    of = products(weights, x, h)
    i, f, o = torch.exp(of("i")), torch.sigmoid(of("f")), torch.sigmoid(of("o"))
    c, n = f * c * m.exp() + i * torch.tanh(of("z")), f * n * m.exp() + i
    m = torch.maximum(torch.log(f) + m, of("i"))
    return o * (c / n), c / m.exp(), n / m.exp(), m


def rhn(weights: Weights, x: Tensor, states: States) -> States:
    (s,) = states
    of = products(weights, x, s)
    n, t = torch.tanh(of("n")), torch.sigmoid(of("t"))
    s = n * t + s * (1 - t)
    n, t = torch.tanh(recurrent(weights, "n2", s)), torch.sigmoid(recurrent(weights, "t2", s))
    return (n * t + s * (1 - t),)


def nas(weights: Weights, x: Tensor, states: States) -> States:
    """In the order of Zoph's code, layer by layer."""
    h, c = states
    of, w3 = products(weights, x, h), weights.gates["g3"]
    multiplied = (F.linear(x, w3.w_x) + w3.b_x) * recurrent(weights, "g3", h)
    one = [torch.sigmoid(of("g0")), torch.relu(of("g1")), torch.sigmoid(of("g2")),
           torch.relu(multiplied), torch.tanh(of("g4")), torch.sigmoid(of("g5")),
           torch.tanh(of("g6")), torch.sigmoid(of("g7"))]  # fmt: skip
    two = [torch.tanh(one[0] * one[1]), torch.tanh(one[2] + one[3]),
           torch.tanh(one[4] * one[5]), torch.sigmoid(one[6] + one[7])]  # fmt: skip
    c = torch.tanh(two[0] + c) * two[1]
    return torch.tanh(c * torch.tanh(two[2] + two[3])), c


def lstm_options(weights: Weights, x: Tensor, states: States) -> States:
    """Three functions, and a memory that is clipped before the output gate sees it."""
    h, c = states
    of, p = products(weights, x, h), weights.units
    i, f = F.hardsigmoid(of("i") + p["p_i"] * c), F.hardsigmoid(of("f") + p["p_f"] * c)
    c = (f * c + i * F.softsign(of("g"))).clip(-0.5, 0.5)
    return F.hardsigmoid(of("o") + p["p_o"] * c) * F.elu(c), c


def coupled_peepholes(weights: Weights, x: Tensor, states: States) -> States:
    """ONNX's input_forget, with its P."""
    h, c = states
    of, p = products(weights, x, h), weights.units
    i = torch.sigmoid(of("i") + p["p_i"] * c)
    c = (1 - i) * c + i * torch.tanh(of("g"))
    return torch.sigmoid(of("o") + p["p_o"] * c) * torch.tanh(c), c


def gru_options(weights: Weights, x: Tensor, states: States) -> States:
    (h,) = states
    of, w_n = products(weights, x, h), weights.gates["n"]
    r, z = F.hardsigmoid(of("r")), F.hardsigmoid(of("z"))
    n = F.softplus(F.linear(x, w_n.w_x) + w_n.b_x + r * recurrent(weights, "n", h))
    return (z * h + (1 - z) * n,)


PAPERS = [
    pytest.param(cell, step, id=name)
    for name, cell, step in [
        ("slstm", zoo.slstm, slstm),
        ("rhn", zoo.rhn, rhn),
        ("nas", zoo.nas, nas),
        ("lstm: options", zoo.lstm("softsign", "hard_sigmoid", output_activation="elu",
                                   peephole=True, cell_clip=0.5), lstm_options),
        ("lstm: coupled peepholes", zoo.lstm(peephole=True, input_forget=True), coupled_peepholes),
        ("gru: options", zoo.gru("softplus", "hard_sigmoid"), gru_options),
    ]
]  # fmt: skip


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("cell, step", PAPERS)
def test_paper(
    cell: WrittenCell, step: Callable[[Weights, Tensor, States], States], length: int
) -> None:
    weights = random_weights(cell)
    check(cell, weights, lambda x, states: step(weights, x, states), length)


# --- multiplicative integration ----------------------------------------------------------------


@dataclass
class Integration:
    """A gate as the paper has it: alpha * Wx * Uz + beta_1 * Uz + beta_2 * Wx + b."""

    w: Tensor
    u: Tensor
    alpha: Tensor
    beta_1: Tensor
    beta_2: Tensor
    b: Tensor

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        w_x, u_z = x @ self.w.T, z @ self.u.T
        return self.alpha * w_x * u_z + self.beta_1 * u_z + self.beta_2 * w_x + self.b

    def literally(self) -> tuple[Gate, dict[str, Tensor]]:
        """The weights of mi_rnn, which has all factors: only b is that of Wx."""
        b_x = self.b / self.beta_2
        factors = {"alpha": self.alpha, "beta_x": self.beta_2}
        return Gate(self.w, self.u, b_x), factors | {"beta_h": self.beta_1 - self.alpha * b_x}

    def absorbed(self) -> tuple[Gate, Tensor]:
        """The weights of the gated cells: the betas are factors of rows of W and U."""
        beta_1 = self.beta_1 - self.alpha * self.b / self.beta_2
        gate = Gate(self.beta_2[:, None] * self.w, beta_1[:, None] * self.u, self.b)
        return gate, self.alpha / (self.beta_2 * beta_1)


def integration() -> Integration:
    w, u, vectors = torch.randn(H, IN), torch.randn(H, H), torch.rand(4, H) + 0.5
    alpha, beta_1, beta_2, b = vectors
    return Integration(w, u, alpha, beta_1 + 3, beta_2, b)  # +3: beta_1 - alpha b / beta_2 > 0


@pytest.mark.parametrize("length", LENGTHS)
def test_mi_rnn(length: int) -> None:
    n = integration()
    gate, units = n.literally()
    weights = Weights({"n": gate}, units)
    check(zoo.mi_rnn, weights, lambda x, states: (torch.tanh(n(x, states[0])),), length)


def absorbed(gates: dict[str, Integration]) -> Weights:
    both = {name: gate.absorbed() for name, gate in gates.items()}
    return Weights(
        {name: gate for name, (gate, _) in both.items()},
        {f"alpha_{name}": alpha for name, (_, alpha) in both.items()},
    )


@pytest.mark.parametrize("length", LENGTHS)
def test_mi_lstm(length: int) -> None:
    gates = {name: integration() for name in "ifgo"}

    def step(x: Tensor, states: Sequence[Tensor]) -> States:
        h, c = states
        i, f, o = (torch.sigmoid(gates[name](x, h)) for name in "ifo")
        c = f * c + i * torch.tanh(gates["g"](x, h))
        return o * torch.tanh(c), c

    check(zoo.mi_lstm, absorbed(gates), step, length)


@pytest.mark.parametrize("length", LENGTHS)
def test_mi_gru(length: int) -> None:
    gates = {name: integration() for name in "rzn"}

    def step(x: Tensor, states: Sequence[Tensor]) -> States:
        (h,) = states
        r, z = (torch.sigmoid(gates[name](x, h)) for name in "rz")
        return ((1 - z) * h + z * torch.tanh(gates["n"](x, r * h)),)

    check(zoo.mi_gru, absorbed(gates), step, length)


# --- step inputs -------------------------------------------------------------------------------

TimedStep = Callable[[Weights, Tensor, States, dict[str, Tensor]], States]


def gru_d(weights: Weights, x: Tensor, states: States, e: dict[str, Tensor]) -> States:
    d = e["decay"] * states[0]
    of, w_n = products(weights, x, d), weights.gates["n"]
    r, z = torch.sigmoid(of("r")), torch.sigmoid(of("z"))
    n = torch.tanh(F.linear(x, w_n.w_x) + w_n.b_x + r * recurrent(weights, "n", d))
    return (d + z * (n - d),)


def t_lstm(weights: Weights, x: Tensor, states: States, e: dict[str, Tensor]) -> States:
    """In the paper's names: C^S, its discounted part, and C^T."""
    h, c = states
    short = torch.tanh(recurrent(weights, "d", c))
    discounted = short * (1 / torch.log(torch.e + e["dt"]))
    adjusted = (c - short) + discounted
    of = products(weights, x, h)
    i, f, o = torch.sigmoid(of("i")), torch.sigmoid(of("f")), torch.sigmoid(of("o"))
    c = f * adjusted + i * torch.tanh(of("g"))
    return o * torch.tanh(c), c


def phased_lstm(weights: Weights, x: Tensor, states: States, e: dict[str, Tensor]) -> States:
    (h, c), k = states, e["k"]
    of, p = products(weights, x, h), weights.units
    i, f = torch.sigmoid(of("i") + p["p_i"] * c), torch.sigmoid(of("f") + p["p_f"] * c)
    proposed = f * c + i * torch.tanh(of("g"))
    o = torch.sigmoid(of("o") + p["p_o"] * proposed)
    return k * (o * torch.tanh(proposed)) + (1 - k) * h, k * proposed + (1 - k) * c


def ct_rnn(weights: Weights, x: Tensor, states: States, e: dict[str, Tensor]) -> States:
    (h,) = states
    slope = (-h + torch.tanh(products(weights, x, h)("n"))) / weights.units["tau"]
    return (h + e["dt"] * slope,)


def ltc(weights: Weights, x: Tensor, states: States, e: dict[str, Tensor]) -> States:
    """One implicit Euler step of h' = -(1 / tau + f) h + f a, f taken from before."""
    (h,), dt = states, e["dt"]
    f = torch.sigmoid(products(weights, x, h)("f"))
    tau, a = weights.units["tau"], weights.units["a"]
    return ((h + dt * f * a) / (1 + dt * (1 / tau + f)),)


def cfc(weights: Weights, x: Tensor, states: States, e: dict[str, Tensor]) -> States:
    of = products(weights, x, states[0])
    one, other = torch.tanh(of("g")), torch.tanh(of("n"))
    time = torch.sigmoid(of("a") * e["dt"] + of("b"))
    return (one * (1 - time) + time * other,)


TIMED: dict[str, TimedStep] = {
    "gru_d": gru_d, "t_lstm": t_lstm, "phased_lstm": phased_lstm, "ct_rnn": ct_rnn, "ltc": ltc,
    "cfc": cfc,
}  # fmt: skip


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", TIMED)
def test_paper_with_step_inputs(name: str, length: int) -> None:
    cell = zoo.ZOO[name]
    weights, steps = random_weights(cell), random_step_inputs(cell, length)
    for value in weights.units.values():
        value.abs_().add_(0.5)  # time constants
    times = iter(range(length))

    def step(x: Tensor, states: States) -> States:
        t = next(times)
        return TIMED[name](weights, x, states, {key: of[t] for key, of in steps.items()})

    check(cell, weights, step, length, steps)


def random_step_inputs(cell: WrittenCell, length: int) -> dict[str, Tensor]:
    return {name: torch.rand(length, B, H) for name in cell.step_inputs}


def test_phased_lstm_keeps_what_is_closed() -> None:
    """Where k is 0 a unit keeps its states; where it is 1 it is an LSTM with peepholes."""
    weights, x = random_weights(zoo.phased_lstm), torch.randn(1, B, IN)
    states, k = tuple(torch.randn(2, B, H)), (torch.rand(1, B, H) < 0.5).double()
    (after,) = run_eagerly(zoo.phased_lstm, weights, x, states, {"k": k})
    (open_,) = run_eagerly(zoo.peephole_lstm, weights, x, states)
    for found, old, new in zip(after, states, open_, strict=True):
        torch.testing.assert_close(found, torch.where(k[0] > 0, new, old))


# --- all of them -------------------------------------------------------------------------------


def test_every_cell_was_checked() -> None:
    checked = {theirs.cell.name for theirs in TORCHRECURRENT + TORCH}
    checked |= {parameters.values[0].name for parameters in PAPERS}
    assert set(zoo.ZOO) - checked - {*TIMED} == {"mi_rnn", "mi_lstm", "mi_gru"}


def test_names() -> None:
    assert len(zoo.ZOO) >= 20
    assert set(zoo.__all__) == {"ACTIVATIONS", "ZOO", *zoo.ZOO}


ALIASES = {"peephole_lstm", "gru_reset_before"}  # of what their factories say


@pytest.mark.parametrize("name", sorted(set(zoo.ZOO) - ALIASES))
def test_docstring(name: str) -> None:
    """The equations, the authors and the year."""
    text = getattr(zoo, name).__doc__
    words = " ".join(text.split())
    assert re.search(r"^        .*' = ", text, re.MULTILINE), text
    assert re.search(r'".+", (19|20)\d\d', words), text


@pytest.mark.parametrize("name", zoo.ZOO)
def test_program(name: str) -> None:
    """What a cell is without its function, as in a pickle, computes the same bits."""
    cell = zoo.ZOO[name]
    weights, inputs = random_weights(cell), torch.randn(3, B, IN)
    states = [torch.randn(B, H) for _ in cell.states]
    steps = random_step_inputs(cell, len(inputs))
    loaded = run_eagerly(pickle.loads(pickle.dumps(cell)), weights, inputs, states, steps)
    found = run_eagerly(cell, weights, inputs, states, steps)
    for ours, theirs in zip(found, loaded, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_slstm_begins_with_anything() -> None:
    """Before the first step nothing is remembered, however small the input gate is."""
    weights = random_weights(zoo.slstm)
    zeros, x = tuple(torch.zeros(B, H) for _ in range(4)), torch.randn(1, B, IN)
    for size in (-900.0, 900.0):  # exp overflows, or is 0
        weights.gates["i"].b_x = size
        ((h, *_),) = run_eagerly(zoo.slstm, weights, x, zeros)
        of = products(weights, x[0], zeros[0])
        torch.testing.assert_close(h, torch.sigmoid(of("o")) * torch.tanh(of("z")))


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation: expected one of .*tanh.*, got 'tahn'"):
        zoo.rnn("tahn")


def test_activation_of_ones_own() -> None:
    cell = zoo.rnn(lambda a: torch.clamp(0.2 * a + 0.5, 0, 1))
    weights = random_weights(cell)

    def step(x: Tensor, states: States) -> States:
        return ((0.2 * products(weights, x, states[0])("n") + 0.5).clip(0, 1),)

    check(cell, weights, step, 3)
