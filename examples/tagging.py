"""Names each character of Python source: keyword, name, string, comment ... as editors colour it.

Each character gets an answer of its own, and it may depend on what comes before and on what comes
after: a letter in a string looks like a letter in a name, and a `"` may open a string or close one.
So the text is read in both directions, by one bidirectional layer:

     in:     x   =   "   h   i   "        embedding
             |   |   |   |   |   |
            [>]>[>]>[>]>[>]>[>]>[>]       forwards
            [<]<[<]<[<]<[<]<[<]<[<]       backwards
             |   |   |   |   |   |        both, side by side
     out:   nam op  str str str str       a class for each character

The text is the source of Python's own standard library, split by file into a part to learn from and
one that is held out; Python's tokenizer gives the right answers. Files are cut into pieces of whole
lines, which have unequal lengths. A piece may begin anywhere, in the middle of a docstring too.

Or it is words and their parts of speech, from files in the CoNLL-U format, as treebanks have it.

The run prints how many held-out characters were named rightly, and how many a table would: the most
frequent class of a character, without its neighbours and with four of them on each side. The
picture is a page that it never saw in the colours of the network, its errors marked.

    python examples/tagging.py
    python examples/tagging.py --source path/to/your/code --cell gru
    python examples/tagging.py --conllu train.conllu --conllu-test test.conllu
"""

from __future__ import annotations

import argparse
import builtins
import io
import keyword
import math
import sysconfig
import tokenize
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

import pictures
import training
from training import BadInput, Result

CHARACTERS = 500_000  # to learn from; a quarter of as many is held out
FEWEST = 1000
PIECE = 256  # the most characters of a piece
LARGEST_FILE = 40_000  # in bytes: many files teach more than a few large ones
BATCH_SIZE = 32
EMBEDDING, UNITS = 64, 64  # units of each direction
LEARNING_RATE = 1e-2  # at its highest
RARE = 2  # symbols that come less often are all the same to the network
NO_CLASS = -100  # the target of padding, which cross_entropy ignores
BOUND = {"rnn": 0.94, "lstm": 0.96, "gru": 0.96}  # for source; other data have none

SOURCE_CLASSES = ("space", "keyword", "builtin", "name", "number", "string", "comment", "operator")
WORD_CLASSES = ("NOUN", "PROPN", "PRON", "VERB", "AUX", "ADJ", "ADV", "DET", "NUM", "ADP", "CCONJ",
                "SCONJ", "PART", "PUNCT", "SYM", "INTJ", "X")  # fmt: skip
COLORS = {
    "space": pictures.GRAY, "keyword": pictures.BLUE, "builtin": pictures.PURPLE,
    "name": pictures.BLACK, "number": pictures.ORANGE, "string": pictures.GREEN,
    "comment": pictures.GRAY, "operator": pictures.VERMILION,
    **dict.fromkeys(("NOUN", "PROPN", "PRON"), pictures.BLUE),
    **dict.fromkeys(("VERB", "AUX"), pictures.VERMILION),
    **dict.fromkeys(("ADJ", "ADV"), pictures.GREEN),
    **dict.fromkeys(("DET", "NUM"), pictures.PURPLE),
    **dict.fromkeys(("ADP", "CCONJ", "SCONJ", "PART"), pictures.BLACK),
    **dict.fromkeys(("PUNCT", "SYM", "INTJ", "X"), pictures.GRAY),
}  # fmt: skip
ERROR = "#F7C6A8"  # the paper of what was named wrongly
LINES, COLUMNS = 40, 80  # of the page
PAGE = """\
import math
import sys

PRICES = {"tea": 2.40, "coffee": 3.1, "water # still": 0}


class Order:
    '''What one table has ordered, and what it costs.'''

    def __init__(self, table, guests=2):
        self.table = table
        self.guests = guests
        self.list = []  # not the type "list"

    def add(self, name, count=1):
        if name not in PRICES:
            raise KeyError('no such drink: %r' % name)
        self.list.append((name, count))
        return self

    def total(self, tip=0.1):
        # The tip isn't paid for what's free.
        cost = sum(PRICES[name] * count for name, count in self.list)
        return round(cost * (1 + tip), 2)

    def each(self):
        '''Rounded up, so that nobody has to pay "the rest".'''
        return math.ceil(100 * self.total() / self.guests) / 100


def main(argv=None):
    order = Order(7, guests=3).add('tea', 2).add("coffee")
    for name, count in order.list:
        print('%-20s %3d' % (name, count))
    try:
        print("each pays", order.each())
    except ZeroDivisionError:
        sys.exit("nobody is here")
"""


