"""Training in less memory: states are kept every k steps, and the gates are computed again.

An LSTM's reserve is five values per unit and step, a GRU's four (three with `reset_after=False`).
Here forward keeps none of it, and backward makes that of k steps at a time:

    forward    |--- k steps ---|--- k steps ---|--- rest --|     all steps, without a reserve
    kept     hx              h, c            h, c                h in the output, c in `borders`

    backward   of each chunk, the one that was walked last first:
                   layer_forward   from its kept state, save=True  ->  the reserve of k steps
                   layer_backward  with dh, dc of the chunk after  ->  dx, dW (added up), dh, dc

c stands for all states after h. Both passes are ops, so that compilers take them as they take the
native ones, and both are made of the native ones, so that they run wherever those do. Arguments and
results are those of `modified_forward` and `modified_backward`, see ops.py, with `checkpoint`,
which is k, in place of `save`, and in place of the reserve

    borders  [states - 1, D, chunks * B, H]   each state after h before each chunk, in the order in
                                              which a direction walks them; [0] if h is the only
                                              state

(Compilers have a guard for sizes that may be one, as the number of chunks: so it has no dimension
of its own.)

The native ops walk one direction by itself from the first step to the last. So for the reverse
direction the steps of a chunk are turned around, and what comes of them is turned back. Packed,
each sequence is turned around within its own steps of the chunk: so it begins at the first, as
packed sequences must, and the batch sizes are the same. Modifiers are turned around, too; a border
is then before the other one of its two steps. A single chunk (k of T or more, which lets deep
stacks hold the reserve of one layer at a time) is one call for both directions.

Sums over chunks are added in the order of the walk back, in float32 for half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fusedrnn._engine import ops
from fusedrnn._engine.layer import (
    Layer,
    Modifiers,
    Operands,
    Optionals,
    modified_backward_arguments,
    modified_forward_arguments,
)
from fusedrnn._engine.ops import BackwardResults
from fusedrnn.cells import W_HH


def checkpointed(
    layer: Layer,
    operands: Operands,
    grads: Sequence[Tensor | None],
    output: Tensor,
    borders: Tensor,
    needs: int,
) -> BackwardResults:
    """As `ops.backward`, from borders."""
    grad_output, *grad_states = grads
    found: BackwardResults = checkpointed_backward(
        grad_output, ops.as_list(grad_states, operands.input), *operands.all_tensors, output,
        borders, *layer.schema, layer.checkpoint, needs, layer.allow_tf32,
    )  # fmt: skip
    return found


def _forward(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    layer, operands, settings = modified_forward_arguments(*arguments)
    layer = _chunked(layer, operands, *settings)
    input, _, hx, _, _ = operands
    call = _Call(layer, operands)
    if not call.others or call.chunks == 1:  # there is no c between steps to keep
        output, results, _ = ops.forward(layer, operands, save=False)
        if not call.others:
            return output, results, input.new_empty(0)
        _, *first_c = call.states("hx", hx)
        return output, results, torch.stack(first_c)
    hn = call.states("hx", hx)
    _, *cn = hn
    output, borders = input.new_empty(call.output_shape), input.new_empty(call.borders_shape)
    every = [input.new_empty(call.states_shape) for _ in cn] if layer.all_states else []
    for d in range(layer.directions):
        for i in range(call.chunks):
            chunk = call.chunk(d, i)
            now = [state[d : d + 1, : chunk.alive] for state in hn]
            for border, state in zip(borders, cn, strict=True):
                border[d, call.border(i, call.batch)] = state[d]
            given = chunk.operands(operands, () if i == 0 and not hx else now, call.own(d))
            y, after, _ = ops.forward(call.direction, given, save=False)
            for state, new in zip(now, after, strict=False):
                state.copy_(new)
            output[..., call.columns(d)][chunk.place] = chunk.turned(y)
            for steps, new in zip(every, after[len(now) :], strict=True):
                steps[..., call.units(d)][chunk.place] = chunk.turned(new)
    return output, [*hn, *every], borders


def _backward(*arguments: Any) -> BackwardResults:
    given = modified_backward_arguments(*arguments)
    layer, operands, grad_output, grad_states, output, borders, rest = given
    checkpoint, needs, *allow_tf32 = rest
    layer = _chunked(layer, operands, checkpoint, layer.all_states, *allow_tf32)
    input, _, hx, weights, modifiers = operands
    call = _Call(layer, operands)
    ops.check_storages(
        grad_output=grad_output, **ops.named("grad_hn", grad_states), output=output,
        borders=borders,
    )  # fmt: skip
    _check_shape("output", output, call.output_shape)
    _check_shape("borders", borders, call.borders_shape)
    results = ops.as_optionals(grad_states, layer)
    grad_hn, every = results[: len(layer.cell.states)], results[len(layer.cell.states) :]
    if grad_output is not None:
        _check_shape("grad_output", grad_output, call.output_shape)
    for i, grad in enumerate(every, len(grad_hn)):
        if grad is not None:
            _check_shape(f"grad_hn[{i}]", grad, call.states_shape)
    if call.chunks == 1:  # both directions at once, and nothing to put together
        return _chunk_backward(layer, (grad_output, *results), operands, needs)
    wanted = _Needs(layer, needs)
    of_states = wanted.states if hx else 0
    # For all sequences; a chunk reads and writes those that are alive in it.
    grads_now = call.states("grad_hn", grad_hn)
    first_h, *_ = call.states("hx", hx)
    grad_input = input.new_empty(input.shape if wanted.input else 0)
    grad_reset = [
        torch.zeros_like(state, dtype=_sum_dtype(state)) if wanted.reset_states >> i & 1 else None
        for i, state in enumerate(modifiers.reset_states)
    ]
    steps = modifiers.step_inputs
    grad_steps = None
    if steps is not None and wanted.step_inputs:  # packed, some steps are of no chunk
        grad_steps = steps.new_zeros(steps.shape)
    sums: list[Tensor | None] = [None] * len(weights)

    for d in range(layer.directions):
        one, columns, of_weights = slice(d, d + 1), call.columns(d), wanted.weights(d)
        if not (
            wanted.input or of_weights or of_states or wanted.reset_states or grad_steps is not None
        ):
            continue
        for i in reversed(range(call.chunks)):
            chunk = call.chunk(d, i)
            alive = slice(chunk.alive)
            before: Sequence[Tensor] = [state[one, alive] for state in hx]
            if i > 0:
                h = chunk.state_before(output[..., columns], first_h[one])
                before = [h, *(c[one, call.border(i, chunk.alive)] for c in borders)]
            now = [grad[one, alive] for grad in grads_now]
            dx, of_before, dw, of_reset, of_steps = _chunk_backward(
                call.direction,
                (
                    None if grad_output is None else chunk.of(grad_output[..., columns]),
                    *now,
                    *(g if g is None else chunk.of(g[..., call.units(d)]) for g in every),
                ),
                chunk.operands(operands, before, call.own(d)),
                wanted.mask(of_weights, wanted.all_states if i > 0 else of_states),
            )
            for grad, new in zip(now, of_before, strict=False):
                if new.numel():
                    grad.copy_(new)
            if wanted.input:
                place = grad_input[chunk.place]
                place.copy_(chunk.turned(dx)) if d == 0 else place.add_(chunk.turned(dx))
            for total, new in zip(grad_reset, of_reset, strict=True):
                if total is not None:
                    chunk.add_of_reset(total[:, d, alive], new[:, 0])
            if grad_steps is not None:
                chunk.put_of_steps(grad_steps[:, d, alive], of_steps[:, 0])
            for j, part in enumerate(dw):
                if of_weights >> j & 1:
                    at = d * len(dw) + j
                    sums[at] = _sum(sums[at], part)
    return (
        grad_input,
        [
            grad if of_states >> i & 1 else input.new_empty(0)
            for i, grad in enumerate(grads_now[: len(hx)])
        ],
        [input.new_empty(0) if total is None else total.to(input.dtype) for total in sums],
        [input.new_empty(0) if total is None else total.to(input.dtype) for total in grad_reset],
        input.new_empty(0) if grad_steps is None else grad_steps,
    )


def _chunked(
    layer: Layer,
    operands: Operands,
    checkpoint: int,
    states: bool = False,
    allow_tf32: bool = False,
) -> Layer:
    """The layer that a chunk is; without modifiers by the ops that take none."""
    _check_checkpoint(checkpoint)
    modifiers = operands.modifiers
    return layer._replace(
        checkpoint=checkpoint, allow_tf32=allow_tf32, all_states=states,
        modified=states or any(of is not None and len(of) for of in modifiers),
    )  # fmt: skip


def _chunk_backward(
    layer: Layer, grads: Optionals, operands: Operands, needs: int
) -> BackwardResults:
    """A chunk's gradients. Its reserve ends with this call, so that there is never a second one."""
    output, _, reserve = ops.forward(layer._replace(all_states=False), operands, save=True)
    return ops.backward(layer, operands, grads, output, reserve, needs)


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half else tensor.dtype


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    return part.to(_sum_dtype(part)) if total is None else total.add_(part)


