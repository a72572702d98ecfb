"""`fit`: which rows are learnt on and measured on, what is said, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vectors import demo_vectors, make_store, small

from featpipe.errors import HeadError, LabelError, StoreError
from featpipe.heads import load_head
from featpipe.heads.persistence import data_digest
from featpipe.labelled import labelled_rows
from featpipe.ood import normalised
from featpipe.store import EmbeddingStore
from featpipe.training import fit as fit_and_check
from featpipe.types import Progress


def fit(*arguments, **options):
    """Fit on vectors alone: there are no images behind them that could be looked at."""
    return fit_and_check(*arguments, **{"check": False, **options})


def two(per_class: int = 12):
    return small(2, per_class)


@pytest.fixture
def demo(tmp_path: Path) -> EmbeddingStore:
    X, labels, splits = demo_vectors()
    return make_store(tmp_path / "demo", X, labels, splits=splits)


def refused(store: EmbeddingStore, error: type[Exception] = LabelError, **options) -> str:
    with pytest.raises(error) as caught:
        fit(store, "centroid", **options)
    return str(caught.value)


def test_the_test_split_is_measured_once_at_the_end(demo: EmbeddingStore) -> None:
    """Real photographs of surfaces: the estimate is that of the test split, above 90 %."""
    head = fit(demo, "centroid")
    assert head.metrics["method"] == "the split test, not used before"
    assert head.metrics["n_samples"] == 200
    assert head.metrics["accuracy"] > 0.9
    low, high = head.metrics["intervals_95"]["accuracy"]
    assert low <= head.metrics["accuracy"] <= high
    assert head.class_counts == (20,) * 8
    test = demo.splits == "test"
    right = head.predict(demo.X[test]) == demo.labels()[test]
    assert head.metrics["accuracy"] == pytest.approx(right.mean())
    assert head.report["data"] == {
        "store": str(demo.path),
        "source": demo.source,
        "images": 160,
        "digest": data_digest(
            [demo.keys[i] for i in np.flatnonzero(~test)], list(demo.labels()[~test])
        ),
        "keys": sorted({demo.keys[i][:8].hex() for i in np.flatnonzero(~test)}),
    }
    assert head.report["notes"] == []
    assert head.backbone == demo.card


def test_the_test_split_decides_nothing(demo: EmbeddingStore, tmp_path: Path) -> None:
    """Other vectors and labels in the test split give the same head, to the last bit."""
    X, labels, splits = demo_vectors()
    test = np.array(splits) == "test"
    labels = [labels[0] if t else label for t, label in zip(test, labels, strict=True)]
    other = make_store(
        tmp_path / "other", np.where(test[:, None], X[::-1], X), labels, splits=splits
    )
    one, two = fit(other, "ridge"), fit(demo, "ridge")
    assert one.digest == two.digest
    assert one.novelty.digest == two.novelty.digest


def test_every_head_knows_what_is_strange_from_the_training_split_alone(
    demo: EmbeddingStore,
) -> None:
    """Its rows are the training vectors, class after class; each was left out once."""
    train = np.flatnonzero(demo.splits == "train")
    ordered = train[np.argsort(demo.labels()[train].astype(str), kind="stable")]
    for name in ("centroid", "knn"):
        novelty = fit(demo, name).novelty
        np.testing.assert_array_equal(novelty.rows, normalised(demo.X[ordered]))
        assert novelty.counts == (20,) * 8
        assert len(novelty.calibration) == 160


def test_groups_are_left_out_as_a_whole(tmp_path: Path) -> None:
    """What belongs together does not vouch for one another, so the p-values are others."""
    X, labels = two()
    made = [
        make_store(tmp_path / f"s{i}", X, labels, groups=groups)
        for i, groups in enumerate((None, [f"{label}{i % 3}" for i, label in enumerate(labels)]))
    ]
    alone, grouped = (fit(store, "centroid", cv=2).novelty for store in made)
    np.testing.assert_array_equal(alone.rows, grouped.rows)
    assert alone.calibration.mean() < grouped.calibration.mean()


def test_without_splits_the_estimate_is_nested(tmp_path: Path) -> None:
    """All images are learnt on; each is measured by a head that has not seen it."""
    X, labels = two()
    head = fit(make_store(tmp_path / "s", X, labels), "centroid", cv=3)
    assert head.metrics["method"] == "nested cross-validation"
    assert head.metrics["n_samples"] == 24
    assert head.metrics["accuracy"] > 0.9
    assert head.report["folds"] == 3


@pytest.mark.parametrize(
    ("splits", "method", "learnt", "measured", "notes"),
    [
        (["train", "test"], "the split test, not used before", 12, 12, []),
        (["train", "val"], "the split val, not used before", 12, 12, []),
        (["train", "train"], "nested cross-validation", 24, 24, []),
        ([None, "test"], "the split test, not used before", 12, 12, []),
        ([None, "val"], "the split val, not used before", 12, 12, []),
        (
            [None, "train"],
            "nested cross-validation",
            12,
            12,
            ["12 images in no split are not used"],
        ),
    ],
)
def test_splits_say_what_is_learnt_and_measured(tmp_path, splits, method, learnt, measured, notes):
    """``train``, or what is in no split, is learnt; ``test``, or else ``val``, is measured."""
    X, labels = two()
    store = make_store(tmp_path / "s", X, labels, splits=splits * 12)
    head = fit(store, "centroid", cv=2)
    assert head.metrics["method"] == method
    assert (sum(head.class_counts), head.metrics["n_samples"]) == (learnt, measured)
    assert head.report["notes"] == notes


def test_with_test_and_val_the_one_is_measured_and_the_other_said(tmp_path: Path) -> None:
    """The validation images are left for whoever compares heads."""
    X, labels = two()
    store = make_store(tmp_path / "s", X, labels, splits=["train", "train", "test", "val"] * 6)
    head = fit(store, "centroid", cv=2)
    assert head.metrics["method"] == "the split test, not used before"
    assert head.metrics["n_samples"] == 6
    assert head.report["notes"] == ["6 images of the split val are not used"]


def test_a_test_split_without_labels_is_no_estimate(tmp_path: Path) -> None:
    """The labelled validation split is taken instead; unlabelled images are counted."""
    X, labels = two()
    splits = ["train", "train", "test", "val"] * 6
    labels = [None if s == "test" else v for s, v in zip(splits, labels, strict=True)]
    head = fit(make_store(tmp_path / "s", X, labels, splits=splits), "centroid", cv=2)
    assert head.metrics["method"] == "the split val, not used before"
    assert head.report["notes"] == ["6 images without a label are not used"]


def test_nothing_to_learn_on_is_said(tmp_path: Path) -> None:
    """All images are in a split to measure on."""
    X, labels = two()
    store = make_store(tmp_path / "s", X, labels, splits=["test", "val"] * 12)
    assert refused(store) == (
        f"{tmp_path}/s has no labelled image to learn on: the labelled ones are in the splits "
        "test, val; put some into a split train"
    )


def test_no_labels_names_the_two_ways_to_give_them(tmp_path: Path) -> None:
    """Class folders, or a table."""
    store = make_store(tmp_path / "s", np.ones((3, 4)), [None] * 3)
    assert refused(store) == (
        f"{tmp_path}/s has no labels: put the images into class folders, or run `featpipe embed` "
        "again with --labels TABLE; no vector is computed twice"
    )


def test_several_label_columns_ask_for_a_choice(tmp_path: Path) -> None:
    """Without a main one; the chosen one is learnt, and remembered."""
    X, labels = two()
    columns = {"kind": labels, "side": ["left", "right"] * 12}
    store = make_store(tmp_path / "s", X, [None] * 24, columns=columns)
    assert refused(store) == (
        f"{tmp_path}/s has several label columns (kind, side): choose one with --target"
    )
    assert refused(store, target="age") == (
        f"{tmp_path}/s has no label column 'age': it has kind, side"
    )
    head = fit(store, "centroid", target="kind", cv=2)
    assert head.classes == tuple(sorted(set(labels)))
    assert head.report["target"] == "kind"


def test_one_class_is_none_to_tell_apart(tmp_path: Path) -> None:
    """The label is named."""
    store = make_store(tmp_path / "s", np.eye(4), ["ant"] * 4)
    assert refused(store) == (
        f"all labelled images of {tmp_path}/s to learn on have the label ant: a classifier needs "
        "two classes at least"
    )


def test_one_image_of_a_class_is_too_few(tmp_path: Path) -> None:
    """Nothing can be held out of it."""
    store = make_store(tmp_path / "s", np.eye(4), ["ant", "ant", "ant", "bee"])
    assert refused(store) == (
        "class bee has a single distinct image, and cross-validation needs two at least: add "
        "images, or leave the class out"
    )


def test_copies_of_one_image_are_one_image(tmp_path: Path) -> None:
    """Three equal files are one to hold out."""
    contents = [0, 1, 2, 3, 3, 3]
    store = make_store(
        tmp_path / "s", np.eye(6)[contents], ["ant"] * 3 + ["bee"] * 3, contents=contents
    )
    assert refused(store) == (
        "class bee has a single group of images, and cross-validation needs two at least: add "
        "images, or leave the class out"
    )


def test_two_images_of_a_class_need_a_test_split(tmp_path: Path) -> None:
    """They can be tuned on, and not measured beside it; with a test split they can."""
    X, labels = small(2, 6)
    few = [i for i in range(12) if labels[i] == labels[0]] + [i for i in range(12) if i > 9]
    store = make_store(tmp_path / "s", X[few], [labels[i] for i in few])
    assert refused(store) == (
        f"class {labels[-1]} has fewer than three distinct images or groups, and without a split "
        "named test the estimate needs three at least: add images, or put some of every class into "
        "such a split"
    )
    splits = ["train" if i in few else "test" for i in range(12)]
    head = fit(make_store(tmp_path / "t", X, labels, splits=splits), "centroid")
    assert head.report["notes"] == [
        "2 folds instead of 5: the smallest class has no more distinct images or groups"
    ]


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (1e6, "float16")])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_vector_that_is_not_finite_is_named(tmp_path: Path, value, dtype, split) -> None:
    """NaN, or more than float16 can hold, on either side of the split."""
    X, labels = two()
    splits = ["train", "test"] * 12
    row = splits.index(split) + 4
    X[row, 7] = value
    store = make_store(tmp_path / "s", X, labels, splits=splits, dtype=dtype)
    assert refused(store, StoreError, cv=2) == (
        f"the vector of {row:05d}.jpg in {tmp_path}/s holds NaN or infinity (1 vectors do): embed "
        "again with --dtype float32 into a new store, or take the image out"
    )


def test_equal_images_under_two_labels_are_named(tmp_path: Path) -> None:
    """The head cannot be right about both: a note with both paths and labels."""
    X, labels = two()
    contents = list(range(24))
    contents[20] = contents[3]
    head = fit(make_store(tmp_path / "s", X, labels, contents=contents), "centroid", cv=3)
    assert head.report["notes"] == [
        (
            f"equal images under two labels: 00003.jpg ({labels[3]}) = 00020.jpg ({labels[20]}): "
            "correct one label"
        )
    ]


def test_twins_across_the_splits_have_an_estimate_without_them(tmp_path: Path) -> None:
    """Four test images are training images, too: said, and measured without."""
    X, labels = two()
    splits = ["train", "test"] * 12
    contents = list(range(24))
    for i in (1, 3, 13, 15):
        contents[i] = contents[i - 1]
    head = fit(make_store(tmp_path / "s", X, labels, splits=splits, contents=contents), "centroid")
    assert head.report["notes"] == [
        (
            "4 images of the split that is measured on are in the training split, too: the "
            "estimate without them stands beside it"
        )
    ]
    assert head.metrics["n_samples"] == 12
    assert head.metrics["without_training_images"]["n_samples"] == 8


def test_a_test_split_of_twins_alone_has_no_other_estimate(tmp_path: Path) -> None:
    """Nothing is left without them."""
    X, labels = two()
    splits = ["train", "test"] * 12
    contents = [i // 2 for i in range(24)]
    head = fit(make_store(tmp_path / "s", X, labels, splits=splits, contents=contents), "centroid")
    assert head.metrics["without_training_images"] is None


def test_the_twins_of_brain_mri_are_found(shared: Path) -> None:
    """80 files of the test split have a twin in the training split, by their bytes."""
    from featpipe._files import file_key

    root = shared / "datasets" / "brain_mri"
    train = {file_key(p) for p in (root / "Training").rglob("*") if p.is_file()}
    test = [file_key(p) for p in (root / "Testing").rglob("*") if p.is_file()]
    assert len(test) == 394
    assert sum(key in train for key in test) == 80


def test_labels_that_the_training_split_lacks_are_left_out(tmp_path: Path) -> None:
    """They are counted and named; where nothing else is left, that is an error."""
    X, labels = small(3, 8)
    names = sorted(set(labels))
    splits = [
        "test" if v == names[2] else s for v, s in zip(labels, ["train", "test"] * 12, strict=True)
    ]
    head = fit(make_store(tmp_path / "s", X, labels, splits=splits), "centroid", cv=2)
    assert head.classes == tuple(names[:2])
    assert head.metrics["n_samples"] == 8
    assert head.report["notes"] == [
        (
            f"8 images have labels that the training split lacks ({names[2]}) and are left out of "
            "the estimate"
        )
    ]
    splits = ["test" if v == names[2] else "train" for v in labels]
    assert refused(make_store(tmp_path / "t", X, labels, splits=splits), cv=2) == (
        "the test split has no label in common with the training split"
    )


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    """A group's copies cannot vouch for each other: labels by lot, one per group, stay chance."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 6)
    X = rng.normal(size=(24, 20))[groups] + 0.01 * rng.normal(size=(144, 20))
    labels = np.repeat(rng.permutation(["a", "b"] * 12), 6).tolist()
    named = [f"p{g}" for g in groups]
    alone = fit(make_store(tmp_path / "s", X, labels), "knn", cv=3, tune=False)
    grouped = fit(make_store(tmp_path / "t", X, labels, groups=named), "knn", cv=3, tune=False)
    assert alone.metrics["accuracy"] > 0.95
    assert grouped.metrics["accuracy"] < 0.75
    widths = [np.diff(h.metrics["intervals_95"]["accuracy"])[0] for h in (alone, grouped)]
    assert widths[1] > 2 * widths[0]


