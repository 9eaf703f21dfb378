"""What acts on a recurrence from outside its cell: boundaries, dropouts, zoneout; and all states.

The ops are held to the reference on random layers, with each modifier alone and with all others.
The modules are held to what their arguments mean: parts run one by one, masks drawn by hand.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import MODULE_FACTS, MODULES
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import reference
from fusedrnn._engine import ops
from fusedrnn._engine.autograd import run_modified
from fusedrnn._engine.layer import Layer, Modifiers, Operands, flat, layer_of, names_of_flat, unflat
from fusedrnn._engine.sequences import layout_of_padded
from fusedrnn.cells import CELLS, W_HH, Cell

# ---- the ops -------------------------------------------------------------------------------------

KINDS = ("reset", "reset_states", "recurrent_factor", "keep", "all_states")


@dataclass
class Drawn:
    """A layer, all of it random, and the gradients of its results."""

    layer: Layer
    operands: Operands
    lengths: Tensor | None  # of a padded input, which the padded op takes

    def __str__(self) -> str:
        input, batch_sizes, hx, weights, m = self.operands
        return (
            f"{self.layer}, input {tuple(input.shape)}, H {weights[W_HH].size(1)}, batch sizes "
            f"{None if batch_sizes is None else batch_sizes.tolist()}, lengths {self.lengths}, "
            f"hx {bool(hx)}, reset {m.reset is not None}, "
            f"by {[tuple(state.shape) for state in m.reset_states]}, factor "
            f"{None if m.recurrent_factor is None else tuple(m.recurrent_factor.shape)}, keep "
            f"{[None if share is None else tuple(share.shape) for share in m.keep]}"
        )


def draw(
    seed: int,
    *,
    kinds: tuple[str, ...] = KINDS,
    cells: tuple[Cell, ...] = CELLS,
    padded: bool = False,
    large: bool = False,
) -> Drawn:
    """A random layer with some of the `kinds` of modifiers; with a single kind, always with it.

    If the cell has step inputs, they are of any strides, too.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    cell = rng.choice(cells)
    T, B, I = rng.randint(1, 7), rng.randint(1, 9), rng.randint(1, 6)  # noqa: E741
    H = rng.choice([1, 3, 8, 16, 17, 33])
    if large:
        T, B, H = rng.randint(5, 20), rng.randint(8, 40), rng.choice([64, 100])
    P = rng.choice([0, 0, 1, 5, 18]) if cell.projects else 0
    R, D, biases = P or H, rng.choice([1, 2]), rng.random() < 0.7
    _, *others = cell.states
    widths = [R, *[H] * len(others)]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def has(kind: str) -> bool:
        return kind in kinds and (len(kinds) == 1 or rng.random() < 0.5)

    def sizes() -> tuple[int, int, int]:
        return rng.choice([1, T]), rng.choice([1, D]), rng.choice([1, B])

    def share(width: int) -> Tensor | None:
        kind = rng.choice(["none", "mask", "part"])
        drawn = uniform(*sizes(), width)
        return {"none": None, "mask": (drawn < 0.5).double(), "part": drawn * 0.9}[kind]

    x, batch_sizes, lengths = normal(T, B, I), None, None
    if padded:
        lengths = torch.randint(0, T + 1, (B,), generator=generator)
    elif rng.random() < 0.4:
        alive = sorted([rng.randint(1, B) for _ in range(T)], reverse=True)
        batch_sizes, B = torch.tensor(alive), alive[0]
        x = normal(sum(alive), I)
    hx = [normal(D, B, width) for width in widths] if rng.random() < 0.7 else []
    scale = 0.5 / max(1, H / 8) ** 0.5
    weights = [
        normal(*shape) * scale
        for _ in range(D)
        for shape in cell.shapes(I, H, P, biases=biases).values()
    ]
    by_states = has("reset_states")
    reset = uniform(T, B) < 0.4 if by_states or has("reset") else None
    modifiers = Modifiers(
        reset,
        [normal(rng.choice([1, T]), D, B, width) for width in widths] if by_states else [],
        (uniform(*sizes(), R) < 0.6).double() * 1.7 if has("recurrent_factor") else None,
        [share(width) for width in widths] if has("keep") else [],
    )
    if cell.step_inputs:
        K, wide = len(cell.step_inputs), rng.random() < 0.5
        sizes_of_steps = *sizes(), K, H if wide else 1
        steps = normal(*sizes_of_steps).expand(T, D, B, K, H)
        modifiers = modifiers._replace(step_inputs=steps)
    layer = layer_of(cell.spec, biases, P > 0, D == 2)._replace(
        modified=True, all_states=has("all_states"), checkpoint=rng.randint(1, 8)
    )
    return Drawn(layer, Operands(x, batch_sizes, hx, weights, modifiers), lengths)


