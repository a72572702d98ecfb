"""A small builder of ONNX graphs: one call a node, names made up, constants shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE, INT64, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.UINT8,
)
_SHARED = 64
"""Constants of so many numbers or fewer are looked for among those that are there."""


class Graph:
    """Nodes and constants of a graph that is being written.

    Only operators of the domain ``ai.onnx`` are added, in the form that they have had since
    opset 13; the few that have changed since have a method of their own.

    Parameters
    ----------
    opset : int
        That of the model which the nodes will stand in, at least 13.
    prefix : str
        Of all names: so that they are none of the model's.

    Examples
    --------
    >>> graph = Graph(17)
    >>> graph.add("Add", graph.constant(1.0), graph.constant(1.0))
    'add_1'
    >>> [node.op_type for node in graph.nodes], len(graph.constants)
    (['Add'], 1)
    """

    def __init__(self, opset: int, prefix: str = "") -> None:
        self.opset, self._prefix = opset, prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._numbers: dict[str, int] = {}

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node of one output, and return the output's name."""
        output = name or self._name(operator.lower())
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(self, value: ArrayLike, dtype: Any = np.float32, name: str = "constant") -> str:
        """Return the name of a constant."""
        array = np.asarray(value, dtype=dtype)
        key = (str(array.dtype), array.shape, array.tobytes() if array.size <= _SHARED else b"")
        if array.size <= _SHARED and key in self._known:
            return self._known[key]
        made = self._name(name)
        self.constants.append(numpy_helper.from_array(array, made))
        if array.size <= _SHARED:
            self._known[key] = made
        return made

    def texts(self, values: Sequence[str]) -> str:
        """Return the name of a constant of texts."""
        made = self._name("texts")
        tensor = onnx.TensorProto(name=made, data_type=TensorProto.STRING, dims=[len(values)])
        tensor.string_data.extend(valid_text(value).encode() for value in values)
        self.constants.append(tensor)
        return made

    def integers(self, *values: int) -> str:
        """Return the name of a constant of whole numbers, (n,): axes, shapes."""
        return self.constant(values, np.int64, "integers")

    def cast(self, value: str, to: int) -> str:
        """Return a value in another type."""
        return self.add("Cast", value, to=to)

    def cast_to(self, value: str, dtype: Any) -> str:
        """Return a value in the type of a NumPy dtype."""
        return self.cast(value, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def top(self, value: str, k: int) -> str:
        """Return where the k largest of the last axis are, int64; of equal ones the first."""
        output = self._name("top")
        inputs = [value, self.integers(k)]
        self.nodes.append(helper.make_node("TopK", inputs, [f"{output}_values", output], output))
        return output

    def sum(self, value: str, axis: int) -> str:
        """Return the sum along an axis, which is kept with length 1."""
        return self.add("ReduceSum", value, self.integers(axis), keepdims=1)

    def max(self, value: str, axis: int) -> str:
        """Return the largest along an axis, which is kept with length 1."""
        if self.opset < 18:
            return self.add("ReduceMax", value, axes=[axis], keepdims=1)
        return self.add("ReduceMax", value, self.integers(axis), keepdims=1)

    def _name(self, stem: str) -> str:
        number = self._numbers.get(stem, 0) + 1
        self._numbers[stem] = number
        return f"{self._prefix}{stem}_{number}"


def valid_text(text: str) -> str:
    """Return a text that UTF-8 can hold: bytes of a path that were none stand as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
