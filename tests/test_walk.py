"""The walks of CUDA teams in the emulation: every team, cell and arithmetic, however a call is cut.

Parity, contract and gradients hold on the emulated devices in the tests that take a `device`. Here
teams are asked for, so that each way through the kernels is taken: parts along k, several groups
and tiles for a warp, weights in registers and in shared memory, several eights of sequences,
several launches for one walk.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import WALKED, cases_of
from cuda_emulation import backend as emulated
from cuda_emulation import build
from processes import under_address_sanitizer
from torch import Tensor

import fusedrnn
from fusedrnn.testing.parity import Case, check, largest

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=emulated.missing())

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TEAMS = ["team=block", "team=cluster", "team=cluster,rows=16", "team=cluster,forward_steps=2"]
SHAPES = [
    Case(T=3, B=5, I=3, H=7, bidirectional=True),
    Case(T=4, B=10, I=3, H=24, bidirectional=True, packed="sorted"),
    Case(T=3, B=3, I=2, H=40, bias=False, hx=False),
    Case(T=1, B=1, I=1, H=1),
    Case(T=1, B=2, I=1, H=17, hx=False),
]
CASES = cases_of(WALKED, SHAPES)

# Sizes that take the ways that small ones do not, and the plan that is asked for. Weights of four
# bytes fill a block sooner.
HALF, FULL = torch.bfloat16, torch.float32
LARGE = [
    (HALF, Case(T=3, B=9, I=4, H=160), "team=block"),  # two groups for a warp
    (FULL, Case(cell="rnn_relu", T=2, B=3, I=4, H=200), "team=block"),
    (HALF, Case(cell="rnn_tanh", T=2, B=3, I=4, H=208), "team=block"),
    (HALF, Case(T=2, B=3, I=2, H=600), "team=cluster"),  # more than kHeldTiles tiles
    (FULL, Case(cell="rnn_relu", T=3, B=9, I=3, H=600), "team=cluster"),
    (HALF, Case(T=3, B=9, I=2, H=250, bidirectional=True), "team=cluster,blocks=16"),
    (FULL, Case(T=3, B=9, I=2, H=250, bidirectional=True), "team=cluster,blocks=16"),
    (HALF, Case(cell="gru", T=3, B=2, I=2, H=9), "team=cluster,blocks=5"),  # four have no units
    (HALF, Case(T=4, B=30, I=2, H=33, packed="sorted"), "team=cluster,rows=32"),
    (FULL, Case(T=4, B=30, I=2, H=33, packed="sorted"), "team=block,rows=32"),
    (HALF, Case(cell="gru", T=4, B=70, I=2, H=40), "team=cluster,rows=72"),  # bulk copies
    (HALF, Case(cell="rnn_tanh", T=9, B=40, I=2, H=20, bidirectional=True), "team=cluster,rows=8"),
]


# Kernels that are compiled for their team: all of its units are hidden units.
FIXED = [
    ("team=cluster,blocks=8,rows=8", Case(T=4, B=5, I=3, H=128)),
    ("team=cluster,blocks=8,rows=8", Case(T=3, B=9, I=3, H=128, packed="sorted")),
    ("team=cluster,blocks=8,rows=16", Case(T=3, B=13, I=2, H=128, packed="sorted")),
    ("team=block,rows=8", Case(T=4, B=11, I=3, H=64, packed="sorted", bidirectional=True)),
    ("team=block,rows=8", Case(T=3, B=3, I=3, H=64, bias=False, hx=False)),
]


def walk(case: Case, dtype: torch.dtype, plan: str) -> fusedrnn.CudaPlan:
    """The plan of a case on the emulated device, where that plan is asked for."""
    shown = fusedrnn._engine.ops.override_plan
    shown(plan)
    try:
        found = fusedrnn.plan(
            case.cell, time=case.T, batch=case.B, input_size=case.I, hidden_size=case.H,
            bidirectional=case.bidirectional, dtype=dtype, device="cuda", gpu=fusedrnn.Gpu(),
            allow_tf32=False,
        )  # fmt: skip
    finally:
        shown("")
    assert isinstance(found, fusedrnn.CudaPlan)
    return found


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_races_and_no_unwritten_memory(case: Case, dtype: torch.dtype, team: str) -> None:
    for seed in (0, 1, 2):
        with emulated.installed("race", seed=seed, plan=team) as emulation:
            before = emulation.fusedrnn_emulation_launches()
            check(case, dtype)
            assert emulation.fusedrnn_emulation_launches() > before


def test_bulk_copies_come_after_fences() -> None:
    """Slices of 2560 bytes go by bulk copies, to and from where threads have stored before."""
    case = Case(cell="rnn_tanh", T=3, B=33, I=2, H=20)
    for seed in (0, 1, 2):
        with emulated.installed("race", seed=seed, plan="team=cluster,rows=40"):
            case.run(case.module(dtype=torch.float32), case.inputs(), grads=False)


def fixed_cases() -> list[tuple[str, Case, torch.dtype]]:
    """Those of `FIXED` for every walked cell, in the dtypes that they are compiled for."""
    return [
        (plan, replace(case, cell=cell), dtype)
        for plan, case in FIXED
        for cell in WALKED
        for dtype in DTYPES
        if dtype != torch.float32 or case is FIXED[0][1]
    ]


def test_the_emulation_has_teams_of_the_list() -> None:
    listed = (build.ROOT / "csrc/cuda/team/fixed.h").read_text()
    teams = re.findall(r"\{.*?\}", build.FIXED_TEAMS)
    assert len(teams) == 3 and all(f"{team}," in listed for team in teams)


@pytest.mark.parametrize("plan, case, dtype", fixed_cases(), ids=str)
def test_kernels_that_know_their_team(plan: str, case: Case, dtype: torch.dtype) -> None:
    """Right, without races, and the ones that were asked for."""
    found = walk(case, dtype, plan)
    assert found.forward.fixed and found.backward.fixed
    with emulated.installed(plan=plan):
        check(case, dtype)
    if case.cell in ("lstm", "gru"):  # with all that there is: late inputs, a carry, other states
        with emulated.installed("race", seed=2, plan=plan):
            check(case, dtype)


@pytest.mark.thorough  # compiling the walks for all of them takes minutes
@pytest.mark.parametrize("blocks, units, rows, arithmetics", build.fixed_teams())
@pytest.mark.parametrize("cell", WALKED)
def test_all_kernels_that_know_their_team(
    cell: str, blocks: int, units: int, rows: int, arithmetics: str
) -> None:
    team = "block" if blocks == 1 else f"cluster,blocks={blocks}"
    plan = f"team={team},rows={rows}"
    case = Case(cell=cell, T=3, B=rows + 1, I=2, H=blocks * units, packed="sorted")
    for dtype in DTYPES if arithmetics == "all" else DTYPES[1:]:
        found = walk(case, dtype, plan)
        assert found.forward.fixed and found.backward.fixed
        with emulated.installed("teams", seed=1, plan=plan):
            check(case, dtype)


def test_activations_for_16_bits(tmp_path: Path) -> None:
    """Errors beside those of the chip's exp2 and reciprocal, which are exact here."""
    source = tmp_path / "short_math.cu"
    source.write_text("""
        #include "cuda/team/arithmetic.cuh"
        extern "C" __attribute__((visibility("default")))
        void activations(const float* x, float* sigmoid, float* tanh, int count) {
          using Math = fusedrnn::cuda::ShortMath;
          for (int i = 0; i < count; ++i)
            sigmoid[i] = Math::sigmoid(x[i]), tanh[i] = Math::tanh(x[i]);
        }
    """)
    library = ctypes.CDLL(str(build.library("plain", [source], name="short_math")))
    sizes = torch.logspace(-38, 1.94, 200_000, dtype=torch.float32)  # up to 87
    x = torch.cat([sizes, -sizes])
    found = torch.empty(2, len(x))
    library.activations(*(ctypes.c_void_p(t.data_ptr()) for t in (x, *found)), len(x))
    for values, exact in zip(found, (x.double().sigmoid(), x.double().tanh()), strict=True):
        assert ((values - exact) / exact).abs().max() < 2**-17.5
    special = torch.tensor([math.inf, -math.inf, math.nan, 0.0])
    found = torch.empty(2, 4)
    library.activations(*(ctypes.c_void_p(t.data_ptr()) for t in (special, *found)), 4)
    expected = torch.tensor([[1, 0, math.nan, 0.5], [1, -1, math.nan, 0]])
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


