"""What is refused before any work is done, and with which exception.

Types are those of torch.nn, so that code which catches them keeps working; messages are torch.nn's
where that one says what is wrong, and name argument, expectation and value where it does not. The
ops check again, in csrc/ops/layer_ops.cpp, whatever could make them leave their memory, and more:
that all weights fit each other, and that batch sizes are positive, do not grow and add up to the
input.

The checks of a call that is in order are a few comparisons; everything else is in the functions
that end in an exception.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fusedrnn._engine.layer import Network
from fusedrnn._engine.torch_private import is_any_autocast_on
from fusedrnn.cells import W_HH, W_IH, Cell

PACKED_IN_ONNX = (
    "ONNX has no packed sequences, and this model calls a layer of fusedrnn with a PackedSequence. "
    "To export it, call the layer with the padded tensor and lengths=, which becomes the "
    "operator's sequence_lens"
)
"""What a packed layer answers to an exporter to ONNX."""


def check_input(
    name: str, input: Any, batch_sizes: Tensor | None, weights: Sequence[Tensor]
) -> int:
    """Checks the input of a network that messages call `name`; returns its dimensions."""
    if not isinstance(input, Tensor):
        reject_input(input)
    dims = input.dim()
    if batch_sizes is not None:
        check_batch_sizes(batch_sizes)
        if dims != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {dims}")
    elif dims != 3 and dims != 2:
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dims}D instead")
    check_features(input, weights[W_IH])
    return dims


def reject_input(input: Any) -> NoReturn:
    """Raises the error for an `input` that is not a tensor."""
    raise AttributeError(f"input: expected a torch.Tensor, got {kind_of(input)}")


def reject_nested(input: Tensor, batch_first: bool) -> NoReturn:
    """Raises the error for a nested `input`, in which sequences have lengths of their own."""
    jagged = batch_first and input.layout == torch.jagged
    raise (ValueError if jagged else RuntimeError)(
        f"input: expected a dense tensor, got a nested one ({input.layout}). Call the layer with "
        "the padded tensor, torch.nested.to_padded_tensor(input, 0.0), and lengths=, or with "
        "torch.nn.utils.rnn.pack_sequence(input.unbind(), enforce_sorted=False)"
    )


def check_features(input: Tensor, w_ih: Tensor) -> None:
    """Checks dtype, device and last dimension of what `w_ih` projects."""
    if input.dtype != w_ih.dtype and not is_any_autocast_on():
        check_dtype(input, w_ih)
    if input.shape[-1] != w_ih.shape[1]:  # `size` with an argument takes longer
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {w_ih.size(1)}, got "
            f"{input.size(-1)}"
        )
    if input.device != w_ih.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{input.device} and parameter tensor at {w_ih.device}"
        )


def check_dtype(input: Tensor, w_ih: Tensor) -> None:
    """Checks that `input` has the dtype of the weights."""
    if input.dtype != w_ih.dtype:
        of_model = f", or convert model: model.to({input.dtype})"
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({w_ih.dtype}). Convert "
            f"input: input.to({w_ih.dtype})" + of_model * input.is_floating_point()
        )


def reject_no_steps() -> NoReturn:
    """Raises the error for an input without a step."""
    raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_batch_sizes(batch_sizes: Any) -> None:
    """Checks that `batch_sizes` can be batch sizes; their values are checked by the op."""
    if not isinstance(batch_sizes, Tensor):
        raise TypeError(f"batch_sizes: expected a torch.Tensor, got {kind_of(batch_sizes)}")
    if batch_sizes.dtype == torch.int64 and batch_sizes.dim() == 1 and len(batch_sizes) > 0:
        return
    got = (
        "batch_sizes: expected a non-empty int64 tensor of shape (T,), got "
        f"{batch_sizes.dtype} of shape {tuple(batch_sizes.shape)}"
    )
    if batch_sizes.numel() == 0:
        raise IndexError(got)
    if batch_sizes.is_floating_point() or batch_sizes.dim() != 1:
        raise TypeError(got)
    raise RuntimeError(got)


def check_lengths(lengths: Any, input: Tensor, batch_sizes: Tensor | None = None) -> None:
    """Checks the lengths of the sequences of `input` [T, B, I], except for their values."""
    if batch_sizes is not None:
        raise ValueError("lengths: expected None with a packed input, which has its own lengths")
    if input.dim() != 3:
        raise ValueError(
            f"lengths: expected None without a batch, got lengths for an input of shape "
            f"{tuple(input.shape)}"
        )
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32):
        _reject_lengths(TypeError, lengths, input)
    if lengths.dim() != 1 or lengths.size(0) != input.size(1):
        _reject_lengths(RuntimeError, lengths, input)


def as_lengths(lengths: Any) -> Any:
    """A list of ints as a tensor; anything else as it is."""
    if isinstance(lengths, (list, tuple)) and all(type(length) is int for length in lengths):
        return torch.tensor(lengths, dtype=torch.int64)
    return lengths


def check_length_values(lengths: Tensor, steps: int) -> None:
    """Checks that no sequence is longer than the input."""
    outside = (lengths < 0) | (lengths > steps)
    if outside.any():
        at = int(outside.nonzero()[0])
        raise RuntimeError(
            f"lengths: expected values from 0 to {steps}, the steps of input, got "
            f"{int(lengths[at])} at {at}"
        )


def check_cu_seqlens(cu_seqlens: Any, input: Tensor) -> None:
    """Checks where sequences begin in `input` [N, I], except for the values."""
    expected = "cu_seqlens: expected an int64 or int32 tensor of shape (B + 1,), got"
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"{expected} {kind_of(cu_seqlens)}")
    got = f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
    if cu_seqlens.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{expected} {got}")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) == 0:
        raise RuntimeError(f"{expected} {got}")
    if input.dim() != 2:
        raise ValueError(
            "cu_seqlens: expected None, or an input of shape (rows of all sequences, features), "
            f"got one of shape {tuple(input.shape)}"
        )


def check_cu_seqlens_values(cu_seqlens: Tensor, rows: int) -> None:
    """Checks that sequences follow each other and end with the input."""
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != rows or (cu_seqlens.diff() < 0).any():
        raise RuntimeError(
            f"cu_seqlens: expected values from 0 to {rows}, the rows of input, none below the one "
            f"before, got {first} first, {last} last"
            + " and one below the one before"
            * bool((cu_seqlens.diff() < 0).any())
        )


def check_reset(reset: Any, shape: tuple[int, ...]) -> None:
    """Checks where sequences begin anew, but for the values; a last dimension of 1 is as none."""
    expected = f"reset: expected bool, uint8 or float of 0 and 1, of shape {shape}, got"
    if not isinstance(reset, Tensor):
        raise TypeError(f"{expected} {kind_of(reset)}")
    if reset.shape != shape and reset.shape != (*shape, 1):
        raise RuntimeError(f"{expected} {reset.dtype} of shape {tuple(reset.shape)}")
    if reset.is_complex():
        raise TypeError(f"{expected} {reset.dtype}")


def check_reset_values(reset: Tensor) -> None:
    """Checks that all values are 0 or 1."""
    wrong = (reset != 0) & (reset != 1)
    if wrong.any():
        raise ValueError(f"reset: expected 0 and 1, got {reset[wrong][0].item()}")


def check_reset_states(
    cell: Cell,
    states: Sequence[Any],
    shapes: Sequence[tuple[int, int]],
    batch: int | None,
    steps: int | None,
    input: Tensor,
    batch_first: bool,
) -> None:
    """Checks what replaces states: shaped as first states, or as these for each of `steps`."""
    for i, (state, parts) in enumerate(zip(states, shapes, strict=True)):
        name = _name_of_state("reset_states", cell, i, len(states))
        shape = _with_batch(parts, batch, batch_first)
        every = shape
        if steps is not None:
            at = 1 if batch_first and batch is not None else 0
            every = (*shape[:at], steps, *shape[at:])
        either = f" or {every}" * (steps is not None)
        expected = f"{name}: expected {cell.states[i * len(cell.states) // len(states)]} of shape "
        if not isinstance(state, Tensor):
            raise TypeError(f"{expected}{shape}{either}, got {kind_of(state)}")
        if state.shape != shape and state.shape != every:
            raise RuntimeError(f"{expected}{shape}{either}, got {tuple(state.shape)}")
        if state.dtype != input.dtype or state.device != input.device:
            _check_like_input(name, state, input)


def check_step_inputs(
    cell: Cell,
    given: Any,
    shape: tuple[int, ...],
    sizes: Sequence[int],
    directions: int,
    input: Tensor,
) -> list[list[Tensor]]:
    """Checks what a cell reads at each step beside the input, and returns it by layer.

    Args:
        cell: the cell.
        given: what the user gives.
        shape: of the input, without its features.
        sizes: the units of each layer.
        directions: how many each layer has; 0 for one step of a cell, which is no layer.
        input: the input.

    Returns:
        the tensors, in the cell's order, of each layer; or once, those that all have.
    """
    if not cell.step_inputs:
        raise ValueError(f"step_inputs: expected None, since {cell} has none, got {kind_of(given)}")
    names = ", ".join(cell.step_inputs)
    if not isinstance(given, Mapping):
        raise TypeError(f"step_inputs: expected a dict with {names}, got {kind_of(given)}")
    for name in given:
        if name not in cell.step_inputs:
            raise ValueError(f"step_inputs: expected {names}, got {name!r}")
    for name in cell.step_inputs:
        if name not in given:
            raise ValueError(f"step_inputs: expected {names}, got none called {name!r}")
    lists = [name for name in cell.step_inputs if isinstance(given[name], (list, tuple))]
    for name in lists:
        if not directions or len(given[name]) != len(sizes):
            expected = (
                "a tensor"
                if not directions
                else f"a tensor, or one for each of {len(sizes)} layers"
            )
            raise ValueError(
                f"step_inputs[{name!r}]: expected {expected}, got {len(given[name])} in a "
                f"{kind_of(given[name])}"
            )
    by_layer: list[list[Tensor]] = [[] for _ in (sizes if lists else sizes[:1])]
    for name in cell.step_inputs:
        for i, own in enumerate(by_layer):
            if name in lists:
                tensor, size, parts = given[name][i], sizes[i], directions
            else:
                tensor, parts = given[name], directions * len(sizes)
                size = sizes[0] if len({*sizes}) == 1 else 1
            _check_step_input(f"step_inputs[{name!r}]", tensor, shape, size, parts, input)
            is_split = name not in lists and lists and tensor.dim() > len(shape) + 1
            own.append(tensor[i * directions : (i + 1) * directions] if is_split else tensor)
    return by_layer


def _check_step_input(
    name: str, tensor: Any, shape: tuple[int, ...], size: int, parts: int, input: Tensor
) -> None:
    """Checks values for all of so many parts, or for each of them, and for each unit or for all."""
    wholes = [(*shape, size), (*shape, 1)]
    if parts:
        wholes += [(parts, *whole) for whole in wholes]
    if not isinstance(tensor, Tensor) or tensor.shape not in wholes:
        expected = " or ".join(map(str, dict.fromkeys(wholes)))
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else kind_of(tensor)
        error = RuntimeError if isinstance(tensor, Tensor) else TypeError
        raise error(f"{name}: expected a tensor of shape {expected}, got {got}")
    if tensor.dtype != input.dtype or tensor.device != input.device:
        _check_like_input(name, tensor, input)


def check_initial_states(
    cell: Cell, states: Sequence[Any], shapes: Sequence[tuple[int, int]]
) -> None:
    """Checks the states that a module has learned, which may have been replaced."""
    for i, (state, shape) in enumerate(zip(states, shapes, strict=True)):
        if state.shape != shape:
            name = cell.states[i * len(cell.states) // len(states)]
            raise RuntimeError(
                f"{name}_0: expected learned states of shape {shape}, got {tuple(state.shape)}"
            )


def check_offsets(name: str, jagged: Any, offsets: Tensor) -> None:
    """Checks that a jagged argument has the sequences of the input."""
    is_jagged = jagged.layout == torch.jagged and jagged._lengths is None
    if not is_jagged or not torch.equal(jagged.offsets().to(offsets), offsets):
        raise RuntimeError(
            f"{name}: expected a jagged tensor with the offsets of input, got others"
        )


def check_probability(name: str, value: Any) -> None:
    """Checks the probability of a dropout, which may be 0 but not 1."""
    expected = f"{name}: expected a number from 0 to below 1, got {value!r}"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{expected} of {kind_of(value)}")
    if not 0 <= value < 1:
        raise ValueError(expected)


def check_bool(name: str, value: Any) -> None:
    """Checks an argument that is on or off."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {value!r} of {kind_of(value)}")


