"""The interface between the runner and whatever it times, and the data that every side is given."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks.workloads import CELLS, Case, Row

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


class OptionalPeer(Peer):
    """A library that is timed where its `packages` are installed; it is imported when built."""

    packages: tuple[str, ...]

    def available(self) -> bool:
        return all(importlib.util.find_spec(package) is not None for package in self.packages)

    def version(self) -> str:
        distribution = importlib.metadata.packages_distributions()[self.packages[-1]][0]
        return importlib.metadata.version(distribution)


class CallStep:
    """A step made of `call`, and of `named`, which makes named NumPy arrays of its result."""

    def __init__(self, call: Callable[[], Any], named: Callable[[Any], Mapping[str, Any]]) -> None:
        self._call = call
        self._named = named

    def repeat(self, calls: int) -> None:
        call = self._call
        for _ in range(calls):
            call()

    def results(self) -> dict[str, Tensor]:
        named = self._named(self._call())
        return {name: torch.tensor(value) for name, value in named.items()}


class ThreadsOnce:
    """The threads of a library that takes their number once in a process."""

    def __init__(self, library: str) -> None:
        self._library = library
        self._threads: int | None = None

    def missing(self, threads: int) -> str | None:
        """Why the library cannot run with `threads` threads any more, or None."""
        if self._threads in (None, threads):
            return None
        return f"{self._library} sets its threads once in a process: {self._threads} in this one"

    def claim(self, threads: int) -> bool:
        """Whether this is the first call, after which `threads` cannot change."""
        first, self._threads = self._threads is None, threads
        return first


def beyond(
    case: Case,
    *,
    dtype: str = "float32",
    cells: Sequence[str] = CELLS,
    modes: Sequence[str] = ("forward",),
    packed: bool = False,
    projected: bool = False,
) -> str | None:
    """What a case asks for beyond what a library can do (the keywords), or None."""
    row = case.row
    if row.device != "cpu":
        return "runs on CPUs here"
    if case.dtype != dtype:
        return f"runs in {dtype} here"
    if case.cell not in cells:
        return f"has no {case.cell} in {dtype}, only {', '.join(cells)}"
    if case.mode not in modes:
        return "has no training"
    if row.resets:
        return "has no resets"
    if row.packed and not packed:
        return "has no packed sequences"
    if row.proj_size and not projected:
        return "has no projection"
    return None


def stacked(row: Row, data: Data, name: str) -> list[list[Tensor]]:
    """The weights called `name` (`weight_ih`, ...) by layer, then by direction."""
    return [
        [data.weights[f"{name}_l{layer}{suffix}"] for suffix in ("", "_reverse")[: row.directions]]
        for layer in range(row.layers)
    ]


def with_gates(weight: Tensor, order: Sequence[int]) -> Tensor:
    """A weight with its gates (torch's, along the first dimension) in another order."""
    gates = weight.chunk(len(order))
    return torch.cat([gates[gate] for gate in order])


def states(data: Data) -> tuple[Tensor, ...]:
    """The given initial states: (h, c), (h,), or none."""
    if data.hx is None:
        return ()
    return data.hx if isinstance(data.hx, tuple) else (data.hx,)


def padded(data: Data) -> tuple[Tensor, Tensor | None]:
    """The input as [T, B, I], and the lengths of its sequences if it was packed."""
    if data.batch_sizes is None:
        return data.input, None
    return pad_packed_sequence(
        PackedSequence(data.input, data.batch_sizes, data.sorted_indices, data.unsorted_indices)
    )


def packed_again(output: Tensor, lengths: Tensor | None) -> Tensor:
    """An output [T, B, F] as `padded`'s input was."""
    if lengths is None:
        return output
    return pack_padded_sequence(output, lengths, enforce_sorted=False).data


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
    dtype = getattr(torch, "float32" if case.dtype in ("tf32", "int8") else case.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def make_data(case: Case, layers: Callable[..., nn.Module] | None = None) -> Data:
    """The case's data: the same in every process and for every side.

    Weights are drawn as those of `layers`, if the cell is one that torch.nn has not.
    """
    row = case.row
    layers = layers or getattr(nn, case.facts.module)
    dtype = tensor_dtype(case)
    with torch.random.fork_rng(), torch.device(row.device):
        torch.manual_seed(SEED)
        weights = layers(**module_arguments(row)).state_dict()
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
    hx = None
    if row.given_state:
        h, c = state[0, ..., :width].to(dtype), state[1].to(dtype)
        hx = (h, c) if len(case.facts.states) > 1 else h
    return Data(
        weights={name: weight.to(dtype) for name, weight in weights.items()},
        input=inputs.to(dtype),
        hx=hx,
        grad_output=grad_output.to(dtype).contiguous(),
        **data,
    )
