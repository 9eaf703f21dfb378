"""Ways to forecast a series from its own past: how much does each of them remember?

    Markov           x[t] > network > x[t+1]                  the last value, nothing else

    window           x[t-7] ... x[t] > network > x[t+1]       the last eight

    window, direct   x[t-7] ... x[t] > least squares > x[t+1], x[t+2], ... x[t+32]

    latent state     x[t-1]      x[t]                         all that it has seen, as one state
                       |          |
             ... >  [ LSTM ] > [ LSTM ] > ...
                                  |
                               linear
                                  |
                                x[t+1]

The series is what can be seen of two hidden swings: the sum of their positions, under noise of two
thirds its size. Chance pushes the swings a little at every step. The last value does not tell
whether they go up or down. Eight values do, though roughly. A state goes on averaging for as long
as that helps.

Each network learns one step, and to look further ahead it takes its own forecast for the value that
comes next, and so on. A window is soon full of such forecasts, and what it gets wrong grows. The
direct way avoids that: least squares give a linear map for each step ahead, straight from the
values that were seen. It is much better than the same window that feeds on itself, so it is the one
to be beaten.

Errors are those to the sum of the swings: the noise on top of it is beyond all forecasts. As the
series is made here, the least error that can be expected is known, too. It is that of a Kalman
filter which has been told how the swings move; the networks have to find out.

What a state has over a window is that nobody has to say how long it should be. A direct window of
32 comes as far as the state: try --window 32.

    python examples/autoregressive.py
    python examples/autoregressive.py --cell gru --seed 1
    python examples/autoregressive.py --window 32
"""

from __future__ import annotations

import argparse
import cmath
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pad

import pictures
import training
from training import Result

PERIODS, AMPLITUDES = (16.0, 7.0), (1.0, 0.7)  # of the swings, in steps and root mean squares
KEPT = 0.998  # of a swing from one step to the next
NOISE = 0.8
LENGTH, HELD_OUT = 18_000, 2_000  # of the series, and of its end

WINDOW = 8
HIDDEN_SIZE = 32
STEPS, WARM_UP = 128, 64  # of a sequence to learn from, and those that only fill the state
EPOCHS, BATCHES, BATCH_SIZE, LEARNING_RATE = 15, 100, 32, 5e-3

AHEAD, JUDGED = 32, 8  # how far forecasts go, and the step ahead that is judged
WORST_TO_BEST, WORST_TO_WINDOW, WORST_TO_MARKOV = 1.15, 0.9, 0.9


@dataclass
class Series:
    """`clean` [N] is the sum of the swings, `seen` [N] has the noise; the last are held out."""

    clean: Tensor
    seen: Tensor

    @property
    def learned(self) -> Tensor:
        return self.seen[:-HELD_OUT]

    @property
    def origins(self) -> Tensor:
        """The steps from which forecasts of the held-out part are made."""
        return torch.arange(LENGTH - HELD_OUT - 1, LENGTH - AHEAD)

    @property
    def to_come(self) -> Tensor:
        """What the swings do after each origin, [origins, AHEAD]."""
        return self.clean.unfold(0, AHEAD, 1)[self.origins + 1]


def swing(seed: int) -> Series:
    """A swing is a complex number that turns, shrinks, and is pushed; its real part is seen."""
    chance = random.Random(seed)

    def push(size: float) -> complex:
        return complex(chance.gauss(0, size), chance.gauss(0, size))

    swings = [push(size) for size in AMPLITUDES]
    turns = [KEPT * cmath.exp(2j * math.pi / period) for period in PERIODS]
    pushes = [size * math.sqrt(1 - KEPT**2) for size in AMPLITUDES]  # keep the amplitude the same
    clean, seen = [], []
    for _ in range(LENGTH):
        clean.append(sum(each.real for each in swings))
        seen.append(clean[-1] + chance.gauss(0, NOISE))
        swings = [turn * each + push(size) for turn, each, size in
                  zip(turns, swings, pushes, strict=True)]  # fmt: skip
    return Series(torch.tensor(clean), torch.tensor(seen))


