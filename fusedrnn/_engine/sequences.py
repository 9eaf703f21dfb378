"""Sequences of unequal lengths, padded to one tensor and told apart by `lengths`.

The kernels take packed rows, the sequences that are alive at each step, longest first:

    padded  t=0  a0 b0 c0     lengths 2 4 1      packed  b0 a0 c0 | b1 a1 | b2 | b3
            t=1  a1 b1 .      -------------->    sizes   3          2       1    1
            t=2  .  b2 .                         rows    1 0 2      4 3     7    10
            t=3  .  b3 .                         order   1 0 2

A `Layout` holds where each packed row lies among the padded ones (`rows`), and the order of the
sequences. Outside of compilers a network is packed once, all its layers run on packed rows, and the
result is padded once. How many rows there are is a value of `lengths` and no shape, which a graph
can't know: there each layer is one op, `padded_forward`, that packs and pads by itself, and all
shapes are those of the padded tensors. (That is also what an ONNX LSTM with `sequence_lens` is.)

    padded_forward    input [T, B, I], lengths [B] -> output [T, B, D*R], hn, cn, reserve
    padded_backward   the gradients, of shapes as their operands; what lies after an end gets zero

Beside `lengths` their arguments are those of `layer_forward` and `checkpointed_forward` (`save` and
`checkpoint`, 0 for none); so is the reserve, whose second dimension depends on the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fusedrnn._engine import ops
from fusedrnn._engine.checkpoint import checkpointed_backward, checkpointed_forward
from fusedrnn._engine.checks import check_length_values, check_lengths
from fusedrnn._engine.torch_private import Optionals, one_by_one
from fusedrnn.reference import LSTM


class Layout:
    """Where the packed rows of padded sequences lie.

    Attributes:
        batch_sizes: int64 [steps] on the CPU, how many sequences are alive at each step.
        rows: int64 [N], the row of the padded input, seen as [T*B, I], that each packed row is.
        order: int64 [B], the sequence that each place has, longest first.
        place: int64 [B], the place that each sequence has.
    """

    def __init__(self, input: Tensor, lengths: Tensor) -> None:
        """The layout of `input` [T, B, I] with `lengths` [B], from 1 to T on any device."""
        check_lengths(lengths, input)
        if torch._C._functorch.is_batchedtensor(lengths):
            raise ValueError(
                "lengths: expected the same for all of vmap's batch, got a batch of lengths; call "
                "the layer once for each instead"
            )
        ops.check_storages(input=input, lengths=lengths)
        self.steps, self.batch = input.shape[:2]
        lengths = lengths.to("cpu", torch.int64)
        check_length_values(lengths, self.steps)
        in_order, order = lengths.sort(descending=True, stable=True)
        alive = in_order > torch.arange(int(in_order[0]), device="cpu")[:, None]
        self.batch_sizes = alive.sum(1)
        first = torch.arange(len(alive), device="cpu")[:, None] * self.batch
        self.rows = (first + order)[alive].to(input.device)
        self.order = order.to(input.device)
        self.place = order.argsort().to(input.device)

    def pack(self, padded: Tensor) -> Tensor:
        """[T, B, F] -> [N, F]."""
        return padded.flatten(0, 1).index_select(0, self.rows)

    def pad(self, packed: Tensor) -> Tensor:
        """[N, F] -> [T, B, F], zero after each sequence's end."""
        padded = packed.new_zeros(self.steps * self.batch, packed.size(1))
        return padded.index_copy(0, self.rows, packed).unflatten(0, (self.steps, self.batch))

    def sort(self, states: Tensor | None) -> Tensor | None:
        """States [D, B, H], or gradients of them, into the order of the packed sequences."""
        return None if states is None else states.index_select(1, self.order)

    def unsort(self, states: Tensor) -> Tensor:
        """The same back; nothing to do without states, of shape [0]."""
        return states.index_select(1, self.place) if states.dim() == 3 else states


