"""Isotonic maps, one for every class against the rest: any shape that rises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from featpipe.calibration.odds import Floats, Ints, log_odds, targets
from featpipe.calibration.temperature import fit_temperature, to_probabilities

MOST_KNOTS = 256
"""Points of a map, at most."""
_CELLS = MOST_KNOTS // 2
MIXED = 1e-6
"""Share of the temperature's probabilities in the result: steps are flat, scores are not."""


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Every class has a probability that rises with its log-odds; they are brought to sum 1.

    The log-odds are those of ``softmax(scores / temperature)``. Between two points a map is a
    straight line, outside it is level. Where classes come out equal the higher score decides: a
    millionth of the temperature's probabilities is mixed in.

    Attributes
    ----------
    temperature : float
    odds : tuple of tuples of float, K
        Where the points of every class are, rising. Of two classes the second's alone.
    values : tuple of tuples of float, K
        The probabilities there, never falling, above 0 and below 1.
    """

    temperature: float
    odds: tuple[tuple[float, ...], ...]
    values: tuple[tuple[float, ...], ...]

    method: ClassVar[str] = "isotonic"

    def probabilities(self, scores: Floats) -> Floats:
        """Return (n, K) float64 for scores (n, K); rows sum to 1.

        >>> scores = np.array([[0.0, -5.0], [0.0, 0.0], [0.0, 5.0]])
        >>> Isotonic(1.0, ((-1.0, 1.0),), ((0.2, 0.6),)).probabilities(scores).round(3)
        array([[0.8, 0.2],
               [0.6, 0.4],
               [0.4, 0.6]])
        """
        odds = log_odds(scores, self.temperature)
        columns = zip(odds.T, self.odds, self.values, strict=True)
        shares = np.column_stack([np.interp(*column) for column in columns])
        if shares.shape[1] == 1:
            shares = np.hstack([1.0 - shares, shares])
        shares /= shares.sum(axis=1, keepdims=True)
        smooth = to_probabilities(scores, self.temperature)
        return (1.0 - MIXED) * shares + MIXED * smooth

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `featpipe.calibration.read_calibrator` turns them back."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            "odds": [list(knots) for knots in self.odds],
            "values": [list(knots) for knots in self.values],
        }


def fit_isotonic(scores: Floats, y: Ints) -> Isotonic:
    """Return the rising maps that are nearest to who is of the class, by squares.

    A map stays between Platt's targets, 1 / (n₋ + 2) and (n₊ + 1) / (n₊ + 2): however many rows
    of a step are all of one class, the next need not be, and the log loss stays finite. It has
    256 points at most; those that are left out move it by 1/128 at most.

    Parameters
    ----------
    scores : ndarray of float, (n, K)
        Of rows that the classifier was not fitted on.
    y : ndarray of int, (n,)
        True classes, as columns of ``scores``.

    References
    ----------
    Zadrozny, Elkan 2002, "Transforming Classifier Scores into Accurate Multiclass Probability
    Estimates", sections 4 and 5. Platt 1999, section 2.2, for the targets.
    """
    # Only who fits isotonic maps needs it.
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415

    temperature = fit_temperature(scores, y)
    inside, low, high = targets(y, scores.shape[1])
    knots, values = [], []
    columns = zip(log_odds(scores, temperature).T, inside.T, low, high, strict=True)
    for odds, of_class, least, most in columns:
        found = IsotonicRegression(y_min=least, y_max=most).fit(odds, of_class)
        kept = thinned(found.y_thresholds_)
        knots.append(tuple(found.X_thresholds_[kept].tolist()))
        values.append(tuple(found.y_thresholds_[kept].tolist()))
    return Isotonic(temperature, tuple(knots), tuple(values))


def thinned(values: Floats) -> Ints:
    """Return the positions of the points that are kept of a rising map, at most 256.

    The first and the last in every cell of 1/128: a straight line between them stays in the cell,
    as what they replace does; from cell to cell the map is as it was.
    """
    cells = np.minimum((values * _CELLS).astype(np.int64), _CELLS - 1)
    changes = np.diff(cells) != 0
    is_first, is_last = np.append(True, changes), np.append(changes, True)
    return np.flatnonzero(is_first | is_last)
