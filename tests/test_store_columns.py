"""Stores in columns: what is read when, and that no figure differs from one row at a time."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import CARD, MANIFEST, fill, key, vector

from featpipe.errors import StoreError
from featpipe.store import (
    EmbeddingStore,
    Index,
    Manifest,
    Outcome,
    Places,
    StoreWriter,
    collect_garbage,
    merge_stores,
    verify_store,
    write_parquet,
)
from featpipe.store import index as index_module
from featpipe.store.places import by_part, firsts, words
from featpipe.types import ImageRef

HALVES = [bytes([i]) * 8 for i in (0, 1, 255)]
keys = st.builds(lambda a, b: a + b, st.sampled_from(HALVES), st.sampled_from(HALVES))
"""Keys that share halves, so that half of one alone never decides."""

contents = st.sampled_from(["x", "x", "x", "x", "y", "z"])
outcomes = (
    st.builds(lambda c: Outcome("ok", key(c), 4, 5), contents)
    | st.builds(lambda c: Outcome("undecodable", key(c), reason="no"), contents)
    | st.just(Outcome("unreadable", reason="closed"))
)
labels = st.sampled_from([None, "ant", "bee", "caf\udce9"])
refs = st.builds(
    ImageRef,
    path=st.sampled_from(["a", "b/1", "c\udce9", "d\\x41", "e", "f"]),
    size=st.sampled_from([None, 1]),
    label=labels,
    split=st.sampled_from([None, "train"]),
    group=labels,
    labels=st.dictionaries(st.sampled_from(["age", "age.of"]), labels, max_size=2),
)
listings = st.lists(st.tuples(refs, outcomes), max_size=6, unique_by=lambda row: row[0].path)
Rows = list[tuple[ImageRef, Outcome]]


@pytest.fixture
def is_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every index be read as that of a large store is."""
    monkeypatch.setattr(index_module, "_SMALL_BYTES", -1)


