"""The modules: torch.nn's recurrent networks and cells on fused kernels.

Each class takes the arguments of its namesake in torch.nn, makes the same parameters from the same
seed, keeps them under the same names and gives results of the same shapes and layouts. Derived from
`torch.nn.RNNBase` and `RNNCellBase`, which own the parameters: names, initialisation, pickling, and
`_flat_weights`, which other code reads. What is computed, and what is refused, is in functional.py.

The classes do not derive from `torch.nn.LSTM` and its like: torch.compile knows these by name and
does not trace them.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from operator import is_
from typing import Any, NoReturn, overload
from weakref import ref

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.fx.proxy import TraceError
from torch.nn import Parameter
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.utils.rnn import PackedSequence

from fusedrnn import functional
from fusedrnn._engine.checks import (
    PACKED_IN_ONNX,
    check_checkpoint,
    check_reset_after,
    check_states,
    check_weight,
    reject_input,
    reject_options,
    split_state,
)
from fusedrnn._engine.docstrings import completed_from
from fusedrnn.reference import CELLS, RNN_RELU, RNN_TANH
from fusedrnn.reference import GRU as GRU_CELL
from fusedrnn.reference import LSTM as LSTM_CELL

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

CELL_OF_MODE = {"RNN_TANH": RNN_TANH, "RNN_RELU": RNN_RELU, "LSTM": LSTM_CELL, "GRU": GRU_CELL}
_NAMES_IN_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_NAME_OF_CELL = ("RNN", "RNN", "LSTM", "GRU", "GRU")
_OPTIONS_OF_CELL: dict[str, dict[str, Any]] = {
    "rnn_tanh": {"nonlinearity": "tanh"},
    "rnn_relu": {"nonlinearity": "relu"},
    "gru_reset_before": {"reset_after": False},
}


def made_of(cell: str) -> tuple[str, dict[str, Any]]:
    """The class that a cell of `CELLS` is of, and the arguments that make it that one."""
    return _NAME_OF_CELL[CELLS.index(cell)], dict(_OPTIONS_OF_CELL.get(cell, {}))


def cell_of(module: RNNBase) -> int:
    """The number of a module's cell. torch.nn's GRU has no `reset_after`, and is as if true."""
    cell = CELL_OF_MODE[module.mode]
    if cell != GRU_CELL or (reset_after := getattr(module, "reset_after", True)) is True:
        return cell
    return functional.gru_cell(reset_after)


def weights_of(module: RNNBase) -> list[Tensor]:
    """The weights of all layers as they are now, whoever put them there; not to be changed.

    Usually they are the parameters, and `_flat_weights` has the same. `torch.func.functional_call`
    puts other tensors in the parameters' place; `torch.nn.utils.parametrize`, pruning, weight_norm,
    DataParallel and others attributes; and a class that derives from ours may set `_flat_weights`.
    """
    parameters, flat = module._parameters, module._flat_weights
    try:
        for name, weight in zip(module._flat_weights_names, flat):  # noqa: B905, it takes longer
            if parameters[name] is not weight or weight is None:
                return _other_weights(module)
    except KeyError:
        return _other_weights(module)
    return flat  # type: ignore[return-value]


def _other_weights(module: RNNBase) -> list[Tensor]:
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
            _set_flat_weights(module, current if all(map(_is_parameter, current)) else known)
    for name, weight in zip(names, flat):  # noqa: B905, wrong counts are refused by the op
        check_weight(name, weight, AttributeError if name == names[0] else TypeError)
    return flat


def _set_flat_weights(module: RNNBase, weights: list[Any]) -> None:
    module._flat_weights = weights
    module._flat_weight_refs = [None if weight is None else ref(weight) for weight in weights]


def _is_parameter(weight: object) -> bool:
    return isinstance(weight, Parameter)


def _arguments_of(cls: type) -> list[str]:
    return [*signature(cls).parameters][:-1]  # without those of other names, to be refused


def _refuse_script(module: torch.nn.Module) -> NoReturn:
    """What `torch.jit.script` asks first: without it, it stumbles over an annotation somewhere."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile fusedrnn.{type(module).__name__}, whose Python is not "
        "TorchScript. Use torch.jit.trace, torch.export or torch.compile, or the module of "
        "torch.nn with the same state_dict"
    )


