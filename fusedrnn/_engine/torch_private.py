"""torch's private API: all that we use of it, and what each use relies on.

Nothing else in the package reaches for a name of torch's with an underscore. When torch changes one
of them, this is the file to look at.

**Modes.** Questions that have a public answer which is slow, or none.

**Weights of modules.** `RNNBase` keeps its weights' names in `_flat_weights_names` and the weights
themselves in `_flat_weights`, which other code reads and sets, with weak references to those of the
time when it was set in `_flat_weight_refs`.

**Batches of gradients from torch's older vmap.** `torch.autograd.grad(..., is_grads_batched=True)`,
`torch.autograd.functional.jacobian(..., vectorize=True)` and `gradcheck(...,
check_batched_grad=True)` run backward, or forward mode, once on wrapped tensors that look like one
gradient and hold a batch of them, in levels if such calls nest. With torch.func's vmap autograd
tells a Function that its tensors are wrapped; here it does not, and none of our ops can take such a
wrapper. So they are unwrapped here, and there is one call of the kernels for each.

**Modes that see every op.** A `TorchDispatchMode` is told of each op below autograd, which is how
the functions of users' cells are read. Its module is torch's own extension point, yet private.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter, is_
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function, forward_ad
from torch.nn import Parameter
from torch.nn.modules.rnn import RNNBase
from torch.utils._python_dispatch import TorchDispatchMode

Optionals = Sequence[Tensor | None]

# Modes.

is_traced: Callable[[], bool] = torch._C._is_tracing
"""Whether torch.jit.trace is at work. `torch.jit.is_tracing` asks the same, and Dynamo knows it; it
takes three times as long."""

is_any_autocast_on: Callable[[], bool] = torch._C._is_any_autocast_enabled
"""Whether autocast is on for some device: `torch.is_autocast_enabled` asks for one at a time."""

is_transformed_by_func: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is at work."""

below_autograd: Callable[[], AbstractContextManager[Any]] = torch._C._AutoDispatchBelowAutograd
"""A context in which an op is called without its own autograd kernel, which is a Python function
and takes a while."""

has_no_storage: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a tensor is a wrapper of torch.func's, without memory of its own."""

is_mapped: Callable[[Tensor], bool] = torch._C._functorch.is_batchedtensor
"""Whether a tensor is a batch of torch.func's vmap."""

is_onednn_on: Callable[[], bool] = torch._C._get_mkldnn_enabled
"""What `torch.backends.mkldnn.flags` sets."""


keeps_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph
"""Within a backward pass, whether it may be asked for once more."""


def is_cudnn_on() -> bool:
    """What `torch.backends.cudnn.flags` sets."""
    return torch._C._get_cudnn_enabled()


def has_dispatch_mode() -> bool:
    """Whether a mode sees each op: a counter, or a tracer that does not say that it compiles."""
    return torch._C._len_torch_dispatch_stack() > 0


def is_in_backward() -> bool:
    """Whether autograd calls this, as it does what is computed again."""
    return torch._C._current_graph_task_id() != -1


def has_saved_tensors_hooks() -> bool:
    """Whether somebody stands between a forward pass and what it keeps for backward.

    As `torch.utils.checkpoint` does, which expects a second forward pass to keep as many tensors.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def torch_network(cell: str) -> Any:
    """The function by which torch.nn runs all layers of a network; None if it has no such cell."""
    return getattr(torch._VF, cell, None)


def is_forward_mode() -> bool:
    """Whether gradients are computed in forward mode, which torch.func.jvp is, too."""
    return forward_ad._current_level >= 0


def has_no_values(tensor: Tensor) -> bool:
    """Whether a tensor has a shape only: of the meta device, or a compiler's or exporter's."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def onednn_dtypes() -> dict[torch.dtype, bool]:
    """Whether oneDNN computes in a dtype on this processor."""
    there = torch.backends.mkldnn.is_available()
    return {
        torch.float32: there,
        torch.bfloat16: there and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: there and torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }


def apply_at_once(function: type[Function]) -> Callable[..., Any]:
    """A Function's `apply`, to call when no transform of torch.func is active.

    `Function.apply` binds default arguments through `inspect` first, which takes as long as the
    rest; the apply that it derives from does not.
    """
    apply: Callable[..., Any] = super(Function, function).apply  # type: ignore[misc]
    return apply