def test_only_whole_teams_without_modifiers_have_kernels_of_their_own() -> None:
    plan = FIXED[0][0]
    exact = FIXED[0][1]
    assert walk(exact, torch.float16, plan).forward.fixed
    assert not walk(replace(exact, H=126), torch.float16, plan).forward.fixed
    assert not walk(exact, torch.float16, f"{plan},fixed=0").forward.fixed
    assert not walk(exact, torch.float16, "team=cluster,blocks=2,rows=8").forward.fixed
    assert walk(exact, torch.float16, "team=stepwise").forward.fixed is None


def test_weights_between_two_addresses_of_four_bytes() -> None:
    """Kernels that know their team read 16-bit weights two at a time, wherever they begin."""
    torch.manual_seed(0)
    layer = fusedrnn.GRU(3, 128).bfloat16()
    moved = torch.zeros(layer.weight_hh_l0.numel() + 1, dtype=torch.bfloat16)[1:]
    assert moved.data_ptr() % 4 == 2
    x = torch.randn(4, 5, 3, dtype=torch.bfloat16)
    results = []
    for weight in (layer.weight_hh_l0.data, moved.view_as(layer.weight_hh_l0.data)):
        weight.copy_(layer.weight_hh_l0.data)
        layer.weight_hh_l0.data = weight
        with emulated.installed(plan=FIXED[0][0]):
            out = layer(x)[0]
            (gradient,) = torch.autograd.grad(out.float().square().sum(), layer.weight_ih_l0)
        results.append((out.detach(), gradient))
    for of_one, of_other in zip(*results, strict=True):
        assert torch.equal(of_one, of_other)


