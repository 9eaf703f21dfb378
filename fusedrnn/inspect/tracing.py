"""What happens within a network: the values of all gates and states, and the gradients of states.

Neither is kept by a layer as it runs, since only someone who looks inside needs them:

    gates       depend on a step's input and the states before it only. So when the states are
                known, all steps of a layer are one batch of sequences of one step, and what forward
                keeps of them for backward, the reserve, has the gates.
    gradients   the layers are walked step by step as reference.py defines them, so that each state
                is a tensor that a gradient can be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from fusedrnn import functional, reference
from fusedrnn._engine import ops
from fusedrnn._engine.checks import as_lengths, kind_of, states_of
from fusedrnn._engine.dropouts import Masks
from fusedrnn._engine.layer import UNMODIFIED, Layer, Modifiers, Operands
from fusedrnn._engine.step_inputs import (
    placed_step_inputs,
    sizes_of,
    step_inputs_as_given,
    step_inputs_of_layer,
)
from fusedrnn.cells import W_HH, Cell
from fusedrnn.functional import Extras
from fusedrnn.modules import (
    _Layers,
    cell_of,
    check_recurrent,
    extras_of,
    states_as_given,
    weights_of,
)


@dataclass(frozen=True, eq=False)
class _ByPart(Mapping[str, dict[str, Tensor]]):
    """Tensors by name, for each layer and direction: `["l0"]["h"]`, `["l1_reverse"]["h"]`."""

    parts: dict[str, dict[str, Tensor]] = field(repr=False)

    __eq__ = object.__eq__  # two are the same if they are the same object: tensors have no truth
    __hash__ = object.__hash__

    def __getitem__(self, part: str) -> dict[str, Tensor]:
        if part not in self.parts:
            raise KeyError(f"expected one of {', '.join(self.parts)}, got {part!r}")
        return self.parts[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers and directions, named as their weights are: l0, l0_reverse, l1, ..."""
        return tuple(self.parts)


@dataclass(frozen=True, eq=False)
class Trace(_ByPart):
    """What `trace` found: a mapping from a layer and direction to its gates and states by name.

    `trace["l0"]["f"]` is the forget gate of the first layer, after its activation; the reverse
    direction's is `trace["l0_reverse"]["f"]`. Names are those of `fusedrnn.cells`: an LSTM has the
    gates i, f, g and o and the states h and c, a GRU has r, z, n and h, a simple network h. Each is
    laid out as the input, [T, B, H], [B, T, H] or [T, H], h with R features; the states are those
    after each step. After the end of a sequence there are zeros.

    Attributes:
        output: what the module gives, padded.
        hn: the final states, as the module gives them.
        batch_first: whether the tensors of a batch are [B, T, ...].
        lengths: the steps of each sequence, int64 [B]; None if none were given.
    """

    output: Tensor = field(repr=False)
    hn: Any = field(repr=False)
    batch_first: bool = False
    lengths: Tensor | None = None


@dataclass(frozen=True, eq=False)
class GradientFlow(_ByPart):
    """What `gradient_flow` found: a mapping from a layer and direction to the norms of gradients.

    `flow["l0"]["h"]` [T] has the norm of dL/dh_t for each step t, of the whole batch: how much the
    loss would change with the state after this step, along every path from there to the loss.

    Attributes:
        loss: the loss itself.
    """

    loss: float


