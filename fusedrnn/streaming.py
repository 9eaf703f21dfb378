"""Networks that keep their state and take what comes: one step, or a chunk of steps, at a time.

    stream = Streaming(module)
    stream(x)                  x -> layers -> y, and the state moves on

A call of one step is over in the time that it takes to read the weights once, if nothing else is
done. So the weights are made ready when a stream is made, the states are updated where they lie,
and a call that is in order is one op after two comparisons. The op refuses what does not fit, and
only then Python looks for what was wrong, to raise torch.nn's kind of exception.

What computes is a `Layers`: `_PanelLayers` or `_QuantizedLayers` on the CPU, `_PlainLayers` where
nothing is made ready, `_SeparateLayers` of these, or `_ModuleLayers` where something acts within
the steps. They are made anew when a weight has changed, and know nothing of streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase

from fusedrnn import functional
from fusedrnn._engine import compiling, ops
from fusedrnn._engine.checks import (
    check_dtype,
    check_features,
    check_initial_states,
    check_states,
    reject_nested,
    reject_no_steps,
    states_of,
)
from fusedrnn._engine.layer import Layer, Network, Operands
from fusedrnn._engine.ops import DTYPES
from fusedrnn._engine.torch_private import version_of
from fusedrnn.cells import W_HH, W_IH
from fusedrnn.functional import Extras
from fusedrnn.modules import (
    _Layers,
    cell_of,
    check_recurrent,
    extras_of,
    states_as_given,
    weights_of,
)

__all__ = ["Streaming"]

State = Tensor | tuple[Any, ...]

_address_of: Callable[[Tensor], int] = Tensor.data_ptr


class Layers(Protocol):
    """All layers of a network over some steps.

    `input` is [T, B, I], or [B, I] or [I] for one step; the output is laid out so, R wide. `hx`,
    h [layers, B, R] and each other state [layers, B, H], are the states before, and after the call
    those after it.
    """

    def __call__(self, input: Tensor, hx: list[Tensor]) -> Tensor: ...


class _PanelLayers:
    """`Layers` on panels for the CPU's kernels, those of all layers one buffer."""

    def __init__(self, layer: Layer, weights: list[list[Tensor]]) -> None:
        if layer.cell.program is not None:
            compiling.wanted(layer.cell.spec, weights[0][W_IH].dtype)
        self._panels = torch.cat([ops.make_panels(w, *layer.schema) for w in weights])
        self._backwards = False

    def __call__(self, input: Tensor, hx: list[Tensor]) -> Tensor:
        # Each step reads the weights in the other direction than the one before.
        backwards = self._backwards
        self._backwards = backwards ^ (input.dim() < 3 or input.size(0) % 2 == 1)
        output: Tensor = ops.panels_forward(input, self._panels, hx, backwards)
        return output


class _QuantizedLayers:
    """`Layers` on weights rounded to int8, all of them one buffer."""

    def __init__(self, layer: Layer, weights: list[list[Tensor]]) -> None:
        cell, biases, projected, _ = layer.schema
        self._quantized = torch.cat(
            [ops.quantize_weights(w, cell, biases, projected) for w in weights]
        )

    def __call__(self, input: Tensor, hx: list[Tensor]) -> Tensor:
        output: Tensor = ops.quantized_forward(input, self._quantized, hx)
        return output


class _PlainLayers:
    """`Layers` on the weights as they are, a call of the op for each."""

    def __init__(self, layer: Layer, weights: list[list[Tensor]]) -> None:
        self._layer, self._weights = layer, weights

    @torch.no_grad()
    def __call__(self, input: Tensor, hx: list[Tensor]) -> Tensor:
        output = input
        while output.dim() < 3:
            output = output.unsqueeze(0)
        for i, weights in enumerate(self._weights):
            now = [state[i : i + 1] for state in hx]
            operands = Operands(output, None, now, weights)
            output, after, _ = ops.layer_forward(
                *operands.tensors, *self._layer.schema, False, ops.allow_tf32(input)
            )
            for state, new in zip(now, after, strict=True):
                state.copy_(new)
        return output.view(*input.shape[:-1], output.size(-1))


