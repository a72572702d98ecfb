"""From scores to probabilities: one temperature, fitted on scores of rows that were held out.

Scores become ``softmax(scores / T)``. A temperature keeps the order of the classes, so the
label never changes: the likeliest class is the one with the highest score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

Floats = NDArray[np.float64]

_LOG_RANGE = (-12.0, 12.0)
_STEPS, _NEAR = 100, 1e-6
_LARGE, _BLOCK = 2**20, 2**18


@dataclass(frozen=True, slots=True)
class Temperature:
    """Probabilities are ``softmax(scores / temperature)``.

    Attributes
    ----------
    temperature : float
        Above 0; 1 leaves the scores as they are.
    """

    temperature: float

    method: ClassVar[str] = "temperature"

    def probabilities(self, scores: Floats) -> Floats:
        """Return (n, K) float64 for scores (n, K); rows sum to 1.

        >>> Temperature(2.0).probabilities(np.array([[0.0, 2 * np.log(3)]]))
        array([[0.25, 0.75]])
        """
        return to_probabilities(scores, self.temperature)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `featpipe.calibration.read_calibrator` turns them back."""
        return {"method": self.method, "temperature": self.temperature}


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
    # float32 has the derivatives to six digits, and takes half the time.
    values = scores.astype(np.float32) if scores.size > _LARGE else scores
    n, n_classes = values.shape
    # One wrong row in two that are not there keeps T from running to 0 where every held-out
    # row is right (the rule of succession: no finite set of rows proves certainty).
    # Targets (n_k + 1) / (n_k + 2) instead of 1, after Platt 1999, section 2.2.
    rest = 1.0 / (n + 2.0)
    own = values[np.arange(n), y].astype(np.float64)
    others = (values.sum(axis=1, dtype=np.float64) - own) / (n_classes - 1)
    target = float(np.mean((1 - rest) * own + rest * others))
    return _root(lambda beta: _slope(values, beta, target))


def _slope(scores: NDArray[Any], beta: float, target: float) -> tuple[float, float]:
    """Return the first and second derivative of the smoothed loss by beta = 1 / T."""
    first = second = 0.0
    step = max(1, _BLOCK // scores.shape[1])
    for start in range(0, len(scores), step):
        block = scores[start : start + step]
        p = block * scores.dtype.type(beta)
        p -= p.max(axis=1, keepdims=True)
        np.exp(p, out=p)
        total = p.sum(axis=1)
        mean = np.einsum("nk,nk->n", p, block) / total
        # About the mean: a difference of squares would lose all digits of large scores.
        apart = block - mean[:, None]
        np.multiply(apart, apart, out=apart)
        second += float((np.einsum("nk,nk->n", p, apart) / total).sum(dtype=np.float64))
        first += float(mean.sum(dtype=np.float64))
    return first / len(scores) - target, second / len(scores)


def _root(slope: Callable[[float], tuple[float, float]]) -> float:
    """Return T where the slope is zero: Newton's steps in log T, kept within a bracket.

    The loss is convex in 1 / T, so that its slope there rises and has one zero.
    """
    low, high = -_LOG_RANGE[1], -_LOG_RANGE[0]
    log_beta = 0.0
    for _ in range(_STEPS):
        beta = float(np.exp(log_beta))
        first, second = slope(beta)
        low, high = (low, log_beta) if first > 0 else (log_beta, high)
        bend = beta * second
        # Newton's step for the slope in log beta, where that rises.
        new = log_beta - first / bend if bend > 0 else np.inf
        if not low < new < high:
            new = (low + high) / 2
        if abs(new - log_beta) < _NEAR:
            break
        log_beta = new
    return float(np.exp(-log_beta))


def to_probabilities(scores: Floats, temperature: float) -> Floats:
    """Return ``softmax(scores / temperature)``, (n, K) float64; rows sum to 1."""
    probabilities: Floats = softmax(scores / temperature, axis=1)
    return probabilities


def log_losses(scores: Floats, y: NDArray[np.int64], temperature: float) -> Floats:
    """Return the negative log-likelihood of each row under ``softmax(scores / temperature)``."""
    log_p: Floats = log_softmax(scores / temperature, axis=1)
    return -log_p[np.arange(len(y)), y]
