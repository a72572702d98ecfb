"""How strange a vector is: the score by its formula, and p-values that keep their promise."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from vectors import demo_vectors

from featpipe.model_selection import units_of
from featpipe.ood import (
    MOST_CALIBRATION,
    MOST_ROWS,
    Novelty,
    _Hiding,
    fit_novelty,
    normalised,
    rows_a_class,
)


def clusters(counts: tuple[int, ...], dimension: int = 16, seed: int = 0):
    """Return vectors about a centre for each class, and their classes, shuffled."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    centres = np.random.default_rng(99).normal(size=(len(counts), dimension))
    return (centres[y] + 0.5 * rng.normal(size=(len(y), dimension))).astype(np.float32), y


def fitted(X, y, units=None, seed: int = 0) -> Novelty:
    units = np.arange(len(y)) if units is None else units
    found = fit_novelty(X, y, units, n_classes=int(y.max()) + 1, seed=seed)
    assert found is not None
    return found


def by_hand(X, y, x) -> float:
    """Return the score of one vector as docs/unknown.md writes it."""
    Z = X.astype(np.float64) / np.linalg.norm(X.astype(np.float64), axis=1)[:, None]
    x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64))
    near, means = [], []
    for k in np.unique(y):
        near.append(np.mean(np.sort(1 - Z[y == k] @ x)[:3]))
        total = Z[y == k].sum(axis=0)
        means.append(1 - total @ x / np.linalg.norm(total))
    first, second = np.sort(np.maximum(near, 1e-4))[:2]
    return np.log(max(min(means), 1e-4)) + 2 * (np.log(first) - np.log(second))


@pytest.mark.parametrize("counts", [(9, 9), (12, 2, 1, 7), (3, 40)])
def test_the_score_is_that_of_the_formula(counts) -> None:
    """Also where a class has fewer than three rows."""
    X, y = clusters(counts)
    new = np.random.default_rng(5).normal(size=(20, 16)).astype(np.float32)
    expected = [by_hand(X, y, x) for x in new]
    np.testing.assert_allclose(fitted(X, y).scores(new), expected, rtol=1e-5)


def test_left_out_images_score_as_if_their_unit_had_never_been_there() -> None:
    """A unit of one image, of several, and one that lies in two classes."""
    X, y = clusters((20, 15, 9))
    units = np.arange(len(y))
    units[[3, 8, 30]] = 3
    assert len(set(y[units == 3])) > 1
    kept = np.argsort(y, kind="stable")
    novelty = Novelty(normalised(X[kept]), (20, 15, 9), np.zeros(1))
    found = _Hiding(novelty, units[kept]).scores(X, units)
    for i in range(len(y)):
        rest = units != units[i]
        assert found[i] == pytest.approx(by_hand(X[rest], y[rest], X[i]), abs=1e-5)
    np.testing.assert_allclose(fitted(X, y, units).calibration, np.sort(found), atol=1e-6)


numbers = st.floats(-4, 4).map(lambda x: round(x, 3))


@given(
    st.lists(numbers, min_size=1, max_size=30).map(sorted),
    st.lists(numbers, min_size=1, max_size=30).map(sorted),
)
def test_p_values_are_shares_of_known_images(calibration, scores) -> None:
    """In (0, 1], never rising with the score, and counted with those that are equal."""
    novelty = Novelty(np.eye(2, dtype=np.float32), (1, 1), np.array(calibration))
    p = novelty.p_values_of(np.array(scores))
    assert ((p > 0) & (p <= 1)).all()
    assert (np.diff(p) <= 0).all()
    assert p.min() >= novelty.smallest_p == 1 / (len(calibration) + 1)
    for score, value in zip(scores, p, strict=True):
        as_high = sum(c >= score for c in calibration)
        assert value == pytest.approx((1 + as_high) / (1 + len(calibration)))


@lru_cache
def example() -> Novelty:
    return fitted(*clusters((30, 20, 4)))


