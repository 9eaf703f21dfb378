"""checkpoint=k: the numbers of the ordinary module, in less memory."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle

import pytest
import torch
from conftest import (
    CELLS,
    GATED,
    KINDS,
    MODULES,
    TORCH_CELLS,
    TORCH_MODULES,
    UNMODIFIED,
    cases_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_fuzz import DTYPES, cases
from test_gradients import function_of
from test_ops import VARIANTS, arguments
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.library import opcheck

import fusedrnn
from fusedrnn import functional
from fusedrnn._engine.checkpoint import checkpointed_backward, checkpointed_forward
from fusedrnn.testing.parity import FP64, Case, check, largest

T = 7


@dataclasses.dataclass(frozen=True)
class Checkpointed(Case):
    """A case whose fusedrnn module has checkpoint=k."""

    k: int = 3

    def module(self, package: object = fusedrnn, dtype: torch.dtype = torch.float64) -> nn.Module:
        module = super().module(package, dtype)
        if package is fusedrnn:
            module.checkpoint = self.k
        return module


def with_k(case: Case, k: int) -> Checkpointed:
    return Checkpointed(**vars(case), k=k)


def grid() -> list[Case]:
    shapes = []
    for both, packed, P, bias, first in itertools.product(
        (False, True), ("", "sorted", "unsorted"), (0, 3), (True, False), (True, False)
    ):
        layers = 1 + (both != first)
        shapes.append(Case(T=T, bidirectional=both, packed=packed, P=P, bias=bias,
                           batch_first=first, hx=bias != both, layers=layers))  # fmt: skip
    return cases_of(KINDS, shapes)


@pytest.mark.parametrize("case", grid(), ids=str)
def test_the_numbers_of_the_ordinary_module(case: Case) -> None:
    inputs = case.inputs()
    expected = case.run(case.module(), inputs)
    for k in (1, 3, T, T + 5):
        found = case.run(with_k(case, k).module(), inputs)
        assert list(found) == list(expected)
        for name, value in found.items():
            assert value.shape == expected[name].shape, (k, name)
            error, scale = largest(value - expected[name]), largest(expected[name])
            assert error <= FP64 * scale, f"k={k}, {name}: {error:.1e} of {scale:.1e}"


@given(
    case=cases(),
    k=st.one_of(st.integers(1, 9), st.just(50)),
    dtype=DTYPES,
    threads=st.integers(1, 4),
)
def test_any_configuration(case: Case, k: int, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    check(with_k(case, k), dtype)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), k=st.integers(1, 9))
def test_any_device(case: Case, k: int, device: torch.device) -> None:
    small = dataclasses.replace(case, B=min(case.B, 5), H=min(case.H, 20), P=min(case.P, 3))
    check(with_k(dataclasses.replace(small, P=small.P if small.H > 3 else 0), k), torch.float32,
          device)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    for cell in GATED:
        case = Checkpointed(cell=cell, T=23, B=12, I=20, H=48, bidirectional=True, packed="sorted")
        module, inputs = case.module(dtype=dtype), case.inputs()
        expected = case.run(module, inputs)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for name, value in case.run(module, inputs).items():
                assert torch.equal(value, expected[name]), (cell, threads, name)


# Gradients: only those that are asked for, from any of the results, of any order.


@pytest.mark.parametrize("packed", ["", "sorted"])
@pytest.mark.parametrize("cell", GATED)
def test_gradients_of_one_result_to_one_operand(cell: str, packed: str) -> None:
    case = Case(cell=cell, T=T, bidirectional=True, packed=packed)
    function, tensors = function_of(with_k(case, 3))
    ordinary, _ = function_of(case)
    results = len(function(*tensors))
    for i, j in itertools.product(range(results), range(len(tensors))):
        leaves = [t.detach().requires_grad_(n == j) for n, t in enumerate(tensors)]
        (found,) = torch.autograd.grad(function(*leaves)[i].square().sum(), leaves[j])
        (expected,) = torch.autograd.grad(ordinary(*leaves)[i].square().sum(), leaves[j])
        error, scale = largest(found - expected), largest(expected)
        assert error <= FP64 * scale, f"result {i}, operand {j}: {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("cell", GATED)
def test_gradients_not_asked_for_are_empty(cell: str, packed: bool) -> None:
    input, sizes, states, parameters, *layer, _ = arguments(cell, bidirectional=True, packed=packed)
    given = (input, sizes, states, parameters)
    output, _, borders = checkpointed_forward(*given, *UNMODIFIED, *layer, 2)
    operands = [input, *states, *parameters]
    for needs in (0, 1, 2, 4, 8, 1 << 7, 1 << 10, -1):
        x, hx, weights, *_ = checkpointed_backward(
            torch.ones_like(output), [], *given, *UNMODIFIED, output, borders, *layer, 2, needs
        )
        for i, (found, operand) in enumerate(zip([x, *hx, *weights], operands, strict=True)):
            assert found.shape == (operand.shape if needs >> i & 1 else (0,)), (needs, i)


SMALL = [
    with_k(Case(T=3, B=2, I=2, H=3, bidirectional=True), 2),
    with_k(Case(cell="gru", T=3, B=2, I=2, H=2, layers=2, bias=False), 1),
    with_k(Case(T=4, B=3, I=2, H=2, packed="sorted", bidirectional=True), 2),
    with_k(Case(T=3, B=2, I=2, H=4, P=2), 2),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(case: Case) -> None:
    assert gradcheck(*function_of(case))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradgradcheck(case: Case) -> None:
    function, tensors = function_of(case)
    fixed = [t.detach() for t in tensors[1:]]
    assert gradgradcheck(lambda input: function(input, *fixed), tensors[0])


@pytest.mark.parametrize("cell", GATED)
def test_torch_func(cell: str) -> None:
    case = Case(cell=cell, T=5, B=2, I=3, H=4, hx=False)
    many, tangent = torch.randn(3, 5, 2, 3).double(), torch.randn(5, 2, 3).double()
    results = []
    for module in (with_k(case, 2).module(), case.module()):

        def loss(x: Tensor, module: nn.Module = module) -> Tensor:
            return module(x)[0].square().sum()

        results.append([vmap(grad(loss))(many), *jvp(loss, (many[0],), (tangent,))])
    torch.testing.assert_close(*results)


def test_what_backward_needs_is_watched() -> None:
    module = fusedrnn.LSTM(5, 6, checkpoint=2)
    for change in ("input", "output", "weight_hh_l0"):
        x = torch.randn(7, 3, 5)
        output, _ = module(x)
        with torch.no_grad():
            {"input": x, "output": output}.get(change, module.weight_hh_l0).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_dropout_between_layers() -> None:
    results = []
    for k in (None, 3):
        torch.manual_seed(0)
        module = fusedrnn.GRU(5, 6, num_layers=3, dropout=0.4, checkpoint=k).double()
        x = torch.randn(7, 4, 5, dtype=torch.float64, requires_grad=True)
        module(x)[0].square().sum().backward()
        results.append([x.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODULES)
def test_autocast(name: str) -> None:
    results = []
    for k in (None, 3):
        torch.manual_seed(0)
        module = getattr(fusedrnn, name)(5, 6, checkpoint=k)
        with torch.autocast("cpu", torch.bfloat16):
            output = module(torch.ones(7, 4, 5))[0]
        output.float().sum().backward()
        results.append([output, *(p.grad for p in module.parameters())])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", MODULES)
def test_a_batch_of_none(name: str, device: torch.device) -> None:
    module = getattr(fusedrnn, name)(5, 6, bidirectional=True, checkpoint=2, device=device)
    x = torch.randn(3, 0, 5, device=device, requires_grad=True)
    output, _ = module(x)
    assert output.shape == (3, 0, 12)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


# Memory.


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """What a graph keeps beside the input, the parameters and the output."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output, _ = module(x)
    for tensor in (x, output, *module.parameters()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize("k", [1, 8, 16, 40, 100])
def test_what_is_kept(k: int) -> None:
    """All that the cell saves; with checkpoints, of each chunk the states that are no output."""
    steps, batch, hidden = 40, 8, 32
    x = torch.randn(steps, batch, 16)
    values = steps * batch * hidden * 4
    for cell, both in itertools.product(CELLS, (False, True)):
        case = Case(cell=cell, I=16, H=hidden, bidirectional=both)
        module = case.module(dtype=torch.float32)
        without = saved_bytes(module, x)
        module.checkpoint = k
        kept = saved_bytes(module, x)
        each = values * (1 + both)
        assert without == len(case.facts.saved) * each
        chunks = -(-steps // k)
        assert kept == (len(case.facts.states) - 1) * chunks * each // steps


def test_backward_holds_the_reserve_of_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of the native ops in a step has more rows than a chunk."""
    seen = []
    forward = fusedrnn._engine.ops.layer_forward

    def watched(input: Tensor, *rest: object) -> object:
        results = forward(input, *rest)
        seen.append((input.size(0), results[2].numel()))
        return results

    monkeypatch.setattr(fusedrnn._engine.ops, "layer_forward", watched)
    fusedrnn.LSTM(4, 16, checkpoint=4)(torch.randn(10, 3, 4))[0].sum().backward()
    assert [steps for steps, _ in seen] == [4, 4, 2, 2, 4, 4]
    assert [saved for _, saved in seen] == [0, 0, 0, *(n * 3 * 5 * 16 for n in (2, 4, 4))]
    seen.clear()
    fusedrnn.LSTM(4, 16, bidirectional=True, checkpoint=10)(torch.randn(10, 3, 4))[
        0
    ].sum().backward()
    assert seen == [(10, 0), (10, 10 * 3 * 5 * 16 * 2)]


def test_nothing_differs_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fusedrnn.LSTM(5, 6, checkpoint=2)
    x = torch.randn(7, 3, 5)
    monkeypatch.setattr(
        fusedrnn._engine.autograd, "checkpointed_forward", lambda *_: pytest.fail("checkpointed")
    )
    with torch.no_grad():
        expected = module(x)[0]
    assert torch.equal(module.requires_grad_(False)(x)[0], expected)


# As ops, under compilers, as an argument and an attribute.


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck(variant: str, k: int) -> None:
    *given, _ = arguments(**VARIANTS[variant], grad=True)
    call = (*given[:4], *UNMODIFIED, *given[4:], k)
    assert set(opcheck(checkpointed_forward, call).values()) == {"SUCCESS"}
    *given, _ = arguments(**VARIANTS[variant])
    operands, layer = (*given[:4], *UNMODIFIED), given[4:]
    y, hn, borders = checkpointed_forward(*operands, *layer, k)
    grads = (torch.randn_like(y), [torch.randn_like(state) for state in hn])
    results = opcheck(checkpointed_backward, (*grads, *operands, y, borders, *layer, k, -1))
    assert set(results.values()) == {"SUCCESS"}


def test_export() -> None:
    module = fusedrnn.LSTM(5, 6, checkpoint=3)
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    program = torch.export.export(
        module, (torch.randn(4, 3, 5),), dynamic_shapes={"input": {0: steps, 1: batch}}
    )
    assert any("checkpointed" in str(node.target) for node in program.graph.nodes)
    for shape in ((2, 7, 5), (9, 2, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x)[0], module(x)[0])


@pytest.mark.parametrize("name", TORCH_MODULES)
def test_attribute(name: str) -> None:
    module = getattr(fusedrnn, name)(5, 6, bidirectional=True, checkpoint=4)
    assert repr(module) == f"{name}(5, 6, bidirectional=True, checkpoint=4)"
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.checkpoint == 4
    assert "checkpoint" not in repr(getattr(fusedrnn, name)(5, 6))
    older = {key: value for key, value in vars(module).items() if key != "checkpoint"}
    restored = type(module).__new__(type(module))
    restored.__setstate__(older)
    assert restored.checkpoint is None
    assert torch.equal(restored(torch.ones(3, 2, 5))[0], module(torch.ones(3, 2, 5))[0])
    assert list(module.state_dict()) == list(
        getattr(nn, name)(5, 6, bidirectional=True).state_dict()
    )


def test_replaced_modules_have_none_until_it_is_set() -> None:
    module = fusedrnn.replace(nn.LSTM(5, 6)).model
    assert module.checkpoint is None
    x = torch.randn(7, 3, 5)
    without = saved_bytes(module, x)
    module.checkpoint = 4
    assert saved_bytes(module, x) < without


@pytest.mark.parametrize("value, error", [(0, ValueError), (-3, ValueError), (2.0, TypeError),
                                          ("4", TypeError), (True, TypeError)])  # fmt: skip
def test_wrong_values(value: object, error: type[Exception]) -> None:
    for name in MODULES:
        with pytest.raises(error, match="checkpoint: expected None or a positive int"):
            getattr(fusedrnn, name)(5, 6, checkpoint=value)
    module = fusedrnn.GRU(5, 6)
    with pytest.raises(error, match="checkpoint"):
        functional.gru(torch.ones(3, 2, 5), None, list(module.parameters()), checkpoint=value)
    module.checkpoint = value
    with pytest.raises(error, match="checkpoint"):
        module(torch.ones(3, 2, 5))


def test_functions() -> None:
    x = torch.randn(7, 3, 5)
    for cell in TORCH_CELLS:
        module = Case(cell=cell, I=5, H=6).module(dtype=torch.float32)
        module.checkpoint = 2
        function = getattr(functional, cell)
        found = function(x, None, list(module.parameters()), checkpoint=2)[0]
        assert torch.equal(found, module(x)[0])
        assert type(found.grad_fn) is type(module(x)[0].grad_fn)


def test_wrong_calls_of_the_ops() -> None:
    x, _, hx, weights, cell, *flags, _ = arguments("lstm")
    settings = (*UNMODIFIED, cell, *flags)
    h, c = hx
    output, _, borders = checkpointed_forward(x, None, hx, weights, *settings, 2)
    sizes = torch.tensor([3, 2, 1])
    for wrong in (
        (x[0], None, hx, weights, *settings, 2),
        (x[:0], None, hx, weights, *settings, 2),
        (x, None, [h[:, :2], c], weights, *settings, 2),
        (x, None, [h], weights, *settings, 2),
        (x, None, [h, c, c], weights, *settings, 2),
        (x, None, hx, weights[:1], *settings, 2),
        (x, None, hx, [*weights, *weights], *settings, 2),
        (x, None, hx, [w.float() for w in weights], *settings, 2),
        (x, None, hx, weights, *UNMODIFIED, "peephole", *flags, 2),
        (x, None, hx, weights, *settings, 0),
        (x[0], sizes, hx, weights, *settings, 2),
        (x.flatten(0, 1)[:6], sizes.flip(0), hx, weights, *settings, 2),
        (x.flatten(0, 1)[:6], sizes.float(), hx, weights, *settings, 2),
    ):
        with pytest.raises(RuntimeError, match="expected"):
            checkpointed_forward(*wrong)
    on_meta = (x.to("meta"), None, [s.to("meta") for s in hx], [w.to("meta") for w in weights])
    for k in (0, -1):
        with pytest.raises(RuntimeError, match=f"checkpoint: expected at least 1, got {k}"):
            checkpointed_forward(*on_meta, *settings, k)
    for y, dy, c in ((output[1:], output, borders), (output, output[1:], borders),
                     (output, output, borders[:, :, 1:])):  # fmt: skip
        with pytest.raises(RuntimeError, match="expected shape"):
            checkpointed_backward(dy, [], x, None, hx, weights, *UNMODIFIED, y, c, cell,
                                  *flags, 2, -1)  # fmt: skip