def _forward(
    input: Tensor,
    lengths: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    save: bool,
    checkpoint: int = 0,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if checkpoint < 0:
        raise RuntimeError(f"checkpoint: expected 0 or the steps of a chunk, got {checkpoint}")
    layout = Layout(input, lengths)
    ops.check_storages(hx=hx, cx=cx)
    chunked = save and checkpoint > 0
    op, keep = (checkpointed_forward, checkpoint) if chunked else (ops.layer_forward, save)
    output, hn, cn, reserve = op(
        layout.pack(input), layout.batch_sizes, layout.sort(hx), layout.sort(cx), weights, cell,
        has_biases, bidirectional, keep, allow_tf32,
    )  # fmt: skip
    return layout.pad(output), layout.unsort(hn), layout.unsort(cn), reserve


def _backward(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    grad_cn: Tensor | None,
    input: Tensor,
    lengths: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    reserve: Tensor,
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    checkpoint: int,
    needs: int,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    layout = Layout(input, lengths)
    ops.check_storages(
        grad_output=grad_output, grad_hn=grad_hn, grad_cn=grad_cn, hx=hx, cx=cx, output=output
    )
    op, keep = (checkpointed_backward, [checkpoint]) if checkpoint else (ops.layer_backward, [])
    grad_input, grad_hx, grad_cx, grad_weights = op(
        None if grad_output is None else layout.pack(grad_output), layout.sort(grad_hn),
        layout.sort(grad_cn), layout.pack(input), layout.batch_sizes, layout.sort(hx),
        layout.sort(cx), weights, layout.pack(output), reserve, cell, has_biases, bidirectional,
        *keep, needs, allow_tf32,
    )  # fmt: skip
    if needs & 1:
        grad_input = layout.pad(grad_input)
    return grad_input, layout.unsort(grad_hx), layout.unsort(grad_cx), grad_weights


# What compilers learn of the results.


def _forward_fake(
    input: Tensor,
    lengths: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    save: bool,
    checkpoint: int = 0,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    output, hn, cn, reserve = ops.layer_forward_fake(
        input, None, hx, cx, weights, cell, has_biases, bidirectional, save
    )
    if save and checkpoint and cell != LSTM:  # no borders
        reserve = input.new_empty(0)
    elif save:
        rows: int | torch.SymInt
        directions, rows, *values = reserve.shape  # as many rows as there can be
        try:
            rows = torch.library.get_ctx().new_dynamic_size()
        except RuntimeError:  # shapes without a graph, of meta tensors say, know no such sizes
            pass
        reserve = input.new_empty(directions, rows, *([cn.size(2)] if checkpoint else values))
    return output, hn, cn, reserve


def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    before, after = arguments[:13], arguments[14:]  # without `checkpoint`
    return ops.layer_backward_fake(*before, *after)


# Autograd. Graphs have first derivatives; others never reach these ops, see functional.py.


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, lengths, hx, cx, weights, *ctx.layer, ctx.save, ctx.checkpoint = inputs[:10]
    ctx.allow_tf32 = inputs[10:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, lengths, hx, cx, output[0], output[3], *weights)
    ctx.mark_non_differentiable(*output[3 if ctx.layer[0] == LSTM else 2 :])


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if not ctx.save:
        raise RuntimeError(
            "fusedrnn::padded_forward was called with save=False, which keeps nothing for backward"
        )
    input, lengths, hx, cx, output, reserve, *weights = ctx.saved_tensors
    needed = [ctx.needs_input_grad[i] for i in (0, 2, 3)] + list(ctx.needs_input_grad[4])
    needs = sum(is_needed << i for i, is_needed in enumerate(needed))

    def of_one(grads: Optionals) -> list[Tensor | None]:
        *of_inputs, of_weights = padded_backward(
            *grads, input, lengths, hx, cx, weights, output, reserve, *ctx.layer, ctx.checkpoint,
            needs, *ctx.allow_tf32,
        )  # fmt: skip
        flat = zip([*of_inputs, *of_weights], needed, strict=True)
        return [grad if is_needed else None for grad, is_needed in flat]

    of = one_by_one(of_one, grads[:3])
    rest = [None] * (len(ctx.needs_input_grad) - 5)
    return (of[0], None, of[1], of[2], of[3:], *rest)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise NotImplementedError(
        "fusedrnn::padded_forward has first derivatives only. Take second ones outside of "
        "torch.compile and torch.export, by a module's or function's `lengths` argument."
    )


# Lengths come to the CPU in mid-call, which a CUDA graph can't record: compilers go around it.
_READS_LENGTHS = (torch.Tag.cudagraph_unsafe,)

_library = torch.library.Library("fusedrnn", "FRAGMENT")
_library.define(
    "padded_forward(Tensor input, Tensor lengths, Tensor? hx, Tensor? cx, Tensor[] weights, "
    "int cell, bool has_biases, bool bidirectional, bool save, int checkpoint=0, "
    "bool allow_tf32=False) -> (Tensor output, Tensor hn, Tensor cn, Tensor reserve)",
    tags=_READS_LENGTHS,
)
_library.define(
    "padded_backward(Tensor? grad_output, Tensor? grad_hn, Tensor? grad_cn, Tensor input, "
    "Tensor lengths, Tensor? hx, Tensor? cx, Tensor[] weights, Tensor output, Tensor reserve, "
    "int cell, bool has_biases, bool bidirectional, int checkpoint, int needs, "
    "bool allow_tf32=False) "
    "-> (Tensor grad_input, Tensor grad_hx, Tensor grad_cx, Tensor[] grad_weights)",
    tags=_READS_LENGTHS,
)
_library.impl("padded_forward", _forward, "CompositeExplicitAutograd")
_library.impl("padded_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("fusedrnn::padded_forward", _forward_fake)
torch.library.register_fake("fusedrnn::padded_backward", _backward_fake)
torch.library.register_autograd(
    "fusedrnn::padded_forward", _gradients, setup_context=_keep_for_backward
)
torch.library.register_autograd("fusedrnn::padded_backward", _no_second_derivative)

padded_forward = torch.ops.fusedrnn.padded_forward.default
padded_backward = torch.ops.fusedrnn.padded_backward.default
