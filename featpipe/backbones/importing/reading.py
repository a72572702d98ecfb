"""Read a foreign ONNX file without trusting it.

External data is read from the file's own folder alone and put into the model, operators that
would need a custom library are refused, and functions that the file brings along are put in
place of their calls: what comes out is one plain graph.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.inliner

from featpipe._files import first_line, printable, read_regular, show_path
from featpipe.backbones import _wire
from featpipe.backbones.card import CARD_KEY
from featpipe.backbones.contract import MAX_FILE_BYTES, check_safe
from featpipe.backbones.importing.graph import sort_nodes
from featpipe.errors import BackboneError

OLDEST_OPSET = 7
"""The first whose Add, Sub and Mul broadcast as NumPy does; ONNX Runtime promises no older one."""
_ONNX_DOMAINS = frozenset({"", "ai.onnx"})


def read_foreign(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that anybody may have written.

    Returns
    -------
    onnx.ModelProto
        Without external data and without local functions, its nodes in order.

    Raises
    ------
    BackboneError
        When there is no such file, it is no ONNX file, a featpipe backbone already, too large,
        of an unknown opset, or reaches outside: for files, or for custom operators.
    """
    data = _read(path)
    try:
        graph = _wire.read_graph(memoryview(data))
        metadata = _wire.metadata(memoryview(data))
        model = onnx.load_model_from_string(data)
    except Exception as exc:
        # protobuf's DecodeError is no class that every version of protobuf shares.
        raise _not_onnx(path, data) from exc
    if not model.HasField("graph") or not model.graph.node:
        raise _not_onnx(path, data)
    if CARD_KEY in metadata:
        raise BackboneError(
            f"{show_path(path)} is a featpipe backbone already: nothing has to be imported; "
            f"use it with --model {show_path(path)}"
        )
    _check_opset(path, model)
    has_external_data, graph.has_external_data = graph.has_external_data, False
    check_safe(path, graph)
    if has_external_data:
        _load_external_data(path, model, len(data))
    model = _without_functions(path, model)
    try:
        sort_nodes(model.graph)
    except ValueError:
        raise BackboneError(
            f"{show_path(path)} is damaged: its nodes read from each other in a circle"
        ) from None
    _open_sizes(model.graph)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that the model uses."""
    return max((o.version for o in model.opset_import if o.domain in _ONNX_DOMAINS), default=0)


def _open_sizes(graph: onnx.GraphProto) -> None:
    """Leave open what some exporters leave open with 0 or -1; ONNX Runtime takes 0 for a size."""
    for value in graph.input:
        for size in value.type.tensor_type.shape.dim:
            if size.HasField("dim_value") and size.dim_value <= 0:
                size.ClearField("dim_value")


def _read(path: Path) -> bytes:
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise BackboneError(f"there is no file {show_path(path)}: check the path") from None
    except OSError as exc:
        raise BackboneError(f"cannot read {show_path(path)}: {exc.strerror or exc}") from exc
    if data is None:
        raise too_large(path)
    return data


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    found, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if found > newest:
        raise BackboneError(
            f"{show_path(path)} uses opset {found}, newer than the {newest} that the installed "
            f"onnx {onnx.__version__} knows: upgrade onnx and onnxruntime, or write the file with "
            f"opset {newest} or lower"
        )
    if found < OLDEST_OPSET:
        raise BackboneError(
            f"{show_path(path)} uses opset {found}, older than the {OLDEST_OPSET} that ONNX "
            "Runtime promises to read: convert it with "
            "onnx.version_converter.convert_version(model, 13)"
        )


def _without_functions(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as exc:
        raise BackboneError(
            f"the functions inside {show_path(path)} cannot be put in place of their calls: "
            f"{first_line(exc)}"
        ) from exc


def _load_external_data(path: Path, model: onnx.ModelProto, size: int) -> None:
    """Put every tensor that lies in another file into the model."""
    for tensor in _tensors_of_model(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL and not tensor.external_data:
            continue
        data = _external_bytes(path, tensor, MAX_FILE_BYTES - size)
        size += len(data)
        tensor.raw_data = data
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _external_bytes(path: Path, tensor: onnx.TensorProto, most: int) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = _external_file(path, entries.get("location", ""))
    try:
        with file.open("rb") as opened:
            available = os.fstat(opened.fileno()).st_size
            offset, length = _piece(entries, available)
            if length <= most and 0 <= offset <= offset + length <= available:
                opened.seek(offset)
                return opened.read(length)
    except OSError as exc:
        raise BackboneError(f"cannot read {show_path(file)}: {exc.strerror or exc}") from exc
    if available >= length > most:
        raise too_large(path)
    raise BackboneError(
        f"{show_path(path)} looks for '{printable(tensor.name)}' beyond the end of "
        f"{printable(file.name)}: one of the two is cut short, or belongs to another"
    )


def _piece(entries: dict[str, str], available: int) -> tuple[int, int]:
    """Return offset and length of a tensor in its file; (-1, 0) where they are no numbers."""
    try:
        offset = int(entries.get("offset") or 0)
        return offset, int(entries.get("length") or available - offset)
    except ValueError:
        return -1, 0


def _external_file(path: Path, location: str) -> Path:
    """Return the file that a tensor names, when it is a real one in the model's own folder."""
    shown = f"{show_path(path)} keeps weights in '{printable(location)}'"
    parts = location.replace("\\", "/").split("/")
    if not parts[0] or os.path.isabs(location) or ".." in parts or ":" in parts[0]:
        raise BackboneError(
            f"{shown}, outside of its own folder: featpipe reads no such file; "
            "save the model as one file, or with its weights beside it"
        )
    folder = os.path.realpath(path.parent)
    file = os.path.join(folder, os.path.normpath(location))
    if os.path.realpath(file) != file:
        raise BackboneError(
            f"{shown}, which is a symbolic link: featpipe follows none from a foreign file; "
            "put the file itself in its place"
        )
    if not os.path.isfile(file):
        raise BackboneError(f"{shown}, which is not there: put it beside the model")
    return Path(file)


def _tensors_of_model(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _tensors_of_node(node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for item in (*sparse, *attribute.sparse_tensors):
            yield from (item.values, item.indices)
        inner = [attribute.g] if attribute.HasField("g") else []
        for graph in (*inner, *attribute.graphs):
            yield from _tensors_of_graph(graph)


def _not_onnx(path: Path, data: bytes) -> BackboneError:
    if data.startswith(b"PK\x03\x04"):
        return BackboneError(
            f"{show_path(path)} is a zip archive, as PyTorch and Keras write them, and no ONNX "
            "file: export the network to ONNX first (docs/importing.md)"
        )
    return BackboneError(f"{show_path(path)} is not an ONNX file, or it is cut short")


def too_large(path: Path) -> BackboneError:
    """Say that a file and its weights cannot be one file."""
    return BackboneError(
        f"{show_path(path)} needs more than the 2 GB that one ONNX file can hold: "
        "featpipe's backbones are single files"
    )