def trace(
    module: RNNBase,
    input: Tensor | PackedSequence,
    hx: Any = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    step_inputs: Mapping[str, Any] | None = None,
) -> Trace:
    """Every gate and every state of a network, by layer, direction and step.

    The numbers are those of the module in evaluation mode: without dropout, and with zoneout as it
    acts there. Nothing is recorded for autograd, autocast isn't applied, and the module is left as
    it is. Hooks, and the `forward` of a class derived from these, are not run.

    Args:
        module: an `LSTM`, `GRU` or `RNN` of fusedrnn or torch.nn.
        input: as the module takes it; [T, B, I], or [B, T, I] if it has `batch_first`, [T, I] for
            one sequence, or a `PackedSequence`, whose results are padded.
        hx: the first states, as the module takes them; None for what it begins with.
        lengths: the steps of each sequence of a padded input, [B].
        step_inputs: what a written cell reads at each step, as `fusedrnn.Recurrent` takes it.

    Returns:
        A `Trace`; its tensors have the input's dtype and device.

    Raises:
        TypeError: `module` is no such module, `input` is neither a tensor nor a `PackedSequence`
            or is a nested tensor, or `lengths` has no integers.
        ValueError: `input` has no values (on the device meta), or as the module raises it.
        RuntimeError, IndexError, AttributeError: as the module raises them.

        >>> lstm = fusedrnn.LSTM(3, 4, batch_first=True)
        >>> traced = fusedrnn.inspect.trace(lstm, torch.randn(2, 5, 3))
        >>> traced.layers, [*traced["l0"]]
        (('l0',), ['i', 'f', 'g', 'o', 'h', 'c'])
        >>> traced["l0"]["f"].shape
        torch.Size([2, 5, 4])
    """
    inspected = _Inspected(module)
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError("lengths: expected None with a packed input")
        input, lengths = pad_packed_sequence(input, batch_first=module.batch_first)
    _check_input(input)
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        output, hn, layers = inspected.prepare(input, hx, lengths, step_inputs)
        steps = inspected.steps_first(input)
        ends = None if lengths is None else as_lengths(lengths).to(steps.device).long()
        dropouts = inspected.extras.dropouts
        parts = {}
        for i, (weights, first) in enumerate(layers):
            one_layer = inspected.network._replace(num_layers=1, batch_first=False)
            given = step_inputs_as_given(inspected.cell, inspected.step_inputs[i : i + 1])
            extras = Extras(return_states=True, dropouts=dropouts, step_inputs=given)
            after, _, states = functional.run_network(
                one_layer, 0.0, steps, first, weights, lengths=ends, extras=extras
            )
            for direction, name in enumerate(inspected.names(i)):
                own = inspected.of_direction(weights, direction)
                values = [state[direction] for state in states]
                before = [
                    _before(state, start[direction], direction == 1, ends)
                    for state, start in zip(values, first, strict=True)
                ]
                modifiers = inspected.modifiers(i, slice(direction, direction + 1))
                gates = _gates(inspected.one_direction, steps, before, own, ends, modifiers)
                named = gates | dict(zip(inspected.cell.states, values, strict=True))
                parts[name] = {key: inspected.as_input(value) for key, value in named.items()}
            steps = inspected.after_layer(i, steps, after)
    return Trace(parts, output, hn, module.batch_first, ends)


