"""fusedrnn itself, seen as every peer is."""

from __future__ import annotations

from benchmarks.peers.modules import ModulePeer

OURS = ModulePeer("fusedrnn", namespace="fusedrnn", package="fusedrnn")
