"""Batches of gradients from torch's older vmap, one call of the kernels for each.

`torch.autograd.grad(..., is_grads_batched=True)`, `torch.autograd.functional.jacobian(...,
vectorize=True)` and `gradcheck(..., check_batched_grad=True)` run backward, or forward mode, once
on wrapped tensors that look like one gradient and hold a batch of them, in levels if such calls
nest. With torch.func's vmap autograd tells a Function that its tensors are wrapped; here it does
not, and none of our ops can take such a wrapper. So they are unwrapped here.

What torch has for these tensors is private, and used nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Optionals = Sequence[Tensor | None]
Function = Callable[[Optionals], Optionals]

_LEVELS = 64  # as many as torch nests

is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
"""Whether a tensor is such a wrapper."""


def one_by_one(function: Function, tensors: Optionals) -> Optionals:
    """`function(tensors)`; for a batch, its results for each member, wrapped as a batch again."""
    for tensor in tensors:
        if tensor is not None and is_wrapped(tensor):
            return _one_by_one(function, tensors, _level_of(tensor))
    return function(tensors)


def _one_by_one(function: Function, tensors: Optionals, level: int) -> Optionals:
    size = max(_unwrapped(t, level, 0).size(0) for t in tensors if t is not None)
    each = [[None] * size if t is None else _unwrapped(t, level, size).unbind() for t in tensors]
    found = [one_by_one(function, of_one) for of_one in zip(*each, strict=True)]
    return [
        None if of_all[0] is None else torch._add_batch_dim(torch.stack(of_all), 0, level)
        for of_all in zip(*found, strict=True)
    ]


def _level_of(tensor: Tensor) -> int:
    """A level that has a batch in `tensor`."""
    return next(i for i in range(1, _LEVELS + 1) if _unwrapped(tensor, i, 0).size(0))


def _unwrapped(tensor: Tensor, level: int, size: int) -> Tensor:
    """The batch of a level, [N, ...]; `tensor` repeated `size` times if it has none there."""
    unwrapped: Tensor = torch._remove_batch_dim(tensor, level, size, 0)
    return unwrapped
