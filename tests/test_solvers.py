"""The minima of featpipe's solvers are those of scikit-learn, tightly converged."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from vectors import small

from featpipe._threads import Threads
from featpipe.calibration import as_columns
from featpipe.heads.linear import HINGE, LOGISTIC
from featpipe.model_selection import make_folds
from featpipe.solvers.linear import held_out_path, solve
from featpipe.solvers.losses import Logistic, Softmax, SquaredHinge
from featpipe.solvers.objective import Objective, Standardisation
from featpipe.solvers.precondition import Preconditioner, spectrum_of
from featpipe.solvers.problems import blocks_of, cross_validation, whole
from featpipe.solvers.ridge import held_out_ridge

SOLVERS = {"logreg": LOGISTIC, "svm": HINGE}


def tight(head: str, C: float):
    if head == "logreg":
        return LogisticRegression(C=C, tol=1e-9, max_iter=20000)
    return LinearSVC(C=C, dual=False, tol=1e-9, max_iter=100000)


def objective_of(head: str, weights, intercept, X, y, C: float) -> float:
    """The objective by its definition, in float64, without any of the solver's code."""
    scores = X @ weights + intercept
    square = 0.5 * (weights**2).sum()
    signs = np.where(y[:, None] == np.arange(y.max() + 1), 1, -1)
    signs = signs[:, 1:] if y.max() == 1 else signs
    if head == "svm":
        hinge = np.maximum(0, 1 - signs * scores)
        return C * (hinge**2).sum() + square + 0.5 * (intercept**2).sum()
    if y.max() == 1:
        return C * np.logaddexp(0, -signs * scores).sum() + square
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -C * log_p[np.arange(len(y)), y].sum() + square


