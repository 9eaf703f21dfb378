"""Learns to write, one character at a time: a language model on the manual of Python itself.

Each character goes in, and the network says which one comes next. So every step has its own answer,
and the text is its own teacher:

     in:    W   h   i   l   e   _   l   o          embedding
            |   |   |   |   |   |   |   |
           [h]>[h]>[h]>[h]>[h]>[h]>[h]>[h]>        one recurrent layer
            |   |   |   |   |   |   |   |
     out:   h   i   l   e   _   l   o   o          the odds of every character

The text is what `help()` knows about the language (pydoc_data.topics, a part of every Python), or a
file of yours. The run cuts it into pieces that are read side by side, a window at a time. The state
goes on from window to window, and the gradient does not: truncated backpropagation through time,
`fusedrnn.truncated_bptt`. The last tenth of the text is held out.

The network is measured in bits per character of the held-out part, as compression is. Beside it are
lzma, which has seen all of the training text, gzip, which looks back 32 KiB, and two models that
count. Then the network
writes on its own (`fusedrnn.Streaming`: what it drew last is what it reads next). The picture shows
which characters of an unseen page surprised it, and a unit that found out by itself what quotation
marks are.

    python examples/charlm.py
    python examples/charlm.py --cell lstm --temperature 0.5
    python examples/charlm.py --text path/to/a/book.txt --epochs 20
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import math
import pydoc_data.topics
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fusedrnn
import pictures
import training
from training import BadInput, Result

STREAMS, WINDOW = 16, 64  # pieces of the text side by side, and steps of a window
EXAMINED = 8  # pieces of the held-out text side by side
EMBEDDING, UNITS = 64, 256
DROPOUT = 0.3
LEARNING_RATE = 4e-3
HELD_OUT = 0.1
FEWEST = 10_000  # characters of a text, at least
RARE = 5  # characters that come less often are all the same to the network
PROMPT, WRITTEN = "\n\nThe ", 800  # what it goes on from, and how many characters it writes
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what stands for them
BOUND = {"rnn": 2.2, "lstm": 1.9, "gru": 1.9}  # bits per character of the manual

LINES, COLUMNS = 12, 76  # of the pages in the picture
PAGE = """
A loop that counts says so in its first line. "for i in range(3)" runs its
body three times, and the name "i" is bound to 0, 1 and 2 in turn. If the
body ends with "break", the loop is over at once, and its "else" clause is
not executed.

An object that was deleted is not always gone, since other names may still
refer to it. The statement "del x" removes only the name, and from then on
the expression "x" raises a "NameError" exception.

Strings are written in single or in double quotes. The literal "don't" needs
no backslash: the quote that opened it is the only one that can end it.
"""
LONGEST_WORD = 10
MOST_BITS = 8  # have the strongest colour
HEAT = LinearSegmentedColormap.from_list("surprise", ["white", "#FBD9C4", pictures.VERMILION])
SIGNED = LinearSegmentedColormap.from_list("signed", [pictures.BLUE, "white", pictures.ORANGE])


@dataclass
class Text:
    """A text to learn from and one that is held out, as characters and as indices of `alphabet`."""

    name: str
    train: str
    held_out: str

    def __post_init__(self) -> None:
        often = (c for c, count in Counter(self.train).items() if count >= RARE)
        self.alphabet = [UNKNOWN, *sorted(often)]
        self._index = {character: i for i, character in enumerate(self.alphabet)}

    def encode(self, text: str) -> Tensor:
        """Indices, int64 [T]."""
        return torch.tensor([self._index.get(character, 0) for character in text])

    def decode(self, indices: Sequence[int]) -> str:
        return "".join(self.alphabet[i] for i in indices)


def manual() -> str:
    """Python's own manual. Topics share paragraphs, and each is kept once, or some of the held-out
    text could be learned by heart."""
    paragraphs = "\n\n".join(pydoc_data.topics.topics.values()).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def read_text(path: Path | None) -> Text:
    """The file, or the manual; the last tenth of it is held out."""
    if path is None:
        name, text = "pydoc_data.topics", manual()
    else:
        try:
            name, text = path.name, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"--text: expected a text file in UTF-8, got {path}: {error}") from error
    if len(text) < FEWEST:
        raise BadInput(f"--text: expected at least {FEWEST} characters, got {len(text)} in {name}")
    end = len(text) - int(HELD_OUT * len(text))
    return Text(name, text[:end], text[end:])


class Writer(nn.Module):
    """Character -> embedding -> recurrent layer -> scores of the next character."""

    def __init__(self, options: argparse.Namespace, characters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, EMBEDDING)
        self.dropout = nn.Dropout(DROPOUT)
        self.rnn = training.recurrent(options)(EMBEDDING, options.units)
        self.head = nn.Linear(options.units, characters)

    def forward(self, read: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Characters [T, B] -> scores [T, B, characters], and the state to go on from."""
        hidden, state = self.rnn(self.embed(read), state)
        return self.head(self.dropout(hidden)), state

    def write(self, prompt: Tensor, count: int, temperature: float) -> list[int]:
        """Goes on from the prompt [T], character by character. A temperature below 1 prefers what
        is likely, one above 1 what is not."""
        stream = fusedrnn.Streaming(self.rnn)
        hidden = stream(self.embed(prompt).unsqueeze(1))[-1]  # a chunk of steps at first
        written = []
        for _ in range(count):
            odds = (self.head(hidden) / temperature).softmax(-1)
            character = odds.multinomial(1).squeeze(1)  # [1]
            written.append(character)
            hidden = stream(self.embed(character))
        return torch.cat(written).tolist()


