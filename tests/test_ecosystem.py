"""torch's own tools around the modules: recomputation, parametrizations, averaging, torch.func."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from conftest import TORCH_MODULES
from test_contract import both
from torch import Tensor, multiprocessing, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.fx.proxy import TraceError
from torch.nn.utils import parameters_to_vector, parametrizations, prune, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import fusedrnn

LAYERS = TORCH_MODULES
STEPS = [f"{name}Cell" for name in LAYERS]


def inputs(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(*(shape or (4, 3, 5)), generator=generator, dtype=torch.float64)


def pair(name: str, **options: object) -> tuple[nn.Module, nn.Module]:
    return both(name, 5, 6, dtype=torch.float64, **options)


def numbers(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and the gradients of all parameters, by name."""
    module.zero_grad()
    output = module(x)[0]
    output.square().sum().backward()
    named = sorted(module.named_parameters())
    assert all(p.grad is not None for _, p in named)
    return [output.detach(), *(p.grad.clone() for _, p in named)]


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("steps", [None, 2], ids=["", "steps"])
@pytest.mark.parametrize("name", LAYERS)
def test_recomputed(name: str, steps: int | None, reentrant: bool) -> None:
    """torch.utils.checkpoint around a module, with dropout, and around one that has its own."""
    torch.manual_seed(0)
    module = getattr(fusedrnn, name)(
        5, 6, num_layers=2, dropout=0.5, bidirectional=True, checkpoint=steps, dtype=torch.float64
    )
    results = []
    for recompute in (False, True):
        module.zero_grad()
        torch.manual_seed(1)
        x = inputs().requires_grad_()
        output = (checkpoint(module, x, use_reentrant=reentrant) if recompute else module(x))[0]
        output.square().sum().backward()
        results.append([output, x.grad, *(p.grad for p in module.parameters())])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def prune_globally(module: nn.Module) -> None:
    chosen = [(module, name) for name in ("weight_hh_l0", "weight_ih_l1", "bias_hh_l0")]
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=0.4)


