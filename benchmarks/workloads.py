"""The workloads that every speed figure is measured on, each written once.

A `Row` is one problem size, named by a letter; a variant of a row (`B-h150`, `F-1x1`) keeps the
letter. Rows of a GPU are named g1 to g21. Where people read, a row is called by its title, which
also says what it stands for: `sentiment D`. A `Case` is one thing to time: row x cell x pass x
threads x dtype, where "tf32" means float32 tensors whose products may round to tf32, and "int8"
means float32 tensors with weights quantised to int8, inference only. The number of floating point
operations of a case is counted here as well, since it follows from the sizes:

    forward, per layer and direction     2 N G H (I + R)  [ + 2 N H P with a projection ]
    training step                        3 x forward (outputs; gradients of inputs; of weights)

with N the rows that are alive (T B, or the sum of the lengths when packed), G the gates of the
cell, I the layer's own input size, and R the width of `h` (P when projected, else H). Activations
and additions are left out: they are a few per cent of the work at H = 64 and less above.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fusedrnn.cells import Cell, cell_named
from fusedrnn.testing.oracles import TORCH_MODULES

FACTS: dict[str, Cell] = {
    module.lower(): cell_named(name) for module, name in TORCH_MODULES.items()
}
"""The cells that are timed, by the lower-case name of torch.nn's module; "rnn" is rnn_tanh."""

