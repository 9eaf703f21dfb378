"""The native ops: loading them, and what torch has to know of them beside their CPU kernels.

    fusedrnn::layer_forward    one layer, one or both directions
    fusedrnn::layer_backward   its gradients, those that are asked for
    fusedrnn::modified_forward, modified_backward   the same with modifiers, and all states
    fusedrnn::make_panels      one layer's weights as the CPU's kernels read them: uint8 [bytes]
    fusedrnn::panels_forward   layers on each other, weights as panels, states updated in place
    fusedrnn::quantize_weights, quantized_forward   the same with weights rounded to int8
    fusedrnn::pack_rows, move_rows   rows of sequences of unequal lengths; on the CPU only
    fusedrnn::random_mask      one of two `values`, the first with a probability; on the CPU only

    input      [T, B, I], or [N, I] when packed        output   [T, B, D*R] or [N, D*R]
    hx, hn     for each state [D, B, R] or, of those   reserve  [D, N, S, Hp]
               after h, [D, B, H]
    weights    for each direction, for each role       w_ih [G*H, I]  w_hh [G*H, R]
               (`Cell.roles`)                          b_ih, b_hh [G*H]  w_hr [P, H]  w_unit [K, H]

D directions; R the width of h (P when projected, else H); N = T*B rows, or the sum of the batch
sizes; S values per unit that backward needs; Hp is H rounded up to a multiple of `RESERVE_UNITS`;
G gates and K unit weights of the cell. (A cell that a user wrote may have more gates in one matrix
than in the other.) `cell` is the name of a compiled cell, or the text of the program of one that a
user wrote. `allow_tf32` lets CUDA round the operands of float32 products to tf32, see `allow_tf32`
below.

`hx` may be None or an empty list, which stand for zeros. In `layer_backward` an empty `grad_hn`
does, and so does a tensor of shape [0] in the place of one of its states. `needs` is a mask of bits
that tells which gradients are asked for: of input, each state of the cell, each weight. The others
are of shape [0]; without `hx` there are no `grad_hx`.

Modifiers (`layer.Modifiers`) come after the weights, in `keep` with shape [0] for a state that has
none. With `states` there are, after hn in its list, the values of every state after h after each
step, as the output is laid out, D*H features; so there are in the list of their gradients. In
`needs` the `reset_states` come after the weights, and then the `step_inputs`: what a cell that has
such inputs is given for each step, all of them as one tensor [T, D, B, K, H]. Its gradient is an
output of its own, of shape [0] if it is not asked for.

Panels serve `layer_forward`, beside the weights that they were made from (`panels`), or
`panels_forward`, which takes nothing else: those of several layers one after the other, [bytes of
all]:

    input   [T, B, I], [B, I] for one step or [I] for one step of one sequence
    hx      [layers, B, R] and, of the states after h, [layers, B, H]: the states before, and after
            the call those after it
    output  laid out as input, R features
    step_inputs   [layers, T, B, K, H], of `panels_forward` with a cell that has them

Both update the states' memory behind autograd's back: version counters stay as they are. `input`
may not share memory with the states. `backwards` begins with the weights that were read last when
it was not set: who takes turns finds more of them in the cache. Panels hold for the kernels of the
processor that made them; another layer's, dtype's or processor's are refused.

Quantised weights (csrc/layer/quantized.h says how) are for float32 on the CPU, and
`quantized_forward` takes them as `panels_forward` does the others. They are the same bytes on every
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
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from fusedrnn import _C
from fusedrnn._engine import compiling, tuning, ways
from fusedrnn._engine import native as _native
from fusedrnn._engine.layer import (
    BackwardArguments,
    Layer,
    Operands,
    backward_arguments,
    forward_arguments,
    modified_backward_arguments,
    modified_forward_arguments,
)
from fusedrnn._engine.torch_private import has_no_storage
from fusedrnn.cells import RESERVE_UNITS, W_HH, W_IH

BackwardResults: TypeAlias = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]
"""The gradients of input, first states, weights, `reset_states` and `step_inputs`."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the kernels compute in."""


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
    library.fusedrnn_cuda_without_programs.restype = ctypes.c_char_p
    library.fusedrnn_cuda_make_program.restype = ctypes.c_char_p
    compiling.keep_images_of(library)
    of_library = ways.WAYS["cuda"] = ways.Ways(library, ways.Cuda())
    tuning.TUNERS["cuda"] = tuning.Tuner(of_library)
    _libraries.append(library)
    use_backend("cuda", library.fusedrnn_cuda_backend())
    return None


