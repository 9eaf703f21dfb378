"""A configuration of a recurrent network, how it is run, and the rule that its numbers obey.

A `Case` is everything that a network is and is fed. `Case.run` gives all its numbers by name:
output, final states, and the gradient of every input, state and parameter, for a loss that weighs
all outputs at random. `compare` measures them by this rule, `check` raises where they break it; the
tests and `fusedrnn verify` share both:

    fp64    ours and torch.nn's agree to 1e-10 of the tensor's largest magnitude
    others  our error against the fp64 oracle is at most twice torch.nn's, in the same dtype on the
            same inputs, plus a floor: four ulp of the tensor's largest magnitude, and four times
            what moving every input and weight by up to an ulp moves the oracle. (The
            second part is what the problem itself makes of rounding: a bias gradient whose terms
            cancel is as small as it likes, and torch.nn's error in it may be zero by luck.)

Errors are measured as the largest over a tensor. Both the oracle and torch.nn's side are torch.nn,
or plain PyTorch for a cell that it has not (oracles.py); test_reference.py holds our own reference
to them.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn._engine.checks import as_given
from fusedrnn.cells import Cell, cell_named
from fusedrnn.testing.oracles import is_oracle, oracle_of

Numbers = dict[str, Tensor]

FP64 = 1e-10


@dataclass(frozen=True)
class Case:
    cell: str = "lstm"  # the name of one of fusedrnn.cells
    T: int = 5
    B: int = 4
    I: int = 6  # noqa: E741
    H: int = 8
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    P: int = 0
    hx: bool = True
    unbatched: bool = False
    packed: str = ""  # "", "sorted", "unsorted", or "padded": with `lengths`
    strided: bool = False  # input, states and weights not contiguous
    seed: int = 0

    def __str__(self) -> str:
        shown = [self.cell]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                shown.append(field.name if value is True else f"{field.name}={value}")
        return "-".join(shown)

    @property
    def facts(self) -> Cell:
        """What its cell is."""
        return cell_named(self.cell)

    def suits(self, cell: str) -> bool:
        """Whether this is something that a cell may be."""
        return not self.P or cell_named(cell).projects

    def of(self, cell: str) -> Case:
        """This case with another cell, without the projection if that cell has none."""
        return dataclasses.replace(self, cell=cell, P=self.P if self.suits(cell) else 0)

    def hx_of(self, states: Sequence[Tensor]) -> Any:
        """States as its modules take them: a tuple, or h itself; None if there are none."""
        return as_given(states) if states else None

    def states_of(self, final: Any) -> tuple[Tensor, ...]:
        """The states that its modules return, h first."""
        return tuple(final) if len(self.facts.states) > 1 else (final,)

    def module(self, package: object = fusedrnn, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The network in torch.nn (or its oracle in plain PyTorch) or fusedrnn.

        Parameters depend only on the seed.
        """
        torch.manual_seed(self.seed)
        options: dict[str, Any] = dict(
            num_layers=self.layers, bias=self.bias, batch_first=self.batch_first,
            bidirectional=self.bidirectional, dtype=torch.float64,
        )  # fmt: skip
        if self.P:
            options["proj_size"] = self.P
        if package is nn:
            return oracle_of(self.cell)(self.I, self.H, **options).to(dtype)
        kind, of_cell = getattr(package, self.facts.module), self.facts.options
        module: nn.Module = kind(self.I, self.H, **options, **of_cell)
        return module.to(dtype)

    def inputs(self) -> Numbers:
        """Input, states and the weights of the loss, in fp64 with the precision of bf16."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        directions = 2 if self.bidirectional else 1

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator).to(torch.bfloat16).double()

        batch = () if self.unbatched else (self.B,)
        x = (self.B, self.T) if self.batch_first and not self.unbatched else (self.T, *batch)
        numbers = {"input": normal(*x, self.I)}
        for state in self.facts.states if self.hx else ():
            width = (self.P or self.H) if state == "h" else self.H
            numbers[f"{state}0"] = normal(self.layers * directions, *batch, width)
        return numbers

    def lengths(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 2)
        lengths = torch.randint(1, self.T + 1, (self.B,), generator=generator)
        lengths[self.B // 2] = self.T
        return lengths.sort(descending=True).values if self.packed == "sorted" else lengths

    def run(self, module: nn.Module, inputs: Numbers, grads: bool = True) -> Numbers:
        """All numbers of one forward and backward pass."""
        parameter = next(module.parameters())
        leaves = {
            name: value.detach().clone().to(parameter).requires_grad_(grads)
            for name, value in inputs.items()
        }
        x, *states = (strided(leaf) if self.strided else leaf for leaf in leaves.values())
        sequence: Tensor | PackedSequence = x
        ours_padded = self.packed == "padded" and not is_oracle(module)
        options = {"lengths": self.lengths()} if ours_padded else {}
        if self.packed and not ours_padded:
            sequence = pack_padded_sequence(
                x, self.lengths(), self.batch_first, enforce_sorted=self.packed == "sorted"
            )
        with warnings.catch_warnings(), torch.set_grad_enabled(grads):
            warnings.simplefilter("ignore")  # torch.nn's, that oneDNN has no projections
            output, final = module(sequence, self.hx_of(states), **options)
        if self.packed == "padded" and not ours_padded:
            output, _ = pad_packed_sequence(output, self.batch_first, total_length=self.T)
        y = output.data if isinstance(output, PackedSequence) else output
        results = {"output": y}
        for state, value in zip(self.facts.states, self.states_of(final), strict=True):
            results[f"{state}n"] = value
        if grads:
            generator = torch.Generator().manual_seed(self.seed + 3)
            weights = [torch.randn(r.shape, generator=generator) for r in results.values()]
            torch.autograd.backward(list(results.values()), [w.to(y) for w in weights])
            for name, leaf in [*leaves.items(), *module.named_parameters()]:
                if leaf.grad is None:
                    raise AssertionError(f"{self}: no gradient of {name}")
                results[f"grad of {name}"], leaf.grad = leaf.grad, None
        return {name: value.detach() for name, value in results.items()}


def strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between all of them."""
    return torch.stack([tensor, torch.full_like(tensor, float("nan"))], -1)[..., 0]


