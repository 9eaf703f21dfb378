"""The oracle: reference.py computes what torch.nn computes in fp64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import CELLS, cases_of
from test_parity import PROJECTED, SHAPES
from torch.nn.utils.rnn import pack_padded_sequence

from fusedrnn import reference
from fusedrnn._engine.layer import Layer, Operands
from fusedrnn.testing import parity
from fusedrnn.testing.oracles import by_reference
from fusedrnn.testing.parity import Case

LAYERS = [c for c in SHAPES + PROJECTED if c.layers == 1 and not c.unbatched and not c.batch_first]


@pytest.mark.parametrize("case", cases_of(CELLS, LAYERS), ids=str)
def test_reference_is_torch_nn(case: Case) -> None:
    case = dataclasses.replace(case, strided=False)
    module, inputs = case.module(torch.nn), case.inputs()
    expected = case.run(module, inputs)
    x, batch_sizes = inputs["input"], None
    if case.packed:
        packed = pack_padded_sequence(x, case.lengths(), enforce_sorted=case.packed == "sorted")
        x, batch_sizes = packed.data, packed.batch_sizes
        if packed.sorted_indices is not None:
            pytest.skip("sorting is the modules' work")
    with torch.no_grad():
        layer = Layer(case.facts, case.bias, case.P > 0, case.bidirectional)
        hx = [inputs[f"{state}0"] for state in case.facts.states if case.hx]
        operands = Operands(x, batch_sizes, hx, list(module.parameters()))
        output, final = reference.layer(layer, operands)
    torch.testing.assert_close(output, expected["output"], rtol=1e-12, atol=1e-12)
    for state, value in zip(case.facts.states, final, strict=True):
        torch.testing.assert_close(value, expected[f"{state}n"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "shape",
    [
        Case(layers=2, bidirectional=True, batch_first=True, P=3),
        Case(T=7, packed="unsorted", hx=False, bias=False),
        Case(T=7, packed="unsorted", bidirectional=True),
        Case(unbatched=True),
    ],
    ids=str,
)
def test_networks_made_of_the_reference(
    shape: Case, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracles of cells that nobody else has compute what the others do."""
    case = shape.of(cell)
    expected = case.run(case.module(torch.nn), case.inputs())
    monkeypatch.setattr(parity, "oracle_of", by_reference)
    found = case.run(case.module(torch.nn), case.inputs())
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)
