"""The modules: torch.nn's recurrent networks and cells on fused kernels.

Each class takes the arguments of its namesake in torch.nn, makes the same parameters from the same
seed, keeps them under the same names and gives results of the same shapes and layouts. Derived from
`torch.nn.RNNBase` and `RNNCellBase`, which own the parameters: names, initialisation, pickling, and
`_flat_weights`, which other code reads. What is computed, and what is refused, is in functional.py.

The classes do not derive from `torch.nn.LSTM` and its like: torch.compile knows these by name and
does not trace them.

The facts of a cell (cells/facts.py) say what its layers have. RNN, LSTM and GRU leave their
parameters to torch; layers of a compiled cell that torch does not have are a class derived from
`_Recurrent`, with a docstring and the cell's name, and an entry in `__all__`. `Recurrent` has the
layers of cells that users write.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, overload

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.fx.proxy import TraceError
from torch.nn import Parameter
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.utils.rnn import PackedSequence

from fusedrnn import functional
from fusedrnn._engine import torch_private
from fusedrnn._engine.checks import (
    PACKED_IN_ONNX,
    as_given,
    check_bool,
    check_checkpoint,
    check_forget_bias,
    check_hidden_sizes,
    check_init,
    check_reset_after,
    check_residual,
    check_states,
    check_weight,
    reject_input,
    reject_options,
    states_of,
)
from fusedrnn._engine.docstrings import completed_from
from fusedrnn._engine.dropouts import Dropouts, dropouts_of
from fusedrnn._engine.parameters import initialise, set_forget_bias, weights_of_layers
from fusedrnn.cells import (
    CELLS,
    PARAMETER,
    Cell,
    WrittenCell,
    by_option,
    cell_named,
    cell_of_written,
)
from fusedrnn.functional import Extras

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Recurrent", "RecurrentCell"]

CELL_OF_MODE = {cell.name.upper(): cell for cell in CELLS}
"""The cell of a module's `mode`, which names it in capitals, as torch.nn's modules have it."""

_RNNS = by_option("RNN", "nonlinearity")
_LSTM = cell_named("lstm")


def cell_of(module: RNNBase) -> Cell:
    """The cell of a module, torch.nn's or ours.

    A mode does not say where a GRU's reset gate is. torch.nn's has no `reset_after`, and is as if
    it were true.
    """
    written: Cell | None = module.__dict__.get("_written")
    if written is not None:
        return written
    cell = CELL_OF_MODE[module.mode]
    if "reset_after" not in cell.options:
        return cell
    return functional.gru_of(getattr(module, "reset_after", True))


def check_recurrent(module: Any) -> None:
    """Checks that a module is one whose layers we can run: ours or torch.nn's."""
    known = isinstance(module, RNNBase) and (
        isinstance(module, Recurrent) or getattr(module, "mode", None) in CELL_OF_MODE
    )
    if not known:
        raise TypeError(
            "module: expected an LSTM, GRU or RNN of fusedrnn or torch.nn, or a Recurrent, got "
            f"{type(module).__name__}"
        )


def states_as_given(module: RNNBase, states: Sequence[Tensor]) -> Any:
    """States of a module, torch.nn's or ours, as its users have them."""
    return module._as_given(states) if isinstance(module, _Layers) else as_given(states)


def weights_of(module: RNNBase) -> list[Tensor]:
    """The weights of all layers as they are now, whoever put them there; not to be changed.

    Usually they are the parameters, and `_flat_weights` has the same. `torch.func.functional_call`
    puts other tensors in the parameters' place; `torch.nn.utils.parametrize`, pruning, weight_norm,
    DataParallel and others attributes; and a class that derives from ours may set `_flat_weights`.
    """
    weights = torch_private.parameters_of(module)
    return _other_weights(module) if weights is None else weights


def extras_of(module: RNNBase) -> Extras | None:
    """What calls of a module have that torch.nn's have not; None for nothing."""
    return module.__dict__.get("_extras")  # torch.nn's have none, and take long to say so


def _other_weights(module: RNNBase) -> list[Tensor]:
    weights = torch_private.other_weights_of(module)
    error: type[Exception] = AttributeError  # torch.nn's, for the first
    for name, weight in weights.items():
        check_weight(name, weight, error)
        error = TypeError
    return [*weights.values()]


def _arguments_of(cls: type) -> list[str]:
    return [*signature(cls).parameters][:-1]  # without those of other names, to be refused


