"""Reads handwritten digits row by row, with torch.nn.LSTM and with fusedrnn.LSTM side by side.

An image is a sequence: its rows go through an LSTM from top to bottom, and a linear layer names the
digit from the last state. Three readers start from the same seed and see the same batches:

    torch.nn.LSTM        the yardstick
    fusedrnn.LSTM        ours: has to reach the same losses and give the same answers, sooner
    nudged               torch.nn.LSTM again, its first weights changed by one rounding (1e-7):
                         shows how far mere rounding carries two training runs apart. On the
                         small digits it changes nothing; a long run on MNIST amplifies it until
                         some answers differ.

They take turns epoch by epoch, so that whatever else the machine does slows all of them.
The digits are the 1797 of 8 x 8 pixels that come with scikit-learn, or MNIST's IDX files from a
folder. Ends with exit status 1, and says why, if the two readers do not agree or do not read well.

    python examples/digits.py
    python examples/digits.py --mnist path/to/idx/files --epochs 3
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import fusedrnn

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend has to be chosen first)

REQUIRED_ACCURACY = 0.95
LEARNING_RATE = 5e-3
ROUNDING = 1e-7
# Two runs that differ by rounding drift apart by an amount that is itself chance. Beyond so many
# times what the nudged reader did, rounding no longer explains a difference in losses or answers.
LOSS_DRIFT_ALLOWED = 100
ANSWER_DRIFT_ALLOWED = 3


@dataclass
class Digits:
    """Images [N, rows, pixels] with values from 0 to 1, and labels [N]; some held out."""

    name: str
    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def small_digits(seed: int) -> Digits:
    """scikit-learn's digits, every fifth of a fixed shuffle held out."""
    bundled = load_digits()
    images = torch.tensor(bundled.images, dtype=torch.float32) / 16
    labels = torch.tensor(bundled.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order[::5], order[torch.arange(len(order)) % 5 != 0]
    name = "scikit-learn's digits"
    return Digits(name, images[kept], labels[kept], images[held_out], labels[held_out])


def read_idx(folder: Path, name: str) -> Tensor:
    """One of MNIST's files: two zero bytes, type, number of sizes, big-endian sizes, bytes."""
    for path in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if path.exists():
            break
    else:
        raise SystemExit(f"--mnist: expected {name} or {name}.gz in {folder}, found neither.")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\0\0\x08":
        raise SystemExit(f"--mnist: {path} is not an IDX file of bytes.")
    rank = content[3]
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    values = torch.frombuffer(bytearray(content[4 + 4 * rank :]), dtype=torch.uint8)
    return values.reshape(sizes)


def mnist(folder: Path) -> Digits:
    """MNIST with its own held-out part."""
    return Digits(
        "MNIST",
        read_idx(folder, "train-images-idx3-ubyte").float() / 255,
        read_idx(folder, "train-labels-idx1-ubyte").long(),
        read_idx(folder, "t10k-images-idx3-ubyte").float() / 255,
        read_idx(folder, "t10k-labels-idx1-ubyte").long(),
    )


class DigitReader(nn.Module):
    """rows of an image -> LSTM -> last state -> a score for each of the ten digits."""

    def __init__(self, lstm: type[nn.Module], pixels: int, hidden_size: int) -> None:
        super().__init__()
        self.lstm = lstm(pixels, hidden_size, batch_first=True)
        self.answer = nn.Linear(hidden_size, 10)

    def forward(self, images: Tensor) -> Tensor:
        _, (last, _) = self.lstm(images)
        return self.answer(last[-1])


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
        cls, name: str, lstm: type[nn.Module], pixels: int, hidden_size: int, seed: int, steps: int
    ) -> Run:
        torch.manual_seed(seed)
        reader = DigitReader(lstm, pixels, hidden_size)
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