def check_init(kind: Any) -> None:
    """Checks the way in which parameters begin."""
    if kind not in ("uniform", "orthogonal"):
        raise ValueError(f"init: expected 'uniform' or 'orthogonal', got {kind!r}")


def check_forget_bias(value: Any, bias: bool, cell: Cell) -> None:
    """Checks the first bias of the forget gate; None leaves it to `init`."""
    expected = f"forget_bias: expected None or a finite number, got {value!r}"
    if value is None:
        return
    if "f" not in cell.gates:
        raise ValueError(
            f"forget_bias: expected None for a {cell}, which has no forget gate, got {value!r}"
        )
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{expected} of {kind_of(value)}")
    if not math.isfinite(value):
        raise ValueError(expected)
    if not bias:
        raise ValueError(f"forget_bias: expected None with bias=False, got {value!r}")


def check_hidden_sizes(sizes: Sequence[Any], num_layers: Any) -> None:
    """Checks hidden sizes, one for each layer; `num_layers` is 1, its default, or as many."""
    expected = f"hidden_size: expected an int, or positive ints, one for each layer, got {sizes!r}"
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(expected)
    if not sizes or min(sizes) <= 0:
        raise ValueError(expected)
    if num_layers not in (1, len(sizes)):
        raise ValueError(
            f"num_layers: expected {len(sizes)}, as many as hidden_size has, got {num_layers!r}"
        )


