"""Which calibrator is taken: the simplest that is not beaten, measured where it was not fitted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import log_loss
from vectors import small

from featpipe.calibration import Temperature, as_columns, fit_sigmoid, fit_temperature
from featpipe.heads import HEADS
from featpipe.heads.registry import class_scores
from featpipe.metrics import expected_calibration_error
from featpipe.model_selection import calibrate, fit_tuned, make_folds, nested_probabilities
from featpipe.model_selection.calibrating import ISOTONIC_ROWS, METHODS, unit_folds


def two_classes(n: int, chance, seed: int = 0):
    """Return scores, classes that come with chances ``chance(score)``, and folds."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-4, 4, n)
    y = (rng.random(n) < chance(s)).astype(np.int64)
    return as_columns(s), y, make_folds(y, np.arange(n), 5, 0, ["no", "yes"])


def test_scores_that_a_temperature_fits_get_one() -> None:
    """Labels drawn from a softmax: nothing is better than what made them."""
    scores, y, folds = two_classes(4000, lambda s: expit(s / 1.7))
    found = calibrate(scores, y, folds)
    assert found.calibrator == Temperature(fit_temperature(scores, y))
    assert found.report["method"] == "temperature"
    assert list(found.report["log_loss"]) == ["temperature", "sigmoid", "isotonic"]


def test_scores_with_an_offset_get_sigmoids() -> None:
    """A temperature cannot say that 0 is not the middle."""
    scores, y, folds = two_classes(900, lambda s: expit(1.5 * s - 3))
    found = calibrate(scores, y, folds)
    assert found.calibrator == fit_sigmoid(scores, y)
    losses = found.report["log_loss"]
    assert list(losses) == ["temperature", "sigmoid"]
    assert losses["sigmoid"] < losses["temperature"] - 0.05
    assert found.report["after"]["calibration_error"] < found.report["before"]["calibration_error"]


def test_scores_of_a_stranger_shape_get_isotonic_maps_where_rows_are_many() -> None:
    """Steps that no sigmoid follows; with 400 rows a class there are too few to try."""
    steps = lambda s: np.where(s < -2, 0.05, np.where(s < 2, 0.5, 0.95))  # noqa: E731
    scores, y, folds = two_classes(3000, steps)
    assert np.bincount(y).min() >= ISOTONIC_ROWS
    assert calibrate(scores, y, folds).calibrator.method == "isotonic"
    scores, y, folds = two_classes(800, steps)
    assert np.bincount(y).min() < ISOTONIC_ROWS
    assert list(calibrate(scores, y, folds).report["log_loss"]) == ["temperature", "sigmoid"]