def _refuse_script(module: torch.nn.Module) -> NoReturn:
    """What `torch.jit.script` asks first: without it, it stumbles over an annotation somewhere."""
    others = "torch.jit.trace, torch.export or torch.compile"
    if not isinstance(module, Recurrent | RecurrentCell):  # torch has no such module
        others += ", or the module of torch.nn with the same state_dict"
    raise NotImplementedError(
        f"torch.jit.script cannot compile fusedrnn.{type(module).__name__}, whose Python is not "
        f"TorchScript. Use {others}"
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
    named = {
        name: value for name, value in options.items() if value is not None and value is not False
    }
    tracer: Any = input.tracer
    if tracer.root is module:
        raise TraceError(
            f"input: expected a torch.Tensor, got a Proxy: to torch.fx fusedrnn."
            f"{type(module).__name__} is one node of a graph, as torch.nn's is, and not a graph "
            "itself; trace a model that has it"
        )
    return tracer.create_proxy("call_module", tracer.path_of_module(module), given, named)


_NO_EXTRAS = Extras()

_MODES_OF_TORCH = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")

_DROPOUTS = (
    "input_dropout", "output_dropout", "recurrent_dropout", "zoneout", "weight_dropout",
    "dropout_mask",
)  # fmt: skip
"""The arguments of `dropouts_of`, which are attributes of a module, too."""

_OPTIONS = (
    *_DROPOUTS, "residual", "learn_initial_state", "states_batch_first", "init", "forget_bias",
)  # fmt: skip
"""The arguments that torch.nn's modules do not have; as attributes, checked when they are set."""


class _Layers(RNNBase):
    """What RNN, LSTM and GRU share: from the module's arguments to `functional.run_network`."""

    checkpoint: int | None = None
    """Class-level default: modules that `replace` converted, or older pickles, lack their own."""
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: float | Sequence[float] = 0.0
    weight_dropout: float = 0.0
    dropout_mask: str = "sequence"
    residual: bool = False
    learn_initial_state: bool = False
    states_batch_first: bool = False
    init: str = "uniform"
    forget_bias: float | None = None
    _sizes: tuple[int, ...] = ()  # of each layer, if they are given so
    _written: Cell | None = None  # a cell that a user wrote; `cell_of` looks for it
    _extras: Extras | None = None  # what every call has that torch.nn's has not, if anything

    __prepare_scriptable__ = _refuse_script
    __jit_ignored_attributes__ = property(_Unscriptable)

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int,
        *arguments: Any,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        checkpoint: int | None,
        written: Cell | None = None,
        **options: Any,
    ) -> None:
        check_checkpoint(checkpoint)
        sizes: Sequence[int] = ()
        size: Any = hidden_size  # of whatever type, for torch's checks
        if isinstance(hidden_size, (list, tuple)):
            check_hidden_sizes(hidden_size, num_layers)
            sizes, size, num_layers = hidden_size, min(hidden_size), len(hidden_size)
        of_torch = mode in _MODES_OF_TORCH and not sizes
        # Where torch can't make the weights, we want only the base's checks and attributes; the
        # weights that it makes, on the meta device, are replaced below.
        base: dict[str, Any] = {"device": device if of_torch else "meta", "dtype": dtype}
        super().__init__(
            mode if mode in _MODES_OF_TORCH else "RNN_TANH", input_size, size, num_layers,
            *arguments, **base,
        )  # fmt: skip
        self.mode = mode
        if written is not None:
            self._written = written
        self.checkpoint = checkpoint
        if sizes:
            self._sizes = self.hidden_size = tuple(sizes)  # type: ignore[assignment]
            self._extras = self._extras_of_calls()
        if not of_torch:
            weights = weights_of_layers(
                cell_of(self), input_size, self._sizes or [size] * num_layers,
                self.proj_size, self.bias, 1 + self.bidirectional, device, dtype,
            )  # fmt: skip
            torch_private.register_weights(self, weights)
        for name, value in options.items():
            if type(value) is not type(getattr(self, name)) or value != getattr(self, name):
                setattr(self, name, value)
        if not of_torch or self.init != "uniform":
            self.reset_parameters()
        elif self.forget_bias is not None:
            self._set_forget_bias()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OPTIONS:
            super().__setattr__(name, value)
            torch_private.keep_up_flat_weights(self, name)
            return
        if isinstance(value, list):
            value = tuple(value)
        self._check_option(name, value)
        if name == "learn_initial_state":
            self._keep_initial_states(value)
        super().__setattr__(name, value)
        self._extras = self._extras_of_calls()

    def _check_option(self, name: str, value: Any) -> None:
        if name in _DROPOUTS:
            self._dropouts(**{name: value})
        elif name == "init":
            check_init(value)
        elif name == "forget_bias":
            check_forget_bias(value, self.bias, cell_of(self))
        else:
            check_bool(name, value)
        if name == "residual" and value:
            sizes = self._sizes or (self.hidden_size,) * self.num_layers
            check_residual([self.proj_size or size for size in sizes])

    def _dropouts(self, **changed: Any) -> Dropouts | None:
        arguments = {name: getattr(self, name) for name in _DROPOUTS} | changed
        return dropouts_of(cell_of(self), *arguments.values())

    def _extras_of_calls(self) -> Extras | None:
        extras = Extras(
            dropouts=self._dropouts(),
            residual=self.residual,
            by_layer=bool(self._sizes),
            states_batch_first=self.states_batch_first,
        )
        return extras if self.learn_initial_state or extras != _NO_EXTRAS else None

    def _keep_initial_states(self, learned: bool) -> None:
        """Makes the parameters that `learn_initial_state` wants, zeros, or drops them."""
        cell = cell_of(self)
        for layer, names in enumerate(self._names_of_initial_states()):
            w_hh = getattr(self, f"weight_hh_l{layer}")
            for name, width in zip(names, cell.widths(w_hh), strict=True):
                if not learned:
                    self._parameters.pop(name, None)
                elif not hasattr(self, name):  # a parametrized one is no parameter
                    state = w_hh.new_zeros(1 + self.bidirectional, width)
                    self.register_parameter(name, Parameter(state))

    def _names_of_initial_states(self) -> list[list[str]]:
        states = cell_of(self).states
        return [[f"{state}_0_l{layer}" for state in states] for layer in range(self.num_layers)]

    def _initial_states(self) -> list[Tensor]:
        """The states [parts, W] of a sequence that is given none; none for zeros."""
        if not self.learn_initial_state:
            return []
        names = self._names_of_initial_states()
        of_states = [[getattr(self, name) for name in each] for each in zip(*names, strict=True)]
        if self._sizes:
            return [state for states in of_states for state in states]
        return [torch.cat(states) for states in of_states]

    def reset_parameters(self) -> None:
        """Initialises all parameters anew: as `init` and `forget_bias` say, states with zeros."""
        if self.init == "uniform" and not self._sizes and self._written is None:
            super().reset_parameters()
        else:
            for weights in self._weights_of_directions():
                initialise(cell_of(self), weights, self.init)
        if self.forget_bias is not None:
            self._set_forget_bias()
        if self.learn_initial_state:
            for name in (name for names in self._names_of_initial_states() for name in names):
                torch.nn.init.zeros_(getattr(self, name))

    def _set_forget_bias(self) -> None:
        for weights in self._weights_of_directions():
            set_forget_bias(cell_of(self), weights, float(self.forget_bias or 0))

    def flatten_parameters(self) -> None:
        """Does what torch.nn's does: lays the weights out as one block for cuDNN.

        Our kernels do not need it. Nothing is done where cuDNN has no such network: layers of
        several sizes, or a cell that torch does not have.
        """
        if not self._sizes and self.mode in _MODES_OF_TORCH:
            super().flatten_parameters()

    def _weights_of_directions(self) -> list[dict[str, Tensor]]:
        roles = cell_of(self).roles(self.bias, self.proj_size > 0)
        return [
            {role: getattr(self, name) for role, name in zip(roles, names, strict=True)}
            for names in self._all_weights
        ]

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made from."""
        state = torch_private.state_with_parameters(self)
        state.pop("_extras", None)  # follows from the others
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._extras = self._extras_of_calls()

    def extra_repr(self) -> str:
        """The arguments that are not at their default."""
        text: str = super().extra_repr()
        for name in ("checkpoint", *_OPTIONS):
            value = getattr(self, name)
            if value != getattr(_Layers, name):
                text += f", {name}={value!r}"
        return text

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        reset_states: Any = None,
        return_states: bool = False,
    ) -> Any:
        """Runs all layers over `input` from the states `hx`; see the class."""
        extras = self._extras
        as_in_torch = extras is None and reset is reset_states is cu_seqlens is None
        if as_in_torch and return_states is False and isinstance(input, Tensor):
            cell = cell_of(self)  # a path of its own: small networks would feel the rest
            states = () if hx is None else states_of(cell, hx)
            y, hn, _ = self._run(cell, input, states, None, lengths, None)
            return y, as_given(hn)
        if not isinstance(input, (Tensor, PackedSequence)):
            return _record_call(
                self, input, hx, lengths=lengths, cu_seqlens=cu_seqlens, reset=reset,
                reset_states=reset_states, return_states=return_states,
            )  # fmt: skip
        if return_states or not as_in_torch:
            extras = (extras or _NO_EXTRAS)._replace(
                reset=reset, reset_states=reset_states, return_states=return_states,
                training=self.training, cu_seqlens=cu_seqlens, initial=self._initial_states(),
            )  # fmt: skip
        cell = cell_of(self)
        states = states_of(cell, hx, layers=len(self._sizes))
        results: tuple[Any, Sequence[Any], Sequence[Any]]
        if isinstance(input, Tensor):
            results = self._run(cell, input, states, None, lengths, extras)
        else:
            results = self._run_packed(cell, input, states, lengths, extras)
        output, hn, every = results
        if return_states:
            return output, self._as_given(hn), self._as_given(every)
        return output, self._as_given(hn)

    def _as_given(self, states: Sequence[Any]) -> Any:
        """States as users have them; with a size for each layer, each state is a tuple."""
        layers = len(self._sizes)
        if layers:
            states = [tuple(states[i : i + layers]) for i in range(0, len(states), layers)]
        return as_given(states)

    def _run_packed(
        self,
        cell: Cell,
        input: PackedSequence,
        hx: Sequence[Tensor],
        lengths: Tensor | Sequence[int] | None,
        extras: Extras | None,
    ) -> tuple[PackedSequence, Sequence[Tensor], Sequence[PackedSequence]]:
        """States come and go in the order of the sequences that the user packed."""
        if torch.onnx.is_in_onnx_export():  # said here: torch.export may fail on sizes of no value
            raise NotImplementedError(PACKED_IN_ONNX)
        data, batch_sizes, sorted_indices, unsorted_indices = input
        sequences = 0 if self.states_batch_first else 1
        if hx and sorted_indices is not None:
            layers, directions = self.num_layers, 1 + self.bidirectional
            weights, by_layer = weights_of(self), bool(self._sizes)
            shapes = functional.shapes_of_states(cell, layers, directions, weights, by_layer)
            check_states(cell, hx, shapes, len(sorted_indices), data, self.states_batch_first)
            hx = [state.index_select(sequences, sorted_indices) for state in hx]
        if extras is not None:
            extras = extras._replace(order=sorted_indices)
        output, hn, every = self._run(cell, data, hx, batch_sizes, lengths, extras)
        if unsorted_indices is not None:
            hn = [state.index_select(sequences, unsorted_indices) for state in hn]

        def packed(data: Tensor) -> PackedSequence:
            return PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices)

        return packed(output), hn, [packed(each) for each in every]

    def _run(
        self,
        cell: Cell,
        input: Tensor,
        hx: Sequence[Tensor],
        batch_sizes: Tensor | None,
        lengths: Tensor | Sequence[int] | None,
        extras: Extras | None,
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        dropout = self.dropout if self.training else 0.0
        weights = torch_private.parameters_of(self)
        if weights is None:
            weights = _other_weights(self)
        network = functional.network_of(
            cell, cell.module, self.num_layers, self.bias, self.proj_size > 0, self.bidirectional,
            self.batch_first, self.checkpoint,
        )  # fmt: skip
        return functional.run_network(
            network, dropout, input, hx, weights, batch_sizes, lengths, extras
        )


class _OneState(_Layers):
    """What RNN and GRU share: their only state is h."""

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def forward(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Tensor | Sequence[int] | None = None,
            cu_seqlens: Tensor | None = None,
            reset: Tensor | None = None,
            reset_states: Tensor | None = None,
            return_states: Literal[False] = False,
        ) -> tuple[Tensor, Tensor]: ...

        @overload
        def forward(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Tensor | Sequence[int] | None = None,
            cu_seqlens: Tensor | None = None,
            reset: Tensor | None = None,
            reset_states: Tensor | None = None,
            return_states: Literal[True],
        ) -> tuple[Tensor, Tensor, Tensor]: ...

        @overload
        def forward(
            self,
            input: PackedSequence,
            hx: Tensor | None = None,
            *,
            reset: Tensor | None = None,
            reset_states: Tensor | None = None,
            return_states: Literal[False] = False,
        ) -> tuple[PackedSequence, Tensor]: ...

        @overload
        def forward(
            self,
            input: PackedSequence,
            hx: Tensor | None = None,
            *,
            reset: Tensor | None = None,
            reset_states: Tensor | None = None,
            return_states: Literal[True],
        ) -> tuple[PackedSequence, Tensor, PackedSequence]: ...

        def forward(self, input: Any, hx: Any = None, **options: Any) -> Any: ...


class RNN(_OneState):
    """Layers of Elman networks: `torch.nn.RNN` on fused kernels.

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in place of tanh

    Args:
        input_size: the features I of the input.
        hidden_size: the features H of the state, or a list of them, one for each layer.
        num_layers: how many layers stand on each other; given by `hidden_size` if that is a list.
        nonlinearity: "tanh" or "relu".
        bias: whether there are biases.
        batch_first: whether input and output are [B, T, ...] and not [T, B, ...].
        dropout: the probability of a zero in the outputs of all layers but the last, in training.
        bidirectional: whether each layer also walks from the last step to the first.
        device, dtype: of the parameters.
        checkpoint: as in `LSTM`; accepted, but without effect: backward needs no gates here.
        input_dropout, output_dropout: the probability of a zero in the input, or in the output, of
            each layer, in training.
        recurrent_dropout: the same in what W_hh multiplies, h of the step before.
        zoneout: the probability that a unit keeps its state of the step before, or one for each
            state, as (h, c) of an LSTM.
        weight_dropout: the probability of a zero in W_hh, in training.
        dropout_mask: whether input, output and recurrent dropouts have a mask for each "sequence",
            the same at all of its steps, or one for each "step".
        residual: whether the input of each layer but the first is added to its output, if both have
            as many features; after dropout, and not in its states.
        learn_initial_state: whether the states that a sequence begins with where none are given are
            parameters, zero at first: `h_0_l0` [D, H], ..., a row for each direction.
        states_batch_first: whether states of a batch are [B, num_layers * D, H], those of every
            step [B, T, num_layers * D, H]: `hx`, `reset_states` and results.
        init: how parameters begin. "uniform" is torch's way. "orthogonal" is that of Keras: W_hh
            (and W_hr) of each gate orthogonal (Saxe et al., 2014), W_ih of each gate uniform as
            Glorot and Bengio (2010) have it, biases zero.

    **Calls.** Call it with `input`, [T, B, I] or as `batch_first` says, [T, I] for one sequence, or
    a `PackedSequence`; and `hx`, the first states [num_layers * D, B, H] ([num_layers * D, H] for
    one sequence), D the number of directions, or None for zeros. It returns the output of the last
    layer, [T, B, D*H] or laid out as the input, and the final states, laid out as `hx`. Where
    `hidden_size` is a list, a tuple of one tensor for each layer, [D, B, H] with its own H, is in
    the place of each such state, given or returned.

    **Lengths.** A padded input may come with `lengths`, int64 or int32 [B] on any device or a list
    of ints: how many steps each sequence has, from 0 to T. Output after a sequence's end is zero,
    its final state is that of its last step, where the reverse direction begins, and no work is
    done for the padding; a sequence of no steps keeps its state. It is what `pack_padded_sequence`
    and `pad_packed_sequence` around the layers would compute, in one call and within one graph of
    `torch.compile` or `torch.export`. Sequences may also come without padding: one after the other
    as [N, I] with `cu_seqlens`, int64 or int32 [B + 1], the rows where each begins and the end; or,
    if `batch_first`, as a jagged tensor of `torch.nested`. The output is laid out in the same way.

    **Resets.** With `reset`, bool, uint8 or float of 0 and 1, [T, B] or [B, T] as `batch_first`
    says ([T] for one sequence, [N] with `cu_seqlens`), a sequence begins anew with every step that
    is marked: each part is computed as if run by itself, also by the reverse direction, and no
    gradient leaves it. Its states begin with zeros, or with `reset_states`: laid out as `hx`, or
    [T, num_layers * D, B, H] for every step, of which those of marked steps are read, and get a
    gradient. A first step that is marked does not see `hx`. (TorchRL calls this `is_init`.)

    **States.** With `return_states=True` there is a third result, the states of every layer and
    direction after every step: h [num_layers * D, T, B, H], with T and B as in the output; all
    states of an LSTM, as a pair. For a `PackedSequence` they are packed, [N, num_layers * D, H].

    **Dropouts.** With a mask for each sequence, input and recurrent dropout are those of Gal and
    Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks",
    2016. Zoneout is that of Krueger et al., "Zoneout: regularizing RNNs by randomly preserving
    hidden activations", 2017: in training a unit keeps its state or not, at each step anew; in
    evaluation it keeps as much of it as is expected. Weight dropout is that of Merity, Keskar and
    Socher, "Regularizing and optimizing LSTM language models", 2018. What is not zero is scaled, as
    torch's dropout does it. Masks come from torch's generator of the device, and all arguments may
    be changed as attributes.

    Raises:
        ValueError: a size or a probability is out of range, or a name unknown. In a call: the input
            is neither 2-D nor 3-D, or has another dtype than the weights; `reset` has other values
            than 0 and 1; or arguments exclude each other.
        TypeError: an argument is of the wrong type, or unknown. In a call: a weight is not a
            tensor, or `lengths` is not a tensor of integers.
        RuntimeError: in a call: a size of `input`, `hx`, `lengths`, `reset` or `reset_states` does
            not fit, or a device or dtype is another than the module's.
        NotImplementedError: in a call within a graph: `cu_seqlens`.
        AttributeError: in a call: `input` or `hx` is not a tensor.

        >>> rnn = fusedrnn.RNN(10, 20, num_layers=2)
        >>> output, hn = rnn(torch.randn(5, 3, 10))
    """

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
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
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        weight_dropout: float = 0.0,
        dropout_mask: str = "sequence",
        residual: bool = False,
        learn_initial_state: bool = False,
        states_batch_first: bool = False,
        init: str = "uniform",
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
            input_dropout=input_dropout, output_dropout=output_dropout,
            recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout,
            dropout_mask=dropout_mask, residual=residual, learn_initial_state=learn_initial_state,
            states_batch_first=states_batch_first, init=init,
        )  # fmt: skip


class _WithResetGate(torch.nn.Module):
    """What GRU and GRUCell share."""

    reset_after: bool = True
    """Class-level default: modules that `replace` converted, or older pickles, lack their own."""

    def extra_repr(self) -> str:
        """The arguments that are not at their default."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


