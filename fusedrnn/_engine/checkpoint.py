"""Training in less memory: states are kept every k steps, and the gates are computed again.

An LSTM's reserve is five values per unit and step, a GRU's four
(three with `reset_after=False`). Here forward keeps none of it, and
backward makes that of k steps at a time:

    forward    |--- k steps ---|--- k steps ---|--- rest --|     all steps, without a reserve
    kept     hx, cx          h, c            h, c                h in the output, c in `borders`

    backward   of each chunk, the one that was walked last first:
                   layer_forward   from its kept state, save=True  ->  the reserve of k steps
                   layer_backward  with dh, dc of the chunk after  ->  dx, dW (added up), dh, dc

Both passes are ops, so that compilers take them as they take the native ones, and both are made of
the native ones, so that they run wherever those do. Arguments and results are those of
`layer_forward` and `layer_backward`, see ops.py, with `checkpoint`, which is k, in place of `save`,
and in place of the reserve

    borders  [D, chunks * B, H]   c before each chunk, in the order in which a direction walks them;
                                  [0] without LSTM. (Compilers have a guard for sizes that may be
                                  one, as the number of chunks: so it has no dimension of its own.)

The native ops walk one direction by itself from the first step to the last. So for the reverse
direction the steps of a chunk are turned around, and what comes of them is turned back. Packed,
each sequence is turned around within its own steps of the chunk: so it begins at the first, as
packed sequences must, and the batch sizes are the same. A single chunk (k of T or more, which lets
deep stacks hold the reserve of one layer at a time) is one call for both directions.

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
from fusedrnn.reference import CELLS, GATES, LSTM


def _forward(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    checkpoint: int,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer = _Layer(input, batch_sizes, weights, cell, bidirectional, checkpoint)
    ops.check_storages(hx=hx, cx=cx)
    if cell != LSTM or layer.chunks == 1:  # there is no c between steps to keep
        output, hn, cn, _ = ops.layer_forward(
            input, batch_sizes, hx, cx, weights, cell, has_biases, bidirectional, False, allow_tf32
        )
        has_cells = cell == LSTM
        first_c = layer.states("cx", cx, layer.hidden_size) if has_cells else input.new_empty(0)
        return output, hn, cn, first_c
    weights = [weight.contiguous() for weight in weights]  # once, not in every chunk
    hn = layer.states("hx", hx, layer.width)
    cn = layer.states("cx", cx, layer.hidden_size)
    output, borders = input.new_empty(layer.output_shape), input.new_empty(layer.borders_shape)
    for d in range(layer.directions):
        own_output = output[..., layer.columns(d)]
        for i in range(layer.chunks):
            chunk = layer.chunk(d, i)
            h, c = hn[d : d + 1, : chunk.alive], cn[d : d + 1, : chunk.alive]
            borders[d, layer.border(i, layer.batch)] = cn[d]
            y, h_after, c_after, _ = ops.layer_forward(
                chunk.of(input), chunk.batch_sizes,
                None if i == 0 and hx is None else h, None if i == 0 and cx is None else c,
                weights[layer.own(d)], cell, has_biases, False, False, allow_tf32,
            )  # fmt: skip
            h.copy_(h_after)
            c.copy_(c_after)
            own_output[chunk.place] = chunk.turned(y)
    return output, hn, cn, borders


def _backward(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    grad_cn: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    borders: Tensor,
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    checkpoint: int,
    needs: int,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    layer = _Layer(input, batch_sizes, weights, cell, bidirectional, checkpoint)
    ops.check_storages(
        grad_output=grad_output, grad_hn=grad_hn, grad_cn=grad_cn, hx=hx, cx=cx, output=output,
        borders=borders,
    )  # fmt: skip
    _check_shape("output", output, layer.output_shape)
    _check_shape("borders", borders, layer.borders_shape)
    if grad_output is not None:
        _check_shape("grad_output", grad_output, layer.output_shape)
    if layer.chunks == 1:  # both directions at once, and nothing to put together
        return _chunk_backward(
            grad_output, grad_hn, grad_cn, input, batch_sizes, hx, cx, weights, cell, has_biases,
            bidirectional, needs, allow_tf32,
        )  # fmt: skip
    weights = [weight.contiguous() for weight in weights]
    first_h = layer.states("hx", hx, layer.width)
    # For all sequences; a chunk reads and writes those that are alive in it.
    dh = layer.states("grad_hn", grad_hn, layer.width)
    dc = layer.states("grad_cn", grad_cn, layer.hidden_size) if cell == LSTM else None
    states_wanted = needs & (0 if hx is None else 2) | needs & (0 if cx is None else 4)
    grad_input = input.new_empty(input.shape if needs & 1 else 0)
    sums: list[Tensor | None] = [None] * len(weights)

    for d in range(layer.directions):
        own, one, columns = layer.own(d), slice(d, d + 1), layer.columns(d)
        own_needs = needs & 1 | (needs >> (3 + own.start) & ((1 << layer.per_direction) - 1)) << 3
        if not own_needs and not states_wanted:
            continue
        for i in reversed(range(layer.chunks)):
            chunk = layer.chunk(d, i)
            alive = slice(chunk.alive)
            h: Tensor | None
            if i > 0:
                h = chunk.state_before(output[..., columns], first_h[one])
                c = borders[one, layer.border(i, chunk.alive)] if cell == LSTM else None
            else:
                h = None if hx is None else hx[one, alive]
                c = None if cx is None else cx[one, alive]
            dx, dh_before, dc_before, dw = _chunk_backward(
                None if grad_output is None else chunk.of(grad_output[..., columns]),
                dh[one, alive], None if dc is None else dc[one, alive],
                chunk.of(input), chunk.batch_sizes, h, c, weights[own], cell, has_biases,
                False, own_needs | (6 if i > 0 else states_wanted), allow_tf32,
            )  # fmt: skip
            if dh_before.numel():
                dh[one, alive] = dh_before
            if dc is not None and dc_before.numel():
                dc[one, alive] = dc_before
            if needs & 1:
                place = grad_input[chunk.place]
                place.copy_(chunk.turned(dx)) if d == 0 else place.add_(chunk.turned(dx))
            for j, part in enumerate(dw, own.start):
                if needs >> (3 + j) & 1:
                    sums[j] = _sum(sums[j], part)
    return (
        grad_input,
        dh if states_wanted & 2 else input.new_empty(0),
        dc if dc is not None and states_wanted & 4 else input.new_empty(0),
        [input.new_empty(0) if total is None else total.to(input.dtype) for total in sums],
    )


def _chunk_backward(
    grad_output: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    needs: int,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """A chunk's gradients. Its reserve ends with this call, so that there is never a second one."""
    output, _, _, reserve = ops.layer_forward(
        input, batch_sizes, h, c, weights, cell, has_biases, bidirectional, True, allow_tf32
    )
    return ops.layer_backward(
        grad_output, dh, dc, input, batch_sizes, h, c, weights, output, reserve, cell, has_biases,
        bidirectional, needs, allow_tf32,
    )  # fmt: skip


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    if total is None:
        return part.float() if part.dtype in (torch.bfloat16, torch.float16) else part
    return total.add_(part)


