"""Step inputs of written cells: values that a cell reads at each step beside the input.

The ops are held to the reference on random layers, with all modifiers; the modules to the cells'
functions, run step by step for each layer and direction.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_modifiers import compare as compare_layers
from test_modifiers import compare_in, draw, numbers_of, ours, theirs
from torch import Tensor
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn._engine import ops
from fusedrnn._engine.layer import Modifiers
from fusedrnn._engine.step_inputs import placed_step_inputs, step_inputs_of_layer
from fusedrnn.cells import WrittenCell, cell_of_written

sigmoid, tanh = torch.sigmoid, torch.tanh


@fusedrnn.cell(gates="n", weights="tau", step_inputs="dt")
def leaky(x, u, w, e, h):  # type: ignore[no-untyped-def]
    """One state, which backward reads."""
    return h + torch.sigmoid(e.dt) * w.tau * (tanh(x.n + u.n) - h)


@fusedrnn.cell(gates="a b t", states="h c", step_inputs="rate mask gain")
def gated(x, u, e, h, c):  # type: ignore[no-untyped-def]
    """Three step inputs, of which one has no gradient; its h may be projected."""
    c = torch.where(e.mask > 0, c * tanh(e.rate), c) + tanh(x.t)
    return tanh(x.a + u.a + c) * sigmoid(u.b) * e.gain, c


@fusedrnn.cell(gates="r n", step_inputs="d s")
def staged(x, u, e, h):  # type: ignore[no-untyped-def]
    """Two products in a step, and step inputs before and after the second."""
    r = sigmoid(x.r + u.r + e.d)
    return torch.lerp(h, tanh(x.n + e.s * u.n(r * h * sigmoid(e.d))), sigmoid(e.s))


CELLS = (leaky, gated, staged)
FACTS = (*map(cell_of_written, CELLS), cell_of_written(gated, projected=True))


# ---- the ops -------------------------------------------------------------------------------------

WAYS = ("plain", "checkpointed", "padded", "padded and checkpointed")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_random_layers(way: str, threads: int, thorough: bool) -> None:
    torch.set_num_threads(threads)
    for seed in range(150 if thorough else 16):
        drawn = draw(
            seed + 1000 * threads, cells=FACTS, padded="padded" in way, large=seed % 8 == 0
        )
        found = numbers_of(drawn, ours(drawn, checkpoint="checkpointed" in way))
        assert any("step_inputs" in name for name in found)
        compare_layers(drawn, found, numbers_of(drawn, theirs(drawn)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_random_layers_in_other_dtypes(dtype: torch.dtype, thorough: bool) -> None:
    for seed in range(60 if thorough else 8):
        compare_in(dtype, draw(seed, cells=FACTS))


@pytest.mark.parametrize("name", ["modified", "checkpointed", "padded"])
@pytest.mark.parametrize("seed", range(2))
def test_opcheck(name: str, seed: int) -> None:
    drawn = draw(seed, cells=FACTS, padded=name == "padded")
    layer, operands = drawn.layer._replace(all_states=True), drawn.operands
    if name == "padded":
        operands = operands._replace(batch_sizes=drawn.lengths)
    operands.input.requires_grad_()
    steps = operands.modifiers.step_inputs
    assert steps is not None
    operands = operands._replace(
        modifiers=operands.modifiers._replace(step_inputs=steps.clone().requires_grad_())
    )
    keep = {"modified": (True,), "checkpointed": (3,), "padded": (True, seed % 2 * 3)}[name]
    forward = getattr(torch.ops.fusedrnn, f"{name}_forward").default
    backward = getattr(torch.ops.fusedrnn, f"{name}_backward").default
    arguments = (*operands.all_tensors, *layer.schema, *keep, True)
    assert set(opcheck(forward, arguments).values()) == {"SUCCESS"}
    with torch.no_grad():
        output, states, reserve = forward(*arguments)
    grads = torch.randn_like(output), [torch.randn_like(state) for state in states]
    k = {"modified": (), "checkpointed": (3,), "padded": (seed % 2 * 3,)}[name]
    operands.input.requires_grad_(False)
    operands = operands._replace(modifiers=operands.modifiers._replace(step_inputs=steps))
    given = (*grads, *operands.all_tensors, output, reserve, *layer.schema, *k, -1)
    assert set(opcheck(backward, given).values()) == {"SUCCESS"}


def test_gradients_that_are_not_asked_for() -> None:
    drawn = draw(0, cells=FACTS[:1])
    layer, operands = drawn.layer._replace(all_states=False), drawn.operands
    output, states, reserve = ops.forward(layer, operands, save=True)
    *_, of_steps = ops.backward(layer, operands, (output, *states), output, reserve, 1)
    assert of_steps.shape == (0,)


def test_wrong_calls_of_the_ops() -> None:
    facts = cell_of_written(leaky)
    weights = [torch.randn(shape) for shape in facts.shapes(3, 4).values()]
    x, steps = torch.randn(2, 5, 3), torch.randn(2, 1, 5, 1, 4)
    layer = facts.spec, True, False, False
    none = (None,) * 4

    def forward(*step_inputs: Any) -> None:
        ops.modified_forward(x, None, None, weights, *none, *step_inputs, *layer, True, False)

    forward(steps)
    for wrong, message in (
        (steps.double(), "step_inputs: expected input's dtype float32, got float64"),
        (steps[:1], r"step_inputs: expected shape \[2, 1, 5, 1, 4\], got \[1, 1, 5, 1, 4\]"),
        (steps[..., :3], "step_inputs: expected shape"),
        (None, "step_inputs: the cell leaky has 1, got none"),
    ):
        with pytest.raises(RuntimeError, match=message):
            forward(wrong)
    with pytest.raises(RuntimeError, match="step_inputs: the cell leaky has 1, got none"):
        ops.layer_forward(x, None, None, weights, *layer, True)
    panels = ops.make_panels(weights, *layer)
    state = torch.zeros(1, 5, 4)
    with pytest.raises(RuntimeError, match="step_inputs: the cell leaky has 1, got none"):
        ops.panels_forward(x, panels, [state])
    with pytest.raises(RuntimeError, match="step_inputs: expected shape"):
        ops.panels_forward(x, panels, [state], False, steps)
    assert not state.any()
    weights = [torch.randn(shape) for shape in ((16, 3), (16, 4), (16,), (16,))]
    with pytest.raises(RuntimeError, match="step_inputs: the cell lstm has 0, got some"):
        ops.modified_forward(
            x, None, None, weights, *none, steps, "lstm", True, False, False, True, False
        )


BAD_PROGRAMS = {
    leaky.program.replace("step_inputs dt", "step_inputs"): "no value yet",
    leaky.program.replace(" e0", " e1"): "no value yet",
    leaky.program.replace("de0 = ", "de1 = "): "cannot be written to",
    leaky.program.replace("de0 = ", "t63 = "): "too few gradients",
    leaky.program.replace("step_inputs dt", "step_inputs" + 9 * " a"): "9 words instead of 0 to 4",
}


@pytest.mark.parametrize("text", BAD_PROGRAMS, ids=lambda text: BAD_PROGRAMS[text])
def test_bad_programs(text: str) -> None:
    x, weights = torch.randn(2, 1, 3), [torch.randn(4, 3), torch.randn(4, 4), torch.randn(1, 4)]
    with pytest.raises(RuntimeError, match=BAD_PROGRAMS[text]):
        ops.layer_forward(x, None, None, weights, text, False, False, False, False)


# ---- modules -------------------------------------------------------------------------------------

T, B, I, H = 6, 4, 3, 5  # noqa: E741


def network(written: WrittenCell = gated, layers: int = 2, **options: Any) -> fusedrnn.Recurrent:
    torch.manual_seed(0)
    options = {"bidirectional": True, "dtype": torch.float64, **options}
    return fusedrnn.Recurrent(written, I, H, layers, **options)


def steps_of(written: WrittenCell, *shape: int, grad: bool = False) -> dict[str, Tensor]:
    return {
        name: torch.randn(shape, dtype=torch.float64).requires_grad_(grad)
        for name in written.step_inputs
    }


def by_hand(module: fusedrnn.Recurrent, x: Tensor, steps: dict[str, Tensor]) -> Tensor:
    """The output [T, B, D*H]: a loop over layers, directions and steps; step inputs by part."""
    directions = 1 + module.bidirectional
    cell = module.cell
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            part = layer * directions + direction
            one = fusedrnn.RecurrentCell(cell.spec, x.size(2), H, dtype=x.dtype)
            suffix = f"_l{layer}{'_reverse' * direction}"
            values = {name: getattr(module, name + suffix) for name, _ in one.named_parameters()}
            states, found = None, []
            for t in reversed(range(T)) if direction else range(T):
                e = {
                    name: values[part, t] if values.dim() == 4 else values[t]
                    for name, values in steps.items()
                }
                states = torch.func.functional_call(one, values, (x[t], states), {"step_inputs": e})
                found.append(states[0] if isinstance(states, tuple) else states)
            outputs.append(torch.stack(found[::-1] if direction else found))
        x = torch.cat(outputs, dim=-1)
    return x


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def gradients(result: Tensor, of: dict[str, Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    weighted = result * torch.randn(result.shape, generator=generator, dtype=result.dtype)
    found = torch.autograd.grad(weighted.sum(), [*of.values()], allow_unused=True)
    zeros = map(torch.zeros_like, of.values())
    return [z if grad is None else grad for grad, z in zip(found, zeros, strict=True)]


@pytest.mark.parametrize("written", CELLS, ids=str)
@pytest.mark.parametrize("shape", [(T, B, H), (T, B, 1), (4, T, B, H), (4, T, B, 1)], ids=str)
def test_layouts(written: WrittenCell, shape: tuple[int, ...]) -> None:
    """For all parts or each of them, for all units or each of them."""
    module, x = network(written), torch.randn(T, B, I, dtype=torch.float64)
    steps = steps_of(written, *shape, grad=True)
    output, hn = module(x, step_inputs=steps)
    expected = by_hand(module, x, steps)
    close(output, expected)
    close(gradients(output, steps), gradients(expected, steps))
    first = network(written, batch_first=True)
    turned = {name: e.transpose(-3, -2) for name, e in steps.items()}
    close(first(x.transpose(0, 1), step_inputs=turned)[0].transpose(0, 1), output)
    one = {name: e[..., 1, :] for name, e in steps.items()}
    close(module(x[:, 1], step_inputs=one)[0], output[:, 1])
    # Both need gradients or neither: the same numbers.
    with torch.no_grad():
        close(module(x, step_inputs=steps)[0], output)


def test_mixed_layouts() -> None:
    module, x = network(), torch.randn(T, B, I, dtype=torch.float64)
    shapes = {"rate": (T, B, 1), "mask": (4, T, B, H), "gain": (T, B, H)}
    steps = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    close(module(x, step_inputs=steps)[0], by_hand(module, x, steps))


def test_layers_of_several_sizes() -> None:
    """A value for all units, or a tensor for each layer."""
    torch.manual_seed(0)
    module = fusedrnn.Recurrent(leaky, I, [7, 5], bidirectional=True, dtype=torch.float64)
    x, dt = torch.randn(T, B, I).double(), torch.randn(T, B, 1).double()
    output, _ = module(x, step_inputs={"dt": dt})
    wide = [dt.expand(T, B, 7), dt.expand(2, T, B, 5)]
    close(module(x, step_inputs={"dt": wide})[0], output)
    close(module(x, step_inputs={"dt": (dt, dt)})[0], output)
    both = [torch.randn(2, T, B, size).double() for size in (7, 5)]
    first, second = (
        fusedrnn.Recurrent(leaky, size, hidden, bidirectional=True, dtype=torch.float64)
        for size, hidden in ((I, 7), (14, 5))
    )
    own = module.state_dict()
    for i, layer in enumerate((first, second)):
        named = {k[:-2] if k.endswith("_l0") else k: k for k in layer.state_dict()}
        layer.load_state_dict({k: own[k.replace("_l0", f"_l{i}")] for k in named.values()})
    middle, _ = first(x, step_inputs={"dt": both[0]})
    expected, _ = second(middle, step_inputs={"dt": both[1]})
    close(module(x, step_inputs={"dt": both})[0], expected)


LENGTHS = [3, 6, 0, 1]


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("written", CELLS, ids=str)
def test_lengths(written: WrittenCell, checkpoint: int | None) -> None:
    """As each sequence by itself; what comes after its end is not read and gets no gradient."""
    module = network(written, checkpoint=checkpoint)
    x = torch.randn(T, B, I, dtype=torch.float64)
    steps = steps_of(written, T, B, H, grad=True)
    output, _ = module(x, lengths=LENGTHS, step_inputs=steps)
    own = [
        module(x[:n, b], step_inputs={name: e[:n, b] for name, e in steps.items()})[0]
        if n
        else x.new_zeros(0, 2 * H)
        for b, n in enumerate(LENGTHS)
    ]
    expected = torch.nn.utils.rnn.pad_sequence(own)
    close(output, expected)
    found = gradients(output, steps)
    close(found, gradients(expected, steps))
    assert all(not grad[n:, b].any() for grad in found for b, n in enumerate(LENGTHS))


def test_packed() -> None:
    """Sequences in the order of the user, who gives step inputs as he gives resets."""
    module, x = network(), torch.randn(T, B, I, dtype=torch.float64)
    lengths = torch.tensor([3, 6, 2, 1])
    steps = steps_of(gated, T, B, H, grad=True)
    expected, _ = module(x, lengths=lengths, step_inputs=steps)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, _ = pad_packed_sequence(module(packed, step_inputs=steps)[0])
    close(output, expected)
    close(gradients(output, steps), gradients(expected, steps))


def test_joined_and_jagged() -> None:
    module, x = network(batch_first=True), torch.randn(10, I, dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    cu_seqlens = torch.tensor([0, *lengths.cumsum(0)])
    for shape in ((10, 1), (10, H), (4, 10, H)):
        steps = steps_of(gated, *shape, grad=True)
        output, _ = module(x, cu_seqlens=cu_seqlens, step_inputs=steps)
        own = [
            module(x[a:b], step_inputs={name: e[..., a:b, :] for name, e in steps.items()})[0]
            for a, b in zip(cu_seqlens, cu_seqlens[1:], strict=False)
            if a < b
        ]
        close(output, torch.cat(own))
        close(gradients(output, steps), gradients(torch.cat(own), steps))

        def jagged(values: Tensor) -> Tensor:
            return torch.nested.nested_tensor_from_jagged(values, cu_seqlens)

        nested, _ = module(jagged(x), step_inputs=steps)
        close(nested.values(), output)
        if len(shape) == 2:
            of_jagged = {name: jagged(e) for name, e in steps.items()}
            close(module(jagged(x), step_inputs=of_jagged)[0].values(), output)


def test_resets() -> None:
    """Each part as if run by itself, with its own step inputs."""
    module, x = network(), torch.randn(T, 1, I, dtype=torch.float64)
    steps, reset = steps_of(gated, T, 1, H), torch.tensor([0, 0, 1, 0, 1, 0])[:, None]
    output, _ = module(x, reset=reset, step_inputs=steps)
    parts = [
        module(x[a:b], step_inputs={name: e[a:b] for name, e in steps.items()})[0]
        for a, b in ((0, 2), (2, 4), (4, 6))
    ]
    close(output, torch.cat(parts))


def test_with_dropouts_residual_and_all_states() -> None:
    """With the same masks, training, checkpoints and a graph of autograd give the same numbers."""
    options: dict[str, Any] = {
        "zoneout": 0.3, "recurrent_dropout": 0.2, "weight_dropout": 0.1, "input_dropout": 0.1,
        "residual": True, "learn_initial_state": True,
    }  # fmt: skip
    x, steps = torch.randn(T, B, I).double(), steps_of(gated, T, B, 1, grad=True)
    found = []
    for checkpoint in (None, 2):
        module = network(checkpoint=checkpoint, **options)
        torch.manual_seed(1)
        output, hn, states = module(x, step_inputs=steps, return_states=True)
        found.append([output, *hn, *states, *gradients(output, steps)])
    close(*found)
    assert found[0][-3].any()


def test_projection() -> None:
    module = network(proj_size=2)
    x, steps = torch.randn(T, B, I).double(), steps_of(gated, T, B, H, grad=True)
    assert module(x, step_inputs=steps)[0].shape == (T, B, 4)
    names = [*steps]

    def output(*values: Tensor) -> Tensor:
        found: Tensor = module(x[:3, :2], step_inputs=dict(zip(names, values, strict=True)))[0]
        return found

    # The mask, which is compared with zero, has no gradient, and its numerical one is zero, too.
    some = [e[:3, :2].detach().requires_grad_() for e in steps.values()]
    assert torch.autograd.gradcheck(output, some)


@pytest.mark.parametrize("written", CELLS, ids=str)
def test_one_step(written: WrittenCell) -> None:
    module = network(written, 1, bidirectional=False)
    one = fusedrnn.RecurrentCell(written, I, H, dtype=torch.float64)
    one.load_state_dict({k.removesuffix("_l0"): v for k, v in module.state_dict().items()})
    x = torch.randn(1, B, I, dtype=torch.float64)
    for width in (1, H):
        steps = steps_of(written, 1, B, width, grad=True)
        output, final = module(x, step_inputs=steps)
        after = one(x[0], step_inputs={name: e[0] for name, e in steps.items()})
        h = after[0] if isinstance(after, tuple) else after
        close(h, output[0])
        close(gradients(h, steps), gradients(output[0], steps))
        alone = one(x[0, 1], step_inputs={name: e[0, 1] for name, e in steps.items()})
        close(alone[0] if isinstance(alone, tuple) else alone, h[1])


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.3}, {"residual": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_streaming(dtype: torch.dtype, options: dict[str, Any]) -> None:
    for written in CELLS:
        module = network(written, bidirectional=False, dtype=dtype, **options).eval()
        x = torch.randn(T, B, I, dtype=dtype)
        steps = {name: e.to(dtype) for name, e in steps_of(written, T, B, 1).items()}
        each = {name: torch.randn(2, T, B, H, dtype=dtype) for name in steps}
        for given in (steps, each):
            stream = fusedrnn.Streaming(module, batch_size=B)
            with torch.no_grad():
                output, _ = module(x, step_inputs=given)
            found = [stream(x[:3], step_inputs={n: e[..., :3, :, :] for n, e in given.items()})]
            for t in range(3, T):
                now = {name: e[..., t, :, :] for name, e in given.items()}
                found.append(stream(x[t], step_inputs=now)[None])
            tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.03)
            torch.testing.assert_close(torch.cat(found), output, rtol=tolerance, atol=tolerance)


def test_streaming_of_other_layouts() -> None:
    torch.manual_seed(0)
    module = fusedrnn.Recurrent(leaky, I, [7, 5], batch_first=True)
    x, dt = torch.randn(1, T, I), torch.rand(1, T, 1)
    stream = fusedrnn.Streaming(module)
    close_to = {"rtol": 1e-5, "atol": 1e-5}
    expected, _ = module(x, step_inputs={"dt": dt})
    torch.testing.assert_close(stream(x, step_inputs={"dt": dt}), expected, **close_to)
    stream.reset()
    found = [stream(x[0, t], step_inputs={"dt": dt[0, t]}) for t in range(T)]
    torch.testing.assert_close(torch.stack(found), expected[0], **close_to)
    stream.reset()
    wide = [dt[:, 0].expand(1, 7), dt[:, 0].expand(1, 5)]
    torch.testing.assert_close(
        stream(x[:, 0], step_inputs={"dt": wide}), expected[:, 0], **close_to
    )
    before = stream.state
    for wrong, error, message in (
        (None, TypeError, "step_inputs: expected a dict with dt, got NoneType"),
        ({"dt": dt}, RuntimeError, r"step_inputs\['dt'\]: expected a tensor of shape"),
    ):
        with pytest.raises(error, match=message):
            stream(x[:, 0], step_inputs=wrong)
    with pytest.raises(RuntimeError, match="size"):
        stream(torch.randn(1, I + 1), step_inputs={"dt": dt[:, 0]})
    assert all(map(torch.equal, stream.state, before))
    with pytest.raises(ValueError, match="^step_inputs: expected None, since lstm has none"):
        fusedrnn.Streaming(fusedrnn.LSTM(I, H))(x[:, 0], step_inputs={"dt": dt})


def test_truncated() -> None:
    module = network(bidirectional=False)
    x, steps = torch.randn(T, B, I).double(), steps_of(gated, T, B, H)
    expected, _ = module(x, step_inputs=steps)
    windows = fusedrnn.truncated_bptt(module, x, 4, step_inputs=steps)
    close(torch.cat([window.output for window in windows]), expected)
    each = {name: e.expand(2, T, B, H) for name, e in steps.items()}
    windows = fusedrnn.truncated_bptt(module, x, 4, step_inputs=each)
    close(torch.cat([window.output for window in windows]), expected)
    with pytest.raises(RuntimeError, match=r"step_inputs\['rate'\]: expected values for each of 6"):
        fusedrnn.truncated_bptt(module, x, 4, step_inputs={"rate": x[:3]})


@pytest.mark.parametrize("written", CELLS, ids=str)
def test_inspect(written: WrittenCell) -> None:
    module, x = network(written), torch.randn(T, B, I, dtype=torch.float64)
    steps = steps_of(written, 4, T, B, H)
    traced = fusedrnn.inspect.trace(module, x, lengths=[6, 2, 1, 4], step_inputs=steps)
    output, _, states = module(x, lengths=[6, 2, 1, 4], step_inputs=steps, return_states=True)
    close(traced.output, output)
    h = states[0] if isinstance(states, tuple) else states
    for part, name in enumerate(traced.layers):
        close(traced[name]["h"], h[part])
    flow = fusedrnn.inspect.gradient_flow(
        module, x, lambda output, hn: output[-1].sum(), step_inputs=steps
    )
    assert flow["l1"]["h"][-1] > 0 and bool(flow["l0"]["h"].isfinite().all())
    if written is staged:  # a gate as it was
        one = network(written, 1, bidirectional=False)
        e = steps_of(written, T, B, H)
        gates = fusedrnn.inspect.trace(one, x, step_inputs=e)["l0"]
        before = torch.cat([torch.zeros(1, B, H).double(), gates["h"][:-1]])
        r = (x @ one.weight_ih_l0[:H].T + before @ one.weight_hh_l0[:H].T + e["d"]) + (
            one.bias_ih_l0[:H] + one.bias_hh_l0[:H]
        )
        close(gates["r"], torch.sigmoid(r).detach())


@pytest.mark.parametrize("shape", [(T, 0), (T, B)], ids=["no sequences", "no steps"])
def test_nothing(shape: tuple[int, int]) -> None:
    """A batch of none, and sequences of no steps."""
    module, lengths = network(), [0] * shape[1]
    steps = steps_of(gated, *shape, 1, grad=True)
    output, _ = module(torch.randn(*shape, I).double(), lengths=lengths, step_inputs=steps)
    assert output.shape == (*shape, 2 * H) and not output.any()
    assert all(not grad.any() for grad in gradients(output, steps))


def test_in_inference_mode_and_by_torch_fx() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = network(leaky)

        def forward(self, x: Tensor, dt: Tensor) -> Tensor:
            found: Tensor = self.rnn(x, step_inputs={"dt": dt})[0]
            return found

    model, x, dt = Model(), torch.randn(T, B, I).double(), torch.randn(T, B, 1).double()
    with torch.inference_mode():
        output = model(x, dt)
    assert torch.equal(torch.fx.symbolic_trace(model)(x, dt), output)


# ---- autograd, graphs, copies --------------------------------------------------------------------


@pytest.mark.parametrize("written", CELLS, ids=str)
def test_derivatives(written: WrittenCell) -> None:
    torch.manual_seed(0)
    module = fusedrnn.Recurrent(written, 2, 3, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    names, steps = [*written.step_inputs], steps_of(written, 3, 2, 3, grad=True)

    def output(x: Tensor, *values: Tensor) -> Tensor:
        found: Tensor = module(x, step_inputs=dict(zip(names, values, strict=True)))[0]
        return found

    assert torch.autograd.gradcheck(output, (x, *steps.values()))
    assert torch.autograd.gradgradcheck(output, (x, *steps.values()))
    some = [e.detach() for e in steps.values()]
    directions = [torch.randn_like(e) for e in some]
    function = lambda *values: output(x.detach(), *values)  # noqa: E731
    _, tangent = torch.func.jvp(function, tuple(some), tuple(directions))
    expected = torch.autograd.functional.jvp(function, tuple(some), tuple(directions))[1]
    close(tangent, expected)
    batch = [torch.stack([e, 2 * e, -e]) for e in some]
    mapped = torch.func.vmap(function)(*batch)
    for i in range(3):
        close(mapped[i], function(*(e[i] for e in batch)))
    each = torch.func.vmap(torch.func.grad(lambda *v: function(*v).square().sum()))(*batch)
    close(each[1], torch.func.grad(lambda *v: function(*v).square().sum())(*(e[1] for e in batch)))


@pytest.mark.parametrize("lengths", [None, [3, 6, 0, 1]], ids=["all steps", "lengths"])
@pytest.mark.parametrize("checkpoint", [None, 2])
def test_compile(checkpoint: int | None, lengths: list[int] | None) -> None:
    module, x = network(checkpoint=checkpoint), torch.randn(T, B, I, dtype=torch.float64)
    shapes = {"rate": (T, B, 1), "mask": (4, T, B, H), "gain": (T, B, H)}
    steps = {n: torch.randn(shape).double().requires_grad_() for n, shape in shapes.items()}
    ends = None if lengths is None else torch.tensor(lengths)

    def run(x: Tensor, steps: dict[str, Tensor]) -> Tensor:
        found: Tensor = module(x, lengths=ends, step_inputs=steps)[0]
        return found

    expected, found = (
        run(x, steps),
        torch.compile(run, backend="aot_eager", fullgraph=True)(x, steps),
    )
    close(found, expected)
    close(gradients(found, steps), gradients(expected, steps))


def test_compiled_for_any_sizes() -> None:
    """A cell whose first call is in a graph, which is traced anew when sizes turn out to differ."""
    new = fusedrnn.cell(gates="a", step_inputs="d")(lambda x, u, e, h: tanh(x.a + u.a + e.d) - e.d)
    module = network(new)
    run = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for steps, batch in ((T, B), (3, 5)):
        x, dt = (torch.randn(steps, batch, n, dtype=torch.float64) for n in (I, 1))
        close(run(x, step_inputs={"d": dt})[0], module(x, step_inputs={"d": dt})[0])


def test_compiled_with_packed_input() -> None:
    module, x = network(), torch.randn(T, B, I, dtype=torch.float64)
    steps = steps_of(gated, T, B, 1)
    packed = pack_padded_sequence(x, torch.tensor([6, 4, 3, 1]))
    run = torch.compile(module, backend="aot_eager", fullgraph=True)
    close(run(packed, step_inputs=steps)[0].data, module(packed, step_inputs=steps)[0].data)


@pytest.mark.thorough
def test_compiled_by_inductor() -> None:
    module, x = network(leaky, 1), torch.randn(T, B, I, dtype=torch.float64)
    dt = torch.randn(T, B, 1, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, dt: Tensor) -> Tensor:
        found: Tensor = module(x, step_inputs={"dt": dt.exp()})[0]
        return found

    expected, found = run(x, dt), torch.compile(run, fullgraph=True)(x, dt)
    close(found, expected)
    close(gradients(found, {"dt": dt}), gradients(expected, {"dt": dt}))


def test_compiled_cell() -> None:
    one = fusedrnn.RecurrentCell(gated, I, H, dtype=torch.float64)
    x, steps = torch.randn(B, I).double(), steps_of(gated, B, 1)
    compiled = torch.compile(one, backend="aot_eager", fullgraph=True)
    close(compiled(x, step_inputs=steps), one(x, step_inputs=steps))


def test_export() -> None:
    module, x = network(), torch.randn(T, B, I, dtype=torch.float64)
    steps = steps_of(gated, T, B, 1)
    with torch.no_grad():
        program = torch.export.export(module, (x,), {"step_inputs": steps})
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        close(loaded(x, step_inputs=steps)[0], module(x, step_inputs=steps)[0])


@pytest.mark.thorough
def test_compiled_ahead(tmp_path: Path) -> None:
    module, x = network(layers=1), torch.randn(T, B, I, dtype=torch.float64)
    steps = steps_of(gated, T, B, 1)
    with torch.no_grad():
        program = torch.export.export(module, (x,), {"step_inputs": steps})
        path = str(tmp_path / "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        loaded = torch._inductor.aoti_load_package(path)
        close(loaded(x, step_inputs=steps)[0], module(x, step_inputs=steps)[0])


def test_copies() -> None:
    module, x, steps = network(), torch.randn(T, B, I).double(), steps_of(gated, T, B, 1)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(other(x, step_inputs=steps)[0], module(x, step_inputs=steps)[0])
        with pytest.raises(TypeError, match="^step_inputs: expected a dict"):
            other(x)


def test_autocast() -> None:
    module = fusedrnn.Recurrent(leaky, I, 16)
    x, dt = torch.randn(T, B, I), torch.rand(T, B, 1)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(x, step_inputs={"dt": dt})
        other, _ = module(x, step_inputs={"dt": dt.bfloat16()})
        one = fusedrnn.RecurrentCell(leaky, I, 16)
        assert one(x[0], step_inputs={"dt": dt[0].bfloat16()}).dtype == output.dtype
    expected, _ = module(x, step_inputs={"dt": dt})
    for found in (output, other):
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_elsewhere() -> None:
    """On devices without kernels the reference runs the cell."""
    module = network(device="meta", checkpoint=2)
    steps = {name: e.to("meta") for name, e in steps_of(gated, T, B, 1).items()}
    output, _ = module(torch.randn(T, B, I, dtype=torch.float64, device="meta"), step_inputs=steps)
    assert output.shape == (T, B, 2 * H)


def test_what_is_not_copied() -> None:
    """One step input that is contiguous, or any that are for all units, become views."""
    layer = network(leaky).cell
    x, wide = torch.randn(T, B, I), torch.randn(T, B, H)
    (found,) = placed_step_inputs(layer, {"dt": wide}, {"t": T, "b": B}, [H, H], 2, x)
    as_given = step_inputs_of_layer(1, [found], 2, H)
    assert as_given.shape == (T, 2, B, 1, H) and as_given.data_ptr() == wide.data_ptr()
    steps = {name: torch.randn(T, B, 1) for name in gated.step_inputs}
    (found,) = placed_step_inputs(network().cell, steps, {"t": T, "b": B}, [H, H], 2, x)
    assert found.shape == (T, 1, B, 3, 1)
    as_given = step_inputs_of_layer(0, [found], 2, H)
    assert as_given.stride()[1] == as_given.stride()[4] == 0


# ---- what is refused -----------------------------------------------------------------------------


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], Any], type[Exception], str]] = {
    "none": (lambda e: None, TypeError, "step_inputs: expected a dict with rate, mask, gain, got"),
    "a tensor": (lambda e: e["rate"], TypeError, "step_inputs: expected a dict with rate, mask"),
    "a missing one": (
        lambda e: {"rate": e["rate"], "mask": e["mask"]}, ValueError,
        "step_inputs: expected rate, mask, gain, got none called 'gain'",
    ),
    "an unknown one": (
        lambda e: e | {"dt": e["rate"]}, ValueError,
        "step_inputs: expected rate, mask, gain, got 'dt'",
    ),
    "no tensor": (
        lambda e: e | {"mask": 1.0}, TypeError,
        r"step_inputs\['mask'\]: expected a tensor of shape \(6, 4, 5\) or \(6, 4, 1\) or "
        r"\(4, 6, 4, 5\) or \(4, 6, 4, 1\), got float",
    ),
    "fewer steps": (
        lambda e: e | {"mask": e["mask"][1:]}, RuntimeError,
        r"step_inputs\['mask'\]: expected a tensor of shape \(6, 4, 5\).*, got \(5, 4, 5\)",
    ),
    "other units": (lambda e: e | {"mask": e["mask"][..., 1:]}, RuntimeError, "got .6, 4, 4."),
    "no units": (lambda e: e | {"mask": e["mask"][..., 0]}, RuntimeError, "got .6, 4."),
    "other parts": (lambda e: e | {"mask": e["mask"][None]}, RuntimeError, "got .1, 6, 4, 5."),
    "another dtype": (
        lambda e: e | {"mask": e["mask"].float()}, RuntimeError,
        r"step_inputs\['mask'\]: expected the dtype of the input, torch.float64, got torch.float32",
    ),
    "a bool": (lambda e: e | {"mask": e["mask"] > 0}, RuntimeError, "got torch.bool"),
    "another device": (
        lambda e: e | {"mask": e["mask"].to("meta")}, RuntimeError,
        r"not at the same device, .* step_inputs\['mask'\] at meta",
    ),
    "a list that is too short": (
        lambda e: e | {"mask": [e["mask"]]}, ValueError,
        r"step_inputs\['mask'\]: expected a tensor, or one for each of 2 layers, got 1 in a list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_step_inputs(wrong: str) -> None:
    make, error, message = WRONG[wrong]
    x, steps = torch.randn(T, B, I, dtype=torch.float64), steps_of(gated, T, B, H)
    with pytest.raises(error, match=message):
        network()(x, step_inputs=make(steps))


def test_other_refusals() -> None:
    x, steps = torch.randn(T, B, I, dtype=torch.float64), steps_of(gated, T, B, H)
    several = fusedrnn.Recurrent(leaky, I, [7, 5], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"expected a tensor of shape \(6, 4, 1\) or \(2, 6, 4,"):
        several(x, step_inputs={"dt": torch.randn(T, B, 7).double()})
    for module in (fusedrnn.LSTM(I, H), fusedrnn.Recurrent(fusedrnn.cells.mgu, I, H)):
        with pytest.raises(ValueError, match="^step_inputs: expected None, since .* has none, got"):
            module(x.float(), step_inputs=steps)
    one = fusedrnn.RecurrentCell(gated, I, H, dtype=torch.float64)
    with pytest.raises(TypeError, match="^step_inputs: expected a dict with rate, mask, gain"):
        one(x[0])
    with pytest.raises(RuntimeError, match=r"expected a tensor of shape \(4, 5\) or \(4, 1\), got"):
        one(x[0], step_inputs=steps)
    with pytest.raises(ValueError, match=r"expected a tensor, got 4 in a list"):
        one(x[0], step_inputs={name: [*e[0]] for name, e in steps.items()})
    with pytest.raises(ValueError, match="has none"):
        fusedrnn.RecurrentCell(fusedrnn.cells.mgu, I, H)(x[0].float(), step_inputs=steps)
    nested = torch.nested.nested_tensor([x[:2, 0], x[:3, 0]], layout=torch.jagged)
    other = torch.nested.nested_tensor([x[:3, 0, :1], x[:2, 0, :1]], layout=torch.jagged)
    jagged = fusedrnn.Recurrent(leaky, I, H, batch_first=True, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"step_inputs\['dt'\]: expected a jagged tensor with"):
        jagged(nested, step_inputs={"dt": other})
    assert Modifiers().step_inputs is None
