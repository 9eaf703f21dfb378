"""`from_keras` against Keras itself.

Keras runs in float64 wherever numbers are compared closely, with all weights at random, biases too.
The layers of Keras 2 are those that TensorFlow still carries for its own use; their test is skipped
where it does not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from processes import in_a_process
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn.cells.zoo import ACTIVATIONS


@dataclass(frozen=True)
class Variant:
    kind: str  # the class in keras.layers
    options: tuple[tuple[str, Any], ...] = ()
    bidirectional: bool = False

    def __str__(self) -> str:
        shown = [self.kind] + [f"{name}={value}" for name, value in self.options]
        return "-".join(shown + ["bidirectional"] * self.bidirectional)

    def layer(self, keras: ModuleType, units: int, **more: Any) -> Any:
        options = dict(return_sequences=True, return_state=True, dtype="float64") | more
        layer = getattr(keras.layers, self.kind)(units, **dict(self.options), **options)
        if self.bidirectional:
            layer = keras.layers.Bidirectional(layer, dtype=options["dtype"])
        return layer


VARIANTS = [
    variant
    for kind, kinds_options in {
        "LSTM": [(), (("use_bias", False),), (("unroll", True), ("implementation", 1))],
        "GRU": [(), (("use_bias", False),), (("reset_after", False),),
                (("reset_after", False), ("use_bias", False))],
        "SimpleRNN": [(), (("use_bias", False),), (("activation", "relu"),)],
    }.items()
    for options in kinds_options
    for bidirectional in (False, True)
    for variant in [Variant(kind, options, bidirectional)]
]  # fmt: skip

ONE_OF_EACH = [
    Variant("LSTM"),
    Variant("GRU", bidirectional=True),
    Variant("SimpleRNN", (("activation", "relu"),)),
]


def randomize(layer: Any, rng: np.random.Generator) -> None:
    layer.set_weights([0.4 * rng.standard_normal(w.shape) for w in layer.get_weights()])


def built(layer: Any, x: np.ndarray, rng: np.random.Generator) -> Any:
    layer.build(x.shape)
    randomize(layer, rng)
    return layer


def flat(numbers: Any) -> list[np.ndarray]:
    if isinstance(numbers, list | tuple):
        return [each for part in numbers for each in flat(part)]
    return [np.asarray(numbers)]


def in_keras(call: Any, *arguments: Any, lstm: bool, **options: Any) -> dict[str, Tensor]:
    """What Keras computes, with the states as ours are, [layers * directions, B, H]."""
    output, *states = (torch.from_numpy(each.copy()) for each in flat(call(*arguments, **options)))
    if not lstm:
        return {"output": output, "hn": torch.stack(states)}
    return {"output": output, "hn": torch.stack(states[0::2]), "cn": torch.stack(states[1::2])}


def in_ours(module: nn.Module, x: Any, hx: Any = None, **options: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        output, final = module(torch.as_tensor(x), hx, **options)
    hn, *cn = final if isinstance(final, tuple) else (final,)
    return {"output": output, "hn": hn} | ({"cn": cn[0]} if cn else {})


def assert_same(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], of: object, tolerance: float = 1e-10
) -> None:
    assert list(ours) == list(theirs), of
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, (str(of), name)
        torch.testing.assert_close(
            value, theirs[name], rtol=tolerance, atol=tolerance,
            msg=lambda m, n=name: f"{of}, {n}: {m}",
        )  # fmt: skip


def sizes(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """T, B, the features of the input, H."""
    return tuple(int(rng.integers(1, most)) for most in (9, 6, 11, 21))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_layer(keras: ModuleType, variant: Variant, seed: int) -> None:
    rng = np.random.default_rng([seed, *str(variant).encode()])
    T, B, features, H = sizes(rng)
    x = rng.standard_normal((B, T, features))
    layer = built(variant.layer(keras, H), x, rng)
    module = fusedrnn.from_keras(layer)
    assert type(module).__name__ == variant.kind.removeprefix("Simple") and module.batch_first
    assert (module.input_size, module.hidden_size, module.num_layers) == (features, H, 1)
    assert module.bias == dict(variant.options).get("use_bias", True)
    assert module.bidirectional == variant.bidirectional
    lstm = variant.kind == "LSTM"
    assert_same(in_ours(module, x), in_keras(layer, x, lstm=lstm), variant)

    directions = 1 + variant.bidirectional
    states = [rng.standard_normal((B, H)) for _ in range(directions * (1 + lstm))]
    if lstm:
        hx: Any = tuple(torch.from_numpy(np.stack(states[k::2])) for k in (0, 1))
    else:
        hx = torch.from_numpy(np.stack(states))
    theirs = in_keras(layer, x, lstm=lstm, initial_state=states)
    assert_same(in_ours(module, x, hx), theirs, variant)


CHOSEN = [
    Variant("LSTM", (("activation", "relu"), ("recurrent_activation", "hard_sigmoid"))),
    Variant("LSTM", (("activation", "softsign"), ("use_bias", False))),
    Variant("LSTM", (("activation", "elu"),), bidirectional=True),
    Variant("GRU", (("recurrent_activation", "hard_sigmoid"),), bidirectional=True),
    Variant("GRU", (("activation", "silu"), ("reset_after", False))),
    Variant("GRU", (("activation", "mish"), ("use_bias", False))),
    Variant("SimpleRNN", (("activation", "hard_tanh"), ("use_bias", False)), bidirectional=True),
]


@pytest.mark.parametrize("variant", CHOSEN, ids=str)
def test_other_activations_are_a_recurrent(keras: ModuleType, variant: Variant) -> None:
    """The layer, its arrays, and in one direction a stack of two and its cell."""
    rng = np.random.default_rng([*str(variant).encode()])
    x = rng.standard_normal((3, 6, 4))
    lstm, options = variant.kind == "LSTM", dict(variant.options)
    layer = built(variant.layer(keras, 5), x, rng)
    module = fusedrnn.from_keras(layer)
    assert type(module) is fusedrnn.Recurrent and module.batch_first
    assert module.bias == options.pop("use_bias", True)
    assert module.bidirectional == variant.bidirectional
    assert_same(in_ours(module, x), in_keras(layer, x, lstm=lstm), variant)

    if module.bias:
        options.pop("reset_after", None)  # which the shape of the bias says
    elif variant.kind == "GRU":
        options.setdefault("reset_after", True)
    cell = "rnn" if variant.kind == "SimpleRNN" else variant.kind.lower()
    again = fusedrnn.from_keras(layer.get_weights(), cell=cell, **options)
    assert_same(in_ours(again, x), in_ours(module, x), "arrays")
    if variant.bidirectional:
        return

    y = layer(x)[0]
    above = built(variant.layer(keras, 5), np.asarray(y), rng)
    stack = fusedrnn.from_keras([layer, above])
    assert stack.num_layers == 2
    ours = {n: v if n == "output" else v[-1:] for n, v in in_ours(stack, x).items()}
    assert_same(ours, in_keras(above, y, lstm=lstm), "a stack")

    step = fusedrnn.from_keras(layer.cell)
    assert type(step) is fusedrnn.RecurrentCell
    found = step(torch.from_numpy(x[:, 0]))
    torch.testing.assert_close(
        (found[0] if lstm else found).detach(), torch.tensor(np.asarray(y)[:, 0]),
        rtol=1e-10, atol=1e-10,
    )  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(keras: ModuleType, name: str) -> None:
    rng = np.random.default_rng(18)
    x = rng.standard_normal((3, 4, 5))
    layer = built(Variant("SimpleRNN", (("activation", name),)).layer(keras, 6), x, rng)
    layer.set_weights([0.5 * weight for weight in layer.get_weights()])  # exponential grows
    module = fusedrnn.from_keras(layer)
    compiled = name in ("tanh", "relu")
    assert type(module) is (fusedrnn.RNN if compiled else fusedrnn.Recurrent)
    # TensorFlow has the numbers of these two in float32.
    tolerance = 1e-7 if name in ("gelu", "leaky_relu") else 1e-10
    assert_same(in_ours(module, x), in_keras(layer, x, lstm=False), name, tolerance)


def test_gradients_of_other_activations(tf: ModuleType, keras: ModuleType) -> None:
    rng = np.random.default_rng(19)
    x = rng.standard_normal((3, 6, 4))
    layer = built(Variant("LSTM", (("activation", "elu"),)).layer(keras, 5), x, rng)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(x)[0]))
    theirs = tape.gradient(loss, [variable.value for variable in layer.trainable_variables])
    module = fusedrnn.from_keras(layer)
    module(torch.from_numpy(x))[0].square().sum().backward()
    for name, gradient in zip(("weight_ih", "weight_hh", "bias_ih"), theirs, strict=True):
        ours = getattr(module, f"{name}_l0").grad
        expected = torch.from_numpy(gradient.numpy().T.copy())
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_a_function_of_tensorflow(tf: ModuleType, keras: ModuleType) -> None:
    rng = np.random.default_rng(21)
    x = rng.standard_normal((3, 6, 4))
    options = (("activation", tf.nn.elu), ("recurrent_activation", tf.sigmoid))
    layer = built(Variant("GRU", options).layer(keras, 5), x, rng)
    module = fusedrnn.from_keras(layer)
    assert_same(in_ours(module, x), in_keras(layer, x, lstm=False), "tf.nn.elu")


def test_a_function_of_ones_own(keras: ModuleType) -> None:
    """What the message about a layer that has one advises."""
    rng = np.random.default_rng(20)
    x = rng.standard_normal((3, 6, 4))
    layer = built(Variant("LSTM", (("activation", keras.ops.sin),)).layer(keras, 5), x, rng)
    with pytest.raises(ValueError, match=r"activation='sin'.*with cell= and activation="):
        fusedrnn.from_keras(layer)
    module = fusedrnn.from_keras(layer.get_weights(), cell="lstm", activation=torch.sin)
    assert_same(in_ours(module, x), in_keras(layer, x, lstm=True), "sin")


@pytest.mark.parametrize("variant", ONE_OF_EACH, ids=str)
def test_rounding_of_float32(keras: ModuleType, variant: Variant) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 12, 7)).astype("float32")
    layer = built(variant.layer(keras, 24, dtype="float32"), x, rng)
    module = fusedrnn.from_keras(layer)
    ours, theirs = in_ours(module, x), in_keras(layer, x, lstm=variant.kind == "LSTM")
    oracle = in_ours(module.double(), x.astype("float64"))
    for name, exact in oracle.items():
        assert ours[name].dtype == theirs[name].dtype == torch.float32
        error, theirs_error = ((n[name].double() - exact).abs().max() for n in (ours, theirs))
        floor = 16 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert error <= 2 * theirs_error + floor, (name, error, theirs_error)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "mixed_bfloat16"])
def test_dtype_is_that_of_the_weights(keras: ModuleType, dtype: str) -> None:
    x = np.zeros((1, 2, 3), "float32")
    # TensorFlow has no QR decomposition of bfloat16, the default of recurrent kernels.
    layer = keras.layers.LSTM(4, dtype=dtype, recurrent_initializer="zeros")
    built(layer, x, np.random.default_rng(0))
    module = fusedrnn.from_keras(layer)
    expected = torch.float32 if dtype.startswith("mixed") else getattr(torch, dtype)
    assert {p.dtype for p in module.parameters()} == {expected}
    kernel = np.asarray(layer.get_weights()[0], "float32")
    assert torch.equal(module.weight_ih_l0.float(), torch.from_numpy(kernel.T.copy()))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_list_of_layers_is_a_stack(keras: ModuleType, kind: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 5, 4))
    for bidirectional in (False, True):
        variant = Variant(kind, bidirectional=bidirectional)
        below = built(variant.layer(keras, 6, return_state=False), x, rng)
        y = below(x)
        above = built(variant.layer(keras, 6), np.asarray(y), rng)
        module = fusedrnn.from_keras([below, above])
        assert module.num_layers == 2 and module.bidirectional == bidirectional
        ours = in_ours(module, x)
        theirs = in_keras(above, y, lstm=kind == "LSTM")
        directions = 1 + bidirectional
        assert ours["hn"].shape == (2 * directions, 3, 6)
        ours = {n: v if n == "output" else v[-directions:] for n, v in ours.items()}
        assert_same(ours, theirs, variant)
        cell = "rnn" if kind == "SimpleRNN" else kind.lower()
        again = fusedrnn.from_keras([below.get_weights(), above.get_weights()], cell=cell)
        assert torch.equal(in_ours(again, x)["output"], ours["output"])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_layer_of_cells(keras: ModuleType, kind: str) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((3, 5, 4))
    cells = [getattr(keras.layers, f"{kind}Cell")(7, dtype="float64") for _ in range(3)]
    stack = keras.layers.StackedRNNCells(cells[1:], dtype="float64")  # what RNN makes of a list
    for given, layers in ((cells[0], 1), (stack, 2)):
        layer = keras.layers.RNN(given, return_sequences=True, return_state=True, dtype="float64")
        module = fusedrnn.from_keras(built(layer, x, rng))
        assert module.num_layers == layers
        assert_same(in_ours(module, x), in_keras(layer, x, lstm=kind == "LSTM"), kind)
    around = keras.layers.Bidirectional(
        keras.layers.RNN(cells[0], return_sequences=True, return_state=True, dtype="float64"),
        dtype="float64",
    )
    module = fusedrnn.from_keras(built(around, x, rng))
    assert_same(in_ours(module, x), in_keras(around, x, lstm=kind == "LSTM"), kind)


@pytest.mark.parametrize(
    "kind, options",
    [
        pytest.param("LSTM", {}, id="lstm"),
        pytest.param("LSTM", {"use_bias": False}, id="lstm-no-bias"),
        pytest.param("GRU", {}, id="gru"),
        pytest.param("SimpleRNN", {"activation": "relu"}, id="relu"),
        pytest.param("GRU", {"reset_after": False}, id="GRU"),
    ],
)
def test_cell(keras: ModuleType, kind: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3, 4))
    cell = built(getattr(keras.layers, f"{kind}Cell")(6, dtype="float64", **options), x, rng)
    module = fusedrnn.from_keras(cell)
    assert type(module).__name__ == f"{kind.removeprefix('Simple')}Cell"
    states = [rng.standard_normal((3, 6)) for _ in range(1 + (kind == "LSTM"))]
    _, theirs = cell(x, states)
    hx = [torch.from_numpy(state) for state in states]
    ours = module(torch.from_numpy(x), tuple(hx) if kind == "LSTM" else hx[0])
    for a, b in zip(ours if kind == "LSTM" else [ours], flat(theirs), strict=True):
        torch.testing.assert_close(a.detach(), torch.tensor(b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_weights_alone(keras: ModuleType, variant: Variant) -> None:
    x = np.zeros((1, 2, 3))
    layer = built(variant.layer(keras, 5), x, np.random.default_rng(6))
    expected = fusedrnn.from_keras(layer).state_dict()
    options = dict(variant.options)
    cell = {"LSTM": "lstm", "GRU": "gru"}.get(
        variant.kind, "rnn_" + options.get("activation", "tanh")
    )
    given: dict[str, Any] = {"cell": cell}
    if cell == "gru" and not options.get("use_bias", True):
        given["reset_after"] = options.get("reset_after", True)
    arrays = layer.get_weights()
    for weights in (arrays, tuple(map(torch.from_numpy, arrays)), list(layer.weights)):
        module = fusedrnn.from_keras(weights, **given)
        assert list(module.state_dict()) == list(expected)
        for name, value in module.state_dict().items():
            assert torch.equal(value, expected[name]), name
    if cell == "gru" and "reset_after" not in given:
        shape = arrays[2].shape
        assert len(shape) == 1 + options.get("reset_after", True)


@pytest.mark.parametrize("variant", [Variant("LSTM", bidirectional=True), Variant("GRU")], ids=str)
def test_a_mask_is_lengths(keras: ModuleType, variant: Variant) -> None:
    """Masks whose steps come first; Keras repeats the last output where ours is zero."""
    rng = np.random.default_rng(7)
    lengths = torch.tensor([3, 6, 1, 4])
    x = rng.standard_normal((4, 6, 5))
    mask = np.arange(6) < lengths.numpy()[:, None]
    layer = built(variant.layer(keras, 7), x, rng)
    module = fusedrnn.from_keras(layer)
    theirs = in_keras(layer, x, lstm=variant.kind == "LSTM", mask=mask)
    theirs["output"] *= torch.from_numpy(mask)[..., None]
    packed = pack_padded_sequence(torch.from_numpy(x), lengths, True, enforce_sorted=False)
    with torch.no_grad():
        output, final = module(packed)
    hn, *cn = final if isinstance(final, tuple) else (final,)
    ours = {"output": pad_packed_sequence(output, True)[0], "hn": hn} | (
        {"cn": cn[0]} if cn else {}
    )
    assert_same(ours, theirs, variant)
    assert_same(in_ours(module, x, lengths=lengths), theirs, variant)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_output_is_a_final_state(
    keras: ModuleType, kind: str, bidirectional: bool
) -> None:
    """What docs/keras.md says of return_sequences=False."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((3, 5, 4))
    variant = Variant(kind, bidirectional=bidirectional)
    layer = built(variant.layer(keras, 6, return_sequences=False, return_state=False), x, rng)
    ours = in_ours(fusedrnn.from_keras(layer), x)["hn"]
    last = torch.cat([ours[0], ours[1]], -1) if bidirectional else ours[0]
    torch.testing.assert_close(last, torch.tensor(np.asarray(layer(x))), rtol=0, atol=1e-10)