@pytest.fixture(scope="module")
def lazy_module() -> Iterator[None]:
    """Do the same for a test that hypothesis calls many times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_SMALL_BYTES", -1)
        yield


def write(path: Path, rows: Rows, manifest: Manifest = MANIFEST) -> EmbeddingStore:
    """Write a store of rows."""
    names = {key(name): vector(name) for name in "xyz"}
    held = list(dict.fromkeys(o.key for _, o in rows if o.status == "ok" and o.key))
    with StoreWriter.opened(path, manifest) as writer:
        writer.append(held, np.array([names[one] for one in held]).reshape(-1, 3))
        writer.flush()
        writer.commit(Index.build(rows, writer.places))
    return EmbeddingStore.open(path)


@given(st.lists(st.lists(keys, min_size=1, max_size=5), max_size=4), st.lists(keys, max_size=9))
def test_keys_are_found_as_one_by_one(held: list[list[bytes]], wanted: list[bytes]) -> None:
    """Parts in arrays and keys that came later: a dict of all of them says the same."""
    numbers = [3 * at for at in range(len(held))]
    places = Places((n, b"".join(part)) for n, part in zip(numbers, held, strict=True))
    known = {
        k: (n, row) for n, part in zip(numbers, held, strict=True) for row, k in enumerate(part)
    }
    for at, one in enumerate(wanted[::3]):
        places[one] = known[one] = (99, at)
    part, row = places.find(words(b"".join(wanted)))
    assert list(zip(part.tolist(), row.tolist(), strict=True)) == [
        known.get(one, (-1, -1)) for one in wanted
    ]
    assert {one: places.get(one) for one in wanted} == {one: known.get(one) for one in wanted}
    assert (len(places), dict(places)) == (len(known), known)


@given(st.lists(keys, max_size=12))
def test_first_keys_are_those_that_none_before_equals(given_keys: list[bytes]) -> None:
    """Half of a key in common is not a key in common."""
    expected = [one not in given_keys[:at] for at, one in enumerate(given_keys)]
    assert firsts(words(b"".join(given_keys))).tolist() == expected


@given(st.lists(st.integers(0, 3), max_size=9))
def test_rows_are_parted_in_one_pass(part: list[int]) -> None:
    """Every part with the positions that it has, in their order."""
    found = {number: at.tolist() for number, at in by_part(np.array(part, dtype=np.int64))}
    assert found == {n: [i for i, p in enumerate(part) if p == n] for n in sorted(set(part))}


@settings(deadline=None)
@given(rows=listings, keep=st.lists(st.booleans(), min_size=6, max_size=6))
@pytest.mark.usefixtures("lazy_module")
def test_lazy_columns_are_those_of_the_table(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows, keep: list[bool]
) -> None:
    """Whatever is asked of an index, it matters not whether all of it was read."""
    folder = tmp_path_factory.mktemp("s")
    Index.build(rows, {key(c): (0, at) for at, c in enumerate("xyz")}).write(folder)
    whole, mask = Index.read(folder, at_once=True), keep[: len(rows)]

    def lazy() -> Index:
        return Index.read(folder)

    assert lazy() == whole
    for index, table in ((lazy(), whole), (lazy().where(mask), whole.where(mask))):
        assert len(index) == len(table)
        assert index.with_vector().tolist() == table.with_vector().tolist()
        assert (index.paths(), index.label_columns) == (table.paths(), table.label_columns)
        for name in ("label", "group", *(f"label:{n}" for n in table.label_columns)):
            values = table.values(name)
            assert index.values(name) == values == index.objects(name).tolist()
            assert index.is_empty(name) == all(v is None for v in values)
            counts = Counter(v for v in values if v is not None)
            assert list(index.counts(name).items()) == sorted(counts.items())
        assert index.integers("part").tolist() == table.integers("part").tolist()
        assert index.distinct_keys() == len(set(table.values("key")) - {None})
        blocks = index.blocks(2, ["status", "path"])
        assert [v for b in blocks for v in b.column("path").to_pylist()] == table.values("path")
        assert index == table == pickle.loads(pickle.dumps(index))


@pytest.mark.usefixtures("is_lazy")
def test_reader_keeps_its_state_when_the_index_is_replaced(tmp_path: Path) -> None:
    """Columns that are read only after a writer, or gc, was there are those of before."""
    fill(tmp_path / "s", {"a": "x", "b": "y"}, label="ant")
    before = EmbeddingStore.open(tmp_path / "s")
    fill(tmp_path / "s", {"b": "z", "c": "y", "d": "x"}, label="bee")
    collect_garbage(tmp_path / "s")
    assert list(before.labels()) == ["ant", "ant"]
    assert (before.paths, before.keys) == (["a", "b"], [key("x"), key("y")])
    assert np.array_equal(before.X, np.stack([vector("x"), vector("y")]))
    assert EmbeddingStore.open(tmp_path / "s").paths == ["b", "c", "d"]


def test_where_an_open_file_cannot_be_replaced_it_is_not_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lazy: None
) -> None:
    """As on Windows: the index is a table from the beginning, and the file may go."""
    monkeypatch.setattr(index_module, "_KEEPS_OPEN", False)
    store = fill(tmp_path / "s", {"a": "x"}, label="ant")
    (tmp_path / "s" / "index.parquet").write_bytes(b"")
    assert (store.paths, list(store.labels())) == (["a"], ["ant"])


def spoil(path: Path, column: str) -> None:
    """Overwrite the pages of one column of a Parquet file in place."""
    metadata = pq.read_metadata(path)
    group = metadata.row_group(0)
    chunk = group.column(metadata.schema.names.index(column))
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\xff" * chunk.total_compressed_size)


@pytest.mark.usefixtures("is_lazy")
def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """A column that is damaged hinders nobody who wants another; who wants it has a sentence."""
    path = fill(tmp_path / "s", {"a": "x", "b": "y"}, label="ant").path
    spoil(path / "index.parquet", "path")
    store = EmbeddingStore.open(path)
    assert (len(store), list(store.labels())) == (2, ["ant", "ant"])
    assert np.array_equal(store.X, np.stack([vector("x"), vector("y")]))
    sentence = (
        f"{path}/index.parquet is damaged: run `featpipe embed` again; no vector is computed twice"
    )
    asked = (
        lambda: store.paths,
        lambda: store.index.table,
        lambda: write_parquet(store, path / "t"),
    )
    for ask in asked:
        with pytest.raises(StoreError) as caught:
            ask()
        assert str(caught.value) == sentence
    with StoreWriter.opened(path, MANIFEST) as writer:
        assert len(writer.notes) == 1
        assert not len(writer.previous)


def merged_rows(stores: list[Rows]) -> dict[str, tuple[ImageRef, Outcome]] | str:
    """Join rows one by one; return them by path, or the path that stands for two contents."""
    chosen: dict[str, tuple[ImageRef, Outcome]] = {}
    for ref, outcome in (row for rows in stores for row in rows):
        former = chosen.get(ref.path)
        if former is not None:
            ours, theirs = outcome.key, former[1].key
            if ours is not None and theirs is not None and ours != theirs:
                return ref.path
            if outcome.status != "ok" or former[1].status == "ok":
                continue
        chosen[ref.path] = (ref, outcome)
    return chosen


@settings(deadline=None, max_examples=40)
@given(made=st.lists(listings, min_size=1, max_size=3))
@pytest.mark.usefixtures("lazy_module")
def test_merge_in_columns_is_that_of_one_row_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, made: list[Rows]
) -> None:
    """Which row of a path counts, which paths contradict each other, and every vector."""
    scratch = tmp_path_factory.mktemp("m")
    stores = [write(scratch / str(at), rows) for at, rows in enumerate(made)]
    expected = merged_rows(made)
    if isinstance(expected, str):
        with pytest.raises(StoreError, match="different images under the path"):
            merge_stores(scratch / "all", [store.path for store in stores])
        return
    merged = merge_stores(scratch / "all", [store.path for store in stores])
    rows = dict(zip(merged.index.paths(), merged.index.table.to_pylist(), strict=True))
    assert rows.keys() == expected.keys()
    for path, (ref, outcome) in expected.items():
        built = Index.build([(ref, outcome)], {key(c): (0, 0) for c in "xyz"}).table.to_pylist()[0]
        same = [name for name in built if name not in {"part", "row"}]
        assert {name: rows[path][name] for name in same} == {name: built[name] for name in same}
    names = {key(name): vector(name) for name in "xyz"}
    assert [v.tolist() for v in merged.X] == [names[one].tolist() for one in merged.keys]
    held = sum(len(np.load(part)) for part in (merged.path / "parts").glob("*.npy"))
    everything = (o.key for rows in made for _, o in rows if o.status == "ok")
    assert held == len(set(everything))
    assert verify_store(merged) == []


@settings(deadline=None, max_examples=40)
@given(before=listings, after=listings)
@pytest.mark.usefixtures("lazy_module")
def test_gc_keeps_what_is_referred_to(
    tmp_path_factory: pytest.TempPathFactory, before: Rows, after: Rows
) -> None:
    """After it the parts hold the contents of the index and no other, each image its own."""
    path = tmp_path_factory.mktemp("g") / "s"
    write(path, before)
    store = write(path, after)
    held = {o.key for rows in (before, after) for _, o in rows if o.status == "ok"}
    wanted = {o.key for _, o in after if o.status == "ok"}
    done = collect_garbage(path)
    assert (done.kept, done.dropped) == (len(wanted), len(held) - len(wanted))
    cleaned = EmbeddingStore.open(path)
    assert np.array_equal(cleaned.X, store.X)
    assert cleaned.paths == store.paths
    assert sum(len(np.load(part)) for part in (path / "parts").glob("*.npy")) == len(wanted)
    assert verify_store(cleaned) == []


def test_blocks_of_vectors_make_the_parts_that_single_ones_make(tmp_path: Path) -> None:
    """`extend` cuts blocks where `append` would begin a new part."""
    names = [str(at) for at in range(150)]
    held, vectors = [key(n) for n in names], np.stack([vector(n) for n in names])
    with StoreWriter.opened(tmp_path / "one", MANIFEST) as writer:
        writer.append(held, vectors)
    with StoreWriter.opened(tmp_path / "many", MANIFEST) as writer:
        for begin, end in ((0, 20), (20, 20), (20, 140), (140, 150)):
            writer.extend(words(b"".join(held[begin:end])), vectors[begin:end])
    for part in sorted((tmp_path / "one" / "parts").iterdir()):
        assert part.read_bytes() == (tmp_path / "many" / "parts" / part.name).read_bytes()
    assert len(list((tmp_path / "many" / "parts").iterdir())) == 6


@pytest.mark.usefixtures("is_lazy")
def test_parquet_is_written_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without a vector are left out, and the vectors of a store never stand in memory."""

    def refuse(_: EmbeddingStore) -> Any:
        raise AssertionError("all vectors at once")

    monkeypatch.setattr(EmbeddingStore, "X", property(refuse))
    monkeypatch.setattr("featpipe.store.maintenance._TABLE_ROWS", 2)
    failed = Outcome("undecodable", None, reason="no")
    rows = [
        (
            ImageRef(str(at), label="ant"),
            failed if at in {1, 2, 3} else Outcome("ok", key("xyz"[at % 3])),
        )
        for at in range(7)
    ]
    store = write(tmp_path / "s", rows)
    assert write_parquet(store, tmp_path / "t.parquet") == 4
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column("path").to_pylist() == ["0", "4", "5", "6"]
    expected = [vector("xyz"[at % 3]).tolist() for at in (0, 4, 5, 6)]
    assert table.column("embedding").to_pylist() == expected
    names = ["path", "key", "size", "mtime_ns", "width", "height", "label", "split", "group"]
    assert table.column_names == [*names, "embedding"]
    assert not table.schema.field("path").nullable


def test_an_empty_store_is_a_table_without_rows(tmp_path: Path) -> None:
    """Nothing to write is written."""
    store = write(tmp_path / "s", [], Manifest(CARD, "float16", "x"))
    assert write_parquet(store, tmp_path / "t.parquet") == 0
    assert (store.labels().tolist(), store.label_columns, store.groups) == ([], [], None)
    assert (len(store.X), store.distinct_contents) == (0, 0)
    assert pq.read_table(tmp_path / "t.parquet").num_rows == 0
