"""Labels that are likely wrong: a head that has not seen an image is sure of another class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.heads import HeadSpec
from featpipe.model_selection import nested_probabilities

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_UNLIKELY, _LIKELY = 0.1, 0.5


@dataclass(frozen=True, slots=True)
class Suspects:
    """Images whose label may be wrong, the likeliest first.

    Attributes
    ----------
    rows : ndarray of int, (m,)
        Positions among the images that were given.
    suggested : ndarray of int, (m,)
        The class that is likelier.
    confidence : ndarray of float, (m,)
        Probability of the label that the image has, by a head that has not seen it.
    """

    rows: Ints
    suggested: Ints
    confidence: Floats


def suspect_labels(
    spec: HeadSpec,
    X: NDArray[np.float32],  # noqa: N803 - scikit-learn's name
    y: Ints,
    units: Ints,
    classes: tuple[str, ...],
    *,
    seed: int = 0,
    on_fit: Any = None,
) -> Suspects:
    """Find labels that are likely wrong, by held-out probabilities of five folds.

    An image is a suspect where its label has a probability below one in ten, and another class
    one of a half at least; the least likely label comes first.

    Parameters
    ----------
    spec : HeadSpec
        The head that judges, with its default parameters.
    X : ndarray of float32, (n, D)
    y, units : ndarray of int, (n,)
        Classes 0 … K-1; what stays in one fold.

    Raises
    ------
    LabelError
        When a class has too few images to hold any out.

    References
    ----------
    Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset
    Labels", JAIR 70, section 3.2 (self-confidence).
    """
    probabilities = nested_probabilities(
        spec, X, y, units, n_splits=5, classes=classes, tune=False, seed=seed, on_fit=on_fit
    )
    return suspects_of(probabilities, y)


def suspects_of(probabilities: Floats, y: Ints) -> Suspects:
    """Rank the suspects by held-out probabilities, (n, K).

    >>> p = np.array([[0.9, 0.1], [0.05, 0.95], [0.15, 0.85], [0.8, 0.2]])
    >>> suspects_of(p, np.array([0, 0, 1, 0])).rows
    array([1])
    """
    own = probabilities[np.arange(len(y)), y]
    suggested = probabilities.argmax(axis=1)
    rows = np.flatnonzero((own < _UNLIKELY) & (probabilities.max(axis=1) >= _LIKELY))
    rows = rows[np.argsort(own[rows], kind="stable")]
    return Suspects(rows, suggested[rows], own[rows])
