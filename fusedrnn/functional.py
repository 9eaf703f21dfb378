"""Recurrent networks without a module: layers on layers, and everything that is checked first.

    input -> layer 0 -> dropout -> layer 1 -> dropout -> ... -> output

`rnn_tanh`, `rnn_relu`, `lstm` and `gru` are the public functions; the modules call what lies under
them, `run_network` and `run_cell`, with the weights that they own. Between those two levels and the
layers the input is turned so that time comes first, packed if it comes with `lengths`, and cast
where autocast wants it; each layer is one call of `autograd.run_layer`. Errors have the types of
torch.nn and, where they can, its messages.

Weights come in the order of torch's `_flat_weights`: for each layer, for each direction,
w_ih [G*H, I], w_hh [G*H, R], then b_ih, b_hh [G*H] with biases, then w_hr [P, H] if projected.
G is the number of gates (1 in a simple network, 4 in an LSTM, 3 in a GRU), H the hidden size, P the
projection size, R the width of the output (P if projected, else H) and D the number of directions.
The equations and their sources are in reference.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedrnn import reference
from fusedrnn._engine import ops
from fusedrnn._engine.autograd import is_captured, run_layer, run_modified, runs_elsewhere
from fusedrnn._engine.checks import (
    as_given,
    as_lengths,
    check_cell,
    check_checkpoint,
    check_cu_seqlens,
    check_initial_states,
    check_input,
    check_lengths,
    check_offsets,
    check_proj_size,
    check_reset,
    check_reset_after,
    check_reset_states,
    check_reset_values,
    check_states,
    check_weights,
    reject_nested,
    reject_no_steps,
    states_of,
)
from fusedrnn._engine.docstrings import completed_from
from fusedrnn._engine.dropouts import Dropouts, Masks
from fusedrnn._engine.layer import UNMODIFIED, Layer, Modifiers, Network, Operands, layer_of
from fusedrnn._engine.sequences import layout_of_joined, layout_of_padded
from fusedrnn._engine.step_inputs import (
    placed_step_inputs,
    sequences_of,
    sizes_of,
    step_inputs_of_layer,
    values_of_jagged,
)
from fusedrnn._engine.torch_private import (
    has_no_values,
    is_any_autocast_on,
    is_onednn_on,
    onednn_dtypes,
)
from fusedrnn._engine.tuning import TUNERS
from fusedrnn.cells import W_HH, W_IH, Cell, by_option, cell_named

__all__ = ["gru", "lstm", "rnn_relu", "rnn_tanh"]

_ONEDNN_HAS = onednn_dtypes()
"""The dtypes of which torch.nn's LSTM on this processor is one op: autocast treats it so."""


