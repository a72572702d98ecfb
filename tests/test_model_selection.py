"""Folds that cut no unit, choices by held-out loss, and estimates that tuning cannot flatter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from vectors import small

from featpipe.errors import LabelError
from featpipe.heads import HEADS
from featpipe.model_selection import fit_tuned, make_folds, nested_probabilities, units_of

INSTEAD = "add images, or leave the class out"


@given(
    st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 3)), min_size=1, max_size=25)
)
def test_units_join_what_shares_a_key_or_a_group(rows) -> None:
    """Two rows are of one unit exactly when a chain of equal keys and groups leads across."""
    keys = [bytes([key]) for key, _ in rows]
    groups = np.array([None if g is None else str(g) for _, g in rows], dtype=object)
    units = units_of(keys, groups)
    linked = np.array(
        [
            [a == b or (a[1] is not None and a[1] == b[1]) or a[0] == b[0] for b in rows]
            for a in rows
        ]
    )
    for _ in rows:
        linked = linked @ linked
    np.testing.assert_array_equal(units[:, None] == units[None, :], linked)
    assert sorted(set(units)) == list(range(units.max() + 1))


def test_without_groups_equal_contents_are_the_units() -> None:
    """Keys alone; no rows have no units."""
    assert list(units_of([b"x", b"y", b"x"])) == [0, 1, 0]
    assert list(units_of([], np.empty(0, dtype=object))) == []


@given(
    sizes=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    n_splits=st.integers(2, 7),
    per_unit=st.integers(1, 3),
    seed=st.integers(0, 1000),
    least=st.sampled_from([1, 2]),
)
def test_folds_never_cut_a_unit_and_keep_every_class(
    sizes, n_splits, per_unit, seed, least
) -> None:
    """Every row is held out once; no unit is on both sides; every class stays to be learnt."""
    sizes = [size + least - 1 for size in sizes]
    y = np.repeat(np.arange(len(sizes)), np.array(sizes) * per_unit)
    units = np.arange(len(y)) // per_unit
    names = [f"c{k}" for k in range(len(sizes))]
    folds = make_folds(y, units, n_splits, seed, names, least=least)
    held = np.sort(np.concatenate([h for _, h in folds]))
    np.testing.assert_array_equal(held, np.arange(len(y)))
    assert 2 <= len(folds) <= max(n_splits, 3)
    for fit, out in folds:
        assert not set(units[fit]) & set(units[out])
        assert len(set(fit) | set(out)) == len(y)
        for k in range(len(sizes)):
            assert len(set(units[fit][y[fit] == k])) >= least


@given(seed=st.integers(0, 200))
def test_units_of_several_classes_stay_whole_too(seed) -> None:
    """A patient with healthy and ill images is on one side."""
    rng = np.random.default_rng(seed)
    y, units = rng.integers(0, 3, 60), rng.integers(0, 12, 60)
    assume(all(len(set(units[y == k])) > 1 for k in range(3)))
    folds = make_folds(y, units, 4, seed, ["a", "b", "c"])
    for fit, out in folds:
        assert not set(units[fit]) & set(units[out])
        assert set(y[fit]) == {0, 1, 2}


def test_folds_are_stratified_and_fewer_where_a_class_is_small() -> None:
    """Three images of the rare class: three folds, one of them in each."""
    y = np.repeat([0, 1], [30, 3])
    folds = make_folds(y, np.arange(33), 5, 0, ["a", "b"])
    assert [int(y[out].sum()) for _, out in folds] == [1, 1, 1]
    assert [len(out) for _, out in folds] == [11, 11, 11]


def test_the_seed_decides_the_folds() -> None:
    """Equal seeds give equal folds, other seeds others."""
    y = np.repeat([0, 1], 20)
    first, same, other = (
        [list(out) for _, out in make_folds(y, np.arange(40), 4, seed, ["a", "b"])]
        for seed in (0, 0, 1)
    )
    assert first == same != other


@pytest.mark.parametrize(
    ("y", "units", "message"),
    [
        (
            [0, 0, 1],
            [0, 1, 2],
            (
                f"class b\\n has a single distinct image, and cross-validation needs two at least: "
                f"{INSTEAD}"
            ),
        ),
        (
            [0, 0, 1, 1],
            [0, 1, 2, 2],
            (
                f"class b\\n has a single group of images, and cross-validation needs two at "
                f"least: {INSTEAD}"
            ),
        ),
        (
            [0, 1],
            [0, 1],
            (
                f"classes a, b\\n have a single distinct image, and cross-validation needs two at "
                f"least: {INSTEAD}"
            ),
        ),
    ],
)
def test_a_class_that_cannot_be_divided_is_named(y, units, message) -> None:
    """What is too few, of which class, and what to do."""
    with pytest.raises(LabelError) as caught:
        make_folds(np.array(y), np.array(units), 5, 0, ["a", "b\n"])
    assert str(caught.value) == message


def test_many_classes_that_cannot_be_divided_are_counted() -> None:
    """Five names, and how many more."""
    y = np.arange(8)
    with pytest.raises(LabelError) as caught:
        make_folds(y, y, 5, 0, list("abcdefgh"))
    assert str(caught.value) == (
        "classes a, b, c, d, e and 3 more have a single distinct image, and cross-validation needs "
        f"two at least: {INSTEAD}"
    )


def test_groups_that_cannot_be_divided_are_said() -> None:
    """Two groups that hold a class each, and one with both: no cut leaves both on both sides."""
    y = np.array([0, 1, 0, 1, 2, 2])
    units = np.array([0, 0, 1, 1, 0, 1])
    folds = make_folds(y, units, 2, 0, ["a", "b", "c"])
    assert len(folds) == 2
    crossed = np.array([0, 1, 1, 2, 2, 0])
    with pytest.raises(LabelError) as caught:
        make_folds(np.array([0, 0, 1, 1, 2, 2]), crossed, 2, 0, ["a", "b", "c"])
    assert str(caught.value) == (
        "the groups cannot be divided so that every class is on both sides: give more groups a "
        "class, or leave the groups out"
    )


def test_an_estimate_needs_three_images_of_a_class() -> None:
    """One to hold out, two to tune on; the message names the way round it."""
    X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    y = np.array([0] * 6 + [1] * 2)
    with pytest.raises(LabelError) as caught:
        nested_probabilities(HEADS["knn"], X, y, np.arange(8), n_splits=5, classes=["a", "rare"])
    assert str(caught.value) == (
        "class rare has fewer than three distinct images or groups, and without a split named test "
        "the estimate needs three at least: add images, or put some of every class into such a "
        "split"
    )
    y[5] = 1
    p = nested_probabilities(HEADS["knn"], X, y, np.arange(8), n_splits=2, classes=["a", "rare"])
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_tuning_takes_the_parameters_with_the_lowest_held_out_loss() -> None:
    """On real vectors: the chosen entry is near the best of its table, and is what was fitted."""
    X, labels = small(4, 12)
    y = np.unique(labels, return_inverse=True)[1]
    folds = make_folds(y, np.arange(len(y)), 3, 0, list("abcd"))
    calls: list[tuple[int, int]] = []
    found = fit_tuned(HEADS["ridge"], X, y, folds, on_fit=lambda *done: calls.append(done))
    losses = {entry["parameters"]["alpha"]: entry["log_loss"] for entry in found.table}
    assert list(losses) == [p["alpha"] for p in HEADS["ridge"].grid]
    assert losses[found.parameters["alpha"]] <= min(losses.values()) + 0.1
    assert found.pipeline[-1].alpha == found.parameters["alpha"]
    assert all(0.7 < entry["accuracy"] <= 1 for entry in found.table[-3:])
    assert calls == [(i + 1, len(calls)) for i in range(3 * len(HEADS["ridge"].grid))]


def test_without_tuning_the_default_is_fitted() -> None:
    """One entry in the table; the folds still serve the temperature."""
    X, labels = small(2, 12)
    y = np.unique(labels, return_inverse=True)[1]
    folds = make_folds(y, np.arange(len(y)), 3, 0, ["a", "b"])
    found = fit_tuned(HEADS["logreg"], X, y, folds, tune=False)
    assert found.parameters == HEADS["logreg"].default
    assert len(found.table) == 1
    assert found.calibrator.temperature > 0


@pytest.mark.parametrize("tune", [True, False])
def test_no_more_neighbours_are_asked_for_than_there_are_rows(tune: bool) -> None:
    """Six images, two folds: three neighbours at most, with tuning and without."""
    X, labels = small(2, 3)
    y = np.unique(labels, return_inverse=True)[1]
    folds = make_folds(y, np.arange(6), 2, 0, ["a", "b"])
    found = fit_tuned(HEADS["knn"], X, y, folds, tune=tune)
    assert found.parameters["n_neighbors"] <= min(len(fit) for fit, _ in folds)
    assert {e["parameters"]["n_neighbors"] for e in found.table} <= {1, 2, 3, 4}


@pytest.mark.parametrize("name", ["ridge", "knn", "centroid"])
def test_an_estimate_of_labels_drawn_by_lot_is_chance(name: str) -> None:
    """Real vectors, permuted labels: the nested estimate finds nothing, for tuning saw nothing."""
    X, labels = small(2, 45)
    y = np.unique(labels, return_inverse=True)[1]
    hits = []
    for seed in range(3):
        lots = np.random.default_rng(seed).permutation(y)
        p = nested_probabilities(
            HEADS[name], X, lots, np.arange(len(y)), n_splits=3, classes=["a", "b"], seed=seed
        )
        np.testing.assert_allclose(p.sum(axis=1), 1)
        hits += list(p.argmax(axis=1) == lots)
        # Calibration knows, too: the probabilities claim next to nothing.
        assert -np.log(p[np.arange(len(y)), lots]).mean() > 0.6
    # 270 fair coins stay below 0.6 with a probability above 0.999.
    assert np.mean(hits) < 0.6


def test_the_estimate_of_real_labels_is_not_chance_and_has_a_progress() -> None:
    """The same machinery on the true labels; every fit is reported, in order."""
    X, labels = small(2, 12)
    y = np.unique(labels, return_inverse=True)[1]
    calls: list[tuple[int, int]] = []
    p = nested_probabilities(
        HEADS["centroid"],
        X,
        y,
        np.arange(24),
        n_splits=3,
        classes=["a", "b"],
        on_fit=lambda *done: calls.append(done),
    )
    assert np.mean(p.argmax(axis=1) == y) > 0.9
    assert calls == [(i, 9) for i in range(1, 10)]


def test_progress_ends_at_the_total_although_the_grid_is_left_early() -> None:
    """Rows that are told apart with ease: not every C is tried, and the bar still fills."""
    X, labels = small(2, 12)
    y = np.unique(labels, return_inverse=True)[1]
    folds = make_folds(y, np.arange(24), 3, 0, ["a", "b"])
    calls: list[tuple[int, int]] = []
    found = fit_tuned(HEADS["logreg"], X, y, folds, on_fit=lambda *done: calls.append(done))
    n_values = len(HEADS["logreg"].grid)
    assert 3 <= len(found.table) < n_values
    assert calls[-1] == (3 * n_values, 3 * n_values)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    tried = [entry["parameters"] for entry in found.table]
    assert tried == list(HEADS["logreg"].grid[: len(tried)])


@pytest.mark.parametrize("name", ["logreg", "svm"])
def test_leaving_the_grid_early_does_not_change_the_choice(name, monkeypatch) -> None:
    """Real vectors, harder by noise: all values of C tried give the same one."""
    X, labels = small(6, 25)
    X = X + np.random.default_rng(0).normal(0, 2 * X.std(), X.shape).astype(np.float32)
    y = np.unique(labels, return_inverse=True)[1]
    folds = make_folds(y, np.arange(len(y)), 3, 0, list("abcdef"))
    early = fit_tuned(HEADS[name], X, y, folds)
    monkeypatch.setattr("featpipe.model_selection.tuning._has_risen", lambda _: False)
    monkeypatch.setattr("featpipe.solvers.linear._is_below", lambda *_: False)
    late = fit_tuned(HEADS[name], X, y, folds)
    assert len(early.table) < len(late.table) == len(HEADS[name].grid)
    assert early.parameters == late.parameters
    assert early.table == late.table[: len(early.table)]


def test_the_lowest_held_out_loss_is_taken_and_of_equals_the_simplest() -> None:
    """The chosen parameters have the lowest log loss of the table, and stand first among equals."""
    rng = np.random.default_rng(0)
    y = np.arange(60, dtype=np.int64) % 2
    X = (rng.normal(size=(60, 8)) + y[:, None]).astype(np.float32)
    folds = make_folds(y, np.arange(60), 3, 0, ("a", "b"))
    spec = HEADS["logreg"]
    found = fit_tuned(spec, X, y, folds)
    losses = [entry["log_loss"] for entry in found.table]
    assert found.parameters == found.table[losses.index(min(losses))]["parameters"]
    twice = replace(spec, grid=(spec.grid[3], spec.grid[3], spec.grid[3]))
    assert fit_tuned(twice, X, y, folds).parameters == spec.grid[3]
