"""What is timed: fusedrnn (`ours.py`) and each of its peers, one file each, with one interface.

A peer builds a `Step` from a case and its data (`peer.py`). All steps of one case get the same
weights and the same inputs and return their results under the same names, so that the runner can
check them against torch.nn's before it times anything.

Every ratio is to torch.nn. The others run if they are asked for (`--peers`) and installed
(`pip install '.[peers]'`); a library is imported when its first case is built.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.checkpointed import checkpointed, checkpointed_torch
from benchmarks.peers.jax_scan import JAX_SCAN
from benchmarks.peers.keras_xla import KERAS_XLA
from benchmarks.peers.onnx_runtime import ONNX_RUNTIME, ONNX_RUNTIME_INT8
from benchmarks.peers.open_vino import OPEN_VINO
from benchmarks.peers.ours import OURS, STREAMING, STREAMING_INT8
from benchmarks.peers.peer import Peer
from benchmarks.peers.torch_int8 import TORCH_INT8
from benchmarks.peers.torch_nn import TORCH_NN
from benchmarks.workloads import Case

PEERS: tuple[Peer, ...] = (TORCH_NN,)
OTHERS: tuple[Peer, ...] = (
    ONNX_RUNTIME, OPEN_VINO, KERAS_XLA, JAX_SCAN, ONNX_RUNTIME_INT8, TORCH_INT8,
)  # fmt: skip


def lead(case: Case) -> Peer:
    """The side of ours that the ratios of a case are of."""
    return STREAMING_INT8 if case.dtype == "int8" else OURS


def named(name: str) -> Peer:
    """The peer of that name that memory is measured of, in whatever process it is asked for."""
    base, _, k = name.partition(" checkpoint=")
    if k:
        return (checkpointed if base == OURS.name else checkpointed_torch)(int(k))
    return next(peer for peer in (OURS, *PEERS) if peer.name == name)


def peers_named(names: Sequence[str]) -> tuple[Peer, ...]:
    """The peers of `names`, torch.nn always among them; `all` are those that are installed.

    Raises ValueError for a name that there is no peer of.
    """
    known = {peer.name: peer for peer in (*PEERS, *OTHERS)}
    for name in names:
        if name != "all" and name not in known:
            raise ValueError(f"peers: expected all, or some of {', '.join(known)}; got {name!r}")
    chosen = [
        peer
        for name, peer in known.items()
        if name in names or ("all" in names and peer.available())
    ]
    return tuple(dict.fromkeys((*PEERS, *chosen)))


__all__ = [
    "OTHERS", "OURS", "PEERS", "STREAMING", "STREAMING_INT8", "TORCH_NN", "Peer", "checkpointed",
    "checkpointed_torch", "lead", "named", "peers_named",
]  # fmt: skip
