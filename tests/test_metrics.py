"""Figures of merit against scikit-learn's and by hand; what intervals are made of."""

from __future__ import annotations

import tracemalloc
import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn import metrics as sk

from featpipe.metrics import (
    compute_metrics,
    confidence_intervals,
    expected_calibration_error,
    mcnemar,
    paired_difference,
    reliability,
    sign_flips,
)
from featpipe.metrics.classification import _terms
from featpipe.metrics.intervals import wilson


def sample(n: int, n_classes: int, seed: int, sharpness: float = 2.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    scores = sharpness * rng.normal(size=(n, n_classes))
    scores[np.arange(n), y] += 1.5
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return y, p / p.sum(axis=1, keepdims=True)


def names(n_classes: int) -> list[str]:
    return [f"class {k}" for k in range(n_classes)]


@given(n=st.integers(1, 60), n_classes=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
def test_every_figure_is_that_of_scikit_learn(n, n_classes, seed) -> None:
    """Accuracy, balanced accuracy, macro-F1, log loss, top-5, confusion, per-class figures."""
    y, p = sample(n, n_classes, seed)
    found = compute_metrics(y, p, names(n_classes), majority=0)
    predicted, every, occurring = p.argmax(axis=1), np.arange(n_classes), np.unique(y)

    assert found.n_samples == n
    assert found.accuracy == pytest.approx(sk.accuracy_score(y, predicted))
    with warnings.catch_warnings():
        # scikit-learn warns of a predicted class that never occurs; it leaves it out, as we do.
        warnings.simplefilter("ignore", UserWarning)
        assert found.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(y, predicted))
    f1 = sk.f1_score(y, predicted, labels=occurring, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(f1)
    assert found.log_loss == pytest.approx(sk.log_loss(y, p, labels=every))
    assert found.confusion == tuple(map(tuple, sk.confusion_matrix(y, predicted, labels=every)))
    if n_classes > 5:
        top5 = sk.top_k_accuracy_score(y, p, k=5, labels=every)
        assert found.top5_accuracy == pytest.approx(top5)
    else:
        assert found.top5_accuracy is None
    table = sk.precision_recall_fscore_support(y, predicted, labels=every, zero_division=0)
    ours = [[c.precision, c.recall, c.f1, c.support] for c in found.per_class]
    np.testing.assert_allclose(ours, np.transpose(table))
    assert [c.label for c in found.per_class] == names(n_classes)


def test_certainty_about_the_wrong_class_costs_much_and_not_infinitely() -> None:
    """A probability of 0 for the true class counts as the smallest double above 1 - 1."""
    p = np.array([[1.0, 0.0], [1.0, 0.0]])
    y = np.array([0, 1])
    assert compute_metrics(y, p, ["a", "b"], majority=0).log_loss == pytest.approx(
        -np.log(np.finfo(float).eps) / 2
    )
    assert compute_metrics(y, p, ["a", "b"], majority=0).log_loss == pytest.approx(
        sk.log_loss(y, p)
    )


def test_the_calibration_error_is_the_one_computed_by_hand() -> None:
    """Two bins: (0.95, 0.95, one wrong) and (0.6, right): (2 × |0.95 - 0.5| + 0.4) / 3."""
    p = np.array([[0.95, 0.05], [0.05, 0.95], [0.4, 0.6]])
    y = np.array([0, 0, 1])
    expected = (2 * 0.45 + 0.4) / 3
    assert expected_calibration_error(y, p) == pytest.approx(expected)
    assert compute_metrics(y, p, ["a", "b"], majority=0).calibration_error == pytest.approx(
        expected
    )


def test_reliability_fills_the_bins_of_the_top_probability() -> None:
    """A probability of 1 falls into the last bin; empty bins hold zeros; shares sum to 1."""
    p = np.array([[1.0, 0.0], [0.5, 0.5], [0.55, 0.45]])
    edges, confidence, accuracy, share = reliability(np.array([0, 1, 0]), p, n_bins=10)
    np.testing.assert_allclose(edges, np.arange(10) / 10)
    np.testing.assert_allclose(confidence, [0, 0, 0, 0, 0, 0.525, 0, 0, 0, 1])
    np.testing.assert_allclose(accuracy, [0, 0, 0, 0, 0, 0.5, 0, 0, 0, 1])
    np.testing.assert_allclose(share, [0, 0, 0, 0, 0, 2 / 3, 0, 0, 0, 1 / 3])


def test_the_first_of_equal_probabilities_is_the_label_and_counts_among_the_five() -> None:
    """With seven equal probabilities the label is class 0, and classes 0 to 4 are the top five."""
    y = np.arange(7)
    found = compute_metrics(y, np.full((7, 7), 1 / 7), names(7), majority=3)
    assert found.accuracy == pytest.approx(1 / 7)
    assert found.top5_accuracy == pytest.approx(5 / 7)
    assert found.majority == ("class 3", pytest.approx(1 / 7))


@given(n=st.integers(1, 40), n_classes=st.sampled_from([2, 3, 7]), seed=st.integers(0, 10**6))
def test_the_bootstrap_is_the_slow_one_on_the_same_resamples(n, n_classes, seed) -> None:
    """Figures of a vector of counts are scikit-learn's on rows that are repeated so often."""
    y, p = sample(n, n_classes, seed)
    terms = _terms(y, p, n_classes)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=3)
    figures = terms.figures(counts.astype(float))
    for b, count in enumerate(counts):
        rows = np.repeat(np.arange(n), count)
        yb, pb = y[rows], p[rows]
        hard, occurring = pb.argmax(axis=1), np.unique(yb)
        slow = {
            "accuracy": sk.accuracy_score(yb, hard),
            "balanced_accuracy": np.mean([np.mean(hard[yb == k] == k) for k in occurring]),
            "macro_f1": sk.f1_score(yb, hard, labels=occurring, average="macro", zero_division=0),
            "log_loss": sk.log_loss(yb, pb, labels=np.arange(n_classes)),
            "calibration_error": expected_calibration_error(yb, pb),
        }
        if n_classes > 5:
            slow["top5_accuracy"] = sk.top_k_accuracy_score(
                yb, pb, k=5, labels=np.arange(n_classes)
            )
        assert {name: pytest.approx(values[b]) for name, values in figures.items()} == slow


def test_intervals_have_the_variance_of_the_resamples() -> None:
    """1,000 resamples with the seed's own draws; Wilson's interval of as many trials."""
    y, p = sample(60, 3, 5)
    hit = p.argmax(axis=1) == y
    # Units of two, of which both or neither are right: they vary as thirty rows do.
    order = np.argsort(~hit, kind="stable")
    y, p, hit = y[order], p[order], hit[order]
    draws = np.random.default_rng(7).multinomial(30, np.full(30, 1 / 30), size=1000)
    variance = (draws @ hit.reshape(30, 2).mean(axis=1) / 30).var() * 30 / 29
    expected = wilson(float(hit.mean()), variance, 30)
    found = confidence_intervals(_terms(y, p, 3), groups=np.arange(60) // 2, seed=7)
    assert found["accuracy"] == pytest.approx(expected)


def test_rows_that_agree_by_chance_do_not_make_certain() -> None:
    """Four patients with eight of ten right each: no resample differs, the rows still do."""
    hit = np.tile(np.arange(10) < 8, 4)
    y = np.tile([0, 1], 20)
    p = np.where((y[:, None] == [[0, 1]]) == hit[:, None], 0.9, 0.1)
    found = compute_metrics(y, p, ["a", "b"], majority=0, groups=np.arange(40) // 10)
    assert found.intervals["accuracy"] == pytest.approx(wilson(0.8, 0.8 * 0.2 / 40, 4))


def test_resamples_in_blocks_are_the_resamples_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little memory a block may take, the intervals stay the same."""
    y, p = sample(50, 4, 1)
    whole = confidence_intervals(_terms(y, p, 4), seed=3)
    monkeypatch.setattr("featpipe.metrics.bootstrap._AT_ONCE", 50 * 7)
    blocks = confidence_intervals(_terms(y, p, 4), seed=3)
    assert {name: pytest.approx(pair) for name, pair in whole.items()} == blocks


@pytest.mark.parametrize("n_classes", [2, 8])
def test_an_interval_contains_its_figure_and_is_narrower_for_more_rows(n_classes) -> None:
    """Means lie inside their interval; ten times the rows give about a third of the width."""
    few = compute_metrics(*sample(100, n_classes, 2), names(n_classes), majority=0)
    many = compute_metrics(*sample(1000, n_classes, 2), names(n_classes), majority=0)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss"):
        for found in (few, many):
            low, high = found.intervals[name]
            assert low < getattr(found, name) < high
        width_few, width_many = (np.diff(m.intervals[name])[0] for m in (few, many))
        assert width_many < 0.5 * width_few


def test_rows_of_one_group_widen_the_interval() -> None:
    """Ten copies of every row, as one group: the width is that of the rows without copies."""
    y, p = sample(60, 3, 4)
    y10, p10 = np.repeat(y, 10), np.repeat(p, 10, axis=0)
    groups = np.repeat(np.arange(60), 10)
    once = compute_metrics(y, p, names(3), majority=0).intervals["accuracy"]
    grouped = compute_metrics(y10, p10, names(3), majority=0, groups=groups)
    alone = compute_metrics(y10, p10, names(3), majority=0)
    assert grouped.intervals["accuracy"] == pytest.approx(once)
    assert np.diff(alone.intervals["accuracy"]) < 0.5 * np.diff(once)


def test_groups_may_be_names() -> None:
    """Groups are compared, never computed with: any values give the intervals of their ranks."""
    y, p = sample(40, 2, 0)
    numbers = np.arange(40) // 4
    named = np.array([f"patient {g:02d}" for g in numbers], dtype=object)
    by_number = compute_metrics(y, p, names(2), majority=0, groups=numbers).intervals
    assert compute_metrics(y, p, names(2), majority=0, groups=named).intervals == by_number


def test_one_row_is_measured() -> None:
    """A single image has figures; being right about it proves next to nothing."""
    found = compute_metrics(np.array([1]), np.array([[0.25, 0.75]]), ["a", "b"], majority=0)
    assert (found.accuracy, found.balanced_accuracy, found.macro_f1) == (1.0, 1.0, 1.0)
    assert found.intervals["accuracy"] == (pytest.approx(0.025), 1.0)
    assert found.majority == ("a", 0.0)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_and_all_wrong_get_the_exact_interval(right: bool) -> None:
    """40 of 40 or 0 of 40: Clopper and Pearson's interval, not one without width."""
    from scipy.stats import binomtest

    y = np.tile([0, 1], 20)
    p = np.where((y[:, None] == [[0, 1]]) == right, 0.9, 0.1)
    found = compute_metrics(y, p, ["a", "b"], majority=0)
    exact = binomtest(40 if right else 0, 40).proportion_ci(0.95, "exact")
    assert found.intervals["accuracy"] == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_the_exact_interval_counts_groups_not_rows() -> None:
    """Forty rows of four patients, all right: as sure as four trials make it."""
    y = np.tile([0, 1], 20)
    p = np.where(y[:, None] == [[0, 1]], 0.9, 0.1)
    found = compute_metrics(y, p, ["a", "b"], majority=0, groups=np.arange(40) // 10)
    assert found.intervals["accuracy"] == (pytest.approx(0.025 ** (1 / 4)), 1.0)


def test_json_has_plain_values_alone() -> None:
    """`to_json` can be written as it is, and holds every figure."""
    import json

    found = compute_metrics(*sample(20, 6, 0), names(6), majority=1)
    value = found.to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert list(value) == [
        "n_samples",
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "log_loss",
        "calibration_error",
        "top5_accuracy",
        "intervals_95",
        "majority_class",
        "per_class",
        "confusion_matrix",
    ]
    assert value["majority_class"] == {"label": "class 1", "accuracy": found.majority[1]}
    assert value["per_class"][2]["support"] == sum(value["confusion_matrix"][2])


def test_intervals_of_few_claim_little() -> None:
    """One group bounds nothing; two images of a rare class bound a mean over classes little."""
    y = np.array([0, 1] * 20)
    one = compute_metrics(
        y, np.tile([0.9, 0.1], (40, 1)), ["a", "b"], majority=0, groups=np.zeros(40, dtype=int)
    )
    assert one.intervals["accuracy"] == (0.0, 1.0)
    y = np.array([0] * 1000 + [1] * 2)
    rare = compute_metrics(y, np.eye(2)[y], ["a", "b"], majority=0)
    assert rare.intervals["accuracy"][0] > 0.99
    low, high = rare.intervals["balanced_accuracy"]
    assert low == pytest.approx((0.025 ** (1 / 1000) + 0.025**0.5) / 2)
    assert high == 1.0


def test_the_difference_is_paired() -> None:
    """Ten images that change sides both ways leave a wider interval than one that does."""
    before = np.zeros(200, bool)
    before[:100] = True
    one = before.copy()
    one[0] = False
    both = before.copy()
    both[:10], both[100:109] = False, True
    small, large = paired_difference(before, one), paired_difference(before, both)
    assert small[0] == large[0] == -0.5
    assert small[1][1] == 0.0
    assert small[1][1] - small[1][0] < (large[1][1] - large[1][0]) / 2


def test_no_change_is_no_certainty() -> None:
    """Where no image changes, the exact bound for that many images is the interval."""
    same = np.ones(153, bool)
    difference, (low, high) = paired_difference(same, same)
    assert difference == 0.0
    assert (low, high) == pytest.approx((-2.3822, 2.3822), abs=1e-4)


def test_images_of_one_unit_are_drawn_together() -> None:
    """Fifty copies of four images tell as much as four."""
    before = np.tile([True, True, False, True], 50)
    after = np.tile([True, False, False, True], 50)
    alone = paired_difference(before, after)
    together = paired_difference(before, after, np.tile(np.arange(4), 50))
    assert alone[0] == together[0] == -25.0
    assert together[1][1] - together[1][0] > 3 * (alone[1][1] - alone[1][0])


def test_the_bootstrap_is_that_of_single_images() -> None:
    """Drawing kinds of images is drawing images: the interval is that of the plain bootstrap."""
    rng = np.random.default_rng(3)
    before, after = rng.random(300) < 0.8, rng.random(300) < 0.8
    changes = after.astype(float) - before
    means = changes[rng.integers(0, 300, (10_000, 300))].mean(axis=1)
    _, interval = paired_difference(before, after)
    assert interval == pytest.approx(100 * np.quantile(means, (0.025, 0.975)), abs=0.4)


def test_many_images_are_compared_in_little_memory() -> None:
    """A million images take megabytes, not the gigabytes of as many draws of each."""
    before, after = np.ones(1_000_000, bool), np.ones(1_000_000, bool)
    after[:100] = False
    tracemalloc.start()
    difference, (low, high) = paired_difference(before, after)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert difference == pytest.approx(-0.01)
    assert low < -0.01 < high < 0
    assert peak < 200e6


def test_one_group_says_nothing_of_others() -> None:
    """All images belong to one patient."""
    before, after = np.array([True, False, False]), np.array([True, True, False])
    difference, interval = paired_difference(before, after, np.zeros(3, dtype=int))
    assert difference == pytest.approx(100 / 3)
    assert interval == (-100.0, 100.0)


def flags() -> st.SearchStrategy:
    pairs = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1)
    return pairs.map(lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True)))


@given(flags())
def test_exchanging_the_two_turns_the_difference_round(rows: tuple[np.ndarray, ...]) -> None:
    """Its sign alone; McNemar's test says the same of both orders."""
    first, second, units = rows
    assert paired_difference(first, second, units)[0] == -paired_difference(second, first, units)[0]
    assert mcnemar(first, second) == mcnemar(second, first)
    assert 0 < mcnemar(first, second) <= 1


@given(flags())
def test_mcnemar_is_the_exact_binomial_test(rows: tuple[np.ndarray, ...]) -> None:
    """As SciPy computes it, on the images that tell the two apart."""
    first, second, _ = rows
    only = int((first & ~second).sum()), int((~first & second).sum())
    expected = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_images() -> None:
    """A million images; 300 against 200."""
    first, second = np.zeros(10**6, bool), np.zeros(10**6, bool)
    first[:300], second[300:500] = True, True
    assert mcnemar(first, second) == pytest.approx(binomtest(300, 500).pvalue, rel=1e-9)


def test_the_randomisation_test_is_mcnemars_for_images_that_stand_alone() -> None:
    """Equal p-values; changes of several sizes by draws, of many signs exactly counted here."""
    rng = np.random.default_rng(0)
    first, second = rng.random(80) < 0.8, rng.random(80) < 0.7
    changes = second.astype(float) - first
    assert sign_flips(changes) == pytest.approx(mcnemar(first, second))
    sizes = np.array([3.0, 2.0, 2.0, 1.0, -1.0, 4.0])
    signs = np.array(list(product((-1, 1), repeat=6)))
    exact = np.mean(np.abs(signs @ np.abs(sizes)) >= sizes.sum() - 1e-9)
    assert sign_flips(sizes) == pytest.approx(exact, abs=0.02)
    assert sign_flips(np.zeros(5)) == 1.0


def test_a_difference_that_few_images_show_may_be_chance() -> None:
    """Four of a hundred images differ, all one way: the bootstrap alone would exclude 0."""
    before, after = np.zeros(100, bool), np.zeros(100, bool)
    after[:4] = True
    difference, (low, high) = paired_difference(before, after)
    assert (difference, low) == (4.0, 0.0)
    assert high > 6
    after[:8] = True
    assert paired_difference(before, after)[1][0] > 0


def test_no_difference_is_found_of_few_groups() -> None:
    """Two classifiers that are equally good, 6 groups of 10: a verdict in one of twenty at most."""
    wrong = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(6), 10)
        first, second = (
            rng.random(60) < 1 / (1 + np.exp(-1 - rng.normal(size=6)[unit])) for _ in range(2)
        )
        low, high = paired_difference(first, second, unit, seed=seed)[1]
        wrong += low > 0 or high < 0
    assert wrong <= binom.ppf(0.999, 300, 0.05)
