"""What is timed: fusedrnn (`ours.py`) and each of its peers, one file each, behind one seam.

A peer builds a `Step` from a case and its data (`peer.py`). All steps of one case get the same
weights and the same inputs and give back their results under the same names, so that the runner
can check them against each other before it times anything.
"""

from __future__ import annotations

from benchmarks.peers.checkpointed import checkpointed, checkpointed_torch
from benchmarks.peers.ours import OURS
from benchmarks.peers.peer import Peer
from benchmarks.peers.torch_nn import TORCH_NN

PEERS: tuple[Peer, ...] = (TORCH_NN,)

__all__ = [
    "OURS", "PEERS", "TORCH_NN", "Peer", "checkpointed", "checkpointed_torch", "named",
]  # fmt: skip


def named(name: str) -> Peer:
    """The peer of that name, in whatever process it is asked for."""
    base, _, k = name.partition(" checkpoint=")
    if k:
        return (checkpointed if base == OURS.name else checkpointed_torch)(int(k))
    return next(peer for peer in (OURS, *PEERS) if peer.name == name)
