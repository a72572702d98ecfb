"""Backbone, head and calibrator put together as one ONNX model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from featpipe._files import first_line, printable
from featpipe.backbones import BackboneCard
from featpipe.backbones.contract import EMBEDDING, INPUT
from featpipe.bundling.graph import Graph, valid_text
from featpipe.bundling.heads import add_scores
from featpipe.bundling.novelty import add_novelty
from featpipe.bundling.probabilities import add_label, add_probabilities
from featpipe.bundling.resize import add_resize
from featpipe.errors import BundleError
from featpipe.heads import Head

BUNDLE_KEY, LABELS_KEY = "featpipe.bundle", "featpipe.labels"
STRANGE = ("ood_score", "ood_p")
"""Outputs of a head that knows how strange an image is."""
_OURS = ("label", "label_index", "probabilities", *STRANGE)
_OLDEST, _UPGRADED = 13, 17
_PREFIX = "featpipe/"
_MAX_BYTES = 2**31 - 2**20
_STANDARD = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, slots=True)
class Parts:
    """What goes into a bundle.

    Attributes
    ----------
    backbone : bytes
        An ONNX model that keeps the contract of backbones.
    card : BackboneCard
        Of the backbone whose vectors the head was fitted on.
    head : Head
    with_resize : bool
        Whether images of any size are taken, or only the square that the backbone reads.
    short_weights : bool
        How the resize rounds its weights; see `featpipe.bundling.resize.add_resize`.
    dtype : {np.float32, np.float64}
        What the head computes in.
    """

    backbone: bytes
    card: BackboneCard
    head: Head
    with_resize: bool
    short_weights: bool
    dtype: Any


def assemble(parts: Parts) -> onnx.ModelProto:
    """Return the whole as one model, without what is said about it.

    Raises
    ------
    BundleError
        When the backbone needs operators outside ``ai.onnx``, or all of it is more than one
        file can hold.
    """
    model = _standard(onnx.load_model_from_string(parts.backbone), parts.card.name)
    opset = next(entry.version for entry in model.opset_import if entry.domain in _STANDARD)
    before, after = Graph(opset, _PREFIX), Graph(opset, f"{_PREFIX}head/")
    _rename(model.graph, {name: f"{_PREFIX}backbone/{name}" for name in _OURS})
    if parts.with_resize:
        _rename(model.graph, {INPUT: _PREFIX + INPUT})
        square = add_resize(before, INPUT, parts.card.resize, short_weights=parts.short_weights)
        before.add("Identity", square, name=_PREFIX + INPUT)
    vectors = EMBEDDING if parts.dtype == np.float32 else after.cast_to(EMBEDDING, parts.dtype)
    scores = add_scores(after, parts.head, vectors, parts.dtype)
    found = add_probabilities(
        after, parts.head.calibrator, scores, len(parts.head.classes), parts.dtype
    )
    index, label = add_label(after, found, parts.head.classes)
    after.add("Cast", found, name="probabilities", to=TensorProto.FLOAT)
    if parts.head.novelty is not None:
        strange = add_novelty(after, parts.head.novelty, vectors, parts.dtype)
        for name, value in zip(STRANGE, strange, strict=True):
            after.add("Cast", value, name=name, to=TensorProto.FLOAT)
    after.add("Identity", index, name="label_index")
    after.add("Identity", label, name="label")
    nodes = [*before.nodes, *model.graph.node, *after.nodes]
    constants = [*before.constants, *model.graph.initializer, *after.constants]
    made = helper.make_model(
        helper.make_graph(nodes, "featpipe", [_input(parts)], _outputs(parts), constants),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=model.ir_version,
        producer_name="featpipe",
    )
    _check(made, parts.card.name)
    return made


def stamp(model: onnx.ModelProto, about: dict[str, Any], classes: Sequence[str]) -> None:
    """Put what is to be known of a bundle into it: two entries of its metadata, as JSON."""
    for key, value in ((BUNDLE_KEY, about), (LABELS_KEY, [valid_text(name) for name in classes])):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value, ensure_ascii=True, sort_keys=True)


def _input(parts: Parts) -> onnx.ValueInfoProto:
    side = parts.card.input_size
    shape: list[int | str] = ["N", "H", "W", 3] if parts.with_resize else ["N", side, side, 3]
    return helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)


def _outputs(parts: Parts) -> list[onnx.ValueInfoProto]:
    sizes: dict[str, tuple[int, list[int | str]]] = {
        "label": (TensorProto.STRING, ["N"]),
        "label_index": (TensorProto.INT64, ["N"]),
        "probabilities": (TensorProto.FLOAT, ["N", len(parts.head.classes)]),
        EMBEDDING: (TensorProto.FLOAT, ["N", parts.card.dimension]),
    }
    if parts.head.novelty is not None:
        sizes |= dict.fromkeys(STRANGE, (TensorProto.FLOAT, ["N"]))
    return [helper.make_tensor_value_info(name, *what) for name, what in sizes.items()]


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                values[i] = names.get(name, name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _standard(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the model in an opset that the nodes of a head can stand in."""
    foreign = {node.domain for node in model.graph.node} - _STANDARD
    if foreign:
        raise BundleError(
            f"the backbone {name} needs operators of the domain {printable(min(foreign))}, which "
            "few runtimes have: nothing was written; export it with standard operators"
        )
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        raise BundleError(
            f"the backbone {name} has branches or loops, which a bundle cannot hold: nothing was "
            "written; export it without them"
        )
    opset = max(entry.version for entry in model.opset_import if entry.domain in _STANDARD)
    if opset >= _OLDEST:
        return model
    try:
        return version_converter.convert_version(model, _UPGRADED)
    except Exception as exc:
        # The converter's exceptions have no public base class.
        raise BundleError(
            f"the backbone {name} is of opset {opset}, and ONNX cannot bring it to {_UPGRADED}: "
            f"{first_line(exc)}: nothing was written"
        ) from exc


def _check(model: onnx.ModelProto, name: str) -> None:
    size = model.ByteSize()
    # The count of bytes wraps around where there are too many.
    size = size if size >= 0 else 2**32 + size
    if size > _MAX_BYTES:
        raise BundleError(
            f"{name} and its head need {size / 1e9:.1f} GB, more than the 2.1 GB that one ONNX "
            "file can hold: nothing was written; a head that keeps fewer rows (logreg, svm, "
            "centroid) is smaller"
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as exc:
        # The checker's exceptions share no base class.
        raise BundleError(
            f"the bundle of {name} is not valid ONNX: {first_line(exc)}: nothing was written"
        ) from exc