class _Unscriptable(list[str]):
    """Refuses a `torch.jit.ScriptModule` when it looks in, since it asks in no other way."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def __len__(self) -> int:
        _refuse_script(self._module)


def _record_call(module: torch.nn.Module, input: Any, *arguments: Any, **options: Any) -> Any:
    """The call with an `input` that is not a tensor: a node of the graph that torch.fx traces.

    torch.fx looks into all modules that are not torch.nn's, and comes here with a `Proxy`, which
    has no values. So we record what it would have recorded of one of torch.nn's.
    """
    if not isinstance(input, Proxy):
        reject_input(input)
    given = (input, *(argument for argument in arguments if argument is not None))
    named = {name: option for name, option in options.items() if option is not None}
    tracer: Any = input.tracer
    if tracer.root is module:
        raise TraceError(
            f"input: expected a torch.Tensor, got a Proxy: to torch.fx fusedrnn."
            f"{type(module).__name__} is one node of a graph, as torch.nn's is, and not a graph "
            "itself; trace a model that has it"
        )
    return tracer.create_proxy("call_module", tracer.path_of_module(module), given, named)


class _Layers(RNNBase):
    """What RNN, LSTM and GRU share: from the module's arguments to `functional.run_layers`."""

    checkpoint: int | None = None
    """Class-level default: modules that `replace` converted, or older pickles, lack their own."""

    __prepare_scriptable__ = _refuse_script
    __jit_ignored_attributes__ = property(_Unscriptable)

    def __init__(self, *arguments: Any, checkpoint: int | None = None, **options: Any) -> None:
        check_checkpoint(checkpoint)
        super().__init__(*arguments, **options)
        self.checkpoint = checkpoint

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        names = self.__dict__.get("_flat_weights_names", ())
        if name in names and all(name in self._parameters for name in names):
            _set_flat_weights(self, [self._parameters[name] for name in names])

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made from; in `_flat_weights`, only parameters that the module owns."""
        state = self.__dict__.copy()
        del state["_flat_weight_refs"]  # made anew
        state["_flat_weights"] = [self._parameters.get(name) for name in self._flat_weights_names]
        return state

    def extra_repr(self) -> str:
        """The arguments that are not at their default."""
        text: str = super().extra_repr()
        return text if self.checkpoint is None else f"{text}, checkpoint={self.checkpoint}"

    def _run(
        self,
        input: Tensor,
        hx: Tensor | None,
        cx: Tensor | None,
        batch_sizes: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cell = cell_of(self)
        return functional.run_layers(
            cell,
            _NAME_OF_CELL[cell],
            input,
            hx,
            cx,
            weights_of(self),
            self.num_layers,
            self.bias,
            self.dropout if self.training else 0.0,
            self.bidirectional,
            self.batch_first,
            batch_sizes,
            lengths,
            self.checkpoint,
        )

    def _run_packed(
        self,
        input: PackedSequence,
        hx: Tensor | None,
        cx: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[PackedSequence, Tensor, Tensor]:
        """States come and go in the order of the sequences that the user packed."""
        if torch.onnx.is_in_onnx_export():  # said here: torch.export may fail on sizes of no value
            raise NotImplementedError(PACKED_IN_ONNX)
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None and sorted_indices is not None:
            cell, parts = cell_of(self), self.num_layers * (1 + self.bidirectional)
            check_states(cell, hx, cx, parts, len(sorted_indices), data, weights_of(self))
            hx = hx.index_select(1, sorted_indices)
            cx = None if cx is None else cx.index_select(1, sorted_indices)
        output, hn, cn = self._run(data, hx, cx, batch_sizes, lengths)
        if unsorted_indices is not None:
            hn = hn.index_select(1, unsorted_indices)
            cn = cn.index_select(1, unsorted_indices) if self.mode == "LSTM" else cn
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), hn, cn


class _OneState(_Layers):
    """What RNN and GRU share: their only state is h."""

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all layers over `input` from the states `hx`; see the class."""
        if isinstance(input, Tensor):
            output, hn, _ = self._run(input, hx, None, None, lengths)
            return output, hn
        if not isinstance(input, PackedSequence):
            return _record_call(self, input, hx, lengths=lengths)
        packed, hn, _ = self._run_packed(input, hx, None, lengths)
        return packed, hn


