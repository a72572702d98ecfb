"""Every head on real vectors: labels, probabilities, calibration, chance, and what is refused."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.utils.estimator_checks import check_estimator
from vectors import card, small

from featpipe.calibration import log_losses
from featpipe.errors import HeadError
from featpipe.heads import HEADS, Head, head_spec, load_head
from featpipe.heads.arrays import arrays_digest, arrays_of, arrays_table
from featpipe.heads.centroid import CosineCentroid
from featpipe.heads.discriminant import ShrunkDiscriminant
from featpipe.heads.registry import class_scores
from featpipe.model_selection import fit_tuned, make_folds

NAMES = list(HEADS)
BOTH = pytest.mark.parametrize("n_classes", [2, 8])


@lru_cache
def problem(n_classes: int, per_class: int = 12):
    """Return vectors, classes and folds of real photographs, and held-out ones of the same."""
    X, labels = small(n_classes, 20)
    classes, y = np.unique(labels, return_inverse=True)
    fit = np.tile(np.arange(20) < per_class, n_classes)
    folds = make_folds(y[fit], np.arange(fit.sum()), 3, 0, [str(c) for c in classes])
    return X[fit], y[fit], folds, X[~fit], y[~fit], tuple(str(c) for c in classes)


@lru_cache
def fitted(name: str, n_classes: int = 2) -> Head:
    return anew(name, n_classes)


def anew(name: str, n_classes: int, seed: int = 0) -> Head:
    X, y, folds, _, _, classes = problem(n_classes)
    found = fit_tuned(HEADS[name], X, y, folds, tune=False, seed=seed)
    return Head(
        name,
        classes,
        found.pipeline,
        found.calibrator,
        card(X.shape[1]),
        found.parameters,
        tuple(int(n) for n in np.bincount(y)),
    )


@pytest.mark.parametrize("name", NAMES)
@BOTH
def test_labels_are_the_likeliest_classes_and_rows_sum_to_one(name, n_classes) -> None:
    """Real crops of surfaces: better than chance by far, and labels agree with probabilities."""
    head = fitted(name, n_classes)
    _, _, _, X, y, classes = problem(n_classes)
    p = head.predict_proba(X)
    assert p.shape == (len(X), n_classes)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    assert (p >= 0).all()
    np.testing.assert_array_equal(head.predict(X), np.array(classes)[p.argmax(axis=1)])
    assert np.mean(p.argmax(axis=1) == y) > 0.85
    np.testing.assert_array_equal(head.classes_, classes)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "knn"])
@BOTH
def test_labels_are_those_of_the_estimator(name, n_classes) -> None:
    """The highest score is the class that scikit-learn's own `predict` gives."""
    head = fitted(name, n_classes)
    _, _, _, X, _, classes = problem(n_classes)
    own = np.array(classes)[head.pipeline.predict(X)]
    agree = np.mean(head.predict(X) == own)
    # An SVC votes between pairs; votes that tie are decided by its scores.
    assert agree == 1 if name != "svm-rbf" else agree > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_the_temperature_lowers_the_loss_of_rows_not_seen(name) -> None:
    """On vectors that noise has made hard, calibrated probabilities lose less than raw scores."""
    X, y, folds, new, new_y, _ = problem(8)
    rng = np.random.default_rng(0)
    hard, new = (np.abs(a + rng.normal(0, 4 * X.std(), a.shape)) for a in (X, new))
    found = fit_tuned(HEADS[name], hard.astype(np.float32), y, folds, tune=False)
    scores = class_scores(found.pipeline, new.astype(np.float32))
    assert 0.2 < np.mean(scores.argmax(axis=1) == new_y) < 0.98
    calibrated = log_losses(scores, new_y, found.calibrator.temperature).mean()
    assert calibrated <= log_losses(scores, new_y, 1.0).mean() + 0.05
    assert calibrated < np.log(8)


