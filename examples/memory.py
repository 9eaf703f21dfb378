"""How far back can a recurrent network look? The adding and the copy problem, ever longer.

Adding (after Hochreiter and Schmidhuber, 1997): two numbers of a long row are marked, one in each
half. Their sum is asked for after the last step.

    numbers   0.31  0.75  0.08  ...  0.94  0.52  0.66
    marks        0     1     0  ...     1     0     0     -> 0.75 + 0.94

Copy (after Arjovsky, Shah and Bengio, 2016): three symbols, then nothing for a long time, then a
signal. The symbols are asked for at the last three steps.

    symbols   c a f . . . ... . . ! . .
    answer                        c a f

To learn either, the gradient has to go all the way back to the first steps:

    h(1) <-- W_hh -- h(2) <-- W_hh -- ... <-- W_hh -- h(T) <-- loss     RNN: vanishes, or explodes
    c(1) <--- f ---- c(2) <--- f ---- ... <--- f ---- c(T) <-- loss     LSTM: stays, if f is near 1

A plain network multiplies it by the same matrix at each step. The cell state of an LSTM is
multiplied by the forget gate only, and the state of a GRU by the update gate, so an open gate lets
the gradient through. Here training begins with gates that are open: in some units for one step, in
others for as many as the sequence has (after Tallec and Ollivier, 2018). The plain network begins
with an orthogonal W_hh. `--gates as-torch` shows how much that
helps: at 100 steps an LSTM then fails, too. The picture shows the gradients, and which network
solves which length.

    python examples/memory.py
    python examples/memory.py --cell gru --lengths 10 50 200
    python examples/memory.py --cell lstm --gates as-torch
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import fusedrnn.inspect
import pictures
import training
from pictures import CELL_LINES
from training import BadInput, Result

EPOCHS, BATCHES, BATCH_SIZE = 20, 50, 32  # an epoch is so many batches of new sequences
HELD_OUT = 1000
HIDDEN_SIZE = 64
LENGTHS = [10, 30, 100]
SHORTEST = 4

# Chosen for each, on sequences like those that are judged. A plain network is lost at 2e-2.
RATE = 2e-2
RATES_OF_RNN = {"adding": 3e-3, "copy": 1e-3}

VARIANCE = 1 / 6  # of the sum of two numbers between 0 and 1: the error of always guessing the mean
SYMBOLS, COPIED = 8, 3
CHANCE = 1 / SYMBOLS

ALLOWED_ERROR, REQUIRED_ACCURACY = 0.1, 0.9  # of the gated cells, at the longest of LENGTHS
UNSOLVED_ERROR, UNSOLVED_ACCURACY = 0.5, 0.5  # a plain network doesn't get that far there

EXPLODING = 1.1  # W_hh of the network whose gradient explodes is so many times the identity
FLOOR = 1e-12  # of the picture of gradients
DOTTED, FAINT = {"linestyle": ":"}, {"linewidth": 1.0, "alpha": 0.6}
MARKERS: dict[str, dict[str, Any]] = {
    "rnn": {"marker": "s"},
    "lstm": {"marker": "o", "markersize": 10, "fillstyle": "none"},  # seen around another one
    "gru": {"marker": "^"},
}


class Adding:
    """The sum of the two marked numbers."""

    name, features, answers = "adding", 2, 1

    def make(self, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences [B, T, 2] and sums [B, 1]."""
        numbers = torch.rand(count, length, generator=generator)
        marks = torch.zeros(count, length)
        for first, last in ((0, length // 2), (length // 2, length)):
            marks.scatter_(1, torch.randint(first, last, (count, 1), generator=generator), 1.0)
        return torch.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdim=True)

    def practise(self, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch to learn from."""
        return self.make(BATCH_SIZE, length, generator)

    def loss(self, output: Tensor, sums: Tensor) -> Tensor:
        """The squared error, from what the network says at every step, [B, T, 1]."""
        return (output[:, -1] - sums).square().mean()

    def score(self, output: Tensor, sums: Tensor) -> float:
        """The error, relative to that of always guessing the mean."""
        return self.loss(output, sums).item() / VARIANCE


class Copy:
    """The first symbols, again, after a gap."""

    name, features, answers = "copy", SYMBOLS + 2, SYMBOLS
    nothing, signal = SYMBOLS, SYMBOLS + 1

    def make(self, count: int, gap: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences [B, gap + 2 * COPIED, SYMBOLS + 2], one-hot, and symbols [B, COPIED]."""
        symbols = torch.randint(SYMBOLS, (count, COPIED), generator=generator)
        sequences = torch.full((count, gap + 2 * COPIED), self.nothing)
        sequences[:, :COPIED] = symbols
        sequences[:, -COPIED] = self.signal
        return one_hot(sequences, self.features).float(), symbols

    def practise(self, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch to learn from. Its gap is of any length up to the one that will be asked for."""
        gap = int(torch.randint(1, length + 1, (), generator=generator))
        return self.make(BATCH_SIZE, gap, generator)

    def loss(self, output: Tensor, symbols: Tensor) -> Tensor:
        """The cross entropy, from what the network says at every step, [B, T, SYMBOLS]."""
        return cross_entropy(output[:, -COPIED:].flatten(0, 1), symbols.flatten())

    def score(self, output: Tensor, symbols: Tensor) -> float:
        """How many of the symbols are right."""
        return (output[:, -COPIED:].argmax(2) == symbols).float().mean().item()


Problem = Adding | Copy


class Network(nn.Module):
    """A recurrent layer, and a linear one that answers at every step."""

    def __init__(self, rnn: nn.Module, answers: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(HIDDEN_SIZE, answers)

    def forward(self, sequences: Tensor) -> Tensor:
        """What it says at every step, [B, T, answers], of sequences [B, T, features]."""
        return self.head(self.rnn(sequences)[0])


@torch.no_grad()
def open_gates(rnn: nn.Module, cell: str, length: int) -> None:
    """Lets units remember for 1 to `length` steps, as many for 1 to 10 as for 10 to 100.

    A gate of value f, the sigmoid of its bias b, keeps something for about 1 / (1 - f) steps. That
    is 1 + exp(b), so the biases are spread evenly from 0 to log(length).
    """
    gates = rnn.bias_ih_l0.view(-1, HIDDEN_SIZE)  # LSTM: i f g o, GRU: r z n
    open_for = torch.rand(HIDDEN_SIZE) * math.log(length)
    gates[1] = open_for
    if cell == "lstm":  # what stays long should change little at a step; z does both in a GRU
        gates[0] = -open_for


def new_layer(
    options: argparse.Namespace, cell: str, features: int, length: int, gates: str
) -> nn.Module:
    """A layer before training. With `gates` "open" it can remember for `length` steps, or has at
    least, where it has no gates, an orthogonal W_hh."""
    rnn = training.recurrent(options, cell)(features, HIDDEN_SIZE, batch_first=True)
    if gates == "open" and cell == "rnn":
        nn.init.orthogonal_(rnn.weight_hh_l0)
    elif gates == "open":
        open_gates(rnn, cell, length)
    return rnn.to(options.device)


def learn(
    options: argparse.Namespace, cell: str, problem: Problem, length: int
) -> tuple[float, list[float]]:
    """Trains a network on one problem of one length: its score, and the loss of each epoch."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    rnn = new_layer(options, cell, problem.features, length, options.gates)
    network = Network(rnn, problem.answers).to(options.device)

    def batches(_: int) -> list[list[Tensor]]:
        made = (problem.practise(length, generator) for _ in range(BATCHES))
        return [[part.to(options.device) for part in batch] for batch in made]

    rate = RATES_OF_RNN[problem.name] if cell == "rnn" else RATE
    history = training.train(
        network,
        batches,
        lambda batch: problem.loss(network(batch[0]), batch[1]),
        options.epochs,
        learning_rate=rate,
        warm_up=0.1,
        name=f"{training.CELLS[cell]:4} {problem.name:6} {length:3}",
    )
    x, y = (part.to(options.device) for part in problem.make(HELD_OUT, length, generator))
    return training.evaluate(network, lambda: problem.score(network(x), y)), history.losses


class Flow(NamedTuple):
    """How a gradient fades in a layer that wasn't trained."""

    label: str
    norms: Tensor  # [T], the gradient that arrives at each step; at the last it is 1
    style: dict[str, Any]  # of its curve
    bounds: dict[str, float]  # of the power of ten that is left at the first of LENGTHS[-1] steps


def flow_of(rnn: nn.Module, state: str, length: int) -> Tensor:
    """The `norms` of a flow, those of dL/dh_t or dL/dc_t. L is the sum of the last output."""
    x, _ = Adding().make(BATCH_SIZE, length, torch.Generator().manual_seed(0))
    x = x.to(rnn.weight_hh_l0.device).double()  # float32 ends at 1e38
    flow = fusedrnn.inspect.gradient_flow(rnn.double(), x, lambda output, _: output[:, -1].sum())
    norms = flow["l0"][state].cpu()
    return norms / norms[-1]


def exploding_layer(options: argparse.Namespace) -> nn.Module:
    """A plain network that hands every gradient on, and more of it."""
    relu = {"nonlinearity": "relu", "batch_first": True}
    rnn = training.recurrent(options, "rnn")(Adding.features, HIDDEN_SIZE, **relu)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(EXPLODING * torch.eye(HIDDEN_SIZE))
    return rnn.to(options.device)


def flows(options: argparse.Namespace, cells: Sequence[str], length: int) -> list[Flow]:
    """The flows of some cells, the largest first."""
    torch.manual_seed(options.seed)
    found = []
    for cell in cells:
        line, state = CELL_LINES[cell], "c" if cell == "lstm" else "h"
        name = {"rnn": "RNN", "lstm": "LSTM cell", "gru": "GRU"}[cell]
        layer = partial(new_layer, options, cell, Adding.features, length)
        plain = flow_of(layer("as-torch"), state, length)
        if cell == "rnn":
            norms = flow_of(exploding_layer(options), state, length)
            label = f"RNN, ReLU, W_hh = {EXPLODING} I"
            found.append(Flow(label, norms, line | DOTTED, {"at_least": 2.0}))
            found.append(Flow("RNN, tanh", plain, line, {"at_most": -10.0}))
        else:
            norms = flow_of(layer("open"), state, length)
            found.append(Flow(f"{name}, open gates", norms, line, {"at_least": -3.0}))
            found.append(Flow(f"{name}, as torch begins", plain, line | FAINT, {}))
    return sorted(found, key=lambda flow: -flow.norms[0].item())


Scores = dict[str, dict[str, list[float]]]
"""The score of each problem, cell and length."""


def draw_flows(axes: Axes, found: Sequence[Flow], length: int) -> None:
    for flow in found:
        axes.plot(range(1, length + 1), flow.norms, label=flow.label, **flow.style)
    axes.set(
        title="Gradient on its way back, before training",
        xlabel=f"step; the loss comes after step {length}",
        ylabel="norm, relative to the last step",
        yscale="log",
    )
    axes.set_ylim(bottom=max(FLOOR, axes.get_ylim()[0]))
    axes.legend(fontsize=8)


def draw(
    options: argparse.Namespace, found: Sequence[Flow], scores: Scores, losses: dict[str, Any]
) -> None:
    """Four views: gradients, learning at the longest length, and both scores by length."""
    lengths, longest = options.lengths, options.lengths[-1]
    made, ((flowing, learning), (adding, copying)) = pictures.figure(
        "How far back can a network learn to look?", 2, 2, size=(9.4, 6.9)
    )
    draw_flows(flowing, found, longest)
    for cell, of_epochs in losses.items():
        start = "orthogonal W_hh" if cell == "rnn" else "open gates"
        begun = f", {start}" if options.gates == "open" else ""
        look = {"label": f"{training.CELLS[cell]}{begun}", **CELL_LINES[cell]}
        errors = [loss / VARIANCE for loss in of_epochs]
        learning.plot(range(1, len(errors) + 1), errors, **look)
        adding.plot(lengths, scores["adding"][cell], **look, **MARKERS[cell])
        copying.plot(lengths, scores["copy"][cell], **look, **MARKERS[cell])
    error = "squared error / that of the mean"
    learning.set(title=f"Learning to add over {longest} steps", ylabel=error, yscale="log",
                 xlabel=f"epoch of {BATCHES} batches")  # fmt: skip
    learning.xaxis.set_major_locator(MaxNLocator(integer=True))
    adding.set(title="Adding: error by length", ylabel=error, yscale="log")
    copying.set(title="Copy: accuracy by length", ylabel="symbols that are right", ylim=(0, 1.05))
    for axes, label in ((adding, "steps"), (copying, "steps from the symbols to the signal")):
        axes.set(xscale="log", xlabel=label)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    for axes, baseline, label in (
        (learning, 1.0, "always guess the mean"),
        (adding, 1.0, "always guess the mean"),
        (copying, CHANCE, "chance"),
    ):
        axes.axhline(baseline, color=pictures.GRAY, linestyle=":", label=label)
        axes.legend(fontsize=8)
    pictures.save(made, options.plot)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    # Layers this small gain little from two threads, and lose much where others want them, too.
    parser = training.arguments(__doc__, "memory", epochs=EPOCHS, cell="all", threads=1)
    parser.add_argument("--lengths", type=training.positive, nargs="+", default=LENGTHS,
                        metavar="T", help="default: 10 30 100")  # fmt: skip
    parser.add_argument("--gates", choices=("open", "as-torch"), default="open",
                        help="how training begins; default: %(default)s")  # fmt: skip
    options = training.parse(parser, words)
    options.lengths = sorted(set(options.lengths))
    if options.lengths[0] < SHORTEST:
        raise BadInput(f"--lengths: expected {SHORTEST} or more steps, got {options.lengths[0]}")
    return options


def results(options: argparse.Namespace, found: Sequence[Flow], scores: Scores) -> list[Result]:
    """The numbers at the longest length, with bounds where the defaults were made for it."""
    longest = options.lengths[-1]
    bounded = longest <= LENGTHS[-1] and options.gates == "open"
    is_far = longest == LENGTHS[-1]  # a plain network does solve short ones
    shown = []
    for cell in scores["adding"]:
        name, error = training.CELLS[cell], scores["adding"][cell][-1]
        accuracy = scores["copy"][cell][-1]
        if cell == "rnn":
            adding = {"at_least": UNSOLVED_ERROR} if is_far else {}
            copying = {"at_most": UNSOLVED_ACCURACY} if is_far else {}
        else:
            adding = {"at_most": ALLOWED_ERROR} if bounded else {}
            copying = {"at_least": REQUIRED_ACCURACY} if bounded else {}
        shown.append(Result(f"{name}, adding {longest}: error / variance", error, **adding))
        shown.append(Result(f"{name}, copy {longest}: accuracy", accuracy, **copying))
    for flow in found:
        left, bounds = flow.norms[0].log10().item(), flow.bounds if is_far else {}
        shown.append(Result(f"log10 gradient, step 1: {flow.label}", left, **bounds))
    return shown


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    cells = list(training.CELLS) if options.cell == "all" else [options.cell]
    for cell in cells:
        print(training.setting(options, cell))
    examples = options.epochs * BATCHES * BATCH_SIZE
    print(f"{examples} sequences of each problem and length to learn from, {HELD_OUT} held out")

    found = flows(options, cells, options.lengths[-1])
    scores: Scores = {"adding": {}, "copy": {}}
    losses: dict[str, list[float]] = {}
    for problem in (Adding(), Copy()):
        for cell in cells:
            learned = [learn(options, cell, problem, length) for length in options.lengths]
            scores[problem.name][cell] = [score for score, _ in learned]
            if problem.name == "adding":
                losses[cell] = learned[-1][1]
    draw(options, found, scores, losses)

    for name, by_cell in scores.items():
        print(f"\n{name:22}" + "".join(f"{length:8}" for length in options.lengths))
        for cell, values in by_cell.items():
            print(f"{training.CELLS[cell]:22}" + "".join(f"{value:8.3f}" for value in values))
    return training.conclude(options, results(options, found, scores))


if __name__ == "__main__":
    training.run(main)
