"""A case as an ONNX model, for the runtimes that take one.

    input [T, B, I] -> LSTM/GRU/RNN of each layer, Y [T, D, B, H] -> output [T, B, D*H], hn, cn

One node has both directions of a layer. The gates of torch and of ONNX:

    LSTM  torch i f g o    ONNX i o f c        GRU  torch r z n    ONNX z r h

and ONNX's GRU adds the second bias before it resets, as torch's does, if linear_before_reset is 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.peer import Data, packed_again, padded, stacked, states, with_gates
from benchmarks.workloads import Case

ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
OPSET, IR_VERSION = 17, 9  # no newer than what the cells need: every runtime knows them


def model(case: Case, data: Data) -> Any:
    """The `onnx.ModelProto` of a case; its inputs are the names of `feeds`."""
    from onnx import TensorProto, helper, numpy_helper

    row, names = case.row, [f"{state}n" for state in case.facts.states]
    given = tensors(data)
    steps = given["input"].shape[0]
    nodes, constants = [], []

    def constant(name: str, value: Tensor) -> str:
        constants.append(numpy_helper.from_array(value.numpy(), name))
        return name

    weights = {
        name: stacked(row, data, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    options: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "gru" else {}
    x = "input"
    for layer in range(row.layers):
        directions = {
            name: [with_gates(weight, ORDER[case.cell]) for weight in of_layers[layer]]
            for name, of_layers in weights.items()
        }
        biases = zip(directions["bias_ih"], directions["bias_hh"], strict=True)
        operands = [
            x,
            constant(f"W{layer}", torch.stack(directions["weight_ih"])),
            constant(f"R{layer}", torch.stack(directions["weight_hh"])),
            constant(f"B{layer}", torch.stack([torch.cat(pair) for pair in biases])),
            "lengths" if "lengths" in given else "",
        ]
        for state in ("hx", "cx"):
            if state in given:
                assert row.layers == 1, "only rows of one layer are given a state"
                operands.append(state)
        last = [f"{name}{layer}" for name in names]
        nodes.append(
            helper.make_node(
                case.cell.upper(),
                operands,
                [f"Y{layer}", *last],
                hidden_size=row.H,
                direction="bidirectional" if row.directions == 2 else "forward",
                **options,
            )  # fmt: skip
        )
        nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]))
        shape = constant(f"shape{layer}", torch.tensor([steps, row.B, row.directions * row.H]))
        x = f"x{layer}" if layer < row.layers - 1 else "output"
        nodes.append(helper.make_node("Reshape", [f"t{layer}", shape], [x]))
    for name in names:
        of_layers = [f"{name}{layer}" for layer in range(row.layers)]
        nodes.append(helper.make_node("Concat", of_layers, [name], axis=0))
    kinds = {torch.float32: TensorProto.FLOAT, torch.int32: TensorProto.INT32}
    inputs = [
        helper.make_tensor_value_info(name, kinds[tensor.dtype], list(tensor.shape))
        for name, tensor in given.items()
    ]
    state_shape = [row.layers * row.directions, row.B, row.H]
    shapes = {"output": [steps, row.B, row.directions * row.H]} | dict.fromkeys(names, state_shape)
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph(nodes, case.row.name, inputs, outputs, constants)
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)


def tensors(data: Data) -> dict[str, Tensor]:
    """The inputs of the model by name."""
    inputs, lengths = padded(data)
    named = {"input": inputs.contiguous()}
    if lengths is not None:
        named["lengths"] = lengths.int()
    return named | dict(zip(("hx", "cx"), states(data), strict=False))


def feeds(data: Data) -> dict[str, Any]:
    """The same as NumPy arrays, which is what the runtimes take."""
    return {name: tensor.numpy() for name, tensor in tensors(data).items()}


def named(case: Case, data: Data, results: dict[str, Any]) -> dict[str, Any]:
    """The model's results, with the output packed again where the input was."""
    _, lengths = padded(data)
    output = packed_again(torch.tensor(results["output"]), lengths)
    return results | {"output": output.numpy()}
