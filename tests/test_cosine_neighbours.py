"""The head of nearest neighbours: what scikit-learn's computes, from rows as they lie."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.estimator_checks import check_estimator
from vectors import small

from featpipe.heads import HEADS
from featpipe.heads.neighbours import CosineNeighbours, narrowest, shares
from featpipe.model_selection import fit_tuned, make_folds, nested_probabilities


def peer(k: int) -> KNeighborsClassifier:
    return KNeighborsClassifier(k, weights="distance", metric="cosine", algorithm="brute")


SCIKIT_LEARNS = replace(
    HEADS["knn"], estimator=lambda p, _: peer(p["n_neighbors"]), solver=None
)  # how this head was before


def hard(n_classes: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Return real vectors that noise has made hard to tell apart, and their classes."""
    X, labels = small(n_classes, per_class)
    noise = np.random.default_rng(0).normal(0, 3 * X.std(), X.shape)
    return np.abs(X + noise).astype(np.float32), np.unique(labels, return_inverse=True)[1]


def test_it_passes_the_checks_of_scikit_learn() -> None:
    """`CosineNeighbours` is an estimator like any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(CosineNeighbours(), on_fail=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("k", [1, 3, 10, 96])
def test_it_predicts_what_scikit_learn_does(k, dtype) -> None:
    """Real vectors of any dtype, against unit vectors in float64: equal but for rounding."""
    X, y = hard(4, 30)
    fit = np.tile(np.arange(30) < 24, 4)
    rows = X[fit].astype(dtype)
    own = CosineNeighbours(k).fit(rows, y[fit])
    theirs = peer(k).fit(normalize(rows.astype(np.float64)), y[fit])
    new = X[~fit].astype(np.float64)
    np.testing.assert_allclose(own.predict_proba(new), theirs.predict_proba(new), atol=1e-5)
    np.testing.assert_array_equal(own.predict(new), theirs.predict(new))
    assert 0.3 < np.mean(own.predict(new) == y[~fit]) < 1


def test_copies_take_all_the_weight() -> None:
    """Two copies of different classes share it, whatever their length and the other rows."""
    X, y = hard(3, 10)
    rows = np.concatenate([X, 2 * X[:1], X[:1]])
    labels = np.concatenate([y, [2, 0]])
    own = CosineNeighbours(7).fit(rows, labels)
    np.testing.assert_array_equal(own.predict_proba(3 * X[:1]), [[2 / 3, 0, 1 / 3]])
    np.testing.assert_array_equal(own.predict_proba(X[1:]).max(axis=1), 1)
    np.testing.assert_array_equal(
        shares(np.array([[0.0, 0.0, 0.5], [0.5, 1.0, 1.0]]), np.array([[1, 0, 0], [0, 1, 2]]), 3),
        [[0.5, 0.5, 0], [0.5, 0.25, 0.25]],
    )


def test_of_equal_rows_the_first_are_asked() -> None:
    """Five copies in three classes, and three neighbours: the first three rows decide."""
    X = np.repeat(small(1, 1)[0], 5, axis=0)
    own = CosineNeighbours(3).fit(X, ["b", "a", "b", "c", "c"])
    np.testing.assert_allclose(own.predict_proba(X[:1]), [[1 / 3, 2 / 3, 0]])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_rows_are_not_copied(dtype, tmp_path) -> None:
    """Neither from memory nor from a map; float16 stays float16."""
    X, y = hard(2, 10)
    np.save(tmp_path / "rows.npy", X.astype(dtype))
    for rows in (X.astype(dtype), np.load(tmp_path / "rows.npy", mmap_mode="r")):
        own = CosineNeighbours().fit(rows, y)
        assert own.rows_.dtype == dtype
        assert np.shares_memory(own.rows_, rows)


def test_more_neighbours_than_rows_are_refused() -> None:
    """The message has both numbers."""
    own = CosineNeighbours(3).fit(np.eye(2), [0, 1])
    with pytest.raises(ValueError, match="n_neighbors") as caught:
        own.predict(np.eye(2))
    assert str(caught.value) == (
        "n_neighbors is 3, and there are 2 rows to choose from: give a number from 1 to that"
    )


def test_rows_that_are_not_finite_are_refused() -> None:
    """The first of them is named."""
    X = np.eye(3)
    X[1, 0] = np.inf
    with pytest.raises(ValueError, match="NaN") as caught:
        CosineNeighbours(1).fit(X, [0, 1, 2])
    assert str(caught.value) == "Input X contains NaN or infinity, first in row 1"


@pytest.mark.parametrize("n_classes", [2, 5])
def test_one_search_a_fold_gives_the_table_of_all_fits(n_classes, monkeypatch) -> None:
    """Losses, accuracies, choice and temperature of scikit-learn's, a fit for every k and fold."""
    X, y = hard(n_classes, 30)
    folds = make_folds(y, np.arange(len(y)), 3, 0, list("abcde"[:n_classes]))
    searches: list[int] = []
    from featpipe.heads import neighbours

    search = neighbours.search
    monkeypatch.setattr(
        neighbours, "search", lambda *args: searches.append(args[2]) or search(*args)
    )
    own = fit_tuned(HEADS["knn"], X, y, folds)
    n_rows = min(len(fit) for fit, _ in folds)
    assert searches == [min(100, max(k for k in (100, 50, 30) if k <= n_rows))] * 3
    theirs = fit_tuned(SCIKIT_LEARNS, X, y, folds)
    assert own.parameters == theirs.parameters
    assert own.calibrator.temperature == pytest.approx(theirs.calibrator.temperature, rel=1e-4)
    for one, other in zip(own.table, theirs.table, strict=True):
        assert one["parameters"] == other["parameters"]
        assert one["accuracy"] == other["accuracy"]
        assert one["log_loss"] == pytest.approx(other["log_loss"], rel=1e-4)


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_cores_do_not_change_the_table(cores, monkeypatch) -> None:
    """Folds side by side, blocks side by side, or one after the other."""
    X, y = hard(3, 20)
    folds = make_folds(y, np.arange(60), 3, 0, list("abc"))
    expected = fit_tuned(HEADS["knn"], X, y, folds).table
    monkeypatch.setattr("featpipe._machine.usable_cores", lambda: cores)
    monkeypatch.setattr("featpipe.neighbours.rows._CELLS", 9 * X.shape[1] if cores == 8 else 2**21)
    for one, other in zip(fit_tuned(HEADS["knn"], X, y, folds).table, expected, strict=True):
        assert one["log_loss"] == pytest.approx(other["log_loss"], rel=1e-5)