CELLS = tuple(FACTS)
PROJECTED = tuple(name for name, cell in FACTS.items() if cell.projects)
PASSES = ("forward", "train")
REPLAY = "replay"  # forward, captured in a CUDA graph and replayed
DTYPES = ("float32", "bfloat16", "int8")
BOTH = ("float32", "bfloat16")
KEPT = ("float32", "int8")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One problem: `T` steps of `B` sequences with `I` features into a state of `H` units."""

    name: str
    short: str = ""  # what it stands for, in a word or two
    source: str = ""  # where its sizes are from, or how it differs from its neighbour
    T: int
    I: int  # noqa: E741 - the name that the documents use
    H: int
    B: int
    layers: int = 1
    directions: int = 1
    packed: bool = False
    proj_size: int = 0
    given_state: bool = False
    resets: float = 0.0
    cells: tuple[str, ...] = CELLS
    dtypes: tuple[str, ...] = ("float32",)
    modes: tuple[str, ...] = PASSES
    device: str = "cpu"

    @property
    def title(self) -> str:
        """What it stands for, and its name: `sentiment D`."""
        return f"{self.short} {self.name}".strip()

    @property
    def letter(self) -> str:
        """The row that this one is a variant of (itself, when it is none)."""
        return self.name.split("-")[0]

    @property
    def streamed(self) -> bool:
        """Whether it is also run by `fusedrnn.Streaming`, whose panels are made once."""
        return "int8" in self.dtypes

    @property
    def lengths(self) -> tuple[int, ...]:
        """The length of each sequence: T, or when packed fixed draws, uniform in 1..T."""
        if not self.packed:
            return (self.T,) * self.B
        draw = random.Random(f"lengths of row {self.name}")
        return tuple(draw.randint(1, self.T) for _ in range(self.B))

    @property
    def sizes(self) -> str:
        """The sizes in words: `T256 I100 H128 B32 x1 dir2 packed`."""
        text = f"T{self.T} I{self.I} H{self.H} B{self.B}"
        if self.layers > 1:
            text += f" layers{self.layers}"
        if self.directions > 1:
            text += f" dirs{self.directions}"
        if self.packed:
            text += " packed"
        if self.proj_size:
            text += f" proj{self.proj_size}"
        if self.resets:
            text += f" resets{self.resets:g}"
        return text


ROWS: tuple[Row, ...] = (
    Row(name="A", short="stock", source="seven days of prices", T=7, I=5, H=10, B=32, dtypes=KEPT),
    Row(name="B", short="digits", source="rows of an image", T=28, I=28, H=128, B=150,
        dtypes=BOTH),
    Row(name="B-h150", short="digits", source="H = 150", T=28, I=28, H=150, B=150),
    Row(name="B-l3", short="digits", source="three layers", T=28, I=28, H=128, B=150, layers=3),
    Row(name="C", short="series", source="synthetic", T=20, I=1, H=100, B=50),
    Row(name="D", short="sentiment", source="embedded words", T=256, I=100, H=128, B=32,
        dtypes=DTYPES),
    Row(name="E", short="word LM", source="AWD-LSTM", T=70, I=400, H=1150, B=20),
    Row(name="F", short="speech", source="filter banks", T=200, I=80, H=512, B=16, layers=2,
        directions=2, dtypes=BOTH),
    Row(name="F-1x1", short="speech", source="one layer and direction", T=200, I=80, H=512, B=16),
    Row(name="G", short="DeepBench", source="inference", T=50, I=1536, H=1536, B=1, dtypes=KEPT),
    Row(name="H", short="streaming", source="one audio frame", T=1, I=256, H=256, B=1,
        given_state=True, dtypes=KEPT),
    Row(name="I", short="sensors", source="big batch", T=50, I=256, H=256, B=256, dtypes=BOTH),
    Row(name="J", short="char LM", source="characters", T=100, I=512, H=512, B=64, dtypes=BOTH),
    Row(name="K", short="long sequence", source="small state", T=1000, I=64, H=64, B=8,
        dtypes=KEPT),
    Row(name="P", short="packed", source="D, lengths uniform in 1..256", T=256, I=100, H=128, B=32,
        directions=2, packed=True),
    Row(name="Q", short="projected", source="LSTM only", T=100, I=256, H=512, B=32, proj_size=128,
        cells=PROJECTED),
    Row(name="R", short="policy", source="recurrent, with resets", T=128, I=256, H=256, B=64,
        resets=0.01),
)  # fmt: skip

TF32 = ("bfloat16", "tf32")


def _gpu(name: str, short: str, cells: str, dtypes: tuple[str, ...], **more: Any) -> Row:
    return Row(
        name=name, short=short, cells=tuple(cells.split()), dtypes=dtypes, device="cuda", **more
    )


GPU_ROWS: tuple[Row, ...] = (
    _gpu("g1", "digits", "lstm gru", TF32, T=28, I=28, H=128, B=150),
    _gpu("g2", "sentiment", "lstm gru", TF32, T=256, I=100, H=128, B=32),
    _gpu("g3", "long sequence", "lstm gru rnn", TF32, T=1000, I=64, H=64, B=8),
    _gpu("g4", "cuDNN's slow spot", "lstm gru", TF32, T=200, I=160, H=160, B=48),
    _gpu("g5", "speech", "lstm gru", TF32, T=200, I=80, H=512, B=16, layers=2, directions=2),
    _gpu("g6", "char LM", "lstm gru", TF32, T=100, I=512, H=512, B=64),
    _gpu("g7", "cuDNN's best", "lstm", ("float16",), source="its persistent kernel", T=1024, I=768,
         H=768, B=16),
    _gpu("g8", "FlashRNN", "lstm gru", ("bfloat16",), source="the paper's setting", T=1024, I=768,
         H=768, B=16),
    _gpu("g9", "policy", "lstm gru", BOTH, source="reinforcement learning", T=128, I=256, H=256,
         B=64),
    _gpu("g9-resets", "policy", "lstm gru", BOTH, source="with resets", T=128, I=256, H=256, B=64,
         resets=0.01),
    _gpu("g10", "word LM", "lstm", TF32, source="AWD-LSTM", T=70, I=400, H=1150, B=20, layers=3),
    _gpu("g11", "DeepBench", "lstm", ("bfloat16", "float16"), T=25, I=1024, H=1024, B=32),
    _gpu("g12", "DeepBench", "lstm", ("bfloat16",), source="batch one", T=50, I=1536, H=1536, B=1,
         modes=("forward",)),
    _gpu("g13", "DeepBench", "gru", ("bfloat16", "float16"), source="weights exceed the chip",
         T=1500, I=2816, H=2816, B=32),
    _gpu("g14", "GNMT", "lstm", ("bfloat16", "float16"), T=50, I=1024, H=1024, B=128, layers=8),
    _gpu("g15", "big batch", "lstm gru", ("bfloat16",), T=50, I=256, H=256, B=1024),
    _gpu("g16", "bound by arithmetic", "lstm", ("bfloat16",), T=25, I=2048, H=2048, B=128),
    _gpu("g17", "streaming", "lstm gru", ("float32",), T=1, I=256, H=256, B=1, layers=2,
         given_state=True, modes=("forward", REPLAY)),
    _gpu("g18", "packed", "lstm gru", ("bfloat16",), T=256, I=100, H=256, B=64, directions=2,
         packed=True),
    _gpu("g19", "packed stack", "lstm", ("tf32",), source="RETURNN's benchmark", T=50, I=500, H=500,
         B=40, layers=5, directions=2, packed=True),
    _gpu("g20", "projected", "lstm", ("bfloat16",), T=100, I=256, H=1024, B=32, proj_size=512),
    _gpu("g21", "RNN", "rnn", ("bfloat16",), T=50, I=1760, H=1760, B=16),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to time."""

    row: Row
    cell: str
    mode: str  # "forward" (inference) or "train" (forward, backward)
    threads: int
    dtype: str = "float32"

    @property
    def label(self) -> str:
        """The case in words, for progress and for error messages."""
        threads = f", {self.threads} thread" + ("s" if self.threads != 1 else "")
        if self.row.device != "cpu":
            threads = ""
        return f"{self.row.name} {self.cell} {self.mode}{threads}, {self.dtype}"

    @property
    def facts(self) -> Cell:
        """What its cell is."""
        return FACTS[self.cell]

    @property
    def flops(self) -> int:
        """Floating point operations of one call."""
        return flops(self.row, self.cell, self.mode)