@st.composite
def problems(draw):
    """Rows with constant columns and equal rows, classes that may or may not be told apart."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n_classes = draw(st.sampled_from([2, 3, 7]))
    n = draw(st.integers(3 * n_classes, 70))
    D = draw(st.sampled_from([2, 9, 40, 150]))
    y = rng.permutation(np.arange(n) % n_classes)
    X = rng.normal(size=(n, D))
    X[:, : min(n_classes, D)] += (
        draw(st.sampled_from([0, 1, 4])) * np.eye(n_classes, D)[y, : min(n_classes, D)]
    )
    if draw(st.booleans()):
        X[:, -1] = 5.3
    if draw(st.booleans()):
        X[n // 2 :] = X[: n - n // 2]
    return X.astype(np.float32), y.astype(np.int64)


@pytest.mark.parametrize("head", SOLVERS)
@settings(max_examples=20, deadline=None)
@given(data=problems(), log_c=st.floats(-5, 3))
def test_the_minimum_is_that_of_scikit_learn(head, data, log_c) -> None:
    """Few rows or few columns, two classes or seven, C tiny or huge: within 1e-4, relatively."""
    X, y = data
    X = StandardScaler().fit_transform(X)
    C = 10**log_c
    weights, intercept, steps = solve(X, y, SOLVERS[head].loss(y.max() + 1), C)
    assert weights.dtype == np.float64
    assert steps > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reference = tight(head, C).fit(X.astype(np.float64), y)
    own = objective_of(head, weights, intercept, X, y, C)
    theirs = objective_of(head, reference.coef_.T, reference.intercept_, X, y, C)
    assert own <= theirs * (1 + 1e-4)


@pytest.mark.parametrize("head", SOLVERS)
@pytest.mark.parametrize("n_classes", [2, 5])
def test_the_minimum_on_real_vectors_is_that_of_scikit_learn(head, n_classes) -> None:
    """Vectors of the built-in backbone, fewer rows than columns: weights agree as well."""
    X, labels = small(n_classes, 25)
    y = np.unique(labels, return_inverse=True)[1]
    X = StandardScaler().fit_transform(X)
    weights, intercept, _ = solve(X, y, SOLVERS[head].loss(n_classes), 0.01)
    reference = tight(head, 0.01).fit(X.astype(np.float64), y)
    own = objective_of(head, weights, intercept, X, y, 0.01)
    theirs = objective_of(head, reference.coef_.T, reference.intercept_, X, y, 0.01)
    assert own == pytest.approx(theirs, rel=1e-4)
    scores = X @ weights + intercept
    expected = reference.decision_function(X).reshape(scores.shape)
    np.testing.assert_allclose(scores, expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("head", SOLVERS)
@pytest.mark.parametrize(("n_classes", "columns"), [(2, 1280), (4, 1280), (4, 24)])
def test_held_out_scores_are_those_of_a_fit_without_the_fold(head, n_classes, columns) -> None:
    """Shared rows or rows of their own, each fold is standardised and fitted by itself."""
    X, labels = small(n_classes, 25)
    X = np.ascontiguousarray(X[:, ::53][:, :columns] if columns < 100 else X)
    y = np.unique(labels, return_inverse=True)[1]
    folds = make_folds(y, np.arange(len(y)), 3, 0, [str(k) for k in range(n_classes)])
    values = [1e-3, 1e-2]
    with Threads(2) as pool:
        found = list(
            held_out_path(
                X, y, folds, SOLVERS[head].loss(n_classes), values, standardise=True, pool=pool
            )
        )
    assert len(found) == 2
    for C, scores in zip(values, found, strict=True):
        expected = np.zeros_like(scores)
        for fit, held in folds:
            model = make_pipeline(StandardScaler(), tight(head, C)).fit(
                X[fit].astype(float), y[fit]
            )
            expected[held] = model.decision_function(X[held]).reshape(len(held), -1)
        # A path is followed to four digits of the objective, which are two of the scores.
        np.testing.assert_allclose(scores, expected, atol=0.06 * np.abs(expected).max())
        assert np.mean(_labels(scores) == _labels(expected)) > 0.95


def _labels(scores):
    return as_columns(scores[:, 0] if scores.shape[1] == 1 else scores).argmax(axis=1)


def test_threads_and_cuts_do_not_change_a_bit(monkeypatch) -> None:
    """Sums are made in the order of the blocks: one thread and four find the same bits."""
    X, labels = small(3, 40)
    X = np.ascontiguousarray(X[:, :50])
    y = np.unique(labels, return_inverse=True)[1]
    monkeypatch.setattr("featpipe.solvers.problems._ROWS", 16)
    alone = solve(X, y, Softmax(), 0.1)
    with Threads(4) as pool:
        together = solve(X, y, Softmax(), 0.1, pool)
    np.testing.assert_array_equal(alone[0], together[0])
    assert alone[2] == together[2]


def test_a_path_ends_where_the_rows_are_told_apart() -> None:
    """Two points a mile apart: larger C change nothing, and are not tried."""
    y = np.arange(40, dtype=np.int64) % 2
    X = np.where(y == 1, 1.0, -1.0)[:, None].astype(np.float32) * np.ones(3, dtype=np.float32)
    folds = make_folds(y, np.arange(40), 2, 0, ["a", "b"])
    values = [10.0**p for p in range(-3, 7)]
    tried = list(held_out_path(X, y, folds, Logistic(), values, standardise=True))
    assert 3 < len(tried) < len(values)


@pytest.mark.parametrize("loss", [Softmax(), Logistic(), SquaredHinge()])
def test_gradients_are_those_of_finite_differences(loss) -> None:
    """Standardised rows, several problems, some rows left out of each."""
    rng = np.random.default_rng(0)
    n_classes = 2 if isinstance(loss, Logistic) else 3
    X, y = rng.normal(size=(12, 4)), np.arange(12, dtype=np.int64) % n_classes
    blocks = [
        *blocks_of(X[:5], y[:5], (1,)),
        *blocks_of(X[5:9], y[5:9], (0, 1)),
        *blocks_of(X[9:], y[9:], (0,)),
    ]
    moments = Standardisation(rng.normal(size=(2, 4)), rng.uniform(0.5, 2, (2, 4)))
    objective = Objective(blocks, loss, 2, n_classes, moments)
    W = rng.normal(size=objective.shape)
    value = objective.value(W, 0.7)
    for at in [(0, 1, 0), (1, 3, 0), (0, 4, 0), (1, 4, 0)]:
        up, down = W.copy(), W.copy()
        up[at] += 1e-6
        down[at] -= 1e-6
        slope = (objective.value(up, 0.7).loss.sum() - objective.value(down, 0.7).loss.sum()) / 2e-6
        assert value.gradient[at] == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_losses_do_not_overflow() -> None:
    """Scores of ±1e4 in float32: finite losses, derivatives between -1 and 1."""
    for loss, n_columns in ((Softmax(), 3), (Logistic(), 1)):
        scores = np.array([1e4, -1e4, 0], dtype=np.float32).repeat(3)[: 3 * n_columns]
        scores = scores.reshape(3, 1, n_columns)
        sums, curvature = loss(scores, np.array([0, 1, 1]))
        assert np.isfinite(sums).all()
        assert (np.abs(scores) <= 1).all()
        assert (curvature >= 0).all()


def test_derivatives_are_probabilities_less_labels() -> None:
    """Softmax and logistic derivatives by their formulas."""
    rng = np.random.default_rng(1)
    s, y = rng.normal(size=(6, 1, 3)), np.array([0, 1, 2, 0, 1, 2])
    found = s.copy()
    Softmax()(found, y)
    np.testing.assert_allclose(found[:, 0], softmax(s[:, 0], axis=1) - np.eye(3)[y], atol=1e-12)
    s, y = rng.normal(size=(6, 1, 1)), y % 2
    found = s.copy()
    Logistic()(found, y)
    np.testing.assert_allclose(found[:, 0, 0], expit(s[:, 0, 0]) - y, atol=1e-12)


def test_the_preconditioner_is_the_root_of_the_inverse_curvature() -> None:
    """With all eigenvectors at hand it turns c X'X + I into the identity."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 6)) * [1, 2, 5, 0.1, 1, 1], np.arange(80, dtype=np.int64) % 3
    objective = whole(X, y, SquaredHinge(), 3)
    root = Preconditioner(objective, spectrum_of(objective), 0.5, (np.full(80, 2.0),))
    rows = np.column_stack([X, np.ones(80)])
    curved = rows.T @ rows + np.eye(7)
    applied = root((curved @ root(np.eye(7)[None])[0])[None])[0]
    np.testing.assert_allclose(applied, np.eye(7), atol=1e-9)


