"""What a linear estimator multiplies with and adds, whatever its kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC

from featpipe.heads.centroid import CosineCentroid
from featpipe.heads.discriminant import ShrunkDiscriminant

Floats = NDArray[np.float64]

_ESTIMATORS = (LogisticRegression, LinearSVC, RidgeClassifier, ShrunkDiscriminant)


def linear_matrix(estimator: Any) -> tuple[Floats, Floats] | None:
    """Return weights and bias of a fitted estimator's scores; None where it is not linear.

    Returns
    -------
    weights : ndarray of float64, (K, D)
    bias : ndarray of float64, (K,)
        Of two classes one row: the second's score, as that of the first is 0.
    """
    if isinstance(estimator, CosineCentroid):
        weights = estimator.centroids_.astype(np.float64)
        weights = weights[1:] - weights[:1] if len(weights) == 2 else weights
        return weights, np.zeros(len(weights))
    if not isinstance(estimator, _ESTIMATORS):
        return None
    weights = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))
    bias = np.asarray(estimator.intercept_, dtype=np.float64)
    return weights, np.broadcast_to(bias, (len(weights),))
