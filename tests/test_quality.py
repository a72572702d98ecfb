"""Copies, splits that differ, wrong labels, poor images: what is found, and what is not."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score
from vectors import card, make_store

from featpipe import embed, evaluate
from featpipe._files import content_key
from featpipe.errors import StoreError
from featpipe.model_selection import make_folds
from featpipe.neighbours import Rows, search
from featpipe.quality import (
    clean,
    find_near_duplicates,
    look_at,
    measure_shift,
)
from featpipe.quality.looks import FILE_NAME, differing_bits, look
from featpipe.quality.mislabelled import suspects_of
from featpipe.quality.near import find_nearest
from featpipe.quality.shift import area
from featpipe.quality.threshold import DEFAULT, threshold_for
from featpipe.store import EmbeddingStore, Index, Manifest, Outcome, StoreWriter
from featpipe.training import fit
from featpipe.types import ImageRef

MEASURED = "copies.json"


def re_encode(path: Path, scale: float = 0.6, quality: int = 70, name: str = "small") -> Path:
    """Write a smaller, compressed copy beside a photograph."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    size = round(scale * image.width), round(scale * image.height)
    copy = path.with_name(f"{path.stem}_{name}.jpg")
    image.resize(size, Image.Resampling.BICUBIC).save(copy, quality=quality)
    return copy


@pytest.fixture
def copied(photos: Path) -> Path:
    """Return the photographs with a re-encoded copy of three, and an equal file of one."""
    for name in ("living/cat.jpg", "living/grass.jpg", "things/coffee.jpg"):
        re_encode(photos / name)
    shutil.copy(photos / "living/cat.jpg", photos / "living/cat_again.jpg")
    return photos


@pytest.fixture
def store(copied: Path, tiny_backbone: Path, tmp_path: Path) -> EmbeddingStore:
    return embed(copied, tiny_backbone, output=tmp_path / "store")


def named(store: EmbeddingStore, pairs: np.ndarray) -> set[tuple[str, str]]:
    return {(Path(store.paths[i]).stem, Path(store.paths[j]).stem) for i, j in pairs}


def test_re_encoded_copies_are_found_and_nothing_else(store: EmbeddingStore) -> None:
    """Real photographs: every planted copy, no other pair; of equal files one stands for both."""
    found = find_near_duplicates(store)
    assert named(store, found.pairs) == {
        ("cat", "cat_small"),
        ("coffee", "coffee_small"),
        ("grass", "grass_small"),
    }
    assert found.n_unseen == 0
    assert (found.bits <= found.threshold.bits).all()
    assert (found.cosines >= found.threshold.cosine).all()


def test_the_built_in_backbone_is_measured_on_the_images_themselves(
    copied: Path, tmp_path: Path
) -> None:
    """The threshold comes from copies of these photographs, is kept, and finds the same pairs."""
    store = embed(copied, output=tmp_path / "builtin")
    found = find_near_duplicates(store)
    assert 3 * 6 <= found.threshold.copies <= 3 * len(set(store.keys))
    assert 0.5 <= found.threshold.cosine < 1
    assert len(found) == 3
    assert (store.path / MEASURED).exists()
    assert threshold_for(store) == found.threshold
    assert str(found.threshold).endswith(
        f"apart, as {found.threshold.copies} re-encoded copies of these images show"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 60_000,
        b"[" * 90_000,
        b'{"sample": "x", "cosine": 0.9, "bits": 1, "copies": 3}',
        b'{"sample": "x", "cosine": 0.9, "bits": Infinity, "copies": 3}',
    ],
)
def test_a_threshold_of_something_else_is_not_taken(store: EmbeddingStore, content: bytes) -> None:
    """A damaged file, or one of another backbone, counts for nothing."""
    (store.path / MEASURED).write_bytes(content)
    assert threshold_for(store) == DEFAULT  # there is no backbone of the name `tiny`


def test_without_the_backbone_the_threshold_says_so(store: EmbeddingStore) -> None:
    """The store's backbone is a file that is not found by its name."""
    assert threshold_for(store).copies == 0
    assert str(DEFAULT) == (
        "cosine ≥ 0.85 and at most 4 of 63 bits apart, not measured on these images"
    )


