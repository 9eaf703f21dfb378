"""Layers with int8 weights: the kernels against the same quantisation in plain PyTorch.

A step is checked at a time, from the very h and c that the kernel had: one value of h that rounds
to the other of two neighbouring int8 values would part the two for good, while neither is wrong.
That many steps are the same as one after the other, bit for bit, is checked beside it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from test_capability import LEVELS, check_at
from torch import Tensor
from torch.library import opcheck

import fusedrnn
from benchmarks.accuracy import int8_errors
from benchmarks.workloads import rows_named
from fusedrnn import reference
from fusedrnn._engine import ops
from fusedrnn.reference import GATES, GRU, LSTM, RNN_RELU, RNN_TANH

CELLS = reference.CELLS[:4]  # those that have int8 kernels
State = tuple[Tensor, Tensor | None]
CONTIGUOUS = torch.contiguous_format
TOLERANCE = 4e-6  # of values around 1: float32 through sums of two products and a cell


# ---- the oracle ----------------------------------------------------------------------------------


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as whole numbers of at most 127 and a scale, as csrc/layer/quantized.h says."""
    largest = rows.abs().amax(-1, keepdim=True).clamp(min=2.0**-100)
    most = torch.full_like(largest, 127)
    return (rows * (most / largest)).round().double(), (largest / most).double()


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of what both are quantised to, in float64, where its sums are exact."""
    (q, scale), (w, w_scale) = quantize(rows), quantize(weight)
    product = F.linear(q, w) * scale * w_scale.T
    return product if bias is None else product + bias.double()


def step(x: Tensor, state: State, weights: list[Tensor], cell: int, bias: bool) -> State:
    """One step in float64, with the sums of int8 products."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if bias else (None, None)
    h, c = state
    gates_x, gates_h = linear(x, w_ih, b_ih), linear(h, w_hh, b_hh)
    if cell == GRU:  # the carry takes h as it is
        xr, xz, xn = gates_x.chunk(3, -1)
        hr, hz, hn = gates_h.chunk(3, -1)
        z, n = torch.sigmoid(xz + hz), torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        return n + z * (h.double() - n), None
    nothing = (
        torch.zeros(gates_h.shape[-1], 0, dtype=torch.float64),
        torch.zeros(len(h), 0).double(),
    )
    if cell == LSTM:
        assert c is not None
        new, c_new = reference.lstm_cell(
            gates_x + gates_h, nothing[1], c.double(), nothing[0], None
        )
        return (linear(new.float(), weights[-1]) if len(weights) % 2 else new), c_new
    activation = torch.tanh if cell == RNN_TANH else torch.relu
    return reference.rnn_cell(gates_x + gates_h, nothing[1], nothing[0], None, activation), None


