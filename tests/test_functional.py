"""The functions without a module compute what the modules compute."""

from __future__ import annotations

import pytest
import torch
from conftest import MODULE_FACTS, TORCH_MODULES
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import functional

FUNCTIONS = {name: getattr(functional, MODULE_FACTS[name].name) for name in TORCH_MODULES}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_function_is_module(name: str, batch_first: bool) -> None:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    module = getattr(fusedrnn, name)(5, 6, **options)
    x = torch.randn(3, 4, 5)
    hx = torch.randn(4, 3 if batch_first else 4, 6)
    state = (hx, hx) if len(MODULE_FACTS[name].states) > 1 else hx
    found = FUNCTIONS[name](x, state, list(module.parameters()), **options)
    torch.testing.assert_close(found, module(x, state), rtol=0, atol=0)


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


def test_projected() -> None:
    module = fusedrnn.LSTM(5, 6, num_layers=2, proj_size=3)
    weights, x = list(module.parameters()), torch.randn(4, 2, 5)
    output, (hn, cn) = functional.lstm(x, None, weights, num_layers=2, proj_size=3)
    expected, final = module(x)
    for a, b in zip((output, hn, cn), (expected, *final), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="weights: expected 8 tensors, w_ih, w_hh, b_ih, b_hh "):
        functional.lstm(x, None, weights, num_layers=2)
    with pytest.raises(RuntimeError, match="w_hh of 2 columns, proj_size, got shape"):
        functional.lstm(x, None, weights, num_layers=2, proj_size=2)
    for value, error in ((-1, ValueError), (3.0, TypeError)):
        with pytest.raises(error, match="proj_size"):
            functional.lstm(x, None, weights, num_layers=2, proj_size=value)


def test_what_is_shown() -> None:
    assert dir(functional) == ["gru", "lstm", "rnn_relu", "rnn_tanh"]
    for name in dir(functional):  # also where the source says only what is its own
        text = getattr(functional, name).__doc__
        for word in ("input:", "hx:", "checkpoint:", "Returns:", "Raises:"):
            assert text.count(word) == 1, (name, word)
