"""One to many: writes the names of handwritten digits, greedily and by beam search.

An encoder makes the first state of a recurrent layer from the image. From there the layer writes
letter by letter, each the next input. In training all letters are known, and one call computes them
(teacher forcing). In writing, fusedrnn.Streaming takes one letter at a time and keeps the state.

      image                      t        w        o        .
        |                        ^        ^        ^        ^
     encoder -- first state -> [cell] > [cell] > [cell] > [cell]
                                 ^        ^        ^        ^
                               start      t        w        o

A digit has names in three languages: English in 44 of 100 captions, French and Spanish in 28 each.
So "two" is the likeliest name of a 2. But 56 of 100 names begin with the d of "deux" and "dos", and
taking the likeliest letter each time ("greedy") leads astray. Beam search goes on with
several beginnings at once and drops one only when others are likelier. The stream's state makes
that easy: it can be read, copied and set, and each beginning goes on from a copy of its own.

    python examples/caption.py
    python examples/caption.py --cell gru --beam 5
    python examples/caption.py --mnist path/to/idx/files
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import digits
import fusedrnn
import pictures
import training
from digits import Digits
from training import Result

SHARES = {"English": 0.44, "French": 0.28, "Spanish": 0.28}  # of the captions
NAMES = (
    "zero one two three four five six seven eight nine".split(),
    "zéro un deux trois quatre cinq six sept huit neuf".split(),
    "cero uno dos tres cuatro cinco seis siete ocho nueve".split(),
)  # of each digit in these languages; the likeliest is the English one
END, START = 0, 1
LETTERS = ".-" + "".join(sorted({letter for names in NAMES for letter in "".join(names)}))
LONGEST = 1 + max(len(name) for names in NAMES for name in names)  # END is counted
AFTER_END = -100  # what cross_entropy ignores

EPOCHS = 30
BATCH_SIZE = 64
HIDDEN_SIZE = 128
LEARNING_RATE = 5e-3
SHOWN = (2, 7, 3, 5)  # digits whose names the picture has as trees
REQUIRED_SHARE = 0.9
REQUIRED_GAIN = 0.06  # four of ten digits can gain log(44 / 28) = 0.45

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"color": pictures.ORANGE, "linestyle": "--", "shift": -0.2},
    "beam search": {"color": pictures.BLUE, "linestyle": "-", "shift": 0.2},
}
"""How the two are drawn."""

State = Tensor | tuple[Tensor, ...]


def captions() -> Tensor:
    """All names as numbers of letters, [languages, 10, LONGEST]."""
    numbers = torch.full((len(NAMES), 10, LONGEST), AFTER_END)
    for language, names in enumerate(NAMES):
        for digit, name in enumerate(names):
            letters = [*map(LETTERS.index, name), END]
            numbers[language, digit, : len(letters)] = torch.tensor(letters)
    return numbers


class Writer(nn.Module):
    """image -> first state; letter -> recurrent layer -> log-probabilities of the next letter."""

    def __init__(self, layer: Callable[..., nn.Module], pixels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, HIDDEN_SIZE), nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE), nn.Tanh(),
        )  # fmt: skip
        self.embed = nn.Embedding(len(LETTERS), HIDDEN_SIZE)
        self.layer = layer(HIDDEN_SIZE, HIDDEN_SIZE, batch_first=True)
        self.answer = nn.Linear(HIDDEN_SIZE, len(LETTERS))

    def first_state(self, images: Tensor) -> State:
        """h of images [N, rows, pixels], [1, N, H]; an LSTM's c is zero."""
        h = self.encoder(images).unsqueeze(0)
        return (h, torch.zeros_like(h)) if self.layer.mode == "LSTM" else h

    def next_letter(self, outputs: Tensor) -> Tensor:
        """Log-probabilities [..., letters] from outputs [..., H] of the layer."""
        return self.answer(outputs).log_softmax(-1)

    def forward(self, images: Tensor, names: Tensor) -> Tensor:
        """Log-probabilities [N, LONGEST, letters], each step given the right letter before it."""
        start = torch.full_like(names[:, :1], START)
        before = torch.cat([start, names[:, :-1]], 1).clamp(min=END)  # whatever, after the end
        outputs, _ = self.layer(self.embed(before), self.first_state(images))
        return self.next_letter(outputs)


def train(writer: Writer, data: Digits, options: Any) -> None:
    """Each time that a digit is seen, its caption is in a language drawn anew."""
    names = captions().to(options.device)
    shares = torch.tensor([*SHARES.values()], device=options.device)

    def loss_of(batch: Sequence[Tensor]) -> Tensor:
        images, labels = batch
        targets = names[shares.multinomial(len(labels), replacement=True), labels]
        scores = writer(images, targets)
        return cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=AFTER_END)

    training.train(
        writer,
        training.shuffled((data.images, data.labels), BATCH_SIZE, options.seed),
        loss_of,
        options.epochs,
        learning_rate=LEARNING_RATE,
        warm_up=0.3,
    )


