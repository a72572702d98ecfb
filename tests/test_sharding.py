"""Shards: the pieces of a source, their stores, and what they are joined to."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PHOTOS, Result
from hypothesis import given
from hypothesis import strategies as st

from featpipe import embed, fit
from featpipe._columns import LISTED
from featpipe.embedding import EmbedOptions, EmbedReport, run_embedding
from featpipe.errors import SourceError, StoreError
from featpipe.scoring import score
from featpipe.sources import PathSource, Source, grouped, open_source, sharded
from featpipe.store import (
    EmbeddingStore,
    Manifest,
    StoreWriter,
    merge_stores,
    newest_store,
    shard_notes,
)
from featpipe.types import ImageRef, Shard

Run = Callable[..., Result]
REPOSITORY = Path(__file__).parent.parent
SLURM = REPOSITORY / "examples" / "slurm"


class Listing(Source):
    """A source of ``count`` images without a file, in columns or not."""

    name, location = "listing", "nowhere"

    def __init__(self, count: int, block: int | None = None) -> None:
        super().__init__()
        self._count, self._block = count, block
        self.listed = 0

    def __iter__(self) -> Iterator[ImageRef]:
        for i in range(self._count):
            self.listed += 1
            yield ImageRef(f"{i}.jpg", 1, 1, label=str(i % 3), labels={"age": str(i)})
        self.notes = [f"listed {self._count}"]

    def read(self, ref: ImageRef) -> bytes:
        return ref.path.encode()


class Columns(Listing):
    """The same with a way of its own to list in columns, in blocks of odd sizes."""

    def batches(self) -> Iterator[pa.Table]:
        listed = pa.concat_tables(
            [LISTED.empty_table(), *super().batches()], promote_options="default"
        )
        for start in range(0, len(listed), self._block or 1):
            yield listed.slice(start, self._block or 1)


def paths_of(source: Source) -> list[str]:
    """Return the paths in columns, after a comparison with those of the iteration."""
    in_columns = [path for batch in source.batches() for path in batch.column("path").to_pylist()]
    assert [ref.path for ref in source] == in_columns
    return in_columns


@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 9), st.booleans())
def test_pieces_partition_any_listing(count: int, n: int, block: int, columns: bool) -> None:
    """In order, none twice, none left out, of sizes that differ by one at most; in both forms."""
    source = Columns(count, block) if columns else Listing(count)
    pieces = [sharded(source, Shard(i, n)) for i in range(1, n + 1)]
    found = [paths_of(piece) for piece in pieces]
    assert list(chain.from_iterable(found)) == [f"{i}.jpg" for i in range(count)]
    sizes = [len(paths) for paths in found]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [piece.count() for piece in pieces]


@given(st.integers(0, 10**12), st.integers(1, 10**6), st.data())
def test_bounds_follow_each_other(total: int, n: int, data: st.DataObject) -> None:
    """Each piece ends where the next begins; the first and the last are those of the listing."""
    i = data.draw(st.integers(1, n))
    begin, end = Shard(i, n).bounds(total)
    assert begin == (Shard(i - 1, n).bounds(total)[1] if i > 1 else 0)
    assert (end == total) if i == n else (end <= total)


def test_piece_is_the_source_in_all_else(photos: Path, tmp_path: Path) -> None:
    """Notes of the whole, columns, groups, labels, bytes and names pass through."""
    (photos / "notes.txt").write_text("no image")
    table = tmp_path / "table.csv"
    rows = [
        f"{p.relative_to(photos)},p{i % 2}" for i, p in enumerate(sorted(photos.rglob("*.jpg")))
    ]
    table.write_text("\n".join(["path,patient", *rows, "nowhere.jpg,p9"]))
    whole = open_source(photos, table)
    piece = grouped(sharded(whole, Shard(1, 3)), "patient")
    refs = list(piece)
    whole = grouped(whole, "patient")
    assert refs == list(whole)[:3]
    assert (refs[0].label, refs[0].group) == ("living", "p0")
    assert piece.read(refs[0]) == (photos / refs[0].path).read_bytes()
    assert (piece.name, piece.location, piece.columns) == (
        whole.name,
        whole.location,
        whole.columns,
    )
    assert piece.notes == whole.notes != []
    assert (piece.piece, piece.whole, piece.count()) == (Shard(1, 3), 10, 3)


def test_no_more_is_listed_than_to_the_end_of_the_piece() -> None:
    """After one count, the listing stops where the piece does."""
    source = Listing(100)
    piece = sharded(source, Shard(1, 10))
    assert piece.count() == 10
    source.listed = 0
    assert len(paths_of(piece)) == 10
    assert source.listed <= 2 * 11


@pytest.mark.parametrize("kind", ["table", "paths"])
def test_files_of_other_pieces_are_not_looked_at(
    kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table and a list say how many they are: the other files may lie on a slow server."""
    files = sorted(photos.rglob("*.jpg"))
    if kind == "table":
        (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{p},x\n" for p in files))
        source = open_source(tmp_path / "t.csv")
    else:
        source = open_source(files)
    looked = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: looked.append(str(path)) or real(path))
    refs = list(sharded(source, Shard(2, 5)))
    monkeypatch.undo()
    assert [ref.path for ref in refs] == [str(p) for p in files[2:4]]
    assert all(ref.size for ref in refs)
    assert [p for p in looked if p.endswith(".jpg")] == [str(p) for p in files[2:4]]


