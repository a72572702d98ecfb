"""Whether the vectors themselves differ: a classifier is asked to tell new ones from old ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from featpipe.errors import LabelError
from featpipe.heads import Head, head_spec
from featpipe.model_selection import make_folds
from featpipe.model_selection.tuning import held_out_scores
from featpipe.ood import Novelty, normalised

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

MOST = 2000
"""Vectors of each side that are looked at."""
_FOLDS = 5


def told_apart(
    new: Vectors, old: Vectors, units: Ints, seed: int = 0
) -> tuple[float, float] | None:
    """Let a logistic regression tell new vectors from old ones; None where there are too few.

    Parameters
    ----------
    new, old : ndarray of float32, (n, D) and (m, D)
    units : ndarray of int, (n,)
        New images that stay in one fold: equal ones, those of a group.

    Returns
    -------
    float
        Area under the ROC curve of held-out scores, fold by fold: 0.5 where nothing tells them
        apart.
    float
        The p-value of the rank sums of all folds together, one-sided.

    References
    ----------
    Lopez-Paz, Oquab 2017, "Revisiting Classifier Two-Sample Tests", section 3, with ranks in
    place of the accuracy (van Elteren 1960 on their sum over strata). Rabanser, Günnemann,
    Lipton 2019, "Failing Loudly", compare it with others.
    """
    X = np.concatenate([normalised(old), normalised(new)])  # noqa: N806
    side = np.repeat([0, 1], [len(old), len(new)])
    # Equal vectors stay in one fold: the twin of a row that was learnt tells where it belongs.
    equal = np.unique([row.tobytes() for row in old], return_inverse=True)[1]
    every = np.concatenate([equal, len(old) + units])
    if min(len(old), len(new)) < 2 * _FOLDS:
        return None
    try:
        folds = make_folds(side, every, _FOLDS, seed, ("old", "new"))
    except LabelError:
        # A few groups hold all new images: nothing can be held out of them.
        return None
    spec = head_spec("logreg")
    scores = held_out_scores(spec, spec.default, X, side, folds, seed=seed)
    margins = scores[:, 1] - scores[:, 0]
    surplus = variance = pairs = 0.0
    for _, held in folds:
        second = int(side[held].sum())
        first = len(held) - second
        ranks = rankdata(margins[held])[side[held] == 1].sum()
        surplus += ranks - second * (first + second + 1) / 2
        variance += first * second * (first + second + 1) / 12
        pairs += first * second
    if variance <= 0:
        return None
    return float(0.5 + surplus / pairs), float(norm.sf(surplus / np.sqrt(variance)))


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
