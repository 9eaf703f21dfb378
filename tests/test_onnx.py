"""ONNX both ways: exported networks compute the same in onnxruntime, and nodes become modules.

An export takes seconds, so many networks share one: each of `CASES` is a module of one model.
Nodes for the import are made by hand; what they compute is onnxruntime's word, or where that has no
kernel (other layouts, float64) follows from it.
"""

from __future__ import annotations

import itertools
import logging
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TORCH_CELLS, UNMODIFIED
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn.cells.zoo import lstm
from fusedrnn.testing.parity import Case

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

NODES = ("LSTM", "GRU", "RNN")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch's exporter warns of optional packages and of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(before)


def export(model: nn.Module, args: tuple[Any, ...], f: Path | None = None, **options: Any) -> Any:
    return fusedrnn.onnx.export(model, args, f, verbose=False, **options)


def session(model: Any) -> Any:
    proto = model if isinstance(model, onnx.ModelProto) else model.model_proto
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def leaves(values: Any) -> list[Tensor]:
    """The tensors of a call's arguments or results, flat."""
    return torch.utils._pytree.tree_leaves(values)


def run(running: Any, args: Any) -> list[Tensor]:
    names = [value.name for value in running.get_inputs()]
    tensors = [leaf for leaf in leaves(args) if leaf is not None]
    inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    return [torch.from_numpy(array) for array in running.run(None, inputs)]


def check(running: Any, model: nn.Module, args: Any, what: str, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        expected = leaves(model(*args))
    found = run(running, args)
    assert len(found) == len(expected), what
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype, (what, i)
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, msg=lambda text, i=i: f"{what}, {i}: {text}"
        )


def kinds(program: Any) -> list[str]:
    return [node.op_type for node in program.model.graph]


def same_weights(found: nn.Module, module: nn.Module, layer: int = 0) -> None:
    expected = module.state_dict()
    own = found.state_dict()
    assert own, found
    for name, value in own.items():
        other = expected[name.replace("_l0", f"_l{layer}")]
        assert value.dtype == other.dtype and torch.equal(value, other), (name, layer)


# Export.


