"""`evaluate`: what is measured, what is said beside it, the table and the picture."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from vectors import card, demo_vectors, make_store, small

from featpipe.errors import FeatpipeError, FingerprintError, LabelError
from featpipe.evaluation import Evaluation, compare, metrics_table
from featpipe.evaluation import evaluate as evaluate_and_check
from featpipe.heads import Head
from featpipe.metrics import compute_metrics
from featpipe.store import EmbeddingStore
from featpipe.training import fit

# These stores have no images; test_quality.py has copies of real ones.
evaluate = partial(evaluate_and_check, check=False)


@pytest.fixture
def demo(tmp_path: Path) -> EmbeddingStore:
    X, labels, splits = demo_vectors()
    return make_store(tmp_path / "demo", X, labels, splits=splits)


@pytest.fixture
def head(demo: EmbeddingStore) -> Head:
    return fit(demo, "centroid")


def refused(error: type[FeatpipeError], *args, **options) -> str:
    with pytest.raises(error) as caught:
        evaluate(*args, **options)
    return str(caught.value)


def test_the_test_split_is_measured_by_default(demo, head) -> None:
    """The figures are those that `fit` has printed; they stand under their own names."""
    found = evaluate(head, demo)
    assert (found.split, found.n_samples) == ("test", 200)
    assert found.accuracy == head.metrics["accuracy"]
    assert found.metrics.intervals["accuracy"] == tuple(head.metrics["intervals_95"]["accuracy"])
    assert found.majority == ("brick", 0.125)
    assert found.notes == ()
    assert found.classes == head.classes
    assert found.probabilities.shape == (200, 8)
    low, high = found.intervals["accuracy"]
    assert repr(found) == (
        f"Evaluation(200 images, accuracy {found.accuracy:.3f} [{low:.3f}, {high:.3f}])"
    )


def test_paths_and_objects_are_alike(demo, head, tmp_path) -> None:
    """A head and a store may be given as folders."""
    folder = head.save(tmp_path / "head")
    found = evaluate(folder, demo.path)
    assert (found.head, found.store) == (str(folder), str(demo.path))
    assert found.metrics == evaluate(head, demo).metrics
    assert evaluate(head, demo).head == repr(head)


@pytest.mark.parametrize(("split", "n"), [("train", 160), ("test", 200), ("all", 360)])
def test_a_split_may_be_chosen(demo, head, split, n) -> None:
    """What was learnt on is measured on request, with a word of warning."""
    found = evaluate(head, demo, split=split)
    assert found.n_samples == n
    assert found.split == (None if split == "all" else split)
    too_good = (
        "the head was fitted on these images: the figures are too good; its estimate for new ones "
        "is what `featpipe fit` printed"
    )
    part = "the head was fitted on 160 of these 360 images: the figures are too good"
    assert found.notes == {"train": (too_good,), "test": (), "all": (part,)}[split]


def test_val_is_measured_where_there_is_no_test_and_all_where_there_is_neither(tmp_path) -> None:
    """The defaults, in their order."""
    X, labels = small(2, 12)
    val = make_store(tmp_path / "v", X, labels, splits=["train", "val"] * 12)
    head = fit(val, "centroid", cv=2)
    assert evaluate(head, val).split == "val"
    none = make_store(tmp_path / "other" / "n", X, labels, contents=range(100, 124))
    found = evaluate(head, none)
    assert (found.split, found.n_samples, found.notes) == (None, 24, ())


def test_images_that_were_learnt_are_known_wherever_they_lie(tmp_path) -> None:
    """A copy of the training folder under another name is no new data: contents decide."""
    X, labels = small(2, 12)
    head = fit(make_store(tmp_path / "a", X, labels), "centroid", cv=2)
    copy = make_store(tmp_path / "elsewhere" / "b", X, labels, splits=["val"] * 24)
    [note] = evaluate(head, copy).notes
    assert note.startswith("the head was fitted on these images: the figures are too good")


def test_a_split_that_is_not_there_is_said_with_those_that_are(demo, head, tmp_path) -> None:
    """The names to choose from."""
    assert refused(LabelError, head, demo, split="val") == (
        f"{demo.path} has no labelled image in the split 'val' (its splits: test, train): choose "
        "one of them, or all"
    )
    X, labels = small(2, 3)
    none = make_store(tmp_path / "n", X, labels)
    assert refused(LabelError, head, none, split="test") == (
        f"{none.path} has no labelled image in the split 'test' (its splits: none): choose one of "
        "them, or all"
    )


def test_vectors_of_another_backbone_are_refused_with_both_names(demo, head, tmp_path) -> None:
    """Fingerprints decide, not names or dimensions."""
    X, labels = small(2, 3)
    other = make_store(
        tmp_path / "o", X, labels, backbone=card(1280, "resnet50", "fedcba9876543210")
    )
    assert refused(FingerprintError, head, other) == (
        f"the head was fitted on tiny (0123456789ab), {other.path} holds vectors of resnet50 "
        "(fedcba987654): use a store of the head's backbone, or fit a head on this one"
    )


def test_labels_that_the_head_does_not_know_are_left_out_and_counted(head, tmp_path) -> None:
    """Two unknown labels are named; images without any are counted, too."""
    X, labels = small(2, 6)
    labels = ["zebra", "yak\n", None, *labels[3:]]
    found = evaluate(head, make_store(tmp_path / "other" / "s", X, labels))
    assert found.n_samples == 9
    assert found.notes == (
        "2 images have labels that the head does not know (yak\\n, zebra) and are left out",
        "1 images without a label are left out",
    )


def test_nothing_to_measure_is_said(head, tmp_path) -> None:
    """No labels, or only labels that the head has never seen."""
    X, _labels = small(2, 3)
    none = make_store(tmp_path / "n", X, [None] * 6)
    assert refused(LabelError, head, none) == (
        f"{none.path} has no labels: put the images into class folders, or run `featpipe embed` "
        "again with --labels TABLE; no vector is computed twice"
    )
    strange = make_store(tmp_path / "z", X, ["zebra"] * 6, splits=["test"] * 6)
    assert refused(LabelError, head, strange) == (
        f"{strange.path}, split test, has no image with a label that the head knows (brick, fur, "
        "grass, gravel, retina); it has zebra"
    )


def test_twins_in_the_training_split_are_counted(tmp_path) -> None:
    """Measured as asked, and said."""
    X, labels = small(2, 12)
    contents = [i // 2 if i < 4 else i for i in range(24)]
    store = make_store(tmp_path / "s", X, labels, splits=["train", "test"] * 12, contents=contents)
    found = evaluate(fit(store, "centroid", cv=2), store)
    assert found.notes == ("the head was fitted on 2 of these 12 images: the figures are too good",)


def test_groups_widen_the_intervals(head, tmp_path) -> None:
    """Images of one patient are drawn together."""
    X, labels, _ = demo_vectors()
    noise = np.random.default_rng(0).normal(0, 4 * X.std(), X.shape)
    groups = [f"{label}-{i % 3}" for i, label in enumerate(labels)]
    alone = evaluate(head, make_store(tmp_path / "a", X + noise, labels))
    grouped = evaluate(head, make_store(tmp_path / "g", X + noise, labels, groups=groups))
    assert alone.accuracy == grouped.accuracy
    assert grouped.intervals["accuracy"] != alone.intervals["accuracy"]


def test_json_is_plain_and_whole(demo, head) -> None:
    """Where from, on what, the figures, the notes."""
    value = evaluate(head, demo).to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert (value["split"], value["n_samples"], value["notes"]) == ("test", 200, [])
    assert value["classes"] == list(head.classes)
    assert np.array(value["confusion_matrix"]).sum() == 200


def test_an_evaluation_can_be_copied_and_pickled(demo, head) -> None:
    """Its attributes are looked up in the metrics, and nothing goes round in circles."""
    found = evaluate(head, demo)
    for again in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert again.metrics == found.metrics
    with pytest.raises(AttributeError):
        _ = found.no_such_figure
    with pytest.raises(AttributeError):
        _ = found._private


def metrics_of(n_classes: int, n: int = 400):
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, n)
    p = rng.dirichlet(np.ones(n_classes), n) + np.eye(n_classes)[y]
    names = [f"class {k:02d}" for k in range(n_classes)]
    return names, y, p / 2, compute_metrics(y, p / 2, names, majority=0)


def test_the_table_has_figures_classes_and_confusions(demo, head) -> None:
    """Three blocks: figures with intervals, a row a class, the commonest confusions in words."""
    y = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    p = np.array([[0.9, 0.1]] * 2 + [[0.2, 0.8]] * 6)
    found = compute_metrics(y, p, ["ant", "bee"], majority=1)
    lines = metrics_table(found.to_json()).splitlines()
    low, high = (f"{100 * v:.1f} %" for v in found.intervals["accuracy"])
    assert lines[0] == "on 8 images".ljust(33) + "95 % interval"
    assert lines[1] == f"accuracy                87.5 %   {low} to {high}"
    assert lines[6] == "always the commonest    62.5 %   (bee)"
    assert lines[8:] == [
        "class  precision   recall       F1   images",
        "ant      100.0 %   66.7 %   80.0 %        3",
        "bee       83.3 %  100.0 %   90.9 %        5",
        "",
        "most often confused",
        "    1 × ant taken for bee",
    ]
    assert evaluate(head, demo).table() == metrics_table(evaluate(head, demo).metrics.to_json())


def test_the_table_of_many_classes_is_cut_and_says_so() -> None:
    """Thirty rows, then where the others are."""
    _, _, _, metrics = metrics_of(34)
    lines = metrics_table(metrics.to_json()).splitlines()
    assert "… and 4 more classes; --json has them all" in lines
    assert sum(line.startswith("class 2") for line in lines) == 10


@pytest.mark.parametrize("n_classes", [2, 30])
def test_the_picture_is_a_png_of_a_sane_size(tmp_path, n_classes) -> None:
    """Two classes or thirty, names with `$` and control characters: no warning, and readable."""
    names, y, p, metrics = metrics_of(n_classes)
    names[0], names[1] = "$5 & \n", "caf\udce9"
    found = Evaluation("h", "s", None, tuple(names), metrics, y, p)
    path = found.plot(tmp_path / "pictures" / "p.png")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.format == "PNG"
        assert 800 <= image.width <= 2600
        assert 500 <= image.height <= 2200
    assert path.stat().st_size < 10**6


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".PNG"])
def test_other_formats_are_drawn_by_their_suffix(demo, head, tmp_path, suffix) -> None:
    """The file begins as files of its kind do."""
    path = evaluate(head, demo).plot(tmp_path / f"p{suffix}")
    start = {".pdf": b"%PDF", ".svg": b"<?xml", ".PNG": b"\x89PNG"}[suffix]
    assert path.read_bytes().startswith(start)


def test_another_suffix_is_refused(demo, head, tmp_path) -> None:
    """The names that will do."""
    with pytest.raises(FeatpipeError) as caught:
        evaluate(head, demo).plot(tmp_path / "p.xlsx")
    assert str(caught.value) == (
        f"cannot draw {tmp_path}/p.xlsx: give a name that ends in .png, .pdf, .svg"
    )
    assert list(tmp_path.glob("p.*")) == []


def test_without_matplotlib_the_extra_is_named(demo, head, tmp_path, monkeypatch) -> None:
    """The import fails as it does where the package is missing."""
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FeatpipeError) as caught:
        evaluate(head, demo).plot(tmp_path / "p.png")
    assert str(caught.value) == (
        "--plot needs matplotlib: install it with pip install 'featpipe[report]'"
    )


@pytest.fixture
def poorer(tmp_path: Path) -> EmbeddingStore:
    """Return the same photographs as a backbone of 12 dimensions sees them."""
    X, labels, splits = demo_vectors()
    backbone = card(12, "small", "fedcba9876543210")
    return make_store(tmp_path / "poorer", X[:, :12], labels, splits=splits, backbone=backbone)


def test_heads_of_two_backbones_are_compared_image_by_image(demo, head, poorer) -> None:
    """Accuracies, who alone is right, the difference and its interval, and one sentence."""
    first, second = evaluate(head, demo), evaluate(fit(poorer, "centroid"), poorer)
    found = compare(first, second)
    right = [e.probabilities.argmax(axis=1) == e.y for e in (first, second)]
    assert found.n_samples == 200
    assert found.first.accuracy == first.accuracy
    assert found.first.interval == first.intervals["accuracy"]
    assert found.second.accuracy == second.accuracy
    assert found.first.only_right == (right[0] & ~right[1]).sum()
    assert found.second.only_right == (right[1] & ~right[0]).sum()
    assert found.difference == pytest.approx(100 * (first.accuracy - second.accuracy))
    only = found.first.only_right, found.second.only_right
    assert found.p_value == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    low, high = found.interval
    assert 0 < low < found.difference < high
    assert found.better is found.first
    assert found.sentence() == (
        f"{head!r} is better than {second.head} by {found.difference:.1f} points ({low:.1f} to "
        f"{high:.1f})"
    )
    assert found.notes == ()


def test_the_other_way_round_says_the_same(demo, head, poorer) -> None:
    """The better head stands first in the sentence, whichever is asked about."""
    first, second = evaluate(head, demo), evaluate(fit(poorer, "centroid"), poorer)
    there, back = compare(first, second), compare(second, first)
    assert back.difference == -there.difference
    assert back.p_value == there.p_value
    assert back.better is back.second
    assert (-back.interval[1], -back.interval[0]) == pytest.approx(there.interval, abs=1)
    start, end = f"{head!r} is better than ", f" by {there.difference:.1f} points ("
    assert back.sentence().startswith(start + second.head + end)


def test_heads_that_are_alike_are_not_called_better(demo, head) -> None:
    """The same head twice; and two kinds of head that these images cannot tell apart."""
    found = evaluate(head, demo)
    same = compare(found, found)
    furthest = 100 * (1 - 0.025 ** (1 / 200))
    assert (same.difference, same.p_value, same.better) == (0.0, 1.0, None)
    assert same.interval == pytest.approx((-furthest, furthest))
    assert same.sentence() == (
        "no difference that these 200 images could show: the first head is at +0.0 points to the "
        f"second head (-{furthest:.1f} to +{furthest:.1f})"
    )
    assert same.table().splitlines()[-1] == same.sentence()
    alike = compare(evaluate(fit(demo, "logreg"), demo), evaluate(fit(demo, "lda"), demo))
    assert alike.better is None
    assert alike.sentence().startswith("no difference that these 200 images could show: ")


def made(right: list[bool], **options) -> Evaluation:
    n = len(right)
    y = np.zeros(n, dtype=np.int64)
    p = np.where(np.array(right)[:, None], [[0.9, 0.1]], [[0.2, 0.8]])
    metrics = compute_metrics(y, p, ["ant", "bee"], majority=0)
    images = tuple(f"{i}.jpg" for i in range(n))
    keys = tuple(bytes([i]) for i in range(n))
    values = {"head": "a", "units": np.arange(n), "paths": images, "keys": keys, **options}
    head = values.pop("head")
    return Evaluation(head, "s", "test", ("ant", "bee"), metrics, y, p, **values)


def test_few_differing_images_prove_nothing() -> None:
    """Five of forty, all one way: the bootstrap alone is sure, the exact test is not."""
    found = compare(made([True] * 40), made([True] * 35 + [False] * 5, head="b"))
    assert found.interval[0] == 0
    assert found.p_value == pytest.approx(0.0625)
    assert found.better is None
    assert found.sentence().startswith("no difference that these 40 images could show: a is at ")


def test_images_of_one_group_prove_little() -> None:
    """Twenty of forty, all of one patient: the exact test is sure, the bootstrap is not."""
    units = np.repeat([0, 1, 2], [20, 10, 10])
    first = made([True] * 40, units=units)
    found = compare(first, made([False] * 20 + [True] * 20, head="b", units=units))
    assert found.p_value < 0.001
    assert found.interval[0] == 0.0
    assert found.better is None
    assert "< 0.001" in found.table()


def test_what_one_store_lacks_is_left_out_and_counted() -> None:
    """An image that only one has, one that has changed, and one under another label."""
    first = made([True] * 20)
    keys = (b"changed", *first.keys[1:])
    second = made([True] * 20, head="b", paths=(*first.paths[:-1], "other.jpg"), keys=keys)
    second.y[5] = 1
    found = compare(first, second)
    assert found.n_samples == 17
    assert found.notes == (
        "4 images that one head alone was measured on are left out",
        "1 images that have two labels are left out",
    )


def test_nothing_in_common_is_said() -> None:
    """Two stores of two sources; two splits of one."""
    first, second = made([True] * 3), made([True] * 3, paths=("x", "y", "z"))
    with pytest.raises(LabelError) as caught:
        compare(first, second)
    assert str(caught.value) == (
        "s and s have no image in common (the split test): stores are paired by path and content, "
        "so both must come from one source"
    )
    with pytest.raises(LabelError) as caught:
        compare(first, dataclasses.replace(second, split=None))
    assert str(caught.value) == (
        "the heads were measured on two things, the split test and all images: choose one split "
        "for both"
    )


def test_images_that_either_head_has_learnt_are_left_out(demo, head) -> None:
    """A head that has seen the images of the split test is measured on the others: none is."""
    seen = fit(half(demo, "test"), "knn", check=False)
    found = compare(evaluate(seen, demo), evaluate(head, demo))
    assert found.n_samples == 100
    unseen = np.flatnonzero(demo.splits == "test")[1::2]
    assert found.first.accuracy == (seen.predict(demo.X[unseen]) == demo.labels()[unseen]).mean()
    assert found.notes == (
        f"100 images that {seen!r} or {head!r} was fitted on, or copies of them, are left out",
    )
    assert found.withheld == ""
    there, back = evaluate(head, demo), evaluate(seen, demo)
    assert compare(there, back).difference == -found.difference


def half(store: EmbeddingStore, split: str) -> EmbeddingStore:
    """Return every second image of a split as a store of its own, of no split."""
    rows = np.flatnonzero(store.splits == split)[::2]
    labels = [str(label) for label in store.labels()[rows]]
    path = store.path.with_name(f"half-{split}")
    return make_store(path, store.X[rows], labels, contents=rows.tolist())


def test_the_same_head_twice_is_said_once(demo, head) -> None:
    """All images of which 160 were learnt on: 200 are compared."""
    found = evaluate(head, demo, split="all")
    both = compare(found, found)
    assert both.n_samples == 200
    assert both.notes == (
        "160 images that the first head or the second head was fitted on, or copies of them, are "
        "left out",
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_where_all_was_learnt_there_is_no_verdict(demo, head, tmp_path, split) -> None:
    """By one head or by both together: the figures stand, and the sentence says why no more."""
    X, labels, splits = demo_vectors()
    here = np.flatnonzero(np.array(splits) == "train")
    names = [labels[i] for i in here]
    store = make_store(tmp_path / "m", X[here], names, splits=[split] * 160, contents=here.tolist())
    rest = half(demo, "test")
    other = fit(rest, "centroid", check=False)
    found = compare(evaluate(other, store, split=split), evaluate(head, store, split=split))
    assert found.n_samples == 160
    assert found.difference < 0
    assert found.better is None
    assert found.withheld == (
        f"{head!r} was fitted on all of these 160 images, or on copies of them, which flatters "
        "it: compare on images that are new to both"
    )
    assert found.sentence() == f"no verdict: {found.withheld}"
    assert found.table().splitlines()[-1] == found.sentence()
    value = found.to_json()
    assert (value["better"], value["withheld"]) == (None, found.withheld)
    [note] = found.notes
    assert note.startswith(f"{head!r}: the head was fitted on these images: ")


def test_two_heads_that_have_learnt_all_between_them_have_no_verdict() -> None:
    """Each has seen one half of the images; either half flatters the one."""
    flags = np.arange(40) < 20
    first = made([True] * 40, learnt=flags)
    found = compare(first, made([False] * 40, head="b", learnt=~flags))
    assert (found.n_samples, found.better) == (40, None)
    assert found.sentence() == (
        "no verdict: a or b was fitted on each of these 40 images, or on a copy of it, which "
        "flatters them: compare on images that are new to both"
    )


def test_a_comparison_is_plain_json(demo, head, poorer) -> None:
    """Both heads, the figures, the sentence."""
    found = compare(evaluate(head, demo), evaluate(fit(poorer, "centroid"), poorer))
    value = found.to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["better"] == "first"
    assert value["sentence"] == found.sentence()
    assert value["second"]["only_right"] == found.second.only_right
    assert value["withheld"] is None
    assert (value["split"], value["n_samples"], value["notes"]) == ("test", 200, [])
