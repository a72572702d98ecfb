"""What a head would say of its own images, had it not learnt on them.

Sets of labels and the check for drift compare new images with these. So the heads that were
fitted without a fold have to be much like the head itself: of few images a fifth is missed (the
probabilities of a head that has learnt on four fifths are less sure, and sets made by them are too
large: 1 to 2 points of coverage where 80 % was promised, on 280 to 700 images), a twentieth is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe.heads import HeadSpec
from featpipe.heads.registry import class_scores
from featpipe.model_selection.folds import Ints, make_folds
from featpipe.model_selection.streaming import Rows
from featpipe.model_selection.tuning import Fitted, Floats, held_out_scores, quiet_and_single

MOST_FOLDS, FITTED_ROWS = 20, 10_000
"""Folds, at most; and rows that all of them together are fitted on, about, where that is more
than the folds of tuning."""
_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Unseen:
    """Probabilities of rows that were not learnt on.

    Attributes
    ----------
    probabilities : ndarray of float64, (n, K)
    y : ndarray of int, (n,)
        True classes.
    units : ndarray of int, (n,)
        What belongs together.
    """

    probabilities: Floats
    y: Ints
    units: Ints


def unseen_by_folds(
    spec: HeadSpec,
    fitted: Fitted,
    X: NDArray[np.float32],  # noqa: N803 - scikit-learn's name
    y: Ints,
    units: Ints,
    classes: Sequence[str],
    *,
    n_splits: int,
    seed: int = 0,
) -> Unseen:
    """Fit with the chosen parameters in folds, and let the head's own calibrator do the rest.

    Of many rows the scores serve that tuning has left.

    The calibrator is fitted on scores of the same rows. That changes nothing that could be
    measured: `benchmarks/conformal.py` has the coverage with and without.

    Parameters
    ----------
    n_splits : int
        Folds of tuning; of few rows there are up to 20.

    References
    ----------
    Vovk 2015, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 74,
    with the head of all rows in place of those of the folds.
    """
    more = min(MOST_FOLDS, FITTED_ROWS // len(y))
    scores = fitted.scores
    if scores is None or more > n_splits:
        folds = make_folds(y, units, max(n_splits, more), seed, classes)
        scores = held_out_scores(spec, fitted.parameters, X, y, folds, seed=seed)
    return Unseen(fitted.calibrator.probabilities(scores), y, units)


def unseen_by_head(
    fitted: Fitted,
    X: Rows,  # noqa: N803
    y: Ints,
    units: Ints,
    positions: Ints,
) -> Unseen:
    """Ask the head itself about rows that its weights were not fitted on."""
    ordered = X.reading_order(positions)
    with quiet_and_single():
        scores = [
            class_scores(fitted.pipeline, X[ordered[start : start + _AT_ONCE]])
            for start in range(0, len(ordered), _AT_ONCE)
        ]
    return Unseen(
        fitted.calibrator.probabilities(np.concatenate(scores)), y[ordered], units[ordered]
    )
