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
from torch.overrides import TorchFunctionMode

import fusedrnn
from benchmarks.accuracy import int8_errors
from benchmarks.peers.torch_int8 import CLASSES
from benchmarks.workloads import rows_named
from fusedrnn import cells, reference
from fusedrnn._engine import ops
from fusedrnn._engine.layer import Layer as OneLayer
from fusedrnn._engine.layer import Operands
from fusedrnn.cells import Cell, cell_named
from fusedrnn.testing.parity import Case

CELLS = [cell.name for cell in cells.CELLS if cell.has_int8]
States = tuple[Tensor, ...]
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


class Int8Products(TorchFunctionMode):
    """The reference's products of what both sides are quantised to."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            rows, *weights = args
            return linear(rows.float(), *weights)
        return func(*args, **(kwargs or {}))


def step(x: Tensor, states: States, layer: OneLayer, weights: list[Tensor]) -> States:
    """One step in float64, with the sums of int8 products."""
    with Int8Products():
        _, final = reference.layer(
            layer, Operands(x[None], None, [state[None] for state in states], weights)
        )
    return tuple(state[0] for state in final)


def forward(x: Tensor, hx: States, quantized: Tensor) -> list[Tensor]:
    """One layer, [output, *hn]; zeros if no states are given. The op's work is on copies."""
    number, H, P = (int(n) for n in quantized[:64].view(torch.int64)[[5, 3, 4]])
    widths = [H if i else P or H for i in range(len(cells.CELLS[number].states))]
    hx = hx or tuple(torch.zeros(1, x.size(-2), width) for width in widths)
    hn = [state.clone(memory_format=CONTIGUOUS) for state in hx]
    output = ops.quantized_forward(x, quantized, hn)
    return [output, *hn]


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
    def facts(self) -> Cell:
        return cell_named(self.cell)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def weights(self) -> list[Tensor]:
        generator = self.generator()
        shapes = self.facts.shapes(self.I, self.H, self.P, biases=self.bias)
        return [torch.randn(s, generator=generator) / self.H**0.5 for s in shapes.values()]

    def inputs(self) -> tuple[Tensor, States]:
        generator = self.generator()
        x = torch.randn(self.T, self.B, self.I, generator=generator)
        widths = [self.H if i else self.P or self.H for i in range(len(self.facts.states))]
        states = (torch.randn(1, self.B, width, generator=generator) for width in widths)
        return x, tuple(states) if self.hx else ()

    @property
    def of_reference(self) -> OneLayer:
        return OneLayer(self.facts, self.bias, self.P > 0, False)

    def quantized(self) -> Tensor:
        return ops.quantize_weights(self.weights(), self.cell, self.bias, self.P > 0)

    def run(self) -> list[Tensor]:
        return forward(*self.inputs(), self.quantized())


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
    x, hx = layer.inputs()
    weights, quantized = layer.weights(), layer.quantized()
    output, *hn = forward(x, hx, quantized)
    assert output.shape == (layer.T, layer.B, layer.P or layer.H)
    assert len(hn) == len(layer.facts.states)
    for i, state in enumerate(hn):
        assert state.shape == (1, layer.B, layer.H if i else layer.P or layer.H)
    states = hx or tuple(torch.zeros_like(state) for state in hn)
    for t in range(layer.T):
        y, *new = forward(x[t : t + 1], states, quantized)
        assert torch.equal(y, output[t : t + 1]), (t, "not what one call of all steps gives")
        assert torch.equal(y, new[0])
        before = tuple(state[0] for state in states)
        exact = step(x[t], before, layer.of_reference, weights)
        errors = [
            (found[0] - value).abs() / value.abs().amax().clamp(min=1)
            for found, value in zip(new, exact, strict=True)
        ]
        if layer.P:
            # A hidden value at a boundary may round to the other int8, which moves its row.
            error, quantum = errors.pop(0), weights[-1].abs().amax() / 127
            assert error.max() <= 4 * quantum, (t, error.max())
            assert (error.amax(-1) > TOLERANCE).sum() <= 1 + layer.B // 10, (t, error)
        for error in errors:
            assert error.max() <= TOLERANCE, (t, error.max())
        states = tuple(new)
    assert all(torch.equal(a, b) for a, b in zip(states, hn, strict=True))


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
            quantized = ops.quantize_weights([w, torch.zeros(37, 37)], "rnn_relu", False, False)
            output = forward(x, (), quantized)[0]
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


@pytest.mark.parametrize("cell", list(CLASSES))
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
    quantized = ops.quantize_weights(weights, "lstm", True, False)
    states: States = (torch.zeros(layer.B, layer.H), torch.zeros(layer.B, layer.H))
    output, _, cn = forward(x, (), quantized)
    for t in range(3):
        states = step(x[t], states, layer.of_reference, weights)
        states = tuple(state.float() for state in states)
        torch.testing.assert_close(output[t], states[0], rtol=0, atol=2 * TOLERANCE)
    torch.testing.assert_close(cn[0], states[1], rtol=0, atol=2 * TOLERANCE)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30, 3e38])
