"""A backbone in 16-bit floats, made in memory for devices that are faster with them."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16


def to_half(model: bytes) -> bytes:
    """Return the model with 16-bit weights and arithmetic; inputs and outputs stay as they are."""
    converted: onnx.ModelProto = convert_float_to_float16(
        onnx.load_model_from_string(model), keep_io_types=True
    )
    data: bytes = converted.SerializeToString()
    return data
