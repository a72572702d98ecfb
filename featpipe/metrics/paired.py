"""Two classifiers on the same rows: the difference, row by row.

Two accuracies on one test set are far from independent, so their difference is much more
certain than either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000

Flags = NDArray[np.bool_] | NDArray[np.float64]
Ints = NDArray[np.int64]


def paired_difference(
    before: Flags, after: Flags, units: Ints | None = None, *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the difference of two accuracies on the same images, in points, and its interval.

    Parameters
    ----------
    before, after : ndarray of bool, or of float from 0 to 1, (n,)
        Whether each image was classified rightly, or in what share of repetitions; n is at
        least 1.
    units : ndarray of int, (n,), optional
        Images of one unit are drawn together: of one group, or equal ones.
    seed : int
        Of the bootstrap.

    Returns
    -------
    float, (float, float)
        After minus before; 95 % percentile interval of a paired bootstrap, or, where no image
        differs, what the exact binomial bound leaves possible.

    References
    ----------
    Efron, Tibshirani 1993, "An Introduction to the Bootstrap", chapters 8 and 13.

    >>> paired_difference(np.array([True, True]), np.array([True, True]))[0]
    0.0
    """
    changes = after.astype(np.float64) - before.astype(np.float64)
    member = np.arange(len(changes)) if units is None else np.unique(units, return_inverse=True)[1]
    n_units = int(member.max()) + 1
    difference = 100 * float(changes.mean())
    if not changes.any():
        furthest = 100 * (1 - 0.025 ** (1 / n_units))
        return difference, (-furthest, furthest)
    sums = np.bincount(member, changes, n_units)
    sizes = np.bincount(member, minlength=n_units)
    # Units of one size and change are alike: how many of each kind are drawn is all that counts.
    (sums, sizes), kinds = np.unique([sums, sizes], axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_units, kinds / n_units, size=_RESAMPLES)
    low, high = np.quantile((drawn @ sums) / (drawn @ sizes), (0.025, 0.975))
    return difference, (100 * float(low), 100 * float(high))
