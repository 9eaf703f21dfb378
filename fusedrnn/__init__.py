"""fusedrnn: drop-in RNN, LSTM and GRU for PyTorch on fused kernels.

    fusedrnn.LSTM(10, 20)        what torch.nn.LSTM(10, 20) is: same arguments, same parameters
    fusedrnn.replace(model)      puts these modules in place of torch.nn's in a model
    fusedrnn.Streaming(module)   inference step by step, with the state kept between calls
    fusedrnn.cell(...)           a cell of one's own, written in PyTorch; fusedrnn.cells has a zoo
    fusedrnn.Recurrent(cell, ..) its layers, with all that LSTM has
    fusedrnn.truncated_bptt(...) training on long sequences window by window
    fusedrnn.functional          the same without a module
    fusedrnn.from_keras(layer)   the module of a Keras layer, with its weights
    fusedrnn.from_tf1(...)       the same from a TensorFlow 1 checkpoint
    fusedrnn.from_onnx(...)      the same from an ONNX node
    fusedrnn.onnx.export(...)    a model with these modules as ONNX's own operators
    fusedrnn.inspect             gates, states and gradients of every step, drawn
    fusedrnn.memory_pool         memory that is kept for the next call: how much, and freeing it
    fusedrnn.plan(...)           how a call would be run: threads, steps at once, team
    fusedrnn.build_info()        what this build was made with and for

Importing it loads the native library; nothing else happens.
"""

from __future__ import annotations

__version__ = "0.1.0"  # of the package and of its libraries; setuptools reads it here

# First: it says what is missing, before anything else needs it.
from fusedrnn._engine import native  # noqa: F401

# isort: split
from fusedrnn import cells, functional, inspect, memory_pool, modules, onnx
from fusedrnn.cells.written import cell
from fusedrnn.convert import Replacement, from_keras, from_onnx, from_tf1, replace
from fusedrnn.modules import *  # noqa: F403
from fusedrnn.plans import CudaPlan, CudaWalk, Gpu, Plan, build_info, plan
from fusedrnn.streaming import Streaming
from fusedrnn.truncated import truncated_bptt

__all__ = [  # noqa: PLE0604
    *modules.__all__,
    "CudaPlan",
    "CudaWalk",
    "Gpu",
    "Plan",
    "Replacement",
    "Streaming",
    "build_info",
    "cell",
    "cells",
    "from_keras",
    "from_onnx",
    "from_tf1",
    "functional",
    "inspect",
    "memory_pool",
    "onnx",
    "plan",
    "replace",
    "truncated_bptt",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
