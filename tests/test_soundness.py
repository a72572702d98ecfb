"""Forged heads: a record and a model that belong together, and an estimator that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from featpipe.calibration import Temperature
from featpipe.errors import HeadError
from featpipe.heads import HEADS, Head, load_head

D = 8


def head(kind: str, n_classes: int = 3) -> Head:
    """Return a head fitted on a few made-up vectors; "old knn" is one of a former featpipe."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % n_classes
    X = rng.normal(size=(60, D)).astype(np.float32)
    X[:, 0] += 3 * y
    kind, old = kind.removeprefix("old "), kind.startswith("old ")
    spec = HEADS[kind]
    if old:
        spec = replace(spec, estimator=scikit_learns)
    return Head(
        name=kind,
        classes=tuple("abcdefghij"[:n_classes]),
        pipeline=spec.pipeline(spec.default, 0).fit(X, y),
        calibrator=Temperature(1.0),
        backbone={"name": "tiny", "fingerprint": "f" * 32, "dimension": D},
        parameters=dict(spec.default),
        class_counts=tuple(int(n) for n in np.bincount(y)),
    )


def scikit_learns(parameters: Mapping[str, Any], _: int) -> KNeighborsClassifier:
    """Return what a head of neighbours was before featpipe had an estimator of its own."""
    return KNeighborsClassifier(
        parameters["n_neighbors"], weights="distance", metric="cosine", algorithm="brute"
    )


def cut(array: np.ndarray) -> np.ndarray:
    """Return an array with fewer columns, or fewer entries."""
    return np.ascontiguousarray(array[..., :1])


def wrong(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array.astype(kind)


ALIEN = "its array head.{} names classes that there are not"
SHORT = "has the shape {}, which does not fit the others"
FORGED: list[tuple[str, str, str, Any, str]] = [
    ("logreg", "head", "coef_", lambda a: a[:2], "its array head.coef_ " + SHORT.format("(2, 8)")),
    ("logreg", "head", "intercept_", cut, "its array head.intercept_ " + SHORT.format("(1,)")),
    ("logreg", "head", "coef_", wrong("i8"), "its array head.coef_ has the dtype int64"),
    ("logreg", "scale", "mean_", cut, "its array scale.mean_ " + SHORT.format("(1,)")),
    (
        "logreg",
        "scale",
        "scale_",
        lambda a: a * 0,
        "its array scale.scale_ holds what is not positive",
    ),
    ("logreg", "scale", "mean_", None, "its array scale.mean_ is missing"),
    ("logreg", "scale", "with_mean", False, "its setting scale.with_mean is not True"),
    ("logreg", "scale", "with_std", 1, "its setting scale.with_std is not True"),
    ("svm", "scale", "norm", "max", "its setting scale.norm is not 'l2'"),
    ("svm", "head", "coef_", cut, "its array head.coef_ " + SHORT.format("(3, 1)")),
    ("ridge", "head", "coef_", cut, "its array head.coef_ " + SHORT.format("(3, 1)")),
    ("lda", "head", "coef_", cut, "its array head.coef_ " + SHORT.format("(3, 1)")),
    (
        "centroid",
        "head",
        "centroids_",
        lambda a: np.vstack([a, a]),
        "its array head.centroids_ " + SHORT.format("(6, 8)"),
    ),
    (
        "svm-rbf",
        "head",
        "_dual_coef_",
        cut,
        "its array head._dual_coef_ " + SHORT.format("(2, 1)"),
    ),
    ("svm-rbf", "head", "_intercept_", cut, "its array head._intercept_ " + SHORT.format("(1,)")),
    ("svm-rbf", "head", "support_", cut, "its array head.support_ " + SHORT.format("(1,)")),
    (
        "svm-rbf",
        "head",
        "_n_support",
        lambda a: a - np.array([100, 0, -100], dtype=a.dtype),
        "its array head._n_support does not count its support vectors",
    ),
    (
        "svm-rbf",
        "head",
        "_n_support",
        lambda a: a + 1,
        "its array head._n_support does not count its support vectors",
    ),
    ("svm-rbf", "head", "kernel", "linear", "its setting head.kernel is not 'rbf'"),
    ("svm-rbf", "head", "_sparse", True, "its setting head._sparse is not False"),
    ("svm-rbf", "head", "_gamma", float("nan"), "its kernel's width is not that of head.json"),
    ("svm-rbf", "head", "_gamma", 7.0, "its kernel's width is not that of head.json"),
    ("knn", "head", "labels_", lambda a: a + 1, ALIEN.format("labels_")),
    ("knn", "head", "labels_", lambda a: a - 1, ALIEN.format("labels_")),
    ("knn", "head", "labels_", cut, "its array head.labels_ " + SHORT.format("(1,)")),
    ("knn", "head", "rows_", cut, "its array head.rows_ " + SHORT.format("(60, 1)")),
    ("old knn", "head", "_y", lambda a: a + 1, ALIEN.format("_y")),
    ("old knn", "head", "_y", lambda a: a - 1, ALIEN.format("_y")),
    ("old knn", "head", "_y", cut, "its array head._y " + SHORT.format("(1,)")),
    ("old knn", "head", "_fit_X", cut, "its array head._fit_X " + SHORT.format("(60, 1)")),
    ("old knn", "head", "metric", "euclidean", "its setting head.metric is not 'cosine'"),
    (
        "knn",
        "head",
        "n_neighbors",
        10**6,
        "its number of neighbours is not that of head.json, or more than it has rows",
    ),
    (
        "knn",
        "head",
        "n_neighbors",
        "all",
        "its number of neighbours is not that of head.json, or more than it has rows",
    ),
]


@pytest.mark.parametrize(("kind", "step", "name", "edit", "why"), FORGED)
def test_a_forged_estimator_never_predicts(
    tmp_path: Path, kind: str, step: str, name: str, edit: Any, why: str
) -> None:
    """Types, digests and tables agree, but the parts do not: the load says which, and ends."""
    forged = head(kind)
    part = forged.pipeline.named_steps[step]
    before = getattr(part, name)
    if edit is None:
        delattr(part, name)
    else:
        setattr(part, name, edit(before) if callable(edit) else edit)
    forged.save(tmp_path / "head")
    with pytest.raises(HeadError) as refused:
        load_head(tmp_path / "head")
    path = tmp_path / "head" / "model.skops"
    assert str(refused.value) == f"{path} is damaged ({why}): fit the head again"


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("kind", [*HEADS, "old knn"])
def test_an_honest_head_is_sound(tmp_path: Path, kind: str, n_classes: int) -> None:
    """Every head of every size is loaded again, and predicts as it did, bit for bit."""
    honest = head(kind, n_classes)
    again = load_head(honest.save(tmp_path / "head"))
    X = np.random.default_rng(1).normal(size=(20, D)).astype(np.float32)
    assert np.array_equal(again.predict_proba(X), honest.predict_proba(X))
    assert again.digest == honest.digest


def test_heads_that_ask_other_numbers_of_neighbours_have_other_digests() -> None:
    """What decides a prediction is in the digest, be it an array or a parameter."""
    ten = head("knn")
    one = Head(
        ten.name,
        ten.classes,
        HEADS["knn"]
        .pipeline({"n_neighbors": 1}, 0)
        .fit(ten.pipeline[-1].rows_, ten.pipeline[-1].labels_),
        ten.calibrator,
        ten.backbone,
        {"n_neighbors": 1},
        ten.class_counts,
    )
    assert one.digest != ten.digest
