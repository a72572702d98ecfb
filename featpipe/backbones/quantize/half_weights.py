"""Weights stored as 16-bit floats; the arithmetic stays in 32 bits.

Half the size, and the same vectors on every processor: ONNX Runtime turns the weights back
once, when it loads the file. Arithmetic in 16 bits would be no smaller, and on a CPU slower.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featpipe.backbones.quantize.prepare import check_is_float
from featpipe.errors import BackboneError

_SMALLEST = 256
"""Fewer numbers than this stay as they are: biases, constants of the normalisation."""
_LARGEST = float(np.finfo(np.float16).max)


def halve_weights(data: bytes, name: str) -> onnx.ModelProto:
    """Return a new model whose weights are stored in half the size.

    Raises
    ------
    BackboneError
        When it is quantised already, or has no weights worth it.
    """
    model = onnx.load_model_from_string(data)
    check_is_float(model, name)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALLEST:
            continue
        values = numpy_helper.to_array(tensor)
        if len(values.shape) < 2 or np.abs(values).max() > _LARGEST:
            continue
        original, stored = tensor.name, f"{tensor.name}_fp16"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(
            helper.make_node("Cast", [stored], [original], f"{stored}_cast", to=TensorProto.FLOAT)
        )
    if not casts:
        raise BackboneError(
            f"{name} has no weights that 16 bits would make smaller: nothing was written"
        )
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    return model
