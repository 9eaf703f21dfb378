"""`from_tf1`: the variables of TensorFlow 1's recurrent cells in our modules.

TensorFlow is not imported: a checkpoint is a mapping of names to arrays. The names say which cell,
layer and direction a variable belongs to. A kernel has the rows of the input above those of h:

                kernel                            gates       biases
    LSTM        [I + R, 4H]                       i g f o     [4H], and forget_bias, a number apart
                peepholes: three of [H]           i f o
    GRU         [I + H, 2H] and [I + H, H]        r z | n     [2H] and [H]
    RNN         [I + H, H]                                    [H]
    torch's     w_ih [G*H, I] and w_hh [G*H, R]   i f g o     two of [G*H]
                                                  r z n
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedrnn.convert.assemble import (
    Direction,
    Layers,
    as_tensor,
    assemble,
    check_shape,
    reordered,
)
from fusedrnn.convert.kinds import Kind, check_function, hard_sigmoid_of_keras_2, kind_of

if TYPE_CHECKING:
    from fusedrnn.cells.zoo.activations import Activation

CELL_OF_SCOPE = {"basic_lstm_cell": "lstm", "lstm_cell": "lstm", "basic_rnn_cell": "rnn"}
"""Which of our cells has its variables in a scope of this name; a GRU's are known by their own."""

PEEPHOLES = ("w_i_diag", "w_f_diag", "w_o_diag")
"""Those of an LSTM, in the order of the rows of our weight."""

_VARIABLE = re.compile(
    r"(?:(?P<scope>.+?)/)??"
    r"(?P<name>kernel|bias|(?:gates|candidate)/(?:kernel|bias)|projection/kernel|w_[ifo]_diag)"
)


