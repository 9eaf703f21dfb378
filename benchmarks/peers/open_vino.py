"""OpenVINO on the case's ONNX model: one request at a time, in float32 even where bf16 is fast."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import onnx_model
from benchmarks.peers.peer import CallStep, Data, OptionalPeer, Step, beyond
from benchmarks.workloads import Case


class OpenVino(OptionalPeer):
    """Inference in float32 of every cell."""

    name = "OpenVINO"
    packages = ("onnx", "openvino")

    def missing(self, case: Case) -> str | None:
        return beyond(case, packed=True)

    def build(self, case: Case, data: Data) -> Step:
        import openvino

        core = openvino.Core()
        model = core.read_model(onnx_model.model(case, data).SerializeToString())
        options = {
            "INFERENCE_NUM_THREADS": case.threads, "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
        }  # fmt: skip
        request = core.compile_model(model, "CPU", options).create_infer_request()
        feeds = onnx_model.feeds(data)

        def call() -> Any:
            return request.infer(feeds, share_inputs=True, share_outputs=True)

        def named(values: Any) -> dict[str, Any]:
            results = {port.get_any_name(): value.copy() for port, value in values.items()}
            return onnx_model.named(case, data, results)

        return CallStep(call, named)


OPEN_VINO = OpenVino()