def cases() -> list[Case]:
    """A random sixth of all combinations, with weights of their own, for equal nodes are merged."""
    grid = list(itertools.product(TORCH_CELLS, (1, 2, 3), *[(False, True)] * 4))
    random.Random(0).shuffle(grid)
    return [
        Case(
            cell=cell, layers=layers, bidirectional=both, bias=bias, batch_first=first, hx=hx,
            I=3, H=5, seed=seed,
        )
        for seed, (cell, layers, both, bias, first, hx) in enumerate(grid[: len(grid) // 6])
    ]  # fmt: skip


CASES = cases()


class Networks(nn.Module):
    """Modules of many cases on the same input [T, B, 3], each on its own states."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = cases
        self.networks = nn.ModuleList([case.module(dtype=torch.float32) for case in cases])

    def states(self, B: int) -> list[list[Tensor]]:
        generator = torch.Generator().manual_seed(B)
        return [
            [
                torch.randn(case.layers * (1 + case.bidirectional), B, case.H, generator=generator)
                for _ in range(len(case.facts.states) * case.hx)
            ]
            for case in self.cases
        ]

    def forward(self, x: Tensor, states: list[list[Tensor]]) -> list[Any]:
        results = []
        for case, network, state in zip(self.cases, self.networks, states, strict=True):
            own = x.transpose(0, 1) if case.batch_first else x
            results.append(network(own, case.hx_of(state)))
        return results


@pytest.mark.parametrize("part", range(2))
def test_networks_of_any_steps_and_batch(part: int) -> None:
    """And every node is the layer again that it was."""
    cases = CASES[part::2]
    model = Networks(cases).eval()
    steps, batch = torch.export.Dim("steps"), torch.export.Dim("batch")
    states = model.states(3)
    shapes = ({0: steps, 1: batch}, [[{1: batch} for _ in own] for own in states])
    program = export(model, (torch.randn(4, 3, 3), states), dynamic_shapes=shapes)

    expected = [(c.facts.module, c.layers) for c in cases]
    nodes = [kind for kind in kinds(program) if kind in NODES]
    assert nodes == [kind for kind, layers in expected for _ in range(layers)]
    running = session(program)
    for T, B in ((4, 3), (1, 1), (9, 7), (2, 1)):
        x = torch.randn(T, B, 3, generator=torch.Generator().manual_seed(T))
        check(running, model, (x, model.states(B)), f"T={T} B={B} of {cases}")

    names = iter([node.name for node in program.model.graph if node.op_type in NODES])
    for case, network in zip(cases, model.networks, strict=True):
        for layer in range(case.layers):
            found = fusedrnn.from_onnx(program.model_proto, next(names))
            assert type(found) is type(network) and found.mode == network.mode, case
            assert found.bias == case.bias and found.bidirectional == case.bidirectional, case
            same_weights(found, network, layer)


class Cells(nn.Module):
    """Every cell with and without biases, states and batch, and networks without batch."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(
            [
                fusedrnn.LSTMCell(3, 5),
                fusedrnn.LSTMCell(3, 5, bias=False),
                fusedrnn.GRUCell(3, 5),
                fusedrnn.GRUCell(3, 5, bias=False),
                fusedrnn.RNNCell(3, 5),
                fusedrnn.RNNCell(3, 5, bias=False, nonlinearity="relu"),
            ]
        )
        self.networks = nn.ModuleList(
            [fusedrnn.LSTM(3, 5, 2, bidirectional=True), fusedrnn.GRU(3, 5, batch_first=True)]
        )

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> list[Any]:
        results = []
        for cell in self.cells:
            lstm = isinstance(cell, fusedrnn.LSTMCell)
            results += [cell(x), cell(x[0]), cell(x, (h, c) if lstm else h)]
            results.append(cell(x[0], (h[0], c[0]) if lstm else h[0]))
        lstm, gru = self.networks
        results += [lstm(x), lstm(x, (h[:4], c[:4])), gru(x), gru(x, h[:1])]
        return results


def test_cells_and_single_sequences() -> None:
    torch.manual_seed(0)
    model = Cells().eval()
    args = torch.randn(4, 3), torch.randn(4, 5), torch.randn(4, 5)
    check(session(export(model, args)), model, args, "cells")


class Three(nn.Module):
    """One LSTM, GRU and RNN one after the other."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = fusedrnn.LSTM(3, 5, **options)
        self.gru = fusedrnn.GRU(5, 6, **options)
        self.rnn = fusedrnn.RNN(6, 4, **options)

    def forward(self, x: Tensor) -> list[Any]:
        a, b = self.lstm(x)
        c, d = self.gru(a)
        return [b, d, *self.rnn(c)]


def test_training_mode_and_checkpoints() -> None:
    """What is kept for backward is no part of the graph."""
    torch.manual_seed(0)
    model, x = Three(checkpoint=2).train(), torch.randn(5, 2, 3)
    program = export(model, (x.clone().requires_grad_(),))
    assert sorted(kinds(program)) == sorted([*NODES, *["Squeeze"] * 3])
    check(session(program), model, (x,), "checkpoint=2")


def test_float16_without_gradients() -> None:
    torch.manual_seed(0)
    model = Three(dtype=torch.float16).eval()
    x = torch.randn(5, 2, 3, dtype=torch.float16)
    with torch.no_grad():
        program = export(model, (x,))
    check(session(program), model, (x,), "float16", 4 * 2**-11)


def test_float64_by_the_reference_of_onnx() -> None:
    torch.manual_seed(0)
    model = Three(dtype=torch.float64).eval()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    program = export(model, (x,))
    onnx.checker.check_model(program.model_proto, full_check=True)
    found = ReferenceEvaluator(program.model_proto).run(None, {"x": x.numpy()})
    for a, b in zip(found, leaves(model(x)), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b.detach(), rtol=1e-12, atol=1e-13)


def test_a_later_opset() -> None:
    torch.manual_seed(0)
    model = Three().eval()
    x = torch.randn(5, 2, 3)
    program = export(model, (x,), opset_version=22)
    assert program.model_proto.opset_import[0].version == 22
    check(session(program), model, (x,), "opset 22")


def test_weights_are_stored_in_order_however_large(tmp_path: Path) -> None:
    """The exporter's own folding ends at 8192 values; nodes of others are left to it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = fusedrnn.LSTM(9, 70, bidirectional=True)
            self.table = nn.Parameter(torch.randn(100, 100))

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0].sum() + self.table.exp().sum()

    model, x = Model().eval(), torch.randn(4, 3, 9)
    path = tmp_path / "model.onnx"
    program = export(model, (x,), path)
    assert kinds(program)[0] == "LSTM" and "Exp" in kinds(program)
    assert "Gather" not in kinds(program)
    assert (tmp_path / "model.onnx.data").exists()
    check(onnxruntime.InferenceSession(path), model, (x,), "saved", 1e-3)
    same_weights(fusedrnn.from_onnx(path), model.lstm)

    export(model, (x,), path := tmp_path / "one.onnx", external_data=False)
    assert not (tmp_path / "one.onnx.data").exists()
    same_weights(fusedrnn.from_onnx(str(path)), model.lstm)

    # By the table only they are in order as soon as somebody folds what is constant.
    table = fusedrnn.onnx.translation_table()
    program = torch.onnx.export(
        model, (x,), dynamo=True, custom_translation_table=table, verbose=False
    )
    assert "Gather" in kinds(program)
    check(session(program), model, (x,), "by the table", 1e-3)
    same_weights(fusedrnn.from_onnx(program.model_proto), model.lstm)