def prune_for_good(module: nn.Module) -> None:
    prune_globally(module)
    for name in ("weight_hh_l0", "weight_ih_l1", "bias_hh_l0"):
        prune.remove(module, name)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "weight norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l1"),
    "spectral norm": lambda m: parametrizations.spectral_norm(m, "weight_ih_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "old weight norm": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    "old spectral norm": lambda m: nn.utils.spectral_norm(m, "weight_hh_l0"),
    "pruned together": prune_globally,
    "pruned for good": prune_for_good,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_changed_weights(name: str, change: str) -> None:
    results = []
    for module in pair(name, num_layers=2):
        torch.manual_seed(5)
        CHANGES[change](module.eval())
        results.append(numbers(module, inputs()))
        with torch.no_grad():  # what is computed follows the parameters
            for parameter in module.parameters():
                parameter.mul_(0.9)
        results[-1] += numbers(module, inputs())
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def adapted(package: object, name: str) -> nn.Module:
    """A layer with low-rank adapters: its forward sets the weights that the base is to take."""

    class Adapted(getattr(package, name)):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            self.adapters = nn.ParameterList(
                nn.Parameter(torch.full_like(w[..., :1], 0.1)) for w in self._flat_weights
            )

        def forward(self, *arguments: object) -> object:
            pairs = zip(self._flat_weights_names, self.adapters, strict=True)
            self._flat_weights = [getattr(self, name) + adapter for name, adapter in pairs]
            return super().forward(*arguments)

    torch.manual_seed(0)
    return Adapted(5, 6, num_layers=2, bidirectional=True, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_a_subclass_sets(name: str) -> None:
    module = adapted(fusedrnn, name)
    expected = numbers(adapted(nn, name), inputs())
    found = numbers(module, inputs())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    copied = copy.deepcopy(module)  # torch.nn's can't be copied once it was called
    assert list(copied.state_dict()) == list(adapted(nn, name).state_dict())
    torch.testing.assert_close(copied(inputs())[0], expected[0])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(inputs())[0], expected[0])


def change(module: nn.Module, factor: float) -> dict[str, Tensor]:
    return {name: tensor.detach() * factor for name, tensor in module.state_dict().items()}


def set_flat_weights(module: nn.Module) -> None:
    module._flat_weights = [weight.detach() * 1.5 for weight in module.parameters()]


FLAT_WEIGHTS: list[Callable[[nn.Module], object]] = [
    lambda m: None,
    set_flat_weights,
    lambda m: m.load_state_dict(change(m, 0.8)),  # in place: what was set stays
    lambda m: setattr(m, "weight_hh_l0", nn.Parameter(m.weight_hh_l0.detach() * 1.2)),
    set_flat_weights,
    lambda m: m.load_state_dict(change(m, 1.1), assign=True),
    set_flat_weights,
    lambda m: functional_call(m, change(m, 0.9), (inputs(),)),
    lambda m: m._flat_weights.__setitem__(1, m.weight_hh_l0.detach() * 0.7),
    lambda m: m.double(),
    set_flat_weights,
]


@pytest.mark.parametrize("name", LAYERS)
def test_flat_weights_count_as_in_torch_nn(name: str) -> None:
    """Until an attribute is another than it was."""
    ours, theirs = pair(name)
    stream = fusedrnn.Streaming(ours, 3)
    before = None
    for step, do in enumerate(FLAT_WEIGHTS):
        for module in (ours, theirs):
            do(module)
        found, expected = ours(inputs())[0], theirs(inputs())[0]
        torch.testing.assert_close(found, expected, msg=lambda m, n=step: f"step {n}: {m}")
        assert (before is not None and torch.equal(found, before)) == (step == 2)
        before = found
        stream.reset()
        torch.testing.assert_close(stream(inputs()), expected)
    for duplicate in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        torch.testing.assert_close(duplicate(ours)(inputs())[0], duplicate(theirs)(inputs())[0])


@pytest.mark.parametrize("name", LAYERS)
def test_vectors_and_clipping(name: str) -> None:
    ours, theirs = pair(name)
    vector = parameters_to_vector(theirs.parameters()) * 2
    for module in (ours, theirs):
        vector_to_parameters(vector.detach().clone(), module.parameters())
        numbers(module, inputs())
    norms = [nn.utils.clip_grad_norm_(m.parameters(), 0.1) for m in (ours, theirs)]
    torch.testing.assert_close(*norms)
    assert norms[0] > 0.1
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["swa", "ema"])
@pytest.mark.parametrize("name", LAYERS)
def test_averaged(name: str, average: Callable | None) -> None:
    class Network(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer, self.norm = layer, nn.BatchNorm1d(6, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.layer(x)[0][-1])

    outputs = []
    for layer in pair(name):
        network = Network(layer)
        averaged = AveragedModel(network, multi_avg_fn=average)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        for _ in range(3):
            network(inputs()).square().sum().backward()
            optimizer.step()
            averaged.update_parameters(network)
        update_bn([inputs(), inputs() + 1], averaged)
        outputs.append(averaged.eval()(inputs()))
        assert not torch.allclose(outputs[-1], network.eval()(inputs()))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("name", LAYERS)
def test_torch_func(name: str) -> None:
    """An ensemble under vmap, gradients of single examples, a Jacobian: each against a loop."""
    modules = []
    for seed in range(3):
        torch.manual_seed(seed)
        modules.append(getattr(fusedrnn, name)(5, 6, dtype=torch.float64))
    stacked = stack_module_state(modules)
    base = copy.deepcopy(modules[0]).to("meta")
    found = vmap(lambda p, b, x: functional_call(base, (p, b), (x,))[0], (0, 0, None))(
        *stacked, inputs()
    )
    for module, output in zip(modules, found, strict=True):
        torch.testing.assert_close(output, module(inputs())[0])

    module = modules[0]
    parameters = {n: p.detach() for n, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(module, parameters, (example,))[0].square().sum()

    single = vmap(grad(loss), (None, 1))(parameters, inputs())
    for i in range(3):
        module.zero_grad()
        module(inputs()[:, i])[0].square().sum().backward()
        for n, p in module.named_parameters():
            torch.testing.assert_close(single[n][i], p.grad)

    x = inputs()[:, 0]
    jacobian = jacrev(lambda x: module(x)[0])(x)
    expected = torch.autograd.functional.jacobian(lambda x: module(x)[0], x)
    torch.testing.assert_close(jacobian, expected)


@pytest.mark.parametrize("name", [*LAYERS, *STEPS])
def test_made_without_values(name: str) -> None:
    cls, sizes = getattr(fusedrnn, name), {"dtype": torch.float64}
    expected = pair(name)[1]
    x = inputs(3, 5) if name in STEPS else inputs()
    for module in (
        nn.utils.skip_init(cls, 5, 6, **sizes),
        cls(5, 6, device="meta", **sizes).to_empty(device="cpu"),
    ):
        module.load_state_dict(expected.state_dict())
        torch.testing.assert_close(module(x), expected(x))
    module = cls(5, 6, device="meta", **sizes)
    result = module(x.to("meta"))
    while isinstance(result, tuple):
        result = result[0]
    assert result.device.type == "meta" and result.shape[-1] == 6
    module.to_empty(device="cpu")
    torch.manual_seed(0)
    module.reset_parameters()
    torch.testing.assert_close(module(x), expected(x))


@pytest.mark.parametrize("name", LAYERS)
def test_weights_only(name: str) -> None:
    module = pair(name)[0]
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other = getattr(fusedrnn, name)(5, 6, dtype=torch.float64)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(inputs())[0], module(inputs())[0])


def work(module: nn.Module, x: Tensor, results: multiprocessing.SimpleQueue) -> None:
    y = module(x)[0]
    y.sum().backward()
    results.put((y.detach().numpy(), module.weight_hh_l0.grad.numpy()))


def test_shared_with_a_spawned_process() -> None:
    """Weights in shared memory: another process computes with what this one last wrote there."""
    module, x = fusedrnn.LSTM(5, 6).share_memory(), torch.randn(4, 3, 5)
    assert module.weight_hh_l0.is_shared()
    module(x)
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    child = context.Process(target=work, args=(module, x, results))
    child.start()
    child.join(timeout=120)
    assert child.exitcode == 0
    output, gradient = results.get()
    expected = module(x)[0]
    expected.sum().backward()
    assert torch.equal(torch.from_numpy(output), expected.detach())
    assert torch.equal(torch.from_numpy(gradient), module.weight_hh_l0.grad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*LAYERS, *STEPS])