def test_the_nested_estimate_is_that_of_scikit_learn() -> None:
    """The same probabilities of every held-out row."""
    X, y = hard(3, 24)
    own, theirs = (
        nested_probabilities(spec, X, y, np.arange(72), n_splits=3, classes=list("abc"))
        for spec in (HEADS["knn"], SCIKIT_LEARNS)
    )
    np.testing.assert_allclose(own, theirs, atol=1e-4)


def test_behind_a_scaling_that_turns_vectors_every_fold_is_fitted_alone() -> None:
    """Standardised columns have other cosines: the way round is not taken."""
    X, y = hard(2, 12)
    folds = make_folds(y, np.arange(24), 3, 0, ["a", "b"])
    spec = replace(HEADS["knn"], scaler=StandardScaler)
    assert spec.fast is None
    found = fit_tuned(spec, X, y, folds)
    assert [e["parameters"]["n_neighbors"] for e in found.table] == [15, 10, 7, 5, 3, 1]


def test_a_head_keeps_float16_where_nothing_is_lost_by_it() -> None:
    """Rows of a float16 store stay what they were; others stay float32."""
    X, y = hard(2, 12)
    half = X.astype(np.float16)
    spec = HEADS["knn"]
    for given, dtype in ((half.astype(np.float32), "float16"), (half, "float16"), (X, "float32")):
        pipeline = spec.fit({"n_neighbors": 3}, given, y, 0)
        assert pipeline[-1].rows_.dtype == dtype
        np.testing.assert_array_equal(pipeline[-1].rows_, given)
        assert pipeline.predict(given).shape == (24,)
    huge = np.full((2, 2), 1e6, dtype=np.float32)
    assert narrowest(huge) is huge
    assert narrowest(half) is half
