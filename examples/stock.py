"""Seven days of a stock go in, the close of the eighth comes out. Is that better than no forecast?

Many to one: each day is five numbers, and only the last step's output is read.

     day 1      day 2            day 7
    o h l c v  o h l c v        o h l c v
        |          |                |
     [ LSTM ] > [ LSTM ] > ... > [ LSTM ]     10 hidden units
                                    |
                                 linear
                                    |
                              close of day 8

The first four fifths of the days are learned from, the others are held out; nothing about them, not
even their range, is known in training. Each window is seen relative to the close of its own first
day, so that a stock that has doubled looks no different. The naive forecast, which every other one
has to beat, says that tomorrow's close is today's. It explains more than 99 % of the variance of
IBM's price, and so does whatever comes near it: a forecast that looks perfect in a plot proves
nothing. The run therefore compares the errors day by day, and says which is better, if that can be
told at all.

The prices are those of the package bokeh-sampledata (IBM, AAPL, MSFT and GOOG until March 2013), or
of a file of your own with the columns date, open, high, low, close and volume.

    python examples/stock.py
    python examples/stock.py --ticker MSFT --cell gru
    python examples/stock.py --csv prices.csv
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib import dates as calendar
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import pictures
import training
from training import BadInput, Result

DAYS = 7
COLUMNS = ("open", "high", "low", "close", "volume")
CLOSE, VOLUME = COLUMNS.index("close"), COLUMNS.index("volume")
HIDDEN_SIZE = 10
EPOCHS, BATCH_SIZE, LEARNING_RATE = 30, 32, 5e-3
LEARNED_FROM = 0.8  # the first part of the days
FEWEST_DAYS = 100
MOST_EQUAL = 0.5  # of the closes may be as the day before
# With that many days a network finds at least the naive forecast, which is at a ratio of 1. It
# begins far from it: the picture of a window doesn't say that its last day is the one that counts.
ENOUGH_DAYS, WORST_RATIO = 2000, 1.1
CLEARLY = 2.0  # so many standard errors are not chance


@dataclass
class Prices:
    """A stock, oldest day first: `values` [N, 5] are its COLUMNS."""

    name: str
    days: list[date]
    values: Tensor


@dataclass
class Windows:
    """Each eight days in a row, by their logarithms relative to the first day's close.

    `inputs` [M, 7, 5] are the first seven days, `last` [M] is the close of the seventh and
    `targets` [M] that of the eighth. The first `kept` windows are learned from.
    """

    inputs: Tensor
    last: Tensor
    targets: Tensor
    closes: Tensor  # [M], of the eighth day, in dollars
    days: list[date]  # the eighth
    kept: int

    @property
    def held_out(self) -> slice:
        return slice(self.kept, None)


def read_lines(path: Path, option: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """A CSV file, compressed or not: its header in small letters, and numbered rows by column."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            header = [name.strip().lower().replace("_", " ") for name in next(reader, [])]
            rows = [(reader.line_num, dict(zip(header, line, strict=False)))
                    for line in reader if line]  # fmt: skip
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"{option}: expected a CSV file, got {path}: {why}") from error
    return header, rows


def read_prices(path: Path, option: str, ticker: str) -> Prices:
    """The prices of a file; those of one stock, where it has several and a column of tickers."""
    header, rows = read_lines(path, option)
    missing = [name for name in ("date", *COLUMNS) if name not in header]
    if missing:
        raise BadInput(
            f"{option}: expected the columns date, {', '.join(COLUMNS)} in {path}, "
            f"got {', '.join(header) or 'none'}; missing: {', '.join(missing)}"
        )
    if "ticker" in header:
        known = sorted({row.get("ticker", "") for _, row in rows})
        rows = [(number, row) for number, row in rows if row.get("ticker") == ticker]
        if known and not rows:
            raise BadInput(f"--ticker: expected one of {', '.join(known)}, got {ticker}")
    names = [*COLUMNS, *(name for name in header if name == "adj close")]
    parsed = sorted(
        parse_row(row, names, f"{option}: {path}, line {number}") for number, row in rows
    )
    if len(parsed) < FEWEST_DAYS:
        raise BadInput(
            f"{option}: expected {FEWEST_DAYS} days or more in {path}, got {len(parsed)}"
        )
    days = [day for day, _ in parsed]
    for day, following in pairwise(days):
        if day == following:
            raise BadInput(f"{option}: expected each day once in {path}, got {day} again")
    values = torch.tensor([numbers for _, numbers in parsed], dtype=torch.float64)
    if (values[:, CLOSE].diff() == 0).double().mean() > MOST_EQUAL:
        raise BadInput(f"{option}: expected closes that change from day to day in {path}")
    return Prices(ticker if "ticker" in header else path.stem, days, adjust(values))