def side_by_side(text: Tensor, streams: int) -> tuple[Tensor, Tensor]:
    """What is read and what comes next, [T, streams] each: as many pieces of the text [N]."""
    steps = (len(text) - 1) // streams
    read, following = text[: steps * streams], text[1 : steps * streams + 1]
    return read.view(streams, steps).T.contiguous(), following.view(streams, steps).T.contiguous()


class Windows:
    """The batches of an epoch: windows of all pieces, each computed when it is asked for, with the
    weights of then, and from the state in which the window before ended."""

    def __init__(self, model: Writer, read: Tensor) -> None:
        self.model, self.read = model, read

    def __len__(self) -> int:
        return math.ceil(len(self.read) / WINDOW)

    def __iter__(self) -> Iterator[fusedrnn.Window]:
        return fusedrnn.truncated_bptt(self.model, self.read, WINDOW)


def bits(scores: Tensor, following: Tensor) -> Tensor:
    """How surprising each character [T, B] was: log2 of 1 / its probability, [T, B]."""
    return cross_entropy(scores.mT, following, reduction="none") / math.log(2)


def counted(train: Sequence[int], held_out: Sequence[int], size: int) -> tuple[float, float]:
    """Bits per character of two models that count: single characters, and pairs. Pairs that were
    seldom seen lean on the single character (Witten and Bell)."""
    single, pairs, total = Counter(train), Counter(zip(train, train[1:], strict=False)), len(train)
    before = Counter(train[:-1])
    kinds = Counter(first for first, _ in pairs)  # how many characters were seen after it
    of_single = of_pair = 0.0
    for first, second in zip(held_out, held_out[1:], strict=False):
        p = (single[second] + 1) / (total + size)
        of_single -= math.log2(p)
        seen = pairs[first, second] + max(1, kinds[first]) * p
        of_pair -= math.log2(seen / (before[first] + max(1, kinds[first])))
    return of_single / (len(held_out) - 1), of_pair / (len(held_out) - 1)


def baselines(text: Text) -> dict[str, float]:
    """Bits per held-out character of what is no network. For the compressors, it is what the
    held-out part adds to the compressed training part."""
    train, held_out = (text.encode(part).tolist() for part in (text.train, text.held_out))
    of_single, of_pair = counted(train, held_out, len(text.alphabet))
    # As the network sees them: rare characters are one and the same.
    seen, unseen = (text.decode(text.encode(part).tolist()) for part in (text.train, text.held_out))
    before, both = seen.encode(), (seen + unseen).encode()
    added = {
        name: 8 * (len(compress(both)) - len(compress(before))) / len(text.held_out)
        for name, compress in (("gzip", gzip.compress), ("lzma", lzma.compress))
    }
    return {"single characters": of_single, "pairs": of_pair, **added}


