"""The seam between the runner and whatever it times, and the data that every side is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.workloads import Case, Row

WEIGHTS_OF = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
SEED = 20240229


@dataclass(frozen=True, kw_only=True)
class Data:
    """Weights and inputs of a case.

    `input` is [T, B, I], or [N, I] when packed, with the packed layout beside it. `weights` has
    torch's names and shapes. `grad_output` is what flows into the output in a training step.
    """

    weights: dict[str, Tensor]
    input: Tensor
    batch_sizes: Tensor | None
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None
    hx: Tensor | tuple[Tensor, Tensor] | None
    grad_output: Tensor


class Step(Protocol):
    """One side of a case, ready to run."""

    def repeat(self, calls: int) -> None:
        """Makes `calls` calls: inference, or a training step without the optimizer."""

    def results(self) -> dict[str, Tensor]:
        """One call's outputs, and gradients when training, by name."""


class Peer(ABC):
    """A library that can do (some of) the workloads."""

    name: str

    @abstractmethod
    def available(self) -> bool:
        """Whether the library is installed here."""

    @abstractmethod
    def version(self) -> str:
        """The library's version."""

    @abstractmethod
    def missing(self, case: Case) -> str | None:
        """Why the library cannot do this case, or None when it can."""

    @abstractmethod
    def build(self, case: Case, data: Data) -> Step:
        """The case, ready to run on `data`."""


def module_arguments(row: Row) -> dict[str, int | bool]:
    """The constructor arguments of a row's module, without the ones left at their default."""
    arguments: dict[str, int | bool] = {"input_size": row.I, "hidden_size": row.H}
    if row.layers > 1:
        arguments["num_layers"] = row.layers
    if row.directions > 1:
        arguments["bidirectional"] = True
    if row.proj_size:
        arguments["proj_size"] = row.proj_size
    return arguments


def tensor_dtype(case: Case) -> torch.dtype:
    """The dtype of a case's tensors."""
    dtype = getattr(torch, "float32" if case.dtype == "tf32" else case.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def make_data(case: Case) -> Data:
    """The case's data: the same in every process and for every side."""
    row = case.row
    dtype = tensor_dtype(case)
    with torch.random.fork_rng(), torch.device(row.device):
        torch.manual_seed(SEED)
        weights = WEIGHTS_OF[case.cell](**module_arguments(row)).state_dict()
        padded = torch.randn(row.T, row.B, row.I)
        width = row.proj_size or row.H
        state = torch.randn(2, row.layers * row.directions, row.B, row.H).tanh()
        grad_output = torch.randn(row.T, row.B, row.directions * width)
    data: dict[str, Tensor | None] = {"batch_sizes": None, "sorted_indices": None}
    data["unsorted_indices"] = None
    inputs = padded
    if row.packed:
        lengths = torch.tensor(row.lengths)
        packed = pack_padded_sequence(padded, lengths, enforce_sorted=False)
        data = packed._asdict()
        inputs = data.pop("data")
        grad_output = grad_output.flatten(0, 1)[: len(inputs)]
    h, c = state[0, ..., :width].to(dtype), state[1].to(dtype)
    given = (h, c) if case.cell == "lstm" else h
    return Data(
        weights={name: weight.to(dtype) for name, weight in weights.items()},
        input=inputs.to(dtype),
        hx=given if row.given_state else None,
        grad_output=grad_output.to(dtype).contiguous(),
        **data,
    )
