"""What a head reaches without transfer, and what is said of its lead."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import numpy_helper
from vectors import hymenoptera_store, make_store

from featpipe import embed, load_backbone
from featpipe.backbones.random_weights import randomise
from featpipe.baselines import Baseline, Baselines
from featpipe.baselines.comparison import _Job
from featpipe.baselines.features import RANDOM, RAW_PIXELS, _schema, features
from featpipe.errors import BackboneError
from featpipe.heads import head_spec
from featpipe.splits import divide
from featpipe.store import EmbeddingStore
from featpipe.training import fit


def result(lead: float, low: float, high: float) -> Baselines:
    names = ("commonest label", "raw pixels")
    leads = ((40.0, (30.0, 50.0)), (lead, (low, high)))
    return Baselines(
        100,
        50,
        0.7,
        (0.6, 0.8),
        tuple(
            Baseline(name, 0.7 - points / 100, (0.1, 0.9), points, interval)
            for name, (points, interval) in zip(names, leads, strict=True)
        ),
    )


def test_the_verdict_is_that_of_the_interval() -> None:
    """Over the best baseline: above zero, around it, below it; whole sentences."""
    assert result(20, 5, 35).words == (
        "transfer leads by 20.0 points (5.0 to 35.0) over raw pixels, the best baseline (50.0 %)"
    )
    none = result(3, -5, 11)
    assert none.verdict == "no transfer"
    assert none.words == (
        "no transfer: the lead of 3.0 points (-5.0 to 11.0) over raw pixels, the best baseline "
        "(67.0 %) may be chance: look at the labels (`featpipe clean`), try another backbone, or "
        "add images"
    )
    negative = result(-12, -20, -4)
    assert negative.verdict == "negative transfer"
    assert negative.words == (
        "negative transfer: 12.0 points (-20.0 to -4.0) behind raw pixels, the best baseline "
        "(82.0 %): this backbone hides what tells the classes apart; try another one, or a larger "
        "input size"
    )


@pytest.fixture(scope="module")
def hymenoptera(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return hymenoptera_store(shared, tmp_path_factory.mktemp("hymenoptera") / "store")


@pytest.mark.slow
def test_transfer_leads_on_real_photographs(hymenoptera: EmbeddingStore) -> None:
    """By tens of points over raw pixels, random weights and the commonest label."""
    found = fit(hymenoptera, "logreg").report["baselines"]
    assert found["verdict"] == "transfer"
    assert [b["name"] for b in found["baselines"]] == [
        "commonest label",
        "raw pixels",
        "random weights",
    ]
    assert (found["learnt_on"], found["measured_on"]) == (245, 153)
    assert all(b["lead_95"][0] > 10 for b in found["baselines"])
    low, high = found["interval_95"]
    assert low <= found["accuracy"] <= high


def test_labels_at_random_show_no_transfer(
    hymenoptera: EmbeddingStore, shared: Path, tmp_path: Path
) -> None:
    """Real photographs under labels drawn by chance: the note says so, of a split or without."""
    rng = np.random.default_rng(3)
    labels = rng.choice(["heads", "tails"], len(hymenoptera))
    root = shared / "datasets/hymenoptera_data"
    for splits in (True, False):
        lines = ["path,label" + (",split" if splits else "")]
        for path, label, split in zip(hymenoptera.paths, labels, hymenoptera.splits, strict=True):
            lines.append(f"{root / path},{label}" + (f",{split}" if splits else ""))
        table = tmp_path / f"{splits}.csv"
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
        store = tmp_path / f"{splits}.store"
        report = fit(embed(table, output=store), "ridge").report
        assert report["baselines"]["verdict"] == "no transfer"
        assert report["baselines"]["words"] in report["notes"]
        assert report["baselines"]["words"].startswith("no transfer: the lead of ")


def test_what_was_computed_is_kept(hymenoptera: EmbeddingStore, tmp_path: Path) -> None:
    """By content: equal vectors without opening an image; a damaged file is made anew."""
    path = tmp_path / "store"
    shutil.copytree(hymenoptera.path, path)
    store, rows = EmbeddingStore.open(path), np.arange(0, len(hymenoptera), 25)
    seen: list[str] = []
    for name, file in ((RAW_PIXELS, "raw-pixels.parquet"), (RANDOM, "random-weights.parquet")):
        (path / file).unlink(missing_ok=True)
        first = features(store, rows, name, lambda progress: seen.append(progress.stage))
        assert set(first) == set(rows.tolist())
        assert seen
        seen.clear()
        again = features(store, rows, name, lambda progress: seen.append(progress.stage))
        assert seen == []
        assert all(np.array_equal(first[row], again[row]) for row in first)
        for damaged in (b"", (path / file).read_bytes()[:-20], b"PAR1" * 10):
            (path / file).write_bytes(damaged)
            anew = features(store, rows, name, lambda progress: seen.append(progress.stage))
            assert seen
            seen.clear()
            assert all(np.array_equal(first[row], anew[row]) for row in first)


def test_vectors_of_another_backbone_are_not_taken(
    hymenoptera: EmbeddingStore, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """A file that was copied from another store counts for nothing."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    rows = np.arange(len(store))
    features(store, rows, RAW_PIXELS)
    file = tmp_path / "store/raw-pixels.parquet"
    features(hymenoptera, np.arange(3), RAW_PIXELS)
    shutil.copy(hymenoptera.path / "raw-pixels.parquet", file)
    seen: list[str] = []
    assert len(features(store, rows, RAW_PIXELS, lambda p: seen.append(p.stage))) == len(store)
    assert seen


