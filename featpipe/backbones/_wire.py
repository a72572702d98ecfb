"""The few fields of an ONNX file that featpipe must see before anybody runs it.

An ONNX file is one protobuf message (``onnx.proto``, field numbers below). Importing the
``onnx`` package takes longer than everything else that loading a backbone needs, so this
module walks the wire format itself: it skips tensors by their length and copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Field numbers of onnx.proto, by message.
MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA, MODEL_FUNCTION = 7, 8, 14, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_FUNCTION_NODE, _FUNCTION_DOMAIN = 7, 10
_NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL_ENTRY, _TENSOR_LOCATION = 13, 14
_DEEPEST = 16


class WireError(ValueError):
    """The bytes are not a protobuf message."""


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the graph: ONNX element type and shape.

    A dimension is an int where it is fixed, a str where it has a name, None otherwise.
    """

    name: str
    element_type: int
    shape: tuple[int | str | None, ...]


@dataclass(slots=True)
class Graph:
    """What matters about a graph and all graphs inside it."""

    inputs: list[Value]
    outputs: list[Value]
    domains: set[str]
    operators: set[str]
    has_external_data: bool = False


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a message: an int, or a view of the bytes.

    Raises
    ------
    WireError
        Where the message is cut short or no message at all.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise WireError
        if kind == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in {1, 5}:
            length = 8 if kind == 1 else 4
        else:
            raise WireError
        if position + length > end:
            raise WireError
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise WireError
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WireError


def pick(message: memoryview, *numbers: int) -> Iterator[memoryview]:
    """Yield the length-delimited fields of ``message`` that have one of these numbers."""
    for number, value in fields(message):
        if number in numbers:
            if isinstance(value, int):
                raise WireError
            yield value


def text(message: memoryview, number: int) -> str:
    """Return a text field, or ''; the last one counts, as protobuf has it."""
    found = ""
    for value in pick(message, number):
        found = bytes(value).decode("utf-8", "backslashreplace")
    return found


def integer(message: memoryview, number: int) -> int:
    """Return a whole-number field, or 0."""
    found = 0
    for field, value in fields(message):
        if field == number and isinstance(value, int):
            found = value
    return found


def metadata(model: memoryview) -> dict[str, bytes]:
    """Return the model's ``metadata_props``."""
    return {
        text(entry, 1): bytes(next(pick(entry, 2), b"")) for entry in pick(model, MODEL_METADATA)
    }


def read_graph(model: memoryview) -> Graph:
    """Walk the model's graph, the graphs in its attributes, and its local functions."""
    graph = Graph([], [], set(), set())
    for message in pick(model, MODEL_GRAPH):
        graph.inputs += [_value(entry) for entry in pick(message, _GRAPH_INPUT)]
        graph.outputs += [_value(entry) for entry in pick(message, _GRAPH_OUTPUT)]
        _walk_graph(message, graph, 0)
    local = set()
    for message in pick(model, MODEL_FUNCTION):
        local.add(text(message, _FUNCTION_DOMAIN))
        for node in pick(message, _FUNCTION_NODE):
            _walk_node(node, graph, 0)
    # A local function is made of operators that have been looked at just now.
    graph.domains -= local - {""}
    return graph


def _walk_graph(message: memoryview, graph: Graph, depth: int) -> None:
    if depth > _DEEPEST:
        raise WireError
    for number, value in fields(message):
        if isinstance(value, int):
            continue
        if number == _GRAPH_NODE:
            _walk_node(value, graph, depth)
        elif number == _GRAPH_INITIALIZER:
            _walk_tensor(value, graph)
        elif number == _GRAPH_SPARSE:
            _walk_sparse(value, graph)


def _walk_node(message: memoryview, graph: Graph, depth: int) -> None:
    graph.domains.add(text(message, _NODE_DOMAIN))
    graph.operators.add(text(message, _NODE_TYPE))
    for attribute in pick(message, _NODE_ATTRIBUTE):
        for tensor in pick(attribute, *_ATTRIBUTE_TENSORS):
            _walk_tensor(tensor, graph)
        for tensor in pick(attribute, *_ATTRIBUTE_SPARSE):
            _walk_sparse(tensor, graph)
        for inner in pick(attribute, *_ATTRIBUTE_GRAPHS):
            _walk_graph(inner, graph, depth + 1)


def _walk_sparse(message: memoryview, graph: Graph) -> None:
    for tensor in pick(message, 1, 2):
        _walk_tensor(tensor, graph)


def _walk_tensor(message: memoryview, graph: Graph) -> None:
    outside = integer(message, _TENSOR_LOCATION) != 0
    if outside or any(True for _ in pick(message, _TENSOR_EXTERNAL_ENTRY)):
        graph.has_external_data = True


def _value(message: memoryview) -> Value:
    """Read a ValueInfoProto that holds a tensor; anything else has element type 0."""
    name, element, shape = text(message, 1), 0, []
    for kind in pick(message, 2):
        for tensor in pick(kind, 1):
            element = integer(tensor, 1)
            shape = [_dimension(size) for dims in pick(tensor, 2) for size in pick(dims, 1)]
    return Value(name, element, tuple(shape))


def _dimension(message: memoryview) -> int | str | None:
    name = text(message, 2)
    if name:
        return name
    has_size = any(number == 1 for number, _ in fields(message))
    return integer(message, 1) if has_size else None