def best_forecasts(series: Series) -> Tensor:
    """[origins, AHEAD] of a Kalman filter that has been told how the swings move.

    It keeps the mean m and the covariance P of what the swings may be doing:

        a value comes     K = P c / (c' P c + noise²)    m += K (x - c' m)    P -= K c' P
        a step passes     m = A m                        P = A P A' + Q
    """
    turns = [2 * math.pi / period for period in PERIODS]
    a = (
        KEPT
        * torch.block_diag(
            *(
                torch.tensor([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])
                for t in turns
            )
        ).double()
    )
    variances = torch.tensor(AMPLITUDES).double().square().repeat_interleave(2)
    mean, covariance = torch.zeros_like(variances), variances.diag()
    pushed = (1 - KEPT**2) * covariance
    c = torch.tensor([1.0, 0.0] * len(PERIODS)).double()
    means = []
    for value in series.seen[-HELD_OUT - 500 :].double():  # after 500 steps it knows all it can
        spread = covariance @ c
        gain = spread / (c @ spread + NOISE**2)
        mean = mean + gain * (value - c @ mean)
        means.append(mean)
        mean = a @ mean
        covariance = a @ (covariance - torch.outer(gain, spread)) @ a.T + pushed
    now = torch.stack(means)[series.origins - LENGTH]
    said = []
    for _ in range(AHEAD):
        now = now @ a.T
        said.append(now @ c)
    return torch.stack(said, 1).float()


def direct_forecasts(series: Series, size: int) -> Tensor:
    """[origins, AHEAD] by least squares: a linear map of the last values for each step ahead."""
    windows = series.seen.unfold(0, size, 1)  # [those that there are, size]

    def inputs(steps: Tensor) -> Tensor:
        """The windows that end at these steps, and a one for the mean, [steps, size + 1]."""
        return torch.cat([windows[steps - size + 1], torch.ones(len(steps), 1)], 1)

    learned = torch.arange(size - 1, LENGTH - HELD_OUT - AHEAD)  # all they forecast is learned from
    targets = series.seen.unfold(0, AHEAD, 1)[learned + 1]
    maps = torch.linalg.lstsq(inputs(learned), targets).solution  # [size + 1, AHEAD]
    return inputs(series.origins) @ maps


class Window(nn.Module):
    """The last values -> the next one; `Window(1)` is the Markov model."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.network = nn.Sequential(
            nn.Linear(size, HIDDEN_SIZE), nn.Tanh(), nn.Linear(HIDDEN_SIZE, 1)
        )

    def forward(self, values: Tensor) -> Tensor:
        """[B, T] -> [B, T], at each step what comes next."""
        windows = pad(values, (self.size - 1, 0)).unfold(1, self.size, 1)  # [B, T, size]
        return self.network(windows).squeeze(-1)

    def ahead(self, values: Tensor, steps: int) -> Tensor:
        """[B, T] -> the [B, steps] that follow."""
        for _ in range(steps):
            values = torch.cat([values, self.network(values[:, -self.size :])], 1)
        return values[:, -steps:]


class Latent(nn.Module):
    """A value at a time -> recurrent layer, whose state remembers -> the next one."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.memory = layer(1, HIDDEN_SIZE, batch_first=True)
        self.head = nn.Linear(HIDDEN_SIZE, 1)

    def forward(self, values: Tensor) -> Tensor:
        """[B, T] -> [B, T], at each step what comes next."""
        output, _ = self.memory(values.unsqueeze(-1))
        return self.head(output).squeeze(-1)

    def ahead(self, values: Tensor, steps: int) -> Tensor:
        """[B, T] -> the [B, steps] that follow."""
        return training.run_free(self.memory, self.head, values.unsqueeze(-1), steps).squeeze(-1)


def learn(model: Window | Latent, name: str, series: Series, options: argparse.Namespace) -> Tensor:
    """Trains a model to say the next value; returns its forecasts, [origins, AHEAD]."""
    mean, deviation = series.learned.mean(), series.learned.std()
    scaled = ((series.seen - mean) / deviation).to(options.device)
    sequences = scaled[:-HELD_OUT].unfold(0, STEPS + 1, 1)  # [all that there are, 129]
    generator = torch.Generator().manual_seed(options.seed)

    def batches(_: int) -> tuple[Tensor, ...]:
        chosen = torch.randint(len(sequences), (BATCHES * BATCH_SIZE,), generator=generator)
        return sequences[chosen.to(options.device)].split(BATCH_SIZE)

    def loss_of(batch: Tensor) -> Tensor:
        return mse_loss(model(batch[:, :-1])[:, WARM_UP:], batch[:, WARM_UP + 1 :])

    training.train(
        model, batches, loss_of, options.epochs, learning_rate=LEARNING_RATE, name=name,
        warm_up=0.3,
    )  # fmt: skip
    past = scaled.unfold(0, STEPS, 1)[series.origins - STEPS + 1]  # [origins, 128]
    said: Tensor = training.evaluate(model, lambda: model.ahead(past, AHEAD))
    return said.cpu() * deviation + mean


