"""Many to one: reads handwritten digits row by row and names them at the end.

An image is a sequence. Its rows go through recurrent layers from top to bottom, and a linear layer
names the digit from what the last layer remembers after the last row. Dropout, where there are
several layers, acts between them.

        row 1 -> [layers] -> [layers] -> ... -> [layers] -> scores of 0 1 2 ... 9
                                 ^                  ^
                               row 2       ...   last row

A reader of one layer and one of three layers with dropout are trained one after the other. The
baseline is a linear layer that gets the whole image at once; small digits leave little to gain over
it, MNIST's leave more. The picture shows how the accuracy grows, and what the last reader believes
after each row. It learns to answer after the last row only, and what it would say before is often
wrong: many steps, one answer.

The digits are the 1797 of 8 x 8 pixels that come with scikit-learn, or MNIST's from its IDX files.

    python examples/digits.py
    python examples/digits.py --cell gru --layers 2 --dropout 0.5
    python examples/digits.py --mnist path/to/idx/files
"""

from __future__ import annotations

import argparse
import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pictures
import training
from training import BadInput, History, Result

EPOCHS, EPOCHS_OF_MNIST = 30, 3
BATCH_SIZE = 64
HIDDEN_SIZE = 128
LEARNING_RATE, RATE_OF_LINEAR = 5e-3, 0.1
REQUIRED_ACCURACY = 0.95

LINES: list[dict[str, Any]] = [
    {"color": pictures.BLUE, "linestyle": "-"},
    {"color": pictures.VERMILION, "linestyle": "--"},
    {"color": pictures.GRAY, "linestyle": ":"},
]
"""How the two readers and the linear layer are drawn."""


@dataclass
class Digits:
    """Images [N, rows, pixels] with values from 0 to 1, and labels [N]; some held out."""

    name: str
    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor

    def __str__(self) -> str:
        count, rows, pixels = self.images.shape
        held_out = len(self.held_out_labels)
        return (
            f"{self.name}: {rows} rows of {pixels} pixels, {count} to learn from, "
            f"{held_out} held out"
        )

    def to(self, device: str) -> Digits:
        name, *tensors = (getattr(self, each.name) for each in fields(self))
        return Digits(name, *(tensor.to(device) for tensor in tensors))