def test_source_may_divide_itself() -> None:
    """One that is made of files gives pieces of its own; they are marked as what they are."""

    class Files(PathSource):
        def shard(self, i: int, n: int) -> Source:
            return PathSource([f"file{i}of{n}"], name=self.name, location=self.location)

    source = Files(["a", "b"], name="x", location="y")
    piece = sharded(source, Shard(2, 2))
    assert ([ref.path for ref in piece], piece.piece) == (["file2of2"], Shard(2, 2))
    assert piece.whole is None
    assert sharded(source, None) is source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5/4", "there is no shard 5/4: in i/n, i goes from 1 to n"),
        ("0/4", "there is no shard 0/4: in i/n, i goes from 1 to n"),
        ("1/0", "there is no shard 1/0: in i/n, i goes from 1 to n"),
        ("x", "a shard is given as i/n, such as 2/4, not as 'x'"),
        ("1/", "a shard is given as i/n, such as 2/4, not as '1/'"),
        ("-1/4", "a shard is given as i/n, such as 2/4, not as '-1/4'"),
        ("²/4", "a shard is given as i/n, such as 2/4, not as '²/4'"),
        ("1/" + "9" * 5000, f"a shard is one of at most 999999999, not {'1/' + '9' * 5000!r}"),
    ],
)
def test_what_is_no_shard(text: str, message: str, run_cli: Run, tmp_path: Path) -> None:
    """It is refused before anything is looked for, by the command (exit code 2) and in Python."""
    for command in ("embed", "score"):
        result = run_cli(command, tmp_path / "nothing", "--shard", text)
        assert result.code == 2
        assert f"Invalid value for '--shard': {message}" in result.err.replace("\n", "")
    with pytest.raises(ValueError, match="shard") as caught:
        EmbedOptions(shard=text)
    assert str(caught.value) == message


def embedded(source: object, model: Path, output: Path, **options: object) -> EmbedReport:
    asked = EmbedOptions(**options)
    return run_embedding(source, model, output=output, options=asked)


def columns_of(store: EmbeddingStore) -> pa.Table:
    """Return what two stores of the same images share."""
    return store.index.table.drop_columns(["part", "row"]).combine_chunks()