def at_once(op: OpOverload) -> Callable[..., Any]:
    """An op without the Python around it, for calls that no compiler traces."""
    function: Callable[..., Any] = op._op
    return function


version_of: Callable[[Tensor], int] = attrgetter("_version")
"""How often a tensor was changed in place; not for inference tensors, which do not count."""


# Weights of modules.


def parameters_of(module: RNNBase) -> list[Tensor] | None:
    """The weights of all layers if they are simply the parameters; not to be changed."""
    parameters, flat = module._parameters, module._flat_weights
    try:
        for name, weight in zip(module._flat_weights_names, flat):  # noqa: B905, it takes longer
            if parameters[name] is not weight or weight is None:
                return None
    except KeyError:
        return None
    return flat  # type: ignore[return-value]


def other_weights_of(module: RNNBase) -> dict[str, Any]:
    """The weights where they are not simply the parameters: those that torch.nn would take.

    `_flat_weights` counts until an attribute is replaced; weak references to the attributes of the
    time when it was set tell. Then the attributes count, and what had been set is dropped.
    """
    names: list[str] = module._flat_weights_names
    flat: list[Any] = module._flat_weights
    current: list[Any] = [getattr(module, name) for name in names]
    known = [old and old() for old in module._flat_weight_refs or [None] * len(names)]
    if not all(map(is_, known, current)):
        flat = current
        if not torch.compiler.is_compiling():  # nothing is kept that was computed from parameters
            are_parameters = all(isinstance(weight, Parameter) for weight in current)
            _set_flat_weights(module, current if are_parameters else known)
    return dict(zip(names, flat))  # noqa: B905, wrong counts are refused by the op


def keep_up_flat_weights(module: RNNBase, name: str) -> None:
    """For the module to call when its attribute `name` was set, perhaps in the middle of __init__.

    `RNNBase` would keep the new weight in `_flat_weights` and no weak reference to it.
    """
    names = module.__dict__.get("_flat_weights_names", ())
    if name in names and all(name in module._parameters for name in names):
        _set_flat_weights(module, [module._parameters[name] for name in names])


def state_with_parameters(module: RNNBase) -> dict[str, Any]:
    """What a copy of a module is made from; in `_flat_weights`, only parameters that it owns."""
    state = module.__dict__.copy()
    del state["_flat_weight_refs"]  # made anew
    state["_flat_weights"] = [module._parameters.get(name) for name in module._flat_weights_names]
    return state


def register_weights(module: RNNBase, directions: Sequence[dict[str, Parameter]]) -> None:
    """Gives a module these weights in place of those that it has, a dict for each direction."""
    for name in module._flat_weights_names:
        delattr(module, name)
    module._flat_weights_names = []
    module._all_weights = []
    for weights in directions:
        for name, weight in weights.items():
            module.register_parameter(name, weight)
        module._flat_weights_names += weights
        module._all_weights.append([*weights])
    module._init_flat_weights()


def _set_flat_weights(module: RNNBase, weights: list[Any]) -> None:
    module._flat_weights = weights
    module._flat_weight_refs = [None if weight is None else ref(weight) for weight in weights]


# Batches of gradients from torch's older vmap.

_LEVELS = 64  # as many as torch nests

is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
"""Whether a tensor is such a wrapper."""


def one_by_one(function: Callable[[Optionals], Optionals], tensors: Optionals) -> Optionals:
    """`function(tensors)`; for a batch, its results for each member, wrapped as a batch again."""
    for tensor in tensors:
        if tensor is not None and is_wrapped(tensor):
            return _one_by_one(function, tensors, _level_of(tensor))
    return function(tensors)


def _one_by_one(
    function: Callable[[Optionals], Optionals], tensors: Optionals, level: int
) -> Optionals:
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


# Modes that see every op.

unwrapped_subclass = torch._C._disabled_torch_function_impl
"""The `__torch_function__` of a Tensor's subclass whose results are plain tensors."""


class DispatchMode(TorchDispatchMode):
    """A mode whose first use does not import Dynamo, which takes seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def writes(op: OpOverload) -> bool:
    """Whether an op changes one of its operands."""
    changes: bool = op._schema.is_mutable
    return changes
