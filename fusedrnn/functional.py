"""Recurrent networks without a module: layers on layers, and everything that is checked first.

    input -> layer 0 -> dropout -> layer 1 -> dropout -> ... -> output

`rnn_tanh`, `rnn_relu`, `lstm` and `gru` are the public functions; the modules call what lies under
them, `run_layers` and `run_cell`, with the weights that they own. Between those two levels and the
layers the input is turned so that time comes first, packed if it comes with `lengths`, and cast
where autocast wants it; each layer is one call of `autograd.layer`. Errors have the types of
torch.nn and, where they can, its messages.

Weights come in the order of torch's `_flat_weights`: for each layer, for each direction,
w_ih [G*H, I], w_hh [G*H, R], then b_ih, b_hh [G*H] with biases, then w_hr [P, H] if projected.
G is the number of gates (1 in a simple network, 4 in an LSTM, 3 in a GRU), H the hidden size, P the
projection size, R the width of the output (P if projected, else H) and D the number of directions.
The equations and their sources are in reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fusedrnn import reference
from fusedrnn._engine import autograd, ops
from fusedrnn._engine.checks import (
    check_cell,
    check_checkpoint,
    check_input,
    check_lengths,
    check_reset_after,
    check_states,
    check_steps,
    check_weights,
    reject_nested,
    split_state,
)
from fusedrnn._engine.sequences import Layout
from fusedrnn.reference import GATES, GRU, GRU_RESET_BEFORE, LSTM, RNN_RELU, RNN_TANH

__all__ = ["gru", "lstm", "rnn_relu", "rnn_tanh"]

_ONEDNN = torch.backends.mkldnn.is_available()
_ONEDNN_HAS = {
    torch.float32: _ONEDNN,
    torch.bfloat16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}
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
    check_weights(RNN_TANH, weights, num_layers, bias, bidirectional)
    return run_layers(
        RNN_TANH, "rnn_tanh", input, hx, None, weights, num_layers, bias,
        dropout if training else 0.0, bidirectional, batch_first, batch_sizes, lengths,
        checkpoint,
    )[:2]  # fmt: skip


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
    """Elman networks with relu: h' = relu(W_ih x + b_ih + W_hh h + b_hh).

    Arguments, results and errors are those of `rnn_tanh`.
    """
    check_weights(RNN_RELU, weights, num_layers, bias, bidirectional)
    return run_layers(
        RNN_RELU, "rnn_relu", input, hx, None, weights, num_layers, bias,
        dropout if training else 0.0, bidirectional, batch_first, batch_sizes, lengths,
        checkpoint,
    )[:2]  # fmt: skip


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory, with the projection of h if `weights` has one.

        i, f, g, o = W_ih x + b_ih + W_hh h + b_hh
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c'), and W_hr times that if projected

    Arguments and errors are those of `rnn_tanh`, but for `hx`: it is a pair of the first h,
    [num_layers * D, B, R], and the first c, [num_layers * D, B, H].

    Returns:
        The output of the last layer, [T, B, D*R] or as the input is laid out, and the final h and
        c, laid out as `hx`.
    """
    check_weights(LSTM, weights, num_layers, bias, bidirectional)
    h, c = (None, None) if hx is None else split_state(hx)
    return run_layers(
        LSTM, "lstm", input, h, c, weights, num_layers, bias,
        dropout if training else 0.0, bidirectional, batch_first, batch_sizes, lengths,
        checkpoint,
    )  # fmt: skip


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

    Arguments, results and errors are those of `rnn_tanh`, and

    Args:
        reset_after: whether the reset gate comes after the product; if not, before it, as in Keras
            with `reset_after=False` and ONNX with `linear_before_reset=0`:
            n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).

    Raises:
        TypeError: `reset_after` is no bool.
    """
    cell = gru_cell(reset_after)
    check_weights(cell, weights, num_layers, bias, bidirectional)
    return run_layers(
        cell, "gru", input, hx, None, weights, num_layers, bias,
        dropout if training else 0.0, bidirectional, batch_first, batch_sizes, lengths,
        checkpoint,
    )[:2]  # fmt: skip


def gru_cell(reset_after: bool) -> int:
    """The number of the GRU's cell whose reset gate comes after the product, or before it."""
    check_reset_after(reset_after)
    return GRU if reset_after else GRU_RESET_BEFORE


