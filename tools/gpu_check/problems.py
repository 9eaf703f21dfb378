"""Small problems: one for every way of computing a layer, and some for a sanitizer to watch.

A way is a team (or stepwise), a cell and an arithmetic; its problems are held to the numbers rule
of fusedrnn/testing/parity.py. Those for a sanitizer go through cells, dtypes, directions, packed
and padded input, projections, and few and many units in turn; it is told of them by memory, and
the tests of numbers.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from fusedrnn.cells import CELLS, cell_named
from fusedrnn.testing.parity import Case, compare, float32_products
from tools.gpu_check.device import Device

ARITHMETICS = {  # dtype, and what products of float32 may be rounded to
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
    "fp64": (torch.float64, "ieee"),
}
TEAMS = ("cluster", "block", "stepwise")
TF32_BOUND = 1e-2  # of the largest magnitude: tf32 keeps ten bits, whether or not cuDNN uses it

SIZES = {  # T, B, I, H by the plan that is asked for
    "team=stepwise": ((4, 5, 7, 19), (2, 520, 8, 128)),  # one unit a thread, and 16 bytes of them
    "team=block": ((4, 5, 7, 19),),
    "team=cluster": ((4, 9, 7, 40),),
    "team=cluster,rows=72": ((3, 70, 7, 40),),  # bulk copies
}
WATCHED = 40


def ways() -> list[dict[str, str]]:
    """All ways, those of the cells and arithmetics that are used most first."""
    order = ["lstm", "gru", "rnn_tanh"]
    cells = sorted(CELLS, key=lambda c: order.index(c.name) if c.name in order else len(order))
    return [
        {"team": team, "cell": cell.name, "arithmetic": arithmetic}
        for arithmetic in ARITHMETICS
        for cell in cells
        for team in TEAMS
        if team == "stepwise" or (cell.stages == 1 and arithmetic != "fp64")
    ]


def check_way(device: Device, team: str, cell: str, arithmetic: str) -> dict[str, Any]:
    """Forward and backward in one direction, and in both with packed input.

    Returns the largest part of the allowed error that was used, and by which tensor.

    Raises:
        AssertionError: the plan did not take the team, or an error is larger than allowed.
    """
    dtype, precision = ARITHMETICS[arithmetic]
    worst, where = 0.0, ""
    with device.planned(f"team={team}"), float32_products(precision):
        one = Case(cell=cell, T=5, B=9, I=24, H=40)
        for case in (one, replace(one, bidirectional=True, packed="sorted")):
            plan = fusedrnn.plan(
                cell, device="cuda", time=case.T, batch=case.B, input_size=case.I,
                hidden_size=case.H, bidirectional=case.bidirectional, dtype=dtype, training=True,
            )  # fmt: skip
            assert isinstance(plan, fusedrnn.CudaPlan)
            taken = {plan.forward.team, plan.backward.team}
            assert taken == {team}, f"asked for team={team}, and the plan took {taken}"
            for error in compare(case, dtype, device.type):
                allowed = max(error.allowed, TF32_BOUND * error.largest * (arithmetic == "tf32"))
                used = error.error / allowed if error.error else 0.0
                assert used <= 1, (
                    f"{case}, {error.name}: error {error.error:.2e}, allowed {allowed:.2e}, "
                    f"torch.nn's {error.torch_error:.2e}, largest {error.largest:.2e}"
                )
                if used >= worst:
                    worst, where = used, error.name
    return {"part of the allowed error": round(worst, 3), "at": where}


def watched() -> list[dict[str, Any]]:
    """The problems for a sanitizer."""
    kinds = [(cell.name, 0) for cell in CELLS]
    kinds += [(cell.name, 8) for cell in CELLS if cell.projects]
    dtypes = ("float32", "bfloat16", "float16", "float64")
    plans = [
        (plan, sizes, dtype)
        for dtype in dtypes
        for plan, all_sizes in SIZES.items()
        for sizes in all_sizes
        if plan == "team=stepwise" or dtype != "float64"
    ]
    # Lists of coprime lengths go through all pairs.
    pairs = zip(itertools.cycle(plans), itertools.cycle(kinds), strict=False)
    return [
        {
            "plan": plan, "sizes": list(sizes), "dtype": dtype, "cell": cell, "proj_size": P,
            "both": i // 2 % 2 == 1, "packed": i % 2 == 1,
        }
        for i, ((plan, sizes, dtype), (cell, P)) in enumerate(itertools.islice(pairs, WATCHED))
    ]  # fmt: skip


def run_watched(
    device: Device, *, plan: str, sizes: list[int], dtype: str, cell: str, proj_size: int,
    both: bool, packed: bool,
) -> None:  # fmt: skip
    """One forward and backward pass.

    Raises:
        AssertionError: a gradient is missing or not finite.
    """
    T, B, features, H = sizes
    facts = cell_named(cell)
    options: dict[str, Any] = {"bidirectional": both, **facts.options}
    if proj_size:
        options["proj_size"] = proj_size
    torch.manual_seed(0)
    module: torch.nn.Module = getattr(fusedrnn, facts.module)(features, H, **options)
    module.to(device.type, getattr(torch, dtype))
    x = torch.randn(
        T, B, features, device=device.type, dtype=getattr(torch, dtype), requires_grad=True
    )
    lengths = (torch.arange(B, 0, -1) - 1) * T // B + 1
    with device.planned(plan):
        output, final = module(pack_padded_sequence(x, lengths) if packed else x)
        states = final if isinstance(final, tuple) else (final,)
        results = [output.data if packed else output, *states]
        torch.autograd.backward(results, [torch.randn_like(result) for result in results])
        device.synchronize()
    gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients), module
