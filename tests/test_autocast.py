"""Mixed precision: under autocast everything has torch.nn's dtypes; gradient scaling."""

from __future__ import annotations

import itertools
import warnings
from contextlib import nullcontext

import pytest
import torch
from conftest import MODULE_FACTS, TORCH_MODULES
from test_contract import both
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn

STACK = {"num_layers": 2, "bidirectional": True}
NETWORKS = {
    "LSTM": ("LSTM", {}), "LSTM stack": ("LSTM", STACK), "LSTM no bias": ("LSTM", {"bias": False}),
    "LSTM projected": ("LSTM", {"proj_size": 3}),
    "LSTM projected stack": ("LSTM", {"proj_size": 3} | STACK),
    "GRU": ("GRU", {}), "GRU stack": ("GRU", STACK),
    "RNN": ("RNN", {}), "RNN relu stack": ("RNN", {"nonlinearity": "relu"} | STACK),
    "LSTMCell": ("LSTMCell", {}), "GRUCell": ("GRUCell", {}), "RNNCell": ("RNNCell", {}),
}  # fmt: skip
HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)
# dtypes of weights, input and states; float64 goes with nothing else in torch.nn
MIXTURES = [*itertools.product(FLOATS, FLOATS, (None, *FLOATS)), (torch.float64,) * 3]


def flat(result: object) -> list[Tensor]:
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def run(
    module: nn.Module, kind: str, dtype: torch.dtype, x: torch.dtype, states: torch.dtype | None
) -> dict[str, list[Tensor]]:
    """One pass under autocast to `dtype`: results and gradients."""
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int, to: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(to).requires_grad_()

    cell = isinstance(module, nn.RNNCellBase)
    leaves = [leaf(*(() if cell else (4,)), 3, 5, to=x)]
    if states is not None:
        parts = () if cell else (module.num_layers * (1 + module.bidirectional),)
        leaves.append(leaf(*parts, 3, getattr(module, "proj_size", 0) or 6, to=states))
        facts = MODULE_FACTS[type(module).__name__.removesuffix("Cell")]
        for _ in facts.states[1:]:
            leaves.append(leaf(*parts, 3, 6, to=states))
    input, *hx = leaves
    if kind == "unbatched":
        input, hx = input[..., 0, :], [h[..., 0, :] for h in hx]
    if kind == "packed":
        input = pack_padded_sequence(input, [4, 3, 1])
    given = None if not hx else tuple(hx) if len(hx) > 1 else hx[0]
    with torch.autocast("cpu", dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.nn's, that oneDNN has no projections
        results = flat(module(input, given))
    torch.autograd.backward(results, [torch.ones_like(r) for r in results])
    leaves += list(module.parameters())
    return {"results": results, "gradients": [p.grad for p in leaves if p.grad is not None]}


@pytest.mark.parametrize("network", NETWORKS)
def test_dtypes_are_torch_nn_s(network: str) -> None:
    """Every dtype of parameters, input and states, wherever torch.nn takes them together."""
    name, options = NETWORKS[network]
    torch.set_num_threads(1)  # these are tiny
    kinds = ["batch", "unbatched"] + ["packed"] * (not name.endswith("Cell"))
    compared = 0
    for (weights, x, states), dtype, kind in itertools.product(MIXTURES, HALVES, kinds):
        ours, theirs = both(name, 5, 6, **options, dtype=weights)
        case = f"{weights}, {x}, {states}, {kind}, autocast to {dtype}"
        try:
            expected = run(theirs, kind, dtype, x, states)
        except RuntimeError:
            continue  # float64, or no fp16 in oneDNN
        found = run(ours, kind, dtype, x, states)
        compared += 1
        for what, tensors in expected.items():
            assert [t.dtype for t in found[what]] == [t.dtype for t in tensors], (case, what)
            if what == "gradients" and "relu" in network:
                continue  # rounding decides about a unit that is almost at 0
            for a, b in zip(found[what], tensors, strict=True):
                torch.testing.assert_close(a.float(), b.float(), atol=0.1, rtol=0.05, msg=case)
    assert compared > 50


@pytest.mark.parametrize("name", TORCH_MODULES)
def test_regions_and_cache(name: str) -> None:
    """Regions within regions, and one cast of weights for two calls."""
    results = []
    for module in both(name, 5, 6):
        x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            first = module(x)[0]
            with torch.autocast("cpu", enabled=False):
                inside = module(x)[0]
                with pytest.raises(ValueError, match="dtype"):
                    module(x.bfloat16())
            with torch.no_grad():
                module(x)
            second = module(x)[0]
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            third = module(x)[0]
        (first.float() + 2 * second.float() + 3 * third.float() + inside).sum().backward()
        results.append([first, inside, second, third, *(p.grad for p in module.parameters())])
        assert torch.equal(inside, module(x)[0])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_cuda_dtypes_are_torch_nn_s(network: str, dtype: torch.dtype) -> None:
    if not fusedrnn.build_info()["cuda"]:
        pytest.skip("needs a build with CUDA")
    name, options = NETWORKS[network]
    found = []
    for module in both(name, 5, 6, device="cuda", **options):
        x = torch.randn(*(() if name.endswith("Cell") else (4,)), 3, 5, device="cuda")
        with torch.autocast("cuda", dtype):
            results = flat(module(x))
        torch.autograd.backward(results, [torch.ones_like(r) for r in results])
        found.append([t.dtype for t in (*results, *(p.grad for p in module.parameters()))])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", TORCH_MODULES)
def test_compiled_under_autocast(name: str) -> None:
    torch._dynamo.reset()
    module = both(name, 5, 6)[0]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = module(x)[0], compiled(x)[0]
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", TORCH_MODULES)
@pytest.mark.parametrize("cast", [True, False], ids=["autocast", "float32"])
def test_scaled_gradients(name: str, cast: bool) -> None:
    """A step whose gradients overflow is skipped and halves the scale; the next one counts."""
    module = both(name, 5, 6)[0]
    x = torch.randn(4, 3, 5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    for factor, scale in ((1e38, 512.0), (1.0, 1024.0)):
        before = parameters_to_vector(module.parameters()).detach().clone()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if cast else nullcontext():
            loss = module(x)[0].float().square().mean() * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        after = parameters_to_vector(module.parameters()).detach()
        assert scaler.get_scale() == scale
        assert torch.equal(before, after) == (factor > 1)
        assert after.isfinite().all()
