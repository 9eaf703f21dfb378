"""Gradients of a layer: the forward and the backward op joined for autograd and `torch.func`.

    run_layer(...) --- nothing needs a gradient ---> layer_forward, nothing saved
        |
    LayerFunction    forward: layer_forward     backward: LayerGradient
    LayerGradient    forward: layer_backward    backward: the derivative of `reference_gradient`

With `checkpoint` the ops of checkpoint.py take the place of these two, and nothing else differs.

First derivatives come from the kernels. Second and higher ones, `vmap` and forward-mode `jvp`
come from the reference: plain PyTorch, slower and right under every composition of transforms.

Both Functions take their tensors as the flat tuple of layer.py, so that bit i of a `needs` mask,
the i-th entry of `needs_input_grad` and the i-th gradient speak of the same operand. What comes out
of a layer is flat, too: the output, the final states, the reserve; and what comes in for backward
is the gradients of the former two, called `grads` here. The same formulas are registered for the
raw ops, which are so differentiable on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fusedrnn import reference
from fusedrnn._engine import ops
from fusedrnn._engine.checkpoint import checkpointed_backward, checkpointed_forward
from fusedrnn._engine.layer import (
    Layer,
    Operands,
    Optionals,
    backward_arguments,
    flat,
    forward_arguments,
    names_of_flat,
    parts_of_flat,
    unflat,
)
from fusedrnn._engine.sequences import padded_forward
from fusedrnn._engine.torch_private import (
    apply_at_once,
    at_once,
    below_autograd,
    is_forward_mode,
    is_traced,
    is_transformed_by_func,
    one_by_one,
)

Tensors = tuple[Tensor, ...]

_forward_at_once, _backward_at_once = at_once(ops.layer_forward), at_once(ops.layer_backward)


def run_layer(
    layer: Layer, operands: Operands, lengths: Tensor | None = None
) -> tuple[Tensor, Sequence[Tensor]]:
    """One layer, differentiable: `reference.layer` by the kernels.

    With `layer.checkpoint` gradients are computed as checkpoint.py says, if the cell has a reserve.
    `lengths`, see sequences.py, are for calls that a compiler captures, or without values.
    """
    differentiable = torch.is_grad_enabled() and _any_requires_grad(operands)
    transformed = is_transformed_by_func() or is_forward_mode()
    if is_captured() or lengths is not None:
        return _run_captured(layer, operands, lengths, differentiable, transformed)
    if not transformed and not differentiable:
        cell, biases, projected, bidirectional, _, allow_tf32 = layer
        with below_autograd():
            input, batch_sizes, hx, weights = operands
            output, hn, _ = _forward_at_once(
                input, batch_sizes, hx or None, weights, cell.number, biases, projected,
                bidirectional, False, allow_tf32,
            )  # fmt: skip
        return output, hn
    if layer.checkpoint and not layer.cell.saved:
        layer = layer._replace(checkpoint=0)
    apply = LayerFunction.apply if transformed else _apply_at_once
    output, *hn, _ = apply(layer, operands.batch_sizes, *flat(layer, operands))
    return output, hn


def _run_captured(
    layer: Layer,
    operands: Operands,
    lengths: Tensor | None,
    differentiable: bool,
    transformed: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The layer as one op, which compilers see; it is differentiable, but not transformable."""
    if transformed:
        if operands.batch_sizes is not None or lengths is not None:
            raise NotImplementedError(
                "torch.func transforms of a layer with packed input or lengths can't be "
                "compiled, since a graph has no loop over their values; compile the model "
                "without the transform, or call the transform outside of torch.compile"
            )
        return reference.layer(layer, operands)
    # A trace of torch.jit serves with gradients and without: there, weights decide.
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    save = differentiable or (traced and _any_requires_grad(operands))
    checkpoint = layer.checkpoint if layer.cell.saved else 0
    if lengths is not None:
        input, _, hx, weights = operands
        output, hn, _ = padded_forward(
            input, lengths, hx, weights, *layer.schema, save, checkpoint, layer.allow_tf32
        )
    elif save and checkpoint:
        output, hn, _ = checkpointed_forward(*operands, *layer.schema, checkpoint, layer.allow_tf32)
    else:
        output, hn, _ = ops.layer_forward(*operands, *layer.schema, save, layer.allow_tf32)
    return output, hn


