"""The store: parts, index and manifest, whole whatever happens."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.errors import FingerprintError, LabelError, LockedError, StoreError, WriteError
from featpipe.store import (
    EmbeddingStore,
    Index,
    Manifest,
    Outcome,
    StoreWriter,
    collect_garbage,
    merge_stores,
    newest_store,
    parts,
    verify_store,
    write_parquet,
)
from featpipe.types import ImageRef

CARD: Mapping[str, Any] = {"name": "tiny", "fingerprint": "f" * 32, "dimension": 3}
MANIFEST = Manifest(CARD, "float32", "somewhere", ({"provider": "cpu", "precision": "fp32"},))


def key(name: str) -> bytes:
    """Return a key for a made-up content."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def vector(name: str) -> np.ndarray:
    """Return the vector that stands for a made-up content."""
    return np.frombuffer(key(name)[:6], dtype=np.uint16).astype(np.float32) / 256


def fill(
    path: Path, contents: Mapping[str, str], manifest: Manifest = MANIFEST, **fields: Any
) -> EmbeddingStore:
    """Write a store of path → content."""
    with StoreWriter.opened(path, manifest) as writer:
        names = list(dict.fromkeys(contents.values()))
        writer.append([key(n) for n in names], np.stack([vector(n) for n in names]))
        writer.flush()
        rows = [
            (ImageRef(p, 1, 2, **fields), Outcome("ok", key(c), 4, 5)) for p, c in contents.items()
        ]
        writer.commit(Index.build(rows, writer.places))
    return EmbeddingStore.open(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Vectors, paths, keys and labels come back in order."""
    contents = {"b.jpg": "x", "a\udce9.jpg": "y"}
    store = fill(tmp_path / "s", contents, label="ant", split="train", group="g")
    assert store.paths == list(contents)
    assert np.array_equal(store.X, np.stack([vector("x"), vector("y")]))
    assert store.keys == [key("x"), key("y")]
    assert list(store.labels()) == ["ant", "ant"]
    assert list(store.splits) == ["train", "train"]
    assert store.groups is not None
    assert list(store.groups) == ["g", "g"]
    assert (len(store), store.dimension, store.source) == (2, 3, "somewhere")
    assert repr(store) == f"EmbeddingStore('{tmp_path}/s': 2 images, tiny, 3 dimensions)"


def test_one_part_in_order_is_a_memory_map(tmp_path: Path) -> None:
    """The common case costs no memory; anything else is gathered into one array."""
    assert isinstance(fill(tmp_path / "s", {"a": "x", "b": "y"}).X, np.memmap)
    store = fill(tmp_path / "t", {"a": "x", "b": "y", "c": "x"})
    assert not isinstance(store.X, np.memmap)
    assert np.array_equal(store.X[0], store.X[2])


def test_parts_are_plain_numpy(tmp_path: Path) -> None:
    """Anybody can read a part: NumPy alone, and keys of 16 bytes with the file's digest."""
    store = fill(tmp_path / "s", {"a": "x"})
    data = (store.path / "parts" / "00000.npy").read_bytes()
    assert np.array_equal(np.load(store.path / "parts" / "00000.npy"), vector("x")[None])
    digest = hashlib.blake2b(data + key("x"), digest_size=16).digest()
    assert (store.path / "parts" / "00000.keys").read_bytes() == key("x") + digest


def test_parts_grow_with_the_run(tmp_path: Path) -> None:
    """The first part is written early, the later ones are larger; each key has one row."""
    with StoreWriter.opened(tmp_path / "s", MANIFEST) as writer:
        names = [str(i) for i in range(500)]
        writer.append([key(n) for n in names], np.stack([vector(n) for n in names]))
        writer.append([key("7")], vector("7")[None])
    sizes = [len(np.load(p)) for p in sorted((tmp_path / "s" / "parts").glob("*.npy"))]
    assert sizes == [32, 64, 128, 256, 20]


def test_failures_are_rows_without_a_vector(tmp_path: Path) -> None:
    """An image that failed keeps its place in the index and its reason."""
    with StoreWriter.opened(tmp_path / "s", MANIFEST) as writer:
        row = (ImageRef("a.jpg", label="x"), Outcome("undecodable", key("a"), reason="no"))
        writer.commit(Index.build([row], writer.places))
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.failures == [("a.jpg", "undecodable", "no")]
    assert (len(store), store.X.shape) == (0, (0, 3))


def test_label_columns_have_names(tmp_path: Path) -> None:
    """Further label columns are asked for by name; an unknown one names those there are."""
    store = fill(tmp_path / "s", {"a": "x"}, label="ant", labels={"age": "3"})
    assert store.label_columns == ["label", "age"]
    assert list(store.labels("age")) == ["3"]
    with pytest.raises(LabelError) as caught:
        store.labels("sex")
    assert str(caught.value) == (f"{tmp_path}/s has no label column 'sex': it has label, age")


def test_the_only_label_column_needs_no_name(tmp_path: Path) -> None:
    """Where the main column is empty and one other is there, that one is meant."""
    store = fill(tmp_path / "s", {"a": "x"}, labels={"age": "3"})
    assert list(store.labels()) == ["3"]


def test_newest_store_is_the_one_written_last(tmp_path: Path) -> None:
    """Without a name, the store that was written last is meant; without any, a sentence."""
    with pytest.raises(StoreError) as caught:
        newest_store(tmp_path)
    assert str(caught.value) == (
        f"there is no store under {tmp_path}/: make one with `featpipe embed SOURCE`, "
        "or name the store"
    )
    fill(tmp_path / "b", {"a": "x"})
    fill(tmp_path / "a", {"a": "x"})
    fill(tmp_path / "b", {"a": "y"})
    assert newest_store(tmp_path).path == tmp_path / "b"


def test_second_writer_is_kept_out_and_readers_never_wait(tmp_path: Path) -> None:
    """Two writers exclude each other; a reader opens meanwhile."""
    fill(tmp_path / "s", {"a": "x"})
    with StoreWriter.opened(tmp_path / "s", MANIFEST):
        with pytest.raises(LockedError), StoreWriter.opened(tmp_path / "s", MANIFEST):
            pass
        assert len(EmbeddingStore.open(tmp_path / "s")) == 1


def test_other_backbone_is_refused_by_name(tmp_path: Path) -> None:
    """Vectors of two backbones never mix; both are named."""
    fill(tmp_path / "s", {"a": "x"})
    other = Manifest({**CARD, "name": "big", "fingerprint": "0" * 32}, "float32", "somewhere")
    with pytest.raises(FingerprintError) as caught, StoreWriter.opened(tmp_path / "s", other):
        pass
    assert str(caught.value) == (
        f"{tmp_path}/s holds vectors of tiny (ffffffffffff), not of big (000000000000): "
        "give another store with -o"
    )


def test_other_dtype_is_refused(tmp_path: Path) -> None:
    """A store has one dtype."""
    fill(tmp_path / "s", {"a": "x"})
    other = Manifest(CARD, "float16", "somewhere")
    with pytest.raises(StoreError) as caught, StoreWriter.opened(tmp_path / "s", other):
        pass
    assert str(caught.value) == (
        f"{tmp_path}/s holds float32 vectors, not float16: leave --dtype out, or give another "
        "store with -o"
    )


def test_half_precision_takes_half_the_space(tmp_path: Path) -> None:
    """float16 stores float16, and reads as such."""
    store = fill(tmp_path / "s", {"a": "x"}, Manifest(CARD, "float16", "somewhere"))
    assert store.X.dtype == np.float16
    assert np.array_equal(store.X[0], vector("x").astype(np.float16))


def test_engines_are_recorded_once(tmp_path: Path) -> None:
    """Every provider that has written into a store is in its manifest, each once."""
    fill(tmp_path / "s", {"a": "x"})
    fill(tmp_path / "s", {"a": "x"})
    gpu = Manifest(CARD, "float32", "somewhere", ({"provider": "cuda", "precision": "fp16"},))
    store = fill(tmp_path / "s", {"b": "y"}, gpu)
    assert [e["provider"] for e in store.manifest.engines] == ["cpu", "cuda"]


def test_strangers_folder_is_not_written_into(tmp_path: Path) -> None:
    """A folder with other things in it is never taken for a store."""
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreError) as caught, StoreWriter.opened(tmp_path, MANIFEST):
        pass
    assert str(caught.value) == (
        f"{tmp_path} holds other things (such as thesis.tex) and is no store: give an empty or "
        "new folder with -o"
    )