def forward(
    x: Tensor, h: Tensor | None, c: Tensor | None, packed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, (output, hn, cn); zeros for states that are not given. The op's work on copies."""
    cell, H, P = (int(n) for n in packed[:64].view(torch.int64)[[5, 3, 4]])
    h = torch.zeros(1, x.size(-2), P or H) if h is None else h.clone(memory_format=CONTIGUOUS)
    if cell == LSTM:
        c = torch.zeros(1, x.size(-2), H) if c is None else c.clone(memory_format=CONTIGUOUS)
    output = ops.quantized_forward(x, packed, h, c)
    return output, h, torch.empty(1, x.size(-2), 0) if c is None else c


# ---- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    cell: str = "lstm"
    T: int = 4
    B: int = 5
    I: int = 7  # noqa: E741
    H: int = 19
    P: int = 0
    bias: bool = True
    hx: bool = True
    seed: int = 0

    def __str__(self) -> str:
        fields = dataclasses.fields(self)[1:]
        shown = [f"{f.name}={getattr(self, f.name)}" for f in fields
                 if getattr(self, f.name) != f.default]  # fmt: skip
        return "-".join([self.cell, *shown])

    @property
    def number(self) -> int:
        return CELLS.index(self.cell)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def weights(self) -> list[Tensor]:
        rows, width, generator = GATES[self.number] * self.H, self.P or self.H, self.generator()
        shapes = [(rows, self.I), (rows, width)] + ([(rows,), (rows,)] if self.bias else [])
        shapes += [(self.P, self.H)] if self.P else []
        return [torch.randn(shape, generator=generator) / self.H**0.5 for shape in shapes]

    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        generator = self.generator()
        x = torch.randn(self.T, self.B, self.I, generator=generator)
        if not self.hx:
            return x, None, None
        h = torch.randn(1, self.B, self.P or self.H, generator=generator)
        return x, h, torch.randn(1, self.B, self.H, generator=generator) if self.lstm else None

    @property
    def lstm(self) -> bool:
        return self.number == LSTM

    def packed(self) -> Tensor:
        return ops.quantize_weights(self.weights(), self.number, self.bias)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        return forward(*self.inputs(), self.packed())


LAYERS = [
    *(Layer(cell) for cell in CELLS),
    *(Layer(cell, T=3, B=1, I=33, H=64) for cell in CELLS),
    *(Layer(cell, T=3, B=13, I=1, H=1, hx=False) for cell in CELLS),
    *(Layer(cell, T=2, B=9, I=64, H=130, bias=False) for cell in CELLS),
    *(Layer(cell, T=60, B=3, I=5, H=70, hx=False) for cell in CELLS),
    *(Layer(cell, T=2, B=40, I=300, H=300) for cell in CELLS),
    Layer(P=5),
    Layer(P=1, B=1, T=6, hx=False, bias=False),
    Layer(P=80, I=65, H=97, B=11),
    Layer(P=200, I=300, H=400, B=9, T=2),
]


def check(layer: Layer) -> None:
    x, h, c = layer.inputs()
    weights, packed = layer.weights(), layer.packed()
    output, hn, cn = forward(x, h, c, packed)
    assert output.shape == (layer.T, layer.B, layer.P or layer.H)
    assert hn.shape == (1, *output.shape[1:])
    assert cn.shape == (1, layer.B, layer.H if layer.lstm else 0)
    h = torch.zeros_like(hn) if h is None else h
    c = torch.zeros_like(cn) if c is None else c
    for t in range(layer.T):
        cells = c if layer.lstm else None
        y, h_new, c_new = forward(x[t : t + 1], h, cells, packed)
        assert torch.equal(y, output[t : t + 1]), (t, "not what one call of all steps gives")
        assert torch.equal(y, h_new)
        exact_h, exact_c = step(x[t], (h[0], c[0]), weights, layer.number, layer.bias)
        error = (h_new[0] - exact_h).abs() / exact_h.abs().amax().clamp(min=1)
        if layer.P:
            # A hidden value at a boundary may round to the other int8, which moves its row.
            quantum = weights[-1].abs().amax() / 127
            assert error.max() <= 4 * quantum, (t, error.max())
            assert (error.amax(-1) > TOLERANCE).sum() <= 1 + layer.B // 10, (t, error)
        else:
            assert error.max() <= TOLERANCE, (t, error.max())
        if exact_c is not None:
            error = (c_new[0] - exact_c).abs() / exact_c.abs().amax().clamp(min=1)
            assert error.max() <= TOLERANCE, (t, error.max())
        h, c = h_new, c_new
    assert torch.equal(h, hn) and torch.equal(c, cn)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_kernel_is_the_oracle(layer: Layer) -> None:
    check(layer)


def check_exact() -> None:
    """Whole numbers whose scales are 1: the output is the sums, also of the largest products."""
    generator = torch.Generator().manual_seed(0)
    for rows, K in ((1, 1030), (7, 1030), (3, 6), (1, 1)):
        for most in (127, 126):  # all at an end of the range, or random, with one to set the scale
            x = torch.randint(-most, most + 1, (1, rows, K), generator=generator).float()
            w = torch.randint(-most, most + 1, (37, K), generator=generator).float()
            if most == 127:
                x, w = x.sign() * 127, w.sign() * 127
                w[5] = 127
                x[0, 0] = 127
            x[..., 0], w[:, 0] = 127, 127
            packed = ops.quantize_weights([w, torch.zeros(37, 37)], RNN_RELU, False)
            output = forward(x, None, None, packed)[0]
            assert torch.equal(output.double(), (x.double() @ w.double().T).relu()), (rows, K, most)


def test_sums_are_exact() -> None:
    check_exact()


def check_all() -> None:
    check_exact()
    for layer in LAYERS:
        check(layer)


@pytest.mark.parametrize("level", LEVELS[:-1])
def test_level(level: str) -> None:
    """Every instruction set that this processor has computes the same layer."""
    check_at(level, "test_quantized.check_all")


THREADED = [
    *(Layer(cell, T=9, B=64, I=40, H=70) for cell in CELLS),  # the batch is split
    *(Layer(cell, T=40, B=3, I=200, H=201) for cell in CELLS),  # the units are
    Layer(T=9, B=5, I=300, H=310, P=90),
    Layer(T=9, B=64, I=40, H=70, P=33),
    Layer(T=300, B=12, I=9, H=100, P=20),  # several chunks of steps
]


@pytest.mark.parametrize("layer", THREADED, ids=str)
def test_any_number_of_threads_gives_the_same_bits(layer: Layer) -> None:
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(layer.run())
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            assert torch.equal(found, expected)


# ---- accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("row", ["A", "H", "K"])
def test_accuracy_is_that_of_torch(cell: str, row: str) -> None:
    if not torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no quantised kernels")
    (sizes,) = rows_named([row])
    sizes = dataclasses.replace(sizes, T=min(sizes.T, 50))
    pairs = [int8_errors(sizes, cell, seed) for seed in range(5)]
    ours, theirs = (sum(pair[i].rms for pair in pairs) for i in (0, 1))
    assert ours <= 1.1 * theirs
    assert ours / len(pairs) < 0.02  # of values within 1


# ---- extremes and errors -------------------------------------------------------------------------


def test_rows_of_zeros() -> None:
    layer = Layer(T=3, hx=False)
    weights = layer.weights()
    weights[0][3] = 0  # a unit that sees no input
    weights[1][:] = 0
    x = layer.inputs()[0]
    x[1] = 0
    x[:, 2] = 0
    packed = ops.quantize_weights(weights, LSTM, True)
    state: State = (torch.zeros(layer.B, layer.H), torch.zeros(layer.B, layer.H))
    output, _, cn = forward(x, None, None, packed)
    for t in range(3):
        state = step(x[t], state, weights, LSTM, True)
        state = state[0].float(), state[1].float() if state[1] is not None else None
        torch.testing.assert_close(output[t], state[0], rtol=0, atol=2 * TOLERANCE)
    torch.testing.assert_close(cn[0], state[1], rtol=0, atol=2 * TOLERANCE)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30, 3e38])
