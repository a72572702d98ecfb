"""Whether the parts of a loaded estimator fit together, before it predicts anything.

A digest shows that two files belong together, not that either is honest: whoever forges one
can forge both. Compiled code trusts its arrays (libsvm reads past their ends where they are
too short), so every array that a prediction reads has its shape and kind checked here
against the number of classes and the length of the vectors, and every setting its value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

_MISSING = object()
_OLD_KNN = "knn, fitted by scikit-learn"

_STANDARD = {"scale.mean_": ("D", "f"), "scale.scale_": ("D", "f")}
_LINEAR = {"head.coef_": ("RD", "f"), "head.intercept_": ("R", "f")}

_ARRAYS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "logreg": {**_STANDARD, **_LINEAR},
    "svm": _LINEAR,
    "svm-rbf": {
        "head.support_vectors_": ("ND", "f"),
        "head.support_": ("N", "i"),
        "head._n_support": ("K", "i"),
        "head._dual_coef_": ("MN", "f"),
        "head._intercept_": ("P", "f"),
    },
    "knn": {"head.rows_": ("ND", "f"), "head.norms_": ("N", "f"), "head.labels_": ("N", "i")},
    _OLD_KNN: {"head._fit_X": ("ND", "f"), "head._y": ("N", "i")},
    # The rows of two classes are one, and ridge then has no axis for them.
    "ridge": {"head.coef_": ("rD", "f"), "head.intercept_": ("R", "f")},
    "lda": {**_STANDARD, **_LINEAR},
    "centroid": {"head.centroids_": ("KD", "f")},
}
"""Shape and kind of every array that a prediction reads.

D is the length of a vector, K the number of classes, M that minus one, P the number of
pairs of classes, R the number of score columns (r leaves the axis out where it is one); N is
any number, but the same within a head.
"""

_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "svm-rbf": {
        "head.kernel": "rbf",
        "head.decision_function_shape": "ovr",
        "head.break_ties": False,
        "head._sparse": False,
        # libsvm would copy tables of any claimed length.
        "head._effective_probability": False,
    },
    _OLD_KNN: {
        "head.metric": "cosine",
        "head.effective_metric_": "cosine",
        "head.effective_metric_params_": {},
        "head.metric_params": None,
        "head.weights": "distance",
        "head.algorithm": "brute",
        "head._fit_method": "brute",
        "head._tree": None,
        "head.n_jobs": None,
        "head.outputs_2d_": False,
    },
}
_SCALING = {"with_mean": True, "with_std": True, "norm": "l2"}


def find_flaw(
    pipeline: Pipeline,
    arrays: Mapping[str, NDArray[Any]],
    *,
    head: str,
    parameters: Mapping[str, Any],
    n_classes: int,
    dimension: int,
) -> str | None:
    """Return what does not fit together in a fitted pipeline, or None.

    Parameters
    ----------
    pipeline : Pipeline
        Of the right types; nothing else is taken for granted.
    arrays : mapping
        Its arrays by ``step.attribute``, as `featpipe.heads.arrays.arrays_of` gives them, with
        those that have a file of their own.
    head : str
        Kind of head.
    parameters : mapping
        What the record says that tuning has chosen.
    n_classes, dimension : int
        K, at least 2, and D.
    """
    sizes = {
        "D": dimension,
        "K": n_classes,
        "M": n_classes - 1,
        "P": n_classes * (n_classes - 1) // 2,
        "R": 1 if n_classes == 2 else n_classes,
    }
    if isinstance(pipeline[-1], KNeighborsClassifier):
        head = _OLD_KNN
    for name, (shape, kind) in _ARRAYS[head].items():
        flaw = _array_flaw(name, arrays.get(name), shape, kind, sizes)
        if flaw:
            return flaw
    return _setting_flaw(pipeline, head) or _value_flaw(pipeline[-1], arrays, parameters, n_classes)


def _array_flaw(
    name: str, array: NDArray[Any] | None, letters: str, kind: str, sizes: dict[str, int]
) -> str | None:
    """Compare one array; the first N that is met is noted in ``sizes``."""
    if array is None:
        return f"its array {name} is missing"
    if letters.startswith("r"):
        letters = letters[1:] if sizes["R"] == 1 else f"R{letters[1:]}"
    if array.ndim == len(letters) and "N" in letters:
        sizes.setdefault("N", array.shape[letters.index("N")])
    expected = tuple(sizes.get(letter, -1) for letter in letters)
    if array.shape != expected:
        return f"its array {name} has the shape {array.shape}, which does not fit the others"
    if array.dtype.kind != kind:
        return f"its array {name} has the dtype {array.dtype}"
    return None


def _setting_flaw(pipeline: Pipeline, head: str) -> str | None:
    steps = dict(pipeline.steps)
    scaling = {
        f"scale.{name}": value for name, value in _SCALING.items() if hasattr(steps["scale"], name)
    }
    for name, value in {**scaling, **_SETTINGS.get(head, {})}.items():
        step, _, attribute = name.partition(".")
        found = getattr(steps[step], attribute, _MISSING)
        # The type as well: 1 is no True, and a subclass of str may be anything.
        if type(found) is not type(value) or found != value:
            return f"its setting {name} is not {value!r}"
    return None


def _value_flaw(
    estimator: Any,
    arrays: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, Any],
    n_classes: int,
) -> str | None:
    if "scale.scale_" in arrays and not (arrays["scale.scale_"] > 0).all():
        return "its array scale.scale_ holds what is not positive"
    name = "head.labels_" if "head.labels_" in arrays else "head._y"
    if name in arrays:
        y = arrays[name]
        if len(y) and not 0 <= y.min() <= y.max() < n_classes:
            return f"its array {name} names classes that there are not"
        return _neighbours_flaw(estimator.n_neighbors, parameters.get("n_neighbors"), len(y))
    if "head._n_support" in arrays:
        counts = arrays["head._n_support"].astype(np.int64)
        if counts.min() < 0 or counts.sum() != len(arrays["head.support_"]):
            return "its array head._n_support does not count its support vectors"
        return _gamma_flaw(getattr(estimator, "_gamma", None), parameters.get("gamma"))
    return None


def _neighbours_flaw(found: Any, said: Any, n_rows: int) -> str | None:
    if type(found) is not int or found != said or not 1 <= found <= n_rows:
        return "its number of neighbours is not that of head.json, or more than it has rows"
    return None


def _gamma_flaw(found: Any, said: Any) -> str | None:
    if not isinstance(found, float) or not math.isfinite(found) or found <= 0 or found != said:
        return "its kernel's width is not that of head.json"
    return None
