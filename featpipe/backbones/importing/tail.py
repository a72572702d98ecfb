"""Find the classifier at the end of a graph: what it reads is the embedding.

From each output one walks back over what makes scores of scores (Softmax, Cast, Reshape …) to
the last Gemm, MatMul or 1 × 1 convolution. A convolution before the pooling is a classifier
too (SqueezeNet), but so looks the last layer of a network without a classifier (MobileNet,
EfficientNet): what is behind it decides, and where nothing does, nobody guesses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from featpipe.backbones._nodes import attribute
from featpipe.backbones.importing.graph import View
from featpipe.backbones.importing.options import Arrays

IMAGENET_CLASSES = frozenset({1000, 1001, 21841, 21843})
"""Numbers of classes that no vector has by chance."""


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


_SCORES = _set(
    "Softmax LogSoftmax Sigmoid HardSigmoid QLinearSoftmax QLinearSigmoid ArgMax TopK Exp "
    "ReduceMax ReduceSum Greater ZipMap"
)
"""What is done to scores of classes, and to hardly anything else at the end of a graph."""
_SAME_VALUES = _set(
    "Identity Cast CastLike Dropout Reshape Flatten Squeeze Unsqueeze Transpose QuantizeLinear "
    "DequantizeLinear"
)
_WITH_A_CONSTANT = _set("Add Sub Mul Div QLinearAdd QLinearMul Gather ArrayFeatureExtractor")
_POOLS = _set(
    "GlobalAveragePool ReduceMean AveragePool QLinearGlobalAveragePool QLinearAveragePool "
    "QLinearReduceMean"
)
_ACTIVATIONS = _set(
    "Relu Clip LeakyRelu PRelu Elu Selu HardSwish HardSigmoid Sigmoid Mul QLinearMul "
    "QLinearSigmoid QLinearLeakyRelu Swish QuickGelu Gelu BatchNormalization"
)
UNPOOLING = _SAME_VALUES | _POOLS
"""What may stand between a map and the vector that is its mean."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """The last layer of a classifier.

    Attributes
    ----------
    node : onnx.NodeProto
        The layer.
    data : str
        The tensor that it reads: the embedding, or the map whose mean it is.
    scale, zero_point : str
        Names of the constants that make numbers of ``data``'s integers; empty where it has none.
    certain : bool
        False where it may as well be the last layer of a network without a classifier.
    """

    node: onnx.NodeProto
    data: str
    scale: str = ""
    zero_point: str = ""
    certain: bool = True


@dataclass(frozen=True, slots=True)
class _Step:
    """Where a walk stands: at a tensor, before or behind a pooling, with or without scores."""

    name: str
    pooled: bool = False
    scored: bool = False


def classifiers_of(view: View, output: str, found: Arrays) -> tuple[list[Classifier], bool]:
    """Walk back from an output to the classifiers that it comes from.

    Parameters
    ----------
    view : View
        The graph.
    output : str
        Name of the output.
    found : dict of ndarray
        Tensors near the end, for their shapes.

    Returns
    -------
    list of Classifier
        One in an ordinary classifier.
    bool
        Whether the output comes from these alone.
    """
    hits: dict[int, Classifier] = {}
    alone = True
    seen: set[tuple[str, bool]] = set()
    stack = [_Step(output)]
    while stack:
        step = stack.pop()
        if (step.name, step.pooled) in seen:
            continue
        seen.add((step.name, step.pooled))
        node = view.producer.get(step.name)
        hit = None if node is None else _classifier(view, node, step, found)
        if hit is not None:
            hits[id(hit.node)] = hit
            continue
        following = None if node is None else _back(view, node, step)
        alone = alone and following is not None
        stack += following or ()
    return list(hits.values()), alone


def is_scored(view: View, output: str) -> bool:
    """Tell whether an output is made of scores of classes: a Softmax or an ArgMax is behind it."""
    node = view.producer.get(output)
    while node is not None and node.op_type in _SAME_VALUES:
        node = view.producer.get(node.input[0])
    return node is not None and node.op_type in _SCORES - {"ReduceMax", "ReduceSum", "Exp"}


def _classifier(view: View, node: onnx.NodeProto, step: _Step, found: Arrays) -> Classifier | None:
    if "Conv" in node.op_type:
        return _convolution(view, node, step, found)
    if step.pooled or not node.input or node.input[0] not in view.from_images:
        return None
    data = node.input[0]
    others = [name for name in node.input[1:] if name in view.from_images]
    if node.op_type in {"Gemm", "MatMul", "FusedMatMul"}:
        turned = attribute(node, "transA", 0)
        return None if others or turned else Classifier(node, data)
    if node.op_type in {"QLinearMatMul", "QGemm"}:
        return None if others else Classifier(node, data, node.input[1], node.input[2])
    if node.op_type == "MatMulInteger":
        return _integer(view, node)
    return None


def _integer(view: View, node: onnx.NodeProto) -> Classifier | None:
    """Return the classifier that quantises by itself what it reads."""
    quantise = view.producer.get(node.input[0])
    if quantise is None or quantise.op_type != "DynamicQuantizeLinear":
        return None
    return Classifier(node, quantise.input[0])


def _convolution(view: View, node: onnx.NodeProto, step: _Step, found: Arrays) -> Classifier | None:
    """Return a 1 × 1 convolution that classifies: behind the pooling, or before it."""
    quantised = node.op_type == "QLinearConv"
    if node.op_type not in {"Conv", "FusedConv", "QLinearConv"}:
        return None
    classes, channels, kernel = _sizes(view, node, found, quantised)
    if any(size != 1 for size in kernel) or attribute(node, "group", 1) != 1:
        return None
    certain = True
    if step.pooled:
        certain = step.scored or classes in IMAGENET_CLASSES
        if not certain and classes >= channels:
            return None
    elif node.output[0] in found and found[node.output[0]].shape[2:] != (1, 1):
        return None
    scale, zero_point = node.input[1:3] if quantised else ("", "")
    return Classifier(node, node.input[0], scale, zero_point, certain)


def _sizes(
    view: View, node: onnx.NodeProto, found: Arrays, quantised: bool
) -> tuple[int, int, tuple[int, ...]]:
    """Return how many channels a convolution writes and reads, and its kernel's sides."""
    shape = view.weight_shape(node.input[3 if quantised else 1]) or ()
    written, read = found.get(node.output[0]), found.get(node.input[0])
    classes = shape[0] if shape else 0 if written is None else written.shape[1]
    channels = shape[1] if shape else 0 if read is None else read.shape[1]
    return classes, channels, shape[2:] or tuple(attribute(node, "kernel_shape", (0,)))


