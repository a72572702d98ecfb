"""Temperature, sigmoids, isotonic maps: what they keep, whom they agree with, what is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from featpipe.calibration import (
    Isotonic,
    Sigmoid,
    Temperature,
    as_columns,
    fit_isotonic,
    fit_sigmoid,
    fit_temperature,
    log_losses,
    read_calibrator,
    to_probabilities,
)
from featpipe.calibration.isotonic import MOST_KNOTS, thinned
from featpipe.calibration.odds import log_odds

FITS = {
    "temperature": lambda scores, y: Temperature(fit_temperature(scores, y)),
    "sigmoid": fit_sigmoid,
    "isotonic": fit_isotonic,
}
EVERY = pytest.mark.parametrize("method", list(FITS))


def scores_of(n: int, n_classes: int, seed: int, scale: float = 1.0):
    """Scores whose right temperature is ``scale``: labels are drawn from their softmax."""
    rng = np.random.default_rng(seed)
    scores = 2 * rng.normal(size=(n, n_classes))
    p = to_probabilities(scores, 1.0)
    y = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return scores * scale, y


@given(
    n=st.integers(1, 30),
    n_classes=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    temperature=st.floats(1e-4, 1e4),
)
def test_probabilities_sum_to_one_and_keep_the_order(n, n_classes, seed, temperature) -> None:
    """Whatever the temperature, the likeliest class is the one with the highest score."""
    scores, _ = scores_of(n, n_classes, seed)
    p = to_probabilities(scores, temperature)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1)
    highest = scores.argmax(axis=1)
    np.testing.assert_array_equal(p[np.arange(n), highest], p.max(axis=1))


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_the_temperature_that_made_the_labels_is_found(scale, n_classes) -> None:
    """Labels drawn from softmax(scores / T) give T back, within 10 % on 5,000 rows."""
    scores, y = scores_of(5000, n_classes, 0, scale)
    assert fit_temperature(scores, y) == pytest.approx(scale, rel=0.1)


@given(n_classes=st.integers(2, 6), seed=st.integers(0, 10**6), scale=st.floats(0.05, 20))
def test_no_other_temperature_has_a_lower_loss(n_classes, seed, scale) -> None:
    """The fitted temperature is that of a plain search, up to the rule of succession."""
    scores, y = scores_of(400, n_classes, seed, scale)
    found = log_losses(scores, y, fit_temperature(scores, y)).mean()
    plain = minimize_scalar(
        lambda t: log_losses(scores, y, np.exp(t)).mean(), bounds=(-6, 6), method="bounded"
    )
    assert found <= plain.fun + 2e-3


def test_scores_that_are_never_wrong_do_not_become_certainty() -> None:
    """Ten right rows: the top probability is about 11 / 12 (rule of succession), not 1."""
    scores = np.tile([[0.0, 1.0], [1.0, 0.0]], (5, 1))
    y = np.tile([1, 0], 5)
    p = to_probabilities(scores, fit_temperature(scores, y))
    assert p.max() == pytest.approx(11 / 12, abs=1e-3)


def test_scores_without_any_sense_become_equal_shares() -> None:
    """Scores that are always wrong get a temperature at which they say nothing."""
    scores = np.tile([[0.0, 1.0], [1.0, 0.0]], (20, 1))
    y = np.tile([0, 1], 20)
    p = to_probabilities(scores, fit_temperature(scores, y))
    np.testing.assert_allclose(p, 0.5, atol=1e-4)


def test_one_column_of_scores_becomes_two() -> None:
    """A two-class score s is (0, s): softmax of it is the sigmoid of s."""
    s = np.array([-3.0, 0.0, 2.0], dtype=np.float32)
    columns = as_columns(s)
    assert columns.dtype == np.float64
    np.testing.assert_allclose(to_probabilities(columns, 1.0)[:, 1], 1 / (1 + np.exp(-s)))
    np.testing.assert_array_equal(as_columns(columns), columns)


def test_losses_are_those_of_the_probabilities() -> None:
    """`log_losses` is the log loss row by row, without the detour through underflow."""
    scores, y = scores_of(50, 4, 3)
    expected = log_loss(y, to_probabilities(scores, 0.7), labels=np.arange(4))
    assert log_losses(scores, y, 0.7).mean() == pytest.approx(expected)
    assert np.isfinite(log_losses(1e6 * scores, y, 0.7)).all()


@EVERY
@given(
    n=st.integers(2, 60),
    n_classes=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-3, 1e3),
)
def test_probabilities_of_any_calibrator_are_some(method, n, n_classes, seed, scale) -> None:
    """Few rows, classes without a row, scores of any size: rows sum to 1, none is 0 for certain."""
    scores, y = scores_of(n, n_classes, seed, scale)
    p = FITS[method](scores, y).probabilities(np.vstack([scores, 100 * scores]))
    assert p.shape == (2 * n, n_classes)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (p >= 0).all()
    assert (p[np.arange(n), y] > 0).all()


@EVERY
@given(
    n_classes=st.integers(2, 5),
    seed=st.integers(0, 10**6),
    factor=st.floats(0.01, 100),
    shift=st.floats(-50, 50),
)
def test_the_scale_and_the_origin_of_scores_do_not_matter(
    method, n_classes, seed, factor, shift
) -> None:
    """Fitted on and asked about other scores that say the same, the probabilities are the same."""
    scores, y = scores_of(60, n_classes, seed)
    rows = np.random.default_rng(seed).normal(size=(60, 1))
    other = factor * scores + shift * rows
    p = FITS[method](scores, y).probabilities(scores)
    np.testing.assert_allclose(FITS[method](other, y).probabilities(other), p, atol=2e-4)


@EVERY
@given(seed=st.integers(0, 10**6), n=st.integers(5, 80))
def test_of_two_classes_the_higher_score_is_the_likelier(method, seed, n) -> None:
    """Never less likely by a higher difference, whatever the rows were."""
    scores, y = scores_of(n, 2, seed)
    y = np.random.default_rng(seed).permutation(y) if seed % 2 else y
    found = FITS[method](scores, y)
    asked = np.column_stack([np.zeros(50), np.linspace(-9, 9, 50)])
    assert (np.diff(found.probabilities(asked)[:, 1]) >= -1e-15).all()


def test_log_odds_are_those_of_the_softmax_and_do_not_cancel() -> None:
    """Against logarithms of sums, class by class; far from even they stay exact."""
    scores = np.random.default_rng(0).normal(size=(40, 5)) * np.logspace(-2, 3, 40)[:, None]
    rest = [logsumexp(np.delete(scores / 0.7, k, axis=1), axis=1) for k in range(5)]
    np.testing.assert_allclose(
        log_odds(scores, 0.7), scores / 0.7 - np.transpose(rest), rtol=1e-9, atol=1e-9
    )
    two = log_odds(scores[:, :2], 0.7)
    np.testing.assert_allclose(two[:, 0], (scores[:, 1] - scores[:, 0]) / 0.7)


def test_sigmoids_of_slope_one_are_the_temperature() -> None:
    """The one is a special case of the other: of two classes to the bit's neighbour, of more, too,
    as shares that sum to 1 are not changed by bringing them to 1."""
    for n_classes in (2, 4):
        scores, _ = scores_of(50, n_classes, 1)
        n_maps = n_classes if n_classes > 2 else 1
        plain = Sigmoid(0.6, (1.0,) * n_maps, (0.0,) * n_maps)
        expected = Temperature(0.6).probabilities(scores)
        np.testing.assert_allclose(plain.probabilities(scores), expected, atol=1e-14)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_two_classes_are_calibrated_as_by_scikit_learn(method, scale) -> None:
    """`CalibratedClassifierCV` on held-out rows of a fitted classifier: equal probabilities."""
    rng = np.random.default_rng(4)
    y = np.arange(700) % 2
    X = scale * (rng.normal(size=(700, 5)) + 0.7 * y[:, None])
    model = LogisticRegression(C=1e-3 / scale**2).fit(X[:200], y[:200])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method=method)
    theirs.fit(X[200:], y[200:])
    scores = as_columns(model.decision_function(X))
    ours = FITS[method](scores[200:], y[200:])
    # Where a step is flat at 0 or 1, ours stays between Platt's targets.
    tolerance = 1e-5 if method == "sigmoid" else 1 / 128
    np.testing.assert_allclose(
        ours.probabilities(scores), theirs.predict_proba(X), atol=tolerance, rtol=1e-4
    )


def test_every_sigmoid_is_the_minimum_of_a_plain_search() -> None:
    """Of five classes each against the rest, on Platt's targets."""
    scores, y = scores_of(300, 5, 2, 4.0)
    found = fit_sigmoid(scores, y)
    odds = log_odds(scores, found.temperature)
    for k in range(5):
        inside = y == k
        target = np.where(
            inside, (inside.sum() + 1) / (inside.sum() + 2), 1 / ((~inside).sum() + 2)
        )

        def loss(w, x=odds[:, k], target=target):
            margin = w[0] * x + w[1]
            return (np.logaddexp(0, margin) - target * margin).mean()

        plain = minimize(loss, (0.5, 0.0), method="BFGS", options={"gtol": 1e-8})
        assert (found.slopes[k], found.intercepts[k]) == (
            pytest.approx(plain.x[0], abs=1e-4),
            pytest.approx(plain.x[1], abs=1e-4),
        )