def test_translations_of_others() -> None:
    from onnxscript import opset18

    def negative(x: Any) -> Any:
        return opset18.Neg(x)

    class Model(Three):
        def forward(self, x: Tensor) -> Any:
            return torch.erfinv(self.rnn(self.gru(self.lstm(x)[0])[0])[0])

    table = {torch.ops.aten.erfinv.default: negative}
    program = export(Model().eval(), (torch.randn(5, 2, 3),), custom_translation_table=table)
    assert kinds(program)[-1] == "Neg"


class Packing(nn.Module):
    """Packs within the model, where torch.export cannot know the sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = fusedrnn.GRU(3, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(self.gru(packed)[0])[0]


class Functional(Packing):
    def forward(self, data: Tensor, batch_sizes: Tensor) -> Tensor:
        weights = list(self.gru.parameters())
        hx = data.new_zeros(1, 2, 5)
        return fusedrnn.functional.gru(data, hx, weights, batch_sizes=batch_sizes)[0]


def packed() -> PackedSequence:
    return pack_padded_sequence(torch.randn(4, 2, 3), torch.tensor([4, 2]))


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (fusedrnn.LSTM(3, 5, proj_size=2), (torch.randn(4, 2, 3),), "no projection.*proj_size=0"),
        (
            fusedrnn.GRU(3, 5, dtype=torch.bfloat16),
            (torch.randn(4, 2, 3, dtype=torch.bfloat16),),
            r"GRU takes no bfloat16.*model\.float\(\)",
        ),
        (fusedrnn.GRU(3, 5), (packed(),), "no packed sequences.*lengths="),
        (Packing(), (torch.randn(4, 2, 3), torch.tensor([4, 2])), "no packed sequences.*lengths="),
        (Functional(), tuple(packed())[:2], "no packed sequences.*lengths="),
    ],
    ids=["projected", "bfloat16", "packed", "packing", "functional"],
)
def test_what_onnx_has_not(model: nn.Module, args: Any, message: str) -> None:
    """The reason is in the text of what torch.onnx.export raises."""
    table = fusedrnn.onnx.translation_table()
    with pytest.raises(torch.onnx.OnnxExporterError, match=f"(?s){message}"):
        torch.onnx.export(
            model.eval(), args, dynamo=True, custom_translation_table=table, verbose=False
        )


class Padded(nn.Module):
    """The op that a module with `lengths` is made of: layers of each kind, one direction or two."""

    def __init__(self) -> None:
        super().__init__()
        self.cases = [
            Case(cell=cell, I=3, H=5, bidirectional=both, hx=hx, seed=seed)
            for seed, (cell, both, hx) in enumerate(
                itertools.product(("rnn_relu", "lstm", "gru"), (False, True), (False, True))
            )
        ]
        self.networks = nn.ModuleList([case.module(dtype=torch.float32) for case in self.cases])

    def forward(self, x: Tensor, lengths: Tensor, h: Tensor, c: Tensor) -> list[Any]:
        results = []
        for case, network in zip(self.cases, self.networks, strict=True):
            directions, facts = 1 + case.bidirectional, case.facts
            output, hn, *_ = torch.ops.fusedrnn.padded_forward(
                x,
                lengths,
                [state[:directions] for state in (h, c)[: len(facts.states)] if case.hx],
                list(network.parameters()),
                *UNMODIFIED,
                facts.spec,
                True,
                False,
                case.bidirectional,
                False,
            )
            results += [output, *hn]
        return results

    def expected(self, x: Tensor, lengths: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        results = []
        for case, network in zip(self.cases, self.networks, strict=True):
            both = slice(1 + case.bidirectional)
            states = [h[both], c[both]][: len(case.facts.states)]
            hx = case.hx_of(states) if case.hx else None
            sequence = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output, state = network(sequence, hx)
            padded, _ = pad_packed_sequence(output, total_length=x.size(0))
            results += leaves((padded, state))
        return results


def test_lengths() -> None:
    torch.manual_seed(0)
    model = Padded().eval()

    def args(T: int, B: int) -> tuple[Tensor, ...]:
        lengths = torch.randint(1, T + 1, (B,))
        return torch.randn(T, B, 3), lengths, torch.randn(2, B, 5), torch.randn(2, B, 5)

    steps, batch = torch.export.Dim("steps"), torch.export.Dim("batch")
    shapes = ({0: steps, 1: batch}, {0: batch}, {1: batch}, {1: batch})
    program = export(model, args(6, 4), dynamic_shapes=shapes)
    assert [kind for kind in kinds(program) if kind in NODES] == sorted(
        NODES * 4, key=["RNN", "LSTM", "GRU"].index
    )
    running = session(program)
    for T, B in ((6, 4), (1, 1), (9, 7)):
        given = args(T, B)
        with torch.no_grad():
            expected = model.expected(*given)
        for a, b in zip(run(running, given), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_lengths_of_modules() -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = fusedrnn.LSTM(3, 5, 2, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return self.lstm(x, lengths=lengths)

    model = Model().eval()
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps")
    given = torch.randn(3, 6, 3), torch.tensor([2, 6, 1])
    program = export(model, given, dynamic_shapes=({0: batch, 1: steps}, {0: batch}))
    check(session(program), model, given, "as exported")
    other = torch.randn(2, 9, 3), torch.tensor([9, 4])
    check(session(program), model, other, "other sizes")


def test_reset_before() -> None:
    torch.manual_seed(0)
    model = fusedrnn.GRU(3, 5, 2, bidirectional=True, reset_after=False).eval()
    x = torch.randn(4, 2, 3)
    program = export(model, (x,))
    check(session(program), model, (x,), "reset_after=False")
    proto = program.model_proto
    names = [node.name for node in proto.graph.node if node.op_type == "GRU"]
    for layer, name in enumerate(names):
        found = fusedrnn.from_onnx(proto, name)
        assert not found.reset_after
        same_weights(found, model, layer)


# Import.


def node_model(
    kind: str = "LSTM",
    *,
    directions: int = 1,
    bias: bool = True,
    dtype: int = TensorProto.FLOAT,
    opset: int = 21,
    inputs: dict[str, Any] | None = None,
    outputs: int = 1,
    **attributes: Any,
) -> Any:
    """A model of one node `it`, I=3 and H=5; `inputs` adds constants, or inputs of that shape."""
    generator = torch.Generator().manual_seed(directions)
    G, H = GATES[kind], 5
    sizes: dict[str, Any] = {"W": (G * H, 3), "R": (G * H, H)}
    if bias:
        sizes["B"] = (2 * G * H,)
    own = {
        name: torch.randn(directions, *size, generator=generator) for name, size in sizes.items()
    } | (inputs or {})
    known = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    names = [name if name in own or name == "X" else "" for name in known]
    while not names[-1]:
        names.pop()
    initializers = [
        helper.make_tensor(name, dtype, value.shape, value.flatten().tolist())
        for name, value in own.items()
        if isinstance(value, Tensor)
    ]
    taken = [helper.make_tensor_value_info("X", dtype, ["a", "b", 3])]
    taken += [
        helper.make_tensor_value_info(name, dtype, shape)
        for name, shape in own.items()
        if not isinstance(shape, Tensor)
    ]
    given = ["Y", "Y_h", "Y_c"][:outputs]
    node = helper.make_node(
        kind,
        names,
        given,
        name="it",
        hidden_size=H,
        direction=attributes.pop("direction", ("forward", "bidirectional")[directions - 1]),
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "graph",
        taken,
        [helper.make_tensor_value_info(name, dtype, None) for name in given],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"activations": ["sigmoid", "tanh", "tanh"]}),
    ("RNN", {}),
    ("RNN", {"activations": ["Relu"]}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {}),
]


PEEPHOLES = torch.linspace(-1, 1, 15)
HARD = {"activations": ["HardSigmoid", "Softsign"]}

# What becomes a `Recurrent`. `P` is one direction's.
ZOO: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}),
    ("RNN", {"activations": ["Elu"]}),
    ("RNN", {"activations": ["Elu"], "activation_alpha": [0.7]}),
    ("RNN", {"activations": ["HardSigmoid"]}),
    ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.3]}),
    ("RNN", {"activations": ["LeakyRelu"]}),
    ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [1.5], "activation_beta": [0.7]}),
    ("RNN", {"activations": ["Sigmoid"]}),
    ("GRU", {"activations": ["sigmoid", "softplus"]}),
    ("RNN", {"activations": ["Softsign"]}),
    ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.5]}),
    ("RNN", {"activations": ["Softsign"], "clip": 0.7}),
    ("RNN", {"clip": 0.7}),
    ("GRU", HARD | {"linear_before_reset": 1, "activation_alpha": [0.3]}),
    ("GRU", HARD | {"activation_beta": [0.4]}),
    ("GRU", {"linear_before_reset": 1, "clip": 0.6}),
    ("GRU", {"clip": 0.6}),
    ("LSTM", {"P": PEEPHOLES}),
    ("LSTM", {"input_forget": 1}),
    ("LSTM", {"input_forget": 1, "P": PEEPHOLES}),
    ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}),
    ("LSTM", {"activations": ["Sigmoid", "Softsign", "Elu"], "P": PEEPHOLES}),
    ("LSTM", {"activations": ["HardSigmoid", "LeakyRelu", "Elu"], "activation_beta": [0.4],
              "activation_alpha": [0.3, 0.2, 0.5]}),
]  # fmt: skip


def twice(options: dict[str, Any], directions: int) -> dict[str, Any]:
    """Activations and their numbers are listed for each direction."""
    listed = {name: given for name, given in options.items() if isinstance(given, list)}
    return options | {name: given * directions for name, given in listed.items()}


@pytest.mark.parametrize("bias", [True, False], ids=["", "no-bias"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("kind", "options"), OPTIONS + ZOO)
def test_a_module_computes_what_its_node_does(
    kind: str, options: dict[str, Any], directions: int, bias: bool
) -> None:
    expected = fusedrnn.Recurrent if (kind, options) in ZOO else getattr(fusedrnn, kind)
    options = twice(options, directions)
    p = options.pop("P", None)
    constants = {} if p is None else {"P": torch.stack([p, -p.flip(0)][:directions])}
    states = {"initial_h": [directions, "b", 5]}
    if kind == "LSTM":
        states["initial_c"] = [directions, "b", 5]
    count = 3 if kind == "LSTM" else 2
    model = node_model(
        kind, directions=directions, bias=bias, inputs=states | constants, outputs=count, **options
    )
    module = fusedrnn.from_onnx(model)
    assert type(module) is expected and module.bias == bias
    assert (module.input_size, module.hidden_size, module.num_layers) == (3, 5, 1)
    torch.manual_seed(0)
    x, *hx = torch.randn(6, 4, 3), *(torch.randn(directions, 4, 5) for _ in states)
    y, *finals = run(session(model), [x, *hx])
    output, final = module(x, tuple(hx) if kind == "LSTM" else hx[0])
    torch.testing.assert_close(output, y.transpose(1, 2).flatten(2))
    for a, b in zip(leaves(final), finals, strict=True):
        torch.testing.assert_close(a, b)

    # Batch first: onnxruntime has no kernel, but it is the same node on transposed tensors.
    model = node_model(
        kind, directions=directions, bias=bias, inputs=constants, layout=1, **options
    )
    first = fusedrnn.from_onnx(model)
    assert first.batch_first and not module.batch_first
    same_weights(first, module)
    torch.testing.assert_close(first(x.transpose(0, 1))[0], module(x)[0].transpose(0, 1))


@pytest.mark.parametrize("name", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
def test_dtypes(name: str) -> None:
    kind = getattr(TensorProto, name)
    module = fusedrnn.from_onnx(node_model(dtype=kind, opset=22, bias=False))
    dtype = {"FLOAT": torch.float32, "DOUBLE": torch.float64}.get(name)
    dtype = dtype or getattr(torch, name.lower())
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    exact = fusedrnn.from_onnx(node_model(bias=False)).weight_ih_l0
    assert torch.equal(module.weight_ih_l0, exact.to(dtype))
    assert module(torch.randn(4, 2, 3).to(dtype))[0].dtype == dtype


def test_new_modules_train_and_leave_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    module = fusedrnn.from_onnx(node_model("GRU", linear_before_reset=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training and all(parameter.requires_grad for parameter in module.parameters())
    module(torch.randn(4, 2, 3))[0].sum().backward()
    assert module.weight_hh_l0.grad is not None


def test_gradients_of_a_node_with_peepholes() -> None:
    """Those of the operator's equations, written in PyTorch, in float64."""
    model = node_model(dtype=TensorProto.DOUBLE, inputs={"P": PEEPHOLES[None].double()})
    module = fusedrnn.from_onnx(model)
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    module(x)[0].square().sum().backward()
    w, r, b, p = (
        torch.from_numpy(numpy_helper.to_array(tensor)[0].copy()).requires_grad_()
        for tensor in model.graph.initializer
    )
    p_i, p_o, p_f = p.chunk(3)
    h = c = torch.zeros(4, 5, dtype=torch.float64)
    loss = torch.zeros((), dtype=torch.float64)
    for step in x:
        i, o, f, g = (step @ w.T + h @ r.T + b[:20] + b[20:]).chunk(4, -1)
        i, f = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c)
        c = f * c + i * torch.tanh(g)
        h = torch.sigmoid(o + p_o * c) * torch.tanh(c)
        loss = loss + h.square().sum()
    loss.backward()
    for name, theirs in (("weight_ih", w), ("weight_hh", r), ("bias_ih", b)):
        i, o, f, g = theirs.grad[:20].chunk(4)
        ours = getattr(module, f"{name}_l0").grad
        torch.testing.assert_close(ours, torch.cat([i, f, g, o]), rtol=1e-10, atol=1e-12)
    i, o, f = p.grad.chunk(3)
    ours = module.weight_unit_l0.grad
    torch.testing.assert_close(ours, torch.stack([i, f, o]), rtol=1e-10, atol=1e-12)