def test_images_are_opened_once(store: EmbeddingStore, copied: Path) -> None:
    """What was seen is kept by content: the images may be gone the next time."""
    first = look_at(store)
    assert first.is_seen.all()
    shutil.rmtree(copied)
    again = look_at(store)
    assert again.is_seen.all()
    assert (again.hashes == first.hashes).all()
    assert (again.sharpness == first.sharpness).all()


def test_images_that_are_gone_or_changed_are_counted(store: EmbeddingStore, copied: Path) -> None:
    """A hash must belong to the content that was embedded."""
    (copied / "living" / "cat_small.jpg").unlink()
    shutil.copy(copied / "living" / "grass.jpg", copied / "things" / "coffee_small.jpg")
    found = find_near_duplicates(store)
    assert found.n_unseen == 2
    assert named(store, found.pairs) == {("grass", "grass_small")}


@pytest.mark.parametrize("damage", ["empty", "other", "cut"])
def test_a_damaged_record_of_looks_is_made_anew(store: EmbeddingStore, damage: str) -> None:
    """It holds nothing that could not be seen again."""
    first = look_at(store)
    path = store.path / FILE_NAME
    if damage == "other":
        shutil.copy(store.path / "index.parquet", path)
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-30])
    assert (look_at(store).hashes == first.hashes).all()


def test_a_store_may_lack_everything(tmp_path: Path) -> None:
    """Vectors without any image behind them: nothing is found, and that is said."""
    store = make_store(tmp_path / "s", np.eye(24, 30), ["a", "b"] * 12)
    found = find_near_duplicates(store)
    assert (len(found), found.n_unseen) == (0, 24)
    head = fit(store, "centroid", cv=2, baselines=False)
    assert head.report["notes"] == [
        f"the source {tmp_path / 'photos'} cannot be opened again: 24 images were not looked at, "
        "and copies among them are not found"
    ]
    assert head.report["quality"]["near_duplicates"]["not_looked_at"] == 24


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_bits_are_counted(a: int, b: int) -> None:
    """As Python counts them."""
    hashes = np.array([a], np.uint64), np.array([b], np.uint64)
    assert differing_bits(*hashes).tolist() == [(a ^ b).bit_count()]