class _Needs:
    """The mask of the gradients that are asked for, taken apart: see layer.py for its bits."""

    def __init__(self, layer: Layer, needs: int) -> None:
        self._states, self._roles = len(layer.cell.states), len(layer.roles)
        self.all_states = (1 << self._states) - 1
        self.input = needs & 1
        self.states = needs >> 1 & self.all_states
        weights = self._roles * layer.directions
        self._weights = needs >> 1 + self._states & ((1 << weights) - 1)
        self.reset_states = needs >> 1 + self._states + weights & self.all_states
        self.step_inputs = needs >> 1 + 2 * self._states + weights & 1

    def weights(self, direction: int) -> int:
        """Those of a direction."""
        return self._weights >> direction * self._roles & ((1 << self._roles) - 1)

    def mask(self, weights: int, states: int) -> int:
        """What to ask for of one direction."""
        before = 1 + self._states
        of_reset = self.reset_states << before + self._roles
        of_steps = self.step_inputs << before + self._roles + self._states
        return self.input | states << 1 | weights << before | of_reset | of_steps


class _Call:
    """The sizes of a call, checked where the native ops, which see chunks, could not; its cuts.

    Attributes:
        layer: the layer.
        direction: one direction of it by itself.
        others: the states after h, by their names.
        batch: how many sequences there are.
        chunks: into how many chunks their steps are cut.
        output_shape, states_shape, borders_shape: of these tensors.
    """

    def __init__(self, layer: Layer, operands: Operands) -> None:
        input, batch_sizes, hx, weights, modifiers = operands
        self.layer, self.direction = layer, layer._replace(bidirectional=False)
        _, *self.others = layer.cell.states
        roles = layer.roles
        if len(weights) != len(roles) * layer.directions or weights[W_HH].dim() != 2:
            raise RuntimeError(
                f"weights: expected {', '.join(roles)} for each of {layer.directions} directions, "
                f"got {[tuple(w.shape) for w in weights]}"
            )
        self._widths = layer.cell.widths(weights[W_HH])
        self._width, self._hidden_size = self._widths[0], self._widths[-1]
        self._input, self._batch_sizes = input, batch_sizes
        ops.check_storages(
            input=input, batch_sizes=batch_sizes, **ops.named("hx", hx),
            **ops.named("weights", weights), reset=modifiers.reset,
            **ops.named("reset_states", modifiers.reset_states),
            recurrent_factor=modifiers.recurrent_factor,
            **{f"keep[{i}]": share for i, share in enumerate(modifiers.keep)},
            step_inputs=modifiers.step_inputs,
        )  # fmt: skip
        self._sizes = _sizes(input, batch_sizes)
        self._steps = input.size(0) if batch_sizes is None else len(self._sizes)
        self.batch = input.size(1) if batch_sizes is None else self._sizes[0]
        self.chunks = -(-self._steps // layer.checkpoint) if self.batch else 1
        self._offsets = [0, *accumulate(self._sizes)]
        self.output_shape = (*input.shape[:-1], layer.directions * self._width)
        self.states_shape = (*input.shape[:-1], layer.directions * self._hidden_size)
        self.borders_shape: tuple[int, ...] = (0,)
        if self.others:
            rows = self.chunks * self.batch
            self.borders_shape = (len(self.others), layer.directions, rows, self._hidden_size)
        # Made contiguous once, not in every chunk.
        self._weights = weights if self.chunks == 1 else [w.contiguous() for w in weights]

    def border(self, chunk: int, alive: int) -> slice:
        """Where in `borders` the first `alive` sequences before a chunk are."""
        return slice(chunk * self.batch, chunk * self.batch + alive)

    def states(self, name: str, given: Optionals) -> list[Tensor]:
        """States or gradients of them, to write to: copies of those that are given, else zeros."""
        layer, batch = self.layer, self.batch
        widths = self._widths
        if given and len(given) != len(widths):
            raise RuntimeError(
                f"{name}: expected {len(widths)} state(s), {', '.join(layer.cell.states)}, of the "
                f"cell {layer.cell}, got {len(given)}"
            )
        found = []
        for i, width in enumerate(widths):
            shape = (layer.directions, batch, width)
            tensor = given[i] if given else None
            if tensor is None:
                found.append(self._input.new_zeros(shape))
                continue
            _check_shape(f"{name}[{i}]", tensor, shape)
            found.append(tensor.clone(memory_format=torch.contiguous_format))
        return found

    def own(self, direction: int) -> Sequence[Tensor]:
        """The weights of a direction."""
        count = len(self.layer.roles)
        return self._weights[direction * count : (direction + 1) * count]

    def columns(self, direction: int) -> slice:
        """Where in the last dimension of the output h of a direction is."""
        return slice(direction * self._width, (direction + 1) * self._width)

    def units(self, direction: int) -> slice:
        """Where in the last dimension of other states after every step a direction is."""
        return slice(direction * self._hidden_size, (direction + 1) * self._hidden_size)

    def chunk(self, direction: int, i: int) -> _Chunk:
        """The i-th of the chunks in the order in which a direction walks them."""
        is_reverse = direction == 1
        length = self.layer.checkpoint
        first = (self.chunks - 1 - i if is_reverse else i) * length
        end = min(first + length, self._steps)
        before = end if is_reverse else first - 1
        if self._batch_sizes is None:
            steps, neighbour = slice(first, end), slice(before, before + 1)
            go_on = self.batch if 0 <= before < self._steps else 0
            return _Chunk(steps, steps, neighbour, self.batch, go_on, None, is_reverse)
        alive = self._sizes[first]
        go_on = min(alive, self._sizes[before]) if 0 <= before < self._steps else 0
        return _Chunk(
            slice(first, end),
            slice(self._offsets[first], self._offsets[end]),
            slice(self._offsets[before], self._offsets[before] + go_on),
            alive,
            go_on,
            self._batch_sizes[first:end],
            is_reverse,
        )


def _check_checkpoint(checkpoint: int) -> None:
    if checkpoint < 1:
        raise RuntimeError(f"checkpoint: expected at least 1, got {checkpoint}")


def _sizes(input: Tensor, batch_sizes: Tensor | None) -> list[int]:
    """How many sequences are alive at each step if packed; if not, all are, and it is empty."""
    dims = 3 if batch_sizes is None else 2
    if input.dim() != dims or (batch_sizes is None and input.size(0) == 0):
        raise RuntimeError(
            f"input: expected {dims} dimensions and at least one step, got {tuple(input.shape)}"
        )
    if batch_sizes is None:
        return []
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
        raise RuntimeError(
            "batch_sizes: expected an int64 CPU tensor of shape (T,), got "
            f"{batch_sizes.dtype} of shape {tuple(batch_sizes.shape)}, {batch_sizes.device}"
        )
    sizes: list[int] = batch_sizes.tolist()
    if not sizes or sizes != sorted(sizes, reverse=True) or sizes[-1] < 1:
        raise RuntimeError(f"batch_sizes: expected positive, non-increasing sizes, got {sizes}")
    if sum(sizes) != input.size(0):
        raise RuntimeError(
            f"batch_sizes: expected a sum of {input.size(0)}, the rows of input, got {sum(sizes)}"
        )
    return sizes


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise RuntimeError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


@dataclass(frozen=True)
class _Chunk:
    """Steps of one direction.

    Attributes:
        steps: which ones.
        place: where they are in the first dimension of input and output: steps, or rows if packed.
        neighbour: the same of the step that is walked before them, of the sequences that go on.
        alive: how many sequences have the first of the steps; none has only later ones.
        go_on: how many of them are walked before.
        batch_sizes: of the steps, if packed.
        is_reverse: whether the direction walks them from the last to the first.
    """

    steps: slice
    place: slice
    neighbour: slice
    alive: int
    go_on: int
    batch_sizes: Tensor | None
    is_reverse: bool

    def operands(
        self, whole: Operands, hx: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> Operands:
        """Those of the layer that walks the chunk, from the states before it."""
        modifiers = self._modifiers(whole.modifiers)
        return Operands(self.of(whole.input), self.batch_sizes, hx, weights, modifiers)

    def _modifiers(self, whole: Modifiers) -> Modifiers:
        """The chunk's, and the direction's, as it is walked."""
        direction = slice(1, 2) if self.is_reverse else slice(1)

        def own(tensor: Tensor) -> Tensor:  # [T, D, B, ...], each of them may be 1
            tensor = tensor[:, direction if tensor.size(1) > 1 else slice(1)]
            return tensor[:, :, : self.alive] if tensor.size(2) > 1 else tensor

        reset, by, factor, keep, steps = whole
        if reset is not None:
            reset = self._at_borders(reset[:, : self.alive])
        return Modifiers(
            reset,
            [self._at_borders(own(state)) for state in by],
            None if factor is None else self._at_steps(own(factor)),
            [None if share is None else self._at_steps(own(share)) for share in keep],
            None if steps is None else self._of_every_step(own(steps)),
        )

    def _of_every_step(self, tensor: Tensor) -> Tensor:
        """The chunk's steps, as they are walked, of a tensor that has all; T may be 1 then, too."""
        if not self.is_reverse or self.batch_sizes is None:
            return self.turned(tensor[self.steps])
        return self._walked(tensor)

    def _at_steps(self, tensor: Tensor) -> Tensor:
        """The chunk's steps, as they are walked, of [T, ...]; T may be 1."""
        if tensor.size(0) == 1:
            return tensor
        if not self.is_reverse or self.batch_sizes is None:
            return self.turned(tensor[self.steps])
        return self._walked(tensor.expand(-1, -1, self.alive, -1))

    def _walked(self, tensor: Tensor) -> Tensor:
        """What each step of the reverse walk has, of [T, 1, alive, ...]; packed only."""
        steps = self._walked_steps.to(tensor.device)
        return tensor[steps, :, torch.arange(self.alive, device=tensor.device)].transpose(1, 2)

    def put_of_steps(self, whole: Tensor, part: Tensor) -> None:
        """Writes to [T, alive, ...] what was found for [steps, alive, ...], as it was walked."""
        if not self.is_reverse or self.batch_sizes is None:
            whole[self.steps] = self.turned(part)
            return
        steps = self._walked_steps
        inside = torch.arange(len(steps))[:, None] < self._lengths
        sequences = torch.arange(self.alive).expand_as(steps)
        at = steps[inside].to(whole.device), sequences[inside].to(whole.device)
        whole[at] = part[inside.to(part.device)]

    def _at_borders(self, tensor: Tensor) -> Tensor:
        """The same, of the steps after the borders that are crossed; borders are [T, B]."""
        if not self.is_reverse or (tensor.dim() > 2 and tensor.size(0) == 1):
            return self._at_steps(tensor)
        steps = (self._walked_steps + 1).clamp(max=tensor.size(0) - 1).to(tensor.device)
        sequences = torch.arange(self.alive, device=tensor.device)
        if tensor.dim() > 2:
            return tensor[steps, :, sequences].transpose(1, 2)
        crossed = tensor[steps, sequences]
        crossed[0, self.go_on :] = False  # they begin here
        return crossed

    def add_of_reset(self, total: Tensor, part: Tensor) -> None:
        """Adds to [T, alive, H] what was found for [steps, alive, H]; or T may be 1, and steps."""
        if total.size(0) == 1:
            total += part
        elif not self.is_reverse:
            total[self.steps] += part
        else:
            # Each step of a sequence once, and beyond the last there are no borders.
            steps = self._walked_steps + 1
            walked = torch.arange(len(steps))[:, None] < self._lengths
            inside = (walked & (steps < total.size(0))).to(total.device)
            sequences = torch.arange(self.alive).expand_as(steps)
            at = steps.to(total.device)[inside], sequences.to(total.device)[inside]
            total[at] += part[inside]

    @cached_property
    def _walked_steps(self) -> Tensor:
        """The step that each step of the reverse walk is, [steps, alive]; if none, any."""
        walked = torch.arange(self.steps.stop - self.steps.start)[:, None]
        return (self.steps.start + self._lengths - 1 - walked).clamp(min=self.steps.start)

    @cached_property
    def _lengths(self) -> Tensor:
        """The steps that each sequence has in the chunk, [alive]."""
        steps = self.steps.stop - self.steps.start
        if self.batch_sizes is None:
            return torch.full((self.alive,), steps)
        return (self.batch_sizes[:, None] > torch.arange(self.alive)).sum(0)

    def of(self, tensor: Tensor) -> Tensor:
        """The chunk's part of `tensor`, as it is walked."""
        return self.turned(tensor[self.place])

    def turned(self, part: Tensor) -> Tensor:
        """`part` from the order of the steps to the order of the walk, or back: it is the same."""
        if not self.is_reverse:
            return part
        if self.batch_sizes is None:
            return part.flip(0)
        return part.index_select(0, self._turned_rows.to(part.device))

    @cached_property
    def _turned_rows(self) -> Tensor:
        """The row that comes to stand in each row when packed sequences are turned around.

        Step s of a sequence with n steps changes places with its step n - 1 - s.
        """
        assert self.batch_sizes is not None
        begins, lengths = self.batch_sizes.cumsum(0) - self.batch_sizes, self._lengths
        step = torch.arange(len(self.batch_sizes)).repeat_interleave(self.batch_sizes)
        sequence = torch.arange(len(step)) - begins[step]
        return begins[lengths[sequence] - 1 - step] + sequence

    def state_before(self, output: Tensor, first: Tensor) -> Tensor:
        """h before the chunk, [1, alive, R], from the output and first states of the direction.

        Not for the chunk walked first. In reverse, sequences that end in the chunk begin in it.
        """
        h = output[self.neighbour]
        h = h if self.batch_sizes is None else h[None]
        known = h.size(1)
        return h if known == self.alive else torch.cat([h, first[:, known : self.alive]], 1)


# What compilers learn of the results.


def borders_like(input: Tensor, others: Sequence[Tensor], rows: int | torch.SymInt) -> Tensor:
    """Borders of so many rows, for the states after h that are like `others`."""
    if not others:
        return input.new_empty(0)
    directions, _, hidden_size = others[0].shape
    return input.new_empty(len(others), directions, rows, hidden_size)


def _forward_fake(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    layer, operands, settings = modified_forward_arguments(*arguments)
    layer = _chunked(layer, operands, *settings)
    output, results, _ = ops.modified_forward_fake(
        *operands.all_tensors, *layer.schema, False, layer.all_states
    )
    input, batch_sizes, *_ = operands
    h, *others = results[: len(layer.cell.states)]
    steps = (input if batch_sizes is None else batch_sizes).size(0)
    chunks = (steps + layer.checkpoint - 1) // layer.checkpoint
    return output, results, borders_like(input, others, chunks * h.size(1))


_library = torch.library.Library("fusedrnn", "FRAGMENT")
_library.define(
    "checkpointed_forward(Tensor input, Tensor? batch_sizes, Tensor[]? hx, Tensor[] weights, "
    "Tensor? reset, Tensor[]? reset_states, Tensor? recurrent_factor, Tensor[]? keep, "
    "Tensor? step_inputs, str cell, bool biases, bool projected, bool bidirectional, "
    "int checkpoint, bool states=False, bool allow_tf32=False) "
    "-> (Tensor output, Tensor[] states, Tensor borders)"
)
_library.define(
    "checkpointed_backward(Tensor? grad_output, Tensor[] grad_states, Tensor input, "
    " Tensor? batch_sizes, Tensor[]? hx, Tensor[] weights, "
    "Tensor? reset, Tensor[]? reset_states, Tensor? recurrent_factor, Tensor[]? keep, "
    "Tensor? step_inputs, Tensor output, Tensor borders, str cell, "
    "bool biases, bool projected, bool bidirectional, int checkpoint, int needs, "
    "bool allow_tf32=False) -> (Tensor grad_input, Tensor[] grad_hx, Tensor[] grad_weights, "
    "Tensor[] grad_reset_states, Tensor grad_step_inputs)"
)
_library.impl("checkpointed_forward", _forward, "CompositeExplicitAutograd")
_library.impl("checkpointed_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("fusedrnn::checkpointed_forward", _forward_fake)
torch.library.register_fake("fusedrnn::checkpointed_backward", ops.backward_fake)

checkpointed_forward = torch.ops.fusedrnn.checkpointed_forward.default
checkpointed_backward = torch.ops.fusedrnn.checkpointed_backward.default
