"""What is kept, for how long, and that the pool is bounded."""

from __future__ import annotations

import gc
import os
import weakref

import pytest
import torch
from conftest import CELLS
from processes import in_a_process

import fusedrnn
from fusedrnn import memory_pool
from fusedrnn.cells import RESERVE_UNITS, cell_named


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("H", [1, 16, 33])
def test_reserve_holds_what_backward_needs(cell: str, H: int) -> None:
    facts = cell_named(cell)
    weights = [torch.randn(shape) for shape in facts.shapes(7, H, biases=False).values()]
    x = torch.randn(5, 3, 7)
    padded = -(-H // RESERVE_UNITS) * RESERVE_UNITS
    for save, shape in ((True, (1, 15, len(facts.saved), padded)), (False, (0,))):
        reserve = torch.ops.fusedrnn.layer_forward(
            x, None, [], weights, facts.spec, False, False, False, save
        )[2]
        assert reserve.shape == shape


def test_nothing_is_saved_without_a_gradient() -> None:
    saved = []
    module = fusedrnn.LSTM(8, 16)
    x = torch.randn(5, 3, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        with torch.no_grad():
            module(x)
        module.requires_grad_(False)(x)
        assert saved == []
        module.requires_grad_(True)(x)
        assert saved


def test_a_graph_that_never_ran_is_freed() -> None:
    module = fusedrnn.GRU(8, 16)
    x = torch.randn(50, 30, 8)
    alive = [weakref.ref(module(x)[0]) for _ in range(3)]
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_training_does_not_grow() -> None:
    module = fusedrnn.LSTM(64, 128, num_layers=2)
    sizes = [(t, b) for t in (20, 50, 70) for b in (16, 40)]

    def round_of_steps() -> None:
        for t, b in sizes:
            x = torch.randn(t, b, 64, requires_grad=True)
            module(x)[0].sum().backward()

    for _ in range(4):
        round_of_steps()
    before = resident()
    for _ in range(10):
        round_of_steps()
    assert resident() - before < 64 << 20


def test_outputs_are_ordinary_tensors() -> None:
    module = fusedrnn.LSTM(64, 128)
    with torch.no_grad():
        output, _ = module(torch.randn(50, 20, 64))
    kept = output.clone()
    view = output.numpy()
    shared = output.share_memory_()
    assert torch.equal(shared, kept)
    del output
    gc.collect()
    for _ in range(5):
        module(torch.randn(50, 20, 64))
    assert torch.equal(shared, kept)
    assert view.shape == (50, 20, 128)


def test_what_the_pool_holds() -> None:
    gc.collect()
    memory_pool.trim()
    assert memory_pool.held_bytes() == 0
    module = fusedrnn.LSTM(64, 128)
    with torch.no_grad():
        output, _ = module(torch.randn(50, 20, 64))
    scratch = memory_pool.held_bytes()
    assert 0 < scratch <= memory_pool.limit_bytes()
    pooled = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
    kept = output.clone()
    memory_pool.trim()
    assert memory_pool.held_bytes() == 0
    assert torch.equal(output, kept)  # in use, so none of the pool's business
    bytes_of_output = output.numel() * output.element_size()
    del output
    assert memory_pool.held_bytes() >= (bytes_of_output if pooled else 0)
    memory_pool.trim()
    assert memory_pool.held_bytes() == 0


POOL_SIZES = {
    "0": "0\n0 True\n",
    "1": "1048576\nTrue True\n",  # a buffer beyond the bound drives no other out
    "much": """FUSEDRNN_POOL_MB: expected a whole number of MiB, got "much"\n0 refused\n""",
}


@pytest.mark.parametrize("megabytes", POOL_SIZES)
def test_size_of_the_pool(megabytes: str) -> None:
    out = in_a_process(
        """
        import fusedrnn, torch
        from fusedrnn import memory_pool
        try:
            print(memory_pool.limit_bytes())
        except RuntimeError as error:
            print(error)
        try:
            with torch.no_grad():
                fusedrnn.LSTM(8, 16)(torch.ones(100, 20, 8))
                before = memory_pool.held_bytes()
                fusedrnn.RNN(8, 8)(torch.ones(1000, 64, 8))  # 2 MB of output
            after = memory_pool.held_bytes()
            print(before and 0 < after, after <= memory_pool.limit_bytes())
        except RuntimeError:
            print(memory_pool.held_bytes(), "refused")
        """,
        FUSEDRNN_POOL_MB=megabytes,
    )
    assert out == POOL_SIZES[megabytes]
