"""The arguments of modules that torch.nn's lack, but for those of test_modifiers.py.

A size for each layer, residual layers, learned first states, states with the batch first, and how
parameters begin.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.parametrize
from conftest import MODULE_FACTS, MODULES
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn

T, B, I = 6, 4, 5  # noqa: E741


def made(name: str, *sizes: Any, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return getattr(fusedrnn, name)(I, *(sizes or (7,)), dtype=torch.float64, **options)


def input_of(*shape: int) -> Tensor:
    return torch.randn(*(shape or (T, B, I)), dtype=torch.float64)


def as_list(hx: Any) -> list[Any]:
    return [hx] if isinstance(hx, Tensor) else [*hx]


def flat(states: Any) -> list[Tensor]:
    """All tensors of states, however they are nested."""
    return [states] if isinstance(states, Tensor) else [t for each in states for t in flat(each)]


def compare(found: Any, expected: Any) -> None:
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def gradients(module: nn.Module, results: Any, input: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (each * torch.randn(each.shape, generator=generator, dtype=each.dtype)).sum()
        for each in flat(results)
    )
    return [*torch.autograd.grad(loss, [input, *module.parameters()], retain_graph=True)]  # type: ignore


# ---- a size for each layer -----------------------------------------------------------------------


class Chain(nn.Module):
    """Layers of torch.nn one after the other, with the weights of `module`: what it should be."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.layers, self.residual = nn.ModuleList(), module.residual
        sizes = module.hidden_size
        if isinstance(sizes, int):
            sizes = (sizes,) * module.num_layers
        directions = 1 + module.bidirectional
        features = module.input_size
        for layer, size in enumerate(sizes):
            options: dict[str, Any] = {"bias": module.bias, "bidirectional": module.bidirectional}
            if module.proj_size:
                options["proj_size"] = module.proj_size
            theirs = getattr(nn, type(module).__name__)(features, size, **options).double()
            for name in [*theirs._parameters]:
                # The same Parameter: gradients of both sides are for the same tensors.
                setattr(theirs, name, getattr(module, name.replace("_l0", f"_l{layer}")))
            self.layers.append(theirs)
            features = (module.proj_size or size) * directions

    def forward(self, input: Tensor, hx: list[Any] | None = None) -> Any:
        """The output, and the states of each layer."""
        finals = []
        for i, layer in enumerate(self.layers):
            output, hn = layer(input, hx and hx[i])
            finals.append(hn)
            if self.residual and i and output.shape == input.shape:
                output = output + input
            input = output
        return input, finals


def by_layer(module: nn.Module, hx: Any) -> list[Any]:
    """States of a module with a size for each layer as a list of what each layer takes."""
    layers = [*zip(*as_list(hx), strict=True)] if len(as_list(hx)) > 1 and not isinstance(
        hx[0], Tensor
    ) else [(state,) for state in hx]  # fmt: skip
    return [each if len(each) > 1 else each[0] for each in layers]


SIZES = [8, 3, 3]


def states(name: str, sizes: list[int], directions: int, width: int | None = None) -> Any:
    """Random first states for layers of these sizes."""
    several = len(MODULE_FACTS[name].states)

    def of_layers(i: int) -> tuple[Tensor, ...]:
        return tuple(input_of(directions, B, width if width and i == 0 else size) for size in sizes)

    found = tuple(of_layers(i) for i in range(several))
    return found if several > 1 else found[0]


