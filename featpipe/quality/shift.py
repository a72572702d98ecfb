"""Do two sets of images come from one place? A classifier is asked to tell them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from featpipe.errors import LabelError
from featpipe.heads import head_spec
from featpipe.model_selection import nested_probabilities
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MOST = 2000
"""Images of each side that are looked at."""
_FOLDS = 5
_RESAMPLES = 1000
CLEAR = 0.6
"""An AUC whose interval lies above this is worth a warning; 0.5 is what chance gives."""


@dataclass(frozen=True, slots=True)
class Shift:
    """How well a classifier tells two sets of images apart.

    Attributes
    ----------
    auc : float
        Area under the ROC curve on images not seen: 0.5 where nothing tells them apart, 1 where
        all are told apart. The chance that the one of a pair (one image of each set) that
        belongs to the second set is recognised.
    interval_95 : (float, float)
        Bootstrap over units.
    n : (int, int)
        Images of each set that were looked at.
    per_class : dict
        The same AUC among the images of one label alone, where both sets hold ten at least.
    """

    auc: float
    interval_95: tuple[float, float]
    n: tuple[int, int]
    per_class: dict[str, float]

    @property
    def is_clear(self) -> bool:
        """Tell whether the sets differ by more than chance, and by enough to matter."""
        return self.interval_95[0] > CLEAR

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "auc": self.auc,
            "interval_95": list(self.interval_95),
            "images": list(self.n),
            "per_class": self.per_class,
        }


def measure_shift(
    X: NDArray[np.float32] | StoredVectors,  # noqa: N803 - scikit-learn's name
    side: Ints,
    units: Ints,
    labels: NDArray[Any],
    *,
    seed: int = 0,
) -> Shift | None:
    """Let a logistic regression tell two sets apart, in five folds; None where one is too small.

    Each class counts alike on both sides: where the sets differ only in how many images of
    each class they have, that is no shift of the images.

    Parameters
    ----------
    X : ndarray of float32, (n, D), or StoredVectors
        Embeddings; of very many only some are read.
    side : ndarray of int, (n,)
        0 or 1.
    units : ndarray of int, (n,)
        Images that stay in one fold: equal ones, copies, those of a group.
    labels : ndarray, (n,)

    References
    ----------
    Lopez-Paz, Oquab 2017, "Revisiting Classifier Two-Sample Tests", ICLR, section 3, with the
    AUC in place of the accuracy; intervals by the bootstrap over units (Efron, Tibshirani 1993,
    chapter 13).
    """
    rows = _balanced(side, labels, seed)
    side, units, labels = side[rows], units[rows], labels[rows]
    counts = np.bincount(side, minlength=2)
    if counts.min() < 2 * _FOLDS:
        return None
    try:
        scores = nested_probabilities(
            head_spec("logreg"),
            X[rows],
            side,
            units,
            n_splits=_FOLDS,
            classes=("first", "second"),
            tune=False,
            seed=seed,
        )[:, 1]
    except LabelError:
        # A few groups hold all images of one side: nothing can be held out of it.
        return None
    return Shift(
        auc=area(scores, side),
        interval_95=_interval(scores, side, units, seed),
        n=(int(counts[0]), int(counts[1])),
        per_class=_per_class(scores, side, labels),
    )


def area(scores: Floats, side: Ints, weights: Ints | None = None) -> float:
    """Return the area under the ROC curve: ties count half.

    What scikit-learn's ``roc_auc_score`` gives, without its checks: a thousand resamples ask.

    References
    ----------
    Hanley, McNeil 1982, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve", Radiology 143: it is the Wilcoxon statistic.

    >>> area(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    if weights is not None:
        scores, side = np.repeat(scores, weights), np.repeat(side, weights)
    second = int(side.sum())
    first = len(side) - second
    ranks = rankdata(scores)[side == 1].sum()
    return float((ranks - second * (second + 1) / 2) / (first * second))


def _balanced(side: Ints, labels: NDArray[Any], seed: int) -> Ints:
    """Draw as many images of every class on both sides, and no more than are needed."""
    rng = np.random.default_rng(seed)
    drawn = []
    both = [
        [rng.permutation(np.flatnonzero((labels == name) & (side == s))) for s in (0, 1)]
        for name in sorted(set(labels))
    ]
    total = sum(min(len(a), len(b)) for a, b in both)
    share = min(1.0, _MOST / max(total, 1))
    for a, b in both:
        count = int(np.ceil(share * min(len(a), len(b))))
        drawn += [a[:count], b[:count]]
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, dtype=np.int64)


def _interval(scores: Floats, side: Ints, units: Ints, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    member = np.unique(units, return_inverse=True)[1]
    n_units = int(member.max()) + 1
    found = []
    for _ in range(_RESAMPLES):
        weights = rng.multinomial(n_units, np.full(n_units, 1 / n_units))[member]
        second = int((weights * side).sum())
        if 0 < second < weights.sum():
            found.append(area(scores, side, weights))
    low, high = (float(q) for q in np.quantile(found, (0.025, 0.975)))
    return low, high


def _per_class(scores: Floats, side: Ints, labels: NDArray[Any]) -> dict[str, float]:
    found = {}
    for name in sorted(set(labels)):
        at = labels == name
        if np.bincount(side[at], minlength=2).min() >= 2 * _FOLDS:
            found[str(name)] = area(scores[at], side[at])
    return found
