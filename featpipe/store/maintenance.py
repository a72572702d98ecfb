"""What is done to whole stores: verify, merge, drop what nobody refers to, write as a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featpipe._files import atomic_file, printable
from featpipe.errors import StoreError
from featpipe.store import parts
from featpipe.store.folder import Place, at_once, folder_of, located
from featpipe.store.index import FILE_NAME as INDEX_NAME
from featpipe.store.index import Index
from featpipe.store.places import Places, Words, by_part, firsts, words
from featpipe.store.shards import in_source_order, merged_manifest
from featpipe.store.store import EmbeddingStore
from featpipe.store.writer import PART_ROWS, StoreWriter

_TABLE_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Collected:
    """What `collect_garbage` has done: vectors kept and dropped, bytes freed."""

    kept: int
    dropped: int
    freed: int


def verify_store(store: EmbeddingStore) -> list[str]:
    """Read every byte of a store and compare it with its digest.

    Returns
    -------
    list of str
        One sentence for every damaged file; empty where all is well.
    """
    numbers = parts.list_parts(store.path)
    problems = [problem for problem in parts.check_digests(store.path, numbers) if problem]
    problems.extend(_misplaced(store, set(numbers)))
    referred = {int(n) for n in np.unique(store.index.integers("part")) if n >= 0}
    problems.extend(
        parts.damaged(parts.vectors_path(store.path, n), "the file is missing")
        for n in sorted(referred - set(numbers))
    )
    return problems


def _misplaced(store: EmbeddingStore, numbers: set[int]) -> list[str]:
    """Compare where the index says that a content lies with the keys of the parts."""
    index, held = store.index, _places(store.path, sorted(numbers))
    part, row = index.integers("part"), index.integers("row")
    is_right = held.are_at(index.keys(), part, row) & index.has_value("key")
    wrong = np.count_nonzero(np.isin(part, list(numbers)) & ~is_right)
    if not wrong:
        return []
    path = printable(str(folder_of(store.path).place(INDEX_NAME)))
    return [f"{path} is damaged ({wrong} rows lead to another vector): run `featpipe embed` again"]


def collect_garbage(place: str | os.PathLike[str]) -> Collected:
    """Drop the vectors that no image of the index refers to, and join small parts.

    A reader that is at work meanwhile may have to open the store again. In a bucket no lock keeps
    writers out: this must not run beside one.

    Raises
    ------
    StoreError, LockedError, WriteError
        As `StoreWriter.opened`; the store is whole whatever happens.
    """
    store = EmbeddingStore.open(place)
    path = store.path
    before = disk_usage(path)
    with StoreWriter.opened(path, store.manifest) as writer:
        writer.drop_unfinished()
        held, old = len(writer.places), set(parts.list_parts(path))
        index = _refuse_missing(writer.previous.placed(writer.places), printable(str(path)))
        wanted = np.flatnonzero(index.with_vector())
        wanted = wanted[firsts(index.keys()[wanted])]
        if held == len(wanted) and len(old) <= 1 + held // PART_ROWS:
            return Collected(held, 0, 0)
        if not len(wanted):
            # No part will be left to tell which numbers were there, and readers may know them.
            writer.promise(0)
        _gather(index, wanted, writer)
        writer.flush()
        new = [number for number in parts.list_parts(path) if number not in old]
        writer.commit(index.placed(_places(path, new)))
        for number in sorted(old):
            writer.drop_part(number)
    return Collected(len(wanted), held - len(wanted), before - disk_usage(path))


def _gather(index: Index, rows: NDArray[np.int64], writer: StoreWriter) -> None:
    """Write the vectors of some rows anew, in the order in which their parts are."""
    keys, part, row = index.keys(), index.integers("part"), index.integers("row")
    blocks = list(by_part(part[rows]))
    mapped = parts.map_parts(writer.path, [number for number, _ in blocks], writer.shape)
    for (_, at), vectors in zip(blocks, mapped, strict=True):
        writer.extend(keys[rows[at]], vectors[row[rows[at]]])


def _places(path: Place, numbers: Sequence[int]) -> Places:
    """Return where some parts of a store hold which content."""
    return Places(zip(numbers, _keys(path, numbers), strict=True))


def _keys(path: Place, numbers: Sequence[int]) -> list[bytes]:
    return list(at_once(path, lambda number: parts.read_key_bytes(path, number), numbers))


def _refuse_missing(placed: Index, shown: str) -> Index:
    """Return an index whose places have been looked up, if none that should be there is missing."""
    is_missing = placed.with_vector() & (placed.integers("part") < 0)
    if not is_missing.any():
        return placed
    missing = placed.where(is_missing)
    count = missing.distinct_keys() + (not missing.has_value("key").all())
    raise StoreError(
        f"{shown} lacks the vectors of {count} images: run `featpipe embed` again first; they "
        "alone are computed"
    )


def merge_stores(
    output: str | os.PathLike[str], inputs: Sequence[str | os.PathLike[str]]
) -> EmbeddingStore:
    """Join stores of one backbone into ``output``, a new store.

    Images keep their paths; a path that two stores hold with the same content becomes one
    row. Contents that several stores hold are written once. Shards of one source are joined in
    the order of its listing, in whatever order they are given, and the result is a store of
    that source, from which `featpipe.embed` goes on.

    Raises
    ------
    FingerprintError
        When the vectors come from different backbones.
    StoreError
        When ``output`` is a store already, dtypes differ, one path stands for two contents, or
        vectors are missing.
    """
    # Without an index it is what an interrupted merge has left: this one goes on from there.
    place = located(output)
    if folder_of(place).has(INDEX_NAME):
        raise StoreError(
            f"{printable(str(place))} is a store already: give a new folder for the merged one, "
            "and name this one among the stores if its images belong there"
        )
    stores = in_source_order([EmbeddingStore.open(path) for path in inputs])
    first = stores[0].manifest
    shown = printable(str(stores[0].path))
    for store in stores[1:]:
        first.require_backbone(store.card, shown)
        if store.manifest.dtype != first.dtype:
            raise StoreError(
                f"{shown} holds {first.dtype} vectors and {printable(str(store.path))} "
                f"{store.manifest.dtype}: only stores of one dtype can be merged"
            )
    merged = _without_repeats(stores)
    with StoreWriter.opened(place, merged_manifest(stores)) as writer:
        _copy_contents(stores, writer)
        writer.flush()
        places = _places(place, parts.list_parts(place))
        writer.commit(_refuse_missing(merged.placed(places), "one of the stores"))
    return EmbeddingStore.open(place)


def _copy_contents(stores: list[EmbeddingStore], writer: StoreWriter) -> None:
    """Write every content that the stores hold and the output does not, once."""
    numbers = [parts.list_parts(store.path) for store in stores]
    keys = [_keys(store.path, held) for store, held in zip(stores, numbers, strict=True)]
    joined = words(b"".join(block for blocks in keys for block in blocks))
    is_new = firsts(joined) & (writer.places.find(joined)[0] < 0)
    end = 0
    for store, held, blocks in zip(stores, numbers, keys, strict=True):
        wanted: list[tuple[int, NDArray[np.int64], Words]] = []
        for number, block in zip(held, blocks, strict=True):
            here = words(block)
            end += len(here)
            rows = np.flatnonzero(is_new[end - len(here) : end])
            if len(rows):
                wanted.append((number, rows, here[rows]))
        mapped = parts.map_parts(store.path, [number for number, _, _ in wanted], store.shape)
        for (_, rows, new), vectors in zip(wanted, mapped, strict=True):
            writer.extend(new, vectors[rows])


def _without_repeats(stores: list[EmbeddingStore]) -> Index:
    """Join the rows; of one path with one content the first counts, a vector before a failure."""
    joined = stores[0].index.joined(*(store.index for store in stores[1:]))
    path, rows, is_ok = joined.codes("path"), np.arange(len(joined)), joined.with_vector()
    count = int(path.max(initial=-1)) + 1
    if count == len(joined):
        return joined
    first = _first_rows(path, rows, count)
    first_ok = _first_rows(path[is_ok], rows[is_ok], count)
    # What stood for its path before a row came: the first, or the first that had a vector.
    before = np.where((first_ok >= 0)[path] & (first_ok[path] < rows), first_ok[path], first[path])
    keys, has_key = joined.keys(), joined.has_value("key")
    differs = has_key & has_key[before] & (keys != keys[before]).any(axis=1)
    if differs.any():
        where = joined.column("path")[int(np.argmax(differs))].as_py()
        raise StoreError(
            f"two of the stores hold different images under the path {printable(where)}: "
            "embed one of the sources from a folder above, so that the paths differ"
        )
    keep = np.zeros(len(joined), dtype=bool)
    keep[np.where(first_ok >= 0, first_ok, first)] = True
    return joined.where(keep)


def _first_rows(path: NDArray[np.int32], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for each of ``count`` paths the first of the rows that have it, or -1."""
    found = np.full(count, -1, dtype=np.int64)
    # Of what is assigned to one place the last stays.
    found[path[::-1]] = rows[::-1]
    return found