def gradient_flow(
    module: RNNBase,
    input: Tensor,
    loss: Callable[[Tensor, Any], Tensor],
    hx: Any = None,
    *,
    step_inputs: Mapping[str, Any] | None = None,
) -> GradientFlow:
    """How much of a loss reaches each state: the norms of dL/dh_t, and dL/dc_t, by layer and step.

    These are total derivatives. The loss may depend on a state directly, through the output of its
    step, and through all later steps: the latter is what vanishes or explodes (Bengio, Simard and
    Frasconi, "Learning long-term dependencies with gradient descent is difficult", 1994).

    An LSTM's c_t acts on the loss through h_t, too, and that is part of its gradient, as in
    backpropagation through time by hand; with zoneout h_t comes from the c before the mixture, and
    it isn't. The network is run step by step in plain PyTorch
    (`fusedrnn.reference`), in evaluation mode; that takes much longer than a call. No `.grad` of a
    parameter is touched. Hooks, and the `forward` of a class derived from these, are not run.

    Args:
        module: an `LSTM`, `GRU` or `RNN` of fusedrnn or torch.nn.
        input: [T, B, I], [B, T, I] if the module has `batch_first`, or [T, I] for one sequence.
        loss: is given `output` and `hn`, what the module returns, and gives a scalar.
        hx: the first states, as the module takes them; None for what it begins with.
        step_inputs: as in `trace`.

    Returns:
        A `GradientFlow`; its norms are float64 [T].

    Raises:
        TypeError: `module` is no such module, or `input` isn't a tensor or is a nested one.
        ValueError: `loss` doesn't return a scalar of a floating-point dtype, or one that depends on
            the module's results; `input` has no values; or as the module raises it.
        RuntimeError, IndexError, AttributeError: as the module raises them.

        >>> lstm = fusedrnn.LSTM(3, 4)
        >>> flow = fusedrnn.inspect.gradient_flow(
        ...     lstm, torch.randn(20, 2, 3), lambda output, hn: output[-1].square().sum()
        ... )
        >>> flow["l0"]["h"].shape, flow["l0"]["c"].shape
        (torch.Size([20]), torch.Size([20]))
    """
    if isinstance(input, PackedSequence):
        raise TypeError("input: expected a tensor, got a PackedSequence")
    _check_input(input)
    with torch.inference_mode(False), torch.autocast(input.device.type, enabled=False):
        inspected = _Inspected(module)
        input = _recordable(input)
        with torch.no_grad():
            _, _, layers = inspected.prepare(input, hx, None, step_inputs)
        steps = inspected.steps_first(input).detach().requires_grad_()
        every: dict[str, list[Sequence[Tensor]]] = {}
        finals = []
        for i, (weights, first) in enumerate(layers):
            walks = inspected.walks(i, steps, first, weights)
            every |= zip(inspected.names(i), (walked for walked, _ in walks), strict=True)
            after = [[h for h, *_ in walked] for walked, _ in walks]
            output = torch.stack([torch.cat(h, dim=-1) for h in zip(*after, strict=True)])
            steps = inspected.after_layer(i, steps, output)
            finals.append([torch.stack(s) for s in zip(*(last for _, last in walks), strict=True)])
        value = loss(inspected.as_input(steps), inspected.finals(finals))
        _check_loss(value)
        flat = [state for walked in every.values() for states in walked for state in states]
        gradients = torch.autograd.grad(value, flat, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        _reject_loss()
    found = iter(gradients)
    parts = {}
    for name, walked in every.items():
        norms = [[_norm(next(found), state) for state in states] for states in walked]
        by_state = [torch.stack(of_state) for of_state in zip(*norms, strict=True)]
        parts[name] = dict(zip(inspected.cell.states, by_state, strict=True))
    return GradientFlow(parts, float(value.detach()))


class _Inspected:
    """A module as its layers and directions, one by one.

    `one` is whether the input is one sequence, and `step_inputs` are those of each layer,
    [T, D, B, K, H]; known after `prepare`.
    """

    def __init__(self, module: RNNBase) -> None:
        check_recurrent(module)
        self.module = module
        self.cell = cell_of(module)
        self.weights = [_recordable(weight.detach()) for weight in weights_of(module)]
        self.network = functional.network_of(
            self.cell, self.cell.module, module.num_layers, module.bias, module.proj_size > 0,
            module.bidirectional, module.batch_first, checkpoint=None,
        )  # fmt: skip
        self.extras = extras_of(module) or Extras()
        self.one_direction = self.network.layer._replace(bidirectional=False)
        self.one = False
        self.step_inputs: list[Tensor] = []

    def prepare(
        self, input: Tensor, hx: Any, lengths: Any, step_inputs: Any
    ) -> tuple[Tensor, Any, list[tuple[Sequence[Tensor], Sequence[Tensor]]]]:
        """What the module gives, and each layer's weights and first states. Checks all of it."""
        module, extras, layers_of_hx = self.module, self.extras, 0
        if isinstance(module, _Layers):
            layers_of_hx = len(module._sizes)
            extras = extras._replace(initial=[s.detach() for s in module._initial_states()])
        extras = extras._replace(step_inputs=step_inputs)
        states = states_of(self.cell, hx, layers=layers_of_hx)
        output, hn, _ = functional.run_network(
            self.network, 0.0, input, states, self.weights, lengths=lengths, extras=extras
        )
        states = tuple(_recordable(state) for state in states)
        self.one = input.dim() == 2
        if self.cell.step_inputs:
            self._keep_step_inputs(input, step_inputs)
        layers = functional.layers_of(
            self.network, extras, self._time_first(input), states, self.weights
        )
        return output, states_as_given(module, hn), layers

    def _keep_step_inputs(self, input: Tensor, given: Any) -> None:
        axes = "t" if self.one else "bt" if self.module.batch_first else "tb"
        shape = dict(zip(axes, input.shape, strict=False))
        sizes, directions = sizes_of(self.network, self.weights), self.network.layer.directions
        found = placed_step_inputs(self.cell, given, shape, sizes, directions, input)
        self.step_inputs = [
            _recordable(step_inputs_of_layer(i, found, directions, size).detach())
            for i, size in enumerate(sizes)
        ]

    def modifiers(self, layer: int, directions: slice) -> Modifiers:
        """What acts on a layer's steps, but for dropouts."""
        if not self.step_inputs:
            return UNMODIFIED
        return Modifiers(step_inputs=self.step_inputs[layer][:, directions])

    def names(self, layer: int) -> list[str]:
        """The names of a layer's directions, as its weights have them."""
        return [f"l{layer}{suffix}" for suffix in ("", "_reverse")[: self.network.layer.directions]]

    def of_direction(self, weights: Sequence[Tensor], direction: int) -> Sequence[Tensor]:
        count = len(self.network.layer.roles)
        return weights[direction * count : (direction + 1) * count]

    def _time_first(self, input: Tensor) -> Tensor:
        return input.transpose(0, 1) if self.module.batch_first and not self.one else input

    def steps_first(self, input: Tensor) -> Tensor:
        """The input as [T, B, I]."""
        return input.unsqueeze(1) if self.one else self._time_first(input)

    def as_input(self, values: Tensor) -> Tensor:
        """Values [T, B, ...] laid out as the input."""
        return values.squeeze(1) if self.one else self._time_first(values)

    def after_layer(self, i: int, input: Tensor, output: Tensor) -> Tensor:
        """What the layer after layer i is given."""
        residual = self.extras.residual and i > 0 and input.shape == output.shape
        return output + input if residual else output

    def walks(
        self, i: int, steps: Tensor, first: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> list[tuple[list[Sequence[Tensor]], Sequence[Tensor]]]:
        """The states of the directions of layer `i` after every step, and the final ones."""
        modifiers = self.modifiers(i, slice(None))
        layer = self.network.layer._replace(modified=modifiers is not UNMODIFIED)
        operands = Operands(steps, None, first, weights, modifiers)
        if self.extras.dropouts is not None:
            layer = layer._replace(modified=True)
            operands = functional.masked(
                layer, operands, Masks(self.extras.dropouts, False, steps, None)
            )
        return reference.walks(layer, operands)

    def finals(self, of_layers: Sequence[Sequence[Tensor]]) -> Any:
        """Final states [D, B, W] of each layer as the module gives them."""
        by_state = zip(*of_layers, strict=True)
        states: list[Tensor] = []
        for each in by_state:
            states += each if self.extras.by_layer else [torch.cat(each)]
        if self.one:
            states = [state.squeeze(1) for state in states]
        elif self.extras.states_batch_first:
            states = [state.transpose(0, 1) for state in states]
        return states_as_given(self.module, states)


def _before(states: Tensor, first: Tensor, reverse: bool, ends: Tensor | None) -> Tensor:
    """A state before each step of a direction, [T, B, W], from those after each step."""
    if not reverse:
        return torch.cat([first[None], states[:-1]])
    before = torch.cat([states[1:], first[None]])
    if ends is None:
        return before
    last = torch.arange(len(states), device=states.device)[:, None] == ends - 1
    return torch.where(last[..., None], first, before)


def _gates(
    layer: Layer,
    steps: Tensor,
    before: Sequence[Tensor],
    weights: Sequence[Tensor],
    ends: Tensor | None,
    modifiers: Modifiers,
) -> dict[str, Tensor]:
    """The gates [T, B, H] that the kernels keep for backward, all steps as one batch."""
    cell: Cell = layer.cell
    kept = [name for name in cell.gates if name in cell.saved]
    H = weights[W_HH].size(0) // len(cell.hidden)
    if not kept or not steps.numel():
        return {name: steps.new_zeros(*steps.shape[:2], H) for name in kept}
    if ops.allow_tf32(steps):
        layer = layer._replace(allow_tf32=True)
    states = [state.flatten(0, 1).unsqueeze(0).contiguous() for state in before]
    operands = Operands(steps.flatten(0, 1).unsqueeze(0).contiguous(), None, states, weights)
    if modifiers.step_inputs is not None:  # [T, 1, B, K, H]
        own = modifiers.step_inputs.transpose(0, 1).flatten(1, 2)
        operands = operands._replace(modifiers=Modifiers(step_inputs=own.unsqueeze(0)))
        layer = layer._replace(modified=True)
    _, _, reserve = ops.forward(layer, operands, save=True)
    values = reserve[0, ..., :H].unflatten(0, steps.shape[:2])  # [T, B, saved, H]
    if ends is not None:
        alive = torch.arange(len(steps), device=steps.device)[:, None] < ends
        values = torch.where(alive[..., None, None], values, 0)
    return {name: values[..., cell.saved.index(name), :].clone() for name in kept}


def _norm(gradient: Tensor | None, state: Tensor) -> Tensor:
    """In float64: squares of what has vanished are zero in float32."""
    if gradient is None:
        return torch.zeros((), dtype=torch.float64, device=state.device)
    return torch.linalg.vector_norm(gradient, dtype=torch.float64)


def _recordable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode, which autograd can't use."""
    return tensor.clone() if tensor.is_inference() else tensor


def _check_input(input: Any) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a tensor, got {kind_of(input)}")
    if input.is_nested:
        raise TypeError("input: expected a tensor or a PackedSequence, got a nested tensor")
    if input.is_meta:
        raise ValueError("input: expected a tensor with values, got one on the device meta")


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"loss: expected to return a scalar tensor, got {kind_of(value)}")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            "loss: expected to return a scalar of a floating-point dtype, got "
            f"{value.dtype} of shape {tuple(value.shape)}"
        )
    if not value.requires_grad:
        _reject_loss()


def _reject_loss() -> NoReturn:
    raise ValueError("loss: expected to depend on output or hn, got a tensor that does not")