@pytest.mark.parametrize("name", NAMES)
@BOTH
def test_a_saved_head_predicts_the_same_bits(name, n_classes, tmp_path) -> None:
    """Saved and loaded, a head gives bit-equal probabilities, and is the same head."""
    head = fitted(name, n_classes)
    X = problem(n_classes)[3]
    again = load_head(head.save(tmp_path / "head"))
    assert again.predict_proba(X).tobytes() == head.predict_proba(X).tobytes()
    assert again.digest == head.digest
    assert (again.name, again.classes, again.class_counts) == (
        name,
        head.classes,
        head.class_counts,
    )
    assert again.parameters == head.parameters
    assert again.temperature == head.temperature
    assert repr(again) == repr(head)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_head(name) -> None:
    """Two fits on the same rows with one seed have equal digests."""
    assert anew(name, 3, seed=5).digest == anew(name, 3, seed=5).digest


@pytest.mark.parametrize("name", NAMES)
def test_blocks_and_dtypes_do_not_change_a_probability(name, monkeypatch) -> None:
    """Rows are taken in blocks; float16 input is widened first; an empty array has no rows."""
    head = fitted(name, 3)
    X = problem(3)[3]
    whole = head.predict_proba(X)
    monkeypatch.setattr("featpipe.heads.head._ROWS_AT_ONCE", 5)
    np.testing.assert_allclose(head.predict_proba(X), whole, atol=1e-6)
    half = X.astype(np.float16)
    np.testing.assert_array_equal(
        head.predict_proba(half), head.predict_proba(half.astype(np.float32))
    )
    assert head.predict_proba(np.empty((0, X.shape[1]))).shape == (0, 3)
    assert head.predict(np.empty((0, X.shape[1]))).shape == (0,)


def test_a_head_says_what_it_is() -> None:
    """Kind, classes, backbone and images in one line; facts as plain properties."""
    head = fitted("ridge", 3)
    assert repr(head) == "Head(ridge, 3 classes, on tiny, fitted on 36 images)"
    assert head.fingerprint == "0123456789abcdef"
    assert head.dimension == 1280
    assert head.metrics == {}


@pytest.mark.parametrize(
    ("shape", "shown"), [((3,), "(3,)"), ((2, 5), "(2, 5)"), ((1, 2, 1280), "(1, 2, 1280)")]
)
def test_vectors_of_another_length_are_refused(shape, shown) -> None:
    """The message has both lengths."""
    with pytest.raises(HeadError) as caught:
        fitted("centroid").predict_proba(np.zeros(shape))
    assert str(caught.value) == (
        "the head reads vectors of 1280 numbers, (n, 1280); it was given an array of shape " + shown
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_gets_no_label(value) -> None:
    """NaN would be given a label by most estimators: it is refused, and the row named."""
    X = np.ones((3, 1280), dtype=np.float32)
    X[1, 7] = value
    with pytest.raises(HeadError) as caught:
        fitted("knn").predict(X)
    assert str(caught.value) == (
        "vector 1 holds NaN or infinity: no label can be given for it; embed the image again"
    )


def test_an_unknown_head_is_named_with_the_nearest() -> None:
    """A slip of the finger gets a hint; anything else gets the list."""
    every = "logreg, svm, svm-rbf, knn, ridge, lda, centroid"
    with pytest.raises(HeadError) as caught:
        head_spec("logred")
    assert str(caught.value) == f"there is no head 'logred': did you mean logreg? there are {every}"
    with pytest.raises(HeadError) as caught:
        head_spec("x\n")
    assert str(caught.value) == f"there is no head 'x\\\\n': there are {every}"


def test_the_default_parameters_are_of_the_grid_s_kind() -> None:
    """What `--no-tune` takes has the names that tuning knows."""
    assert all(set(spec.default) == set(p) for spec in HEADS.values() for p in spec.grid)
    assert [spec.name for spec in HEADS.values()] == NAMES


def test_a_class_without_a_neighbour_is_unlikely_not_impossible() -> None:
    """k nearest neighbours: the score is finite for every class."""
    head = fitted("knn", 8)
    scores = class_scores(head.pipeline, problem(8)[3])
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1)


