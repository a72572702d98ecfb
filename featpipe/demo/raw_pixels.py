"""Raw pixels as a backbone: the baseline goes the same way as what is measured beside it.

The file keeps the contract of every backbone. Its "vector" is the image itself, 32 × 32 grey
pixels, so that listing, decoding, storing, tuning and testing are those of a real backbone.
"""

from __future__ import annotations

import json
from pathlib import Path

from onnx import TensorProto, helper

from featpipe._files import atomic_file
from featpipe.backbones.card import CARD_KEY, BackboneCard
from featpipe.backbones.contract import EMBEDDING, INPUT, with_fingerprint
from featpipe.types import ResizeRule

NAME = "raw-pixels"
SIDE = 32


def write_raw_pixels(path: Path) -> None:
    """Write the backbone to ``path``; the same bytes always, but for the version of onnx.

    Raises
    ------
    WriteError
        When the operating system refuses to write.
    """
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["grey"], axes=[3], keepdims=0),
        helper.make_node("Mul", ["grey", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], [EMBEDDING]),
    ]
    dimension = SIDE * SIDE
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["batch", dimension])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 255])],
    )
    # Opset 17: from 18 on ReduceMean takes its axes in another way.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    card = BackboneCard(
        name=NAME,
        weights="none: the pixels themselves",
        license="Apache-2.0",
        dimension=dimension,
        resize=ResizeRule(resize=SIDE, crop=SIDE, interpolation="bilinear"),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    card = with_fingerprint(card, model.SerializeToString())
    helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    with atomic_file(path) as file:
        file.write(model.SerializeToString())
