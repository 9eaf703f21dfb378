"""ONNX, both ways: our layers as ONNX's LSTM, GRU and RNN operators, and modules from these.

    export(model, args, "model.onnx")     torch.onnx.export, with what follows filled in
    translation_table()                   for torch.onnx.export: our ops, one operator per layer
    from_onnx("model.onnx", "node name")  a module with the weights of one operator

What differs is how weights are stored. ONNX has one tensor for both directions, the gates in
another order, and both biases behind each other:

    torch   for each direction  w_ih [G*H, I]   w_hh [G*H, H]   b_ih, b_hh [G*H]     i f g o   r z n
    ONNX                        W [D, G*H, I]   R [D, G*H, H]   B [D, 2*G*H]         i o f g   z r n

and that ONNX's output is [T, D, B, H]. `OPERATORS` says so once, for both ways.

The packages onnx and onnxscript are needed when these functions are called, not to import this.
Source: the ONNX operators' specification, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusedrnn import modules, ops
from fusedrnn.checkpoint import checkpointed_forward
from fusedrnn.convert import DTYPES
from fusedrnn.reference import CELLS

__all__ = ["export", "from_onnx", "translation_table"]

Value = Any
"""A value of the graph that is being made, or None: onnxscript's, which may not be installed."""


@dataclass(frozen=True)
class Operator:
    """What ONNX calls a cell.

    Attributes:
        kind: the operator.
        gates: which of torch's gates stands at each place of ONNX's weights.
        activations: of one direction, as ONNX names them.
        attributes: further ones, where they are not ONNX's default.
    """

    kind: str
    gates: tuple[int, ...]
    activations: tuple[str, ...]
    attributes: Mapping[str, int] = field(default_factory=dict)


_GRU = "GRU", (1, 0, 2), ("Sigmoid", "Tanh")
OPERATORS = {
    "rnn_tanh": Operator("RNN", (0,), ("Tanh",)),
    "rnn_relu": Operator("RNN", (0,), ("Relu",)),
    "lstm": Operator("LSTM", (0, 3, 1, 2), ("Sigmoid", "Tanh", "Tanh")),
    "gru": Operator(*_GRU, {"linear_before_reset": 1}),
    "gru_reset_before": Operator(*_GRU),
}
"""The operator of each cell, by the cell's name."""


