"""What users of other libraries complain of, and whether it holds for ours: on a GPU.

    long               70,000 steps (cuDNN's kernels have had limits at 65,535)
    evaluation mode    a backward pass through a module in evaluation mode, which cuDNN refuses
    double backward    the gradient of a gradient's norm, which cuDNN has not
    small bf16         a small module in bf16: D = 64, B = 16, T = 128
    resets             sequences that begin anew within a batch: `reset=` against what a program
                       does without it, and against TorchRL's layer where that is installed

A side that cannot do it is told with its error, which is the finding; ours must be able to. Both
sides take turns, as everywhere (fusedrnn/testing/timing.py). Block-diagonal recurrences are to be
added when there are some.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.modifiers import reset_of
from benchmarks.peers import OURS, TORCH_NN
from benchmarks.peers.loops import SplitAtResets, StepByStep, With
from benchmarks.peers.modules import step_of
from benchmarks.peers.peer import make_data
from benchmarks.workloads import Case, Row
from fusedrnn.testing import timing

SECONDS = 0.6  # of two sides
SMALL = {"T": 4, "B": 2, "I": 8, "H": 16}

Call = Callable[[], object]
Sides = dict[str, Callable[[], Call]]  # each makes what is timed


@dataclass(frozen=True)
class Complaint:
    """A row, and what each side does with it."""

    row: Row
    dtype: str
    sides: Callable[[Case], Sides]
    seconds: float  # that all sides are expected to take
    mode: str = "train"


def run(name: str, device: str, *, small: bool = False) -> dict[str, Any]:
    """Times every side of a complaint, or says why it cannot do it.

    Raises:
        RuntimeError: ours is one that cannot.
    """
    complaint = COMPLAINTS[name]
    sizes = {k: min(getattr(complaint.row, k), v) for k, v in SMALL.items()} if small else {}
    row = replace(complaint.row, device=device, **sizes)
    case = Case(row=row, cell="lstm", mode=complaint.mode, threads=1, dtype=complaint.dtype)
    calls: dict[str, Call] = {}
    found: dict[str, Any] = {"sizes": row.sizes, "dtype": case.dtype, "sides": {}}
    for side, make in complaint.sides(case).items():
        try:
            call = make()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            calls[side] = call
        except Exception as error:  # that it cannot is the finding
            found["sides"][side] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            if side == OURS.name:
                raise
    repeats = {side: timing.finished(_repeat(call), device) for side, call in calls.items()}
    budget = 0.02 if small else SECONDS * len(calls) / 2
    samples = timing.measure(repeats, budget=budget)
    for side, seconds in samples.items():
        found["sides"][side] = timing.spread(seconds).as_dict() | {
            "ratio": timing.ratio(samples[OURS.name], seconds).median
        }
    return found


def _repeat(call: Call) -> timing.Repeat:
    def repeat(calls: int) -> None:
        for _ in range(calls):
            call()

    return repeat


def _both(case: Case) -> Sides:
    """The case itself, as the benchmark would run it."""

    def side(peer: Any) -> Callable[[], Call]:
        def make() -> Call:
            step = peer.build(case, make_data(case))
            return lambda: step.repeat(1)

        return make

    return {peer.name: side(peer) for peer in (OURS, TORCH_NN)}


def _modules(case: Case, use: Callable[[nn.Module, Tensor], object]) -> Sides:
    """What each side's module does when it is used in this way."""

    def side(peer: Any) -> Callable[[], Call]:
        def make() -> Call:
            data = make_data(case)
            module = peer.module(case).to(case.row.device, data.input.dtype)
            module.load_state_dict(data.weights)
            x = data.input.clone().requires_grad_()
            return lambda: use(module, x)

        return make

    return {peer.name: side(peer) for peer in (OURS, TORCH_NN)}


def _in_evaluation_mode(module: nn.Module, x: Tensor) -> object:
    output, _ = module.eval()(x)
    return torch.autograd.grad(output.sum(), [x, *module.parameters()])


def _twice(module: nn.Module, x: Tensor) -> object:
    output, _ = module.train()(x)
    (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), list(module.parameters()))


def _resets(case: Case) -> Sides:
    data, reset = make_data(case), reset_of(case.row).to(case.row.device)
    name = case.facts.module

    def around(module: Callable[[], nn.Module]) -> Callable[[], Call]:
        def make() -> Call:
            step = step_of(case, module(), data)
            return lambda: step.repeat(1)

        return make

    sides = {
        OURS.name: around(lambda: With(OURS.module(case), reset=reset)),
        f"torch.nn.{name}Cell for each step": around(
            lambda: StepByStep(TORCH_NN.module(case), reset=reset)
        ),
        f"torch.nn.{name}, split at resets": around(
            lambda: SplitAtResets(TORCH_NN.module(case), reset)
        ),
    }
    if importlib.util.find_spec("torchrl") is None:
        sides["TorchRL"] = _not_installed
    else:
        sides["TorchRL"] = lambda: _torchrl(case, reset)
    return sides


def _not_installed() -> Call:
    raise ModuleNotFoundError("TorchRL is not installed here")


def _torchrl(case: Case, reset: Tensor) -> Call:
    """TorchRL's layer on a batch of sequences, in its recurrent mode."""
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    row, data = case.row, make_data(case)
    layer = LSTMModule(
        input_size=row.I, hidden_size=row.H, in_key="input", out_key="output", device=row.device
    )
    layer.lstm.load_state_dict(data.weights)
    x = data.input.transpose(0, 1).contiguous().requires_grad_()  # batch first
    is_init = reset.t().contiguous()[..., None]
    weight = data.grad_output.transpose(0, 1).contiguous()

    def call() -> object:
        batch = TensorDict({"input": x, "is_init": is_init}, [row.B, row.T], device=row.device)
        with set_recurrent_mode(True):
            output = layer(batch)["output"]
        return torch.autograd.grad(output, [x, *layer.parameters()], weight)

    return call


COMPLAINTS: dict[str, Complaint] = {
    "long, forward": Complaint(
        Row(name="long", T=70_000, I=64, H=64, B=4), "bfloat16", _both, 6.0, "forward"
    ),
    "long, training": Complaint(Row(name="long", T=70_000, I=64, H=64, B=4), "bfloat16", _both,
                                12.0),
    "evaluation mode, backward": Complaint(
        Row(name="evaluation", T=100, I=128, H=128, B=32), "float32",
        lambda case: _modules(case, _in_evaluation_mode), 1.5,
    ),
    "double backward": Complaint(
        Row(name="double", T=32, I=64, H=64, B=16), "float32",
        lambda case: _modules(case, _twice), 3.0,
    ),
    "small bf16, forward": Complaint(
        Row(name="small", T=128, I=64, H=64, B=16), "bfloat16", _both, 1.0, "forward"
    ),
    "small bf16, training": Complaint(
        Row(name="small", T=128, I=64, H=64, B=16), "bfloat16", _both, 1.0
    ),
    "resets": Complaint(
        Row(name="resets", T=128, I=256, H=256, B=64, resets=0.01), "float32", _resets, 5.0
    ),
}  # fmt: skip
