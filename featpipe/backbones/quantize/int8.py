"""The 8-bit form of a model: weights and activations quantised where it pays.

Static, as pairs of QuantizeLinear and DequantizeLinear (QDQ): weights signed, with a scale for
every output channel (`scales`); activations unsigned, with one scale for each tensor. The
graph still says in floats what it computes; ONNX Runtime's CPU provider makes integer
operators of the pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType, TensorData
from onnxruntime.quantization.quant_utils import add_infer_metadata

from featpipe.backbones._nodes import attribute
from featpipe.backbones.quantize.prepare import Layer, Prepared
from featpipe.backbones.quantize.ranges import Range
from featpipe.backbones.quantize.scales import conv_rows, safe_scales

# Pooling to the embedding, softmax and the like stay in float: nothing is gained there.
_QUANTISED = (
    *("Conv", "Gemm", "MatMul"),
    *("Add", "Relu", "Clip", "MaxPool", "AveragePool", "Concat"),
)


def quantize_int8(
    prepared: Prepared,
    ranges: Mapping[str, Range],
    *,
    only: Collection[Layer] | None = None,
    float_layers: Collection[Layer] = (),
) -> onnx.ModelProto:
    """Return a new model in 8 bits.

    Parameters
    ----------
    prepared : Prepared
    ranges : mapping of str to (float, float)
        Range of every activation; see `featpipe.backbones.quantize.calibration`.
    only : collection of Layer, optional
        Quantise these and nothing else: to find out what they cost.
    float_layers : collection of Layer
        These stay as they are.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    add_infer_metadata(model)
    kept = {layer.node for layer in float_layers}
    asked = prepared.layers if only is None else only
    scaled = [layer for layer in asked if layer.node not in kept]
    with _quiet():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range={name: _tensor_data(pair) for name, pair in ranges.items()},
            nodes_to_quantize=_nodes_of(only) if only is not None else [],
            nodes_to_exclude=sorted(kept | _inexpressible(prepared)),
            op_types_to_quantize=list(_QUANTISED),
            extra_options={"TensorQuantOverrides": _weight_scales(prepared, scaled)},
        )
        quantizer.quantize_model()
    made: onnx.ModelProto = quantizer.model.model
    _hold_in_float(made, kept)
    # The quantiser leaves its new nodes at the end of the graph.
    quantizer.model.topological_sort()
    return made


def _tensor_data(pair: Range) -> Any:
    return TensorData(lowest=np.float32(pair[0]), highest=np.float32(pair[1]))


def _nodes_of(layers: Collection[Layer]) -> list[str]:
    """Return the nodes of layers, each with the rectifier that its integers take in."""
    names = [layer.node for layer in layers]
    return names + [layer.rectifier for layer in layers if layer.rectifier is not None]


def _inexpressible(prepared: Prepared) -> set[str]:
    """Return the nodes that stay in float whatever is asked for.

    The pixels' normalisation would lose what it is given; a product of two activations
    (attention) is no layer with weights.
    """
    layers = {layer.node for layer in prepared.layers}
    products = {
        node.name
        for node in prepared.model.graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.name not in layers
    }
    return products | set(prepared.pixelwise)


def _weight_scales(
    prepared: Prepared, layers: Collection[Layer]
) -> dict[str, list[dict[str, Any]]]:
    """Return the scales of these layers' weights in the form that the quantiser takes."""
    nodes = {node.name: node for node in prepared.model.graph.node}
    chosen = {}
    for layer in layers:
        axis, scales = _scales_of(nodes[layer.node], prepared.weights(layer))
        entries: list[dict[str, Any]] = [
            {"quant_type": QuantType.QInt8, "scale": scale, "zero_point": np.int8(0)}
            for scale in scales
        ]
        entries[0]["axis"] = axis
        chosen[layer.weight] = entries
    return chosen


def _scales_of(
    node: onnx.NodeProto, weights: NDArray[np.float32]
) -> tuple[int, NDArray[np.float32]]:
    """Return the axis of the output channels, and their scales."""
    if node.op_type == "Conv":
        depthwise = weights.shape[1] == 1 and attribute(node, "group", 1) == len(weights)
        even = weights.shape[1] % 2 == 0
        return 0, safe_scales(conv_rows(weights), pairs=not depthwise, even=even)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return 0, safe_scales(weights)
    return 1, safe_scales(np.ascontiguousarray(weights.T))


def _hold_in_float(model: onnx.ModelProto, kept: set[str]) -> None:
    """Keep ONNX Runtime from quantising layers that are to stay in float.

    It quantises, by itself and with one scale for all channels, any float convolution or
    matrix product that stands between DequantizeLinear and QuantizeLinear, when it loads the
    file (WeightBiasQuantization). It leaves alone what is dequantised with a scale for every
    channel; so those layers get the one scale many times over.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: t for t in model.graph.initializer}
    for node in [n for n in model.graph.node if n.name in kept and n.op_type != "MatMul"]:
        maker = makers.get(node.input[0])
        if maker is not None and maker.op_type == "DequantizeLinear":
            channels = _input_channels(node, constants[node.input[1]])
            model.graph.node.append(_by_channel(model, node, maker, channels))


def _input_channels(node: onnx.NodeProto, weights: onnx.TensorProto) -> int:
    if node.op_type == "Conv":
        return int(weights.dims[1] * attribute(node, "group", 1))
    return int(weights.dims[1 if attribute(node, "transB", 0) else 0])


def _by_channel(
    model: onnx.ModelProto, node: onnx.NodeProto, maker: onnx.NodeProto, channels: int
) -> onnx.NodeProto:
    """Return a dequantisation for ``node`` alone, and lead it there."""
    constants = {t.name: t for t in model.graph.initializer}
    names = []
    for source in maker.input[1:3]:
        value = numpy_helper.to_array(constants[source])
        names.append(f"{source}_{node.name}")
        many = np.full(channels, value.item(), value.dtype)
        model.graph.initializer.append(numpy_helper.from_array(many, names[-1]))
    output = f"{maker.output[0]}_{node.name}"
    node.input[0] = output
    return helper.make_node(
        "DequantizeLinear", [maker.input[0], *names], [output], f"{output}_node", axis=1
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's words, written to the root logger, away from the user's terminal."""
    root, level = logging.getLogger(), logging.root.manager.disable
    handler = logging.NullHandler()
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        root.removeHandler(handler)