class Written(NamedTuple):
    """Names for N images, the likeliest of each first, and their log-probabilities [N, width]."""

    names: list[list[str]]
    scores: Tensor


def spell(letters: Sequence[int]) -> str:
    """The name up to its end."""
    return "".join(LETTERS[letter] for letter in letters).split(LETTERS[END])[0]


def write_greedily(writer: Writer, images: Tensor) -> Written:
    """Takes the likeliest letter at each step."""
    stream = fusedrnn.Streaming(writer.layer, batch_size=len(images))
    stream.state = writer.first_state(images)
    letter = torch.full((len(images),), START, device=images.device)
    score = torch.zeros(len(images), device=images.device)
    letters = []
    for _ in range(LONGEST):
        ended = letter == END
        best, letter = writer.next_letter(stream(writer.embed(letter))).max(-1)
        score += best.masked_fill(ended, 0)
        letter = letter.masked_fill(ended, END)
        letters.append(letter)
    names = [[spell(each)] for each in torch.stack(letters, 1).tolist()]
    return Written(names, score.unsqueeze(1))


def write_by_beam_search(writer: Writer, images: Tensor, width: int) -> Written:
    """Goes on with the likeliest beginnings of each image, as many as the beam is wide."""
    count = len(images)
    stream = fusedrnn.Streaming(writer.layer, batch_size=count * width)
    first = torch.arange(count, device=images.device).unsqueeze(1)  # [N, 1]
    stream.state = rows_of(writer.first_state(images), first.repeat(1, width))
    letters = torch.full((count, width, 1), START, device=images.device)
    score = torch.full((count, width), -math.inf, device=images.device)
    score[:, 0] = 0  # they are all alike, so one is enough to begin with
    for _ in range(LONGEST):
        last = letters[:, :, -1]
        step = writer.next_letter(stream(writer.embed(last.flatten())))
        step = step.unflatten(0, (count, width))  # [N, width, letters]
        # What has ended costs nothing more, and ends again.
        ended = torch.full_like(step[0, 0], -math.inf)
        ended[END] = 0
        step = torch.where((last == END).unsqueeze(-1), ended, step)
        score, best = (score.unsqueeze(-1) + step).flatten(1).topk(width)  # [N, width]
        beginning, letter = best // len(LETTERS), best % len(LETTERS)
        letters = torch.cat([letters[first, beginning], letter.unsqueeze(-1)], 2)
        stream.state = rows_of(stream.state, first * width + beginning)
    names = [[spell(each) for each in beam] for beam in letters[:, :, 1:].tolist()]
    return Written(names, score)


def rows_of(state: State, rows: Tensor) -> State:
    """Some sequences of a state, in another order or several times."""
    if isinstance(state, tuple):
        return tuple(each[:, rows.flatten()] for each in state)
    return state[:, rows.flatten()]


def draw(ways: dict[str, Written], trees: Written, data: Digits, title: str, path: Path) -> None:
    """Trees of names for some digits; how often digits get their likeliest name, and its odds."""
    made, axes = pictures.figure(title, 2, 3, size=(13, 6.4), width_ratios=(1.15, 1.15, 1))
    labels = data.held_out_labels.tolist()
    shown = [labels.index(digit) for digit in SHOWN if digit in labels]
    for axis, i in zip(axes[:, :2].flat, shown, strict=False):
        image, chosen = data.held_out_images[i].cpu(), {way: ways[way].names[i][0] for way in ways}
        first, *others = zip(trees.names[i], trees.scores[i].exp().tolist(), strict=True)
        shares = dict([first, *(other for other in others if other[1] > 0.02)])
        draw_tree(axis, image, shares, chosen)

    share, odds = axes[:, 2]
    for way, written in ways.items():
        likeliest = [
            names[0] == NAMES[0][i] for names, i in zip(written.names, labels, strict=True)
        ]
        values = ((share, torch.tensor(likeliest).double()), (odds, written.scores[:, 0].exp()))
        where = [digit + WAYS[way]["shift"] for digit in range(10)]
        for axis, value in values:
            of_digit = [value.cpu()[torch.tensor(labels) == digit] for digit in range(10)]
            percent = [100 * each.mean().item() for each in of_digit]
            axis.bar(where, percent, 0.4, color=WAYS[way]["color"], label=way)
    share.set(title="digits given their likeliest name", ylim=(0, 119))
    odds.set(title="mean probability of the name given", xlabel="digit", ylim=(0, 89))
    for axis in (share, odds):
        axis.set_xticks(range(10))
        axis.yaxis.set_major_formatter("{x:.0f} %")
        axis.grid(axis="x", visible=False)
    share.legend(loc="upper center", ncols=2)
    pictures.save(made, path)


