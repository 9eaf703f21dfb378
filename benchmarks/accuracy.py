"""`python -m benchmarks.accuracy`: what int8 weights cost in accuracy, ours beside torch's.

The error of the output against the same module in float32, as its maximum and as the root of its
mean square, for fusedrnn's int8 layers and for `torch.ao.quantization.quantize_dynamic`, averaged
over seeds. The weights are torch.nn's initial ones, and the inputs are normally distributed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor, nn

import fusedrnn
from benchmarks.peers.torch_int8 import CLASSES
from benchmarks.workloads import Row, rows_named

ROWS = ("A", "D", "H", "K")


@dataclass(frozen=True)
class Error:
    """How far an output is from the exact one."""

    largest: float
    rms: float

    @staticmethod
    def of(output: Tensor, exact: Tensor) -> Error:
        error = (output - exact).double()
        return Error(float(error.abs().max()), float(error.square().mean().sqrt()))


@torch.no_grad()
def int8_errors(row: Row, cell: str, seed: int) -> tuple[Error, Error]:
    """The errors of one layer of `row`'s sizes with int8 weights: ours, and torch's."""
    torch.manual_seed(seed)
    module = CLASSES[cell](row.I, row.H).eval()
    x = torch.randn(row.T, row.B, row.I)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.ao moves to a package of its own
        # It replaces what a module has in it, and not the module itself.
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(module), {type(module)})
    exact, theirs = module(x)[0], quantized(x)[0]
    ours = fusedrnn.Streaming(module, row.B, weights="int8")(x)
    return Error.of(ours, exact), Error.of(theirs, exact)


def table(rows: Sequence[str] = ROWS, seeds: int = 5) -> str:
    """All rows and cells as a table in Markdown."""
    lines = [
        "| row | sizes | cell | largest, ours | torch | rms, ours | torch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows_named(rows):
        for cell in CLASSES:
            pairs = [int8_errors(row, cell, seed) for seed in range(seeds)]
            ours, theirs = ([pair[i] for pair in pairs] for i in (0, 1))
            figures = [
                mean(getattr(error, kind) for error in errors)
                for kind in ("largest", "rms")
                for errors in (ours, theirs)
            ]
            shown = " | ".join(f"{figure:.2e}" for figure in figures)
            lines.append(f"| {row.name} | {row.sizes} | {cell} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
