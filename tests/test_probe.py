"""`probe` and `few_shot_curve`: what protocols compute, choose and measure, and what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from vectors import demo_vectors, hymenoptera_store, make_store, small

import featpipe
from featpipe import embed
from featpipe.commands import probe as command
from featpipe.errors import FeatpipeError, HeadError, LabelError, StoreError
from featpipe.evaluation import PROTOCOLS, few_shot_curve, probe
from featpipe.evaluation.classifiers import logistic_path, logistic_votes, neighbour_votes
from featpipe.evaluation.few_shot import Spread, shots_of
from featpipe.evaluation.figures import Figures, interval, share
from featpipe.evaluation.parts import held_out, parts_of, stratified
from featpipe.heads import HEADS
from featpipe.store import EmbeddingStore
from featpipe.types import Progress

NAMES = list(PROTOCOLS)


@pytest.fixture
def demo(tmp_path: Path) -> EmbeddingStore:
    """Real photographs of eight surfaces: 160 to train, 200 to test."""
    X, labels, splits = demo_vectors()
    return make_store(tmp_path / "demo", X, labels, splits=splits)


def blobs(n: int, n_classes: int = 4, noise: float = 1.0) -> tuple[np.ndarray, list[str]]:
    """Return rows around one centre a class, and their labels."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % n_classes
    X = 3 * np.eye(16)[y] + rng.normal(0, noise, (n, 16))
    return X.astype(np.float32), [f"class {k}" for k in y]


def refused(error: type[FeatpipeError], *args, **options) -> str:
    with pytest.raises(error) as caught:
        probe(*args, **options)
    return str(caught.value)


# What the protocols say


def test_the_grids_are_those_of_the_papers() -> None:
    """45 powers of ten from 1e-6 to 1e5; a penalty is 1 / C; T and k are DINOv2's."""
    expected = 10.0 ** np.linspace(-6, 5, 45)
    for name in ("kornblith", "vtab1k"):
        protocol = PROTOCOLS[name]
        assert np.allclose(protocol.values, expected[::-1], rtol=1e-12)
        assert protocol.inverse_penalty(100.0) == 0.01
    assert np.allclose(PROTOCOLS["dinov2-logreg"].values, expected, rtol=1e-12)
    assert PROTOCOLS["dinov2-logreg"].inverse_penalty(100.0) == 100.0
    assert PROTOCOLS["dinov2-knn"].values == (10, 20, 100, 200)
    assert PROTOCOLS["vtab1k"].sizes == (800, 200)


@pytest.mark.parametrize("name", ["kornblith", "dinov2-logreg"])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("dimensions", [1280, 12])
def test_the_path_follows_scikit_learns_minima(name, n_classes, dimensions) -> None:
    """Vectors as they are, C times the summed loss: the probabilities of LogisticRegression."""
    X, labels = small(n_classes, 12)
    X = X[:, :dimensions] * (1 + np.arange(dimensions, dtype=np.float32) % 5)
    y = np.unique(labels, return_inverse=True)[1]
    fit, others = np.arange(len(y)) % 3 > 0, np.arange(len(y)) % 3 == 0
    protocol = PROTOCOLS[name]
    path = dict(logistic_path(protocol, X[fit], y[fit], X[others]))
    assert list(path) == list(protocol.values)
    for value in protocol.values[4:36:8]:
        C = protocol.inverse_penalty(value)
        peer = LogisticRegression(C=C, tol=1e-9, max_iter=50_000)
        expected = peer.fit(X[fit].astype(np.float64), y[fit]).predict_proba(X[others])
        assert np.allclose(path[value], expected, atol=0.02)
        assert np.allclose(logistic_votes(X[fit], y[fit], X[others], C), expected, atol=2e-3)