def flops(row: Row, cell: str, mode: str) -> int:
    """Floating point operations of one call, by the formula at the top of this file."""
    alive = sum(row.lengths)
    width = row.proj_size or row.H
    total = 0
    gates = len(FACTS[cell].gates)
    for layer in range(row.layers):
        input_size = row.I if layer == 0 else row.directions * width
        per_direction = 2 * alive * gates * row.H * (input_size + width)
        per_direction += 2 * alive * row.H * row.proj_size
        total += row.directions * per_direction
    return total * (3 if mode == "train" else 1)


def rows_named(patterns: Sequence[str], rows: Sequence[Row] = ROWS) -> list[Row]:
    """The rows that `patterns` name, in the table's order: `D`, `B-l3`, or `B*` for all of B."""
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in rows):
            names = ", ".join(row.name for row in rows)
            raise ValueError(f"rows: expected names or patterns of {names}; got {pattern!r}")
    return [row for row in rows if any(fnmatchcase(row.name, pattern) for pattern in patterns)]


def several(of: Sequence[str]) -> Callable[[str], list[str]]:
    """What reads an argument of the command line that is some of these words: `lstm,gru`."""

    def parse(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in of:
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(of)}; got {word}")
        return words

    return parse


def cases(
    rows: Iterable[Row],
    *,
    cells: Sequence[str] = CELLS,
    modes: Sequence[str] = (*PASSES, REPLAY),
    threads: Sequence[int],
    dtypes: Sequence[str] = (*DTYPES, "float16", "tf32"),
) -> list[Case]:
    """Every case of `rows` within a selection, in the order in which they are run and shown."""
    return [
        Case(row=row, cell=cell, mode=mode, threads=count, dtype=dtype)
        for row in rows
        for dtype in dtypes
        if dtype in row.dtypes
        for count in threads
        for cell in cells
        if cell in row.cells
        for mode in modes
        if mode in row.modes and (dtype != "int8" or mode == "forward")
    ]
