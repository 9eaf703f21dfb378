"""ONNX, both ways: our layers as ONNX's LSTM, GRU and RNN operators, and modules from these.

    export(model, args, "model.onnx")     torch.onnx.export, with what follows filled in
    translation_table()                   for torch.onnx.export: our ops, one operator per layer
    from_onnx("model.onnx", "node name")  a module with the weights of one operator

What differs is how weights are stored. ONNX has one tensor for both directions, the gates in
another order, and both biases one after the other:

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

from fusedrnn._engine import ops
from fusedrnn._engine.checkpoint import checkpointed_forward
from fusedrnn._engine.checks import PACKED_IN_ONNX
from fusedrnn._engine.ops import DTYPES
from fusedrnn._engine.sequences import padded_forward
from fusedrnn.cells import W_IH, cell_of_spec
from fusedrnn.convert.assemble import Direction, assemble, reordered
from fusedrnn.convert.kinds import Kind
from fusedrnn.convert.onnx_functions import Function, functions_of

__all__ = ["export", "translation_table"]

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
    export_params: bool = True,
    keep_initializers_as_inputs: bool = False,
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
        export_params, keep_initializers_as_inputs, external_data: how `f` is written, as torch has
            it: with weights, these as inputs too, these in a file beside it.
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
    program = torch.onnx.export(model, args, dynamo=True, custom_translation_table=table, **options)
    assert program is not None
    _fold_weights(program.model)
    if f is not None:
        program.save(
            f,
            include_initializers=export_params,
            keep_initializers_as_inputs=keep_initializers_as_inputs,
            external_data=external_data,
        )
    return program


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How `torch.onnx.export` translates our ops: one LSTM, GRU or RNN node for each layer.

        torch.onnx.export(model, args, "model.onnx", dynamo=True,
                          custom_translation_table=fusedrnn.onnx.translation_table())

    Raises:
        ImportError: onnxscript is not installed.
    """
    _import("onnxscript")
    return {
        ops.layer_forward: _layer_forward,
        ops.modified_forward: _modified_forward,
        checkpointed_forward: _modified_forward,
        padded_forward: _padded_forward,
    }


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
        A `fusedrnn.LSTM`, `GRU` or `RNN`. With other activations than the default ones (in an RNN,
        Tanh or Relu), `clip`, peepholes or `input_forget` it is a `Recurrent` of
        `fusedrnn.cells.zoo`'s cell; with `input_forget` it has no rows for the forget gate.

    Raises:
        ImportError: onnx is not installed.
        TypeError: `model` is neither a ModelProto nor a path.
        ValueError: there is no such node, or more than one; its weights are not constants; or it
            does what the modules do not: direction "reverse", directions with unlike activations,
            `clip` of an LSTM, constant lengths, a constant first state that is not zero, or a dtype
            without kernels.
    """
    onnx = _import("onnx")
    if isinstance(model, str | os.PathLike):
        model = onnx.load(os.fspath(model))
    elif not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model: expected an onnx.ModelProto or a path, got {type(model).__name__}")
    return _module(_Node(_find(model.graph, node), _Constants(model)))


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"fusedrnn.onnx needs the package {name}: pip install onnx onnxscript"
        ) from error


# Export. torch's exporter calls these with the values of the graph and records what they compute.


def _layer_forward(input: Value, batch_sizes: Value, *layer: Any, **options: Any) -> list[Any]:
    if batch_sizes is not None:
        raise NotImplementedError(PACKED_IN_ONNX)
    return _operator(input, None, *layer, **options)


def _modified_forward(
    input: Value, where: Value, hx: Any, weights: Any, *rest: Any, **options: Any
) -> list[Any]:
    if where is not None:
        raise NotImplementedError(PACKED_IN_ONNX)
    return _operator(input, None, hx, weights, *_without_modifiers(*rest), **options)


def _padded_forward(
    input: Value, lengths: Value, hx: Any, weights: Any, *rest: Any, **options: Any
) -> list[Any]:
    layer = _without_modifiers(*rest)
    # The reserve's size depends on the lengths: with gradients enabled a graph keeps it, unused.
    nothing = _import("onnxscript").opset18.Constant(value_floats=[])
    return [*_operator(input, lengths, hx, weights, *layer, **options), nothing]


def _without_modifiers(
    reset: Value,
    reset_states: Any,
    recurrent_factor: Value,
    keep: Any,
    step_inputs: Value,
    *layer: Any,
) -> tuple[Any, ...]:
    """The layer's arguments, of an op that takes modifiers."""
    given = {
        "reset": reset is not None,
        "recurrent_dropout": recurrent_factor is not None,
        "zoneout": bool(keep),
        "step_inputs": step_inputs is not None,
    }
    for name, is_given in given.items():
        if is_given:
            raise NotImplementedError(
                f"{name}: ONNX's operators have nothing like it, so a model that uses it cannot be "
                "exported. Export it without, or save it by torch.export, whose programs run "
                "fusedrnn's own op"
            )
    return layer


