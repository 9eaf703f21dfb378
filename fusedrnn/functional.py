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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedrnn import reference
from fusedrnn._engine import ops
from fusedrnn._engine.autograd import is_captured, run_layer
from fusedrnn._engine.checks import (
    as_given,
    check_cell,
    check_checkpoint,
    check_input,
    check_lengths,
    check_proj_size,
    check_reset_after,
    check_states,
    check_weights,
    reject_nested,
    reject_no_steps,
    states_of,
)
from fusedrnn._engine.docstrings import completed_from
from fusedrnn._engine.layer import Layer, Network, Operands, layer_of
from fusedrnn._engine.sequences import Layout
from fusedrnn._engine.torch_private import (
    has_no_values,
    is_any_autocast_on,
    is_onednn_on,
    onednn_dtypes,
)
from fusedrnn.cells import W_IH, Cell, by_option, cell_named

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
    lengths: Tensor | None = None,
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
        lengths: int64 or int32 [B] on any device, the steps of each sequence of a padded input,
            from 1 to T. The output after a sequence's end is zero, its final state is that of its
            last step, and the reverse direction begins there; what the input holds after the end
            is not read. None if all have T steps.
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
            is less than 1 or more than T.
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
    lengths: Tensor | None = None,
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
    lengths: Tensor | None = None,
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
    lengths: Tensor | None = None,
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
            is less than 1 or more than T.
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
    layer = layer_of(cell.number, biases, projected, bidirectional)
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
    lengths: Tensor | None,
    proj_size: int = 0,
) -> tuple[Tensor, Any]:
    check_weights(network, weights, proj_size)
    states = states_of(network.layer.cell, hx)
    output, hn = run_network(network, dropout, input, states, weights, batch_sizes, lengths)
    return output, as_given(hn)


def run_network(
    network: Network,
    dropout: float,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """All layers of a network whose weights are known to be complete, to (output, hn).

    `dropout` is that between the layers, 0 out of training; `hx` is empty for zeros. In a small
    network every microsecond here counts.
    """
    layer, name, num_layers, batch_first = network
    dims = check_input(name, input, batch_sizes, weights)
    if input.is_nested:
        reject_nested(input, batch_first)
    one = batch_sizes is None and dims == 2
    if batch_sizes is None:
        if batch_first and not one:
            input = input.transpose(0, 1)
        if input.size(0) == 0:
            reject_no_steps()
    if hx:
        parts = 2 * num_layers if layer.bidirectional else num_layers
        batch = None if one else _batch(input, batch_sizes, hx)
        check_states(layer.cell, hx, parts, batch, input, weights)
    layout = None
    if lengths is not None:
        check_lengths(lengths, input, batch_sizes)
        if input.size(1) == 0:
            lengths = None
        elif not (is_captured() or has_no_values(input)):
            layout, lengths = Layout(input, lengths), None
            ops.check_storages(**ops.named("hx", hx))
            input, batch_sizes = layout.pack(input), layout.batch_sizes
            hx = layout.sort(hx)
    if one:
        input = input.unsqueeze(1)
        hx = [state.unsqueeze(1) for state in hx]

    empty = batch_sizes is not None and input.size(0) == 0 and int(batch_sizes.sum()) == 0
    if empty:  # a packed batch of no sequences: to the ops, one step of a batch of none
        input, batch_sizes = input.unsqueeze(0), None

    autocast = is_any_autocast_on() and torch.is_autocast_enabled(input.device.type)
    if autocast:
        one_op = batch_sizes is None and lengths is None and not (empty or layer.projected)
        one_op = one_op and _is_one_op_in_torch(input)
        input, hx, weights = _cast(layer.cell, input, hx, weights, one_op)
    if input.is_cuda and ops.allow_tf32(input):
        layer = layer._replace(allow_tf32=True)
    operands = Operands(input, batch_sizes, hx, weights)
    if num_layers == 1:
        output, hn = run_layer(layer, operands, lengths)
    else:
        output, hn = _run_stack(layer, num_layers, dropout, operands, lengths)
    if autocast and layer.projected and output.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
        h, *others = hn
        output, hn = output.to(dtype), (h.to(dtype), *others)

    if layout is not None:
        output, batch_sizes = layout.pad(output), None
        hn = layout.unsort(hn)
    if one:
        return output.squeeze(1), [state.squeeze(1) for state in hn]
    if empty:
        return output.squeeze(0), hn
    if batch_first and batch_sizes is None:
        output = output.transpose(0, 1)
    return output, hn


def run_cell(
    cell: Cell,
    name: str,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: bool,
) -> Sequence[Tensor]:
    """One step of a cell, to the states after it: a layer of one step.

    input [B, I] or [I]; states [B, H] or [H], or none for zeros. `name` is what messages call the
    cell.
    """
    one = check_cell(name, input, hx, weights)
    if one:
        input = input.unsqueeze(0)
        hx = [state.unsqueeze(0) for state in hx]
    if is_any_autocast_on() and torch.is_autocast_enabled(input.device.type):
        input, hx, weights = _cast(cell, input, hx, weights, one_op=False)
    layer = layer_of(cell.number, biases, projected=False, bidirectional=False)
    if input.is_cuda and ops.allow_tf32(input):
        layer = layer._replace(allow_tf32=True)
    # Sizes of nothing are allowed in a cell and unknown to the ops.
    run = run_layer if weights[W_IH].numel() else reference.layer
    _, hn = run(
        layer, Operands(input.unsqueeze(0), None, [state.unsqueeze(0) for state in hx], weights)
    )
    states = [state.squeeze(0) for state in hn]
    return [state.squeeze(0) for state in states] if one else states


def _run_stack(
    layer: Layer, num_layers: int, dropout: float, operands: Operands, lengths: Tensor | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """The layers one after the other, with dropout between them."""
    input, batch_sizes, hx, weights = operands
    directions = layer.directions
    count = len(weights) // num_layers
    output, finals = input, []
    for i in range(num_layers):
        parts = slice(i * directions, (i + 1) * directions)
        own = Operands(
            output,
            batch_sizes,
            [state[parts] for state in hx],
            weights[i * count : (i + 1) * count],
        )
        output, hn = run_layer(layer, own, lengths)
        finals.append(hn)
        if dropout and i < num_layers - 1:
            output = torch.dropout(output, dropout, True)
    return output, [torch.cat(states) for states in zip(*finals, strict=True)]


def _batch(input: Tensor, batch_sizes: Tensor | None, hx: Sequence[Tensor]) -> int:
    """How many sequences there are."""
    if batch_sizes is None:
        return input.size(1)
    if torch.compiler.is_compiling():  # batch_sizes has no value; take what hx claims
        h, *_ = hx
        return h.size(1)
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
