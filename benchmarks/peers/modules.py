"""A peer that is a set of modules with `torch.nn`'s contract: `torch.nn` itself, and fusedrnn.

All sides run through this one file, so that a difference in time is a difference of modules.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from benchmarks.peers.peer import Data, Peer, Step, module_arguments, tensor_dtype
from benchmarks.workloads import REPLAY, Case


class ModulePeer(Peer):
    """The recurrent layers of the Python module `namespace`, versioned as `package`.

    `options` go to their constructors, beside what the row says.
    """

    def __init__(self, name: str, *, namespace: str, package: str, **options: object) -> None:
        self.name = name
        self._options = options
        self._namespace = namespace
        self._package = package

    def available(self) -> bool:
        try:
            return importlib.util.find_spec(self._package) is not None
        except ValueError:  # the package is loaded, but has no spec
            return True

    def version(self) -> str:
        return str(importlib.import_module(self._package).__version__)

    def missing(self, case: Case) -> str | None:
        module = self._class_of(case)
        if case.row.resets and "reset" not in inspect.signature(module.forward).parameters:
            return f"{self.name}'s {case.facts.module} takes no `reset` yet"
        return None

    def build(self, case: Case, data: Data) -> Step:
        module = self._class_of(case)(**module_arguments(case.row), **self._options)
        module.to(case.row.device, tensor_dtype(case)).load_state_dict(data.weights)
        side = {"forward": Inference, "train": TrainingStep, REPLAY: Replay}[case.mode]
        return side(module, data)

    def _class_of(self, case: Case) -> type[torch.nn.Module]:
        cls = getattr(importlib.import_module(self._namespace), case.facts.module)
        assert issubclass(cls, torch.nn.Module)
        return cls


class Inference:
    """Forward in `eval` mode, with no gradient."""

    def __init__(self, module: torch.nn.Module, data: Data) -> None:
        self._module = module.eval()
        self._input = _packed(data.input, data) if data.batch_sizes is not None else data.input
        self._hx = data.hx

    def repeat(self, calls: int) -> None:
        module, inputs, hx = self._module, self._input, self._hx
        with torch.no_grad():
            for _ in range(calls):
                module(inputs, hx)

    def results(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return _named(*self._module(self._input, self._hx))


class Replay(Inference):
    """The same, captured in a CUDA graph once and replayed."""

    def __init__(self, module: torch.nn.Module, data: Data) -> None:
        super().__init__(module, data)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what a first call sets up cannot be captured
            super().repeat(2)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.no_grad():
            self._results = _named(*self._module(self._input, self._hx))

    def repeat(self, calls: int) -> None:
        for _ in range(calls):
            self._graph.replay()

    def results(self) -> dict[str, Tensor]:
        self._graph.replay()
        return {name: tensor.clone() for name, tensor in self._results.items()}


class TrainingStep:
    """Forward, then backward from a fixed gradient of the output to the input and all weights."""

    def __init__(self, module: torch.nn.Module, data: Data) -> None:
        self._module = module.train()
        self._leaf = data.input.clone().requires_grad_()
        self._input = _packed(self._leaf, data) if data.batch_sizes is not None else self._leaf
        self._is_packed = data.batch_sizes is not None
        self._hx = data.hx
        self._grad_output = data.grad_output
        self._leaves = [self._leaf, *module.parameters()]

    def repeat(self, calls: int) -> None:
        for _ in range(calls):
            self._forward_backward()
            for leaf in self._leaves:
                leaf.grad = None

    def results(self) -> dict[str, Tensor]:
        named = self._forward_backward()
        named["grad of input"] = _taken(self._leaf)
        for name, weight in self._module.named_parameters():
            named[f"grad of {name}"] = _taken(weight)
        return {name: tensor.detach() for name, tensor in named.items()}

    def _forward_backward(self) -> dict[str, Tensor]:
        output, states = self._module(self._input, self._hx)
        tensor = output.data if self._is_packed else output
        torch.autograd.backward(tensor, self._grad_output)
        return {"output": tensor}


def _packed(rows: Tensor, data: Data) -> PackedSequence:
    return PackedSequence(rows, data.batch_sizes, data.sorted_indices, data.unsorted_indices)


def _named(
    output: Tensor | PackedSequence, states: Tensor | tuple[Tensor, ...]
) -> dict[str, Tensor]:
    hn, *rest = states if isinstance(states, tuple) else (states,)
    named = {"output": output.data if isinstance(output, PackedSequence) else output, "hn": hn}
    if rest:
        named["cn"] = rest[0]
    return named


def _taken(leaf: Tensor) -> Tensor:
    """The gradient of `leaf`, which is left without one."""
    grad, leaf.grad = leaf.grad, None
    assert grad is not None
    return grad