@dataclass
class Reading:
    """A text as the network reads it: how surprising each character was, in bits [N], and the
    units after each, [N, H]."""

    text: str
    surprise: Tensor
    units: Tensor

    def page_with_most(self, wanted: str) -> Reading:
        """About a page of it, from the beginning of a line, where a character is frequent."""
        begins = [0, *(i + 1 for i, each in enumerate(self.text) if each == "\n")]
        size = LINES * COLUMNS // 2  # of many lines half is empty
        begin = max(begins, key=lambda i: self.text.count(wanted, i, i + size))
        page = slice(begin, begin + 2 * size)
        return Reading(self.text[page], self.surprise[page], self.units[page])

    def by_place(self, longest: int) -> list[float]:
        """The mean surprise of the first letter of words, of the second ..."""
        places: list[list[float]] = [[] for _ in range(longest)]
        place = 0
        for character, surprise in zip(self.text, self.surprise.tolist(), strict=True):
            place = place + 1 if character.isalpha() else 0
            if 1 <= place <= longest:
                places[place - 1].append(surprise)
        return [sum(each) / max(1, len(each)) for each in places]

    def unit_for_quotes(self) -> tuple[int, float]:
        """The unit that tells best whether a quotation is open, and its correlation with that."""
        quotes = accumulate(character == '"' for character in self.text)
        is_open = torch.tensor([float(count % 2) for count in quotes])
        both = torch.cat([is_open.unsqueeze(0), self.units.T])
        correlation = torch.corrcoef(both)[0, 1:].nan_to_num()
        unit = int(correlation.abs().argmax())
        return unit, correlation[unit].item()


def read(model: Writer, text: str, indices: Tensor, pieces: int) -> Reading:
    """Reads a text that it never saw, from the second character on, in pieces side by side."""
    inputs, following = side_by_side(indices, pieces)
    hidden, _ = model.rnn(model.embed(inputs))
    surprise = bits(model.head(hidden), following)
    count = following.numel()
    # One piece after the other again. A character is first what follows, and then what is read.
    return Reading(
        text[1:count],
        surprise.T.flatten()[:-1].cpu(),
        hidden.transpose(0, 1).flatten(0, 1)[1:].cpu(),
    )


def draw(
    options: argparse.Namespace,
    reading: Reading,
    page: Reading,
    history: training.History,
    levels: dict[str, float],
    written: str,
) -> None:
    """Bits per character after each epoch, and pages of text in the colours of surprise."""
    cell = options.cell.upper()
    made, axes = pictures.figure(
        f"What surprises a {cell} that reads character by character",
        3, 2, size=(13, 8), width_ratios=(1, 1.4),
    )  # fmt: skip
    grid = axes[0, 0].get_gridspec()
    axes[0, 0].remove()
    axes[1, 0].remove()
    learning, places = made.add_subplot(grid[:2, 0]), axes[2, 0]

    epochs = range(1, 1 + len(history.scores))
    learning.plot(epochs, history.scores, marker="o", markersize=4, label=f"{cell}, held-out text",
                  **pictures.CELL_LINES[options.cell])  # fmt: skip
    learning.plot(epochs, history.losses, color=pictures.CELL_LINES[options.cell]["color"],
                  linewidth=1, alpha=0.5, label="in training")  # fmt: skip
    for name, level in levels.items():
        learning.axhline(level, color=pictures.GRAY, linestyle=":", linewidth=1.2)
        learning.text(epochs[-1], level, name, color="#555555", ha="right", va="bottom")
    learning.xaxis.set_major_locator(MaxNLocator(integer=True))
    learning.set(title="Learning to predict", xlabel="epoch", ylabel="bits per character")
    learning.legend(loc="upper right", bbox_to_anchor=(1, 0.9))

    of_place = reading.by_place(LONGEST_WORD)
    places.bar(range(1, 1 + LONGEST_WORD), of_place, color=pictures.VERMILION, alpha=0.75)
    places.set(title="Surprise within words", xlabel="place of the letter in its word",
               ylabel="bits", xticks=range(1, 1 + LONGEST_WORD))  # fmt: skip

    surprise = [HEAT(min(1, bit / MOST_BITS)) for bit in page.surprise.tolist()]
    pictures.write_page(axes[0, 1], page.text, columns=COLUMNS, rows=LINES, paper=surprise)
    axes[0, 1].set_title("A page it never saw, by the surprise of each character", loc="left")
    bar = ScalarMappable(Normalize(0, MOST_BITS), HEAT)
    made.colorbar(bar, ax=axes[0, 1], label="bits", pad=0.01, fraction=0.03, panchor=False)

    unit, _ = reading.unit_for_quotes()
    values = [SIGNED((1 + value) / 2) for value in page.units[:, unit].tolist()]
    pictures.write_page(axes[1, 1], page.text, columns=COLUMNS, rows=LINES, paper=values)
    axes[1, 1].set_title(f"The same, by unit {unit}: is a quotation open?", loc="left")
    bar = ScalarMappable(Normalize(-1, 1), SIGNED)
    made.colorbar(bar, ax=axes[1, 1], label="h", pad=0.01, fraction=0.03, panchor=False)

    lines = [part for line in written.split("\n") for part in textwrap.wrap(line, COLUMNS) or [""]]
    pictures.write_page(axes[2, 1], "\n".join(lines), columns=COLUMNS, rows=LINES)
    axes[2, 1].set_title("What it writes itself", loc="left")
    pictures.save(made, options.plot)


