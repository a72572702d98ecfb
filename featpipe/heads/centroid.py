"""The nearest class mean by cosine, as one estimator whose labels and scores agree.

scikit-learn's ``NearestCentroid`` knows no cosine, and its ``predict`` and
``predict_proba`` use differently scaled centroids.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import normalize
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data


class CosineCentroid(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is untyped
    """Classify by the cosine to the mean of each class's L2-normalised vectors.

    Attributes
    ----------
    classes_ : ndarray, (K,)
    centroids_ : ndarray, (K, D)
        Unit vectors, of the dtype of the training vectors.

    References
    ----------
    Rocchio 1971; as the nearest-class-mean classifier: Mensink, Verbeek, Perronnin, Csurka
    2013, "Distance-Based Image Classification", equation 1, with cosine for the distance.

    Examples
    --------
    >>> CosineCentroid().fit([[1, 0], [0, 2]], [0, 1]).predict([[3, 1]])
    array([0])
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803 - scikit-learn's name
        """Average the normalised rows of each class; X (n, D), y (n,)."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))  # noqa: N806
        check_classification_targets(y)
        self.classes_, member = np.unique(y, return_inverse=True)
        units = normalize(X)
        means = np.stack([units[member == k].mean(axis=0) for k in range(len(self.classes_))])
        self.centroids_ = normalize(means)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the cosine to every class, (n, K); for two classes their difference, (n,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)  # noqa: N806
        cosines: NDArray[Any] = normalize(X) @ self.centroids_.T
        return cosines[:, 1] - cosines[:, 0] if len(self.classes_) == 2 else cosines

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the class of the nearest mean, (n,); of equal ones the first."""
        scores = self.decision_function(X)
        nearest = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        predicted: NDArray[Any] = self.classes_[nearest]
        return predicted