def draw_tree(axis: Any, image: Tensor, shares: dict[str, float], chosen: dict[str, str]) -> None:
    """Names as a tree of letters; a line is as wide as the names after it are probable."""
    heights = {name: -i for i, name in enumerate(sorted(shares))}
    places: dict[str, tuple[float, float]] = {}  # of each beginning
    for name in shares:
        for length in range(len(name) + 1):
            under = [other for other in shares if other.startswith(name[:length])]
            places[name[:length]] = (length, sum(heights[other] for other in under) / len(under))
    circle = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": pictures.GRAY}
    for start, (x, y) in places.items():
        if not start:
            bounds = (x - 1.7, y - 0.4, 1.7, 0.8)
            root = axis.inset_axes(bounds, transform=axis.transData, zorder=5)
            root.imshow(image, cmap="gray_r")
            root.axis("off")
            continue
        probable = sum(share for name, share in shares.items() if name.startswith(start))
        x_before, y_before = places[start[:-1]]
        line = {"color": "#d0d0d0", "lw": 1 + 14 * probable, "solid_capstyle": "round"}
        axis.plot([x_before, x], [y_before, y], zorder=1, **line)
        axis.text(x, y, start[-1], ha="center", va="center", zorder=4, fontsize=11, bbox=circle)
    for way, name in chosen.items():
        way_there = [places[name[:i]] for i in range(len(name) + 1) if name[:i] in places]
        axis.plot(*zip(*way_there, strict=True), color=WAYS[way]["color"], lw=2, zorder=3,
                  linestyle=WAYS[way]["linestyle"])  # fmt: skip
    for name, share in shares.items():
        x, y = places[name]
        by = ", ".join(way for way in chosen if chosen[way] == name)
        weight = "bold" if by else "normal"
        axis.text(x + 0.45, y, f"{100 * share:.0f} %  {by}", va="center", fontweight=weight)
    axis.set(xlim=(-1.7, 9.3), ylim=(min(heights.values()) - 0.5, 0.5))
    axis.axis("off")


def main(words: Sequence[str] | None = None) -> int:
    # Layers this small gain little from two threads, and lose much where others want them, too.
    parser = training.arguments(__doc__, "caption", epochs=EPOCHS, threads=1)
    parser.add_argument("--beam", type=training.positive, default=3, metavar="WIDTH",
                        help="beginnings that beam search keeps; default: %(default)s")  # fmt: skip
    options = digits.parse(parser, words)
    data = digits.load(options)
    print(data)
    print(", ".join(f"{share:.0%} of the names {which}" for which, share in SHARES.items()))
    print(training.setting(options))

    _, rows, pixels = data.images.shape
    torch.manual_seed(options.seed)
    writer = Writer(training.recurrent(options), rows * pixels).to(options.device)
    train(writer, data, options)

    def write() -> tuple[Written, Written, Written]:
        images = data.held_out_images
        searched = write_by_beam_search(writer, images, options.beam)
        return write_greedily(writer, images), searched, write_by_beam_search(writer, images, 8)

    greedy, searched, trees = training.evaluate(writer, write)
    ways = {"greedy": greedy, "beam search": searched}
    cell = training.CELLS[options.cell]
    title = f"The likeliest letters don't make the likeliest name ({cell})"
    draw(ways, trees, data, title, options.plot)

    labels = data.held_out_labels.tolist()
    results = []
    for way, written in ways.items():
        pairs = [(names[0], label) for names, label in zip(written.names, labels, strict=True)]
        right = sum(any(name == names[label] for names in NAMES) for name, label in pairs)
        likeliest = sum(name == NAMES[0][label] for name, label in pairs)
        searching = way != "greedy" and options.beam > 1
        results += [
            Result(f"a name of the digit, {way}", right / len(pairs), at_least=REQUIRED_SHARE),
            Result(f"its likeliest name, {way}", likeliest / len(pairs),
                   at_least=REQUIRED_SHARE if searching else None),
            Result(f"mean log-probability, {way}", written.scores[:, 0].mean().item()),
        ]  # fmt: skip
    gain = (searched.scores[:, 0] - greedy.scores[:, 0]).mean().item()
    least = REQUIRED_GAIN if options.beam > 1 else None
    results.append(Result("log-probability gained by beam search", gain, at_least=least))
    return training.conclude(options, results)


if __name__ == "__main__":
    training.run(main)
