"""Sequences of unequal lengths, padded to one tensor and told apart by `lengths`.

The kernels take packed rows, the sequences that are alive at each step, longest first:

    padded  t=0  a0 b0 c0     lengths 2 4 1      packed  b0 a0 c0 | b1 a1 | b2 | b3
            t=1  a1 b1 .      -------------->    sizes   3          2       1    1
            t=2  .  b2 .                         rows    1 0 2      4 3     7    10
            t=3  .  b3 .                         order   1 0 2

A `Layout` holds where each packed row lies among the padded ones (`rows`), and the order of the
sequences; so it does for sequences one after the other without padding (`cu_seqlens`). Sequences of
no steps are not among the packed ones: their output is zero, and their state stays as it is.
Outside of compilers a network is packed once, all its layers run on packed rows, and the result is
padded once. How many rows there are is a value of `lengths` and no shape, which a graph can't know:
there each layer is one op, `padded_forward`, that packs and pads by itself, and all shapes are
those of the padded tensors. (That is also what an ONNX LSTM with `sequence_lens` is.)

    padded_forward    input [T, B, I], lengths [B] -> output [T, B, D*R], hn, reserve
    padded_backward   the gradients, of shapes as their operands; what lies after an end gets zero

Beside `lengths` their arguments are those of `modified_forward` and `checkpointed_forward` (`save`
and `checkpoint`, 0 for none); so is the reserve, of which one dimension depends on the lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.autograd import Function

from fusedrnn._engine import ops
from fusedrnn._engine.checkpoint import (
    borders_like,
    checkpointed,
    checkpointed_forward,
)
from fusedrnn._engine.checks import (
    check_cu_seqlens_values,
    check_length_values,
    check_lengths,
)
from fusedrnn._engine.layer import (
    Layer,
    Modifiers,
    Operands,
    Optionals,
    flat,
    flat_gradients,
    modified_backward_arguments,
    modified_forward_arguments,
    needed_of_op,
    nested,
    unflat,
)
from fusedrnn._engine.torch_private import (
    apply_at_once,
    is_forward_mode,
    is_mapped,
    is_transformed_by_func,
    is_wrapped,
    one_by_one,
)


class Layout:
    """Where the packed rows of sequences lie.

    Attributes:
        batch_sizes: int64 [steps] on the CPU, how many sequences are alive at each step. None if
            all are empty: then what is packed is one step of a batch of none, [1, 0, F].
        rows: int64 [N], the row of the input, seen as [all rows, I], that each packed row is.
        order: int64, the sequence that each place has, longest first; empty ones have none.
    """

    def __init__(
        self,
        shape: Sequence[int],
        lengths: Tensor,
        first: Tensor,
        stride: int,
        device: torch.device,
    ) -> None:
        """The layout of sequences of `lengths`: their `first` rows, and rows `stride` apart.

        Both are int64 [B] on the CPU, values that were checked. `shape` is that of the input
        without its features.
        """
        self._shape, self._batch = tuple(shape), len(lengths)
        found = ops.pack_rows(lengths, first, stride, math.prod(self._shape))
        batch_sizes, order, rows, places = found
        self._is_some_empty = len(order) < self._batch
        self._steps = max(1, len(batch_sizes))
        self.batch_sizes = batch_sizes if len(order) else None
        self.order, self.rows, self._places = (each.to(device) for each in (order, rows, places))

    def pack(self, input: Tensor) -> Tensor:
        """[all rows, in whatever shape, F] -> [N, F]."""
        if self.batch_sizes is None:
            return input.flatten(0, -2)[:0].unsqueeze(0)
        return _move(input, self.rows, self._places)

    def pad(self, packed: Tensor) -> Tensor:
        """Back from [N, F], zero in rows of no sequence."""
        padded = _move(packed.flatten(0, -2), self._places, self.rows)
        return padded.unflatten(0, self._shape)

    def sort(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States [D, B, H], or gradients of them, into the order of the packed sequences.

        A gradient that is not there, of shape [0], has no order.
        """
        return [
            state if state.shape == (0,) else state.index_select(1, self.order) for state in states
        ]

    def unsort(self, states: Sequence[Tensor], of_empty: Sequence[Tensor | None]) -> list[Tensor]:
        """Packed states, or gradients of them, back into the order of the batch.

        Sequences without a step have what they have in `of_empty`, or else zeros.
        """
        found = []
        for state, others in zip_longest(states, of_empty[: len(states)]):
            if state.shape == (0,):
                found.append(state)
                continue
            shape = (state.size(0), self._batch, state.size(2))
            if others is None or not self._is_some_empty:
                others = state.new_zeros(shape) if self._is_some_empty else state.new_empty(shape)
            found.append(others.to(state.dtype).index_copy(1, self.order, state))
        return found

    def sort_modifiers(self, modifiers: Modifiers) -> Modifiers:
        """Modifiers for the steps of the longest sequence, in the order of the packed ones."""

        return modifiers.each(self.sort_steps)

    def sort_steps(self, tensor: Tensor, sequences: int = 2) -> Tensor:
        """Values [T, ...] for these steps, with the sequences in this order; one is for all."""
        for_all = tensor.size(sequences) == 1 and self._batch > 1
        tensor = tensor[: self._steps]
        return tensor if for_all else tensor.index_select(sequences, self.order)

    def sort_rows(self, values: Tensor) -> Tensor:
        """What steps of sequences have, [all rows, ...], as [steps, sequences, ...]; else zero."""
        shape = self._steps, len(self.order)
        if self.batch_sizes is None:
            return values.new_zeros(*shape, *values.shape[1:])
        alive = torch.arange(shape[1], device="cpu") < self.batch_sizes[:, None]
        sources = torch.full(shape, len(values), dtype=torch.int64, device=values.device)
        sources[alive.to(values.device)] = self.rows
        values = torch.cat([values, values.new_zeros(1, *values.shape[1:])])
        return values.index_select(0, sources.flatten()).unflatten(0, shape)

    def unsort_reset(self, grads: Sequence[Tensor], states: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of reset states back into the shapes and the order of these."""
        found = []
        for grad, state in zip(grads, states, strict=True):
            if grad.shape == (0,):
                found.append(grad)
                continue
            whole = torch.zeros_like(state, memory_format=torch.contiguous_format)
            whole[: grad.size(0), :, self.order] = grad
            found.append(whole)
        return found

    def unsort_steps(self, grad: Tensor, steps: Tensor | None) -> Tensor:
        """The gradient of step inputs back into their shape and order."""
        return grad if steps is None else self.unsort_reset([grad], [steps])[0]


class _Moved(Function):
    """Rows [M, F] or [T, B, F] in other places: `sources` says of each row of the result [N, F]
    where it comes from, one past the end for zeros, and `places` of each row given where it goes
    to, in the same way. So the gradient is the same with the two exchanged.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, sources: Tensor, places: Tensor) -> Tensor:
        return _moved(rows, sources)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows, sources, places = inputs
        ctx.shape = rows.shape
        ctx.save_for_backward(sources, places)
        ctx.save_for_forward(sources)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        sources, places = ctx.saved_tensors
        return _move(grad, places, sources).reshape(ctx.shape), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (sources,) = ctx.saved_tensors
        return _moved(tangent, sources)


