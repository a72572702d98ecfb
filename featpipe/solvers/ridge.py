"""Ridge regression on class indicators for many penalties: products of rows are made once.

References
----------
Hoerl, Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems",
Technometrics 12, equation 2.1; with fewer rows than columns by the identity
X' (X X' + alpha I)⁻¹ = (X' X + alpha I)⁻¹ X'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from featpipe._threads import Threads
from featpipe.solvers.losses import Array, Ints
from featpipe.solvers.problems import Fold

_Solve = Callable[[float], Array]


def held_out_ridge(
    X: Array,  # noqa: N803
    y: Ints,
    folds: Sequence[Fold],
    alphas: Sequence[float],
    pool: Threads | None = None,
) -> list[Array]:
    """Return for each alpha the scores, (n, K), of every row by the fold that holds it out.

    The objective is ||X W + b - T||² + alpha ||W||², T being 1 for a row's class and -1 for others.

    Parameters
    ----------
    X : ndarray of float, (n, D)
    y : ndarray of int, (n,)
        Classes 0 … K-1.
    folds : sequence of (fit, held out)
        Every row is held out by one of them, and fitted on by all others.
    """
    rows = X.astype(np.float64)
    targets = np.where(y[:, None] == np.arange(int(y.max()) + 1), 1.0, -1.0)
    fewer = len(rows) <= rows.shape[1]
    prepare = _by_rows(rows, targets) if fewer else _by_columns(rows, targets, folds, pool)
    scores = [np.zeros_like(targets) for _ in alphas]

    def one(number: int) -> list[Array]:
        solved = prepare(number, folds[number])
        return [solved(alpha) for alpha in alphas]

    run = pool.map if pool else map
    for (_, held), found in zip(folds, run(one, range(len(folds))), strict=True):
        for into, values in zip(scores, found, strict=True):
            into[held] = values
    return scores


def _by_rows(rows: Array, targets: Array) -> Callable[[int, Fold], _Solve]:
    """Solve systems of a fold's rows, from one product X X'."""
    gram = rows @ rows.T

    def prepare(_: int, fold: Fold) -> _Solve:
        fit, held = fold
        inner, cross = gram[np.ix_(fit, fit)], gram[np.ix_(held, fit)]
        mean = inner.mean(axis=0)
        centred = inner - mean - mean[:, None] + mean.mean()
        outside = cross - mean - cross.mean(axis=1, keepdims=True) + mean.mean()
        offset = targets[fit].mean(axis=0)
        return lambda alpha: outside @ _solved(centred, alpha, targets[fit] - offset) + offset

    return prepare


def _by_columns(
    rows: Array, targets: Array, folds: Sequence[Fold], pool: Threads | None
) -> Callable[[int, Fold], _Solve]:
    """Solve systems of the columns: X'X without a fold is that of all less that of the fold."""

    def products(fold: Fold) -> tuple[Array, Array]:
        part = np.column_stack([rows[fold[1]], np.ones(len(fold[1]))])
        return part.T @ part, part.T @ targets[fold[1]]

    run = pool.map if pool else map
    parts = list(run(products, folds))
    gram, moments = sum(g for g, _ in parts), sum(m for _, m in parts)

    def prepare(number: int, fold: Fold) -> _Solve:
        inner, cross = gram - parts[number][0], moments - parts[number][1]
        n = inner[-1, -1]
        mean, offset = inner[-1, :-1] / n, cross[-1] / n
        centred = inner[:-1, :-1] - n * np.outer(mean, mean)
        side = cross[:-1] - n * np.outer(mean, offset)
        outside = rows[fold[1]] - mean
        return lambda alpha: outside @ _solved(centred, alpha, side) + offset

    return prepare


def _solved(matrix: Array, alpha: float, side: Array) -> Array:
    shifted = matrix.copy(order="F")
    shifted[np.diag_indices_from(shifted)] += alpha
    solution: Array = cho_solve(cho_factor(shifted, lower=True, overwrite_a=True), side)
    return solution
