"""What travels from a module to the ops: a network, a layer of it, and what the layer is given.

    Network    what a module or a function is called with: from functional.py down
    Layer      one layer of it, beside its tensors: from the first `autograd.run_layer` down
    Operands   the layer's tensors, in the order of the ops' schemas

The ops and torch's autograd take flat arguments. The ops take `op(*operands.tensors,
*layer.schema, ...)`, those of modified layers `all_tensors`. `forward_arguments` and the three like
it read the arguments of an op that is written in Python; `needed_of_op` and `nested` are for the
nesting in which torch.library has gradients. For autograd the operands are one flat tuple,

    input, a first state or None for each state of the cell, the weights

and in a modified layer its modifiers, those first that may have gradients. In it `needs`, a mask of
bits, gradients and tangents have the same places. `flat` makes it, `parts_of_flat` and `unflat`
take it apart, and `names_of_flat` says what stands where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedrnn.cells import CELLS, Cell, cell_of_spec

States = tuple[Tensor, ...]
"""The states of a cell, h first. As an argument, none stand for zeros."""

Optionals = Sequence[Tensor | None]


class Layer(NamedTuple):
    """One layer.

    Attributes:
        cell: the cell.
        biases: whether there are biases.
        projected: whether h is projected.
        bidirectional: whether there are both directions.
        checkpoint: the steps of a chunk, see checkpoint.py; 0 where the reserve is kept.
        allow_tf32: whether products may be rounded so, see `ops.allow_tf32`.
        modified: whether ops are called that take modifiers, see `Modifiers`.
        all_states: whether the states after h are results after every step, too; by these ops.
    """

    cell: Cell
    biases: bool
    projected: bool
    bidirectional: bool
    checkpoint: int = 0
    allow_tf32: bool = False
    modified: bool = False
    all_states: bool = False

    @property
    def schema(self) -> tuple[str, bool, bool, bool]:
        """What the ops take of it, between the tensors and what differs from op to op."""
        return self.cell.spec, self.biases, self.projected, self.bidirectional

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def roles(self) -> tuple[str, ...]:
        """What the weights of one direction are, in their order."""
        return self.cell.roles(self.biases, self.projected)

    @property
    def results(self) -> int:
        """How many tensors it gives: the output, final states, and states after every step."""
        states = len(self.cell.states)
        return 1 + states + (states - 1 if self.all_states else 0)


_BOTH = (False, True)


def _layers_of(cell: Cell) -> tuple[tuple[tuple[Layer, ...], ...], ...]:
    return tuple(tuple(tuple(Layer(cell, b, p, d) for d in _BOTH) for p in _BOTH) for b in _BOTH)


_LAYERS = {cell.spec: _layers_of(cell) for cell in CELLS}
"""Every layer, by its cell, biases, projected and bidirectional: in a small network making one
would be felt. Those of cells that users write come in when they are first met."""


class Network(NamedTuple):
    """Layers on layers.

    Attributes:
        layer: each of them, as it is on the CPU.
        name: what messages call the network.
        num_layers: how many layers there are.
        batch_first: whether input and output are [B, T, ...].
    """

    layer: Layer
    name: str
    num_layers: int
    batch_first: bool


class Modifiers(NamedTuple):
    """What acts on a layer's steps from outside its cell; csrc/layer/problem.h says how.

    Where shapes have [T, D, B, ...], any of the three may be 1 for what is the same for all, but of
    `reset_states` only T. T counts steps and B sequences, in the order of the operands', packed or
    not.

    Attributes:
        reset: bool [T, B], whether there is a boundary before the step; None for no boundaries.
        reset_states: what states are replaced by there, [T, D, B, R] and, of those after h,
            [T, D, B, H]; none stand for zeros.
        recurrent_factor: [T, D, B, R], times what W_hh multiplies; None for 1.
        keep: for each state the share of the one before that stays in it, shaped as its
            `reset_states`, or None.
        step_inputs: what the cell reads at each step beside the input, [T, D, B, K, H], for K of
            them; none of these is 1 for others. Any stride may be 0.
    """

    reset: Tensor | None = None
    reset_states: Sequence[Tensor] = ()
    recurrent_factor: Tensor | None = None
    keep: Optionals = ()
    step_inputs: Tensor | None = None

    def schema(self, input: Tensor) -> tuple[Any, ...]:
        """What the ops take of it, between the operands and the layer."""
        keep = [input.new_empty(0) if share is None else share for share in self.keep]
        return (
            self.reset, self.reset_states or None, self.recurrent_factor, keep or None,
            self.step_inputs,
        )  # fmt: skip

    def each(self, change: Callable[[Tensor, int], Tensor]) -> Modifiers:
        """Modifiers with change(tensor, the dimension of its sequences) for every tensor."""
        return Modifiers(
            None if self.reset is None else change(self.reset, 1),
            [change(state, 2) for state in self.reset_states],
            None if self.recurrent_factor is None else change(self.recurrent_factor, 2),
            [None if share is None else change(share, 2) for share in self.keep],
            None if self.step_inputs is None else change(self.step_inputs, 2),
        )


def modifiers_from(
    reset: Tensor | None,
    reset_states: Sequence[Tensor] | None,
    recurrent_factor: Tensor | None,
    keep: Sequence[Tensor] | None,
    step_inputs: Tensor | None,
) -> Modifiers:
    """Undoes `Modifiers.schema`."""
    shares = [None if share.shape == (0,) else share for share in keep or ()]
    return Modifiers(reset, reset_states or (), recurrent_factor, shares, step_inputs)


class Operands(NamedTuple):
    """The tensors of a layer.

    Attributes:
        input: [T, B, I], or [N, I] when packed.
        batch_sizes: [T], how many sequences are alive at each step; None when not packed.
        hx: the first states, [D, B, R] and, of those after h, [D, B, H]; none stand for zeros.
        weights: for each direction those of the layer's `roles`.
        modifiers: those of a modified layer.
    """

    input: Tensor
    batch_sizes: Tensor | None
    hx: Sequence[Tensor]
    weights: Sequence[Tensor]
    modifiers: Modifiers = Modifiers()

    @property
    def tensors(self) -> tuple[Any, ...]:
        """In the order of the ops that take no modifiers."""
        input, batch_sizes, hx, weights, _ = self
        return input, batch_sizes, hx or None, weights

    @property
    def all_tensors(self) -> tuple[Any, ...]:
        """In the order of the ops that take modifiers."""
        return *self.tensors, *self.modifiers.schema(self.input)


def flat(layer: Layer, operands: Operands) -> Optionals:
    """The operands that may have gradients, one after the other, and other modifiers."""
    input, _, hx, weights, modifiers = operands
    none = (None,) * len(layer.cell.states)
    if not layer.modified:
        return input, *(hx or none), *weights
    return (
        input, *(hx or none), *weights, *(modifiers.reset_states or none), modifiers.step_inputs,
        modifiers.reset, modifiers.recurrent_factor, *(modifiers.keep or none),
    )  # fmt: skip


def unflat(layer: Layer, tensors: Optionals, batch_sizes: Tensor | None) -> Operands:
    """The operands of which `tensors` are the flat tuple."""
    input, hx, weights, modifiers = parts_of_flat(layer, tensors)
    return Operands(input, batch_sizes, hx, weights, modifiers)


def parts_of_flat(
    layer: Layer, tensors: Optionals
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], Modifiers]:
    """Input, first states, weights and modifiers of the flat tuple."""
    states = len(layer.cell.states)
    first_weight = 1 + states
    hx = tensors[1:first_weight]
    given = () if hx[0] is None else hx  # all of them are None, or none is
    weights, modifiers = tensors[first_weight:], UNMODIFIED
    if layer.modified:
        end = len(layer.roles) * layer.directions
        weights, (*by, step_inputs, reset, factor), keep = (
            weights[:end], weights[end : end + states + 3], weights[end + states + 3 :]
        )  # fmt: skip
        given_by = () if by[0] is None else by
        modifiers = Modifiers(reset, given_by, factor, keep, step_inputs)  # type: ignore[arg-type]
    return tensors[0], given, weights, modifiers  # type: ignore[return-value]


UNMODIFIED = Modifiers()


def names_of_flat(layer: Layer) -> tuple[str, ...]:
    """What stands in each place of the flat tuple: "input", the cell's states, roles, modifiers."""
    states = layer.cell.states
    names = ("input", *states, *layer.roles * layer.directions)
    if not layer.modified:
        return names
    return (
        *names, *(f"reset_{state}" for state in states), "step_inputs", "reset",
        "recurrent_factor", *(f"keep_{state}" for state in states),
    )  # fmt: skip


