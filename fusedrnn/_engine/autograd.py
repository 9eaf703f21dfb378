"""Gradients of a layer: the forward and the backward op joined for autograd and `torch.func`.

    run_layer(...) --- nothing needs a gradient ---> layer_forward, nothing saved
        |
    LayerFunction    forward: layer_forward     backward: LayerGradient
    LayerGradient    forward: layer_backward    backward: the derivative of `reference_gradient`

With `checkpoint` the ops of checkpoint.py take the place of these two, in a modified layer those
that take modifiers, and nothing else differs.

First derivatives come from the kernels. Second and higher ones, `vmap` and forward-mode `jvp`
come from the reference: plain PyTorch, slower and right under every composition of transforms.

Both Functions take their tensors as the flat tuple of layer.py, so that bit i of a `needs` mask,
the i-th entry of `needs_input_grad` and the i-th gradient speak of the same operand. What comes out
of a layer is flat, too: its results, which are the output, the final states and in some layers all
states, and the reserve; and what comes in for backward is the gradients of the results, called
`grads` here. The same formulas are registered for the
raw ops, which are so differentiable on their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fusedrnn import reference
from fusedrnn._engine import compiling, ops
from fusedrnn._engine.checkpoint import checkpointed, checkpointed_forward
from fusedrnn._engine.layer import (
    BackwardArguments,
    Layer,
    Modifiers,
    Operands,
    Optionals,
    backward_arguments,
    flat,
    flat_gradients,
    forward_arguments,
    modified_backward_arguments,
    modified_forward_arguments,
    names_of_flat,
    needed_of_op,
    nested,
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
    captured = is_captured()
    if layer.cell.program is not None and runs_elsewhere(layer, operands.input, captured):
        output, *hn = _run_program_elsewhere(layer, operands, lengths)
        return output, hn
    differentiable = torch.is_grad_enabled() and _any_requires_grad(operands)
    transformed = is_transformed_by_func() or is_forward_mode()
    if captured or lengths is not None:
        output, *hn = _run_captured(layer, operands, lengths, differentiable, transformed)
        return output, hn
    if not transformed and not differentiable:
        cell, biases, projected, bidirectional, _, allow_tf32, _, _ = layer
        with below_autograd():
            input, batch_sizes, hx, weights, _ = operands
            output, hn, _ = _forward_at_once(
                input, batch_sizes, hx or None, weights, cell.spec, biases, projected,
                bidirectional, False, allow_tf32,
            )  # fmt: skip
        return output, hn
    output, *hn = _run_function(layer, operands, transformed)
    return output, hn


def run_modified(
    layer: Layer, operands: Operands, lengths: Tensor | None = None
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """As `run_layer`, of a modified layer; the third result is states after every step, if any."""
    given, steps = operands.modifiers.reset_states, operands.modifiers.step_inputs
    differentiable = torch.is_grad_enabled() and (
        _any_requires_grad(operands)
        or any(state.requires_grad for state in given)
        or (steps is not None and steps.requires_grad)
    )
    transformed = is_transformed_by_func() or is_forward_mode()
    captured = is_captured()
    if layer.cell.program is not None and runs_elsewhere(layer, operands.input, captured):
        results: Sequence[Tensor] = _run_program_elsewhere(layer, operands, lengths)
    elif captured or lengths is not None:
        results = _run_captured(layer, operands, lengths, differentiable, transformed)
    elif not transformed and not differentiable:
        with below_autograd():
            output, states, _ = ops.forward(layer, operands, save=False)
        results = output, *states
    else:
        results = _run_function(layer, operands, transformed)
    output, *others = results
    count = len(layer.cell.states)
    return output, others[:count], others[count:]


def runs_elsewhere(layer: Layer, input: Tensor, captured: bool) -> bool:
    """Whether a device has no kernels for a cell that a user wrote; of CUDA, it is said why.

    Kernels that there are get it compiled.
    """
    if input.is_cpu:
        if not captured:  # what is captured calls the fake kernels, which ask
            compiling.wanted(layer.cell.spec, input.dtype)
        return False
    if not input.is_cuda:
        return True
    reason = ops.WITHOUT_PROGRAMS
    if captured:  # the graph's calls make the kernels
        return reason is not None
    if input.dtype not in ops.DTYPES or torch.cuda.is_current_stream_capturing():
        return False  # the op says what is wrong, if anything is
    reason = reason or ops.make_program(layer.cell.spec, input.dtype, input.device)
    if reason is not None:
        _warn_of_steps(layer.cell.name, reason)
    return reason is not None


@lru_cache
def _warn_of_steps(cell: str, reason: str) -> None:
    """Once for a cell and a reason."""
    warnings.warn(
        f"cell: PyTorch's functions run {cell} step by step on CUDA, which is slow: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


def _run_program_elsewhere(layer: Layer, operands: Operands, lengths: Tensor | None) -> Tensors:
    """The results of a cell that a user wrote on a device that has no kernels for it.

    PyTorch's functions run it, one by one: the same numbers, and slow.
    """
    if lengths is not None or (is_captured() and operands.batch_sizes is not None):
        raise NotImplementedError(
            f"cell: {layer.cell} is run step by step by PyTorch's functions on "
            f"{operands.input.device}, and a graph has no loop over the values of lengths; compile "
            "or export the model on the CPU, or without lengths"
        )
    return reference.results(layer, operands)


def _run_function(layer: Layer, operands: Operands, transformed: bool) -> Sequence[Tensor]:
    """The layer's results with a history."""
    if layer.checkpoint and not layer.cell.saved:
        layer = layer._replace(checkpoint=0)
    apply = LayerFunction.apply if transformed else _apply_at_once
    *results, _ = apply(layer, operands.batch_sizes, *flat(layer, operands))
    return results