def test_isotonic_maps_are_those_of_scikit_learn_between_platt_s_targets() -> None:
    """The nearest rising map of every class, then brought to sum 1."""
    scores, y = scores_of(400, 3, 3)
    found = fit_isotonic(scores, y)
    odds = log_odds(scores, found.temperature)
    shares = np.empty((400, 3))
    for k in range(3):
        inside = (y == k).astype(float)
        low, high = 1 / ((1 - inside).sum() + 2), (inside.sum() + 1) / (inside.sum() + 2)
        shares[:, k] = IsotonicRegression(y_min=low, y_max=high).fit_transform(odds[:, k], inside)
    expected = shares / shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities(scores), expected, atol=2e-6)


def test_scores_that_say_nothing_or_the_contrary_give_the_shares() -> None:
    """A slope is not negative: three of four rows are of the class, and so is the probability."""
    scores = np.column_stack([np.zeros(400), np.tile([0.0, 1.0, 0.1, 0.2], 100)])
    y = np.tile([1, 0, 1, 1], 100)
    found = fit_sigmoid(scores, y)
    assert found.slopes == (0.0,)
    np.testing.assert_allclose(found.probabilities(scores)[:, 1], 0.75, atol=0.01)


def test_a_map_that_is_never_wrong_claims_what_its_rows_bear() -> None:
    """Twenty rows, all right: 11/12 at most, as by the rule of succession."""
    scores = np.column_stack([np.zeros(20), np.repeat([-1.0, 1.0], 10)])
    p = fit_isotonic(scores, np.repeat([0, 1], 10)).probabilities(100 * scores)
    assert p.max() == pytest.approx(11 / 12, abs=1e-5)


