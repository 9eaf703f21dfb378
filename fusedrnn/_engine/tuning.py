"""Which way is fastest for a network's call on this GPU, measured on the calls themselves.

Candidates are each team that the GPU has for the layers, and torch.nn's own path where it can serve
the call (torch_network.py): cuDNN runs layers together, so it is weighed against whole networks.

    a call of a shape that is not known  ->  some candidates run it, too, on the same tensors
    ...
    three times each, in turn, without those that are hopeless after the first
    ->  the teams of the layers' shapes, forward and backward, to the library (ways.h)
        the way of the network, here
        both to the record of this kind of GPU (record.py): the same record, the same bits

What is measured is a forward pass and, if a gradient will be needed, a backward pass of tensors
that share the call's memory: nothing of the caller's changes, and no random number is drawn. Until
all is known the plan's own choice serves. Nothing is measured

    in what a compiler, torch.func or a dispatch mode sees      nor is torch's path taken here
    with hooks on saved tensors (`torch.utils.checkpoint`)
    under torch.use_deterministic_algorithms
    under an override of plans, or with cuDNN switched off
    in the capture of a graph, or in a backward pass            what a record has holds here
    where ways could not be checked, or with FUSEDRNN_TUNE=0

The teams that a record has are taken in all of these, but under an override.

A process spends at most `ALLOWANCE` seconds and the `SHARE` of the time that its known calls take.
One measurement may exceed that, since nobody knows yet how long it takes.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fusedrnn._engine.layer import Layer, Operands
from fusedrnn._engine.layer_shapes import (
    PASSES,
    TEAMS,
    LayerShape,
    is_trained,
    network_name,
    shapes_of_network,
)
from fusedrnn._engine.torch_network import Results, Run, TorchNetwork, by_torch, can_serve
from fusedrnn._engine.torch_private import (
    has_dispatch_mode,
    has_no_values,
    has_saved_tensors_hooks,
    is_cudnn_on,
    is_forward_mode,
    is_in_backward,
    is_transformed_by_func,
)
from fusedrnn._engine.ways import Ways, is_on
from fusedrnn.cells import W_HH

ALLOWANCE, SHARE = 0.5, 0.05
ROUNDS = 3
HOPELESS = 1.5  # times the fastest, after the first round
OURS, TORCH = "fusedrnn", "torch.nn"

Seconds = tuple[float, ...]
"""Of a forward pass and, in training, a backward pass."""


@dataclass(frozen=True)
class Call:
    """One call of a network: what is measured, and by what."""

    network: TorchNetwork
    dropout: float
    operands: Operands
    training: bool

    def by_kernels(self, operands: Operands) -> Results:
        """What our kernels make of it."""
        return self.network.by_kernels(operands)

    def by_torch(self, operands: Operands) -> Results:
        """What torch's path makes of it."""
        return by_torch(self.network, operands, self.training)


@dataclass
class Choice:
    """What is known of all networks of about one size.

    Attributes:
        name: what a record calls them.
        spec: the cell, as ops have it.
        shapes: of the layers.
        way: OURS or TORCH, once it is decided.
        seconds: how long a call takes by the plan or, once it is decided, by the way; 0 unknown.
        teams: those that can walk, by pass; none for a pass that is decided already.
        candidates: what is measured: teams, OURS if they are decided, TORCH.
        rest: what is to be measured yet, the next last.
        found: the times of each candidate.
    """

    name: str
    spec: str
    shapes: Sequence[LayerShape]
    way: str | None = None
    seconds: float = 0.0
    teams: dict[str, list[str]] = field(default_factory=dict)
    candidates: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    found: dict[str, list[Seconds]] = field(default_factory=dict)

    @property
    def undecided(self) -> list[str]:
        """The passes whose team is to be found."""
        return [step for step in PASSES if self.teams.get(step)]

    def seconds_of(self, candidate: str) -> float:
        """The median of its times, both passes together."""
        return statistics.median(map(math.fsum, self.found[candidate]))

    def seconds_of_pass(self, team: str, step: str) -> float:
        """The median of a team's times in one pass."""
        return statistics.median(seconds[PASSES.index(step)] for seconds in self.found[team])


