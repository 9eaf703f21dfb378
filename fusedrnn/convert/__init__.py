"""Modules of ours from other people's: torch.nn's, Keras', TensorFlow 1's, ONNX's."""

from fusedrnn.convert.keras import from_keras
from fusedrnn.convert.onnx import from_onnx
from fusedrnn.convert.replace import Replacement
from fusedrnn.convert.replace import replace as replace
from fusedrnn.convert.tensorflow1 import from_tf1

__all__ = ["Replacement", "from_keras", "from_onnx", "from_tf1", "replace"]