@given(
    arrays(np.float32, (3, 16), elements=st.floats(-100, 100, width=32)),
    st.floats(1e-3, 1e6),
)
def test_any_finite_vector_has_a_score_that_knows_no_length(X, factor) -> None:
    """Zeros, too; and a vector scores as any multiple of it."""
    found = example().scores(X)
    assert np.isfinite(found).all()
    sound = np.linalg.norm(X.astype(np.float64), axis=1) > 1e-3
    np.testing.assert_allclose(
        example().scores(X * np.float64(factor))[sound], found[sound], atol=1e-4
    )
    assert ((example().p_values(X) > 0) & (example().p_values(X) <= 1)).all()


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_known_images_are_rejected_as_often_as_promised(share: float) -> None:
    """New vectors of the same kind, thirty data sets: within four standard errors of the share."""
    below = []
    for seed in range(30):
        X, y = clusters((60, 50, 40), seed=seed)
        new, _ = clusters((40, 33, 27), seed=1000 + seed)
        below.append((fitted(X, y).p_values(new) <= share).mean())
    error = np.std(below, ddof=1) / len(below) ** 0.5
    assert abs(np.mean(below) - share) < 4 * error + 1 / 151


def test_photographs_of_something_else_are_strange() -> None:
    """Pictures of surfaces by the built-in backbone: a surface that was never shown stands out.

    Of each surface in turn; known ones are the images of the split that is measured on.
    """
    X, labels, splits = demo_vectors()
    names, y = np.unique(labels, return_inverse=True)
    train = np.array(splits) == "train"
    for k in range(len(names)):
        fit_on = np.flatnonzero(train & (y != k))
        classes = np.unique(y[fit_on], return_inverse=True)[1]
        p = fitted(X[fit_on], classes).p_values(X)
        assert np.median(p[y == k]) < np.median(p[~train & (y != k)])


def test_what_is_kept_is_bounded_and_so_is_what_is_read() -> None:
    """Twenty thousand rows: 2,048 are kept, 999 more are looked at, whole classes never."""

    class Counted:
        read = 0

        def __init__(self, X) -> None:
            self.X = X

        def __getitem__(self, positions):
            Counted.read += len(positions)
            return self.X[positions]

    X, y = clusters((15_000, 4_000, 980, 20), dimension=8)
    found = fit_novelty(Counted(X), y, np.arange(len(y)), n_classes=4)
    assert found is not None
    assert found.counts == (512, 512, 512, 20)
    assert found.rows.shape == (1556, 8)
    assert found.rows.dtype == np.float32
    assert len(found.calibration) == MOST_CALIBRATION
    assert Counted.read == 1556 + MOST_CALIBRATION


def test_classes_share_the_rows_and_each_has_one() -> None:
    """2,048 rows in all, or one a class where there are more of them."""
    assert [rows_a_class(k) for k in (2, 10, 1500, MOST_ROWS, 10_000)] == [1024, 204, 1, 1, 1]
    X, y = clusters((1, 2) * 1500, dimension=4)
    found = fitted(X, y)
    assert len(found.rows) == 3000
    # A class that has but one row has none left without it.
    assert len(found.calibration) == MOST_CALIBRATION
    assert np.isfinite(found.calibration).all()


def test_the_same_data_and_seed_give_the_same() -> None:
    """To the last bit; another seed draws other rows where not all are kept."""
    X, y = clusters((3000, 300), dimension=4)
    assert fitted(X, y).digest == fitted(X, y).digest
    assert fitted(X, y, seed=1).digest != fitted(X, y).digest


def test_the_digest_knows_rows_counts_and_calibration() -> None:
    """Whatever decides a score or a p-value."""
    one = example()
    others = [
        Novelty(one.rows[::-1].copy(), one.counts, one.calibration),
        Novelty(one.rows, (29, 21, 4), one.calibration),
        Novelty(one.rows, one.counts, one.calibration[1:]),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 4


def test_copies_do_not_vouch_for_one_another() -> None:
    """Every image is there twice: with the copies as units, as many known ones are rejected."""
    X, y = clusters((60, 50))
    twice, classes = np.concatenate([X, X]), np.concatenate([y, y])
    keys = [bytes([i]) * 16 for i in range(len(y))] * 2
    honest = fitted(twice, classes, units_of(keys, None))
    naive = fitted(twice, classes)
    new, _ = clusters((300, 250), seed=7)
    assert (honest.p_values(new) <= 0.2).mean() < 0.3
    assert (naive.p_values(new) <= 0.2).mean() > 0.4


def test_without_a_second_unit_nothing_can_be_left_out() -> None:
    """One image a class, or one group a class: there is nothing to compare with."""
    X, y = clusters((4, 4))
    assert fit_novelty(X, y, y, n_classes=2) is None
    assert fit_novelty(X[:2], np.array([0, 1]), np.array([0, 1]), n_classes=2) is None
    # Of the class that has two, images can be left out.
    units = np.where(y == 0, 0, np.arange(8))
    found = fitted(X, y, units)
    assert len(found.calibration) == 4