class RNN(_OneState):
    """Layers of Elman networks: `torch.nn.RNN` on fused kernels.

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in place of tanh

    Args:
        input_size: the features I of the input.
        hidden_size: the features H of the state.
        num_layers: how many layers stand on each other.
        nonlinearity: "tanh" or "relu".
        bias: whether there are biases.
        batch_first: whether input and output are [B, T, ...] and not [T, B, ...].
        dropout: the probability of a zero in the outputs of all layers but the last, in training.
        bidirectional: whether each layer also walks from the last step to the first.
        device, dtype: of the parameters.
        checkpoint: as in `LSTM`; accepted, but without effect: backward needs no gates here.

    **Calls.** Call it with `input`, [T, B, I] or as `batch_first` says, [T, I] for one sequence, or
    a `PackedSequence`; and `hx`, the first states [num_layers * D, B, H] ([num_layers * D, H] for
    one sequence), D the number of directions, or None for zeros. It returns the output of the last
    layer, [T, B, D*H] or laid out as the input, and the final states, laid out as `hx`.

    **Lengths.** A padded input may come with `lengths`, int64 or int32 [B] on any device: how many
    steps each sequence has, from 1 to T. Output after a sequence's end is zero, its final state is
    that of its last step, where the reverse direction begins, and no work is done for the padding.
    It is what `pack_padded_sequence` and `pad_packed_sequence` around the layers would compute, in
    one call and within one graph of `torch.compile` or `torch.export`.

    Raises:
        ValueError: a size or a probability is out of range, or a name unknown. In a call: the input
            is neither 2-D nor 3-D, or has another dtype than the weights.
        TypeError: an argument is of the wrong type, or unknown. In a call: a weight is not a
            tensor, or `lengths` is not a tensor of integers.
        RuntimeError: in a call: a size of `input`, `hx` or `lengths` does not fit, or a device or
            dtype is another than the module's.
        AttributeError: in a call: `input` or `hx` is not a tensor.

        >>> rnn = fusedrnn.RNN(10, 20, num_layers=2)
        >>> output, hn = rnn(torch.randn(5, 3, 10))
    """

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint: int | None = None,
        **unsupported: Any,
    ) -> None:
        if unsupported:
            reject_options(unsupported, "RNN", _arguments_of(RNN))
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.nonlinearity = nonlinearity
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, batch_first,
            dropout, bidirectional, device=device, dtype=dtype, checkpoint=checkpoint,
        )  # fmt: skip


@completed_from(RNN)
class GRU(_OneState):
    """Layers of gated recurrent units: `torch.nn.GRU` on fused kernels.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    What is not said here is as in `RNN`.

    Args:
        checkpoint: None, or the steps k of a chunk, to train in less memory; see `LSTM`.
        reset_after: whether the reset gate r comes after the recurrent product, as above and in
            torch.nn. If not it comes before it, n = tanh(W_in x + b_in + W_hn (r * h) + b_hn), as
            in the first version of Cho et al., 2014, in Keras with `reset_after=False` and in ONNX
            with `linear_before_reset=0`. The parameters have the same names and shapes, and make
            another network: torch.nn.GRU would load them and compute the wrong one. n then waits
            for r of all units, which makes two products of a step, and there are no int8 kernels.

        >>> gru = fusedrnn.GRU(10, 20, bidirectional=True)
        >>> output, hn = gru(torch.randn(5, 3, 10))
    """

    reset_after: bool = True
    """Class-level default: modules that `replace` converted, or older pickles, lack their own."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint: int | None = None,
        reset_after: bool = True,
        **unsupported: Any,
    ) -> None:
        if unsupported:
            reject_options(unsupported, "GRU", _arguments_of(GRU))
        check_reset_after(reset_after)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype, checkpoint=checkpoint,
        )  # fmt: skip
        self.reset_after = reset_after

    def extra_repr(self) -> str:
        """The arguments that are not at their default."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