def test_no_store_is_a_sentence(tmp_path: Path) -> None:
    """A folder without a manifest is no store."""
    with pytest.raises(StoreError) as caught:
        EmbeddingStore.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not a store of featpipe: it has no store.json; make one with: "
        "featpipe embed SOURCE"
    )


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one out."""
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": 2},
            "{s} has format 2, written by a newer featpipe; this one (0.1.0) reads up to 1: "
            "upgrade featpipe",
        ),
        ({"format": "1"}, "{s} is damaged: store.json names no format"),
        ({"kind": "x"}, "{s} is not a store of featpipe: its store.json is another's"),
        ({"dtype": None}, "{s}/store.json is damaged: its field 'dtype' is amiss"),
        ({"engines": "cpu"}, "{s}/store.json is damaged: its field 'engines' is amiss"),
        ({"source": 5}, "{s}/store.json is damaged: its field 'source' is amiss"),
        ({"group": 5}, "{s}/store.json is damaged: its field 'group' is amiss"),
        ({"backbone": []}, "{s}/store.json is damaged: its field 'backbone' is amiss"),
        (
            {"backbone": {"name": "x", "fingerprint": "y", "dimension": True}},
            "{s}/store.json is damaged: its field 'backbone.dimension' is amiss",
        ),
    ],
)
def test_damaged_or_newer_manifest_is_a_sentence(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """What is amiss in store.json is named by field."""
    fill(tmp_path / "s", {"a": "x"})
    edit(tmp_path / "s" / "store.json", **changes)
    with pytest.raises(StoreError) as caught:
        EmbeddingStore.open(tmp_path / "s")
    assert str(caught.value) == message.format(s=tmp_path / "s")


def test_damaged_index_is_a_sentence_and_is_made_anew(tmp_path: Path) -> None:
    """A reader names the damaged index; a writer replaces it and keeps the vectors."""
    path = fill(tmp_path / "s", {"a": "x"}).path
    (path / "index.parquet").write_bytes(b"PAR1 damaged")
    again = "run `featpipe embed` again; no vector is computed twice"
    with pytest.raises(StoreError) as caught:
        EmbeddingStore.open(path)
    assert str(caught.value) == f"{path}/index.parquet is damaged: {again}"
    with StoreWriter.opened(path, MANIFEST) as writer:
        assert key("x") in writer.places
        assert writer.notes == [
            f"{path}/index.parquet was damaged and is made anew; its vectors are kept"
        ]


def test_missing_index_or_column_is_a_sentence(tmp_path: Path) -> None:
    """An index that is missing, or lacks a column, or has it in another type, is named."""
    path = fill(tmp_path / "s", {"a": "x"}).path
    again = "run `featpipe embed` again; no vector is computed twice"
    table = pq.read_table(path / "index.parquet")
    pq.write_table(table.drop_columns(["size"]), path / "index.parquet")
    with pytest.raises(StoreError) as caught:
        EmbeddingStore.open(path)
    assert str(caught.value) == f"{path}/index.parquet is damaged (no column 'size'): {again}"
    wrong = table.set_column(2, "size", table.column("path"))
    pq.write_table(wrong, path / "index.parquet")
    with pytest.raises(StoreError) as caught:
        EmbeddingStore.open(path)
    assert str(caught.value) == f"{path}/index.parquet is damaged (column 'size'): {again}"
    (path / "index.parquet").unlink()
    with pytest.raises(StoreError) as caught:
        EmbeddingStore.open(path)
    assert str(caught.value) == f"{path}/index.parquet is missing: {again}"


@pytest.mark.parametrize("damage", ["truncate", "delete", "shorten", "other"])
def test_damaged_part_is_named(tmp_path: Path, damage: str) -> None:
    """A part that is cut, gone, too short or of another shape is named with the way out."""
    store = fill(tmp_path / "s", {"a": "x", "b": "y"})
    part = store.path / "parts" / "00000.npy"
    why = {
        "truncate": "it is not a whole NumPy array",
        "delete": "the file is missing",
        "shorten": "it has fewer rows than the index says",
        "other": "it holds float64 (2, 3)",
    }[damage]
    if damage == "truncate":
        part.write_bytes(part.read_bytes()[:-3])
    elif damage == "delete":
        part.unlink()
    else:
        np.save(part, np.load(part)[:1] if damage == "shorten" else np.zeros((2, 3)))
    with pytest.raises(StoreError) as caught:
        EmbeddingStore.open(store.path).X  # noqa: B018 - the property reads the file
    assert str(caught.value) == (
        f"{part} is damaged ({why}): delete it and run `featpipe embed` again; only its images "
        "are computed anew"
    )


def test_writer_sets_a_damaged_part_aside(tmp_path: Path) -> None:
    """A damaged part counts for nothing, and is kept under another name."""
    path = fill(tmp_path / "s", {"a": "x"}).path
    part = path / "parts" / "00000.npy"
    part.write_bytes(part.read_bytes()[:-3])
    with StoreWriter.opened(path, MANIFEST) as writer:
        assert not writer.places
        assert writer.notes == [
            f"{part} was damaged and is set aside; its images are computed anew"
        ]
    assert (path / "parts" / "00000.npy.damaged").exists()


def test_numbers_of_parts_that_are_gone_are_not_given_again(tmp_path: Path) -> None:
    """A reader with an older index would take another image's vector for its own."""
    path = fill(tmp_path / "s", {"a": "x"}).path
    before = EmbeddingStore.open(path)
    part = path / "parts" / "00000.npy"
    part.write_bytes(part.read_bytes()[:-3])
    with StoreWriter.opened(path, MANIFEST):
        pass
    fill(path, {"b": "y"})
    with pytest.raises(StoreError, match="missing"):
        _ = before.X
    between = EmbeddingStore.open(path)
    with StoreWriter.opened(path, MANIFEST) as writer:
        writer.commit(Index.empty())
    assert collect_garbage(path).dropped == 1
    fill(path, {"c": "z"})
    with pytest.raises(StoreError, match="missing"):
        _ = between.X
    assert np.array_equal(EmbeddingStore.open(path).X, [vector("z")])