def from_tf1(
    variables: Mapping[str, Any],
    *,
    scope: str = "",
    cell: str | None = None,
    activation: str | Activation | None = None,
    forget_bias: float = 1.0,
    cell_clip: float | None = None,
) -> Layers:
    """The module that computes what cells of TensorFlow 1 do, with the variables of a checkpoint.

    `BasicLSTMCell`, `LSTMCell` with or without projection and peepholes, `GRUCell` and
    `BasicRNNCell`, of `tf.nn.rnn_cell` and under `dynamic_rnn`; stacks by `MultiRNNCell`;
    `bidirectional_dynamic_rnn` and contrib's `stack_bidirectional_dynamic_rnn`. Activations and
    clipping leave no trace in a checkpoint: give those that the model was built with. See to it
    yourself that there is no `proj_clip`, which no module has.

    Args:
        variables: the variables by name, as NumPy arrays or tensors. The last part of a name says
            what it is, what stands before it is a scope:

                kernel, bias                LSTM: [I + R, 4H], [4H], R = P with and H without a
                                            projection; RNN: [I + H, H], [H]
                projection/kernel           [H, P], of a projected LSTM
                w_i_diag, w_f_diag, w_o_diag
                                            [H], the peepholes of an LSTM
                gates/kernel, gates/bias,
                candidate/kernel, .../bias  GRU: [I + H, 2H], [2H], [I + H, H], [H]

            A scope may have `cell_0`, `cell_1`, ..., the layers, and `fw` and `bw`, the directions.
            An optimizer's variables (`kernel/Adam`) are left out.
        scope: take only the variables under it, "decoder/rnn" for example.
        cell: "lstm", "rnn_tanh" (or "rnn"), "rnn_relu" or "gru". None if the names say it: those of
            a GRU, or `basic_lstm_cell`, `lstm_cell` or `basic_rnn_cell` right before the last part.
        activation: as given to the cell: TensorFlow's name of it, or the same function of a tensor
            in PyTorch. None is tanh. Gates have sigmoid.
        forget_bias: as given to the LSTM's cell, which adds it at every step and does not have it
            in `bias`.
        cell_clip: as given to the LSTM's cell; None if it was not.

    Returns:
        `LSTM`, `GRU` or `RNN` with `batch_first=True`, on the CPU in the dtype of the variables. A
        GRU is `GRU(..., reset_after=False)`: TensorFlow's reset gate applies before the product.
        With peepholes, another activation or `cell_clip` it is a `Recurrent` of the zoo's cell.

    Raises:
        TypeError: `variables` is no mapping.
        ValueError: variables are missing, or are not those of such cells, or do not fit.

        reader = tf.train.load_checkpoint(path)
        names = reader.get_variable_to_shape_map()
        lstm = fusedrnn.from_tf1({n: reader.get_tensor(n) for n in names}, scope="decoder/rnn")
    """
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"variables: expected a mapping of names to arrays, got {type(variables).__name__}"
        )
    if activation == "hard_sigmoid":
        activation = hard_sigmoid_of_keras_2
    check_function("activation", activation)
    kind = None if cell is None else kind_of(cell, activation)
    if cell_clip is not None and not cell_clip > 0:
        raise ValueError(f"cell_clip: expected a positive number or None, got {cell_clip!r}")
    places: dict[tuple[int, int], str] = {}
    groups = _by_scope(variables, scope)
    chosen = len(_prefix(scope))  # what `scope` says is no part of the network
    for each in groups:
        place = _place(each[chosen:])
        if place in places:
            raise ValueError(
                f"variables: expected those of one network, got {places[place]!r} and {each!r}; "
                f"choose with scope="
            )
        places[place] = each
    numbers, directions = ({place[i] for place in places} for i in (0, 1))
    expected = {(k, d) for k in range(len(numbers)) for d in range(len(directions))}
    if set(places) != expected:
        raise ValueError(
            "variables: expected all layers cell_0, cell_1, ... in all directions, got the scopes "
            + ", ".join(map(repr, groups))
        )
    of_direction = re.compile(r"(^|/)[fb]w/(.*/)?cell_\d+(/|$)")
    joined = [each for each in groups if of_direction.search(each[chosen:])]
    if len(numbers) > 1 and joined:
        raise ValueError(
            f"variables: {joined[0]!r} is a layer of a stack that runs in one direction, beside "
            f"another in the other direction; torch's networks join the directions after every "
            f"layer. Convert each stack by itself, with scope= up to fw or bw"
        )
    layers = [
        [
            _of_variables(
                name := places[k, d],
                groups[name],
                kind or _kind_of_names(name, groups[name], activation),
                forget_bias,
                cell_clip,
            )
            for d in range(len(directions))
        ]
        for k in range(len(numbers))
    ]
    return assemble(layers, batch_first=True)


def _by_scope(variables: Mapping[str, Any], scope: str) -> dict[str, dict[str, Tensor]]:
    """The variables under a scope, by the scope right before the last part of their names."""
    prefix = _prefix(scope)
    names = {name.removesuffix(":0"): name for name in variables}
    groups: dict[str, dict[str, Tensor]] = {}
    for name, key in names.items():
        if not name.startswith(prefix) or name.rpartition("/")[0] in names:  # kernel/Adam
            continue
        match = _VARIABLE.fullmatch(name)
        if match is None:
            raise ValueError(
                f"variables: {name!r} is not of a BasicLSTMCell, LSTMCell, GRUCell or "
                f"BasicRNNCell; if it is not of this network, choose with scope="
            )
        group = groups.setdefault(match["scope"] or "", {})
        group[match["name"]] = as_tensor(f"variables[{key!r}]", variables[key])
    if not groups:
        some = ", ".join(map(repr, sorted(names)[:8])) or "no variables"
        raise ValueError(f"variables: expected some under scope={scope!r}, got {some}")
    return groups


def _prefix(scope: str) -> str:
    """What the names of a scope's variables begin with."""
    return f"{scope.strip('/')}/" if scope.strip("/") else ""


def _place(scope: str) -> tuple[int, int]:
    """Which layer and direction has its variables in this scope."""
    parts = scope.split("/")
    layers = [int(part[5:]) for part in parts if re.fullmatch(r"cell_\d+", part)]
    return (layers[-1] if layers else 0), int("bw" in parts)


