"""Layers of written cells on the kernels, against the function over the steps.

What a layer can do is tested with some of them wherever compiled cells are (`written_cells`). Here
are cells of all kinds, and what only they have.
"""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Iterable
from typing import Any

import pytest
import test_modifiers
import torch
from program_texts import program_of
from random_cells import random_cell
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from written_cells import WRITTEN, mgu, reset_before, wide

import fusedrnn
from fusedrnn import reference
from fusedrnn._engine import ops
from fusedrnn._engine.layer import Layer, Operands, layer_of
from fusedrnn.cells import CellError, WrittenCell, cell_named, cell_of_written
from fusedrnn.cells.zoo import ZOO

SEEDS_AT_ONCE = 20
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def problem_of(
    written: WrittenCell, seed: int
) -> tuple[fusedrnn.Recurrent, Any, Any, dict[str, Tensor] | None]:
    """A network of some sizes in float64, its input, first states or None, and step inputs."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    T, B, I, H = (draw.choice(sizes) for sizes in ((1, 2, 5), (1, 3, 9), (1, 4), (1, 16, 21)))  # noqa: E741
    both, layers = draw.choice((False, True)), draw.choice((1, 1, 2))
    module = fusedrnn.Recurrent(
        written, I, H, layers, bidirectional=both, bias=draw.random() < 0.8, dtype=torch.float64
    )
    input: Any = torch.randn(T, B, I, dtype=torch.float64)
    if draw.random() < 0.4:
        lengths = torch.randint(1, T + 1, (B,))
        input, T = pack_padded_sequence(input, lengths, enforce_sorted=False), int(lengths.max())
    parts = layers * (1 + both)
    shapes = (T, B, 1), (T, B, H), (parts, T, B, 1), (parts, T, B, H)
    steps = {  # t_lstm takes the logarithm of e + dt
        name: torch.randn(draw.choice(shapes)).double().clamp(-2, 2) for name in written.step_inputs
    }
    states = [torch.rand(parts, B, H, dtype=torch.float64) - 0.5 for _ in written.states]
    hx = None if draw.random() < 0.4 else states[0] if len(states) == 1 else tuple(states)
    return module, input, hx, steps or None


def as_tuple(states: Any) -> tuple[Tensor, ...]:
    return states if isinstance(states, tuple) else (states,)


def results_of(
    module: nn.Module, input: Any, hx: Any, step_inputs: dict[str, Tensor] | None = None
) -> list[Tensor]:
    """Output, final states, and the gradients of all that is given and of parameters."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.clone().requires_grad_())
        return leaves[-1]

    if isinstance(input, PackedSequence):
        input = input._replace(data=leaf(input.data))
    else:
        input = leaf(input)
    if hx is not None:
        hx = tuple(map(leaf, hx)) if isinstance(hx, tuple) else leaf(hx)
    options: dict[str, Any] = {}
    if step_inputs is not None:
        options["step_inputs"] = {name: leaf(values) for name, values in step_inputs.items()}
    output, final = module(input, hx, **options)
    data = output.data if isinstance(output, PackedSequence) else output
    found = [data, *as_tuple(final)]
    generator = torch.Generator().manual_seed(0)
    weighted = [
        (each * torch.randn(each.shape, generator=generator, dtype=each.dtype)).sum()
        for each in found
    ]
    wanted = [*leaves, *module.parameters()]
    gradients = torch.autograd.grad(sum(weighted), wanted, allow_unused=True)
    zeros = (torch.zeros_like(each) for each in wanted)
    return [
        *(each.detach() for each in found),
        *(z if grad is None else grad for z, grad in zip(zeros, gradients, strict=True)),
    ]


def plain(layer: Layer, operands: Operands, lengths: None = None) -> tuple[Tensor, Any]:
    """A layer by the reference."""
    return reference.layer(layer, operands)


