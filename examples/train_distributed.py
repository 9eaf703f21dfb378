"""Forecasts a chaotic series on one process or many: DDP or FSDP2, with checkpoints to resume.

The Mackey-Glass equation, dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x(t), never repeats
itself ("Oscillation and chaos in physiological control systems", 1977). Blocks of fusedrnn.LSTM
learn to predict its next value from all the values before it. Two forecasters are there to compare
with: "the same again", and the best linear one from the last 16 values. At the end the network goes
on by itself, fed with its own forecasts, and the plot shows how long it follows the series.

    python examples/train_distributed.py                                   one process
    torchrun --nproc-per-node=2 examples/train_distributed.py              two, on CPUs or on GPUs
    torchrun --nproc-per-node=8 examples/train_distributed.py --strategy fsdp
    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 \\
        examples/train_distributed.py --checkpoint /shared/folder          two machines

A batch is split among the processes, so that any number of them learns the same, up to rounding
(with --dropout each process draws its own numbers). With `--checkpoint FOLDER` the run saves its
state there and resumes from what it finds there, with any number of processes and either strategy.
Several machines need a folder that all of them see. `--recompute` trades time for memory.

Ends with exit status 1, and says why, if the network did not learn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

import fusedrnn
from training import positive

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend has to be chosen first)

STEPS = 128  # of a window
CHUNK = 16  # steps that --recompute steps computes again at a time
WARM_UP = 32  # steps at the head of a window that are not judged: what came before is not known
LINEAR_ORDER = 16
REQUIRED_GAIN = 0.5  # held-out error, as a part of the linear forecaster's
LEARNING_RATE = 1e-2
KEPT_CHECKPOINTS = 2

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Team:
    """The processes that train together, and this one among them."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> float:
        """The mean of what the processes have."""
        value = value.detach().clone()
        dist.all_reduce(value)
        return value.item() / self.size


@contextmanager
def assembled(device: str) -> Iterator[Team]:
    """Joins the processes that torchrun started; without torchrun this is the only one."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    where = torch.device(device, local) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(where)
    backend = "nccl" if device == "cuda" else "gloo"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), where)
    finally:
        dist.destroy_process_group()


@dataclass
class Series:
    """Windows [N, steps + 1, 1] of one series with mean 0 and deviation 1; the last held out."""

    windows: Tensor
    held_out: Tensor


def mackey_glass(samples: int, every: float = 3.0, delay: float = 17.0, dt: float = 0.1) -> Tensor:
    """[samples], one value each `every` units of time, by Euler's method from x = 1.2."""
    x, past = 1.2, deque([1.2] * round(delay / dt))
    values = []
    for i in range(round(samples * every / dt)):
        then = past.popleft()
        past.append(x)
        x += dt * (0.2 * then / (1 + then**10) - 0.1 * x)
        if i % round(every / dt) == 0:
            values.append(x)
    return torch.tensor(values)


