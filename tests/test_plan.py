"""Plans: pure functions of the sizes, printable, and what the environment makes of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import CELLS, KINDS, WALKED
from processes import in_a_process

import fusedrnn
from fusedrnn import cells
from fusedrnn._engine import ops
from fusedrnn.testing.parity import Case, check


def test_plan_is_printable_and_pure() -> None:
    sizes = dict(time=50, batch=64, input_size=100, hidden_size=128)
    first = fusedrnn.plan("lstm", **sizes, threads=4)
    assert first == fusedrnn.plan("lstm", **sizes, threads=4)
    assert first.threads <= 4 and first.split == "batch"
    assert fusedrnn.plan("lstm", **sizes, threads=1).threads == 1
    one = fusedrnn.plan("lstm", time=50, batch=1, input_size=1536, hidden_size=1536, threads=4)
    assert one.split == "units" and "units" in str(one)
    both = fusedrnn.plan("gru", **sizes, bidirectional=True, threads=2)
    assert both.direction_teams == 2 and both.split == "none"
    assert fusedrnn.plan("gru", time=1, batch=1, input_size=9, hidden_size=9).weights_in_place


def test_plan_of_panels_that_are_made_ahead() -> None:
    sizes = dict(time=1, batch=1, input_size=256, hidden_size=256, threads=2)
    called, kept = fusedrnn.plan("lstm", **sizes), fusedrnn.plan("lstm", **sizes, panels=True)
    assert called.weights_in_place and not called.fuse_input
    assert kept.fuse_input and not kept.weights_in_place


def test_a_chunk_does_not_depend_on_threads() -> None:
    """What decides how sums are cut must not, or numbers would depend on the machine's size."""
    for cell in CELLS:
        for batch in (1, 8, 64, 500):
            plans = {
                (p.forward_steps, p.backward_steps, p.weights_in_place, p.fuse_input)
                for p in (
                    fusedrnn.plan(cell, time=90, batch=batch, input_size=70, hidden_size=300,
                                  threads=threads)
                    for threads in (1, 2, 7, 64)
                )
            }  # fmt: skip
            assert len(plans) == 1


def test_plan_refuses_nonsense() -> None:
    sizes = dict(time=3, batch=4, input_size=5, hidden_size=6)
    with pytest.raises(ValueError, match="cell"):
        fusedrnn.plan("mlp", **sizes)
    with pytest.raises(ValueError, match="batch"):
        fusedrnn.plan("gru", **{**sizes, "batch": 0})
    with pytest.raises(ValueError, match="dtype"):
        fusedrnn.plan("gru", **sizes, dtype=torch.int64)
    with pytest.raises(ValueError, match="device: expected cpu or cuda, got meta"):
        fusedrnn.plan("gru", **sizes, device="meta")


def cuda_plan(cell: str = "lstm", **given: Any) -> fusedrnn.CudaPlan:
    sizes = dict(time=100, batch=16, input_size=64, hidden_size=512, dtype=torch.bfloat16)
    plan = fusedrnn.plan(cell, device="cuda", **sizes | {"gpu": fusedrnn.Gpu()} | given)
    assert isinstance(plan, fusedrnn.CudaPlan)
    return plan


def test_cuda_plan_needs_no_gpu() -> None:
    plan = cuda_plan()
    assert plan == cuda_plan() and plan.backend == "cuda" and "cluster" in str(plan)
    walk = plan.forward
    assert (walk.team, walk.blocks, walk.units, walk.rows) == ("cluster", 16, 32, 8)
    assert (walk.teams, walk.arithmetic) == (2, "bfloat16")
    large = cuda_plan(batch=128, hidden_size=1024)
    assert large.forward.team == large.backward.team == "stepwise"
    assert large.forward.blocks is None
    assert large.units_per_thread == 8  # 16 bytes
    assert 1 <= large.forward_steps < 100
    odd = cuda_plan("gru", time=9, batch=4096, hidden_size=99, proj_size=0, dtype=torch.float32)
    assert odd.units_per_thread == 1