@pytest.mark.parametrize("name", ["ridge", "svm", "knn"])
def test_the_same_data_and_seed_give_the_same_head(demo: EmbeddingStore, name: str) -> None:
    """Head and report are equal; another seed makes other folds."""
    first, again, other = fit(demo, name), fit(demo.path, name), fit(demo, name, seed=1)
    assert first.digest == again.digest
    assert first.report == again.report
    assert first.report["tuning"] != other.report["tuning"]


def test_without_tuning_the_default_is_taken(tmp_path: Path) -> None:
    """One entry in the table of what was tried."""
    X, labels = two()
    head = fit(make_store(tmp_path / "s", X, labels), "logreg", tune=False, cv=2)
    assert head.parameters == {"C": 0.1}
    assert [entry["parameters"] for entry in head.report["tuning"]] == [{"C": 0.1}]


def test_every_fit_is_reported(tmp_path: Path) -> None:
    """A `Progress` after each: tuning first, then the estimate."""
    X, labels = two()
    seen: list[Progress] = []
    fit(make_store(tmp_path / "s", X, labels), "centroid", cv=3, progress=seen.append)
    assert [(p.stage, p.done, p.total) for p in seen] == [
        *(("tuning", i, 3) for i in (1, 2, 3)),
        *(("estimating", i, 9) for i in range(1, 10)),
    ]