def train(runs: list[Run], digits: Digits, epochs: int, batch_size: int, seed: int) -> None:
    """Every epoch, each run sees the same batches in the same order; the runs take turns."""
    generator = torch.Generator().manual_seed(seed)
    count = len(digits.labels)
    steps = epochs * len(runs) * -(-count // batch_size)
    with tqdm(total=steps, unit="batch", mininterval=0.5) as progress:
        for epoch in range(epochs):
            order = torch.randperm(count, generator=generator).to(digits.labels.device)
            batches = [(digits.images[i], digits.labels[i]) for i in order.split(batch_size)]
            progress.set_description(f"epoch {epoch + 1}/{epochs}", refresh=False)
            for run in runs if epoch % 2 == 0 else reversed(runs):
                run.train_epoch(batches, progress)
                run.examine(digits.held_out_images, digits.held_out_labels)
            now = {"loss": f"{runs[0].losses[-1]:.4f}", "accuracy": f"{runs[0].accuracies[-1]:.1%}"}
            progress.set_postfix(now, refresh=False)


def drift(a: Run, b: Run) -> list[float]:
    return [abs(x - y) for x, y in zip(a.losses, b.losses, strict=True)]


def ratio(stock: Run, ours: Run) -> float:
    return stock.epoch_milliseconds / ours.epoch_milliseconds


def draw(stock: Run, ours: Run, nudged: Run, title: str, path: Path) -> None:
    """Loss and its differences on the left, accuracy and time per epoch on the right."""
    blue, orange, gray = "#4878a8", "#e07020", "#a0a0a0"
    pyplot.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"})
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), width_ratios=(3, 2), layout="constrained")
    (loss, accuracy), (difference, seconds) = axes
    batches = len(stock.losses) / len(stock.accuracies)
    where = [(i + 1) / batches for i in range(len(stock.losses))]
    epochs = range(1, len(stock.accuracies) + 1)

    loss.set_title("training loss")
    loss.semilogy(where, stock.losses, color=blue, lw=4, alpha=0.45, label=stock.name)
    loss.semilogy(where, ours.losses, color=orange, lw=1, label=ours.name)
    loss.legend(frameon=False)

    difference.set_title("difference of the losses")
    for run, color in ((nudged, gray), (ours, orange)):
        label = f"{run.name} and {stock.name}"
        points = [value or float("nan") for value in drift(run, stock)]
        difference.semilogy(where, points, ".", color=color, ms=3, label=label)
    difference.legend(frameon=False, markerscale=3)
    difference.set_xlabel("epoch")

    accuracy.set_title("accuracy on held-out digits")
    for run, color, width, alpha in ((stock, blue, 4, 0.45), (ours, orange, 1, 1)):
        percent = [100 * value for value in run.accuracies]
        accuracy.plot(epochs, percent, color=color, lw=width, alpha=alpha, label=run.name)
    accuracy.yaxis.set_major_formatter("{x:.0f} %")
    accuracy.set_xlabel("epoch")
    accuracy.legend(frameon=False, loc="lower right")

    seconds.set_title(f"time per epoch: ratio {ratio(stock, ours):.2f}")
    bars = seconds.barh(
        [ours.name, stock.name],
        [ours.epoch_milliseconds, stock.epoch_milliseconds],
        color=[orange, blue],
        height=0.5,
    )
    seconds.bar_label(bars, fmt="%.1f ms", padding=4)
    seconds.margins(x=0.25)
    seconds.set_xlabel("milliseconds")

    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    for axis in (loss, difference, accuracy):
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def report(stock: Run, ours: Run, nudged: Run) -> list[str]:
    """Prints what came out; returns what is wrong with it."""
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
    if min(stock.accuracies[-1], ours.accuracies[-1]) <= REQUIRED_ACCURACY:
        faults.append(f"accuracy is not above {REQUIRED_ACCURACY:.0%}")
    if not loss_drift <= LOSS_DRIFT_ALLOWED * loss_by_rounding:  # so written that NaN fails
        faults.append(f"losses differ by {loss_drift:.1e}, more than rounding explains")
    return faults


def positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value}")
    return value


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a reader of handwritten digits with torch.nn.LSTM and fusedrnn.LSTM."
    )
    parser.add_argument("--epochs", type=positive, help="default: 40, or 3 with --mnist")
    parser.add_argument("--hidden-size", type=positive, default=128, help="default: %(default)s")
    parser.add_argument("--batch-size", type=positive, default=64, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/digits.png"), help="the plot")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="MNIST's four IDX files")
    parser.add_argument("--threads", type=positive, help="CPU threads; default: torch's choice")
    options = parser.parse_args()
    if options.device == "cuda" and (why := fusedrnn.build_info()["without_cuda"]):
        parser.error(f"--device cuda: {why}; use --device cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} finds no CUDA device")
    if options.epochs is None:
        options.epochs = 3 if options.mnist else 40
    return options


def main() -> int:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    digits = mnist(options.mnist) if options.mnist else small_digits(options.seed)
    for name in ("images", "labels", "held_out_images", "held_out_labels"):
        setattr(digits, name, getattr(digits, name).to(options.device))
    count, rows, pixels = digits.images.shape
    print(f"{digits.name}: {rows} rows of {pixels} pixels, {count} to learn from, ", end="")
    print(f"{len(digits.held_out_labels)} held out")
    where = "CUDA" if options.device == "cuda" else f"CPU threads: {torch.get_num_threads()}"
    setting = f"LSTM of {options.hidden_size} units, batches of {options.batch_size}, {where}"
    print(f"{setting}, torch {torch.__version__}, fusedrnn {fusedrnn.__version__}")

    steps = options.epochs * -(-count // options.batch_size)
    stock, ours, nudged = runs = [
        Run.start(name, lstm, pixels, options.hidden_size, options.seed, steps)
        for name, lstm in (
            ("torch.nn.LSTM", nn.LSTM),
            ("fusedrnn.LSTM", fusedrnn.LSTM),
            ("nudged", nn.LSTM),
        )
    ]
    for name, value in stock.reader.state_dict().items():
        if not torch.equal(value, ours.reader.state_dict()[name]):
            sys.exit(f"FAILED: one seed gave two different {name}")
    nudged.nudge(options.seed)
    for run in runs:
        run.reader.to(options.device)
    train(runs, digits, options.epochs, options.batch_size, options.seed)
    faults = report(stock, ours, nudged)
    draw(stock, ours, nudged, f"{digits.name}: {setting}", options.out)
    print(f"plot: {options.out}")
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
