"""`replace`: torch.nn's recurrent modules become ours in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fusedrnn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(5, 6, num_layers=2, bidirectional=True)
        self.layers = nn.ModuleList([nn.GRU(12, 7), nn.RNN(7, 7, nonlinearity="relu")])
        self.again = self.layers[0]
        self.cells = nn.ModuleDict({"l": nn.LSTMCell(7, 8), "g": nn.GRUCell(8, 8),
                                    "r": nn.RNNCell(8, 3)})  # fmt: skip
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)[0]
        for layer in self.layers:
            x = layer(x)[0]
        h, _ = self.cells["l"](x[-1])
        return self.head(self.cells["r"](self.cells["g"](h)))


def test_every_kind_in_place() -> None:
    torch.manual_seed(0)
    model = Model().double()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    model.encoder.register_forward_hook(lambda *_: seen.append(1))
    model.layers[0].weight_hh_l0.requires_grad_(False)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    expected = model.train()(x)
    report = fusedrnn.replace(model)

    assert report.model is model and model.training and len(seen) == 1
    assert set(report.replaced) == {"encoder", "layers.0", "layers.1", "again", "cells.l",
                                    "cells.g", "cells.r"}  # fmt: skip
    assert report.skipped == {}
    assert "encoder: LSTM(5, 6, num_layers=2, bidirectional=True)" in str(report)
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)]
    assert all(kind.__module__.startswith("fusedrnn") for kind in kinds) and len(kinds) == 6
    assert model.again is model.layers[0]
    for a, b in zip(model.parameters(), parameters, strict=True):
        assert a is b
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)
    assert len(seen) == 2
    model(x).sum().backward()
    assert model.layers[0].weight_hh_l0.grad is None
    before = model.encoder.weight_hh_l0.detach().clone()
    optimizer.step()
    assert not torch.equal(model.encoder.weight_hh_l0, before)


def test_the_model_itself() -> None:
    module = nn.GRU(5, 6)
    x = torch.randn(3, 2, 5)
    expected = module(x)[0]
    report = fusedrnn.replace(module)
    assert report.model is module and type(module) is fusedrnn.GRU
    assert report.replaced == [""] and "itself" in str(report)
    torch.testing.assert_close(module(x)[0], expected)
    assert fusedrnn.replace(module).replaced == []


def test_what_is_left_alone_and_why() -> None:
    class Own(nn.LSTM):
        pass

    model = nn.ModuleDict({"own": Own(3, 4), "plain": nn.LSTM(3, 4), "patched": nn.GRU(3, 4)})
    model["patched"].forward = lambda x: x
    report = fusedrnn.replace(model)
    assert report.replaced == ["plain"]
    assert set(report.skipped) == {"own", "patched"}
    assert type(model["own"]) is Own and type(model["patched"]) is nn.GRU
    assert "own" in str(report) and all(report.skipped.values())


def test_parametrized() -> None:
    module = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    expected = module(x)[0]
    fusedrnn.replace(module)
    assert isinstance(module, fusedrnn.LSTM)
    torch.testing.assert_close(module(x)[0], expected)


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match="model.*str"):
        fusedrnn.replace("model")