@pytest.mark.parametrize("change", ["darker", "jpeg", "half"])
def test_a_copy_keeps_its_hash(photos: Path, change: str) -> None:
    """Within four bits, whatever was done to the photograph; other photographs are further off."""
    files = sorted(photos.rglob("*.jpg"))
    own = np.array([look(path.read_bytes())[0] for path in files], np.uint64)
    others = []
    for path in files:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        if change == "darker":
            image = image.point(lambda v: int(0.7 * v))
        if change == "half":
            image = image.resize((image.width // 2, image.height // 2))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=60)
        others.append(look(file.getvalue())[0])
    apart = differing_bits(own[:, None], np.array(others, np.uint64)[None, :])
    assert np.diag(apart).max() <= 4
    assert (apart + 99 * np.eye(len(files), dtype=int)).min() > 8


def test_copies_stay_in_one_fold_and_the_estimate_stands_without_them(
    store: EmbeddingStore,
) -> None:
    """Eight images are equal or copies: two estimates, and a note that shows the threshold."""
    head = fit(store, "centroid", cv=2, baselines=False)
    estimate = head.report["estimate"]
    assert head.report["notes"] == [
        "7 images are resized or re-encoded copies of others (cosine ≥ 0.85 and at most 4 of 63 "
        "bits apart, not measured on these images): cross-validation keeps copies together"
    ]
    assert estimate["n_samples"] == 14
    assert estimate["without_copies"]["n_samples"] == 10
    assert head.report["quality"]["near_duplicates"] == {
        "images": 7,
        "pairs": 3,
        "cosine": 0.85,
        "bits": 4,
        "calibrated_on": 0,
        "not_looked_at": 0,
    }
    unchecked = fit(store, "centroid", cv=2, check=False)
    assert unchecked.report["quality"] is None
    assert "without_copies" not in unchecked.report["estimate"]


def test_folds_are_made_of_images_not_of_copies(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut into folds: equal files and copies share a unit, others do not."""
    seen: list[np.ndarray] = []

    def spy(y, units, *arguments, **options):
        seen.append(units)
        return make_folds(y, units, *arguments, **options)

    monkeypatch.setattr("featpipe.training.make_folds", spy)
    fit(store, "centroid", cv=2, baselines=False)
    groups: dict[int, set[str]] = {}
    for path, unit in zip(store.paths, seen[0], strict=True):
        groups.setdefault(int(unit), set()).add(Path(path).stem)
    assert sorted(map(sorted, (g for g in groups.values() if len(g) > 1))) == [
        ["cat", "cat_again", "cat_small"],
        ["coffee", "coffee_small"],
        ["grass", "grass_small"],
    ]
    assert len(groups) == 10


def test_a_class_of_copies_alone_is_learnt_all_the_same(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Five copies of one photograph: kept together they could not be held out."""
    (photos / "rockets").mkdir()
    for number in range(5):
        copy = re_encode(photos / "things" / "rocket.jpg", 0.5 + 0.1 * number, name=str(number))
        shutil.move(copy, photos / "rockets" / copy.name)
    head = fit(
        embed(photos, tiny_backbone, output=tmp_path / "s"), "centroid", cv=2, baselines=False
    )
    assert head.report["notes"][0].endswith(
        ": they are not kept together, as rockets would have too few images"
    )


def test_differing_splits_are_said(tmp_path: Path) -> None:
    """A whole `fit`: the figure, its interval, and what it means."""
    X, side, _, labels = sides(100, 4.0)
    splits = np.where(side == 1, "test", "train").tolist()
    store = make_store(tmp_path / "s", X, labels.tolist(), splits=splits)
    report = fit(store, "centroid", cv=2, baselines=False).report
    shift = report["quality"]["shift"]
    low, high = (f"{value:.0%}" for value in shift["interval_95"])
    assert shift["auc"] > 0.9
    assert report["notes"][-1] == (
        "the images of the split test differ from those of the training split, beyond their "
        "labels: of two images, one from each, a classifier tells which is which in "
        f"{shift['auc']:.0%} of cases ({low} to {high}; chance is 50%). They may come from other "
        "cameras, places or patients: the estimate is for images like those of the split test, and "
        "cross-validation on the training split may promise too much"
    )


def test_fit_prints_the_estimate_without_copies(store: EmbeddingStore, tmp_path, run_cli) -> None:
    """Below the table, as `fit` looks for copies unless it is told not to."""
    result = run_cli(
        "fit", store.path, "--head", "centroid", "--cv", "2", "--no-baselines", "-o", tmp_path / "h"
    )
    assert result.code == 0
    assert result.out.splitlines()[-1].startswith(
        "without the 4 that are copies of others: accuracy "
    )


def test_equal_copies_of_a_training_image_are_left_out(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Two equal test files that are copies of one training image: both are."""
    root = tmp_path / "split"
    shutil.copytree(photos, root / "train")
    for name in ("living/cat.jpg", "things/coffee.jpg"):
        target = root / "test" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "train" / name, target)
    copy = re_encode(root / "train" / "living" / "grass.jpg")
    shutil.copy(copy, root / "test" / "living" / "one.jpg")
    shutil.move(copy, root / "test" / "living" / "two.jpg")
    head = fit(embed(root, tiny_backbone, output=tmp_path / "s"), "centroid", cv=2, baselines=False)
    assert head.report["estimate"]["n_samples"] == 4
    assert head.report["estimate"]["without_training_images"]["n_samples"] == 2
    assert head.report["notes"][1].startswith("2 images of the split test have such a copy")


def test_a_pipe_in_place_of_an_image_is_not_waited_for(store: EmbeddingStore, copied: Path) -> None:
    """It counts as an image that is gone."""
    path = copied / "things" / "coffee.jpg"
    path.unlink()
    os.mkfifo(path)
    assert find_near_duplicates(store).n_unseen == 1


def test_odd_images_give_no_copies_to_measure_on(copied: Path, tmp_path: Path) -> None:
    """An icon, a long strip, 16-bit grey: the threshold is that of the photographs."""
    before = find_near_duplicates(embed(copied, output=tmp_path / "a")).threshold
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(copied / "icon.png")
    Image.new("RGB", (70_000, 60), (9, 99, 9)).save(copied / "strip.png")
    Image.fromarray(rng.integers(0, 2**16, (300, 300), dtype=np.uint16)).save(copied / "grey.png")
    assert find_near_duplicates(embed(copied, output=tmp_path / "b")).threshold == before


def test_copies_across_splits_and_labels_are_said(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """A test image that is a copy of a training image; copies with different labels."""
    root = tmp_path / "split"
    shutil.copytree(photos, root / "train")
    for name in ("living/cat.jpg", "living/grass.jpg", "things/coffee.jpg", "things/rocket.jpg"):
        target = root / "test" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "train" / name, target)
    copy = re_encode(root / "test" / "living" / "cat.jpg")
    shutil.move(copy, root / "train" / "living" / "cat_small.jpg")
    copy = re_encode(root / "train" / "living" / "astronaut.jpg")
    shutil.move(copy, root / "train" / "things" / "astronaut_small.jpg")
    head = fit(embed(root, tiny_backbone, output=tmp_path / "s"), "centroid", cv=2, baselines=False)
    assert head.report["notes"] == [
        "4 images are resized or re-encoded copies of others (cosine ≥ 0.85 and at most 4 of 63 "
        "bits apart, not measured on these images): cross-validation keeps copies together",
        "1 images of the split test have such a copy in the training split: the estimate without "
        "them stands beside it",
        "copies under two labels: train/living/astronaut.jpg (living) ≈ "
        "train/things/astronaut_small.jpg (things): correct one label",
    ]
    estimate = head.report["estimate"]
    assert estimate["n_samples"] == 4
    assert estimate["without_training_images"]["n_samples"] == 3


def test_many_images_are_not_looked_at_by_fit(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take longer than the fit; the note says so."""
    monkeypatch.setattr("featpipe.quality.findings.MOST_IMAGES", 5)
    head = fit(store, "centroid", cv=2, baselines=False)
    assert head.report["notes"] == [
        "near-duplicates were not looked for, as there are more than 20,000 images: `featpipe "
        "clean` finds them"
    ]


def sides(n: int, distance: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    side = np.repeat([0, 1], n)
    X = rng.normal(size=(2 * n, 20)).astype(np.float32)
    X[:, 0] += distance * side
    return X, side, np.arange(2 * n), np.array(["a", "b"] * n, dtype=object)


def test_a_shift_is_seen_and_chance_is_not() -> None:
    """A classifier tells sets apart that lie apart; two draws of one distribution it does not."""
    apart = measure_shift(*sides(150, 3.0))
    assert apart is not None
    assert apart.is_clear
    assert apart.auc > 0.9
    assert apart.interval_95[0] < apart.auc < apart.interval_95[1]
    assert set(apart.per_class) == {"a", "b"}
    for seed in range(5):
        alike = measure_shift(*sides(150, 0.0, seed))
        assert alike is not None
        assert not alike.is_clear


def test_other_shares_of_classes_are_no_shift() -> None:
    """Nine tenths of one class here and there of the other: the images are the same."""
    rng = np.random.default_rng(0)
    side = np.repeat([0, 1], 200)
    is_b = rng.random(400) < np.where(side == 1, 0.8, 0.2)
    X = rng.normal(size=(400, 20)).astype(np.float32)
    X[:, 0] += 4 * is_b
    found = measure_shift(X, side, np.arange(400), np.where(is_b, "b", "a").astype(object))
    assert found is not None
    assert not found.is_clear


def test_few_images_have_no_shift() -> None:
    """Nor have groups that hold all of one side."""
    assert measure_shift(*sides(6, 3.0)) is None
    X, side, _, labels = sides(40, 3.0)
    assert measure_shift(X, side, side, labels) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_area_is_the_share_of_pairs(pairs: list[tuple[int, bool]]) -> None:
    """Right pairs count one, ties half."""
    scores = np.array([float(score) for score, _ in pairs])
    side = np.array([int(is_second) for _, is_second in pairs])
    if len(set(side)) < 2:
        return
    gaps = scores[side == 1][:, None] - scores[side == 0][None, :]
    assert area(scores, side) == pytest.approx(np.mean((gaps > 0) + 0.5 * (gaps == 0)))
    weights = np.arange(len(side)) % 3 + 1
    assert area(scores, side, weights) == pytest.approx(
        roc_auc_score(side, scores, sample_weight=weights)
    )


def test_wrong_labels_come_first() -> None:
    """Sure of another class; the surest first. An image at the border is no suspect."""
    p = np.array([[0.9, 0.1], [0.02, 0.98], [0.1, 0.9], [0.2, 0.8], [0.97, 0.03], [0.15, 0.85]])
    found = suspects_of(p, np.array([0, 0, 1, 1, 1, 0]))
    assert found.rows.tolist() == [1, 4]
    assert found.suggested.tolist() == [1, 0]
    assert found.confidence.tolist() == [0.02, 0.03]


@pytest.fixture
def poor(copied: Path) -> Path:
    """Add a blank, a dark, a blurred, a tiny and a broken image, and a copy with another label."""
    blank = Image.new("RGB", (300, 200), (250, 250, 250))
    blank.save(copied / "things" / "blank.png")
    with Image.open(copied / "living" / "astronaut.jpg") as opened:
        image = opened.convert("RGB")
    image.point(lambda v: v // 24).save(copied / "living" / "dark.png")
    image.filter(ImageFilter.GaussianBlur(12)).save(copied / "living" / "blurred.png")
    image.resize((300, 40)).save(copied / "living" / "long.png")
    (copied / "things" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    shutil.move(copied / "living" / "grass_small.jpg", copied / "things" / "lawn.jpg")
    return copied


def test_clean_finds_every_kind(poor: Path, tiny_backbone: Path, tmp_path: Path, run_cli) -> None:
    """Each planted flaw under its name; files stay where they are."""
    before = sorted(poor.rglob("*"))
    store = embed(poor, tiny_backbone, output=tmp_path / "poor")
    found = clean(store, head="centroid")
    paths = {
        kind: {Path(p.path).stem for p in found.of(kind)} for kind in found.to_json()["counts"]
    }
    assert paths["unreadable"] == {"broken"}
    assert paths["duplicate"] == {"cat_again"}
    assert {"cat_small", "coffee_small", "lawn"} <= paths["near-duplicate"]
    assert paths["two-labels"] == {"lawn"}
    assert paths["blank"] == {"blank"}
    assert paths["dark"] == {"dark", "galaxies"}
    assert "blurred" in paths["blurred"]
    assert paths["odd-size"] == {"long"}
    assert sorted(poor.rglob("*")) == before

    result = run_cli("clean", store.path, "--head", "centroid", "--json")
    assert result.code == 0
    assert json.loads(result.out)["counts"]["two-labels"] == 1

    result = run_cli("clean", store.path, "--head", "centroid", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert len(rows) == len(found.problems)
    assert {"kind": "odd-size", "path": "living/long.png"}.items() <= rows[-1].items()

    result = run_cli("clean", store.path, "--head", "centroid")
    assert "duplicate: 1 the same bytes as another" in result.out
    assert "    living/cat_again.jpg (living) = living/cat.jpg: the same bytes" in result.out


def test_clean_takes_a_store_without_labels_and_refuses_two_formats(
    photos: Path, tiny_backbone: Path, tmp_path: Path, run_cli
) -> None:
    """Labels are then not judged, which is said; a clean set is called so."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.jpg"):
        if path.stem != "galaxies":  # a picture of the night sky is dark
            shutil.copy(path, flat / path.name)
    store = embed(flat, tiny_backbone, output=tmp_path / "s")
    result = run_cli("clean", store.path)
    assert result.code == 0
    assert result.err == "Note: there are no labels, so none was judged.\n"
    assert result.out.endswith("nothing was found amiss\n")
    assert run_cli("clean", store.path, "--json", "--csv").code == 2


def test_an_image_that_looks_like_no_other_is_named(tmp_path: Path) -> None:
    """Vectors in one direction, and one in another."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 16)) + 5 * np.eye(16)[0]
    X[17] = 5 * np.eye(16)[9]
    store = make_store(tmp_path / "s", X, ["a", "b"] * 30)
    assert [p.path for p in clean(store, head="centroid").of("unlike-others")] == ["00017.jpg"]


def test_a_rare_class_does_not_keep_the_others_from_being_judged(tmp_path: Path) -> None:
    """Its labels are not judged, and it is named; a wrong label elsewhere is found."""
    rng = np.random.default_rng(0)
    labels = ["a"] * 20 + ["b"] * 20 + ["rare"]
    X = rng.normal(size=(41, 8))
    X[:20, 0] += 9
    X[20:, 1] += 9
    labels[3] = "b"
    found = clean(make_store(tmp_path / "s", X, labels), head="logreg")
    assert [p.path for p in found.of("wrong-label")] == ["00003.jpg"]
    assert found.notes[-1] == (
        "labels were not judged in 1 classes (rare), which have fewer than 3 distinct images or "
        "groups"
    )


def test_noise_has_no_wrong_labels(tmp_path: Path) -> None:
    """Labels that say nothing of the vectors: nothing is likelier than the label."""
    rng = np.random.default_rng(0)
    labels = [f"class {k}" for k in rng.integers(20, size=400)]
    store = make_store(tmp_path / "s", rng.normal(size=(400, 32)), labels)
    assert clean(store).of("wrong-label") == ()


def in_parts(path: Path, X: np.ndarray, dtype: str) -> EmbeddingStore:
    """Write a store of several parts whose order is not that of the images."""
    order = np.random.default_rng(1).permutation(len(X))
    keys = [content_key(str(i).encode()) for i in range(len(X))]
    with StoreWriter.opened(path, Manifest(card(X.shape[1]), dtype, "nowhere")) as writer:
        for rows in np.array_split(order, 5):
            writer.append([keys[i] for i in rows], X[rows].astype(np.float32))
        refs = [ImageRef(f"{i:05d}.jpg", 1, 1) for i in range(len(X))]
        outcomes = [Outcome("ok", key, 8, 8) for key in keys]
        writer.commit(Index.build(zip(refs, outcomes, strict=True), writer.places))
    return EmbeddingStore.open(path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_in_several_parts_are_compared_without_holding_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """The same neighbours and cosines, to the bit, as of one array; reads are of a block each."""
    X = np.random.default_rng(0).normal(size=(5000, 700))
    X[4000:4100] = X[:100]
    store = in_parts(tmp_path / "s", X, dtype)
    whole = Rows.measured(store.X)
    distances, positions = search(whole, whole, 13)

    read = EmbeddingStore.read_stored
    sizes: list[int] = []

    def spy(store: EmbeddingStore, rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        return read(store, rows)

    monkeypatch.setattr(EmbeddingStore, "read_stored", spy)
    monkeypatch.setattr(EmbeddingStore, "X", property(lambda _: pytest.fail("all were read")))
    found = find_nearest(EmbeddingStore.open(store.path))
    assert (found.others == positions).all()
    assert (found.cosines == 1 - distances).all()
    assert max(sizes) == 2**21 // 700
    assert len(sizes) > 2 * 5 * 2


def test_a_vector_that_is_no_number_is_named(tmp_path: Path) -> None:
    """As those who learn on it name it."""
    X = np.eye(30, 20)
    X[7, 3] = np.nan
    store = in_parts(tmp_path / "s", X, "float32")
    with pytest.raises(StoreError) as caught:
        find_nearest(store)
    assert str(caught.value) == (
        f"the vector of 00007.jpg in {tmp_path}/s holds NaN or infinity (1 vectors do): embed "
        "again with --dtype float32 into a new store, or take the image out"
    )


def test_evaluate_finds_copies_of_training_images(
    photos: Path, tiny_backbone: Path, tmp_path: Path, run_cli
) -> None:
    """Of a store that holds both: counted apart from equal files, and measured without them."""
    root = tmp_path / "both"
    shutil.copytree(photos, root / "train")
    shutil.copytree(photos, root / "test")
    for path in (root / "test").rglob("*.jpg"):
        with Image.open(path) as image:
            turned = image.convert("RGB").rotate(90, expand=True)
        turned.save(path, quality=90)
    for name in ("living/cat.jpg", "things/coffee.jpg"):
        copy = re_encode(root / "train" / name)
        copy.rename(root / "test" / name.replace(".jpg", "_small.jpg"))
    shutil.copy(root / "train/living/grass.jpg", root / "test/living/grass_again.jpg")
    store = embed(root, tiny_backbone, output=tmp_path / "s")
    head = fit(store, "centroid", cv=2, check=False)
    found = evaluate(head, store)
    n = found.metrics.n_samples
    assert found.notes == (
        f"the head was fitted on 1 of these {n} images: the figures are too good",
        f"2 of these {n} images are resized or re-encoded copies of images that the head was "
        "fitted on: the figures are too good",
    )
    assert found.rest is not None
    assert found.rest.n_samples == n - 3
    assert found.to_json()["without_training_images"]["n_samples"] == n - 3
    assert [found.paths[i] for i in np.flatnonzero(found.learnt)] == [
        "test/living/cat_small.jpg",
        "test/living/grass_again.jpg",
        "test/things/coffee_small.jpg",
    ]
    unchecked = evaluate(head, store, check=False)
    assert len(unchecked.notes) == 1
    assert unchecked.learnt.sum() == 1
    assert unchecked.rest is not None
    assert unchecked.rest.n_samples == n - 1
    head.save(tmp_path / "h")
    result = run_cli("evaluate", tmp_path / "h", store.path)
    assert result.out.splitlines()[-1].startswith(
        "without the 3 that are copies of training images: accuracy "
    )


def test_evaluate_says_that_groups_are_shared(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Other images of a patient were learnt on: the figures are too good for new patients."""
    lines = ["path,label,split,group"]
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        lines.append(
            f"{path},{path.parent.name},{'test' if number % 2 else 'train'},p{number // 2}"
        )
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    store = embed(table, tiny_backbone, output=tmp_path / "s")
    head = fit(store, "centroid", cv=2, check=False)
    groups = len(set(store.groups[store.splits == "test"]))
    assert evaluate(head, store).notes[0] == (
        f"{groups} groups, such as p0, have other images that the head was fitted on: the figures "
        "are too good for new groups"
    )
    shutil.rmtree(photos)
    (store.path / FILE_NAME).unlink()
    assert evaluate(head, store).notes[1] == (
        f"{len(store)} images are gone, have changed since they were embedded, or cannot be read: "
        "copies among them are not found"
    )


def test_a_head_that_has_seen_the_images_is_not_called_better(
    photos: Path, tiny_backbone: Path, tmp_path: Path, run_cli
) -> None:
    """Files and re-encoded copies that either head has learnt are left out; or all, and said."""
    root = tmp_path / "both"
    shutil.copytree(photos, root / "train")
    for name in ("living/cat.jpg", "things/coffee.jpg"):
        copy = re_encode(root / "train" / name)
        new = root / "test" / name.replace(".jpg", "_small.jpg")
        new.parent.mkdir(parents=True)
        copy.rename(new)
    alone = ("living/retina", "living/grass", "things/rocket", "things/gravel", "things/galaxies")
    for name in (f"{stem}.jpg" for stem in alone):
        (root / "train" / name).rename(root / "test" / name)
    store = embed(root, tiny_backbone, output=tmp_path / "s")
    fit(store, "centroid", cv=2, check=False).save(tmp_path / "h")
    for name in (f"{stem}.jpg" for stem in alone):
        place = tmp_path / "seen" / ("test" if "galaxies" in name else "train") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "test" / name, place)
    seen = embed(tmp_path / "seen", tiny_backbone, output=tmp_path / "t")
    fit(seen, "knn", tune=False, check=False, cv=2).save(tmp_path / "g")
    both = ("evaluate", tmp_path / "g", store.path, "--against", tmp_path / "h")
    result = run_cli(*both, "--json")
    value = json.loads(result.out)
    assert (result.code, value["n_samples"]) == (0, 1)
    assert result.err == (
        f"Note: 6 images that {tmp_path}/g or {tmp_path}/h was fitted on, or copies of them, are "
        "left out.\n"
    )
    result = run_cli(*both, "--split", "train")
    assert result.out.splitlines()[-1] == (
        f"no verdict: {tmp_path}/h was fitted on all of these 5 images, or on copies of them, "
        "which flatters it: compare on images that are new to both"
    )
