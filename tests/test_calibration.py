"""One temperature: it keeps the labels, lowers the held-out loss, and stays finite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from featpipe.calibration import as_columns, fit_temperature, log_losses, to_probabilities


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
