"""A linear head as one matrix: what scaling and estimator come to, on the vectors themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from featpipe.heads.centroid import CosineCentroid
from featpipe.heads.matrix import linear_matrix

Floats = NDArray[np.float64]

_NOTHING = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True)
class LinearForm:
    """Scores as a product: ``weights @ v + bias``, where v is the vector, or its direction.

    Attributes
    ----------
    weights : ndarray of float64, (K, D)
    bias : ndarray of float64, (K,)
    on_directions : bool
        Whether vectors are divided by their length first.
    """

    weights: Floats
    bias: Floats
    on_directions: bool

    def compared(self) -> LinearForm:
        """Return the scores of classes against one another, as people compare them.

        Of two classes each has the decision value, the second's with its sign turned for the
        first. Of more, what all classes share is taken away, their mean: it decides nothing.
        """
        weights, bias = self.weights, self.bias
        if len(weights) == 2:
            weights, bias = weights - weights[::-1], bias - bias[::-1]
        else:
            weights, bias = weights - weights.mean(axis=0), bias - bias.mean()
        return LinearForm(weights, bias, self.on_directions)

    def factors(self, vectors: NDArray[Any]) -> Floats:
        """Return what each vector is multiplied with before the weights are, (n,)."""
        if not self.on_directions:
            return np.ones(len(vectors))
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        return np.where(lengths > 0, 1 / np.maximum(lengths, _NOTHING), 1.0)

    def scores(self, vectors: NDArray[Any]) -> Floats:
        """Return the score of every class, (n, K)."""
        scaled = vectors * self.factors(vectors)[:, None]
        found: Floats = scaled @ self.weights.T + self.bias
        return found


def linear_form(pipeline: Pipeline) -> LinearForm | None:
    """Return the matrix that a fitted pipeline comes to; None where it is not linear.

    A `StandardScaler` divides the weights by its deviations, and takes from the bias what these
    weights make of its means; a `Normalizer` divides the vectors by their lengths, as the nearest
    class mean by cosine does by itself.

    Returns
    -------
    LinearForm or None
        Of two classes the first has weights of zero: `featpipe.heads.registry.class_scores`
        gives it a score of 0, too.
    """
    scaler, estimator = pipeline[0], pipeline[-1]
    if len(pipeline) != 2 or not isinstance(scaler, StandardScaler | Normalizer):
        return None
    found = linear_matrix(estimator)
    if found is None:
        return None
    weights, bias = found
    if isinstance(scaler, Normalizer):
        return _form(weights, bias, True) if scaler.norm == "l2" else None
    if isinstance(estimator, CosineCentroid):
        return None  # the mean moves the vectors before their lengths are taken
    if scaler.scale_ is not None:
        weights = weights / scaler.scale_
    if scaler.mean_ is not None:
        bias = bias - weights @ scaler.mean_
    return _form(weights, bias, False)


def _form(weights: Floats, bias: Floats, on_directions: bool) -> LinearForm:
    if len(weights) == 1:
        weights = np.concatenate([np.zeros_like(weights), weights])
        bias = np.concatenate([np.zeros(1), bias])
    return LinearForm(weights, bias, on_directions)
