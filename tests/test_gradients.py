"""Derivatives of every order, and torch.func's transforms."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import KINDS, TORCH_MODULES, cases_of
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import fusedrnn
from fusedrnn.testing.parity import Case

SHAPES = [
    Case(T=3, B=2, I=2, H=3, bidirectional=True),
    Case(T=2, B=2, I=2, H=2, layers=2, bias=False),
    Case(T=3, B=3, I=2, H=2, packed="sorted"),
    Case(T=3, B=2, I=2, H=4, P=2, bidirectional=True),
]
CASES = cases_of(KINDS, SHAPES)


def function_of(case: Case, package: object = fusedrnn, checkpoint: int | None = None):
    """Everything differentiable of a case as (function, its inputs)."""
    module = case.module(package)
    module.checkpoint = checkpoint
    names = [name for name, _ in module.named_parameters()]
    inputs = case.inputs()
    count = len(inputs)

    def function(*tensors):
        x, *states = tensors[:count]
        sequence = x
        if case.packed:
            sequence = nn.utils.rnn.pack_padded_sequence(x, case.lengths())
        named = dict(zip(names, tensors[count:], strict=True))
        output, final = functional_call(module, named, (sequence, case.hx_of(states)))
        y = output.data if case.packed else output
        return (y, *case.states_of(final))

    tensors = [*inputs.values(), *module.parameters()]
    return function, tuple(t.detach().clone().requires_grad_() for t in tensors)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case: Case) -> None:
    assert gradcheck(*function_of(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradgradcheck(case: Case) -> None:
    function, tensors = function_of(case)
    fixed = [t.detach() for t in tensors]

    def of_two(input, w_hh):  # all of them would take minutes
        changed = list(fixed)
        changed[0] = input
        changed[-4 if case.bias else -1] = w_hh
        return function(*changed)

    assert gradgradcheck(of_two, (tensors[0], tensors[-4 if case.bias else -1]))


@pytest.mark.parametrize("cell", KINDS)
def test_second_order_is_torch_nn_s(cell: str) -> None:
    case = Case(cell=cell, T=4, B=3, I=5, H=6, bidirectional=True)
    found = []
    for package in (fusedrnn, nn):
        module = case.module(package)
        x = case.inputs()["input"].requires_grad_()
        output = module(x)[0]
        (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        first.square().sum().backward()
        found.append([x.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("checkpoint", [None, 2], ids=["", "checkpoint"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_batches_of_gradients(case: Case, checkpoint: int | None) -> None:
    """`is_grads_batched`, once and twice, which is torch's older vmap within backward."""
    found = []
    for package in (fusedrnn, nn):
        function, tensors = function_of(case, package, checkpoint)
        results = function(*tensors)
        generator = torch.Generator().manual_seed(1)
        many = [
            torch.randn(2, *r.shape, generator=generator, dtype=r.dtype).requires_grad_()
            for r in results
        ]
        first = torch.autograd.grad(
            results, tensors, many, is_grads_batched=True, create_graph=True
        )
        loss = torch.stack([(grad**3).sum((*range(1, grad.dim()),)) for grad in first]).sum(0)
        operands = (*tensors, *many)
        second = torch.autograd.grad(loss, operands, torch.eye(2).double(), is_grads_batched=True)
        found.append([*first, *second])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