class Tuner:
    """Chooses ways for calls on the devices of some ways, and runs the calls.

    Attributes:
        ways: of the kernels.
        allowance: seconds that may be spent at once.
        spent: seconds that measuring took.
        worked: seconds that calls took whose time is known.
    """

    def __init__(self, ways: Ways) -> None:
        self.ways, self.allowance = ways, ALLOWANCE
        self.spent = self.worked = 0.0
        self._by_call: dict[tuple[Any, ...], Choice] = {}
        self._by_name: dict[tuple[int, str], Choice] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """What a record calls the networks that it met."""
        return [name for _, name in self._by_name]

    def run(
        self, layer: Layer, num_layers: int, dropout: float, operands: Operands, by_kernels: Run
    ) -> Results:
        """The output and final states of a network, by the way that is best known."""
        input = operands.input
        if (
            is_transformed_by_func()
            or is_forward_mode()
            or has_dispatch_mode()
            or has_no_values(input)
            or not input.numel()
            or self.ways.is_overridden()
        ):
            return by_kernels(operands)
        call = Call(
            TorchNetwork(layer, num_layers, by_kernels), dropout, operands, is_trained(operands)
        )
        index = self.ways.gpu.index_of(input)
        key = _key(index, call)
        choice = self._by_call.get(key) or self._new_choice(index, key, call)
        if choice.way is None and self._may_measure(index):
            self._measure_some(index, choice, call)
        self.worked += choice.seconds
        if choice.way == TORCH and _may_take_torch():
            try:
                return call.by_torch(operands)
            except torch.OutOfMemoryError:  # ours may need less, this time
                pass
            except RuntimeError:  # a limit of cuDNN's that others of the class keep; ours have none
                self._by_call[key] = replace(choice, way=OURS)
        return by_kernels(operands)

    def _may_measure(self, index: int) -> bool:
        return (
            _may_take_torch()
            and not is_in_backward()
            and not self.ways.gpu.is_capturing(index)
            and not self.ways.is_unchecked(index)
            and is_on("FUSEDRNN_TUNE")
        )

    def _new_choice(self, index: int, key: tuple[Any, ...], call: Call) -> Choice:
        with self._lock:
            choice = self._made_choice(index, call)
            if len(self._by_call) > 4096:  # lengths differ from call to call
                self._by_call.clear()
            self._by_call[key] = choice
        return choice

    def _made_choice(self, index: int, call: Call) -> Choice:
        """What is known of a network, or what is to be measured."""
        layer, num_layers, _ = call.network
        exact = shapes_of_network(layer, num_layers, call.operands, call.training)
        shapes = [shape.of_class() for shape in exact]
        serves = can_serve(layer, call.dropout, call.training)
        name = network_name(shapes[0], num_layers, not serves)
        choice = self._by_name.get((index, name))
        if choice is not None:
            return choice
        choice = Choice(name, layer.cell.spec, shapes)
        self.ways.check(index, layer.cell.spec if layer.cell.program else "")
        if not self._read(index, choice):
            self._find_candidates(index, choice, serves)
        self._by_name[index, name] = choice
        return choice

    def _find_candidates(self, index: int, choice: Choice, serves: bool) -> None:
        for step in choice.shapes[0].passes:
            choice.teams[step] = self._teams(index, choice, step)
        ours = [team for team in TEAMS if any(team in each for each in choice.teams.values())]
        if ours:  # first the one that would serve anyway, to know how long calls take
            plan = choice.shapes[0].plan(choice.spec, self.ways.gpu.facts(index), TEAMS)
            ours.sort(key=lambda team: team != plan["forward"]["team"])
        choice.candidates = (ours or [OURS]) + [TORCH] * serves
        if len(choice.candidates) == 1:  # there is nothing to choose
            choice.way = OURS
        choice.rest = choice.candidates[::-1]

    def _read(self, index: int, choice: Choice) -> bool:
        """Whether the record knows the way of such networks."""
        entry = self.ways.record(index).entries["networks"].get(choice.name, {})
        way, seconds = entry.get("way"), entry.get("seconds")
        if way not in (OURS, TORCH) or not isinstance(seconds, dict) or not seconds:
            return False
        if not all(isinstance(each, float) for each in seconds.values()):
            return False
        choice.way, choice.seconds = way, min(seconds.values())
        return True

    def _teams(self, index: int, choice: Choice, step: str) -> list[str]:
        """The fit teams that all layers' shapes have on the device; none if they have one."""
        known = self.ways.record(index).entries["teams"]
        if all(team_name(shape, step) in known for shape in choice.shapes):
            return []
        facts = self.ways.gpu.facts(index)
        arithmetic = arithmetic_of(choice.shapes[0], facts)
        struck = {
            (way.team, way.step) for way in self.ways.struck_off(index, choice.spec, arithmetic)
        }
        of_each = [shape.teams(choice.spec, facts, step) for shape in choice.shapes]
        fit = [
            team
            for team in TEAMS
            if (team, step) not in struck and all(team in of_one for of_one in of_each)
        ]
        return fit if len(fit) > 1 else []

    def _measure_some(self, index: int, choice: Choice, call: Call) -> None:
        """As much as there is time for; then decides, if that was all."""
        if not self._lock.acquire(blocking=False):  # another thread is at it
            return
        try:
            if self._read(index, choice):  # another GPU of this kind was first
                self.ways.choose_recorded(index, choice.spec)
            while choice.rest and choice.way is None:
                first = choice.rest[-1] not in choice.found
                expected = choice.seconds * (2 if first else 1)
                if self.spent + expected > self.allowance + SHARE * self.worked:
                    return
                begin = self.ways.gpu.clock()
                try:
                    self._measure(index, choice, choice.rest.pop(), call, first)
                finally:
                    self.spent += self.ways.gpu.clock() - begin
                if not choice.rest:
                    self._next_round(choice)
            if choice.way is None:
                self._decide(index, choice)
        finally:
            self._lock.release()

    def _next_round(self, choice: Choice) -> None:
        """Those that may still win, in the other direction; nobody if it is clear who does."""
        rounds = max(len(found) for found in choice.found.values())
        best = min(choice.seconds_of(name) for name in choice.candidates)
        hopeful = [n for n in choice.candidates if choice.seconds_of(n) <= HOPELESS * best]
        if rounds == ROUNDS or len(hopeful) == 1:
            return
        choice.rest = hopeful if rounds % 2 else hopeful[::-1]

    def _measure(self, index: int, choice: Choice, candidate: str, call: Call, first: bool) -> None:
        run = call.by_torch if candidate == TORCH else call.by_kernels
        seconds: Seconds = (math.inf,) * (1 + call.training)
        with self._taking(index, choice, candidate), _undisturbed(call):
            try:
                for _ in range(1 + first):  # once to load and to warm up
                    seconds = self._time(index, run, call)
            except RuntimeError:  # no memory for it, or torch refuses the call
                if candidate != TORCH:  # ours is what would serve: let it say so
                    choice.way = OURS
        choice.found.setdefault(candidate, []).append(seconds)
        if not choice.seconds and math.isfinite(sum(seconds)):
            choice.seconds = choice.seconds_of(candidate)

    def _time(self, index: int, run: Run, call: Call) -> Seconds:
        """The seconds of each pass."""
        operands = _aliases(call.operands)
        timer = self.ways.gpu.timer(index)
        timer.mark()
        output, _ = run(operands)
        timer.mark()
        if not call.training:
            return tuple(timer.gaps())
        tensors = (operands.input, *operands.hx, *operands.weights)
        needed = [tensor for tensor in tensors if tensor.requires_grad]
        grad = torch.ones_like(output)
        timer.mark()
        torch.autograd.grad([output], needed, [grad], allow_unused=True)
        timer.mark()
        forward, _, backward = timer.gaps()
        return forward, backward

    @contextmanager
    def _taking(self, index: int, choice: Choice, team: str) -> Iterator[None]:
        """Layers take a team meanwhile, in passes where it is not decided which."""
        steps = [step for step in choice.undecided if team in choice.teams[step]]
        open_shapes = [(shape, step) for step in steps for shape in self._open(index, choice, step)]
        for shape, step in open_shapes:
            self.ways.choose(index, choice.spec, shape, step, team)
        try:
            yield
        finally:
            for shape, step in open_shapes:
                self.ways.choose(index, choice.spec, shape, step, None)

    def _open(self, index: int, choice: Choice, step: str) -> list[LayerShape]:
        known = self.ways.record(index).entries["teams"]
        return [shape for shape in choice.shapes if team_name(shape, step) not in known]

    def _decide(self, index: int, choice: Choice) -> None:
        """Writes down the fastest teams and the faster way; what others wrote before holds."""
        record = self.ways.record(index)
        teams = {}
        of_ours = 0.0
        for step in choice.undecided:
            seconds = {t: choice.seconds_of_pass(t, step) for t in choice.teams[step]}
            fastest = min(seconds, key=seconds.__getitem__)
            of_ours += seconds[fastest]
            for shape in self._open(index, choice, step):
                teams[team_name(shape, step)] = {
                    "team": fastest, "seconds": seconds, "step": step, "shape": shape.as_dict(),
                }  # fmt: skip
        ours = [name for name in choice.candidates if name != TORCH]
        if len(choice.undecided) < len(choice.shapes[0].passes):
            of_ours = min(choice.seconds_of(name) for name in ours)
        found = {name: choice.seconds_of(name) for name in choice.candidates}
        found = {OURS: of_ours} | {n: s for n, s in found.items() if math.isfinite(s)}
        way = TORCH if found.get(TORCH, math.inf) < of_ours else OURS
        record.add("teams", teams)
        record.add("networks", {choice.name: {"way": way, "seconds": found}})
        self.ways.choose_recorded(index, choice.spec)
        if not self._read(index, choice):  # what another process wrote makes no sense
            choice.way = OURS


