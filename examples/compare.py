"""Reads handwritten digits row by row, with torch.nn and with fusedrnn side by side.

The reader is that of digits.py with one layer. Three of them start from the same seed and see the
same batches:

    torch.nn.LSTM        the yardstick
    fusedrnn.LSTM        ours: has to reach the same losses and give the same answers; how long
                         both take is printed
    nudged               torch.nn.LSTM again, its first weights changed by one rounding (1e-7):
                         shows how far mere rounding carries two training runs apart. On the
                         small digits it changes no answer; a long run on MNIST amplifies it until
                         some answers differ.

They take turns epoch by epoch, so that whatever else the machine does slows all of them. Ends with
exit status 1, and says why, if the two readers do not agree, or if they do not read well after as
many epochs as there are by default.

    python examples/compare.py
    python examples/compare.py --cell gru --hidden-size 256
    python examples/compare.py --mnist path/to/idx/files
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import digits
import fusedrnn
import pictures
import training
from digits import DigitReader, Digits

EPOCHS = 40
REQUIRED_ACCURACY = 0.95
LEARNING_RATE = 5e-3
ROUNDING = 1e-7
# Two runs that differ by rounding drift apart by an amount that is itself chance. Beyond so many
# times what the nudged reader did, rounding no longer explains a difference in losses or answers.
LOSS_DRIFT_ALLOWED = 100
ANSWER_DRIFT_ALLOWED = 3


@dataclass
class Run:
    """One reader, its training, and what was noted on the way."""

    name: str
    reader: DigitReader
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)  # one for each batch
    accuracies: list[float] = field(default_factory=list)  # one for each epoch, held-out digits
    seconds: list[float] = field(default_factory=list)  # one for each epoch, training only
    answers: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def start(
        cls, name: str, layers: Callable[..., nn.Module], pixels: int, hidden_size: int, seed: int,
        steps: int,
    ) -> Run:  # fmt: skip
        torch.manual_seed(seed)
        reader = DigitReader(layers, pixels, hidden_size)
        optimizer = torch.optim.Adam(reader.parameters(), lr=LEARNING_RATE, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        return cls(name, reader, optimizer, schedule)

    def nudge(self, seed: int) -> None:
        """Changes every weight by about one rounding."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.reader.parameters():
                parameter.mul_(1 + ROUNDING * torch.randn_like(parameter))

    def train_epoch(self, batches: list[tuple[Tensor, Tensor]], progress: tqdm[None]) -> None:
        self.reader.train()
        losses = []
        start = time.perf_counter()
        for images, labels in batches:
            loss = cross_entropy(self.reader(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
            progress.update()
        self.losses += torch.stack(losses).tolist()  # waits for the device, too
        self.seconds.append(time.perf_counter() - start)

    def examine(self, images: Tensor, labels: Tensor) -> None:
        self.reader.eval()
        with torch.no_grad():
            self.answers = torch.cat([self.reader(part).argmax(1) for part in images.split(1000)])
        self.accuracies.append((self.answers == labels).double().mean().item())

    @property
    def epoch_milliseconds(self) -> float:
        """Median; the first epoch warms up and does not count if there are others."""
        return 1e3 * statistics.median(self.seconds[1:] or self.seconds)


def train(runs: list[Run], data: Digits, epochs: int, batch_size: int, seed: int) -> None:
    """Every epoch, each run sees the same batches in the same order; the runs take turns."""
    batches_of = training.shuffled((data.images, data.labels), batch_size, seed)
    steps = epochs * len(runs) * math.ceil(len(data.labels) / batch_size)
    with tqdm(total=steps, unit="batch", mininterval=0.5) as progress:
        for epoch in range(epochs):
            batches = batches_of(epoch)
            progress.set_description(f"epoch {epoch + 1}/{epochs}", refresh=False)
            for run in runs if epoch % 2 == 0 else reversed(runs):
                run.train_epoch(batches, progress)
                run.examine(data.held_out_images, data.held_out_labels)
            now = {"loss": f"{runs[0].losses[-1]:.4f}", "accuracy": f"{runs[0].accuracies[-1]:.1%}"}
            progress.set_postfix(now, refresh=False)


def drift(a: Run, b: Run) -> list[float]:
    return [abs(x - y) for x, y in zip(a.losses, b.losses, strict=True)]


def ratio(stock: Run, ours: Run) -> float:
    return stock.epoch_milliseconds / ours.epoch_milliseconds


def draw(stock: Run, ours: Run, nudged: Run, title: str, path: Path) -> None:
    """Loss and its differences on the left, accuracy and time per epoch on the right."""
    figure, axes = pictures.figure(title, 2, 2, size=(10, 6.2), width_ratios=(3, 2))
    (loss, accuracy), (difference, seconds) = axes
    batches = len(stock.losses) / len(stock.accuracies)
    where = [(i + 1) / batches for i in range(len(stock.losses))]
    epochs = range(1, len(stock.accuracies) + 1)
    wide = {"color": pictures.SKY, "lw": 4, "alpha": 0.7, "label": stock.name}
    thin = {"color": pictures.VERMILION, "lw": 1, "label": ours.name}

    loss.set(title="training loss", xlabel="epoch", ylabel="cross-entropy, nats")
    loss.semilogy(where, stock.losses, **wide)
    loss.semilogy(where, ours.losses, **thin)
    loss.legend()

    difference.set(title="difference of the losses", xlabel="epoch", ylabel="nats")
    for run, color in ((nudged, pictures.GRAY), (ours, pictures.VERMILION)):
        label = f"{run.name} and {stock.name}"
        points = [value or float("nan") for value in drift(run, stock)]
        difference.semilogy(where, points, ".", color=color, ms=3, label=label)
    difference.legend(markerscale=3)

    accuracy.set(title="accuracy on held-out digits", xlabel="epoch", ylabel="read right")
    for run, line in ((stock, wide), (ours, thin)):
        accuracy.plot(epochs, [100 * value for value in run.accuracies], **line)
    accuracy.yaxis.set_major_formatter("{x:.0f} %")
    accuracy.legend(loc="lower right")

    seconds.set_title(f"time per epoch: ratio {ratio(stock, ours):.2f}")
    bars = seconds.barh(
        [ours.name, stock.name],
        [ours.epoch_milliseconds, stock.epoch_milliseconds],
        color=[pictures.VERMILION, pictures.SKY],
        height=0.5,
    )
    seconds.bar_label(bars, fmt="%.1f ms", padding=4)
    seconds.margins(x=0.25)
    seconds.set_xlabel("milliseconds")
    seconds.grid(False)
    pictures.save(figure, path)


def report(stock: Run, ours: Run, nudged: Run) -> list[str]:
    """Prints what came out; returns how the two readers disagree."""
    print(f"\n{'':32}{stock.name:>16}{ours.name:>16}")
    for label, form, value in (
        ("accuracy on held-out digits", ".2%", lambda run: run.accuracies[-1]),
        ("loss of the last batch", ".6f", lambda run: run.losses[-1]),
        ("time per epoch (median), ms", ".1f", lambda run: run.epoch_milliseconds),
    ):
        print(f"{label:32}{value(stock):>16{form}}{value(ours):>16{form}}")
    print(f"{'ratio':32}{'1':>16}{ratio(stock, ours):>15.2f}x")

    differing, by_rounding = (int((r.answers != stock.answers).sum()) for r in (ours, nudged))
    loss_drift, loss_by_rounding = (max(drift(run, stock)) for run in (ours, nudged))
    same = f"differ on {differing} of" if differing else "are the same on all"
    print(f"\nThe predictions {same} {len(stock.answers)} held-out digits.")
    print(f"Largest difference between the two loss curves: {loss_drift:.1e}.")
    print(f"Rounding alone ({stock.name} and itself with weights nudged by {ROUNDING}) makes")
    print(f"{by_rounding} predictions and losses up to {loss_by_rounding:.1e} differ.\n")

    faults = []
    if differing > ANSWER_DRIFT_ALLOWED * by_rounding:
        faults.append(
            f"predictions differ on {differing} digits (accuracy {stock.accuracies[-1]:.2%} and "
            f"{ours.accuracies[-1]:.2%}), more than rounding explains"
        )
    # In a run of a few batches the nudge may change no loss at all.
    allowed = LOSS_DRIFT_ALLOWED * max(loss_by_rounding, ROUNDING)
    if not loss_drift <= allowed:  # so written that NaN fails
        faults.append(f"losses differ by {loss_drift:.1e}, more than rounding explains")
    return faults


def arguments(words: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown: dict[str, Any] = {"help": "default: %(default)s"}
    parser.add_argument("--cell", choices=training.CELLS, default="lstm", **shown)
    parser.add_argument("--epochs", type=training.positive, help=f"default: {EPOCHS}")
    parser.add_argument("--hidden-size", type=training.positive, default=128, **shown)
    parser.add_argument("--batch-size", type=training.positive, default=64, **shown)
    parser.add_argument("--plot", type=Path, default=Path("results/compare.png"), metavar="FILE",
                        help="the picture; default: %(default)s")  # fmt: skip
    parser.set_defaults(whole=EPOCHS)
    training.add_machine(parser)
    return digits.parse(parser, words)


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    data = digits.load(options)
    print(data)
    module = training.CELLS[options.cell]
    setting = f"{module} of {options.hidden_size} units, batches of {options.batch_size}"
    setting += f", {training.where(options)}"
    print(f"{setting}, torch {torch.__version__}, fusedrnn {fusedrnn.__version__}")

    count, _, pixels = data.images.shape
    steps = options.epochs * math.ceil(count / options.batch_size)
    stock, ours, nudged = runs = [
        Run.start(name, getattr(package, module), pixels, options.hidden_size, options.seed, steps)
        for name, package in (
            (f"torch.nn.{module}", nn),
            (f"fusedrnn.{module}", fusedrnn),
            ("nudged", nn),
        )
    ]
    for name, value in stock.reader.state_dict().items():
        if not torch.equal(value, ours.reader.state_dict()[name]):
            sys.exit(f"FAILED: one seed gave two different {name}")
    nudged.nudge(options.seed)
    for run in runs:
        run.reader.to(options.device)
    train(runs, data, options.epochs, options.batch_size, options.seed)
    faults = report(stock, ours, nudged)
    if min(stock.accuracies[-1], ours.accuracies[-1]) <= REQUIRED_ACCURACY:
        if options.epochs >= options.whole:
            faults.append(f"accuracy is not above {REQUIRED_ACCURACY:.0%}")
        else:
            wanted = f"accuracy above {REQUIRED_ACCURACY:.0%}"
            print(f"{wanted} is expected only after {options.whole} epochs")
    draw(stock, ours, nudged, f"{data.name}: {setting}", options.plot)
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    training.run(main)