@pytest.mark.parametrize("cell", [name for name in KINDS if name in WALKED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_team_has_all_units_and_sequences_and_fits_the_device(
    cell: str, dtype: torch.dtype
) -> None:
    gpus = [fusedrnn.Gpu(), fusedrnn.Gpu((8, 0), 108, 166912), fusedrnn.Gpu((7, 5), 40, 65536)]
    teams = set()
    for gpu in gpus:
        for hidden in (1, 16, 33, 64, 100, 128, 160, 192, 250, 256, 400, 512, 640, 768, 1000, 1600):
            for batch in (1, 8, 20, 64, 300):
                plan = cuda_plan(cell, gpu=gpu, hidden_size=hidden, batch=batch, dtype=dtype)
                for walk in (plan.forward, plan.backward):
                    teams.add(walk.team)
                    assert walk.step_ns > 0
                    if walk.team == "stepwise":
                        continue
                    assert walk.blocks * walk.units >= hidden and walk.units % 16 == 0
                    assert walk.teams * walk.rows >= batch and walk.rows % 8 == 0
                    assert (walk.teams - 1) * walk.rows < batch
                    assert walk.shared_bytes <= gpu.shared_bytes
                    assert 1 <= walk.warps <= 12 and walk.at_once >= 1
                    assert (walk.team == "cluster") == (walk.blocks > 1)
                    assert walk.blocks <= (16 if gpu.capability[0] >= 9 else 1)
    assert teams == {"stepwise", "block", "cluster"}


def test_a_cuda_plan_asks_only_for_what_the_device_has() -> None:
    ampere, turing = fusedrnn.Gpu((8, 6), 84, 101376), fusedrnn.Gpu((7, 5), 40, 65536)
    small = dict(hidden_size=32)
    assert cuda_plan(**small, gpu=ampere).forward.team == "block"
    assert cuda_plan(gpu=ampere).forward.team == "stepwise"  # needs a cluster
    assert cuda_plan(**small, gpu=turing).forward.team == "stepwise"  # no bf16 products
    assert cuda_plan(**small, gpu=turing, dtype=torch.float16).forward.team == "block"
    for gpu, arithmetic in ((ampere, "tf32"), (turing, "float32")):
        plan = cuda_plan(**small, gpu=gpu, dtype=torch.float32, allow_tf32=True)
        assert plan.forward.arithmetic == plan.backward.arithmetic == arithmetic
    assert cuda_plan(**small, dtype=torch.float64).forward.team == "stepwise"
    assert cuda_plan(**small, proj_size=8).forward.team == "stepwise"
    full = fusedrnn.Gpu(multiprocessors=12)  # too few for a cluster of any size
    assert cuda_plan(gpu=full).forward.team == "stepwise"


def test_tf32_is_what_cudnn_s_setting_says() -> None:
    before = torch.backends.cudnn.rnn.fp32_precision
    try:
        for precision, arithmetic in (("ieee", "float32"), ("tf32", "tf32")):
            torch.backends.cudnn.rnn.fp32_precision = precision
            assert cuda_plan(hidden_size=64, dtype=torch.float32).forward.arithmetic == arithmetic
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


@contextmanager
def overridden(text: str) -> Iterator[None]:
    """While this overrides plans."""
    ops.override_plan(text)
    try:
        yield
    finally:
        ops.override_plan("")


SIZES = dict(time=50, batch=64, input_size=100, hidden_size=128, threads=4)


def planned(override: str, **more: Any) -> Any:
    """The plan of an LSTM under an override."""
    with overridden(override):
        return fusedrnn.plan("lstm", **SIZES | more)


def test_an_override_of_a_plan() -> None:
    many = "threads=2,split=units,forward_steps=7,backward_steps=999,fuse_input=0"
    plan = planned(many)
    assert (plan.threads, plan.split, plan.fuse_input) == (2, "units", False)
    assert (plan.forward_steps, plan.backward_steps) == (7, 50)
    assert planned(many, threads=1).threads == 1 and planned(many, time=3).forward_steps == 3
    assert planned(many, device="cuda").forward_steps == 7
    assert planned("split=none,threads=4").threads == 1
    teams = "direction_teams=2,threads=3"
    assert planned(teams, bidirectional=True).threads == 2 and planned(teams).threads == 3

    def wide(override: str) -> tuple[object, ...]:
        with overridden(override):
            sizes: dict[str, Any] = dict(time=3, batch=20, input_size=5, hidden_size=64)
            p = cuda_plan("gru", **sizes, dtype=torch.float32)
        return p.forward.team, p.forward.blocks, p.backward.rows, p.units_per_thread

    assert wide("team=stepwise,units_per_thread=4") == ("stepwise", None, None, 4)
    assert wide("team=block,units_per_thread=3")[:2] == ("block", 1)
    assert wide("team=cluster,blocks=2,rows=10") == ("cluster", 2, 16, 1)
    assert wide("team=cluster,rows=999")[::2] == ("cluster", 24)
    assert wide("team=cluster,blocks=3") == ("stepwise", None, None, 1)  # 64 is 4 times 16


def test_the_environment_overrides_a_plan() -> None:
    code = f"""
        import fusedrnn
        plan = fusedrnn.plan("lstm", **{SIZES})
        print(plan.threads, plan.split, plan.forward_steps, plan.backward_steps, plan.fuse_input)
        print(fusedrnn.plan("lstm", **{SIZES}, device="cuda").forward_steps)
    """
    override = "threads=2,split=units,forward_steps=7,backward_steps=999,fuse_input=0"
    out = in_a_process(textwrap.dedent(code), FUSEDRNN_PLAN=override)
    assert out == "2 units 7 50 False\n7\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("thread=2", 'expected key=value,... with keys among backward_steps, .*got "thread=2"'),
        ("threads", "expected key=value"),
        ("threads=2,,", "expected key=value"),
        ("threads=0", 'threads: expected a positive number, got "0"'),
        ("threads=2x", "threads: expected a positive number"),
        ("split=rows", 'split: expected one of none, batch, units, got "rows"'),
        ("fuse_input=yes", "fuse_input: expected 0 or 1"),
        ("team=grid", "team: expected one of stepwise, block, cluster, got"),
        ("blocks=0", "blocks: expected a positive number"),
    ],
)
def test_an_override_that_makes_no_sense(override: str, message: str) -> None:
    with pytest.raises(ValueError, match="FUSEDRNN_PLAN: .*" + message):
        ops.override_plan(override)


