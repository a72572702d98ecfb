"""Two classifiers on the same images: how much better one is, and whether that is chance.

Their accuracies are far from independent, so their difference is much more certain than either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

_RESAMPLES = 10_000
_CHANCE = 0.05

Flags = NDArray[np.bool_]
Shares = NDArray[np.float64]
Ints = NDArray[np.int64]


def paired_difference(
    before: Flags | Shares, after: Flags | Shares, units: Ints | None = None, *, seed: int = 0
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
        differs, what the exact binomial bound leaves possible. One unit alone says nothing of
        others. Of few units the bootstrap is too sure: where `sign_flips` holds the difference
        for chance (p of 0.05 or more) the interval reaches to 0.

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
    if n_units == 1:
        return difference, (-100.0, 100.0)
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
    if (low > 0 or high < 0) and sign_flips(sums, kinds, seed=seed) >= _CHANCE:
        low, high = min(low, 0.0), max(high, 0.0)
    return difference, (100 * float(low), 100 * float(high))


def sign_flips(changes: Shares, counts: Ints | None = None, *, seed: int = 0) -> float:
    """Return the p-value of Fisher's randomisation test: that changes are as often up as down.

    Without a difference between the two the change of every unit could as well have the other
    sign. For changes of one size this is McNemar's exact test.

    Parameters
    ----------
    changes : ndarray of float, (m,)
        Of units.
    counts : ndarray of int, (m,), optional
        How many units have each of these changes; one by default.
    seed : int
        Of the 10,000 draws of signs, where sizes differ.

    Returns
    -------
    float
        Two-sided; 1 where nothing changes.

    References
    ----------
    Fisher 1935, "The Design of Experiments", section 21. Phipson, Smyth 2010, "Permutation
    P-values Should Never Be Zero", for the one that is added.

    >>> round(sign_flips(np.array([1.0, -1.0]), np.array([5, 1])), 5)
    0.21875
    """
    counts = np.ones(len(changes), dtype=np.int64) if counts is None else counts
    sizes, at = np.unique(np.abs(changes), return_inverse=True)
    of_size = np.bincount(at, counts, len(sizes)).astype(np.int64)[sizes > 0]
    sizes = sizes[sizes > 0]
    total = abs(float(changes @ counts))
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        lesser = round((of_size[0] - total / sizes[0]) / 2)
        return min(1.0, 2 * float(bdtr(lesser, of_size[0], 0.5)))
    ups = np.random.default_rng(seed).binomial(of_size, 0.5, (_RESAMPLES, len(sizes)))
    flipped = np.abs((2 * ups - of_size) @ sizes)
    return float((1 + (flipped >= total * (1 - 1e-9)).sum()) / (_RESAMPLES + 1))


def mcnemar(first: Flags, second: Flags) -> float:
    """Return the p-value of McNemar's exact test: that both are right equally often.

    Only images count that one of them is right about and the other is not: without a difference
    between the two each is as likely to be the one that is right. Images are taken as
    independent.

    Parameters
    ----------
    first, second : ndarray of bool, (n,)
        Whether each image was classified rightly.

    Returns
    -------
    float
        Two-sided; 1 where no image tells them apart.

    References
    ----------
    McNemar 1947, "Note on the Sampling Error of the Difference Between Correlated Proportions or
    Percentages", Psychometrika 12 (here with the binomial distribution itself, not its
    approximation).

    >>> round(mcnemar(np.array([True] * 5 + [False]), np.array([False] * 5 + [True])), 5)
    0.21875
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    tail = bdtr(min(only_first, only_second), only_first + only_second, 0.5)
    return min(1.0, 2 * float(tail))
