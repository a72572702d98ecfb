"""From a figure and its variance to a 95 % interval: shapes that hold with few units, too.

Percentiles of resamples are too short where units are few, and near 0 and 1: a resample cannot
hold a mistake that the sample lacks. So the bootstrap gives the variance, and what is known of
a figure gives the shape: a share is like a binomial one, a mean loss like a sum of rare losses.
`docs/heads.md` has what was measured, ``benchmarks/honesty.py`` measures it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, stdtrit

Floats = NDArray[np.float64]
Pair = tuple[float, float]

_HIGH = 0.975
_NORMAL = 1.959963984540054
_CLAIMED = 50.0
"""Units that a classifier's own claim about the variance of its loss is worth."""


def critical(n_units: float) -> float:
    """Return the 97.5 % point of Student's t for so many independent units.

    >>> round(critical(10), 2)
    2.26
    """
    return float(stdtrit(max(n_units - 1, 1.0), _HIGH))


def wilson(share: float, variance: float, n_units: float) -> Pair:
    """Return Wilson's interval of a share, with the trials that its variance is worth.

    Parameters
    ----------
    share : float
        Between 0 and 1, neither of them.
    variance : float
        Of the share, above 0: a share of m independent trials has share (1 - share) / m.
    n_units : float
        Independent units that the variance was estimated from, or what they are worth.

    References
    ----------
    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22.
    Korn, Graubard 1998, "Confidence Intervals for Proportions with Small Expected Number of
    Positive Counts Estimated from Survey Data", Survey Methodology 24 (the effective number of
    trials, and Student's t).

    Examples
    --------
    >>> low, high = wilson(0.9, 0.9 * 0.1 / 100, 10**6)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    trials = share * (1 - share) / variance
    excess = critical(n_units) ** 2 / trials
    middle = (share + excess / 2) / (1 + excess)
    half = math.sqrt(excess * (share * (1 - share) + excess / 4)) / (1 + excess)
    return max(0.0, middle - half), min(1.0, middle + half)


def rare(mean: float, variance: float, n_units: float) -> Pair:
    """Return the gamma interval of a mean of what is never negative and seldom large.

    Parameters
    ----------
    mean, variance : float
        Of the mean; where the variance is 0 the interval has no width.

    References
    ----------
    Fay, Feuer 1997, "Confidence Intervals for Directly Standardized Rates: A Method Based on the
    Gamma Distribution", Statistics in Medicine 16, with one more event at the upper end and the
    variance widened as Student's t widens it.
    """
    if not (mean > 0 and variance > 0):
        return mean, mean
    shape = mean**2 / (variance * (critical(n_units) / _NORMAL) ** 2)
    unit = mean / shape
    low, high = gammaincinv(shape, 1 - _HIGH) * unit, gammaincinv(shape + 1, _HIGH) * unit
    return float(low), float(high)


def with_claim(found: float, claimed: float, n_units: float) -> float:
    """Return the variance of a mean loss, raised where the probabilities claim a larger one.

    The few large losses that make most of the variance may be absent from a small sample; the
    classifier's own probabilities say how often they come. That counts as so many units do, and
    never makes the variance smaller: a claim may be wrong.
    """
    together = (n_units * found + _CLAIMED * claimed) / (n_units + _CLAIMED)
    return max(found, together)


def reflected(figure: float, resamples: Floats) -> Pair:
    """Return the basic bootstrap interval of what is above 0, with the figure inside.

    For a figure that is too large on average, as the calibration error is: resamples are as
    much above the sample as the sample is above the truth.

    References
    ----------
    Davison, Hinkley 1997, "Bootstrap Methods and their Application", section 5.2.
    """
    low, high = (float(q) for q in np.quantile(resamples, (1 - _HIGH, _HIGH)))
    return max(0.0, 2 * figure - high), max(figure, 2 * figure - low)
