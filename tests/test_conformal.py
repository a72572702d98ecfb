"""Sets of labels: they hold the true one as often as was promised, and no more than they must."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from test_persistence import AGAIN, edit, head
from vectors import make_store, small

from featpipe.conformal import MOST, MOST_IN_ALL, Conformal, fit_conformal, within
from featpipe.errors import HeadError
from featpipe.heads import load_head, save_head
from featpipe.training import fit

COVERAGES = (0.8, 0.9, 0.95)


def drawn(n: int, n_classes: int, seed: int, decimals: int = 12):
    """Return probabilities and classes that belong to them, most classes rare."""
    rng = np.random.default_rng(seed)
    y = rng.choice(n_classes, n, p=np.arange(1, n_classes + 1) / sum(range(n_classes + 1)))
    scores = rng.normal(size=(n, n_classes)) + 2 * np.eye(n_classes)[y]
    p = np.exp(scores)
    return (p / p.sum(axis=1, keepdims=True)).round(decimals), y


def covered(found: Conformal, p, y, coverage: float, *, per_class: bool = False):
    inside = within(p, found.limits(coverage, per_class=per_class))
    return inside[np.arange(len(y)), y]


@pytest.mark.parametrize("decimals", [12, 1], ids=["all different", "many ties"])
@pytest.mark.parametrize("coverage", COVERAGES)
def test_coverage_is_what_was_promised(coverage: float, decimals: int) -> None:
    """Over 400 draws of 60 images to score and 50 new ones: no less than promised, and, where no
    two scores are equal, no more than 1 / 61 above it."""
    hits = 0
    for seed in range(400):
        p, y = drawn(110, 3, seed, decimals)
        hits += covered(
            fit_conformal(p[:60], y[:60], np.arange(60)), p[60:], y[60:], coverage
        ).sum()
    # Images of one draw share its scores: the spread of a draw's coverage is that of a beta.
    spread = math.sqrt(coverage * (1 - coverage) * (1 / 62 + 1 / 50) / 400)
    rate = hits / (400 * 50)
    assert rate > coverage - 4 * spread
    if decimals == 12:
        assert rate < coverage + 1 / 61 + 4 * spread


def test_each_class_has_the_coverage_where_that_is_asked_for() -> None:
    """Rare ones, too: of 40,000 images each class is covered within a point of the promise."""
    p, y = drawn(40_000, 4, 0)
    half = len(y) // 2
    found = fit_conformal(p[:half], y[:half], np.arange(half))
    each = covered(found, p[half:], y[half:], 0.9, per_class=True)
    for k in range(4):
        at = y[half:] == k
        n = int(at.sum())
        low, high = binom.ppf([0.0001, 0.9999], n, 0.9) / n
        assert low - 0.01 < each[at].mean() < high + 0.01


def test_a_class_that_is_worse_known_is_covered_less_unless_it_has_limits_of_its_own() -> None:
    """Class 1's images have half the evidence."""
    rng = np.random.default_rng(0)
    y = np.arange(8000) % 2
    odds = rng.normal(size=8000) + np.where(y == 1, 0.5, -3.0)
    p = np.column_stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))])
    found = fit_conformal(p[:4000], y[:4000], np.arange(4000))
    new, true = p[4000:], y[4000:]
    assert covered(found, new, true, 0.8)[true == 1].mean() < 0.7
    assert abs(covered(found, new, true, 0.8, per_class=True)[true == 1].mean() - 0.8) < 0.03


@given(st.integers(2, 5), st.integers(5, 60), st.integers(0, 2**16), st.booleans(), st.booleans())
def test_a_higher_promise_takes_no_label_away(
    n_classes: int, n: int, seed: int, per_class: bool, ties: bool
) -> None:
    """Sets grow with the coverage, with ties and without, and hold all where data are too few."""
    p, y = drawn(n, n_classes, seed, 1 if ties else 12)
    found = fit_conformal(p, y, np.arange(len(y)))
    sets = [within(p, found.limits(c, per_class=per_class)) for c in (0.05, 0.5, 0.8, 0.95, 0.999)]
    for smaller, larger in pairwise(sets):
        assert not (smaller & ~larger).any()
    assert sets[-1].all()


