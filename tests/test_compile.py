"""Modules under torch.compile, torch.export and AOTInductor: whole graphs and the same numbers.

Most tests stop at "aot_eager", which traces and splits a graph as Inductor gets it, and calls our
ops as Inductor's code does; a few go all the way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MODULES
from processes import in_a_process
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn
from fusedrnn import functional

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": dict(num_layers=2, bidirectional=True, batch_first=True),
    "checkpoint": dict(num_layers=2, bidirectional=True, checkpoint=3),
    "no bias": dict(bias=False),
    "projected": dict(proj_size=4, bidirectional=True),
}
EACH = [("LSTM", variant) for variant in VARIANTS]
EACH += [(name, "plain" if name == "RNN" else "deep") for name in MODULES if name != "LSTM"]


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


class Model(nn.Module):
    """A network between what models have around it: [.., 5] and, maybe, lengths -> [.., 3]."""

    def __init__(self, name: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(fusedrnn, name)(5, 6, **options)
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, states = self.rnn(x, lengths=lengths)
        return self.head(output), states[0]


def model(name: str, x: Tensor, **options: Any) -> Model:
    torch.manual_seed(0)
    made = Model(name, **options)
    made(x)  # the head learns its size
    return made


def trained(run: Callable[..., Any], made: nn.Module, x: Tensor, *rest: Any) -> list[Tensor]:
    """Results and all gradients of a call of `run`, which computes what `made` does."""
    made.zero_grad()
    leaf = x.clone().requires_grad_()
    results = run(leaf, *rest)
    sum(result.square().sum() for result in results).backward()
    assert leaf.grad is not None
    grads = [parameter.grad for parameter in made.parameters()]
    return [*(r.detach() for r in results), leaf.grad, *(g.clone() for g in grads if g is not None)]


def shape(steps: int, batch: int, options: dict[str, Any]) -> tuple[int, int, int]:
    return (batch, steps, 5) if options.get("batch_first") else (steps, batch, 5)


@pytest.mark.parametrize("with_lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("name, variant", EACH)
def test_one_graph_for_all_sizes(name: str, variant: str, with_lengths: bool) -> None:
    options = VARIANTS[variant]
    made = model(name, torch.randn(shape(4, 3, options)), **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(made, fullgraph=True, backend=counter)
    frames = []
    for steps, batch in ((4, 3), (7, 3), (9, 5), (12, 2), (6, 6)):
        x = torch.randn(shape(steps, batch, options))
        lengths = (torch.randint(1, steps + 1, (batch,)),) if with_lengths else ()
        torch.testing.assert_close(
            trained(compiled, made, x, *lengths), trained(made, made, x, *lengths)
        )
        frames.append(counter.frame_count)
    # As given; any number of steps; any batch, too. Then no more.
    assert frames[2:] == [frames[2]] * 3 and frames[2] <= 3, frames


def test_sizes_0_and_1_compile_again() -> None:
    """As docs/compile.md says; Dynamo takes these sizes for constants."""
    made = model("GRU", torch.randn(4, 3, 5))
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(made, fullgraph=True, backend=counter)
    frames = []
    with torch.no_grad():
        for steps, batch in ((4, 3), (7, 5), (9, 6), (7, 1), (1, 5), (1, 1), (4, 0)):
            before = counter.frame_count
            for more in (0, 1):  # the second time with another size, of those that are not 0 or 1
                x = torch.randn(steps + more * (steps > 1), batch + more * (batch > 1), 5)
                torch.testing.assert_close(compiled(x), made(x))
            frames.append(counter.frame_count - before)
    assert frames[2:] == [0, 1, 1, 1, 1], frames


def test_inference_and_training_are_graphs_of_their_own() -> None:
    made = model("GRU", torch.randn(4, 3, 5))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(made, fullgraph=True, backend=counter)
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), made(x))
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), made(x))
    torch.testing.assert_close(trained(compiled, made, x), trained(made, made, x))
    assert not any(  # nothing kept for backward where there is none
        node.target is torch.ops.fusedrnn.layer_forward.default and node.args[8]
        for node in counter.graphs[0].graph.nodes
    )


@pytest.mark.parametrize(
    "mode", ["default", pytest.param("reduce-overhead", marks=pytest.mark.thorough)]
)  # on a CPU the second is the first
def test_inductor(mode: str) -> None:
    made = model("LSTM", torch.randn(3, 4, 5), **VARIANTS["deep"])
    compiled = torch.compile(made, fullgraph=True, mode=mode)
    for steps, batch in ((4, 3), (7, 5)):
        x, lengths = torch.randn(batch, steps, 5), torch.randint(1, steps + 1, (batch,))
        torch.testing.assert_close(trained(compiled, made, x), trained(made, made, x))
        torch.testing.assert_close(
            trained(compiled, made, x, lengths), trained(made, made, x, lengths)
        )


@pytest.mark.cuda
@pytest.mark.skipif(
    not (torch.cuda.is_available() and fusedrnn.build_info()["cuda"]), reason="no GPU"
)
def test_cuda_graphs() -> None:
    made = model("LSTM", torch.randn(3, 4, 5), **VARIANTS["deep"]).cuda()
    compiled = torch.compile(made, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # the first calls warm up and record
        x, lengths = torch.randn(3, 4, 5, device="cuda"), torch.tensor([4, 1, 2], device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(trained(compiled, made, x), trained(made, made, x))
        torch.testing.assert_close(
            trained(compiled, made, x, lengths), trained(made, made, x, lengths)
        )


@pytest.mark.parametrize("name, enforce_sorted", [("LSTM", True), ("LSTM", False), ("GRU", False)])
def test_packed_outside_of_the_graph(name: str, enforce_sorted: bool) -> None:
    torch.manual_seed(0)
    module = getattr(fusedrnn, name)(5, 6, num_layers=2, bidirectional=True)
    head = nn.Linear(12, 3)

    def run(packed: PackedSequence) -> tuple[Tensor, Tensor]:
        output, states = module(packed)
        return head(output.data), states[0]

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for steps, batch in ((4, 3), (7, 3), (9, 5), (8, 6)):
        lengths = torch.arange(steps, steps - batch, -1).clamp(1)
        if not enforce_sorted:
            lengths = lengths.roll(1)
        packed = pack_padded_sequence(
            torch.randn(steps, batch, 5), lengths, enforce_sorted=enforce_sorted
        )
        torch.testing.assert_close(
            trained(lambda data, p=packed: compiled(p._replace(data=data)), module, packed.data),
            trained(lambda data, p=packed: run(p._replace(data=data)), module, packed.data),
        )
    assert counter.frame_count <= 4


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(name: str) -> None:
    torch.manual_seed(0)
    cell = getattr(fusedrnn, name)(5, 6)

    def walk(x: Tensor) -> tuple[Tensor, ...]:
        state = cell(x[0])
        for t in range(1, 3):
            state = cell(x[t], state)
        return state if isinstance(state, tuple) else (state,)

    compiled = torch.compile(walk, fullgraph=True, backend="aot_eager")
    for batch in (2, 4, 7):
        x = torch.randn(3, batch, 5)
        torch.testing.assert_close(trained(compiled, cell, x), trained(walk, cell, x))


def test_initial_states_and_functional() -> None:
    torch.manual_seed(0)
    module = fusedrnn.LSTM(5, 6, num_layers=2)
    weights = module._flat_weights

    def run(x: Tensor, h: Tensor, c: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        output, states = functional.lstm(x, (h, c), weights, num_layers=2, lengths=lengths)
        return output, *states

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for batch in (2, 4, 7):
        given = torch.randn(2, batch, 6), torch.randn(2, batch, 6), torch.full((batch,), 2)
        x = torch.randn(3, batch, 5)
        torch.testing.assert_close(
            trained(compiled, module, x, *given), trained(run, module, x, *given)
        )


@pytest.mark.parametrize("name", MODULES)
def test_autocast_inside_and_outside(name: str) -> None:
    made = model(name, torch.randn(4, 3, 5))

    def inside(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return made(x)

    x = torch.randn(4, 3, 5)
    expected = trained(inside, made, x)
    compiled = torch.compile(inside, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(trained(compiled, made, x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(trained(compiled, made, x), expected)


def test_dropout_between_layers() -> None:
    module = fusedrnn.GRU(5, 64, num_layers=2, dropout=0.5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5)
    first, second = compiled(x)[0], compiled(x)[0]
    assert not torch.equal(first, second)
    module.eval()
    torch.testing.assert_close(compiled(x), module(x))


def test_transforms_inside_of_a_graph() -> None:
    made = fusedrnn.GRU(5, 6)

    def per_sample(many: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda x: made(x)[0].square().sum()))(many)

    many = torch.randn(2, 4, 3, 5)
    compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(many), per_sample(many))
    lengths = torch.tensor([1, 4, 2])
    with pytest.raises(Exception, match="or call the transform outside of torch.compile"):
        torch.compile(
            torch.func.grad(lambda x: made(x, lengths=lengths)[0].sum()),
            fullgraph=True, backend="aot_eager",
        )(many[0])  # fmt: skip


@pytest.mark.parametrize("lengths", [[1, 2, 9], [5, 1, 2], [3, -1, 2]], ids=str)
def test_wrong_lengths_in_a_graph(lengths: list[int]) -> None:
    module = fusedrnn.LSTM(5, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="lengths: expected values from 0 to 4"):
        compiled(torch.randn(4, 3, 5), lengths=torch.tensor(lengths))


def test_bad_input_in_a_graph_says_what_is_wrong() -> None:
    module = fusedrnn.LSTM(5, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="input.size.* must be equal to input_size. Expected 5"):
        compiled(torch.randn(4, 3, 7))
    with pytest.raises(Exception, match="Expected hidden.0. size"):
        compiled(torch.randn(4, 3, 5), (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6)))


def test_streaming_is_no_part_of_a_graph() -> None:
    stream = fusedrnn.Streaming(fusedrnn.GRU(5, 6))
    x = torch.randn(1, 5)
    with pytest.raises(Exception, match="call it outside of torch.compile"):
        torch.compile(stream, fullgraph=True, backend="aot_eager")(x)
    first = torch.compile(stream, backend="aot_eager")(x)  # goes around it
    stream.reset()
    torch.testing.assert_close(first, stream(x))


BATCH, STEPS = torch.export.Dim("batch", min=2), torch.export.Dim("steps", min=2)


@pytest.mark.parametrize("with_lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize(
    "name, strict", [("LSTM", False), ("LSTM", True), ("GRU", False), ("RNN", True)]
)
def test_export(name: str, strict: bool, with_lengths: bool, tmp_path: Path) -> None:
    x = torch.randn(3, 4, 5)
    made = model(name, x, **VARIANTS["deep"]).eval()
    given = (x, torch.tensor([4, 1, 2])) if with_lengths else (x,)
    sizes = {"x": {0: BATCH, 1: STEPS}} | ({"lengths": {0: BATCH}} if with_lengths else {})
    program = torch.export.export(made, given, dynamic_shapes=sizes, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    for batch, steps in ((7, 9), (2, 30)):
        other = (torch.randn(batch, steps, 5), torch.randint(1, steps + 1, (batch,)))
        other = other[: len(given)]
        torch.testing.assert_close(program.module()(*other), made(*other))


@pytest.mark.parametrize("with_lengths", [False, True], ids=["", "lengths"])
def test_an_exported_model_can_be_trained(with_lengths: bool) -> None:
    x = torch.randn(3, 4, 5)
    made = model("LSTM", x, batch_first=True, checkpoint=3)
    given = (x, torch.tensor([4, 1, 2])) if with_lengths else (x,)
    exported = torch.export.export(made, given).module()
    torch.testing.assert_close(trained(exported, exported, *given), trained(made, made, *given))


LOADS_A_PACKAGE = """
    import os, torch, fusedrnn
    os.chdir(os.environ["FOLDER"])
    model = torch._inductor.aoti_load_package("model.pt2")
    torch.save([model(*arguments) for arguments in torch.load("given.pt")], "found.pt")
"""


@pytest.mark.thorough  # g++ compiles torch's headers for most of a minute
def test_aot_inductor(tmp_path: Path) -> None:
    """Compiled ahead of time, packaged, and loaded by another process."""
    x, lengths = torch.randn(3, 4, 5), torch.tensor([4, 1, 2])
    made = model("LSTM", x, **VARIANTS["deep"]).eval()
    with torch.no_grad():
        program = torch.export.export(
            made, (x, lengths), dynamic_shapes={"x": {0: BATCH, 1: STEPS}, "lengths": {0: BATCH}}
        )
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        given = [(torch.randn(b, t, 5), torch.randint(1, t + 1, (b,))) for b, t in ((2, 3), (9, 7))]
        torch.save(given, tmp_path / "given.pt")
        in_a_process(LOADS_A_PACKAGE, FOLDER=str(tmp_path))
        for arguments, found in zip(given, torch.load(tmp_path / "found.pt"), strict=True):
            torch.testing.assert_close(tuple(found), made(*arguments))