class _List(list[Value]):
    """A result that is a list of values, where the exporter looks for the properties of one."""

    name = ""

    def producer(self) -> None:
        return None


def _operator(
    input: Value,
    lengths: Value,
    hx: Sequence[Value],
    weights: Sequence[Value],
    cell: str,
    biases: bool,
    projected: bool,
    bidirectional: bool,
    *_: Any,
    **__: Any,
) -> list[Any]:
    """The node, and what brings its output into our layout: output, hn.

    The reserve, which the ops return too, is for gradients, and so in no exported graph.
    """
    op, ir = _import("onnxscript").opset18, _import("onnx_ir")
    facts = cell_of_spec(cell)
    if facts.name not in OPERATORS:
        raise NotImplementedError(f"ONNX has no operator for the cell {facts}")
    operator = OPERATORS[facts.name]
    if projected:
        raise NotImplementedError(
            "ONNX's LSTM has no projection, so an LSTM with proj_size > 0 cannot be exported. "
            "Train and export the model with proj_size=0, or keep this one and save it by "
            "torch.export, whose programs run fusedrnn's own op"
        )
    if input.dtype == ir.DataType.BFLOAT16:
        raise NotImplementedError(
            f"ONNX's {operator.kind} takes no bfloat16 in the opset that torch's exporter writes. "
            "Export model.float(), or model.half()"
        )
    roles = facts.roles(biases, projected)
    of_role = {role: weights[i :: len(roles)] for i, role in enumerate(roles)}
    hidden_size = weights[W_IH].shape[0] // len(operator.gates)
    directions = 2 if bidirectional else 1

    def rows(role: str) -> list[Value]:
        """Gates in ONNX's order, for each direction."""
        given = of_role[role]
        return [_reordered(op, ir, value, operator.gates, hidden_size) for value in given]

    def stacked(values: Sequence[Value]) -> Value:
        """[D, ...] of those of each direction."""
        parts = [op.Unsqueeze(value, [0]) for value in values]
        return op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]

    both_biases = None
    if biases:
        pairs = zip(rows("b_ih"), rows("b_hh"), strict=True)
        both_biases = stacked([op.Concat(*pair, axis=0) for pair in pairs])
    activations = {}
    if operator.kind == "RNN":
        activations["activations"] = list(operator.activations * directions)
    y, *states = getattr(op, operator.kind)(
        input,
        stacked(rows("w_ih")),
        stacked(rows("w_hh")),
        both_biases,
        None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32),
        *(hx or [None] * len(facts.states)),
        direction="bidirectional" if bidirectional else "forward",
        hidden_size=hidden_size,
        **activations,
        **operator.attributes,
    )
    for state in states:  # what the exporter says of values that are not in a list
        state.dtype = input.dtype
        state.shape = ir.Shape([directions, input.shape[1], hidden_size])
    if bidirectional:  # [T, D, B, H] -> [T, B, D*H]
        sizes = op.Constant(value_ints=[0, 0, directions * hidden_size])  # 0: as it is
        return [op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), sizes), _List(states)]
    return [op.Squeeze(y, [1]), _List(states)]


def _reordered(op: Any, ir: Any, value: Value, gates: tuple[int, ...], hidden_size: int) -> Value:
    if len(gates) == 1:
        return value
    rows = torch.arange(len(gates) * hidden_size, device="cpu").view(len(gates), -1)
    order = rows[list(gates)].flatten().numpy()
    return op.Gather(value, op.Constant(value=ir.tensor(order)), axis=0)


def _fold_weights(model: Any) -> None:
    """Computes what our translations make of constants, however large."""
    optimizer, passes = _import("onnxscript.optimizer"), _import("onnx_ir.passes.common")

    def is_ours(node: Any) -> bool:
        source = node.metadata_props.get("pkg.torch.onnx.fx_node", "")
        return "torch.ops.fusedrnn." in source and node.op_type not in INPUTS

    unlimited = 2**62
    optimizer.fold_constants(
        model, input_size_limit=unlimited, output_size_limit=unlimited, should_fold=is_ours
    )
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)


# Import.

INPUTS = {
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
}
"""The inputs of each operator; optional ones may be missing or have the name ""."""

PEEPHOLES = ("p_i", "p_o", "p_f")
"""What the zoo calls the thirds of an LSTM's `P`."""