class _Layer:
    """The sizes of a call, checked where the native ops, which see chunks, could not; its cuts."""

    def __init__(
        self,
        input: Tensor,
        batch_sizes: Tensor | None,
        weights: Sequence[Tensor],
        cell: int,
        bidirectional: bool,
        checkpoint: int,
    ) -> None:
        _check_checkpoint(checkpoint)
        if not 0 <= cell < len(CELLS):
            raise RuntimeError(f"cell: expected 0 to {len(CELLS) - 1}, got {cell}")
        self.directions = 2 if bidirectional else 1
        self.per_direction = len(weights) // self.directions
        if self.per_direction < 2 or len(weights) % self.directions or weights[1].dim() != 2:
            raise RuntimeError(
                "weights: expected w_ih and w_hh, [G*H, I] and [G*H, R], and as many tensors for "
                f"each of {self.directions} directions, got {[tuple(w.shape) for w in weights]}"
            )
        self.hidden_size = weights[1].size(0) // GATES[cell]
        self.width = weights[1].size(1)
        self._has_cells = cell == LSTM
        self._input, self._batch_sizes, self._checkpoint = input, batch_sizes, checkpoint
        named = {f"weights[{i}]": weight for i, weight in enumerate(weights)}
        ops.check_storages(input=input, batch_sizes=batch_sizes, **named)
        self._sizes = _sizes(input, batch_sizes)
        self._steps = input.size(0) if batch_sizes is None else len(self._sizes)
        self.batch = input.size(1) if batch_sizes is None else self._sizes[0]
        self.chunks = -(-self._steps // checkpoint) if self.batch else 1
        self._offsets = [0, *accumulate(self._sizes)]
        self.output_shape = (*input.shape[:-1], self.directions * self.width)

    @property
    def borders_shape(self) -> tuple[int, ...]:
        if not self._has_cells:
            return (0,)
        return (self.directions, self.chunks * self.batch, self.hidden_size)

    def border(self, chunk: int, alive: int) -> slice:
        """Where in `borders` the first `alive` sequences before a chunk are."""
        return slice(chunk * self.batch, chunk * self.batch + alive)

    def states(self, name: str, given: Tensor | None, size: int) -> Tensor:
        """States or gradients of them, of `size` features, to write to: a copy of `given`."""
        shape = (self.directions, self.batch, size)
        if given is None:
            return self._input.new_zeros(shape)
        _check_shape(name, given, shape)
        return given.clone(memory_format=torch.contiguous_format)

    def own(self, direction: int) -> slice:
        """Where in `weights` those of a direction are."""
        return slice(direction * self.per_direction, (direction + 1) * self.per_direction)

    def columns(self, direction: int) -> slice:
        """Where in the last dimension of the output h of a direction is."""
        return slice(direction * self.width, (direction + 1) * self.width)

    def chunk(self, direction: int, i: int) -> _Chunk:
        """The i-th of the chunks in the order in which a direction walks them."""
        is_reverse = direction == 1
        first = (self.chunks - 1 - i if is_reverse else i) * self._checkpoint
        end = min(first + self._checkpoint, self._steps)
        before = end if is_reverse else first - 1
        if self._batch_sizes is None:
            steps, neighbour = slice(first, end), slice(before, before + 1)
            return _Chunk(steps, neighbour, self.batch, None, is_reverse)
        alive = self._sizes[first]
        go_on = min(alive, self._sizes[before]) if 0 <= before < self._steps else 0
        return _Chunk(
            slice(self._offsets[first], self._offsets[end]),
            slice(self._offsets[before], self._offsets[before] + go_on),
            alive,
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
        place: where they are in the first dimension of input and output: steps, or rows if packed.
        neighbour: the same of the step that is walked before them, of the sequences that go on.
        alive: how many sequences have the first of the steps; none has only later ones.
        batch_sizes: of the steps, if packed.
        is_reverse: whether the direction walks them from the last to the first.
    """

    place: slice
    neighbour: slice
    alive: int
    batch_sizes: Tensor | None
    is_reverse: bool

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
        begins = self.batch_sizes.cumsum(0) - self.batch_sizes
        lengths = (self.batch_sizes[:, None] > torch.arange(self.alive)).sum(0)
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


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    before, checkpoint, after = arguments[:8], arguments[8], arguments[9:]
    _check_checkpoint(checkpoint)
    output, hn, cn, _ = ops.layer_forward_fake(*(*before, False, *after))
    input, batch_sizes, cell = before[0], before[1], before[5]
    if cell != LSTM:
        return output, hn, cn, input.new_empty(0)
    steps = (input if batch_sizes is None else batch_sizes).size(0)
    chunks = (steps + checkpoint - 1) // checkpoint
    return output, hn, cn, input.new_empty(cn.size(0), chunks * cn.size(1), cn.size(2))


def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    before, checkpoint, after = arguments[:13], arguments[13], arguments[14:]
    _check_checkpoint(checkpoint)
    return ops.layer_backward_fake(*before, *after)


_library = torch.library.Library("fusedrnn", "FRAGMENT")
_library.define(
    "checkpointed_forward(Tensor input, Tensor? batch_sizes, Tensor? hx, Tensor? cx, "
    "Tensor[] weights, int cell, bool has_biases, bool bidirectional, int checkpoint, "
    "bool allow_tf32=False) -> (Tensor output, Tensor hn, Tensor cn, Tensor borders)"
)
_library.define(
    "checkpointed_backward(Tensor? grad_output, Tensor? grad_hn, Tensor? grad_cn, Tensor input, "
    "Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights, Tensor output, "
    "Tensor borders, int cell, bool has_biases, bool bidirectional, int checkpoint, int needs, "
    "bool allow_tf32=False) "
    "-> (Tensor grad_input, Tensor grad_hx, Tensor grad_cx, Tensor[] grad_weights)"
)
_library.impl("checkpointed_forward", _forward, "CompositeExplicitAutograd")
_library.impl("checkpointed_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("fusedrnn::checkpointed_forward", _forward_fake)
torch.library.register_fake("fusedrnn::checkpointed_backward", _backward_fake)

checkpointed_forward = torch.ops.fusedrnn.checkpointed_forward.default
checkpointed_backward = torch.ops.fusedrnn.checkpointed_backward.default