def check_residual(widths: Sequence[int]) -> None:
    """Checks that some layer's input can be added to its output; `widths` are those of outputs."""
    if not any(before == after for before, after in zip(widths, widths[1:])):  # noqa: B905
        raise ValueError(
            "residual: expected False where no layer but the first has as many features as its "
            f"input, got layers whose outputs have {', '.join(map(str, widths))}"
        )


def check_checkpoint(checkpoint: Any) -> None:
    """Checks how many steps lie between the states that are kept, None or a positive int."""
    if checkpoint is None:
        return
    expected = "checkpoint: expected None or a positive int, the steps between two kept states, got"
    if not isinstance(checkpoint, int) or isinstance(checkpoint, bool):
        raise TypeError(f"{expected} {checkpoint!r} of {kind_of(checkpoint)}")
    if checkpoint < 1:
        raise ValueError(f"{expected} {checkpoint}")


def check_reset_after(reset_after: Any) -> None:
    """Checks whether a GRU's reset gate comes after the recurrent product, a bool."""
    if not isinstance(reset_after, bool):
        raise TypeError(
            "reset_after: expected a bool, whether the reset gate comes after the recurrent "
            f"product, got {reset_after!r} of {kind_of(reset_after)}"
        )


def check_weights(network: Network, weights: Sequence[Tensor], proj_size: int = 0) -> None:
    """Checks that there are as many weights as the layers and directions need."""
    layer, _, num_layers, _ = network
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")
    roles = layer.roles
    expected = num_layers * layer.directions * len(roles)
    if len(weights) != expected:
        hint = f", proj_size={proj_size}" if layer.cell.projects else ""
        raise RuntimeError(
            f"weights: expected {expected} tensors, {', '.join(roles)} for each layer and "
            f"direction ({layer.cell}, num_layers={num_layers}, bias={layer.biases}, "
            f"bidirectional={layer.bidirectional}{hint}), got {len(weights)}"
        )
    for i, weight in enumerate(weights):
        check_weight(f"weights[{i}]", weight)
    w_hh = weights[W_HH]
    if proj_size and (w_hh.dim() != 2 or w_hh.size(1) != proj_size):
        raise RuntimeError(
            f"weights[{W_HH}]: expected w_hh of {proj_size} columns, proj_size, got shape "
            f"{tuple(w_hh.shape)}"
        )


