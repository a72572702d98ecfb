"""How strange an image is, as nodes: the score of `featpipe.ood`, and its p-value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.bundling.graph import Graph
from featpipe.bundling.heads import add_normalised
from featpipe.ood import FLOOR, NEIGHBOURS, WEIGHT, Novelty

Array = NDArray[Any]

_NO_ROW = -4.0
"""What the cosine to a row that is not there counts as: less than any cosine."""


def add_novelty(graph: Graph, novelty: Novelty, vectors: str, dtype: Any) -> tuple[str, str]:
    """Return score and p-value, (N,) of ``dtype`` each, for vectors (N, D) of ``dtype``."""
    return _Nodes(graph, novelty, dtype).score_and_p(vectors)


class _Nodes:
    def __init__(self, graph: Graph, novelty: Novelty, dtype: Any) -> None:
        self._graph, self._novelty, self._dtype = graph, novelty, dtype

    def _number(self, value: Any) -> str:
        return self._graph.constant(value, self._dtype)

    def score_and_p(self, vectors: str) -> tuple[str, str]:
        add = self._graph.add
        unit = add_normalised(self._graph, vectors, self._dtype)
        means = self._number(self._novelty.means.T)
        away = self._apart(self._graph.max(add("MatMul", unit, means), 1))
        nearest = self._apart(self._nearest(unit))
        # The two classes that are nearest, of all that there are.
        positions = self._graph.top(add("Neg", nearest), 2)
        two = add("Log", add("GatherElements", nearest, positions, axis=1))
        between = add("MatMul", two, self._number([[WEIGHT], [-WEIGHT]]))
        score = add("Add", add("Log", away), between)
        return self._flat(score), self._flat(self._p(score))

    def _nearest(self, unit: str) -> str:
        """Return the mean of the 3 highest cosines to each class, (N, K)."""
        add, counts = self._graph.add, np.array(self._novelty.counts)
        width = int(counts.max())
        rows, mask = _padded(self._novelty, width)
        cosines = add("Add", add("MatMul", unit, self._number(rows.T)), self._number(mask))
        by_class = add("Reshape", cosines, self._graph.integers(-1, len(counts), width))
        k = min(NEIGHBOURS, width)
        best = add("GatherElements", by_class, self._graph.top(by_class, k), axis=2)
        fewer = np.minimum(counts, k)[:, None]
        weights = (np.arange(k) < fewer) / fewer
        total = self._graph.sum(add("Mul", best, self._number(weights[None])), 2)
        return add("Squeeze", total, self._graph.integers(2))

    def _apart(self, cosines: str) -> str:
        add = self._graph.add
        return add("Max", add("Sub", self._number(1.0), cosines), self._number(FLOOR))

    def _p(self, score: str) -> str:
        add, known = self._graph.add, self._novelty.calibration
        as_strange = add("GreaterOrEqual", self._number(known[None]), score)
        count = self._graph.sum(self._graph.cast_to(as_strange, self._dtype), 1)
        return add("Div", add("Add", count, self._number(1.0)), self._number(len(known) + 1.0))

    def _flat(self, column: str) -> str:
        return self._graph.add("Squeeze", column, self._graph.integers(1))


def _padded(novelty: Novelty, width: int) -> tuple[Array, Array]:
    """Return rows with as many for each class, (K * width, D), and what marks the added ones."""
    counts = np.array(novelty.counts)
    rows = np.zeros((len(counts) * width, novelty.rows.shape[1]), dtype=np.float64)
    mask = np.full((1, len(rows)), _NO_ROW)
    starts = np.repeat(np.arange(len(counts)) * width, counts)
    place = starts + np.concatenate([np.arange(n) for n in counts])
    rows[place], mask[0, place] = novelty.rows, 0.0
    return rows, mask
