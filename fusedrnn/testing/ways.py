"""Checks ways of computing a layer (fusedrnn/_engine/ways.py) against the reference, one by one.

    python -m fusedrnn.testing.ways REQUEST

is the child that another process starts: the file REQUEST has a device and ways. It prints a line
of JSON before and after each of them, so that whoever reads knows which one it was if this process
faults or hangs:

    {"ready": the device}
    {"begin": 0}   {"result": "agreed", "detail": ""}   {"begin": 1}   ...   {"end": how many}
    {"unavailable": why}   if nothing can be computed there

A way computes its own pass of small problems. Stepwise kernels do the other pass, so that a fault
is the way's own; what a forward pass keeps for backward is judged by the gradients that stepwise
makes of it. The numbers rule (parity.py) says how far each number may be from the reference in
float64. The peer is the reference in the way's own arithmetic.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusedrnn import reference
from fusedrnn._engine import ops
from fusedrnn._engine.layer import (
    Layer,
    Modifiers,
    Operands,
    flat,
    flat_gradients,
    names_of_flat,
    unflat,
)
from fusedrnn._engine.layer_shapes import shapes_of_network
from fusedrnn._engine.ways import Verdict, Way
from fusedrnn.cells.facts import cell_of_spec
from fusedrnn.plans import current_gpu
from fusedrnn.testing.parity import FP64, allowed_error, largest, moved

TF32_ULP = 2.0**-10
SEEDS = 2  # of the moves that tell what rounding does to a problem


@dataclass(frozen=True)
class Problem:
    """One layer: sizes of which none fills what a team has, and what acts on it."""

    T: int = 6
    B: int = 9
    I: int = 5  # noqa: E741
    H: int = 40
    bidirectional: bool = False
    packed: bool = False
    modified: bool = False


PROBLEMS = (
    Problem(),
    Problem(T=5, B=11, I=8, H=72, bidirectional=True, packed=True, modified=True),
)

Override = Callable[[str], None]


@dataclass(frozen=True)
class Expected:
    """What a problem's numbers should be, in float64, and how far each may be from that."""

    layer: Layer
    operands: Operands
    grads: Sequence[Tensor]
    numbers: dict[str, Tensor]
    allowed: dict[str, float]


def judge(
    way: Way, device: torch.device | str, override: Override = ops.override_plan,
    problems: Sequence[Problem] = PROBLEMS,
) -> Verdict:  # fmt: skip
    """Whether a way agrees with the reference; what it raises is a fault, and the caller's matter.

    `override` is that of the library whose kernels compute.
    """
    worst = (0.0, "")
    there = False
    for problem in problems:
        expected = expected_of(way.cell, way.arithmetic, problem)
        if not has_way(way, expected):
            continue
        there = True
        found = numbers_by(way, expected, device, override)
        for name, value in found.items():
            error = float(largest(value.cpu().double() - expected.numbers[name]))
            share = math.inf if math.isnan(error) else error / expected.allowed[name]
            if share > worst[0]:
                allowed = expected.allowed[name]
                worst = (share, f"{name}: error {error:.2e}, allowed {allowed:.2e}, of {problem}")
    if not there:
        return Verdict("absent")
    return Verdict("agreed") if worst[0] <= 1 else Verdict("disagreed", worst[1])


def has_way(way: Way, expected: Expected) -> bool:
    """Whether the device has such a team for a problem."""
    if way.team == "stepwise":
        return True
    (shape,) = shapes_of_network(expected.layer, 1, expected.operands, training=True)
    walk = shape.plan(way.cell, asdict(current_gpu()), [way.team])[way.step]
    return bool(walk["team"] == way.team and walk["arithmetic"] == way.arithmetic)


