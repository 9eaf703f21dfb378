"""ratios.png: how many times faster fusedrnn is than each peer, row by row.

A panel has a line for each row of workloads.py, and on it a point for each series: the median of
the rounds' ratios, with its quartiles. What the panels and series are depends on a run's peers:

                      below each other      side by side    series
    torch.nn only     dtypes                passes          cells
    several peers     passes and dtypes     cells           peers

Every case with the most threads is shown, and a panel is made only where there are cases for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from benchmarks import figures
from benchmarks.figures import Look
from benchmarks.peers import OURS
from benchmarks.tables import (
    NAMES,
    OF_OURS,
    PASS_NAMES,
    TITLES,
    Record,
    Results,
    measured,
    threads_in_words,
)
from benchmarks.targets import lead
from benchmarks.workloads import CELLS, DTYPES, PASSES

WIDTH = 5.2  # inches of a panel
APART, BETWEEN = 0.075, 0.15  # inches from series to series, and from row to row beside that
AROUND = 0.8  # inches of a panel's title and axis
QUARTILES: dict[str, Any] = {"color": "0.35", "lw": 1.0}


@dataclass(frozen=True)
class Point:
    """A ratio, and where it is drawn."""

    below: str  # names the panels that are side by side
    beside: str  # names one of them
    series: str
    row: str
    ratio: dict[str, float]


@dataclass(frozen=True)
class Line:
    """Panels that are side by side have the same rows and series, in the same places."""

    rows: list[str]
    series: list[str]
    columns: list[str]

    @property
    def row_height(self) -> float:
        """Inches."""
        return APART * len(self.series) + BETWEEN

    @property
    def height(self) -> float:
        """Inches, without what is around a panel."""
        return len(self.rows) * self.row_height

    def at(self, row: str, series: str) -> float:
        """Where a point is, in rows from the first."""
        aside = self.series.index(series) - (len(self.series) - 1) / 2
        return self.rows.index(row) + aside * APART / self.row_height


def figure(results: Results) -> Figure | None:
    """The picture of a run; None if it has no ratios."""
    points = points_of(results)
    if not points:
        return None
    looks = figures.looks_of(_distinct(point.series for point in points))
    columns = _distinct(point.beside for point in points)
    lines = {name: _line(points, name) for name in _distinct(point.below for point in points)}
    heights = [line.height for line in lines.values()]
    width, height = 1 + WIDTH * len(columns), 0.9 + AROUND * len(lines) + sum(heights)
    drawn = figures.blank(_title(results), width=width, height=height)
    grid = drawn.add_gridspec(len(lines), len(columns), height_ratios=heights)
    for i, (below, line) in enumerate(lines.items()):
        for beside in line.columns:
            scale = drawn.axes[0] if drawn.axes else None
            panel = drawn.add_subplot(grid[i, columns.index(beside)], sharex=scale)
            _draw(panel, [p for p in points if (p.below, p.beside) == (below, beside)], line, looks)
            panel.set_title(f"{beside}, {below}")
            if beside != line.columns[0]:  # the rows are those of the panel on the left
                panel.tick_params(axis="y", labelleft=False)
                panel.set_ylabel("")
    drawn.align_ylabels()
    marks = [Line2D([], [], ls="none", label=name, **look.marked) for name, look in looks.items()]
    figures.legend(drawn, [*marks, Line2D([], [], label="quartiles", **QUARTILES)])
    return drawn


def points_of(results: Results) -> list[Point]:
    """Every ratio to a peer, in the order in which they are drawn."""
    points, several = [], len(_peers(results)) > 1
    for case in _cases(results):
        cell, mode = NAMES[case["cell"]], PASS_NAMES[case["mode"]]
        ours = case["dtype"] if lead(case) == OURS.name else lead(case)
        for peer in _peers_of(case):
            place = (f"{mode}, {ours}", cell, peer) if several else (ours, mode, cell)
            points.append(Point(*place, case["row"], case["ratios"][peer]))
    return points


def _cases(results: Results) -> list[Record]:
    """What was measured with the most threads."""
    found = measured(results, threads=_threads(results))
    return sorted(found, key=lambda case: (
        DTYPES.index(case["dtype"]), PASSES.index(case["mode"]),
        list(TITLES).index(case["row"]), CELLS.index(case["cell"]),
    ))  # fmt: skip


def _threads(results: Results) -> int:
    return max((case["threads"] for case in results["cases"]), default=0)


def _peers(results: Results) -> list[str]:
    return _distinct(peer for case in _cases(results) for peer in _peers_of(case))


def _peers_of(case: Record) -> list[str]:
    return [name for name in case["ratios"] if name not in OF_OURS]


def _title(results: Results) -> str:
    peers = _peers(results)
    against = "its peers" if len(peers) > 1 else peers[0]
    where = f"{results['machine']['cpu']}, {threads_in_words(_threads(results))}"
    return f"How many times faster fusedrnn is than {against}: {where}"


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _line(points: list[Point], name: str) -> Line:
    found = [point for point in points if point.below == name]
    return Line(
        rows=_distinct(point.row for point in found),
        series=_distinct(point.series for point in found),
        columns=_distinct(point.beside for point in found),
    )


def _draw(panel: Axes, points: list[Point], line: Line, looks: dict[str, Look]) -> None:
    """A panel's points, and its axes."""
    for series in _distinct(point.series for point in points):
        chosen = [point for point in points if point.series == series]
        at = [line.at(point.row, series) for point in chosen]
        medians, lows, highs = ([p.ratio[q] for p in chosen] for q in ("median", "low", "high"))
        panel.hlines(at, lows, highs, zorder=2, **QUARTILES)
        panel.plot(medians, at, ls="none", label=series, **looks[series].marked)
    for i in range(0, len(line.rows), 2):  # every other row is grey, to follow it across panels
        panel.axhspan(i - 0.5, i + 0.5, color="0.95", lw=0, zorder=0)
    panel.axvline(1, color="black", lw=1, zorder=1)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
    panel.grid(axis="x", alpha=0.4)
    panel.set_ylim(len(line.rows) - 0.5, -0.5)
    panel.set_yticks(range(len(line.rows)), [TITLES[row] for row in line.rows])
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("their time / ours (right of 1x: fusedrnn is faster)")
    panel.set_ylabel("workload")
    figures.tidy(panel)