def test_an_environment_that_makes_no_sense() -> None:
    """Refused by the plan and by every call; never a silent default."""
    code = f"""
        import fusedrnn, torch
        module = fusedrnn.LSTM(3, 4)
        def plan(device):
            return fusedrnn.plan("lstm", **{SIZES}, device=device)
        x = torch.zeros(2, 1, 3)
        for call in (lambda: plan("cpu"), lambda: plan("cuda"), lambda: module(x)):
            try:
                call()
            except (ValueError, RuntimeError) as error:
                print(type(error).__name__, error)
    """
    lines = in_a_process(textwrap.dedent(code), FUSEDRNN_PLAN="threads=0").splitlines()
    assert [line.split()[0] for line in lines] == ["ValueError", "ValueError", "RuntimeError"]
    for line in lines:
        assert "FUSEDRNN_PLAN: threads: expected a positive number, got" in line


@pytest.mark.parametrize(
    "override",
    [
        "forward_steps=1,backward_steps=1,fuse_input=0",
        "split=units,threads=2,fuse_input=1,backward_steps=3",
        "split=batch,threads=2,direction_teams=1,forward_steps=4,fuse_input=0",
        "direction_teams=2,split=none",
        "weights_in_place=1",
        "weights_in_place=1,threads=2,split=units",
        "weights_in_place=0,threads=2,split=batch",
    ],
)
def test_results_under_any_override(override: str) -> None:
    """Overrides share work otherwise; every sum is the same to rounding."""
    with overridden(override):
        for B in (1, 5, 33):
            sizes: dict[str, Any] = dict(T=11, B=B, I=7, H=21)
            for shape in (Case(**sizes), Case(**sizes, bidirectional=True), Case(**sizes, P=9)):
                for cell in cells.CELLS:
                    if shape.suits(cell.name):
                        check(shape.of(cell.name), torch.float64)


def test_an_override_by_whoever_measures() -> None:
    """It changes the plans that are shown and those that are made: sums in another order differ."""
    torch.manual_seed(0)
    module, x = fusedrnn.LSTM(300, 300), torch.randn(1, 1, 300)
    sizes = dict(time=1, batch=1, input_size=300, hidden_size=300)
    before, y = fusedrnn.plan("lstm", **sizes), module(x)[0]
    with overridden(f"weights_in_place={int(not before.weights_in_place)}"):
        changed = fusedrnn.plan("lstm", **sizes)
        assert changed.weights_in_place is not before.weights_in_place
        assert not torch.equal(module(x)[0], y)
        with pytest.raises(ValueError, match="threads: expected a positive number"):
            ops.override_plan("threads=0")
        assert fusedrnn.plan("lstm", **sizes) == changed
    assert fusedrnn.plan("lstm", **sizes) == before and torch.equal(module(x)[0], y)