def layer_of(cell: str, biases: bool, projected: bool, bidirectional: bool) -> Layer:
    """The layer that a schema's arguments describe."""
    layers = _LAYERS.get(cell)
    if layers is None and torch.compiler.is_compiling():  # a trace may be begun again
        return Layer(cell_of_spec(cell), biases, projected, bidirectional)
    if layers is None:
        layers = _LAYERS.setdefault(cell, _layers_of(cell_of_spec(cell)))
    return layers[biases][projected][bidirectional]


class ForwardArguments(NamedTuple):
    """What a forward op is given. `rest` differs from op to op, and so may `batch_sizes`, which are
    lengths where the input is padded."""

    layer: Layer
    operands: Operands
    rest: tuple[Any, ...]


def forward_arguments(
    input: Tensor,
    where: Tensor | None,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    cell: str,
    biases: bool,
    projected: bool,
    bidirectional: bool,
    *rest: Any,
) -> ForwardArguments:
    """From the order of the schemas; `where` the steps end are batch sizes or lengths."""
    layer = layer_of(cell, biases, projected, bidirectional)
    return ForwardArguments(layer, Operands(input, where, hx or (), weights), rest)


def modified_forward_arguments(
    input: Tensor,
    where: Tensor | None,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    reset: Tensor | None,
    reset_states: Sequence[Tensor] | None,
    recurrent_factor: Tensor | None,
    keep: Sequence[Tensor] | None,
    step_inputs: Tensor | None,
    *others: Any,
) -> ForwardArguments:
    """As `forward_arguments`, with modifiers between operands and layer."""
    layer, operands, rest = forward_arguments(input, where, hx, weights, *others)
    modifiers = modifiers_from(reset, reset_states, recurrent_factor, keep, step_inputs)
    operands = operands._replace(modifiers=modifiers)
    return ForwardArguments(layer._replace(modified=True), operands, rest)