def adjust(values: Tensor) -> Tensor:
    """Takes splits and dividends out of prices, so that a split isn't a crash; [N, 6] -> [N, 5].

    The sixth column, if there is one, is what Yahoo calls the adjusted close. The last day's prices
    stay as they are.
    """
    if values.size(1) == len(COLUMNS):
        return values
    factor = values[:, -1:] / values[:, CLOSE, None]
    factor = factor / factor[-1]
    return torch.cat([values[:, :VOLUME] * factor, values[:, VOLUME, None] / factor], 1)


def parse_row(row: dict[str, str], names: Iterable[str], where: str) -> tuple[date, list[float]]:
    """The day, and its numbers in the order of `names`."""
    try:
        day = date.fromisoformat(row.get("date", "")[:10])
    except ValueError:
        raise BadInput(
            f"{where}: expected a date as 2013-03-01, got {row.get('date', '')!r}"
        ) from None
    numbers = []
    for name in names:
        try:
            number = float(row.get(name, ""))
        except ValueError:
            number = math.nan
        # Prices are divided by each other; volume is 0 on a day without trade.
        if not (math.isfinite(number) and (number > 0 or (name == "volume" and number == 0))):
            raise BadInput(f"{where}: expected {name} to be above 0, got {row.get(name, '')!r}")
        numbers.append(number)
    return day, numbers


def cut(prices: Prices) -> Windows:
    """All windows of a stock; those that are learned from have no held-out day in them."""
    logarithms = prices.values.log()
    logarithms[:, VOLUME] = prices.values[:, VOLUME].log1p()
    windows = logarithms.unfold(0, DAYS + 1, 1).transpose(1, 2)  # [M, 8, 5]
    base = windows[:, :1, [CLOSE, CLOSE, CLOSE, CLOSE, VOLUME]]  # [M, 1, 5]
    windows = windows - base
    return Windows(
        inputs=windows[:, :DAYS],
        last=windows[:, DAYS - 1, CLOSE],
        targets=windows[:, DAYS, CLOSE],
        closes=prices.values[DAYS:, CLOSE],
        days=prices.days[DAYS:],
        kept=int(LEARNED_FROM * len(prices.days)) - DAYS,
    )