def is_captured() -> bool:
    """Whether a compiler or torch.jit.trace is making a graph of what is called."""
    return torch.compiler.is_compiling() or is_traced()


class LayerFunction(Function):
    """(layer, batch_sizes, *the flat operands) -> output, *hn, reserve."""

    @staticmethod
    def forward(layer: Layer, batch_sizes: Tensor | None, *tensors: Tensor | None) -> Tensors:
        input, hx, weights = parts_of_flat(layer, tensors)
        cell, biases, projected, bidirectional, checkpoint, allow_tf32 = layer
        op: Any = checkpointed_forward if checkpoint else _forward_at_once
        with below_autograd():
            output, hn, reserve = op(
                input, batch_sizes, hx or None, weights, cell.number, biases, projected,
                bidirectional, checkpoint or True, allow_tf32,
            )  # fmt: skip
        return output, *hn, reserve

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], results: Tensors) -> None:
        layer, *kept = inputs  # batch sizes, then the flat operands
        output, *_, reserve = results
        _keep_for_backward(ctx, layer, kept, output, reserve)
        if is_forward_mode():
            ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, *of_results: Tensor | None) -> tuple[Any, ...]:
        *grads, _ = of_results
        _, _, *needed = ctx.needs_input_grad
        return None, None, *_gradients(ctx, grads, needed)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        batch_sizes, *tensors = ctx.saved_tensors
        _, _, *of_tensors = tangents
        return *_jvp(_reference_layer(ctx.layer, batch_sizes), tensors, of_tensors), None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        layer: Layer,
        batch_sizes: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensors, tuple[int | None, ...]]:
        _, of_sizes, *dims = in_dims
        _check_not_mapped(of_sizes)
        found = _vmap(info, _reference_layer(layer, batch_sizes), dims, tensors)
        nothing = next(t for t in tensors if t is not None).new_empty(0)
        return (*found, nothing), (*[0] * len(found), None)


