"""A fitted head as nodes: vectors to one score a class, whatever the head.

Standard operators only. scikit-learn's arrays are turned, in 64 bits, into what the fewest
nodes need; the nodes compute in 32 bits, or in 64 where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from featpipe.bundling.graph import Graph
from featpipe.errors import BundleError
from featpipe.heads import Head
from featpipe.heads.matrix import linear_matrix
from featpipe.neighbours.rows import units

Array = NDArray[Any]

_SAME = 2.0**-44
"""Distances below this are none: a unit vector rounded to 32 bits is as far from itself."""
_TINY = 1e-30


def add_scores(graph: Graph, head: Head, vectors: str, dtype: Any) -> str:
    """Add scaler and estimator; return scores, (N, K) of ``dtype``, the highest the label.

    Parameters
    ----------
    vectors : str
        float32 or float64 (N, D), as ``dtype`` says.
    dtype : {np.float32, np.float64}
        What the nodes compute in.

    Raises
    ------
    BundleError
        When the head was fitted by a featpipe that used another estimator for it.
    """
    return _Nodes(graph, head, dtype).scores(vectors)


class _Nodes:
    """The nodes of one head."""

    def __init__(self, graph: Graph, head: Head, dtype: Any) -> None:
        self._graph, self._head, self._dtype = graph, head, dtype
        self._scaler, self._estimator = head.pipeline[0], head.pipeline[-1]
        self._n_classes = len(head.classes)

    def scores(self, vectors: str) -> str:
        """Return the scores of ``vectors``."""
        kinds: Mapping[str, Callable[[str], str]] = {
            "svm-rbf": self._kernel_machine,
            "knn": self._neighbours,
        }
        return kinds.get(self._head.name, self._linear)(self._scaled(vectors))

    def _number(self, value: Any) -> str:
        return self._graph.constant(value, self._dtype)

    def _scaled(self, vectors: str) -> str:
        add = self._graph.add
        if not isinstance(self._scaler, StandardScaler):
            return add_normalised(self._graph, vectors, self._dtype)
        centred = add("Sub", vectors, self._number(self._scaler.mean_))
        return add("Div", centred, self._number(self._scaler.scale_))

    def _linear(self, scaled: str) -> str:
        found = linear_matrix(self._estimator)
        assert found is not None
        weights, bias = found
        if self._n_classes > 2:
            # What all classes have in common decides nothing, and takes digits.
            weights, bias = weights - weights.mean(axis=0), bias - bias.mean()
        return self._columns(self._gemm(scaled, weights.T, bias))

    def _columns(self, scores: str) -> str:
        """Make two columns of the one that two classes have."""
        if self._n_classes > 2:
            return scores
        return self._graph.add("Mul", scores, self._number([[0.0, 1.0]]))

    def _gemm(self, left: str, right: Array, bias: Array) -> str:
        product = self._graph.add("MatMul", left, self._number(np.ascontiguousarray(right)))
        return self._graph.add("Add", product, self._number(bias))

    def _kernel_machine(self, scaled: str) -> str:
        add, machine = self._graph.add, self._estimator
        middle = machine.support_vectors_.mean(axis=0, dtype=np.float64)
        support = machine.support_vectors_.astype(np.float64) - middle
        # |x - s|² as a sum of three: about the middle of the support vectors little cancels.
        queries = add("Sub", scaled, self._number(middle))
        lengths = self._graph.sum(add("Mul", queries, queries), 1)
        cross = self._gemm(queries, -2.0 * support.T, np.square(support).sum(axis=1))
        distances = add("Max", add("Add", cross, lengths), self._number(0.0))
        kernel = add("Exp", add("Mul", distances, self._number(-machine._gamma)))  # noqa: SLF001
        pairs = self._gemm(kernel, *_pairwise(machine))
        return self._columns(pairs) if self._n_classes == 2 else self._votes(pairs)

    def _votes(self, pairs: str) -> str:
        """Return votes and, below one, confidences: scikit-learn's ``decision_function``."""
        add = self._graph.add
        first, second = _incidence(self._n_classes)
        for_second = self._graph.cast_to(add("Less", pairs, self._number(0.0)), self._dtype)
        for_first = add("Sub", self._number(1.0), for_second)
        votes = add(
            "Add",
            add("MatMul", for_first, self._number(first)),
            add("MatMul", for_second, self._number(second)),
        )
        confidence = add("MatMul", pairs, self._number(first - second))
        scale = add("Add", add("Abs", confidence), self._number(1.0))
        return add("Add", votes, add("Div", confidence, add("Mul", scale, self._number(3.0))))

    def _neighbours(self, scaled: str) -> str:
        if isinstance(self._estimator, KNeighborsClassifier):
            raise BundleError(
                "this knn head was fitted by a former featpipe, with another estimator: fit it "
                "again, then bundle it"
            )
        add, found = self._graph.add, self._estimator
        k = found.n_neighbors
        rows = self._number(units(found.rows_))
        cosines = add("MatMul", scaled, add("Transpose", rows, perm=[1, 0]))
        positions = self._graph.top(cosines, k)
        # |a - b|² / 2 = 1 - cosine, without the difference of nearly equal numbers.
        apart = add(
            "Sub", add("Gather", rows, positions), add("Unsqueeze", scaled, self._graph.integers(1))
        )
        squares = self._graph.sum(add("Mul", apart, apart), 2)
        distances = add("Mul", add("Squeeze", squares, self._graph.integers(2)), self._number(0.5))
        bare = ~found.norms_.astype(bool)
        if bare.any():
            # A row without a direction is as far from all as one at a right angle.
            distances = add("Add", distances, add("Gather", self._number(0.5 * bare), positions))
        same = add("Less", distances, self._number(_SAME))
        weights = add("Div", self._number(1.0), add("Where", same, self._number(_TINY), distances))
        labels = np.eye(self._n_classes)[found.labels_]
        classes = add("Gather", self._number(labels), positions)
        sums = add("MatMul", add("Unsqueeze", weights, self._graph.integers(1)), classes)
        sums = add("Squeeze", sums, self._graph.integers(1))
        shares = add("Div", sums, self._graph.sum(sums, 1))
        smooth = add(
            "Add", add("Mul", shares, self._number(float(k))), self._number(1.0 / self._n_classes)
        )
        return add("Log", add("Div", smooth, self._number(k + 1.0)))