def _run_captured(
    layer: Layer,
    operands: Operands,
    lengths: Tensor | None,
    differentiable: bool,
    transformed: bool,
) -> Tensors:
    """The layer's results by one op, which compilers see; differentiable, not transformable."""
    if transformed:
        if operands.batch_sizes is not None or lengths is not None:
            raise NotImplementedError(
                "torch.func transforms of a layer with packed input or lengths can't be "
                "compiled, since a graph has no loop over their values; compile the model "
                "without the transform, or call the transform outside of torch.compile"
            )
        return reference.results(layer, operands)
    # A trace of torch.jit serves with gradients and without: there, weights decide.
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    save = differentiable or (traced and _any_requires_grad(operands))
    checkpoint = layer.checkpoint if layer.cell.saved else 0
    if lengths is not None:
        output, states, _ = padded_forward(
            *operands._replace(batch_sizes=lengths).all_tensors, *layer.schema, save, checkpoint,
            layer.all_states, layer.allow_tf32,
        )  # fmt: skip
    elif save and checkpoint:
        output, states, _ = checkpointed_forward(
            *operands.all_tensors, *layer.schema, checkpoint, layer.all_states, layer.allow_tf32
        )
    else:
        output, states, _ = ops.forward(layer, operands, save)
    return output, *states


def is_captured() -> bool:
    """Whether a compiler or torch.jit.trace is making a graph of what is called."""
    return torch.compiler.is_compiling() or is_traced()


class LayerFunction(Function):
    """(layer, batch_sizes, *the flat operands) -> *results, reserve."""

    @staticmethod
    def forward(layer: Layer, batch_sizes: Tensor | None, *tensors: Tensor | None) -> Tensors:
        cell, biases, projected, bidirectional, checkpoint, allow_tf32, modified, all_states = layer
        if modified or checkpoint:
            with below_autograd():
                operands = unflat(layer, tensors, batch_sizes)
                if checkpoint:
                    output, states, reserve = checkpointed_forward(
                        *operands.all_tensors, *layer.schema, checkpoint, all_states, allow_tf32
                    )
                else:
                    output, states, reserve = ops.forward(layer, operands, save=True)
            return output, *states, reserve
        input, hx, weights, _ = parts_of_flat(layer, tensors)
        with below_autograd():
            output, hn, reserve = _forward_at_once(
                input, batch_sizes, hx or None, weights, cell.spec, biases, projected,
                bidirectional, True, allow_tf32,
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
    """What LayerGradient takes: of each result, then of each operand."""
    return tensors[: layer.results], tensors[layer.results :]


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
    cell, biases, projected, bidirectional, checkpoint, allow_tf32, modified, _ = layer
    if modified or checkpoint:
        operands = unflat(layer, tensors, batch_sizes)
        backward = checkpointed if checkpoint else ops.backward
        with below_autograd():
            found = backward(layer, operands, grads, output, reserve, needs)
        return flat_gradients(layer, *found)
    input, hx, weights, _ = parts_of_flat(layer, tensors)
    grad_output, *grad_hn = grads
    with below_autograd():
        grad_input, grad_hx, grad_weights = _backward_at_once(
            grad_output, ops.as_list(grad_hn, input), input, batch_sizes, hx or None, weights,
            output, reserve, cell.spec, biases, projected, bidirectional, needs, allow_tf32,
        )  # fmt: skip
    return grad_input, *(grad_hx or [None] * len(grad_hn)), *grad_weights


def _wanted(needs: int, tensors: Optionals) -> list[int]:
    return [i for i, tensor in enumerate(tensors) if needs >> i & 1 and tensor is not None]


# The layer and its gradients in plain PyTorch, and the transforms of both.


def _reference_layer(layer: Layer, batch_sizes: Tensor | None) -> Callable[..., Tensors]:
    """The flat operands -> the layer's results."""

    def formula(*tensors: Tensor | None) -> Tensors:
        return reference.results(layer, unflat(layer, tensors, batch_sizes))

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


def _keep_of_modified_forward_op(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]
) -> None:
    layer, operands, (ctx.save, states, allow_tf32) = modified_forward_arguments(*inputs)
    layer = layer._replace(all_states=states, allow_tf32=allow_tf32)
    _keep_of_op(ctx, layer, operands, *output)