_apply_at_once = apply_at_once(_Moved)


def _move(rows: Tensor, sources: Tensor, places: Tensor) -> Tensor:
    if rows.requires_grad and torch.is_grad_enabled():
        apply = _Moved.apply if is_transformed_by_func() else _apply_at_once
        moved: Tensor = apply(rows, sources, places)
        return moved
    return _moved(rows, sources)


def _moved(rows: Tensor, sources: Tensor) -> Tensor:
    transformed = is_transformed_by_func() or is_forward_mode() or is_wrapped(rows)
    if rows.is_cpu and not transformed:
        moved: Tensor = ops.move_rows(rows, sources)
        return moved
    rows = rows.reshape(-1, rows.size(-1))  # for which old vmap has a rule
    if len(rows) < len(sources):  # some are of no row
        rows = torch.cat([rows, rows.new_zeros(1, rows.size(1))])
    return rows.index_select(0, sources)


def layout_of_padded(input: Tensor, lengths: Tensor) -> Layout:
    """The layout of `input` [T, B, I] with `lengths` [B], from 0 to T on any device."""
    check_lengths(lengths, input)
    _check_not_mapped("lengths", lengths)
    ops.check_storages(input=input, lengths=lengths)
    steps, batch = input.shape[:2]
    lengths = lengths.to("cpu", torch.int64)
    check_length_values(lengths, steps)
    first = torch.arange(batch, device="cpu")
    return Layout(input.shape[:2], lengths, first, batch, input.device)


