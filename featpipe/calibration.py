"""From scores to probabilities: one temperature, fitted on scores of rows that were held out.

Scores become ``softmax(scores / T)``. A temperature keeps the order of the classes, so the
label never changes: the likeliest class is the one with the highest score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

Floats = NDArray[np.float64]

_LOG_RANGE = (-12.0, 12.0)


def as_columns(scores: NDArray[np.floating]) -> Floats:
    """Return scores as (n, K), K ≥ 2: one column of a two-class score becomes two.

    >>> as_columns(np.array([1.5, -2.0]))
    array([[ 0. ,  1.5],
           [ 0. , -2. ]])
    """
    columns: Floats = np.asarray(scores, dtype=np.float64)
    if columns.ndim == 1:
        return np.column_stack([np.zeros(len(columns)), columns])
    return columns


def fit_temperature(scores: Floats, y: NDArray[np.int64]) -> float:
    """Return the temperature T > 0 that minimises the log loss of ``softmax(scores / T)``.

    Parameters
    ----------
    scores : ndarray of float, (n, K)
        Of rows that the classifier was not fitted on.
    y : ndarray of int, (n,)
        True classes, as columns of ``scores``.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    # One wrong row in two that are not there keeps T from running to 0 where every held-out
    # row is right (the rule of succession: no finite set of rows proves certainty).
    best = minimize_scalar(
        lambda log_t: _smoothed_loss(scores / np.exp(log_t), y), bounds=_LOG_RANGE, method="bounded"
    )
    return float(np.exp(best.x))


def _smoothed_loss(scaled: Floats, y: NDArray[np.int64]) -> float:
    """Log loss with targets (n_k + 1) / (n_k + 2) instead of 1, after Platt 1999, section 2.2."""
    log_p = log_softmax(scaled, axis=1)
    n, n_classes = scaled.shape
    rest = 1.0 / (n + 2.0)
    own = log_p[np.arange(n), y]
    others = (log_p.sum(axis=1) - own) / (n_classes - 1)
    return float(-np.mean((1 - rest) * own + rest * others))


def to_probabilities(scores: Floats, temperature: float) -> Floats:
    """Return ``softmax(scores / temperature)``, (n, K) float64; rows sum to 1."""
    probabilities: Floats = softmax(scores / temperature, axis=1)
    return probabilities


def log_losses(scores: Floats, y: NDArray[np.int64], temperature: float) -> Floats:
    """Return the negative log-likelihood of each row under ``softmax(scores / temperature)``."""
    log_p: Floats = log_softmax(scores / temperature, axis=1)
    return -log_p[np.arange(len(y)), y]