def _keep_of_checkpointed_forward_op(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]
) -> None:
    layer, operands, (checkpoint, states, tf32) = modified_forward_arguments(*inputs)
    ctx.save = True
    layer = layer._replace(checkpoint=checkpoint, all_states=states, allow_tf32=tf32)
    _keep_of_op(ctx, layer, operands, *output)


def _keep_of_op(
    ctx: Any, layer: Layer, operands: Operands, output: Tensor, hn: list[Tensor], reserve: Tensor
) -> None:
    kept = operands.batch_sizes, *flat(layer, operands)
    _keep_for_backward(ctx, layer, kept, output, reserve)


def _gradients_of_forward_op(
    ctx: Any, grad_output: Tensor | None, grad_states: Sequence[Tensor | None], _: Tensor | None
) -> tuple[Any, ...]:
    layer = ctx.layer
    if not ctx.save:
        name = "modified_forward" if layer.modified else "layer_forward"
        raise RuntimeError(
            f"fusedrnn::{name} was called with save=False, which keeps nothing for backward; call "
            "it with save=True, or use fusedrnn.functional"
        )
    # An argument at its default may be missing at the end, here and in what is returned.
    needed = needed_of_op(layer, ctx.needs_input_grad)
    found = _gradients(ctx, (grad_output, *grad_states), needed)
    return nested(layer, found, ctx.needs_input_grad)


def _keep_of_backward_op(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    given = backward_arguments(*inputs)
    ctx.needs, allow_tf32 = given.rest
    _keep_of_gradients(ctx, given, given.layer._replace(allow_tf32=allow_tf32))


def _keep_of_modified_backward_op(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]
) -> None:
    given = modified_backward_arguments(*inputs)
    *checkpoint, ctx.needs, allow_tf32 = given.rest
    length = next(iter(checkpoint), 0)  # of the checkpointed op only
    layer = given.layer._replace(checkpoint=length, allow_tf32=allow_tf32)
    _keep_of_gradients(ctx, given, layer)


def _keep_of_gradients(ctx: Any, given: BackwardArguments, layer: Layer) -> None:
    ctx.set_materialize_grads(False)
    ctx.layer = layer
    grads = given.grad_output, *ops.as_optionals(given.grad_states, layer)
    ctx.save_for_backward(given.operands.batch_sizes, *grads, *flat(layer, given.operands))


def _gradients_of_backward_op(
    ctx: Any,
    of_input: Tensor | None,
    of_hx: Sequence[Any],
    of_weights: Sequence[Any],
    of_reset_states: Sequence[Any] = (),
    of_step_inputs: Any = None,
) -> tuple[Any, ...]:
    batch_sizes, *tensors = ctx.saved_tensors
    layer = ctx.layer
    _, operands = _grads_and_operands(layer, tensors)
    modifiers = Modifiers(reset_states=of_reset_states, step_inputs=of_step_inputs)
    given = flat(layer, Operands(of_input, batch_sizes, of_hx, of_weights, modifiers))  # type: ignore[arg-type]
    asked = [given[i] for i in _wanted(ctx.needs, operands)]
    grad_output, grad_states, *rest = ctx.needs_input_grad
    needed = [bool(grad_output), *(grad_states or [False] * (layer.results - 1))]
    formula = _reference_gradient(layer, ctx.needs, batch_sizes)
    found = _vjp(formula, tensors, [*needed, *needed_of_op(layer, rest)], asked)
    of_grads, of_operands = _grads_and_operands(layer, found)
    of_output, *of_states = of_grads
    return of_output, of_states[: len(grad_states)], *nested(layer, of_operands, rest)


for _op, _keep in (
    ("layer", _keep_of_forward_op),
    ("modified", _keep_of_modified_forward_op),
    ("checkpointed", _keep_of_checkpointed_forward_op),
):
    torch.library.register_autograd(
        f"fusedrnn::{_op}_forward", _gradients_of_forward_op, setup_context=_keep
    )
for _op, _keep in (
    ("layer", _keep_of_backward_op),
    ("modified", _keep_of_modified_backward_op),
    ("checkpointed", _keep_of_modified_backward_op),
):
    torch.library.register_autograd(
        f"fusedrnn::{_op}_backward", _gradients_of_backward_op, setup_context=_keep
    )