def test_clip_of_an_lstm() -> None:
    """What the refusal advises; onnxruntime does not clip the input of the last function."""
    model = node_model(clip=0.7)
    plain = fusedrnn.from_onnx(node_model())  # with the same weights
    cell = lstm(
        activation=lambda a: torch.tanh(torch.clamp(a, -0.7, 0.7)),
        recurrent_activation=lambda a: torch.sigmoid(torch.clamp(a, -0.7, 0.7)),
        output_activation="tanh",
    )
    module = fusedrnn.Recurrent(cell, 3, 5)
    module.load_state_dict(plain.state_dict())
    x = 2 * torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    (y,) = run(session(model), [x])
    torch.testing.assert_close(module(x)[0], y[:, 0])


def test_by_name() -> None:
    model = node_model()
    (first,) = model.graph.node
    second = model.graph.node.add()
    second.CopyFrom(first)
    second.name, second.output[:] = "", ["other"]
    by = {name: fusedrnn.from_onnx(model, name) for name in ("it", "Y", "other")}
    same_weights(by["it"], by["Y"])
    known = r"'it' \(LSTM\), 'other' \(LSTM\)"
    with pytest.raises(ValueError, match=f"node: expected one.*it has {known}"):
        fusedrnn.from_onnx(model)
    with pytest.raises(ValueError, match=f"node: expected the name.*{known}; got 'that'"):
        fusedrnn.from_onnx(model, "that")
    del model.graph.node[:]
    with pytest.raises(ValueError, match="it has none"):
        fusedrnn.from_onnx(model)