def add_normalised(graph: Graph, vectors: str, dtype: Any) -> str:
    """Return vectors of length 1; one without a length stays as it is."""
    squares = graph.sum(graph.add("Mul", vectors, vectors), 1)
    length = graph.add("Max", graph.add("Sqrt", squares), graph.constant(_TINY, dtype))
    return graph.add("Div", vectors, length)


def _pairwise(machine: Any) -> tuple[Array, Array]:
    """Return what makes one-against-one scores of kernel values: (n, P) and (P,).

    A pair's score is above 0 for its first class; of two classes alone, for the second.
    """
    counts = machine._n_support.astype(int)  # noqa: SLF001
    ends = np.cumsum(counts)
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    dual = machine._dual_coef_.astype(np.float64)
    columns = []
    for i, j in combinations(range(len(counts)), 2):
        column = np.zeros(ends[-1])
        column[parts[i]], column[parts[j]] = dual[j - 1, parts[i]], dual[i, parts[j]]
        columns.append(column)
    sign = -1.0 if len(counts) == 2 else 1.0
    bias = machine._intercept_.astype(np.float64)
    return sign * np.stack(columns, axis=1), sign * bias


def _incidence(n_classes: int) -> tuple[Array, Array]:
    """Return which class is first in a pair and which second, (P, K) each, as 0 and 1."""
    pairs = np.array(list(combinations(range(n_classes), 2)))
    every = np.eye(n_classes)
    return every[pairs[:, 0]], every[pairs[:, 1]]
