"""A whole network by torch.nn's own path, which is cuDNN's on CUDA devices.

    by_torch(network, operands)     torch.lstm and the like, with gradients of any order

torch's path has no second derivatives on CUDA, and ours have them everywhere. So where a gradient
is needed, the call is one Function: its backward is torch's own, unless it is to be differentiated
itself; then the network is computed again by our kernels, and theirs is the derivative.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fusedrnn._engine.layer import Layer, Operands
from fusedrnn._engine.torch_private import (
    apply_at_once,
    keeps_graph,
    one_by_one,
    torch_network,
)

Results = tuple[Tensor, Sequence[Tensor]]
Run = Callable[[Operands], Results]
"""The output and the final states of a network from its operands."""


class TorchNetwork(NamedTuple):
    """A network as torch's path takes it.

    Attributes:
        layer: each of its layers.
        num_layers: how many there are.
        by_kernels: what our kernels make of its operands.
    """

    layer: Layer
    num_layers: int
    by_kernels: Run


def can_serve(layer: Layer, dropout: float, training: bool) -> bool:
    """Whether torch has such a network, and would give what ours does but for rounding."""
    return (
        layer.cell.program is None
        and torch_network(layer.cell.name) is not None
        and not dropout
        and not layer.modified
        and not (layer.checkpoint and training)
    )


def by_torch(network: TorchNetwork, operands: Operands, training: bool) -> Results:
    """The output and final states of a network that torch's path can serve."""
    if not training:
        output, *hn = _call(network.layer, network.num_layers, operands, train=False)
        return output, hn
    states = len(network.layer.cell.states)
    hx = operands.hx or (None,) * states
    output, *hn = _apply(network, operands.batch_sizes, operands.input, *hx, *operands.weights)
    return output, hn


def _call(layer: Layer, num_layers: int, operands: Operands, train: bool) -> Sequence[Tensor]:
    input, batch_sizes, hx, weights, _ = operands
    if not hx:
        parts = num_layers * layer.directions
        batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
        widths = layer.cell.widths(weights[1])
        hx = [input.new_zeros(parts, batch, width) for width in widths]
    hx = [state.contiguous() for state in hx]  # as cuDNN wants them
    states = tuple(hx) if len(hx) > 1 else hx[0]
    options = layer.biases, num_layers, 0.0, train, layer.bidirectional
    function = torch_network(layer.cell.name)
    if batch_sizes is None:
        arguments: tuple[Any, ...] = input, states, weights, *options, False
    else:
        arguments = input, batch_sizes, states, weights, *options
    _ignore_scattered(weights)
    kind = input.device.type
    if not torch.is_autocast_enabled(kind):
        found: Sequence[Tensor] = function(*arguments)
        return found
    with torch.autocast(kind, enabled=False):  # callers have applied it
        return function(*arguments)


_SCATTERED = "RNN module weights are not part of single"
_FILTER = (
    "ignore", re.compile(_SCATTERED, re.IGNORECASE), UserWarning, re.compile(re.escape(__name__)), 0
)  # fmt: skip


def _ignore_scattered(weights: Sequence[Tensor]) -> None:
    """Keeps torch's warning of scattered weights from whoever did not call torch.nn.

    The filter stays: taking it away after each call, as `warnings.catch_warnings` does, makes
    Python forget which warnings it has shown, and show all others again.
    """
    first, last = (weights[i].untyped_storage().data_ptr() for i in (0, -1))
    if first != last and warnings.filters[:1] != [_FILTER]:
        warnings.filterwarnings("ignore", _SCATTERED, UserWarning, re.escape(__name__))


class _Network(Function):
    """(network, batch_sizes, input, the first states or None, weights) -> output, final states."""

    @staticmethod
    def forward(
        ctx: Any, network: TorchNetwork, batch_sizes: Tensor | None, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [
                None if tensor is None else tensor.detach().requires_grad_(tensor.requires_grad)
                for tensor in tensors
            ]
            operands = _operands(network, batch_sizes, leaves)
            results = _call(network.layer, network.num_layers, operands, train=True)
        ctx.set_materialize_grads(False)
        ctx.network, ctx.leaves, ctx.results = network, leaves, results
        ctx.save_for_backward(batch_sizes, *tensors)
        return tuple(result.detach() for result in results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        batch_sizes, *tensors = ctx.saved_tensors  # refused if they were changed or freed

        def gradients(grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            again = torch.is_grad_enabled()
            results, inputs = ctx.results, ctx.leaves
            if again:
                output, hn = ctx.network.by_kernels(_operands(ctx.network, batch_sizes, tensors))
                results, inputs = (output, *hn), tensors
            at = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
            given = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
            found: list[Tensor | None] = [None] * len(tensors)
            if not given or not at:
                return found
            of = torch.autograd.grad(
                [result for result, _ in given], [inputs[i] for i in at],
                [grad for _, grad in given], retain_graph=again or keeps_graph(),
                create_graph=again, allow_unused=True,
            )  # fmt: skip
            for i, gradient in zip(at, of, strict=True):
                found[i] = gradient
            return found

        return None, None, *one_by_one(gradients, grads)


def _operands(
    network: TorchNetwork, batch_sizes: Tensor | None, tensors: Sequence[Any]
) -> Operands:
    input, *rest = tensors
    states = len(network.layer.cell.states)
    hx = () if rest[0] is None else rest[:states]
    return Operands(input, batch_sizes, hx, rest[states:])


_apply = apply_at_once(_Network)
