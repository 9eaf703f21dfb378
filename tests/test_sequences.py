"""Padded input with `lengths`: what parity tests (`packed="padded"` in parity.py) leave open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import MODULE_FACTS, MODULES, TORCH_CELLS, TORCH_MODULES
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import grad, jacrev, jvp
from torch.library import opcheck
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import functional
from fusedrnn._engine import ops
from fusedrnn._engine.sequences import layout_of_padded
from fusedrnn.testing.parity import Case

T, B = 6, 4
LENGTHS = torch.tensor([3, 6, 1, 6])


def network(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return getattr(fusedrnn, name)(5, 7, dtype=torch.float64, **options)


def x(**options: object) -> Tensor:
    return torch.randn(T, B, 5, dtype=torch.float64, **options)


def test_layout() -> None:
    padded = torch.arange(4 * 3).view(4, 3, 1)
    layout = layout_of_padded(padded, torch.tensor([2, 4, 1]))
    assert layout.batch_sizes.tolist() == [3, 2, 1, 1]
    assert layout.rows.tolist() == [1, 0, 2, 4, 3, 7, 10]  # as drawn in sequences.py
    assert layout.order.tolist() == [1, 0, 2]
    packed = pack_padded_sequence(padded, torch.tensor([2, 4, 1]), enforce_sorted=False)
    assert torch.equal(layout.pack(padded), packed.data)
    assert torch.equal(layout.pad(packed.data), pad_packed_sequence(packed)[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_packing_rows(threads: int) -> None:
    """Padded and joined sequences, against the definition written out in Python."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        steps, batch = (int(n) for n in torch.randint(1, 12, (2,), generator=generator))
        lengths = torch.randint(0, steps + 1, (batch,), generator=generator)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        for first, stride, count in (
            (torch.arange(batch), batch, steps * batch),
            (ends[:-1].clone(), 1, int(ends[-1])),
        ):
            order = sorted(range(batch), key=lambda b: -lengths[b])
            order = [b for b in order if lengths[b]]
            rows = [
                int(first[b]) + t * stride
                for t in range(steps) for b in order if t < lengths[b]
            ]  # fmt: skip
            found = ops.pack_rows(lengths, first, stride, count)
            sizes = [sum(t < n for n in lengths) for t in range(int(lengths.max()))]
            places = [rows.index(row) if row in rows else len(rows) for row in range(count)]
            assert [each.tolist() for each in found] == [sizes, order, rows, places]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_moving_rows(dtype: torch.dtype) -> None:
    torch.set_num_threads(3)
    rows = torch.randn(300, 7).mul(100).to(dtype)
    sources = torch.randint(0, 301, (1000,))
    expected = torch.cat([rows, rows.new_zeros(1, 7)])[sources]
    strided = torch.stack([rows, rows], dim=1)[:, 1]
    for same in (rows, strided, rows.T.contiguous().T, rows.view(30, 10, 7),
                 rows.view(30, 10, 7).transpose(0, 1).contiguous().transpose(0, 1)):  # fmt: skip
        assert torch.equal(ops.move_rows(same, sources), expected)
    assert torch.equal(ops.move_rows(rows[:0], torch.zeros(2, dtype=torch.int64)), rows[:2] * 0)
    assert ops.move_rows(rows[:, :0], sources).shape == (1000, 0)
    assert ops.move_rows(rows, sources[:0]).shape == (0, 7)