class BackwardArguments(NamedTuple):
    """What a backward op is given, as in `ForwardArguments`."""

    layer: Layer
    operands: Operands
    grad_output: Tensor | None
    grad_states: Sequence[Tensor]
    output: Tensor
    reserve: Tensor
    rest: tuple[Any, ...]


def backward_arguments(
    grad_output: Tensor | None, grad_states: Sequence[Tensor], *arguments: Any
) -> BackwardArguments:
    """From the order of the schemas: output and reserve stand between operands and layer."""
    input, where, hx, weights, output, reserve, *others = arguments
    layer, operands, rest = forward_arguments(input, where, hx, weights, *others)
    return BackwardArguments(layer, operands, grad_output, grad_states, output, reserve, rest)


def modified_backward_arguments(
    grad_output: Tensor | None, grad_states: Sequence[Tensor], *arguments: Any
) -> BackwardArguments:
    """As `backward_arguments`, with modifiers after the operands."""
    operands, (output, reserve), others = arguments[:9], arguments[9:11], arguments[11:]
    layer, given, rest = modified_forward_arguments(*operands, *others)
    layer = layer._replace(all_states=len(grad_states) > len(layer.cell.states))
    return BackwardArguments(layer, given, grad_output, grad_states, output, reserve, rest)


def flat_gradients(
    layer: Layer,
    grad_input: Tensor,
    grad_hx: Sequence[Tensor],
    grad_weights: Sequence[Tensor],
    grad_reset_states: Sequence[Tensor],
    grad_step_inputs: Tensor | None,
) -> Optionals:
    """What a backward op returns, in the places of the flat operands."""
    none = [None] * len(layer.cell.states)
    found = grad_input, *(grad_hx or none), *grad_weights
    if not layer.modified:
        return found
    return *found, *(grad_reset_states or none), grad_step_inputs, None, None, *none


def needed_of_op(layer: Layer, asked: Sequence[Any]) -> list[bool]:
    """What torch.library says is needed of an op's arguments, operands first, for the flat ones."""
    input, _, hx, weights, *rest = asked
    _, by, _, _, of_steps = rest[:5] if layer.modified else [None] * 5
    modifiers = Modifiers(reset_states=by or (), step_inputs=of_steps)
    return [bool(a) for a in flat(layer, Operands(input, None, hx or (), weights, modifiers))]


def nested(layer: Layer, gradients: Optionals, asked: Sequence[Any]) -> tuple[Any, ...]:
    """Flat gradients as the ops take the operands, for what torch.library says is needed of them.

    That is an empty list where the op was given one, and False where it was given None.
    """
    _, _, hx, weights, *rest = asked

    def as_asked(found: Optionals, what: Sequence[Any] | bool) -> Any:
        return None if isinstance(what, bool) else list(found[: len(what)])

    grad_input, *found = gradients
    states = len(layer.cell.states)
    nested = grad_input, None, as_asked(found, hx), as_asked(found[states:], weights)
    if not layer.modified:
        return *nested, *[None] * len(rest)
    _, by, _, keep, _, *others = rest
    of_reset = as_asked(found[states + len(weights) :], by)
    of_steps = found[2 * states + len(weights)]
    nothing = as_asked([None] * states, keep)
    return *nested, None, of_reset, None, nothing, of_steps, *[None] * len(others)