def numbers_of(
    drawn: Drawn, run: Callable[[Operands], Any], dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """All results of `run`, and the gradients of all operands that have one."""
    layer, (_, batch_sizes, *_), _ = drawn.layer, drawn.operands, drawn.lengths
    names = names_of_flat(layer)
    leaves: list[Tensor | None] = []
    for name, tensor in zip(names, flat(layer, drawn.operands), strict=True):
        if tensor is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype).clone()
            tensor.requires_grad_(not name.startswith(("recurrent", "keep")))
        leaves.append(tensor)
    results = run(unflat(layer, leaves, batch_sizes))
    numbers = {f"result {i}": result.detach() for i, result in enumerate(results)}
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(result.shape, generator=generator).to(result) for result in results]
    asked = [i for i, leaf in enumerate(leaves) if leaf is not None and leaf.requires_grad]
    pairs = [(r, grad) for r, grad in zip(results, grads, strict=True) if r.requires_grad]
    found = torch.autograd.grad(
        [result for result, _ in pairs], [leaves[i] for i in asked],
        [grad for _, grad in pairs], allow_unused=True,
    )  # fmt: skip
    for i, grad in zip(asked, found, strict=True):
        zeros = torch.zeros_like(leaves[i])  # type: ignore[arg-type]
        numbers[f"grad of {names[i]}, operand {i}"] = zeros if grad is None else grad
    return numbers


def ours(drawn: Drawn, checkpoint: bool = False) -> Callable[[Operands], Any]:
    layer = drawn.layer if checkpoint else drawn.layer._replace(checkpoint=0)

    def run(operands: Operands) -> list[Tensor]:
        output, hn, states = run_modified(layer, operands, drawn.lengths)
        return [output, *hn, *states]

    return run


def theirs(drawn: Drawn) -> Callable[[Operands], Any]:
    def run(operands: Operands) -> tuple[Tensor, ...]:
        if drawn.lengths is None:
            return reference.results(drawn.layer, operands)
        input, _, hx, weights, modifiers = operands
        layout = layout_of_padded(input, drawn.lengths)
        output, *states = reference.results(
            drawn.layer,
            Operands(
                layout.pack(input), layout.batch_sizes, layout.sort(hx), weights,
                layout.sort_modifiers(modifiers),
            ),
        )  # fmt: skip
        count = len(drawn.layer.cell.states)
        hn = layout.unsort(states[:count], hx)
        return layout.pad(output), *hn, *(layout.pad(state) for state in states[count:])

    return run