def test_magnitudes(size: float) -> None:
    """Tiny and huge rows are quantised like any other, or as nothing."""
    x = torch.tensor([[[size, -size / 2, size / 127, 0.0]]])
    weights = [torch.tensor([[1.0, 0.0, 1.0, 5.0]]), torch.zeros(1, 1)]
    quantized = ops.quantize_weights(weights, "rnn_relu", False, False)
    output, _ = forward(x, (), quantized)
    q, scale = quantize(x[0])
    w, w_scale = quantize(weights[0])
    assert scale > 0 and q.abs().max() <= 127
    assert output.item() == pytest.approx((q @ w.T * scale * w_scale.T).item(), rel=1e-6, abs=0)


def test_one_huge_weight_leaves_other_rows_as_they_are() -> None:
    layer = Layer(H=16)
    weights = layer.weights()
    x, hx = layer.inputs()
    before = forward(x[:1], hx, layer.quantized())[0]
    weights[0][3, 2] = 1e6
    quantized = ops.quantize_weights(weights, "lstm", True, False)
    after = forward(x[:1], hx, quantized)[0]
    others = torch.arange(16) != 3
    assert torch.equal(before[..., others], after[..., others])
    assert after.isfinite().all()
    assert not torch.equal(before[..., 3], after[..., 3])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(cell: str, value: float) -> None:
    layer = Layer(cell, T=5, B=9, I=21, H=33)
    x, hx = layer.inputs()
    expected = forward(x, hx, layer.quantized())
    x[2, 4, 20] = value
    found = forward(x, hx, layer.quantized())
    output, *hn = found
    others = torch.arange(9) != 4
    assert output[2:, 4].isnan().all() and all(state[0, 4].isnan().all() for state in hn)
    assert torch.equal(output[:2], expected[0][:2])
    for value_found, wanted in zip(found, expected, strict=True):
        assert torch.equal(value_found[:, others], wanted[:, others])
    x[2, 4, 20], hx[0][0, 7, 32] = 0, value
    output = forward(x, hx, layer.quantized())[0]
    assert (
        output[:, 7].isnan().all() and output[:, others & (torch.arange(9) != 7)].isfinite().all()
    )


def test_no_sequences() -> None:
    layer = Layer(B=0)
    output, hn, cn = layer.run()
    assert output.shape == (4, 0, 19) and hn.shape == (1, 0, 19) and cn.shape == (1, 0, 19)


def test_inputs_that_are_not_contiguous() -> None:
    layer = Layer(B=6)
    x, hx = layer.inputs()
    expected = layer.run()
    for strided in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([x, x], -1)[..., 0],
        torch.cat([x, x], -1)[..., :7],
    ):
        assert not strided.is_contiguous()
        states = tuple(s.transpose(1, 2).contiguous().transpose(1, 2) for s in hx)
        found = forward(strided, states, layer.quantized())
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_quantized_is_one_value() -> None:
    """The same bytes for the same weights, whatever their strides; a copy serves as well."""
    layer = Layer("gru")
    quantized = layer.quantized()
    weights = [torch.stack([w, w], -1)[..., 0] for w in layer.weights()]
    assert torch.equal(quantized, ops.quantize_weights(weights, "gru", True, False))
    found = forward(*layer.inputs(), quantized.clone())
    assert torch.equal(found[0], layer.run()[0])