def plot(
    series: Series, forecasts: dict[str, Tensor], errors: dict[str, Tensor], cell: str, path: Path
) -> None:
    """What each says of a piece of the held-out part, and how far it is off, by steps ahead."""
    styles: dict[str, dict[str, Any]] = dict(zip(forecasts, (
        {"color": pictures.PURPLE, "linestyle": (0, (1, 1))},
        {"color": pictures.ORANGE, "linestyle": (0, (5, 1))},
        {"color": pictures.SKY, "linestyle": (0, (5, 1, 1, 1))},
        pictures.CELL_LINES[cell],
        {"color": pictures.BLACK, "linestyle": ":"},
    ), strict=True))  # fmt: skip
    *_, best = forecasts
    title = f"Looking ahead with the last value, with some, and with a state ({cell.upper()})"
    figure, (piece, ahead) = pictures.figure(title, 2, 1, size=(9, 6.5))
    chosen = 400
    origin = int(series.origins[chosen])
    before, after = torch.arange(-40, 1), torch.arange(1, AHEAD + 1)
    around = torch.arange(-40, AHEAD + 1)
    piece.plot(around, series.clean[origin + around], color="#999999", lw=3, label="the swings")
    piece.plot(before, series.seen[origin + before], ".", color=pictures.BLACK, label="seen")
    for name, said in forecasts.items():
        if name != best:
            piece.plot(after, said[chosen], **styles[name], label=name)
    piece.axvline(0.5, color=pictures.GRAY, lw=1)
    reach = series.clean[origin + around].abs().max().item()
    piece.set(title="Forecasts from one step of the held-out part", xlabel="step",
              ylabel="position", ylim=(-1.2 * reach, 1.9 * reach))  # fmt: skip
    piece.legend(loc="upper left", ncols=3, columnspacing=1)

    for name, error in errors.items():
        ahead.plot(range(1, AHEAD + 1), error, marker=".", **styles[name], label=name)
    spread = series.clean[-HELD_OUT:].std().item()
    ahead.axhline(spread, color=pictures.GRAY, lw=1, label="the mean of the series")
    ahead.set(title=f"Errors from all {len(series.origins)} held-out steps", xlabel="steps ahead",
              ylabel="RMSE to the swings", ylim=(0, None))  # fmt: skip
    ahead.legend(loc="lower right", ncols=2)
    pictures.save(figure, path)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    # A network this small is no faster on two threads, and slower where others want them, too.
    parser = training.arguments(__doc__, "autoregressive", epochs=EPOCHS, threads=1)
    parser.add_argument("--window", type=training.positive, default=WINDOW, metavar="STEPS",
                        help="how many values the window has; default: %(default)s")  # fmt: skip
    options = training.parse(parser, words)
    if not 2 <= options.window <= WARM_UP:
        parser.error(f"--window: expected 2 to {WARM_UP} values, got {options.window}")
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    series = swing(options.seed)
    print(f"two swings of {PERIODS[0]:g} and {PERIODS[1]:g} steps, seen through noise of {NOISE:g}")
    print(f"{LENGTH - HELD_OUT} steps to learn from, the {HELD_OUT} after them are held out")
    print(training.setting(options))

    window, state = f"window of {options.window}", f"latent state, {options.cell.upper()}"
    models = {
        "Markov": Window(1),
        window: Window(options.window),
        state: Latent(training.recurrent(options)),
    }
    learned = {
        name: learn(model.to(options.device), name, series, options)
        for name, model in models.items()
    }
    forecasts = {
        "Markov": learned["Markov"],
        window: learned[window],
        f"{window}, direct": direct_forecasts(series, options.window),
        state: learned[state],
        "the best possible": best_forecasts(series),
    }
    errors = {
        name: (said - series.to_come).square().mean(0).sqrt() for name, said in forecasts.items()
    }

    print(
        f"\n{'RMSE to the swings, steps ahead:':32}" + "".join(f"{k:8}" for k in (1, JUDGED, AHEAD))
    )
    for name, error in errors.items():
        print(f"{name:32}" + "".join(f"{error[k - 1]:8.3f}" for k in (1, JUDGED, AHEAD)))
    plot(series, forecasts, errors, options.cell, options.plot)
    markov, fed, direct, latent, best = (error[JUDGED - 1].item() for error in errors.values())
    usual = options.window == WINDOW  # a longer window is another comparison
    return training.conclude(
        options,
        [
            Result(f"{JUDGED} steps ahead: window / Markov", fed / markov,
                   at_most=WORST_TO_MARKOV if usual else None),
            Result(f"{JUDGED} steps ahead: latent / window", latent / fed),
            Result(f"{JUDGED} steps ahead: latent / better window", latent / min(fed, direct),
                   at_most=WORST_TO_WINDOW if usual else None),
            Result(f"{JUDGED} steps ahead: latent / the best possible", latent / best,
                   at_most=WORST_TO_BEST),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    training.run(main)