def main(words: Sequence[str] | None = None) -> int:
    parser = training.arguments(__doc__, "charlm", epochs=8, cell="gru")
    parser.add_argument("--text", type=Path, metavar="FILE",
                        help="what to learn from, in UTF-8; default: Python's manual")  # fmt: skip
    parser.add_argument("--units", type=training.positive, default=UNITS, help=f"default: {UNITS}")
    parser.add_argument("--temperature", type=float, default=0.7,
                        help="sampling temperature; default: %(default)s")  # fmt: skip
    options = training.parse(parser, words)
    if not 0.01 <= options.temperature <= 100:
        parser.error(f"--temperature: expected 0.01 to 100, got {options.temperature}")
    text = read_text(options.text)
    levels = baselines(text)
    print(f"{text.name}: {len(text.train)} characters, held out {len(text.held_out)}; "
          f"{len(text.alphabet)} different ones")  # fmt: skip
    print(f"{training.setting(options)}, {options.units} units")

    model = Writer(options, len(text.alphabet)).to(options.device)
    device = options.device
    inputs, following = side_by_side(text.encode(text.train).to(device), STREAMS)
    held_out = text.encode(text.held_out).to(device)
    windows = Windows(model, inputs)

    def loss_of(window: fusedrnn.Window) -> Tensor:
        return bits(window.output, following[window.steps]).mean()

    history = training.train(
        model,
        lambda _: windows,
        loss_of,
        options.epochs,
        learning_rate=LEARNING_RATE,
        warm_up=0.1,
        examine=lambda: read(model, text.held_out, held_out, EXAMINED).surprise.mean().item(),
    )
    prompt = text.encode(PROMPT).to(device)
    indices = training.evaluate(model, lambda: model.write(prompt, WRITTEN, options.temperature))
    written = PROMPT.lstrip() + text.decode(indices)
    print(f"\nWhat it writes at temperature {options.temperature:g}:\n\n{written}")
    reading = training.evaluate(model, lambda: read(model, text.held_out, held_out, EXAMINED))
    page = reading.page_with_most('"')
    if options.text is None:
        ours = text.encode(PAGE).to(device)
        page = training.evaluate(model, lambda: read(model, PAGE, ours, pieces=1))
    draw(options, reading, page, history, levels, written)

    usual = options.text is None and options.units >= UNITS
    results = [Result("bits per character, held out", history.scores[-1],
                      at_most=BOUND[options.cell] if usual else None)]  # fmt: skip
    results += [Result(f"{name}, for comparison", level) for name, level in levels.items()]
    _, correlation = reading.unit_for_quotes()
    results.append(Result("the best unit's correlation with open quotation", abs(correlation)))
    status = training.conclude(options, results)
    unbeaten = [name for name, level in levels.items() if level <= history.scores[-1]]
    if unbeaten:
        print(f"Not beaten: {', '.join(unbeaten)}")
    return status


if __name__ == "__main__":
    training.run(main)
