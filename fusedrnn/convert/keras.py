"""`from_keras`: a recurrent layer of Keras, with its weights, as a module of ours.

Keras is not imported. A layer is known by the names of its class and attributes, which Keras 2 and
3 share, so any version and backend will do, and arrays without a layer will do, too. Gates are
stacked along the last axis there and along the first here:

                kernel      recurrent kernel    gates        biases
    LSTM        [I, 4H]     [H, 4H]             i f g o      [4H]
    GRU         [I, 3H]     [H, 3H]             z r n        [2, 3H], or [3H] if not reset_after
    SimpleRNN   [I, H]      [H, H]                           [H]
    torch's     [G*H, I]    [G*H, H]            i f g o      two of [G*H]
                                                r z n
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fusedrnn.convert.assemble import (
    Cells,
    Direction,
    Layers,
    as_tensor,
    assemble,
    assemble_cell,
    check_shape,
    reordered,
)
from fusedrnn.convert.kinds import Kind, hard_sigmoid_of_keras_2, kind_of

if TYPE_CHECKING:
    from fusedrnn.cells.zoo.activations import Activation

CELL_OF_CLASS = {"SimpleRNNCell": "rnn", "LSTMCell": "lstm", "GRUCell": "gru"}
"""Which of our cells a Keras cell is, by the name of its class."""

LAYERS = ("SimpleRNN", "LSTM", "GRU", "RNN", "Bidirectional")

USUAL = ("relu", "sigmoid", "tanh")
"""Functions that mean the same in every library that has a function of that name."""

KERAS = ("keras", "tf_keras", "tensorflow", "tensorflow_core")
"""Packages whose functions mean what Keras' of the same name do."""


def from_keras(
    layer: Any,
    *,
    cell: str | None = None,
    reset_after: bool | None = None,
    activation: str | Activation | None = None,
    recurrent_activation: str | Activation | None = None,
) -> Layers | Cells:
    """The module that computes what a recurrent layer of Keras does, with the layer's weights.

    Keras 3 on any backend and `tf.keras` of TensorFlow 2; the layer has to be built, that is, has
    to have its weights. What would give other numbers is refused: an activation that is neither one
    of Keras' functions of one value nor a function of TensorFlow that has such a name,
    `go_backwards`, `stateful`, a `merge_mode` other than "concat". `dropout` and
    `recurrent_dropout` act only in training: they are left out with a warning. Regularizers and
    constraints are left out as well; `unroll`, `implementation` and `use_cudnn` change nothing.

    Args:
        layer: one of
            - `SimpleRNN`, `LSTM` or `GRU`, `RNN` of their cells or of a list of them (a stack),
              `Bidirectional` around any of one cell;
            - `SimpleRNNCell`, `LSTMCell` or `GRUCell`, for a cell of ours;
            - what the `get_weights()` of such a layer returns, with `cell`: kernel [I, G*H],
              recurrent kernel [H, G*H] and bias, if it has one; twice that if bidirectional. NumPy
              arrays or tensors;
            - a list of these, for layers that feed each other and are of one kind and size: they
              become one module with `num_layers`.
        cell: "lstm", "gru", "rnn_tanh" (or "rnn") or "rnn_relu", for weights; a layer says itself.
        reset_after: of a GRU's weights without a bias; with one, its shape says it.
        activation, recurrent_activation: for weights: Keras 3's name of a function, or a function
            of a tensor in PyTorch. None is tanh, and sigmoid.

    Returns:
        `LSTM`, `GRU` or `RNN` with `batch_first=True` (False for a `time_major` layer of Keras 2),
        or a cell, on the CPU in the dtype of the weights. It always returns the output at all steps
        and the states, whatever `return_sequences` and `return_state` are. A GRU whose reset gate
        applies before the product is `GRU(..., reset_after=False)`. A single bias becomes `bias_ih`
        and `bias_hh` is zero. With other activations than tanh (or relu in a SimpleRNN) and
        sigmoid it is a `Recurrent`, or a `RecurrentCell`, of `fusedrnn.cells.zoo`'s cell.

    Raises:
        TypeError: it is none of these.
        ValueError: the layer has no weights yet, has an option or shape that no module of ours
            has, or the layers of a list do not fit each other.

        layer = keras.layers.LSTM(20, return_sequences=True)
        expected = layer(x)  # [B, T, 10], which builds it
        output, (hn, cn) = fusedrnn.from_keras(layer)(torch.from_numpy(x))
    """
    said = {
        "cell": cell,
        "reset_after": reset_after,
        "activation": activation,
        "recurrent_activation": recurrent_activation,
    }
    given = {option: value for option, value in said.items() if value is not None}
    kind = None if cell is None else kind_of(cell, activation, recurrent_activation)
    named = [("layer", layer)]
    if isinstance(layer, list | tuple) and not _are_weights(layer):
        named = [(f"layer[{k}]", each) for k, each in enumerate(layer)]
        if not named:
            raise ValueError(
                "layer: expected a layer, its weights or a list of these, got an empty list; a "
                "layer has weights once it was called or built"
            )
    layers: list[list[Direction]] = []
    layouts: set[bool] = set()
    for k, (name, source) in enumerate(named):
        if _are_weights(source):
            layers.append(_of_weights(name, source, kind, reset_after))
            continue
        if given:
            raise ValueError(
                f"{', '.join(said)}: expected None with {_label(name, source)}, which says these "
                f"itself, got {', '.join(f'{option}={value!r}' for option, value in given.items())}"
            )
        if k < len(named) - 1 and not getattr(source, "return_sequences", True):
            raise ValueError(
                f"{_label(name, source)} has return_sequences=False, so the next layer does not "
                f"take its steps: the two are no stack. Convert each by itself"
            )
        cells = _cells(name, source)
        layers += [[_of_cell(name, each) for each in directions] for directions in cells]
        walk = getattr(source, "forward_layer", source)
        layouts.add(bool(getattr(walk, "time_major", False)))
        _warn_of_dropout(name, cells)
    if len(layouts) > 1:
        raise ValueError("layer: expected layers with the same time_major, got both")
    if len(named) == 1 and type(layer).__name__ in CELL_OF_CLASS:
        return assemble_cell(layers[0][0])
    return assemble(layers, batch_first=layouts != {True})