def write_parquet(store: EmbeddingStore, output: Path) -> int:
    """Write the images that have a vector as one Parquet file, vectors as a list column.

    Columns: those of the index but for ``part``, ``row``, ``status`` and ``reason``, then
    ``embedding``, a fixed-size list of D float32 or float16 numbers, as DuckDB, Polars and
    Lance read it.

    Returns
    -------
    int
        The number of rows.
    """
    names = [name for name in store.index.schema.names if name not in {"part", "row", "reason"}]
    element = pa.float32() if store.manifest.dtype == "float32" else pa.float16()
    kind = pa.list_(element, store.dimension)
    fields = [store.index.schema.field(name) for name in names if name != "status"]
    schema = pa.schema([*fields, pa.field("embedding", kind)])
    done = 0
    with atomic_file(output) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in store.index.blocks(_TABLE_ROWS, names):
            rows = block.filter(pc.equal(block.column("status"), "ok")).drop_columns("status")
            vectors = store.read_stored(np.arange(done, done + len(rows))).reshape(-1)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors, element), type=kind)
            writer.write_table(rows.append_column(schema.field("embedding"), lists))
            done += len(rows)
    return done


def disk_usage(place: Place) -> int:
    """Return the bytes that a store takes where it lies."""
    return folder_of(place).used()
