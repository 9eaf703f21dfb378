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

    padded_forward    input [T, B, I], lengths [B] -> output [T, B, D*R], hn, reserve
    padded_backward   the gradients, of shapes as their operands; what lies after an end gets zero

Beside `lengths` their arguments are those of `layer_forward` and `checkpointed_forward` (`save` and
`checkpoint`, 0 for none); so is the reserve, of which one dimension depends on the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from fusedrnn._engine import ops
from fusedrnn._engine.checkpoint import (
    borders_like,
    checkpointed_backward,
    checkpointed_forward,
)
from fusedrnn._engine.checks import check_length_values, check_lengths
from fusedrnn._engine.layer import (
    Layer,
    Operands,
    Optionals,
    backward_arguments,
    flat,
    forward_arguments,
)
from fusedrnn._engine.torch_private import is_mapped, one_by_one


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
        if is_mapped(lengths):
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

    def sort(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States [D, B, H], or gradients of them, into the order of the packed sequences."""
        return [self._in_order(state, self.order) for state in states]

    def unsort(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Packed states, or gradients of them, back into the order of the batch."""
        return [self._in_order(state, self.place) for state in states]

    def _in_order(self, state: Tensor, order: Tensor) -> Tensor:
        """A gradient that is not there, of shape [0], has no order."""
        return state if state.shape == (0,) else state.index_select(1, order)


def _settings(
    layer: Layer, save: bool, checkpoint: int = 0, allow_tf32: bool = False
) -> tuple[bool, Layer]:
    return save, layer._replace(checkpoint=checkpoint, allow_tf32=allow_tf32)


def _forward(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    layer, (input, lengths, hx, weights), rest = forward_arguments(*arguments)
    save, layer = _settings(layer, *rest)
    checkpoint = layer.checkpoint
    if checkpoint < 0:
        raise RuntimeError(f"checkpoint: expected 0 or the steps of a chunk, got {checkpoint}")
    layout = Layout(input, cast(Tensor, lengths))
    ops.check_storages(**ops.named("hx", hx))
    chunked = save and checkpoint > 0
    op, keep = (checkpointed_forward, checkpoint) if chunked else (ops.layer_forward, save)
    output, hn, reserve = op(
        layout.pack(input), layout.batch_sizes, layout.sort(hx), weights, *layer.schema, keep,
        layer.allow_tf32,
    )  # fmt: skip
    return layout.pad(output), layout.unsort(hn), reserve


def _backward(*arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    layer, operands, grad_output, grad_hn, output, reserve, rest = backward_arguments(*arguments)
    input, lengths, hx, weights = operands
    checkpoint, needs, *allow_tf32 = rest
    layout = Layout(input, cast(Tensor, lengths))
    ops.check_storages(
        grad_output=grad_output, **ops.named("grad_hn", grad_hn), **ops.named("hx", hx),
        output=output,
    )  # fmt: skip
    op, keep = (checkpointed_backward, [checkpoint]) if checkpoint else (ops.layer_backward, [])
    grad_input, grad_hx, grad_weights = op(
        None if grad_output is None else layout.pack(grad_output), layout.sort(grad_hn),
        layout.pack(input), layout.batch_sizes, layout.sort(hx), weights, layout.pack(output),
        reserve, *layer.schema, *keep, needs, *allow_tf32,
    )  # fmt: skip
    if needs & 1:
        grad_input = layout.pad(grad_input)
    return grad_input, layout.unsort(grad_hx), grad_weights


# What compilers learn of the results.


def _forward_fake(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    layer, (input, _, hx, weights), rest = forward_arguments(*arguments)
    save, layer = _settings(layer, *rest)
    checkpoint = layer.checkpoint
    output, hn, reserve = ops.layer_forward_fake(input, None, hx, weights, *layer.schema, save)
    _, *others = hn
    if save and checkpoint and not others:  # no borders
        reserve = input.new_empty(0)
    elif save:
        rows: int | torch.SymInt
        directions, rows, saved, padded = reserve.shape  # as many rows as there can be
        try:
            rows = torch.library.get_ctx().new_dynamic_size()
        except RuntimeError:  # shapes without a graph, of meta tensors say, know no such sizes
            pass
        if checkpoint:
            reserve = borders_like(input, others, rows)
        else:
            reserve = input.new_empty(directions, rows, saved, padded)
    return output, hn, reserve


# Autograd. Graphs have first derivatives; others never reach these ops, see functional.py.


def _keep_for_backward(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor], Tensor]
) -> None:
    """`output` are all three results: torch passes them by that name."""
    layer, (input, lengths, hx, weights), rest = forward_arguments(*inputs)
    ctx.save, ctx.layer = _settings(layer, *rest)
    y, _, reserve = output
    ctx.states = len(hx)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, lengths, y, reserve, *hx, *weights)
    ctx.mark_non_differentiable(reserve)


def _gradients(
    ctx: Any, grad_output: Tensor | None, grad_hn: list[Tensor | None], _: Tensor | None
) -> tuple[Any, ...]:
    if not ctx.save:
        raise RuntimeError(
            "fusedrnn::padded_forward was called with save=False, which keeps nothing for backward"
        )
    layer = ctx.layer
    input, lengths, output, reserve, *rest = ctx.saved_tensors
    hx, weights = rest[: ctx.states], rest[ctx.states :]
    of_input, _, of_hx, of_weights, *others = ctx.needs_input_grad
    needed = flat(layer, Operands(of_input, None, of_hx or (), of_weights))
    needs = sum(bool(is_needed) << i for i, is_needed in enumerate(needed))

    def of_one(grads: Optionals) -> list[Tensor | None]:
        of_output, *of_hn = grads
        of_input, of_hx, of_weights = padded_backward(
            of_output, ops.as_list(of_hn, input), input, lengths, hx, weights, output, reserve,
            *layer.schema, layer.checkpoint, needs, layer.allow_tf32,
        )  # fmt: skip
        found = flat(layer, Operands(of_input, None, of_hx, of_weights))
        return [grad if asked else None for grad, asked in zip(found, needed, strict=True)]

    grad_input, *found = one_by_one(of_one, (grad_output, *grad_hn))
    states = len(layer.cell.states)
    nothing = [None] * len(others)
    of_states = None if of_hx is False else found[: ctx.states]  # False where the op had None
    return grad_input, None, of_states, found[states:], *nothing


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise NotImplementedError(
        "fusedrnn::padded_forward has first derivatives only. Take second ones outside of "
        "torch.compile and torch.export, by a module's or function's `lengths` argument."
    )


# Lengths come to the CPU in mid-call, which a CUDA graph can't record: compilers go around it.
_READS_LENGTHS = (torch.Tag.cudagraph_unsafe,)

_library = torch.library.Library("fusedrnn", "FRAGMENT")
_library.define(
    "padded_forward(Tensor input, Tensor lengths, Tensor[]? hx, Tensor[] weights, int cell, "
    "bool biases, bool projected, bool bidirectional, bool save, int checkpoint=0, "
    "bool allow_tf32=False) -> (Tensor output, Tensor[] hn, Tensor reserve)",
    tags=_READS_LENGTHS,
)
_library.define(
    "padded_backward(Tensor? grad_output, Tensor[] grad_hn, Tensor input, Tensor lengths, "
    "Tensor[]? hx, Tensor[] weights, Tensor output, Tensor reserve, int cell, bool biases, "
    "bool projected, bool bidirectional, int checkpoint, int needs, bool allow_tf32=False) "
    "-> (Tensor grad_input, Tensor[] grad_hx, Tensor[] grad_weights)",
    tags=_READS_LENGTHS,
)
_library.impl("padded_forward", _forward, "CompositeExplicitAutograd")
_library.impl("padded_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("fusedrnn::padded_forward", _forward_fake)
torch.library.register_fake("fusedrnn::padded_backward", ops.backward_fake)
torch.library.register_autograd(
    "fusedrnn::padded_forward", _gradients, setup_context=_keep_for_backward
)
torch.library.register_autograd("fusedrnn::padded_backward", _no_second_derivative)

padded_forward = torch.ops.fusedrnn.padded_forward.default
padded_backward = torch.ops.fusedrnn.padded_backward.default