def plain_votes(X, y, others, k: int, n_classes: int) -> np.ndarray:
    """The weighted vote as it is written down: cosines, softmax at 0.07, sums by class."""
    a = others / np.linalg.norm(others, axis=1, keepdims=True)
    b = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosines = a @ b.T
    votes = np.zeros((len(others), n_classes))
    for row, values in enumerate(cosines):
        nearest = np.argsort(-values, kind="stable")[:k]
        weights = np.exp(values[nearest] / 0.07)
        np.add.at(votes[row], y[nearest], weights / weights.sum())
    return votes


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 60),
    n_classes=st.integers(2, 5),
    data=st.data(),
)
def test_votes_of_neighbours_are_the_written_ones(seed, n, n_classes, data) -> None:
    """For every k; the rows sum to 1, and lengths of vectors do not matter."""
    rng = np.random.default_rng(seed)
    X, others = rng.normal(size=(n, 6)), rng.normal(size=(7, 6))
    y = rng.integers(n_classes, size=n)
    numbers = sorted(data.draw(st.sets(st.integers(1, n), min_size=1, max_size=4)))
    found = neighbour_votes(
        (X * rng.uniform(0.1, 9, (n, 1))).astype(np.float32),
        y,
        others.astype(np.float32),
        numbers,
        n_classes,
    )
    for k, votes in zip(numbers, found, strict=True):
        assert np.allclose(votes.sum(axis=1), 1)
        assert np.allclose(votes, plain_votes(X, y, others, k, n_classes), atol=1e-4)


# What is drawn


@given(
    y=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    shots=st.sets(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_shots_are_as_many_of_each_class_nested_and_reproducible(y, shots, seed) -> None:
    """Exactly k of every class that has them, else all; fewer are the first of more."""
    classes = np.unique(y, return_inverse=True)[1]
    numbers = sorted(shots)
    draws = shots_of(classes, numbers, seed, 0)
    sizes = np.bincount(classes)
    before: set[int] = set()
    for k, taken in zip(numbers, draws, strict=True):
        assert np.array_equal(np.bincount(classes[taken]), np.minimum(sizes, k))
        assert before <= set(taken.tolist())
        before = set(taken.tolist())
    again = shots_of(classes, numbers, seed, 0)
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))


def test_draws_and_seeds_give_other_shots() -> None:
    """Of two hundred images five a class are hardly ever the same."""
    y = np.arange(200) % 2
    drawn = [shots_of(y, [5], seed, draw)[0].tolist() for seed in (0, 1) for draw in (0, 1)]
    assert len({tuple(taken) for taken in drawn}) == 4


