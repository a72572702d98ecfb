"""Write ``models/raw_pixels.onnx``: the baseline that every backbone must beat.

It keeps the contract of a backbone and learns nothing: 32 × 32 pixels in, their 3,072 values
out. So `featpipe embed --model raw_pixels` gives the figures beside a real backbone's by the
same commands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onnx import TensorProto, checker, helper

# featpipe need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from featpipe.backbones.card import CARD_KEY, BackboneCard
from featpipe.backbones.contract import with_fingerprint
from featpipe.types import ResizeRule

PATH = Path(__file__).resolve().parent.parent / "models" / "raw_pixels.onnx"
SIDE = 32


def build() -> bytes:
    """Return the file: the same bytes every time."""
    dimension = SIDE * SIDE * 3
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["values", "white"], ["scaled"]),
            helper.make_node("Flatten", ["scaled"], ["embedding"], axis=1),
        ],
        "featpipe",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dimension])],
        [helper.make_tensor("white", TensorProto.FLOAT, [], [255.0])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="featpipe"
    )
    card = BackboneCard(
        name="raw_pixels",
        weights="none: the pixels themselves",
        license="Apache-2.0",
        dimension=dimension,
        resize=ResizeRule(resize=SIDE, crop=SIDE),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        parameters=0,
        gflops=0.0,
    )
    card = with_fingerprint(card, model.SerializeToString(deterministic=True))
    helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    PATH.write_bytes(build())
