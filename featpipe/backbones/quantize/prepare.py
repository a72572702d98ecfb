"""A model made ready for quantisation: shapes known, nodes named, its layers listed."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from featpipe._files import printable
from featpipe.backbones.contract import INPUT
from featpipe.errors import BackboneError

LAYER_KINDS = ("Conv", "Gemm", "MatMul")
"""Operators with weights, which is where size and time go."""
_INTEGER_KINDS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"}
    | {"MatMulInteger", "DynamicQuantizeLinear", "QGemm"}
)
_ACTIVATIONS = ("Relu", "Clip")
# What normalisation and change of layout are made of.
_PIXELWISE = ("Cast", "Transpose", "Sub", "Div", "Mul", "Add")
OLDEST_OPSET = 13
"""The first operator set in which QuantizeLinear knows channels."""


@dataclass(frozen=True, slots=True)
class Layer:
    """An operator with constant weights.

    Attributes
    ----------
    node : str
        Name of its node.
    kind : str
        Conv, Gemm or MatMul.
    title : str
        For people: the weights' name, without what is the same for all.
    weight : str
        Name of the initialiser.
    rectifier : str or None
        Name of the Relu or Clip node that alone reads its output.
    """

    node: str
    kind: str
    title: str
    weight: str
    rectifier: str | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A float model whose every node has a name and whose every tensor has a shape.

    Attributes
    ----------
    model : onnx.ModelProto
        Not to be changed: variants are made of copies.
    layers : tuple of Layer
        In the order of the graph.
    activations : tuple of str
        Every float tensor that is computed.
    pixelwise : frozenset of str
        Nodes that normalise the pixels before the first layer, and their tensors.
    """

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    activations: tuple[str, ...]
    pixelwise: frozenset[str]

    def weights(self, layer: Layer) -> NDArray[np.float32]:
        """Return the weights of a layer."""
        found = next(t for t in self.model.graph.initializer if t.name == layer.weight)
        return np.asarray(numpy_helper.to_array(found), dtype=np.float32)


def prepare(data: bytes, name: str) -> Prepared:
    """Read a backbone's bytes for quantisation.

    Raises
    ------
    BackboneError
        When it is quantised already, has no layer with weights, or an operator set that
        cannot express what is needed.
    """
    model = onnx.load_model_from_string(data)
    check_is_float(model, name)
    version = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    if version < OLDEST_OPSET:
        raise BackboneError(
            f"{name} uses operator set {version} and int8 with a scale for every channel needs "
            f"{OLDEST_OPSET} at least: export it again with a newer exporter"
        )
    model = onnx.shape_inference.infer_shapes(_folded(model, data))
    _name_nodes(model)
    _separate_weights(model)
    layers = tuple(_layers(model))
    if not layers:
        raise BackboneError(
            f"{name} has no convolution and no matrix product with constant weights: there is "
            "nothing in it that int8 would make smaller or faster"
        )
    return Prepared(model, layers, tuple(_float_tensors(model)), frozenset(_pixelwise(model)))


def check_is_float(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model that is quantised already.

    Raises
    ------
    BackboneError
        The message says how that shows.
    """
    kinds = sorted({node.op_type for node in model.graph.node} & _INTEGER_KINDS)
    halves = any(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)
    if kinds or halves:
        sign = f"it has {kinds[0]} operators" if kinds else "it has 16-bit weights"
        raise BackboneError(
            f"{name} is quantised already ({sign}): quantise the fp32 backbone that it was made of"
        )


def _folded(model: onnx.ModelProto, data: bytes) -> onnx.ModelProto:
    """Let ONNX Runtime fold batch normalisations and constants that an exporter has left."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "folded.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # The basic level stays within the standard operators, and fits every machine.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        folded = onnx.load(path)
    # It declares every operator set that it knows; none but the model's own is used.
    del folded.opset_import[:]
    folded.opset_import.extend(model.opset_import)
    folded.ir_version = model.ir_version
    return folded


def _name_nodes(model: onnx.ModelProto) -> None:
    taken = Counter(node.name for node in model.graph.node)
    for number, node in enumerate(model.graph.node):
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.op_type}_{number}_{node.output[0]}"


def _separate_weights(model: onnx.ModelProto) -> None:
    """Give layers that share weights a copy each: one may be quantised without the other."""
    weights = {t.name: t for t in model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in LAYER_KINDS or node.input[1] not in weights:
            continue
        shared = node.input[1]
        if shared in taken:
            copy = model.graph.initializer.add()
            copy.CopyFrom(weights[shared])
            copy.name = node.input[1] = f"{shared}_of_{node.name}"
        taken.add(shared)


def _layers(model: onnx.ModelProto) -> Iterator[Layer]:
    weights = {t.name: t for t in model.graph.initializer}
    readers = _readers(model)
    found = [
        node
        for node in model.graph.node
        if node.op_type in LAYER_KINDS
        and (tensor := weights.get(node.input[1])) is not None
        and tensor.data_type == TensorProto.FLOAT
        and (node.op_type == "Conv" or len(tensor.dims) == 2)
    ]
    titles = _titles([node.input[1] for node in found])
    for node, title in zip(found, titles, strict=True):
        following = readers.get(node.output[0], [])
        alone = following[0] if len(following) == 1 else None
        rectifier = alone.name if alone is not None and alone.op_type in _ACTIVATIONS else None
        yield Layer(node.name, node.op_type, title, node.input[1], rectifier)


def _titles(names: Sequence[str]) -> list[str]:
    """Take off the beginning that all names share, up to a dot, and the ending."""
    bare = [name.removesuffix(".weight") for name in names]
    shared = 0
    if len(bare) > 1:
        first, last = min(bare), max(bare)
        same = next((i for i, c in enumerate(first) if i >= len(last) or c != last[i]), len(first))
        shared = first.rfind(".", 0, same) + 1
    return [printable(name[shared:]) or name for name in bare]


def _readers(model: onnx.ModelProto) -> Mapping[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _float_tensors(model: onnx.ModelProto) -> Iterator[str]:
    known = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.value_info, *model.graph.output)
    }
    for node in model.graph.node:
        for name in node.output:
            if known.get(name) == TensorProto.FLOAT:
                yield name


def _pixelwise(model: onnx.ModelProto) -> Iterator[str]:
    """Yield nodes and tensors on the way from the input that take each pixel by itself."""
    constants = {t.name for t in model.graph.initializer}
    reached = {INPUT}
    for node in model.graph.node:
        inputs = [name for name in node.input if name and name not in constants]
        if node.op_type in _PIXELWISE and inputs and reached.issuperset(inputs):
            reached.update(node.output)
            yield node.name
            yield from node.output
