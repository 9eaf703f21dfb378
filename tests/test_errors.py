"""Bad input is refused before any work, with torch.nn's exception type; nothing crashes."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import MODULE_FACTS, TORCH_MODULES, UNMODIFIED
from processes import in_a_process
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import functional

LAYERS = TORCH_MODULES


def state(name: str, *shape: int, **options: object):
    h, *others = (torch.zeros(*shape, **options) for _ in MODULE_FACTS[name].states)
    return (h, *others) if others else h


def calls(name: str) -> dict:
    """Wrong calls of a module of 5 inputs and 6 units, by what is wrong."""
    x = torch.zeros(3, 4, 5)
    return {
        "one dimension": (torch.zeros(5), None),
        "four dimensions": (torch.zeros(2, 3, 4, 5), None),
        "features": (torch.zeros(3, 4, 7), None),
        "no steps": (torch.zeros(0, 4, 5), None),
        "dtype": (x.double(), None),
        "hx layers": (x, state(name, 2, 4, 6)),
        "hx batch": (x, state(name, 1, 3, 6)),
        "hx size": (x, state(name, 1, 4, 7)),
        "hx dimensions": (x, state(name, 4, 6)),
        "hx of an unbatched input": (torch.zeros(3, 5), state(name, 1, 4, 6)),
        "hx dtype": (x, state(name, 1, 4, 6, dtype=torch.float64)),
        "hx no tensor": (x, [1.0, 2.0] if len(MODULE_FACTS[name].states) > 1 else "zeros"),
        "input no tensor": ([[1.0]], None),
    }


@pytest.mark.parametrize("what", calls("LSTM"))
@pytest.mark.parametrize("name", LAYERS)
def test_wrong_calls(name: str, what: str) -> None:
    given = calls(name)[what]
    with pytest.raises(Exception) as expected:
        getattr(nn, name)(5, 6)(*given)
    with pytest.raises(Exception) as found:
        getattr(fusedrnn, name)(5, 6)(*given)
    assert issubclass(found.type, expected.type), (expected.value, found.value)
    assert str(found.value)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "arguments, options",
    [
        ((5, 0), {}),
        ((5, -1), {}),
        ((5, 6, 0), {}),
        ((5, 6.5), {}),
        ((5, 6), {"dropout": 1.5}),
        ((5, 6), {"dropout": "half"}),
        ((5, 6), {"proj_size": 6}),
        ((5, 6), {"proj_size": -1}),
        ((-5, 6), {}),
    ],
    ids=str,
)
def test_wrong_constructors(name: str, arguments: tuple, options: dict) -> None:
    with pytest.raises(Exception) as expected:
        getattr(nn, name)(*arguments, **options)
    with pytest.raises(Exception) as found:
        getattr(fusedrnn, name)(*arguments, **options)
    assert issubclass(found.type, expected.type), (expected.value, found.value)


@pytest.mark.parametrize("name", [*LAYERS, *(f"{name}Cell" for name in LAYERS)])
def test_unknown_options(name: str) -> None:
    expected = rf"{name}.__init__\(\) got an unexpected keyword argument 'activation'"
    if name in ("RNN", "GRU"):
        expected += "; expected one of input_size, hidden_size, num_layers, .*checkpoint"
    with pytest.raises(TypeError, match=expected):
        getattr(fusedrnn, name)(5, 6, activation="relu")


def test_unknown_nonlinearity() -> None:
    with pytest.raises(ValueError, match="sigmoid"):
        fusedrnn.RNN(5, 6, nonlinearity="sigmoid")


@pytest.mark.parametrize(
    "batch_sizes, problem",
    [
        (torch.tensor([2, 3]), "non-increasing|increas"),
        (torch.tensor([3, 0]), "positive"),
        (torch.tensor([3, 1]), "5"),
        (torch.tensor([3, 3]), "5"),
        (torch.tensor([3.0, 2.0]), "int64"),
        (torch.tensor([[3, 2]]), "shape"),
        (torch.tensor([], dtype=torch.int64), ""),
        (torch.tensor([6, -1]), ""),
    ],
    ids=str,
)
def test_invalid_batch_sizes(batch_sizes: torch.Tensor, problem: str) -> None:
    weights = list(fusedrnn.GRU(5, 6).parameters())
    kinds = (RuntimeError, ValueError, TypeError, IndexError)
    with pytest.raises(kinds, match=problem):
        functional.gru(torch.zeros(5, 5), None, weights, batch_sizes=batch_sizes)
    with pytest.raises(kinds):
        fusedrnn.GRU(5, 6)(PackedSequence(torch.zeros(5, 5), batch_sizes))


def test_wrong_weights() -> None:
    weights = [w.detach() for w in fusedrnn.LSTM(5, 6).parameters()]
    x = torch.zeros(3, 4, 5)
    for wrong in (
        weights[:3],
        [],
        [weights[1], *weights[1:]],
        [weights[0].double(), *weights[1:]],
        [*weights[:3], weights[3][:5]],
        [weights[0][:, :4], *weights[1:]],
        [weights[0], weights[1][:20], *weights[2:]],
    ):
        with pytest.raises((RuntimeError, ValueError)):
            functional.lstm(x, None, wrong)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("missing", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_weights_that_are_none(name: str, missing: str) -> None:
    for kind, attribute in (("", f"{missing}_l0"), ("Cell", missing)):
        pair = [getattr(package, name + kind)(5, 6) for package in (fusedrnn, nn)]
        pair[1].load_state_dict(pair[0].state_dict())
        for module in pair:
            setattr(module, attribute, None)
        if kind and missing.startswith("bias"):  # torch.nn's cells go without
            torch.testing.assert_close(*(module(torch.ones(4, 5)) for module in pair))
            continue
        with pytest.raises(Exception) as expected:
            pair[1](torch.zeros(4, 5))
        with pytest.raises(expected.type, match=f"^{attribute}: expected a torch.Tensor, got None"):
            pair[0](torch.zeros(4, 5))
    weights = [*getattr(fusedrnn, name)(5, 6).parameters()]
    wrong = [weights[0], None, *weights[2:]]
    function = getattr(functional, MODULE_FACTS[name].name)
    with pytest.raises(TypeError, match=r"weights\[1\]: expected a torch.Tensor, got NoneType"):
        function(torch.zeros(3, 4, 5), None, wrong)


@pytest.mark.parametrize("name", LAYERS)
def test_cells_without_biases(name: str) -> None:
    pair = [getattr(package, f"{name}Cell")(5, 6) for package in (fusedrnn, nn)]
    pair[1].load_state_dict(pair[0].state_dict())
    for module in pair:
        module.bias_ih = module.bias_hh = None
    torch.testing.assert_close(*(module(torch.ones(4, 5)) for module in pair))


@pytest.mark.parametrize("name", LAYERS)
def test_input_of_no_real_numbers(name: str) -> None:
    x = torch.zeros(3, 4, 5)
    expected = r"input dtype \({}\) does not match weight dtype \(torch.float32\). Convert input: "
    for dtype in (torch.complex64, torch.int32):  # no advice to convert the model
        with pytest.raises(ValueError, match=expected.format(dtype) + r"input.to\(\S*float32\)$"):
            getattr(fusedrnn, name)(5, 6)(x.to(dtype))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch-first"])
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_nested_input(name: str, layout: torch.layout, batch_first: bool) -> None:
    x = torch.nested.nested_tensor([torch.randn(n, 5) for n in (3, 1, 2)], layout=layout)
    with pytest.raises(Exception) as expected:
        getattr(nn, name)(5, 6, batch_first=batch_first)(x)
    module = getattr(fusedrnn, name)(5, 6, batch_first=batch_first)
    if not (layout == torch.jagged and batch_first):  # see test_sequences.py
        with pytest.raises(expected.type, match="input: expected a dense tensor, got a nested one"):
            module(x)
    with pytest.raises(expected.type, match="input: expected a dense tensor, got a nested one"):
        fusedrnn.Streaming(module, 3)(x)
    if batch_first:  # what the message says to do
        packed, _ = module(nn.utils.rnn.pack_sequence(x.unbind(), enforce_sorted=False))
        found, lengths = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        padded = torch.nested.to_padded_tensor(x, 0.0)
        torch.testing.assert_close(module(padded, lengths=lengths)[0], found)


def test_other_devices_and_dtypes_say_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="CPU"):
        torch.ops.fusedrnn.layer_forward(
            torch.zeros(3, 4, 5).to_sparse(), None, [],
            [torch.zeros(24, 5), torch.zeros(24, 6)], "lstm", False, False, False, False,
        )  # fmt: skip
    module = fusedrnn.GRU(5, 6).to(torch.complex64)
    with pytest.raises((RuntimeError, ValueError), match="(?i)complex|float"):
        module(torch.zeros(3, 4, 5, dtype=torch.complex64))


PROJECTED = ("lstm", True, True, False)
"""What the ops take of a projected LSTM with biases, in one direction."""


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32], ids=str)
def test_other_dtypes_are_named(dtype: torch.dtype) -> None:
    x, h, c = torch.ones(4, 3, 5), torch.ones(1, 3, 2), torch.ones(1, 3, 6)
    w = [torch.ones(24, 5), torch.ones(24, 2), torch.ones(24), torch.ones(24), torch.ones(2, 6)]
    ops = fusedrnn._engine.ops
    y, (hn, cn), reserve = ops.layer_forward(x, None, [h, c], w, *PROJECTED, True)
    panels, int8 = ops.make_panels(w, *PROJECTED), ops.quantize_weights(w, "lstm", True, True)
    weights = ["w_ih", "w_hh", "b_ih", "b_hh", "w_hr"]

    def layer(x, h, c, *w) -> None:
        ops.layer_forward(x, None, [h, c], w, *PROJECTED, True)

    def backward(dy, dh, dc, y, reserve) -> None:
        ops.layer_backward(dy, [dh, dc], x, None, [h, c], w, y, reserve, *PROJECTED, -1)

    for op, names, operands in (
        (layer, ["input", "hx[0]", "hx[1]", *weights], [x, h, c, *w]),
        (backward, ["grad_output", "grad_hn[0]", "grad_hn[1]", "output", "reserve"],
         [y, hn, cn, y, reserve]),
        (lambda *w: ops.make_panels(w, *PROJECTED), weights, w),
        (lambda *w: ops.quantize_weights(w, "lstm", True, True), weights, w),
        (lambda x, panels, *hx: ops.panels_forward(x, panels, hx),
         ["input", "panels", "hx[0]", "hx[1]"], [x, panels, h, c]),
        (lambda x, int8, *hx: ops.quantized_forward(x, int8, hx),
         ["input", "quantized", "hx[0]", "hx[1]"], [x, int8, h, c]),
    ):  # fmt: skip
        for i, name in enumerate(names):
            given = [*operands[:i], operands[i].to(dtype), *operands[i + 1 :]]
            got = str(dtype).removeprefix("torch.")
            with pytest.raises(RuntimeError, match=f"^{re.escape(name)}: expected .* got {got}"):
                op(*given)


@pytest.mark.parametrize("cell", ["peephole", "", "LSTM"])
def test_unknown_cells(cell: str) -> None:
    """By the kernels and, for a tensor without values, by Python."""
    ops, layer = torch.ops.fusedrnn, (cell, False, False, False)
    expected = f"^cell: expected rnn_tanh, .*, or the program of a cell, got ['\"]{cell}['\"]$"
    for device in ("cpu", "meta"):
        x, w_ih, w_hh = (torch.ones(*n, device=device) for n in ((4, 3, 5), (24, 5), (24, 6)))
        given = (x, None, [], [w_ih, w_hh])
        with pytest.raises(RuntimeError, match=expected):
            ops.layer_forward(*given, *layer, False)
        with pytest.raises(RuntimeError, match=expected):
            ops.checkpointed_forward(*given, *UNMODIFIED, *layer, 2)


def test_raw_ops_never_crash() -> None:
    out = in_a_process("""
        import itertools, torch, fusedrnn
        forward = torch.ops.fusedrnn.layer_forward
        backward = torch.ops.fusedrnn.layer_backward
        good = [torch.zeros(24, 5), torch.zeros(24, 6), torch.zeros(24), torch.zeros(24)]
        x = torch.zeros(3, 4, 5)
        inputs = [x, x[0], x[:0], x[:, :0], x[..., :0], x.double(), x.int(), torch.zeros(()),
                  x.expand(3, 4, 5), torch.empty(0)]
        weights = [good, good[:2], [], good[:1], [g[:0] for g in good], good * 2,
                   [g.double() for g in good], [torch.zeros(()) for _ in good],
                   [*good, torch.zeros(2, 6)], [torch.zeros(25, 5), torch.zeros(25, 6)]]
        h = torch.zeros(1, 4, 6)
        states = [[], [h], [h, h], [torch.zeros(1, 5, 6), h], [h, torch.zeros(0)], [h] * 7]
        sizes = [None, torch.tensor([4, 4, 4]), torch.tensor([2**62, 2**62]), torch.tensor([-1])]
        cells = ("rnn_tanh", "lstm", "gru", "peephole", "cell 1 lstm\\n")
        refused = ran = 0
        for given in itertools.product(inputs, sizes, states, weights, cells, (True, False),
                                       (True, False)):
            x, batch_sizes, hx, w, cell, projected, bidirectional = given
            try:
                forward(x, batch_sizes, hx, w, cell, True, projected, bidirectional, True)
                ran += 1
            except (RuntimeError, NotImplementedError):
                refused += 1
        assert ran > 0 and refused > 1000, (ran, refused)
        x = torch.zeros(3, 4, 5)
        lstm = ("lstm", True, False, False)
        y, (h, c), r = forward(x, None, [], good, *lstm, True)
        tensors = [y, h, c, r, x, torch.empty(0), y.double(), y.transpose(0, 1)]
        for dy, dh, out, res in itertools.product([None, *tensors], [None, *tensors], tensors,
                                                  tensors):
            for grads in [[]] if dh is None else [[dh], [dh, dh], [dh, torch.empty(0)], [dh] * 5]:
                try:
                    backward(dy, grads, x, None, [], good, out, res, *lstm, -1)
                except RuntimeError:
                    pass
        print("alive")
    """)
    assert out == "alive\n"


def test_storages_that_were_freed_or_cut_short() -> None:
    """Under any operand of any op: refused by its name, as torch.nn's GRU refuses it."""
    out = in_a_process("""
        import functools, torch, fusedrnn
        from fusedrnn._engine import checkpoint
        from fusedrnn._engine import ops
        from fusedrnn._engine import sequences
        from torch import nn

        def refused(function, arguments, keep=0):
            # The names that messages begin with, one operand without its storage after the other.
            given, found = list(flat(arguments)), []
            for i, tensor in enumerate(given):
                short = tensor.clone()
                short.untyped_storage().resize_(keep)
                replaced = iter([*given[:i], short, *given[i + 1:]])
                try:
                    function(*refill(arguments, replaced))
                    found.append("ran")
                except RuntimeError as error:
                    found.append(str(error).partition(": expected a storage")[0])
            print(*found)

        def flat(arguments):
            for a in arguments:
                if isinstance(a, list): yield from flat(a)
                if isinstance(a, torch.Tensor): yield a

        def refill(arguments, tensors):
            return [refill(a, tensors) if isinstance(a, list) else
                    next(tensors) if isinstance(a, torch.Tensor) else a for a in arguments]

        def stream_of(weights, kind):
            module = fusedrnn.LSTM(5, 6)
            for own, weight in zip(module.parameters(), weights):
                own.data = weight
            fusedrnn.Streaming(module, weights=kind)

        x, h = torch.ones(4, 3, 5), torch.ones(1, 3, 2)
        c, w = torch.ones(1, 3, 6), [torch.ones(24, 5), torch.ones(24, 2), torch.ones(24),
                                     torch.ones(24), torch.ones(2, 6)]
        rows, sizes = x.flatten(0, 1), torch.tensor([3, 3, 3, 3])
        lstm = ("lstm", True, True, False)
        panels, int8 = ops.make_panels(w, *lstm), ops.quantize_weights(w, "lstm", True, True)
        none = (None,) * 5  # of the modifiers
        for keep in (0, 16):
            y, hn, reserve = ops.layer_forward(x, None, [h, c], w, *lstm, True)
            refused(ops.layer_forward, [rows, sizes, [h, c], w, *lstm, True], keep)
            refused(ops.layer_forward, [x, None, [], w, *lstm, True, False, panels], keep)
            refused(ops.layer_backward, [y, hn, x, None, [h, c], w, y, reserve, *lstm, -1], keep)
            refused(lambda *w: ops.make_panels(list(w), *lstm), w, keep)
            refused(lambda *w: ops.quantize_weights(list(w), "lstm", True, True), w, keep)
            refused(ops.panels_forward, [x, panels, [h, c]], keep)
            refused(ops.quantized_forward, [x, int8, [h, c]], keep)
            refused(checkpoint.checkpointed_forward, [x, None, [h, c], w, *none, *lstm, 2], keep)
            y, hn, borders = checkpoint.checkpointed_forward(x, None, [h, c], w, *none, *lstm, 2)
            refused(checkpoint.checkpointed_backward, [y, hn, x, None, [h, c], w, *none, y,
                                                       borders, *lstm, 2, -1], keep)
            lengths = torch.tensor([4, 1, 2])
            module = functools.partial(fusedrnn.LSTM(5, 6, proj_size=2), lengths=lengths)
            refused(lambda x, h, c: module(x, (h, c)), [x, h, c], keep)
            refused(lambda lengths: module(x, lengths=lengths), [lengths], keep)
            refused(sequences.padded_forward, [x, lengths, [h, c], w, *none, *lstm, True], keep)
            y, hn, reserve = sequences.padded_forward(x, lengths, [h, c], w, *none, *lstm, True)
            refused(sequences.padded_backward, [y, hn, x, lengths, [h, c], w, *none, y, reserve,
                                                *lstm, 0, -1], keep)
        assert torch.equal(h, torch.ones_like(h)) and torch.equal(c, torch.ones_like(c))
        w[1] = torch.ones(24, 6)
        for kind in ("same", "int8"):
            refused(stream_of, [w[:4], kind])
        x = torch.ones(4, 3, 5)
        strided = torch.ones(5, 3, 4).permute(2, 1, 0)  # would be copied first
        x.untyped_storage().resize_(0), strided.untyped_storage().resize_(0)
        for package, input in ((nn, x), (fusedrnn, x), (fusedrnn, strided)):
            try:
                package.GRU(5, 6)(input)
            except RuntimeError:
                print("RuntimeError")
    """)
    operands = """
        input batch_sizes hx[0] hx[1] w_ih w_hh b_ih b_hh w_hr
        input w_ih w_hh b_ih b_hh w_hr panels
        grad_output grad_hn[0] grad_hn[1] input hx[0] hx[1] w_ih w_hh b_ih b_hh w_hr output reserve
        w_ih w_hh b_ih b_hh w_hr
        w_ih w_hh b_ih b_hh w_hr
        input panels hx[0] hx[1]
        input quantized hx[0] hx[1]
        input hx[0] hx[1] weights[0] weights[1] weights[2] weights[3] weights[4]
        grad_output grad_hn[0] grad_hn[1] input hx[0] hx[1] weights[0] weights[1] weights[2] \
weights[3] weights[4] output borders
        input hx[0] hx[1]
        lengths
        input lengths hx[0] hx[1] w_ih w_hh b_ih b_hh w_hr
        grad_output grad_hn[0] grad_hn[1] input lengths hx[0] hx[1] w_ih w_hh b_ih b_hh w_hr \
output reserve
    """
    lines = [line.strip() for line in operands.strip().splitlines()]
    streams = ["w_ih w_hh b_ih b_hh", "weights[0] weights[1] weights[2] weights[3]"]
    assert out.splitlines() == [*lines, *lines, *streams, *["RuntimeError"] * 3]