@given(
    y=st.lists(st.integers(0, 5), min_size=1, max_size=90),
    part=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_stratified_draw_has_the_size_and_the_shares(y, part, seed) -> None:
    """Exactly n, and of every class its share to within one."""
    classes = np.unique(y, return_inverse=True)[1]
    n = round(part * len(y))
    taken = stratified(classes, n, seed)
    assert len(taken) == n
    assert np.array_equal(taken, np.unique(taken))
    got = np.bincount(classes[taken], minlength=classes.max() + 1)
    assert (np.abs(got - np.bincount(classes) * n / len(classes)) < 1 + 1e-6).all()


@given(y=st.lists(st.integers(0, 5), min_size=1, max_size=60), n=st.integers(0, 60))
def test_least_and_keep_are_kept(y, n) -> None:
    """One of every class is drawn, or is left."""
    classes = np.unique(y, return_inverse=True)[1]
    sizes = np.bincount(classes)
    n = min(n, len(classes))
    drawn = np.bincount(classes[stratified(classes, n, 0, least=1)], minlength=len(sizes))
    assert (drawn >= 1).all()
    assert drawn.sum() == max(n, len(sizes))
    kept = sizes - np.bincount(classes[stratified(classes, n, 0, keep=1)], minlength=len(sizes))
    assert (kept >= 1).all()


def test_what_is_held_out_has_no_copy_and_no_group_on_the_other_side(tmp_path) -> None:
    """Groups of three images, stratified: about a fifth of every class."""
    X, labels = blobs(120)
    groups = [f"{label}-{i // 12}" for i, label in enumerate(labels)]
    store = make_store(tmp_path / "s", X, labels, groups=groups)
    rows = np.arange(120)
    y = parts_of(store, None).y
    held = held_out(store, rows, y, 24, seed=0)
    assert not {groups[i] for i in held} & {groups[i] for i in np.setdiff1d(rows, held)}
    assert np.bincount(y[held]).tolist() == [6, 6, 6, 6]


# What is measured


@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_knows_the_surfaces(demo: EmbeddingStore, name: str) -> None:
    """Real photographs: above 90 %, by images that nothing was learnt or chosen on."""
    found = probe(demo, name)
    assert found.split == "test"
    assert found.figures.n_samples == 200
    assert found.accuracy > 0.9
    low, high = found.figures.intervals["accuracy"]
    assert low <= found.accuracy <= high
    by_class = found.figures.intervals["mean_per_class_accuracy"]
    assert by_class[0] <= found.figures.mean_per_class_accuracy <= by_class[1]
    assert found.majority == ("brick", 0.125)
    assert found.without_learnt is None
    best = max(accuracy for _, accuracy in found.tried)
    assert found.chosen == next(value for value, accuracy in found.tried if accuracy == best)
    assert repr(found) == (
        f"Probe({name}, 200 images, accuracy {found.accuracy:.3f} [{low:.3f}, {high:.3f}])"
    )


@pytest.mark.parametrize(
    ("name", "images", "notes"),
    [
        (
            "kornblith",
            (128, 32),
            (
                "lambda is chosen on 32 of the 160 training images, drawn by class (20 %, "
                "featpipe's choice), as no split is left for it",
            ),
        ),
        (
            "dinov2-knn",
            (128, 32),
            (
                "k is chosen on 32 of the 160 training images, drawn by class (20 %, featpipe's "
                "choice), as no split is left for it",
                "k = 200 is left out while k is chosen: 128 images are searched",
                "k = 200 is left out in the end: 160 images are searched",
            ),
        ),
        (
            "dinov2-logreg",
            (144, 16),
            (
                "C is chosen on 16 of the 160 training images, drawn by class (10 %, as the source "
                "has it), as no split is left for it",
            ),
        ),
        (
            "vtab1k",
            (128, 32),
            (
                "{store} has 160 training images, not 1,000: all are used, and this is no number "
                "of vtab1k",
            ),
        ),
    ],
)
def test_without_a_split_val_a_part_of_train_chooses(demo, name, images, notes) -> None:
    """How many, and by whose rule, is said; in the end all are learnt."""
    found = probe(demo, name)
    expected = {"train": images[0], "val": images[1], "final": 160, "measured": 200}
    assert found.images == expected
    assert found.notes == tuple(note.format(store=demo.path) for note in notes)


@pytest.mark.parametrize("name", NAMES)
def test_the_measured_images_choose_nothing(demo, tmp_path, name) -> None:
    """Other vectors and labels there leave every choice as it was."""
    X, labels, splits = demo_vectors()
    test = np.array(splits) == "test"
    rng = np.random.default_rng(0)
    wrong = [str(rng.choice(labels)) if t else v for v, t in zip(labels, test, strict=True)]
    other = make_store(
        tmp_path / "other", np.where(test[:, None], X[::-1], X), wrong, splits=splits
    )
    expected, found = probe(demo, name), probe(other, name)
    assert (found.chosen, found.tried) == (expected.chosen, expected.tried)
    assert found.accuracy < 0.5


@pytest.mark.parametrize(
    ("name", "final"), [("kornblith", 48), ("dinov2-knn", 32), ("dinov2-logreg", 48)]
)
def test_a_given_split_val_chooses(tmp_path, name, final) -> None:
    """A penalty is then fitted on train and val; neighbours are searched in train alone."""
    X, labels = blobs(80)
    splits = ["train"] * 32 + ["val"] * 16 + ["test"] * 32
    found = probe(make_store(tmp_path / "s", X, labels, splits=splits), name)
    assert found.images == {"train": 32, "val": 16, "final": final, "measured": 32}
    assert [note for note in found.notes if "chosen on" in note] == []


def test_every_k_is_measured_and_validation_names_one(tmp_path) -> None:
    """As a plain computation has it, on the training split alone."""
    X, labels = blobs(600, noise=2.0)
    splits = (["train"] * 4 + ["val"] * 4 + ["test"] * 4) * 50
    store = make_store(tmp_path / "s", X, labels, splits=splits)
    found = probe(store, "dinov2-knn")
    y = np.unique(labels, return_inverse=True)[1]
    train, val, test = (np.array(splits) == name for name in ("train", "val", "test"))
    assert [value for value, _ in found.reported] == [10, 20, 100, 200]
    assert found.notes == ()
    judged = dict(found.tried)
    for value, figures in found.reported:
        k = int(value)
        right = plain_votes(X[train], y[train], X[test], k, 4).argmax(axis=1) == y[test]
        assert figures.accuracy == pytest.approx(right.mean())
        right = plain_votes(X[train], y[train], X[val], k, 4).argmax(axis=1) == y[val]
        assert judged[value] == pytest.approx(right.mean())
    assert found.table().count(" *") == 1


def test_a_penalty_is_fitted_again_on_all_that_is_learnt(demo: EmbeddingStore) -> None:
    """The reported accuracy is scikit-learn's at the chosen penalty on the whole split train."""
    found = probe(demo, "kornblith")
    train, test = demo.splits == "train", demo.splits == "test"
    labels = demo.labels()
    peer = LogisticRegression(C=1 / found.chosen, tol=1e-9, max_iter=50_000)
    peer.fit(np.asarray(demo.X[train], dtype=np.float64), labels[train].astype(str))
    right = peer.predict(demo.X[test]) == labels[test]
    assert found.accuracy == pytest.approx(right.mean(), abs=0.006)


def test_where_val_is_all_there_is_it_is_measured_and_chooses_nothing(tmp_path) -> None:
    """As `fit` and `evaluate` take it: many sets report on a split of that name."""
    X, labels = blobs(60)
    splits = ["train"] * 40 + ["val"] * 20
    found = probe(make_store(tmp_path / "s", X, labels, splits=splits), "kornblith")
    assert (found.split, found.images["measured"], found.images["val"]) == ("val", 20, 8)
    assert found.notes[0] == (
        "there is no split test: the split val is measured on, and chooses nothing"
    )


def test_images_that_are_learnt_too_are_counted_and_left_out_beside(tmp_path) -> None:
    """By their bytes; groups on both sides are said, too."""
    X, labels = blobs(80)
    splits = ["train"] * 40 + ["test"] * 40
    contents = [i % 40 if 40 <= i < 44 else i for i in range(80)]
    groups = [f"g{i % 39}" if i in {3, 42} else None for i in range(80)]
    store = make_store(tmp_path / "s", X, labels, splits=splits, contents=contents, groups=groups)
    found = probe(store, "kornblith")
    assert found.notes[-2:] == (
        (
            "4 of the 40 images that are measured on are among the training images, too: the "
            "figures are too good"
        ),
        (
            "1 groups, such as g3, have images among the training images and those that are "
            "measured on: the figures are too good for new groups"
        ),
    )
    assert found.without_learnt is not None
    assert found.without_learnt.n_samples == 36
    assert "on 36 not learnt" in found.table()


def test_images_of_no_use_are_counted(tmp_path) -> None:
    """Without a label, in no split, or with a label that is not learnt."""
    X, labels = blobs(80)
    labels = [*labels[:78], None, "zebra\n"]
    splits = [None, *["train"] * 39, *["test"] * 40]
    found = probe(make_store(tmp_path / "s", X, labels, splits=splits), "kornblith")
    assert found.notes[:3] == (
        "1 images without a label are not used",
        "1 images in no split are not used",
        "1 images have labels that the training images lack (zebra\\n) and are left out",
    )
    assert found.images["measured"] == 38


# VTAB-1k


@pytest.mark.parametrize("n_val", [0, 250])
def test_vtab_takes_800_and_200(tmp_path, n_val) -> None:
    """Of the splits where they are large enough, else of both; the whole split test is measured."""
    X, labels = blobs(1400)
    splits = ["val"] * n_val + ["train"] * (1100 - n_val) + ["test"] * 300
    found = probe(make_store(tmp_path / "s", X, labels, splits=splits), "vtab1k")
    assert found.images == {"train": 800, "val": 200, "final": 1000, "measured": 300}
    assert found.notes == ()


def test_vtab_draws_from_both_splits_where_one_is_small(tmp_path) -> None:
    """A split val of 100 is not enough: 1,000 are drawn of all, and cut."""
    X, labels = blobs(1300)
    splits = ["val"] * 100 + ["train"] * 1000 + ["test"] * 200
    found = probe(make_store(tmp_path / "s", X, labels, splits=splits), "vtab1k")
    assert found.images == {"train": 800, "val": 200, "final": 1000, "measured": 200}


def test_vtab_keeps_copies_together_and_says_what_that_costs(tmp_path) -> None:
    """Three of each image: the cut is where it goes through none of them."""
    X, labels = blobs(400, n_classes=3)
    X, labels = np.repeat(X, 3, axis=0)[:1100], np.repeat(labels, 3)[:1100].tolist()
    contents = [i // 3 if i < 1000 else i for i in range(1100)]
    splits = ["train"] * 1000 + ["test"] * 100
    found = probe(make_store(tmp_path / "s", X, labels, splits=splits, contents=contents), "vtab1k")
    assert found.images == {"train": 801, "val": 199, "final": 1000, "measured": 100}
    assert found.notes == (
        "801 and 199 images train and validate, not 800 and 200: equal images and those of a group "
        "stay together",
    )


# What is refused


def test_without_a_split_to_measure_on_the_way_to_one_is_named(tmp_path, run_cli) -> None:
    """One sentence and exit code 4."""
    X, labels = blobs(20)
    store = make_store(tmp_path / "s", X, labels).path
    result = run_cli("probe", store, "--protocol", "kornblith")
    assert (result.code, result.out) == (4, "")
    assert result.err == (
        f"Error: {store} has no labelled image in a split test or val (its splits: none), and "
        "kornblith measures on images that it neither learns nor chooses on: put some of every "
        "class into a folder test/ beside train/ and run `featpipe embed` again, or let `featpipe "
        "fit` estimate by cross-validation\n"
    )


@pytest.mark.parametrize(
    ("labels", "splits", "columns", "message"),
    [
        (
            [None] * 4,
            ["train"] * 4,
            None,
            (
                "{store} has no labels: put the images into class folders, or run `featpipe embed` "
                "again with --labels TABLE; no vector is computed twice"
            ),
        ),
        (
            [None] * 4,
            ["train"] * 4,
            {"kind": ["a", "b"] * 2, "site": ["a", "b"] * 2},
            "{store} has several label columns (kind, site): choose one with --target",
        ),
        (
            ["a", "b"] * 2,
            ["test"] * 4,
            None,
            (
                "{store} has no labelled image to learn on: the labelled ones are in the splits "
                "test; put some into a split train"
            ),
        ),
        (
            ["a", "a", "a", "b"],
            ["train", "train", "test", "test"],
            None,
            (
                "all labelled images of {store} to learn on have the label a: a probe needs two "
                "classes at least"
            ),
        ),
        (
            ["a", "b", "c", "c"],
            ["train", "train", "test", "test"],
            None,
            "the test split has no label in common with the training split",
        ),
        (
            ["a", "b", "c", "c"],
            ["train", "train", "val", "val"],
            None,
            "the val split has no label in common with the training split",
        ),
        (
            ["a", "b"] * 2,
            ["train", "train", "test", "test"],
            None,
            (
                "{store} has 2 training images: too few to draw some that choose lambda; add "
                "images, or a split val"
            ),
        ),
    ],
)
def test_labels_that_do_not_do_are_one_sentence(tmp_path, labels, splits, columns, message) -> None:
    """Each says what to do."""
    store = make_store(tmp_path / "s", np.eye(4), labels, splits=splits, columns=columns)
    assert refused(LabelError, store) == message.format(store=store.path)


def test_too_few_images_for_ten_neighbours_are_refused(tmp_path) -> None:
    """No k of the protocol is left."""
    X, labels = blobs(24)
    store = make_store(tmp_path / "s", X, labels, splits=["train"] * 8 + ["test"] * 16)
    assert refused(LabelError, store, "dinov2-knn") == (
        f"{store.path} has 7 images to search while k is chosen, and dinov2-knn asks for the 10 "
        "nearest at least: add images, or take another protocol"
    )


def test_an_unknown_protocol_has_the_nearest_name(demo) -> None:
    """And the list of all."""
    names = "kornblith, dinov2-knn, dinov2-logreg, vtab1k"
    assert refused(FeatpipeError, demo, "dino-knn") == (
        f"there is no protocol 'dino-knn': did you mean dinov2-knn? there are {names}"
    )
    assert refused(FeatpipeError, demo, "zzz\n") == (
        f"there is no protocol 'zzz\\\\n': there are {names}"
    )


def test_vectors_beyond_memory_are_refused(demo, monkeypatch) -> None:
    """With what they need and what there is."""
    monkeypatch.setattr("featpipe.evaluation.probing.available_memory", lambda: 1_000_000)
    assert refused(HeadError, demo) == (
        "kornblith needs all 160 vectors in memory at once, 3.3 MB with its copies of them, and "
        "1.0 MB are free: measure fewer images, or take featpipe fit, which reads them in passes"
    )


@pytest.mark.parametrize("measure", [probe, few_shot_curve])
def test_nan_is_refused_with_the_image(tmp_path, measure) -> None:
    """In what is learnt or in what is measured."""
    X, labels = blobs(60)
    X[55, 3] = np.nan
    store = make_store(tmp_path / "s", X, labels, splits=["train"] * 40 + ["test"] * 20)
    with pytest.raises(StoreError) as caught:
        measure(store)
    assert str(caught.value) == (
        f"the vector of 00055.jpg in {store.path} holds NaN or infinity (1 vectors do): embed "
        "again with --dtype float32 into a new store, or take the image out"
    )


# Few shots


def test_the_curve_rises_on_real_photographs(demo: EmbeddingStore) -> None:
    """Ten images a class know the surfaces better than one; draws are nested and repeatable."""
    curve = few_shot_curve(demo, shots=[10, 1, 2], repeats=4, seed=3)
    assert [point.shots for point in curve.points] == [1, 2, 10]
    assert [point.images for point in curve.points] == [8, 16, 80]
    means = [point.accuracy.mean for point in curve.points]
    assert means == sorted(means)
    assert means[-1] > 0.9
    assert curve.notes == ()
    assert (curve.split, curve.n_pool, curve.n_measured) == ("test", 160, 200)
    again = few_shot_curve(demo.path, shots=[1, 2, 10], repeats=4, seed=3)
    assert again.to_json() == curve.to_json()
    assert few_shot_curve(demo, shots=[1], repeats=4, seed=4).points != curve.points[:1]


@pytest.mark.parametrize("head", list(HEADS))
def test_every_head_learns_from_one_image_a_class(demo, head) -> None:
    """No head asks for more; all are better than chance by far."""
    curve = few_shot_curve(demo, head, shots=[1], repeats=2)
    assert curve.points[0].accuracy.mean > 0.4


def test_the_draw_decides_what_is_learnt(demo: EmbeddingStore) -> None:
    """The figures are those of the head with its default parameters on just these images."""
    [point] = few_shot_curve(demo, "ridge", shots=[3], repeats=2).points
    train, test = (np.flatnonzero(demo.splits == name) for name in ("train", "test"))
    y = np.unique(demo.labels().astype(str), return_inverse=True)[1]
    for number, figures in enumerate(point.draws):
        [taken] = shots_of(y[train], [3], 0, number)
        rows = train[taken]
        pipeline = HEADS["ridge"].pipeline(HEADS["ridge"].default, 0)
        pipeline.fit(np.asarray(demo.X[rows], dtype=np.float32), y[rows])
        predicted = pipeline.predict(np.asarray(demo.X[test], dtype=np.float32))
        assert figures.accuracy == pytest.approx((predicted == y[test]).mean())


def test_equal_images_count_once(tmp_path) -> None:
    """Ten copies of one image are one shot; the note has the number of distinct ones."""
    X, labels = blobs(60, n_classes=2)
    contents = [0 if labels[i] == "class 0" and i < 20 else i for i in range(60)]
    store = make_store(
        tmp_path / "s", X, labels, splits=["train"] * 20 + ["test"] * 40, contents=contents
    )
    curve = few_shot_curve(store, "centroid", shots=[1, 5], repeats=2)
    assert [point.images for point in curve.points] == [2, 6]
    assert curve.n_pool == 11
    assert curve.notes == (
        "1 classes (class 0) have fewer than 5 distinct images, 1 at the least: there a draw takes "
        "all of them",
    )


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("split", [True, False])
def test_an_image_under_two_labels_is_learnt_under_both(
    photos: Path, tiny_backbone: Path, tmp_path: Path, head, split
) -> None:
    """The only image of a class is a file of another, too: no class is lost, and it is said."""
    root = tmp_path / "set"
    (root / "train/zoo").mkdir(parents=True)
    shutil.copytree(photos, root / "train", dirs_exist_ok=True)
    shutil.copy(photos / "living/cat.jpg", root / "train/zoo/tom.jpg")
    shutil.copy(photos / "living/cat.jpg", root / "train/living/cat_again.jpg")
    for name in ("living/grass.jpg", "things/rocket.jpg") if split else ():
        place = root / "test" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / name).rename(place)
    store = embed(root if split else root / "train", tiny_backbone, output=tmp_path / "s")
    curve = few_shot_curve(store, head, shots=[1, 2], repeats=3)
    assert curve.classes == ("living", "things", "zoo")
    assert [point.images for point in curve.points] == [3, 5]
    where = "train/" if split else ""
    clash = (
        f"equal images under two labels: {where}living/cat.jpg (living) = {where}zoo/tom.jpg "
        "(zoo): correct one label"
    )
    assert clash in curve.notes
    assert (
        "1 classes (zoo) have fewer than 2 distinct images, 1 at the least: there a draw takes "
        "all of them"
    ) in curve.notes


def test_without_splits_a_half_is_held_out(tmp_path) -> None:
    """By class, and said; a split val that is not needed is counted."""
    X, labels = blobs(80)
    curve = few_shot_curve(make_store(tmp_path / "n", X, labels), shots=[2], repeats=2)
    assert (curve.split, curve.n_pool, curve.n_measured) == (None, 40, 40)
    assert curve.notes == (
        "there is no split to measure on: 40 images are held out for it, by class (50 %)",
    )
    assert "measured on 40 held-out images" in curve.table()
    splits = ["train"] * 40 + ["val"] * 20 + ["test"] * 20
    store = make_store(tmp_path / "v", X, labels, splits=splits)
    assert few_shot_curve(store, shots=[2], repeats=2).notes == (
        "20 images of the split val are not used",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shots": [0, 1]},
            "a few-shot curve needs 1 image a class and 1 draw at least, not shots [0, 1] and 5 "
            "draws",
        ),
        (
            {"shots": []},
            "a few-shot curve needs 1 image a class and 1 draw at least, not shots [] and 5 draws",
        ),
        (
            {"repeats": 0},
            "a few-shot curve needs 1 image a class and 1 draw at least, not shots [1, 2, 5, 10] "
            "and 0 draws",
        ),
        (
            {},
            "{store} has 2 labelled images and no split to measure on: too few to hold some of "
            "every class out; add images",
        ),
    ],
)
def test_curves_that_cannot_be_are_refused(tmp_path, options, message) -> None:
    """Numbers below 1, and too few images."""
    store = make_store(tmp_path / "s", np.eye(2), ["a", "b"])
    with pytest.raises(LabelError) as caught:
        few_shot_curve(store, **options)
    assert str(caught.value) == message.format(store=store.path)