def test_the_module_is_its_own(keras: ModuleType) -> None:
    """No memory is shared, nothing is drawn at random, and torch.nn takes the parameters."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((3, 5, 4))
    layer = built(Variant("LSTM").layer(keras, 6), x, rng)
    expected = in_keras(layer, x, lstm=True)
    before = torch.get_rng_state()
    weights = [torch.from_numpy(w) for w in layer.get_weights()]
    module = fusedrnn.from_keras(layer)
    other = fusedrnn.from_keras(weights, cell="lstm")
    assert torch.equal(torch.get_rng_state(), before)
    plain = nn.LSTM(4, 6, batch_first=True, dtype=torch.float64)
    plain.load_state_dict(module.state_dict())
    assert_same(in_ours(plain, x), expected, "torch.nn")
    module(torch.from_numpy(x))[0].sum().backward()
    for parameter in module.parameters():
        assert parameter.requires_grad and parameter.grad.abs().sum() > 0
    with torch.no_grad():
        for parameter in [*module.parameters(), *other.parameters()]:
            parameter.zero_()
    assert_same(in_keras(layer, x, lstm=True), expected, "Keras after ours was changed")
    assert all(weight.any() for weight in weights)


def test_dropout_is_left_out_with_a_warning(keras: ModuleType) -> None:
    x = np.random.default_rng(10).standard_normal((2, 3, 4))
    options = (("dropout", 0.2), ("recurrent_dropout", 0.1))
    layer = built(Variant("LSTM", options).layer(keras, 5), x, np.random.default_rng(10))
    with pytest.warns(UserWarning, match=r"dropout=0\.2 and recurrent_dropout=0\.1") as seen:
        module = fusedrnn.from_keras(layer)
    assert [warning.filename for warning in seen] == [__file__]
    assert module.dropout == 0.0
    assert_same(in_ours(module, x), in_keras(layer, x, lstm=True, training=False), "dropout")


def elu(x: Any) -> Any:
    """Keras' name, and not its function."""
    return x


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "activation over all units": (
        lambda k: k.LSTM(3, activation="softmax"),
        r"has activation='softmax' of keras\S*, expected one that Keras has by the name celu, elu,",
    ),
    "activation of one's own": (
        lambda k: k.GRU(3, activation=lambda x: x),
        r"activation='<lambda>' of test_keras, .*get_weights\(\) with cell= and activation=",
    ),
    "one's own of a known name": (
        lambda k: k.SimpleRNN(3, activation=elu),
        "activation='elu' of test_keras, expected",
    ),
    "recurrent activation": (
        lambda k: k.GRU(3, recurrent_activation=lambda x: x),
        r"recurrent_activation='<lambda>'.*get_weights\(\) with cell= and recurrent_activation=",
    ),
    "go_backwards": (
        lambda k: k.LSTM(3, go_backwards=True),
        r"go_backwards=True, expected False.*input\.flip\(1\)",
    ),
    "stateful": (lambda k: k.LSTM(3, stateful=True), "stateful=True, expected False.*Streaming"),
    "merge_mode": (
        lambda k: k.Bidirectional(k.LSTM(3), merge_mode="sum"),
        "Bidirectional.* has merge_mode='sum', expected 'concat'",
    ),
    "no merge_mode": (
        lambda k: k.Bidirectional(k.LSTM(3), merge_mode=None),
        "merge_mode=None, expected 'concat'",
    ),
    "unlike directions": (
        lambda k: k.Bidirectional(k.LSTM(3), backward_layer=k.LSTM(4, go_backwards=True)),
        "hidden_size=3.* got lstm, hidden_size=4.*by itself",
    ),
    "directions swapped": (
        lambda k: k.Bidirectional(k.LSTM(3, go_backwards=True), backward_layer=k.LSTM(3)),
        "forward_lstm.* has go_backwards=True, expected False",
    ),
    "stacks in both directions": (
        lambda k: k.Bidirectional(k.RNN([k.LSTMCell(3), k.LSTMCell(3)])),
        "a stack of cells in each direction",
    ),
    "stack of unlike cells": (
        lambda k: k.RNN([k.LSTMCell(3), k.GRUCell(3)]),
        "LSTMCell.*got gru, hidden_size=3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(keras: ModuleType, what: str) -> None:
    make, message = REFUSED[what]
    layer = make(keras.layers)
    layer.build((2, 5, 4))
    if hasattr(layer, "cell"):
        name = getattr(layer.cell, "name", "")
        message = message.replace("lstm_cell", name)
    with pytest.raises(
        ValueError, match=f"^layer: .*{message}" if "LSTM" not in message else message
    ):
        fusedrnn.from_keras(layer)


def test_refused_with_a_way_out(keras: ModuleType) -> None:
    """What the messages advise gives Keras' numbers."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((2, 5, 4))
    flipped = torch.from_numpy(x).flip(1)
    layer = built(Variant("GRU", (("go_backwards", True),)).layer(keras, 3), x, rng)
    theirs = in_keras(layer, x, lstm=False)
    layer.go_backwards = False
    assert_same(in_ours(fusedrnn.from_keras(layer), flipped), theirs, "go_backwards")

    layer = keras.layers.Bidirectional(
        Variant("LSTM").layer(keras, 3, return_state=False), merge_mode="sum", dtype="float64"
    )
    total = torch.tensor(np.asarray(built(layer, x, rng)(x)))
    layer.merge_mode = "concat"
    output = in_ours(fusedrnn.from_keras(layer), x)["output"]
    torch.testing.assert_close(output[..., :3] + output[..., 3:], total, rtol=0, atol=1e-10)

    layer = built(Variant("GRU", (("stateful", True),)).layer(keras, 3), x, rng)
    layer(x)
    theirs = in_keras(layer, x, lstm=False)
    layer.stateful = False
    module = fusedrnn.from_keras(layer)
    assert_same(in_ours(module, x, in_ours(module, x)["hn"]), theirs, "stateful")


def test_not_a_layer_or_not_built(keras: ModuleType) -> None:
    layers, rng, x = keras.layers, np.random.default_rng(0), np.zeros((1, 2, 4))
    for unbuilt in (
        layers.LSTM(3), layers.Bidirectional(layers.GRU(3)), layers.SimpleRNNCell(3),
        layers.RNN([layers.LSTMCell(3)]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="^layer: .* has no weights yet: call the layer"):
            fusedrnn.from_keras(unbuilt)
    with pytest.raises(ValueError, match="empty list; a layer has weights once it was called"):
        fusedrnn.from_keras(layers.LSTM(3).get_weights(), cell="lstm")

    class Own(layers.LSTM):
        pass

    model = keras.Sequential([layers.LSTM(3)])
    for wrong, name in (
        (layers.Dense(3), "Dense"), (Own(3), "Own"), (model, "Sequential"), (nn.LSTM(3, 4), "LSTM"),
        (layers.StackedRNNCells([layers.LSTMCell(3)]), "StackedRNNCells"), (None, "NoneType"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=rf"^layer: expected a Keras layer .*got \S+\.{name};"):
            fusedrnn.from_keras(wrong)
    with pytest.raises(TypeError, match=r"^layer\[1\]: expected a Keras layer"):
        fusedrnn.from_keras([built(layers.LSTM(3, return_sequences=True), x, rng), "x"])
    odd = layers.RNN(layers.StackedRNNCells([layers.StackedRNNCells([layers.LSTMCell(3)])]))
    with pytest.raises(TypeError, match="expected cells SimpleRNNCell.*got StackedRNNCells"):
        fusedrnn.from_keras(odd)


def test_lists_that_are_no_stack(keras: ModuleType) -> None:
    layers = keras.layers
    rng = np.random.default_rng(12)

    def made(kind: str, units: int, inputs: int, **options: Any) -> Any:
        layer = getattr(layers, kind)(units, **{"return_sequences": True} | options)
        return built(layer, np.zeros((1, 2, inputs)), rng)

    first = made("LSTM", 3, 4)
    for other, message in (
        (made("GRU", 3, 3), "got gru, hidden_size=3"),
        (made("LSTM", 5, 3), "got lstm, hidden_size=5"),
        (made("LSTM", 3, 3, use_bias=False), "hidden_size=3, width=3, weight_ih, weight_hh, torch"),
        (made("LSTM", 3, 3, dtype="float64"), "torch.float64"),
        (made("LSTM", 3, 4), "expected an input of 3 features, got 4"),
    ):
        with pytest.raises(ValueError, match=rf"^layer\[1\]: .*{message}"):
            fusedrnn.from_keras([first, other])
    both = layers.Bidirectional(layers.LSTM(3))
    with pytest.raises(ValueError, match=r"^layer\[1\]: .*expected 1 direction\(s\).*got 2"):
        fusedrnn.from_keras([first, built(both, np.zeros((1, 2, 3)), rng)])
    with pytest.raises(ValueError, match=r"^layer\[0\]: .*has return_sequences=False"):
        fusedrnn.from_keras([made("LSTM", 3, 4, return_sequences=False), made("LSTM", 3, 3)])
    with pytest.raises(ValueError, match="^layer.*got lstm\\(activation='elu'\\), hidden_size=3"):
        fusedrnn.from_keras([first, made("LSTM", 3, 3, activation="elu")])
    for given in ({"cell": "lstm"}, {"activation": "elu"}):
        shown = ", ".join(f"{option}={value!r}" for option, value in given.items())
        with pytest.raises(
            ValueError, match=f"^cell, reset_after, .*: expected None .*got {shown}"
        ):
            fusedrnn.from_keras(first, **given)


def zeros(*shapes: Sequence[int]) -> list[np.ndarray]:
    return [np.zeros(shape, "float32") for shape in shapes]


@pytest.mark.parametrize(
    "weights, options, message",
    [
        (zeros((4, 12), (3, 12)), {}, "^cell: expected 'lstm', 'gru'"),
        (zeros((4, 12), (3, 12)), {"cell": "LSTM"}, "^cell: expected 'lstm', .*got 'LSTM'"),
        (zeros((4, 12), (3, 9)), {"cell": "lstm"},
         r"^layer: recurrent kernel: expected shape \(H, 4\*H\), here \(3, 12\), got \(3, 9\)"),
        (zeros((4, 9), (3, 12)), {"cell": "lstm"},
         r"^layer: kernel: expected shape \(I, 4\*H\), here \(4, 12\), got \(4, 9\)"),
        (zeros((12,), (3, 12)), {"cell": "lstm"}, r"^layer: kernel: .*got \(12,\)"),
        (zeros((4, 12), (3, 12), (2, 12)), {"cell": "lstm"},
         r"^layer: bias: expected shape \(4\*H\), here \(12,\), got \(2, 12\)"),
        (zeros((4, 9), (3, 9), (18,)), {"cell": "gru"}, r"^layer: bias: .*got \(18,\)"),
        (zeros((4, 9), (3, 9), (9,)), {"cell": "gru", "reset_after": True},
         r"^layer: bias: expected shape \(2, 3\*H\), here \(2, 9\), got \(9,\)"),
        (zeros((4, 9), (3, 9)), {"cell": "gru"}, "^reset_after: expected True or False"),
        (zeros((4, 3), (3, 3)), {"cell": "rnn", "reset_after": True},
         "^reset_after: expected None"),
        (zeros((4, 3), (3, 3)), {"cell": "rnn", "activation": "swoosh"},
         "^activation: expected one of celu, .*got 'swoosh'"),
        (zeros((4, 3), (3, 3)), {"cell": "rnn_relu", "activation": "elu"},
         "^activation: expected None with cell='rnn_relu'.*cell='rnn' takes any"),
        (zeros((4, 3), (3, 3)), {"cell": "rnn", "recurrent_activation": "elu"},
         "^recurrent_activation: expected None with cell='rnn', which has no gates"),
        (zeros((4, 3)), {"cell": "rnn"}, "^layer: expected 2 or 3 arrays .*got 1"),
        (zeros((4, 3), (3, 3), (3,), (4, 3), (2, 2), (3,)), {"cell": "rnn"},
         r"^layer, backward: kernel: .*, got \(4, 3\)"),
        ([np.zeros((4, 3), int), np.zeros((3, 3), int)], {"cell": "rnn"},
         "^layer: kernel: expected an array of floating point, got int64"),
        ([torch.zeros(4, 3, dtype=torch.int8), torch.zeros(3, 3)], {"cell": "rnn"},
         "^layer: kernel: expected one of float64, .*got torch.int8"),
        ([np.zeros((4, 3)), np.zeros((3, 3), "float32")], {"cell": "rnn"},
         "^layer: expected weights of one dtype, got torch.float32, torch.float64"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(weights: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusedrnn.from_keras(weights, **options)


def test_another_backend() -> None:
    """Keras on torch, which computes some products of float64 in float32."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("no keras")
    code = """
        import keras, numpy, torch
        import fusedrnn

        assert keras.backend.backend() == "torch"
        x = numpy.random.default_rng(0).standard_normal((3, 5, 4)).astype("float32")
        for kind, cell in (("LSTM", "lstm"), ("GRU", "gru"), ("SimpleRNN", "rnn")):
            layer = getattr(keras.layers, kind)(6, return_sequences=True)
            layer = keras.layers.Bidirectional(layer)
            expected = layer(x).detach()
            for module in (
                fusedrnn.from_keras(layer),
                fusedrnn.from_keras(list(layer.weights), cell=cell),
            ):
                torch.testing.assert_close(
                    module(torch.from_numpy(x))[0].detach(), expected.cpu(), rtol=0, atol=1e-5
                )
                print(module)
    """
    shown = in_a_process(code, KERAS_BACKEND="torch")
    assert shown.count("bidirectional=True") == 6


@pytest.mark.parametrize("kind", ["LSTM", "SimpleRNN", "GRU"])
def test_layers_of_keras_2(tf: ModuleType, kind: str) -> None:
    """As TensorFlow carries them: with time_major, and hard_sigmoid and reset_after=False first."""
    old = pytest.importorskip("tensorflow.python.keras.layers.recurrent")
    rng = np.random.default_rng(13)
    x = rng.standard_normal((5, 3, 4))
    options = dict(return_sequences=True, return_state=True, time_major=True, dtype="float64")
    if kind != "SimpleRNN":
        layer = built(getattr(old, kind)(6, **options), x, rng)
        module = fusedrnn.from_keras(layer)
        assert type(module) is fusedrnn.Recurrent
        assert_same(in_ours(module, x), in_keras(layer, x, lstm=kind == "LSTM"), "hard_sigmoid")
        options["recurrent_activation"] = "sigmoid"
    layer = getattr(old, kind)(6, **options)
    module = fusedrnn.from_keras(built(layer, x, rng))
    assert not module.batch_first
    assert_same(in_ours(module, x), in_keras(layer, x, lstm=kind == "LSTM"), kind)
    rows = getattr(old, kind)(6, **options | {"time_major": False})
    with pytest.raises(ValueError, match="same time_major"):
        fusedrnn.from_keras([layer, built(rows, np.zeros((1, 2, 6)), rng)])
