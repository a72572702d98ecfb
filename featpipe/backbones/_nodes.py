"""Looking at the nodes of a graph."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute, or ``default``."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default