@pytest.mark.parametrize("name", ["w_ih", "w_hh", "b_ih", "b_hh", "w_hr"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(name: str, value: float) -> None:
    weights = Layer(P=3).weights()
    weights[["w_ih", "w_hh", "b_ih", "b_hh", "w_hr"].index(name)].view(-1)[1] = value
    with pytest.raises(
        RuntimeError, match=f"{name}: expected finite weights, got .* at position 1"
    ):
        ops.quantize_weights(weights, "lstm", True, True)


def changed(values: list[Tensor], at: int, value: Tensor) -> list[Tensor]:
    return [*values[:at], value, *values[at + 1 :]]


def test_errors_of_weights() -> None:
    weights = Layer().weights()
    for given, cell, bias, projected, message in [
        (weights, "peephole", True, False, 'cell: expected rnn_tanh, .* of a cell, got "peephole"'),
        (weights[:3], "lstm", True, False, "weights: expected 4 tensors"),
        (weights, "lstm", False, False, "weights: expected 2 tensors"),
        (weights, "lstm", True, True, "weights: expected 5 tensors .*w_hr"),
        ([*weights, torch.ones(19, 19)], "gru", True, True, "the cell gru cannot be projected"),
        (weights, "gru", True, False, "w_ih: expected shape"),
        (changed(weights, 0, weights[0].double()), "lstm", True, False, "w_ih: expected float32"),
        (changed(weights, 1, weights[1][:, 1:]), "lstm", True, False, "w_hh: expected shape"),
        (changed(weights, 2, weights[2][1:]), "lstm", True, False, "b_ih: expected shape"),
        (changed(weights, 3, weights[3][None]), "lstm", True, False, "b_hh: expected shape"),
        (changed(weights, 0, torch.ones(76, 0)), "lstm", True, False,
         "input_size: expected 1 to 65536"),
        (changed(weights, 0, torch.ones(76, 65537)), "lstm", True, False,
         "input_size: expected 1 to 65536"),
        (changed(weights, 0, torch.ones(0, 3)), "lstm", True, False,
         "hidden_size: expected 1 to 65536"),
        ([*weights, torch.ones(3, 19)], "lstm", True, True, "w_hr: expected shape"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            ops.quantize_weights(given, cell, bias, projected)


def test_errors_of_a_call() -> None:
    layer = Layer()
    x, hx = layer.inputs()
    quantized = layer.quantized()
    h, c = hx
    for given, message in [
        ((x.double(), quantized, hx), "input: expected float32"),
        ((x[None], quantized, hx), "input: expected 1 to 3 dimensions"),
        ((x[..., 1:], quantized, hx), r"input: expected 7 features, got shape \[4, 5, 6\]"),
        ((x[:0], quantized, hx), "at least one step"),
        ((x, quantized, [h]), r"hx: expected 2 state\(s\) \(h c\) for the cell lstm, got 1"),
        ((x, quantized, [h[:, 1:], c]), r"hx\[0\]: expected shape"),
        ((x, quantized, [h.transpose(1, 2).contiguous().transpose(1, 2), c]),
         r"hx\[0\]: expected contiguous"),
        ((x, quantized, [h, c.double()]), r"hx\[1\]: expected input's dtype"),
        ((x, Layer("gru").quantized(), hx), r"hx: expected 1 state\(s\) \(h\) .* gru, got 2"),
        ((x, quantized.float(), hx), "quantized: expected contiguous"),
        ((x, quantized[1:], hx), "quantized: expected contiguous"),
        ((x, quantized[:-64], hx), "quantized: expected what fusedrnn::quantize_weights returned"),
        ((x, quantized[:8], hx), "quantized: expected what fusedrnn::quantize_weights returned"),
        ((x, quantized[:0], hx), "quantized: expected what fusedrnn::quantize_weights returned"),
        ((x, torch.zeros_like(quantized), hx), "quantized: expected what"),
        ((x, torch.cat([quantized, quantized]), hx), "quantized: expected layers that fit each"),
        ((x[:1, :1].expand(2**46, 2**8, 7), quantized,
          [state[:, :1].repeat(1, 2**8, 1) for state in hx]), "input: too large"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            ops.quantized_forward(*given)


def test_a_header_that_was_changed_is_refused() -> None:
    """Or says sizes that the bytes have room for, which are not those of this call."""
    layer = Layer()
    x, hx = layer.inputs()
    quantized = layer.quantized()
    for at in range(64):
        for flip in (1, 0x80, 0xFF):
            other = quantized.clone()
            other[at] ^= flip
            with pytest.raises(RuntimeError, match=r"(quantized|input|hx(\[[01]\])?): "):
                ops.quantized_forward(x, other, hx)


def test_no_history() -> None:
    """For inference only: parameters may be given as they are, and nothing is kept of them."""
    layer = Layer()
    x, hx = layer.inputs()
    weights = [weight.requires_grad_() for weight in layer.weights()]
    quantized = ops.quantize_weights(weights, "lstm", True, False)
    output = ops.quantized_forward(x.requires_grad_(), quantized, hx)
    assert not quantized.requires_grad and not output.requires_grad
    assert torch.equal(output, layer.run()[0])


def test_other_devices_are_refused() -> None:
    layer = Layer()
    x, hx = layer.inputs()
    quantized = layer.quantized()
    h, c = hx
    for given in ((x.to_sparse(), quantized, hx), (x, quantized.to_sparse(), hx)):
        with pytest.raises(NotImplementedError, match="no kernels for these tensors"):
            ops.quantized_forward(*given)
    for name, given in {
        "weights": (x, quantized.to("meta"), hx),
        r"hx\[0\]": (x, quantized, [h.to("meta"), c]),
        r"hx\[1\]": (x, quantized, [h, c.to("meta")]),
    }.items():  # a tensor of the meta device makes torch ask only for shapes
        with pytest.raises(RuntimeError, match=f"{name}: expected the device of the input, cpu"):
            ops.quantized_forward(*given)


@pytest.mark.parametrize("layer", [Layer(), Layer("gru"), Layer(P=5)], ids=str)
def test_opcheck(layer: Layer) -> None:
    results = opcheck(ops.quantize_weights, (layer.weights(), layer.cell, layer.bias, layer.P > 0))
    assert set(results.values()) == {"SUCCESS"}
    x, hx = layer.inputs()
    results = opcheck(ops.quantized_forward, (x, layer.quantized(), hx))
    assert set(results.values()) == {"SUCCESS"}


# ---- the stream ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_of_layers(cell: str) -> None:
    """Layers on each other, by steps and by chunks, are single layers one after the other."""
    torch.manual_seed(0)
    module = Case(cell=cell, I=7, H=19, layers=3).module(dtype=torch.float32)
    stream = fusedrnn.Streaming(module, 5, weights="int8")
    x = torch.randn(6, 5, 7)
    expected = x
    for layer in module.all_weights:
        quantized = ops.quantize_weights(layer, cell, True, False)
        expected = forward(expected, (), quantized)[0]
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
