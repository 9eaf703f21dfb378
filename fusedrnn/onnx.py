"""`fusedrnn.onnx`: models with our modules as ONNX's own operators; see convert/onnx.py."""

from fusedrnn.convert.onnx import export, translation_table

__all__ = ["export", "translation_table"]
