"""The native ops: loading them, and what torch has to know of them beside their CPU kernels.

    fusedrnn::layer_forward    one layer, one or both directions
    fusedrnn::layer_backward   its gradients, those that are asked for
    fusedrnn::pack_weights     one layer's weights as the CPU's kernels read them: uint8 [bytes]
    fusedrnn::packed_forward   layers on each other, weights packed, states updated in place
    fusedrnn::quantize_weights, quantized_forward   the same with weights rounded to int8

    input      [T, B, I], or [N, I] when packed        output   [T, B, D*R] or [N, D*R]
    hx, hn     [D, B, R]                               reserve  [D, N, S, Hp]
    cx, cn     [D, B, H]

D directions; R the width of h (P when projected, else H); N = T*B rows, or the sum of the batch
sizes; S values per unit that backward needs; Hp is H rounded up to a multiple of `RESERVE_UNITS`.
`allow_tf32` lets CUDA round the operands of float32 products to tf32, see `allow_tf32` below.

Packed weights serve `layer_forward`, beside the weights that they were packed from (`packed`), or
`packed_forward` alone, which takes those of several layers one after the other, [bytes of all]:

    input   [T, B, I], [B, I] for one step or [I] for one step of one sequence
    h, c    [layers, B, R], [layers, B, H]: the states before, and after the call those after
    output  laid out as input, R features

Both update the states' memory behind autograd's back: version counters stay as they are. `input`
may not share memory with the states. `backwards` begins with the weights that were read last when
it was not set: who takes turns finds more of them in the cache. Packed weights hold for the kernels
of the processor that packed them; another layer's, dtype's or processor's are refused.

Quantised weights (csrc/layer/quantized.h says how) are for float32 on the CPU, and
`quantized_forward` takes them as `packed_forward` does the others. They are the same bytes on every
processor, values that may be saved. A NaN or an infinity in a row of input or h makes everything
NaN that is computed from it.

The schemas and the checks that keep a call within its memory are in csrc/ops/layer_ops.cpp. Here
are the fake kernels, by which compilers learn the shapes of the results, and the answer to a device
that has no kernel. Autograd is in autograd.py. Autocast is not a matter of the ops, which compute
in the dtype that they are given: what it does depends on the whole network, see functional.py.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from fusedrnn import _C
from fusedrnn._engine import native as _native
from fusedrnn.reference import GATES, LSTM

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the kernels compute in."""

SAVED = (0, 0, 5, 4, 3)
"""How many values per unit and row the reserve of each cell holds."""

RESERVE_UNITS = 16
"""The reserve is padded to a multiple of this many units."""


def use_backend(device_type: str, backend: int | None) -> int | None:
    """Installs a backend, the address of a `Backend` (csrc/layer/backend.h); returns the old."""
    install = LIBRARY.fusedrnn_use_backend
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before: int | None = install(("cpu", "cuda").index(device_type), backend)
    return before


def override_plan(text: str) -> None:
    """Uses `text` instead of FUSEDRNN_PLAN, for measuring; no other thread may make a call.

    Raises:
        ValueError: it makes no sense.
    """
    _C.override_plan(text)
    for library in _libraries:
        library.fusedrnn_override_plan(text.encode())


