"""A graph as one walks it: who writes a tensor, who reads it, what depends on the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

# What leaves weights what they are, or only brings them into another type.
_SAME_SHAPE = frozenset({"Identity", "Cast", "DequantizeLinear", "QuantizeLinear"})


@dataclass(frozen=True, slots=True)
class View:
    """Look-up tables of one graph.

    Attributes
    ----------
    graph : onnx.GraphProto
        It must not be changed while the view is used.
    producer : dict
        The node that writes a tensor.
    consumers : dict
        The nodes that read a tensor, those that do it in an inner graph included.
    from_images : frozenset of str
        Tensors that depend on the images.
    constants : dict
        Initialisers by name.
    """

    graph: onnx.GraphProto
    producer: dict[str, onnx.NodeProto]
    consumers: dict[str, list[onnx.NodeProto]]
    from_images: frozenset[str]
    constants: dict[str, onnx.TensorProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto, image: str) -> View:
        """Look at ``graph``, whose images come in as ``image``."""
        producer: dict[str, onnx.NodeProto] = {}
        consumers: dict[str, list[onnx.NodeProto]] = {}
        from_images = {image}
        for node in graph.node:
            names = set(reads(node))
            for name in names:
                consumers.setdefault(name, []).append(node)
            outputs = [name for name in node.output if name]
            producer.update(dict.fromkeys(outputs, node))
            if names & from_images:
                from_images.update(outputs)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        return cls(graph, producer, consumers, frozenset(from_images), constants)

    def image_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Return what ``node`` reads and what depends on the images."""
        return [name for name in node.input if name in self.from_images]

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return the value of an initialiser or of a Constant node; None for anything else."""
        if name in self.constants:
            return numpy_helper.to_array(self.constants[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    return numpy_helper.to_array(attribute.t)
        return None

    def weight_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of weights, whether they are quantised, cast or plain."""
        for _ in range(8):
            if name in self.constants:
                return tuple(self.constants[name].dims)
            node = self.producer.get(name)
            if node is None:
                return None
            if node.op_type == "Constant":
                value = self.constant(name)
                return None if value is None else value.shape
            if node.op_type not in _SAME_SHAPE:
                return None
            name = node.input[0]
        return None

    def before(self, names: Iterable[str], most: int) -> list[str]:
        """Return up to ``most`` tensors of the images, from ``names`` backwards, nearest first."""
        found: dict[str, None] = {}
        queue = [name for name in names if name in self.from_images]
        for name in queue:  # grows while it is walked: breadth first
            node = self.producer.get(name)
            if name in found or node is None:
                continue
            found[name] = None
            if len(found) == most:
                break
            queue += self.image_inputs(node)
        return list(found)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads; those that its inner graphs read are among them."""
    yield from (name for name in node.input if name)
    for graph in inner_graphs(node):
        for inner in graph.node:
            yield from reads(inner)
        yield from (value.name for value in graph.output)


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in a node's attributes: the branches of an If, the body of a Loop."""
    for found in node.attribute:
        if found.HasField("g"):
            yield found.g
        yield from found.graphs


def names_of(graph: onnx.GraphProto) -> set[str]:
    """Return every name of a tensor in a graph and in the graphs inside it."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        names.update(node.input, node.output)
        for inner in inner_graphs(node):
            names |= names_of(inner)
    return names


def rename(graph: onnx.GraphProto, new: dict[str, str]) -> None:
    """Give tensors other names, in the graphs inside too."""
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.name = new.get(item.name, item.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
        for inner in inner_graphs(node):
            rename(inner, new)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put each node behind those that it reads from, as ONNX wants it; keep the order otherwise.

    ONNX Runtime sorts by itself, so files in which nodes stand anywhere are in use.

    Raises
    ------
    ValueError
        When nodes read from each other in a circle.
    """
    for node in graph.node:
        for inner in inner_graphs(node):
            sort_nodes(inner)
    order = _order(list(graph.node))
    if order != list(range(len(order))):
        nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _order(nodes: list[onnx.NodeProto]) -> list[int]:
    """Return the positions of nodes, those of what a node reads before its own."""
    writer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    sources = [{writer[name] for name in reads(node) if name in writer} for node in nodes]
    order: dict[int, None] = {}
    for start in range(len(nodes)):
        stack, open_ = [start], set[int]()
        while stack:
            current = stack[-1]
            waiting = sources[current].difference(order)
            if waiting & (open_ | {current}):
                raise ValueError
            if waiting and current not in order:
                open_.add(current)
                stack += sorted(waiting, reverse=True)
            else:
                order[stack.pop()] = None
    return list(order)