@pytest.mark.parametrize("columns", [12, 1280])
def test_ridge_scores_are_those_of_scikit_learn(columns) -> None:
    """By rows and by columns, all penalties from one product."""
    X, labels = small(3, 30)
    X = np.ascontiguousarray(X[:, X.std(axis=0).argsort()[::-1][:columns]])
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    y = np.unique(labels, return_inverse=True)[1]
    folds = make_folds(y, np.arange(len(y)), 3, 0, list("abc"))
    alphas = [1.0, 0.01]
    with Threads(2) as pool:
        found = held_out_ridge(X, y, folds, alphas, pool)
    for alpha, scores in zip(alphas, found, strict=True):
        for fit, held in folds:
            model = RidgeClassifier(alpha=alpha).fit(X[fit].astype(np.float64), y[fit])
            np.testing.assert_allclose(scores[held], model.decision_function(X[held]), atol=1e-6)


def test_few_rows_are_solved_in_coordinates_of_their_own() -> None:
    """60 rows of 1,280 numbers become problems of at most 60, one a fold."""
    X, labels = small(3, 20)
    y = np.unique(labels, return_inverse=True)[1]
    folds = make_folds(y, np.arange(60), 3, 0, list("abc"))
    parts = cross_validation(X, y, folds, Softmax(), 3, standardise=True)
    assert [part.objective.shape for part in parts] == [(1, 41, 3)] * 3
    (part,) = cross_validation(X, y, folds, SquaredHinge(), 3, standardise=False)
    assert part.objective.shape == (3, 61, 3)


def test_the_hinge_ends_at_its_exact_minimum() -> None:
    """Newton's steps over sets of rows: the gradient vanishes to the last digits."""
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(50, 80)), np.arange(50, dtype=np.int64) % 3
    weights, intercept, _ = solve(X, y, SquaredHinge(), 100.0)
    W = np.concatenate([weights, intercept[None]])[None]
    value = whole(X, y, SquaredHinge(), 3).value(W, 100.0)
    assert np.abs(value.gradient).max() < 1e-6 * np.abs(W).max()
