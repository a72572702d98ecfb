"""A backbone with the shape of another one and weights that have learnt nothing.

What its vectors allow is owed to the architecture and to the images, none of it to
pretraining: the figure that a pretrained backbone has to beat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from featpipe._files import atomic_file
from featpipe.backbones import Backbone
from featpipe.backbones.card import MAX_NAME
from featpipe.backbones.contract import check_backbone
from featpipe.backbones.writing import finish
from featpipe.errors import BackboneError

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_RECTIFIERS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "Sigmoid", "Mul", "Elu"}
)
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})


def randomise(backbone: Backbone, path: Path, seed: int = 0) -> Backbone:
    """Write a backbone of the same shape with weights drawn at random, and return it.

    Weights of convolutions and products are drawn from a normal distribution of variance
    2 / fan-in where a rectifier follows, 1 / fan-in elsewhere; biases are zero; batch
    normalisation passes its input on. Other constants (the normalisation of the pixels,
    scales) are kept. Equal seeds give equal files.

    Parameters
    ----------
    backbone : Backbone
    path : Path
        The file to write.
    seed : int

    Raises
    ------
    BackboneError
        When the backbone holds no weights as floating-point numbers, as a quantised one.
    WriteError
        When the file cannot be written.

    References
    ----------
    He, Zhang, Ren, Sun 2015, "Delving Deep into Rectifiers", ICCV, equation 10.
    """
    model = onnx.load_model_from_string(backbone.take_file().data)
    _draw(model.graph, np.random.default_rng(seed))
    # The fingerprint tells files apart; the name is for people, and has its longest length.
    name = f"random-{backbone.name}"[:MAX_NAME]
    card = replace(backbone.card, name=name, weights="drawn at random", fingerprint="")
    data, card = finish(model, card)
    file = check_backbone(path, data)
    with atomic_file(path) as out:
        out.write(data)
    return Backbone(card, path, [file])


def _draw(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    followers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            followers.setdefault(name, set()).add(node.op_type)
    drawn = set[str]()
    for node in graph.node:
        if node.op_type in _LAYERS:
            gain = 2.0 if followers.get(node.output[0], set()) & _RECTIFIERS else 1.0
            for at in (0, 1) if node.op_type == "MatMul" else (1,):
                tensor = tensors.get(node.input[at])
                if tensor is not None and len(tensor.dims) > 1 and tensor.data_type in _FLOATS:
                    _put(tensor, _weights(numpy_helper.to_array(tensor), node, gain, rng))
                    drawn.add(tensor.name)
        for name, value in _constants(node):
            if name in tensors and name not in drawn:
                _put(tensors[name], np.full(tensors[name].dims, value))
    if not drawn:
        raise BackboneError(
            "the backbone holds no weights as floating-point numbers, so none can be drawn anew"
        )


def _weights(
    old: NDArray[np.floating], node: onnx.NodeProto, gain: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw weights of the same shape; the fan-in is what one output is a sum of."""
    transposed = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
    )
    if node.op_type == "ConvTranspose" or transposed:
        fan_in = old.shape[-2] if transposed else int(old.shape[0] * np.prod(old.shape[2:]))
    else:
        fan_in = int(np.prod(old.shape[1:]))
    return rng.normal(0.0, np.sqrt(gain / fan_in), old.shape)


def _constants(node: onnx.NodeProto) -> Iterator[tuple[str, float]]:
    """Yield biases, and what makes a batch normalisation pass its input on."""
    if node.op_type in {"Conv", "ConvTranspose", "Gemm"} and len(node.input) > 2:
        yield node.input[2], 0.0
    if node.op_type == "BatchNormalization":
        yield from zip(node.input[1:5], (1.0, 0.0, 0.0, 1.0), strict=True)


def _put(tensor: onnx.TensorProto, values: NDArray[np.float64]) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
