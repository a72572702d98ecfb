"""Losses of linear classifiers over a block of scores: sum, derivative, curvature.

A block of scores has the axes (rows, problems, columns): several problems, such as the folds
of a cross-validation, are solved side by side on the same rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = NDArray[np.int64]


class Loss(Protocol):
    """A convex loss of scores.

    Attributes
    ----------
    separable : bool
        Whether the columns are problems of their own, each with its own step.
    intercept_penalty : float
        What the square of the intercept counts beside that of the weights.
    """

    separable: bool
    intercept_penalty: float

    def n_columns(self, n_classes: int) -> int:
        """Return how many columns of weights K classes need."""
        ...

    def __call__(self, scores: Array, y: Ints) -> tuple[Array, Array]:
        """Overwrite scores, (m, P, K), with the loss's derivative by them.

        Returns
        -------
        sums : ndarray of float64, (P, 1), or (P, K) where the columns are separable
            The loss, summed over the rows.
        curvature : ndarray, (m,)
            Second derivative of each row, averaged over problems and columns.
        """
        ...


class Softmax:
    """Multinomial logistic loss, -log softmax(s)_y; K columns."""

    separable = False
    intercept_penalty = 0.0

    def n_columns(self, n_classes: int) -> int:
        """Return K."""
        return n_classes

    def __call__(self, scores: Array, y: Ints) -> tuple[Array, Array]:
        """Overwrite scores with p - 1[y]; the curvature is p (1 - p)."""
        scores -= scores.max(axis=2, keepdims=True)
        rows = np.arange(len(y))
        own = scores[rows, :, y]
        np.exp(scores, out=scores)
        total = scores.sum(axis=2)
        scores /= total[:, :, None]
        loss = np.log(total) - own
        square = np.einsum("mpk,mpk->m", scores, scores)
        curvature = (scores.shape[1] - square) / (scores.shape[1] * scores.shape[2])
        scores[rows, :, y] -= 1
        return loss.sum(axis=0, dtype=np.float64)[:, None], np.maximum(curvature, 0)


class Logistic:
    """Binary logistic loss, log(1 + exp(-t s)) with t = ±1; one column."""

    separable = False
    intercept_penalty = 0.0

    def n_columns(self, n_classes: int) -> int:
        """Return 1."""
        return n_classes - 1

    def __call__(self, scores: Array, y: Ints) -> tuple[Array, Array]:
        """Overwrite scores with -t p, p being sigmoid(-t s); the curvature is p (1 - p)."""
        sign = np.where(y == 1, -1, 1).astype(scores.dtype)[:, None, None]
        scores *= sign
        loss = np.logaddexp(scores, 0)
        # sigmoid(x) as exp(x - log(1 + exp(x))) neither overflows nor divides.
        np.exp(np.minimum(scores - loss, 0), out=scores)
        curvature = (scores * (1 - scores)).mean(axis=(1, 2))
        scores *= sign
        return loss.sum(axis=(0, 2), dtype=np.float64)[:, None], curvature


class SquaredHinge:
    """One class against the rest, max(0, 1 - t s)² with t = ±1, as liblinear's L2-loss SVM.

    The intercept is a weight of a column of ones there, and is penalised like the others.

    References
    ----------
    Fan, Chang, Hsieh, Wang, Lin 2008, "LIBLINEAR: A Library for Large Linear Classification",
    JMLR 9, equations 1 and 2; Chang, Hsieh, Lin 2008, "Coordinate Descent Method for
    Large-scale L2-loss Linear Support Vector Machines", JMLR 9, equation 3 (its generalised
    second derivative: 2 where the loss is positive).
    """

    separable = True
    intercept_penalty = 1.0

    def n_columns(self, n_classes: int) -> int:
        """Return K, or 1 for two classes."""
        return n_classes if n_classes > 2 else 1

    def __call__(self, scores: Array, y: Ints) -> tuple[Array, Array]:
        """Overwrite scores with -2 t max(0, 1 - t s); the curvature is 2 where that is not 0."""
        n_columns = scores.shape[2]
        positive = y[:, None] == (np.arange(n_columns) if n_columns > 1 else np.ones(1))
        sign = np.where(positive, 1, -1).astype(scores.dtype)[:, None, :]
        scores *= sign
        np.subtract(1, scores, out=scores)
        np.maximum(scores, 0, out=scores)
        sums = np.einsum("mpk,mpk->pk", scores, scores).astype(np.float64)
        curvature = 2 * np.count_nonzero(scores, axis=(1, 2)) / (scores[0].size or 1)
        scores *= -2 * sign
        return sums, curvature.astype(scores.dtype)
