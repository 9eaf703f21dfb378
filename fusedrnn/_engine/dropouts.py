"""Dropouts inside a recurrence: the noise that the layers of a network meet in training.

    x_t --(input)--> W_ih ---+--> cell --> h_t --(output)--> the next layer, or the user
    h_{t-1} --(recurrent)--> W_hh (weight)      and (zoneout) of h_{t-1}, c_{t-1} into h_t, c_t

Input, output and weights are masked around the layers, by what is here. What acts within a step is
given to the kernels as modifiers: the factor of the recurrent operand, and the share that a state
keeps. Masks are drawn once for a call, and backward and checkpoints get the same tensors. They
follow `torch.manual_seed`: torch's generator of the device draws them or, on the CPU, where that
would take longer than the layer, a seed for `ops.random_mask`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedrnn._engine import ops
from fusedrnn._engine.checks import check_probability, kind_of
from fusedrnn._engine.torch_private import is_transformed_by_func
from fusedrnn.cells import Cell


class Dropouts(NamedTuple):
    """Probabilities from 0 to below 1, of what `fusedrnn.LSTM` says; 0 for none.

    Attributes:
        input: of a zero in the input of each layer.
        output: of a zero in the output of each layer.
        recurrent: of a zero in what W_hh multiplies, h of the step before.
        zoneout: for each state of the cell, that a unit keeps its value; none for zeros.
        weight: of a zero in W_hh, the same for all steps and sequences of a call.
        per_step: whether masks of input, output and recurrence are drawn for every step; if not,
            for every sequence.
    """

    input: float = 0.0
    output: float = 0.0
    recurrent: float = 0.0
    zoneout: tuple[float, ...] = ()
    weight: float = 0.0
    per_step: bool = False


def dropouts_of(
    cell: Cell,
    input: Any,
    output: Any,
    recurrent: Any,
    zoneout: Any,
    weight: Any,
    mask: Any,
) -> Dropouts | None:
    """The dropouts of a network whose arguments they are, checked; None if there are none.

    Raises:
        ValueError: a probability is not from 0 to below 1, there are not as many of zoneout as the
            cell has states, or the mask is neither "sequence" nor "step".
        TypeError: a probability is no number.
    """
    for name, probability in (
        ("input_dropout", input),
        ("output_dropout", output),
        ("recurrent_dropout", recurrent),
        ("weight_dropout", weight),
    ):
        check_probability(name, probability)
    if mask not in ("sequence", "step"):
        raise ValueError(f"dropout_mask: expected 'sequence' or 'step', got {mask!r}")
    shares = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout,) * len(cell.states)
    if len(shares) != len(cell.states):
        raise ValueError(
            f"zoneout: expected a number, or one for each of {', '.join(cell.states)}, got "
            f"{kind_of(zoneout)} of {len(shares)}"
        )
    for share in shares:
        check_probability("zoneout", share)
    if not (input or output or recurrent or weight or any(shares)):
        return None
    shares = tuple(map(float, shares)) if any(shares) else ()
    return Dropouts(input, output, recurrent, shares, weight, mask == "step")


class Masks:
    """Draws the masks of one call, for its steps and sequences.

    Args:
        input: [T, B, I], or [N, I] when packed: for dtype, device and sizes.
        batch_sizes: [T] of a packed input.
    """

    def __init__(
        self, dropouts: Dropouts, training: bool, input: Tensor, batch_sizes: Tensor | None
    ) -> None:
        self._dropouts, self._training, self._like = dropouts, training, input
        self._rows: Tensor | None = None
        if batch_sizes is None:
            self._steps, self._batch = input.shape[:2]
            return
        self._steps, self._batch = len(batch_sizes), int(batch_sizes[0])
        if not dropouts.per_step:  # the sequence that each packed row is of
            first = (batch_sizes.cumsum(0) - batch_sizes).repeat_interleave(
                batch_sizes, output_size=input.size(0)
            )
            rows = torch.arange(input.size(0), device=batch_sizes.device) - first
            self._rows = rows.to(input.device)

    def input(self, input: Tensor) -> Tensor:
        """The input of a layer."""
        return self._drop(input, self._dropouts.input)

    def output(self, output: Tensor) -> Tensor:
        """The output of a layer."""
        return self._drop(output, self._dropouts.output)

    def weight(self, w_hh: Tensor) -> Tensor:
        """W_hh of a layer and direction."""
        probability = self._dropouts.weight
        if not self._drops(probability):
            return w_hh
        return w_hh * self._zeros_and_scale(w_hh.shape, probability)

    def recurrent(self, directions: int, width: int) -> Tensor | None:
        """The factor of the recurrent operand, see `Modifiers`; None for 1."""
        probability = self._dropouts.recurrent
        if not self._drops(probability):
            return None
        steps = self._steps if self._dropouts.per_step else 1
        return self._zeros_and_scale((steps, directions, self._batch, width), probability)

    def keep(self, directions: int, widths: Sequence[int]) -> list[Tensor | None]:
        """The share that each state keeps; out of training as much as is expected in it."""
        kept = zip(self._dropouts.zoneout, widths, strict=False)
        return [self._share(share, directions, width) if share else None for share, width in kept]

    def _share(self, probability: float, directions: int, width: int) -> Tensor:
        if not self._training:
            return self._like.new_full((1, 1, 1, width), probability)
        shape = (self._steps, directions, self._batch, width)
        return _one_of(self._like, (1.0, 0.0), shape, probability)

    def _drops(self, probability: float) -> bool:
        return self._training and probability > 0

    def _drop(self, values: Tensor, probability: float) -> Tensor:
        """Rows of a layer: [T, B, F], or [N, F] when packed."""
        if not self._drops(probability):
            return values
        if self._dropouts.per_step:
            return values * self._zeros_and_scale(values.shape, probability)
        mask = self._zeros_and_scale((self._batch, values.size(-1)), probability)
        return values * (mask if self._rows is None else mask.index_select(0, self._rows))

    def _zeros_and_scale(self, shape: Sequence[int], probability: float) -> Tensor:
        return _one_of(self._like, (0.0, 1 / (1 - probability)), shape, probability)


def _one_of(
    like: Tensor, values: tuple[float, float], shape: Sequence[int], probability: float
) -> Tensor:
    """One of two values everywhere, the first with a probability."""
    if like.device.type == "cpu" and not is_transformed_by_func():
        seed = torch.randint(-(1 << 63), (1 << 63) - 1, (1,), device="cpu")
        either = torch.tensor(values, dtype=like.dtype, device="cpu")
        mask: Tensor = ops.random_mask(seed, either, list(shape), probability)
        return mask
    first, second = values
    mask = like.new_empty(tuple(shape)).bernoulli_(probability)
    return mask.mul_(first - second).add_(second)
