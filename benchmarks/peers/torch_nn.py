"""`torch.nn`: the peer that every figure is a ratio to."""

from __future__ import annotations

from benchmarks.peers.modules import ModulePeer

TORCH_NN = ModulePeer("torch.nn", namespace="torch.nn", package="torch")
