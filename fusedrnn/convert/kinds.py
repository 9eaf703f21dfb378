"""Which cell of ours another framework's cell is, by its name and the options that it has.

With the usual functions it is one that the kernels are compiled with, and becomes an `LSTM`, `GRU`
or `RNN`. With any other choice it is one of the zoo, written in Python, and becomes a `Recurrent`.
The gates stand in the same order in both.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedrnn.cells import Cell, WrittenCell, cell_named, cell_of_written

if TYPE_CHECKING:
    from fusedrnn.cells.zoo.activations import Activation

COMPILED_RNN = {"tanh": "rnn_tanh", "relu": "rnn_relu"}
"""The compiled cells of a simple network, by its function."""


@dataclass(frozen=True)
class Kind:
    """A cell with its options, which are those of the zoo's `lstm`, `gru` and `rnn`.

    Attributes:
        name: "lstm", "gru", "gru_reset_before" or "rnn".
        activation, recurrent_activation: functions, or the zoo's names of them.
        peephole, input_forget, cell_clip: of an LSTM.
    """

    name: str
    activation: str | Activation = "tanh"
    recurrent_activation: str | Activation = "sigmoid"
    output_activation: str | Activation | None = None
    peephole: bool = False
    input_forget: bool = False
    cell_clip: float | None = None

    @property
    def compiled(self) -> str | None:
        """The name of the compiled cell that this is, if it is one."""
        if self.name == "rnn":
            function = self.activation
            return COMPILED_RNN.get(function) if isinstance(function, str) else None
        return self.name if self == Kind(self.name) else None

    @property
    def gates(self) -> tuple[str, ...]:
        """Those that other frameworks have weights of, in our order."""
        return cell_named("rnn_tanh" if self.name == "rnn" else self.name).gates

    @cached_property
    def written(self) -> WrittenCell:
        """The zoo's cell."""
        from fusedrnn.cells.zoo import gru, lstm, rnn

        if self.name == "rnn":
            return rnn(self.activation)
        if self.name == "lstm":
            return lstm(
                self.activation, self.recurrent_activation,
                output_activation=self.output_activation, peephole=self.peephole,
                input_forget=self.input_forget, cell_clip=self.cell_clip,
            )  # fmt: skip
        after = self.name == "gru"
        return gru(self.activation, self.recurrent_activation, reset_after=after)

    def cell(self, projected: bool = False) -> Cell:
        """What the cell has."""
        if self.compiled is not None:
            return cell_named(self.compiled)
        return cell_of_written(self.written, projected)

    def __str__(self) -> str:
        if self.compiled is not None:
            return self.compiled
        options = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        defaults = {field.name: field.default for field in fields(self)[1:]}
        told = [f"{name}={_shown(v)}" for name, v in options.items() if v != defaults[name]]
        return f"{self.name}({', '.join(told)})"


def _shown(value: Any) -> str:
    return str(getattr(value, "__name__", value)) if callable(value) else repr(value)


def kind_of(
    cell: str,
    activation: str | Activation | None = None,
    recurrent_activation: str | Activation | None = None,
) -> Kind:
    """The cell that arguments of these names say; None is the usual function.

    Raises:
        ValueError: there is no such cell, no function of that name, or nothing that has one.
    """
    if cell not in ("lstm", "gru", "rnn", *COMPILED_RNN.values()):
        raise ValueError(
            f"cell: expected 'lstm', 'gru', 'rnn_tanh' (or 'rnn') or 'rnn_relu', got {cell!r}"
        )
    simple = cell.startswith("rnn")
    if cell in COMPILED_RNN.values() and activation is not None:
        raise ValueError(
            f"activation: expected None with cell={cell!r}, which says it, got {activation!r}; "
            f"cell='rnn' takes any"
        )
    if simple and recurrent_activation is not None:
        raise ValueError(
            f"recurrent_activation: expected None with cell={cell!r}, which has no gates, got "
            f"{recurrent_activation!r}"
        )
    check_function("activation", activation)
    check_function("recurrent_activation", recurrent_activation)
    if activation is None:
        activation = "relu" if cell == "rnn_relu" else "tanh"
    return Kind("rnn" if simple else cell, activation, recurrent_activation or "sigmoid")


def check_function(option: str, given: Any) -> None:
    """Refuses what is neither one of the zoo's names, nor a function, nor None."""
    from fusedrnn.cells.zoo import ACTIVATIONS

    if given is None or callable(given) or (isinstance(given, str) and given in ACTIVATIONS):
        return
    raise ValueError(
        f"{option}: expected one of {', '.join(ACTIVATIONS)}, or a function of a tensor, got "
        f"{given!r}"
    )


def hard_sigmoid_of_keras_2(a: Tensor) -> Tensor:
    """The line of slope 1/5; that of Keras 3 and of torch has slope 1/6."""
    return torch.clamp(0.2 * a + 0.5, 0, 1)