def rnn_tanh(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    checkpoint: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Elman networks with tanh: h' = tanh(W_ih x + b_ih + W_hh h + b_hh).

    Args:
        input: float64, float32, bfloat16 or float16 of shape [T, B, I] ([B, T, I] if
            `batch_first`), [T, I] for one sequence, or [N, I] with `batch_sizes`.
        hx: the first state of every layer and direction, [num_layers * D, B, H] ([num_layers * D,
            H] for one sequence) of the input's dtype, or None for zeros.
        weights: of all layers, in the order that the head of this file gives.
        num_layers: how many layers stand on each other.
        bias: whether `weights` has biases.
        dropout: the probability of a zero in the outputs of all layers but the last, in training.
        training: whether dropout is applied.
        bidirectional: whether each layer also walks from the last step to the first.
        batch_first: whether input and output are [B, T, ...].
        batch_sizes: makes the input a packed one: int64 [T] on the CPU, how many sequences are
            alive at each step, as in torch's `PackedSequence`, sorted.
        lengths: int64 or int32 [B] on any device, or a list of ints: the steps of each sequence of
            a padded input, from 0 to T. The output after a sequence's end is zero, its final state
            is that of its last step, and the reverse direction begins there; what the input holds
            after the end is not read, and a sequence of no steps keeps its state. None if all have
            T steps.
        checkpoint: keeps the states of every so many steps for backward and no gates, which are
            computed again there: less memory for more time, see `fusedrnn.LSTM`. It changes nothing
            in simple networks, which keep no gates, nor where no gradient is needed.

    Returns:
        The output of the last layer, [T, B, D*H] or as the input is laid out, and the final states,
        laid out as `hx`.

    Raises:
        ValueError: input and weights differ in dtype, the input is neither 2-D nor 3-D,
            `checkpoint` is less than 1, or there are `lengths` of an input that has none.
        TypeError: `checkpoint` is neither None nor an int, or `lengths` no tensor of integers.
        RuntimeError: a size, device or dtype does not fit, `batch_sizes` is not valid, or a length
            is less than 0 or more than T.
        AttributeError: `input` or `hx` is not a tensor.
    """
    network = network_of(
        cell_named("rnn_tanh"), "rnn_tanh", num_layers, bias, False, bidirectional, batch_first,
        checkpoint,
    )  # fmt: skip
    dropout = dropout if training else 0.0
    return _run(network, dropout, input, hx, weights, batch_sizes, lengths)


@completed_from(rnn_tanh)
def rnn_relu(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    checkpoint: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Elman networks with relu: h' = relu(W_ih x + b_ih + W_hh h + b_hh)."""
    network = network_of(
        cell_named("rnn_relu"), "rnn_relu", num_layers, bias, False, bidirectional, batch_first,
        checkpoint,
    )  # fmt: skip
    dropout = dropout if training else 0.0
    return _run(network, dropout, input, hx, weights, batch_sizes, lengths)


@completed_from(rnn_tanh)
def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    checkpoint: int | None = None,
    proj_size: int = 0,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Long short-term memory, with the projection of h if `proj_size` says so.

        i, f, g, o = W_ih x + b_ih + W_hh h + b_hh
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c'), and W_hr times that if projected

    Args:
        hx: the pair of the first h, [num_layers * D, B, R] ([num_layers * D, R] for one sequence),
            and the first c, the same with H in place of R, of the input's dtype; or None for zeros.
        proj_size: the features R of h and of the output; 0 for no projection, R = H. The `weights`
            of each layer and direction then end with w_hr [R, H].

    Returns:
        The output of the last layer, [T, B, D*R] or as the input is laid out, and the pair of the
        final h and c, laid out as `hx`.
    """
    check_proj_size(proj_size)
    network = network_of(
        cell_named("lstm"), "lstm", num_layers, bias, proj_size > 0, bidirectional, batch_first,
        checkpoint,
    )  # fmt: skip
    dropout = dropout if training else 0.0
    return _run(network, dropout, input, hx, weights, batch_sizes, lengths, proj_size)


@completed_from(rnn_tanh)
def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    checkpoint: int | None = None,
    reset_after: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent units, the reset gate after the recurrent product as in cuDNN and torch.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Args:
        reset_after: whether the reset gate comes after the product; if not, before it, as in Keras
            with `reset_after=False` and ONNX with `linear_before_reset=0`:
            n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).

    Raises:
        ValueError: input and weights differ in dtype, the input is neither 2-D nor 3-D,
            `checkpoint` is less than 1, or there are `lengths` of an input that has none.
        TypeError: `checkpoint` is neither None nor an int, `lengths` no tensor of integers, or
            `reset_after` no bool.
        RuntimeError: a size, device or dtype does not fit, `batch_sizes` is not valid, or a length
            is less than 0 or more than T.
        AttributeError: `input` or `hx` is not a tensor.
    """
    network = network_of(
        gru_of(reset_after), "gru", num_layers, bias, False, bidirectional, batch_first, checkpoint
    )
    dropout = dropout if training else 0.0
    return _run(network, dropout, input, hx, weights, batch_sizes, lengths)


def __dir__() -> list[str]:
    return __all__


_GRUS = by_option("GRU", "reset_after")


def gru_of(reset_after: bool) -> Cell:
    """The GRU's cell whose reset gate comes after the product, or before it."""
    check_reset_after(reset_after)
    return _GRUS[reset_after]


def network_of(
    cell: Cell,
    name: str,
    num_layers: int,
    biases: bool,
    projected: bool,
    bidirectional: bool,
    batch_first: bool,
    checkpoint: int | None,
) -> Network:
    """What `run_network` takes, from what modules and functions are given."""
    layer = layer_of(cell.spec, biases, projected, bidirectional)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
        layer = layer._replace(checkpoint=checkpoint)
    return Network(layer, name, num_layers, batch_first)


def _run(
    network: Network,
    dropout: float,
    input: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | Sequence[int] | None,
    proj_size: int = 0,
) -> tuple[Tensor, Any]:
    check_weights(network, weights, proj_size)
    states = states_of(network.layer.cell, hx)
    output, hn, _ = run_network(network, dropout, input, states, weights, batch_sizes, lengths)
    return output, as_given(hn)


def run_network(
    network: Network,
    dropout: float,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Any = None,
    extras: Extras | None = None,
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """All layers of a network whose weights are known to be complete, to (output, hn, states).

    `dropout` is that between the layers, 0 out of training; `hx` is empty for zeros. `states` are
    those after every step if `extras` want them. In a small network every microsecond here counts.
    """
    layer, name, num_layers, batch_first = network
    if isinstance(input, Tensor) and input.is_nested:
        return _run_jagged(network, dropout, input, hx, weights, batch_sizes, lengths, extras)
    dims = check_input(name, input, batch_sizes, weights)
    cu_seqlens = None if extras is None else extras.cu_seqlens
    if cu_seqlens is not None:
        _check_joined(cu_seqlens, input, batch_sizes, lengths)
    one = batch_sizes is None and dims == 2 and cu_seqlens is None
    if batch_sizes is None and cu_seqlens is None:
        if batch_first and not one:
            input = input.transpose(0, 1)
        if input.shape[0] == 0:
            reject_no_steps()
    boundaries, steps = UNMODIFIED, _NO_STEP_INPUTS
    if extras is not None:
        hx, boundaries = _states_and_boundaries(network, extras, input, batch_sizes, hx, weights)
        if layer.cell.step_inputs or extras.step_inputs is not None:
            steps = _step_inputs(network, extras, input, batch_sizes, hx, weights)
    elif hx:
        batch = None if one else _batch(input, batch_sizes, hx)
        shapes = shapes_of_states(layer.cell, num_layers, layer.directions, weights)
        check_states(layer.cell, hx, shapes, batch, input)
    layout, first = None, hx
    if lengths is not None:
        lengths = as_lengths(lengths)
        check_lengths(lengths, input, batch_sizes)
        if input.size(1) == 0:
            lengths = None
        elif not (is_captured() or has_no_values(input)):
            layout, lengths = layout_of_padded(input, lengths), None
            boundaries = layout.sort_modifiers(boundaries)
            steps = [layout.sort_steps(e) for e in steps]
    elif cu_seqlens is not None:
        layout = layout_of_joined(input, cu_seqlens)
        if boundaries.reset is not None:
            by = layout.sort_modifiers(Modifiers(reset_states=boundaries.reset_states)).reset_states
            boundaries = Modifiers(layout.sort_rows(boundaries.reset), by)
        steps = [layout.sort_rows(e.squeeze(2)).transpose(1, 2) for e in steps]
    if layout is not None:
        ops.check_storages(**ops.named("hx", hx))
        input, batch_sizes = layout.pack(input), layout.batch_sizes
        hx = layout.sort(hx)
    if one:
        input = input.unsqueeze(1)
        hx = [state.unsqueeze(1) for state in hx]

    empty = batch_sizes is not None and input.size(0) == 0 and int(batch_sizes.sum()) == 0
    if empty:  # a packed batch of no sequences: to the ops, one step of a batch of none
        input, batch_sizes, boundaries = input.unsqueeze(0), None, UNMODIFIED
        steps = [e[:1] for e in steps]

    autocast = is_any_autocast_on() and torch.is_autocast_enabled(input.device.type)
    if autocast:
        one_op = batch_sizes is None and lengths is None and not (empty or layer.projected)
        one_op = one_op and _is_one_op_in_torch(input)
        input, hx, weights = _cast(layer.cell, input, hx, weights, one_op)
        by = [state.to(input.dtype) for state in boundaries.reset_states]
        boundaries = boundaries._replace(reset_states=by)
        steps = [e.to(input.dtype) for e in steps]
    if input.is_cuda and ops.allow_tf32(input):
        layer = layer._replace(allow_tf32=True)
    operands = Operands(input, batch_sizes, hx, weights, boundaries)
    states: Sequence[Tensor] = ()
    tuner = None
    if TUNERS and extras is None and lengths is None and not is_captured():
        tuner = TUNERS.get(input.device.type)
        if tuner is not None and layer.cell.program is not None:
            tuner = None if runs_elsewhere(layer, input, captured=False) else tuner
    if tuner is not None:
        output, hn = tuner.run(
            layer, num_layers, dropout, operands, partial(_by_kernels, layer, num_layers, dropout)
        )
    elif num_layers == 1 and extras is None:
        output, hn = run_layer(layer, operands, lengths)
    else:
        output, hn, states = _run_stack(
            layer, num_layers, dropout, operands, lengths, extras, steps
        )
    if autocast and layer.projected and output.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
        many = len(hn) // len(layer.cell.states)  # all of h
        output, hn = output.to(dtype), [*(h.to(dtype) for h in hn[:many]), *hn[many:]]
        states = [*(h.to(dtype) for h in states[:many]), *states[many:]]

    if layout is not None:
        output, batch_sizes = layout.pad(output), None
        hn = layout.unsort(hn, first)
        states = [layout.pad(each.flatten(-2)).unflatten(-1, each.shape[-2:]) for each in states]
    if extras is not None:
        hn, states = _as_wanted(network, extras, hn, states, one, batch_sizes is not None or empty)
    if one:
        return output.squeeze(1), [state.squeeze(1) for state in hn], states
    if empty:
        return output.squeeze(0), hn, states
    if batch_first and batch_sizes is None and cu_seqlens is None:
        output = output.transpose(0, 1)
    return output, hn, states


class Extras(NamedTuple):
    """What a call may have that torch.nn's has not, see `fusedrnn.RNN`.

    Attributes:
        reset, reset_states: as the user gives them, or None.
        return_states: whether the states after every step are wanted.
        dropouts: those within the recurrence.
        training: whether they are applied.
        order: the sequences of `reset` and `reset_states` that a packed input has, in its order.
        cu_seqlens: where in an input of sequences one after the other each begins.
        initial: the states [parts, W] of every sequence that is given none.
        residual: whether a layer's input is added to its output, if it is not the first and they
            have as many features.
        by_layer: whether each layer has states of its own, since their sizes differ: first those
            of h, one for each layer, then those of the next state.
        states_batch_first: whether states of a batch are given and wanted as [B, parts, W].
        step_inputs: as the user gives them, or None.
    """

    reset: Tensor | None = None
    reset_states: Any = None
    return_states: bool = False
    dropouts: Dropouts | None = None
    training: bool = False
    order: Tensor | None = None
    cu_seqlens: Tensor | None = None
    initial: Sequence[Tensor] = ()
    residual: bool = False
    by_layer: bool = False
    states_batch_first: bool = False
    step_inputs: Any = None

    @property
    def zones_out(self) -> bool:
        """Whether states keep a share of those before, which they do out of training, too."""
        return self.dropouts is not None and bool(self.dropouts.zoneout)


def layers_of(
    network: Network,
    extras: Extras,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> list[tuple[Sequence[Tensor], Sequence[Tensor]]]:
    """The weights of each layer and its first states [D, B, W], for code that runs each by itself.

    `input` is [T, B, I], or [T, I] for one sequence, and `hx` what the module is given.
    """
    layer, _, num_layers, _ = network
    states, _ = _states_and_boundaries(network, extras, input, None, hx, weights)
    if not states:
        shapes = shapes_of_states(
            layer.cell, num_layers, layer.directions, weights, extras.by_layer
        )
        batch = input.shape[1:-1]
        states = [input.new_zeros(parts, *batch, width) for parts, width in shapes]
    if input.dim() == 2:
        states = [state.unsqueeze(1) for state in states]
    count = len(weights) // num_layers
    return [
        (weights[i * count : (i + 1) * count], _of_layer(i, states, 0, layer, num_layers))
        for i in range(num_layers)
    ]


def _states_and_boundaries(
    network: Network,
    extras: Extras,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[Sequence[Tensor], Modifiers]:
    """The first states [parts, B, W], and boundaries for all layers; both checked.

    `input` has time first, if it is not packed. Where each layer has states of its own, there are
    as many as layers for each state of the cell, and the parts are the directions.
    """
    resets = extras.reset is not None or extras.reset_states is not None
    if not (hx or extras.initial or resets):
        return hx, UNMODIFIED
    layer, _, num_layers, _ = network
    cell = layer.cell
    shapes = shapes_of_states(cell, num_layers, layer.directions, weights, extras.by_layer)
    batch: int | None = None  # of one sequence
    if extras.cu_seqlens is not None:
        batch = len(extras.cu_seqlens) - 1
    elif input.dim() == 3 or batch_sizes is not None:
        batch = _batch(input, batch_sizes, hx, 0 if extras.states_batch_first else 1)
    initial: Sequence[Tensor] = ()
    if extras.initial:
        check_initial_states(cell, extras.initial, shapes)
        initial = extras.initial
        if is_any_autocast_on():  # as zeros would be
            initial = [state.to(input.dtype) for state in initial]
        if batch is not None:
            initial = [state.unsqueeze(1).expand(-1, batch, -1) for state in initial]
    if hx:
        check_states(cell, hx, shapes, batch, input, extras.states_batch_first)
        hx = _parts_first(hx, batch, extras)
    boundaries = UNMODIFIED
    if resets:
        boundaries = _boundaries(network, extras, input, batch_sizes, shapes, batch, initial)
    return hx or initial, boundaries


def shapes_of_states(
    cell: Cell, layers: int, directions: int, weights: Sequence[Tensor], by_layer: bool = False
) -> list[tuple[int, int]]:
    """The parts and features of each state: of all layers together, or of every layer its own."""
    if not by_layer:
        return [(layers * directions, width) for width in cell.widths(weights[W_HH])]
    of_layers = [cell.widths(w_hh) for w_hh in weights[W_HH :: len(weights) // layers]]
    return [(directions, width) for widths in zip(*of_layers, strict=True) for width in widths]


def _parts_first(states: Sequence[Tensor], batch: int | None, extras: Extras) -> Sequence[Tensor]:
    """States whose first dimension may be the batch as [..., parts, B, W]."""
    if batch is None or not extras.states_batch_first:
        return states
    return [state.movedim(0, -2) for state in states]


def _as_wanted(
    network: Network,
    extras: Extras,
    hn: Sequence[Tensor],
    states: Sequence[Tensor],
    one: bool,
    packed: bool,
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Final states [parts, B, W], and those of every step, [T, B, parts, W] or [N, parts, W]."""
    by_batch = extras.states_batch_first
    if by_batch and not one:
        hn = [state.transpose(0, 1) for state in hn]
    if packed:
        return hn, states
    if one:
        return hn, [state.squeeze(1).transpose(0, 1) for state in states]
    if extras.cu_seqlens is not None:
        return hn, [state.transpose(0, 1) for state in states]
    order = (1, 0, 2, 3) if by_batch else (2, 1, 0, 3) if network.batch_first else (2, 0, 1, 3)
    return hn, [state.permute(order) for state in states]


def _check_joined(cu_seqlens: Any, input: Tensor, batch_sizes: Tensor | None, lengths: Any) -> None:
    """Checks what tells the sequences of an input apart that stand one after the other."""
    if batch_sizes is not None or lengths is not None:
        raise ValueError("cu_seqlens: expected None with a packed input or with lengths")
    if is_captured():
        raise NotImplementedError(
            "cu_seqlens: how many steps the longest sequence has is a value, which a graph has no "
            "loop over; compile or export the model with a padded input and lengths"
        )
    check_cu_seqlens(cu_seqlens, input)


def _run_jagged(
    network: Network,
    dropout: float,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Any,
    extras: Extras | None,
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """As `run_network`, of a nested input, whose results are nested in the same way."""
    jagged = input.layout == torch.jagged and network.batch_first and input.dim() == 3
    if not jagged or batch_sizes is not None or lengths is not None or is_captured():
        reject_nested(input, network.batch_first)
    nested: Any = input
    if nested._lengths is not None or nested._ragged_idx != 1:
        reject_nested(input, network.batch_first)
    offsets = nested.offsets()
    extras = (extras or Extras())._replace(cu_seqlens=offsets)
    if isinstance(extras.step_inputs, Mapping):
        extras = extras._replace(step_inputs=values_of_jagged(extras.step_inputs, offsets))
    reset = extras.reset
    if isinstance(reset, Tensor) and reset.is_nested:
        same: Any = reset
        check_offsets("reset", same, offsets)
        extras = extras._replace(reset=same.values())
    output, hn, states = run_network(network, dropout, nested.values(), hx, weights, extras=extras)

    def as_nested(values: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(values, offsets)

    return as_nested(output), hn, [as_nested(each.transpose(0, 1)) for each in states]


def _boundaries(
    network: Network,
    extras: Extras,
    input: Tensor,
    batch_sizes: Tensor | None,
    shapes: Sequence[tuple[int, int]],
    batch: int | None,
    initial: Sequence[Tensor],
) -> Modifiers:
    """Boundaries as ops take them, for all layers; `shapes` are those of states, (parts, width).

    An `input` that is not packed has time first.
    """
    cell, batch_first = network.layer.cell, network.batch_first
    if extras.reset is None:
        raise ValueError("reset_states: expected None without reset")
    joined = extras.cu_seqlens is not None
    one = batch is None
    steps = input.size(0) if batch_sizes is None else len(batch_sizes)
    sequences: tuple[int, ...]
    if batch_sizes is not None and torch.compiler.is_compiling():  # it has no value
        sequences = extras.reset.shape[slice(1) if batch_first else slice(1, 2)]
    else:
        sequences = () if one or joined else (batch,)  # type: ignore[assignment]
    check_reset(extras.reset, (*sequences, steps) if batch_first else (steps, *sequences))
    reset = extras.reset.reshape(extras.reset.shape[: 1 + len(sequences)])
    if reset.dtype != torch.bool:
        if not (is_captured() or has_no_values(reset)):
            check_reset_values(reset)
        reset = reset != 0
    if one:
        reset = reset.unsqueeze(1)
    elif batch_first and not joined:
        reset = reset.transpose(0, 1)
    by: Sequence[Tensor] = initial
    if extras.reset_states is not None:
        layers = network.num_layers if extras.by_layer else 0
        by = states_of(cell, extras.reset_states, "reset_states", layers)
        every = None if joined else steps
        check_reset_states(cell, by, shapes, batch, every, input, extras.states_batch_first)
        by = _parts_first(by, batch, extras)
    if one:
        by = [state.unsqueeze(-2) for state in by]
    by = [state if state.dim() == 4 else state.unsqueeze(0) for state in by]
    if not is_captured():
        ops.check_storages(reset=reset, **ops.named("reset_states", by))
    boundaries = Modifiers(reset.to(input.device), by)
    if extras.order is None:
        return boundaries
    order = extras.order
    return boundaries.each(lambda tensor, sequences: tensor.index_select(sequences, order))


_NO_STEP_INPUTS: Sequence[Tensor] = ()


def _step_inputs(
    network: Network,
    extras: Extras,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:
    """What the cell reads at each step, [T, parts, B, K, H], checked: for each layer or for all.

    One part, or one unit, is for all. Of sequences one after the other they are [N, parts, 1, K,
    H]. An `input` that is not packed has time first, the step inputs as the user has it.
    """
    layer, _, _, batch_first = network
    joined, packed = extras.cu_seqlens is not None, batch_sizes is not None
    shape = {"t": input.size(0) if batch_sizes is None else len(batch_sizes)}
    if packed and torch.compiler.is_compiling():  # it has no value
        shape["b"] = sequences_of(extras.step_inputs, batch_first)
    elif packed or (input.dim() == 3 and not joined):
        shape["b"] = _batch(input, batch_sizes, hx)
    if batch_first:
        shape = {axis: shape[axis] for axis in "bt" if axis in shape}
    found = placed_step_inputs(
        layer.cell, extras.step_inputs, shape, sizes_of(network, weights), layer.directions, input
    )
    if extras.order is not None:
        order = extras.order
        found = [tensor.index_select(2, order) for tensor in found]
    return found


def run_cell(
    cell: Cell,
    name: str,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: bool,
    step_inputs: Any = None,
) -> Sequence[Tensor]:
    """One step of a cell, to the states after it: a layer of one step.

    input [B, I] or [I]; states [B, H] or [H], or none for zeros. `name` is what messages call the
    cell; `step_inputs` are what the user gives.
    """
    one = check_cell(name, input, hx, weights)
    modifiers = UNMODIFIED
    if cell.step_inputs or step_inputs is not None:
        size, shape = weights[W_HH].size(1), {} if one else {"b": input.size(0)}
        (steps,) = placed_step_inputs(cell, step_inputs, shape, [size], 0, input)
        modifiers = Modifiers(step_inputs=steps.expand(-1, -1, -1, -1, size))
    if one:
        input = input.unsqueeze(0)
        hx = [state.unsqueeze(0) for state in hx]
    if is_any_autocast_on() and torch.is_autocast_enabled(input.device.type):
        input, hx, weights = _cast(cell, input, hx, weights, one_op=False)
    layer = layer_of(cell.spec, biases, projected=False, bidirectional=False)
    if input.is_cuda and ops.allow_tf32(input):
        layer = layer._replace(allow_tf32=True)
    first = [state.unsqueeze(0) for state in hx]
    operands = Operands(input.unsqueeze(0), None, first, weights)
    if modifiers.step_inputs is not None:
        cast = modifiers.step_inputs.to(input.dtype)  # under autocast
        operands = operands._replace(modifiers=Modifiers(step_inputs=cast))
        layer = layer._replace(modified=True)
    # Sizes of nothing are allowed in a cell and unknown to the ops.
    hn: Sequence[Tensor]
    if not weights[W_IH].numel():
        _, hn = reference.layer(layer, operands)
    elif layer.modified:
        _, hn, _ = run_modified(layer, operands)
    else:
        _, hn = run_layer(layer, operands)
    states = [state.squeeze(0) for state in hn]
    return [state.squeeze(0) for state in states] if one else states


def _by_kernels(
    layer: Layer, num_layers: int, dropout: float, operands: Operands
) -> tuple[Tensor, Sequence[Tensor]]:
    """The layers without extras, to (output, hn)."""
    if num_layers == 1:
        return run_layer(layer, operands)
    output, hn, _ = _run_stack(layer, num_layers, dropout, operands, None, None)
    return output, hn


def _run_stack(
    layer: Layer,
    num_layers: int,
    dropout: float,
    operands: Operands,
    lengths: Tensor | None,
    extras: Extras | None,
    step_inputs: Sequence[Tensor] = _NO_STEP_INPUTS,
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """The layers one after the other, with dropout between them.

    The states after every step, if they are wanted, are [T, B, L*D, R], or packed [N, L*D, R]; or
    all states are by layer. `step_inputs` are as `_step_inputs` has them.
    """
    input, batch_sizes, hx, weights, boundaries = operands
    directions = layer.directions
    count = len(weights) // num_layers
    output, finals, steps = input, [], []
    masks = None
    if extras is not None and extras.dropouts is not None:
        masks = Masks(extras.dropouts, extras.training, input, batch_sizes)
    residual = extras is not None and extras.residual
    for i in range(num_layers):
        input = output
        own = Operands(
            input,
            batch_sizes,
            _of_layer(i, hx, 0, layer, num_layers),
            weights[i * count : (i + 1) * count],
        )
        if extras is None:
            output, hn = run_layer(layer, own, lengths)
        else:
            by = _of_layer(i, boundaries.reset_states, 1, layer, num_layers)
            modifiers = Modifiers(boundaries.reset, by)
            if step_inputs:
                size = own.weights[W_HH].size(0) // len(layer.cell.hidden)
                of_layer = step_inputs_of_layer(i, step_inputs, layer.directions, size)
                modifiers = modifiers._replace(step_inputs=of_layer)
            own = own._replace(modifiers=modifiers)
            output, hn, every = _run_with_extras(layer, own, lengths, extras, masks)
            steps.append([each.unflatten(-1, (directions, -1)) for each in every])
            if masks is not None:
                output = masks.output(output)
        finals.append(hn)
        if dropout and i < num_layers - 1:
            output = torch.dropout(output, dropout, True)
        if residual and i > 0 and output.size(-1) == input.size(-1):
            output = output + input
    if num_layers == 1:
        return output, finals[0], steps[0] if steps else ()
    if extras is not None and extras.by_layer:
        return output, _by_state(finals), _by_state(steps)
    return (
        output,
        [torch.cat(states) for states in zip(*finals, strict=True)],
        [torch.cat(states, dim=-2) for states in zip(*steps, strict=True)],
    )


def _of_layer(
    i: int, states: Sequence[Tensor], parts: int, layer: Layer, num_layers: int
) -> Sequence[Tensor]:
    """The states of layer `i`: its own, or its parts of what all layers share."""
    if len(states) > len(layer.cell.states):
        return states[i::num_layers]
    return [state.narrow(parts, i * layer.directions, layer.directions) for state in states]


def _by_state(of_layers: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The states of each layer as the first of all layers, the second of all layers, ..."""
    return [state for states in zip(*of_layers, strict=True) for state in states]


def _run_with_extras(
    layer: Layer,
    operands: Operands,
    lengths: Tensor | None,
    extras: Extras,
    masks: Masks | None,
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """One layer; the states after every step, if they are wanted, are laid out as its output."""
    if masks is not None:
        operands = masked(layer, operands, masks)
    modifiers = operands.modifiers
    wanted = extras.return_states
    all_states = wanted and len(layer.cell.states) > 1
    acts = modifiers.reset is not None or modifiers.recurrent_factor is not None
    if acts or all_states or modifiers.keep or modifiers.step_inputs is not None:
        layer = layer._replace(modified=True, all_states=all_states)
        output, hn, others = run_modified(layer, operands, lengths)
    else:
        output, hn = run_layer(layer, operands, lengths)
        others = ()
    return output, hn, (output, *others) if wanted else ()


def masked(layer: Layer, operands: Operands, masks: Masks) -> Operands:
    """The operands of a layer with the dropouts within it: a masked input and W_hh, modifiers."""
    roles, widths = layer.roles, layer.cell.widths(operands.weights[W_HH])
    modifiers = operands.modifiers._replace(
        recurrent_factor=masks.recurrent(layer.directions, widths[0]),
        keep=masks.keep(layer.directions, widths),
    )
    weights = [
        masks.weight(weight) if i % len(roles) == W_HH else weight
        for i, weight in enumerate(operands.weights)
    ]
    input = masks.input(operands.input)
    return operands._replace(input=input, weights=weights, modifiers=modifiers)


def _batch(
    input: Tensor, batch_sizes: Tensor | None, hx: Sequence[Tensor], batch_of_hx: int = 1
) -> int:
    """How many sequences there are."""
    if batch_sizes is None:
        return input.size(1)
    if hx and torch.compiler.is_compiling():  # batch_sizes has no value; take what hx claims
        return hx[0].size(batch_of_hx)
    return int(batch_sizes[0])


def _is_one_op_in_torch(input: Tensor) -> bool:
    """Whether torch.nn's LSTM for this input is one op of oneDNN on the CPU, if it can be."""
    # Dynamo can't ask whether oneDNN was switched off; in a graph it is taken to be on.
    if not torch.compiler.is_compiling() and not is_onednn_on():
        return False
    if input.dtype == torch.float16:
        return _ONEDNN_HAS[torch.float16] and not torch.is_grad_enabled()
    return _ONEDNN_HAS.get(input.dtype, False)


def _cast(
    cell: Cell, input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], one_op: bool
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """What autocast does to a call: the same dtypes come out as from torch.nn.

    There everything is in the autocast dtype on CUDA, where no state meets a product (in a simple
    network), and in an LSTM that is one op which autocast knows (`one_op`). Else only products are,
    and they meet a state that keeps its own dtype, which is c if there is one: the results are in
    what the two promote to, and here all is computed in that. As everywhere in autocast, float64 is
    left alone.
    """
    device = input.device.type
    dtype = torch.get_autocast_dtype(device)
    *_, met = hx or [input]
    meets = not one_op if len(cell.states) > 1 else cell.has_carry
    if meets and device == "cpu":
        dtype = torch.promote_types(dtype, met.dtype)
    if dtype == torch.float64:
        return input, hx, weights

    def cast(tensor: Tensor) -> Tensor:
        castable = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if castable else tensor

    return cast(input), [cast(state) for state in hx], [cast(weight) for weight in weights]