def test_torchscript(name: str) -> None:
    """A trace works; a script cannot, and says so wherever in a model the module is."""
    module = pair(name)[0]
    x = inputs(3, 5) if name in STEPS else inputs()
    torch.testing.assert_close(torch.jit.trace(module, x)(x), module(x))

    class Scripted(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        @torch.jit.script_method
        def forward(self, x: Tensor):
            return self.layer(x)

    for compile in (
        lambda: torch.jit.script(module),
        lambda: torch.jit.script(nn.Sequential(module)),
        Scripted,
    ):
        with pytest.raises(NotImplementedError, match=f"cannot compile fusedrnn.{name}"):
            compile()


class Chain(nn.Module):
    """Layers that hand their states on, and the cell of their kind."""

    def __init__(self, package: object, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = getattr(package, name)(5, 6)
        self.decoder = getattr(package, name)(6, 6)
        self.cell = getattr(package, f"{name}Cell")(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.encoder(x)
        y, _ = self.decoder(y, hx=state)
        state = self.cell(y[1], self.cell(y[0]))
        return self.head(state[0] if isinstance(self.cell, fusedrnn.LSTMCell) else state)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERS)
def test_symbolic_traces(name: str) -> None:
    """To torch.fx and the quantization that stands on it, a module is a leaf."""
    model, x = Chain(fusedrnn, name), torch.randn(4, 3, 5)
    traced = torch.fx.symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["encoder", "decoder", "cell", "cell", "head"]
    torch.testing.assert_close(traced(x), model(x))
    quantize = pytest.importorskip("torch.ao.quantization.quantize_fx")
    mapping = pytest.importorskip("torch.ao.quantization").get_default_qconfig_mapping()
    prepared = quantize.prepare_fx(model.eval(), mapping, (x,))
    torch.testing.assert_close(prepared(x), model(x))


def test_lengths_in_a_symbolic_trace() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = fusedrnn.GRU(5, 6)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.layer(x, lengths=lengths)[0]

    model, given = Model(), (torch.randn(4, 3, 5), torch.tensor([4, 1, 2]))
    assert torch.equal(torch.fx.symbolic_trace(model)(*given), model(*given))
    with pytest.raises(TraceError, match="to torch.fx fusedrnn.GRU is one node of a graph"):
        torch.fx.symbolic_trace(model.layer)