def small_digits(seed: int) -> Digits:
    """scikit-learn's digits, every fifth of a shuffle by the seed held out."""
    bundled = load_digits()
    images = torch.tensor(bundled.images, dtype=torch.float32) / 16
    labels = torch.tensor(bundled.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order[::5], order[torch.arange(len(order)) % 5 != 0]
    name = "scikit-learn's digits"
    return Digits(name, images[kept], labels[kept], images[held_out], labels[held_out])


def read_idx(folder: Path, name: str, rank: int) -> Tensor:
    """One of MNIST's files: two zero bytes, type, number of sizes, big-endian sizes, bytes."""
    variants = (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx"))
    path = next((path for path in variants if path.is_file()), None)
    if path is None:
        raise BadInput(f"--mnist: expected {name} or {name}.gz in {folder}, found neither")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(f"--mnist: expected {path} to be a gzip file, got: {error}") from None
    start, begin = content[:4], 4 + 4 * rank
    if start != bytes((0, 0, 8, rank)):
        raise BadInput(
            f"--mnist: expected {path} to be an IDX file of bytes with {rank} sizes, "
            f"which begins with 00 00 08 {rank:02}, got {start.hex(' ') or 'an empty file'}"
        )
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, begin, 4)]
    if len(content) != begin + math.prod(sizes):
        raise BadInput(
            f"--mnist: expected {begin + math.prod(sizes)} bytes in {path} of sizes "
            f"{' x '.join(map(str, sizes))}, got {len(content)}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[begin:].reshape(sizes)


def mnist(folder: Path) -> Digits:
    """MNIST with its own held-out part, whose digits others have written."""
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(folder, f"{part}-images-idx3-ubyte", 3).float() / 255
        labels = read_idx(folder, f"{part}-labels-idx1-ubyte", 1).long()
        if not images.numel() or len(images) != len(labels):
            raise BadInput(
                f"--mnist: expected {part} images in {folder}, and a label for each, got "
                f"{' x '.join(map(str, images.shape))} pixels and {len(labels)} labels"
            )
        if labels.max() > 9:
            raise BadInput(
                f"--mnist: expected {part} labels from 0 to 9 in {folder}, got {labels.max()}"
            )
        parts += [images, labels]
    if parts[0].shape[1:] != parts[2].shape[1:]:
        raise BadInput(
            f"--mnist: expected all images in {folder} to be of one size, got "
            f"{tuple(parts[0].shape[1:])} and {tuple(parts[2].shape[1:])}"
        )
    return Digits("MNIST", *parts)


def probability(text: str) -> float:
    """A number from the command line."""
    value = float(text)
    if not 0 <= value <= 1:  # so written that NaN is refused
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> Any:
    """As `training.parse`, with `--mnist`, an epoch of which is as long as forty of the others."""
    parser.add_argument("--mnist", type=Path, metavar="FOLDER",
                        help=f"MNIST's four IDX files; then {EPOCHS_OF_MNIST} epochs are the "
                        "default")  # fmt: skip
    parser.set_defaults(epochs=None)
    options = training.parse(parser, words)
    if options.mnist:
        options.whole = EPOCHS_OF_MNIST
    options.epochs = options.epochs or options.whole
    return options


def load(options: argparse.Namespace) -> Digits:
    digits = mnist(options.mnist) if options.mnist else small_digits(options.seed)
    return digits.to(options.device)


class DigitReader(nn.Module):
    """rows of an image -> recurrent layers -> last state -> a score for each of the ten digits."""

    def __init__(
        self,
        layers: Callable[..., nn.Module],
        pixels: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = layers(pixels, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.answer = nn.Linear(hidden_size, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, 10] of images [N, rows, pixels]."""
        _, state = self.layers(images)
        last = state[0] if isinstance(state, tuple) else state  # h of an LSTM's h and c
        return self.answer(last[-1])  # [layers, N, H]: the last layer

    def beliefs(self, images: Tensor) -> Tensor:
        """The probabilities [N, rows, 10] of the digits, were each row the last."""
        output, _ = self.layers(images)
        return self.answer(output).softmax(-1)


def train_reader(
    reader: nn.Module,
    digits: Digits,
    options: argparse.Namespace,
    name: str,
    learning_rate: float = LEARNING_RATE,
) -> History:
    """The scores of the history are accuracies on the held-out digits."""

    def loss_of(batch: Sequence[Tensor]) -> Tensor:
        images, labels = batch
        return cross_entropy(reader(images), labels)

    def accuracy() -> float:
        answers = torch.cat([reader(part).argmax(1) for part in digits.held_out_images.split(1000)])
        return (answers == digits.held_out_labels).double().mean().item()

    return training.train(
        reader,
        training.shuffled((digits.images, digits.labels), BATCH_SIZE, options.seed),
        loss_of,
        options.epochs,
        learning_rate=learning_rate,
        warm_up=0.3,
        examine=accuracy,
        name=name,
    )


def draw(
    readers: dict[str, DigitReader],
    histories: dict[str, History],
    digits: Digits,
    title: str,
    path: Path,
) -> None:
    """Accuracy by epochs and by rows read on the left, digits with beliefs on the right."""
    made, axes = pictures.figure(title, 2, 4, size=(12.5, 5.2), width_ratios=(1.3, 1, 1, 1))
    by_epoch, by_row = axes[:, 0]
    for (name, history), line in zip(histories.items(), LINES, strict=False):
        percent = [100 * score for score in history.scores]
        by_epoch.plot(range(1, len(percent) + 1), percent, marker=".", label=name, **line)
    by_epoch.set(title="learning to read", xlabel="epochs of training")
    by_epoch.legend(loc="lower right")

    labels = digits.held_out_labels
    for (name, reader), line in zip(readers.items(), LINES, strict=False):
        beliefs = training.evaluate(reader, partial(reader.beliefs, digits.held_out_images))
        right = (beliefs.argmax(-1) == labels.unsqueeze(1)).double()  # [N, rows]
        percent = (100 * right.mean(0)).tolist()
        by_row.plot(range(1, len(percent) + 1), percent, marker=".", label=name, **line)
    by_row.set(title="if asked before the last row", xlabel="rows read")
    by_row.legend(loc="upper left")
    for axis in (by_epoch, by_row):
        axis.yaxis.set_major_formatter("{x:.0f} %")
        axis.set_ylabel("held-out digits read right")

    shown = worth_showing(right[:, -1] == 1, labels, axes[:, 1:].size)
    for axis, i in zip(axes[:, 1:].flat, shown, strict=False):
        draw_beliefs(axis, digits.held_out_images[i], beliefs[i], int(labels[i]))
    scale = made.colorbar(axes[0, 1].images[1], ax=axes[:, 1:], shrink=0.8, aspect=35)
    scale.outline.set_visible(False)
    scale.set_label(f"probability of a digit after a row, {name}")
    pictures.save(made, path)


def worth_showing(right: Tensor, labels: Tensor, count: int) -> list[int]:
    """Digits of different kinds that were read right, and last one that was not."""
    misread = (~right).nonzero()[:1, 0].tolist()
    kinds: dict[int, int] = {}  # which of the images is to show this digit
    for i in right.nonzero()[:, 0].tolist():
        kinds.setdefault(int(labels[i]), i)
    first = sorted([*kinds.items()][: count - len(misread)])
    return [i for _, i in first] + misread


def draw_beliefs(axis: Any, image: Tensor, beliefs: Tensor, label: int) -> None:
    """The image, and in line with each of its rows what the reader believed after it."""
    axis.imshow(image.cpu(), cmap="gray_r", extent=(-1.1, -0.1, 0, 1), vmin=0, vmax=1)
    axis.imshow(beliefs.cpu(), cmap="Blues", extent=(0, 1.2, 0, 1), vmin=0, vmax=1, aspect="auto")
    axis.set(xlim=(-1.15, 1.2), ylim=(0, 1), aspect="equal", yticks=[])
    axis.set_xticks([0.12 * (digit + 0.5) for digit in range(10)], [*map(str, range(10))])
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    answer = int(beliefs[-1].argmax())
    axis.set_title(f"a {label}" if answer == label else f"a {label}, taken for a {answer}")


def main(words: Sequence[str] | None = None) -> int:
    # Layers this small gain little from two threads, and lose much where others want them, too.
    parser = training.arguments(__doc__, "digits", epochs=EPOCHS, threads=1)
    parser.add_argument("--layers", type=training.positive,
                        help="default: a reader of 1 and one of 3")  # fmt: skip
    parser.add_argument("--dropout", type=probability, default=0.3, metavar="P",
                        help="between layers; default: %(default)s")  # fmt: skip
    options = parse(parser, words)
    digits = load(options)
    print(digits)
    print(training.setting(options))

    readers, histories = {}, {}
    _, rows, pixels = digits.images.shape
    for count in [options.layers] if options.layers else [1, 3]:
        torch.manual_seed(options.seed)
        dropout = options.dropout if count > 1 else 0.0
        name = f"{count} layer{'s' * (count > 1)}" + f", dropout {dropout:g}" * (dropout > 0)
        reader = DigitReader(training.recurrent(options), pixels, HIDDEN_SIZE, count, dropout)
        readers[name] = reader.to(options.device)
        histories[name] = train_reader(reader, digits, options, name)
    name = "linear, whole image"
    torch.manual_seed(options.seed)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(rows * pixels, 10)).to(options.device)
    histories[name] = train_reader(linear, digits, options, name, RATE_OF_LINEAR)

    for reader in readers:
        if histories[reader].scores[-1] <= histories[name].scores[-1]:
            print(f"{reader}: no better than the linear layer")
    draw(readers, histories, digits, f"{digits.name}, read row by row", options.plot)
    return training.conclude(
        options,
        [
            Result(f"accuracy, {name}", history.scores[-1],
                   at_least=REQUIRED_ACCURACY if name in readers else None)
            for name, history in histories.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    training.run(main)
