"""What a foreign file reads: one image input, its layout, size, type and batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from featpipe._files import printable
from featpipe.backbones.card import Triple
from featpipe.backbones.importing.graph import View
from featpipe.backbones.importing.options import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RAW_MEAN,
    RAW_STD,
    ImportOptions,
    Layout,
    Reads,
)
from featpipe.errors import BackboneError

Sizes: TypeAlias = tuple[int | None, ...]
"""A shape; None where the file leaves the size open."""

# ONNX Runtime's CPU provider has no convolution in double precision.
_TYPES: dict[int, Any] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.UINT8: np.uint8,
}
_AXES: dict[Layout, tuple[int, int, int]] = {"nchw": (1, 2, 3), "nhwc": (3, 1, 2)}
"""Where channels, height and width stand."""


@dataclass(frozen=True, slots=True)
class _Input:
    """The input of one file, as the messages name it."""

    path: Path
    value: onnx.ValueInfoProto
    sizes: Sizes

    def __str__(self) -> str:
        return f"{printable(str(self.path))} reads {describe(self.value)}"


def read_signature(path: Path, graph: onnx.GraphProto, options: ImportOptions) -> Reads:
    """Tell what the file reads, from its input's type and shape and from the options.

    Raises
    ------
    BackboneError
        When it has not exactly one input, when that is no image, or when the file and the
        options leave something open or contradict each other.
    """
    found = _image_input(path, graph)
    layout = _layout(found, options.layout)
    mean, std = _normalisation(found, graph, options)
    return Reads(
        name=found.value.name,
        layout=layout,
        size=_side(found, layout, options.size),
        dtype=np.dtype(_TYPES[found.value.type.tensor_type.elem_type]),
        batch=found.sizes[0],
        mean=mean,
        std=std,
        bgr=options.bgr,
    )


def describe(value: onnx.ValueInfoProto) -> str:
    """Return name, type and shape of an input or output, for a person."""
    kind = value.type.tensor_type
    try:
        name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    except ValueError:
        name = f"type {kind.elem_type}"
    sizes = ", ".join("?" if size is None else str(size) for size in _sizes(value) or ())
    return f"'{printable(value.name)}' ({sizes or 'of unknown shape'}, {name})"


def _image_input(path: Path, graph: onnx.GraphProto) -> _Input:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        shown = ", ".join(describe(value) for value in inputs) or "none"
        raise BackboneError(
            f"{printable(str(path))} has {len(inputs)} inputs, where a backbone reads images and "
            f"nothing else: {shown}; export it with one input"
        )
    value = inputs[0]
    sizes = _sizes(value)
    found = _Input(path, value, (None,) * 4 if sizes is None else sizes)
    if value.type.tensor_type.elem_type not in _TYPES:
        raise BackboneError(f"{found}: images are float32, float16 or uint8")
    if len(found.sizes) != 4:
        raise BackboneError(f"{found}: a batch of images has four axes")
    return found


def _sizes(value: onnx.ValueInfoProto) -> Sizes | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)


def _layout(found: _Input, asked: Layout | None) -> Layout:
    """Tell the layout from where the three channels are, or may be."""
    can = [layout for layout, (channels, _, _) in _AXES.items() if found.sizes[channels] == 3]
    if not can:
        can = [name for name, (channels, *_) in _AXES.items() if found.sizes[channels] is None]
    if not can:
        raise BackboneError(f"{found}: an image has 3 channels, at axis 1 or at axis 3")
    if asked is not None and asked not in can:
        raise BackboneError(f"{found}: that is {can[0]}, and --layout {asked} cannot be had")
    if asked is None and len(can) > 1:
        raise BackboneError(
            f"{found}: its shape does not tell where the channels are; "
            "say --layout nchw (as PyTorch has it) or --layout nhwc (as TensorFlow has it)"
        )
    return asked or can[0]


def _side(found: _Input, layout: Layout, asked: int | None) -> int:
    _, height, width = (found.sizes[axis] for axis in _AXES[layout])
    fixed = [size for size in (height, width) if size is not None]
    if len(set(fixed)) > 1:
        raise BackboneError(
            f"{found}: {height} × {width} pixels, and featpipe's backbones read squares; "
            "export it with a square input"
        )
    if asked is not None and fixed and asked != fixed[0]:
        raise BackboneError(f"{found}: {fixed[0]} pixels are fixed, --size {asked} cannot be had")
    if asked is None and not fixed:
        raise BackboneError(
            f"{found}, of any height and width: say with --size how many pixels it was "
            "trained with (often 224)"
        )
    return fixed[0] if asked is None else asked


def _normalisation(
    found: _Input, graph: onnx.GraphProto, options: ImportOptions
) -> tuple[Triple, Triple]:
    given = options.mean is not None or options.std is not None
    if found.value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        if given:
            raise BackboneError(
                f"{found}: it takes pixels as they are and normalises them by itself, "
                "so --mean and --std cannot be had"
            )
        return RAW_MEAN, RAW_STD
    own = None if given else _own_normalisation(graph, found.value.name)
    if own is not None:
        raise BackboneError(
            f"{found} and begins with {own}, so it seems to normalise by itself: say what it "
            "wants, --mean 0 --std 1/255 for numbers from 0 to 255, --mean 0 --std 1 for 0 to 1"
        )
    return options.mean or IMAGENET_MEAN, options.std or IMAGENET_STD


def _own_normalisation(graph: onnx.GraphProto, image: str) -> str | None:
    """Name the node that subtracts from the image, or scales it, by constants."""
    view = View.of(graph, image)
    name = image
    while True:
        readers = view.consumers.get(name, [])
        if len(readers) != 1:
            return None
        node = readers[0]
        if node.op_type in {"Sub", "Div", "Mul", "Add"} and len(view.image_inputs(node)) == 1:
            return f"{node.op_type} '{printable(node.name or node.output[0])}'"
        if node.op_type not in {"Transpose", "Cast", "Identity"}:
            return None
        name = node.output[0]