def check_proj_size(proj_size: Any) -> None:
    """Checks the features of a projected h, 0 for no projection."""
    if not isinstance(proj_size, int) or isinstance(proj_size, bool):
        raise TypeError(f"proj_size: expected an int, got {proj_size!r} of {kind_of(proj_size)}")
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")


def check_weight(name: str, weight: Any, error: type[Exception] = TypeError) -> None:
    """Checks that there is a weight where its name says so."""
    if not isinstance(weight, Tensor):
        raise error(f"{name}: expected a torch.Tensor, got {kind_of(weight)}")


def reject_options(names: Iterable[str], cls: str, known: Iterable[str]) -> NoReturn:
    """Raises the error for arguments that a class does not have."""
    if "proj_size" in names:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
    raise TypeError(
        f"{cls}.__init__() got an unexpected keyword argument {next(iter(names))!r}; expected one "
        f"of {', '.join(known)}"
    )


def states_of(cell: Cell, hx: Any, name: str = "hx", layers: int = 0) -> tuple[Tensor, ...]:
    """The states that a call is given as `name`: of a cell with several, a tuple of them.

    With `layers` each of these is a sequence of as many tensors, and they come one after another.
    """
    count = len(cell.states)
    if hx is None:
        return ()
    if layers:
        return _states_of_layers(cell, hx, name, layers)
    if count == 1:
        return (hx,)
    if type(hx) is tuple and len(hx) == count:
        return hx
    return _states_of_sequence(cell, hx, name)