def _cells(name: str, layer: Any) -> list[list[Any]]:
    """The cells of a Keras layer: for each of its layers those of the one or two directions."""
    kind = type(layer).__name__
    if not hasattr(layer, "get_weights") or kind not in (*LAYERS, *CELL_OF_CLASS):
        raise TypeError(
            f"{name}: expected a Keras layer {', '.join(LAYERS)} or cell "
            f"{', '.join(CELL_OF_CLASS)}, its weights or a list of these, got "
            f"{type(layer).__module__}.{kind}; of a model give its layers, of a class derived from "
            f"these get_weights() with cell="
        )
    if kind in CELL_OF_CLASS:
        return [[layer]]
    if kind != "Bidirectional":
        return [[cell] for cell in _cells_of_walk(name, layer, backwards=False)]
    if layer.merge_mode != "concat":
        raise ValueError(
            f"{_label(name, layer)} has merge_mode={layer.merge_mode!r}, expected 'concat'; set "
            f"merge_mode = 'concat', convert, and merge output[..., :H] and output[..., H:]"
        )
    ways = (layer.forward_layer, False), (layer.backward_layer, True)
    stacks = [_cells_of_walk(name, each, backwards) for each, backwards in ways]
    if max(map(len, stacks)) > 1:
        raise ValueError(
            f"{_label(name, layer)} has a stack of cells in each direction; torch's networks join "
            f"the directions after every layer. Convert its forward_layer by itself, and its "
            f"backward_layer after go_backwards = False, for the input from the last step on"
        )
    return [[stack[0] for stack in stacks]]


def _cells_of_walk(name: str, layer: Any, backwards: bool) -> list[Any]:
    """The cells of a Keras layer, which walks the steps in this direction."""
    label = _label(name, layer)
    if layer.go_backwards != backwards:
        raise ValueError(
            f"{label} has go_backwards={layer.go_backwards}, expected {backwards}; set "
            f"go_backwards = {backwards}, convert, and give the module its input from the last "
            f"step on, input.flip(1)"
        )
    if layer.stateful:
        raise ValueError(
            f"{label} has stateful=True, expected False; set stateful = False, convert, and give "
            f"each call the final states of the one before as hx, or use fusedrnn.Streaming"
        )
    stacked = type(layer.cell).__name__ == "StackedRNNCells"
    cells = list(layer.cell.cells) if stacked else [layer.cell]
    for each in cells:
        if type(each).__name__ not in CELL_OF_CLASS:
            raise TypeError(
                f"{label}: expected cells {', '.join(CELL_OF_CLASS)}, got {type(each).__name__}"
            )
    return cells


def _of_cell(name: str, cell: Any) -> Direction:
    label, kind = _label(name, cell), CELL_OF_CLASS[type(cell).__name__]
    options = ("activation",) if kind == "rnn" else ("activation", "recurrent_activation")
    functions: dict[str, Any] = {
        option: _function(label, option, getattr(cell, option)) for option in options
    }
    weights = cell.get_weights()
    if not weights:
        raise ValueError(
            f"{label} has no weights yet: call the layer on an input, or build() it, first"
        )
    return _of_arrays(label, weights, Kind(kind, **functions), getattr(cell, "reset_after", None))