def numbers_by(
    way: Way, expected: Expected, device: torch.device | str, override: Override
) -> dict[str, Tensor]:
    """The numbers that a way is answerable for."""
    layer, given = expected.layer, expected.operands
    moved_to = [None if t is None else t.to(device) for t in flat(layer, given)]
    operands = unflat(layer, moved_to, given.batch_sizes)
    grads = [grad.to(device) for grad in expected.grads]
    names = names_of_flat(layer)
    needs = sum(1 << i for i, name in enumerate(names) if f"grad of {name}" in expected.numbers)
    try:
        override(f"team={way.team if way.step == 'forward' else 'stepwise'}")
        output, states, reserve = ops.forward(layer, operands, save=True)
        override(f"team={way.team if way.step == 'backward' else 'stepwise'}")
        found = ops.backward(layer, operands, grads, output, reserve, needs)
    finally:
        override("")
    numbers = {}
    if way.step == "forward":
        numbers = named_results(layer, [output, *states])
    gradients = flat_gradients(layer, *found)
    if way.step == "backward" or way.team != "stepwise":
        numbers |= named_gradients(layer, gradients, needs)
    return numbers


def named_results(layer: Layer, results: Sequence[Tensor]) -> dict[str, Tensor]:
    """The results of a layer by their names."""
    names = ("output", *(f"{state}n" for state in layer.cell.states))
    return dict(zip(names, results, strict=True))


def named_gradients(layer: Layer, gradients: Sequence[Tensor | None], needs: int) -> dict[str, Any]:
    """Those that were asked for; "#1" is the second direction's."""
    named: dict[str, Any] = {}
    for i, (name, gradient) in enumerate(zip(names_of_flat(layer), gradients, strict=True)):
        if needs >> i & 1:
            key = f"grad of {name}"
            named[f"{key}#1" if key in named else key] = gradient
    return named


@lru_cache(maxsize=4)
def expected_of(cell: str, arithmetic: str, problem: Problem) -> Expected:
    """What a problem of a cell should give in an arithmetic."""
    dtype = torch.float32 if arithmetic == "tf32" else getattr(torch, arithmetic)
    layer, exact, grads = made(cell, problem)
    layer = layer._replace(allow_tf32=arithmetic == "tf32")
    given = rounded(layer, exact, dtype)  # the operands as the kernels get them
    exact = rounded(layer, given, torch.float64)
    peer = rounded(layer, given, dtype, 10 if arithmetic == "tf32" else None)
    numbers = numbers_of(layer, exact, grads)
    low = numbers_of(layer, peer, [grad.to(dtype) for grad in grads])
    ulp = TF32_ULP if arithmetic == "tf32" else torch.finfo(dtype).eps
    reach = reach_of(layer, exact, grads, numbers, ulp)
    allowed = {}
    for name, value in numbers.items():
        scale = float(largest(value))
        error = float(largest(low[name].double() - value))
        allowed[name] = allowed_error(error, ulp, scale, reach[name]) + 1e-300
        if arithmetic == "float64":
            allowed[name] = FP64 * scale + 1e-300
    return Expected(layer, given, [grad.to(dtype) for grad in grads], numbers, allowed)


def made(spec: str, problem: Problem) -> tuple[Layer, Operands, list[Tensor]]:
    """The layer of a problem, its operands and the gradients of its results, with few bits each."""
    cell = cell_of_spec(spec)
    generator = torch.Generator().manual_seed(1)

    def drawn(*sizes: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*sizes, generator=generator, dtype=torch.float64) * scale
        return values.to(torch.bfloat16).double()

    T, B, I, H = problem.T, problem.B, problem.I, problem.H  # noqa: E741
    D, states = 2 if problem.bidirectional else 1, len(cell.states)
    modified = problem.modified or bool(cell.step_inputs)
    layer = Layer(cell, True, False, problem.bidirectional, modified=modified)
    lengths = torch.linspace(T, 1, B).round().long()
    batch_sizes = None
    rows: tuple[int, ...] = (T, B)
    if problem.packed:
        batch_sizes = torch.tensor([int((lengths > t).sum()) for t in range(T)])
        rows = (int(lengths.sum()),)
    weights = [
        drawn(*shape, scale=H**-0.5) for _ in range(D) for shape in cell.shapes(I, H).values()
    ]
    modifiers = Modifiers()
    if problem.modified:
        modifiers = Modifiers(
            torch.rand(T, B, generator=generator) < 0.2,
            [drawn(T, D, B, H) for _ in range(states)],
            1 + drawn(1, D, B, H, scale=0.1),
            [
                torch.rand(T, D, B, H, generator=generator).bfloat16().double()
                for _ in range(states)
            ],
        )
    if cell.step_inputs:
        modifiers = modifiers._replace(step_inputs=drawn(T, D, B, len(cell.step_inputs), H))
    hx = [drawn(D, B, H) for _ in range(states)]
    operands = Operands(drawn(*rows, I), batch_sizes, hx, weights, modifiers)
    return layer, operands, [drawn(*rows, D * H), *(drawn(D, B, H) for _ in range(states))]


