"""The functions without a module compute what the modules compute."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import functional

FUNCTIONS = {
    "RNN": functional.rnn_tanh, "LSTM": functional.lstm, "GRU": functional.gru,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_function_is_module(name: str, batch_first: bool) -> None:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    module = getattr(fusedrnn, name)(5, 6, **options)
    x = torch.randn(3, 4, 5)
    hx = torch.randn(4, 3 if batch_first else 4, 6)
    state = (hx, hx) if name == "LSTM" else hx
    output, final = module(x, state)
    found = FUNCTIONS[name](x, state, list(module.parameters()), **options)
    assert torch.equal(found[0], output)
    assert torch.equal(found[1], final[0] if name == "LSTM" else final)
    if name == "LSTM":
        assert torch.equal(found[2], final[1])


def test_relu() -> None:
    module = fusedrnn.RNN(5, 6, nonlinearity="relu")
    x = torch.randn(3, 4, 5)
    assert torch.equal(functional.rnn_relu(x, None, list(module.parameters()))[0], module(x)[0])


def test_packed() -> None:
    module = fusedrnn.GRU(5, 6)
    packed = pack_sequence([torch.randn(n, 5) for n in (4, 2, 1)])
    output, hn = functional.gru(
        packed.data, None, list(module.parameters()), batch_sizes=packed.batch_sizes
    )
    expected, final = module(packed)
    assert torch.equal(output, expected.data) and torch.equal(hn, final)


def test_dropout_only_in_training() -> None:
    module = fusedrnn.GRU(5, 6, num_layers=2)
    weights, x = list(module.parameters()), torch.randn(3, 4, 5)
    plain = functional.gru(x, None, weights, num_layers=2)[0]
    assert torch.equal(functional.gru(x, None, weights, num_layers=2, dropout=0.5)[0], plain)
    dropped = functional.gru(x, None, weights, num_layers=2, dropout=0.5, training=True)[0]
    assert not torch.equal(dropped, plain)
