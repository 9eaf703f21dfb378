"""`from_tf1` against TensorFlow 1's cells themselves.

They are those that TensorFlow still carries for its own use; tests of them are skipped where it
does not. All computes in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from test_keras import assert_same, in_ours, sizes
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn


@pytest.fixture(scope="module")
def rnn_cell(tf: ModuleType) -> ModuleType:
    return pytest.importorskip("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")


Graph = Callable[[Any], tuple[Any, Any]]


def in_tf1(tf: ModuleType, x: np.ndarray, graph: Graph, seed: int = 0) -> tuple[dict, Any, Any]:
    """The variables of a graph, set at random, and the output and states that it computes for x."""
    rng = np.random.default_rng(seed)
    with tf.Graph().as_default(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = graph(tf.constant(x))
        variables = tf.compat.v1.global_variables()
        with tf.compat.v1.Session() as session:
            for variable in variables:
                variable.load(0.4 * rng.standard_normal(variable.shape.as_list()), session)
            values = session.run({variable.name: variable for variable in variables})
            return values, *session.run(results)


def walk(tf: ModuleType, *cells: Any, bidirectional: bool = False, **options: Any) -> Graph:
    from tensorflow.python.ops import rnn

    def graph(x: Any) -> tuple[Any, Any]:
        run = rnn.bidirectional_dynamic_rnn if bidirectional else rnn.dynamic_rnn
        output, state = run(*(cell() for cell in cells), x, dtype=tf.float64, **options)
        return (tf.concat(output, -1) if bidirectional else output), state

    return graph


def states_of_tf1(state: Any) -> dict[str, Tensor]:
    """Of layers or directions, each an array or the pair (c, h)."""
    if isinstance(state, np.ndarray) or hasattr(state, "_fields"):
        state = (state,)
    if not hasattr(state[0], "_fields"):
        return {"hn": torch.from_numpy(np.stack(state))}
    return {n: torch.from_numpy(np.stack([getattr(s, n[0]) for s in state])) for n in ("hn", "cn")}


TF1: dict[str, tuple[Callable[[ModuleType, int], Any], dict[str, Any]]] = {
    "BasicLSTMCell": (lambda c, h: c.BasicLSTMCell(h), {}),
    "BasicLSTMCell-0.3": (lambda c, h: c.BasicLSTMCell(h, forget_bias=0.3), {"forget_bias": 0.3}),
    "LSTMCell": (lambda c, h: c.LSTMCell(h), {}),
    "LSTMCell-projected": (lambda c, h: c.LSTMCell(h + 2, num_proj=h), {}),
    "LSTMCell-renamed": (lambda c, h: c.LSTMCell(h, name="memory"), {"cell": "lstm"}),
    "BasicRNNCell": (lambda c, h: c.BasicRNNCell(h), {}),
    "BasicRNNCell-relu": (lambda c, h: c.BasicRNNCell(h, activation="relu"), {"cell": "rnn_relu"}),
    "GRUCell": (lambda c, h: c.GRUCell(h), {}),
}


# What becomes a `Recurrent`.
ZOO: dict[str, tuple[Callable[[ModuleType, int], Any], dict[str, Any]]] = {
    "LSTMCell-peepholes": (lambda c, h: c.LSTMCell(h, use_peepholes=True), {}),
    "LSTMCell-peepholes-projected": (
        lambda c, h: c.LSTMCell(h + 2, use_peepholes=True, num_proj=h, forget_bias=0.3),
        {"forget_bias": 0.3},
    ),
    "LSTMCell-clipped": (lambda c, h: c.LSTMCell(h, cell_clip=0.2), {"cell_clip": 0.2}),
    "LSTMCell-all": (
        lambda c, h: c.LSTMCell(
            h + 2, use_peepholes=True, num_proj=h, cell_clip=0.2, activation="softsign"
        ),
        {"cell_clip": 0.2, "activation": "softsign"},
    ),
    "BasicLSTMCell-hard_sigmoid": (
        lambda c, h: c.BasicLSTMCell(h, activation="hard_sigmoid"), {"activation": "hard_sigmoid"}
    ),
    "BasicRNNCell-elu": (lambda c, h: c.BasicRNNCell(h, activation="elu"), {"activation": "elu"}),
    "GRUCell-own": (
        lambda c, h: c.GRUCell(h, activation=lambda x: 1.5 * x / (1 + x * x)),
        {"activation": lambda x: 1.5 * x / (1 + x * x)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", [*TF1, *ZOO])
def test_cells(tf: ModuleType, rnn_cell: ModuleType, name: str, layers: int) -> None:
    make, options = (TF1 | ZOO)[name]
    rng = np.random.default_rng([layers, *name.encode()])
    T, B, features, H = sizes(rng)
    x = rng.standard_normal((B, T, features))

    def cell() -> Any:
        if layers == 1:
            return make(rnn_cell, H)
        return rnn_cell.MultiRNNCell([make(rnn_cell, H) for _ in range(layers)])

    variables, output, state = in_tf1(tf, x, walk(tf, cell))
    module = fusedrnn.from_tf1(variables, **options)
    assert (module.input_size, module.num_layers, module.batch_first) == (features, layers, True)
    assert module.proj_size == (H if "projected" in name or "all" in name else 0)
    assert (type(module) is fusedrnn.Recurrent) == (name in ZOO)
    theirs = {"output": torch.from_numpy(output)} | states_of_tf1(state)
    assert_same(in_ours(module, x), theirs, name)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "LSTMCell-peepholes"])
def test_bidirectional_and_lengths(tf: ModuleType, rnn_cell: ModuleType, name: str) -> None:
    rng = np.random.default_rng(14)
    x, lengths = rng.standard_normal((4, 6, 5)), torch.tensor([6, 2, 5, 1])
    make = (TF1 | ZOO)[name][0]
    cells = [lambda: make(rnn_cell, 7)] * 2
    graph = walk(tf, *cells, bidirectional=True, sequence_length=lengths.numpy())
    variables, output, state = in_tf1(tf, x, graph)
    module = fusedrnn.from_tf1(variables)
    assert module.bidirectional
    theirs = {"output": torch.from_numpy(output)} | states_of_tf1(state)
    packed = pack_padded_sequence(torch.from_numpy(x), lengths, True, enforce_sorted=False)
    with torch.no_grad():
        y, final = module(packed)
    hn, *cn = final if isinstance(final, tuple) else (final,)
    ours = {"output": pad_packed_sequence(y, True)[0], "hn": hn} | ({"cn": cn[0]} if cn else {})
    assert_same(ours, theirs, name)
    assert_same(in_ours(module, x, lengths=lengths), theirs, name)


def test_stack_of_both_directions() -> None:
    """Names as contrib's stack_bidirectional_dynamic_rnn makes them; ten layers and more."""
    rng = np.random.default_rng(15)
    variables = {}
    for k in range(11):
        for way in ("fw", "bw"):
            scope = f"stack_bidirectional_rnn/cell_{k}/bidirectional_rnn/{way}/basic_rnn_cell"
            variables[f"{scope}/kernel"] = rng.standard_normal(((2 if k == 0 else 6) + 3, 3))
            variables[f"{scope}/bias"] = np.full(3, k + 0.5 * (way == "bw"))
    module = fusedrnn.from_tf1(variables)
    assert module.num_layers == 11 and module.bidirectional
    for k in range(11):
        assert getattr(module, f"bias_ih_l{k}").unique().item() == k
        assert getattr(module, f"bias_ih_l{k}_reverse").unique().item() == k + 0.5


