"""What travels from a module to the ops: a network, a layer of it, and what the layer is given.

    Network    what a module or a function is called with: from functional.py down
    Layer      one layer of it, beside its tensors: from the first `autograd.run_layer` down
    Operands   the layer's tensors, in the order of the ops' schemas

The ops and torch's autograd take flat arguments. `Layer.schema` and `Operands` are what the ops
take, `op(*operands, *layer.schema, ...)`; `forward_arguments` and `backward_arguments` read the
arguments of an op that is written in Python. For autograd the operands are one flat tuple,

    input, a first state or None for each state of the cell, the weights

in which `needs`, a mask of bits, gradients and tangents have the same places. `flat` makes it,
`parts_of_flat` and `unflat` take it apart, and `names_of_flat` says what stands where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fusedrnn.cells import CELLS, Cell

States = tuple[Tensor, ...]
"""The states of a cell, h first. As an argument, none stand for zeros."""

Optionals = Sequence[Tensor | None]


class Layer(NamedTuple):
    """One layer.

    Attributes:
        cell: the cell.
        biases: whether there are biases.
        projected: whether h is projected.
        bidirectional: whether there are both directions.
        checkpoint: the steps of a chunk, see checkpoint.py; 0 where the reserve is kept.
        allow_tf32: whether products may be rounded so, see `ops.allow_tf32`.
    """

    cell: Cell
    biases: bool
    projected: bool
    bidirectional: bool
    checkpoint: int = 0
    allow_tf32: bool = False

    @property
    def schema(self) -> tuple[int, bool, bool, bool]:
        """What the ops take of it, between the tensors and what differs from op to op."""
        return self.cell.number, self.biases, self.projected, self.bidirectional

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def roles(self) -> tuple[str, ...]:
        """What the weights of one direction are, in their order."""
        return self.cell.roles(self.biases, self.projected)


_BOTH = (False, True)
_LAYERS = tuple(
    tuple(tuple(tuple(Layer(cell, b, p, d) for d in _BOTH) for p in _BOTH) for b in _BOTH)
    for cell in CELLS
)
"""Every layer, by its cell's number, biases, projected and bidirectional: in a small network making
one would be felt."""


class Network(NamedTuple):
    """Layers on layers.

    Attributes:
        layer: each of them, as it is on the CPU.
        name: what messages call the network.
        num_layers: how many layers there are.
        batch_first: whether input and output are [B, T, ...].
    """

    layer: Layer
    name: str
    num_layers: int
    batch_first: bool


class Operands(NamedTuple):
    """The tensors of a layer, in the order in which the ops take them.

    Attributes:
        input: [T, B, I], or [N, I] when packed.
        batch_sizes: [T], how many sequences are alive at each step; None when not packed.
        hx: the first states, [D, B, R] and, of those after h, [D, B, H]; none stand for zeros.
        weights: for each direction those of the layer's `roles`.
    """

    input: Tensor
    batch_sizes: Tensor | None
    hx: Sequence[Tensor]
    weights: Sequence[Tensor]


def flat(layer: Layer, operands: Operands) -> Optionals:
    """The operands that may have gradients, one after the other."""
    return (
        operands.input,
        *(operands.hx or (None,) * len(layer.cell.states)),
        *operands.weights,
    )


def unflat(layer: Layer, tensors: Optionals, batch_sizes: Tensor | None) -> Operands:
    """The operands of which `tensors` are the flat tuple."""
    input, hx, weights = parts_of_flat(layer, tensors)
    return Operands(input, batch_sizes, hx, weights)


def parts_of_flat(
    layer: Layer, tensors: Optionals
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """Input, first states and weights of the flat tuple."""
    first_weight = 1 + len(layer.cell.states)
    hx = tensors[1:first_weight]
    given = () if hx[0] is None else hx  # all of them are None, or none is
    return tensors[0], given, tensors[first_weight:]  # type: ignore[return-value]


def names_of_flat(layer: Layer) -> tuple[str, ...]:
    """What stands in each place of the flat tuple: "input", the cell's states, roles."""
    return ("input", *layer.cell.states, *layer.roles * layer.directions)


def layer_of(cell: int, biases: bool, projected: bool, bidirectional: bool) -> Layer:
    """The layer that a schema's arguments describe."""
    if not 0 <= cell < len(CELLS):
        raise RuntimeError(f"cell: expected 0 to {len(CELLS) - 1}, got {cell}")
    return _LAYERS[cell][biases][projected][bidirectional]


class ForwardArguments(NamedTuple):
    """What a forward op is given. `rest` differs from op to op, and so may `batch_sizes`, which are
    lengths where the input is padded."""

    layer: Layer
    operands: Operands
    rest: tuple[Any, ...]


def forward_arguments(
    input: Tensor,
    where: Tensor | None,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    cell: int,
    biases: bool,
    projected: bool,
    bidirectional: bool,
    *rest: Any,
) -> ForwardArguments:
    """From the order of the schemas; `where` the steps end are batch sizes or lengths."""
    layer = layer_of(cell, biases, projected, bidirectional)
    return ForwardArguments(layer, Operands(input, where, hx or (), weights), rest)


class BackwardArguments(NamedTuple):
    """What a backward op is given, as in `ForwardArguments`."""

    layer: Layer
    operands: Operands
    grad_output: Tensor | None
    grad_hn: Sequence[Tensor]
    output: Tensor
    reserve: Tensor
    rest: tuple[Any, ...]


def backward_arguments(
    grad_output: Tensor | None, grad_hn: Sequence[Tensor], *arguments: Any
) -> BackwardArguments:
    """From the order of the schemas: output and reserve stand between operands and layer."""
    input, where, hx, weights, output, reserve, *others = arguments
    layer, operands, rest = forward_arguments(input, where, hx, weights, *others)
    return BackwardArguments(layer, operands, grad_output, grad_hn, output, reserve, rest)
