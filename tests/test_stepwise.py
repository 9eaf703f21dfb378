"""The CUDA kernels and their driver in the emulation, where it sees more than numbers.

Parity, contract and gradients hold on the emulated devices in the tests that take a `device`. Here:
races and addresses, every way a call can be cut up, and what failures say.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import COMPILED, GATED, KINDS, cases_of
from cuda_emulation import backend as emulated
from processes import under_address_sanitizer
from torch import nn

import fusedrnn
from fusedrnn.testing.parity import Case, check

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=emulated.missing())

STEPWISE = "team=stepwise"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    Case(T=3, B=5, I=3, H=7, bidirectional=True),
    Case(T=4, B=6, I=3, H=16, bidirectional=True, packed="sorted"),
    Case(T=3, B=3, I=2, H=8, bias=False, hx=False),
    Case(T=3, B=4, I=3, H=9, P=4, bidirectional=True, packed="sorted"),
]
CASES = cases_of(COMPILED, SHAPES)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_races_and_no_unwritten_memory(case: Case, dtype: torch.dtype) -> None:
    for seed in (0, 1, 2):
        with emulated.installed("race", seed=seed, plan=STEPWISE) as emulation:
            before = emulation.fusedrnn_emulation_launches()
            check(case, dtype)
            assert emulation.fusedrnn_emulation_launches() > before + case.T


@pytest.mark.thorough  # all kernels are compiled once more, for minutes
def test_no_access_out_of_bounds() -> None:
    """AddressSanitizer watches every access of every kernel, in a process of its own."""
    code = """
        import torch, test_stepwise
        from fusedrnn.testing.parity import check
        from cuda_emulation import backend as emulated
        with emulated.installed("asan", seed=1, plan=test_stepwise.STEPWISE):
            for case in test_stepwise.CASES:
                for dtype in (torch.float64, torch.bfloat16):
                    check(case, dtype)
            for case in test_stepwise.WIDE[::4]:
                check(case, torch.bfloat16)
        print("checked")
    """
    assert under_address_sanitizer(code) == "checked\n"


# Units enough that a thread has 16 bytes of them.
WIDE = cases_of(COMPILED, [Case(T=2, B=520, I=3, H=128, packed=p) for p in ("", "sorted")])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_sixteen_bytes_a_thread(case: Case, dtype: torch.dtype) -> None:
    plan = fusedrnn.plan(
        case.cell, time=case.T, batch=case.B, input_size=case.I, hidden_size=case.H, dtype=dtype,
        device="cuda",
    )  # fmt: skip
    assert isinstance(plan, fusedrnn.CudaPlan)
    assert plan.units_per_thread == 16 // dtype.itemsize
    with emulated.installed(seed=1, plan=STEPWISE):
        check(case, dtype)


@pytest.mark.parametrize("cell", GATED)
def test_states_at_odd_addresses(cell: str) -> None:
    """A wide access may not begin between two of its own size."""
    case = Case(cell=cell, T=2, B=520, I=3, H=128)
    module = case.module(dtype=torch.bfloat16)
    x, *states = (value.to(torch.bfloat16) for value in case.inputs().values())
    odd = []
    for state in states:
        odd.append(torch.empty(state.numel() + 1, dtype=state.dtype)[1:].view_as(state))
        odd[-1].copy_(state)
    results = []
    with emulated.installed(plan=STEPWISE), torch.no_grad():
        for given in (states, odd):
            results.append(module(x, case.hx_of(given))[0])
    assert odd[0].data_ptr() % 16 and torch.equal(*results)


@pytest.mark.parametrize(
    "override", ["forward_steps=1", "forward_steps=2,units_per_thread=8", "units_per_thread=4"]
)
def test_however_a_call_is_cut(override: str) -> None:
    code = """
        import torch, test_stepwise
        from fusedrnn.testing.parity import check
        from cuda_emulation import backend as emulated
        with emulated.installed(seed=3):
            for case in test_stepwise.CASES:
                for dtype in (torch.float64, torch.float32, torch.bfloat16):
                    check(case, dtype)
        print("checked")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parent,
        env=os.environ | {"FUSEDRNN_PLAN": f"{STEPWISE},{override}",
                          "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "checked\n", done.stderr[-3000:]


@pytest.mark.parametrize("cell", KINDS)
def test_inputs_of_any_strides(cell: str) -> None:
    """Rows at uneven distances, at none, and dimensions of one with strides that mean nothing."""
    module = Case(cell=cell, I=4, H=8).module()
    other = Case(cell=cell, I=4, H=8).module(nn)
    base = torch.randn(5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = {
        "every second feature": base[..., ::2],
        "a window of the features": base[..., 2:6],
        "every second step": base[::2, :, :4],
        "time and batch swapped": base[..., :4].transpose(0, 1),
        "one step for all": base[:1, :, :4].expand(6, 3, 4),
        "one sequence for all": base[:, :1, :4].expand(5, 7, 4),
        "one row for all": base[:1, :1, :4].expand(6, 7, 4),
        "one sequence": base[:, 1:2, :4],
        "one step": base[2:3, :, :4],
        "one row": base[2:3, 1:2, :4],
        "one feature for all": base[..., :1].expand(5, 3, 4),
    }
    for name, x in inputs.items():
        found = []
        for network in (module, other):
            leaf = x.detach().requires_grad_()
            with emulated.installed(seed=1, plan=STEPWISE):
                output = network(leaf)[0]
                grads = torch.autograd.grad(output.sum(), [leaf, *network.parameters()])
            found.append([output, *grads])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=name)


def test_tf32_is_asked_of_the_products() -> None:
    """The op's argument reaches cuBLAS, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    x, w_ih, w_hh = (
        torch.randn(*sizes, generator=generator) for sizes in ((4, 3, 5), (28, 5), (28, 7))
    )
    found = []
    with emulated.installed(plan=STEPWISE):
        for allowed in (False, True):
            given = (x, None, [], [w_ih, w_hh])
            layer = ("lstm", False, False, False)
            y, _, reserve = torch.ops.fusedrnn.layer_forward(*given, *layer, True, allowed)
            grads = torch.ops.fusedrnn.layer_backward(
                torch.ones_like(y), [], *given, y, reserve, *layer, -1, allowed
            )
            found.append([y, grads[0], *grads[2]])
    for exact, rounded in zip(*found, strict=True):
        difference = (exact - rounded).abs().max() / exact.abs().max()
        assert 1e-5 < difference < 1e-2


def test_every_byte_of_the_reserve_is_written() -> None:
    """Also beyond the last unit: the reserve is a tensor, the same for the same call."""
    weights = [torch.ones(24, 4), torch.ones(24, 6)]
    call = (torch.ones(2, 3, 4), None, [], weights, "lstm", False, False, False, True)
    with emulated.installed(plan=STEPWISE):
        reserve = torch.ops.fusedrnn.layer_forward(*call)[2]
    assert reserve.shape == (1, 6, 5, 16)
    assert reserve[..., :6].isfinite().all() and (reserve[..., 6:] == 0).all()


def test_a_launch_that_fails_is_told() -> None:
    """The report of a failed launch is the exception's text, and the next call works."""
    module = fusedrnn.LSTM(3, 4)
    x = torch.zeros(2, 2, 3)
    with emulated.installed(plan=STEPWISE) as emulation:
        expected = module(x)[0]
        emulation.fusedrnn_emulation_configure(0, b"block_threads=32")
        with pytest.raises(
            RuntimeError, match="CUDA: a forward step failed: bad launch: .*threads in a block"
        ):
            module(x)
        emulation.fusedrnn_emulation_configure(0, b"")
        assert torch.equal(module(x)[0], expected)
