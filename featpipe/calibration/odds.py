"""One class against the rest: the log-odds that a temperature gives it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def log_odds(scores: Floats, temperature: float) -> Floats:
    """Return log p / (1 - p) of every class under ``softmax(scores / temperature)``.

    What is added to all scores of a row changes nothing, and a factor on all scores goes into
    the temperature: probabilities made from these numbers do not depend on either.

    Returns
    -------
    ndarray of float64, (n, K)
        Of two classes the second's alone, (n, 1): the first's is its negative.

    Examples
    --------
    >>> log_odds(np.array([[0.0, 3.0], [1.0, 1.0]]), 2.0)
    array([[1.5],
           [0. ]])
    """
    z = scores / temperature
    if z.shape[1] == 2:
        return z[:, 1:] - z[:, :1]
    every = np.arange(len(z))
    top = z.argmax(axis=1)
    z = z - z[every, top][:, None]
    shares = np.exp(z)
    total = shares.sum(axis=1, keepdims=True)
    # Without the highest the rest may be far below it: it is summed about its own highest.
    rest = z.copy()
    rest[every, top] = -np.inf
    second = rest.max(axis=1)
    below = second + np.log(np.exp(rest - second[:, None]).sum(axis=1))
    # Any other class leaves the highest share, 1, in the sum: nothing cancels.
    shares[every, top] = 0.0
    odds: Floats = z - np.log(total - shares)
    odds[every, top] = -below
    return odds


def targets(y: Ints, n_classes: int) -> tuple[Floats, Floats, Floats]:
    """Return for every column of `log_odds` who is of the class, and Platt's two targets.

    Returns
    -------
    ndarray of float, (n, K) or (n, 1)
        1 where the row is of the class.
    ndarray of float, (K,) or (1,)
        What stands for 0, 1 / (n₋ + 2), and for 1, (n₊ + 1) / (n₊ + 2), with the numbers of rows
        outside and inside the class (Platt 1999, section 2.2).
    """
    columns = np.arange(n_classes) if n_classes > 2 else np.array([1])
    inside = (y[:, None] == columns).astype(np.float64)
    counts = inside.sum(axis=0)
    low = 1.0 / (len(y) - counts + 2.0)
    high = (counts + 1.0) / (counts + 2.0)
    return inside, low, high