def test_of_very_many_scores_a_temperature_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice must not take longer than the fit; what is asked for by name is done."""
    scores, y, folds = two_classes(900, lambda s: expit(1.5 * s - 3))
    monkeypatch.setattr("featpipe.model_selection.calibrating.MOST_SCORES", 1799)
    assert list(calibrate(scores, y, folds).report["log_loss"]) == ["temperature"]
    assert calibrate(scores, y, folds, "sigmoid").calibrator.method == "sigmoid"
    monkeypatch.setattr("featpipe.model_selection.calibrating.MOST_SCORES", 1800)
    assert calibrate(scores, y, folds).calibrator.method == "sigmoid"


@pytest.mark.parametrize("method", METHODS[1:])
def test_what_is_asked_for_is_taken(method) -> None:
    """Without a comparison, however good another would be."""
    scores, y, folds = two_classes(300, lambda s: expit(1.5 * s - 3))
    found = calibrate(scores, y, folds, method)
    assert found.report["method"] == method
    assert list(found.report["log_loss"]) == [method]
    if method == "none":
        assert found.calibrator == Temperature(1.0)
        assert found.report["before"] == found.report["after"]


@pytest.mark.parametrize("method", ["temperature", "sigmoid", "isotonic"])
def test_figures_after_are_of_rows_that_the_calibrator_has_not_seen(method) -> None:
    """Fold by fold, by hand; those before are of the scores as they are."""
    scores, y, folds = two_classes(300, lambda s: expit(0.5 * s + 1))
    report = calibrate(scores, y, folds, method).report
    p = np.zeros_like(scores)
    for others, held in folds:
        fitted = calibrate(
            scores[others], y[others], make_folds(y[others], others, 2, 0, ["a", "b"]), method
        )
        p[held] = fitted.calibrator.probabilities(scores[held])
    assert report["after"]["log_loss"] == pytest.approx(log_loss(y, p))
    assert report["log_loss"][method] == pytest.approx(log_loss(y, p))
    assert report["after"]["calibration_error"] == pytest.approx(expected_calibration_error(y, p))
    raw = Temperature(1.0).probabilities(scores)
    assert report["before"]["log_loss"] == pytest.approx(log_loss(y, raw))
    for when in ("before", "after"):
        diagram = report[when]["reliability"]
        assert {len(column) for column in diagram.values()} == {15}
        gaps = np.abs(np.subtract(diagram["confidence"], diagram["accuracy"]))
        assert np.dot(gaps, diagram["share"]) == pytest.approx(report[when]["calibration_error"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_class_that_a_fold_lacks_does_not_stop_it() -> None:
    """One row of a class: where it is held out, no calibrator has seen the class."""
    scores = np.random.default_rng(0).normal(size=(60, 3))
    y = np.array([0, 1] * 29 + [0, 2])
    for method in METHODS[1:]:
        found = calibrate(scores, y, unit_folds(np.arange(60), 5, 0), method)
        assert np.isfinite(found.report["after"]["log_loss"])


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=30),
    n_splits=st.integers(2, 7),
    seed=st.integers(0, 999),
)
def test_folds_of_units_hold_every_row_out_once_and_cut_no_unit(sizes, n_splits, seed) -> None:
    """Whatever the units are; no side is empty."""
    units = np.repeat(np.arange(len(sizes)), sizes)
    folds = unit_folds(units, n_splits, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([h for _, h in folds])), range(len(units)))
    for others, held in folds:
        assert len(others)
        assert len(held)
        assert not set(units[others]) & set(units[held])
        assert len(others) + len(held) == len(units)


def test_tuning_does_not_depend_on_the_calibration() -> None:
    """Parameters and table are those of the temperature; only what comes after differs."""
    X, labels = small(4, 16)
    classes, y = np.unique(labels, return_inverse=True)
    folds = make_folds(y, np.arange(len(y)), 4, 0, classes)
    plain = fit_tuned(HEADS["svm"], X, y, folds)
    assert plain.calibration == {}
    for method in METHODS:
        found = fit_tuned(HEADS["svm"], X, y, folds, calibration=method)
        assert (found.table, found.parameters) == (plain.table, plain.parameters)
        assert found.calibration["method"] in METHODS[1:]
    same = fit_tuned(HEADS["svm"], X, y, folds, calibration="temperature")
    assert same.calibrator == plain.calibrator


@pytest.mark.parametrize("method", ["temperature", "sigmoid", "none"])
def test_nested_estimates_calibrate_within_each_fold(method) -> None:
    """By hand: what is held out has no part in its own calibrator."""
    X, labels = small(3, 12)
    classes, y = np.unique(labels, return_inverse=True)
    rng = np.random.default_rng(1)
    X = (X + rng.normal(0, 3 * X.std(), X.shape)).astype(np.float32)
    units, names = np.arange(len(y)), [str(c) for c in classes]
    found = nested_probabilities(
        HEADS["ridge"], X, y, units, n_splits=3, classes=names, calibration=method
    )
    for fit, held in make_folds(y, units, 3, 0, names, least=2):
        inner = make_folds(y[fit], units[fit], 3, 0, names)
        alone = fit_tuned(HEADS["ridge"], X[fit], y[fit], inner, calibration=method)
        scores = class_scores(alone.pipeline, X[held])
        np.testing.assert_allclose(found[held], alone.calibrator.probabilities(scores))