def _back(view: View, node: onnx.NodeProto, step: _Step) -> list[_Step] | None:
    """Return where a walk goes on; None where it ends at something that is no score."""
    kind = node.op_type
    inputs = [name for name in view.image_inputs(node) if not _is_scale(view, name)]
    if step.pooled:
        go_on = kind in _ACTIVATIONS or (kind in _SAME_VALUES and kind != "Reshape")
        return [_Step(name, True, step.scored) for name in inputs] if go_on else None
    if kind in _POOLS:
        return [_Step(name, True, step.scored) for name in inputs]
    scored = step.scored or kind in _SCORES
    if kind in _SCORES or kind in _SAME_VALUES or _is_bias(node, inputs):
        return [_Step(name, False, scored) for name in inputs]
    if kind in {"Sub", "Div"}:  # a Softmax in pieces
        return [_Step(name, False, scored) for name in inputs]
    return None


def _is_bias(node: onnx.NodeProto, inputs: list[str]) -> bool:
    return node.op_type in _WITH_A_CONSTANT and len(inputs) == 1


def _is_scale(view: View, name: str) -> bool:
    """Tell whether a tensor is the scale that a dynamic quantisation has found."""
    for _ in range(4):
        node = view.producer.get(name)
        if node is None or node.op_type not in {"Mul", "DynamicQuantizeLinear"}:
            return False
        if node.op_type == "DynamicQuantizeLinear":
            return name in node.output[1:]
        inputs = view.image_inputs(node)
        if len(inputs) != 1:
            return False
        name = inputs[0]
    return False


def chain_of(view: View, name: str) -> Iterator[str]:
    """Yield the tensors of which ``name`` may be the mean or another shape, nearest first."""
    for _ in range(24):
        yield name
        node = view.producer.get(name)
        if node is None or node.op_type not in UNPOOLING:
            return
        inputs = view.image_inputs(node)
        if len(inputs) != 1:
            return
        name = inputs[0]