def _states_of_sequence(cell: Cell, hx: Any, name: str) -> tuple[Tensor, ...]:
    """The states in what is no tuple, or not as long as it should be."""
    count = len(cell.states)
    many = "a pair of tensors" if count == 2 else f"a tuple of {count} tensors"
    names = ", ".join(f"{name}_0" for name in cell.states)
    expected = f"{name}: expected {many} ({names}), got {kind_of(hx)}"
    states: list[Tensor] = []
    try:
        for i in range(count):
            state = hx[i]
            if not isinstance(state, Tensor):
                kinds = " and ".join(kind_of(each) for each in [*states, state])
                raise AttributeError(f"{expected} of {kinds}")
            states.append(state)
    except (TypeError, IndexError) as error:
        raise type(error)(expected) from None
    if isinstance(hx, Tensor):
        raise TypeError(f"{expected} of shape {tuple(hx.shape)}")
    if len(hx) != count:
        numbers = {2: "two", 3: "three", 4: "four"}
        raise RuntimeError(
            f"{cell} expects {numbers.get(count, count)} hidden states; {expected} of {len(hx)}"
        )
    return tuple(states)


def _states_of_layers(cell: Cell, hx: Any, name: str, layers: int) -> tuple[Tensor, ...]:
    """The states where each is given as a sequence of one tensor for each layer."""
    each = f"a tuple of {layers} tensors, one for each layer, as hidden_size is"
    expected = f"{name}: expected for {' and '.join(cell.states)} {each}, got"

    def check(given: Any, count: int) -> None:
        if not isinstance(given, (tuple, list)):
            raise TypeError(f"{expected} {kind_of(given)}")
        if len(given) != count:
            raise RuntimeError(f"{expected} {kind_of(given)} of {len(given)}")

    states = (hx,) if len(cell.states) == 1 else hx
    check(states, len(cell.states))
    for of_layers in states:
        check(of_layers, layers)
    return tuple(state for of_layers in states for state in of_layers)


def as_given(states: Sequence[Any]) -> Any:
    """States as users have them: a tensor if there is only h, else a tuple."""
    if len(states) == 1:
        (h,) = states
        return h
    return tuple(states)


def check_states(
    cell: Cell,
    hx: Sequence[Any],
    shapes: Sequence[tuple[int, int]],
    batch: int | None,
    input: Tensor,
    batch_first: bool = False,
) -> None:
    """Checks first states, whose `shapes` are (parts, features) and without the batch.

    `batch` is how many sequences there are; None for one sequence, whose states have no batch.
    """
    dtype, device = input.dtype, input.device
    for i, (state, parts) in enumerate(zip(hx, shapes, strict=True)):
        shape = _with_batch(parts, batch, batch_first)
        if not isinstance(state, Tensor) or state.shape != shape:
            _reject_shape(cell, hx, i, shape, input)
        if state.dtype != dtype or state.device != device:
            _check_like_input(_name_of_state("hx", cell, i, len(hx)), state, input)


def _with_batch(shape: tuple[int, int], batch: int | None, batch_first: bool) -> tuple[int, ...]:
    parts, width = shape
    if batch is None:
        return shape
    return (batch, parts, width) if batch_first else (parts, batch, width)


