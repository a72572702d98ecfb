"""A calibrator as nodes: scores to probabilities, the likeliest class and its label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.bundling.graph import Graph
from featpipe.calibration import Calibrator, Isotonic, Sigmoid
from featpipe.calibration.isotonic import MIXED

Array = NDArray[Any]

_NOT = -1e30
"""Stands for minus infinity: its exponential is 0, and it can be subtracted from itself."""


def add_probabilities(
    graph: Graph, calibrator: Calibrator, scores: str, n_classes: int, dtype: Any
) -> str:
    """Add a calibrator; return probabilities, (N, K) of ``dtype``, for scores (N, K)."""
    return _Nodes(graph, n_classes, dtype).calibrated(calibrator, scores)


def add_label(graph: Graph, probabilities: str, classes: Sequence[str]) -> tuple[str, str]:
    """Return the likeliest class, int64 (N,), the first of equal ones, and its label, string."""
    index = graph.add("ArgMax", probabilities, axis=1, keepdims=0)
    return index, graph.add("Gather", graph.texts(classes), index)


class _Nodes:
    def __init__(self, graph: Graph, n_classes: int, dtype: Any) -> None:
        self._graph, self._n_classes, self._dtype = graph, n_classes, dtype

    def _number(self, value: Any) -> str:
        return self._graph.constant(value, self._dtype)

    def calibrated(self, calibrator: Calibrator, scores: str) -> str:
        """Return the probabilities of ``scores``."""
        scaled = self._graph.add("Div", scores, self._number(calibrator.temperature))
        if isinstance(calibrator, Sigmoid):
            return self._sigmoids(calibrator, self._log_odds(scaled))
        smooth = self._graph.add("Softmax", scaled, axis=1)
        if isinstance(calibrator, Isotonic):
            return self._isotonic(calibrator, self._log_odds(scaled), smooth)
        return smooth

    def _log_odds(self, scaled: str) -> str:
        """Return log p / (1 - p) of every class; of two the second's alone."""
        add = self._graph.add
        if self._n_classes == 2:
            return add("MatMul", scaled, self._number([[-1.0], [1.0]]))
        # All but one class, for every class: nothing is taken from what it has nearly all of.
        others = self._number(np.eye(self._n_classes)[None] * _NOT)
        rest = add("Add", add("Unsqueeze", scaled, self._graph.integers(1)), others)
        top = self._graph.max(rest, 2)
        total = self._graph.sum(add("Exp", add("Sub", rest, top)), 2)
        below = add("Squeeze", add("Add", top, add("Log", total)), self._graph.integers(2))
        return add("Sub", scaled, below)

    def _sigmoids(self, calibrator: Sigmoid, odds: str) -> str:
        add = self._graph.add
        margin = add("Mul", odds, self._number(calibrator.slopes))
        margin = add("Add", margin, self._number(calibrator.intercepts))
        if self._n_classes == 2:
            both = add("Mul", margin, self._number([[-1.0, 1.0]]))
            return add("Sigmoid", both)
        # log sigmoid(m) = min(m, 0) - log(1 + exp(-|m|)); Softplus is not had in 64 bits.
        fading = add("Exp", add("Neg", add("Abs", margin)))
        logs = add("Log", add("Add", fading, self._number(1.0)))
        logs = add("Sub", add("Min", margin, self._number(0.0)), logs)
        return add("Softmax", logs, axis=1)

    def _isotonic(self, calibrator: Isotonic, odds: str, smooth: str) -> str:
        """Return straight lines between points: their slopes, each over the part that is passed."""
        add, number = self._graph.add, self._number
        starts, widths, slopes, first = _lines(calibrator)
        past = add("Sub", add("Unsqueeze", odds, self._graph.integers(2)), number(starts[None]))
        past = add("Min", add("Max", past, number(0.0)), number(widths[None]))
        risen = self._graph.sum(add("Mul", past, number(slopes[None])), 2)
        shares = add("Add", add("Squeeze", risen, self._graph.integers(2)), number(first[None]))
        if self._n_classes == 2:
            shares = add("Concat", add("Sub", number(1.0), shares), shares, axis=1)
        shares = add("Div", shares, self._graph.sum(shares, 1))
        mixed = add("Mul", shares, number(1.0 - MIXED))
        return add("Add", mixed, add("Mul", smooth, number(MIXED)))


def _lines(calibrator: Isotonic) -> tuple[Array, Array, Array, Array]:
    """Return starts, widths and slopes of all lines, (maps, lines), and the first values."""
    longest = max(2, *(len(knots) for knots in calibrator.odds)) - 1
    starts, widths, slopes = np.zeros((3, len(calibrator.odds), longest))
    for row, (knots, values) in enumerate(zip(calibrator.odds, calibrator.values, strict=True)):
        n = len(knots) - 1
        starts[row, :n], widths[row, :n] = knots[:-1], np.diff(knots)
        slopes[row, :n] = np.diff(values) / np.diff(knots)
    return starts, widths, slopes, np.array([values[0] for values in calibrator.values])