class _ModuleLayers:
    """`Layers` as the module runs them, with what acts within their steps."""

    def __init__(self, extras: Extras, network: Network, weights: list[Tensor]) -> None:
        self._network, self._weights = network._replace(batch_first=False), weights
        self._extras = extras._replace(states_batch_first=False)

    @torch.no_grad()
    def __call__(self, input: Tensor, hx: list[Tensor]) -> Tensor:
        steps = input
        while steps.dim() < 3:
            steps = steps.unsqueeze(0)
        with torch.autocast(input.device.type, enabled=False):
            output, hn, _ = functional.run_network(
                self._network, 0.0, steps, hx, self._weights, extras=self._extras
            )
        for state, new in zip(hx, hn, strict=True):
            state.copy_(new)
        return output.view(*input.shape[:-1], output.size(-1))


class _SeparateLayers:
    """`Layers` of several sizes, or with a residual, each made ready by itself.

    `hx` has the states of all layers in one, or those of each by themselves, first all of h.
    """

    def __init__(self, extras: Extras, layers: list[Layers]) -> None:
        self._layers, self._extras = layers, extras

    def __call__(self, input: Tensor, hx: list[Tensor]) -> Tensor:
        count = len(self._layers)
        for i, layer in enumerate(self._layers):
            own = hx[i::count] if self._extras.by_layer else [state[i : i + 1] for state in hx]
            output = layer(input, own)
            residual = self._extras.residual and i > 0 and output.shape == input.shape
            input = output + input if residual else output
        return input


KINDS: dict[str, Callable[[Layer, list[list[Tensor]]], Layers]] = {
    "same": _PanelLayers,
    "int8": _QuantizedLayers,
}
"""In what form a stream may keep its weights on the CPU."""


