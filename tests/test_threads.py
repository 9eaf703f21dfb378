"""Threads, processes and the interpreter's lock."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import in_a_process

import fusedrnn
from fusedrnn import _C


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork_what_is_not_contiguous() -> None:
    """Nor do copies wait for the parent's threads, which torch's do of more than 32768 values."""
    out = in_a_process("""
        import os, signal, torch
        from fusedrnn._engine import ops
        torch.set_num_threads(2)

        def spread(*shape):  # no dimension is where it was
            return torch.randn(*shape[::-1]).permute(*reversed(range(len(shape))))

        H = 128
        x, w = spread(20, 16, 200), [spread(4 * H, 200), spread(4 * H, H)]
        h, c = spread(1, 300, H), spread(1, 300, H)
        lstm = ("lstm", False, False, False)
        y, hn, reserve = ops.layer_forward(x, None, [], w, *lstm, True)
        dy, many = spread(20, 16, H), spread(1, 300, 200)

        def results():
            for call in ((x, None, [], w, *lstm, True), (many, None, [h, c], w, *lstm, False)):
                y_, hn_, reserve_ = ops.layer_forward(*call)
                yield from (y_, *hn_, reserve_)
            dx, _, dw = ops.layer_backward(dy, [], x, None, [], w, y, reserve, *lstm, -1)
            yield from (dx, *dw)
            yield ops.make_panels(w, *lstm)
            yield ops.quantize_weights(w, "lstm", False, False)
            none, _, kept = ops.layer_forward(x[:, :0], None, [], w, *lstm, True)
            yield from ops.layer_backward(none, [], x[:, :0], None, [], w, none, kept, *lstm,
                                          -1)[2]

        wanted = [t.numpy().tobytes() for t in results()]
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os._exit([t.numpy().tobytes() for t in results()] != wanted)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert out == "0\n"


def test_more_threads_than_cores() -> None:
    module = fusedrnn.GRU(32, 200)
    x = torch.randn(10, 3, 32)
    expected = module(x)[0]
    torch.set_num_threads(4 * (os.cpu_count() or 1))
    assert torch.equal(module(x)[0], expected)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_team_is_no_larger_than_the_processors_allowed() -> None:
    """By affinity, which may change at any time; what is asked for changes nothing."""
    out = in_a_process(
        """
        import os, torch, fusedrnn
        from fusedrnn import _C
        sizes = dict(time=50, batch=1, input_size=512, hidden_size=512)
        torch.set_num_threads(16)
        module, x = fusedrnn.LSTM(512, 512), torch.randn(50, 1, 512)
        before = module(x)[0]
        print(_C.usable_processors() == len(os.sched_getaffinity(0)))
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        print(_C.usable_processors(), fusedrnn.plan("lstm", **sizes).threads)
        print(fusedrnn.plan("lstm", **sizes, threads=16).threads)
        print(torch.equal(module(x)[0], before))
        """,
        FUSEDRNN_PROCESSORS="",
    )
    assert out == "True\n1 1\n16\nTrue\n"
    bound = "from fusedrnn import _C; print(_C.usable_processors() > 1000)"
    assert in_a_process(bound, FUSEDRNN_PROCESSORS="", OMP_PROC_BIND="true") == "True\n"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, 0),
        ("0::/a/b", {"cpu.max": "800000 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "max 100000"}, 0.5),
        ("0::/elsewhere", {"cpu.max": "300000 100000"}, 3),
        ("4:memory:/x\n3:cpu,cpuacct:/x",
         {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpu:/x", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ("3:cpuset:/\nnonsense\n::", {"cpu.max": "what"}, 0),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(
    membership: str, files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    for name, text in {"membership": membership, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert _C.quota_of(str(tmp_path / "membership"), str(tmp_path)) == quota
    assert _C.quota_of(str(tmp_path / "nothing"), str(tmp_path)) == 0


@pytest.mark.parametrize("given", ["0", "two", "-1", "9999999"])
def test_a_number_of_processors_that_makes_no_sense(given: str) -> None:
    out = in_a_process(
        """
        import torch, fusedrnn
        try:
            fusedrnn.LSTM(2, 3)(torch.zeros(2, 2))
        except RuntimeError as error:
            print(error)
        """,
        FUSEDRNN_PROCESSORS=given,
    )
    assert f'FUSEDRNN_PROCESSORS: expected a positive whole number, got "{given}"' in out


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
    # Were the lock held, this thread would tick only between the calls.
    assert sum(begin < t < end for t in ticks) > 5