def test_wrong_rows() -> None:
    two, rows = torch.tensor([0, 1]), torch.randn(4, 3)
    for wrong, message in (
        ((two.int(), two, 2, 4), "lengths: expected contiguous int64"),
        ((two, two[:1], 2, 4), "first: expected one row for each of 2"),
        ((two, two, 0, 4), "stride, count: expected positive"),
        ((two + 2, two, 2, 4), "lengths: expected rows within 4, got 3 steps from row 1"),
        ((two - 1, two, 2, 4), "lengths: expected rows within 4, got -1"),
        ((two + 1, two - 1, 2, 4), "from row -1"),
        ((two + 2**62, two, 2, 4), "lengths: expected rows within 4"),
        ((two + 1, two * 0, 1, 2), "expected 2 rows at most, got 3"),
        ((two + 1, two * 0, 1, 5), "got row 0 in two"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.pack_rows(*wrong)
    for given, sources, message in (
        (rows, two + 4, "sources: expected 0 to 4, got 5 at 1"),
        (rows, two - 1, "sources: expected 0 to 4, got -1 at 0"),
        (rows[0], two, "rows: expected 2 or 3 dimensions"),
        (rows, two.float(), "sources: expected contiguous int64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.move_rows(given, sources)
    with pytest.raises(RuntimeError, match="sources: expected the device of the input, cpu"):
        ops.move_rows(rows, two.to("meta"))
    for op, arguments in ((ops.pack_rows, (two, two, 2, 4)), (ops.move_rows, (rows, two))):
        assert set(opcheck(op, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", MODULES)
def test_derivatives_through_lengths(name: str) -> None:
    """Second ones, forward mode and vmap, against the same by packing."""
    module, padded = network(name), x()

    def ours(padded: Tensor) -> Tensor:
        return module(padded, lengths=LENGTHS)[0]

    def theirs(padded: Tensor) -> Tensor:
        outputs = [module(padded[:n, b : b + 1])[0] for b, n in enumerate(LENGTHS)]
        return torch.cat([F.pad(each, (0, 0, 0, 0, 0, T - len(each))) for each in outputs], 1)

    def of(function: Any) -> list[Tensor]:
        def loss(padded: Tensor) -> Tensor:
            return function(padded).pow(3).sum()

        leaf = padded.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        _, tangent = torch.func.jvp(function, (padded,), (padded.cos(),))
        mapped = torch.vmap(function)(torch.stack([padded, padded.sin()]))
        each = torch.vmap(torch.func.grad(loss))(torch.stack([padded, padded.sin()]))
        twice = torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(padded)
        return [first.detach(), second, tangent, mapped, each, twice]

    for found, expected in zip(of(ours), of(theirs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", MODULES)
def test_what_lies_behind_the_end_is_not_read(name: str, device: torch.device) -> None:
    module = network(name, num_layers=2, bidirectional=True).to(device)
    padded = x().to(device)
    behind = torch.arange(T, device=device)[:, None] >= LENGTHS.to(device)
    spoiled = padded.masked_fill(behind[..., None], torch.nan).requires_grad_()
    output, states = module(spoiled, lengths=LENGTHS)
    expected, expected_states = module(padded, lengths=LENGTHS)
    torch.testing.assert_close((output, states), (expected, expected_states), rtol=0, atol=0)
    assert (output[behind] == 0).all()
    output.sum().backward()
    assert spoiled.grad is not None and (spoiled.grad[behind] == 0).all()
    assert spoiled.grad.isfinite().all()


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_full_lengths_change_nothing(kind: torch.dtype) -> None:
    module, padded = network("GRU", bidirectional=True), x()
    found = module(padded, lengths=torch.full((B,), T, dtype=kind))
    torch.testing.assert_close(found, module(padded))


def test_an_empty_batch() -> None:
    module = network("LSTM", num_layers=2)
    empty = torch.empty(T, 0, 5, dtype=torch.float64)
    output, (h, c) = module(empty, lengths=torch.empty(0, dtype=torch.int64))
    assert output.shape == (T, 0, 7) and h.shape == c.shape == (2, 0, 7)


@pytest.mark.parametrize("cell", TORCH_CELLS)
def test_functional(cell: str) -> None:
    module, run = Case(cell=cell, I=5, H=7).module(), getattr(functional, cell)
    found = run(x := torch.randn(T, B, 5).double(), None, [*module.parameters()], lengths=LENGTHS)
    torch.testing.assert_close(found, module(x, lengths=LENGTHS))


@pytest.mark.parametrize("name", MODULES)
def test_higher_derivatives_and_transforms(name: str) -> None:
    module, padded = network(name), x()

    def loss(given: Tensor) -> Tensor:
        return module(given, lengths=LENGTHS)[0].square().sum()

    def one_by_one(given: Tensor) -> Tensor:  # torch's packing knows no transforms
        each = [module(given[:n, b])[0].square().sum() for b, n in enumerate(LENGTHS.tolist())]
        return torch.stack(each).sum()

    tangent = x()
    for transform in (grad, lambda f: grad(lambda v: grad(f)(v).square().sum()), jacrev,
                      lambda f: lambda v: jvp(f, (v,), (tangent,))[1]):  # fmt: skip
        torch.testing.assert_close(transform(loss)(padded), transform(one_by_one)(padded))
    many = torch.stack([padded, tangent])
    torch.testing.assert_close(
        torch.vmap(grad(loss))(many), torch.stack([grad(loss)(padded), grad(loss)(tangent)])
    )


@pytest.mark.parametrize("options", [{}, {"proj_size": 3}], ids=str)
@pytest.mark.parametrize("name", TORCH_MODULES)
def test_autocast_is_that_of_packed_input(name: str, options: dict[str, int]) -> None:
    if options and not MODULE_FACTS[name].projects:
        return
    theirs = getattr(nn, name)(5, 7, **options)
    ours = fusedrnn.replace(getattr(nn, name)(5, 7, **options)).model
    ours.load_state_dict(theirs.state_dict())
    padded = x().float()
    with torch.autocast("cpu", torch.bfloat16):
        found, states = ours(padded, lengths=LENGTHS)
        expected, final = theirs(pack_padded_sequence(padded, LENGTHS, enforce_sorted=False))
    assert found.dtype == expected.data.dtype
    for ours_, theirs_ in zip(states, final, strict=True):
        assert ours_.dtype == theirs_.dtype
        torch.testing.assert_close(ours_, theirs_, rtol=2e-2, atol=2e-2)


def test_a_trace_takes_other_lengths() -> None:
    module = network("LSTM").requires_grad_(False)
    traced = torch.jit.trace(
        lambda given, lengths: module(given, lengths=lengths)[0], (x(), LENGTHS)
    )
    other = torch.tensor([2, 2, 6, 5])
    padded = x()
    torch.testing.assert_close(traced(padded, other), module(padded, lengths=other)[0])


@pytest.mark.parametrize(
    "lengths, error, message",
    [
        ([3, 6, 1, 6.0], TypeError, r"an int64 or int32 tensor .* = \(4,\), got list"),
        ([3, 6, 1], RuntimeError, r"got torch.int64 of shape \(3,\)"),
        (torch.ones(B), TypeError, "got torch.float32 of shape"),
        (torch.ones(3, dtype=torch.int64), RuntimeError, r"got torch.int64 of shape \(3,\)"),
        (torch.ones(B, 1, dtype=torch.int64), RuntimeError, r"of shape \(4, 1\)"),
        (torch.tensor([1, -1, 2, 3]), RuntimeError, "from 0 to 6, the steps of input, got -1 at 1"),
        (torch.tensor([1, 2, 3, 7]), RuntimeError, "from 0 to 6, the steps of input, got 7 at 3"),
    ],
    ids=str,
)  # fmt: skip
def test_errors(lengths: object, error: type[Exception], message: str) -> None:
    module = network("GRU")
    with pytest.raises(error, match=message):
        module(x(), lengths=lengths)


def test_lengths_under_another_default_device() -> None:
    module, padded = network("GRU"), x()
    expected = module(padded, lengths=LENGTHS)
    with torch.device("meta"):
        torch.testing.assert_close(module(padded, lengths=LENGTHS), expected)


@pytest.mark.parametrize("name", MODULES)
def test_shapes_alone(name: str) -> None:
    options = dict(num_layers=2, bidirectional=True, checkpoint=2)
    meta = getattr(fusedrnn, name)(5, 7, device="meta", **options)
    output, states = meta(torch.empty(T, B, 5, device="meta"), lengths=LENGTHS)
    assert output.shape == (T, B, 14) and output.is_meta and states[0].is_meta
    with FakeTensorMode(allow_non_fake_inputs=True):
        output, _ = getattr(fusedrnn, name)(5, 7, **options)(torch.zeros(T, B, 5), lengths=LENGTHS)
        assert output.shape == (T, B, 14)


def test_lengths_are_not_mapped() -> None:
    module = network("GRU")
    with pytest.raises(ValueError, match="lengths: expected the same for all of vmap's batch"):
        torch.vmap(lambda given, lengths: module(given, lengths=lengths)[0])(
            torch.stack([x(), x()]), torch.stack([LENGTHS, LENGTHS])
        )


def test_the_op_checks_lengths_itself() -> None:
    module = network("LSTM").requires_grad_(False)
    traced = torch.jit.trace(
        lambda given, lengths: module(given, lengths=lengths)[0], (x(), LENGTHS)
    )
    for wrong in (LENGTHS[:3], LENGTHS.repeat(2), LENGTHS.double(), LENGTHS + 1):
        with pytest.raises(RuntimeError, match="lengths: expected"):
            traced(x(), wrong)


def test_lengths_where_there_are_none() -> None:
    module = network("GRU")
    with pytest.raises(ValueError, match="lengths: expected None without a batch"):
        module(x()[:, 0], lengths=LENGTHS)
    packed = pack_padded_sequence(x(), LENGTHS, enforce_sorted=False)
    with pytest.raises(ValueError, match="lengths: expected None with a packed input"):
        module(packed, lengths=LENGTHS)


# Sequences of no steps, and sequences without padding.

MANY = ([3, 0, 6, 1], [0, 0, 0, 0], [6, 6, 6, 6], [0, 0, 0, 2])


def states_of(name: str) -> list[Tensor]:
    count = len(MODULE_FACTS[name].states)
    return [torch.randn(4, B, 7, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def as_hx(states: list[Tensor]) -> Any:
    return tuple(states) if len(states) > 1 else states[0]


def as_list(hx: Any) -> list[Tensor]:
    return [hx] if isinstance(hx, Tensor) else [*hx]


@pytest.mark.parametrize("lengths", MANY, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_each_sequence_is_as_if_alone(name: str, lengths: list[int], device: torch.device) -> None:
    module, padded = network(name, num_layers=2, bidirectional=True), x(requires_grad=True)
    hx = states_of(name)
    leaves = [padded, *hx, *module.parameters()]
    output, hn = module(padded, as_hx(hx), lengths=lengths)
    weights = [torch.randn_like(result) for result in [output, *as_list(hn)]]
    loss = sum((w * r).sum() for w, r in zip(weights, [output, *as_list(hn)], strict=True))
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    total = torch.zeros((), dtype=torch.float64)
    for b, n in enumerate(lengths):
        own = [state[:, b] for state in hx]
        y = padded[:0, b]
        if n:
            y, finals = module(padded[:n, b], as_hx(own))
            own = as_list(finals)
            torch.testing.assert_close(output[:n, b], y)
            total = total + (weights[0][:n, b] * y).sum()
        assert (output[n:, b] == 0).all()
        for state, expected, w in zip(as_list(hn), own, weights[1:], strict=True):
            torch.testing.assert_close(state[:, b], expected)
            total = total + (w[:, b] * expected).sum()
    right = torch.autograd.grad(total, leaves, allow_unused=True)
    for gradient, expected in zip(found, right, strict=True):
        zeros = torch.zeros(())
        torch.testing.assert_close(
            zeros if gradient is None or not gradient.any() else gradient,
            zeros if expected is None or not expected.any() else expected,
        )
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    in_graph = compiled(padded, as_hx(hx), lengths=torch.tensor(lengths))
    torch.testing.assert_close(in_graph, (output, hn))
    loss = sum((w * r).sum() for w, r in
               zip(weights, [in_graph[0], *as_list(in_graph[1])], strict=True))  # fmt: skip
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaves[: 1 + len(hx)]), found[: 1 + len(hx)]
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("lengths", MANY, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_without_padding(name: str, lengths: list[int]) -> None:
    """One after the other, or as a jagged tensor: the same numbers as padded."""
    module, padded = network(name, num_layers=2, bidirectional=True), x()
    hx = as_hx(states_of(name))
    expected, finals, states = module(padded, hx, lengths=lengths, return_states=True)

    def joined(values: Tensor) -> Tensor:
        return torch.cat([values[:n, b] for b, n in enumerate(lengths)])

    rows = joined(padded).requires_grad_()
    for dtype in (torch.int32, torch.int64):
        ends = torch.tensor([0, *lengths]).cumsum(0).to(dtype)
        output, hn, every = module(rows, hx, cu_seqlens=ends, return_states=True)
        torch.testing.assert_close((output, hn), (joined(expected), finals))
        for a, b in zip(as_list(every), as_list(states), strict=True):
            torch.testing.assert_close(a.transpose(0, 1), joined(b.permute(1, 2, 0, 3)))
    (grad,) = torch.autograd.grad(output.square().sum(), rows)
    first = network(name, num_layers=2, bidirectional=True, batch_first=True)
    jagged = torch.nested.nested_tensor_from_jagged(rows, ends)
    output, hn, every = first(jagged, hx, return_states=True)
    assert output.is_nested and output.shape[0] == B and output.shape[2] == 14
    torch.testing.assert_close(output.offsets(), ends)
    torch.testing.assert_close((output.values(), hn), (joined(expected), finals))
    for a, b in zip(as_list(every), as_list(states), strict=True):
        torch.testing.assert_close(a.values(), joined(b.permute(1, 2, 0, 3)))
    (of_jagged,) = torch.autograd.grad(output.values().square().sum(), rows)
    torch.testing.assert_close(of_jagged, grad)
    reset = torch.rand(len(rows)) < 0.4
    marked = torch.nested.nested_tensor_from_jagged(reset[:, None], ends)
    torch.testing.assert_close(
        first(jagged, hx, reset=marked)[0].values(),
        module(rows, hx, cu_seqlens=ends, reset=reset)[0],
    )


@pytest.mark.parametrize(
    "ends, error, message",
    [
        ([0, 6], TypeError, r"cu_seqlens: expected an int64 or int32 tensor of shape \(B \+ 1,\)"),
        (torch.tensor([0.0, 6.0]), TypeError, "got torch.float32"),
        (torch.tensor([[0, 6]]), RuntimeError, r"got torch.int64 of shape \(1, 2\)"),
        (torch.tensor([], dtype=torch.int64), RuntimeError, r"of shape \(0,\)"),
        (torch.tensor([0, 5]), RuntimeError, "from 0 to 6, the rows of input, .* got 0 first, 5"),
        (torch.tensor([1, 6]), RuntimeError, "got 1 first, 6 last"),
        (torch.tensor([0, 4, 3, 6]), RuntimeError, "and one below the one before"),
    ],
    ids=["list", "float", "2-D", "empty", "short", "late", "falling"],
)
def test_errors_of_sequences_without_padding(
    ends: Any, error: type[Exception], message: str
) -> None:
    module, rows = network("GRU"), x()[:, 0]
    with pytest.raises(error, match=message):
        module(rows, cu_seqlens=ends)


def test_sequences_without_padding_exclude_other_kinds() -> None:
    module, rows, ends = network("GRU"), x()[:, 0], torch.tensor([0, 2, 6])
    with pytest.raises(ValueError, match=r"cu_seqlens: expected None, or an input of shape"):
        module(x(), cu_seqlens=ends)
    with pytest.raises(ValueError, match="cu_seqlens: expected None with a packed input or with"):
        module(x(), lengths=LENGTHS, cu_seqlens=ends)
    packed = pack_padded_sequence(x(), LENGTHS, enforce_sorted=False)
    with pytest.raises(ValueError, match="cu_seqlens: expected None with a packed input"):
        module(packed, cu_seqlens=ends)
    with pytest.raises(Exception, match="(?s)Observed exception.*cu_seqlens: how many steps"):
        torch.compile(module, backend="eager", fullgraph=True)(rows, cu_seqlens=ends)
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 7\)"):
        module(rows, torch.zeros(1, 3, 7, dtype=torch.float64), cu_seqlens=ends)


def test_a_jagged_reset_has_the_offsets_of_the_input() -> None:
    module = fusedrnn.GRU(5, 7, batch_first=True)

    def jagged(*parts: Tensor) -> Tensor:
        return torch.nested.nested_tensor([*parts], layout=torch.jagged)

    input = jagged(torch.randn(2, 5), torch.randn(3, 5))
    reset = jagged(torch.zeros(2), torch.tensor([0.0, 1.0, 0.0]))
    output, _ = module(input, reset=reset)
    joined, _ = module(input.values(), reset=reset.values(), cu_seqlens=input.offsets())
    torch.testing.assert_close(output.values(), joined)
    with pytest.raises(RuntimeError, match="reset: expected a jagged tensor with the offsets"):
        module(input, reset=jagged(torch.zeros(4), torch.zeros(1)))