def _kind_of_names(
    scope: str, variables: dict[str, Tensor], activation: str | Activation | None
) -> Kind:
    """The cell that the names of variables say."""
    last = re.sub(r"_\d+$", "", scope.rpartition("/")[2])
    cell = "gru" if "gates/kernel" in variables else CELL_OF_SCOPE.get(last)
    if cell is None:
        raise ValueError(
            f"cell: expected 'lstm', 'gru', 'rnn_tanh' or 'rnn_relu' for {_shown(scope)}, whose "
            f"names do not say it, got None"
        )
    return kind_of(cell, activation)


def _shown(scope: str) -> str:
    return f"variables under {scope!r}" if scope else "variables"


def _of_variables(
    scope: str,
    variables: dict[str, Tensor],
    kind: Kind,
    forget_bias: float,
    cell_clip: float | None,
) -> Direction:
    """One direction from the variables of a cell of TensorFlow 1."""
    name, cell = _shown(scope), kind.name
    parts = ("gates/", "candidate/") if cell == "gru" else ("",)
    needed = {f"{part}{n}" for part in parts for n in ("kernel", "bias")}
    optional = {"projection/kernel"} if cell == "lstm" else set()
    if cell == "lstm" and not variables.keys().isdisjoint(PEEPHOLES):
        needed |= {*PEEPHOLES}
    if not needed <= set(variables) <= needed | optional:
        raise ValueError(
            f"{name}: expected {', '.join(sorted(needed))} of cell={cell!r}, got "
            f"{', '.join(sorted(variables))}"
        )
    if cell_clip is not None and cell != "lstm":
        raise ValueError(f"cell_clip: expected None with cell={cell!r}, got {cell_clip!r}")
    gates = len(kind.gates)
    last_bias = variables[f"{parts[-1]}bias"]
    hidden = last_bias.numel() // (1 if cell == "gru" else gates)
    projection = variables.get("projection/kernel")
    width = hidden
    if projection is not None:
        width = projection.size(1) if projection.dim() == 2 else 0
        check_shape(f"{name}: projection/kernel", projection, (hidden, width), ("H", "P"))
    some = variables[f"{parts[0]}kernel"]
    rows = some.size(0) if some.dim() == 2 else 0
    for part, count in zip(parts, (2, 1) if cell == "gru" else (gates,), strict=True):
        shown = f"{count}*H" if count > 1 else "H"
        check_shape(f"{name}: {part}bias", variables[f"{part}bias"], (count * hidden,), (shown,))
        rows_shown = "I+P" if projection is not None else "I+H"
        check_shape(
            f"{name}: {part}kernel", variables[f"{part}kernel"], (rows, count * hidden),
            (rows_shown, shown),
        )  # fmt: skip
    if rows <= width:
        raise ValueError(
            f"{name}: expected {parts[0]}kernel with more than {width} rows, those of the "
            f"state, and the input's above them, got {rows}"
        )
    order = (0, 2, 1, 3) if cell == "lstm" else tuple(range(gates))
    kernel = torch.cat([variables[f"{part}kernel"] for part in parts], 1).t()
    bias = reordered(torch.cat([variables[f"{part}bias"] for part in parts]), order)
    if cell == "lstm":
        bias[hidden : 2 * hidden] += forget_bias
    result = {
        "weight_ih": reordered(kernel[:, : rows - width], order),
        "weight_hh": reordered(kernel[:, rows - width :], order),
        "bias_ih": bias,
        "bias_hh": torch.zeros_like(bias),
    }
    if projection is not None:
        result["weight_hr"] = projection.t()
    if PEEPHOLES[0] in variables:
        for diagonal in PEEPHOLES:
            check_shape(f"{name}: {diagonal}", variables[diagonal], (hidden,), ("H",))
        result["weight_unit"] = torch.stack([variables[diagonal] for diagonal in PEEPHOLES])
    kind = replace(
        kind, name="gru_reset_before" if cell == "gru" else cell, peephole="weight_unit" in result,
        cell_clip=cell_clip,
    )  # fmt: skip
    return Direction(name, kind, result)