@given(values=st.lists(st.floats(0.2, 0.8), min_size=2, max_size=9, unique=True))
def test_the_interval_is_students(values) -> None:
    """As scipy's t distribution has it, cut at 0 and 1."""
    spread = Spread.of(values)
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
    )
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.deviation == pytest.approx(np.std(values, ddof=1))
    assert spread.interval == pytest.approx((max(low, 0), min(high, 1)))


def test_one_draw_has_no_interval(demo: EmbeddingStore) -> None:
    """A dash in the table, null in the JSON; the draw's own interval is there."""
    curve = few_shot_curve(demo, "centroid", shots=[1], repeats=1)
    [point] = curve.to_json()["points"]
    assert point["accuracy"]["standard_deviation"] is None
    assert point["accuracy"]["interval_95_of_the_mean"] is None
    low, high = point["draws"][0]["intervals_95"]["accuracy"]
    assert low <= point["accuracy"]["mean"] <= high
    row = curve.table().splitlines()[3].split()
    assert [row[at] for at in (4, 5, 8, 9)] == ["-"] * 4


# The command


def test_the_command_prints_a_table_and_notes(tmp_path, monkeypatch, run_cli) -> None:
    """The newest store, said; notes on stderr, figures on stdout."""
    monkeypatch.chdir(tmp_path)
    X, labels = blobs(80, noise=2.0)
    splits = ["train"] * 40 + ["test"] * 40
    store = make_store(tmp_path / "embeddings" / "blobs", X, labels, splits=splits)
    found = probe(store, "dinov2-logreg", seed=5)
    result = run_cli("probe", "--protocol", "dinov2-logreg", "--seed", "5")
    assert result.code == 0
    assert result.err.splitlines() == [
        "using the newest store: embeddings/blobs",
        (
            "Note: C is chosen on 4 of the 40 training images, drawn by class (10 %, as the source "
            "has it), as no split is left for it."
        ),
    ]
    figures = found.figures
    assert result.out.splitlines() == [
        "dinov2-logreg on tiny: 4 classes, 40 training images",
        "Oquab et al. 2023, section 7, and its evaluation code",
        f"C = {found.chosen:.3g}, by the accuracy on 4 validation images",
        "",
        "on 40 images       accuracy  95 % interval    mean per class  95 % interval",
        (
            f"{f'C = {found.chosen:.3g}':<18}{share(figures.accuracy):>9}  "
            f"{interval(figures.intervals['accuracy']):<17}"
            f"{share(figures.mean_per_class_accuracy):>14}  "
            f"{interval(figures.intervals['mean_per_class_accuracy'])}"
        ),
        "always the same      25.0 %  (class 0)",
    ]


