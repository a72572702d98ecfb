"""A small convolutional backbone for the tests of quantisation: real layers, chosen weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from featpipe.backbones.card import CARD_KEY, BackboneCard
from featpipe.backbones.contract import with_fingerprint
from featpipe.types import ResizeRule

SIDE = 32


def build_convnet(path: Path, name: str = "convnet", *, opset: int = 17) -> Path:
    """Write a backbone of four convolutions, one of them depthwise, and a sum: 3 × 32 × 32 to 24.

    The weights of its dense convolutions are large and of one sign in places: full 8-bit
    integers overflow 16 bits there.
    """
    model = _model(opset)
    card = BackboneCard(
        name=name,
        weights="none: drawn at random",
        license="Apache-2.0",
        dimension=24,
        resize=ResizeRule(resize=36, crop=SIDE),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        imagenet_top1=12.5,
        exporter={"tests": "1"},
    )
    card = with_fingerprint(card, model.SerializeToString())
    helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    path.write_bytes(model.SerializeToString())
    return path


def _model(opset: int) -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["nchw", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        _conv("stem", "normal", 3, strides=[2, 2]),
        helper.make_node("Relu", ["stem"], ["stem_relu"]),
        _conv("depthwise", "stem_relu", 3, group=16),
        helper.make_node("Clip", ["depthwise", "zero", "six"], ["depthwise_clip"]),
        _conv("project", "depthwise_clip", 1),
        helper.make_node("Add", ["project", "stem_relu"], ["sum"]),
        _conv("head", "sum", 1),
        helper.make_node("Relu", ["head"], ["feature_map"]),
        helper.make_node("GlobalAveragePool", ["feature_map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
    ]
    rng = np.random.default_rng(7)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    constants = {
        "mean": 255 * mean.reshape(3, 1, 1),
        "std": 255 * std.reshape(3, 1, 1),
        "zero": np.array(0.0),
        "six": np.array(6.0),
        **_weights(rng, "stem", (16, 3, 3, 3), 0.2),
        **_weights(rng, "depthwise", (16, 1, 3, 3), 0.5),
        **_weights(rng, "project", (16, 16, 1, 1), 0.3),
        **_weights(rng, "head", (24, 16, 1, 1), 0.3),
    }
    # Neighbours of one sign, as large as any: their products do not fit into 16 bits.
    constants["head.weight"][:, :4] = 1.0
    constants["head.weight"][::2, 4:8] = -1.0
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 24]),
            helper.make_tensor_value_info("feature_map", TensorProto.FLOAT, ["batch", 24, 16, 16]),
        ],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="tests")


def _conv(name: str, source: str, kernel: int, **attributes: object):
    pad = kernel // 2
    return helper.make_node(
        "Conv",
        [source, f"{name}.weight", f"{name}.bias"],
        [name],
        pads=[pad] * 4,
        kernel_shape=[kernel, kernel],
        **attributes,
    )


def _weights(rng: np.random.Generator, name: str, shape: tuple[int, ...], spread: float):
    return {
        f"{name}.weight": rng.normal(0, spread, shape),
        f"{name}.bias": rng.normal(0, 0.1, shape[0]),
    }