class WithLengths(nn.Module):
    """The output of a layer, `lengths` no keyword, as torch.jit.trace wants it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.layer(input, lengths=lengths)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TORCH_MODULES)
def test_vectorized_jacobians(name: str) -> None:
    module = getattr(fusedrnn, name)(2, 3, dtype=torch.float64)
    cell = getattr(fusedrnn, f"{name}Cell")(2, 3, dtype=torch.float64)
    lengths = torch.tensor([2, 1])
    x = torch.randn(2, 2, 2, dtype=torch.float64)
    traced = torch.jit.trace(WithLengths(module), (x, lengths))
    for function, input in (
        (lambda x: module(x)[0], x),
        (lambda x: module(x, lengths=lengths)[0], x),
        (lambda x: cell(x)[0], x[0]),
        (lambda x: traced(x, lengths), x),
    ):
        expected = jacobian(function, input)
        torch.testing.assert_close(jacobian(function, input, vectorize=True), expected)
    for strategy in ("reverse-mode", "forward-mode"):
        function = lambda x: module(x)[0].pow(3).sum()  # noqa: E731
        found = hessian(function, x, vectorize=True, outer_jacobian_strategy=strategy)
        torch.testing.assert_close(found, hessian(function, x))
    found = jacobian(lambda x: module(x)[0], x, vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(found, jacobian(lambda x: module(x)[0], x))

    def of_jacobian(x):
        return jacobian(lambda x: module(x)[0], x, vectorize=True, create_graph=True).pow(2)

    torch.testing.assert_close(jacobian(of_jacobian, x, vectorize=True), jacobian(of_jacobian, x))
    assert gradcheck(lambda x: module(x)[0], x.clone().requires_grad_(), check_batched_grad=True)


@pytest.mark.parametrize("cell", KINDS)
def test_torch_func(cell: str) -> None:
    case = Case(cell=cell, T=3, B=2, I=2, H=3, hx=False)
    ours, theirs = case.module(), case.module(nn)
    x, tangent = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    many = torch.randn(4, 3, 2, 2, dtype=torch.float64)

    def of(module):
        return lambda x: module(x)[0]

    def loss(module):
        return lambda x: module(x)[0].square().sum()

    close = torch.testing.assert_close
    close(grad(loss(ours))(x), grad(loss(theirs))(x))
    expected = torch.stack([theirs(m)[0] for m in many])
    close(vmap(of(ours))(many), expected)
    close(vmap(grad(loss(ours)))(many), torch.stack([grad(loss(theirs))(m) for m in many]))
    jacobian = torch.autograd.functional.jacobian(of(theirs), x)
    close(jacrev(of(ours))(x), jacobian)
    close(jacfwd(of(ours))(x), jacobian)
    value, pushed = jvp(of(ours), (x,), (tangent,))
    close(value, theirs(x)[0])
    close(pushed, (jacobian.flatten(3) @ tangent.flatten()).view_as(value))

    parameters = {n: p.detach() for n, p in ours.named_parameters()}
    found = grad(lambda p: functional_call(ours, p, (x,))[0].square().sum())(parameters)
    loss(theirs)(x).backward()
    for name, parameter in theirs.named_parameters():
        close(found[name], parameter.grad)


@pytest.mark.parametrize("packed", ["", "sorted"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("T", [1, 2])
def test_no_gradient_where_torch_nn_has_none(T: int, layers: int, packed: str) -> None:
    """A projection that comes after the only c that has a gradient."""
    for bidirectional in (False, True):
        case = Case(T=T, B=2, I=2, H=4, P=2, layers=layers, bidirectional=bidirectional)
        gradients = []
        for package in (fusedrnn, nn):
            module, x = case.module(package), case.inputs()["input"]
            given = nn.utils.rnn.pack_padded_sequence(x, [T] * 2) if packed else x
            module(given)[1][1].sum().backward()
            gradients.append({name: p.grad for name, p in module.named_parameters()})
        without = [name for name, gradient in gradients[1].items() if gradient is None]
        assert len(without) == (1 + bidirectional) * (T == 1)
        torch.testing.assert_close(*gradients)


def test_a_graph_used_twice_and_late(device: torch.device) -> None:
    """Buffers of a kept graph are not handed to later calls."""
    module = fusedrnn.LSTM(64, 64).to(device)
    x = torch.randn(40, 16, 64, device=device, requires_grad=True)
    output, _ = module(x)
    weight = torch.randn_like(output)
    kept = output.detach().clone()
    (first,) = torch.autograd.grad(output, x, weight, retain_graph=True)
    for _ in range(5):
        other = module(torch.randn_like(x).requires_grad_())[0]
        other.backward(weight)
    (second,) = torch.autograd.grad(output, x, weight)
    assert torch.equal(output, kept)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output, x, weight)


def test_backward_in_another_thread(device: torch.device) -> None:
    module = fusedrnn.GRU(8, 16).to(device)
    x = torch.randn(10, 4, 8, device=device, requires_grad=True)
    output, _ = module(x)
    (expected,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.autograd.grad(output.sum(), x)[0]))
    thread.start()
    thread.join()
    assert torch.equal(found[0], expected)


def test_one_module_twice_in_a_graph(device: torch.device) -> None:
    case = Case(T=6, B=3, I=8, H=8, hx=False)
    results = []
    for package in (fusedrnn, nn):
        module = case.module(package).to(device)
        x = case.inputs()["input"].to(device).requires_grad_()
        module(module(x)[0])[0].square().sum().backward()
        results.append([x.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