def test_json_is_one_document_on_stdout(demo, run_cli) -> None:
    """Plain values: the protocol and its source, what was chosen and tried, every figure."""
    result = run_cli("probe", demo.path, "--protocol", "dinov2-knn", "--json")
    value = json.loads(result.out)
    assert value == json.loads(json.dumps(probe(demo, "dinov2-knn").to_json(), allow_nan=False))
    assert list(value) == [
        "protocol",
        "source",
        "store",
        "backbone",
        "target",
        "seed",
        "split",
        "classes",
        "images",
        "chosen",
        "tried",
        "figures",
        "reported",
        "without_learnt",
        "majority_class",
        "notes",
    ]
    assert [entry["k"] for entry in value["reported"]] == [10, 20, 100]
    assert result.err.splitlines() == [f"Note: {note}." for note in value["notes"]]


def test_the_command_draws_curves(demo, run_cli) -> None:
    """--shots, --repeats and --head; the table has a row a number of shots."""
    args = ("probe", demo.path, "--shots", "2,1", "--repeats", "2", "--head", "centroid")
    result = run_cli(*args)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == (
        "centroid on tiny: 8 classes, 2 draws, measured on 200 images of the split test"
    )
    assert [line.split()[:2] for line in lines[3:5]] == [["1", "8"], ["2", "16"]]
    assert lines[-1] == (
        "intervals: of the mean, over draws of training images; --json has each draw"
    )
    value = json.loads(run_cli(*args, "--json").out)
    expected = few_shot_curve(demo, "centroid", shots=[1, 2], repeats=2).to_json()
    assert value == json.loads(json.dumps(expected, allow_nan=False))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give --protocol NAME, or --shots 1,2,5,10 for a few-shot curve; not both"),
        (
            ("--protocol", "vtab1k", "--shots", "1"),
            "give --protocol NAME, or --shots 1,2,5,10 for a few-shot curve; not both",
        ),
        (
            ("--protocol", "vtab1k", "--head", "knn"),
            "--head and --repeats belong to --shots: a protocol has its own",
        ),
        (
            ("--shots", "1,x"),
            (
                "Invalid value for '--shots': '1,x' is no list of numbers of images a class, such "
                "as 1,2,5,10"
            ),
        ),
        (
            ("--shots", "0"),
            (
                "Invalid value for '--shots': '0' is no list of numbers of images a class, such "
                "as 1,2,5,10"
            ),
        ),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(run_cli, args, message) -> None:
    """Exit code 2 before any store is looked for."""
    result = run_cli("probe", *args)
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1] == f"Error: {message}"