def test_the_centroid_head_passes_the_checks_of_scikit_learn() -> None:
    """`CosineCentroid` is an estimator like any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(CosineCentroid(), on_fail=None)
    failed = [r["check_name"] for r in results if r["status"] == "failed"]
    assert failed == []


def test_the_centroid_is_the_mean_of_unit_vectors() -> None:
    """Length says nothing: (0, 9) counts as (0, 1); equal cosines give the first class."""
    head = CosineCentroid().fit([[1, 0], [0, 9], [-1, 0]], ["a", "a", "b"])
    np.testing.assert_allclose(head.centroids_, [[0.5**0.5, 0.5**0.5], [-1, 0]])
    assert list(head.predict([[5, 5], [-3, 0]])) == ["a", "b"]
    three = clone(head).fit(np.eye(3), [0, 1, 2])
    assert list(three.predict([[1, 1, 0]])) == [0]
    assert three.decision_function([[1, 1, 0]]).shape == (1, 3)


def test_digests_tell_arrays_apart_by_name_dtype_shape_and_bytes() -> None:
    """Any change of an array, or of what the head is, gives another digest."""
    base = {"head.coef_": np.zeros((2, 3))}
    variants = [
        (base, "x"),
        (base, "y"),
        ({"head.coef": np.zeros((2, 3))}, "x"),
        ({"head.coef_": np.zeros((3, 2))}, "x"),
        ({"head.coef_": np.zeros((2, 3), dtype=np.int64)}, "x"),
        ({"head.coef_": np.eye(2, 3)}, "x"),
    ]
    assert len({arrays_digest(a, i) for a, i in variants}) == len(variants)
    assert arrays_digest(base, "x") == arrays_digest({"head.coef_": np.zeros((2, 3))}, "x")


def test_every_array_of_a_pipeline_is_found() -> None:
    """Arrays in attributes, dictionaries and lists of the steps, under sorted names."""
    head = anew("logreg", 3)
    arrays = arrays_of(head.pipeline)
    assert {"head.coef_", "head.intercept_", "head.classes_", "scale.mean_"} <= set(arrays)
    assert list(arrays) == sorted(arrays)
    assert arrays_table(arrays)["head.coef_"]["shape"] == [3, 1280]
    head.pipeline[-1].extra_ = {"deep": np.ones(2), "list": [np.ones(1), 3]}
    found = arrays_of(head.pipeline)
    assert set(found) - set(arrays) == {"head.extra_.deep", "head.extra_.list.0"}


@BOTH
@pytest.mark.parametrize("shrinkage", [0.1, 0.9])
def test_the_discriminant_is_that_of_scikit_learn(n_classes, shrinkage) -> None:
    """Equal decision values to those of ``LinearDiscriminantAnalysis(solver="lsqr")``."""
    X, y, _, new, _, _ = problem(n_classes)
    X, new = X[:, :300].astype(float), new[:, :300].astype(float)
    ours = ShrunkDiscriminant(shrinkage).fit(X, y)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    np.testing.assert_allclose(
        ours.decision_function(new), theirs.decision_function(new), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new))


def test_the_discriminant_passes_the_checks_of_scikit_learn() -> None:
    """`ShrunkDiscriminant` is an estimator like any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(ShrunkDiscriminant(), on_fail=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []


def test_the_discriminant_of_one_row_a_class_is_the_nearest_mean() -> None:
    """Without any spread within the classes, Euclidean distance decides."""
    model = ShrunkDiscriminant().fit([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]], [0, 1, 2])
    assert list(model.predict([[0.1, 0.7], [0.9, 0.2], [4.0, 3.0]])) == [0, 1, 2]


def test_the_discriminant_needs_two_classes() -> None:
    """One class is no problem to solve."""
    with pytest.raises(ValueError, match="one class only") as caught:
        ShrunkDiscriminant().fit([[0.0, 1.0], [1.0, 0.0]], [0, 0])
    assert str(caught.value) == "there is one class only: a discriminant needs two at least"