def _programs_on_cuda() -> str | None:
    if WITHOUT_CUDA is not None:
        return WITHOUT_CUDA
    reason: bytes | None = _libraries[-1].fusedrnn_cuda_without_programs()
    return reason.decode() if reason else None


@lru_cache(maxsize=256)
def make_program(text: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Makes the CUDA kernels of a written cell, once for a device; says why it could not.

    NVRTC compiles them in some tenths of a second.
    """
    with torch.cuda.device(device):
        reason: bytes | None = _libraries[-1].fusedrnn_cuda_make_program(
            text.encode(), DTYPES.index(dtype)
        )
    return reason.decode() if reason else None


LIBRARY = _native.load(_native.LIBRARY)
"""The library of the ops, for its functions in C."""

_libraries = [LIBRARY]  # each makes plans of its own
WITHOUT_CUDA = _load_cuda()
"""Why CUDA tensors cannot be computed here; None if they can, given a GPU."""
WITHOUT_PROGRAMS = _programs_on_cuda()
"""Why CUDA kernels cannot run cells that users wrote; None if they can."""

layer_forward = torch.ops.fusedrnn.layer_forward.default
layer_backward = torch.ops.fusedrnn.layer_backward.default
modified_forward = torch.ops.fusedrnn.modified_forward.default
modified_backward = torch.ops.fusedrnn.modified_backward.default
pack_rows = torch.ops.fusedrnn.pack_rows.default
move_rows = torch.ops.fusedrnn.move_rows.default
random_mask = torch.ops.fusedrnn.random_mask.default
make_panels = torch.ops.fusedrnn.make_panels.default
panels_forward = torch.ops.fusedrnn.panels_forward.default
quantize_weights = torch.ops.fusedrnn.quantize_weights.default
quantized_forward = torch.ops.fusedrnn.quantized_forward.default


def forward(layer: Layer, operands: Operands, save: bool) -> tuple[Tensor, list[Tensor], Tensor]:
    """The output, final states and those after each step, and reserve, by the op that is for it."""
    found: tuple[Tensor, list[Tensor], Tensor]
    if layer.modified:
        found = modified_forward(
            *operands.all_tensors, *layer.schema, save, layer.all_states, layer.allow_tf32
        )
    else:
        found = layer_forward(*operands.tensors, *layer.schema, save, layer.allow_tf32)
    return found


def backward(
    layer: Layer,
    operands: Operands,
    grads: Sequence[Tensor | None],
    output: Tensor,
    reserve: Tensor,
    needs: int,
) -> BackwardResults:
    """The gradients of the operands that may have some from those of the results.

    `grads` has one for each of the layer's results, or None.
    """
    grad_output, *grad_states = grads
    given = grad_output, as_list(grad_states, operands.input)
    rest = output, reserve, *layer.schema, needs, layer.allow_tf32
    if layer.modified:
        found: BackwardResults = modified_backward(*given, *operands.all_tensors, *rest)
        return found
    return *layer_backward(*given, *operands.tensors, *rest), [], operands.input.new_empty(0)


def allow_tf32(input: Tensor) -> bool:
    """Whether the products of a layer may round to tf32: what decides it for torch.nn on cuDNN."""
    if not input.is_cuda or input.dtype != torch.float32:
        return False
    return tf32_is_allowed()


def tf32_is_allowed() -> bool:
    """Whether float32 layers on CUDA devices may round their products to tf32."""
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
        if has_no_storage(tensor):
            continue
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = tensor.storage_offset() + sum((n - 1) * stride for n, stride in steps)
        there = tensor.untyped_storage().nbytes()
        if (last + 1) * tensor.element_size() > there:
            raise RuntimeError(
                f"{name}: expected a storage that holds all of a tensor of shape "
                f"{list(tensor.shape)}, got one of {there} bytes, which was freed or made smaller"
            )


def named(name: str, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """The members of a list by what messages call them."""
    return {f"{name}[{i}]": tensor for i, tensor in enumerate(tensors)}


def as_list(tensors: Sequence[Tensor | None], input: Tensor) -> list[Tensor]:
    """Gradients of states, of which some may be missing, as the ops take them."""
    for tensor in tensors:
        if tensor is not None:
            return [input.new_empty(0) if tensor is None else tensor for tensor in tensors]
    return []


def as_optionals(tensors: Sequence[Tensor], layer: Layer) -> Sequence[Tensor | None]:
    """Undoes `as_list`: one gradient or None for each of the layer's results but the output."""
    if not tensors:
        return [None] * (layer.results - 1)
    return [None if tensor.shape == (0,) else tensor for tensor in tensors]


def layer_forward_fake(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    layer, operands, (save, *_) = forward_arguments(*arguments)
    return _forward_fake(layer, operands, save)


def modified_forward_fake(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    layer, operands, (save, states, *_) = modified_forward_arguments(*arguments)
    output, hn, reserve = _forward_fake(layer, operands, save)
    return output, [*hn, *(states_fake(layer, output, hn) if states else ())], reserve


def states_fake(layer: Layer, output: Tensor, hn: Sequence[Tensor]) -> list[Tensor]:
    """The states after h, after every step."""
    *steps, _ = output.shape
    return [output.new_empty(*steps, layer.directions * state.size(2)) for state in hn[1:]]


def _forward_fake(
    layer: Layer, operands: Operands, save: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    input, batch_sizes, hx, weights, _ = operands
    batch: int | torch.SymInt
    directions, facts = layer.directions, layer.cell
    if facts.program is not None and input.device.type == "cpu":
        compiling.wanted(facts.spec, input.dtype)
    hidden_size = weights[W_IH].size(0) // len(facts.inputs)
    width = weights[W_HH].size(1)
    if batch_sizes is None:
        batch = input.size(1)
        rows = input.size(0) * batch
        output = input.new_empty(input.size(0), batch, directions * width)
    else:
        # How many sequences there are is a value, not a shape, unless hx tells.
        batch = hx[0].size(1) if hx else torch.library.get_ctx().new_dynamic_size()
        rows = input.size(0)
        output = input.new_empty(rows, directions * width)
    padded = (hidden_size + RESERVE_UNITS - 1) // RESERVE_UNITS * RESERVE_UNITS
    _, *others = facts.states
    return (
        output,
        [input.new_empty(directions, batch, n) for n in (width, *[hidden_size] * len(others))],
        input.new_empty((directions, rows, len(facts.saved), padded) if save else (0,)),
    )


def layer_backward_fake(*arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    given = backward_arguments(*arguments)
    needs, *_ = given.rest
    return _gradients_fake(given, needs)


def modified_backward_fake(*arguments: Any) -> BackwardResults:
    given = modified_backward_arguments(*arguments)
    needs, *_ = given.rest
    return *_gradients_fake(given, needs), *_modifiers_gradients_fake(given, needs)


def _modifiers_gradients_fake(given: BackwardArguments, needs: int) -> tuple[list[Tensor], Tensor]:
    """Those of modifiers, which come after the weights in the bits of `needs`."""
    input, _, _, weights, modifiers = given.operands
    states, steps = len(given.layer.cell.states), modifiers.step_inputs
    first = 1 + states + len(weights)
    of_steps = steps is not None and needs >> first + states & 1
    return [
        input.new_empty(state.shape if needs >> bit & 1 else (0,))
        for bit, state in enumerate(modifiers.reset_states, first)
    ], input.new_empty(steps.shape if steps is not None and of_steps else (0,))


def backward_fake(*arguments: Any) -> BackwardResults:
    """The results of a backward op that takes modifiers, and `checkpoint` before `needs`."""
    given = modified_backward_arguments(*arguments)
    _, needs, *_ = given.rest
    return *_gradients_fake(given, needs), *_modifiers_gradients_fake(given, needs)


def _gradients_fake(
    given: BackwardArguments, needs: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    input, _, hx, weights, _ = given.operands

    def of(operand: Tensor, bit: int) -> Tensor:
        return input.new_empty(operand.shape if needs >> bit & 1 else (0,))

    first_weight = 1 + len(given.layer.cell.states)
    return (
        of(input, 0),
        [of(state, bit) for bit, state in enumerate(hx, 1)],
        [of(weight, bit) for bit, weight in enumerate(weights, first_weight)],
    )


def _check_devices(input: Tensor, **others: Tensor | None) -> None:
    # A tensor of the meta device among others brings a real call to a fake kernel.
    for name, tensor in others.items():
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"{name}: expected the device of the input, {input.device}, got {tensor.device}"
            )


def _make_panels_fake(
    weights: Sequence[Tensor],
    cell: str,
    biases: bool,
    projected: bool,
    bidirectional: bool = False,
) -> Tensor:
    # How much room they take is the kernels' own business.
    size = torch.library.get_ctx().new_dynamic_size()
    return weights[W_IH].new_empty(size, dtype=torch.uint8)


def _random_mask_fake(
    seed: Tensor, values: Tensor, sizes: Sequence[int], probability: float
) -> Tensor:
    return values.new_empty(sizes)


def _pack_rows_fake(
    lengths: Tensor, first: Tensor, stride: int, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    steps, sequences, rows = (context.new_dynamic_size() for _ in range(3))
    sizes = (steps, sequences, rows, count)
    batch_sizes, order, found, places = (lengths.new_empty(size) for size in sizes)
    return batch_sizes, order, found, places


def _move_rows_fake(rows: Tensor, sources: Tensor) -> Tensor:
    _check_devices(rows, sources=sources)
    return rows.new_empty(sources.size(0), rows.size(-1))


def _stack_forward_fake(
    input: Tensor,
    ready: Tensor,
    hx: Sequence[Tensor],
    backwards: bool = False,
    step_inputs: Tensor | None = None,
) -> Tensor:
    if not hx:
        raise RuntimeError("hx: expected the states to be updated in place, got none")
    _check_devices(input, weights=ready, **named("hx", hx), step_inputs=step_inputs)
    h, *_ = hx
    return input.new_empty(*input.shape[:-1], h.size(2))


torch.library.register_fake("fusedrnn::layer_forward", layer_forward_fake)
torch.library.register_fake("fusedrnn::layer_backward", layer_backward_fake)
torch.library.register_fake("fusedrnn::modified_forward", modified_forward_fake)
torch.library.register_fake("fusedrnn::modified_backward", modified_backward_fake)
torch.library.register_fake("fusedrnn::make_panels", _make_panels_fake)
torch.library.register_fake("fusedrnn::pack_rows", _pack_rows_fake)
torch.library.register_fake("fusedrnn::move_rows", _move_rows_fake)
torch.library.register_fake("fusedrnn::random_mask", _random_mask_fake)
torch.library.register_fake("fusedrnn::panels_forward", _stack_forward_fake)
torch.library.register_fake("fusedrnn::quantize_weights", _make_panels_fake)
torch.library.register_fake("fusedrnn::quantized_forward", _stack_forward_fake)


def _no_kernel(*arguments: object) -> NoReturn:
    lists = [argument if isinstance(argument, list) else [argument] for argument in arguments]
    tensors = [each for given in lists for each in given if isinstance(each, Tensor)]
    kinds = sorted({f"{tensor.device.type} ({tensor.layout})" for tensor in tensors})
    served = ("cpu (torch.strided)", "cuda (torch.strided)")
    kinds = [kind for kind in kinds if kind not in served] or kinds
    raise NotImplementedError(
        "fusedrnn has no kernels for these tensors: expected dense (torch.strided) CPU or CUDA "
        f"tensors, got {', '.join(kinds)}. fusedrnn.build_info() tells which devices this build "
        "serves."
    )


def _lift_negation(
    op: Callable[..., Tensor], input: Tensor, ready: Tensor, hx: Sequence[Tensor], *rest: Any
) -> Tensor:
    for name, state in named("hx", hx).items():
        if state.is_neg():
            raise RuntimeError(
                f"{name}: expected memory that holds the state, to be updated in place, got a view "
                f"that negates it ({name}.is_neg()); pass {name}.resolve_neg()"
            )
    rest = tuple(each.resolve_neg() if isinstance(each, Tensor) else each for each in rest)
    return op(input.resolve_neg(), ready.resolve_neg(), hx, *rest)


# torch takes this kernel last, for any device that has none of its own.
_library = torch.library.Library("fusedrnn", "IMPL")
for _name in ("layer_forward", "layer_backward", "modified_forward", "modified_backward"):
    _library.impl(_name, _no_kernel, "CompositeExplicitAutograd")
for _name in ("make_panels", "panels_forward", "quantize_weights", "quantized_forward"):
    _library.impl(_name, _no_kernel, "CompositeExplicitAutograd")
    # Weights made ready ahead are for inference: what they compute has no history.
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")
# torch would copy a view that negates, and update the copy of a state instead of the state. A view
# that conjugates is complex, so the kernels refuse it by name.
for _name in ("panels_forward", "quantized_forward"):
    _library.impl(_name, torch.library.fallthrough_kernel, "Conjugate")
_library.impl("panels_forward", partial(_lift_negation, panels_forward), "Negative")
_library.impl("quantized_forward", partial(_lift_negation, quantized_forward), "Negative")