@pytest.mark.parametrize("packed", ["", "sorted"], ids=["padded", "packed"])
@pytest.mark.parametrize("team", ["team=block", "team=cluster"])
@pytest.mark.parametrize("cell", WALKED)
def test_a_walk_is_one_launch(cell: str, team: str, packed: str) -> None:
    launches = []
    for steps in (2, 9):
        case = Case(cell=cell, T=steps, B=9, I=3, H=20, bidirectional=True, packed=packed)
        with emulated.installed(plan=team) as emulation:
            before = emulation.fusedrnn_emulation_launches()
            case.run(case.module(dtype=torch.float32), case.inputs())
            launches.append(emulation.fusedrnn_emulation_launches() - before)
    assert launches[0] == launches[1]


@pytest.mark.parametrize(("dtype", "case", "plan"), LARGE, ids=str)
def test_every_way_through_the_kernels(dtype: torch.dtype, case: Case, plan: str) -> None:
    planned = walk(case, dtype, plan)
    for option in plan.split(","):
        key, _, value = option.partition("=")
        assert str(getattr(planned.forward, key)) == value
        assert str(getattr(planned.backward, key)) == value
    with emulated.installed(seed=1, plan=plan):
        check(case, dtype)


@pytest.mark.thorough  # all kernels are compiled once more, for minutes
def test_no_access_out_of_bounds() -> None:
    """AddressSanitizer watches every access of every kernel, in a process of its own."""
    code = """
        import torch, test_walk
        from fusedrnn.testing.parity import check
        from cuda_emulation import backend as emulated
        for team in test_walk.TEAMS[:3]:
            with emulated.installed("asan", seed=1, plan=team):
                for case in test_walk.CASES:
                    for dtype in (torch.float32, torch.bfloat16):
                        check(case, dtype)
        print("checked")
    """
    assert under_address_sanitizer(code) == "checked\n"


def numbers(case: Case, dtype: torch.dtype, plan: str, seed: int = 1) -> dict[str, Tensor]:
    with emulated.installed(seed=seed, plan=plan):
        return case.run(case.module(dtype=dtype), case.inputs())


@pytest.mark.parametrize("cell", WALKED)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_the_same_bits_in_any_order(cell: str, dtype: torch.dtype) -> None:
    """Whatever order blocks and warps run in, and however many sequences a team has."""
    case = Case(cell=cell, T=4, B=19, I=3, H=50, bidirectional=True, packed="sorted")
    first = numbers(case, dtype, "team=cluster,blocks=4,rows=8")
    for plan in ("team=cluster,blocks=4,rows=8", "team=cluster,blocks=4,rows=24"):
        for seed in (2, 3, 4):
            for name, found in numbers(case, dtype, plan, seed).items():
                assert torch.equal(found, first[name]), (plan, seed, name)


@pytest.mark.parametrize("team", ["team=block", "team=cluster"])
@pytest.mark.parametrize("cell", WALKED)
def test_what_is_not_a_number_stays_in_its_sequence(cell: str, team: str) -> None:
    case = Case(cell=cell, T=3, B=9, I=3, H=20)
    module, x = case.module(dtype=torch.float32), case.inputs()["input"].float()
    with emulated.installed(seed=1, plan=team):
        expected = module(x)[0]
        x[1, 2, 0], x[1, 4, 1] = torch.nan, torch.inf
        leaf = x.requires_grad_()
        found = module(leaf)[0]
        found[:, :2].sum().backward()
    assert leaf.grad is not None and leaf.grad[:, :2].isfinite().all()
    assert (leaf.grad[:, 5:] == 0).all()
    others = [0, 1, 3, 5, 6, 7, 8]
    assert torch.equal(found[:, others], expected[:, others])
    assert found[1:, 2].isnan().all() and torch.equal(found[0], expected[0])


