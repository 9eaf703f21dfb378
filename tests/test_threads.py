"""Threads, processes and the interpreter's lock."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch
from processes import in_a_process

import fusedrnn


def test_from_several_python_threads() -> None:
    module = fusedrnn.LSTM(32, 64, bidirectional=True)
    x = torch.randn(20, 16, 32, requires_grad=True)
    output, _ = module(x)
    (expected,) = torch.autograd.grad(output.sum(), x)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(10):
            found, _ = module(x)
            if not torch.equal(found, output):
                wrong.append("output")
            if not torch.equal(torch.autograd.grad(found.sum(), x)[0], expected):
                wrong.append("gradient")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork() -> None:
    """The child has no thread pool of the parent's, and works all the same."""
    out = in_a_process("""
        import os, signal, torch, fusedrnn
        torch.set_num_threads(2)
        module = fusedrnn.LSTM(32, 64)
        x = torch.randn(20, 16, 32, requires_grad=True)
        y, _ = module(x)
        weight = torch.ones_like(y)
        (g,) = torch.autograd.grad(y, x, weight, retain_graph=True)
        wanted = y.detach().numpy().tobytes(), g.numpy().tobytes()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            z, _ = module(x)
            z.backward(weight)
            same = (z.detach().numpy().tobytes(), x.grad.numpy().tobytes()) == wanted
            os._exit(0 if same else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert out == "0\n"


def test_more_threads_than_cores() -> None:
    module = fusedrnn.GRU(32, 200)
    x = torch.randn(10, 3, 32)
    expected = module(x)[0]
    torch.set_num_threads(4 * (os.cpu_count() or 1))
    assert torch.equal(module(x)[0], expected)


def test_the_interpreter_is_free_meanwhile() -> None:
    module = fusedrnn.LSTM(256, 512)
    x = torch.randn(100, 32, 256)
    ticks, running = [], True

    def tick() -> None:
        while running:
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    with torch.no_grad():
        module(x)
        thread = threading.Thread(target=tick)
        thread.start()
        begin = time.perf_counter()
        for _ in range(3):
            module(x)
        end = time.perf_counter()
        running = False
        thread.join()
    # Were the lock held, this thread would tick between the calls alone.
    assert sum(begin < t < end for t in ticks) > 5