def compare(drawn: Drawn, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        assert found[name].shape == exact.shape, f"{drawn}: {name}"
        if not exact.numel():
            continue
        error, scale = (found[name] - exact).abs().max(), exact.abs().max().clamp(min=1e-2)
        assert error <= 1e-10 * scale, f"{drawn}: {name}: {error:.1e} of {scale:.1e}"


WAYS = ("plain", "checkpointed", "padded", "padded and checkpointed")


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("way", WAYS)
def test_random_layers(way: str, threads: int, thorough: bool) -> None:
    """2,000 of them in all with --thorough."""
    torch.set_num_threads(threads)
    for seed in range(170 if thorough else 25):
        seed += 1000 * (WAYS.index(way) + 10 * threads)
        drawn = draw(seed, padded="padded" in way, large=seed % 10 == 0)
        compare(
            drawn,
            numbers_of(drawn, ours(drawn, checkpoint="checkpointed" in way)),
            numbers_of(drawn, theirs(drawn)),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_on_random_layers(kind: str, device: torch.device, thorough: bool) -> None:
    for seed in range(40 if thorough else 6):
        drawn = draw(seed, kinds=(kind,))
        compare(drawn, numbers_of(drawn, ours(drawn)), numbers_of(drawn, theirs(drawn)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_random_layers_in_other_dtypes(
    dtype: torch.dtype, device: torch.device, thorough: bool
) -> None:
    for seed in range(60 if thorough else 12):
        check_in_dtype(draw(seed), dtype)


def check_in_dtype(drawn: Drawn, dtype: torch.dtype) -> None:
    """Our error is at most twice that of plain PyTorch in this dtype, and a floor."""
    # Everything rounded to the dtype first, so that all sides begin with the same numbers.
    rounded = unflat(
        drawn.layer,
        [
            t.to(dtype).double() if t is not None and t.is_floating_point() else t
            for t in flat(drawn.layer, drawn.operands)
        ],
        drawn.operands.batch_sizes,
    )
    drawn = Drawn(drawn.layer, rounded, None)
    exact = numbers_of(drawn, theirs(drawn))
    found = numbers_of(drawn, ours(drawn), dtype)
    plain = numbers_of(drawn, theirs(drawn), dtype)
    ulp = torch.finfo(dtype).eps
    for name, value in exact.items():
        if not value.numel():
            continue
        scale = float(value.abs().max())
        error, of_plain = (
            float((side[name].double() - value).abs().max()) for side in (found, plain)
        )
        allowed = 2 * of_plain + 16 * ulp * scale + 1e-30
        assert error <= allowed, f"{drawn}: {name}: {error:.1e}, plain {of_plain:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_dead_relu_that_keeps_its_state_gets_no_gradient(
    dtype: torch.dtype, device: torch.device
) -> None:
    """Its zero is mixed with the state before, rounded, and must be found again in backward."""
    B, H = 64, 64
    generator = torch.Generator().manual_seed(0)
    state, keep = (torch.rand(1, B, H, generator=generator).to(dtype) for _ in range(2))
    input = torch.full((1, B, 1), -1.0, dtype=dtype, requires_grad=True)
    weights = [torch.ones(H, 1, dtype=dtype), torch.zeros(H, H, dtype=dtype)]
    layer = layer_of("rnn_relu", False, False, False)._replace(modified=True)
    modifiers = Modifiers(None, [], None, [keep[None] * 0.9])
    output, _, _ = run_modified(layer, Operands(input, None, [state], weights, modifiers))
    assert output.any()
    (gradient,) = torch.autograd.grad(output.sum(), input)
    assert not gradient.any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["modified", "checkpointed", "padded"])
def test_opcheck(name: str, seed: int) -> None:
    drawn = draw(seed, padded=name == "padded")
    layer, operands = drawn.layer._replace(all_states=True), drawn.operands
    x, batch_sizes, hx, weights, m = operands
    if name == "padded":
        operands = operands._replace(batch_sizes=drawn.lengths)
    given = operands.all_tensors
    keep = {"modified": (True,), "checkpointed": (3,), "padded": (True, seed % 2 * 3)}[name]
    forward = getattr(torch.ops.fusedrnn, f"{name}_forward").default
    backward = getattr(torch.ops.fusedrnn, f"{name}_backward").default
    arguments = (*given, *layer.schema, *keep, True)
    results = opcheck(forward, arguments)
    assert set(results.values()) == {"SUCCESS"}
    output, states, reserve = forward(*arguments)
    grads = torch.randn_like(output), [torch.randn_like(state) for state in states]
    k = {"modified": (), "checkpointed": (3,), "padded": (seed % 2 * 3,)}[name]
    results = opcheck(backward, (*grads, *given, output, reserve, *layer.schema, *k, -1))
    assert set(results.values()) == {"SUCCESS"}


def test_wrong_calls_of_the_ops() -> None:
    drawn = draw(3, kinds=("reset_states",))
    layer, (x, batch_sizes, hx, weights, m) = drawn.layer, drawn.operands
    T, B = m.reset.shape
    width = m.reset_states[0].size(3)
    many = torch.zeros(T, layer.directions, B, width, dtype=x.dtype)
    for wrong, message in (
        ((m.reset.float(), None, None, None), "reset: expected bool"),
        ((m.reset[:, 1:], None, None, None), "reset: expected shape"),
        ((None, list(m.reset_states), None, None), "expected none without reset"),
        ((m.reset, [*m.reset_states, many], None, None), "expected . state"),
        ((m.reset, [state[..., 1:] for state in m.reset_states], None, None), "expected shape"),
        ((m.reset, [state[:, :, :1] for state in m.reset_states], None, None), "one for each"),
        ((None, None, many.float(), None), "recurrent_factor: expected input's dtype"),
        ((None, None, many[0], None), "recurrent_factor: expected shape"),
        ((None, None, None, [many] * 3), "keep: expected"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.modified_forward(
                x, batch_sizes, hx, weights, *wrong, None, *layer.schema, True, False
            )


# ---- resets --------------------------------------------------------------------------------------

T, B, I, H = 9, 4, 5, 7  # noqa: E741


def network(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(fusedrnn, name)(I, H, dtype=torch.float64, **options)


def x(**options: Any) -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64, **options)


def states_of(name: str, parts: int, *leading: int, **options: Any) -> list[Tensor]:
    count = len(MODULE_FACTS[name].states)
    return [
        torch.randn(*leading, parts, B, H, dtype=torch.float64, **options) for _ in range(count)
    ]


def as_hx(states: list[Tensor]) -> Any:
    return tuple(states) if len(states) > 1 else states[0]


def as_list(hx: Any) -> list[Tensor]:
    return [hx] if isinstance(hx, Tensor) else [*hx]


RESET = torch.tensor(  # of each sequence: none, some, first and last, all
    [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1],
     [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1]], dtype=torch.bool,
)  # fmt: skip


def alone(module: nn.Module, input: Tensor) -> Tensor:
    """The output if every part is run by itself: what TorchRL does with `is_init`."""
    output = []
    for b in range(B):
        first = [0, *(t for t in range(1, T) if RESET[t, b]), T]
        parts = [
            module(input[begin:end, b])[0] for begin, end in zip(first, first[1:], strict=False)
        ]
        output.append(torch.cat(parts))
    return torch.stack(output, 1)


def with_gradients(function: Callable[[Tensor], Tensor], module: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    input = x(requires_grad=True)
    output = function(input)
    weights = torch.randn(output.shape, dtype=output.dtype)
    grads = torch.autograd.grad((output * weights).sum(), [input, *module.parameters()])
    return [output.detach(), *grads]


def assert_parts_are_alone(function: Callable[[Tensor], Tensor], module: nn.Module) -> None:
    found, expected = (
        with_gradients(function, module),
        with_gradients(lambda input: alone(module, input), module),
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


DEEP = {"num_layers": 2, "bidirectional": True}


@pytest.mark.parametrize("options", [{}, DEEP, {**DEEP, "checkpoint": 2}], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_parts_are_alone(name: str, options: dict[str, Any], device: torch.device) -> None:
    module = network(name, **options)
    assert_parts_are_alone(lambda input: module(input, reset=RESET)[0], module)


def _crosses(module: nn.Module, input: Tensor) -> Tensor:
    """States are right, and gradients flow through the boundary: h + (0 - h).detach()."""
    output = module(input, reset=RESET)[0]
    return output + (module(input)[0] - module(input)[0].detach()) * 1e-3


def _only_one_layer(module: nn.Module, input: Tensor) -> Tensor:
    first, second = (network("GRU", bidirectional=True) for _ in range(2))
    second = fusedrnn.GRU(2 * H, H, bidirectional=True, dtype=torch.float64)
    weights = [*module.parameters()]
    for own, part in ((first, weights[:8]), (second, weights[8:])):
        own._flat_weights = part
        for n, weight in zip(own._flat_weights_names, part, strict=True):
            setattr(own, n, weight)
    return second(first(input, reset=RESET)[0])[0]


FAULTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "one step late": lambda module, input: module(input, reset=RESET.roll(1, 0))[0],
    "one step early": lambda module, input: module(input, reset=RESET.roll(-1, 0))[0],
    "a gradient crosses the boundary": _crosses,
    "in the wrong direction": lambda module, input: module(input.flip(0), reset=RESET.flip(0))[
        0
    ].flip(0),
    "in one layer only": _only_one_layer,
    "in another sequence": lambda module, input: module(input, reset=RESET.roll(1, 1))[0],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_reported(fault: str) -> None:
    module = network("GRU", **DEEP)
    with pytest.raises(AssertionError):
        assert_parts_are_alone(lambda input: FAULTS[fault](module, input), module)


@pytest.mark.parametrize("every", [False, True], ids=["one set", "for every step"])
@pytest.mark.parametrize("name", MODULES)
def test_states_that_are_put_in_place(name: str, every: bool) -> None:
    """Forward, of one direction: a part that begins at t has the states given for it."""
    module, input = network(name), x()
    hx = states_of(name, 1, requires_grad=True)
    by = states_of(name, 1, *[T] * every, requires_grad=True)
    output, hn = module(input, as_hx(hx), reset=RESET, reset_states=as_hx(by))
    expected, finals = [], []
    for b in range(B):
        first = [0, *(t for t in range(1, T) if RESET[t, b]), T]
        parts = []
        for begin, end in zip(first, first[1:], strict=False):
            given = [(s[begin] if every else s) for s in by] if RESET[begin, b] else hx
            y, final = module(input[begin:end, b], as_hx([s[:, b] for s in given]))
            parts.append(y)
        expected.append(torch.cat(parts))
        finals.append(as_list(final))
    torch.testing.assert_close(output, torch.stack(expected, 1))
    for i, state in enumerate(as_list(hn)):
        torch.testing.assert_close(state, torch.stack([final[i] for final in finals], 1))
    weights = torch.randn_like(output)
    leaves = [*hx, *by]
    found = torch.autograd.grad((output * weights).sum(), leaves)
    right = torch.autograd.grad((torch.stack(expected, 1) * weights).sum(), leaves)
    torch.testing.assert_close(found, right)
    assert (found[0][:, 3] == 0).all()  # whose first step is marked: it does not see hx


@pytest.mark.parametrize("name", MODULES)
def test_how_resets_may_be_given(name: str) -> None:
    module, input = network(name, **DEEP), x()
    first = network(name, batch_first=True, **DEEP)
    expected = module(input, reset=RESET)
    for reset in (RESET.to(torch.uint8), RESET.float(), RESET[..., None], RESET.long()):
        torch.testing.assert_close(module(input, reset=reset), expected, rtol=0, atol=0)
    by_batch = first(input.transpose(0, 1), reset=RESET.t())
    torch.testing.assert_close((by_batch[0].transpose(0, 1), by_batch[1]), expected)
    one = module(input[:, 1], reset=RESET[:, 1])
    torch.testing.assert_close(one[0], expected[0][:, 1])
    nothing = module(input, reset=torch.zeros_like(RESET))
    torch.testing.assert_close(nothing, module(input), rtol=0, atol=0)
    empty = module(input[:, :0], reset=RESET[:, :0])
    assert empty[0].shape == (T, 0, 2 * H)


@pytest.mark.parametrize("name", MODULES)
def test_sequences_of_other_kinds(name: str) -> None:
    lengths = torch.tensor([5, 9, 1, 7])
    module, input = network(name, **DEEP), x()
    by = as_hx(states_of(name, 4))
    options = {"reset": RESET, "reset_states": by}
    expected, states = module(input, lengths=lengths, **options)
    packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
    found, of_packed = module(packed, **options)
    torch.testing.assert_close((pad_packed_sequence(found)[0], of_packed), (expected, states))
    rows = torch.cat([input[:n, b] for b, n in enumerate(lengths)])
    reset = torch.cat([RESET[:n, b] for b, n in enumerate(lengths)])
    ends = torch.tensor([0, *lengths]).cumsum(0)
    joined, of_joined = module(rows, cu_seqlens=ends, reset=reset, reset_states=by)
    torch.testing.assert_close(joined, torch.cat([expected[:n, b] for b, n in enumerate(lengths)]))
    torch.testing.assert_close(of_joined, states)
    parts = [module(input[:n, b], reset=RESET[:n, b])[0] for b, n in enumerate(lengths)]
    without = module(input, lengths=lengths, reset=RESET)[0]
    for b, part in enumerate(parts):
        torch.testing.assert_close(without[: len(part), b], part)


@pytest.mark.parametrize("name", MODULES)
def test_in_a_graph(name: str) -> None:
    torch.compiler.reset()
    module = network(name, **DEEP)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    input, by = x(requires_grad=True), states_of(name, 4, requires_grad=True)
    for options in ({}, {"lengths": torch.tensor([5, 0, 1, 7])}):
        options |= {"reset": RESET, "reset_states": as_hx(by), "return_states": True}
        for run in (compiled, torch.export.export(module, (input,), options).module()):
            found, expected = run(input, **options), module(input, **options)
            torch.testing.assert_close(found, expected)
            leaves = [input, *by]
            grads = (
                torch.autograd.grad(y.square().sum() + h.square().sum(), leaves)
                for y, _, states in (found, expected)
                for *_, h in [as_list(states)]
            )
            torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", MODULES)
def test_transforms(name: str) -> None:
    module, input = network(name, recurrent_dropout=0.2, zoneout=0.3), x()
    module.eval()

    def loss(input: Tensor, reset: Tensor) -> Tensor:
        return module(input, reset=reset, return_states=True)[0].square().sum()

    leaf = input.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, RESET), leaf, create_graph=True)
    torch.testing.assert_close(torch.func.grad(loss)(input, RESET), expected)
    (second,) = torch.autograd.grad(expected.sum(), leaf)
    tangent = torch.func.jvp(lambda i: torch.func.grad(loss)(i, RESET), (input,),
                             (torch.ones_like(input),))[1]  # fmt: skip
    torch.testing.assert_close(tangent, second)
    several = torch.stack([RESET, RESET.roll(1, 0)])
    mapped = torch.vmap(loss, (None, 0))(input, several)
    torch.testing.assert_close(mapped, torch.stack([loss(input, reset) for reset in several]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    module = network("LSTM", proj_size=3).float()
    input, by = x().float(), (torch.randn(1, B, 3), torch.randn(1, B, H))
    with torch.autocast("cpu", dtype):
        output, (h, c), (hs, cs) = module(input, reset=RESET, reset_states=by, return_states=True)
        plain, (hp, cp) = module(input)
    assert output.dtype == plain.dtype == hs.dtype and h.dtype == hp.dtype
    assert c.dtype == cp.dtype == cs.dtype
    exact = module.double()(input.double(), reset=RESET, reset_states=[s.double() for s in by])
    torch.testing.assert_close(output.double(), exact[0], atol=0.05, rtol=0.1)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"reset": 1}, TypeError, r"reset: expected bool, .* of shape \(9, 4\), got int"),
        (
            {"reset": RESET[1:]},
            RuntimeError,
            r"of shape \(9, 4\), got torch.bool of shape \(8, 4\)",
        ),
        ({"reset": RESET * 2}, ValueError, "reset: expected 0 and 1, got 2"),
        ({"reset": RESET * torch.nan}, ValueError, "reset: expected 0 and 1, got nan"),
        ({"reset": RESET + 0j}, TypeError, "got torch.complex64"),
        ({"reset_states": RESET}, ValueError, "reset_states: expected None without reset"),
        ({"reset": RESET, "reset_states": x()}, RuntimeError, r"h of shape \(1, 4, 7\) or \(9, 1,"),
        (
            {"reset": RESET, "reset_states": torch.zeros(1, B, H)},
            RuntimeError,
            "expected the dtype",
        ),
        ({"cu_seqlens": [0, 9]}, ValueError, r"got one of shape \(9, 4, 5\)|int64 or int32"),
    ],
    ids=["type", "shape", "values", "nan", "complex", "alone", "states", "dtype", "list"],
)
def test_errors_of_calls(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises((error, TypeError) if "cu_seqlens" in options else error, match=message):
        network("GRU")(x(), **options)


# ---- all states ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, DEEP, {**DEEP, "checkpoint": 2}], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_all_states(name: str, options: dict[str, Any], device: torch.device) -> None:
    module, input = network(name, **options), x(requires_grad=True)
    parts = 4 if options else 1
    output, hn, states = module(input, return_states=True)
    torch.testing.assert_close((output, hn), module(input), rtol=0, atol=0)
    h, *others = as_list(states)
    assert h.shape == (parts, T, B, H)
    directions = 1 + bool(options)
    last = h[-directions:].permute(1, 2, 0, 3).flatten(2)
    torch.testing.assert_close(last, output, rtol=0, atol=0)
    for final, every in zip(as_list(hn), as_list(states), strict=True):
        forward = every[::directions, -1]
        torch.testing.assert_close(final[::directions], forward, rtol=0, atol=0)
        if directions == 2:
            torch.testing.assert_close(final[1::2], every[1::2, 0], rtol=0, atol=0)
    # A state after every step is the final state of the steps before, if there are no others.
    if not options:
        for t in range(1, T + 1):
            finals = as_list(module(input[:t])[1])
            for final, every in zip(finals, as_list(states), strict=True):
                torch.testing.assert_close(every[:, t - 1], final)
        leaves = [input, *module.parameters()]
        weights = [torch.randn_like(every) for every in as_list(states)]
        found = torch.autograd.grad(
            sum((w * s).sum() for w, s in zip(weights, as_list(states), strict=True)), leaves
        )
        total = sum(
            (w[:, t - 1] * final).sum()
            for t in range(1, T + 1)
            for w, final in zip(weights, as_list(module(input[:t])[1]), strict=True)
        )
        torch.testing.assert_close(found, torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("name", MODULES)
def test_all_states_of_sequences(name: str) -> None:
    lengths = torch.tensor([5, 9, 1, 7])
    module, input = network(name, batch_first=True, **DEEP), x().transpose(0, 1)
    _, _, states = module(input, lengths=lengths, return_states=True)
    packed = pack_padded_sequence(input, lengths, batch_first=True, enforce_sorted=False)
    _, _, of_packed = module(packed, return_states=True)
    if len(MODULE_FACTS[name].states) == 1:
        states, of_packed = (states,), (of_packed,)
    for every, rows in zip(states, of_packed, strict=True):
        assert every.shape == (4, B, T, H)
        padded, _ = pad_packed_sequence(rows, batch_first=True)
        torch.testing.assert_close(padded.permute(2, 0, 1, 3), every)


# ---- dropouts ------------------------------------------------------------------------------------

ALL = {
    "input_dropout": 0.3, "output_dropout": 0.2, "recurrent_dropout": 0.4, "zoneout": 0.1,
    "weight_dropout": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("kind", [*ALL, "all"])
@pytest.mark.parametrize("mask", ["sequence", "step"])
@pytest.mark.parametrize("name", MODULES)
def test_dropouts_follow_the_seed(name: str, mask: str, kind: str) -> None:
    options = ALL if kind == "all" else {kind: ALL[kind]}
    module = network(name, dropout_mask=mask, **options, **DEEP)
    plain = network(name, **DEEP)
    lengths = torch.tensor([5, 9, 1, 7])
    for given in ({}, {"lengths": lengths}):
        runs = []
        for seed, checkpoint in ((1, None), (1, None), (2, None), (1, 2)):
            module.checkpoint = checkpoint
            torch.manual_seed(seed)
            input = torch.ones(T, B, I, dtype=torch.float64, requires_grad=True)
            output, _ = module(input, **given)
            runs.append([output, *torch.autograd.grad(output.square().sum(),
                                                      [input, *module.parameters()])])  # fmt: skip
        first, again, other, checkpointed = runs
        torch.testing.assert_close(first, again, rtol=0, atol=0)
        torch.testing.assert_close(first, checkpointed)
        assert not torch.equal(first[0], other[0])
        module.eval()
        module.checkpoint = None
        found, expected = module(input, **given), plain(input, **given)
        if "zoneout" not in options:
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        else:
            assert not torch.allclose(found[0], expected[0])
        module.train()


@pytest.mark.parametrize("per_step", [False, True])
def test_masks_of_input_and_output(per_step: bool) -> None:
    """Seen through a network that passes what it gets."""
    torch.manual_seed(0)
    module = fusedrnn.RNN(
        64, 64, nonlinearity="relu", bias=False, input_dropout=0.25,
        dropout_mask="step" if per_step else "sequence",
    )  # fmt: skip
    with torch.no_grad():
        module.weight_ih_l0.copy_(torch.eye(64))
        module.weight_hh_l0.zero_()
        output, _ = module(torch.ones(50, 40, 64))
        module.input_dropout, module.output_dropout = 0.0, 0.25
        of_output, _ = module(torch.ones(50, 40, 64))
    for y in (output, of_output):
        assert set(y.unique().tolist()) == {0.0, y.max().item()}
        assert y.max().item() == pytest.approx(4 / 3)
        assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
        assert torch.equal(y[0], y[1]) is not per_step
        assert not torch.equal(y[:, 0], y[:, 1])


@pytest.mark.parametrize("name", MODULES)
def test_recurrent_dropout_masks_what_the_weights_multiply(name: str) -> None:
    """In a run that begins with h of ones: W_hh of ones tells the mask by its sums."""
    module = network(name, recurrent_dropout=0.5).train()
    input, hx = x()[:1], [torch.ones_like(state) for state in states_of(name, 1)]
    torch.manual_seed(3)
    output, _ = module(input, as_hx(hx))
    torch.manual_seed(3)
    torch_seed = torch.randint(-(1 << 63), (1 << 63) - 1, (1,))
    factor = ops.random_mask(
        torch_seed, torch.tensor([0.0, 2.0], dtype=torch.float64), [1, 1, B, H], 0.5
    )
    facts = MODULE_FACTS[name]
    layer = layer_of(facts.spec, True, False, False)._replace(modified=True)
    expected, *_ = reference.results(
        layer,
        Operands(input, None, hx, [*module.parameters()], Modifiers(recurrent_factor=factor)),
    )
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("name", MODULES)
def test_zoneout(name: str) -> None:
    """In training a unit keeps its state or takes the new one; else both, as expected."""
    module, input = network(name, zoneout=0.4), x()
    hx = states_of(name, 1)
    plain = as_list(network(name)(input[:1], as_hx(hx))[1])
    found = as_list(module(input[:1], as_hx(hx))[1])
    kept = total = 0
    for old, new, state in zip(hx, plain, found, strict=True):
        is_old, is_new = state == old, torch.isclose(state, new, rtol=1e-12, atol=0)
        assert (is_old | is_new).all()
        kept, total = kept + int(is_old.sum()), total + state.numel()
    assert 0.1 < kept / total < 0.7
    expected = as_list(module.eval()(input[:1], as_hx(hx))[1])
    for old, new, state in zip(hx, plain, expected, strict=True):
        torch.testing.assert_close(state, 0.4 * old + 0.6 * new)
    if len(hx) > 1:
        one = network(name, zoneout=(0.0, 0.9)).eval()
        h, c = as_list(one(input[:1], as_hx(hx))[1])
        torch.testing.assert_close(h, plain[0])
        torch.testing.assert_close(c, 0.9 * hx[1] + 0.1 * plain[1])


def test_weight_dropout() -> None:
    module = network("LSTM", weight_dropout=0.5)
    torch.manual_seed(0)
    output, _ = module(x())
    torch.manual_seed(0)
    seed = torch.randint(-(1 << 63), (1 << 63) - 1, (1,))
    mask = ops.random_mask(seed, torch.tensor([0.0, 2.0], dtype=torch.float64), [4 * H, H], 0.5)
    torch.manual_seed(0)
    torch.randint(-(1 << 63), (1 << 63) - 1, (1,))
    input = x()  # drawn before the mask, above
    plain = network("LSTM")
    with torch.no_grad():
        plain.weight_hh_l0.mul_(mask)
    del input, output
    torch.manual_seed(5)
    given = x()
    torch.manual_seed(0)
    found, _ = module(given)
    torch.testing.assert_close(found, plain(given)[0])


def test_random_masks() -> None:
    seed, values = torch.tensor([5]), torch.tensor([3.0, -1.0])
    mask = ops.random_mask(seed, values, [1000, 1001], 0.3)
    assert (mask == 3).double().mean().item() == pytest.approx(0.3, abs=2e-3)
    assert set(mask.unique().tolist()) == {3.0, -1.0}
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        other = ops.random_mask(seed, values.to(dtype), [1000, 1001], 0.3)
        assert other.dtype == dtype and torch.equal(other.float(), mask)
    torch.set_num_threads(1)
    assert torch.equal(ops.random_mask(seed, values, [1000, 1001], 0.3), mask)
    assert not torch.equal(ops.random_mask(seed + 1, values, [1000, 1001], 0.3), mask)
    hits = (mask == 3).double().flatten()
    for lag in (1, 2, 3, 1001):
        both = torch.corrcoef(torch.stack([hits[lag:], hits[:-lag]]))[0, 1]
        assert abs(both.item()) < 5e-3
    assert (ops.random_mask(seed, values, [9], 0.0) == -1).all()
    assert (ops.random_mask(seed, values, [9], 1.0) == 3).all()
    assert ops.random_mask(seed, values, [0, 3], 0.5).shape == (0, 3)
    for wrong in (
        (seed.float(), values, [3], 0.5), (seed, values[:1], [3], 0.5), (seed, values, [-1], 0.5),
        (seed, values.long(), [3], 0.5), (seed, values, [3], 1.5), (seed, values, [3], torch.nan),
        (seed, values, [1 << 40, 1 << 40], 0.5),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="expected"):
            ops.random_mask(*wrong)
    assert set(opcheck(ops.random_mask, (seed, values, [3, 5], 0.5)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", MODULES)
def test_dropouts_in_a_graph(name: str) -> None:
    torch.compiler.reset()
    module = network(name, **ALL, **DEEP)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for options in ({}, {"lengths": torch.tensor([5, 0, 1, 7])}):
        input = x(requires_grad=True)
        compiled(input, **options)[0].sum().backward()
        assert input.grad is not None and input.grad.isfinite().all()


@pytest.mark.parametrize("name", MODULES)
def test_attributes(name: str) -> None:
    module = network(name)
    assert "dropout" not in repr(module).replace(name, "")
    module.recurrent_dropout, module.dropout_mask = 0.5, "step"
    assert "recurrent_dropout=0.5, dropout_mask='step'" in repr(module)
    torch.manual_seed(0)
    assert not torch.equal(module(x())[0], network(name)(x())[0])
    module.recurrent_dropout = 0
    input = x()
    torch.testing.assert_close(module(input), network(name)(input), rtol=0, atol=0)
    replaced = fusedrnn.replace(nn.Sequential(nn.GRU(I, H))).model[0]
    replaced.zoneout = 0.2
    assert "zoneout=0.2" in repr(replaced)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"input_dropout": 1.0}, ValueError, "input_dropout: expected a number from 0 to below 1"),
        ({"output_dropout": -0.1}, ValueError, "output_dropout: .* got -0.1"),
        ({"recurrent_dropout": "0.5"}, TypeError, "recurrent_dropout: .* of str"),
        ({"weight_dropout": True}, TypeError, "weight_dropout: .* of bool"),
        ({"zoneout": (0.1, 0.2, 0.3)}, ValueError, "zoneout: expected a number, or one for each"),
        ({"zoneout": float("nan")}, ValueError, "zoneout: .* got nan"),
        ({"dropout_mask": "batch"}, ValueError, "dropout_mask: expected 'sequence' or 'step'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MODULES)
def test_errors_of_arguments(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        network(name, **options)
    module = network(name)
    ((argument, value),) = options.items()
    before = getattr(module, argument)
    with pytest.raises(error, match=message):
        setattr(module, argument, value)
    assert getattr(module, argument) == before
