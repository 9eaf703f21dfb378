"""What only a GPU can show: streams, graphs, devices, memory, and that nothing waits for the host.

The numbers are held by the tests that take a `device`; these here need the device itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import CELLS, KINDS, TORCH_CELLS
from torch import Tensor, nn

import fusedrnn
from fusedrnn._engine import ops
from fusedrnn.testing.parity import Case, check

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("ieee"),
    pytest.mark.skipif(
        not (torch.cuda.is_available() and fusedrnn.build_info()["cuda"]),
        reason="needs a GPU and a build with CUDA",
    ),
]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def network(cell: str, dtype: torch.dtype = torch.float32, **options: object) -> nn.Module:
    return Case(cell=cell, I=24, H=32, **options).module(dtype=dtype).cuda()


def numbers(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients of one pass."""
    leaf = x.detach().clone().requires_grad_()
    output = module(leaf)[0]
    grads = torch.autograd.grad(output, [leaf, *module.parameters()], torch.ones_like(output))
    return [output.detach(), *grads]


@contextmanager
def planned(override: str) -> Iterator[None]:
    """Plans as FUSEDRNN_PLAN would have them."""
    ops.override_plan(override)
    try:
        yield
    finally:
        ops.override_plan("")


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_large_steps_move_16_bytes_at_once(cell: str, dtype: torch.dtype) -> None:
    with planned("team=stepwise"):
        for options in ({}, {"bidirectional": True}, {"packed": "sorted"}):
            case = Case(cell=cell, T=3, B=600, I=40, H=128, **options)
            plan = fusedrnn.plan(
                cell, time=3, batch=600, input_size=40, hidden_size=128, dtype=dtype, device="cuda"
            )
            assert plan.units_per_thread == 16 // dtype.itemsize
            check(case, dtype, "cuda")


