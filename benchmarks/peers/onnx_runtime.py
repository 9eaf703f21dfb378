"""onnxruntime on the case's ONNX model: in float32, and quantised dynamically to int8.

Packed rows run padded, with the lengths beside them. With its defaults, `quantize_dynamic`
quantises only the LSTM to int8 (DynamicQuantizeLSTM, one scale per weight); it leaves a GRU and an
RNN as they are.
"""

from __future__ import annotations

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import onnx_model
from benchmarks.peers.peer import CallStep, Data, OptionalPeer, Step, beyond
from benchmarks.workloads import Case


class OnnxRuntime(OptionalPeer):
    """Inference in float32 of every cell."""

    name = "onnxruntime"
    packages = ("onnx", "onnxruntime")

    def missing(self, case: Case) -> str | None:
        return beyond(case, packed=True)

    def build(self, case: Case, data: Data) -> Step:
        return _step(onnx_model.model(case, data).SerializeToString(), case, data)


class OnnxRuntimeInt8(OnnxRuntime):
    """Inference of the LSTM with weights of int8."""

    name = "onnxruntime int8"

    def missing(self, case: Case) -> str | None:
        return beyond(case, dtype="int8", cells=("lstm",))

    def build(self, case: Case, data: Data) -> Step:
        from onnx import save
        from onnxruntime.quantization import quantize_dynamic

        logging.getLogger().setLevel(logging.ERROR)  # it recommends a preparation that we need not
        with tempfile.TemporaryDirectory() as folder:
            whole, quantised = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
            save(onnx_model.model(case, data), whole)
            quantize_dynamic(whole, quantised)
            return _step(quantised.read_bytes(), case, data)


def _step(model: bytes, case: Case, data: Data) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def named(values: list[Any]) -> dict[str, Any]:
        return onnx_model.named(case, data, dict(zip(names, values, strict=True)))

    return CallStep(partial(session.run, None, onnx_model.feeds(data)), named)


ONNX_RUNTIME, ONNX_RUNTIME_INT8 = OnnxRuntime(), OnnxRuntimeInt8()