@pytest.mark.parametrize("team", ["team=block", "team=cluster"])
@pytest.mark.parametrize("cell", WALKED)
def test_tf32_is_as_good_as_its_operands(cell: str, team: str) -> None:
    """Against fp64: what rounding to ten bits costs, and no more than step by step."""
    case = Case(cell=cell, T=6, B=9, I=12, H=72)
    inputs = case.inputs()
    exact = case.run(case.module(), inputs)
    errors = {}
    for plan in (team, "team=stepwise"):
        module = case.module(dtype=torch.float32)
        x, *states = (value.float() for value in inputs.values())
        given = (x, None, states, [w.detach() for w in module.parameters()])
        layer = (case.facts.spec, True, False, False)
        with emulated.installed(seed=1, plan=plan):
            y, hn, reserve = torch.ops.fusedrnn.layer_forward(*given, *layer, True, True)
            generator = torch.Generator().manual_seed(case.seed + 3)
            dy, *dhn = [torch.randn(t.shape, generator=generator) for t in (y, *hn)]
            of_input, of_hx, of_weights = torch.ops.fusedrnn.layer_backward(
                dy, dhn, *given, y, reserve, *layer, -1, True
            )
        results = {"output": y, "grad of input": of_input, "grad of h0": of_hx[0]}
        results["grad of weight_hh_l0"] = of_weights[1]
        errors[plan] = {
            name: float(largest(value - exact[name]) / largest(exact[name]))
            for name, value in results.items()
        }
    for name, error in errors[team].items():
        assert 1e-5 < error < 1e-2, name
        assert error < 2 * errors["team=stepwise"][name] + 2e-4, name


@pytest.mark.parametrize(
    ("options", "dtype", "team"),
    [
        ("capability=75 shared_bytes=65536", torch.float16, "block"),
        ("capability=75 shared_bytes=65536", torch.bfloat16, "stepwise"),
        ("capability=80 shared_bytes=166912", torch.bfloat16, "block"),
        ("capability=90", torch.bfloat16, "block"),
        ("capability=90", torch.float64, "stepwise"),
    ],
)
def test_on_other_devices(options: str, dtype: torch.dtype, team: str) -> None:
    """What a device lacks is not asked of it; the emulation refuses what it could not launch."""
    case = Case(T=5, B=6, I=5, H=40)
    with emulated.installed(seed=1, options=options) as emulation:
        before = emulation.fusedrnn_emulation_launches()
        case.run(case.module(dtype=dtype), case.inputs(), grads=False)
        launches = emulation.fusedrnn_emulation_launches() - before
        check(case, dtype)
    assert (launches >= case.T) == (team == "stepwise")


def test_a_large_layer_on_a_small_device_runs_stepwise() -> None:
    case = Case(T=2, B=3, I=5, H=200)
    with emulated.installed(options="capability=80 shared_bytes=101376", plan="team=block"):
        check(case, torch.bfloat16)


# ---- What a device refuses, and when it is asked -----------------------------------------------


@contextmanager
def launches(options: str, plan: str = "") -> Iterator[Callable[[], int]]:
    """On an emulated device with these options; counts the launches since it was last asked."""
    with emulated.installed(seed=1, options=options, plan=plan) as emulation:
        before = 0

        def count() -> int:
            nonlocal before
            now = int(emulation.fusedrnn_emulation_launches())
            before, since = now, now - before
            return since

        count()
        yield count


@pytest.mark.parametrize("refusal", [9, 701, 912], ids=["configuration", "resources", "size"])
def test_a_refused_cluster_is_struck_off(refusal: int) -> None:
    """The call is planned again, forward and backward, and the size is not asked for any more."""
    case = Case(T=2, B=3, I=3, H=100, bidirectional=True)  # of 2 to 7 blocks
    module, inputs = case.module(dtype=torch.float32), case.inputs()
    # A device for each test: what one has refused it never gets again.
    options = f"multiprocessors={100 + refusal % 10} refusal={refusal} refused="
    with launches(options + "0", "team=cluster") as count:
        expected, usual = case.run(module, inputs), count()
    refused = [n for n in range(2, 17) if n != 3]
    with launches(f"{options}{sum(1 << n for n in refused)}", "team=cluster") as count:
        found, first = case.run(module, inputs), count()
        case.run(module, inputs)
        again = count()
    assert again == usual < first
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-6), name
    with launches(options + "0", "team=cluster,blocks=7") as count:
        case.run(module, inputs, grads=False)
        assert count() == case.T  # stepwise: nobody asks for seven again