def test_raw_pixels_are_those_of_the_image(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """The vectors of the backbone that is none, by the ordinary way."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    plain = embed(photos, "raw_pixels", output=tmp_path / "plain", device="cpu")
    found = features(store, np.arange(len(store)), RAW_PIXELS)
    assert store.paths == plain.paths
    assert np.array_equal(np.stack(list(found.values())), plain.X)


def test_images_that_are_gone_are_said(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """No baseline, a note in whole, and the estimate stands."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    shutil.rmtree(photos)
    report = fit(store, "centroid", cv=2, check=False, baselines=True).report
    assert report["baselines"] is None
    assert "the baselines were not measured: the images cannot be opened again" in report["notes"]


def test_a_backbone_that_is_not_here_leaves_raw_pixels(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Its random weights are left out, and that is said."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    found = fit(store, "centroid", cv=2).report["baselines"]
    assert [b["name"] for b in found["baselines"]] == ["commonest label", "raw pixels"]
    assert found["notes"] == ["random weights were not measured: the backbone tiny is not here"]


def test_without_checks_there_are_none(tmp_path: Path) -> None:
    """`check=False` leaves them out unless they are asked for."""
    rng = np.random.default_rng(0)
    store = make_store(
        tmp_path / "store", rng.normal(size=(20, 8)).astype(np.float32), labels=list("ab") * 10
    )
    report = fit(store, "centroid", cv=2, check=False).report
    assert report["baselines"] is None
    assert report["notes"] == []


def test_random_weights_have_the_shape_and_nothing_else(tmp_path: Path) -> None:
    """Every weight is drawn, every bias is zero, pixels are normalised as before; by the seed."""
    trained = load_backbone()
    drawn = randomise(trained, tmp_path / "a.onnx")
    assert drawn.name == "random-efficientnet_lite0"
    assert drawn.fingerprint != trained.fingerprint
    assert randomise(load_backbone(), tmp_path / "b.onnx").fingerprint == drawn.fingerprint
    other = randomise(load_backbone(), tmp_path / "c.onnx", seed=1)
    assert other.fingerprint != drawn.fingerprint
    before, after = (onnx.load(path).graph for path in (trained.path, tmp_path / "a.onnx"))
    old = {t.name: numpy_helper.to_array(t) for t in before.initializer}
    for tensor in after.initializer:
        values = numpy_helper.to_array(tensor)
        assert values.shape == old[tensor.name].shape
        assert values.dtype == old[tensor.name].dtype
        if tensor.name.endswith(".weight"):
            fan_in = np.prod(values.shape[1:])
            assert 0.7 < values.var() * fan_in < 2.9
            assert abs(np.corrcoef(values.ravel(), old[tensor.name].ravel())[0, 1]) < 0.2
        elif tensor.name.endswith(".bias"):
            assert not values.any()
        else:
            assert np.array_equal(values, old[tensor.name])
    vectors = (
        load_backbone(tmp_path / "a.onnx")
        .open_session("cpu")
        .run(np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8))
    )
    assert np.isfinite(vectors).all()
    assert vectors.std() > 0


def test_a_quantised_backbone_has_no_weights_to_draw(tmp_path: Path) -> None:
    """Its integers stay what they are: that is said."""
    with pytest.raises(BackboneError) as error:
        randomise(load_backbone("raw_pixels"), tmp_path / "no.onnx")
    assert str(error.value) == (
        "the backbone holds no weights as floating-point numbers, so none can be drawn anew"
    )
    assert not (tmp_path / "no.onnx").exists()


def test_groups_are_drawn_whole_and_stay_in_one_fold(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many images some patients are drawn, enough of every class, with all of their images."""
    monkeypatch.setattr("featpipe.baselines.comparison.MOST_IMAGES", 24)
    lines = ["path,label,group"]
    root = tmp_path / "many"
    for label in ("living", "things"):
        for number, path in enumerate(sorted((photos / label).glob("*.jpg"))[:3] * 8):
            copy = root / label / f"{number}.jpg"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes() + bytes([number]))
            lines.append(f"{copy},{label},{label}-{number // 4}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    store = embed(table, tiny_backbone, output=tmp_path / "store")
    labels = store.labels()
    job = _Job(head_spec("ridge"), store, divide(store, labels), None, None, 3, 0)
    drawn, groups = set(job._learn.tolist()), store.groups
    assert 24 <= len(drawn) < len(store)
    for name in set(groups[sorted(drawn)]):
        assert set(np.flatnonzero(groups == name)) <= drawn
    found = fit(store, "ridge", cv=3, check=False, baselines=True).report["baselines"]
    assert found["learnt_on"] == len(drawn)


def test_a_split_that_is_gone_leaves_no_baseline(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Of its images none can be opened, of the others all: said, and no crash."""
    root = tmp_path / "both"
    shutil.copytree(photos, root / "train")
    shutil.copytree(photos / "living", root / "val" / "living")
    for path in (root / "val").rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"other")
    store = embed(root, tiny_backbone, output=tmp_path / "store")
    shutil.rmtree(root / "val")
    report = fit(store, "centroid", cv=2, check=False, baselines=True).report
    assert report["baselines"] is None
    assert report["notes"] == ["the baselines were not measured: the images cannot be opened again"]


@pytest.mark.parametrize("width", [5, 3072])
def test_a_file_that_holds_too_much_is_not_read(
    photos: Path, tiny_backbone: Path, tmp_path: Path, width: int
) -> None:
    """Of another width, or of very many rows that take little room: nothing of it is taken."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    rows = 60_000
    keys = pa.array([bytes(16)] * rows, pa.binary(16))
    values = pa.array(np.zeros(rows * width, np.float32))
    kind = pa.list_(pa.field("element", pa.float32()), width)
    table = pa.table(
        [keys, pa.FixedSizeListArray.from_arrays(values, type=kind)],
        schema=_schema(store, width),
    )
    file = store.path / "raw-pixels.parquet"
    pq.write_table(table, file, compression="zstd")
    del table, values
    before = pa.total_allocated_bytes()
    pa.default_memory_pool().release_unused()
    assert len(features(store, np.arange(len(store)), RAW_PIXELS)) == len(store)
    assert pa.total_allocated_bytes() - before < 2**24
    assert pq.ParquetFile(file).metadata.num_rows == len(set(store.keys))
