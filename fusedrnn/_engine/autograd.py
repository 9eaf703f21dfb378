"""Gradients of a layer: the forward and the backward op joined for autograd and `torch.func`.

    layer(...) --- nothing needs a gradient ---> layer_forward, nothing saved
        |
    LayerFunction    forward: layer_forward     backward: LayerGradient
    LayerGradient    forward: layer_backward    backward: the derivative of `reference_gradient`

With `checkpoint` the ops of checkpoint.py take the place of these two, and nothing else differs.

First derivatives come from the kernels. Second and higher ones, `vmap` and forward-mode `jvp`
come from the reference: plain PyTorch, slower and right under every composition of transforms.

Both Functions take their tensors as operands in one order, (input, hx, cx, *weights), so that bit
i of a `needs` mask, the i-th entry of `needs_input_grad` and the i-th gradient speak of the same
operand. The same formulas are registered for the raw ops, which are so differentiable on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from fusedrnn import reference
from fusedrnn._engine import ops
from fusedrnn._engine.checkpoint import checkpointed_backward, checkpointed_forward
from fusedrnn._engine.sequences import padded_forward
from fusedrnn._engine.torch_private import Optionals, one_by_one
from fusedrnn.reference import LSTM

Tensors = tuple[Tensor, ...]
Settings = tuple[int, bool, bool, int, bool]
"""What a layer is beside its tensors: (cell, has_biases, bidirectional, checkpoint, allow_tf32).

`checkpoint` is 0 where the reserve is kept.
"""


def layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    checkpoint: int | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, differentiable: `reference.layer` by the kernels. Returns output, hn, cn.

    With `checkpoint` gradients are computed as checkpoint.py says, if the cell has a reserve.
    `lengths`, see sequences.py, are for calls that a compiler captures, or without values.
    """
    steps = checkpoint if checkpoint is not None and ops.SAVED[cell] else 0
    differentiable = torch.is_grad_enabled() and _any_requires_grad(input, hx, cx, weights)
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    allow_tf32 = ops.allow_tf32(input)
    if is_captured() or lengths is not None:
        # Compilers see the ops, which are differentiable, but cannot transform them.
        if transformed:
            if batch_sizes is not None or lengths is not None:
                raise NotImplementedError(
                    "torch.func transforms of a layer with packed input or lengths can't be "
                    "compiled, since a graph has no loop over their values; compile the model "
                    "without the transform, or call the transform outside of torch.compile"
                )
            return reference.layer(
                input, batch_sizes, hx, cx, weights, cell, has_biases, bidirectional
            )
        # A trace of torch.jit serves with gradients and without: there, weights decide.
        traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
        save = differentiable or (traced and _any_requires_grad(input, hx, cx, weights))
        if lengths is not None:
            output, hn, cn, _ = padded_forward(
                input, lengths, hx, cx, weights, cell, has_biases, bidirectional, save, steps,
                allow_tf32,
            )  # fmt: skip
            return output, hn, cn
        op, keep = (checkpointed_forward, steps) if save and steps else (ops.layer_forward, save)
        output, hn, cn, _ = op(
            input, batch_sizes, hx, cx, weights, cell, has_biases, bidirectional, keep, allow_tf32
        )
        return output, hn, cn
    if not transformed and not differentiable:
        output, hn, cn, _ = _below_autograd(
            ops.layer_forward,
            input, batch_sizes, hx, cx, weights, cell, has_biases, bidirectional, False, allow_tf32,
        )  # fmt: skip
        return output, hn, cn
    apply = LayerFunction.apply if transformed else _apply_at_once
    output, hn, cn, _ = apply(
        cell, has_biases, bidirectional, steps, allow_tf32, batch_sizes, input, hx, cx, *weights
    )  # fmt: skip
    return output, hn, cn