def test_magnitudes(size: float) -> None:
    """Tiny and huge rows are quantised like any other, or as nothing."""
    x = torch.tensor([[[size, -size / 2, size / 127, 0.0]]])
    weights = [torch.tensor([[1.0, 0.0, 1.0, 5.0]]), torch.zeros(1, 1)]
    packed = ops.quantize_weights(weights, RNN_RELU, False)
    output, _, _ = forward(x, None, None, packed)
    q, scale = quantize(x[0])
    w, w_scale = quantize(weights[0])
    assert scale > 0 and q.abs().max() <= 127
    assert output.item() == pytest.approx((q @ w.T * scale * w_scale.T).item(), rel=1e-6, abs=0)


def test_one_huge_weight_leaves_other_rows_as_they_are() -> None:
    layer = Layer(H=16)
    weights = layer.weights()
    x, h, c = layer.inputs()
    before = forward(x[:1], h, c, layer.packed())[0]
    weights[0][3, 2] = 1e6
    packed = ops.quantize_weights(weights, LSTM, True)
    after = forward(x[:1], h, c, packed)[0]
    others = torch.arange(16) != 3
    assert torch.equal(before[..., others], after[..., others])
    assert after.isfinite().all()
    assert not torch.equal(before[..., 3], after[..., 3])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(cell: str, value: float) -> None:
    layer = Layer(cell, T=5, B=9, I=21, H=33)
    x, h, c = layer.inputs()
    expected = forward(x, h, c, layer.packed())
    x[2, 4, 20] = value
    output, hn, cn = forward(x, h, c, layer.packed())
    others = torch.arange(9) != 4
    assert output[2:, 4].isnan().all() and hn[0, 4].isnan().all() and cn[0, 4].isnan().all()
    assert torch.equal(output[:2], expected[0][:2])
    for found, wanted in zip((output, hn, cn), expected, strict=True):
        assert torch.equal(found[:, others], wanted[:, others])
    assert h is not None
    x[2, 4, 20], h[0, 7, 32] = 0, value
    output = forward(x, h, c, layer.packed())[0]
    assert (
        output[:, 7].isnan().all() and output[:, others & (torch.arange(9) != 7)].isfinite().all()
    )


