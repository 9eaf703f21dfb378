"""The modules compute torch.nn's numbers: outputs, states, gradients (testing/parity.py)."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, STATES, cases_of
from torch import nn

import fusedrnn
from fusedrnn.testing.parity import Case, check, strided

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# What every cell goes through, one departure from the plain case at a time and some together.
SHAPES = [
    Case(),
    Case(T=1, B=1, hx=False),
    Case(T=1, B=3, I=1, H=1),
    Case(T=9, B=1, I=7, H=33, hx=False),
    Case(T=3, B=17, I=5, H=31),
    Case(T=4, B=37, I=28, H=100, bias=False),
    Case(T=40, B=70, I=9, H=17),
    Case(T=30, B=12, I=31, H=130, bidirectional=True),
    Case(layers=3, bidirectional=True, batch_first=True),
    Case(layers=2, hx=False, bias=False, H=10),
    Case(unbatched=True, bidirectional=True),
    Case(unbatched=True, batch_first=True, hx=False, layers=2),
    Case(strided=True, batch_first=True, bidirectional=True),
    Case(T=12, B=9, packed="sorted", bidirectional=True, H=33),
    Case(T=12, B=9, packed="unsorted", bidirectional=True, layers=2),
    Case(T=7, B=6, packed="unsorted", batch_first=True, hx=False),
    Case(T=150, B=10, packed="sorted", H=20, I=3),
    Case(T=12, B=9, packed="padded", bidirectional=True, layers=2),
    Case(T=7, B=6, packed="padded", batch_first=True, hx=False),
    Case(T=2, B=2, I=64, H=64),
]
PROJECTED = [
    Case(P=3),
    Case(P=1, H=17, T=9, B=11, bidirectional=True, layers=2),
    Case(P=20, H=37, T=6, B=9, packed="unsorted", bidirectional=True, bias=False),
    Case(P=40, H=64, T=20, B=8, hx=False, batch_first=True),
    Case(P=2, T=1, B=1, unbatched=True),
]
CASES = cases_of(CELLS, SHAPES + PROJECTED)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    check(case, dtype, device)


@pytest.mark.float64
@pytest.mark.parametrize("cell", CELLS)
def test_full_chunks(cell: str) -> None:
    """On the CPU sums of weight gradients are cut every 512 rows; here after a step of many."""
    check(Case(cell=cell, T=65, B=8, I=5, H=9), torch.float64, torch.device("cpu"))


@pytest.mark.parametrize("cell", CELLS)
def test_strided_weights(cell: str, device: torch.device) -> None:
    case = Case(cell=cell, I=8)
    plain, apart = case.module(), case.module()
    for name, parameter in list(apart.named_parameters()):
        setattr(apart, name, nn.Parameter(strided(parameter.detach())))
    assert not apart.weight_hh_l0.is_contiguous()
    inputs = case.inputs()
    expected, found = case.run(plain.to(device), inputs), case.run(apart.to(device), inputs)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "shape",
    [
        Case(T=20, B=16, I=20, H=64, bidirectional=True),
        Case(T=20, B=3, I=20, H=96, bidirectional=True, P=24),
        Case(T=30, B=14, I=20, H=40, packed="sorted"),
        Case(T=3, B=1, I=64, H=200),
    ],
    ids=str,
)
def test_same_bits_with_any_number_of_threads(shape: Case, cell: str, dtype: torch.dtype) -> None:
    case = shape.of(cell)
    inputs = case.inputs()
    expected = None
    for threads in (1, 1, 2, 3, 5):
        torch.set_num_threads(threads)
        found = case.run(case.module(dtype=dtype), inputs)
        expected = expected or found
        for name, value in expected.items():
            assert torch.equal(found[name], value), (threads, name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inference_is_training_s_forward(case: Case, device: torch.device) -> None:
    module, inputs = case.module(dtype=torch.float32).to(device), case.inputs()
    trained = case.run(module, inputs)
    for name, value in case.run(module, inputs, grads=False).items():
        assert torch.equal(trained[name], value), name


@pytest.mark.float64
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("used", ["output", *(f"{state}n" for state in STATES)])
def test_loss_of_one_result(cell: str, used: str, device: torch.device) -> None:
    case = Case(cell=cell, bidirectional=True, layers=2)
    names = ["output", *(f"{state}n" for state in case.facts.states)]
    if used not in names:
        pytest.skip(f"{cell} has no {used}")
    grads = []
    for package in (fusedrnn, nn):
        module = case.module(package).to(device)
        x = case.inputs()["input"].to(device).requires_grad_()
        output, final = module(x)
        results = dict(zip(names, [output, *case.states_of(final)], strict=True))
        results[used].square().sum().backward()
        grads.append([x.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.float64
@pytest.mark.parametrize("cell", CELLS)
def test_only_gradients_that_are_asked_for(cell: str, device: torch.device) -> None:
    case = Case(cell=cell, bidirectional=True)
    full = case.run(case.module().to(device), case.inputs())
    parameters = [name for name, _ in case.module().named_parameters()]
    for asked in [[name] for name in [*case.inputs(), *parameters]]:
        module = case.module().to(device)
        leaves = {n: v.to(device).requires_grad_(n in asked) for n, v in case.inputs().items()}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in asked)
        x, *states = leaves.values()
        output, final = module(x, case.hx_of(states))
        results = [output, *case.states_of(final)]
        generator = torch.Generator().manual_seed(case.seed + 3)
        weights = [torch.randn(r.shape, generator=generator).to(r) for r in results]
        torch.autograd.backward(results, weights)
        found = {n: t.grad for n, t in [*leaves.items(), *module.named_parameters()]}
        for name, grad in found.items():
            if name in asked:
                assert torch.equal(grad, full[f"grad of {name}"]), name
            else:
                assert grad is None, name


@pytest.mark.parametrize(
    "where", ["input", *(f"{state}0" for state in STATES), "weight_ih_l0", "weight_hh_l0"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_and_inf_go_where_torch_s_go(
    cell: str, value: float, where: str, device: torch.device
) -> None:
    if where[1:] == "0" and where not in Case(cell=cell).inputs():
        pytest.skip(f"{cell} has no {where}")
    for given in (True, False) if where[1:] != "0" else (True,):
        case = Case(cell=cell, T=6, B=5, H=17, hx=given)
        inputs = case.inputs()
        if where in inputs:
            inputs[where][-1, 1, 3] = value
        for dtype in (torch.float64, torch.float32):
            numbers = []
            for module in (case.module(dtype=dtype), case.module(nn, torch.float64)):
                if where not in inputs:
                    with torch.no_grad():
                        getattr(module, where)[4, 2] = value
                numbers.append(case.run(module.to(device), inputs))
            ours, theirs = numbers
            for name, expected in theirs.items():
                assert torch.equal(ours[name].isnan(), expected.isnan()), (dtype, given, name)
                if not name.startswith("grad"):
                    assert torch.equal(ours[name].isinf(), expected.isinf()), (dtype, given, name)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_a_sequence_in_two_calls(cell: str, dtype: torch.dtype, device: torch.device) -> None:
    case = Case(cell=cell, T=11, B=6, H=24, hx=False)
    module = case.module(dtype=dtype).to(device)
    x = case.inputs()["input"].to(device, dtype)
    with torch.no_grad():
        whole = module(x)[0]
        first, state = module(x[:4])
        second = module(x[4:], state)[0]
    assert torch.equal(whole[:4], first)
    rest, ulp = whole[4:], torch.finfo(dtype).eps
    if len(case.facts.states) > 1 and dtype in (torch.bfloat16, torch.float16):
        # All states but h are rounded where the sequence is cut.
        assert (rest - second).abs().max() <= 8 * ulp * rest.abs().max()
    else:
        assert torch.equal(rest, second)
