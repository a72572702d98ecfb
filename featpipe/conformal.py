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
    units : tuple of int
        Units among them, such as patients; a single image is one.
    all_units : int
        Units among all images: one may have images of several classes.

    Examples
    --------
    >>> y = np.array([0, 0, 1])
    >>> found = fit_conformal(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), y, np.arange(3))
    >>> found.limits(0.5).round(3)
    array([0.2, 0.2])
    >>> within(np.array([[0.85, 0.15], [0.5, 0.5]]), found.limits(0.5))
    array([[ True, False],
           [False, False]])
    """

    scores: tuple[tuple[float, ...], ...]
    counts: tuple[int, ...]
    units: tuple[int, ...]
    all_units: int

    def limits(self, coverage: float, *, per_class: bool = False) -> Floats:
        """Return how strange a label may be to be in a set, (K,): infinite where any may.

        Of n scores the one at place ⌈(n + 1) · coverage⌉; where there are too few for the
        promise, no label can be left out. Images of one unit do not come independently: where there
        are u units, fewer than images, the share ⌈(u + 1) · coverage⌉ / u of the scores is kept.

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
        Error Levels", JASA 114, sections 2 and 3. Dunn, Wasserman, Ramdas 2023, "Distribution-Free
        Prediction Sets for Two-Layer Hierarchical Models", JASA 118, on few units.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, not {coverage:g}")
        weights = [n / max(len(s), 1) for s, n in zip(self.scores, self.counts, strict=True)]
        parts = [np.array(s) for s in self.scores]
        if per_class:
            each = [
                _limit(part, np.full(len(part), weight), n_units, coverage)
                for part, weight, n_units in zip(parts, weights, self.units, strict=True)
            ]
            return np.array(each)
        every = np.concatenate([np.full(len(p), w) for p, w in zip(parts, weights, strict=True)])
        return np.full(len(parts), _limit(np.concatenate(parts), every, self.all_units, coverage))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``head.json`` holds them."""
        return {
            "scores": [list(part) for part in self.scores],
            "counts": list(self.counts),
            "units": list(self.units),
            "all_units": self.all_units,
        }

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
        counts, units = (_counts(value.get(name), n_classes) for name in ("counts", "units"))
        scores = _parts(value.get("scores"), n_classes)
        every: Any = value.get("all_units")
        if scores is None or counts is None or units is None or not _is_count(every):
            return None
        fits = all(
            len(part) <= n and (len(part) > 0) == (n > 0) == (u > 0) and u <= n
            for part, n, u in zip(scores, counts, units, strict=True)
        )
        if not fits or not 1 <= max(units) <= every <= sum(units):
            return None
        return cls(scores, counts, units, every)


def fit_conformal(probabilities: Floats, y: Ints, units: Ints) -> Conformal:
    """Keep how strange the true labels are.

    Parameters
    ----------
    probabilities : ndarray of float, (n, K)
        Of images that the head has not learnt on.
    y : ndarray of int, (n,)
        True classes 0 … K-1.
    units : ndarray of int, (n,)
        What belongs together, such as copies, or images of one patient.
    """
    n_classes = probabilities.shape[1]
    own = 1 - probabilities[np.arange(len(y)), y]
    most = min(MOST, max(MOST_IN_ALL // n_classes, 1))
    parts = [np.sort(own[y == k]) for k in range(n_classes)]
    return Conformal(
        tuple(tuple(_raised(score) for score in _thinned(part, most)) for part in parts),
        tuple(len(part) for part in parts),
        tuple(len(np.unique(units[y == k])) for k in range(n_classes)),
        len(np.unique(units)),
    )


def within(probabilities: NDArray[np.floating], limits: NDArray[np.floating]) -> Bools:
    """Tell which labels belong to the sets, (n, K), by the limits of `Conformal.limits`."""
    found: Bools = 1 - np.asarray(probabilities, dtype=np.float64) <= limits
    return found


def _limit(scores: Floats, weights: Floats, n_units: int, coverage: float) -> float:
    """Return the smallest score that enough images do not exceed, or infinity."""
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order])
    # A hair less: shares of a whole number add up to it but for rounding.
    place = math.ceil((n_units + 1) * coverage - 1e-9)
    if place > n_units:
        return math.inf
    needed = place / n_units * float(weights.sum()) - 1e-6
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


def _parts(value: Any, n_classes: int) -> tuple[tuple[float, ...], ...] | None:
    if not isinstance(value, list) or len(value) != n_classes:
        return None
    found = [_ascending(part) for part in value]
    kept = tuple(part for part in found if part is not None)
    return kept if len(kept) == n_classes else None


def _ascending(value: Any) -> tuple[float, ...] | None:
    found = numbers(value)
    if found is None or len(found) > MOST or any(a > b for a, b in pairwise(found)):
        return None
    return found if not found or (found[0] >= 0 and found[-1] <= _HIGHEST) else None


def _counts(value: Any, n_classes: int) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) != n_classes:
        return None
    return tuple(value) if all(_is_count(n) for n in value) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