def test_no_sequences() -> None:
    layer = Layer(B=0)
    output, hn, cn = layer.run()
    assert output.shape == (4, 0, 19) and hn.shape == (1, 0, 19) and cn.shape == (1, 0, 19)


def test_inputs_that_are_not_contiguous() -> None:
    layer = Layer(B=6)
    x, h, c = layer.inputs()
    assert h is not None and c is not None
    expected = layer.run()
    for strided in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([x, x], -1)[..., 0],
        torch.cat([x, x], -1)[..., :7],
    ):
        assert not strided.is_contiguous()
        states = (s.transpose(1, 2).contiguous().transpose(1, 2) for s in (h, c))
        found = forward(strided, *states, layer.packed())
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_packed_is_one_value() -> None:
    """The same bytes for the same weights, whatever their strides; a copy serves as well."""
    layer = Layer("gru")
    packed = layer.packed()
    weights = [torch.stack([w, w], -1)[..., 0] for w in layer.weights()]
    assert torch.equal(packed, ops.quantize_weights(weights, GRU, True))
    found = forward(*layer.inputs(), packed.clone())
    assert torch.equal(found[0], layer.run()[0])


@pytest.mark.parametrize("name", ["w_ih", "w_hh", "b_ih", "b_hh", "w_hr"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(name: str, value: float) -> None:
    weights = Layer(P=3).weights()
    weights[["w_ih", "w_hh", "b_ih", "b_hh", "w_hr"].index(name)].view(-1)[1] = value
    with pytest.raises(
        RuntimeError, match=f"{name}: expected finite weights, got .* at position 1"
    ):
        ops.quantize_weights(weights, LSTM, True)


def changed(values: list[Tensor], at: int, value: Tensor) -> list[Tensor]:
    return [*values[:at], value, *values[at + 1 :]]


def test_errors_of_weights() -> None:
    weights = Layer().weights()
    for given, cell, bias, message in [
        (weights, 5, True, "cell: expected 0 to 4"),
        (weights[:3], LSTM, True, "weights: expected 4 tensors"),
        (weights, LSTM, False, "weights: expected 2 tensors"),
        ([*weights, torch.ones(19, 19)], GRU, True, "only an LSTM can be projected"),
        (weights, GRU, True, "w_ih: expected shape"),
        (changed(weights, 0, weights[0].double()), LSTM, True, "w_ih: expected float32"),
        (changed(weights, 1, weights[1][:, 1:]), LSTM, True, "w_hh: expected shape"),
        (changed(weights, 2, weights[2][1:]), LSTM, True, "b_ih: expected shape"),
        (changed(weights, 3, weights[3][None]), LSTM, True, "b_hh: expected shape"),
        (changed(weights, 0, torch.ones(76, 0)), LSTM, True, "input_size: expected 1 to 65536"),
        (changed(weights, 0, torch.ones(76, 65537)), LSTM, True, "input_size: expected 1 to 65536"),
        (changed(weights, 0, torch.ones(0, 3)), LSTM, True, "hidden_size: expected 1 to 65536"),
        ([*weights, torch.ones(3, 19)], LSTM, True, "w_hr: expected shape"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            ops.quantize_weights(given, cell, bias)


def test_errors_of_a_call() -> None:
    layer = Layer()
    x, h, c = layer.inputs()
    packed = layer.packed()
    for given, message in [
        ((x.double(), packed, h, c), "input: expected float32"),
        ((x[None], packed, h, c), "input: expected 1 to 3 dimensions"),
        ((x[..., 1:], packed, h, c), r"input: expected 7 features, got shape \[4, 5, 6\]"),
        ((x[:0], packed, h, c), "at least one step"),
        ((x, packed, h, None), "c: expected an LSTM's cell state"),
        ((x, packed, h[:, 1:], c), "h: expected shape"),
        ((x, packed, h.transpose(1, 2).contiguous().transpose(1, 2), c), "h: expected contiguous"),
        ((x, packed, h, c.double()), "c: expected input's dtype"),
        ((x, Layer("gru").packed(), h, c), "c: expected none"),
        ((x, packed.float(), h, c), "packed: expected contiguous"),
        ((x, packed[1:], h, c), "packed: expected contiguous"),
        ((x, packed[:-64], h, c), "packed: expected what fusedrnn::quantize_weights returned"),
        ((x, packed[:8], h, c), "packed: expected what fusedrnn::quantize_weights returned"),
        ((x, packed[:0], h, c), "packed: expected what fusedrnn::quantize_weights returned"),
        ((x, torch.zeros_like(packed), h, c), "packed: expected what"),
        ((x, torch.cat([packed, packed]), h, c), "packed: expected layers that fit each other"),
        ((x[:1, :1].expand(2**46, 2**8, 7), packed, h[:, :1].repeat(1, 2**8, 1),
          c[:, :1].repeat(1, 2**8, 1)), "input: too large"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            ops.quantized_forward(*given)


def test_a_header_that_was_changed_is_refused() -> None:
    """Or says sizes that the bytes have room for, which are not those of this call."""
    layer = Layer()
    x, h, c = layer.inputs()
    packed = layer.packed()
    for at in range(64):
        for flip in (1, 0x80, 0xFF):
            other = packed.clone()
            other[at] ^= flip
            with pytest.raises(RuntimeError, match="(packed|input|h|c): "):
                ops.quantized_forward(x, other, h, c)


def test_no_history() -> None:
    """For inference alone: parameters may be given as they are, and nothing is kept of them."""
    layer = Layer()
    x, h, c = layer.inputs()
    weights = [weight.requires_grad_() for weight in layer.weights()]
    packed = ops.quantize_weights(weights, LSTM, True)
    output = ops.quantized_forward(x.requires_grad_(), packed, h, c)
    assert not packed.requires_grad and not output.requires_grad
    assert torch.equal(output, layer.run()[0])


def test_other_devices_are_refused() -> None:
    layer = Layer()
    x, h, c = layer.inputs()
    packed = layer.packed()
    for given in ((x.to_sparse(), packed, h, c), (x, packed.to_sparse(), h, c)):
        with pytest.raises(NotImplementedError, match="no kernels for these tensors"):
            ops.quantized_forward(*given)
    for name, given in {
        "packed": (x, packed.to("meta"), h, c),
        "h": (x, packed, h.to("meta"), c),
        "c": (x, packed, h, c.to("meta")),
    }.items():  # a tensor of the meta device makes torch ask for shapes alone
        with pytest.raises(RuntimeError, match=f"{name}: expected the device of the input, cpu"):
            ops.quantized_forward(*given)


@pytest.mark.parametrize("layer", [Layer(), Layer("gru"), Layer(P=5)], ids=str)
def test_opcheck(layer: Layer) -> None:
    results = opcheck(ops.quantize_weights, (layer.weights(), layer.number, layer.bias))
    assert set(results.values()) == {"SUCCESS"}
    x, h, c = layer.inputs()
    results = opcheck(ops.quantized_forward, (x, layer.packed(), h, c))
    assert set(results.values()) == {"SUCCESS"}


# ---- the stream ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_stream_of_layers(name: str) -> None:
    """Layers on each other, by steps and by chunks, are single layers one after the other."""
    torch.manual_seed(0)
    module = getattr(torch.nn, name)(7, 19, num_layers=3)
    stream = fusedrnn.Streaming(module, 5, weights="int8")
    x = torch.randn(6, 5, 7)
    expected = x
    for layer in module.all_weights:
        cell = CELLS.index(name.lower() if name != "RNN" else "rnn_tanh")
        packed = ops.quantize_weights(layer, cell, True)
        expected = forward(expected, None, None, packed)[0]
    assert torch.equal(stream(x), expected)
    stream.reset()
    assert torch.equal(torch.stack([stream(x[t]) for t in range(6)]), expected)
    torch.testing.assert_close(expected, module(x)[0].detach(), rtol=0, atol=0.05)
    with torch.no_grad():
        module.weight_hh_l1.mul_(3)
    stream.reset()
    assert not torch.equal(stream(x), expected)


def test_a_stream_refuses_what_int8_is_not_for() -> None:
    with pytest.raises(ValueError, match="weights: expected 'same' for .* in torch.float64 on cpu"):
        fusedrnn.Streaming(fusedrnn.LSTM(2, 3, dtype=torch.float64), weights="int8")
    module = fusedrnn.LSTM(2, 3)
    with torch.no_grad():
        module.bias_ih_l0[1] = float("inf")
    with pytest.raises(ValueError, match="module: expected finite weights"):
        fusedrnn.Streaming(module, weights="int8")
