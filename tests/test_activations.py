"""sigmoid, tanh and relu of the kernels over the whole range, on every instruction set.

They are seen through layers whose products are exact: one feature, weight 1, no recurrence.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_capability import LEVELS, check_at

PAYLOADS = {
    torch.float32: (0x7FC00000, 0x7FC00001, 0x7FFFFFFF, 0x7FC001FF, -0x3FFFFF),
    torch.float64: (0x7FF8000000000000, 0x7FF80000000007A2, 0x7FFFFFFFFFFFFFFF, -1),
}
ULP = {torch.float32: 4.0, torch.float64: 8.0}


def values(dtype: torch.dtype) -> torch.Tensor:
    """Finite values of all magnitudes and signs, subnormal ones too."""
    if dtype == torch.float32:
        bits = torch.arange(0, 2**32, 65521, dtype=torch.int64).to(torch.int32)
        x = bits.view(torch.float32)
    else:
        exponents = torch.linspace(-1074, 1023, 20011, dtype=torch.float64)
        x = torch.cat([torch.exp2(exponents), -torch.exp2(exponents)])
    near = torch.linspace(-100, 100, 30011, dtype=dtype)
    most = torch.finfo(dtype).max
    edges = torch.tensor([0.0, -0.0, 1.0, -1.0, most, -most], dtype=dtype)
    return torch.cat([x[x.isfinite()], near, near / 100, edges])


def layer(x: torch.Tensor, cell: str, w_ih: list[float]) -> torch.Tensor:
    """The final states of one step with scalar weights."""
    w = torch.tensor(w_ih, dtype=x.dtype)[:, None]
    bias = torch.zeros(len(w_ih), dtype=x.dtype)
    if cell == "gru":
        bias[-1] = 200  # n = tanh(200) = 1, so that h = 1 - z
    result = torch.ops.fusedrnn.layer_forward(
        x.view(1, -1, 1), None, [], [w, w * 0, bias, bias * 0], cell, True, False, False, False
    )
    h, *_ = result[1]
    return h.flatten()


def ulps(found: torch.Tensor, exact: np.ndarray, floor: float) -> float:
    """The largest error in ulp; below `floor` an ulp is floor's."""
    kind = np.float32 if found.dtype == torch.float32 else np.float64
    spacing = np.spacing(np.maximum(np.abs(exact).astype(kind), kind(floor)))
    return float((np.abs(found.double().numpy() - exact.astype(np.float64)) / spacing).max())


def check_all() -> None:
    for dtype, most in ULP.items():
        x = values(dtype)
        wide = x.numpy().astype(np.longdouble)
        tiny = torch.finfo(dtype).tiny
        tanh = layer(x, "rnn_tanh", [1.0])
        assert ulps(tanh, np.tanh(wide), tiny) <= most, dtype
        nonzero = x != 0  # the bias, +0, takes the sign of -0 away
        assert torch.equal(tanh[nonzero].signbit(), x[nonzero].signbit())
        assert torch.equal(layer(x, "rnn_relu", [1.0]), x.relu())
        # GRU with r = 1/2, z = sigmoid(x), n = 1: h = 1 - z = sigmoid(-x), absolutely.
        z = layer(x, "gru", [0.0, 1.0, 0.0])
        with np.errstate(over="ignore"):
            exact = 1 / (1 + np.exp(wide))
        error = np.abs(z.double().numpy() - exact.astype(np.float64)).max()
        assert error <= most * torch.finfo(dtype).eps, dtype
        special = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
        for cell, expected in (("rnn_tanh", special.tanh()), ("rnn_relu", special.relu())):
            found = torch.cat([layer(s[None], cell, [1.0]) for s in special])
            assert torch.equal(found.isnan(), expected.isnan())
            assert torch.equal(found[1:], expected[1:])
        for bits in PAYLOADS[dtype]:  # a NaN is one whatever its other bits are
            integers = torch.int32 if dtype == torch.float32 else torch.int64
            nan = torch.tensor([bits], dtype=integers).view(dtype)
            for cell, w_ih in (("rnn_tanh", [1.0]), ("rnn_relu", [1.0]), ("gru", [0.0, 1.0, 0.0])):
                assert layer(nan, cell, w_ih).isnan().all(), hex(bits)
            bias = torch.zeros(3, dtype=dtype)
            bias[0] = nan  # only of the reset gate
            w, one = torch.ones(3, 1, dtype=dtype), torch.ones(1, 1, 1, dtype=dtype)
            weights = [w, w, bias, bias * 0 + 1]
            after = torch.ops.fusedrnn.layer_forward(
                one, None, [one], weights, "gru", True, False, False, False
            )
            assert after[1][0].isnan().all(), hex(bits)


@pytest.mark.parametrize("level", LEVELS)
def test_activations(level: str) -> None:
    check_at(level, "test_activations.check_all")
