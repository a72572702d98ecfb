"""The exact resize and crop as nodes: pictures of any size to the square of the backbone.

Pillow's antialiased resize is two passes, along rows and then down columns, each a weighted
mean of the pixels near a centre, rounded to 8 bits. Here the weights are made from the size of
the picture as it comes. They are rounded to the fixed point of the resize that featpipe itself
uses, because a pixel that differs by one level can move a vote; products and sums of them are
whole numbers that 32-bit floats hold exactly, for pictures up to some five times the target.

Blocks of neighbouring pixels share a window of the picture, so that a large one is not
multiplied by a matrix of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from featpipe.bundling.graph import DOUBLE, FLOAT, INT64, UINT8, Graph
from featpipe.types import ResizeRule

_LARGEST_BLOCK, _SMALLEST_BLOCK = 40, 8
_RADIUS = {"nearest": 1, "bilinear": 1, "bicubic": 2, "lanczos": 3}
"""How far each filter reaches, in pixels of the smaller of the two pictures."""
_MIDDLE = 128.0
_BITS = 22
"""Digits after the point of Pillow's weights; the SIMD resize has so many that they fit 16 bits."""


def add_resize(graph: Graph, images: str, rule: ResizeRule, *, short_weights: bool) -> str:
    """Add the resize of ``images``, uint8 (N, H, W, 3); return uint8 (N, crop, crop, 3).

    Parameters
    ----------
    short_weights : bool
        Whether weights are rounded to 16 bits, as ``cykooz.resizer`` does it, or as Pillow does.

    References
    ----------
    Pillow, ``src/libImaging/Resample.c``: the centres, the two passes and their rounding; Keys
    1981, "Cubic Convolution Interpolation for Digital Image Processing", equation 4, a = -0.5.
    """
    shape = graph.add("Shape", images)
    height, width = (graph.add("Gather", shape, graph.constant(i, np.int64)) for i in (1, 2))
    across = _pass(graph, width, _resized(graph, width, height, rule), rule, short_weights)
    down = _pass(graph, height, _resized(graph, height, width, rule), rule, short_weights)
    rows = graph.add("Slice", images, down.first, down.end, graph.integers(1))
    planes = graph.add("Transpose", rows, perm=[0, 3, 1, 2])
    narrow = _along_rows(graph, planes, across, rule.crop)
    small = _down_columns(graph, narrow, down, rule.crop)
    whole = graph.add("Add", small, graph.constant(_MIDDLE))
    return graph.add("Transpose", graph.cast(whole, UINT8), perm=[0, 2, 3, 1])