def test_weights_that_nodes_make_of_constants() -> None:
    """Weights in float16, transposed, as constants: what converters leave to be folded."""
    model = node_model("RNN")
    graph = model.graph
    plain = fusedrnn.from_onnx(model)
    (w,) = [tensor for tensor in graph.initializer if tensor.name == "W"]
    stored = numpy_helper.from_array(
        numpy_helper.to_array(w).transpose(0, 2, 1).astype("float16"), "stored"
    )
    graph.initializer.remove(w)
    made = [
        helper.make_node("Constant", [], ["constant"], value=stored),
        helper.make_node("Transpose", ["constant"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["turned"], ["W"], to=TensorProto.FLOAT),
    ]
    for node in reversed(made):
        graph.node.insert(0, node)
    found = fusedrnn.from_onnx(model)
    assert torch.equal(found.weight_ih_l0, plain.weight_ih_l0.half().float())
    assert torch.equal(found.weight_hh_l0, plain.weight_hh_l0)

    graph.node[1].op_type = "RandomUniformLike"
    del graph.node[1].attribute[:]
    with pytest.raises(ValueError, match="W: expected a constant.*computed"):
        fusedrnn.from_onnx(model)


def test_states_that_a_deep_graph_computes() -> None:
    model = node_model(inputs={"initial_h": [1, "b", 5]})
    names = ["initial_h", *(f"n{i}" for i in range(2000))]
    for i, (taken, given) in enumerate(itertools.pairwise(names)):
        model.graph.node.insert(i, helper.make_node("Neg", [taken], [given]))
    model.graph.node[-1].input[5] = names[-1]
    same_weights(fusedrnn.from_onnx(model), fusedrnn.from_onnx(node_model()))


def test_zeros_are_no_states() -> None:
    zero, wide = torch.zeros(1, 4, 5), torch.zeros(1, 15)
    model = node_model(inputs={"initial_h": zero, "initial_c": zero, "P": wide}, outputs=3)
    module, x = fusedrnn.from_onnx(model), torch.randn(6, 4, 3)
    output, (hn, cn) = module(x)
    for a, b in zip((output.unsqueeze(1), hn, cn), run(session(model), [x]), strict=True):
        torch.testing.assert_close(a, b)


ones = torch.ones(1, 1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "reverse"}, "direction 'reverse'.*flip"),
        ({"direction": "sideways"}, "direction: expected.*got 'sideways'"),
        ({"clip": 3.0}, "clip=3.0.*Take the attribute away"),
        ({"kind": "RNN", "clip": 0.0}, "clip: expected a positive number, got 0.0"),
        ({"inputs": {"P": torch.ones(1, 10)}}, r"P: expected shape \(1, 15\), got \(1, 10\)"),
        ({"inputs": {"P": [1, 15]}}, "P: expected a constant of the graph, got a value"),
        ({"inputs": {"sequence_lens": torch.tensor([2])}}, "sequence_lens is a constant.*lengths"),
        ({"inputs": {"initial_h": ones}}, "initial_h is a constant that is not zero.*hx"),
        ({"inputs": {"initial_c": ones}}, "initial_c is a constant that is not zero.*hx"),
        ({"activations": ["Tanh"]}, r"activations: expected 3 for each of 1 .*, got \['Tanh'\]"),
        (
            {"kind": "RNN", "activations": ["Tanh", "Relu"], "directions": 2},
            r"activations: expected the same in both directions, got \['Tanh', 'Relu'\].*each",
        ),
        (
            {"kind": "RNN", "activations": ["Elu", "Elu"], "directions": 2,
             "activation_alpha": [1.0, 2.0]},
            r"activations: expected the same in both directions.*numbers \[\[1.0, 2.0\], \[\]\]",
        ),
        (
            {"kind": "GRU", "activations": ["Sigmoid", "Cos"]},
            "activations: expected ones of affine, .* in any case, got 'Cos'",
        ),
        (
            {"kind": "RNN", "activations": ["Affine"], "activation_alpha": [1.0]},
            "activation_beta: expected a number for Affine, got none",
        ),
        (
            {"kind": "GRU", "activations": ["HardSigmoid", "Tanh"], "activation_alpha": [0.2, 1.0]},
            "activation_alpha: expected a number for each function that has one.*got 1 more",
        ),
        ({"inputs": {"W": [1, 20, 3]}}, "W: expected a constant of the graph, got a value"),
        ({"inputs": {"R": torch.ones(1, 19, 5)}}, r"R: expected shape \(1, 20, 5\), got \(1, 19"),
        ({"inputs": {"W": torch.ones(2, 20, 3)}}, r"W: expected shape \(1, 20, 3\), got \(2, 20"),
        ({"inputs": {"B": torch.ones(1, 20)}}, r"B: expected shape \(1, 40\), got \(1, 20\)"),
        (
            {"inputs": {"W": torch.ones(1, 24, 3), "R": torch.ones(1, 24, 6)}, "bias": False},
            "hidden_size is 5, and R is made for 6",
        ),
        ({"dtype": TensorProto.INT32}, "W: there are no kernels for int32"),
    ],
)  # fmt: skip
def test_what_modules_do_not(options: dict[str, Any], message: str) -> None:
    kind = options.get("kind", "LSTM")
    with pytest.raises(ValueError, match=f"^{kind} node 'it': .*{message}"):
        fusedrnn.from_onnx(node_model(**options))


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"model: expected an onnx\.ModelProto or a path, got LSTM"):
        fusedrnn.from_onnx(fusedrnn.LSTM(3, 5))
    with pytest.raises(FileNotFoundError):
        fusedrnn.from_onnx("nowhere.onnx")


# Packages and pages.


def test_packages_are_needed_only_when_used() -> None:
    code = """
import sys
sys.modules.update(onnx=None, onnxscript=None)  # as if they were not there
import fusedrnn
for f in (fusedrnn.onnx.translation_table, lambda: fusedrnn.from_onnx("model.onnx")):
    try:
        f()
    except ImportError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == [
        f"fusedrnn.onnx needs the package {name}: pip install onnx onnxscript"
        for name in ("onnxscript", "onnx")
    ]