def test_promises_to_workers_stay_with_their_store(tmp_path: Path) -> None:
    """A merged store begins with its own first part."""
    fill(tmp_path / "a", {"a": "x"}, replace(MANIFEST, next_part=7))
    fill(tmp_path / "b", {"b": "y"})
    merged = merge_stores(tmp_path / "ab", [tmp_path / "a", tmp_path / "b"])
    assert (merged.manifest.next_part, parts.list_parts(merged.path)) == (0, [0])
    assert collect_garbage(tmp_path / "a").dropped == 0
    assert Manifest.read(tmp_path / "a").next_part == 7


def test_writer_sweeps_what_a_crash_left(tmp_path: Path) -> None:
    """Temporary files and vectors without keys are remains of an interrupted write."""
    path = fill(tmp_path / "s", {"a": "x"}).path
    shutil.copy(path / "parts" / "00000.npy", path / "parts" / "00001.npy")
    (path / "parts" / ".00002.npy.abc.tmp").write_bytes(b"half")
    (path / ".index.parquet.abc.tmp").write_bytes(b"half")
    with StoreWriter.opened(path, MANIFEST) as writer:
        assert writer.places == {key("x"): (0, 0)}
    names = sorted(p.name for p in path.rglob("*") if p.is_file())
    assert names == [".lock", "00000.keys", "00000.npy", "index.parquet", "store.json"]


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    """A flipped bit that every length check misses is found by the digest."""
    store = fill(tmp_path / "s", {"a": "x"})
    assert verify_store(store) == []
    part = store.path / "parts" / "00000.npy"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(bytes(data))
    [problem] = verify_store(store)
    assert problem == (
        f"{part} is damaged (its bytes have changed): delete it and run `featpipe embed` again; "
        "only its images are computed anew"
    )
    part.unlink()
    [problem] = verify_store(store)
    assert problem == f"{part} cannot be read: No such file or directory"
    part.with_suffix(".keys").unlink()
    [problem] = verify_store(store)
    assert problem.startswith(f"{part} is damaged (the file is missing): ")


