"""Choose the tensor that becomes the embedding, and the map that it is the mean of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from featpipe._files import nearest, printable, show_path
from featpipe.backbones.gate import compare
from featpipe.backbones.importing.graph import View
from featpipe.backbones.importing.options import Arrays, Found, Part
from featpipe.backbones.importing.original import as_map, as_vectors
from featpipe.backbones.importing.tail import (
    IMAGENET_CLASSES,
    Classifier,
    chain_of,
    classifiers_of,
    is_scored,
)
from featpipe.errors import BackboneError

_NEAR_THE_END = 80
_SAME_MEAN = 0.999
"""Cosine of a vector to the mean of a map, where quantisation may stand between the two."""

_TWO_QUANTISED_INPUTS = frozenset({"QLinearAdd", "QLinearMul"})
_KEEPS_INTEGERS = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool"}
)
_FAR_ENOUGH = 16


def tensors_to_look_at(path: Path, view: View, asked: str | None) -> list[str]:
    """Return the tensors whose values `find` wants to see: those near the end.

    Parameters
    ----------
    path : Path
        Of the foreign file, for messages.
    view : View
        Its graph.
    asked : str or None
        The tensor that was asked for.

    Raises
    ------
    BackboneError
        When what was asked for is not there, or when no output depends on the images.
    """
    if asked is not None:
        _check_asked(path, view, asked)
    outputs = [value.name for value in view.graph.output]
    near = view.before(outputs, _NEAR_THE_END)
    if not near and asked is None:
        raise BackboneError(
            f"no output of {show_path(path)} depends on its images: it cannot be a backbone"
        )
    before_asked = [] if asked is None else view.before([asked], _NEAR_THE_END)
    return list(dict.fromkeys([*before_asked, *near]))


def _check_asked(path: Path, view: View, asked: str) -> None:
    """Refuse a tensor that is not there, or that does not depend on the images.

    Raises
    ------
    BackboneError
        With the names that are near, and the last ones of the graph.
    """
    if asked in view.from_images and asked in view.producer:
        return
    outputs = [value.name for value in view.graph.output]
    last = _listed(view.before(outputs, 6))
    if asked in view.from_images or asked in view.producer or asked in view.constants:
        raise BackboneError(
            f"the tensor '{printable(asked)}' of {show_path(path)} is not computed from the "
            f"images, so it cannot be the embedding; near the end there are {last}"
        )
    near = nearest(asked, view.producer)
    hint = f"did you mean {near}? " if near else ""
    raise BackboneError(
        f"{show_path(path)} has no tensor '{printable(asked)}': {hint}Near the end there are {last}"
    )


def find(path: Path, view: View, found: Arrays, asked: str | None) -> Found:
    """Choose embedding and feature map.

    Parameters
    ----------
    path : Path
        Of the foreign file, for messages.
    view : View
        Its graph.
    found : dict of ndarray
        The tensors of `tensors_to_look_at` for two photographs.
    asked : str or None
        The tensor that was asked for.

    Raises
    ------
    BackboneError
        When it cannot be told which tensor is the embedding, or the one that was asked for is
        neither a vector nor a map; the message lists tensors with their shapes.
    """
    if asked is not None:
        return _complete(path, view, found, Part(asked, "vector"), "as asked for")
    hits: dict[str, Classifier] = {}
    for value in view.graph.output:
        some, alone = classifiers_of(view, value.name, found)
        hits.update({hit.data: hit for hit in some if alone})
    if len(hits) > 1 or not all(hit.certain for hit in hits.values()):
        why = "it may be " + " or ".join(
            f"what the {hit.node.op_type} '{printable(hit.node.name or hit.node.output[0])}' reads"
            for hit in hits.values()
        )
        raise _cannot_tell(path, view, found, why)
    for hit in hits.values():
        scale, zero = (_constant(path, view, name) for name in (hit.scale, hit.zero_point))
        part = Part(hit.data, "vector", scale, zero)
        return _complete(path, view, found, part, f"what the last {hit.node.op_type} reads")
    return _without_classifier(path, view, found)


def _without_classifier(path: Path, view: View, found: Arrays) -> Found:
    """Take the file's own output, where it is a vector or a map and no scores."""
    outputs = [value.name for value in view.graph.output if value.name in found]
    vectors = [name for name in outputs if len(_vector_shape(found[name])) == 1]
    maps = [name for name in outputs if found[name].ndim == 4 and name not in vectors]
    chosen = vectors or maps
    if len(chosen) != 1:
        raise _cannot_tell(path, view, found, "no classifier and no single vector is at its end")
    name = chosen[0]
    if is_scored(view, name) or found[name].size // len(found[name]) in IMAGENET_CLASSES:
        raise _cannot_tell(path, view, found, f"'{printable(name)}' looks like scores of classes")
    return _complete(path, view, found, Part(name, "vector"), "the file's own output")


