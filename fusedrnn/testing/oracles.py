"""What each cell is held to: torch.nn's module where it has the cell, else plain PyTorch.

Parameters, their names and their initialisation are those of fusedrnn's module of the same cell, so
that both sides of a comparison begin from one seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import reference
from fusedrnn._engine.checks import as_given
from fusedrnn._engine.layer import Layer, Operands
from fusedrnn.cells import CELLS, Cell, cell_named
from fusedrnn.testing.plain_gru import ResetBeforeGRU

WRITTEN_APART: dict[str, type[nn.Module]] = {"gru_reset_before": ResetBeforeGRU}
"""Oracles of cells that torch.nn lacks, which share nothing with fusedrnn/reference.py."""


@cache
def torch_options(cell: Cell) -> dict[str, Any] | None:
    """The arguments that make torch.nn's module this cell, or None if torch.nn has no such cell.

    An option that has its default in our module may be one that torch.nn's does not know.
    """
    theirs = getattr(nn, cell.module, None)
    if theirs is None:
        return None
    ours = inspect.signature(getattr(fusedrnn, cell.module)).parameters
    options = {name: v for name, v in cell.options.items() if ours[name].default != v}
    try:
        theirs(1, 1, **options)
    except TypeError:
        return None
    return options


TORCH_CELLS = tuple(cell.name for cell in CELLS if torch_options(cell) is not None)
"""The cells that torch.nn has, too."""


def _torch_modules() -> dict[str, str]:
    found: dict[str, str] = {}
    for cell in sorted(map(cell_named, TORCH_CELLS), key=lambda cell: -len(cell.gates)):
        found.setdefault(cell.module, cell.name)
    return found


TORCH_MODULES = _torch_modules()
"""torch.nn's modules, those of most gates first, and the first cell that each of them is."""


def oracle_of(name: str) -> Callable[..., nn.Module]:
    """What makes a network of a cell's oracle, called as torch.nn's modules are."""
    cell = cell_named(name)
    if name in WRITTEN_APART:
        return WRITTEN_APART[name]
    options = torch_options(cell)
    if options is None:
        return by_reference(name)

    def make(*sizes: int, **others: Any) -> nn.Module:
        module: nn.Module = getattr(nn, cell.module)(*sizes, **others, **options)
        return module

    return make


def is_oracle(module: nn.Module) -> bool:
    """Whether it came from here, and knows no arguments but torch.nn's."""
    return isinstance(module, nn.RNN | nn.GRU | nn.LSTM | ByReference)


class ByReference:
    """The `forward` of a module whose layers fusedrnn/reference.py computes, one by one.

    Without dropout between the layers.
    """

    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        states = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        if isinstance(input, PackedSequence):
            if (order := input.sorted_indices) is not None:
                states = tuple(state.index_select(1, order) for state in states)
            data, final = self.walk(input.data, input.batch_sizes, states)
            if (order := input.unsorted_indices) is not None:
                final = [state.index_select(1, order) for state in final]
            return input._replace(data=data), as_given(final)
        if input.dim() == 2:
            output, final = self.walk(input[:, None], None, [state[:, None] for state in states])
            return output[:, 0], as_given([state[:, 0] for state in final])
        x = input.transpose(0, 1) if self.batch_first else input
        output, final = self.walk(x, None, states)
        return output.transpose(0, 1) if self.batch_first else output, as_given(final)

    def walk(self: Any, x: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor]) -> Any:
        """Output and final states of all layers."""
        layer = Layer(self.facts, self.bias, self.proj_size > 0, self.bidirectional)
        finals = []
        for number in range(self.num_layers):
            own = slice(number * layer.directions, (number + 1) * layer.directions)
            weights = [weight for each in self.all_weights[own] for weight in each]
            first = [state[own] for state in states]
            x, final = reference.layer(layer, Operands(x, batch_sizes, first, weights))
            finals.append(final)
        return x, [torch.cat(layers) for layers in zip(*finals, strict=True)]


@cache
def by_reference(name: str) -> Callable[..., nn.Module]:
    """fusedrnn's module of a cell with the reference in place of the kernels."""
    cell = cell_named(name)
    kind = type(cell.module, (ByReference, getattr(fusedrnn, cell.module)), {"facts": cell})

    def make(*sizes: int, **others: Any) -> nn.Module:
        module: nn.Module = kind(*sizes, **others, **cell.options)
        return module

    return make
