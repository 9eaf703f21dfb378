"""The oracle: reference.py computes what torch.nn computes in fp64."""

from __future__ import annotations

import pytest
import torch
from test_parity import CELLS, PROJECTED, SHAPES
from torch.nn.utils.rnn import pack_padded_sequence

from fusedrnn import reference
from fusedrnn.testing.parity import Case

LAYERS = [c for c in SHAPES + PROJECTED if c.layers == 1 and not c.unbatched and not c.batch_first]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_reference_is_torch_nn(shape: Case, cell: str) -> None:
    if shape.P and cell != "lstm":
        pytest.skip("only an LSTM can be projected")
    case = Case(**{**vars(shape), "cell": cell, "strided": False})
    module, inputs = case.module(torch.nn), case.inputs()
    expected = case.run(module, inputs)
    x, batch_sizes = inputs["input"], None
    if case.packed:
        packed = pack_padded_sequence(x, case.lengths(), enforce_sorted=case.packed == "sorted")
        x, batch_sizes = packed.data, packed.batch_sizes
        if packed.sorted_indices is not None:
            pytest.skip("sorting is the modules' work")
    with torch.no_grad():
        output, hn, cn = reference.layer(
            x,
            batch_sizes,
            inputs.get("h0"),
            inputs.get("c0"),
            list(module.parameters()),
            reference.CELLS.index(cell),
            case.bias,
            case.bidirectional,
        )
    torch.testing.assert_close(output, expected["output"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hn, expected["hn"], rtol=1e-12, atol=1e-12)
    if cell == "lstm":
        torch.testing.assert_close(cn, expected["cn"], rtol=1e-12, atol=1e-12)