def test_a_refused_launch_adds_nothing_to_sums() -> None:
    """What backward adds to is not added to twice, and forward may be cut into launches."""
    torch.manual_seed(0)
    module, x, reset = fusedrnn.LSTM(3, 40), torch.randn(6, 3, 3), torch.rand(6, 3) < 0.4
    states = tuple(torch.randn(1, 3, 40, requires_grad=True) for _ in range(2))
    found, counted = [], []
    for refused in (0, 1 << 3):
        options = f"multiprocessors=93 refused={refused}"
        with launches(options, "team=cluster,forward_steps=2") as count:
            output = module(x, reset=reset, reset_states=states)[0]
            found.append(torch.autograd.grad(output.sin().sum(), [*states, *module.parameters()]))
            counted.append(count())
    assert counted[0] < counted[1]  # some were refused
    for first, second in zip(*found, strict=True):
        assert torch.allclose(first, second, rtol=1e-5, atol=1e-6)


def test_without_any_cluster_it_runs_stepwise() -> None:
    case = Case(T=4, B=3, I=3, H=40)
    every = sum(1 << n for n in range(2, 17))
    with launches(f"multiprocessors=97 refused={every}", "team=cluster") as count:
        check(case, torch.float32)
        assert count() > case.T
        module, inputs = case.module(dtype=torch.float32), case.inputs()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: case.run(module, inputs, grads=False), range(4)))
        assert count() == 4 * case.T


def test_backward_may_be_refused_what_forward_had() -> None:
    case = Case(T=4, B=3, I=3, H=40, bidirectional=True)
    module, x = case.module(dtype=torch.float32), torch.randn(4, 3, 3, requires_grad=True)
    with emulated.installed(
        seed=1, options="multiprocessors=96", plan="team=cluster,blocks=3"
    ) as emulation:
        (expected,) = torch.autograd.grad(module(x)[0].sum(), x)
        output = module(x)[0].sum()
        before = emulation.fusedrnn_emulation_launches()
        emulation.fusedrnn_emulation_configure(1, b"multiprocessors=96 refused=8")
        (found,) = torch.autograd.grad(output, x)
        assert emulation.fusedrnn_emulation_launches() - before > case.T  # stepwise
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_only_a_refused_launch_is_made_again() -> None:
    """What else goes wrong with a cluster is told, and strikes nothing off."""
    module, x = fusedrnn.LSTM(3, 40), torch.zeros(2, 2, 3)
    with launches("multiprocessors=95 refused=8 refusal=719", "team=cluster,blocks=3") as count:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the forward walk failed: the device refuses"):
                module(x)
            assert count() == 1


@pytest.mark.parametrize(
    ("options", "hidden", "team"),
    [
        ("multiprocessors=16 gpc=16", 96, "cluster"),  # a slice of a GPU by MIG
        ("multiprocessors=14 gpc=7", 96, "cluster"),  # six blocks fit, eight do not
        ("multiprocessors=20 gpc=5", 96, "stepwise"),
        ("multiprocessors=60 gpc=1", 64, "stepwise"),  # no cluster at all
    ],
)
def test_a_shared_gpu_lists_other_clusters_than_the_guess(
    options: str, hidden: int, team: str
) -> None:
    """The plan takes what is listed: the emulation refuses any other launch, and loudly."""
    case = Case(T=5, B=3, I=3, H=hidden)
    module, inputs = case.module(dtype=torch.float32), case.inputs()
    expected = case.run(module, inputs, grads=False)
    with launches(f"{options} shared_bytes=60000", "rows=8") as count:
        found = case.run(module, inputs, grads=False)
        assert count() == {"cluster": 1, "stepwise": case.T}[team]
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("team", ["", "team=block", "team=cluster", "team=stepwise"])
def test_a_first_call_may_be_captured(team: str) -> None:
    """The device was not asked before, and no kernel is loaded."""
    case = Case(T=3, B=3, I=3, H=20, bidirectional=True)
    options = f"capturing=1 multiprocessors={80 + len(team)}"
    with emulated.installed(options=options, plan=team):
        check(case, torch.float32)


def test_a_launch_that_fails_is_told() -> None:
    module, x = fusedrnn.LSTM(3, 40), torch.zeros(2, 2, 3)
    with emulated.installed(plan="team=cluster") as emulation:
        expected = module(x)[0]
        emulation.fusedrnn_emulation_configure(0, b"block_threads=32")
        with pytest.raises(RuntimeError, match="CUDA: the forward walk failed: bad launch: "):
            module(x)
        emulation.fusedrnn_emulation_configure(0, b"")
        assert torch.equal(module(x)[0], expected)
