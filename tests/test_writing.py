"""Writing a backbone file: what ONNX Runtime would make of a graph is made sure of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from featpipe import load_backbone
from featpipe.backbones.card import BackboneCard
from featpipe.backbones.writing import _keep_padding, require_one_file, write_backbone
from featpipe.errors import BackboneError
from featpipe.types import Pixels, ResizeRule, Vectors

SIDE = 12


def padded_pool(value: float | None) -> onnx.ModelProto:
    """Return a network that pads negative numbers by zeros and takes the largest of a window."""
    initializers = [
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads"),
        numpy_helper.from_array(np.array(-1 / 255, np.float32), "scale"),
    ]
    if value is not None:
        initializers.append(numpy_helper.from_array(np.array(value, np.float32), "value"))
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "scale"], ["negative"]),
        helper.make_node(
            "Pad", ["negative", "pads", *(["value"] if value is not None else [])], ["padded"]
        ),
        helper.make_node("MaxPool", ["padded"], ["pooled"], kernel_shape=[3, 3], strides=[3, 3]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 48])],
        initializers,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="tests"
    )


def expected(images: Pixels) -> list[Vectors]:
    """Compute what the graph says."""
    numbers = -images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    padded = np.pad(numbers, ((0, 0), (0, 0), (1, 1), (1, 1)))[:, :, :SIDE, :SIDE]
    windows = padded.reshape(len(images), 3, 4, 3, 4, 3)
    return [windows.max(axis=(3, 5)).reshape(len(images), -1)]


def test_a_constant_of_zero_is_found_and_older_paddings_are_left_alone() -> None:
    """Other exporters write the value as a node; before opset 11 it is an attribute."""
    model = padded_pool(0.0)
    graph = model.graph
    value = next(i for i in graph.initializer if i.name == "value")
    graph.node.insert(0, helper.make_node("Constant", [], ["value"], value=value))
    graph.initializer.remove(value)
    _keep_padding(graph)
    onnx.checker.check_model(model)
    assert next(n for n in graph.node if n.op_type == "Pad").input[2] == "padded_next_to_zero"
    old = helper.make_graph(
        [
            helper.make_node("Pad", ["x"], ["y"], pads=[0, 0, 1, 1, 0, 0, 1, 1]),
            helper.make_node("MaxPool", ["y"], ["z"], kernel_shape=[3, 3]),
        ],
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 6, 6])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 1, 6, 6])],
    )
    before = old.SerializeToString()
    _keep_padding(old)
    assert old.SerializeToString() == before


@pytest.mark.parametrize("value", [None, 0.0])
def test_zeros_around_negative_numbers_stay_zeros(value: float | None, tmp_path: Path) -> None:
    """ONNX Runtime would take the padding into the MaxPool, where it is no longer zero."""
    card = BackboneCard(
        name="padded",
        weights="none",
        license="none needed",
        dimension=48,
        resize=ResizeRule(resize=SIDE, crop=SIDE),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    path = tmp_path / "padded.onnx"
    _, cosine = write_backbone(padded_pool(value), card, path, expected)
    assert cosine > 0.999999
    images = np.full((1, SIDE, SIDE, 3), 255, dtype=np.uint8)
    vectors = load_backbone(path).open_session("cpu").run(images)
    assert np.allclose(vectors, expected(images)[0], atol=1e-6)
    assert "value" not in {i.name for i in onnx.load(path).graph.initializer}


def test_what_is_larger_than_one_file_is_refused_with_its_size() -> None:
    """Not more than ONNX allows, less some room for graph and card."""
    require_one_file("fits", 2_100_000_000)
    with pytest.raises(BackboneError) as error:
        require_one_file("big", 2_576_000_000)
    assert str(error.value) == (
        "big needs 2.6 GB, more than the 2.1 GB that one ONNX file can hold: nothing was written"
    )
