"""The curve of accuracy by images learnt on, and what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.evaluation.learning_curve import (
    CurvePoint,
    LearningCurve,
    _drawn,
    learning_curve,
)
from featpipe.heads import head_spec
from featpipe.model_selection import make_folds


def blobs(n: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    centres = rng.normal(size=(3, 20))
    X = centres[y] + spread * rng.normal(size=(n, 20))
    return X.astype(np.float32), y.astype(np.int64)


def test_more_images_help_where_they_do() -> None:
    """On hard blobs accuracy rises with every doubling; the last point has all images."""
    X, y = blobs(1200, 3.0)
    split = [(np.arange(600), np.arange(600, 1200))]
    spec = head_spec("ridge")
    found = learning_curve(spec, {"alpha": 1.0}, X, y, np.arange(1200), split)
    assert found is not None
    assert [point.images for point in found.points] == [18, 36, 75, 150, 300, 600]
    assert [point.draws for point in found.points] == [4, 4, 4, 4, 4, 1]
    assert found.points[-1].mean > found.points[0].mean + 0.1
    pipeline = spec.fit({"alpha": 1.0}, X[:600], y[:600], 0)
    assert found.points[-1].mean == pytest.approx(np.mean(pipeline.predict(X[600:]) == y[600:]))
    assert found.gain == pytest.approx(100 * (found.points[-1].mean - found.points[-2].mean))


def test_cross_validation_measures_every_image() -> None:
    """Without a split each fold is measured on by heads of the others; knn asks for fewer."""
    X, y = blobs(90, 1.0)
    folds = make_folds(y, np.arange(90), 3, 0, ("a", "b", "c"))
    found = learning_curve(head_spec("knn"), {"n_neighbors": 30}, X, y, np.arange(90), folds)
    assert found is not None
    assert found.points[-1].images == 60


def test_too_few_images_have_no_curve() -> None:
    """Where a class cannot be halved there is none."""
    X, y = blobs(9, 1.0)
    split = [(np.arange(6), np.arange(6, 9))]
    assert learning_curve(head_spec("ridge"), {"alpha": 1.0}, X, y, np.arange(9), split) is None


def points(*accuracies: float) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(50 * 2**i, 1, a, a, a) for i, a in enumerate(accuracies))


def test_the_words_are_those_of_the_interval() -> None:
    """Helps, hardly helps, cannot be told: whole sentences."""
    assert LearningCurve(points(0.7, 0.8), 10.0, (4.0, 15.0)).words == (
        "more labels would probably help: going from 50 to 100 images brought +10.0 points (+4.0 "
        "to +15.0); twice as many again may bring about as much, or a little less"
    )
    assert LearningCurve(points(0.8, 0.8), 0.0, (-0.6, 0.7)).words == (
        "more labels of this kind would hardly help: going from 50 to 100 images brought +0.0 "
        "points (-0.6 to +0.7)"
    )
    assert LearningCurve(points(0.8, 0.81), 1.0, (-2.0, 4.0)).words == (
        "more labels may help or not, these images cannot tell: going from 50 to 100 images "
        "brought +1.0 points (-2.0 to +4.0)"
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.25]), st.integers(1, 3))
def test_draws_keep_units_whole_and_lie_in_one_another(seed: int, share: float, size: int) -> None:
    """A unit is drawn whole or not at all; what a half holds, all hold, and a quarter less."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), 12 * size)
    units = np.repeat(np.arange(36), size)
    fit = rng.permutation(len(y))
    chosen = _drawn(fit, y, units, share, np.random.default_rng([seed, 0]))
    smaller = _drawn(fit, y, units, share / 2, np.random.default_rng([seed, 0]))
    assert set(smaller) <= set(chosen) <= set(fit)
    for unit in np.unique(units[chosen]):
        assert set(np.flatnonzero(units == unit)) <= set(chosen)
    per_class = [len(np.unique(units[chosen][y[chosen] == k])) for k in range(3)]
    assert per_class == [max(2, round(share * 12))] * 3
