"""What the examples share: their arguments, the layers to choose from, training, and the last word.

    parser = training.arguments(__doc__, "stock", epochs=60)   --cell --impl --device --epochs ...
    options = training.parse(parser, words)
    rnn = training.recurrent(options)(5, 10, batch_first=True)   fusedrnn.LSTM, torch.nn.GRU, ...
    history = training.train(model, batches, loss_of, options.epochs)
    return training.conclude(options, [Result("error", 0.1, at_most=0.2)])

An example ends with exit status 1, and says why, if a number misses its bound in a run of the
default length. A shorter run shows its numbers and isn't blamed for them. Data that can't be used
are a `BadInput`, whose message names them and what was expected; `training.run` prints it and ends
with status 2, as for a wrong argument.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

import fusedrnn

CELLS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
"""The classes of both packages, by the word on the command line."""

PACKAGES = {"fused": fusedrnn, "torch": nn}


class Batches(Protocol):
    """The batches of an epoch, one after the other."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class BadInput(ValueError):
    """Data that an example can't use; the message names them and what was expected."""


class Result(NamedTuple):
    """A number that an example ends with, and the bound that a whole run has to keep."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether it keeps its bounds; written so that NaN doesn't."""
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        return least <= self.value <= most

    @property
    def wanted(self) -> str:
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        said = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        return " and ".join(said) or "a number"


@dataclass
class History:
    """How a training went: `losses` and `scores` have a number for each epoch."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    seconds: float = 0.0  # of training, not of looking at what was learned


def positive(text: str) -> int:
    """A number of something, from the command line."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value}")
    return value


def seed(text: str) -> int:
    """A number that torch's generators take."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2**63 - 1, got {value}")
    return value


def arguments(
    description: str | None,
    name: str,
    *,
    epochs: int,
    cell: str = "lstm",
    threads: int | None = None,
) -> argparse.ArgumentParser:
    """What every example takes. `description` is its docstring, of which help shows all.

    `cell` is the default. If it is none of `CELLS`, as "all" is not, it is one more choice.
    `threads` is a default, too; None leaves it to torch.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = {"help": "default: %(default)s"}
    cells = list(dict.fromkeys([*CELLS, cell]))
    parser.add_argument("--cell", choices=cells, default=cell, **shown)
    parser.add_argument("--impl", choices=PACKAGES, default="fused",
                        help="fusedrnn's layers or torch.nn's; default: %(default)s")  # fmt: skip
    parser.add_argument("--epochs", type=positive, default=epochs, help=f"default: {epochs}")
    parser.add_argument("--plot", type=Path, default=Path(f"results/{name}.png"), metavar="FILE",
                        help="the picture; default: %(default)s")  # fmt: skip
    parser.set_defaults(whole=epochs)
    add_machine(parser, threads)
    return parser


def file_of(package: str, place: str, expected: str) -> Path:
    """A file that a package carries, found without importing it: many want much else for that.

    `expected` begins the message if there is none: the option, and what else it would take.
    """
    found = find_spec(package)
    if found is None or found.origin is None:
        name = package.replace("_", "-")
        raise BadInput(
            f"{expected}, or the package {name}, which is not there: `make data` installs it, "
            f"or `pip install --no-deps -r examples/data.txt`"
        )
    path = Path(found.origin).parent / place
    if not path.is_file():
        raise BadInput(f"{expected}, or {path}, which this version of {package} doesn't have")
    return path


def add_machine(parser: argparse.ArgumentParser, threads: int | None = None) -> None:
    """Where to run, and the seed."""
    shown = {"help": "default: %(default)s"}
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", **shown)
    parser.add_argument("--seed", type=seed, default=0, **shown)
    parser.add_argument("--threads", type=positive, default=threads,
                        help=f"CPU threads; default: {threads or 'as torch chooses'}")  # fmt: skip


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> Any:
    """The options, after which the seed and the threads are set. None stands for sys.argv's."""
    options = parser.parse_args(words)
    if options.device == "cuda" and (why := fusedrnn.build_info()["without_cuda"]):
        parser.error(f"--device cuda: {why}; use --device cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} finds no CUDA device")
    if plot := getattr(options, "plot", None):
        check_picture(parser, plot)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


def check_picture(parser: argparse.ArgumentParser, path: Path) -> None:
    """Before anything is learned, since it would be lost."""
    if path.suffix.lower() != ".png" or path.is_dir():
        parser.error(f"--plot: expected the name of a .png file, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--plot: expected a folder that can be written, got {path.parent}: {error}")


def recurrent(options: argparse.Namespace, cell: str | None = None) -> Callable[..., nn.Module]:
    """The class of --cell, or of another word of `CELLS`, in the package of --impl."""
    module: Callable[..., nn.Module] = getattr(PACKAGES[options.impl], CELLS[cell or options.cell])
    return module


def stream(module: nn.Module, batch_size: int) -> Callable[[Tensor], Tensor]:
    """Takes one step after the other, or some at once, [B, T, I] to [B, T, H], and keeps the state.

    For a `batch_first` layer of one direction, without gradients. fusedrnn's are run by a
    `Streaming`, torch.nn's by calls that begin where the one before ended.
    """
    if not isinstance(module, nn.RNN | nn.LSTM | nn.GRU):
        return fusedrnn.Streaming(module, batch_size=batch_size)
    state = None

    def go_on(input: Tensor) -> Tensor:
        nonlocal state
        output: Tensor
        output, state = module(input, state)
        return output

    return go_on