def run_layers(
    cell: int,
    name: str,
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    has_biases: bool,
    dropout: float,
    bidirectional: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    checkpoint: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers of a network whose weights are known to be complete, to (output, hn, cn).

    `name` is what error messages call the network; `dropout` is 0 out of training; without an LSTM
    cn is empty. In a small network every microsecond here counts.
    """
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    dims = check_input(name, input, batch_sizes, weights)
    if input.is_nested:
        reject_nested(input, batch_first)
    one = batch_sizes is None and dims == 2
    if batch_sizes is None:
        if batch_first and not one:
            input = input.transpose(0, 1)
        check_steps(input.size(0))
    if hx is not None:
        parts = 2 * num_layers if bidirectional else num_layers
        batch = None if one else _batch(input, batch_sizes, hx)
        check_states(cell, hx, cx, parts, batch, input, weights)
    layout = None
    if lengths is not None:
        check_lengths(lengths, input, batch_sizes)
        if input.size(1) == 0:
            lengths = None
        elif not (autograd.is_captured() or _has_no_values(input)):
            layout, lengths = Layout(input, lengths), None
            ops.check_storages(hx=hx, cx=cx)
            input, batch_sizes = layout.pack(input), layout.batch_sizes
            hx, cx = layout.sort(hx), layout.sort(cx)
    if one:
        input = input.unsqueeze(1)
        hx = None if hx is None else hx.unsqueeze(1)
        cx = None if cx is None else cx.unsqueeze(1)

    empty = batch_sizes is not None and input.size(0) == 0 and int(batch_sizes.sum()) == 0
    if empty:  # a packed batch of no sequences: to the ops, one step of a batch of none
        input, batch_sizes = input.unsqueeze(0), None

    autocast = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(input.device.type)
    projected = autocast and cell == LSTM and _is_projected(weights)
    if autocast:
        one_op = batch_sizes is None and lengths is None and not empty and not projected
        one_op = one_op and _is_one_op_in_torch(input)
        fused = cell not in (GRU, GRU_RESET_BEFORE) and (cell != LSTM or one_op)
        input, hx, cx, weights = _cast(input, hx, cx, weights, fused=fused)
    output, hn, cn = _stack(
        cell, input, hx, cx, weights, num_layers, has_biases, dropout, bidirectional, batch_sizes,
        lengths, checkpoint,
    )  # fmt: skip
    if projected and output.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
        output, hn = output.to(dtype), hn.to(dtype)

    if layout is not None:
        output, batch_sizes = layout.pad(output), None
        hn, cn = layout.unsort(hn), layout.unsort(cn)
    if one:
        return output.squeeze(1), hn.squeeze(1), cn.squeeze(1) if cell == LSTM else cn
    if empty:
        return output.squeeze(0), hn, cn
    if batch_first and batch_sizes is None:
        output = output.transpose(0, 1)
    return output, hn, cn


def run_cell(
    cell: int,
    name: str,
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    has_biases: bool,
) -> tuple[Tensor, Tensor]:
    """One step of a cell, to (h', c'): a layer of one step. Without an LSTM c' is empty.

    input [B, I] or [I]; states [B, H] or [H], or None for zeros. `name` is what messages call the
    cell.
    """
    one = check_cell(cell, name, input, hx, cx, weights)
    if one:
        input = input.unsqueeze(0)
        hx = None if hx is None else hx.unsqueeze(0)
        cx = None if cx is None else cx.unsqueeze(0)
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(input.device.type):
        fused = cell in (RNN_TANH, RNN_RELU)
        input, hx, cx, weights = _cast(input, hx, cx, weights, fused=fused)
    # Sizes of nothing are allowed in a cell and unknown to the ops.
    layer = autograd.layer if weights[0].numel() else reference.layer
    output, _, cn = layer(
        input.unsqueeze(0),
        None,
        None if hx is None else hx.unsqueeze(0),
        None if cx is None else cx.unsqueeze(0),
        weights,
        cell,
        has_biases,
        False,
    )
    h = output.squeeze(0)
    c = cn.squeeze(0) if cell == LSTM else cn
    return (h.squeeze(0), c.squeeze(0) if cell == LSTM else c) if one else (h, c)


def _stack(
    cell: int,
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    has_biases: bool,
    dropout: float,
    bidirectional: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    checkpoint: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layers one after the other, with dropout between them."""
    if num_layers == 1:
        return autograd.layer(
            input, batch_sizes, hx, cx, weights, cell, has_biases, bidirectional, checkpoint,
            lengths,
        )  # fmt: skip
    directions = 2 if bidirectional else 1
    count = len(weights) // num_layers
    output, hn, cn = input, [], []
    for i in range(num_layers):
        states = slice(i * directions, (i + 1) * directions)
        output, h, c = autograd.layer(
            output,
            batch_sizes,
            None if hx is None else hx[states],
            None if cx is None else cx[states],
            weights[i * count : (i + 1) * count],
            cell,
            has_biases,
            bidirectional,
            checkpoint,
            lengths,
        )
        hn.append(h)
        cn.append(c)
        if dropout and i < num_layers - 1:
            output = torch.dropout(output, dropout, True)
    return output, torch.cat(hn), torch.cat(cn) if cell == LSTM else cn[0]


def _batch(input: Tensor, batch_sizes: Tensor | None, hx: Tensor) -> int:
    """How many sequences there are."""
    if batch_sizes is None:
        return input.size(1)
    if torch.compiler.is_compiling():  # batch_sizes has no value; take what hx claims
        return hx.size(1)
    return int(batch_sizes[0])


def _is_one_op_in_torch(input: Tensor) -> bool:
    """Whether torch.nn's LSTM for this input is one op of oneDNN on the CPU, if it can be."""
    # Dynamo can't ask whether oneDNN was switched off; in a graph it is taken to be on.
    if not torch.compiler.is_compiling() and not torch._C._get_mkldnn_enabled():
        return False
    if input.dtype == torch.float16:
        return _ONEDNN_HAS[torch.float16] and not torch.is_grad_enabled()
    return _ONEDNN_HAS.get(input.dtype, False)


def _has_no_values(input: Tensor) -> bool:
    return input.is_meta or isinstance(input, FakeTensor)


def _is_projected(weights: Sequence[Tensor]) -> bool:
    return weights[1].size(0) != GATES[LSTM] * weights[1].size(1)


def _cast(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    fused: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Sequence[Tensor]]:
    """What autocast does to a call: the same dtypes come out as from torch.nn.

    There everything is in the autocast dtype if all of a layer is one op that autocast knows
    (`fused`; on CUDA always). Else only products are, and they meet a state that keeps its own
    dtype, the one of c in an LSTM: the results are in what the two promote to, and here all is
    computed in that. As everywhere in autocast, float64 is left alone.
    """
    device = input.device.type
    state = cx if cx is not None else hx if hx is not None else input
    dtype = torch.get_autocast_dtype(device)
    if not fused and device == "cpu":
        dtype = torch.promote_types(dtype, state.dtype)
    if dtype == torch.float64:
        return input, hx, cx, weights

    def cast(tensor: Tensor) -> Tensor:
        castable = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if castable else tensor

    return (
        cast(input),
        None if hx is None else cast(hx),
        None if cx is None else cast(cx),
        [cast(weight) for weight in weights],
    )
