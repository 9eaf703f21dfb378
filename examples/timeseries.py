"""Learns to go on with a curve: at each step of a window, the network says the next value.

Many to many: an output is read at every step, each through the same linear layer.

    x(t)     x(t+0.1)       x(t+1.9)
     |          |              |            20 steps
   [RNN]  >   [RNN]  > ... > [RNN]          100 hidden units
     |          |              |
   linear     linear         linear
     |          |              |
  x(t+0.1)   x(t+0.2)       x(t+2.0)

The curve is x(t) = t sin(t) / 3 + 2 sin(5 t), a toy from Aurélien Géron's "Hands-On Machine
Learning". Windows that lie anywhere before t = 24 are learned from, in batches of 50. What comes
after is held out. There the curve swings wider than any that was seen, which makes it harder.

Then the network runs free: it reads 20 steps, and from there on what it says is what it sees next.
Errors feed on themselves, and the curve that it draws leaves the true one sooner or later.

    python examples/timeseries.py
    python examples/timeseries.py --cell gru
    python examples/timeseries.py --impl torch
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import pictures
import training
from training import Result

INTERVAL = 0.1  # between steps
STEPS = 20
HIDDEN_SIZE = 100
LEARNED_UNTIL, END = 24.0, 30.0
EPOCHS, BATCHES, BATCH_SIZE, LEARNING_RATE = 60, 50, 50, 5e-3
SPAN = STEPS * INTERVAL  # how long a window is

# Mean squared errors. The naive forecast, which is the last value, has 0.92 a step ahead, and 60
# over the 20 steps that a network which runs free is judged by.
WORST_ERROR = 0.2
WORST_RUNNING_FREE = 20.0


def curve(times: Tensor) -> Tensor:
    return times * times.sin() / 3 + 2 * (5 * times).sin()


def stretches(starts: Tensor, steps: int) -> Tensor:
    """[B] times -> the [B, steps + 1, 1] values that begin there."""
    return curve(starts[:, None] + INTERVAL * torch.arange(steps + 1))[:, :, None]


class Forecaster(nn.Module):
    """A value at each step -> recurrent layer -> the value that comes next."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.memory = layer(1, HIDDEN_SIZE, batch_first=True)
        self.head = nn.Linear(HIDDEN_SIZE, 1)

    def forward(self, values: Tensor) -> Tensor:
        """[B, T, 1] -> [B, T, 1]"""
        output, _ = self.memory(values)  # [B, T, H]
        return self.head(output)

    def run_free(self, seen: Tensor, steps: int) -> Tensor:
        """[B, T, 1] -> the [B, steps, 1] that it says come next."""
        return training.run_free(self.memory, self.head, seen, steps)


def held_out_starts(count: int, steps: int) -> Tensor:
    """When windows of that many steps may begin in the held-out part."""
    return torch.linspace(LEARNED_UNTIL, END - steps * INTERVAL, count)


def plot(
    continued: Tensor, window: Tensor, said: Tensor, errors: Tensor, naive: float, cell: str,
    path: Path
) -> None:  # fmt: skip
    """The curve with what was drawn free, a window with what was said, and the error by step.

    Args:
        continued: the values [N] from `LEARNED_UNTIL` on that the network drew.
        window: the 21 values of a held-out stretch.
        said: the 20 that the network said of it.
        errors: the mean squared error at each of the 20 steps.
        naive: the error of the naive forecast.
        cell: the word for the layer.
        path: of the picture.
    """
    name, line = cell.upper(), pictures.CELL_LINES[cell]
    title = f"{name}: the next value at every step, and running free"
    figure, ((left, right), (one, by_step)) = pictures.figure(title, 2, 2, size=(9, 6.5))
    whole = figure.add_subplot(left.get_gridspec()[0, :])
    left.remove()
    right.remove()

    times = torch.linspace(0, END, 1000)
    whole.plot(times, curve(times), color="#999999", lw=3, label="truth")
    whole.axvspan(0, LEARNED_UNTIL, color=pictures.SKY, alpha=0.12, lw=0, label="learned from")
    seen = LEARNED_UNTIL - INTERVAL * torch.arange(STEPS).flip(0)
    drawn = LEARNED_UNTIL + INTERVAL * (1 + torch.arange(len(continued)))
    whole.plot(seen, curve(seen), ".", ms=4, color=pictures.BLACK, label="20 steps that it reads")
    whole.plot(drawn, continued, **line, label=f"{name}, running free")
    reach = 1.6 * curve(times).abs().max().item()
    whole.set(
        title="From t = 24 on it sees only what it said",
        xlabel="t",
        ylabel="x",
        ylim=(-reach, reach),
        xlim=(0, END),
    )
    whole.legend(loc="upper left", ncols=2)

    start = END - SPAN
    steps = start + INTERVAL * torch.arange(STEPS + 1)
    one.plot(steps[:-1], window[:-1], ".", color=pictures.BLACK, label="what it sees")
    one.plot(steps[1:], window[1:], "o", mfc="none", color=pictures.GRAY, label="what comes next")
    one.plot(steps[1:], said, marker="x", ms=5, **line, label="what it says")
    one.set(title="A window that was held out", xlabel="t", ylabel="x")
    one.legend()

    by_step.semilogy(range(1, STEPS + 1), errors, marker=".", **line, label=name)
    by_step.axhline(naive, color=pictures.ORANGE, label="naive: the last value")
    by_step.set(title="It has to see some steps first", xlabel="steps seen",
                ylabel="mean squared error", xticks=range(0, STEPS + 1, 5))  # fmt: skip
    by_step.legend()
    pictures.save(figure, path)


