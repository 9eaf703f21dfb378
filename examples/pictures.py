"""How the examples' pictures look: colours, figures, and saving them.

The colours are those of Okabe and Ito ("Color universal design", 2008), which the colour-blind tell
apart. Each cell has a colour and a line style of its own in all pictures, so that they can be told
apart in black and white, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend has to be chosen first)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.collections import PathCollection, PolyCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.font_manager import FontProperties  # noqa: E402
from matplotlib.path import Path as Outline  # noqa: E402
from matplotlib.textpath import TextPath  # noqa: E402
from matplotlib.transforms import Affine2D  # noqa: E402

BLACK, GRAY = "#000000", "#888888"
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip

CELL_LINES: dict[str, dict[str, Any]] = {
    "rnn": {"color": VERMILION, "linestyle": "--"},
    "lstm": {"color": BLUE, "linestyle": "-"},
    "gru": {"color": GREEN, "linestyle": "-."},
}
"""What `plot` takes, for the curve of a cell."""

pyplot.rcParams |= {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def figure(
    title: str,
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float] = (9, 4.5),
    **more: Any,
) -> tuple[Figure, Any]:
    """A figure in the examples' style and its axes, as `pyplot.subplots` gives them."""
    made, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", **more)
    made.suptitle(title, fontweight="bold")
    return made, axes


def save(made: Figure, path: Path) -> None:
    """Writes the figure as a .png, says where, and forgets it."""
    made.savefig(path, dpi=110)
    pyplot.close(made)
    with Image.open(path) as image:  # with a palette it is a third as large
        few = image.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE)
    few.save(path, optimize=True)
    print(f"plot: {path}")


def write_page(
    axes: Axes,
    text: str,
    *,
    columns: int,
    rows: int,
    ink: Sequence[Any] | None = None,
    paper: Sequence[Any] | None = None,
) -> None:
    """Writes text as a typewriter does: each character in a cell of its own, in its own colours.

    Args:
        axes: become the page; they have nothing else.
        text: newlines begin new lines, and lines that are too long are broken; what doesn't fit
            on the page is left out.
        columns: the characters of a line.
        rows: the lines of the page.
        ink: a colour for each character; black if not given.
        paper: a colour for the cell of each character, None for no colour.
    """
    wide, high = 0.602, 1.25  # a cell of this font, as parts of its size
    row = column = 0
    glyphs: list[tuple[Outline, Any]] = []
    cells: list[tuple[list[tuple[float, float]], Any]] = []
    for i, character in enumerate(text):
        if column == columns and character != "\n":
            row, column = row + 1, 0
        if row == rows:
            break
        left, bottom = column * wide, -(row + 1) * high
        if paper is not None and paper[i] is not None:
            right, top = left + wide, bottom + high
            corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
            cells.append((corners, paper[i]))
        if character.isprintable() and not character.isspace():
            moved = Affine2D().translate(left, bottom + 0.32)
            glyphs.append((_glyph(character).transformed(moved), BLACK if ink is None else ink[i]))
        row, column = (row + 1, 0) if character == "\n" else (row, column + 1)
    axes.add_collection(
        PolyCollection([corners for corners, _ in cells], facecolors=[color for _, color in cells])
    )
    letters = PathCollection(
        [path for path, _ in glyphs], facecolors=[color for _, color in glyphs], linewidths=0
    )
    letters.set_snap(False)  # it would make a dash as thin as nothing
    axes.add_collection(letters)
    axes.set(xlim=(0, columns * wide), ylim=(-rows * high, 0), xticks=[], yticks=[])
    axes.set_aspect("equal", anchor="NW")
    axes.grid(False)
    axes.spines[:].set_visible(False)


@cache
def _glyph(character: str) -> Outline:
    """The outline of a character in the typewriter's font, of size 1."""
    return TextPath((0, 0), character, size=1, prop=FontProperties(family="DejaVu Sans Mono"))