def run_free(
    memory: nn.Module, head: Callable[[Tensor], Tensor], seen: Tensor, steps: int
) -> Tensor:
    """Lets a network go on with a series: what it says is what it sees next.

    Args:
        memory: a `batch_first` layer of one direction, [B, T, I] to [B, T, H].
        head: what it says of each output, [B, T, H] to [B, T, I].
        seen: what it reads before it says anything, [B, T, I].
        steps: how many it says, at least 1.

    Returns:
        What it says comes next, [B, steps, I].
    """
    take = stream(memory, len(seen))
    value = head(take(seen)[:, -1:])  # [B, 1, I]
    said = [value]
    while len(said) < steps:
        value = head(take(value))
        said.append(value)
    return torch.cat(said, dim=1)


def setting(options: argparse.Namespace, cell: str | None = None) -> str:
    """In words: the layer, and what it runs on."""
    package = {"fused": "fusedrnn", "torch": "torch.nn"}[options.impl]
    return f"{package}.{CELLS[cell or options.cell]}, {where(options)}, torch {torch.__version__}"


def where(options: argparse.Namespace) -> str:
    """What a run is computed on, in words."""
    return "CUDA" if options.device == "cuda" else f"CPU threads: {torch.get_num_threads()}"


def train(
    model: nn.Module,
    batches: Callable[[int], Batches],
    loss_of: Callable[[Any], Tensor],
    epochs: int,
    *,
    learning_rate: float = 1e-3,
    warm_up: float | None = None,
    largest_gradient: float | None = 1.0,
    examine: Callable[[], float] | None = None,
    name: str = "",
) -> History:
    """Trains a model, with a progress bar.

    Args:
        model: what is trained, in training mode except while it is examined.
        batches: makes the batches of an epoch from its number, counted from 0.
        loss_of: the loss of a batch, a scalar.
        epochs: how many.
        learning_rate: of Adam.
        warm_up: in what share of all batches the rate rises to `learning_rate`, before it falls to
            almost nothing (Smith and Topin, "Super-convergence", 2018); None for a rate that stays.
        largest_gradient: the norm that gradients are clipped to; None for no clipping.
        examine: the score of the model, in evaluation mode and without gradients, after each epoch.
        name: what the bar is labelled with.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule: OneCycleLR | None = None
    history = History()
    with tqdm(unit="batch", mininterval=0.5) as progress:
        for epoch in range(epochs):
            model.train()
            start, losses = time.perf_counter(), []
            of_epoch = batches(epoch)
            progress.total = total = epochs * len(of_epoch)
            if warm_up is not None and schedule is None:
                schedule = OneCycleLR(optimizer, learning_rate, total, pct_start=warm_up)
            progress.set_description(f"{name} epoch {epoch + 1}/{epochs}".strip(), refresh=False)
            for batch in of_epoch:
                loss = loss_of(batch)
                optimizer.zero_grad()
                loss.backward()
                if largest_gradient is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), largest_gradient)
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                losses.append(loss.detach())
                progress.update()
            history.losses.append(torch.stack(losses).mean().item())  # waits for the device, too
            history.seconds += time.perf_counter() - start
            now = {"loss": f"{history.losses[-1]:.4g}"}
            if examine is not None:
                history.scores.append(evaluate(model, examine))
                now["score"] = f"{history.scores[-1]:.4g}"
            progress.set_postfix(now, refresh=False)
    return history


def evaluate(model: nn.Module, examine: Callable[[], Any]) -> Any:
    """What `examine` gives, while the model is in evaluation mode and nothing is recorded."""
    model.eval()
    with torch.no_grad():
        return examine()


def shuffled(
    tensors: Sequence[Tensor], batch_size: int, seed: int
) -> Callable[[int], list[tuple[Tensor, ...]]]:
    """The `batches` of `train`: tensors of as many rows, in another order in each epoch."""
    generator = torch.Generator().manual_seed(seed)

    def batches(_: int) -> list[tuple[Tensor, ...]]:
        order = torch.randperm(len(tensors[0]), generator=generator).to(tensors[0].device)
        return [tuple(tensor[i] for tensor in tensors) for i in order.split(batch_size)]

    return batches


def run_padded(rnn: nn.Module, input: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
    """Runs a `batch_first` layer over a padded batch, without work on the padding.

    fusedrnn's layers take `lengths`; torch.nn's take a batch that was packed.

    Args:
        rnn: the layer.
        input: [B, T, I].
        lengths: how many steps each sequence has, at least 1, int64 [B].

    Returns:
        The output [B, T, H], zero after the end of each sequence, and the final states.
    """
    if not isinstance(rnn, nn.RNN | nn.LSTM | nn.GRU):
        output, states = rnn(input, lengths=lengths)
        return output, states
    packed = pack_padded_sequence(input, lengths.cpu(), batch_first=True, enforce_sorted=False)
    output, states = rnn(packed)
    padded, _ = pad_packed_sequence(output, batch_first=True, total_length=input.size(1))
    return padded, states


def conclude(options: argparse.Namespace, results: Iterable[Result]) -> int:
    """Prints the results and which miss their bound; returns the exit status."""
    results = list(results)
    whole = options.epochs >= options.whole
    print()
    for result in results:
        print(f"{result.name:48}{result.value:>12.4f}")
    missed = [result for result in results if not result.is_met]
    for result in missed:
        if whole or math.isnan(result.value):
            print(f"FAILED: {result.name} is {result.value:.4f}, expected {result.wanted}")
        else:
            print(f"{result.name}: {result.wanted} is expected only after {options.whole} epochs")
    return int(any(whole or math.isnan(result.value) for result in missed))


def run(main: Callable[[], int]) -> None:
    """Runs an example as a program."""
    try:
        sys.exit(main())
    except BadInput as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
