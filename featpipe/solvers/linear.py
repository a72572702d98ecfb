"""Weights of linear classifiers at one value of C, and scores of other rows along a grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.linalg import solve_triangular

from featpipe._threads import Threads
from featpipe.solvers.lbfgs import Found
from featpipe.solvers.losses import Array, Ints, Loss, SquaredHinge
from featpipe.solvers.newton import polish_hinge
from featpipe.solvers.path import FINAL, FINAL_DOUBLE, HINGE_PATH, PATH, Precision, walk
from featpipe.solvers.problems import (
    Fold,
    cross_validation,
    reducible,
    span_factor,
    whole,
)

_SMALL = 2**22
"""Numbers up to which rows are worked on in float64: there it costs nothing that is felt."""
_FEW = 600
"""Columns up to which the hinge's steps end with exact ones: their systems are small."""


def held_out_path(
    X: Array,  # noqa: N803
    y: Ints,
    folds: Sequence[Fold],
    loss: Loss,
    values: Sequence[float],
    *,
    standardise: bool,
    pool: Threads | None = None,
) -> Iterator[Array]:
    """Yield for each value of C the scores, (n, K), of every row by the fold that holds it out.

    Two classes have one column. Stop taking values to stop the work. The last value is the
    first at which every fold's objective is below C times the precision's floor a row: rows
    that are told apart that well are only moved further from the boundary by larger values.
    """
    n_classes = int(y.max()) + 1
    parts = cross_validation(X, y, folds, loss, n_classes, standardise=standardise, pool=pool)
    precision = HINGE_PATH if loss.separable else PATH
    walks = [walk(part.objective, values, precision) for part in parts]
    # One objective of all folds uses the pool within; it must not wait for itself.
    run = pool.map if pool and len(parts) > 1 else map
    for C in values:  # noqa: N806
        scores = np.zeros((len(y), loss.n_columns(n_classes)))
        followed = list(zip(parts, run(next, walks), strict=True))
        for part, found in followed:
            for problem, (fold, rows) in enumerate(zip(part.folds, part.held, strict=True)):
                scores[folds[fold][1]] = part.objective.scores(rows, found.W, problem)
        yield scores
        if all(_is_below(found, precision.floor * C * p.objective.n_rows) for p, found in followed):
            return


def _is_below(found: Found, objective: float) -> bool:
    return bool((found.value.loss < objective).all())


def path_scores(
    X: Array,  # noqa: N803
    y: Ints,
    others: Array,
    loss: Loss,
    values: Sequence[float],
    *,
    precision: Precision,
    pool: Threads | None = None,
) -> Iterator[Array]:
    """Yield for each value of C the scores, (m, K), of other rows; two classes have one column.

    Parameters
    ----------
    X : ndarray of float, (n, D)
        What is learnt on, as it is: nothing is standardised.
    y : ndarray of int, (n,)
        Classes 0 … K-1, each of them met.
    others : ndarray of float, (m, D)
    values : sequence of float
        Best in rising order: each starts from the minimum before.
    """
    if X.size <= _SMALL:
        X = X.astype(np.float64)  # noqa: N806
    others = others.astype(X.dtype)
    if len(X) <= reducible(X.shape[1]):
        # The other rows in the same coordinates: L⁻¹ X x.
        factor = span_factor(X)
        others = solve_triangular(factor, X @ others.T, lower=True).T.astype(X.dtype)
        X = factor.astype(X.dtype)  # noqa: N806
    objective = whole(X, y, loss, int(y.max()) + 1, pool)
    for found in walk(objective, values, precision):
        yield objective.scores(others, found.W, 0)


def solve(
    X: Array,  # noqa: N803
    y: Ints,
    loss: Loss,
    C: float,  # noqa: N803
    pool: Threads | None = None,
) -> tuple[Array, Array, int]:
    """Return weights, (D, K), intercepts, (K,), in float64, and the number of evaluations.

    Parameters
    ----------
    X : ndarray of float, (n, D)
        As the weights are to read it: standardised, if at all.
    y : ndarray of int, (n,)
        Classes 0 … K-1, each of them met.
    loss : Loss
    C : float
        Above 0; the objective is C times the summed loss plus half the squared weights.
    """
    n_classes = int(y.max()) + 1
    if X.size <= _SMALL:
        X = X.astype(np.float64)  # noqa: N806
    if len(X) > reducible(X.shape[1]):
        W, steps = _minimum(X, y, loss, n_classes, C, pool)  # noqa: N806
        return W[:-1], W[-1], steps
    factor = span_factor(X)
    W, steps = _minimum(factor.astype(X.dtype), y, loss, n_classes, C, pool)  # noqa: N806
    # The rows are L Q', so the weights are Q w, and Q = X' L⁻ᵀ.
    return X.T @ solve_triangular(factor.T, W[:-1]), W[-1], steps


def _minimum(
    X: Array,  # noqa: N803
    y: Ints,
    loss: Loss,
    n_classes: int,
    C: float,  # noqa: N803
    pool: Threads | None,
) -> tuple[Array, int]:
    """Go by way of a smaller value: far from the minimum the curvature says little."""
    objective = whole(X, y, loss, n_classes, pool)
    last = FINAL_DOUBLE if X.dtype == np.float64 else FINAL
    *_, found = walk(objective, [C / 10, C], last=last)
    W = found.W[0].astype(np.float64)  # noqa: N806
    if isinstance(loss, SquaredHinge) and X.shape[1] <= _FEW:
        W = polish_hinge(X.astype(np.float64), y, W, C)  # noqa: N806
    return W, found.steps