def rounded(
    layer: Layer, operands: Operands, dtype: torch.dtype, bits: int | None = None
) -> Operands:
    """Operands in another dtype, or with the mantissa's first bits only."""

    def of(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point():
            return tensor
        tensor = tensor.to(dtype)
        if bits is not None:
            mantissa, exponent = tensor.frexp()
            tensor = torch.ldexp(
                (mantissa * 2.0 ** (bits + 1)).round() * 2.0 ** -(bits + 1), exponent
            )
        return tensor

    return unflat(layer, [of(tensor) for tensor in flat(layer, operands)], operands.batch_sizes)


def numbers_of(layer: Layer, operands: Operands, grads: Sequence[Tensor]) -> dict[str, Tensor]:
    """All numbers of a problem by the reference."""
    leaves = [
        tensor.detach().requires_grad_()
        if tensor is not None and tensor.is_floating_point()
        else tensor
        for tensor in flat(layer, operands)
    ]
    results = reference.results(layer, unflat(layer, leaves, operands.batch_sizes))
    fixed = ("recurrent_factor", "keep")
    at = [
        i
        for i, (name, leaf) in enumerate(zip(names_of_flat(layer), leaves, strict=True))
        if leaf is not None and leaf.requires_grad and not name.startswith(fixed)
    ]
    found = torch.autograd.grad(results, [leaves[i] for i in at], list(grads))  # type: ignore[arg-type]
    gradients: list[Tensor | None] = [None] * len(leaves)
    for i, gradient in zip(at, found, strict=True):
        gradients[i] = gradient
    detached = [result.detach() for result in results]
    needs = sum(1 << i for i in at)
    return named_results(layer, detached) | named_gradients(layer, gradients, needs)


def reach_of(
    layer: Layer,
    operands: Operands,
    grads: Sequence[Tensor],
    numbers: dict[str, Tensor],
    ulp: float,
) -> dict[str, float]:
    """How far each number moves when all operands move by up to an ulp."""
    reach = dict.fromkeys(numbers, 0.0)
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        near = [
            moved(tensor, ulp, generator)
            if tensor is not None and tensor.is_floating_point()
            else tensor
            for tensor in flat(layer, operands)
        ]
        found = numbers_of(layer, unflat(layer, near, operands.batch_sizes), grads)
        for name, value in found.items():
            reach[name] = max(reach[name], float(largest(value - numbers[name])))
    return reach


def check_all(
    ways: Sequence[Way],
    device: torch.device | str,
    say: Callable[[dict[str, Any]], None],
    override: Override = ops.override_plan,
) -> None:
    """Judges ways one after the other and says so; ends early where the device may be of no use."""
    for i, way in enumerate(ways):
        for problem in PROBLEMS:
            expected_of(way.cell, way.arithmetic, problem)  # not in the time that the way has
        say({"begin": i})
        try:
            verdict = judge(way, device, override)
        except Exception as error:
            if "out of memory" in str(error):
                return say({"unavailable": f"{error}"})
            say({"result": "faulted", "detail": f"{type(error).__name__}: {error}"})
            return None
        say({"result": verdict.result, "detail": verdict.detail})
    return say({"end": len(ways)})


def say(what: dict[str, Any]) -> None:
    """Prints a line."""
    print(json.dumps(what), flush=True)


def main(arguments: Sequence[str]) -> None:
    """Does what the file says."""
    request = json.loads(Path(*arguments).read_text())
    device = torch.device(request["device"])
    ways = [Way(*way) for way in request["ways"]]
    try:
        torch.cuda.set_device(device)
        square = torch.ones(8, 8, device=device)
        (square @ square).sum().item()  # a cuBLAS that finds no memory is no fault of a way's
    except Exception as error:
        say({"unavailable": f"{type(error).__name__}: {error}".partition("\n")[0]})
        return
    say({"ready": torch.cuda.get_device_name(device)})
    check_all(ways, device, say)


if __name__ == "__main__":
    main(sys.argv[1:])