def test_four_shards_merged_equal_one_run(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies, failures and labels included; any order of the shards; embed goes on from there."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(photos / "living" / "cat.jpg", photos / "things" / "zz_copy.jpg")
    (photos / "things" / "broken.jpg").write_bytes(b"no image")
    for i in (3, 1, 4, 2):
        done = run_cli("embed", photos, "--model", tiny_backbone, "--shard", f"{i}/4")
        assert done.code in (0, 3)
    folder = tmp_path / "embeddings" / "photos-tiny.shards"
    assert sorted(p.name for p in folder.iterdir()) == [f"{i}-of-4" for i in range(1, 5)]
    with pytest.raises(StoreError, match="there is no store under embeddings/"):
        newest_store()
    one = embed(photos, tiny_backbone, output="one")
    order = [folder / f"{i}-of-4" for i in (2, 4, 1, 3)]
    result = run_cli("merge", "embeddings/photos-tiny", *order)
    assert (result.code, result.err) == (0, "11 images from 4 stores → embeddings/photos-tiny\n")
    merged = EmbeddingStore.open("embeddings/photos-tiny")
    assert columns_of(merged).equals(columns_of(one))
    assert np.array_equal(merged.X, one.X)
    assert merged.manifest == one.manifest
    assert merged.failures == one.failures != []
    held = sum(len(np.load(p)) for p in (merged.path / "parts").glob("*.npy"))
    assert held == len(set(one.keys)) == 10
    again = run_embedding(photos, tiny_backbone)
    assert (again.store.path, again.opened, again.removed) == (merged.path.relative_to("."), 0, 0)
    assert run_embedding(photos, tiny_backbone).unchanged == 12
    (photos / "living" / "aa.jpg").write_bytes((PHOTOS / "coffee.jpg").read_bytes() + b"\0")
    assert run_embedding(photos, tiny_backbone).computed == 1


def test_shard_is_recorded_and_shown(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """In store.json, where a former featpipe does not look, and by embed --json and info."""
    args = ("embed", photos, "--model", tiny_backbone, "--shard", "2/4", "-o", tmp_path / "s")
    assert json.loads(run_cli(*args, "--json").out)["shard"] == "2/4"
    value = json.loads((tmp_path / "s" / "store.json").read_text())
    assert (value["format"], value["shard"], value["whole"]) == (1, "2/4", 10)
    assert f"source     {photos} (shard 2/4)\n" in run_cli("info", tmp_path / "s").out
    assert run_cli(*args).err.count("3 unchanged and not opened") == 1
    for field, wrong in (("shard", "5/4"), ("shard", 3), ("whole", "ten"), ("whole", False)):
        (tmp_path / "s" / "store.json").write_text(json.dumps({**value, field: wrong}))
        with pytest.raises(StoreError, match=f"its field '{field}' is amiss"):
            Manifest.read(tmp_path / "s")
    del value["shard"], value["whole"]
    (tmp_path / "s" / "store.json").write_text(json.dumps(value))
    assert Manifest.read(tmp_path / "s").shard is None


def test_store_of_another_shard_is_not_pruned(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Another shard, the whole, or a shard into the whole: each refuses, and nothing changes."""
    second, whole = tmp_path / "2", tmp_path / "whole"
    embedded(photos, tiny_backbone, second, shard="2/4")
    embedded(photos, tiny_backbone, whole)
    before = EmbeddingStore.open(second).paths
    elsewhere = "give another store with -o"
    for store, shard, message in (
        (second, "3/4", f"holds shard 2/4 of {photos}, not 3/4: {elsewhere}"),
        (second, "2/5", f"holds shard 2/4 of {photos}, not 2/5: {elsewhere}"),
        (
            second,
            None,
            f"holds shard 2/4 of {photos} alone: {elsewhere}, or join the shards with featpipe "
            "merge",
        ),
        (whole, "2/4", f"holds {photos} as a whole, and not shard 2/4 of it: {elsewhere}"),
    ):
        with pytest.raises(StoreError) as caught:
            embedded(photos, tiny_backbone, store, shard=shard)
        assert str(caught.value) == f"{store} {message}"
    assert EmbeddingStore.open(second).paths == before
    assert len(EmbeddingStore.open(whole)) == 10


def test_rows_that_are_kept_are_of_no_shard(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """With ``prune=False`` a store takes several shards, and is then no shard itself."""
    for i in (1, 2, 3):
        report = embedded(photos, tiny_backbone, tmp_path / "s", shard=f"{i}/3", prune=False)
    assert report.store.manifest.shard is report.store.manifest.whole is None
    again = embedded(photos, tiny_backbone, tmp_path / "s")
    assert (again.unchanged, again.opened, again.removed) == (10, 0, 0)


def test_missing_repeated_and_unequal_shards_are_named(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """The merge is made all the same; embed computes what is missing, and nothing else."""
    stores = {i: tmp_path / f"{i}" for i in (1, 2, 4)}
    for i, store in stores.items():
        embedded(photos, tiny_backbone, store, shard=Shard(i, 4))
    result = run_cli("merge", tmp_path / "m", stores[4], stores[2], stores[1], stores[2])
    assert result.err == (
        "Note: shard 3/4 is missing: `featpipe embed` with the merged store computes what it lacks."
        "\nNote: shard 2/4 is given twice.\n"
        f"8 images from 4 stores → {tmp_path}/m\n"
    )
    report = embedded(photos, tiny_backbone, tmp_path / "m")
    assert (report.unchanged, report.computed, report.removed) == (8, 2, 0)
    shutil.copy(PHOTOS / "cat.jpg", photos / "a.jpg")
    embedded(photos, tiny_backbone, stores[4], shard="4/4")
    manifests = [Manifest.read(store) for store in stores.values()]
    assert shard_notes(manifests)[1] == (
        "the source listed 10 images for one shard and 11 for another, so some may be missing: "
        "`featpipe embed` with the merged store computes what it lacks"
    )


def test_shards_beside_other_stores_are_a_store_of_several_sources(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Shards of two numbers, or a shard and a whole: a note says what the result is."""
    embedded(photos, tiny_backbone, tmp_path / "1", shard="1/2")
    embedded(photos, tiny_backbone, tmp_path / "2", shard="3/3")
    result = run_cli("merge", tmp_path / "m", tmp_path / "1", tmp_path / "2")
    assert result.err.startswith(
        "Note: shards are merged with stores that are no shards of the same source and number: "
        "the result is a store of several sources.\n"
    )
    manifest = Manifest.read(tmp_path / "m")
    assert (manifest.source, manifest.shard) == (f"{photos} + {photos}", None)


def test_empty_shard(run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """A job array may have more tasks than images: a note, exit code 0, a store that merges."""
    folder = photos / "living"
    for i in range(1, 7):
        args = ("embed", folder, "--model", tiny_backbone, "--shard", f"{i}/6")
        result = run_cli(*args, "-o", tmp_path / f"{i}")
        assert result.code == 0
        assert ("Note: shard 1/6 is empty: the source lists 4 images.\n" in result.err) == (i == 1)
    assert len(EmbeddingStore.open(tmp_path / "1")) == 0
    merged = merge_stores(tmp_path / "m", [tmp_path / f"{i}" for i in range(1, 7)])
    one = embed(folder, tiny_backbone, output=tmp_path / "one")
    assert columns_of(merged).equals(columns_of(one))
    assert merged.manifest == one.manifest
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SourceError, match="there is no image in"):
        embedded(tmp_path / "nothing", tiny_backbone, tmp_path / "x", shard="1/2")


def test_shards_at_the_same_time(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tasks of an array may start at once, each in its own store; one store has one writer."""
    monkeypatch.chdir(tmp_path)

    def task(i: int, output: str | None = None) -> EmbedReport:
        options = EmbedOptions(shard=Shard(i, 5), workers=1)
        return run_embedding(photos, tiny_backbone, output=output, options=options)

    with ThreadPoolExecutor(5) as pool:
        reports = list(pool.map(task, range(1, 6)))
        assert [report.computed for report in reports] == [2] * 5
        together = [pool.submit(task, i, "one-for-all") for i in range(1, 6)]
    merged = merge_stores(Path("merged"), [report.store.path for report in reports])
    assert columns_of(merged).equals(columns_of(embed(photos, tiny_backbone, output="one")))
    refused = [future.exception() for future in together if future.exception() is not None]
    assert len(refused) == 4
    assert all(isinstance(error, StoreError) for error in refused)
    assert len(EmbeddingStore.open("one-for-all")) == 2


def test_store_that_another_task_makes_meanwhile(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not there at first is looked at again under the lock, before it is changed."""
    real, store = StoreWriter.opened, tmp_path / "s"

    def late(path: Path, manifest: Manifest, **options: object) -> object:
        monkeypatch.undo()
        embedded(photos, tiny_backbone, store, shard="1/2")
        return real(path, manifest, **options)

    monkeypatch.setattr(StoreWriter, "opened", late)
    with pytest.raises(StoreError, match=f"{store} holds shard 1/2 of {photos}, not 2/2"):
        embedded(photos, tiny_backbone, store, shard="2/2")
    assert Manifest.read(store).shard == Shard(1, 2)
    assert embedded(photos, tiny_backbone, store, shard="1/2").unchanged == 5


def test_piece_keeps_its_name_under_labels_and_groups(photos: Path, tmp_path: Path) -> None:
    """A piece that is labelled afterwards, or grouped, still says that it is one."""
    table = tmp_path / "t.csv"
    rows = (f"{p.relative_to(photos)},p1\n" for p in sorted(photos.rglob("*.jpg")))
    table.write_text("path,patient\n" + "".join(rows))
    piece = sharded(open_source(photos), Shard(2, 2))
    labelled = open_source(piece, table, "patient")
    assert (labelled.piece, labelled.whole) == (Shard(2, 2), 10)
    assert [ref.group for ref in labelled] == ["p1"] * 5


def test_groups_of_a_table_in_shards(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """The chosen column stands in the merged store too, as one run would have written it."""
    table = tmp_path / "photos.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "age"])
        for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
            writer.writerow([path, path.parent.name, f"p{number // 2}", number])
    stores = []
    for i in (1, 2, 3):
        stores.append(tmp_path / f"{i}")
        options = EmbedOptions(shard=Shard(i, 3))
        run_embedding(table, tiny_backbone, output=stores[-1], group="patient", options=options)
    random.Random(0).shuffle(stores)
    merged = merge_stores(tmp_path / "m", stores)
    one = embed(table, tiny_backbone, output=tmp_path / "one", group="patient")
    assert columns_of(merged).equals(columns_of(one))
    assert merged.manifest == one.manifest
    assert merged.manifest.group == "patient"


@pytest.fixture
def head(photos: Path, tiny_backbone: Path, tmp_path: Path) -> Path:
    """Return a head on the photographs."""
    store = embed(photos, tiny_backbone, output=tmp_path / "whole")
    fit(store, "centroid").save(tmp_path / "head")
    return tmp_path / "head"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_scores_of_shards_are_those_of_one_run(
    form: str, head: Path, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """One after the other they are the rows of a single run, as docs/scale.md joins them."""
    folder = tmp_path / "scores"
    for i in range(1, 13):
        part = score(
            photos, head, output=folder / f"{i:02d}.{form}", model=tiny_backbone, shard=f"{i}/12"
        )
        assert part.images in (0, 1)
        assert (part.notes == (f"shard {i}/12 is empty: the source lists 10 images",)) == (
            part.images == 0
        )
    score(photos, head, output=tmp_path / f"one.{form}", model=tiny_backbone)
    if form == "parquet":
        assert pq.read_table(folder).equals(pq.read_table(tmp_path / "one.parquet"))
        return
    page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    join = {
        "csv": "head -n 1 scores/01.csv > scores.csv && tail -q -n +2 scores/*.csv >> scores.csv",
        "jsonl": "cat scores/*.jsonl",
    }[form]
    assert join in page
    done = subprocess.run(join, shell=True, cwd=tmp_path, check=True, capture_output=True)
    joined = done.stdout or (tmp_path / "scores.csv").read_bytes()
    assert joined == (tmp_path / f"one.{form}").read_bytes()


def test_journal_of_another_shard_is_not_taken_over(
    head: Path, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """What an interrupted shard has left is of no use to another one."""
    broken = photos / "living" / "aa.jpg"
    broken.write_bytes(b"no image")
    out = tmp_path / "out.csv"
    options = {"output": out, "model": tiny_backbone, "batch_size": 1}
    with pytest.raises(Exception, match="stopped after 1 failures"):
        score(photos, head, shard="1/2", max_failures=0, **options)
    broken.unlink()
    found = score(photos, head, shard="2/2", **options)
    assert found.notes == (
        f"{out}.partial, left by an interrupted run, belongs to a run with another shard: all "
        "images are scored anew",
    )
    assert found.images == 5


def slurm(script: str, place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the example; ``featpipe`` and ``sbatch`` come first on the path."""
    return subprocess.run(
        ["bash", str(SLURM / script)],
        cwd=place,
        env={**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def place(photos: Path, tiny_backbone: Path, tmp_path: Path) -> Path:
    """Return a working folder with a ``featpipe`` of this interpreter, and an ``sbatch``.

    The latter does what the scheduler would: every task of an array, and what depends on it
    only where all have ended well.
    """
    shutil.copy(tiny_backbone, tmp_path / "tiny.onnx")
    (tmp_path / "bin").mkdir()
    run = f'PYTHONPATH="{REPOSITORY}" exec "{sys.executable}" -m featpipe "$@"'
    sbatch = f'"{sys.executable}" "{Path(__file__).parent / "fake_sbatch.py"}" "$@"'
    for name, command in (("featpipe", run), ("sbatch", sbatch)):
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/bash\n{command}\n")
        file.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("script", ["array.sh", "merge.sh", "submit.sh"])
def test_slurm_scripts_are_sound(script: str) -> None:
    """Bash reads them, and they stop at the first error."""
    subprocess.run(["bash", "-n", str(SLURM / script)], check=True)
    assert "set -euo pipefail" in (SLURM / script).read_text()


def test_slurm_task(place: Path) -> None:
    """A task with the scheduler's variables set by hand takes its piece; an error is its own."""
    setting = {"SOURCE": "photos", "MODEL": "tiny.onnx", "STORE": "out/p"}
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}
    done = slurm("array.sh", place, **setting, **task)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.read(place / "out" / "p.shards" / "2-of-3")
    assert (manifest.shard, manifest.whole) == (Shard(2, 3), 10)
    done = slurm("array.sh", place, **{**setting, "SOURCE": "nothing"}, **task)
    assert (done.returncode, "there is nothing at nothing" in done.stderr) == (4, True)


def test_slurm_array(place: Path, tiny_backbone: Path) -> None:
    """One command submits the array and the merge that waits for it: one run's store.

    An image that fails ends a task with 0, as the merge waits for tasks that ended well.
    """
    (place / "photos" / "things" / "broken.jpg").write_bytes(b"no image")
    setting = {"SOURCE": "photos", "MODEL": "tiny.onnx", "STORE": "out/p", "TASKS": "2"}
    done = slurm("submit.sh", place, **setting)
    assert (done.returncode, done.stdout) == (0, "array 100 of 2 tasks, then merge 101\n"), done
    one = embed(place / "photos", tiny_backbone, output=place / "one")
    merged = EmbeddingStore.open(place / "out" / "p")
    assert columns_of(merged).equals(columns_of(one))
    assert np.array_equal(merged.X, one.X)