STANDARD = ("", "ai.onnx")
"""The names of ONNX's own domain."""

NOT_CONSTANT = {"If", "Loop", "Scan", "SequenceMap", "Bernoulli", "Multinomial"} | {
    f"Random{kind}" for kind in ("Normal", "NormalLike", "Uniform", "UniformLike")
}
"""Nodes that are random, or have subgraphs, which may refer to anything."""


class _Constants:
    """The values of a graph that are known without running it.

    Initializers, constants, and what nodes make of these: exporters leave some of the reordering
    of weights in the graph.
    """

    def __init__(self, model: Any) -> None:
        self._onnx = _import("onnx")
        self._evaluator = _import("onnx.reference").ReferenceEvaluator
        self._opsets = {opset.domain: opset.version for opset in model.opset_import}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers: dict[str, Any] = {}
        for node in model.graph.node:  # each after those whose outputs it takes
            known = all(name in self._initializers or name in self._makers for name in _given(node))
            if known and node.domain in STANDARD and node.op_type not in NOT_CONSTANT:
                self._makers |= {name: node for name in node.output}
        self._computed: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """The array of that name, or None if it is not a constant."""
        if name in self._initializers:
            return self._onnx.numpy_helper.to_array(self._initializers[name])
        if name in self._makers and name not in self._computed:
            node = self._makers[name]
            inputs = {input: self.get(input) for input in _given(node)}
            results = self._evaluator(node, opsets=self._opsets).run(None, inputs)
            self._computed |= dict(zip(node.output, results, strict=True))
        return self._computed.get(name)


def _given(node: Any) -> list[str]:
    """The names of its inputs, without optional ones that are left out."""
    return [name for name in node.input if name]


