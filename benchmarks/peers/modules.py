"""A peer that is a set of modules with `torch.nn`'s contract: `torch.nn` itself, and fusedrnn.

All sides run through this one file, so that a difference in time is a difference of modules. A side
that is more than a module, such as a loop that calls one, is `Around` it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

import torch
from torch import Tensor, nn
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
        return step_of(case, self.module(case), data)

    def module(self, case: Case) -> nn.Module:
        """The layers of a case, with weights of their own."""
        return self._class_of(case)(**module_arguments(case.row), **self._options)

    def _class_of(self, case: Case) -> type[nn.Module]:
        cls = getattr(importlib.import_module(self._namespace), case.facts.module)
        assert issubclass(cls, nn.Module)
        return cls


def step_of(case: Case, module: nn.Module, data: Data) -> Step:
    """A module that is called as torch.nn's are, with the weights of `data`, ready to run on it."""
    module.to(case.row.device, tensor_dtype(case)).load_state_dict(data.weights)
    side = {"forward": Inference, "train": TrainingStep, REPLAY: Replay}[case.mode]
    return side(module, data)


class Around(nn.Module):
    """What is written around a network, which its `forward` calls; it has the same parameters."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        return self._network.load_state_dict(*arguments, **options)

    def named_parameters(self, *arguments: Any, **options: Any) -> Any:
        return self._network.named_parameters(*arguments, **options)


class Inference:
    """Forward in `eval` mode, with no gradient."""

    def __init__(self, module: nn.Module, data: Data) -> None:
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

    def __init__(self, module: nn.Module, data: Data) -> None:
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

    def __init__(self, module: nn.Module, data: Data) -> None:
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


class TrainingStepOfStates(TrainingStep):
    """A training step of one layer that also returns the states after every step, [1, T, B, H].

    Each state gets the same gradient as the output.
    """

    def _forward_backward(self) -> dict[str, Tensor]:
        output, _, every = self._module(self._input, self._hx)
        named = {"output": output} | dict(zip(("hs", "cs"), states_of(every), strict=False))
        grads = [self._grad_output, *[self._grad_output[None]] * (len(named) - 1)]
        torch.autograd.backward([*named.values()], grads)
        return named


def _packed(rows: Tensor, data: Data) -> PackedSequence:
    return PackedSequence(rows, data.batch_sizes, data.sorted_indices, data.unsorted_indices)


def _named(
    output: Tensor | PackedSequence, states: Tensor | tuple[Tensor, ...]
) -> dict[str, Tensor]:
    named = {"output": output.data if isinstance(output, PackedSequence) else output}
    return named | dict(zip(("hn", "cn"), states_of(states), strict=False))


def states_of(given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """States, of which a module with one does not make a tuple."""
    return given if isinstance(given, tuple) else (given,)


def _taken(leaf: Tensor) -> Tensor:
    """The gradient of `leaf`, which is left without one."""
    grad, leaf.grad = leaf.grad, None
    assert grad is not None
    return grad