def test_how_scores_become_probabilities_is_reported(demo: EmbeddingStore) -> None:
    """The method, what it was compared with, and what it does to the calibration error."""
    head = fit(demo, "centroid")
    found = head.report["calibration"]
    assert list(found) == ["method", "log_loss", "before", "after"]
    assert found["method"] == head.calibrator.method == "temperature"
    # 160 images are too few for isotonic maps.
    assert list(found["log_loss"]) == ["temperature", "sigmoid"]
    assert found["after"]["log_loss"] == found["log_loss"]["temperature"]
    assert found["after"]["calibration_error"] < found["before"]["calibration_error"] / 4
    assert list(found["after"]["reliability"]) == ["edges", "confidence", "accuracy", "share"]


@pytest.mark.parametrize("method", ["sigmoid", "isotonic", "none"])
def test_probabilities_and_estimate_are_those_of_the_calibration_asked_for(
    demo: EmbeddingStore, tmp_path: Path, method: str
) -> None:
    """Saved and read back; the accuracy counts the likeliest classes, whatever the scores say."""
    head = fit(demo, "ridge", tune=False, calibration=method)
    assert head.report["calibration"]["method"] == method
    again = load_head(head.save(tmp_path / "head"))
    test = demo.splits == "test"
    p = again.predict_proba(demo.X[test])
    assert p.tobytes() == head.predict_proba(demo.X[test]).tobytes()
    right = again.classes_[p.argmax(axis=1)] == demo.labels()[test]
    assert head.metrics["accuracy"] == pytest.approx(right.mean())
    assert (again.predict(demo.X[test]) == again.classes_[p.argmax(axis=1)]).all()
    own = p[np.arange(len(p)), [again.classes.index(name) for name in demo.labels()[test]]]
    assert head.metrics["log_loss"] == pytest.approx(-np.log(own).mean())