def arithmetic_of(shape: LayerShape, gpu: Mapping[str, Any]) -> str:
    """The arithmetic of a shape's ways on a device, which has tf32 since capability 8.0."""
    has_tf32 = gpu["capability"] >= (8, 0)
    return "tf32" if shape.tf32 and has_tf32 else shape.dtype


def team_name(shape: LayerShape, step: str) -> str:
    """What a record calls the choice of a team."""
    return f"{shape.of_class()} {step}"


def _key(index: int, call: Call) -> tuple[Any, ...]:
    """What a call is known by: calls with the same key share a choice."""
    layer, num_layers, _ = call.network
    input, batch_sizes, _, weights, _ = call.operands
    steps = () if batch_sizes is None else (len(batch_sizes), int(batch_sizes[0]))
    return (
        index, layer, num_layers, bool(call.dropout), call.training, input.dtype, input.shape,
        steps, weights[W_HH].shape,
    )  # fmt: skip


def _may_take_torch() -> bool:
    return is_cudnn_on() and not (
        has_saved_tensors_hooks() or torch.are_deterministic_algorithms_enabled()
    )


def _aliases(operands: Operands) -> Operands:
    """Tensors of their own that share the memory of the operands, with no history."""

    def alias(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(tensor.requires_grad and torch.is_grad_enabled())

    input, batch_sizes, hx, weights, modifiers = operands
    return Operands(
        alias(input), batch_sizes, [alias(state) for state in hx], [alias(w) for w in weights],
        modifiers,
    )  # fmt: skip


def _undisturbed(call: Call) -> AbstractContextManager[None]:
    """Random states are afterwards what they were; only dropout draws from them."""
    input = call.operands.input
    if not call.dropout:
        return nullcontext()
    return torch.random.fork_rng(devices=[input.device] if input.is_cuda else [])


TUNERS: dict[str, Tuner] = {}
"""By the type of device: who runs networks there. Empty where there is nothing to choose from."""


@contextmanager
def untuned() -> Iterator[None]:
    """Our kernels run all networks, by what is known: for whoever verifies or measures them."""
    tuners = dict(TUNERS)
    TUNERS.clear()
    try:
        yield
    finally:
        TUNERS.update(tuners)
