"""Platt's sigmoids, one for every class against the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from featpipe.calibration.odds import Floats, Ints, log_odds, targets
from featpipe.calibration.temperature import fit_temperature

_STEPS, _HALVINGS, _NEAR = 100, 30, 1e-9
_RIDGE, _ROUNDING = 1e-12, 1e-13


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """Every class has ``1 / (1 + exp(-(slope * odds + intercept)))``; they are brought to sum 1.

    ``odds`` are the log-odds of the class under ``softmax(scores / temperature)``, so that slopes
    of 1 and intercepts of 0 are that temperature.

    Attributes
    ----------
    temperature : float
    slopes, intercepts : tuple of float, K each
        Of two classes one alone, the second's: a single sigmoid of the difference of scores.
    """

    temperature: float
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]

    method: ClassVar[str] = "sigmoid"

    def probabilities(self, scores: Floats) -> Floats:
        """Return (n, K) float64 for scores (n, K); rows sum to 1.

        >>> scores = np.array([[0.0, 2.0]])
        >>> Sigmoid(1.0, (1.0,), (0.0,)).probabilities(scores).round(3)
        array([[0.119, 0.881]])
        """
        margin = log_odds(scores, self.temperature) * self.slopes + self.intercepts
        if margin.shape[1] == 1:
            return np.hstack([expit(-margin), expit(margin)])
        # As logarithms: of classes that are all unlikely one is still the likeliest.
        shares: Floats = softmax(-np.logaddexp(0.0, -margin), axis=1)
        return shares

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `featpipe.calibration.read_calibrator` turns them back."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            "slopes": list(self.slopes),
            "intercepts": list(self.intercepts),
        }


def fit_sigmoid(scores: Floats, y: Ints) -> Sigmoid:
    """Return the sigmoids with the lowest log loss, each of one class against the rest.

    A slope is never negative: a class does not become less likely by a higher score. It is 0,
    and the class gets its share, where the scores say nothing of it.

    Parameters
    ----------
    scores : ndarray of float, (n, K)
        Of rows that the classifier was not fitted on.
    y : ndarray of int, (n,)
        True classes, as columns of ``scores``.

    References
    ----------
    Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2. Zadrozny,
    Elkan 2002, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates",
    section 5 (one class against the rest, then normalised). Lin, Lin, Weng 2007, "A Note on
    Platt's Probabilistic Outputs for Support Vector Machines" (Newton's steps that are halved).
    """
    temperature = fit_temperature(scores, y)
    odds = log_odds(scores, temperature)
    inside, low, high = targets(y, scores.shape[1])
    slopes, intercepts = _minima(odds, low + (high - low) * inside)
    return Sigmoid(temperature, tuple(slopes.tolist()), tuple(intercepts.tolist()))


def _minima(x: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Return slope and intercept, (K,) each, of the logistic regression of every column."""
    centre = x.mean(axis=0)
    spread = x.std(axis=0)
    spread[spread == 0] = 1.0
    x = (x - centre) / spread
    share = target.mean(axis=0)
    flat = np.log(share / (1 - share))
    # A slope of 1 and no intercept are the temperature: the minimum is near.
    slope, intercept = spread.copy(), centre.copy()
    loss = _loss(x, target, slope, intercept)
    for _ in range(_STEPS):
        step_slope, step_intercept = _step(x, target, slope, intercept)
        new = loss
        size = np.ones_like(slope)
        for _ in range(_HALVINGS):
            new = _loss(x, target, slope + size * step_slope, intercept + size * step_intercept)
            worse = new > loss + _ROUNDING
            if not worse.any():
                break
            size[worse] /= 2
        size[new > loss + _ROUNDING] = 0.0
        slope, intercept = slope + size * step_slope, intercept + size * step_intercept
        gain, loss = loss - np.minimum(new, loss), np.minimum(new, loss)
        if (gain <= _NEAR * (1 + loss)).all():
            break
    falls = slope <= 0
    slope, intercept = np.where(falls, 0.0, slope), np.where(falls, flat, intercept)
    return slope / spread, intercept - slope * centre / spread


def _loss(x: Floats, target: Floats, slope: Floats, intercept: Floats) -> Floats:
    margin = x * slope + intercept
    # log(1 + exp(margin)), without the loop of `logaddexp` that is several times slower.
    above = np.log1p(np.exp(-np.abs(margin))) + np.maximum(margin, 0.0)
    above -= target * margin
    losses: Floats = above.mean(axis=0)
    return losses


def _step(
    x: Floats, target: Floats, slope: Floats, intercept: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Newton's step of every column."""
    p = expit(x * slope + intercept)
    apart, weight = p - target, p * (1 - p)
    of_slope, of_intercept = (x * apart).mean(axis=0), apart.mean(axis=0)
    weighted = weight * x
    a, b = (weighted * x).mean(axis=0) + _RIDGE, weighted.mean(axis=0)
    c = weight.mean(axis=0) + _RIDGE
    determinant = np.maximum(a * c - b * b, _RIDGE**2)
    return (
        (b * of_intercept - c * of_slope) / determinant,
        (b * of_slope - a * of_intercept) / determinant,
    )
