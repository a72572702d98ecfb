"""Cut a foreign graph behind its embedding and put the contract's ends on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from featpipe.backbones.contract import EMBEDDING, FEATURE_MAP, INPUT
from featpipe.backbones.importing.graph import inner_graphs, names_of, reads, rename
from featpipe.backbones.importing.options import Found, Part, Reads

_OUR_NAMES = (INPUT, EMBEDDING, FEATURE_MAP)
_PREFIX = "featpipe/"
_OLDEST_IR = 8
"""Initialisers need not be inputs since 4, and what later ones added is not used."""
_WEIGHTS = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
    }
)


def to_backbone(
    model: onnx.ModelProto, reads_: Reads, found: Found, map_shape: Sequence[int] | None
) -> onnx.ModelProto:
    """Return a model that keeps the contract's inputs and outputs; the card is still missing.

    Parameters
    ----------
    model : onnx.ModelProto
        The foreign file, its batch axis free; left as it is.
    reads_ : Reads
        What it reads.
    found : Found
        What becomes of it.
    map_shape : sequence of int, or None
        C, h and w of the feature map.
    """
    backbone = onnx.ModelProto()
    backbone.CopyFrom(model)
    graph = backbone.graph
    taken = names_of(graph)
    new = {name: _fresh(f"{name}_of_the_file", taken) for name in _OUR_NAMES if name in taken}
    rename(graph, new)
    front = _Nodes("front")
    _normalise(front, reads_, new.get(reads_.name, reads_.name))
    back = _Nodes("back")
    _embed(back, found, new)
    nodes = [*front.nodes, *graph.node, *back.nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*front.constants, *back.constants])
    _set_ends(graph, reads_.size, found.dimension, map_shape)
    prune(graph)
    _set_versions(backbone)
    return backbone


class _Nodes:
    """A few nodes one after the other, with names of their own."""

    def __init__(self, place: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._place = place

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node; return the name of its output."""
        name = f"{_PREFIX}{self._place}/{len(self.nodes)}/{operator}"
        output = output or name
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """Append a constant; return its name."""
        name = f"{_PREFIX}{self._place}/constant/{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def _normalise(nodes: _Nodes, reads_: Reads, target: str) -> None:
    """Turn the contract's pixels into what the foreign file reads, as ``target``."""
    turned = reads_.layout == "nchw"
    # Bytes are quicker to transpose. But halves that are transposed stay halves: ONNX Runtime
    # would leave out a rounding that a float takes back at once, and the file's vectors with it.
    late = turned and reads_.dtype == np.float16
    first = turned and not late
    name = nodes.add("Transpose", INPUT, perm=[0, 3, 1, 2]) if first else INPUT
    axis = 1 if first else 3
    if reads_.bgr:
        name = nodes.add("Gather", name, nodes.constant(np.array([2, 1, 0], np.int64)), axis=axis)
    if not reads_.is_raw:
        name = _scale(nodes, reads_, name, axis)
    name = nodes.add("Transpose", name, perm=[0, 3, 1, 2]) if late else name
    nodes.add("Identity", name, output=target)


def _scale(nodes: _Nodes, reads_: Reads, name: str, axis: int) -> str:
    """Compute (pixels - 255 mean) / (255 std), which is (pixels / 255 - mean) / std."""
    shape = (1, 3, 1, 1) if axis == 1 else (1, 1, 1, 3)
    name = nodes.add("Cast", name, to=TensorProto.FLOAT)
    for operator, values, neutral in (("Sub", reads_.mean, 0.0), ("Div", reads_.std, 1.0)):
        numbers = (np.array(values) * 255).astype(np.float32)
        numbers = numbers[::-1] if reads_.bgr else numbers
        if (numbers != neutral).any():
            constant = nodes.constant(np.ascontiguousarray(numbers).reshape(shape))
            name = nodes.add(operator, name, constant)
    if reads_.dtype != np.float32:
        name = nodes.add("Cast", name, to=helper.np_dtype_to_tensor_dtype(reads_.dtype))
    return name


def _embed(nodes: _Nodes, found: Found, new: dict[str, str]) -> None:
    """Turn the foreign file's tensors into the contract's outputs, in float32."""
    if found.feature_map is not None:
        name = _numbers(nodes, found.feature_map, new)
        if found.feature_map.layout == "nhwc":
            name = nodes.add("Transpose", name, perm=[0, 3, 1, 2])
        nodes.add("Identity", name, output=FEATURE_MAP)
    if found.embedding.layout == "vector":
        name = _numbers(nodes, found.embedding, new)
    else:  # a map: its mean over space
        name = nodes.add("GlobalAveragePool", FEATURE_MAP)
    nodes.add("Flatten", name, output=EMBEDDING, axis=1)


def _numbers(nodes: _Nodes, part: Part, new: dict[str, str]) -> str:
    """Return a tensor as float32: integers by their scale, other floats by a Cast."""
    name = new.get(part.name, part.name)
    if part.scale is None:
        return nodes.add("Cast", name, to=TensorProto.FLOAT)
    constants = [nodes.constant(part.scale.reshape(()))]
    if part.zero_point is not None:
        constants.append(nodes.constant(part.zero_point.reshape(())))
    return nodes.add("DequantizeLinear", name, *constants)


def _set_ends(
    graph: onnx.GraphProto, size: int, dimension: int, map_shape: Sequence[int] | None
) -> None:
    del graph.input[:], graph.output[:], graph.value_info[:], graph.quantization_annotation[:]
    value = helper.make_tensor_value_info
    graph.input.append(value(INPUT, TensorProto.UINT8, ["batch", size, size, 3]))
    graph.output.append(value(EMBEDDING, TensorProto.FLOAT, ["batch", dimension]))
    if map_shape is not None:
        graph.output.append(value(FEATURE_MAP, TensorProto.FLOAT, ["batch", *map_shape]))


def prune(graph: onnx.GraphProto) -> None:
    """Drop the nodes and constants that no output needs; what an inner graph reads is needed."""
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(reads(node))
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for constants in (graph.initializer, graph.sparse_initializer):
        used = [tensor for tensor in constants if _name(tensor) in needed]
        del constants[:]
        constants.extend(used)


def _name(tensor: onnx.TensorProto | onnx.SparseTensorProto) -> str:
    return tensor.name if isinstance(tensor, onnx.TensorProto) else tensor.values.name


def _set_versions(model: onnx.ModelProto) -> None:
    """Leave the operator sets that are used; let constants be constants."""
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    used = {"", *_domains(model.graph)}
    sets = {o.domain if o.domain != "ai.onnx" else "": o.version for o in model.opset_import}
    del model.opset_import[:], model.functions[:]
    model.opset_import.extend(
        helper.make_opsetid(domain, version) for domain, version in sets.items() if domain in used
    )


def _domains(graph: onnx.GraphProto) -> set[str]:
    found = set()
    for node in graph.node:
        found.add("" if node.domain == "ai.onnx" else node.domain)
        for inner in inner_graphs(node):
            found |= _domains(inner)
    return found


def count_weights(graph: onnx.GraphProto) -> int:
    """Count the numbers that were learnt: all constants but ours and the moving averages."""
    averages = {
        name
        for node in graph.node
        if node.op_type == "BatchNormalization"
        for name in node.input[3:]
    }
    tensors = [t for t in graph.initializer if t.name not in averages]
    tensors += [
        a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")
    ]
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in tensors
        if tensor.data_type in _WEIGHTS and not tensor.name.startswith(_PREFIX)
    )


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
