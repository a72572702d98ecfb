"""Sets of labels that hold the true one as often as was promised: split conformal prediction.

How strange a label is for an image is one minus the probability that the head gives it. The
scores of the true labels of images that the head has not learnt on, sorted, say how strange a
label may be: a set holds all labels that are no stranger than the score at the place that the
promised coverage gives. Nothing is assumed of the head; of the images only that new ones
come as the ones before did (exchangeability).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featpipe.calibration.reading import numbers

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOST, MOST_IN_ALL = 1000, 100_000
"""Scores that are kept, at most: of a class, and of all together."""
_UP = 1e-6
"""By so much, of itself, a score is raised: the same image on another machine is no stranger."""
_HIGHEST = 1.01


@dataclass(frozen=True, slots=True)
class Conformal:
    """How strange true labels were for images that the head had not learnt on.

    Attributes
    ----------
    scores : tuple of tuple of float
        Of each class, one minus the probability of the true label, ascending; of many images
        the quantiles, each the highest of those that it stands for.
    counts : tuple of int
        Images of each class that were scored.

    Examples
    --------
    >>> found = fit_conformal(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([0, 0, 1]))
    >>> found.limits(0.5).round(3)
    array([0.2, 0.2])
    >>> within(np.array([[0.85, 0.15], [0.5, 0.5]]), found.limits(0.5))
    array([[ True, False],
           [False, False]])
    """

    scores: tuple[tuple[float, ...], ...]
    counts: tuple[int, ...]

    def limits(self, coverage: float, *, per_class: bool = False) -> Floats:
        """Return how strange a label may be to be in a set, (K,): infinite where any may.

        Of n scores the one at place ⌈(n + 1) · coverage⌉; where there are too few for the
        promise, no label can be left out.

        Parameters
        ----------
        coverage : float
            Share of the sets that hold the true label, between 0 and 1.
        per_class : bool
            True keeps the promise within each class (Mondrian), False over all images.

        Raises
        ------
        ValueError
            When the coverage does not lie between 0 and 1.

        References
        ----------
        Vovk, Gammerman, Shafer 2005, "Algorithmic Learning in a Random World", sections 2.2 and
        4.5; Sadinle, Lei, Wasserman 2019, "Least Ambiguous Set-Valued Classifiers With Bounded
        Error Levels", JASA 114, sections 2 and 3.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, not {coverage:g}")
        weights = [n / max(len(s), 1) for s, n in zip(self.scores, self.counts, strict=True)]
        parts = [np.array(s) for s in self.scores]
        if per_class:
            each = [
                _limit(part, np.full(len(part), weight), coverage)
                for part, weight in zip(parts, weights, strict=True)
            ]
            return np.array(each)
        every = np.concatenate([np.full(len(p), w) for p, w in zip(parts, weights, strict=True)])
        return np.full(len(parts), _limit(np.concatenate(parts), every, coverage))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``head.json`` holds them."""
        return {"scores": [list(part) for part in self.scores], "counts": list(self.counts)}

    @classmethod
    def read(cls, value: Any, n_classes: int) -> Self | None:
        """Return it from what `to_json` gave, or None where anything is amiss.

        Parameters
        ----------
        value : object
            From a file that may come from anybody: nothing is taken for granted.
        n_classes : int
            K, at least 2.
        """
        if not isinstance(value, Mapping):
            return None
        lists, counts = value.get("scores"), value.get("counts")
        if not isinstance(lists, list) or not isinstance(counts, list):
            return None
        if not len(lists) == len(counts) == n_classes:
            return None
        scores = [_ascending(part) for part in lists]
        if not all(
            part is not None and _fits(count, len(part))
            for part, count in zip(scores, counts, strict=True)
        ):
            return None
        found = cls(tuple(part for part in scores if part is not None), tuple(counts))
        return found if sum(found.counts) else None


def fit_conformal(probabilities: Floats, y: Ints) -> Conformal:
    """Keep how strange the true labels are.

    Parameters
    ----------
    probabilities : ndarray of float, (n, K)
        Of images that the head has not learnt on.
    y : ndarray of int, (n,)
        True classes 0 … K-1.
    """
    n_classes = probabilities.shape[1]
    own = 1 - probabilities[np.arange(len(y)), y]
    most = min(MOST, max(MOST_IN_ALL // n_classes, 1))
    parts = [np.sort(own[y == k]) for k in range(n_classes)]
    return Conformal(
        tuple(tuple(_raised(score) for score in _thinned(part, most)) for part in parts),
        tuple(len(part) for part in parts),
    )


def within(probabilities: NDArray[np.floating], limits: NDArray[np.floating]) -> Bools:
    """Tell which labels belong to the sets, (n, K), by the limits of `Conformal.limits`."""
    found: Bools = 1 - np.asarray(probabilities, dtype=np.float64) <= limits
    return found


def _limit(scores: Floats, weights: Floats, coverage: float) -> float:
    """Return the smallest score that enough images do not exceed, or infinity."""
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order])
    # A hair less: shares of a whole number add up to it but for rounding.
    n = round(float(weights.sum()))
    needed = math.ceil((n + 1) * coverage - 1e-9) - 1e-6
    at = int(np.searchsorted(reached, needed))
    return float(scores[order[at]]) if at < len(scores) else math.inf


def _thinned(ordered: Floats, most: int) -> Floats:
    """Return so many of sorted scores, the highest of each of equal parts."""
    n = len(ordered)
    if n <= most:
        return ordered
    ends = -(-n * np.arange(1, most + 1) // most) - 1
    return ordered[ends]


def _raised(score: float) -> float:
    return float(f"{score * (1 + _UP):.7g}")


def _ascending(value: Any) -> tuple[float, ...] | None:
    found = numbers(value)
    if found is None or len(found) > MOST or any(a > b for a, b in pairwise(found)):
        return None
    return found if not found or (found[0] >= 0 and found[-1] <= _HIGHEST) else None


def _fits(count: Any, n_scores: int) -> bool:
    """Tell whether so many scores can stand for so many images."""
    if not isinstance(count, int) or isinstance(count, bool) or not n_scores <= count < 2**53:
        return False
    return n_scores > 0 or count == 0