def test_more_steps_than_memory_has() -> None:
    """An expanded input takes no memory, and has any number of steps."""
    weights = [torch.ones(24, 5), torch.ones(24, 6)]
    lstm = ("lstm", False, False, False)
    h, panels = torch.zeros(1, 4, 6), torch.ops.fusedrnn.make_panels(weights, *lstm)
    int8 = torch.ops.fusedrnn.quantize_weights(weights, "lstm", False, False)
    for steps in (1 << 58, 1 << 50):
        x = torch.ones(1, 4, 5).expand(steps, 4, 5)
        calls = {
            "layer_forward": (x, None, [], weights, *lstm, True),
            "checkpointed_forward": (x, None, [], weights, *UNMODIFIED, *lstm, 2),
            "panels_forward": (x, panels, [h, h.clone()]),
            "quantized_forward": (x, int8, [h, h.clone()]),
        }
        for name, arguments in calls.items():
            with pytest.raises(RuntimeError, match=r"too large|memory|allocate|overflow"):
                getattr(torch.ops.fusedrnn, name)(*arguments)
        for name in LAYERS:
            for options in ({}, {"checkpoint": 1}):
                with pytest.raises(RuntimeError, match=r"too large|memory|allocate|overflow"):
                    getattr(fusedrnn, name)(5, 6, **options)(x)
    none = torch.ones(1, 0, 5).expand(1 << 60, 0, 5)
    assert fusedrnn.LSTM(5, 6, checkpoint=1)(none)[0].shape == (1 << 60, 0, 6)