TEAMS = {
    "block": ("team=block", ({"H": 33}, {"H": 64, "B": 40})),
    "two blocks": ("team=cluster,blocks=2", ({"H": 32}, {"H": 57, "T": 40})),
    "eight blocks": ("team=cluster,blocks=8", ({"H": 128}, {"H": 250, "B": 70})),
    "sixteen blocks": ("team=cluster,blocks=16", ({"H": 250}, {"H": 512, "T": 64, "B": 17})),
    "three eights": ("team=cluster,rows=24", ({"H": 130, "B": 50},)),
    "bulk copies": ("team=cluster,rows=72", ({"H": 40, "B": 70},)),
    "three launches": ("team=cluster,forward_steps=3", ({"H": 96, "T": 8},)),
    "stepwise": ("team=stepwise", ({"H": 33}, {"H": 512, "B": 40})),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("team", TEAMS)
def test_every_team(team: str, cell: str, dtype: torch.dtype) -> None:
    """Where a team does not fit this device the call runs stepwise; the numbers hold as well."""
    asked, shapes = TEAMS[team]
    with planned(asked):
        for sizes in shapes:
            for options in ({}, {"bidirectional": True, "packed": "sorted"}):
                case = Case(cell=cell, **({"T": 6, "B": 9, "I": 24} | sizes | options))
                check(case, dtype, "cuda")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("team", ["team=block", "team=cluster", "team=stepwise"])
def test_every_team_again_and_again(cell: str, team: str) -> None:
    """A wait that is a little too short shows sooner or later."""
    module = Case(cell=cell, I=24, H=100, bidirectional=True).module(dtype=torch.bfloat16).cuda()
    x = torch.randn(200, 33, 24, device="cuda", dtype=torch.bfloat16)
    with planned(team):
        expected = numbers(module, x)
        assert all(same(numbers(module, x), expected) for _ in range(30))


@pytest.mark.parametrize("cell", CELLS)
def test_tf32_follows_cudnn_s_setting(cell: str) -> None:
    case = Case(cell=cell, T=6, B=16, I=64, H=64)
    exact = case.run(case.module().cuda(), case.inputs())
    errors = {}
    for precision in ("ieee", "tf32"):
        torch.backends.cudnn.rnn.fp32_precision = precision
        found = case.run(case.module(dtype=torch.float32).cuda(), case.inputs())
        errors[precision] = max(
            float((found[name].double() - value).abs().max() / value.abs().max())
            for name, value in exact.items()
        )
    assert errors["ieee"] < 1e-5
    assert 1e-5 < errors["tf32"] < 1e-2  # tf32 keeps ten bits: the setting has to show


@pytest.mark.parametrize("cell", CELLS)
def test_on_a_stream_of_its_own(cell: str) -> None:
    module = network(cell, bidirectional=True)
    x = torch.randn(9, 17, 24, device="cuda")
    expected = numbers(module, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what follows would run too early on another stream
        late = x * 1
        found = numbers(module, late)
    torch.cuda.current_stream().wait_stream(stream)
    assert same(found, expected)


def test_two_streams_at_once() -> None:
    module = network("lstm")
    inputs = [torch.randn(20, 16, 24, device="cuda") for _ in range(4)]
    expected = [numbers(module, x) for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    found = []
    for _ in range(5):
        found = []
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                found.append(numbers(module, x))
    torch.cuda.synchronize()
    assert all(same(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_capture_in_a_graph(cell: str, bidirectional: bool) -> None:
    module = network(cell, bidirectional=bidirectional)
    static = torch.randn(7, 5, 24, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the first calls load and allocate
        numbers(module, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = numbers(module, static)
    for _ in range(3):
        x = torch.randn_like(static)
        static.copy_(x)
        graph.replay()
        assert same(captured, numbers(module, x))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("packed", ["", "sorted"], ids=["padded", "packed"])
def test_nothing_waits_for_the_host(cell: str, packed: str) -> None:
    case = Case(cell=cell, T=6, B=5, I=24, H=32, bidirectional=True, packed=packed)
    module = case.module(dtype=torch.float32).cuda()
    x = torch.randn(6, 5, 24, device="cuda", requires_grad=True)
    sequence = x
    if packed:
        sequence = nn.utils.rnn.pack_padded_sequence(x, case.lengths())
    module(sequence)  # first calls may load modules
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = module(sequence)[0]
        (output.data if packed else output).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None and bool(x.grad.isfinite().all())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_the_same_bits_every_time(cell: str, dtype: torch.dtype) -> None:
    module = network(cell, dtype, bidirectional=True)
    x = torch.randn(30, 70, 24, device="cuda").to(dtype)
    expected = numbers(module, x)
    assert all(same(numbers(module, x), expected) for _ in range(3))


def test_states_at_odd_addresses() -> None:
    """16-byte accesses only where every address allows them."""
    module = Case(I=24, H=128).module(dtype=torch.bfloat16).cuda()
    x = torch.randn(3, 600, 24, device="cuda", dtype=torch.bfloat16)
    states = [torch.randn(1, 600, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    odd = []
    for state in states:
        buffer = torch.empty(state.numel() + 1, device="cuda", dtype=state.dtype)
        odd.append(buffer[1:].view_as(state).copy_(state))
    with torch.no_grad():
        assert torch.equal(module(x, tuple(odd))[0], module(x, tuple(states))[0])


def test_tensors_on_several_devices_are_refused() -> None:
    module = network("lstm")
    x = torch.randn(3, 4, 24, device="cuda")
    state = torch.zeros(1, 4, 32)
    with pytest.raises(RuntimeError, match="device"):
        module(x.cpu())
    with pytest.raises(RuntimeError, match="device"):
        module(x, (state, state))
    with pytest.raises(RuntimeError, match="device"):
        module.cpu()(x)
    weights = [w.detach() for w in network("gru").parameters()]
    with pytest.raises(RuntimeError, match="expected a tensor on input's device, cuda:0"):
        torch.ops.fusedrnn.layer_forward(
            x, None, [], [weights[0].cpu(), *weights[1:]], "gru", True, False, False, False
        )
    assert numbers(network("lstm"), x)[0].isfinite().all()


def test_out_of_memory_leaves_the_device_usable() -> None:
    module = network("lstm")
    small = torch.randn(3, 4, 24, device="cuda")
    expected = numbers(module, small)
    torch.cuda.empty_cache()
    limit = 512 * 2**20
    torch.cuda.set_per_process_memory_fraction(
        limit / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        large = torch.zeros(1, 1, 24, device="cuda").expand(4096, 1024, 24)
        with pytest.raises(RuntimeError, match="out of memory"):
            module(large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    assert same(numbers(module, small), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_device_than_the_current() -> None:
    x = torch.randn(5, 6, 24)
    module = Case(I=24, H=32).module(dtype=torch.float32)
    first = numbers(module.to("cuda:0"), x.to("cuda:0"))
    second = numbers(module.to("cuda:1"), x.to("cuda:1"))  # the current device is still cuda:0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))
    assert torch.cuda.current_device() == 0
    with pytest.raises(RuntimeError, match="device"):
        module(x.to("cuda:0"))


@pytest.mark.parametrize("cell", [name for name in KINDS if name in TORCH_CELLS])
def test_autocast_gives_torch_nn_s_dtypes(cell: str) -> None:
    x = torch.randn(5, 6, 24, device="cuda")
    case = Case(cell=cell, I=24, H=32)
    results = []
    for package in (fusedrnn, nn):
        module = case.module(package, torch.float32).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            output, final = module(x)
        results.append([output, *case.states_of(final)])
        output.float().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in module.parameters())
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).abs().max() < 0.05
