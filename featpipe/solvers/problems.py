"""Objectives of whole cross-validations, and of one fit, from plain arrays.

With fewer rows than columns the rows are turned into coordinates of their own span first: an
L2-penalised linear model depends on X through X X' alone, so with X' = Q R the minimum over W
is Q times the minimum over R'; and R' is the Cholesky factor of X X'. That turns 400 rows of
2,048 numbers into 400 of 400.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.preprocessing import StandardScaler

from featpipe._threads import Threads
from featpipe.solvers.losses import Array, Ints, Loss
from featpipe.solvers.objective import Block, Objective, Standardisation

Fold = tuple[Ints, Ints]
_ROWS = 512
"""Rows a block: a product of a few rows stays in the cache, and there is work for all threads."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some folds of a cross-validation, as the problems of one objective.

    Attributes
    ----------
    objective : Objective
    folds : tuple of int
    held : tuple of ndarray, (m, D)
        What each of these folds holds out, in the coordinates of the objective's blocks.
    """

    objective: Objective
    folds: tuple[int, ...]
    held: tuple[Array, ...]


def blocks_of(X: Array, y: Ints, problems: tuple[int, ...]) -> list[Block]:  # noqa: N803
    """Cut rows into blocks."""
    return [Block(X[i : i + _ROWS], y[i : i + _ROWS], problems) for i in range(0, len(X), _ROWS)]


def cross_validation(
    X: Array,  # noqa: N803
    y: Ints,
    folds: Sequence[Fold],
    loss: Loss,
    n_classes: int,
    *,
    standardise: bool,
    pool: Threads | None = None,
) -> list[Part]:
    """Return the objective of all folds, or one for each where that is less work.

    Parameters
    ----------
    X : ndarray of float32, (n, D)
    y : ndarray of int, (n,)
    folds : sequence of (fit, held out)
        Every row is held out by one of them, and fitted on by all others.
    standardise : bool
        By mean and standard deviation of each fold's own rows.
    pool : Threads, optional
        Used inside the objective where that is one.
    """
    few = len(X) <= reducible(X.shape[1])
    if few and standardise:
        run = pool.map if pool else map
        return list(run(lambda i: _alone(X, y, folds, i, loss, n_classes), range(len(folds))))
    if few:
        X = span_factor(X).astype(X.dtype)  # noqa: N806
    return [_together(X, y, folds, loss, n_classes, pool, standardise=standardise)]


def reducible(n_features: int) -> int:
    """Return up to how many rows are turned into coordinates of their own."""
    return n_features // 2


def span_factor(X: Array) -> Array:  # noqa: N803
    """Return L, (n, n) float64, with L L' = X X': rows in coordinates of their own span.

    What is added to the diagonal, 1e-10 of its largest entry, lets rows be equal or dependent;
    it is far below the rounding of float32.
    """
    rows = X.astype(np.float64)
    gram = rows @ rows.T
    gram[np.diag_indices_from(gram)] += 1e-10 * max(float(gram.diagonal().max()), 1e-300)
    factor: Array = np.linalg.cholesky(gram)
    return factor


def _alone(
    X: Array,  # noqa: N803
    y: Ints,
    folds: Sequence[Fold],
    number: int,
    loss: Loss,
    n_classes: int,
) -> Part:
    """Give a fold its standardised rows in coordinates of their own."""
    fit, held = folds[number]
    scaler = StandardScaler()
    rows = scaler.fit_transform(X[fit])
    factor = span_factor(rows)
    outside = solve_triangular(factor, rows @ scaler.transform(X[held]).T, lower=True).T
    blocks = blocks_of(factor.astype(X.dtype), y[fit], (0,))
    return Part(Objective(blocks, loss, 1, n_classes), (number,), (outside.astype(X.dtype),))


def _together(
    X: Array,  # noqa: N803
    y: Ints,
    folds: Sequence[Fold],
    loss: Loss,
    n_classes: int,
    pool: Threads | None,
    *,
    standardise: bool,
) -> Part:
    """Let all folds share rows: one product of matrices serves them all."""
    rows = StandardScaler().fit_transform(X) if standardise else X
    blocks, held = [], []
    everyone = tuple(range(len(folds)))
    for number, (_, outside) in enumerate(folds):
        part = rows[outside]
        others = tuple(p for p in everyone if p != number)
        blocks += blocks_of(part, y[outside], others)
        held.append(part)
    moments = _standardisation(held) if standardise else None
    objective = Objective(blocks, loss, len(folds), n_classes, moments, pool)
    return Part(objective, everyone, tuple(held))


def _standardisation(held: Sequence[Array]) -> Standardisation:
    """Return mean and deviation of the rows outside each part; the deviation 1 where it is 0."""
    counts = np.array([len(part) for part in held])[:, None]
    sums = np.stack([part.sum(axis=0, dtype=np.float64) for part in held])
    squares = np.stack([np.einsum("nd,nd->d", part, part, dtype=np.float64) for part in held])
    n = counts.sum() - counts
    shift = (sums.sum(axis=0) - sums) / n
    variance = (squares.sum(axis=0) - squares) / n - shift**2
    # Rows are standardised by all of them already: what is below the rounding of that is constant.
    scale = np.sqrt(np.where(variance > 1e-6, variance, 1))
    return Standardisation(shift.astype(held[0].dtype), scale.astype(held[0].dtype))


def whole(X: Array, y: Ints, loss: Loss, n_classes: int, pool: Threads | None = None) -> Objective:  # noqa: N803
    """Return the objective of all rows as one problem; they are taken as they are."""
    return Objective(blocks_of(X, y, (0,)), loss, 1, n_classes, None, pool)