def test_the_commands_lists_are_the_librarys() -> None:
    """They stand there twice, as the help loads no library."""
    assert list(command._PROTOCOLS) == NAMES
    assert list(command._HEADS) == list(HEADS)
    assert featpipe.probe is probe
    assert featpipe.few_shot_curve is few_shot_curve


def test_progress_tells_every_fit(demo: EmbeddingStore) -> None:
    """From 1 to all."""
    told: list[Progress] = []
    probe(demo, "kornblith", progress=told.append)
    assert [(p.done, p.total) for p in told] == [(n, 45) for n in range(1, 46)]
    told.clear()
    few_shot_curve(demo, "centroid", shots=[1, 2], repeats=2, progress=told.append)
    assert [(p.done, p.total) for p in told] == [(n, 4) for n in range(1, 5)]


def test_figures_are_those_of_the_metrics() -> None:
    """Mean per-class accuracy is the mean of the recalls of the classes that occur."""
    y = np.array([0, 0, 0, 1])
    votes = np.eye(3)[[0, 0, 1, 1]]
    found = Figures.measured(y, votes, ["a", "b", "c"], np.arange(4), seed=0)
    assert (found.accuracy, found.n_samples) == (0.75, 4)
    assert found.mean_per_class_accuracy == pytest.approx((2 / 3 + 1) / 2)


# Real photographs


@pytest.mark.slow
def test_ants_and_bees_by_every_protocol(shared: Path, tmp_path: Path) -> None:
    """The photographs of hymenoptera_data: their split val is measured on, above 90 %."""
    store = hymenoptera_store(shared, tmp_path / "s")
    for name in NAMES:
        found = probe(store, name)
        assert (found.split, found.figures.n_samples, found.images["final"]) == ("val", 153, 245)
        assert found.accuracy > 0.9
    curve = few_shot_curve(store, "centroid", shots=[1, 10], repeats=3)
    assert curve.points[1].accuracy.mean > max(0.8, curve.points[0].accuracy.mean)