class _Node:
    """A node's attributes and inputs by name, and errors that begin with the node."""

    def __init__(self, proto: Any, constants: _Constants) -> None:
        self.kind: str = proto.op_type
        self.shown = f"{proto.op_type} node {_name(proto)!r}"
        self._inputs = dict(zip(INPUTS[self.kind], proto.input, strict=False))
        self._constants = constants
        get = _import("onnx").helper.get_attribute_value
        self._attributes = {attribute.name: get(attribute) for attribute in proto.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        value = self._attributes.get(name, default)
        return _text(value) if isinstance(value, bytes) else value

    def has(self, name: str) -> bool:
        return bool(self._inputs.get(name))

    def constant(self, name: str) -> Any:
        """The array of an input, or None if it is not a constant."""
        return self._constants.get(self._inputs[name])

    def refuse(self, why: str) -> ValueError:
        return ValueError(f"{self.shown}: {why}")


def _name(node: Any) -> str:
    """Nodes need no name; their outputs have one."""
    return str(node.name or next(filter(None, node.output), ""))


def _find(graph: Any, name: str | None) -> Any:
    nodes = [n for n in graph.node if n.op_type in INPUTS and n.domain in STANDARD]
    known = ", ".join(f"{_name(n)!r} ({n.op_type})" for n in nodes) or "none"
    if name is None and len(nodes) != 1:
        raise ValueError(
            f"node: expected one of the model's LSTM, GRU and RNN nodes by name, for it has not "
            f"exactly one; it has {known}"
        )
    found = [n for n in nodes if name is None or name == n.name or name in filter(None, n.output)]
    if len(found) != 1:
        raise ValueError(
            f"node: expected the name of one of the model's LSTM, GRU and RNN nodes, {known}; "
            f"got {name!r}"
        )
    return found[0]


def _module(node: _Node) -> nn.Module:
    directions = _directions(node)
    kind = _kind(node, directions)
    _refuse_what_modules_do_not(node)
    w, r = _weight(node, "W"), _weight(node, "R")
    b = _weight(node, "B") if node.has("B") else None
    p = _weight(node, "P") if kind.peephole else None
    theirs = next(op.gates for op in OPERATORS.values() if op.kind == node.kind)
    gates, hidden_size = len(theirs), r.size(-1)
    shapes = {
        "W": (w, (directions, gates * hidden_size, w.size(-1))),
        "R": (r, (directions, gates * hidden_size, hidden_size)),
        "B": (b, (directions, 2 * gates * hidden_size)),
        "P": (p, (directions, len(PEEPHOLES) * hidden_size)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tensor.shape != shape:
            raise node.refuse(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if (claimed := node.attribute("hidden_size", hidden_size)) != hidden_size:
        raise node.refuse(f"hidden_size is {claimed}, and R is made for {hidden_size}")

    # Where ONNX has the gates that our cell has: the inverse of `gates`, or part of it.
    left_out = "f" if kind.input_forget else None
    places = [theirs.index(k) for k, gate in enumerate(kind.gates) if gate != left_out]
    parts = []
    for direction in range(directions):
        weights = {"weight_ih": w[direction], "weight_hh": r[direction]}
        if b is not None:
            weights["bias_ih"], weights["bias_hh"] = b[direction].chunk(2)
        weights = {name: reordered(weight, places, gates) for name, weight in weights.items()}
        if p is not None:
            of_gate = dict(zip(PEEPHOLES, p[direction].chunk(len(PEEPHOLES)), strict=True))
            weights["weight_unit"] = torch.stack(
                [of_gate[name] for name in kind.cell().unit_weights]
            )
        parts.append(Direction(node.shown, kind, weights))
    return assemble([parts], batch_first=node.attribute("layout", 0) == 1)


def _directions(node: _Node) -> int:
    direction = node.attribute("direction", "forward")
    if direction == "reverse":
        raise node.refuse(
            "direction 'reverse' alone is not what the modules do. Set it to 'forward', and flip "
            "the module's input and output in time"
        )
    if direction not in ("forward", "bidirectional"):
        raise node.refuse(f"direction: expected 'forward' or 'bidirectional', got {direction!r}")
    return 2 if direction == "bidirectional" else 1


def _kind(node: _Node, directions: int) -> Kind:
    """The cell of the node: its functions, the place of its reset gate, and what an LSTM has."""
    clip = node.attribute("clip")
    if clip is not None and not clip > 0:
        raise node.refuse(f"clip: expected a positive number, got {clip}")
    functions = [function.of_zoo(clip) for function in _functions(node, directions)]
    if node.kind == "RNN":
        return Kind("rnn", functions[0])
    gate, candidate, *output = functions
    if node.kind == "GRU":
        after = node.attribute("linear_before_reset", 0)
        return Kind("gru" if after else "gru_reset_before", candidate, gate)
    if clip is not None:
        raise node.refuse(
            f"clip={clip}: ONNX's text has it before every function, and onnxruntime before all "
            f"but the last one, so it is not known which of the two was meant. Take the attribute "
            f"away, and give fusedrnn.cells.zoo.lstm functions that clip, for a Recurrent that "
            f"takes over the state_dict of this node's module"
        )
    return Kind(
        "lstm", candidate, gate, output[0] if output[0] != candidate else None,
        peephole=node.has("P") and _is_not_zero(node, "P"),
        input_forget=bool(node.attribute("input_forget", 0)),
    )  # fmt: skip


def _functions(node: _Node, directions: int) -> list[Function]:
    """Those of each direction, which have to be the same in both."""
    usual = next(op.activations for op in OPERATORS.values() if op.kind == node.kind)
    names = [_text(name) for name in node.attribute("activations", usual * directions)]
    count = len(usual)
    if len(names) != count * directions:
        raise node.refuse(
            f"activations: expected {count} for each of {directions} direction(s), got {names}"
        )
    numbers = [node.attribute(f"activation_{which}", []) for which in ("alpha", "beta")]
    try:
        functions = functions_of(names, *numbers)
    except ValueError as error:
        raise node.refuse(str(error)) from None
    if functions[count:] not in ([], functions[:count]):
        raise node.refuse(
            f"activations: expected the same in both directions, got {names} with the numbers "
            f"{numbers}. Make a node of each direction, convert both, and join their outputs"
        )
    return functions[:count]


def _refuse_what_modules_do_not(node: _Node) -> None:
    if node.has("sequence_lens") and node.constant("sequence_lens") is not None:
        raise node.refuse(
            "sequence_lens is a constant, which no module holds. Take that input away from the "
            "node, and give it to the module as lengths"
        )
    for name in ("initial_h", "initial_c"):
        if node.has(name) and node.constant(name) is not None and _is_not_zero(node, name):
            raise node.refuse(
                f"{name} is a constant that is not zero, which no module holds. Take that input "
                "away from the node, and give it to the module as hx"
            )


def _is_not_zero(node: _Node, name: str) -> bool:
    array = node.constant(name)
    return array is None or bool(array.astype("float64").any())


def _weight(node: _Node, name: str) -> Tensor:
    array = node.constant(name) if node.has(name) else None
    if array is None:
        raise node.refuse(
            f"{name}: expected a constant of the graph, got "
            + ("a value that is computed from its inputs" if node.has(name) else "nothing")
        )
    dtype = getattr(torch, array.dtype.name, None)
    if dtype not in DTYPES:
        raise node.refuse(f"{name}: there are no kernels for {array.dtype.name}")
    if dtype == torch.bfloat16:  # which torch does not take from NumPy
        array = array.astype("float32")
    return torch.tensor(array).to(dtype)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