def test_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    """Where the index cannot be written, the former one stands."""
    path = fill(tmp_path / "s", {"a": "x"}).path
    parts = path / "parts"
    shutil.move(parts, path / "elsewhere")
    parts.write_text("in the way")
    with pytest.raises(WriteError), StoreWriter.opened(path, MANIFEST) as writer:
        writer.append([key("y")], vector("y")[None])
    parts.unlink()
    shutil.move(path / "elsewhere", parts)
    assert EmbeddingStore.open(path).paths == ["a"]


def test_gc_drops_what_nobody_refers_to(tmp_path: Path) -> None:
    """Vectors of deleted images go, the others stay where their images find them."""
    fill(tmp_path / "s", {"a": "x", "b": "y"})
    before = fill(tmp_path / "s", {"b": "y", "c": "z"})
    done = collect_garbage(tmp_path / "s")
    assert (done.kept, done.dropped, done.freed > 0) == (2, 1, True)
    after = EmbeddingStore.open(tmp_path / "s")
    assert np.array_equal(after.X, before.X)
    assert after.paths == ["b", "c"]
    assert verify_store(after) == []
    assert collect_garbage(tmp_path / "s").dropped == 0


def test_gc_refuses_a_store_that_lacks_vectors(tmp_path: Path) -> None:
    """With a part missing, nothing is thrown away."""
    fill(tmp_path / "s", {"a": "x"})
    fill(tmp_path / "s", {"a": "x", "b": "y"})
    for path in (tmp_path / "s" / "parts").glob("00000.*"):
        path.unlink()
    with pytest.raises(StoreError) as caught:
        collect_garbage(tmp_path / "s")
    assert str(caught.value) == (
        f"{tmp_path}/s lacks the vectors of 1 images: run `featpipe embed` again first; "
        "they alone are computed"
    )