@completed_from(RNN)
class LSTM(_Layers):
    """Layers of long short-term memory: `torch.nn.LSTM` on fused kernels.

        i, f, g, o = W_ih x + b_ih + W_hh h + b_hh
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c'), and W_hr times that with proj_size > 0

    What is not said here is as in `RNN`.

    Args:
        proj_size: the features R of h and of the output; 0 for no projection, R = H.
        checkpoint: None, or the steps k of a chunk, to train in less memory; see below.

    **Calls.** Call it with `input`, [T, B, I] or as `batch_first` says, [T, I] for one sequence, or
    a `PackedSequence`; and `hx`, the first states, a pair of h [num_layers * D, B, R] and
    c [num_layers * D, B, H] (without B for one sequence), D the number of directions, or None for
    zeros. It returns the output of the last layer, [T, B, D*R] or laid out as the input, and the
    pair of the final states, laid out as `hx`.

    **Checkpoints.** For backward a layer keeps its output and five values more for each unit and
    step (four in a GRU, three with `reset_after=False`). With `checkpoint=k` it keeps the output
    and, in an LSTM, one c for every k steps; backward computes the rest again, k steps at a time.
    So for each unit and sequence there are about 5 k + T / k values in place of 5 T, for the
    time of one more forward and something for every chunk. That is for sequences, batches or stacks
    which would not fit otherwise.

    k near the square root of T is a good start: less saves little and costs more, as every chunk
    reads all weights. k of T or more keeps no chunks; a stack then holds the five values of one
    layer at a time. Results and gradients are those of the same network up to rounding, and the
    same bits run after run. Where nothing needs a gradient it changes nothing. Second derivatives,
    `vmap` and forward mode are those of the plain PyTorch reference, which keeps every step. The
    attribute `checkpoint` may be set on a module that exists, such as one that `fusedrnn.replace`
    made.

        >>> lstm = fusedrnn.LSTM(10, 20, batch_first=True)
        >>> output, (hn, cn) = lstm(torch.randn(3, 5, 10))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint: int | None = None,
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device=device, dtype=dtype, checkpoint=checkpoint,
        )  # fmt: skip

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Runs all layers over `input` from the states `hx`; see the class."""
        if isinstance(input, Tensor):
            h, c = (None, None) if hx is None else split_state(hx)
            output, hn, cn = self._run(input, h, c, None, lengths)
            return output, (hn, cn)
        if not isinstance(input, PackedSequence):
            return _record_call(self, input, hx, lengths=lengths)
        h, c = (None, None) if hx is None else split_state(hx)
        packed, hn, cn = self._run_packed(input, h, c, lengths)
        return packed, (hn, cn)

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """The shape of c for this input."""
        parts, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return parts, batch, self.hidden_size

    def check_forward_args(  # type: ignore[override]
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Checks input and states as `forward` does, for classes that derive from this one."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def permute_hidden(  # type: ignore[override]
        self, hx: tuple[Tensor, Tensor], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The states with their sequences in another order."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)


class _Cell(RNNCellBase):
    """What RNNCell, LSTMCell and GRUCell share: from the module to `functional.run_cell`."""

    __prepare_scriptable__ = _refuse_script
    __jit_ignored_attributes__ = property(_Unscriptable)

    def _step(
        self, cell: int, input: Tensor, hx: Tensor | None, cx: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        names = _NAMES_IN_CELL[: 4 if self.bias else 2]
        parameters = self._parameters
        weights: Sequence[Tensor] = ()
        try:
            weights = [w for name in names if (w := parameters[name]) is not None]
        except KeyError:
            pass
        if len(weights) < len(names):
            weights = self._other_weights(names)
        return functional.run_cell(
            cell, type(self).__name__, input, hx, cx, weights, len(weights) == 4
        )

    def _other_weights(self, names: Sequence[str]) -> list[Tensor]:
        """The weights where they are not simply the parameters, see `weights_of`.

        As in torch.nn, a cell computes without a bias that was set to None.
        """
        w_ih, w_hh, *biases = (getattr(self, name) for name in names)
        check_weight("weight_ih", w_ih)
        check_weight("weight_hh", w_hh)
        given = [bias for bias in biases if bias is not None]
        if len(given) == 1:
            given = [torch.zeros_like(given[0]) if bias is None else bias for bias in biases]
        return [w_ih, w_hh, *given]


class RNNCell(_Cell):
    """One step of an Elman network: `torch.nn.RNNCell` on fused kernels.

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in place of tanh

    Args:
        input_size: the features I of the input.
        hidden_size: the features H of the state.
        bias: whether there are biases.
        nonlinearity: "tanh" or "relu".
        device, dtype: of the parameters.

    **Calls.** Call it with `input`, [B, I], or [I] for one sequence, and `hx`, [B, H] or [H], or
    None for zeros. It returns h', laid out as `hx`.

    Raises:
        ValueError: in a call: `input` or `hx` is neither 1-D nor 2-D.
        TypeError: an argument is unknown. In a call: a weight matrix is not a tensor.
        RuntimeError: a size is negative. In a call: a size, device or dtype of `input` or `hx` does
            not fit, or the nonlinearity is unknown.
        AttributeError: in a call: `input` or `hx` is not a tensor.
    """

    __constants__ = ["input_size", "hidden_size", "bias", "nonlinearity"]
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state."""
        if not isinstance(input, Tensor):
            return _record_call(self, input, hx)
        if self.nonlinearity == "tanh":
            return self._step(RNN_TANH, input, hx, None)[0]
        if self.nonlinearity == "relu":
            return self._step(RNN_RELU, input, hx, None)[0]
        raise RuntimeError(
            f"Unknown nonlinearity: {self.nonlinearity}. Select from 'tanh' or 'relu'."
        )


@completed_from(RNNCell)
class LSTMCell(_Cell):
    """One step of long short-term memory: `torch.nn.LSTMCell` on fused kernels.

    The equations are those of `LSTM`. What is not said here is as in `RNNCell`.

    **Calls.** Call it with `input`, [B, I], or [I] for one sequence, and `hx`, a pair of h and c,
    [B, H] or [H], or None for zeros. It returns the pair of h' and c', laid out as `hx`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next state, (h', c')."""
        if not isinstance(input, Tensor):
            return _record_call(self, input, hx)
        h, c = (None, None) if hx is None else split_state(hx)
        return self._step(LSTM_CELL, input, h, c)


@completed_from(RNNCell)
class GRUCell(_Cell):
    """One step of a gated recurrent unit: `torch.nn.GRUCell` on fused kernels.

    The equations are those of `GRU`. What is not said here is as in `RNNCell`.

    Args:
        reset_after: whether the reset gate comes after the recurrent product, as in `GRU`.
    """

    reset_after: bool = True
    """Class-level default: modules that `replace` converted, or older pickles, lack their own."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        check_reset_after(reset_after)
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.reset_after = reset_after

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state."""
        if not isinstance(input, Tensor):
            return _record_call(self, input, hx)
        return self._step(functional.gru_cell(self.reset_after), input, hx, None)[0]

    def extra_repr(self) -> str:
        """The arguments that are not at their default."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")
