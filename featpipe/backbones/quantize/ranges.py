"""From the histogram of an activation to the range that 8 bits shall cover.

Whatever lies outside the range is clipped to it; whatever lies inside is rounded to one of
256 steps. A wide range clips nothing and has coarse steps, a narrow one the reverse.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

METHODS = ("minmax", "percentile", "entropy")
"""Ways to choose a range."""

PERCENTILE = 99.999
"""Per cent of the values that `percentile_range` keeps; ONNX Runtime's default."""
_LEVELS = 256
_SHARES = np.linspace(0.1, 1.0, 91)

Range: TypeAlias = tuple[float, float]
Counts: TypeAlias = NDArray[np.int64]


def choose_range(method: str, counts: Counts, low: float, high: float) -> Range:
    """Return the range of one activation by the method of that name.

    Parameters
    ----------
    method : {"minmax", "percentile", "entropy"}
    counts : ndarray of int, (bins,)
        Histogram over equal steps from ``low`` to ``high``.
    low, high : float
        Smallest and largest value that were seen.

    Raises
    ------
    ValueError
        When there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"there is no calibration method {method!r}: use {', '.join(METHODS)}")
    if method == "minmax" or not high > low:
        return low, high
    if method == "percentile":
        return percentile_range(counts, low, high)
    return entropy_range(counts, low, high)


def rounded_outwards(pair: Range, digits: int = 3) -> Range:
    """Widen a range to a few significant digits.

    Float arithmetic differs in its last bits between processors; what is rounded does not,
    so that the same images give the same file almost everywhere.

    >>> rounded_outwards((-1.23456, 6.0))
    (-1.24, 6.0)
    """
    return _rounded(pair[0], digits, -1), _rounded(pair[1], digits, 1)


def _rounded(value: float, digits: int, outwards: int) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    places = digits - 1 - math.floor(math.log10(abs(value)))
    scaled = value * 10.0**places
    # What is a round number but for the last bits stays that number.
    near = round(scaled)
    if abs(scaled - near) > 1e-4:
        near = math.ceil(scaled) if outwards > 0 else math.floor(scaled)
    return float(f"{near}e{-places}")


def percentile_range(
    counts: Counts, low: float, high: float, percentile: float = PERCENTILE
) -> Range:
    """Cut half of what is left out off each end; to the nearest bin.

    >>> percentile_range(np.array([1, 98, 0, 1]), 0.0, 4.0, percentile=98)
    (1.0, 2.0)
    """
    cut = counts.sum() * (100 - percentile) / 200
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    step = (high - low) / len(counts)
    first = int(np.searchsorted(below, cut, side="right"))
    last = int(np.searchsorted(above, cut, side="right"))
    return low + first * step, high - last * step


def entropy_range(counts: Counts, low: float, high: float) -> Range:
    """Shrink the range towards zero to where the least is lost of the distribution.

    What is lost is the Kullback-Leibler divergence between the clipped values and the same in
    256 steps. The bin of zero, where a rectifier puts most values, is left out: it would
    decide alone.

    References
    ----------
    Migacz 2017, "8-bit Inference with TensorRT", GTC; its scheme for one-sided histograms, here
    with both ends drawn in by one share.
    """
    edges = np.linspace(low, high, len(counts) + 1)
    weights = counts.astype(np.float64)
    if low <= 0 <= high:
        weights[min(int(np.searchsorted(edges, 0.0, side="right")), len(counts)) - 1] = 0.0
    best, chosen = np.inf, 1.0
    for share in _SHARES:
        left, right = _drawn_in(low, high, float(share))
        start = int(np.searchsorted(edges, left, side="right")) - 1
        stop = int(np.searchsorted(edges, right, side="left"))
        lost = _divergence(weights, max(start, 0), stop)
        if lost < best:
            best, chosen = lost, float(share)
    return _drawn_in(low, high, chosen)


def _drawn_in(low: float, high: float, share: float) -> Range:
    """Move both ends towards zero; an end on zero's other side stays."""
    return (low * share if low < 0 else low), (high * share if high > 0 else high)


def _divergence(weights: NDArray[np.float64], start: int, stop: int) -> float:
    """Return KL(clipped ‖ quantised) of the bins ``start`` to ``stop``; inf where all is cut."""
    inside = weights[start:stop]
    if len(inside) == 0 or not inside.any():
        return np.inf
    clipped = inside.copy()
    clipped[0] += weights[:start].sum()
    clipped[-1] += weights[stop:].sum()
    level = np.arange(len(inside)) * _LEVELS // max(len(inside), _LEVELS)
    filled = inside > 0
    totals = np.bincount(level, inside)
    spread = np.bincount(level, filled)
    quantised = np.where(filled, (totals / np.maximum(spread, 1))[level], 0.0)
    p, q = clipped / clipped.sum(), quantised / quantised.sum()
    # A little of everything: a bin that only clipping fills has no divergence otherwise.
    q = (1 - 1e-6) * q + 1e-6 / len(q)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))