def test_a_nested_estimate_is_of_the_calibration_asked_for(tmp_path: Path) -> None:
    """Raw scores of a ridge classifier are small: its probabilities say less than they could."""
    X, labels = two()
    store = make_store(tmp_path / "s", X, labels)
    losses = {
        method: fit(store, "ridge", cv=3, calibration=method).metrics["log_loss"]
        for method in ("none", "temperature")
    }
    assert losses["temperature"] < losses["none"] / 2


def test_an_unknown_calibration_is_named_with_those_there_are(demo: EmbeddingStore) -> None:
    """Before anything is read."""
    assert refused(demo, HeadError, calibration="platt\n") == (
        "there is no calibration 'platt\\\\n': there are auto, temperature, sigmoid, isotonic, none"
    )


def test_the_report_survives_saving(demo: EmbeddingStore, tmp_path: Path) -> None:
    """What was measured is in head.json as plain values."""
    head = fit(demo, "centroid")
    again = load_head(head.save(tmp_path / "head"))
    assert again.report == head.report
    assert again.metrics == head.metrics


def test_a_label_that_looks_like_nothing_is_a_label(tmp_path: Path) -> None:
    """``None`` and ``nan`` as words; images without a label stay without."""
    X, _ = two()
    labels = ["None"] * 8 + ["nan"] * 8 + [None] * 8
    head = fit(make_store(tmp_path / "s", X, labels), "centroid", cv=2)
    assert head.classes == ("None", "nan")
    assert head.report["notes"] == ["8 images without a label are not used"]