def test_merge_joins_images_and_shares_contents(tmp_path: Path) -> None:
    """Two stores become one; a content that both hold is there once."""
    one = fill(tmp_path / "1", {"a": "x", "b": "y"}, label="ant")
    two = fill(tmp_path / "2", {"b": "y", "c": "x", "d": "z"}, labels={"age": "3"})
    merged = merge_stores(tmp_path / "m", [one.path, two.path])
    assert merged.paths == ["a", "b", "c", "d"]
    assert np.array_equal(merged.X, np.stack([vector(n) for n in "xyxz"]))
    assert list(merged.labels("label")) == ["ant", "ant", None, None]
    assert list(merged.labels("age")) == [None, None, "3", "3"]
    assert sum(len(np.load(p)) for p in (merged.path / "parts").glob("*.npy")) == 3


def test_merge_refuses_what_does_not_fit(tmp_path: Path) -> None:
    """One path for two contents, two dtypes or two backbones: each has its sentence."""
    one, two = fill(tmp_path / "1", {"a": "x"}), fill(tmp_path / "2", {"a": "y"})
    with pytest.raises(StoreError) as caught:
        merge_stores(tmp_path / "m", [one.path, two.path])
    assert str(caught.value) == (
        "two of the stores hold different images under the path a: embed one of the sources "
        "from a folder above, so that the paths differ"
    )
    half = fill(tmp_path / "3", {"b": "y"}, Manifest(CARD, "float16", "x"))
    with pytest.raises(StoreError) as caught:
        merge_stores(tmp_path / "m", [one.path, half.path])
    assert str(caught.value) == (
        f"{tmp_path}/1 holds float32 vectors and {tmp_path}/3 float16: only stores of one dtype "
        "can be merged"
    )
    other = fill(tmp_path / "4", {"b": "y"}, Manifest({**CARD, "fingerprint": "0"}, "float32", "x"))
    with pytest.raises(FingerprintError):
        merge_stores(tmp_path / "m", [one.path, other.path])
    assert not (tmp_path / "m" / "index.parquet").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet_holds_vectors_and_labels(tmp_path: Path, dtype: str) -> None:
    """The table has the index's columns and the vectors as a fixed-size list."""
    store = fill(tmp_path / "s", {"a": "x", "b": "y"}, Manifest(CARD, dtype, "x"), label="ant")
    assert write_parquet(store, tmp_path / "t.parquet") == 2
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column("path").to_pylist() == ["a", "b"]
    assert table.column("label").to_pylist() == ["ant", "ant"]
    assert table.schema.field("embedding").type.list_size == 3
    assert np.array_equal(np.array(table.column("embedding").to_pylist()), store.X)
    assert "part" not in table.column_names


refs = st.builds(
    ImageRef,
    path=st.binary(min_size=1, max_size=12).map(lambda b: b.decode("utf-8", "surrogateescape")),
    size=st.none() | st.integers(0, 2**62),
    mtime_ns=st.none() | st.integers(-(2**62), 2**62),
    label=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    split=st.sampled_from([None, "train", "test"]),
    labels=st.dictionaries(st.sampled_from(["a", "b"]), st.none() | st.just("v"), max_size=2),
)


