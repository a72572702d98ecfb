"""Tests of two samples on plain arrays: how far apart they are, and how likely that is by chance.

All are one-sided where only one side is a reason for alarm. They hold for images that come
independently: of images that come in bursts there are fewer than they count.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom, chi2_contingency, hypergeom

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_COUNTED = 10_000
"""Of more images the tests that sum probabilities take the same share of so many."""
_LEAST_EXPECTED = 5.0


def how_much_lower(values: Floats, reference: Floats, n_reference: int) -> tuple[float, float]:
    """Return how far a sample lies below a reference, and the p-value of Smirnov's test.

    Parameters
    ----------
    values : ndarray of float, (n,)
    reference : ndarray of float, (m,)
        Ascending: all values of the reference, or quantiles of them.
    n_reference : int
        Values that it stands for.

    Returns
    -------
    float
        The greatest surplus of the sample's distribution function, between 0 and 1.
    float
        ``exp(-2 D² n m / (n + m))``, the one-sided limit.

    References
    ----------
    Smirnov 1939; Conover 1999, "Practical Nonparametric Statistics", section 6.3.

    >>> how_much_lower(np.array([0.1, 0.2]), np.array([0.3, 0.4]), 2)[0]
    1.0
    """
    ordered = np.sort(values)
    n = len(ordered)
    own = np.searchsorted(ordered, ordered, side="right") / n
    theirs = np.searchsorted(reference, ordered, side="right") / len(reference)
    return _smirnov(float((own - theirs).max()), n, n_reference)


def how_much_below_uniform(p_values: Floats, n_reference: int) -> tuple[float, float]:
    """Return what `how_much_lower` does for p-values, which are uniform where nothing is amiss.

    Parameters
    ----------
    n_reference : int
        Images that the p-values were made by.
    """
    ordered = np.sort(p_values)
    own = np.searchsorted(ordered, ordered, side="right") / len(ordered)
    return _smirnov(float((own - ordered).max()), len(ordered), n_reference)


def _smirnov(distance: float, n: int, m: int) -> tuple[float, float]:
    distance = max(distance, 0.0)
    return distance, float(np.exp(-2 * distance**2 * (n / (n + m)) * m))


def beyond_rank(count: int, n: int, rank: int, n_reference: int) -> float:
    """Return how likely as many of n new images lie beyond the rank-th of a reference, or more.

    Where new and old images are exchangeable that number is beta-binomial, whatever their
    distribution: the share that lies beyond a ranked image is itself a beta variable.

    References
    ----------
    Wilks 1941, "Determination of Sample Sizes for Setting Tolerance Limits".
    """
    n, count = _scaled(n, count)
    # Summed from the far end: one minus the rest has no digits left where it is small.
    beyond = betabinom.pmf(np.arange(n, count - 1, -1), n, rank, n_reference + 1 - rank)
    return min(float(beyond.sum()), 1.0)


def more_often(count: int, n: int, count_before: int, n_before: int) -> float:
    """Return Fisher's one-sided p-value: whether something is more frequent than before."""
    n, count = _scaled(n, count)
    n_before, count_before = _scaled(n_before, count_before)
    return float(hypergeom.sf(count - 1, n + n_before, count + count_before, n))


def _scaled(n: int, count: int) -> tuple[int, int]:
    if n <= _MOST_COUNTED:
        return n, count
    return _MOST_COUNTED, count * _MOST_COUNTED // n


def rates_differ(counts: Ints, before: Ints) -> tuple[float, float] | None:
    """Compare how often each class is predicted; None where too little can be expected.

    Classes that are expected fewer than five times on either side are taken together.

    Returns
    -------
    float
        Total variation: the share of images that would have to change their class, or go to
        others than those that were taken together.
    float
        The p-value of Pearson's test, which holds where few are expected; that of likelihoods
        rejects too often there.

    References
    ----------
    Pearson 1900; Cochran 1954, "Some Methods for Strengthening the Common chi-squared Tests", on
    the least expected number.

    >>> rates_differ(np.array([50, 50]), np.array([50, 50]))
    (0.0, 1.0)
    """
    table = _joined(np.array([counts, before], dtype=np.float64))
    if table.shape[1] < 2:
        return None
    # Of many classes apart, chance alone makes many differ.
    distance = float(np.abs(table[0] / table[0].sum() - table[1] / table[1].sum()).sum() / 2)
    return distance, float(chi2_contingency(table, correction=False).pvalue)


def _joined(table: Floats) -> Floats:
    """Add up the rarest columns until each is expected often enough in both rows."""
    table = table[:, table.sum(axis=0) > 0]
    share = table.sum(axis=1).min() / table.sum()
    columns = [(now + once, at, now, once) for at, (now, once) in enumerate(table.T.tolist())]
    heapify(columns)
    newest = itertools.count(-1, -1)
    while len(columns) > 1 and columns[0][0] * share < _LEAST_EXPECTED:
        total, _, now, once = heappop(columns)
        more, _, also_now, also_once = columns[0]
        # Of equal ones the newest comes first: which side has more must not decide.
        heapreplace(columns, (total + more, next(newest), now + also_now, once + also_once))
    return np.array([column[2:] for column in columns]).T


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are adjusted for their number.

    References
    ----------
    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for place, at in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[at]))
        adjusted[at] = highest
    found: list[float] = adjusted.tolist()
    return found