def check_cell(name: str, input: Tensor, hx: Sequence[Any], weights: Sequence[Tensor]) -> bool:
    """Checks what one step of a cell is given; returns whether it is one sequence, no batch."""
    dims = input.dim()
    if dims != 2 and dims != 1:
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {dims}D instead")
    w_ih, w_hh = weights[W_IH], weights[W_HH]
    if input.size(-1) != w_ih.size(1):
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(-1)} expected {w_ih.size(1)}"
        )
    if input.dtype != w_ih.dtype or input.device != w_ih.device:
        _check_like_input("weight_ih", w_ih, input)
    if hx:
        hidden_size = w_hh.size(1)
        shape = (input.size(0), hidden_size) if dims == 2 else (hidden_size,)
        for which, state in enumerate(hx):
            if not isinstance(state, Tensor) or state.shape != shape:
                _reject_cell_state(name, hx, which, shape)
            if state.dtype != input.dtype or state.device != input.device:
                name = f"hx[{which}]" if len(hx) > 1 else "hx"
                _check_like_input(name, state, input)
    return dims == 1


def _name_of_state(argument: str, cell: Cell, which: int, count: int) -> str:
    """What a user calls the state at `which` of `count`; there may be some for every layer."""
    states = len(cell.states)
    state, layer = divmod(which, count // states)
    return argument + f"[{state}]" * (states > 1) + f"[{layer}]" * (count > states)


def _reject_lengths(error: type[Exception], lengths: Any, input: Tensor) -> NoReturn:
    got = f"{lengths.dtype} of shape {tuple(lengths.shape)}" if isinstance(lengths, Tensor) else (
        kind_of(lengths)
    )  # fmt: skip
    raise error(
        f"lengths: expected an int64 or int32 tensor of shape (B,) = ({input.size(1)},), got {got}"
    )


def _reject_shape(
    cell: Cell, hx: Sequence[Any], which: int, shape: tuple[int, ...], input: Tensor
) -> NoReturn:
    for state in hx:
        if not isinstance(state, Tensor):
            raise AttributeError(f"hx: expected a torch.Tensor, got {kind_of(state)}")
    state, packed = hx[which], len(shape) == 3 and input.dim() == 2
    if packed or state.dim() == len(shape) or len(hx) > len(cell.states):
        name = _name_of_state("hidden", cell, which, len(hx))
        raise RuntimeError(f"Expected {name} size {shape}, got {list(state.shape)}")
    kind = "unbatched 2-D" if len(shape) == 2 else "batched 3-D"
    expected = f"should also be {len(shape)}-D but got"
    if len(hx) > 1:
        dims = ", ".join(f"{each.dim()}-D" for each in hx)
        names = "hx and cx" if len(hx) == 2 else "all of hx"
        raise RuntimeError(f"For {kind} input, {names} {expected} ({dims}) tensors")
    raise RuntimeError(f"For {kind} input, hx {expected} {state.dim()}-D tensor")


def _reject_cell_state(
    name: str, hx: Sequence[Any], which: int, shape: tuple[int, ...]
) -> NoReturn:
    state = hx[which]
    if not isinstance(state, Tensor):
        raise AttributeError(f"hx: expected a torch.Tensor, got {kind_of(state)}")
    if state.dim() not in (1, 2):
        argument = f"hx[{which}]" if len(hx) > 1 else "hidden"
        raise ValueError(f"{name}: Expected {argument} to be 1D or 2D, got {state.dim()}D instead")
    hidden_size = shape[-1]
    if state.dim() == 2 and len(shape) == 2 and state.size(0) == shape[0]:
        raise RuntimeError(
            f"hidden{which} has inconsistent hidden_size: got {state.size(1)}, expected "
            f"{hidden_size}"
        )
    if len(shape) == 2:
        raise RuntimeError(
            f"Input batch size {shape[0]} doesn't match hidden{which} batch size {state.size(0)}"
            + (f" of shape {tuple(state.shape)}" if state.dim() != 2 else "")
        )
    raise RuntimeError(
        f"hidden{which} has inconsistent hidden_size: got shape {tuple(state.shape)}, expected "
        f"{shape}"
    )


def _check_like_input(name: str, tensor: Tensor, input: Tensor) -> None:
    """Checks device and dtype; under autocast dtypes may differ."""
    if tensor.device != input.device:
        kind = "parameter" if name.startswith("weight") else "hidden"
        raise RuntimeError(
            f"Input and {kind} tensors are not at the same device, found input tensor at "
            f"{input.device} and {kind} tensor {name} at {tensor.device}"
        )
    if not is_any_autocast_on():
        raise RuntimeError(
            f"{name}: expected the dtype of the input, {input.dtype}, got {tensor.dtype}"
        )


def kind_of(value: object) -> str:
    """What a message says of a value of the wrong type."""
    return type(value).__name__