@completed_from(RNN)
class GRU(_WithResetGate, _OneState):
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
            in Cho et al., 2014 (arXiv v3), in Keras with `reset_after=False` and in ONNX with
            `linear_before_reset=0`. The parameters have the same names and shapes, and make
            another network: torch.nn.GRU would load them and compute the wrong one. n then waits
            for r of all units, which makes two products of a step, and there are no int8 kernels.

        >>> gru = fusedrnn.GRU(10, 20, bidirectional=True)
        >>> output, hn = gru(torch.randn(5, 3, 10))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        checkpoint: int | None = None,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        weight_dropout: float = 0.0,
        dropout_mask: str = "sequence",
        residual: bool = False,
        learn_initial_state: bool = False,
        states_batch_first: bool = False,
        init: str = "uniform",
        reset_after: bool = True,
        **unsupported: Any,
    ) -> None:
        if unsupported:
            reject_options(unsupported, "GRU", _arguments_of(GRU))
        check_reset_after(reset_after)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype, checkpoint=checkpoint,
            input_dropout=input_dropout, output_dropout=output_dropout,
            recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout,
            dropout_mask=dropout_mask, residual=residual, learn_initial_state=learn_initial_state,
            states_batch_first=states_batch_first, init=init,
        )  # fmt: skip
        self.reset_after = reset_after


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
        forget_bias: the first bias of the forget gate, the sum of its two; 1.0 lets a cell begin
            with remembering (Jozefowicz et al., 2015). None leaves both to `init`.

    **Calls.** Call it with `input`, [T, B, I] or as `batch_first` says, [T, I] for one sequence, or
    a `PackedSequence`; and `hx`, the first states, a pair of h [num_layers * D, B, R] and
    c [num_layers * D, B, H] (without B for one sequence), D the number of directions, or None for
    zeros. It returns the output of the last layer, [T, B, D*R] or laid out as the input, and the
    pair of the final states, laid out as `hx`. Where `hidden_size` is a list, a tuple of one tensor
    for each layer, [D, B, H] with its own H, is in the place of each such state, given or returned.

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
        hidden_size: int | Sequence[int],
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
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        weight_dropout: float = 0.0,
        dropout_mask: str = "sequence",
        residual: bool = False,
        learn_initial_state: bool = False,
        states_batch_first: bool = False,
        init: str = "uniform",
        forget_bias: float | None = None,
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device=device, dtype=dtype, checkpoint=checkpoint,
            input_dropout=input_dropout, output_dropout=output_dropout,
            recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout,
            dropout_mask=dropout_mask, residual=residual, learn_initial_state=learn_initial_state,
            states_batch_first=states_batch_first, init=init, forget_bias=forget_bias,
        )  # fmt: skip

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def forward(
            self,
            input: Tensor,
            hx: tuple[Tensor, Tensor] | None = None,
            *,
            lengths: Tensor | Sequence[int] | None = None,
            cu_seqlens: Tensor | None = None,
            reset: Tensor | None = None,
            reset_states: tuple[Tensor, Tensor] | None = None,
            return_states: Literal[False] = False,
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

        @overload
        def forward(
            self,
            input: Tensor,
            hx: tuple[Tensor, Tensor] | None = None,
            *,
            lengths: Tensor | Sequence[int] | None = None,
            cu_seqlens: Tensor | None = None,
            reset: Tensor | None = None,
            reset_states: tuple[Tensor, Tensor] | None = None,
            return_states: Literal[True],
        ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]: ...

        @overload
        def forward(
            self,
            input: PackedSequence,
            hx: tuple[Tensor, Tensor] | None = None,
            *,
            reset: Tensor | None = None,
            reset_states: tuple[Tensor, Tensor] | None = None,
            return_states: Literal[False] = False,
        ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

        @overload
        def forward(
            self,
            input: PackedSequence,
            hx: tuple[Tensor, Tensor] | None = None,
            *,
            reset: Tensor | None = None,
            reset_states: tuple[Tensor, Tensor] | None = None,
            return_states: Literal[True],
        ) -> tuple[
            PackedSequence, tuple[Tensor, Tensor], tuple[PackedSequence, PackedSequence]
        ]: ...

        def forward(self, input: Any, hx: Any = None, **options: Any) -> Any: ...

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


class _Recurrent(_Layers):
    """Layers of a cell that torch does not have; a class derived from this says which one,

        class PeepholeLSTM(_Recurrent):
            cell = "lstm_peephole"

    and has the arguments of `LSTM`, in its order, with its checks; `proj_size` only if the cell can
    be projected. Parameters are named after their roles (`cells.PARAMETER`), and initialised as
    torch does it, uniform from -1/sqrt(H) to 1/sqrt(H), one after the other.
    """

    cell: ClassVar[str]

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
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
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        weight_dropout: float = 0.0,
        dropout_mask: str = "sequence",
        residual: bool = False,
        learn_initial_state: bool = False,
        states_batch_first: bool = False,
        init: str = "uniform",
        forget_bias: float | None = None,
    ) -> None:
        cell = cell_named(self.cell)
        if proj_size and not cell.projects:
            raise ValueError(f"proj_size: expected 0 for {type(self).__name__}, got {proj_size}")
        super().__init__(
            cell.name.upper(), input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size, device=device, dtype=dtype, checkpoint=checkpoint,
            input_dropout=input_dropout, output_dropout=output_dropout,
            recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout,
            dropout_mask=dropout_mask, residual=residual, learn_initial_state=learn_initial_state,
            states_batch_first=states_batch_first, init=init, forget_bias=forget_bias,
        )  # fmt: skip


class Recurrent(_Layers):
    """Layers of a cell of one's own, on fused kernels.

        @fusedrnn.cell(gates="f n")
        def mgu(x, u, h):
            f = torch.sigmoid(x.f + u.f)
            n = torch.tanh(x.n + f * u.n)
            return (1 - f) * h + f * n

        rnn = fusedrnn.Recurrent(mgu, 100, 128, num_layers=2, bidirectional=True)

    What is not said here is as in `RNN`, or as in `LSTM` for a cell of several states: arguments,
    calls and results are the same. See `fusedrnn.cell` for what a cell may be.

    The module keeps the cell's program and not the function. So it can be pickled, copied, compiled
    and exported where the function is not known, and later changes of the function, or of numbers
    that it took from outside, have no effect.

    On the CPU the fused kernels run the program. On other devices no kernels do yet: PyTorch's
    functions run it step by step, which gives the same numbers slowly.

    Args:
        cell: what `fusedrnn.cell` made of a function, or the text of its program.
        proj_size: the features R of h and of the output, 0 for no projection: for cells whose h
            reaches the next step only through the recurrent products.

    Weights are named as in torch.nn. `weight_ih_l0` has rows for the gates whose input the cell
    uses, `weight_hh_l0` for those whose recurrent product it uses, both in the order of the cell's
    `gates`; `weight_unit_l0` [K, H] are the weights per unit of a cell that has them. They begin as
    `init` says, and the weights per unit as the cell says.

    Raises:
        TypeError: `cell` is no such cell.
        ValueError: `proj_size` is not 0 and the cell's h reaches the next step otherwise.
    """

    def __init__(
        self,
        cell: WrittenCell | str,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        checkpoint: int | None = None,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        weight_dropout: float = 0.0,
        dropout_mask: str = "sequence",
        residual: bool = False,
        learn_initial_state: bool = False,
        states_batch_first: bool = False,
        init: str = "uniform",
        forget_bias: float | None = None,
    ) -> None:
        super().__init__(
            "RECURRENT", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size, device=device, dtype=dtype, checkpoint=checkpoint,
            written=cell_of_written(cell, proj_size != 0), input_dropout=input_dropout,
            output_dropout=output_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout,
            weight_dropout=weight_dropout, dropout_mask=dropout_mask, residual=residual,
            learn_initial_state=learn_initial_state, states_batch_first=states_batch_first,
            init=init, forget_bias=forget_bias,
        )  # fmt: skip

    @property
    def cell(self) -> Cell:
        """What the cell has, as `fusedrnn.cells.Cell` says it."""
        return cell_of(self)

    def extra_repr(self) -> str:
        """The cell, and the arguments that are not at their default."""
        return f"{self.cell}, {super().extra_repr()}"


_NAMES_IN_CELL: dict[tuple[str, bool], list[str]] = {}  # by `Cell.spec`


def _names_in_cell(cell: Cell, biases: bool) -> list[str]:
    """The parameters of one step. (Compilers warn of a `functools.cache`.)"""
    names = _NAMES_IN_CELL.get((cell.spec, biases))
    if names is None:
        names = [PARAMETER[role] for role in cell.roles(biases, False)]
        _NAMES_IN_CELL[cell.spec, biases] = names
    return names


class _Cell(RNNCellBase):
    """What RNNCell, LSTMCell and GRUCell share: from the module to `functional.run_cell`."""

    __prepare_scriptable__ = _refuse_script
    __jit_ignored_attributes__ = property(_Unscriptable)

    def _cell(self) -> Cell:
        """The cell that the module's attributes, as they are now, describe."""
        raise NotImplementedError

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The next state, or the tuple of the next states."""
        if not isinstance(input, Tensor):
            return _record_call(self, input, hx)
        cell = self._cell()
        weights, biases = self._weights(_names_in_cell(cell, self.bias))
        states = states_of(cell, hx)
        name = type(self).__name__
        return as_given(functional.run_cell(cell, name, input, states, weights, biases))

    def _weights(self, names: Sequence[str]) -> tuple[Sequence[Tensor], bool]:
        """The weights as they are now, see `weights_of`, and whether there are biases.

        As in torch.nn, a cell computes without a bias that was set to None.
        """
        parameters = self._parameters
        try:
            weights = [weight for name in names if (weight := parameters[name]) is not None]
            if len(weights) == len(names):
                return weights, self.bias
        except KeyError:
            pass
        found = {name: getattr(self, name) for name in names}
        biases = {name: found.pop(name) for name in names if name.startswith("bias")}
        for name, weight in found.items():
            check_weight(name, weight)
        given = [bias for bias in biases.values() if bias is not None]
        if not given:
            return [*found.values()], False
        return [
            *found.values(),
            *(torch.zeros_like(given[0]) if bias is None else bias for bias in biases.values()),
        ], True


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

    def _cell(self) -> Cell:
        if self.nonlinearity not in _RNNS:
            raise RuntimeError(
                f"Unknown nonlinearity: {self.nonlinearity}. Select from 'tanh' or 'relu'."
            )
        return _RNNS[self.nonlinearity]

    if TYPE_CHECKING:

        def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...


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

    def _cell(self) -> Cell:
        return _LSTM

    if TYPE_CHECKING:

        def forward(
            self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
        ) -> tuple[Tensor, Tensor]: ...


@completed_from(RNNCell)
class GRUCell(_WithResetGate, _Cell):
    """One step of a gated recurrent unit: `torch.nn.GRUCell` on fused kernels.

    The equations are those of `GRU`. What is not said here is as in `RNNCell`.

    Args:
        reset_after: whether the reset gate comes after the recurrent product, as in `GRU`.
    """

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

    def _cell(self) -> Cell:
        return functional.gru_of(self.reset_after)

    if TYPE_CHECKING:

        def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...


@completed_from(RNNCell)
class RecurrentCell(_Cell):
    """One step of a cell of one's own, on fused kernels; see `Recurrent`.

    What is not said here is as in `RNNCell`, or as in `LSTMCell` for a cell of several states.

    Args:
        cell: what `fusedrnn.cell` made of a function, or the text of its program.

    Raises:
        TypeError: `cell` is no such cell.
    """

    def __init__(
        self,
        cell: WrittenCell | str,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        written = cell_of_written(cell)
        # The base makes weights for as many gates as it is told, and here W_ih and W_hh may have
        # different gates; so its own, of no value, are replaced.
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device="meta", dtype=dtype)
        self._written = written
        shapes = written.shapes(input_size, hidden_size, biases=bias)
        for role, shape in shapes.items():
            weight = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(PARAMETER[role], Parameter(weight))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises all parameters anew: uniform, and the weights per unit as the cell says."""
        written: Cell | None = self.__dict__.get("_written")
        if written is not None:  # else the base's, while it is made
            roles = written.roles(self.bias, False)
            initialise(written, {role: getattr(self, PARAMETER[role]) for role in roles}, "uniform")

    def _cell(self) -> Cell:
        return self._written

    def extra_repr(self) -> str:
        """The cell, and the arguments that are not at their default."""
        return f"{self._written}, {super().extra_repr()}"