def _load_cuda() -> str | None:
    """Loads the CUDA kernels, which touches no device and starts no driver; says why not."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not _C.build_info()["cuda_targets"]:
        return "this build of fusedrnn has no CUDA kernels"
    try:
        library = _native.load(_native.CUDA_LIBRARY)
    except ImportError as error:  # whoever computes on the CPU is not kept from it
        warnings.warn(f"CUDA tensors cannot be computed: {error}", RuntimeWarning, stacklevel=2)
        return str(error)
    library.fusedrnn_cuda_backend.restype = ctypes.c_void_p
    _libraries.append(library)
    use_backend("cuda", library.fusedrnn_cuda_backend())
    return None


LIBRARY = _native.load(_native.LIBRARY)
"""The library of the ops, for its functions in C."""

_libraries = [LIBRARY]  # each makes plans of its own
WITHOUT_CUDA = _load_cuda()
"""Why CUDA tensors cannot be computed here; None if they can, given a GPU."""

layer_forward = torch.ops.fusedrnn.layer_forward.default
layer_backward = torch.ops.fusedrnn.layer_backward.default
pack_weights = torch.ops.fusedrnn.pack_weights.default
packed_forward = torch.ops.fusedrnn.packed_forward.default
quantize_weights = torch.ops.fusedrnn.quantize_weights.default
quantized_forward = torch.ops.fusedrnn.quantized_forward.default


def allow_tf32(input: Tensor) -> bool:
    """Whether the products of a layer may round to tf32: what decides it for torch.nn on cuDNN."""
    if not input.is_cuda or input.dtype != torch.float32:
        return False
    return tf32_is_allowed()


def tf32_is_allowed() -> bool:
    """The same for any float32 layer on a CUDA device."""
    precision: str = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32"


def check_storages(**tensors: Tensor | None) -> None:
    """Checks that all of a tensor's memory is there, as native ops do, before torch's own read it.

    A storage may have been freed or made smaller under its tensors (`untyped_storage().resize_`,
    as offloading does), and torch's copies don't look.
    """
    for name, tensor in tensors.items():
        if tensor is None or tensor.numel() == 0:
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # has none of its own
            continue
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = tensor.storage_offset() + sum((n - 1) * stride for n, stride in steps)
        there = tensor.untyped_storage().nbytes()
        if (last + 1) * tensor.element_size() > there:
            raise RuntimeError(
                f"{name}: expected a storage that holds all of a tensor of shape "
                f"{list(tensor.shape)}, got one of {there} bytes, which was freed or made smaller"
            )


def layer_forward_fake(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    save: bool,
    allow_tf32: bool = False,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch: int | torch.SymInt
    directions = 2 if bidirectional else 1
    hidden_size = weights[0].size(0) // GATES[cell]
    width = weights[1].size(1)
    if batch_sizes is None:
        batch = input.size(1)
        rows = input.size(0) * batch
        output = input.new_empty(input.size(0), batch, directions * width)
    else:
        # How many sequences there are is a value, not a shape, unless hx tells.
        batch = torch.library.get_ctx().new_dynamic_size() if hx is None else hx.size(1)
        rows = input.size(0)
        output = input.new_empty(rows, directions * width)
    padded = (hidden_size + RESERVE_UNITS - 1) // RESERVE_UNITS * RESERVE_UNITS
    return (
        output,
        input.new_empty(directions, batch, width),
        input.new_empty((directions, batch, hidden_size) if cell == LSTM else (0,)),
        input.new_empty((directions, rows, SAVED[cell], padded) if save else (0,)),
    )


def layer_backward_fake(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    grad_cn: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    reserve: Tensor,
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    needs: int,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    grads = [
        input.new_empty(operand.shape if operand is not None and needs >> i & 1 else (0,))
        for i, operand in enumerate((input, hx, cx, *weights))
    ]
    return grads[0], grads[1], grads[2], grads[3:]


def _check_devices(input: Tensor, **others: Tensor | None) -> None:
    # A tensor of the meta device among others brings a real call to a fake kernel.
    for name, tensor in others.items():
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"{name}: expected the device of the input, {input.device}, got {tensor.device}"
            )


def _pack_weights_fake(
    weights: Sequence[Tensor], cell: int, has_biases: bool, bidirectional: bool = False
) -> Tensor:
    # How much room they take is the kernels' own business.
    size = torch.library.get_ctx().new_dynamic_size()
    return weights[0].new_empty(size, dtype=torch.uint8)


def _packed_forward_fake(
    input: Tensor, packed: Tensor, h: Tensor, c: Tensor | None, backwards: bool = False
) -> Tensor:
    _check_devices(input, packed=packed, h=h, c=c)
    return input.new_empty(*input.shape[:-1], h.size(2))


torch.library.register_fake("fusedrnn::layer_forward", layer_forward_fake)
torch.library.register_fake("fusedrnn::layer_backward", layer_backward_fake)
torch.library.register_fake("fusedrnn::pack_weights", _pack_weights_fake)
torch.library.register_fake("fusedrnn::packed_forward", _packed_forward_fake)
torch.library.register_fake("fusedrnn::quantize_weights", _pack_weights_fake)
torch.library.register_fake("fusedrnn::quantized_forward", _packed_forward_fake)


def _no_kernel(*arguments: object) -> NoReturn:
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    kinds = sorted({f"{tensor.device.type} ({tensor.layout})" for tensor in tensors})
    raise NotImplementedError(
        "fusedrnn has no kernels for these tensors: expected dense (torch.strided) CPU or CUDA "
        f"tensors, got {', '.join(kinds)}. fusedrnn.build_info() tells which devices this build "
        "serves."
    )


def _lift_negation(
    op: Callable[..., Tensor],
    input: Tensor,
    packed: Tensor,
    h: Tensor,
    c: Tensor | None,
    *rest: Any,
) -> Tensor:
    for name, state in (("h", h), ("c", c)):
        if state is not None and state.is_neg():
            raise RuntimeError(
                f"{name}: expected memory that holds the state, to be updated in place, got a view "
                f"that negates it ({name}.is_neg()); pass {name}.resolve_neg()"
            )
    return op(input.resolve_neg(), packed.resolve_neg(), h, c, *rest)


# torch takes this kernel last, for any device that has none of its own.
_library = torch.library.Library("fusedrnn", "IMPL")
_library.impl("layer_forward", _no_kernel, "CompositeExplicitAutograd")
_library.impl("layer_backward", _no_kernel, "CompositeExplicitAutograd")
_library.impl("pack_weights", _no_kernel, "CompositeExplicitAutograd")
_library.impl("packed_forward", _no_kernel, "CompositeExplicitAutograd")
_library.impl("quantize_weights", _no_kernel, "CompositeExplicitAutograd")
_library.impl("quantized_forward", _no_kernel, "CompositeExplicitAutograd")
# Weights packed ahead are for inference: what they compute has no history.
_library.impl("pack_weights", torch.library.fallthrough_kernel, "Autograd")
_library.impl("packed_forward", torch.library.fallthrough_kernel, "Autograd")
_library.impl("quantize_weights", torch.library.fallthrough_kernel, "Autograd")
_library.impl("quantized_forward", torch.library.fallthrough_kernel, "Autograd")
# torch would copy a view that negates, and update the copy of a state instead of the state.
_library.impl("packed_forward", partial(_lift_negation, packed_forward), "Negative")
_library.impl("quantized_forward", partial(_lift_negation, quantized_forward), "Negative")