def test_views_that_negate() -> None:
    """Their memory holds the opposite: it is never taken for the values."""
    negated = torch._neg_view
    w = [torch.randn(24, 5), torch.randn(24, 6)]
    x, h, c = torch.randn(3, 4, 5), torch.randn(1, 4, 6), torch.randn(1, 4, 6)
    ops, lstm = fusedrnn._engine.ops, ("lstm", False, False, False)

    def both_ways(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, w: list) -> list:
        y, hn, reserve = ops.layer_forward(x, None, [h, c], w, *lstm, True)
        grads = ops.layer_backward(y, hn, x, None, [h, c], w, y, reserve, *lstm, -1)
        return [y, *hn, grads[0], ops.make_panels(w, *lstm)]

    opposite = [negated(-t) for t in (x, h, c)]
    for found, expected in zip(
        both_ways(*opposite, [negated(-t) for t in w]), both_ways(x, h, c, w), strict=True
    ):
        assert torch.equal(found, expected)
    module = fusedrnn.LSTM(5, 6)
    assert torch.equal(module(opposite[0], tuple(opposite[1:]))[0], module(x, (h, c))[0])

    imaginary = torch.randn(1, 4, 6, dtype=torch.complex64).conj().imag
    assert imaginary.is_neg()
    for make, forward in (
        (lambda: ops.make_panels(w, *lstm), ops.panels_forward),
        (lambda: ops.quantize_weights(w, "lstm", False, False), ops.quantized_forward),
    ):
        ready = make()
        before = h.clone(), c.clone()
        for i, states in (
            (0, (negated(h), c)), (1, (h, negated(c))), (1, (h, imaginary)),
            (1, (h, torch.randn(1, 4, 6, dtype=torch.complex64).conj())),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match=rf"hx\[{i}\]: expected"):
                forward(x, ready, states)
            assert torch.equal(h, before[0]) and torch.equal(c, before[1])
        expected = forward(x, ready, [h.clone(), c.clone()])
        assert torch.equal(forward(opposite[0], ready, [h.clone(), c.clone()]), expected)


def test_sizes_beyond_2_31_elements() -> None:
    """T*B*4H over 2^31: refused for lack of memory, never a crash or a wrong number of rows."""
    out = in_a_process("""
        import resource, torch, fusedrnn
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        x = torch.zeros(1, 1, 4).expand(1 << 20, 1 << 10, 4)
        for module in (fusedrnn.LSTM(4, 64), fusedrnn.GRU(4, 64), fusedrnn.RNN(4, 64)):
            try:
                module(x)
                print("ran")
            except (RuntimeError, MemoryError) as error:
                print("memory" in str(error).lower() or "too large" in str(error).lower())
    """)
    assert out == "True\n" * 3
