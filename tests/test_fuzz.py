"""Random configurations, by the same rule. FUSEDRNN_FUZZ=n: n examples, new each time.

Emulated devices get as many as hypothesis' profile says (conftest.py).
"""

from __future__ import annotations

import os

import pytest
import torch
from conftest import COMPILED, DEVICES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusedrnn.cells import cell_named
from fusedrnn.testing.parity import Case, check

EXAMPLES = int(os.environ.get("FUSEDRNN_FUZZ", 200))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    cell = draw(st.sampled_from(COMPILED))
    H = draw(st.one_of(st.integers(1, 40), st.sampled_from([48, 63, 64, 65, 100, 129])))
    unbatched = draw(st.booleans()) and draw(st.booleans())
    return Case(
        cell=cell,
        T=draw(st.one_of(st.integers(1, 8), st.sampled_from([20, 41]))),
        B=1 if unbatched else draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 33, 70]))),
        I=draw(st.one_of(st.integers(1, 20), st.sampled_from([32, 50]))),
        H=H,
        layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        P=draw(st.integers(0, H - 1)) if cell_named(cell).projects and draw(st.booleans()) else 0,
        hx=draw(st.booleans()),
        unbatched=unbatched,
        packed="" if unbatched else draw(st.sampled_from(["", "sorted", "unsorted", "padded"])),
        strided=draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
    )


DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=EXAMPLES)
@given(case=cases(), dtype=DTYPES, threads=st.integers(1, 4))
def test_any_configuration(case: Case, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    check(case, dtype)


@pytest.mark.parametrize("device", DEVICES[1:], indirect=True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one device for all
@given(case=cases(), dtype=DTYPES)
def test_any_configuration_on_other_devices(
    case: Case, dtype: torch.dtype, device: torch.device
) -> None:
    check(case, dtype, device)
