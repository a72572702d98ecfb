"""Nearest neighbours by cosine: the estimator, and how one search serves every k."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featpipe._threads import Threads, single_threads
from featpipe.heads.arrays import arrays_digest
from featpipe.neighbours import Rows, search

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_DTYPES = (np.float32, np.float16, np.float64)
_BLOCK = 2**22


class CosineNeighbours(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is untyped
    """Classify by the k nearest rows by cosine, each weighted by the inverse of its distance.

    What scikit-learn's ``KNeighborsClassifier(weights="distance", metric="cosine")`` computes,
    from rows that are used as they lie: an array or a memory map, float16 or float32, of any
    length. Rows of the query's very direction take all the weight; of rows that are equally
    near, the first are taken.

    Parameters
    ----------
    n_neighbors : int
        k.

    Attributes
    ----------
    classes_ : ndarray, (K,)
    rows_ : ndarray of float16 or float32, (n, D)
        The training vectors: no copy of them, where they are of these dtypes.
    norms_ : ndarray of float32, (n,)
        Their lengths.
    labels_ : ndarray of int, (n,)
        Their classes, as positions in ``classes_``.

    References
    ----------
    Dudani 1976, "The Distance-Weighted k-Nearest-Neighbor Rule", with 1 - cosine for the
    distance and its inverse for the weight.

    Examples
    --------
    >>> CosineNeighbours(1).fit([[1, 0], [0, 2]], ["a", "b"]).predict([[3, 1]])
    array(['a'], dtype='<U1')
    """

    kept_apart: ClassVar[tuple[str, ...]] = ("rows_", "norms_", "rows_digest_")
    """What stands in no model file: the rows have one of their own, the rest follows from them."""

    def __init__(self, n_neighbors: int = 5) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803 - scikit-learn's name
        """Keep the rows, (n, D), and their classes, (n,)."""
        # The rows are looked at below, a block at a time.
        rows, y = validate_data(self, X, y, dtype=_DTYPES, ensure_all_finite=False)
        check_classification_targets(y)
        self.rows_: Array = rows.astype(np.float32) if rows.dtype == np.float64 else rows
        self.norms_ = Rows.measured(self.rows_).norms
        self.rows_digest_: str | None = None
        self.classes_, self.labels_ = np.unique(y, return_inverse=True)
        return self

    def rows_digest(self) -> str:
        """Return BLAKE2b-128 of dtype, shape and bytes of the rows; computed once."""
        if self.rows_digest_ is None:
            self.rows_digest_ = arrays_digest({"rows": self.rows_}, "")
        return self.rows_digest_

    def predict_proba(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Return the weighted shares of the k nearest rows, (n, K); rows sum to 1."""
        check_is_fitted(self)
        queries = validate_data(self, X, dtype=_DTYPES, reset=False)
        rows = Rows(self.rows_, self.norms_)
        k = self.n_neighbors
        if not 1 <= k <= len(rows):
            raise ValueError(
                f"n_neighbors is {k}, and there are {len(rows)} rows to choose from: give a "
                "number from 1 to that"
            )
        with single_threads(rows.tasks(len(queries))) as pool:
            distances, positions = search(rows, queries, k, pool)
        return shares(distances, self.labels_[positions], len(self.classes_))

    def predict(self, X: ArrayLike) -> Array:  # noqa: N803
        """Return the class with the largest share, (n,); of equal ones the first."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        predicted: Array = self.classes_[likeliest]
        return predicted


def shares(distances: Floats, labels: Ints, n_classes: int) -> Floats:
    """Return the shares of the classes, (n, K), among neighbours with these distances, (n, k).

    Each weighs the inverse of its distance; where any is at none, only such count.
    """
    same = distances == 0
    with np.errstate(divide="ignore"):
        weights = np.where(same.any(axis=1, keepdims=True), same, 1 / distances)
    cells = labels + n_classes * np.arange(len(labels))[:, None]
    sums = np.bincount(cells.ravel(), weights.ravel(), minlength=len(labels) * n_classes)
    found = sums.reshape(-1, n_classes)
    totals: Floats = found / found.sum(axis=1, keepdims=True)
    return totals


def vote_scores(found: Floats, k: int) -> Floats:
    """Return one score a class, (n, K): the logarithm of the smoothed share of k votes."""
    # Laplace's rule: a class without a neighbour is unlikely, not impossible.
    votes = found * k + 1.0 / found.shape[1]
    scores: Floats = np.log(votes / votes.sum(axis=1, keepdims=True))
    return scores


@dataclass(frozen=True, slots=True)
class NeighbourSolver:
    """One search a fold, for the largest k of a grid: all others are the beginning of it."""

    rising: bool = False

    def serves(self, scaler: Any) -> bool:
        """Whether it leaves the cosines as they are."""
        return isinstance(scaler, Normalizer)

    def path(
        self,
        scaler: Any,  # noqa: ARG002 - lengths do not matter
        X: Array,  # noqa: N803
        y: Ints,
        folds: Sequence[tuple[Ints, Ints]],
        grid: Sequence[Mapping[str, Any]],
        pool: Threads | None,
    ) -> Iterator[Floats]:
        """Yield held-out scores for each number of neighbours."""
        numbers = [parameters["n_neighbors"] for parameters in grid]
        most = max(numbers)
        rows = Rows.measured(X)
        distances, labels = np.empty((len(y), most)), np.empty((len(y), most), dtype=np.int64)

        def one(fold: tuple[Ints, Ints], threads: Threads | None) -> None:
            # Of equally near rows the first counts, as it does for the estimator.
            chosen, held = np.sort(fold[0]), fold[1]
            found, positions = search(rows.only(chosen), rows.only(held), most, threads)
            distances[held], labels[held] = found, y[chosen[positions]]

        if pool is not None and rows.tasks(len(y)) < len(folds):
            list(pool.map(lambda fold: one(fold, None), folds))
        else:
            for fold in folds:
                one(fold, pool)
        n_classes = int(y.max()) + 1
        for k in numbers:
            yield vote_scores(shares(distances[:, :k], labels[:, :k], n_classes), k)

    def fit(
        self,
        pipeline: Pipeline,
        X: Array,  # noqa: N803
        y: Ints,
        pool: Threads | None,  # noqa: ARG002 - nothing to compute
    ) -> Pipeline:
        """Fit the estimator on the rows as they are: only their directions count."""
        pipeline[0].fit(X[:1])
        pipeline[-1].fit(narrowest(X), y)
        return pipeline


def narrowest(X: Array) -> Array:  # noqa: N803
    """Return rows as float16 where no number changes by it, as those of a float16 store."""
    step = max(1, _BLOCK // max(1, X.shape[1]))
    with np.errstate(over="ignore"):
        for start in range(0, len(X) if X.dtype != np.float16 else 0, step):
            block = X[start : start + step]
            if not np.array_equal(block.astype(np.float16), block):
                return X
        return X.astype(np.float16, copy=False)


NEIGHBOURS = NeighbourSolver()
