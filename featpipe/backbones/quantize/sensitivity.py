"""Which layers cost most in 8 bits: measured, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.quantize.int8 import quantize_int8
from featpipe.backbones.quantize.prepare import Layer, Prepared
from featpipe.backbones.quantize.ranges import Range
from featpipe.backbones.quantize.runner import Runner
from featpipe.types import Pixels, Vectors


def rank_layers(
    prepared: Prepared,
    ranges: Mapping[str, Range],
    images: Pixels,
    expected: Vectors,
    on_layer: Callable[[int, int], None] | None = None,
) -> list[tuple[Layer, float]]:
    """Return all layers with what they cost, the dearest first.

    Each layer is quantised by itself, everything else in float; what it costs is 1 minus the
    mean cosine to the vectors of the float model.

    Parameters
    ----------
    images : ndarray of uint8, (N, H, W, 3)
        A small batch: every layer is built and run once.
    expected : ndarray of float32, (N, D)
        What the float model gives.
    on_layer : callable, optional
        Called with the number of layers that are done, and of all.
    """
    costs = []
    for done, layer in enumerate(prepared.layers, start=1):
        model = quantize_int8(prepared, ranges, only=[layer])
        found = Runner(model.SerializeToString()).embed(images)
        costs.append((layer, 1.0 - float(cosines(expected, found).mean())))
        if on_layer is not None:
            on_layer(done, len(prepared.layers))
    return sorted(costs, key=lambda entry: entry[1], reverse=True)


def cosines(expected: Vectors, found: Vectors) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows, float64 (N,); 0 where one of them is zero.

    >>> cosines(np.array([[1, 0]], np.float32), np.array([[2, 0]], np.float32))
    array([1.])
    """
    a, b = expected.astype(np.float64), found.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    return np.asarray(np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), 0.0))