def make_series(windows: int) -> Series:
    """Windows that overlap by three quarters, and a quarter as many from a later part."""
    series = mackey_glass((windows + windows // 4 + 8) * STEPS // 4 + 200)[200:]
    learned = (windows + 3) * STEPS // 4 + 1
    series = (series - series[:learned].mean()) / series[:learned].std()
    before, after = (
        part.unfold(0, STEPS + 1, STEPS // 4) for part in series.tensor_split([learned])
    )
    return Series(before[:windows].unsqueeze(2), after[: windows // 4].unsqueeze(2))


class Block(nn.Module):
    """x -> x + LSTM(x), with dropout of what is added."""

    def __init__(self, width: int, dropout: float, steps: int | None) -> None:
        super().__init__()
        self.lstm = fusedrnn.LSTM(width, width, batch_first=True, checkpoint=steps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        y, state = self.lstm(x, state)
        return x + self.dropout(y), state


class Forecaster(nn.Module):
    """values [B, T, 1] -> blocks -> the next value after each [B, T, 1], and the blocks' states."""

    def __init__(self, width: int, blocks: int, dropout: float, recompute: str) -> None:
        super().__init__()
        steps = CHUNK if recompute == "steps" else None
        self.recompute_blocks = recompute == "block"
        self.read = nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width, dropout, steps) for _ in range(blocks))
        self.tell = nn.Linear(width, 1)

    def forward(
        self, values: Tensor, states: list[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        x, after = self.read(values), []
        for i, block in enumerate(self.blocks):
            before = states[i] if states else None
            if self.recompute_blocks and torch.is_grad_enabled():
                x, state = checkpoint(block, x, before, use_reentrant=False)
            else:
                x, state = block(x, before)
            after.append(state)
        return values + self.tell(x), after


def distribute(network: Forecaster, strategy: str, team: Team) -> nn.Module:
    """ddp: each process has all parameters. fsdp: each has a part and borrows a block at a time."""
    if strategy == "ddp":
        return DistributedDataParallel(network)
    mesh = init_device_mesh(team.device.type, (team.size,))
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


@dataclass
class Training:
    """What a checkpoint holds: the network, its optimizer, and how far they have come."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    team: Team
    step: int = 0
    losses: list[float] = field(default_factory=list)  # one for each step, of the whole batch
    errors: list[float] = field(default_factory=list)  # one for each epoch, held-out windows

    def _state(self, random_states: list[str]) -> dict[str, Any]:
        network, optimizer = get_state_dict(self.network, self.optimizer)
        progress = {"step": self.step, "losses": self.losses, "errors": self.errors}
        numbers = {name: torch.get_rng_state() for name in random_states}
        if self.team.device.type == "cuda":
            numbers |= {f"{name}.cuda": torch.cuda.get_rng_state() for name in random_states}
        return {
            "network": network,
            "optimizer": optimizer,
            "progress": json.dumps(progress),
            "random": numbers,
        }

    def save(self, folder: Path) -> None:
        """Writes folder/step-N. It has that name only once all of it has been written.

        A process that is killed leaves a folder/step-N.part, which nobody takes for a checkpoint.
        """
        whole = folder / f"step-{self.step}"
        part = whole.with_suffix(".part")
        dcp.save(
            self._state([f"rank{self.team.rank}"]), checkpoint_id=part
        )  # returns when all have
        if self.team.leads:
            part.rename(whole)
            sync(folder)
            for old in checkpoints(folder)[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)

    def resume(self, folder: Path) -> bool:
        """Goes on from the newest checkpoint, if there is one, whoever and how many wrote it."""
        if self.team.leads:
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob("step-*.part"):
                shutil.rmtree(part)
        dist.barrier()
        found = checkpoints(folder)[-1:]
        if not found:
            return False
        # A process that the saved run did not have starts with random numbers of its own.
        mine = f"rank{self.team.rank}"
        saved = dcp.FileSystemReader(found[0]).read_metadata().state_dict_metadata
        known = f"random.{mine}" in saved
        if self.team.device.type == "cuda":
            known = known and f"random.{mine}.cuda" in saved
        state = self._state([mine] if known else [])
        dcp.load(state, checkpoint_id=found[0])
        set_state_dict(
            self.network,
            self.optimizer,
            model_state_dict=state["network"],
            optim_state_dict=state["optimizer"],
        )
        for name, value in json.loads(state["progress"]).items():
            setattr(self, name, value)
        for name, value in state["random"].items():
            set_state = torch.cuda.set_rng_state if name.endswith("cuda") else torch.set_rng_state
            set_state(value)
        return True

    def learn(self, windows: Tensor, rate: float) -> None:
        """One step on this process's share of a batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        told, _ = self.network(windows[:, :-1])
        loss = mse_loss(told, windows[:, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(self.team.mean(loss))
        self.step += 1

    def examine(self, held_out: Tensor) -> None:
        """Each process judges as many of the held-out windows."""
        self.network.eval()
        mine = held_out[self.team.rank :: self.team.size][: len(held_out) // self.team.size]
        with torch.no_grad():
            told, _ = self.network(mine[:, :-1])
            self.errors.append(math.sqrt(self.team.mean(square_error(told, mine))))

    def plain_network(self, options: argparse.Namespace) -> Forecaster | None:
        """The network as one process has it, to keep or to use; the first process gets it."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.network, options=whole)
        if not self.team.leads:
            return None
        network = make_network(options)
        network.load_state_dict(state)
        return network.eval()


def checkpoints(folder: Path) -> list[Path]:
    """The whole ones, the newest last."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def sync(folder: Path) -> None:
    """Sees to it that a new name survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def square_error(told: Tensor, windows: Tensor) -> Tensor:
    return mse_loss(told[:, WARM_UP:], windows[:, WARM_UP + 1 :])


def learning_rate(step: int, steps: int) -> float:
    """Rises over a tenth of the steps, then falls along a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return LEARNING_RATE * (step + 1) / rise
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def make_network(options: argparse.Namespace) -> Forecaster:
    return Forecaster(options.width, options.blocks, options.dropout, options.recompute)


def train(training: Training, series: Series, options: argparse.Namespace) -> None:
    """All epochs from where the training is, or as many as --stop-after says."""
    team = training.team
    sampler: DistributedSampler[Any] = DistributedSampler(
        range(len(series.windows)), team.size, team.rank, seed=options.seed, drop_last=True
    )
    # The k-th batches of all processes are the k-th batch of one: the sampler deals like cards.
    # A loader that begins draws a number; from its own generator, so that resuming changes nothing.
    loader = DataLoader(
        TensorDataset(series.windows),
        options.batch_size // team.size,
        sampler=sampler,
        drop_last=True,
        generator=torch.Generator(),
    )
    steps = options.epochs * len(loader)
    first = training.step // len(loader)
    last = min(options.epochs, first + (options.stop_after or options.epochs))
    with tqdm(
        total=steps, initial=training.step, unit="step", mininterval=0.5, disable=not team.leads
    ) as progress:
        for epoch in range(first, last):
            sampler.set_epoch(epoch)
            progress.set_description(f"epoch {epoch + 1}/{options.epochs}", refresh=False)
            for (windows,) in islice(loader, training.step % len(loader), None):
                training.learn(windows.to(team.device), learning_rate(training.step, steps))
                progress.update()
                ends = training.step % len(loader) == 0
                if ends:
                    training.examine(series.held_out)
                now = {"loss": f"{training.losses[-1]:.1e}"}
                now |= {"error": f"{training.errors[-1]:.4f}"} if training.errors else {}
                progress.set_postfix(now, refresh=False)
                every = options.save_every
                if options.checkpoint and (training.step % every == 0 if every else ends):
                    training.save(options.checkpoint)


def linear_error(series: Series) -> float:
    """The error of the best weighted sum of the last values, found on what is learned from."""

    def table(windows: Tensor) -> tuple[Tensor, Tensor]:
        rows = windows.squeeze(2).double().unfold(1, LINEAR_ORDER + 1, 1)
        rows = rows[:, WARM_UP + 1 - LINEAR_ORDER :].reshape(-1, LINEAR_ORDER + 1)
        return rows[:, :-1], rows[:, -1:]

    before, after = table(series.windows)
    weights = torch.linalg.lstsq(before, after, driver="gelsd").solution
    before, after = table(series.held_out)
    return mse_loss(before @ weights, after).sqrt().item()


def go_on(network: Forecaster, window: Tensor, steps: int) -> Tensor:
    """What the network says will follow a window [T, 1], fed with what it says itself: [steps]."""
    told = []
    with torch.no_grad():
        values, states = network(window[None])
        for _ in range(steps):
            told.append(values[0, -1, 0])
            values, states = network(values[:, -1:], states)
    return torch.stack(told)


@dataclass
class Forecasts:
    """What came out, on held-out windows: errors (root mean square) and the free runs."""

    errors: dict[str, float]
    known: Tensor  # [T], what the network was shown of the first window
    truth: Tensor  # [N, F], what followed
    told: Tensor  # [N, F], what it said would follow

    @property
    def horizon(self) -> int:
        """The first step at which the median free run is off by half a deviation."""
        off = (self.told - self.truth).abs().median(0).values > 0.5
        return int(off.int().argmax()) if off.any() else len(off)


def forecast(training: Training, network: Forecaster, series: Series) -> Forecasts:
    held_out = series.held_out.cpu()
    errors = {
        "the same again": square_error(held_out[:, :-1], held_out).sqrt().item(),
        f"the last {LINEAR_ORDER}, linear": linear_error(series),
        "fusedrnn.LSTM": training.errors[-1],
    }
    # Windows overlap by three quarters: the first quarters of many are the series again.
    line = torch.cat([held_out[:, : STEPS // 4, 0].flatten(), held_out[-1, STEPS // 4 :, 0]])
    ahead = 2 * STEPS
    starts = range(0, len(line) - STEPS - ahead, 3 * STEPS // 2)
    told = [go_on(network, line[start : start + STEPS, None], ahead) for start in starts]
    truth = [line[start + STEPS : start + STEPS + ahead] for start in starts]
    return Forecasts(errors, line[:STEPS], torch.stack(truth), torch.stack(told))


def draw(training: Training, found: Forecasts, title: str, path: Path) -> None:
    """Loss and held-out error above; below, the series and the network going on by itself."""
    blue, orange, gray = "#4878a8", "#e07020", "#a0a0a0"
    pyplot.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"})
    figure, axes = pyplot.subplot_mosaic([["loss", "error"], ["free", "free"]], figsize=(11, 7),
                                         width_ratios=(3, 2), layout="constrained")  # fmt: skip
    epochs = len(training.errors)

    axes["loss"].set_title("training loss")
    where = [(i + 1) * epochs / len(training.losses) for i in range(len(training.losses))]
    axes["loss"].semilogy(where, training.losses, color=orange, lw=1)
    axes["loss"].set_xlabel("epoch")

    axes["error"].set_title("error on held-out windows")
    axes["error"].semilogy(range(1, epochs + 1), training.errors, color=orange, marker=".")
    for (name, error), color in zip(found.errors.items(), (gray, blue), strict=False):
        axes["error"].axhline(error, color=color, lw=1, ls="--", label=name)
    axes["error"].legend(frameon=False)
    axes["error"].set_xlabel("epoch")

    known, horizon = len(found.known), found.horizon
    axes["free"].set_title("the network goes on by itself")
    axes["free"].plot(torch.cat([found.known, found.truth[0]]), color=blue, lw=4, alpha=0.45,
                      label="series")  # fmt: skip
    axes["free"].plot(range(known, known + len(found.told[0])), found.told[0], color=orange, lw=1,
                      label="fusedrnn.LSTM")  # fmt: skip
    axes["free"].axvspan(0, known, color=gray, alpha=0.15, lw=0, label="shown to it")
    axes["free"].axvline(known + horizon, color=gray, lw=1, ls="--",
                         label=f"median run of {len(found.told)} is off")  # fmt: skip
    axes["free"].margins(x=0)
    axes["free"].set_xlabel("step")
    axes["free"].legend(frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.12))

    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def report(found: Forecasts) -> list[str]:
    """Prints what came out; returns what is wrong with it."""
    print(f"\n{'error on held-out windows':32}{'':>8}")
    for name, error in found.errors.items():
        print(f"  {name:30}{error:>8.4f}")
    print(f"\nFed with its own forecasts it keeps to the series for {found.horizon} steps.\n")
    *_, linear, ours = found.errors.values()
    if not ours <= REQUIRED_GAIN * linear:  # so written that NaN fails
        return [
            f"error {ours:.4f} is not below {REQUIRED_GAIN:.0%} of the linear forecaster's, "
            f"{linear:.4f}"
        ]
    return []


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {value}")
    return value


def arguments() -> argparse.Namespace:
    has_cuda = torch.cuda.is_available() and bool(fusedrnn.build_info()["cuda"])
    parser = argparse.ArgumentParser(
        description="Forecast a chaotic series on one process, or on many by torchrun."
    )
    shown = {"help": "default: %(default)s"}
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp", **shown)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if has_cuda else "cpu",
                        **shown)  # fmt: skip
    parser.add_argument(
        "--recompute",
        choices=("none", "block", "steps"),
        default="none",
        help="keep less for backward: of a block its input alone, by torch.utils.checkpoint, or "
        f"states every {CHUNK} steps, by fusedrnn",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="save, and resume from")
    parser.add_argument("--save-every", type=positive, metavar="STEPS", help="default: an epoch")
    parser.add_argument("--stop-after", type=positive, metavar="EPOCHS", help="to be resumed later")
    parser.add_argument("--epochs", type=positive, default=12, **shown)
    parser.add_argument("--windows", type=positive, default=512, **shown)
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=16,
        help="of all processes together; default: %(default)s",
    )
    parser.add_argument("--width", type=positive, default=48, **shown)
    parser.add_argument("--blocks", type=positive, default=2, **shown)
    parser.add_argument("--dropout", type=probability, default=0.0, **shown)
    parser.add_argument("--seed", type=int, default=0, **shown)
    parser.add_argument("--out", type=Path, default=Path("results/train_distributed.png"),
                        help="the plot")  # fmt: skip
    options = parser.parse_args()
    if options.device == "cuda" and not has_cuda:
        why = fusedrnn.build_info()["without_cuda"] or "torch finds no GPU"
        parser.error(f"--device cuda: {why}")
    if options.windows < max(options.batch_size, 64):
        parser.error(f"--windows: expected {max(options.batch_size, 64)} or more, to fill a batch "
                     f"and to hold out a quarter as many, got {options.windows}")  # fmt: skip
    size = int(os.environ.get("WORLD_SIZE", 1))
    if options.batch_size % size:
        parser.error(f"--batch-size: expected a multiple of the {size} processes, "
                     f"got {options.batch_size}")  # fmt: skip
    if options.windows // 4 < size:
        parser.error(f"--windows: expected {4 * size} or more, so that each of {size} processes "
                     f"has one of those held out, got {options.windows}")  # fmt: skip
    return options


def main() -> int:
    options = arguments()
    series = make_series(options.windows)
    with assembled(options.device) as team:
        torch.manual_seed(options.seed)  # the same network everywhere
        network = distribute(make_network(options).to(team.device), options.strategy, team)
        torch.manual_seed(options.seed + 1 + team.rank)
        series.held_out = series.held_out.to(team.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        training = Training(network, optimizer, team)

        setting = f"{options.blocks} blocks of {options.width} units, {options.strategy}, "
        setting += f"processes: {team.size}, {team.device.type.upper()}"
        if team.leads:
            print(f"Mackey-Glass series: {options.windows} windows of {STEPS} steps to learn from,",
                  f"{len(series.held_out)} held out")  # fmt: skip
            print(f"{setting}, torch {torch.__version__}, fusedrnn {fusedrnn.__version__}")
        if options.checkpoint and training.resume(options.checkpoint) and team.leads:
            print(f"goes on from step {training.step} of {options.checkpoint}")
        train(training, series, options)

        plain = training.plain_network(options)
        if plain is None:
            return 0
        if len(training.errors) < options.epochs:
            print(f"stopped after {len(training.errors)} epochs of {options.epochs}")
            return 0
        found = forecast(training, plain, series)
        faults = report(found)
        draw(training, found, f"Mackey-Glass series: {setting}", options.out)
        print(f"plot: {options.out}")
        for fault in faults:
            print(f"FAILED: {fault}")
        return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