OPTIONS = [
    {},
    {"bidirectional": True},
    {"bias": False, "residual": True},
    {"residual": True, "bidirectional": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_a_size_for_each_layer(name: str, options: dict[str, Any]) -> None:
    module = made(name, SIZES, **options)
    assert module.num_layers == 3 and module.hidden_size == tuple(SIZES)
    chain, input = Chain(module), input_of().requires_grad_()
    hx = states(name, SIZES, 1 + module.bidirectional)
    for given in (None, hx):
        output, hn = module(input, given)
        expected = chain(input, given and by_layer(module, given))
        compare((output, by_layer(module, hn)), expected)
        found = gradients(module, (output, by_layer(module, hn)), input)
        compare(found, gradients(module, expected, input))


def test_a_size_for_each_layer_with_a_projection() -> None:
    module = made("LSTM", [8, 6], proj_size=4, residual=True)
    chain, input = Chain(module), input_of().requires_grad_()
    hx = states("LSTM", [8, 6], 1, width=4)
    output, hn = module(input, hx)
    expected = chain(input, by_layer(module, hx))
    compare((output, by_layer(module, hn)), expected)
    compare(gradients(module, (output,), input), gradients(module, expected[:1], input))


@pytest.mark.parametrize("name", MODULES)
def test_a_size_for_each_layer_with_everything_else(name: str) -> None:
    """`lengths`, packed, resets, all states, checkpoints: as of layers that are called by hand."""
    module = made(name, SIZES, batch_first=True, residual=True)
    input = input_of(B, T, I).requires_grad_()
    lengths, reset = torch.tensor([6, 0, 3, 1]), torch.rand(B, T) < 0.3
    hx, by = states(name, SIZES, 1), states(name, SIZES, 1)
    options = {"lengths": lengths, "reset": reset, "reset_states": by, "return_states": True}
    output, hn, every = module(input, hx, **options)

    layers = []
    for layer, size in enumerate(SIZES):
        one = getattr(fusedrnn, name)(
            SIZES[layer - 1] if layer else I, size, batch_first=True, dtype=torch.float64
        )
        for weight in [*one._parameters]:
            setattr(one, weight, getattr(module, weight.replace("_l0", f"_l{layer}")))
        layers.append(one)
    found, finals, steps = input, [], []
    for i, layer in enumerate(layers):
        own = options | {"reset_states": by_layer(module, by)[i]}
        result, final, each = layer(found, by_layer(module, hx)[i], **own)
        found = result + found if i and result.shape == found.shape else result
        finals.append(final)
        steps.append(each)
    compare((output, by_layer(module, hn), by_layer(module, every)), (found, finals, steps))
    compare(
        gradients(module, (output, by_layer(module, hn), by_layer(module, every)), input),
        gradients(module, (found, finals, steps), input),
    )

    module.checkpoint = 2
    again = module(input, hx, **options)
    compare(again, (output, hn, every))
    compare(
        gradients(module, (again[0], by_layer(module, again[1])), input),
        gradients(module, (output, by_layer(module, hn)), input),
    )

    packed = pack_padded_sequence(input, [6, 4, 3, 1], batch_first=True)
    result, final, each = module(packed, hx, return_states=True)
    padded = module(input, hx, lengths=[6, 4, 3, 1], return_states=True)
    compare((pad_packed_sequence(result, batch_first=True)[0], final), padded[:2])
    unpacked = [pad_packed_sequence(p, batch_first=True)[0] for p in as_packed(each)]
    compare([each.permute(2, 0, 1, 3) for each in unpacked], flat(padded[2]))


def as_packed(states: Any) -> list[Any]:
    if hasattr(states, "batch_sizes"):
        return [states]
    return [packed for each in states for packed in as_packed(each)]


def test_one_size_in_a_list() -> None:
    """It makes the network of the plain int, but its states are tuples, as with every list."""
    compare([*made("GRU", [7]).parameters()], [*made("GRU", 7).parameters()])
    output, (h,) = made("GRU", [7])(input_of())
    assert h.shape == (1, B, 7)
    compare(made("GRU", [7])(output[..., :I], (h,)), made("GRU", 7)(output[..., :I], h))


def test_cudnn_is_not_asked_for_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's `flatten_parameters` knows one hidden size."""
    asked: list[Any] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda module: asked.append(module))
    module = made("LSTM", [8, 6])
    asked.clear()  # by the base, before the module has sizes
    module.float().flatten_parameters()
    assert not asked
    made("LSTM", 8).flatten_parameters()
    assert asked


def test_weights_of_several_sizes() -> None:
    """Named as torch.nn names them, and uniform by the size of each layer."""
    module = made("LSTM", [100, 400], bidirectional=True)
    theirs = [*nn.LSTM(I, 100, bidirectional=True).named_parameters()]
    for name, weight in theirs:
        assert module.get_parameter(name).shape == weight.shape
    assert module.weight_ih_l1.shape == (1600, 200)
    for layer, bound in ((0, 0.1), (1, 0.05)):
        largest = getattr(module, f"weight_hh_l{layer}_reverse").abs().max()
        assert 0.98 * bound < largest < bound


@pytest.mark.parametrize(
    "sizes, options, error, message",
    [
        ([], {}, ValueError, r"hidden_size: expected an int, or positive ints, .*, got \[\]"),
        ([8, 0], {}, ValueError, r"hidden_size: .* got \[8, 0\]"),
        ([8, 2.0], {}, TypeError, r"hidden_size: .* got \[8, 2.0\]"),
        ([8, True], {}, TypeError, "hidden_size: "),
        ([8, 4], {"num_layers": 3}, ValueError, "num_layers: expected 2, .*, got 3"),
        ([8, 4], {"residual": True}, ValueError, "residual: expected False .* have 8, 4"),
        (8, {"residual": True}, ValueError, "residual: expected False .* have 8$"),
        (8, {"residual": 1}, TypeError, "residual: expected a bool, got 1 of int"),
        (8, {"learn_initial_state": "yes"}, TypeError, "learn_initial_state: expected a bool"),
        (8, {"states_batch_first": 0.5}, TypeError, "states_batch_first: expected a bool"),
        (8, {"init": "glorot"}, ValueError, "init: expected 'uniform' or 'orthogonal', got"),
        (8, {"forget_bias": "1"}, TypeError, "forget_bias: expected None or a finite number"),
        (8, {"forget_bias": math.inf}, ValueError, "forget_bias: .* got inf"),
        (8, {"forget_bias": 1.0, "bias": False}, ValueError, "forget_bias: .* bias=False"),
        ([8, 4], {"proj_size": 4}, ValueError, "proj_size has to be smaller than hidden_size"),
    ],
)  # fmt: skip
def test_wrong_arguments(
    sizes: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fusedrnn.LSTM(I, sizes, **options)


def test_attributes_are_checked_as_arguments_are() -> None:
    for module, name, value, message in (
        (made("GRU"), "forget_bias", 1.0, "forget_bias: expected None for a gru, which has no"),
        (made("LSTM", [6, 4]), "residual", True, "residual: expected False .* have 6, 4"),
        (made("LSTM"), "init", "zeros", "init: expected"),
        (made("LSTM"), "zoneout", (0.1, 1.0), "zoneout: expected"),
    ):
        before = getattr(module, name)
        with pytest.raises(ValueError, match=message):
            setattr(module, name, value)
        assert getattr(module, name) == before
    shares = [0.1, 0.2]
    module = made("LSTM", zoneout=shares)
    shares[0] = 0.9
    assert module.zoneout == (0.1, 0.2)


def test_wrong_learned_states() -> None:
    module = made("GRU", learn_initial_state=True)
    module.h_0_l0 = nn.Parameter(torch.zeros(2, 7, dtype=torch.float64))
    for call in (lambda: module(input_of()), lambda: fusedrnn.Streaming(module, B)):
        with pytest.raises(RuntimeError, match=r"h_0: expected learned states of shape \(1, 7\)"):
            call()


def test_learned_states_and_autocast() -> None:
    """The dtypes are those of a call that begins with zeros."""
    input = input_of().bfloat16()
    for name in MODULES:
        module, plain = made(name, learn_initial_state=True).float(), made(name).float()
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = module(input), plain(input)
        assert [t.dtype for t in flat(found)] == [t.dtype for t in flat(expected)]


def test_learned_states_that_are_parametrized() -> None:
    module = made("GRU", learn_initial_state=True)
    nn.utils.parametrize.register_parametrization(module, "h_0_l0", nn.Tanh())
    module.learn_initial_state = False
    module.learn_initial_state = True
    assert nn.utils.parametrize.is_parametrized(module, "h_0_l0")


def test_a_gru_has_no_forget_bias() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'forget_bias'"):
        fusedrnn.GRU(I, 7, forget_bias=1.0)


@pytest.mark.parametrize(
    "hx, error, message",
    [
        (torch.zeros(3, B, 8), TypeError, "expected for h and c a tuple of 3 tensors.*got Tensor"),
        ((torch.zeros(3, B, 8),) * 2, TypeError, "hx: expected .* one for each layer.*got Tensor"),
        ((states("GRU", SIZES, 1),) * 3, RuntimeError, "hx: expected .* got tuple of 3"),
        ((states("GRU", SIZES[:2], 1),) * 2, RuntimeError, "hx: expected .* got tuple of 2"),
        (
            (states("GRU", SIZES, 1), states("GRU", [8, 4, 3], 1)),
            RuntimeError, r"Expected hidden\[1\]\[1\] size \(1, 4, 3\), got \[1, 4, 4\]",
        ),
    ],
)  # fmt: skip
def test_wrong_states(hx: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made("LSTM", SIZES)(input_of(), hx)


def test_wrong_states_of_resets() -> None:
    options = {"reset": torch.zeros(T, B)}
    for module in (made("LSTM"), made("LSTM", SIZES)):
        with pytest.raises((TypeError, IndexError), match="^reset_states: expected"):
            module(input_of(), **options, reset_states=torch.zeros(1, B, 7, dtype=torch.float64))


# ---- residual ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_residual_layers(name: str) -> None:
    module = made(name, 7, num_layers=3, residual=True)
    chain, input = Chain(module), input_of().requires_grad_()
    output, hn = module(input)
    expected, finals = chain(input)
    finals = [torch.cat(each) for each in zip(*map(as_list, finals), strict=True)]
    compare((output, hn), (expected, finals))
    compare(gradients(module, (output, hn), input), gradients(module, (expected, finals), input))
    module.residual = False
    assert not torch.equal(module(input)[0], output)


def test_a_residual_is_added_after_dropout() -> None:
    module = made("GRU", 7, num_layers=3, dropout=0.5, residual=True)
    input = input_of()
    chain, output = Chain(module), input
    torch.manual_seed(3)
    found, _ = module(input)
    torch.manual_seed(3)
    for i, layer in enumerate(chain.layers):
        result, _ = layer(output)
        result = torch.dropout(result, 0.5, i < 2)
        output = result + output if i else result
    compare(found, output)


# ---- learned first states ------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [7, [7, 5]], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_learned_first_states(name: str, sizes: Any) -> None:
    """They are what `hx` would be, of every sequence and every part of one."""
    layers = {} if isinstance(sizes, list) else {"num_layers": 2}
    module = made(name, sizes, bidirectional=True, learn_initial_state=True, **layers)
    initial = {name: p for name, p in module.named_parameters() if "_0_l" in name}
    count = len(MODULE_FACTS[name].states)
    assert len(initial) == 2 * count and not any(p.any() for p in initial.values())
    for parameter in initial.values():
        nn.init.normal_(parameter)
    each = [
        tuple(initial[f"{state}_0_l{layer}"][:, None].expand(-1, B, -1) for layer in range(2))
        for state in MODULE_FACTS[name].states
    ]
    each = each if isinstance(sizes, list) else [torch.cat(state) for state in each]
    hx = tuple(each) if count > 1 else each[0]

    input, reset = input_of().requires_grad_(), torch.rand(T, B) < 0.3
    plain = copy.deepcopy(module)
    plain.learn_initial_state = False
    assert not [name for name, _ in plain.named_parameters() if "_0_l" in name]
    for weight in [*plain._parameters]:
        setattr(plain, weight, module.get_parameter(weight))
    for options, of_plain in (
        ({}, {}), ({"reset": reset}, {"reset": reset, "reset_states": hx}),
        ({"lengths": [6, 0, 2, 3]}, {"lengths": [6, 0, 2, 3]}),
    ):  # fmt: skip
        found, expected = module(input, **options), plain(input, hx, **of_plain)
        compare(found, expected)
        compare(gradients(module, found, input), gradients(module, expected, input))
    given = module(input, hx)
    compare(given, plain(input, hx))
    one = module(input[:, 0])
    compare(one[0], module(input)[0][:, 0])


def test_learned_first_states_of_packed_and_joined_sequences() -> None:
    module = made("LSTM", learn_initial_state=True)
    nn.init.normal_(module.h_0_l0)
    input, lengths = input_of(), [2, 6, 3, 5]
    output, hn = module(input, lengths=lengths)
    packed, of_packed = module(pack_padded_sequence(input, lengths, enforce_sorted=False))
    compare((pad_packed_sequence(packed)[0], of_packed), (output, hn))
    rows = torch.cat([input[:n, b] for b, n in enumerate(lengths)])
    ends = torch.tensor([0, *itertools.accumulate(lengths)])
    joined, of_joined = module(rows, cu_seqlens=ends)
    compare((joined, of_joined), (torch.cat([output[:n, b] for b, n in enumerate(lengths)]), hn))


def test_learning_first_states_moves_them() -> None:
    torch.manual_seed(0)
    module = fusedrnn.GRU(I, 7, learn_initial_state=True)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(torch.randn(1, B, I))[0].sum().backward()
    optimizer.step()
    assert module.h_0_l0.any()
    module.reset_parameters()
    assert not module.h_0_l0.any() and module.weight_hh_l0.any()


# ---- states with the batch first -----------------------------------------------------------------


@pytest.mark.parametrize("sizes", [7, [7, 4]], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_states_with_the_batch_first(name: str, batch_first: bool, sizes: Any) -> None:
    layers = {} if isinstance(sizes, list) else {"num_layers": 2}
    options = {"batch_first": batch_first, "bidirectional": True, **layers}
    module = made(name, sizes, states_batch_first=True, **options)
    plain = made(name, sizes, **options)
    input = input_of(B, T, I) if batch_first else input_of()
    reset = torch.rand(input.shape[:2]) < 0.3
    _, hx, every = plain(input, return_states=True)

    def turned(states: Any) -> Any:
        if isinstance(states, Tensor):
            return states.transpose(0, 1)
        return tuple(map(turned, states))

    def turned_steps(states: Any) -> Any:  # from [parts, T, B, H] or [parts, B, T, H]
        if isinstance(states, Tensor):
            return states.permute((1, 2, 0, 3) if batch_first else (2, 1, 0, 3))
        return tuple(map(turned_steps, states))

    def for_steps(states: Any) -> Any:  # of what `reset_states` is for plain: [T, parts, B, H]
        if isinstance(states, Tensor):
            return states.permute((2, 0, 1, 3) if batch_first else (1, 0, 2, 3))
        return tuple(map(for_steps, states))

    for by in (None, hx, every):
        ours, theirs = {"reset": reset}, {"reset": reset}
        if by is not None:
            each = by is every
            ours["reset_states"] = turned_steps(by) if each else turned(by)
            theirs["reset_states"] = for_steps(by) if each else by
        output, hn, steps = module(input, turned(hx), return_states=True, **ours)
        expected = plain(input, hx, return_states=True, **theirs)
        compare((output, hn, steps), (expected[0], turned(expected[1]), turned_steps(expected[2])))
    one = module(input[0] if batch_first else input[:, 0])
    compare(one, plain(input[0] if batch_first else input[:, 0]))
    lengths = [2, 6, 3, 5]
    packed = pack_padded_sequence(input, lengths, batch_first=batch_first, enforce_sorted=False)
    output, hn = module(packed, turned(hx))
    expected = plain(packed, hx)
    compare((output.data, hn), (expected[0].data, turned(expected[1])))


def test_wrong_states_with_the_batch_first() -> None:
    module = made("LSTM", num_layers=2, states_batch_first=True)
    right = input_of(B, 2, 7)
    module(input_of(), (right, right))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(4, 2, 7\), got"):
        module(input_of(), (right, input_of(2, B, 7)))
    with pytest.raises(RuntimeError, match=r"reset_states\[0\]: expected h of shape \(4, 2, 7\)"):
        module(input_of(), reset=torch.zeros(T, B), reset_states=(input_of(2, B, 7), right))


# ---- how parameters begin ------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_the_same_parameters_as_torch_from_a_seed(name: str) -> None:
    torch.manual_seed(5)
    theirs = getattr(nn, name)(I, 7, num_layers=2, bidirectional=True)
    torch.manual_seed(5)
    ours = getattr(fusedrnn, name)(I, 7, num_layers=2, bidirectional=True, residual=True)
    compare([*ours.parameters()], [*theirs.parameters()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_orthogonal_weights(name: str, dtype: torch.dtype) -> None:
    module = getattr(fusedrnn, name)(I, [16, 8], bidirectional=True, init="orthogonal", dtype=dtype)
    gates = len(MODULE_FACTS[name].gates)
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for parameter, weight in module.named_parameters():
        if parameter.startswith("bias"):
            assert not weight.any()
        for gate in weight.chunk(gates) if parameter.startswith("weight_hh") else ():
            product = gate.double() @ gate.double().T
            torch.testing.assert_close(
                product, torch.eye(len(gate), dtype=torch.float64), atol=close, rtol=0
            )
        if parameter == "weight_ih_l0":
            bound = math.sqrt(6 / (I + 16))  # Glorot's
            assert 0.9 * bound < weight.abs().max() <= bound * (1 + torch.finfo(dtype).eps)
    module(torch.randn(T, B, I, dtype=dtype))


def test_an_orthogonal_projection() -> None:
    module = made("LSTM", 8, proj_size=3, init="orthogonal")
    product = module.weight_hr_l0 @ module.weight_hr_l0.T
    torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64))
    for gate in module.weight_hh_l0.chunk(4):  # [8, 3]
        torch.testing.assert_close(gate.T @ gate, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("init", ["uniform", "orthogonal"])
def test_forget_bias(init: str) -> None:
    module = made("LSTM", num_layers=2, forget_bias=1.5, init=init)
    plain = made("LSTM", num_layers=2, init=init)
    for layer in range(2):
        biases = [getattr(module, f"bias_{kind}_l{layer}").chunk(4) for kind in ("ih", "hh")]
        before = [getattr(plain, f"bias_{kind}_l{layer}").chunk(4) for kind in ("ih", "hh")]
        for gate, both, old in zip(
            "ifgo", zip(*biases, strict=True), zip(*before, strict=True), strict=True
        ):
            if gate == "f":
                assert (sum(both) == 1.5).all()
            else:
                compare(both, old)
    nn.init.zeros_(module.bias_ih_l0)
    module.reset_parameters()
    assert (module.bias_ih_l0.chunk(4)[1] == 1.5).all()


# ---- all of them ---------------------------------------------------------------------------------

ALL: dict[str, Any] = {
    "hidden_size": [6, 4, 4], "residual": True, "learn_initial_state": True,
    "states_batch_first": True, "init": "orthogonal", "zoneout": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_pickles(name: str) -> None:
    module = getattr(fusedrnn, name)(I, **ALL).double().eval()
    nn.init.normal_(module.h_0_l1)
    input = input_of()
    expected = module(input)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module), pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):  # fmt: skip
        compare(other(input), expected)
        assert repr(other) == repr(module)
    again = getattr(fusedrnn, name)(I, **ALL).double().eval()
    again.load_state_dict(module.state_dict())
    compare(again(input), expected)
    assert "(6, 4, 4)" in repr(module) and "residual=True" in repr(module)


@pytest.mark.parametrize("name", MODULES)
def test_in_graphs(name: str) -> None:
    module = getattr(fusedrnn, name)(I, **ALL).double().eval()
    nn.init.normal_(module.h_0_l1)
    input = input_of()
    expected = module(input)
    program = torch.export.export(module, (input,))
    compare(program.module()(input), expected)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    compare(compiled(input), expected)


@pytest.mark.parametrize("name", MODULES)
def test_under_vmap_and_functional_call(name: str) -> None:
    module = getattr(fusedrnn, name)(I, **ALL).double().eval()
    nn.init.normal_(module.h_0_l1)
    inputs = input_of(3, T, B, I)
    found = torch.vmap(lambda x: module(x)[0])(inputs)
    compare(found, torch.stack([module(x)[0] for x in inputs]))
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        output, _ = torch.func.functional_call(module, parameters, (inputs[0],))
        return output.square().sum()

    found = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(module(inputs[0])[0].square().sum(), [*module.parameters()])
    compare([*found.values()], [*expected])


STREAMED: list[dict[str, Any]] = [
    {"hidden_size": 6, "num_layers": 2, "residual": True},
    {"hidden_size": [6, 4]},
    {"hidden_size": 6, "zoneout": 0.3},
    {"hidden_size": 6, "num_layers": 2, "learn_initial_state": True},
    {"hidden_size": 6, "num_layers": 2, "states_batch_first": True},
    ALL,
]


@pytest.mark.parametrize("options", STREAMED, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("name", MODULES)
def test_streams(name: str, options: dict[str, Any]) -> None:
    module = getattr(fusedrnn, name)(I, **options).double().eval()
    for parameter, weight in module.named_parameters():
        if "_0_l" in parameter:
            nn.init.normal_(weight)
    stream, input = fusedrnn.Streaming(module, B), input_of()
    output, hn = module(input)
    compare(stream(input[:2]), output[:2])
    compare(torch.stack([stream(x) for x in input[2:]]), output[2:])
    compare(stream.state, hn)
    # Some begin anew: as the module with a reset.
    done = [True, False, False, True]
    reset = torch.zeros(T, B)
    reset[0] = torch.tensor(done)
    stream.reset(done)
    expected = module(input, hn, reset=reset)
    compare(stream(input), expected[0])
    stream.state = hn
    compare(stream(input), module(input, hn)[0])
    other = pickle.loads(pickle.dumps(stream))
    compare(other.state, stream.state)
    stream.reset()
    compare(stream(input), output)


def test_a_stream_follows_an_option_that_changes() -> None:
    module = made("GRU", 7, num_layers=2).eval()
    stream, input = fusedrnn.Streaming(module, B), input_of()
    stream(input)
    module.residual = True
    stream.reset()
    compare(stream(input), module(input)[0])
    with pytest.raises(ValueError, match="weights: expected 'same' for a module with zoneout"):
        fusedrnn.Streaming(made("GRU", zoneout=0.1).float(), weights="int8")


def test_int8_streams_of_residual_layers() -> None:
    module = made("LSTM", [16, 8, 8], residual=True).float().eval()
    stream, input = fusedrnn.Streaming(module, B, weights="int8"), input_of().float()
    output, hn = module(input)
    torch.testing.assert_close(stream(input), output, atol=0.05, rtol=0.05)
    torch.testing.assert_close(stream.state, hn, atol=0.05, rtol=0.05)


def test_nothing_more_is_looked_at_where_nothing_is_set() -> None:
    module = made("LSTM", num_layers=2)
    assert module._extras is None
    module.residual = True
    assert module._extras is not None
    module.residual = False
    assert module._extras is None
    calls: list[Callable[..., Any]] = [module.reset_parameters, module.flatten_parameters]
    for call in calls:
        call()