@given(st.lists(refs, max_size=8, unique_by=lambda r: r.path), st.data())
def test_index_comes_back(
    tmp_path_factory: pytest.TempPathFactory, listed: list[ImageRef], data: st.DataObject
) -> None:
    """Whatever a source lists is read from the index as it was written."""
    statuses = [data.draw(st.sampled_from(["ok", "undecodable"])) for _ in listed]
    rows = [
        (ref, Outcome("ok", key(ref.path.encode("utf-8", "surrogateescape").hex()), 1, 2))
        if status == "ok"
        else (ref, Outcome("undecodable", None, reason="no"))
        for ref, status in zip(listed, statuses, strict=True)
    ]
    places = {o.key: (0, i) for i, (_, o) in enumerate(rows) if o.key is not None}
    folder = tmp_path_factory.mktemp("s")
    index = Index.build(rows, places)
    index.write(folder)
    read = Index.read(folder)
    assert read == index
    assert read.paths() == [r.path for r in listed]
    assert read.values("label") == [r.label for r in listed]
    assert list(read.integers("row")) == [i if s == "ok" else -1 for i, s in enumerate(statuses)]


def test_index_is_unhashable_and_unlike_other_things() -> None:
    """An index compares by content with its like alone."""
    assert Index.empty() == Index.empty()
    assert Index.empty() != "index"
    with pytest.raises(TypeError):
        hash(Index.empty())


def test_merge_goes_on_after_an_interruption(tmp_path: Path) -> None:
    """What an interrupted merge has left is no store yet; a finished one is not merged into."""
    one, two = fill(tmp_path / "1", {"a": "x"}), fill(tmp_path / "2", {"b": "y"})
    lost = tmp_path / "1" / "parts" / "00000.keys"
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(StoreError) as caught:
        merge_stores(tmp_path / "m", [one.path, two.path])
    assert str(caught.value) == (
        "one of the stores lacks the vectors of 1 images: run `featpipe embed` again first; they "
        "alone are computed"
    )
    lost.write_bytes(kept)
    assert merge_stores(tmp_path / "m", [one.path, two.path]).paths == ["a", "b"]
    with pytest.raises(StoreError) as caught:
        merge_stores(tmp_path / "m", [two.path])
    assert str(caught.value) == (
        f"{tmp_path}/m is a store already: give a new folder for the merged one, and name this one "
        "among the stores if its images belong there"
    )


def test_merge_prefers_a_vector_to_a_failure(tmp_path: Path) -> None:
    """A path that one store could not read and the other could is no contradiction."""
    with StoreWriter.opened(tmp_path / "1", MANIFEST) as writer:
        row = (ImageRef("a"), Outcome("unreadable", None, reason="no"))
        writer.commit(Index.build([row], writer.places))
    two = fill(tmp_path / "2", {"a": "x"})
    merged = merge_stores(tmp_path / "m", [tmp_path / "1", two.path])
    assert (merged.paths, merged.failures) == (["a"], [])


def test_verify_finds_an_index_that_leads_astray(tmp_path: Path) -> None:
    """Rows that lead to another content's vector are found, though no byte of a part changed."""
    store = fill(tmp_path / "s", {"a": "x", "b": "y"})
    table = pq.read_table(store.path / "index.parquet")
    rows = table.column("row").to_pylist()[::-1]
    at = table.column_names.index("row")
    swapped = table.set_column(at, table.schema.field("row"), pa.array(rows, pa.int32()))
    pq.write_table(swapped, store.path / "index.parquet")
    assert verify_store(EmbeddingStore.open(store.path)) == [
        f"{store.path}/index.parquet is damaged (2 rows lead to another vector): run `featpipe "
        "embed` again"
    ]


def test_an_interrupt_between_two_rows_spoils_no_part(
    tmp_path: Path,
) -> None:
    """Whatever moment Ctrl-C chooses, keys and vectors of a part belong together."""
    rows = 3

    class Interrupted(dict[bytes, tuple[int, int]]):
        def __setitem__(self, name: bytes, place: tuple[int, int]) -> None:
            if len(self) == rows:
                raise KeyboardInterrupt
            super().__setitem__(name, place)

    with (
        pytest.raises(KeyboardInterrupt),
        StoreWriter.opened(tmp_path / "s", MANIFEST) as writer,
    ):
        writer.places = Interrupted()
        writer.append([key(n) for n in "abcdef"], np.stack([vector(n) for n in "abcdef"]))
    with StoreWriter.opened(tmp_path / "s", MANIFEST) as writer:
        assert not writer.notes
        assert set(writer.places) >= {key(n) for n in "abc"}
