"""The exact minimum of the squared hinge, from a point near it, where columns are few.

For a fixed set of rows within the margin the objective is quadratic, so that Newton's method
ends after finitely many steps, once the set no longer changes.

References
----------
Mangasarian 2002, "A Finite Newton Method for Classification", Optimization Methods and
Software 17. Keerthi, DeCoste 2005, "A Modified Finite Newton Method for Fast Solution of Large
Scale Linear SVMs", JMLR 6, section 3.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from featpipe.solvers.losses import Array, Ints

_STEPS, _HALVINGS = 30, 20


def polish_hinge(X: Array, y: Ints, W: Array, C: float) -> Array:  # noqa: N803
    """Return the weights, (D + 1, K), that minimise C sum max(0, 1 - t s)² + 1/2 ||W||².

    Parameters
    ----------
    X : ndarray of float64, (n, D)
    y : ndarray of int, (n,)
    W : ndarray, (D + 1, K)
        Where to start; K is 1 for two classes.
    C : float
    """
    rows = np.column_stack([X, np.ones(len(X))])
    n_columns = W.shape[1]
    own = y[:, None] == (np.arange(n_columns) if n_columns > 1 else np.ones(1))
    columns = [
        _column(rows, np.where(own[:, k], 1.0, -1.0), W[:, k].astype(np.float64), C)
        for k in range(n_columns)
    ]
    return np.column_stack(columns)


def _column(rows: Array, sign: Array, w: Array, C: float) -> Array:  # noqa: N803
    margin = 1 - sign * (rows @ w)
    value = _value(margin, w, C)
    for _ in range(_STEPS):
        active = margin > 0
        inside = rows[active]
        gradient = w - 2 * C * (inside.T @ (sign * margin)[active])
        curvature = 2 * C * (inside.T @ inside)
        curvature[np.diag_indices_from(curvature)] += 1
        step = cho_solve(cho_factor(curvature, lower=True, overwrite_a=True), gradient)
        length = 1.0
        for _ in range(_HALVINGS):
            new = w - length * step
            new_margin = 1 - sign * (rows @ new)
            new_value = _value(new_margin, new, C)
            if new_value < value:
                break
            length /= 2
        else:
            return w
        w, margin, value = new, new_margin, new_value
        if length == 1 and np.array_equal(active, margin > 0):
            return w
    return w


def _value(margin: Array, w: Array, C: float) -> float:  # noqa: N803
    return float(C * np.square(np.maximum(margin, 0)).sum() + 0.5 * w @ w)
