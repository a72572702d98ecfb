"""Linear discriminant analysis with a shrunk covariance, by Cholesky factors.

The same classifier as scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr")``, which
solves its system by singular values: on 1,280 dimensions that is twenty times the work.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from sklearn.base import BaseEstimator
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data


class ShrunkDiscriminant(LinearClassifierMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """Classify by Gaussians of one covariance, (1 - s) S + s tr(S) / D I.

    Parameters
    ----------
    shrinkage : float
        s, above 0 and at most 1: so the covariance can be inverted with fewer rows than
        dimensions.

    Attributes
    ----------
    classes_ : ndarray, (K,)
    coef_ : ndarray of float64, (K, D); (1, D) for two classes
    intercept_ : ndarray of float64, (K,) or (1,)

    References
    ----------
    Ledoit, Wolf 2004, "A Well-Conditioned Estimator for Large-Dimensional Covariance
    Matrices", equation 5 (the form of the estimate); Hastie, Tibshirani, Friedman 2009, "The
    Elements of Statistical Learning", equation 4.10 (the scores).

    Examples
    --------
    >>> X = [[0, 0], [0, 1], [3, 0], [3, 1]]
    >>> ShrunkDiscriminant(0.5).fit(X, [0, 0, 1, 1]).predict([[1, 5], [2, 5]])
    array([0, 1])
    """

    def __init__(self, shrinkage: float = 0.5) -> None:
        self.shrinkage = shrinkage

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803 - scikit-learn's name
        """Estimate means, priors and the shrunk covariance; X (n, D), y (n,).

        Raises
        ------
        ValueError
            When there is one class only.
        """
        rows: NDArray[np.float64]
        rows, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, member = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("there is one class only: a discriminant needs two at least")
        counts = np.bincount(member)
        means = np.stack([rows[member == k].mean(axis=0) for k in range(len(counts))])
        within = rows - means[member]
        covariance = within.T @ within * ((1 - self.shrinkage) / len(rows))
        # With one row a class nothing is known of their spread: the nearest mean is what is left.
        variance = np.einsum("ij,ij->", within, within) / rows.size or 1.0
        covariance[np.diag_indices_from(covariance)] += self.shrinkage * variance
        self.coef_ = cho_solve(cho_factor(covariance, overwrite_a=True), means.T).T
        self.intercept_ = np.log(counts / len(rows)) - 0.5 * (means * self.coef_).sum(axis=1)
        if len(counts) == 2:
            self.coef_ = self.coef_[1:] - self.coef_[:1]
            self.intercept_ = self.intercept_[1:] - self.intercept_[:1]
        return self