def export(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    f: str | os.PathLike[str] | None = None,
    *,
    custom_translation_table: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    external_data: bool = True,
    **options: Any,
) -> torch.onnx.ONNXProgram:
    """`torch.onnx.export(dynamo=True)` of a model with our modules, their weights as ONNX's.

    torch folds constants only while they are small, and would leave it to whoever loads the model
    to bring larger weights into ONNX's order. Here they are stored in it.

    Args:
        model: what to export, usually after `model.eval()`.
        args: the inputs of an example call.
        f: the file to write, if any.
        custom_translation_table: for other ops than ours; goes before ours.
        external_data: whether the weights go to a file beside `f`, as torch has it.
        options: everything else of `torch.onnx.export`, such as `dynamic_shapes` and
            `input_names`.

    Returns:
        torch's `ONNXProgram`.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        torch.onnx.OnnxExporterError: the model cannot be exported. Where a layer of ours is the
            cause, the text says why: it is projected (`proj_size`), packed or in bfloat16.
    """
    table = translation_table() | dict(custom_translation_table or {})
    program = torch.onnx.export(
        model, args, dynamo=True, custom_translation_table=table, **options
    )
    assert program is not None
    _fold_weights(program.model)
    if f is not None:
        program.save(f, external_data=external_data)
    return program


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How `torch.onnx.export` translates our ops: one LSTM, GRU or RNN node for each layer.

        torch.onnx.export(model, args, "model.onnx", dynamo=True,
                          custom_translation_table=fusedrnn.onnx.translation_table())

    Raises:
        ImportError: onnxscript is not installed.
    """
    _import("onnxscript")
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        ops.layer_forward: _layer_forward,
        checkpointed_forward: _layer_forward,
    }
    if padded_forward := getattr(torch.ops.fusedrnn, "padded_forward", None):
        table[padded_forward.default] = _padded_forward
    return table


def from_onnx(model: Any, node: str | None = None) -> nn.Module:
    """A module with the weights of an LSTM, GRU or RNN node of an ONNX model.

    It has one layer, in one direction or both, of the node's dtype, on the CPU, in training mode
    as every new module. Its layout is torch's: both directions stand side by side in the output,
    [T, B, D*H]; with the node's `layout` 1 it is `batch_first`, and states are [D, B, H] even so.
    The node's other inputs are the caller's to give: `initial_h` and `initial_c` as `hx`,
    `sequence_lens` as `lengths`.

    Args:
        model: an `onnx.ModelProto`, or the path of a file.
        node: the name of the node, or of one of its outputs; not needed if there is one only.
            Nodes within other nodes' subgraphs, and functions, are not looked at.

    Returns:
        A `fusedrnn.LSTM`, `GRU` or `RNN`.

    Raises:
        ImportError: onnx is not installed.
        TypeError: `model` is neither a ModelProto nor a path.
        ValueError: there is no such node, or more than one; its weights are not constants; or it
            does what the modules do not: direction "reverse", other activations than the default
            ones (in an RNN, Tanh or Relu), `clip`, peepholes, `input_forget`, a constant first
            state that is not zero, or a dtype without kernels.
    """
    onnx = _import("onnx")
    if isinstance(model, str | os.PathLike):
        model = onnx.load(os.fspath(model))
    elif not isinstance(model, onnx.ModelProto):
        raise TypeError(
            f"model: expected an onnx.ModelProto or a path, got {type(model).__name__}"
        )
    return _module(_Node(_find(model.graph, node), _Constants(model)))


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"fusedrnn.onnx needs the package {name}: pip install 'fusedrnn[onnx]'"
        ) from error


# Export. torch's exporter calls these with the values of the graph and records what they compute.


def _layer_forward(
    input: Value,
    batch_sizes: Value,
    hx: Value,
    cx: Value,
    weights: Sequence[Value],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    *_: Any,
    **__: Any,
) -> list[Value]:
    if batch_sizes is not None:
        raise NotImplementedError(
            "ONNX has no packed sequences, and this model calls a layer of fusedrnn with a "
            "PackedSequence. To export it, call the layer with the padded tensor and "
            "lengths=, which becomes the operator's sequence_lens"
        )
    return _operator(input, None, hx, cx, weights, cell, has_biases, bidirectional)


def _padded_forward(
    input: Value,
    lengths: Value,
    hx: Value,
    cx: Value,
    weights: Sequence[Value],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
    *_: Any,
    **__: Any,
) -> list[Value]:
    return _operator(input, lengths, hx, cx, weights, cell, has_biases, bidirectional)


def _operator(
    input: Value,
    lengths: Value,
    hx: Value,
    cx: Value,
    weights: Sequence[Value],
    cell: int,
    has_biases: bool,
    bidirectional: bool,
) -> list[Value]:
    """The node and what turns its output: (output, hn), and cn of an LSTM.

    What the ops return beside that is empty, or for gradients alone, and so in no exported graph.
    """
    op, ir = _import("onnxscript").opset18, _import("onnx_ir")
    operator = OPERATORS[CELLS[cell]]
    directions = 2 if bidirectional else 1
    count = len(weights) // directions
    if count % 2:
        raise NotImplementedError(
            "ONNX's LSTM has no projection, so an LSTM with proj_size > 0 cannot be exported. "
            "Export a model whose LSTM has proj_size=0, trained so; or export this one by "
            "torch.export, which keeps fusedrnn's own op"
        )
    if input.dtype == ir.DataType.BFLOAT16:
        raise NotImplementedError(
            f"ONNX's {operator.kind} takes no bfloat16 in the opset that torch's exporter writes. "
            "Export model.float(), or model.half()"
        )
    hidden_size = weights[0].shape[0] // len(operator.gates)

    def rows(values: Sequence[Value]) -> Value:
        """Gates in ONNX's order."""
        return [_reordered(op, ir, value, operator.gates, hidden_size) for value in values]

    def stacked(values: Sequence[Value]) -> Value:
        """[D, ...] of those of each direction."""
        parts = [op.Unsqueeze(value, [0]) for value in values]
        return op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]

    biases = None
    if has_biases:
        pairs = zip(rows(weights[2::count]), rows(weights[3::count]), strict=True)
        biases = stacked([op.Concat(*pair, axis=0) for pair in pairs])
    activations = {}
    if operator.kind == "RNN":
        activations["activations"] = list(operator.activations * directions)
    y, *states = getattr(op, operator.kind)(
        input,
        stacked(rows(weights[0::count])),
        stacked(rows(weights[1::count])),
        biases,
        None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32),
        hx,
        *([cx] if operator.kind == "LSTM" else []),
        direction="bidirectional" if bidirectional else "forward",
        hidden_size=hidden_size,
        **activations,
        **operator.attributes,
    )
    if bidirectional:  # [T, D, B, H] -> [T, B, D*H]
        sizes = op.Constant(value_ints=[0, 0, directions * hidden_size])  # 0: as it is
        return [op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), sizes), *states]
    return [op.Squeeze(y, [1]), *states]


def _reordered(op: Any, ir: Any, value: Value, gates: tuple[int, ...], hidden_size: int) -> Value:
    if len(gates) == 1:
        return value
    order = torch.arange(len(gates) * hidden_size).view(len(gates), -1)[list(gates)].flatten()
    return op.Gather(value, op.Constant(value=ir.tensor(order.numpy())), axis=0)


def _fold_weights(model: Any) -> None:
    """Computes what our translations make of constants, however large."""
    optimizer, passes = _import("onnxscript.optimizer"), _import("onnx_ir.passes.common")
    ours = f"{ops.layer_forward.namespace}."

    def is_ours(node: Any) -> bool:
        return ours in node.metadata_props.get("pkg.torch.onnx.class_hierarchy", "")

    unlimited = 2**62
    optimizer.fold_constants(
        model, input_size_limit=unlimited, output_size_limit=unlimited, should_fold=is_ours
    )
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)


# Import.