class LayerGradient(Function):
    """The gradients of a layer that `needs` asks for, as a differentiable function.

    (layer, needs, batch_sizes, output, reserve, *grads, *the flat operands)
    -> the gradients, in the order of the operands.
    """

    @staticmethod
    def forward(
        layer: Layer,
        needs: int,
        batch_sizes: Tensor | None,
        output: Tensor,
        reserve: Tensor,
        *tensors: Tensor | None,
    ) -> Tensors:
        grads, operands = _grads_and_operands(layer, tensors)
        found = _run_backward(layer, batch_sizes, operands, grads, output, reserve, needs)
        return tuple(found[i] for i in _wanted(needs, operands))  # type: ignore[misc]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], results: Tensors) -> None:
        layer, needs, batch_sizes, _, _, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.needs = layer, needs
        ctx.save_for_backward(batch_sizes, *tensors)
        if is_forward_mode():
            ctx.save_for_forward(batch_sizes, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        batch_sizes, *tensors = ctx.saved_tensors
        *others, needed = _apart(ctx.needs_input_grad, len(tensors))
        formula = _reference_gradient(ctx.layer, ctx.needs, batch_sizes)
        return *[None] * len(others), *_vjp(formula, tensors, needed, grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        batch_sizes, *tensors = ctx.saved_tensors
        *_, of_tensors = _apart(tangents, len(tensors))
        return _jvp(_reference_gradient(ctx.layer, ctx.needs, batch_sizes), tensors, of_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensors, int]:
        layer, needs, batch_sizes, _, _, *tensors = arguments
        _, _, of_sizes, _, _, *dims = in_dims
        _check_not_mapped(of_sizes)
        return _vmap(info, _reference_gradient(layer, needs, batch_sizes), dims, tensors), 0


_apply_at_once = apply_at_once(LayerFunction)


def _apart(values: Sequence[Any], count: int) -> tuple[Any, ...]:
    """(each of the first ones, ..., the last `count` together)."""
    return *values[: len(values) - count], values[len(values) - count :]


def _grads_and_operands(layer: Layer, tensors: Optionals) -> tuple[Optionals, Optionals]:
    """What LayerGradient takes: of the output and each state, then of each operand."""
    results = 1 + len(layer.cell.states)
    return tensors[:results], tensors[results:]


def _any_requires_grad(operands: Operands) -> bool:
    if operands.input.requires_grad:
        return True
    for weight in operands.weights:
        if weight.requires_grad:
            return True
    for state in operands.hx:
        if state.requires_grad:
            return True
    return False


def _keep_for_backward(
    ctx: Any, layer: Layer, kept: Optionals, output: Tensor, reserve: Tensor
) -> None:
    """`kept` are the batch sizes and the flat operands."""
    ctx.set_materialize_grads(False)
    ctx.layer = layer
    ctx.save_for_backward(output, reserve, *kept)
    ctx.mark_non_differentiable(reserve)


def _gradients(ctx: Any, grads: Optionals, needed: Sequence[bool]) -> Optionals:
    """The gradients of the flat operands; None where not needed."""
    of_output, of_h, *of_others = grads
    if of_output is None and of_h is None:
        if all(grad is None for grad in of_others):
            return [None] * len(needed)
        needed = _needed_without_h(ctx, needed)
    needs = 0
    for i, is_needed in enumerate(needed):
        needs |= is_needed << i
    if needs == 0:
        return [None] * len(needed)
    return one_by_one(lambda grads: _gradients_of_one(ctx, grads, needs, needed), grads)


def _needed_without_h(ctx: Any, needed: Sequence[bool]) -> Sequence[bool]:
    """`needed` where h has no gradient, only other states: of one step, they owe w_hr nothing."""
    _, _, batch_sizes, input, *_ = ctx.saved_tensors
    if (input if batch_sizes is None else batch_sizes).size(0) > 1:
        return needed
    names = names_of_flat(ctx.layer)
    return [asked and name != "w_hr" for asked, name in zip(needed, names, strict=True)]


def _gradients_of_one(
    ctx: Any, grads: Optionals, needs: int, needed: Sequence[bool]
) -> list[Tensor | None]:
    """As `_gradients`, for `grads` that are not a batch. `needs` is `needed` as a mask of bits."""
    output, reserve, batch_sizes, *tensors = ctx.saved_tensors
    layer = ctx.layer
    if not (torch.is_grad_enabled() or is_transformed_by_func()):
        found = _run_backward(layer, batch_sizes, tensors, grads, output, reserve, needs)
        return [grad if asked else None for grad, asked in zip(found, needed, strict=True)]
    gradients: list[Tensor | None] = [None] * len(tensors)
    found = LayerGradient.apply(layer, needs, batch_sizes, output, reserve, *grads, *tensors)
    for i, grad in zip(_wanted(needs, tensors), found, strict=True):
        gradients[i] = grad
    return gradients


def _run_backward(
    layer: Layer,
    batch_sizes: Tensor | None,
    tensors: Optionals,
    grads: Optionals,
    output: Tensor,
    reserve: Tensor,
    needs: int,
) -> Optionals:
    """The flat gradients; of shape [0], or None, where there are none."""
    input, hx, weights = parts_of_flat(layer, tensors)
    cell, biases, projected, bidirectional, checkpoint, allow_tf32 = layer
    op: Any = checkpointed_backward if checkpoint else _backward_at_once
    keep = (checkpoint,) if checkpoint else ()
    grad_output, *grad_hn = grads
    with below_autograd():
        grad_input, grad_hx, grad_weights = op(
            grad_output, ops.as_list(grad_hn, input), input, batch_sizes, hx or None, weights,
            output, reserve, cell.number, biases, projected, bidirectional, *keep, needs,
            allow_tf32,
        )  # fmt: skip
    return grad_input, *(grad_hx or [None] * len(grad_hn)), *grad_weights


def _wanted(needs: int, tensors: Optionals) -> list[int]:
    return [i for i, tensor in enumerate(tensors) if needs >> i & 1 and tensor is not None]


# The layer and its gradients in plain PyTorch, and the transforms of both.


def _reference_layer(layer: Layer, batch_sizes: Tensor | None) -> Callable[..., Tensors]:
    """The flat operands -> output, *hn."""

    def formula(*tensors: Tensor | None) -> Tensors:
        output, hn = reference.layer(layer, unflat(layer, tensors, batch_sizes))
        return output, *hn

    return formula


def _reference_gradient(
    layer: Layer, needs: int, batch_sizes: Tensor | None
) -> Callable[..., Tensors]:
    """(*grads, *the flat operands) -> the gradients that `needs` asks for."""

    def formula(*tensors: Tensor | None) -> Tensors:
        grads, operands = _grads_and_operands(layer, tensors)
        wanted = _wanted(needs, operands)
        needed = [i in wanted for i in range(len(operands))]
        found = _vjp(_reference_layer(layer, batch_sizes), operands, needed, grads)
        return tuple(grad for grad in found if grad is not None)

    return formula


def _vjp(
    formula: Callable[..., Tensors], tensors: Optionals, needed: Sequence[bool], grads: Optionals
) -> list[Tensor | None]:
    """The gradients of `tensors` from those of the formula's results; None where not needed."""
    gradients: list[Tensor | None] = [None] * len(tensors)
    at = [i for i, tensor in enumerate(tensors) if needed[i] and tensor is not None]
    if not at or all(grad is None for grad in grads):
        return gradients

    def function(*some: Tensor) -> Tensors:
        results = formula(*_with(tensors, at, some))
        return tuple(r for r, grad in zip(results, grads, strict=True) if grad is not None)

    _, pull, *_ = torch.func.vjp(function, *[tensors[i] for i in at])
    found = one_by_one(lambda grads: pull(tuple(grads)), [g for g in grads if g is not None])
    for i, grad in zip(at, found, strict=True):
        gradients[i] = grad
    return gradients


def _jvp(formula: Callable[..., Tensors], tensors: Optionals, tangents: Optionals) -> Tensors:
    """The tangents of the formula's results from those of `tensors`.

    The product v -> J v as the transpose of u -> u J, which is linear: forward mode itself does not
    nest, and this may be asked for within it.
    """
    at = [i for i, tangent in enumerate(tangents) if tangent is not None]

    def function(*some: Tensor) -> Tensors:
        return formula(*_with(tensors, at, some))

    results, pull, *_ = torch.func.vjp(function, *[tensors[i] for i in at])
    _, push, *_ = torch.func.vjp(pull, tuple(torch.zeros_like(result) for result in results))
    found = one_by_one(lambda given: push(tuple(given))[0], [tangents[i] for i in at])
    return tuple(tangent for tangent in found if tangent is not None)


def _vmap(
    info: Any, formula: Callable[..., Tensors], in_dims: Sequence[int | None], tensors: Optionals
) -> Tensors:
    return torch.vmap(formula, tuple(in_dims), randomness=info.randomness)(*tensors)


def _with(tensors: Optionals, at: Sequence[int], some: Sequence[Tensor]) -> list[Tensor | None]:
    """`tensors` with `some` in the places `at`."""
    replaced = list(tensors)
    for i, tensor in zip(at, some, strict=True):
        replaced[i] = tensor
    return replaced


def _check_not_mapped(in_dim: int | None) -> None:
    if in_dim is not None:
        raise ValueError(
            "batch_sizes: expected the same packed layout for all of vmap's batch, got a batch of "
            "layouts; call the layer once per layout instead"
        )


# The raw ops, differentiable by the same formulas. torch.library hands their arguments over as they
# stand in the schema, and takes gradients back in the same nesting.


def _keep_of_forward_op(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    layer, operands, (ctx.save, allow_tf32, _) = forward_arguments(*inputs)
    _keep_of_op(ctx, layer._replace(allow_tf32=allow_tf32), operands, *output)


def _keep_of_checkpointed_forward_op(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]
) -> None:
    layer, operands, (checkpoint, allow_tf32) = forward_arguments(*inputs)
    layer = layer._replace(checkpoint=checkpoint, allow_tf32=allow_tf32)
    _keep_of_op(ctx, layer, operands, *output)


def _keep_of_op(
    ctx: Any, layer: Layer, operands: Operands, output: Tensor, hn: list[Tensor], reserve: Tensor
) -> None:
    kept = operands.batch_sizes, *flat(layer, operands)
    _keep_for_backward(ctx, layer, kept, output, reserve)


def _gradients_of_forward_op(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    if not ctx.save:
        raise RuntimeError(
            "fusedrnn::layer_forward was called with save=False, which keeps nothing for backward; "
            "call it with save=True, or use fusedrnn.functional"
        )
    return _gradients_of_checkpointed_forward_op(ctx, *grads)


def _gradients_of_checkpointed_forward_op(
    ctx: Any, grad_output: Tensor | None, grad_hn: list[Tensor | None], _: Tensor | None
) -> tuple[Any, ...]:
    # An argument at its default may be missing at the end, here and in what is returned.
    input, batch_sizes, hx, weights, *rest = ctx.needs_input_grad
    needed = flat(ctx.layer, Operands(input, batch_sizes, hx or (), weights))
    found = _gradients(ctx, (grad_output, *grad_hn), [bool(asked) for asked in needed])
    return *_nested(ctx.layer, found, hx), *[None] * len(rest)


def _nested(layer: Layer, gradients: Optionals, hx: Sequence[Any] | bool) -> tuple[Any, ...]:
    """Flat gradients as the ops take the operands; `hx` has what torch.library says of theirs.

    That is an empty list where the op was given one, and False where it was given None.
    """
    input, *rest = gradients
    states = len(layer.cell.states)
    of_hx = None if isinstance(hx, bool) else rest[: len(hx)]
    return input, None, of_hx, rest[states:]


def _keep_of_backward_op(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    given = backward_arguments(*inputs)
    *checkpoint, needs, allow_tf32 = given.rest
    length = next(iter(checkpoint), 0)  # of the checkpointed op only
    layer = given.layer._replace(checkpoint=length, allow_tf32=allow_tf32)
    ctx.set_materialize_grads(False)
    ctx.layer, ctx.needs = layer, needs
    grads = given.grad_output, *ops.as_optionals(given.grad_hn, layer.cell)
    ctx.save_for_backward(given.operands.batch_sizes, *grads, *flat(layer, given.operands))


def _gradients_of_backward_op(
    ctx: Any, of_input: Tensor | None, of_hx: Sequence[Any], of_weights: Sequence[Any]
) -> tuple[Any, ...]:
    batch_sizes, *tensors = ctx.saved_tensors
    layer = ctx.layer
    _, operands = _grads_and_operands(layer, tensors)
    given = flat(layer, Operands(of_input, batch_sizes, of_hx, of_weights))  # type: ignore[arg-type]
    asked = [given[i] for i in _wanted(ctx.needs, operands)]
    grad_output, grad_hn, input, _, hx, weights, *rest = ctx.needs_input_grad
    of_hn = grad_hn or [False] * len(layer.cell.states)
    needed = grad_output, *of_hn, *flat(layer, Operands(input, None, hx or (), weights))
    formula = _reference_gradient(layer, ctx.needs, batch_sizes)
    of_grads, of_operands = _grads_and_operands(layer, _vjp(formula, tensors, needed, asked))
    of_output, *of_states = of_grads
    nested = _nested(layer, of_operands, hx)
    return of_output, of_states[: len(grad_hn)], *nested, *[None] * len(rest)


torch.library.register_autograd(
    "fusedrnn::layer_forward", _gradients_of_forward_op, setup_context=_keep_of_forward_op
)
torch.library.register_autograd(
    "fusedrnn::checkpointed_forward",
    _gradients_of_checkpointed_forward_op,
    setup_context=_keep_of_checkpointed_forward_op,
)
for _op in ("fusedrnn::layer_backward", "fusedrnn::checkpointed_backward"):
    torch.library.register_autograd(
        _op, _gradients_of_backward_op, setup_context=_keep_of_backward_op
    )