def moved(tensor: Tensor, ulp: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
    return tensor * (1 + noise * ulp)


def sensitivity(
    case: Case, module: nn.Module, inputs: Numbers, oracle: Numbers, ulp: float
) -> Numbers:
    """How far each number of the oracle moves when all that is put in moves by up to an ulp."""
    reach = {name: torch.zeros(()) for name in oracle}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        other = case.module(nn)
        with torch.no_grad():
            for to, parameter in zip(other.parameters(), module.parameters(), strict=True):
                to.copy_(moved(parameter, ulp, generator))
        nearby = {n: moved(v, ulp, generator) for n, v in inputs.items()}
        for name, value in case.run(other, nearby, "grad of input" in oracle).items():
            reach[name] = torch.maximum(reach[name], largest(value - oracle[name]))
    return reach


def largest(tensor: Tensor) -> Tensor:
    return tensor.abs().max().double() if tensor.numel() else torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class Error:
    """How far one tensor of a case is from what it should be, and how far it may be.

    Attributes:
        name: the tensor: "output", a final state ("hn", "cn") or "grad of" an input, state or
            parameter.
        error: the largest difference, from torch.nn in float64 and else from the fp64 oracle.
        allowed: the most that the rule lets it be.
        largest: the tensor's largest magnitude, to see the error against.
        torch_error: torch.nn's own error; 0 in float64, where it is the measure.
    """

    name: str
    error: float
    allowed: float
    largest: float
    torch_error: float

    @property
    def holds(self) -> bool:
        """Whether the rule is kept; an error that is NaN breaks it."""
        return self.error <= self.allowed

    @property
    def used(self) -> float:
        """The part of what is allowed that was used: up to 1 where the rule is kept."""
        if self.error == 0:
            return 0.0
        return self.error / self.allowed if self.allowed else math.inf


def compare(
    case: Case,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    inference: Callable[[nn.Module], nn.Module] | None = None,
) -> list[Error]:
    """Runs a case with ours and torch.nn and measures every number by the rule.

    `inference` wraps our module in something that is called like it but has no gradients.

    Raises:
        AssertionError: a result has another name, shape or dtype than torch.nn's.
    """
    inputs, grads = case.inputs(), inference is None
    module = case.module(fusedrnn, dtype).to(device)
    ours = case.run(inference(module) if inference else module, inputs, grads)
    theirs = case.run(case.module(nn, dtype).to(device), inputs, grads)
    for what, found, expected in (
        ("results", list(ours), list(theirs)),
        ("shapes", *({n: tuple(v.shape) for n, v in side.items()} for side in (ours, theirs))),
        ("dtypes", *({n: v.dtype for n, v in side.items()} for side in (ours, theirs))),
    ):
        if found != expected:
            raise AssertionError(f"{case} in {dtype}: {what}: expected {expected}, got {found}")
    if dtype == torch.float64:
        scales = {name: float(largest(value)) for name, value in theirs.items()}
        return [
            Error(
                name,
                error=float(largest(value - theirs[name])),
                allowed=FP64 * scales[name] + 1e-300,
                largest=scales[name],
                torch_error=0.0,
            )
            for name, value in ours.items()
        ]
    # The oracle computes with the parameters as rounded to dtype.
    module = case.module(nn, dtype).double()
    oracle = case.run(module, inputs, grads)
    ulp = torch.finfo(dtype).eps
    reach = sensitivity(case, module, inputs, oracle, ulp)
    errors = []
    for name, exact in oracle.items():
        scale = float(largest(exact))
        error, torch_error = (
            float(largest(side[name].cpu().double() - exact)) for side in (ours, theirs)
        )
        allowed = allowed_error(torch_error, ulp, scale, float(reach[name]))
        errors.append(Error(name, error, allowed, scale, torch_error))
    return errors


def allowed_error(peer: float, ulp: float, scale: float, reach: float) -> float:
    """The rule: from the peer's error, the largest magnitude and what an ulp's move does to it."""
    return 2 * peer + 4 * ulp * scale + 4 * reach


def check(
    case: Case,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    inference: Callable[[nn.Module], nn.Module] | None = None,
) -> None:
    """Holds a case to the rule, see `compare`.

    Raises:
        AssertionError: what broke it, where, and by how much.
    """
    for found in compare(case, dtype, device, inference):
        if not found.holds:
            raise AssertionError(
                f"{case} in {dtype}, {found.name}: error {found.error:.2e}, allowed "
                f"{found.allowed:.2e}, torch.nn's {found.torch_error:.2e}, largest "
                f"{found.largest:.2e}"
            )


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """float32 layers on CUDA devices multiply in "ieee" or "tf32" here, torch.nn's and ours."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.rnn.fp32_precision
    cudnn.rnn.fp32_precision = precision
    try:
        yield
    finally:
        cudnn.rnn.fp32_precision = before


# Relative difference (of norms) beyond which two sides did not compute the same thing. Loose on
# purpose: the rule above is the rule, this only keeps us from timing something wrong. int8 is
# compared with torch.nn in float32.
PARITY_BOUND = {
    "float64": 1e-8, "float32": 1e-3, "tf32": 0.03, "float16": 0.1, "bfloat16": 0.25, "int8": 0.15,
}  # fmt: skip


class ParityError(Exception):
    """Two sides of a case gave different results."""


def check_parity(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, dtype: str, peer: str
) -> None:
    """Raises ParityError when any of our results is not, roughly, the peer's."""
    if ours.keys() != theirs.keys():
        raise ParityError(f"results: expected those of {peer}, {[*theirs]}; got {[*ours]}")
    for name, expected in theirs.items():
        got = ours[name]
        if got.shape != expected.shape:
            raise ParityError(
                f"{name}: expected shape {tuple(expected.shape)} as from {peer}, "
                f"got {tuple(got.shape)}"
            )
        difference = _relative_difference(got.double(), expected.double())
        if not difference <= PARITY_BOUND[dtype]:  # also when it is NaN
            raise ParityError(
                f"{name}: expected within {PARITY_BOUND[dtype]:g} of {peer}'s (relative), "
                f"got {difference:.3g}"
            )


def _relative_difference(got: Tensor, expected: Tensor) -> float:
    difference = float((got - expected).norm())
    scale = float(expected.norm())
    if not difference:
        return 0.0
    return difference / scale if scale else math.inf
