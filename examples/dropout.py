"""Dropout in recurrent layers: the three keep probabilities, and masks that stay or change.

A network that sees few examples learns them by heart. Here two recurrent layers read 200
handwritten digits row by row until they know them all, and meanwhile get worse at other digits.
Dropout helps.
It has three places in a layer, those of TensorFlow 1's DropoutWrapper around each cell:

                                           output_dropout --> next layer
                                                 |
    [ cell ] --- h --- recurrent_dropout ---> [ cell ] --- h --- recurrent_dropout ---> ...
                                                 |
      step t - 1                            input_dropout
                                                 |
                                              x, step t

    input_keep_prob   = 1 - input_dropout
    state_keep_prob   = 1 - recurrent_dropout
    output_keep_prob  = 1 - output_dropout

What is dropped may be the same at all steps of a sequence (dropout_mask="sequence", the variational
dropout of Gal and Ghahramani, 2016) or drawn anew for each step (dropout_mask="step"). torch.nn has
only `dropout` between two layers, and nn.Dropout before and after them, drawn for each step:
--impl torch shows how far that goes.

    python examples/dropout.py
    python examples/dropout.py --cell gru --state-keep 0.5
    python examples/dropout.py --impl torch
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.ticker import LogLocator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import digits
import pictures
import training
from training import History, Result

EPOCHS = 120
FEW = 200  # digits to learn from; all others are held out
BATCH_SIZE = 50
HIDDEN_SIZE = 64
LEARNING_RATE = 3e-3
LAST = 10  # epochs that a result is the mean of
JUDGED = {"fused": "all, mask per sequence", "torch": "all, mask per step"}  # ways, by package
# What it saves of the held-out loss, at the least. A simple RNN learns less by heart, and dropout
# saves it a fifth of that loss or nothing, as the seed has it: it has no bound.
REQUIRED_SAVING = {"lstm": 0.15, "gru": 0.15}


class Dropouts(NamedTuple):
    """One way to drop: options of the layers, and the probabilities of nn.Dropout around them."""

    layers: dict[str, Any] = {}
    before: float = 0.0
    after: float = 0.0


def keep_probability(text: str) -> float:
    """A number from the command line; who keeps nothing has no network left."""
    value = float(text)
    if not 0 < value <= 1:  # so written that NaN is refused
        raise argparse.ArgumentTypeError(f"expected 0 < P <= 1, got {text}")
    return value


def ways_of_fusedrnn(input: float, state: float, output: float) -> dict[str, Dropouts]:
    """Each of the three by itself, and all with both kinds of masks."""
    all_three = {"input_dropout": input, "recurrent_dropout": state, "output_dropout": output}
    return {
        "none": Dropouts(),
        "input": Dropouts({"input_dropout": input}),
        "state": Dropouts({"recurrent_dropout": state}),
        "output": Dropouts({"output_dropout": output}),
        "all, mask per step": Dropouts({**all_three, "dropout_mask": "step"}),
        "all, mask per sequence": Dropouts({**all_three, "dropout_mask": "sequence"}),
    }


def ways_of_torch(input: float, output: float) -> dict[str, Dropouts]:
    """What torch.nn has: nothing for the state, and no mask for a whole sequence."""
    return {
        "none": Dropouts(),
        "before the layers": Dropouts(before=input),
        "between the layers": Dropouts({"dropout": output}),
        "after the layers": Dropouts(after=output),
        "all, mask per step": Dropouts({"dropout": output}, input, output),
    }


LINES: list[dict[str, Any]] = [
    {"color": pictures.BLACK, "linestyle": "-"},
    {"color": pictures.ORANGE, "linestyle": "-."},
    {"color": pictures.GREEN, "linestyle": "--"},
    {"color": pictures.PURPLE, "linestyle": ":"},
    {"color": pictures.SKY, "linestyle": "--"},
    {"color": pictures.BLUE, "linestyle": "-"},
]
"""How these ways are drawn, in their order."""


class Reader(nn.Module):
    """rows of an image -> two recurrent layers -> output of the last step -> scores of digits."""

    def __init__(self, layers: Callable[..., nn.Module], pixels: int, way: Dropouts) -> None:
        super().__init__()
        self.before = nn.Dropout(way.before)
        self.layers = layers(pixels, HIDDEN_SIZE, num_layers=2, batch_first=True, **way.layers)
        self.after = nn.Dropout(way.after)
        self.answer = nn.Linear(HIDDEN_SIZE, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, 10] of images [N, rows, pixels]."""
        output, _ = self.layers(self.before(images))
        # Not the final state: output_dropout drops from the output, and leaves states whole.
        return self.answer(self.after(output[:, -1]))


def learn(
    way: Dropouts, few: Sequence[Tensor], others: Sequence[Tensor], options: Any, name: str
) -> History:
    """Trains a reader on the few digits; its scores are losses on the others."""
    torch.manual_seed(options.seed)  # all ways begin alike
    reader = Reader(training.recurrent(options), few[0].size(2), way).to(options.device)

    def loss_of(batch: Sequence[Tensor]) -> Tensor:
        images, labels = batch
        return cross_entropy(reader(images), labels)

    return training.train(
        reader,
        training.shuffled(few, BATCH_SIZE, options.seed),
        loss_of,
        options.epochs,
        learning_rate=LEARNING_RATE,
        examine=lambda: loss_of(others).item(),
        name=name,
    )


