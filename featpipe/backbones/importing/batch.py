"""Free a graph from a batch size that is burnt into it, and find out where it still is.

Exporters write the example's batch size into the shapes of Reshape and Expand, and squeeze the
axis of the images away where it has length one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from featpipe._files import printable
from featpipe.backbones._nodes import attribute
from featpipe.backbones.contract import EMBEDDING, INPUT
from featpipe.backbones.gate import EXPORT_COSINE, compare, photographs
from featpipe.backbones.importing.graph import View
from featpipe.backbones.importing.options import Arrays
from featpipe.backbones.importing.original import open_quietly, run_quietly
from featpipe.errors import BackboneError
from featpipe.types import Pixels

_SHAPED = frozenset({"Reshape", "Expand", "Squeeze"})
_AXES_ARE_AN_INPUT = 13
"""The opset in which Squeeze's axes became an input."""


def tensors_that_tell(view: View) -> list[str]:
    """Return what `free_batch` must see: data and shapes of the nodes that may hold the batch."""
    nodes = [node for node in view.graph.node if node.op_type in _SHAPED and _of_images(view, node)]
    return list(dict.fromkeys(name for node in nodes for name in node.input[:2] if name))


def free_batch(view: View, found: Arrays, batch: int | None, opset: int) -> None:
    """Let Reshape, Expand and Squeeze take any number of images; changes the nodes in place.

    Parameters
    ----------
    view : View
        Of the graph to be changed.
    found : dict of ndarray
        The tensors of `tensors_that_tell`, for a batch of ``batch`` images.
    batch : int or None
        What is burnt in; None: nothing.
    opset : int
        Of the model.
    """
    graph: Any = view.graph
    for node in list(graph.node):
        if node.op_type not in _SHAPED or not _of_images(view, node):
            continue
        if node.op_type == "Squeeze":
            _name_axes(graph, node, found.get(node.input[0]), opset)
        elif batch is not None and node.input[1] not in view.from_images:
            _free_shape(graph, node, found.get(node.input[1]), batch)


def _of_images(view: View, node: onnx.NodeProto) -> bool:
    return bool(node.input) and node.input[0] in view.from_images


def _free_shape(
    graph: onnx.GraphProto, node: onnx.NodeProto, shape: NDArray[Any] | None, batch: int
) -> None:
    if shape is None or shape.ndim != 1 or not len(shape) or shape[0] != batch:
        return
    if node.op_type == "Expand":
        first = 1  # broadcast to whatever there is
    else:
        # 0 is "as in the data"; -1 "whatever is left" where that is not taken already.
        first = 0 if -1 in shape[1:] or not attribute(node, "allowzero", 0) else -1
        if first == 0 and attribute(node, "allowzero", 0):
            return
    node.input[1] = _add(graph, node, np.array([first, *shape[1:]], np.int64))


def _name_axes(
    graph: onnx.GraphProto, node: onnx.NodeProto, data: NDArray[Any] | None, opset: int
) -> None:
    """Keep a Squeeze without axes from taking the axis of the images with it."""
    named = attribute(node, "axes") is not None or (len(node.input) > 1 and node.input[1])
    if named or data is None:
        return
    axes = [axis for axis in range(1, data.ndim) if data.shape[axis] == 1]
    if not axes:
        node.op_type = "Identity"
        del node.input[1:]
    elif opset < _AXES_ARE_AN_INPUT:
        node.attribute.append(helper.make_attribute("axes", axes))
    else:
        node.input[:] = [node.input[0], _add(graph, node, np.array(axes, np.int64))]


def _add(graph: onnx.GraphProto, node: onnx.NodeProto, value: NDArray[np.int64]) -> str:
    """Add a constant of its own for one node: the one it read may have other readers."""
    name = f"featpipe/{node.op_type}/{node.output[0]}"
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def check_batch(path: Path, model: onnx.ModelProto, size: int) -> None:
    """Run a backbone on three photographs, together and one by one.

    Raises
    ------
    BackboneError
        When it cannot be run on three, or gives another number of vectors: the message names
        the node that still holds a batch size. When an image's vector depends on the images
        beside it.
    """
    images = photographs(3, size)
    session = open_quietly(path, model.SerializeToString())

    def embed(some: Pixels) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = run_quietly(path, session, [EMBEDDING], {INPUT: some})[0]
        return vectors

    try:
        vectors = embed(images)
    except BackboneError as exc:
        where = re.search(r"running (\w+) node\. Name:'([^']*)'", str(exc))
        if where is None:
            raise
        raise _burnt(path, where[1], where[2]) from exc
    if len(vectors) != len(images):
        raise _burnt(path, *_first_burnt(path, model, images))
    alone = np.concatenate([embed(images[i : i + 1]) for i in range(len(images))])
    reached = compare(alone, vectors) if alone.shape == vectors.shape else -1.0
    if reached < EXPORT_COSINE:
        raise _mixing(path, model, reached)


def _mixing(path: Path, model: onnx.ModelProto, reached: float) -> BackboneError:
    dynamic = any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node)
    why = (
        "it quantises with a scale of its own for each batch (DynamicQuantizeLinear): "
        "use the float file, or one that is quantised statically"
        if dynamic
        else "export it in evaluation mode"
    )
    return BackboneError(
        f"{printable(str(path))} gives an image another vector when other images stand beside it "
        f"(cosine {reached:.6f}); {why}"
    )


def _first_burnt(path: Path, model: onnx.ModelProto, images: NDArray[np.uint8]) -> tuple[str, str]:
    """Return operator and name of the first node after which the number of images is lost."""
    view = View.of(model.graph, INPUT)
    nodes = [node for node in model.graph.node if node.output[0] in view.from_images]
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    names = [node.output[0] for node in nodes]
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != EMBEDDING)
    session = open_quietly(path, wider.SerializeToString())

    def lengths(n: int) -> list[int]:
        # A shape, or a number, has no axis of the images: it counts as one that has them all.
        found = run_quietly(path, session, names, {INPUT: images[:n]})
        return [len(array) if np.ndim(array) > 1 else n for array in found]

    for node, one, all_ in zip(nodes, lengths(1), lengths(len(images)), strict=True):
        if one == all_:
            return node.op_type, node.name or node.output[0]
    return model.graph.node[-1].op_type, model.graph.node[-1].name


def _burnt(path: Path, operator: str, name: str) -> BackboneError:
    return BackboneError(
        f"{printable(str(path))} holds a fixed number of images that cannot be freed, in the node "
        f"{operator} '{printable(name)}': export it with a dynamic batch axis"
    )
