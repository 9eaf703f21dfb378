"""How every picture of the benchmarks looks, and labels that keep clear of each other.

The colours are Okabe and Ito's, which the colour-blind tell apart. The first five of `LOOKS` differ
in how dark they are, too, so a picture can be printed in grey; and each colour has a marker of its
own, so nothing is told by colour only.

Figures are made without pyplot: there is no window, and no state that outlives a figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

DPI = 130
LEGEND_COLUMNS = 5  # at most
MARKER = 6.0  # points across
SMALL = 8.0  # size of text beside points


class Look(NamedTuple):
    """What tells a series from the others."""

    colour: str
    marker: str
    line: str

    @property
    def marked(self) -> dict[str, Any]:
        """Arguments of `plot`: an outline, since the light colours need one on white paper."""
        return {
            "marker": self.marker, "ms": MARKER, "mfc": self.colour, "mec": "black", "mew": 0.6,
        }  # fmt: skip

    @property
    def hollow(self) -> dict[str, Any]:
        """The same, for a point of the series that stands apart."""
        return {
            "marker": self.marker, "ms": 1.5 * MARKER, "mfc": "white", "mec": self.colour, "mew": 2,
        }  # fmt: skip


LOOKS = (
    Look("#000000", "o", "--"),  # black
    Look("#0072B2", "s", "-"),  # blue
    Look("#E69F00", "D", "-."),  # orange
    Look("#009E73", "^", ":"),  # bluish green
    Look("#F0E442", "v", "--"),  # yellow
    Look("#D55E00", "X", "-"),  # vermilion
    Look("#56B4E9", "P", "-."),  # sky blue
    Look("#CC79A7", "h", ":"),  # reddish purple
)


def looks_of(series: Sequence[str]) -> dict[str, Look]:
    """A look for each name: in a picture that has torch.nn, it is the first."""
    if len(series) > len(LOOKS):
        raise ValueError(f"series: expected at most {len(LOOKS)} names, got {len(series)}")
    return dict(zip(series, LOOKS, strict=False))


def blank(title: str, *, width: float, height: float) -> Figure:
    """A figure of so many inches that lays out its panels itself."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize="large", fontweight="bold")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def tidy(panel: Axes) -> None:
    """Takes away from a panel what says nothing."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)


def legend(figure: Figure, entries: Iterable[Line2D]) -> None:
    """One legend for all panels, below them, where it hides no point."""
    handles = list(entries)
    lines = math.ceil(len(handles) / LEGEND_COLUMNS)
    columns = math.ceil(len(handles) / lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def save(figure: Figure, path: Path) -> None:
    """Writes the picture, without the date or version that would change it each time."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point, both of a panel's data."""

    text: str
    x: float
    y: float


def place(figure: Figure, labels: dict[Axes, list[Label]]) -> None:
    """Writes labels beside their points, on no other label, and on no marker or line if it can be.

    The layout is settled first and then left alone: labels are placed by what they cover, and that
    changes if a panel moves.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel, wanted in labels.items():
        taken = [*_markers(panel)]
        for label in wanted:
            taken.append(_place(panel, label, taken))


def _place(panel: Axes, label: Label, taken: Sequence[Bbox]) -> Bbox:
    """Writes one label where it covers least, and returns the box that it takes, in pixels."""
    note = panel.annotate(
        label.text, (label.x, label.y), (0, 0), textcoords="offset points", fontsize=SMALL,
        ha="center", va="center",
    )  # fmt: skip
    pixels = panel.figure.dpi / 72
    middle = note.get_window_extent().padded(pixels)
    lines = [line.get_path().transformed(panel.transData) for line in panel.lines]

    def covered(at: tuple[float, float]) -> float:
        box = middle.translated(at[0] * pixels, at[1] * pixels)
        hidden = sum(_common(box, other) for other in taken)
        outside = box.width * box.height - _common(box, panel.bbox)
        crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
        return 10 * (hidden + outside) + crossed  # a line may sooner be crossed than a label hidden

    offsets = [*_offsets(middle.width / pixels, middle.height / pixels)]
    free = (offset for offset in offsets if covered(offset) == 0)
    best = next(free, None) or min(offsets, key=covered)
    note.set_position(best)
    return middle.translated(best[0] * pixels, best[1] * pixels)


def _offsets(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Where the middle of a label may be, in points from its marker: near places first."""
    for gap in (1.0, 4.0, 8.0):
        across, up = (MARKER + width) / 2 + gap, (MARKER + height) / 2 + gap
        yield from ((x * across, y * up) for x, y in _AROUND)


# Where a label may be around a marker: across, and up. A 1 in either keeps it off the marker.
_AROUND = (
    (0, 1), (1, 0), (0, -1), (-1, 0), (1, 0.7), (-1, 0.7), (1, -0.7), (-1, -0.7),
    (0.6, 1), (-0.6, 1), (0.6, -1), (-0.6, -1),
)  # fmt: skip


def _markers(panel: Axes) -> Iterator[Bbox]:
    for line in panel.lines:
        radius = line.get_markersize() / 2 * panel.figure.dpi / 72
        for x, y in panel.transData.transform(line.get_xydata()):
            yield Bbox([[x - radius, y - radius], [x + radius, y + radius]])


def _common(one: Bbox, other: Bbox) -> float:
    """The area that both boxes cover, in square pixels."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width * height if width > 0 and height > 0 else 0.0