@given(st.integers(1, 40), st.floats(0.01, 0.99))
def test_the_limit_is_the_score_at_its_place(n: int, coverage: float) -> None:
    """Of n scores 1/n, 2/n … the one at place ⌈(n + 1) · coverage⌉, or none."""
    own = np.arange(1, n + 1) / n
    found = fit_conformal(
        np.column_stack([1 - own, own]), np.zeros(n, dtype=np.int64), np.arange(n)
    )
    place = math.ceil((n + 1) * coverage - 1e-9)
    expected = math.inf if place > n else place / n
    assert found.limits(coverage) == pytest.approx([expected, expected], rel=2e-6)


def test_images_of_few_groups_take_a_higher_place() -> None:
    """Ten groups of six images are ten cases, not sixty: ⌈11 · 0.8⌉ of 10, so 54 of 60 scores."""
    own = np.arange(1, 61) / 61
    p, y = np.column_stack([1 - own, own]), np.zeros(60, dtype=np.int64)
    assert fit_conformal(p, y, np.arange(60)).limits(0.8)[0] == pytest.approx(49 / 61, rel=2e-6)
    grouped = fit_conformal(p, y, np.repeat(np.arange(10), 6))
    assert grouped.limits(0.8) == pytest.approx([54 / 61, 54 / 61], rel=2e-6)
    assert grouped.limits(0.8, per_class=True)[0] == pytest.approx(54 / 61, rel=2e-6)
    assert np.isinf(grouped.limits(0.95)[0])


def test_groups_are_covered_as_promised() -> None:
    """Images of a group are much alike: images of new groups are covered, though there are ten.

    The promise is 0.9; as if all images came alone it would be missed.
    """
    rng = np.random.default_rng(0)
    covers, alone = [], []
    for _ in range(400):
        own, new = (1 / (1 + np.exp(-_grouped(rng, n))) for n in (10, 200))
        p, y = np.column_stack([1 - own, own]), np.zeros(len(own), dtype=np.int64)
        for units, found in ((np.repeat(np.arange(10), 20), covers), (np.arange(200), alone)):
            found.append(np.mean(new <= fit_conformal(p, y, units).limits(0.9)[0]))
    assert 0.9 < np.mean(covers) < 0.95
    assert np.mean(alone) < 0.89


def _grouped(rng: np.random.Generator, n_groups: int):
    return np.repeat(rng.normal(size=n_groups), 20) + 0.1 * rng.normal(size=20 * n_groups)


def test_of_very_many_scores_quantiles_are_kept_on_the_safe_side() -> None:
    """They are few, and sets by them are never smaller than by all, and hardly larger."""
    p, y = drawn(30_000, 3, 1)
    found = fit_conformal(p, y, np.arange(len(y)))
    assert [len(part) for part in found.scores] == [MOST] * 3
    assert sum(found.counts) == 30_000
    every = Conformal(
        tuple(tuple(np.sort(1 - p[y == k, k]).tolist()) for k in range(3)),
        found.counts,
        found.units,
        found.all_units,
    )
    for coverage in COVERAGES:
        few, all_of_them = found.limits(coverage)[0], every.limits(coverage)[0]
        assert all_of_them <= few < all_of_them + 0.01
    many = fit_conformal(
        np.full((2000, 1000), 0.001), np.repeat(np.arange(2), 1000), np.arange(2000)
    )
    assert max(len(part) for part in many.scores) == MOST_IN_ALL // 1000


def test_a_promise_must_be_a_share() -> None:
    """Neither 0 nor 1, which no data can keep, nor 90."""
    found = fit_conformal(*drawn(20, 2, 0), np.arange(20))
    for wrong in (0.0, 1.0, 90.0, math.nan):
        with pytest.raises(ValueError, match="coverage must lie between 0 and 1, not"):
            found.limits(wrong)


def test_it_is_read_as_it_was_written() -> None:
    """By way of plain values."""
    found = fit_conformal(*drawn(50, 3, 0), np.arange(50))
    assert Conformal.read(found.to_json(), 3) == found


