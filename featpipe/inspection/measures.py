"""What a class loses while something is covered, as a number without steps.

The log-odds that scores and temperature give a class move with every pixel; probabilities behind
isotonic maps do not. Where scores are counts of votes, they have steps themselves: mostly the
votes are the same whatever is covered, and there the margins behind the votes are taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from featpipe.calibration.odds import log_odds
from featpipe.heads import Head
from featpipe.heads.neighbours import CosineNeighbours
from featpipe.heads.registry import class_scores
from featpipe.inspection.records import Measure
from featpipe.neighbours import Rows, search
from featpipe.types import Vectors

Floats = NDArray[np.float64]


def measured(head: Head, vectors: Vectors) -> tuple[Measure, Floats]:
    """Return a measure of every class, and which it is.

    Parameters
    ----------
    head : Head
    vectors : ndarray of float32, (n, D)

    Returns
    -------
    measure : str
    ndarray of float64, (n, K)
    """
    estimator = head.pipeline[-1]
    if isinstance(estimator, CosineNeighbours):
        return "cosine margin", cosine_margins(estimator, vectors)
    scores = class_scores(head.pipeline, vectors)
    if isinstance(estimator, SVC) and scores.shape[1] > 2:
        return "mean margin", mean_margins(scores)
    odds = log_odds(scores, head.temperature)
    return "log-odds", np.column_stack([-odds, odds]) if odds.shape[1] == 1 else odds


def cosine_margins(neighbours: CosineNeighbours, vectors: Vectors) -> Floats:
    """Return for every class the lead of its nearest rows over any other class's, (n, K).

    A class is as near as the mean cosine of its k nearest rows, or of all where it has fewer.
    """
    rows = Rows(neighbours.rows_, neighbours.norms_)
    classes = range(len(neighbours.classes_))
    own = [rows.only(np.flatnonzero(neighbours.labels_ == k)) for k in classes]
    near = np.column_stack(
        [1 - search(some, vectors, neighbours.n_neighbors)[0].mean(axis=1) for some in own]
    )
    others = [np.delete(near, k, axis=1).max(axis=1) for k in classes]
    found: Floats = near - np.column_stack(others)
    return found


def mean_margins(scores: Floats) -> Floats:
    """Return the mean margin of every class over the others, (n, K), of the scores of an `SVC`.

    To the votes of a class scikit-learn adds s / (3 (|s| + 1)), less than a third, where s is the
    sum of its margins.

    Examples
    --------
    >>> mean_margins(np.array([[2 + 0.2, 1 - 0.25, 0.0]])).round(3)
    array([[ 0.75, -1.5 ,  0.  ]])
    """
    rest = 3 * (scores - np.round(scores))
    sums = rest / np.maximum(1 - np.abs(rest), np.finfo(np.float64).eps)
    found: Floats = sums / (scores.shape[1] - 1)
    return found