class Piece(NamedTuple):
    """A sequence: characters or words, and the class of each, an index of `Corpus.classes`."""

    symbols: Sequence[str]
    classes: list[int]


@dataclass
class Corpus:
    """Pieces to learn from, pieces that are held out, and some that are drawn."""

    name: str
    symbol: str  # what a step is, a character or a word
    classes: tuple[str, ...]
    train: list[Piece]
    held_out: list[Piece]
    page: list[Piece]  # of what is held out, or of another text that it never saw
    vocabulary: dict[str, int] = field(init=False)  # 0 is any other symbol

    def __post_init__(self) -> None:
        counts = Counter(symbol for piece in self.train for symbol in piece.symbols)
        known = [symbol for symbol, count in counts.items() if count >= RARE]
        self.vocabulary = {symbol: 1 + i for i, symbol in enumerate(known)}

    def padded(self, pieces: list[Piece], device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Symbols and classes [N, T], and lengths [N]."""
        symbols = [torch.tensor([self.vocabulary.get(s, 0) for s in p.symbols]) for p in pieces]
        classes = [torch.tensor(piece.classes) for piece in pieces]
        lengths = torch.tensor([len(piece.classes) for piece in pieces])
        together = (
            pad_sequence(symbols, batch_first=True),
            pad_sequence(classes, batch_first=True, padding_value=NO_CLASS),
            lengths,
        )
        return tuple(tensor.to(device) for tensor in together)


def classes_of_source(text: str) -> list[int]:
    """The class of each character, by Python's tokenizer."""
    begins = [0]  # of lines
    for line in io.StringIO(text):
        begins.append(begins[-1] + len(line))
    classes = [SOURCE_CLASSES.index("space")] * len(text)
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "NAME" and keyword.iskeyword(token.string):
            name = "keyword"
        elif kind == "NAME":
            is_own = before in (".", "def", "class") or not hasattr(builtins, token.string)
            name = "name" if is_own else "builtin"
        elif "STRING" in kind:  # FSTRING_MIDDLE, too
            name = "string"
        else:
            name = {"NUMBER": "number", "COMMENT": "comment", "OP": "operator"}.get(kind, "space")
        before = token.string
        (row, column), (last_row, last_column) = token.start, token.end
        begin, end = begins[row - 1] + column, begins[last_row - 1] + last_column
        classes[begin:end] = [SOURCE_CLASSES.index(name)] * (end - begin)
    return classes


def pieces_of_source(path: Path) -> list[Piece]:
    """A file in pieces of whole lines, of up to PIECE characters if no line is longer."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        classes = classes_of_source(text)
    except (OSError, SyntaxError, UnicodeDecodeError, tokenize.TokenError) as error:
        raise BadInput(f"--source: expected Python source, got {path}: {error}") from error
    pieces, begin, end = [], 0, 0
    for line in [*io.StringIO(text), ""]:
        if end > begin and (not line or end + len(line) - begin > PIECE):
            pieces.append(Piece(text[begin:end], classes[begin:end]))
            begin = end
        end += len(line)
    return pieces


def first(characters: int, paths: Sequence[Path]) -> list[Piece]:
    """Pieces of the files, until they have so many characters."""
    pieces, count = [], 0
    for piece in chain.from_iterable(map(pieces_of_source, paths)):
        if count >= characters:
            break
        pieces.append(piece)
        count += len(piece.symbols)
    return pieces


def source(folder: Path | None, characters: int) -> Corpus:
    """The folder's Python files, or those of the standard library. Every fifth is held out."""
    found = folder.rglob("*.py") if folder else Path(sysconfig.get_path("stdlib")).glob("*.py")
    files = (path for path in sorted(found) if path.is_file())
    paths = [path for path in files if 0 < path.stat().st_size <= LARGEST_FILE]
    if len(paths) < 5:
        raise BadInput(
            f"--source: expected at least 5 Python files of up to {LARGEST_FILE} bytes, "
            f"got {len(paths)} in {folder or sysconfig.get_path('stdlib')}"
        )
    train = first(characters, [path for i, path in enumerate(paths) if i % 5 != 4])
    held_out = first(characters // 4, paths[4::5])
    page = most_colourful(held_out) if folder else [Piece(PAGE, classes_of_source(PAGE))]
    name = str(folder or "the standard library")
    return Corpus(name, "character", SOURCE_CLASSES, train, held_out, page)


def sentences(option: str, path: Path) -> list[Piece]:
    """The words of a CoNLL-U file and their parts of speech."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{option}: expected a CoNLL-U file, got {path}: {error}") from error
    pieces: list[Piece] = []
    words: list[str] = []
    classes: list[int] = []
    for number, line in enumerate([*lines, ""], start=1):
        columns = line.rstrip("\r").split("\t")
        if not line.strip():
            if words:
                pieces.append(Piece(words, classes))
            words, classes = [], []
        elif line.startswith("#"):
            continue
        elif len(columns) != 10:
            raise BadInput(
                f"{option}: expected 10 columns with tabs between them, got {len(columns)} in "
                f"line {number} of {path}"
            )
        elif columns[0].isdigit():  # others are 3-4, words written as one, and 5.1, an omitted one
            if columns[3] not in WORD_CLASSES:
                raise BadInput(
                    f"{option}: expected a universal part of speech in column 4, got "
                    f"{columns[3]!r} in line {number} of {path}"
                )
            words.append(columns[1])
            classes.append(WORD_CLASSES.index(columns[3]))
    if not pieces:
        raise BadInput(f"{option}: expected sentences, found none in {path}")
    return pieces


def treebank(train_path: Path, test_path: Path | None) -> Corpus:
    """Words and their parts of speech; without a test file every tenth sentence is held out."""
    train = sentences("--conllu", train_path)
    if test_path is not None:
        held_out = sentences("--conllu-test", test_path)
    elif len(train) >= 10:
        held_out = train[9::10]
        train = [piece for i, piece in enumerate(train) if i % 10 != 9]
    else:
        raise BadInput(
            f"--conllu: expected at least 10 sentences, or --conllu-test, got {len(train)} in "
            f"{train_path}"
        )
    page = most_colourful(held_out)
    return Corpus(train_path.name, "word", WORD_CLASSES, train, held_out, page)


class Tagger(nn.Module):
    """Symbol -> embedding -> bidirectional layer -> scores of the classes."""

    def __init__(self, options: argparse.Namespace, corpus: Corpus) -> None:
        super().__init__()
        self.embed = nn.Embedding(1 + len(corpus.vocabulary), EMBEDDING)
        layer = training.recurrent(options)
        self.rnn = layer(EMBEDDING, UNITS, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * UNITS, len(corpus.classes))

    def forward(self, symbols: Tensor, lengths: Tensor) -> Tensor:
        """[B, T] and [B] -> [B, T, classes]."""
        both_directions, _ = training.run_padded(self.rnn, self.embed(symbols), lengths)
        return self.head(both_directions)

    def guess(self, symbols: Tensor, lengths: Tensor) -> Tensor:
        """The likeliest class of each symbol, [N, T], some pieces at a time."""
        parts = zip(symbols.split(128), lengths.split(128), strict=True)
        return torch.cat([self(*part).argmax(-1) for part in parts])

    def name(self, symbols: Tensor, lengths: Tensor) -> list[list[int]]:
        """The same, without padding."""
        guesses = training.evaluate(self, lambda: self.guess(symbols, lengths))
        pairs = zip(guesses.tolist(), lengths.tolist(), strict=True)
        return [guess[:length] for guess, length in pairs]


def contexts(symbols: Sequence[str], reach: int) -> list[list[tuple[str, ...]]]:
    """For each symbol: itself with its neighbours, so many on each side, with fewer, and ()."""
    padded = [""] * reach + list(symbols) + [""] * reach
    middles = range(reach, reach + len(symbols))
    sides = range(reach, -1, -1)
    return [[tuple(padded[i - side : i + side + 1]) for side in sides] + [()] for i in middles]


def by_table(corpus: Corpus, reach: int) -> list[list[int]]:
    """What a table names the held-out symbols: the most frequent class that each had amid as many
    of its neighbours as were ever seen with it."""
    counts: dict[tuple[str, ...], Counter[int]] = defaultdict(Counter)
    for piece in corpus.train:
        for keys, answer in zip(contexts(piece.symbols, reach), piece.classes, strict=True):
            for key in keys:
                counts[key][answer] += 1
    table = {key: counter.most_common(1)[0][0] for key, counter in counts.items()}
    return [
        [next(table[key] for key in keys if key in table) for keys in contexts(symbols, reach)]
        for symbols, _ in corpus.held_out
    ]


def accuracy(named: list[list[int]], pieces: list[Piece]) -> float:
    """The share of symbols that were named rightly."""
    answers = list(chain.from_iterable(piece.classes for piece in pieces))
    pairs = zip(chain.from_iterable(named), answers, strict=True)
    return sum(guess == answer for guess, answer in pairs) / len(answers)


def found(named: list[list[int]], pieces: list[Piece]) -> dict[int, float]:
    """How much of each class was named so, the most frequent class first."""
    answers = list(chain.from_iterable(piece.classes for piece in pieces))
    pairs = zip(chain.from_iterable(named), answers, strict=True)
    right = Counter(answer for guess, answer in pairs if guess == answer)
    return {name: right[name] / count for name, count in Counter(answers).most_common()}


def most_colourful(pieces: list[Piece]) -> list[Piece]:
    """The pieces from where on the next few have something of every class."""
    count = 6

    def colours(begin: int) -> float:
        on_page = Counter(chain.from_iterable(p.classes for p in pieces[begin : begin + count]))
        return sum(math.log(count) for count in on_page.values())

    return pieces[max(range(max(1, len(pieces) - count + 1)), key=colours) :]


def write_page(axes: Axes, corpus: Corpus, named: list[list[int]]) -> None:
    """The page: the ink is the class that was named, the paper marks errors."""
    apart = " " if corpus.symbol == "word" else ""
    text, ink, paper = "", [], []
    for piece, guesses in zip(corpus.page, named, strict=True):
        for symbol, guess, answer in zip(piece.symbols, guesses, piece.classes, strict=True):
            breaks = len(text) - text.rfind("\n") - 1 + len(symbol) > COLUMNS
            added = ("\n" if breaks else "") + symbol + apart
            text += added
            ink += [COLORS[corpus.classes[guess]]] * len(added)
            paper += [ERROR if guess != answer else None] * len(added)
        if text.count("\n") >= LINES:
            break
    pictures.write_page(axes, text, columns=COLUMNS, rows=LINES, ink=ink, paper=paper)


def draw(
    options: argparse.Namespace,
    corpus: Corpus,
    named: dict[str, list[list[int]]],
    of_page: list[list[int]],
    scores: list[float],
) -> None:
    """The page, the accuracy after each epoch, and how much of each class was found."""
    network, single, neighbours = named
    title = f"A page that it never saw, as a bidirectional {options.cell.upper()} reads it"
    made, axes = pictures.figure(title, 2, 2, size=(12.5, 7), width_ratios=(1.3, 1))
    grid = axes[0, 0].get_gridspec()
    for left in axes[:, 0]:
        left.remove()
    page, learning, classes = made.add_subplot(grid[:, 0]), axes[0, 1], axes[1, 1]

    write_page(page, corpus, of_page)
    parts = found(named[network], corpus.held_out)
    names = [corpus.classes[part] for part in parts]
    colors = [COLORS[name] for name in names]
    inks = {COLORS[name]: [] for name in names if name != "space"}
    for name in names:
        if name != "space":
            inks[COLORS[name]].append(name)
    patches = [Patch(color=color, label=", ".join(of)) for color, of in inks.items()]
    patches.append(Patch(color=ERROR, label="named wrongly"))
    page.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, fontsize=9)

    epochs = range(1, len(scores) + 1)
    learning.plot(epochs, scores, label=network, **pictures.CELL_LINES[options.cell], marker="o")
    for name, style in ((neighbours, "--"), (single, ":")):
        level = accuracy(named[name], corpus.held_out)
        learning.axhline(level, color=pictures.GRAY, linestyle=style)
        learning.text(epochs[-1], level, name, color="#555555", ha="right", va="bottom")
    learning.xaxis.set_major_locator(MaxNLocator(integer=True))
    learning.set(title="Held-out accuracy", xlabel="epoch", ylabel=f"share of {corpus.symbol}s")
    learning.legend(loc="upper right", bbox_to_anchor=(1, 0.9))

    of_table = found(named[neighbours], corpus.held_out)
    classes.barh(names, parts.values(), color=colors, alpha=0.7)
    classes.plot([of_table[part] for part in parts], names, "D", color=pictures.BLACK,
                 markersize=5, markeredgecolor="white")  # fmt: skip
    classes.invert_yaxis()
    classes.grid(axis="y", visible=False)
    classes.set(title="Found of each class (diamonds: by the table)",
                xlabel="share", xlim=(0, 1.02))  # fmt: skip
    pictures.save(made, options.plot)


def main(words: Sequence[str] | None = None) -> int:
    parser = training.arguments(__doc__, "tagging", epochs=8)
    parser.add_argument("--source", type=Path, metavar="FOLDER",
                        help="Python files; default: the standard library")  # fmt: skip
    parser.add_argument("--characters", type=training.positive, default=CHARACTERS,
                        help="of source to learn from; default: %(default)s")  # fmt: skip
    parser.add_argument("--conllu", type=Path, metavar="FILE", help="sentences to learn from")
    parser.add_argument("--conllu-test", type=Path, metavar="FILE",
                        help="sentences that are held out; default: every tenth")  # fmt: skip
    options = training.parse(parser, words)
    if options.characters < FEWEST:
        parser.error(f"--characters: expected {FEWEST} or more, got {options.characters}")
    if options.conllu_test and not options.conllu:
        raise BadInput("--conllu-test: expected --conllu, too")
    if options.conllu:
        corpus = treebank(options.conllu, options.conllu_test)
    else:
        corpus = source(options.source, options.characters)

    counts = [sum(len(p.symbols) for p in part) for part in (corpus.train, corpus.held_out)]
    print(f"{corpus.name}: {counts[0]} {corpus.symbol}s in {len(corpus.train)} pieces, held out "
          f"{counts[1]} in {len(corpus.held_out)}")  # fmt: skip
    print(f"{training.setting(options)}, {UNITS} units in each direction")

    model = Tagger(options, corpus).to(options.device)
    train = corpus.padded(corpus.train, options.device)
    symbols, answers, lengths = corpus.padded(corpus.held_out, options.device)

    def loss_of(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        symbols, answers, lengths = batch
        scores = model(symbols, lengths)
        return cross_entropy(scores.flatten(0, 1), answers.flatten(), ignore_index=NO_CLASS)

    def examine() -> float:
        right = (model.guess(symbols, lengths) == answers).sum()
        return (right / lengths.sum()).item()

    history = training.train(
        model,
        training.shuffled(train, BATCH_SIZE, options.seed),
        loss_of,
        options.epochs,
        learning_rate=LEARNING_RATE,
        warm_up=0.3,
        examine=examine,
    )
    named = {
        f"bidirectional {options.cell.upper()}": model.name(symbols, lengths),
        f"table of single {corpus.symbol}s": by_table(corpus, 0),
        "table with four neighbours": by_table(corpus, 4),
    }
    page, _, of_page = corpus.padded(corpus.page, options.device)
    draw(options, corpus, named, model.name(page, of_page), history.scores)

    levels = {name: accuracy(answers, corpus.held_out) for name, answers in named.items()}
    results = [Result(f"held-out accuracy, {name}", level) for name, level in levels.items()]
    if not options.conllu and not options.source and options.characters >= CHARACTERS:
        results[0] = results[0]._replace(at_least=BOUND[options.cell])
    status = training.conclude(options, results)
    if results[0].value < max(levels.values()):
        print("The network did not beat the tables.")
    return status


if __name__ == "__main__":
    training.run(main)
