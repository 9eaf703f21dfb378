"""Sides that keep states instead of gates: fusedrnn's `checkpoint=k`, and what torch offers for it.

With torch, a training loop has to cut the sequence by hand and give each chunk to
`torch.utils.checkpoint`, as `LSTM` and `GRU` do here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as computed_again

from benchmarks.peers.modules import Around, ModulePeer


def checkpointed(k: int) -> ModulePeer:
    """fusedrnn with checkpoints at every k steps."""
    return ModulePeer(
        f"fusedrnn checkpoint={k}", namespace="fusedrnn", package="fusedrnn", checkpoint=k
    )


def checkpointed_torch(k: int) -> ModulePeer:
    """torch.nn on chunks of k steps, each under torch.utils.checkpoint."""
    return ModulePeer(f"torch.nn checkpoint={k}", namespace=__name__, package="torch", checkpoint=k)


class _Chunked(Around):
    def __init__(self, kind: type[nn.Module], checkpoint: int, **options: Any) -> None:
        super().__init__(kind(**options))
        self._checkpoint = checkpoint

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        outputs = []
        for chunk in input.split(self._checkpoint):
            output, hx = computed_again(self._network, chunk, hx, use_reentrant=False)
            outputs.append(output)
        return torch.cat(outputs), hx


class LSTM(_Chunked):
    """`torch.nn.LSTM`, chunk by chunk."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nn.LSTM, **options)


class GRU(_Chunked):
    """`torch.nn.GRU`, chunk by chunk."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nn.GRU, **options)
