"""fusedrnn itself, seen as every peer is: its modules, and `fusedrnn.Streaming`.

A stream keeps its weights as the kernels read them, as panels in float32 or quantised to int8, and
its state from call to call; each timed call goes on from the state that the one before left.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.modules import ModulePeer, states_of
from benchmarks.peers.peer import Data, Peer, Step, beyond, module_arguments
from benchmarks.workloads import Case

OURS = ModulePeer("fusedrnn", namespace="fusedrnn", package="fusedrnn")


class StreamingPeer(Peer):
    """`fusedrnn.Streaming` on weights of dtype "float32" or "int8"."""

    def __init__(self, name: str, *, dtype: str) -> None:
        self.name = name
        self._dtype = dtype
        self._weights = "int8" if dtype == "int8" else "same"

    def available(self) -> bool:
        streaming = getattr(importlib.import_module("fusedrnn"), "Streaming", None)
        if streaming is None:
            return False
        try:
            streaming(torch.nn.RNN(1, 1), batch_size=1, weights=self._weights)
        except (TypeError, ValueError):
            return False
        return True

    def version(self) -> str:
        return OURS.version()

    def missing(self, case: Case) -> str | None:
        if not case.row.streamed:
            return "runs the rows that stream"
        if not self.available():
            return f"this build has no fusedrnn.Streaming with weights={self._weights!r}"
        if case.row.directions > 1:
            return "has one direction: the other would wait for the end of the stream"
        return beyond(case, dtype=self._dtype)

    def build(self, case: Case, data: Data) -> Step:
        fusedrnn = importlib.import_module("fusedrnn")
        module = getattr(fusedrnn, case.facts.module)(**module_arguments(case.row))
        module.load_state_dict(data.weights)
        stream = fusedrnn.Streaming(module, batch_size=case.row.B, weights=self._weights)
        return _Stream(stream, data)


class _Stream:
    """One chunk of all the case's steps, again and again."""

    def __init__(self, stream: Any, data: Data) -> None:
        self._stream = stream
        self._chunk = data.input
        self._hx = data.hx

    def repeat(self, calls: int) -> None:
        stream, chunk = self._stream, self._chunk
        for _ in range(calls):
            stream(chunk)

    def results(self) -> dict[str, Tensor]:
        self._stream.reset()
        if self._hx is not None:
            self._stream.state = self._hx
        output = self._stream(self._chunk)
        after = states_of(self._stream.state)
        return {"output": output, **dict(zip(("hn", "cn"), after, strict=False))}


STREAMING = StreamingPeer("fusedrnn Streaming", dtype="float32")
STREAMING_INT8 = StreamingPeer("fusedrnn Streaming int8", dtype="int8")
