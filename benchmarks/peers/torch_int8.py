"""`torch.ao.quantization.quantize_dynamic`: int8 weights, activations quantised as they come."""

from __future__ import annotations

import warnings

import torch

from benchmarks.peers.modules import Inference
from benchmarks.peers.peer import Data, Peer, Step, beyond, module_arguments
from benchmarks.peers.torch_nn import TORCH_NN
from benchmarks.workloads import Case

CLASSES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
"""The cells for which torch has an int8 layer; it has none for a whole RNN."""


class TorchInt8(Peer):
    """Inference of LSTM and GRU with weights of int8."""

    name = "torch int8 dynamic"

    def available(self) -> bool:
        return any(engine != "none" for engine in torch.backends.quantized.supported_engines)

    def version(self) -> str:
        return TORCH_NN.version()

    def missing(self, case: Case) -> str | None:
        return beyond(case, dtype="int8", cells=tuple(CLASSES))

    def build(self, case: Case, data: Data) -> Step:
        module = CLASSES[case.cell](**module_arguments(case.row))
        module.load_state_dict(data.weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and has no heir for RNNs
            holder = torch.ao.quantization.quantize_dynamic(  # it replaces children
                torch.nn.ModuleList([module.eval()]), {type(module)}, dtype=torch.qint8
            )
        return Inference(holder[0], data)


TORCH_INT8 = TorchInt8()