def test_equal_steps_are_told_apart_by_the_score() -> None:
    """The label is the likeliest class; where maps are level it is that of the higher score."""
    level = Isotonic(1.0, ((0.0,),) * 3, ((0.3,),) * 3)
    scores = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.1]])
    p = level.probabilities(scores)
    np.testing.assert_allclose(p, 1 / 3, atol=1e-6)
    np.testing.assert_array_equal(p.argmax(axis=1), scores.argmax(axis=1))


@given(steps=st.lists(st.floats(0, 1), min_size=1, max_size=2000), seed=st.integers(0, 99))
def test_a_thinned_map_is_small_and_near(steps, seed) -> None:
    """256 points at most, the ends among them, and nowhere further than 1/128 from what it was."""
    values = np.sort(steps)
    x = np.sort(np.random.default_rng(seed).normal(size=len(values)))
    kept = thinned(values)
    assert len(kept) <= MOST_KNOTS
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    asked = np.linspace(-4, 4, 400)
    apart = np.interp(asked, x, values) - np.interp(asked, x[kept], values[kept])
    assert np.abs(apart).max() <= 1 / 128 + 1e-12


@EVERY
@pytest.mark.parametrize("n_classes", [2, 4])
def test_plain_values_give_the_calibrator_back(method, n_classes) -> None:
    """Through JSON, to the same bits."""
    scores, y = scores_of(300, n_classes, 5)
    found = FITS[method](scores, y)
    assert read_calibrator(json.loads(json.dumps(found.to_json())), n_classes) == found


SIGMOID = {"method": "sigmoid", "temperature": 0.5, "slopes": [1.0], "intercepts": [0.1]}
ISOTONIC = {
    "method": "isotonic",
    "temperature": 0.5,
    "odds": [[-1.0, 1.0]],
    "values": [[0.1, 0.9]],
}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"method": "temperature"},
        {**SIGMOID, "method": "beta"},
        {**SIGMOID, "method": []},
        {**SIGMOID, "temperature": 0},
        {**SIGMOID, "temperature": True},
        {**SIGMOID, "temperature": 10**400},
        {**SIGMOID, "temperature": float("nan")},
        {**SIGMOID, "slopes": [-1.0]},
        {**SIGMOID, "slopes": ["1"]},
        {**SIGMOID, "slopes": [1.0, 1.0]},
        {**SIGMOID, "slopes": []},
        {**SIGMOID, "slopes": 1.0},
        {**SIGMOID, "slopes": [float("inf")]},
        {**SIGMOID, "intercepts": [10**400]},
        {**SIGMOID, "intercepts": None},
        {**ISOTONIC, "odds": [[1.0, -1.0]]},
        {**ISOTONIC, "odds": [[1.0, 1.0]]},
        {**ISOTONIC, "odds": [[-1.0, 1.0, 2.0]]},
        {**ISOTONIC, "odds": [[-1.0, 1.0], [-1.0, 1.0]]},
        {**ISOTONIC, "odds": [[]], "values": [[]]},
        {**ISOTONIC, "odds": "ab"},
        {**ISOTONIC, "values": [[0.9, 0.1]]},
        {**ISOTONIC, "values": [[0.0, 0.9]]},
        {**ISOTONIC, "values": [[0.1, 1.0]]},
        {**ISOTONIC, "values": [[0.1, float("nan")]]},
        {**ISOTONIC, "values": None},
        {
            **ISOTONIC,
            "odds": [[float(i) for i in range(MOST_KNOTS + 1)]],
            "values": [[0.5] * (MOST_KNOTS + 1)],
        },
    ],
)
def test_plain_values_that_are_amiss_are_not_believed(value) -> None:
    """Of another kind, size, order or range: None, and no exception."""
    assert read_calibrator(SIGMOID, 2) == Sigmoid(0.5, (1.0,), (0.1,))
    assert read_calibrator(ISOTONIC, 2) == Isotonic(0.5, ((-1.0, 1.0),), ((0.1, 0.9),))
    assert read_calibrator(value, 2) is None