def main(words: Sequence[str] | None = None) -> int:
    options = training.parse(
        training.arguments(__doc__, "timeseries", epochs=EPOCHS, cell="rnn"), words
    )
    print(f"x(t) = t sin(t) / 3 + 2 sin(5 t), a step each {INTERVAL}, in windows of {STEPS} steps")
    print(f"learned from: t = 0 to {LEARNED_UNTIL:g}, {BATCHES * BATCH_SIZE} windows an epoch")
    print(f"held out: t = {LEARNED_UNTIL:g} to {END:g}")
    print(training.setting(options))

    model = Forecaster(training.recurrent(options)).to(options.device)
    generator = torch.Generator().manual_seed(options.seed)

    def batches(_: int) -> tuple[Tensor, ...]:
        starts = torch.rand(BATCHES * BATCH_SIZE, generator=generator) * (LEARNED_UNTIL - SPAN)
        return stretches(starts, STEPS).to(options.device).split(BATCH_SIZE)

    training.train(
        model, batches, lambda batch: mse_loss(model(batch[:, :-1]), batch[:, 1:]),
        options.epochs, learning_rate=LEARNING_RATE,
        warm_up=0.3,
    )  # fmt: skip

    held_out = stretches(held_out_starts(200, STEPS), STEPS)
    said = training.evaluate(model, lambda: model(held_out[:, :-1].to(options.device))).cpu()
    errors = (said - held_out[:, 1:]).square().mean((0, 2))  # [20], of each step
    naive = (held_out[:, :-1] - held_out[:, 1:]).square().mean().item()

    longer = stretches(held_out_starts(41, 2 * STEPS), 2 * STEPS)[:, :-1]  # read 20, draw 20
    seen, truth = longer[:, :STEPS], longer[:, STEPS:]
    kept = seen[:, -1:].expand_as(truth)  # the last value, which the naive forecast keeps
    drawn = training.evaluate(model, lambda: model.run_free(seen.to(options.device), STEPS)).cpu()

    before = stretches(torch.tensor([LEARNED_UNTIL - SPAN + INTERVAL]), STEPS)[:, :-1]
    rest = round((END - LEARNED_UNTIL) / INTERVAL)
    continued = training.evaluate(model, lambda: model.run_free(before.to(options.device), rest))
    print()
    plot(continued.flatten().cpu(), held_out[-1].flatten(), said[-1].flatten(), errors, naive,
         options.cell, options.plot)  # fmt: skip
    return training.conclude(
        options,
        [
            Result("MSE a step ahead, naive", naive),
            Result("MSE a step ahead", errors.mean().item(), at_most=WORST_ERROR),
            Result("MSE a step ahead, ten steps or more seen", errors[9:].mean().item()),
            Result("MSE of 20 steps free, naive", mse_loss(kept, truth).item()),
            Result(
                "MSE of 20 steps free", mse_loss(drawn, truth).item(), at_most=WORST_RUNNING_FREE
            ),
        ],
    )


if __name__ == "__main__":
    training.run(main)