def block_of(crop: int) -> int:
    """Return how many neighbouring pixels share a window: a divisor of the crop.

    >>> block_of(224), block_of(299), block_of(331)
    (32, 23, 331)
    """
    fits = [b for b in range(_SMALLEST_BLOCK, _LARGEST_BLOCK + 1) if crop % b == 0]
    return max(fits, default=crop)


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one pass reads and weighs.

    Attributes
    ----------
    positions : str
        int64 (blocks, L): where in the picture each block's window is.
    weights : str
        float32 (blocks, B, L).
    shift : str
        float32 (blocks, B, 1): what is added before a sum is rounded down.
    first, end : str
        int64 (1,): the part of the side that any window reaches.
    """

    positions: str
    weights: str
    shift: str
    first: str
    end: str


def _resized(graph: Graph, side: str, other: str, rule: ResizeRule) -> str:
    """Return the length that a side has after the resize, before the crop."""
    shorter = graph.constant(rule.resize, np.int64)
    if rule.squash:
        return shorter
    longer = graph.add("Div", graph.add("Mul", shorter, side), other)
    return graph.add("Max", shorter, longer)


def _pass(graph: Graph, side: str, resized: str, rule: ResizeRule, short: bool) -> _Pass:
    """Return windows and weights of one pass; whole numbers until the last division."""
    add, number = graph.add, _numbers(graph)
    block, radius = block_of(rule.crop), _RADIUS[rule.interpolation]
    n_blocks = rule.crop // block
    spare = graph.cast(add("Sub", resized, number(rule.crop)), DOUBLE)
    # To even, as Python's `round` does.
    margin = graph.cast(add("Round", add("Mul", spare, _doubles(graph)(0.5))), INT64)
    # The centre of pixel i is (2 i + 1) * side / (2 * resized) in the picture that comes.
    odd = number(2 * np.arange(rule.crop).reshape(n_blocks, block, 1) + 1)
    centres = add("Mul", add("Add", odd, add("Mul", margin, number(2))), side)
    larger = add("Max", side, resized)
    reach = add("Mul", number(2 * radius), larger)
    twice = add("Mul", resized, number(2))
    span = add("Add", add("Mul", number(block - 1), side), add("Add", reach, resized))
    length = add("Min", side, add("Add", add("Div", span, resized), number(2)))
    earliest = add("Sub", add("Gather", centres, number(0), axis=1), reach)
    starts = add("Sub", add("Div", earliest, twice), number(1))
    starts = add("Max", add("Min", starts, add("Sub", side, length)), number(0))
    positions = add("Add", starts, add("Range", number(0), length, number(1)))
    scaled = add("Mul", add("Add", add("Mul", positions, number(2)), number(1)), resized)
    apart = add("Sub", add("Unsqueeze", scaled, graph.integers(1)), centres)
    unit = twice if rule.interpolation == "nearest" else add("Mul", larger, number(2))
    distance = add("Div", graph.cast(apart, DOUBLE), graph.cast(unit, DOUBLE))
    weights, shift = _fixed_point(graph, _FILTERS[rule.interpolation](graph, distance), short)
    first = add("Reshape", add("Gather", starts, number([0]), axis=0), graph.integers(1))
    last = add("Reshape", add("Gather", starts, number([n_blocks - 1])), graph.integers(1))
    return _Pass(positions, weights, shift, first, add("Add", last, length))


def _numbers(graph: Graph) -> Callable[[ArrayLike], str]:
    return lambda value: graph.constant(value, np.int64)


def _doubles(graph: Graph) -> Callable[[ArrayLike], str]:
    return lambda value: graph.constant(value, np.float64)


def _fixed_point(graph: Graph, values: str, short: bool) -> tuple[str, str]:
    """Return a filter's values as weights that are multiples of a power of two, and the shift.

    Pixels are counted from 128: so sums stay small. What the rounded weights lack to one, times
    128, is in the shift, and the half that makes rounding down rounding.
    """
    add, number = graph.add, _doubles(graph)
    weights = add("Div", values, graph.sum(values, -1))
    scale = _scale(graph, weights) if short else number(2.0**_BITS)
    weights = add("Div", _away_from_zero(graph, add("Mul", weights, scale)), scale)
    surplus = add("Sub", graph.sum(weights, -1), number(1.0))
    shift = add("Add", add("Mul", surplus, number(_MIDDLE)), number(0.5))
    return graph.cast(weights, FLOAT), graph.cast(shift, FLOAT)


def _scale(graph: Graph, weights: str) -> str:
    """Return the largest power of two with which the largest weight still fits 16 bits."""
    add, number = graph.add, _doubles(graph)
    largest = graph.max(graph.max(graph.max(weights, -1), -2), -3)
    powers = 2.0 ** np.arange(1, _BITS)
    multiples = _away_from_zero(graph, add("Mul", largest, number(powers)))
    fits = add("Less", multiples, number(2.0**15))
    count = graph.sum(graph.cast(fits, INT64), -1)
    return add("Gather", number(2.0 ** np.arange(_BITS)), count)


def _away_from_zero(graph: Graph, x: str) -> str:
    """Round as both resizes do: a half, which Round takes to the even number, away from zero."""
    nearest = graph.add("Floor", graph.add("Add", graph.add("Abs", x), _doubles(graph)(0.5)))
    return graph.add("Mul", graph.add("Sign", x), nearest)


def _nearest(graph: Graph, x: str) -> str:
    # The pixel that the centre is in; one on the border belongs to the later pixel.
    number = _doubles(graph)
    above = graph.add("Less", number(-0.5), x)
    below = graph.add("Not", graph.add("Less", number(0.5), x))
    return graph.cast(graph.add("And", above, below), DOUBLE)


def _bilinear(graph: Graph, x: str) -> str:
    number = _doubles(graph)
    return graph.add("Max", graph.add("Sub", number(1.0), graph.add("Abs", x)), number(0.0))


def _bicubic(graph: Graph, x: str) -> str:
    add, number = graph.add, _doubles(graph)
    x = add("Min", add("Abs", x), number(2.0))
    # 1.5 x³ - 2.5 x² + 1 up to 1; -0.5 (x - 1) (x - 2)² from there: nothing cancels at 2.
    slope = add("Sub", add("Mul", x, number(1.5)), number(2.5))
    near = add("Add", add("Mul", add("Mul", x, x), slope), number(1.0))
    apart = add("Sub", x, number(2.0))
    far = add("Mul", add("Mul", apart, apart), add("Sub", number(1.0), x))
    return add("Where", add("Less", x, number(1.0)), near, add("Mul", far, number(0.5)))


def _lanczos(graph: Graph, x: str) -> str:
    add, number = graph.add, _doubles(graph)
    inside = graph.cast(add("Less", add("Abs", x), number(3.0)), DOUBLE)
    product = add("Mul", _sinc(graph, x), _sinc(graph, add("Div", x, number(3.0))))
    return add("Mul", inside, product)


def _sinc(graph: Graph, x: str) -> str:
    add, number = graph.add, _doubles(graph)
    angle = add("Mul", x, number(math.pi))
    small = add("Less", add("Abs", angle), number(1e-9))
    safe = add("Where", small, number(1.0), angle)
    return add("Where", small, number(1.0), add("Div", add("Sin", safe), safe))


_FILTERS = {"nearest": _nearest, "bilinear": _bilinear, "bicubic": _bicubic, "lanczos": _lanczos}


def _along_rows(graph: Graph, planes: str, across: _Pass, crop: int) -> str:
    """Return (N, 3, H, crop) float32: whole numbers, from -128 to 127."""
    add = graph.add
    found = add("Transpose", add("Gather", planes, across.positions, axis=3), perm=[0, 1, 3, 2, 4])
    found = add("Sub", graph.cast(found, FLOAT), graph.constant(_MIDDLE))
    found = add("MatMul", found, add("Transpose", across.weights, perm=[0, 2, 1]))
    found = _rounded(graph, found, add("Transpose", across.shift, perm=[0, 2, 1]))
    side_by_side = add("Transpose", found, perm=[0, 1, 3, 2, 4])
    return add("Reshape", side_by_side, graph.integers(0, 0, 0, crop))


def _down_columns(graph: Graph, narrow: str, down: _Pass, crop: int) -> str:
    """Return (N, 3, crop, crop) float32: whole numbers, from -128 to 127."""
    positions = graph.add("Sub", down.positions, down.first)
    found = graph.add("MatMul", down.weights, graph.add("Gather", narrow, positions, axis=2))
    found = _rounded(graph, found, down.shift)
    return graph.add("Reshape", found, graph.integers(0, 0, crop, crop))


def _rounded(graph: Graph, values: str, shift: str) -> str:
    nearest = graph.add("Floor", graph.add("Add", values, shift))
    return graph.add("Clip", nearest, graph.constant(-_MIDDLE), graph.constant(255.0 - _MIDDLE))