def test_stacks_per_direction_one_by_one() -> None:
    rng = np.random.default_rng(17)
    variables = {}
    for way in ("fw", "bw"):
        for k in range(2):
            scope = f"bi/{way}/multi_rnn_cell/cell_{k}/basic_rnn_cell"
            variables[f"{scope}/kernel"] = rng.standard_normal(((5 if k == 0 else 3) + 3, 3))
            variables[f"{scope}/bias"] = np.full(3, k + 0.5 * (way == "bw"))
    with pytest.raises(ValueError, match="Convert each stack by itself, with scope= up to fw or"):
        fusedrnn.from_tf1(variables)
    for way in ("fw", "bw"):
        module = fusedrnn.from_tf1(variables, scope=f"bi/{way}")
        assert module.num_layers == 2 and not module.bidirectional
        biases = [getattr(module, f"bias_ih_l{k}").unique().item() for k in range(2)]
        assert biases == [0.5 * (way == "bw"), 1 + 0.5 * (way == "bw")]
    second = fusedrnn.from_tf1(variables, scope="bi/bw/multi_rnn_cell/cell_1")
    assert second.num_layers == 1 and second.bias_ih_l0.unique().item() == 1.5


def test_checkpoint(tf: ModuleType, rnn_cell: ModuleType, tmp_path: Path) -> None:
    """A file as training leaves it: other layers, the optimizer's variables, a count of steps."""
    v1 = tf.compat.v1
    x = np.random.default_rng(16).standard_normal((3, 5, 4))
    with tf.Graph().as_default(), warnings.catch_warnings(), v1.Session() as session:
        warnings.simplefilter("ignore")
        output, _ = walk(tf, lambda: rnn_cell.LSTMCell(6), scope="decoder/rnn")(tf.constant(x))
        head = v1.get_variable("head/weights", [6, 2], tf.float64)
        step = v1.train.get_or_create_global_step()
        loss = tf.reduce_sum(tf.square(tf.tensordot(output, head, 1)))
        train = v1.train.AdamOptimizer().minimize(loss, global_step=step)
        session.run(v1.global_variables_initializer())
        session.run(train)
        path = v1.train.Saver().save(session, str(tmp_path / "model"))
        expected = session.run(output)
    reader = tf.train.load_checkpoint(path)
    names = reader.get_variable_to_shape_map()
    assert "decoder/rnn/lstm_cell/kernel/Adam_1" in names
    variables = {name: reader.get_tensor(name) for name in names}
    module = fusedrnn.from_tf1(variables, scope="decoder/rnn")
    ours = in_ours(module, x)["output"]
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="is not of a BasicLSTMCell.*choose with scope="):
        fusedrnn.from_tf1(variables)
    with pytest.raises(ValueError, match="expected some under scope='encoder', got 'beta1_power'"):
        fusedrnn.from_tf1(variables, scope="encoder")