def layout_of_joined(input: Tensor, cu_seqlens: Tensor) -> Layout:
    """The layout of `input` [N, I], which has the sequences one after the other.

    `cu_seqlens` [B + 1] are the rows where each begins, and the end, as for FlashAttention; the
    offsets of a jagged tensor are the same.
    """
    _check_not_mapped("cu_seqlens", cu_seqlens)
    ops.check_storages(input=input, cu_seqlens=cu_seqlens)
    first = cu_seqlens.to("cpu", torch.int64)
    check_cu_seqlens_values(first, input.size(0))
    return Layout(input.shape[:1], first.diff(), first[:-1], 1, input.device)


def _check_not_mapped(name: str, lengths: Tensor) -> None:
    if is_mapped(lengths):
        raise ValueError(
            f"{name}: expected the same for all of vmap's batch, got a batch of lengths; call "
            "the layer once for each instead"
        )


def _read(
    layer: Layer,
    save: bool,
    checkpoint: int = 0,
    states: bool = False,
    allow_tf32: bool = False,
) -> tuple[bool, Layer]:
    layer = layer._replace(checkpoint=checkpoint, all_states=states, allow_tf32=allow_tf32)
    return save, layer


def _forward(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    layer, operands, rest = modified_forward_arguments(*arguments)
    save, layer = _read(layer, *rest)
    input, lengths, hx, weights, modifiers = operands
    checkpoint = layer.checkpoint
    if checkpoint < 0:
        raise RuntimeError(f"checkpoint: expected 0 or the steps of a chunk, got {checkpoint}")
    layout = layout_of_padded(input, cast(Tensor, lengths))
    ops.check_storages(**ops.named("hx", hx))
    packed = Operands(
        layout.pack(input), layout.batch_sizes, layout.sort(hx), weights,
        layout.sort_modifiers(modifiers),
    )  # fmt: skip
    if save and checkpoint:
        found = checkpointed_forward(
            *packed.all_tensors, *layer.schema, checkpoint, layer.all_states, layer.allow_tf32
        )
    else:
        found = ops.forward(layer, packed, save)
    output, states, reserve = found
    hn = layout.unsort(states[: len(layer.cell.states)], hx)
    every = [layout.pad(state) for state in states[len(hn) :]]
    return layout.pad(output), [*hn, *every], reserve


def _backward(*arguments: Any) -> ops.BackwardResults:
    given = modified_backward_arguments(*arguments)
    layer, operands, grad_output, grad_states, output, reserve, rest = given
    input, lengths, hx, weights, modifiers = operands
    checkpoint, needs, *tf32 = rest
    _, layer = _read(layer, True, checkpoint, layer.all_states, *tf32)
    layout = layout_of_padded(input, cast(Tensor, lengths))
    ops.check_storages(
        grad_output=grad_output, **ops.named("grad_hn", grad_states), **ops.named("hx", hx),
        output=output,
    )  # fmt: skip
    packed = Operands(
        layout.pack(input), layout.batch_sizes, layout.sort(hx), weights,
        layout.sort_modifiers(modifiers),
    )  # fmt: skip
    results = ops.as_optionals(grad_states, layer)
    of_empty = results[: len(layer.cell.states)]
    of_hn = [None if grad is None else layout.sort([grad])[0] for grad in of_empty]
    grads = grad_output, *results[len(of_hn) :]
    of_output, *of_states = [None if grad is None else layout.pack(grad) for grad in grads]
    backward = checkpointed if checkpoint else ops.backward
    grad_input, grad_hx, grad_weights, grad_reset, grad_steps = backward(
        layer, packed, (of_output, *of_hn, *of_states), layout.pack(output), reserve, needs
    )
    if needs & 1:
        grad_input = layout.pad(grad_input)
    of_reset = layout.unsort_reset(grad_reset, modifiers.reset_states)
    of_steps = layout.unsort_steps(grad_steps, modifiers.step_inputs)
    return grad_input, layout.unsort(grad_hx, of_empty), grad_weights, of_reset, of_steps


# What compilers learn of the results.


def _forward_fake(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    layer, operands, rest = modified_forward_arguments(*arguments)
    save, layer = _read(layer, *rest)
    input, _, hx, weights, _ = operands
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
    every = ops.states_fake(layer, output, hn) if layer.all_states else []
    return output, [*hn, *every], reserve


# Autograd. Graphs have first derivatives; others never reach these ops, see functional.py.


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    """`output` are all results: torch passes them by that name."""
    layer, operands, rest = modified_forward_arguments(*inputs)
    ctx.save, ctx.layer = _read(layer, *rest)
    y, _, reserve = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(y, reserve, operands.batch_sizes, *flat(ctx.layer, operands))
    ctx.mark_non_differentiable(reserve)


def _gradients(
    ctx: Any, grad_output: Tensor | None, grad_states: list[Tensor | None], _: Tensor | None
) -> tuple[Any, ...]:
    if not ctx.save:
        raise RuntimeError(
            "fusedrnn::padded_forward was called with save=False, which keeps nothing for backward"
        )
    layer: Layer = ctx.layer
    output, reserve, lengths, *tensors = ctx.saved_tensors
    operands = unflat(layer, tensors, lengths)
    needed = needed_of_op(layer, ctx.needs_input_grad)
    needs = sum(is_needed << i for i, is_needed in enumerate(needed))

    def of_one(grads: Optionals) -> list[Tensor | None]:
        of_output, *of_states = grads
        found = padded_backward(
            of_output, ops.as_list(of_states, operands.input), *operands.all_tensors, output,
            reserve, *layer.schema, layer.checkpoint, needs, layer.allow_tf32,
        )  # fmt: skip
        gradients = flat_gradients(layer, *found)
        return [grad if asked else None for grad, asked in zip(gradients, needed, strict=True)]

    gradients = one_by_one(of_one, (grad_output, *grad_states))
    return nested(layer, gradients, ctx.needs_input_grad)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise NotImplementedError(
        "fusedrnn::padded_forward has first derivatives only. Take second ones outside of "
        "torch.compile and torch.export, by a module's or function's `lengths` argument."
    )


# Lengths come to the CPU in mid-call, which a CUDA graph can't record: compilers go around it.
_READS_LENGTHS = (torch.Tag.cudagraph_unsafe,)

_library = torch.library.Library("fusedrnn", "FRAGMENT")
_library.define(
    "padded_forward(Tensor input, Tensor lengths, Tensor[]? hx, Tensor[] weights, "
    "Tensor? reset, Tensor[]? reset_states, Tensor? recurrent_factor, Tensor[]? keep, "
    "Tensor? step_inputs, str cell, bool biases, bool projected, bool bidirectional, bool save, "
    "int checkpoint=0, bool states=False, bool allow_tf32=False) "
    "-> (Tensor output, Tensor[] states, Tensor reserve)",
    tags=_READS_LENGTHS,
)
_library.define(
    "padded_backward(Tensor? grad_output, Tensor[] grad_states, Tensor input, "
    "Tensor lengths, Tensor[]? hx, Tensor[] weights, Tensor? reset, Tensor[]? reset_states, "
    "Tensor? recurrent_factor, Tensor[]? keep, Tensor? step_inputs, Tensor output, "
    "Tensor reserve, str cell, bool biases, bool projected, bool bidirectional, int checkpoint, "
    "int needs, bool allow_tf32=False) "
    "-> (Tensor grad_input, Tensor[] grad_hx, Tensor[] grad_weights, "
    "Tensor[] grad_reset_states, Tensor grad_step_inputs)",
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