class Streaming:
    """Inference with a network that keeps its state between calls.

    Each call goes on where the one before ended. The numbers are those of the module in eval mode
    (without dropout), given the state of the call before. Nothing is recorded for autograd,
    autocast is not applied, and the module itself is left as it is.

    Args:
        module: an `LSTM`, `GRU` or `RNN` of fusedrnn or torch.nn, of one direction; any number of
            layers, projected or not, in float64, float32, bfloat16 or float16, on the CPU or CUDA.
        batch_size: how many sequences are streamed at once, B.
        weights: in what form they are kept: "same", the module's dtype, or "int8", the counterpart
            of `torch.ao.quantization.quantize_dynamic`: each row of a weight matrix rounded to 255
            whole multiples of its own scale, and each row of input and h so at every step; sums,
            cell and states are exact or float32. For float32 modules on the CPU, and no GRU with
            `reset_after=False`; `python -m benchmarks.accuracy` prints what it costs.

    Call it with `input`, of the module's dtype and device. One step, [B, I], or [I] if B is 1,
    gives [B, R] or [R]; R is the projection's size if there is one, else H. A chunk of steps,
    [T, B, I] ([B, T, I] if the module has `batch_first`), gives [T, B, R] (or [B, T, R]). A 2-D
    input is always one step: the chunk of one sequence is [T, 1, I].

    On the CPU the weights are made ready for the kernels when the stream is made (those of a module
    with zoneout are not, and its steps take longer), and again by the
    first call after one was changed in place, replaced or moved. torch does not count changes
    through `weight.data`, by an optimizer with `fused=True` or of inference tensors: call `refresh`
    after them. A weight that is computed anew whenever it is asked for, as a parametrized one is,
    makes every call do so.

    Threads that share a stream must take turns. Any number of streams may share a module.

        >>> stream = fusedrnn.Streaming(fusedrnn.LSTM(10, 20))
        >>> stream(torch.randn(1, 10)).shape
        torch.Size([1, 20])
        >>> h, c = stream.state
        >>> stream.reset()

    Raises:
        TypeError: `module` is not such a module, or `batch_size` no int.
        ValueError: `module` is bidirectional, its weights are not of one such dtype and one device,
            `batch_size` is negative, or `weights` unknown or not for such a module. In a call:
            input of another dtype or number of dimensions.
        RuntimeError: in a call: input of a wrong size, or on another device.
        AttributeError: in a call: input is not a tensor.
    """

    def __init__(self, module: RNNBase, batch_size: int = 1, *, weights: str = "same") -> None:
        check_recurrent(module)
        if module.bidirectional:
            raise ValueError(
                "module: expected one direction, got a bidirectional module, whose second "
                "direction starts at the end of a sequence, which a stream does not have"
            )
        if not isinstance(batch_size, int) or isinstance(batch_size, bool):
            raise TypeError(f"batch_size: expected an int, got {type(batch_size).__name__}")
        if batch_size < 0:
            raise ValueError(f"batch_size: expected at least 0, got {batch_size}")
        if weights not in KINDS:
            raise ValueError(f"weights: expected one of {', '.join(KINDS)}, got {weights!r}")
        self.module = module
        self._batch_size = batch_size
        self.weights = weights
        self._hx: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Takes the module's weights as they are now. The state moves to their dtype and device."""
        module = self.module
        cell = cell_of(module)
        watched = [*weights_of(module)]
        weights = [weight.detach() for weight in watched]
        first = weights[W_IH]
        for weight in weights:
            if weight.dtype not in DTYPES:
                raise ValueError(
                    f"module: expected weights in {', '.join(map(str, DTYPES))}, got {weight.dtype}"
                )
            if weight.dtype != first.dtype or weight.device != first.device:
                raise ValueError(
                    f"module: expected weights of one dtype and device, got {first.dtype} on "
                    f"{first.device} and {weight.dtype} on {weight.device}"
                )
        each = len(weights) // module.num_layers
        layers = [weights[i : i + each] for i in range(0, len(weights), each)]
        on_cpu = first.device.type == "cpu"
        if self.weights == "int8":
            if not cell.has_int8:
                options = ", ".join(f"{name}={value}" for name, value in cell.options.items())
                raise ValueError(
                    f"weights: expected 'same' for a {cell.module}"
                    f"{' with ' * bool(options)}{options}, which has no int8 kernels, got 'int8'"
                )
            if first.dtype != torch.float32 or not on_cpu:
                raise ValueError(
                    "weights: expected 'same' for a module that is not in float32 on the CPU, got "
                    f"'int8' for one in {first.dtype} on {first.device}"
                )
            ops.check_storages(**ops.named("weights", weights))
            if not all(bool(weight.isfinite().all()) for weight in weights):
                raise ValueError("module: expected finite weights to round to int8, got inf or nan")
        network = functional.network_of(
            cell, cell.module, module.num_layers, module.bias, module.proj_size > 0,
            bidirectional=False, batch_first=module.batch_first, checkpoint=None,
        )  # fmt: skip
        extras = self._extras = extras_of(module)
        by_layer = extras is not None and extras.by_layer
        self._layers_of_state = module.num_layers if by_layer else 0
        self._states_batch_first = extras is not None and extras.states_batch_first
        self._layers: Layers
        kind = _PlainLayers if not on_cpu else KINDS[self.weights]
        if extras is not None and extras.zones_out:
            if self.weights == "int8":
                raise ValueError("weights: expected 'same' for a module with zoneout, got 'int8'")
            self._layers = _ModuleLayers(extras, network, weights)
        elif extras is not None and (extras.by_layer or extras.residual):
            separate = [kind(network.layer, [own]) for own in layers]
            self._layers = _SeparateLayers(extras, separate)
        else:
            self._layers = kind(network.layer, layers)
        self._cell = cell
        self._shapes = functional.shapes_of_states(cell, module.num_layers, 1, weights, by_layer)
        # Kept, so that no other weight can take their place in memory unnoticed.
        self._watched, self._kept = watched, weights
        self._addresses = [*map(_address_of, weights)]
        self._counted = [weight for weight in weights if not weight.is_inference()]
        self._versions = [*map(version_of, self._counted)]
        self._adopt_state()

    def __call__(self, input: Tensor) -> Tensor:
        """The output of the next step or steps; see the class."""
        if torch.compiler.is_compiling():
            raise NotImplementedError(
                "fusedrnn.Streaming keeps its state and weights outside of any graph, so it "
                "can't be part of one: call it outside of torch.compile and torch.export, or "
                "compile the module itself, with the state as its argument and result"
            )
        self._keep_up()
        try:
            if self.module.batch_first and input.dim() == 3:
                output = self._layers(input.transpose(0, 1), self._hx)
                return output.transpose(0, 1)
            return self._layers(input, self._hx)
        except Exception:
            self._check(input)
            raise

    @property
    def batch_size(self) -> int:
        """How many sequences are streamed at once."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: Any) -> NoReturn:
        raise AttributeError(
            f"batch_size: expected to stay at {self._batch_size}, the sequences whose state the "
            f"stream keeps, got {batch_size!r}; make another fusedrnn.Streaming for them"
        )

    @property
    def state(self) -> State:
        """A copy of the state: h [num_layers, B, R]; of an LSTM (h, c), c [num_layers, B, H].

        It is laid out as the module's final states. Set it to what the module takes as its first
        state, or to None for what it begins with.
        """
        states = [
            state.transpose(0, 1) if self._states_batch_first else state for state in self._hx
        ]
        states = [state.clone(memory_format=torch.contiguous_format) for state in states]
        given: State = states_as_given(self.module, states)
        return given

    @state.setter
    def state(self, hx: State | None) -> None:
        self._keep_up()
        if hx is None:
            self.reset()
            return
        states = states_of(self._cell, hx, layers=self._layers_of_state)
        like, *_ = self._hx
        check_states(
            self._cell, states, self._shapes, self.batch_size, like, self._states_batch_first
        )
        for state in states:
            if state.dtype != like.dtype:  # under autocast
                raise RuntimeError(
                    f"hx: expected the dtype of the module, {like.dtype}, got {state.dtype}"
                )
        if self._states_batch_first:
            states = tuple(state.transpose(0, 1) for state in states)
        self._hx = [_own(state) for state in states]

    @torch.inference_mode(False)
    def reset(self, mask: Any = None) -> None:
        """Sets the state to what a sequence begins with, of all or of those that `mask` marks.

        It begins with zeros, unless the module learns its initial state. The mask is what
        environments say of episodes that end: a tensor, an array of NumPy or a list of [B] or
        [B, 1] values, which are bool or 0 and 1.
        """
        if mask is None:
            self._hx = []
            self._adopt_state()
            return
        batch = self.batch_size
        expected = f"mask: expected bool, or 0 and 1, of shape ({batch},) or ({batch}, 1), got"
        try:
            marks = torch.as_tensor(mask)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{expected} {type(mask).__name__}") from None
        if marks.shape != (batch,) and marks.shape != (batch, 1):
            raise ValueError(f"{expected} {marks.dtype} of shape {tuple(marks.shape)}")
        column = marks.reshape(batch, 1).to(self._kept[W_HH].device)
        if column.dtype != torch.bool:
            wrong = (column != 0) & (column != 1)
            if wrong.any():
                raise ValueError(f"{expected} {column[wrong][0].item()}")
            column = column != 0
        firsts = self._first_states()
        self._hx = [torch.where(column, *each) for each in zip(firsts, self._hx, strict=True)]

    def __repr__(self) -> str:
        return f"Streaming({self.module!r}, batch_size={self.batch_size}, weights={self.weights!r})"

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of; panels hold for one processor's kernels only."""
        return {
            "module": self.module, "batch_size": self.batch_size, "weights": self.weights,
            "state": self.state,
        }  # fmt: skip

    def __setstate__(self, values: dict[str, Any]) -> None:
        made = Streaming(values["module"], values["batch_size"], weights=values["weights"])
        states = states_of(made._cell, values["state"], layers=made._layers_of_state)
        if all(isinstance(state, Tensor) for state in states):  # others are refused below
            if _share_memory(states):
                names = " and ".join(made._cell.states)
                raise ValueError(
                    f"state: expected {names} in memory of their own, got one for both"
                )
            like, *_ = made._hx
            states = tuple(state.to(like) for state in states)
        made.state = states_as_given(made.module, states)
        self.__dict__.update(made.__dict__)

    def _keep_up(self) -> None:
        """Takes the weights again if one has changed, or the place of a GRU's reset gate."""
        weights = weights_of(self.module)
        if not (
            cell_of(self.module) is self._cell
            and extras_of(self.module) is self._extras
            and all(map(is_, weights, self._watched))
            and [*map(version_of, self._counted)] == self._versions
            and [*map(_address_of, weights)] == self._addresses
        ):
            self.refresh()

    @torch.inference_mode(False)  # states that are made in that mode could not change out of it
    def _adopt_state(self) -> None:
        """Gives the state the weights' dtype and device; makes zeros of what has another shape."""
        w_hh = self._kept[W_HH]
        shapes = [(parts, self.batch_size, width) for parts, width in self._shapes]
        if [state.shape for state in self._hx] == shapes:
            self._hx = [state.to(w_hh) for state in self._hx]
            return
        self._hx = [*map(_own, self._first_states())]

    def _first_states(self) -> list[Tensor]:
        """The states that a sequence begins with, for all sequences."""
        initial = self.module._initial_states() if isinstance(self.module, _Layers) else []
        check_initial_states(self._cell, initial, self._shapes[: len(initial)])
        shapes = [(parts, self.batch_size, width) for parts, width in self._shapes]
        if not initial:
            return [self._kept[W_HH].new_zeros(shape) for shape in shapes]
        return [
            state.detach().to(self._kept[W_HH]).unsqueeze(1).expand(shape)
            for state, shape in zip(initial, shapes, strict=True)
        ]

    def _check(self, input: Any) -> None:
        """Raises what is wrong with an input that was refused, if that can be said."""
        name, batch = type(self.module).__name__, self.batch_size
        if not isinstance(input, Tensor):
            raise AttributeError(f"input: expected a torch.Tensor, got {type(input).__name__}")
        if not 1 <= input.dim() <= 3 or (input.dim() == 1 and batch != 1):
            step = "1D or 2D (one step)" if batch == 1 else "2D (one step)"
            raise ValueError(
                f"{name}: Expected input to be {step} or 3D (a chunk of steps), got {input.dim()}D "
                "instead"
            )
        if input.is_nested:
            reject_nested(input, self.module.batch_first)
        check_dtype(input, self._kept[W_IH])  # under autocast, too
        check_features(input, self._kept[W_IH])
        if input.dim() == 1:
            return
        by_batch = self.module.batch_first and input.dim() == 3
        if input.size(0 if by_batch else -2) != batch:
            raise RuntimeError(
                f"input: expected {batch} sequences, the stream's batch_size, got "
                f"{input.size(0 if by_batch else -2)} in shape {tuple(input.shape)}"
            )
        if input.dim() == 3 and input.size(1 if by_batch else 0) == 0:
            reject_no_steps()


def _share_memory(states: Sequence[Tensor]) -> bool:
    addresses = [state.untyped_storage().data_ptr() for state in states if state.numel()]
    return len({*addresses}) < len(addresses)


@torch.inference_mode(False)
def _own(state: Tensor) -> Tensor:
    return state.detach().clone(memory_format=torch.contiguous_format)