GOOD = {"scores": [[0.1], [0.2]], "counts": [1, 1], "units": [1, 1], "all_units": 2}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        GOOD | {"scores": [[0.1]]},
        GOOD | {"scores": [[0.1], "ab"]},
        GOOD | {"counts": [1, True]},
        GOOD | {"counts": [1, 1.0]},
        GOOD | {"counts": [1, 10**400]},
        GOOD | {"counts": [1, 0]},
        GOOD | {"counts": [1]},
        GOOD | {"scores": [[0.1], []]},
        {"scores": [[], []], "counts": [0, 0], "units": [0, 0], "all_units": 0},
        GOOD | {"scores": [[0.2, 0.1], [0.2]], "counts": [2, 1]},
        GOOD | {"scores": [[math.nan], [0.2]]},
        GOOD | {"scores": [[-0.1], [0.2]]},
        GOOD | {"scores": [[0.1], [10**400]]},
        GOOD | {"scores": [[0.1], [2.0]]},
        GOOD | {"scores": [[0.1] * (MOST + 1), [0.2]], "counts": [5000, 1]},
        GOOD | {"scores": {"0": [0.1]}},
        GOOD | {"units": [1, 2]},
        GOOD | {"units": [1, 0]},
        GOOD | {"units": "11"},
        GOOD | {"all_units": 3},
        GOOD | {"all_units": 0},
        GOOD | {"all_units": "2"},
    ],
)
def test_what_is_amiss_is_not_read(value: object) -> None:
    """Whatever stands there, nothing but None comes of it."""
    assert Conformal.read(GOOD, 2) is not None
    assert Conformal.read(value, 2) is None


def test_a_fitted_head_makes_sets(tmp_path: Path) -> None:
    """Saved and loaded, too: the likeliest label first; all labels where nobody could promise."""
    X, labels = small(3, 8)
    store = make_store(tmp_path / "store", X, labels)
    made = fit(store, "ridge", check=False)
    made.save(tmp_path / "head")
    loaded = load_head(tmp_path / "head")
    assert loaded.conformal == made.conformal
    assert loaded.reference == made.reference
    assert made.reference is not None
    assert made.reference.n_images == 24
    sets = loaded.predict_sets(X, 0.9)
    assert sets == made.predict_sets(X, 0.9)
    assert np.mean([label in found for label, found in zip(labels, sets, strict=True)]) > 0.85
    for found, best in zip(loaded.predict_sets(X, 0.99), loaded.predict(X), strict=True):
        assert sorted(found) == sorted(made.classes)
        assert found[0] == best
    assert loaded.predict_sets(X, 0.9, per_class=True) != [tuple(made.classes)] * len(X)


def test_a_head_that_is_fitted_in_passes_makes_sets(tmp_path: Path) -> None:
    """Its scores are those of the images that have watched the passes, by the head itself."""
    X, labels = small(3, 24)
    store = make_store(tmp_path / "store", X, labels, splits=["train"] * 66 + ["test"] * 6)
    made = fit(store, "logreg", stream=True, check=False)
    assert made.conformal is not None
    assert made.reference is not None
    assert 0 < sum(made.conformal.counts) == made.reference.n_images < 66
    own = sorted(score for part in made.conformal.scores for score in part)
    p = made.predict_proba(X)
    places = [made.classes.index(label) for label in labels]
    every = 1 - p[np.arange(len(X)), places]
    assert all(np.isclose(every, score, rtol=1e-4, atol=1e-9).any() for score in own)
    assert len(made.predict_sets(X, 0.5)) == len(X)


@pytest.mark.parametrize("field", ["conformal", "reference"])
@pytest.mark.parametrize("value", [None, 1, {}, {"scores": 1, "counts": 1, "confidence": 1}])
def test_a_forged_entry_is_refused(field: str, value: object, tmp_path: Path) -> None:
    """Whatever a head's file says of its sets and its reference is looked at first."""
    save_head(head(), tmp_path / "head")
    edit(tmp_path / "head", lambda record: record.update({field: value}))
    with pytest.raises(HeadError) as error:
        load_head(tmp_path / "head")
    assert str(error.value) == (
        f"{tmp_path}/head/head.json is damaged (its field '{field}' is missing or amiss): {AGAIN}"
    )


def test_a_head_without_scores_says_so() -> None:
    """One of a former featpipe."""
    with pytest.raises(HeadError) as error:
        head().predict_sets(np.zeros((1, 6)))
    assert str(error.value) == (
        "the head has nothing to make sets of labels by, as a former featpipe fitted it: "
        "fit it again"
    )