class Forecaster(nn.Module):
    """Seven days -> recurrent layer -> its last output -> the close of the eighth.

    It works on numbers of the size of 1; `learn_scale` takes the units from what is learned from.
    """

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.memory = layer(len(COLUMNS), HIDDEN_SIZE, batch_first=True)
        self.head = nn.Linear(HIDDEN_SIZE, 1)
        self.register_buffer("input_scale", torch.ones(len(COLUMNS)))
        self.register_buffer("target_scale", torch.ones(()))

    def learn_scale(self, inputs: Tensor, targets: Tensor) -> None:
        tiny = 1e-6  # for a column that never changes
        self.input_scale.copy_(inputs.std((0, 1)).clamp_min(tiny))
        self.target_scale.copy_(targets.std().clamp_min(tiny))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, 7, 5] -> [B], in units of `target_scale`."""
        output, _ = self.memory(inputs / self.input_scale)  # [B, 7, H]
        return self.head(output[:, -1]).squeeze(-1)


def root_mean_square(errors: Tensor) -> float:
    return errors.square().mean().sqrt().item()


def gain(errors: Tensor, naive: Tensor) -> float:
    """How much smaller the squared errors are than those of the naive forecast, in standard errors.

    Within -2 and 2 the difference may well be chance.
    """
    difference = naive.square() - errors.square()
    return (difference.mean() / (difference.std() / math.sqrt(len(difference)))).item()


def verdict(gained: float) -> str:
    if gained > CLEARLY:
        return "the network beats the naive forecast"
    if gained < -CLEARLY:
        return "the network is worse than the naive forecast"
    return "the network does not beat the naive forecast"


def plot(title: str, windows: Windows, forecasts: Tensor, cell: str, path: Path) -> None:
    """Four views of the held-out days; `forecasts` [M] are relative as the targets are."""
    part, name = windows.held_out, cell.upper()
    days, closes = windows.days[part], windows.closes[part]
    targets, last, forecasts = windows.targets[part], windows.last[part], forecasts[part]
    errors, naive = 100 * (forecasts - targets), 100 * (last - targets)  # in percent, nearly
    figure, ((whole, end), (rolling, changes)) = pictures.figure(title, 2, 2, size=(8.4, 5.8))

    line = pictures.CELL_LINES[cell]
    dollars, before = (closes * (each - targets).exp() for each in (forecasts, last))
    last_days = slice(-min(30, len(days)), None)
    end.plot(days[last_days], before[last_days], color=pictures.ORANGE, lw=3, label="naive")
    for panel, shown in ((whole, slice(None)), (end, last_days)):
        panel.plot(days[shown], closes[shown], color="#999999", lw=3, label="truth")
        panel.plot(days[shown], dollars[shown], **{**line, "lw": 1.2}, label=name)
        panel.set_ylabel("close [$]")
        panel.legend()
    whole.set_title("All held-out days")
    is_late = root_mean_square(forecasts - last) < root_mean_square(errors / 100)
    end.set_title(f"The last {len(days[last_days])} days" + ": it follows a day late" * is_late)

    span = min(60, len(days) // 2)
    for values, style in ((naive, {"color": pictures.ORANGE, "label": "naive"}),
                          (errors, {**line, "label": name})):  # fmt: skip
        smoothed = values.square().unfold(0, span, 1).mean(1).sqrt()
        rolling.plot(days[span - 1 :], smoothed, **style)
    rolling.set_title(
        f"Errors: {name} {root_mean_square(errors):.2f} %, naive {root_mean_square(naive):.2f} %"
    )
    rolling.set(ylabel=f"RMSE of the last {span} days [%]", ylim=(0, None))
    rolling.legend()

    said, came = errors - naive, -naive
    correlation = torch.corrcoef(torch.stack([said, came]))[0, 1]
    reach = 1.05 * came.abs().max().item()
    changes.plot([-reach, reach], [-reach, reach], color=pictures.GRAY, lw=1, label="perfect")
    changes.axhline(0, color=pictures.ORANGE, label="naive: no change")
    changes.scatter(came, said, s=8, alpha=0.5, color=line["color"], label=f"{name}, a day each")
    changes.set_title(f"From day to day: correlation {correlation:.2f}")
    changes.set(xlabel="change that came [%]", ylabel="change that was forecast [%]",
                xlim=(-reach, reach), ylim=(-reach, reach))  # fmt: skip
    changes.legend(loc="upper left")
    for panel in (whole, end, rolling):
        locator = calendar.AutoDateLocator(maxticks=7)
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(calendar.ConciseDateFormatter(locator, show_offset=False))
    pictures.save(figure, path)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = training.arguments(__doc__, "stock", epochs=EPOCHS)
    parser.add_argument(
        "--ticker", default="IBM", help="the stock, where a file has several; default: %(default)s"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="prices of your own")
    return training.parse(parser, words)


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    if options.csv:
        prices = read_prices(options.csv, "--csv", options.ticker)
    else:
        file = training.file_of("bokeh_sampledata", "_data/stocks.csv.gz", "--csv: expected a file")
        prices = read_prices(file, "--ticker", options.ticker)
    windows = cut(prices)
    learned, days = slice(None, windows.kept), windows.days[windows.held_out]
    print(f"{prices.name}: {len(prices.days)} days, {windows.kept} windows to learn from")
    print(f"held out: {len(days)} days, {days[0]} to {days[-1]}")
    print(training.setting(options))

    model = Forecaster(training.recurrent(options)).to(options.device)
    inputs, targets = (
        each.float().to(options.device) for each in (windows.inputs, windows.targets)
    )
    model.learn_scale(inputs[learned], targets[learned])

    def forecast_all() -> Tensor:
        return (model(inputs) * model.target_scale).double().cpu()

    before = training.evaluate(model, forecast_all)
    training.train(
        model,
        training.shuffled((inputs[learned], targets[learned]), BATCH_SIZE, options.seed),
        lambda batch: mse_loss(model(batch[0]), batch[1] / model.target_scale),
        options.epochs,
        learning_rate=LEARNING_RATE,
        warm_up=0.3,
    )
    forecasts = training.evaluate(model, forecast_all)

    part = windows.held_out
    untrained, errors, naive = (
        (each - windows.targets)[part] for each in (before, forecasts, windows.last)
    )
    spread = windows.closes[part].log().std().item()
    print()
    for name, each in (("network", errors), ("naive", naive)):
        error = root_mean_square(each)
        explained = 1 - (error / spread) ** 2
        print(f"{name:8} RMSE {100 * error:.3f} %, R² of the log price {explained:.4f}")
    gained = gain(errors, naive)
    side = "smaller" if gained > 0 else "larger"
    print(f"{prices.name}: {verdict(gained)}.")
    print(f"Its squared errors are {side} by {abs(gained):.1f} standard errors of the difference.")
    title = f"{prices.name}: {verdict(gained)}"
    plot(title, windows, forecasts, options.cell, options.plot)
    enough = len(prices.days) >= ENOUGH_DAYS
    ratio = root_mean_square(errors) / root_mean_square(naive)
    return training.conclude(
        options,
        [
            Result("RMSE / naive RMSE, before training",
                   root_mean_square(untrained) / root_mean_square(naive)),
            Result("RMSE / naive RMSE", ratio, at_most=WORST_RATIO if enough else None),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    training.run(main)