def test_rows_become_classes_in_sorted_order(tmp_path: Path) -> None:
    """Positions in the sorted labels; groups and equal contents make the units."""
    store = make_store(
        tmp_path / "s",
        np.eye(4),
        ["b", "a", "b", "a"],
        contents=[0, 1, 0, 2],
        groups=["x", None, "y", "x"],
    )
    rows = labelled_rows(store, np.arange(4))
    assert (rows.classes, list(rows.y), list(rows.units)) == (
        ("a", "b"),
        [1, 0, 1, 0],
        [0, 1, 0, 0],
    )
    assert rows.X.dtype == np.float32


def test_unknown_heads_and_single_folds_are_refused(demo: EmbeddingStore) -> None:
    """Before anything is read."""
    with pytest.raises(HeadError) as caught:
        fit(demo, "smv")
    assert str(caught.value).startswith("there is no head 'smv': did you mean svm? there are ")
    assert refused(demo, cv=1) == "cross-validation needs 2 folds at least, not 1: raise --cv"


def test_groups_on_both_sides_are_said(tmp_path: Path) -> None:
    """Also where the images to learn on have no split of their own."""
    X, labels = two()
    groups = [f"p{i // 2}" for i in range(24)]
    for none in (None, "train"):
        store = make_store(
            tmp_path / f"s{none}", X, labels, splits=[none, "test"] * 12, groups=groups
        )
        notes = fit(store, "centroid", cv=2).report["notes"]
        assert notes == [
            "12 groups, such as p0, have images in the training split and in the one that is "
            "measured on: the estimate is too good for new groups"
        ]