def masks(options: Any, keep: float) -> dict[str, Tensor]:
    """Which outputs [steps, units] a layer's dropout keeps, by the name of the mask."""
    if options.impl == "torch":
        return {"nn.Dropout": nn.Dropout(1 - keep)(torch.ones(12, 16)) != 0}
    kept = {}
    for mask in ("step", "sequence"):
        layer = training.recurrent(options)(4, 16, output_dropout=1 - keep, dropout_mask=mask)
        output, _ = layer(torch.randn(12, 1, 4))
        kept[f'dropout_mask="{mask}"'] = output[:, 0] != 0
    return kept


def final(history: History) -> float:
    """The loss on the held-out digits at the end."""
    last = history.scores[-LAST:]
    return sum(last) / len(last)


def draw(histories: dict[str, History], kept: dict[str, Tensor], title: str, path: Path) -> None:
    """Both losses by epochs; at the bottom, masks and where the held-out losses end."""
    made, axes = pictures.figure(title, 2, 2, size=(11, 6.4), height_ratios=(1.7, 1))
    (learned, held_out), (masks_shown, ends) = axes
    for (name, history), line in zip(histories.items(), LINES, strict=False):
        epochs = range(1, len(history.losses) + 1)
        # A point, for the curve of one epoch is nothing to see.
        learned.semilogy(epochs, history.losses, label=name, lw=1.3, marker=",", **line)
        held_out.semilogy(epochs, history.scores, label=name, lw=1.3, marker=",", **line)
    learned.set(title=f"loss on the {FEW} digits learned from, with dropout")
    held_out.set(title="loss on held-out digits")
    for axis in (learned, held_out):
        axis.set(xlabel="epochs", ylabel="cross-entropy, nats")
    learned.legend(loc="lower left")
    held_out.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    held_out.yaxis.set_major_formatter("{x:g}")
    held_out.yaxis.set_minor_formatter("")

    for i, (name, mask) in enumerate(kept.items()):
        left, right = 20 * i, 20 * i + 16
        shape = {"extent": (left, right, 0, 12), "aspect": "auto"}
        masks_shown.imshow(mask.T, cmap="Blues", vmax=1.4, **shape)
        masks_shown.text(left + 8, 12.6, name, ha="center")
    masks_shown.set(title="which outputs are kept", xlabel="steps", ylabel="units",
                    xlim=(0, right), ylim=(0, 13.5), xticks=[], yticks=[])  # fmt: skip
    masks_shown.spines[:].set_visible(False)

    names = [*histories][::-1]
    values = [final(histories[name]) for name in names]
    bars = ends.barh(names, values, color=[line["color"] for line in LINES[: len(names)]][::-1])
    ends.bar_label(bars, fmt="%.3f", padding=4)
    ends.margins(x=0.12)
    ends.grid(axis="y", visible=False)
    ends.set(title=f"held-out loss, mean of the last {LAST} epochs", xlabel="cross-entropy, nats")
    pictures.save(made, path)


def main(words: Sequence[str] | None = None) -> int:
    # Layers this small gain little from two threads, and lose much where others want them, too.
    parser = training.arguments(__doc__, "dropout", epochs=EPOCHS, threads=1)
    for what, keep in (("input", 0.8), ("state", 0.7), ("output", 0.7)):
        parser.add_argument(f"--{what}-keep", type=keep_probability, default=keep, metavar="P",
                            help=f"{what}_keep_prob; default: %(default)s")  # fmt: skip
    options = training.parse(parser, words)
    data = digits.small_digits(options.seed).to(options.device)
    few = data.images[:FEW], data.labels[:FEW]
    others = (
        torch.cat([data.images[FEW:], data.held_out_images]),
        torch.cat([data.labels[FEW:], data.held_out_labels]),
    )
    print(f"{data.name}: {FEW} to learn from, {len(others[0])} held out")
    print(training.setting(options))
    dropped = {"input": 1 - options.input_keep, "output": 1 - options.output_keep}
    if options.impl == "torch":
        print("torch.nn has no dropout of the state, and no mask for a whole sequence: left out")
        ways = ways_of_torch(**dropped)
    else:
        ways = ways_of_fusedrnn(state=1 - options.state_keep, **dropped)

    histories = {name: learn(way, few, others, options, name) for name, way in ways.items()}
    title = f"Dropout against learning by heart ({training.CELLS[options.cell]}, 2 layers)"
    draw(histories, masks(options, options.output_keep), title, options.plot)
    losses = {name: final(history) for name, history in histories.items()}
    lowest = min(losses, key=lambda name: losses[name])
    print(f"the lowest held-out loss: {lowest} (chosen on it)")
    results = [Result(f"held-out loss, {name}", loss) for name, loss in losses.items()]
    judged = JUDGED[options.impl]  # named beforehand, so that no luck is in it
    saved = 1 - losses[judged] / losses["none"]
    required = REQUIRED_SAVING.get(options.cell)
    results.append(Result(f"share of it saved, {judged}", saved, at_least=required))
    return training.conclude(options, results)


if __name__ == "__main__":
    training.run(main)
