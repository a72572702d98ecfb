"""Whether the vectors themselves differ: a classifier is asked to tell new ones from old ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import rankdata

from featpipe.heads import Head
from featpipe.model_selection import Fold
from featpipe.model_selection.calibrating import unit_folds
from featpipe.ood import Novelty, normalised

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

MOST = 1000
"""Vectors of each side that are looked at."""
_FOLDS, _PENALTY = 5, 3.0
_DEALS, _AT_ONCE = 9999, 500


def told_apart(
    new: Vectors, old: Vectors, units: Ints, seed: int = 0
) -> tuple[float, float] | None:
    """Let a ridge classifier tell new vectors from old ones; None where there are too few.

    It is asked about units that it has not learnt on, fold by fold. Its scores are a matrix
    times the sides of the rows, the same matrix whatever the sides are: so sides can be dealt anew
    thousands of times, and the p-value is exact where old and new are exchangeable. That of rank
    sums is not, as the scores of one fold depend on the other folds.

    Parameters
    ----------
    new, old : ndarray of float32, (n, D) and (m, D)
    units : ndarray of int, (n,)
        New images that stay together: equal ones, those of a group.

    Returns
    -------
    float
        Area under the ROC curve, over the folds: 0.5 where nothing tells them apart.
    float
        The p-value, 0.0001 at least.

    References
    ----------
    Lopez-Paz, Oquab 2017, "Revisiting Classifier Two-Sample Tests", section 3; with dealt sides,
    Kim, Ramdas, Singh, Wasserman 2021, "Classification accuracy as a proxy for two-sample
    testing". Rabanser, Günnemann, Lipton 2019, "Failing Loudly".
    """
    # Equal vectors stay in one fold: the twin of a row that was learnt tells where it belongs.
    equal = np.unique([row.tobytes() for row in old], return_inverse=True)[1]
    unit = np.concatenate([equal, len(old) + np.unique(units, return_inverse=True)[1]])
    if min(len(np.unique(equal)), len(np.unique(units))) < 2 * _FOLDS:
        return None
    X = np.concatenate([normalised(old), normalised(new)])  # noqa: N806
    side = np.repeat([0, 1], [len(old), len(new)])
    rng = np.random.default_rng(seed)
    folds = unit_folds(unit, _FOLDS, seed)
    scorer = _scorer(X, folds)
    return _area(scorer @ side, side, folds), _p_value(scorer, side, unit, rng)


def _scorer(X: Vectors, folds: Sequence[Fold]) -> Vectors:  # noqa: N803
    """Return what makes held-out scores, less their mean in a fold, of sides: (n, n) float32."""
    deviation = X.std(axis=0)
    rows = (X - X.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    kernel = rows @ rows.T / rows.shape[1]
    found = np.zeros((len(X), len(X)), dtype=np.float32)
    for fit, held in folds:
        inner = kernel[np.ix_(fit, fit)] + _PENALTY * np.eye(len(fit), dtype=np.float32)
        part = cho_solve(cho_factor(inner), kernel[np.ix_(fit, held)]).T
        part -= part.mean(axis=0)
        found[np.ix_(held, fit)] = part - part.mean(axis=1, keepdims=True)
    return found


def _p_value(scorer: Vectors, side: Ints, unit: Ints, rng: np.random.Generator) -> float:
    """Return how many of all deals of the sides to the units are told apart as well."""
    member = np.unique(unit, return_inverse=True)[1]
    of_unit = np.zeros(int(member.max()) + 1, dtype=np.float32)
    of_unit[member] = side
    reached = float(side @ (scorer @ side.astype(np.float32)))
    as_high = 0
    for start in range(0, _DEALS, _AT_ONCE):
        n = min(_AT_ONCE, _DEALS - start)
        dealt = rng.permuted(np.broadcast_to(of_unit, (n, len(of_unit))), axis=1)[:, member].T
        as_high += int((((scorer @ dealt) * dealt).sum(axis=0) >= reached).sum())
    return (1 + as_high) / (_DEALS + 1)


def _area(scores: NDArray[np.floating], side: Ints, folds: Sequence[Fold]) -> float:
    """Return the share of pairs, one of each side and both of one fold, that are in order."""
    in_order = pairs = 0.0
    for _, held in folds:
        second = int(side[held].sum())
        ranks = float(rankdata(scores[held])[side[held] == 1].sum())
        in_order += ranks - second * (second + 1) / 2
        pairs += second * (len(held) - second)
    return in_order / pairs if pairs else 0.5


def training_vectors(head: Head, novelty: Novelty, seed: int = 0) -> Vectors:
    """Return vectors that the head was fitted on, its classes as frequent as they were then.

    Of large classes the head has kept a part only, of small ones all.
    """
    kept, had = np.array(novelty.counts), np.array(head.class_counts)
    share = min(1.0, float((kept / had).min()))
    share = min(share, MOST / max(float(had.sum()), 1.0))
    wanted = np.minimum(np.ceil(share * had).astype(np.int64), kept)
    starts = np.concatenate([[0], np.cumsum(kept)[:-1]])
    rng = np.random.default_rng(seed)
    drawn = [
        start + rng.permutation(int(n))[: int(some)]
        for start, n, some in zip(starts, kept, wanted, strict=True)
    ]
    found: Vectors = novelty.rows[np.sort(np.concatenate(drawn))]
    return found