def is_captured() -> bool:
    """Whether a compiler or torch.jit.trace is making a graph of what is called."""
    # torch.jit.is_tracing asks the same, and Dynamo knows it; it takes three times as long.
    return torch.compiler.is_compiling() or torch._C._is_tracing()


class LayerFunction(Function):
    """(*settings, batch_sizes, *operands) -> output, hn, cn, reserve."""

    @staticmethod
    def forward(
        cell: int,
        has_biases: bool,
        bidirectional: bool,
        checkpoint: int,
        allow_tf32: bool,
        batch_sizes: Tensor | None,
        input: Tensor,
        hx: Tensor | None,
        cx: Tensor | None,
        *weights: Tensor,
    ) -> Tensors:
        op, keep = (checkpointed_forward, checkpoint) if checkpoint else (ops.layer_forward, True)
        return _below_autograd(
            op, input, batch_sizes, hx, cx, weights, cell, has_biases, bidirectional, keep,
            allow_tf32,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        _keep_for_backward(ctx, inputs[:5], inputs[5], inputs[6:], output)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(*inputs[5:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return (*[None] * 6, *_gradients(ctx, grads[:3], ctx.needs_input_grad[6:]))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        batch_sizes, *operands = ctx.saved_tensors
        formula = _reference_layer(ctx.settings, batch_sizes)
        output, hn, cn = _jvp(formula, operands, tangents[6:])
        return output, hn, cn if ctx.settings[0] == LSTM else None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        cell: int,
        has_biases: bool,
        bidirectional: bool,
        checkpoint: int,
        allow_tf32: bool,
        batch_sizes: Tensor | None,
        *operands: Tensor | None,
    ) -> tuple[Tensors, tuple[int | None, ...]]:
        _check_not_mapped(in_dims[5])
        settings = (cell, has_biases, bidirectional, checkpoint, allow_tf32)
        formula = _reference_layer(settings, batch_sizes)
        output, hn, cn = _vmap(info, formula, in_dims[6:], operands)
        return (output, hn, cn, output.new_empty(0)), (0, 0, 0, None)


class LayerGradient(Function):
    """The gradients of a layer that `needs` asks for, as a differentiable function.

    (*settings, needs, batch_sizes, output, reserve, grad_output, grad_hn, grad_cn, *operands)
    -> the gradients, in the order of the operands.
    """

    @staticmethod
    def forward(
        cell: int,
        has_biases: bool,
        bidirectional: bool,
        checkpoint: int,
        allow_tf32: bool,
        needs: int,
        batch_sizes: Tensor | None,
        output: Tensor,
        reserve: Tensor,
        *tensors: Tensor | None,
    ) -> Tensors:
        settings = (cell, has_biases, bidirectional, checkpoint, allow_tf32)
        grads, operands = tensors[:3], tensors[3:]
        found = _run_backward(settings, needs, batch_sizes, output, reserve, grads, operands)
        return tuple(found[i] for i in _wanted(needs, operands))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.set_materialize_grads(False)
        ctx.settings, ctx.needs = inputs[:5], inputs[5]
        ctx.save_for_backward(inputs[6], *inputs[9:])
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(inputs[6], *inputs[9:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        batch_sizes, *tensors = ctx.saved_tensors
        formula = _reference_gradient(ctx.settings, ctx.needs, batch_sizes)
        return (*[None] * 9, *_vjp(formula, tensors, ctx.needs_input_grad[9:], grads))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        batch_sizes, *tensors = ctx.saved_tensors
        formula = _reference_gradient(ctx.settings, ctx.needs, batch_sizes)
        return _jvp(formula, tensors, tangents[9:])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        cell: int,
        has_biases: bool,
        bidirectional: bool,
        checkpoint: int,
        allow_tf32: bool,
        needs: int,
        batch_sizes: Tensor | None,
        output: Tensor,
        reserve: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensors, int]:
        _check_not_mapped(in_dims[6])
        settings = (cell, has_biases, bidirectional, checkpoint, allow_tf32)
        formula = _reference_gradient(settings, needs, batch_sizes)
        return _vmap(info, formula, in_dims[9:], tensors), 0


# Function.apply binds default arguments through `inspect` first, which takes as long as the rest;
# the apply that it derives from does not. It is the one to call when no transform is active.
_apply_at_once = super(Function, LayerFunction).apply


def _any_requires_grad(
    input: Tensor, hx: Tensor | None, cx: Tensor | None, weights: Sequence[Tensor]
) -> bool:
    if input.requires_grad or (hx is not None and hx.requires_grad):
        return True
    for weight in weights:
        if weight.requires_grad:
            return True
    return cx is not None and cx.requires_grad


def _below_autograd(op: Callable[..., Any], *arguments: Any) -> Any:
    """Calls an op without its own autograd kernel, which is a Python function and takes a while."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def _keep_for_backward(
    ctx: Any, settings: Settings, batch_sizes: Tensor | None, operands: Optionals, results: Tensors
) -> None:
    output, _, cn, reserve = results
    ctx.set_materialize_grads(False)
    ctx.settings = settings
    ctx.save_for_backward(batch_sizes, output, reserve, *operands)
    if settings[0] == LSTM:
        ctx.mark_non_differentiable(reserve)
    else:
        ctx.mark_non_differentiable(reserve, cn)


def _gradients(ctx: Any, grads: Optionals, needed: Sequence[bool]) -> Optionals:
    """The gradients of the operands from those of output, hn and cn; None where not needed."""
    if grads[0] is None and grads[1] is None:
        needed = _needed_for_c(ctx, needed)
    needs = 0
    for i, is_needed in enumerate(needed):
        needs |= is_needed << i
    if needs == 0 or (grads[0] is None and grads[1] is None and grads[2] is None):
        return [None] * len(needed)
    return one_by_one(lambda grads: _gradients_of_one(ctx, grads, needs, needed), grads)


def _needed_for_c(ctx: Any, needed: Sequence[bool]) -> Sequence[bool]:
    """`needed` where only cn has a gradient: the c of a first step owes a projection nothing."""
    batch_sizes, _, _, input, _, _, *weights = ctx.saved_tensors
    steps = (input if batch_sizes is None else batch_sizes).size(0)
    each = len(weights) // (2 if ctx.settings[2] else 1)
    if steps > 1 or each % 2 == 0:
        return needed
    projections = range(2 + each, len(needed), each)
    return [is_needed and i not in projections for i, is_needed in enumerate(needed)]


def _gradients_of_one(
    ctx: Any, grads: Optionals, needs: int, needed: Sequence[bool]
) -> list[Tensor | None]:
    """As `_gradients`, for `grads` that are not a batch. `needs` is `needed` as a mask of bits."""
    batch_sizes, output, reserve, *operands = ctx.saved_tensors
    if not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()):
        found = _run_backward(ctx.settings, needs, batch_sizes, output, reserve, grads, operands)
        return [grad if is_needed else None for grad, is_needed in zip(found, needed, strict=True)]
    gradients: list[Tensor | None] = [None] * len(operands)
    found = LayerGradient.apply(
        *ctx.settings, needs, batch_sizes, output, reserve, *grads, *operands
    )  # fmt: skip
    for i, grad in zip(_wanted(needs, operands), found, strict=True):
        gradients[i] = grad
    return gradients


def _run_backward(
    settings: Settings,
    needs: int,
    batch_sizes: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    grads: Optionals,
    operands: Optionals,
) -> Tensors:
    input, hx, cx, *weights = operands
    *layer_settings, checkpoint, allow_tf32 = settings
    op, keep = (checkpointed_backward, [checkpoint]) if checkpoint else (ops.layer_backward, [])
    grad_input, grad_hx, grad_cx, grad_weights = _below_autograd(
        op, *grads, input, batch_sizes, hx, cx, weights, output, reserve, *layer_settings, *keep,
        needs, allow_tf32,
    )  # fmt: skip
    return (grad_input, grad_hx, grad_cx, *grad_weights)


def _wanted(needs: int, operands: Optionals) -> list[int]:
    return [i for i, operand in enumerate(operands) if needs >> i & 1 and operand is not None]


# The same in plain PyTorch, and its transforms.


def _reference_layer(settings: Settings, batch_sizes: Tensor | None) -> Callable[..., Tensors]:
    """operands -> output, hn, cn."""

    def formula(input: Tensor, hx: Tensor | None, cx: Tensor | None, *weights: Tensor) -> Tensors:
        return reference.layer(input, batch_sizes, hx, cx, weights, *settings[:3])

    return formula


def _reference_gradient(
    settings: Settings, needs: int, batch_sizes: Tensor | None
) -> Callable[..., Tensors]:
    """(grad_output, grad_hn, grad_cn, *operands) -> the gradients that `needs` asks for."""

    def formula(*tensors: Tensor | None) -> Tensors:
        grads, operands = tensors[:3], tensors[3:]
        wanted = _wanted(needs, operands)
        needed = [i in wanted for i in range(len(operands))]
        found = _vjp(_reference_layer(settings, batch_sizes), operands, needed, grads)
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

    pull = torch.func.vjp(function, *[tensors[i] for i in at])[1]
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

    results, pull = torch.func.vjp(function, *[tensors[i] for i in at])[:2]
    push = torch.func.vjp(pull, tuple(torch.zeros_like(result) for result in results))[1]
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


# The raw ops, differentiable by the same formulas.


def _keep_of_forward_op(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    ctx.save = inputs[8]
    _keep_of_checkpointed_forward_op(ctx, (*inputs[:8], 0, *inputs[9:10]), output)


def _keep_of_checkpointed_forward_op(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    input, batch_sizes, hx, cx, weights, *settings = inputs
    _keep_for_backward(ctx, tuple(settings), batch_sizes, (input, hx, cx, *weights), output)


def _gradients_of_forward_op(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if not ctx.save:
        raise RuntimeError(
            "fusedrnn::layer_forward was called with save=False, which keeps nothing for backward; "
            "call it with save=True, or use fusedrnn.functional"
        )
    return _gradients_of_checkpointed_forward_op(ctx, *grads)


def _gradients_of_checkpointed_forward_op(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    # An argument at its default may be missing at the end, here and in what is returned.
    input, _, hx, cx, weights, *rest = ctx.needs_input_grad
    found = _gradients(ctx, grads[:3], [input, hx, cx, *weights])
    return found[0], None, found[1], found[2], found[3:], *[None] * len(rest)


def _keep_of_backward_op(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    *grads, input, batch_sizes, hx, cx, weights, _, _ = inputs[:10]
    *settings, ctx.needs, allow_tf32 = inputs[10:]
    ctx.set_materialize_grads(False)
    ctx.settings = (*settings, allow_tf32)
    ctx.save_for_backward(batch_sizes, *grads, input, hx, cx, *weights)


def _gradients_of_backward_op(
    ctx: Any, grad_input: Tensor | None, grad_hx: Tensor | None, grad_cx: Tensor | None, rest: Any
) -> tuple[Any, ...]:
    batch_sizes, *tensors = ctx.saved_tensors
    grads = (grad_input, grad_hx, grad_cx, *rest)
    *first, input, _, hx, cx, weights = ctx.needs_input_grad[:8]
    rest = ctx.needs_input_grad[8:]
    formula = _reference_gradient(ctx.settings, ctx.needs, batch_sizes)
    asked = [grads[i] for i in _wanted(ctx.needs, tensors[3:])]
    found = _vjp(formula, tensors, [*first, input, hx, cx, *weights], asked)
    return (*found[:4], None, found[4], found[5], found[6:], *[None] * len(rest))


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