def _complete(path: Path, view: View, found: Arrays, part: Part, why: str) -> Found:
    """Tell the shape of the embedding, and look for the map whose mean it is."""
    array = found.get(part.name)
    shape = () if array is None else _vector_shape(array)
    if array is None or len(shape) not in {1, 3}:
        shown = "of no numbers" if array is None else _shape(array)
        raise _cannot_tell(
            path, view, found, f"'{printable(part.name)}' is {shown}, neither a vector nor a map"
        )
    if array.dtype.kind in "iub" and part.scale is None:
        part = _with_scale(path, view, part)
    if len(shape) == 3:
        part = replace(part, layout=_map_layout(path, part.name, array))
        return Found(part, part, as_vectors(part, array).shape[1], why)
    vectors = as_vectors(part, array)
    return Found(part, _map_before(view, found, part, vectors), vectors.shape[1], why)


def _vector_shape(array: NDArray[Any]) -> tuple[int, ...]:
    """Return the shape of one image's values; axes of length one around a vector do not count."""
    shape = array.shape[1:]
    long = [size for size in shape if size > 1]
    return (max(shape),) if shape and len(long) <= 1 else shape


def _map_layout(path: Path, name: str, array: NDArray[Any]) -> Any:
    """Tell a map's layout from its shape: the two sides are equal, the channels are not."""
    _, first, middle, last = array.shape
    if (first == middle) == (middle == last):
        raise BackboneError(
            f"the shape of '{printable(name)}' in {show_path(path)}, {_shape(array)}, does not "
            "tell which axis holds the channels: name another tensor with --output"
        )
    return "nchw" if middle == last else "nhwc"


def _map_before(
    view: View, found: Arrays, embedding: Part, vectors: NDArray[np.float32]
) -> Part | None:
    """Return the nearest map before the embedding whose mean over space it is."""
    for name in chain_of(view, embedding.name):
        array = found.get(name)
        if array is None or array.ndim != 4 or array.size == vectors.size:
            continue
        scale, zero = _scale_of(view, name) if array.dtype.kind in "iu" else (None, None)
        for layout in ("nchw", "nhwc"):
            part = Part(name, layout, scale, zero)
            mean = as_map(part, array).mean(axis=(2, 3), dtype=np.float64).astype(np.float32)
            if mean.shape == vectors.shape and compare(vectors, mean) > _SAME_MEAN:
                return part
        return None
    return None


def _with_scale(path: Path, view: View, part: Part) -> Part:
    scale, zero = _scale_of(view, part.name)
    if scale is None:
        raise BackboneError(
            f"'{printable(part.name)}' in {show_path(path)} holds integers, and how they become "
            "numbers cannot be told: name another tensor with --output"
        )
    return replace(part, scale=scale, zero_point=zero)


def _scale_of(view: View, name: str) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Return scale and zero point of a quantised tensor, from whoever reads it."""
    queue = [name]
    for current in queue:  # grows while it is walked: readers of the same integers follow
        for node in view.consumers.get(current, ()):
            for scale, zero in _names_of_scale(node, current):
                value = view.constant(scale)
                if value is not None:
                    return value, view.constant(zero)
            if node.op_type in _KEEPS_INTEGERS and len(queue) < _FAR_ENOUGH:
                queue.append(node.output[0])
    return None, None


def _names_of_scale(node: onnx.NodeProto, name: str) -> list[tuple[str, str]]:
    """Return names of scale and zero point with which a node reads a quantised tensor."""
    if not (node.op_type.startswith("QLinear") or node.op_type in {"DequantizeLinear", "QGemm"}):
        return []
    return [
        (node.input[first + 1], node.input[first + 2])
        for first in (0, 3)
        if len(node.input) > first + 2
        and node.input[first] == name
        and (first == 0 or node.op_type in _TWO_QUANTISED_INPUTS)
    ]


def _constant(path: Path, view: View, name: str) -> NDArray[Any] | None:
    if not name:
        return None
    value = view.constant(name)
    if value is None:
        raise BackboneError(
            f"the scale '{printable(name)}' in {show_path(path)} is no constant: "
            "name another tensor with --output"
        )
    return value


def _cannot_tell(path: Path, view: View, found: Arrays, why: str) -> BackboneError:
    near = view.before([value.name for value in view.graph.output], _NEAR_THE_END)
    shapes = {
        name: _shape(found[name])
        for name in near
        if name in found and len(_vector_shape(found[name])) in {1, 3}
    }
    listed = ", ".join(f"'{printable(name)}' {shape}" for name, shape in list(shapes.items())[:8])
    return BackboneError(
        f"it cannot be told which tensor of {show_path(path)} is the embedding: {why}; "
        f"name one with --output: {listed or 'its graph has no vector and no map near its end'}"
    )


def _shape(array: NDArray[Any]) -> str:
    return f"({', '.join(['N', *map(str, array.shape[1:])])})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{printable(name)}'" for name in names)