def test_gradients_of_peepholes(tf: ModuleType, rnn_cell: ModuleType) -> None:
    x = np.random.default_rng(18).standard_normal((3, 6, 4))

    def graph(x: Any) -> tuple[Any, Any]:
        make = ZOO["LSTMCell-all"][0]
        output, _ = walk(tf, lambda: make(rnn_cell, 5))(x)
        loss = tf.reduce_sum(tf.square(output))
        found = tf.compat.v1.trainable_variables()
        return loss, dict(zip([v.name for v in found], tf.gradients(loss, found), strict=True))

    variables, _, theirs = in_tf1(tf, x, graph)
    module = fusedrnn.from_tf1(variables, **ZOO["LSTMCell-all"][1])
    module(torch.from_numpy(x))[0].square().sum().backward()
    scope = "rnn/lstm_cell"
    i, g, f, o = np.split(theirs[f"{scope}/kernel:0"].T, 4)
    w_ih, w_hh = module.weight_ih_l0.grad, module.weight_hh_l0.grad
    expected = {
        "kernel": (torch.cat([w_ih, w_hh], 1), np.concatenate([i, f, g, o])),
        "projection": (module.weight_hr_l0.grad, theirs[f"{scope}/projection/kernel:0"].T),
        "peepholes": (
            module.weight_unit_l0.grad, np.stack([theirs[f"{scope}/w_{g}_diag:0"] for g in "ifo"])
        ),
    }  # fmt: skip
    for name, (ours, gradient) in expected.items():
        torch.testing.assert_close(
            ours, torch.from_numpy(gradient.copy()), rtol=1e-10, atol=1e-10,
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip


def named(**shapes: Sequence[int]) -> dict[str, np.ndarray]:
    return {name.replace("__", "/"): np.zeros(shape) for name, shape in shapes.items()}


LSTM_SCOPES = [f"{way}/multi_rnn_cell/cell_{k}/lstm_cell" for way in ("fw", "bw") for k in (0, 1)]


@pytest.mark.parametrize(
    "variables, options, message",
    [
        (named(kernel=(7, 12), bias=(12,)), {}, "^cell: expected .*for variables, whose names"),
        (named(kernel=(7, 12), bias=(12,)), {"cell": "LSTMCell"}, "^cell: .*got 'LSTMCell'"),
        (named(kernel=(7, 12), bias=(12,)), {"cell": "gru"},
         "^variables: expected candidate/bias, .* of cell='gru', got bias, kernel"),
        (named(lstm_cell__kernel=(7, 12)), {},
         "^variables under 'lstm_cell': expected bias, kernel of cell='lstm', got kernel"),
        (named(kernel=(7, 12), bias=(10,)), {"cell": "lstm"},
         r"^variables: bias: expected shape \(4\*H\), here \(8,\), got \(10,\)"),
        (named(kernel=(7, 8), bias=(12,)), {"cell": "lstm"},
         r"^variables: kernel: expected shape \(I\+H, 4\*H\), here \(7, 12\), got \(7, 8\)"),
        (named(kernel=(3, 12), bias=(12,)), {"cell": "lstm"},
         "^variables: expected kernel with more than 3 rows, .*got 3"),
        (named(kernel=(7, 12), bias=(12,), projection__kernel=(2, 2)), {"cell": "lstm"},
         r"^variables: projection/kernel: expected shape \(H, P\), here \(3, 2\), got \(2, 2\)"),
        (named(gates__kernel=(7, 6), gates__bias=(6,), candidate__kernel=(6, 3),
               candidate__bias=(3,)), {},
         r"^variables: candidate/kernel: expected shape \(I\+H, H\), here \(7, 3\), got \(6, 3\)"),
        (named(a__lstm_cell__kernel=(7, 12), b__lstm_cell__kernel=(7, 12)), {},
         "^variables: expected those of one network, got 'a/lstm_cell' and 'b/lstm_cell'.*scope="),
        (named(cell_0__lstm_cell__kernel=(7, 12), cell_2__lstm_cell__kernel=(7, 12)), {},
         "^variables: expected all layers cell_0, cell_1, .*'cell_2/lstm_cell'"),
        (named(**{f"{s.replace('/', '__')}__kernel": (6, 12) for s in LSTM_SCOPES}), {},
         "^variables: 'fw/multi_rnn_cell/cell_0/lstm_cell' is a layer of a stack that runs in one"),
        (named(kernel=(7, 12), bias=(12,), w_f_diag=(3,)), {"cell": "lstm"},
         "^variables: expected bias, kernel, w_f_diag, w_i_diag, w_o_diag of cell='lstm', got"),
        (named(kernel=(7, 12), bias=(12,), w_f_diag=(3,), w_i_diag=(3,), w_o_diag=(4,)),
         {"cell": "lstm"}, r"^variables: w_o_diag: expected shape \(H\), here \(3,\), got \(4,\)"),
        (named(kernel=(7, 3), bias=(3,), w_f_diag=(3,)), {"cell": "rnn"},
         "^variables: expected bias, kernel of cell='rnn', got bias, kernel, w_f_diag"),
        (named(kernel=(7, 3), bias=(3,)), {"cell": "rnn", "cell_clip": 1.0},
         "^cell_clip: expected None with cell='rnn', got 1.0"),
        (named(kernel=(7, 12), bias=(12,)), {"cell": "lstm", "cell_clip": -1.0},
         "^cell_clip: expected a positive number or None, got -1.0"),
        (named(kernel=(7, 3), bias=(3,)), {"cell": "rnn_relu", "activation": "elu"},
         "^activation: expected None with cell='rnn_relu'"),
        (named(lstm_cell__kernel=(7, 12), lstm_cell__bias=(12,)), {"activation": "softmax"},
         "^activation: expected one of celu, .*got 'softmax'"),
        ({}, {}, "^variables: expected some under scope='', got no variables"),
        ({"lstm_cell/kernel": np.zeros((2, 4), int)}, {},
         r"^variables\['lstm_cell/kernel'\]: expected an array of floating point"),
    ],
)  # fmt: skip
def test_variables_that_do_not_fit(variables: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusedrnn.from_tf1(variables, **options)


def test_takes_a_mapping() -> None:
    with pytest.raises(TypeError, match="^variables: expected a mapping .*got ndarray"):
        fusedrnn.from_tf1(np.zeros((7, 12)))
