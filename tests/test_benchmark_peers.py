"""The benchmark's peers against torch.nn's numbers: that weights, gates and states are put right.

Each is skipped where its library is not installed (`pip install '.[peers]'`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.peers import KERAS_XLA, OTHERS, STREAMING, STREAMING_INT8, TORCH_NN
from benchmarks.peers.peer import ThreadsOnce, beyond, make_data
from benchmarks.workloads import CELLS, DTYPES, PROJECTED, Case, Row
from fusedrnn.testing.parity import check_parity

PLAIN = Row(name="X", source="", T=5, I=3, H=6, B=4, dtypes=DTYPES)
ROWS = {
    "plain": PLAIN,
    "stacked": replace(PLAIN, layers=2, directions=2),
    "state": replace(PLAIN, T=1, B=1, given_state=True),
    "packed": replace(PLAIN, directions=2, packed=True),
    "projected": replace(PLAIN, proj_size=2, cells=PROJECTED),
}
THREADS = 1  # the same in every case: some libraries set them once in a process
TESTED = [
    pytest.param(
        peer,
        id=peer.name,
        marks=[pytest.mark.thorough] if peer is KERAS_XLA else [],  # half a minute of imports
    )
    for peer in (*OTHERS, STREAMING, STREAMING_INT8)
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("peer", TESTED)
def test_numbers_are_those_of_torch_nn(peer, kind, cell) -> None:
    if not peer.available():
        pytest.skip(f"{peer.name} is not installed")
    row = ROWS[kind]
    if cell not in row.cells:
        pytest.skip("torch.nn projects only the LSTM")
    chosen = [
        case
        for mode, dtype in (("forward", "float32"), ("train", "float32"), ("forward", "int8"))
        if peer.missing(
            case := Case(row=row, cell=cell, mode=mode, threads=THREADS, dtype=dtype)
        ) is None
    ]  # fmt: skip
    if not chosen:
        pytest.skip(f"{peer.name} has no such case")
    for case in chosen:
        data = make_data(case)
        expected = TORCH_NN.build(case, data).results()
        step = peer.build(case, data)
        step.repeat(2)
        got = step.results()
        check_parity(got, expected, dtype=case.dtype, peer=TORCH_NN.name)
        assert got.keys() == expected.keys()
        if case.dtype == "float32":  # closer than what the runner asks for
            for name, tensor in expected.items():
                assert (got[name] - tensor).abs().max() < 1e-5, f"{case.label}: {name}"


@pytest.mark.parametrize("peer", OTHERS, ids=lambda peer: peer.name)
def test_what_a_peer_cannot_do_it_says(peer) -> None:
    for row, dtype in (
        (replace(PLAIN, resets=0.1), "float32"),
        (PLAIN, "bfloat16"),
        (replace(PLAIN, device="cuda"), "float32"),
    ):
        case = Case(row=row, cell="lstm", mode="forward", threads=THREADS, dtype=dtype)
        assert peer.missing(case)
    assert TORCH_NN.missing(Case(row=PLAIN, cell="lstm", mode="train", threads=THREADS)) is None


def test_reasons_name_what_is_beyond() -> None:
    case = Case(row=ROWS["packed"], cell="gru", mode="train", threads=1)
    assert beyond(case) == "has no training"
    assert beyond(case, modes=("train",)) == "has no packed sequences"
    assert beyond(case, modes=("train",), packed=True) is None
    assert "only lstm" in (beyond(case, cells=("lstm",)) or "")


def test_threads_that_are_set_once() -> None:
    threads = ThreadsOnce("It")
    assert threads.missing(2) is None and threads.claim(2)
    assert not threads.claim(2) and threads.missing(2) is None
    assert "2 in this one" in (threads.missing(1) or "")
