"""Tables on the terminal: by rich where it is installed, in plain columns where it is not.

rich comes with the extra "cli" and adds colours, frames and a bar of progress; what is said is the
same without it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, TypeVar

Item = TypeVar("Item")

PLAIN_WIDTH = 120  # of what goes to a file or a pipe
_STYLES = {"ok": "green", "FAIL": "bold red"}


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; a column whose name starts with ">" is aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def print_all(parts: Sequence[Table | str]) -> None:
    """Prints tables, and paragraphs between them, on stdout."""
    rich = _rich()
    for part in parts:
        if rich is not None:
            print(_by_rich(part), end="")  # rich itself would end the process at a closed pipe
        elif isinstance(part, str):
            print(part, end="\n\n")
        else:
            print("\n".join(_plain(part)), end="\n\n")


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a bar on stderr that tells how many are done, if a terminal is there."""
    if _rich() is None or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, console=Console(stderr=True), transient=True)


def _rich() -> ModuleType | None:
    try:
        import rich
    except ImportError:
        return None
    return rich


def _by_rich(part: Table | str) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    if isinstance(part, str):
        with console.capture() as text:
            console.print(Text(part), end="\n\n")
        return text.get()
    table = RichTable(
        title=Text(part.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
        show_header=any(part.columns), pad_edge=False,
    )  # fmt: skip
    for column in part.columns:
        table.add_column(column.removeprefix(">"), justify=_alignment(column))
    for row in part.rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    with console.capture() as text:
        console.print(table)
    return text.get()


def _alignment(column: str) -> Literal["left", "right"]:
    return "right" if column.startswith(">") else "left"


def _plain(table: Table) -> list[str]:
    lines = [tuple(column.removeprefix(">") for column in table.columns), *table.rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.rjust(width) if _alignment(column) == "right" else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    return [table.title, *aligned[0 if any(table.columns) else 1 :]]