def check_against_reference(written: WrittenCell, seed: int) -> None:
    problem = problem_of(written, seed)
    found = results_of(*problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusedrnn.functional.run_layer", plain)
        patch.setattr("fusedrnn.functional.run_modified", lambda *given: (*plain(*given), ()))
        expected = results_of(*problem)
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        floor = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
        torch.testing.assert_close(
            ours,
            theirs,
            rtol=0,
            atol=1e-10 * floor,
            msg=lambda m: f"seed {seed}, result {i}: {m}",  # noqa: B023
        )


@pytest.mark.parametrize("first", range(0, 200, SEEDS_AT_ONCE))
def test_random_cells(first: int) -> None:
    for seed in range(first, first + SEEDS_AT_ONCE):
        check_random(seed)


@pytest.mark.thorough
@pytest.mark.parametrize("first", range(200, 5000, 200))
def test_many_random_cells(first: int) -> None:
    for seed in range(first, first + 200):
        check_random(seed)


def check_random(seed: int) -> None:
    check_against_reference(random_cell(seed), seed)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    for seed in range(3):
        check_against_reference(ZOO[name], seed)


@fusedrnn.cell(gates="a")
def carried_by_the_first(x, u, h):  # type: ignore[no-untyped-def]
    """The second stage knows that it carries nothing to h; what zoneout keeps is carried there."""
    return torch.tanh(x.a + u.a(torch.tanh(h) * 0.5))


def test_zoneout_of_two_products() -> None:
    for seed in range(10):
        cells = (cell_of_written(carried_by_the_first),)
        drawn = test_modifiers.draw(seed, kinds=("keep",), cells=cells)
        test_modifiers.compare(
            drawn,
            test_modifiers.numbers_of(drawn, test_modifiers.ours(drawn)),
            test_modifiers.numbers_of(drawn, test_modifiers.theirs(drawn)),
        )


def tensors(found: Iterable[Any]) -> list[Tensor]:
    return [t for each in found for t in ([each] if isinstance(each, Tensor) else each)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_relu"])
def test_programs_of_compiled_cells(cell: str, dtype: torch.dtype) -> None:
    """The same operations in the same order give the same bits."""
    facts = cell_named(cell)
    states = len(facts.states)
    for T, B, I, H, P, both in (  # noqa: E741
        (3, 2, 4, 5, 0, False), (5, 33, 40, 70, 0, True), (1, 1, 3, 16, 0, False),
        (9, 1, 6, 33, 0, True), (4, 20, 8, 129, 0, False), (6, 5, 4, 20, 7, True),
    ):  # fmt: skip
        if P and not facts.projects:
            continue
        torch.manual_seed(0)
        shapes = [*facts.shapes(I, H, P).values()] * (1 + both)
        weights = [torch.randn(shape, dtype=dtype) / H**0.5 for shape in shapes]
        x = torch.randn(T, B, I, dtype=dtype)
        found = []
        for spec in (cell, program_of(cell, P > 0)):
            layer = (spec, True, P > 0, both)
            forward = ops.layer_forward(x, None, None, weights, *layer, True)
            output, hn, reserve = forward
            without = ops.layer_forward(x, None, None, weights, *layer, False)
            assert all(map(torch.equal, tensors(without[:2]), tensors(forward[:2])))
            needs = (1 << 1 + states + len(weights)) - 1
            backward = ops.layer_backward(
                output, hn, x, None, None, weights, output, reserve, *layer, needs
            )
            found.append(tensors([*forward, *backward]))
        for compiled, interpreted in zip(*found, strict=True):
            assert torch.equal(compiled, interpreted), (T, B, I, H, P)


@pytest.mark.parametrize("written", WRITTEN, ids=str)
def test_bits_do_not_depend_on_threads(written: WrittenCell) -> None:
    torch.manual_seed(0)
    module = fusedrnn.Recurrent(written, 20, 70, 2, bidirectional=True)
    x, found = torch.randn(9, 37, 20), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results_of(module, x, None))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_projection() -> None:
    peephole = ZOO["peephole_lstm"]
    torch.manual_seed(0)
    module = fusedrnn.Recurrent(peephole, 3, 21, 2, proj_size=5, dtype=torch.float64)
    x = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert module(x)[0].shape == (4, 3, 5)
    assert torch.autograd.gradcheck(lambda x: module(x)[0], x)
    with pytest.raises(ValueError, match="^proj_size: expected 0"):
        fusedrnn.Recurrent(mgu, 3, 4, proj_size=2)


def test_parameters() -> None:
    """Rows are those of the gates that use them; unit weights begin as the cell says."""
    module = fusedrnn.Recurrent(wide, 3, 8, bidirectional=True)
    shapes = {name: (*parameter.shape,) for name, parameter in module.named_parameters()}
    assert shapes["weight_ih_l0"] == (4 * 8, 3)  # i m o v
    assert shapes["weight_hh_l0"] == (4 * 8, 8)  # i k m o
    assert shapes["bias_ih_l0_reverse"] == shapes["bias_hh_l0"] == (32,)
    assert shapes["weight_unit_l0"] == (2, 8)
    p, q = module.weight_unit_l0.unbind()
    assert p.abs().max() <= 8**-0.5 and p.unique().numel() == 8
    assert torch.equal(q, torch.full((8,), 0.5))
    other = fusedrnn.Recurrent(wide, 3, 8, bidirectional=True)
    other.load_state_dict(module.state_dict())
    x = torch.randn(2, 5, 3)
    assert torch.equal(module(x)[0], other(x)[0])


def test_copies_have_the_program() -> None:
    scale = 0.5

    @fusedrnn.cell(gates="a")
    def scaled(x, u, h):  # type: ignore[no-untyped-def]
        return torch.tanh(x.a + u.a) * scale

    module, x = fusedrnn.Recurrent(scaled, 3, 4), torch.randn(2, 1, 3)
    scale = 0.7  # no longer has an effect
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(other(x)[0], module(x)[0])
        assert other.cell is module.cell
    assert "scaled" in repr(module)


def test_explain() -> None:
    told = mgu.explain()
    assert f"the kernels for {fusedrnn._C.cpu_capability()}" in told
    assert "3 for each unit and step: n' f n" in told


def test_one_step() -> None:
    torch.manual_seed(0)
    for written in WRITTEN:
        layers = fusedrnn.Recurrent(written, 3, 4)
        cell = fusedrnn.RecurrentCell(written, 3, 4)
        cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layers.state_dict().items()})
        x = torch.randn(5, 3)
        _, final = layers(x[None])
        after = cell(x)
        for ours, theirs in zip(as_tuple(after), as_tuple(final), strict=True):
            torch.testing.assert_close(ours, theirs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("written", WRITTEN, ids=str)
def test_streaming(written: WrittenCell, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = fusedrnn.Recurrent(written, 5, 40, 2, dtype=dtype)
    x = torch.randn(7, 3, 5, dtype=dtype)
    stream = fusedrnn.Streaming(module, batch_size=3)
    with torch.no_grad():
        output, _ = module(x)
        streamed = torch.cat([stream(x[:3]), *map(stream, x[3:, None])])
    # Between calls, the states after h are rounded.
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(streamed, output, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("written", WRITTEN, ids=str)
def test_graphs(written: WrittenCell) -> None:
    """To compilers a layer is one op, whose argument is the program."""
    torch.manual_seed(0)
    module = fusedrnn.Recurrent(written, 5, 20, 2, bidirectional=True)
    x = torch.randn(4, 3, 5)
    expected = results_of(module, x, None)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(results_of(compiled, x, None), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(module, (x,)), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    texts = {node.args[4] for node in loaded.graph.nodes if "layer_forward" in str(node.target)}
    assert texts == {module.cell.spec}
    output, *_ = loaded.module()(x)
    torch.testing.assert_close(output, expected[0])


@pytest.mark.parametrize("written", WRITTEN, ids=str)
def test_higher_derivatives(written: WrittenCell) -> None:
    torch.manual_seed(0)
    module = fusedrnn.Recurrent(written, 2, 3, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x)
    values = dict(module.named_parameters())

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, values, (x,))[0].square().sum()

    batch = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, batch)
    for i, sample in enumerate(batch):
        alone = torch.func.grad(loss)(values, sample)
        for name, gradient in alone.items():
            torch.testing.assert_close(each[name][i], gradient)


def test_no_kernels_on_other_devices() -> None:
    """There, PyTorch's functions run a written cell step by step: here on the meta device."""
    module = fusedrnn.Recurrent(mgu, 3, 4, 2, bidirectional=True, device="meta")
    output, final = module(torch.randn(5, 2, 3, device="meta"))
    assert output.shape == (5, 2, 8) and final.shape == (4, 2, 4)


BAD_PROGRAMS = {
    "cell 1 a\n": "ends too early",
    "cell 2 a\ngates a\n": "version 2",
    "hello\nworld\n": 'no "cell"',
    mgu.program.replace("mul dr save1", "mul dr save9"): "no value yet",
    mgu.program.replace("sigmoid p1", "sigmoid p2"): "no value yet",
    mgu.program.replace("= sigmoid", "= squash"): "an operation squash",
    mgu.program.replace("save1 = ", "save7 = ", 1): "no value yet|cannot be written to",
    mgu.program.replace("r = fma", "t0 = fma"): "not all results",
    mgu.program.replace("late n", "late q"): "not declared",
    mgu.program.replace("joint f", "joint f n"): "more than once",
    mgu.program.replace("#1.0", "#one"): "a number one",
    mgu.program.replace("t0", "t900"): "number t?900|operand",
}


@pytest.mark.parametrize("text", BAD_PROGRAMS, ids=lambda text: BAD_PROGRAMS[text])
def test_bad_programs(text: str) -> None:
    """An op takes any text, and refuses those that are no program before it does anything."""
    x, weights = torch.randn(2, 1, 3), [torch.randn(8, 3), torch.randn(8, 4)]
    with pytest.raises(RuntimeError, match=BAD_PROGRAMS[text]):
        ops.layer_forward(x, None, None, weights, text, False, False, False, False)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="^cell: expected a cell that fusedrnn.cell made"):
        fusedrnn.Recurrent(torch.tanh, 3, 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^cell: expected a cell that fusedrnn.cell made"):
        fusedrnn.Recurrent("lstm", 3, 4)
    with pytest.raises(CellError):
        fusedrnn.cell(gates="a")(lambda x, u, h: h.mean())
    with pytest.raises(NotImplementedError, match="torch.jit.script cannot compile"):
        torch.jit.script(fusedrnn.Recurrent(mgu, 3, 4))
    module = fusedrnn.Recurrent(reset_before, 3, 4)
    with pytest.raises(RuntimeError):
        module(torch.randn(2, 1, 5))
    layer = layer_of(cell_of_written(mgu).spec, False, False, False)
    with pytest.raises(RuntimeError, match="w_ih: expected shape"):
        ops.forward(layer, Operands(torch.randn(2, 1, 3), None, (), [torch.randn(7, 3)] * 2), False)