def _warn_of_dropout(name: str, cells: Sequence[Sequence[Any]]) -> None:
    """For `from_keras` to call, whose caller the warning names."""
    for cell in (cell for each in cells for cell in each):
        rates = {n: getattr(cell, n, 0.0) for n in ("dropout", "recurrent_dropout")}
        if any(rates.values()):
            shown = " and ".join(f"{n}={value}" for n, value in rates.items() if value)
            warnings.warn(
                f"{_label(name, cell)} has {shown}, only in training; it is left out. Inference "
                f"is the same",
                UserWarning,
                stacklevel=3,
            )


def _function(label: str, option: str, value: Any) -> str | Activation:
    """The zoo's name of a function of Keras, or the function itself where Keras 2 has another."""
    from fusedrnn.cells.zoo import ACTIVATIONS

    module = str(getattr(value, "__module__", ""))
    package = module.partition(".")[0]
    if value is None:
        name, known = "linear", True
    elif isinstance(value, str):
        name, known = value, value in ACTIVATIONS
    else:
        name = str(getattr(value, "__name__", type(value).__name__))
        known = name in USUAL or (package in KERAS and name in ACTIVATIONS)
    if not known:
        raise ValueError(
            f"{label} has {option}={name!r}{f' of {module}' if module else ''}, expected one that "
            f"Keras has by the name {', '.join(ACTIVATIONS)}. If it is a function of one value, "
            f"give the layer's get_weights() with cell= and {option}=, the same function written "
            f"in PyTorch"
        )
    # Keras 3 has it in keras.src.activations.activations.
    old = package != "keras" or module in ("keras.activations", "keras.src.activations")
    return hard_sigmoid_of_keras_2 if name == "hard_sigmoid" and old and module else name


def _label(name: str, layer: Any) -> str:
    shown = getattr(layer, "name", None)
    return f"{name}: {type(layer).__name__}" + (f" {shown!r}" if isinstance(shown, str) else "")


def _are_weights(source: Any) -> bool:
    """Whether this is a list of arrays, as a Keras layer's `get_weights` returns it."""
    return (
        isinstance(source, list | tuple)
        and len(source) > 0
        and all(hasattr(each, "shape") for each in source)
    )


def _of_weights(
    name: str, weights: Sequence[Any], kind: Kind | None, reset_after: bool | None
) -> list[Direction]:
    """One Keras layer in one or both directions, from its arrays."""
    if kind is None:
        raise ValueError(
            "cell: expected 'lstm', 'gru', 'rnn_tanh' or 'rnn_relu' with weights, got None"
        )
    if reset_after is not None and kind.name != "gru":
        raise ValueError(f"reset_after: expected None with cell={kind.name!r}, got {reset_after}")
    if len(weights) in (2, 3):
        return [_of_arrays(name, weights, kind, reset_after)]
    if len(weights) in (4, 6):
        half = len(weights) // 2
        return [
            _of_arrays(f"{name}, {way}", part, kind, reset_after)
            for way, part in (("forward", weights[:half]), ("backward", weights[half:]))
        ]
    raise ValueError(
        f"{name}: expected 2 or 3 arrays (kernel, recurrent kernel and perhaps bias), or twice "
        f"that for two directions, got {len(weights)}; for a stack give a list of such lists"
    )


def _of_arrays(name: str, arrays: Sequence[Any], kind: Kind, reset_after: bool | None) -> Direction:
    """One direction from Keras' kernel, recurrent kernel and perhaps bias."""
    gates, gru = len(kind.gates), kind.name == "gru"
    names = ("kernel", "recurrent kernel", "bias")
    weights = [as_tensor(f"{name}: {n}", array) for n, array in zip(names, arrays, strict=False)]
    kernel, recurrent = weights[:2]
    hidden = recurrent.size(0) if recurrent.dim() == 2 else 0
    check_shape(
        f"{name}: recurrent kernel", recurrent, (hidden, gates * hidden), ("H", f"{gates}*H")
    )
    inputs = kernel.size(0) if kernel.dim() == 2 else 0
    check_shape(f"{name}: kernel", kernel, (inputs, gates * hidden), ("I", f"{gates}*H"))
    order = (1, 0, 2) if gru else tuple(range(gates))
    result = {
        "weight_ih": reordered(kernel.t(), order),
        "weight_hh": reordered(recurrent.t(), order),
    }
    if len(weights) == 3:
        bias = weights[2]
        if gru and reset_after is None:
            reset_after = bias.dim() == 2
        both = gru and bool(reset_after)
        shape = (2, gates * hidden) if both else (gates * hidden,)
        check_shape(f"{name}: bias", bias, shape, ("2", f"{gates}*H") if both else (f"{gates}*H",))
        b_ih, b_hh = bias if both else (bias, torch.zeros_like(bias))
        result |= {"bias_ih": reordered(b_ih, order), "bias_hh": reordered(b_hh, order)}
    elif gru and reset_after is None:
        raise ValueError(
            f"reset_after: expected True or False for {name}, weights of a GRU without a bias, "
            f"whose shape would say it; got None"
        )
    return Direction(
        name, replace(kind, name="gru_reset_before") if gru and not reset_after else kind, result
    )
