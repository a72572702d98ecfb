"""What is done to whole stores: verify, merge, drop what nobody refers to, write as a table."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featpipe._files import atomic_file, printable
from featpipe.errors import StoreError
from featpipe.store import parts
from featpipe.store.index import FILE_NAME as INDEX_NAME
from featpipe.store.index import Index
from featpipe.store.places import Places
from featpipe.store.shards import in_source_order, merged_manifest
from featpipe.store.store import EmbeddingStore
from featpipe.store.writer import PART_ROWS, StoreWriter
from featpipe.types import Key

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
    problems = [problem for n in numbers if (problem := parts.check_digest(store.path, n))]
    problems.extend(_misplaced(store, set(numbers)))
    referred = {int(n) for n in np.unique(store.index.integers("part")) if n >= 0}
    problems.extend(
        parts.damaged(parts.vectors_path(store.path, n), "the file is missing")
        for n in sorted(referred - set(numbers))
    )
    return problems


def _misplaced(store: EmbeddingStore, numbers: set[int]) -> list[str]:
    """Compare where the index says that a content lies with the keys of the parts."""
    index = store.index
    held = {number: parts.read_keys(store.path, number) for number in numbers}
    places = zip(index.integers("part").tolist(), index.integers("row").tolist(), strict=True)
    wrong = sum(
        part in held and (row >= len(held[part]) or held[part][row] != key)
        for key, (part, row) in zip(index.values("key"), places, strict=True)
    )
    if not wrong:
        return []
    path = printable(str(store.path / INDEX_NAME))
    return [f"{path} is damaged ({wrong} rows lead to another vector): run `featpipe embed` again"]


def collect_garbage(path: Path) -> Collected:
    """Drop the vectors that no image of the index refers to, and join small parts.

    A reader that is at work meanwhile may have to open the store again.

    Raises
    ------
    StoreError, LockedError, WriteError
        As `StoreWriter.opened`; the store is whole whatever happens.
    """
    store = EmbeddingStore.open(path)
    before = disk_usage(path)
    with StoreWriter.opened(path, store.manifest) as writer:
        index = writer.previous
        wanted = dict.fromkeys(
            key
            for key, status in zip(index.values("key"), index.values("status"), strict=True)
            if status == "ok"
        )
        held, old = len(writer.places), parts.list_parts(path)
        _refuse_missing(index, writer.places, printable(str(path)))
        if held == len(wanted) and len(old) <= 1 + held // PART_ROWS:
            return Collected(held, 0, 0)
        places, writer.places = writer.places, Places()
        for keys, vectors in _gather(path, writer.shape, list(wanted), places):
            writer.append(keys, vectors)
        writer.flush()
        writer.commit(index.placed(writer.places))
        for number in old:
            writer.drop_part(number)
    return Collected(len(wanted), held - len(wanted), before - disk_usage(path))


def _refuse_missing(index: Index, places: Container[Key], shown: str) -> None:
    rows = zip(index.values("key"), index.values("status"), strict=True)
    missing = {key for key, status in rows if status == "ok" and key not in places}
    if missing:
        raise StoreError(
            f"{shown} lacks the vectors of {len(missing)} images: run `featpipe embed` again "
            "first; they alone are computed"
        )


def _gather(
    path: Path, shape: parts.PartShape, keys: list[Key], places: Mapping[Key, tuple[int, int]]
) -> Iterator[tuple[list[Key], np.ndarray]]:
    """Yield the vectors of ``keys``, a part at a time."""
    by_part: dict[int, list[Key]] = {}
    for key in keys:
        by_part.setdefault(places[key][0], []).append(key)
    for number in sorted(by_part):
        chosen = by_part[number]
        vectors = parts.map_vectors(path, number, shape)
        yield chosen, vectors[[places[key][1] for key in chosen]]


def merge_stores(output: Path, inputs: Sequence[Path]) -> EmbeddingStore:
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
    if (output / INDEX_NAME).exists():
        raise StoreError(
            f"{printable(str(output))} is a store already: give a new folder for the merged one, "
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
    with StoreWriter.opened(output, merged_manifest(stores)) as writer:
        for store in stores:
            for number in parts.list_parts(store.path):
                vectors = parts.map_vectors(store.path, number, store.shape)
                writer.append(parts.read_keys(store.path, number), np.asarray(vectors))
        writer.flush()
        _refuse_missing(merged, writer.places, "one of the stores")
        writer.commit(merged.placed(writer.places))
    return EmbeddingStore.open(output)


def _without_repeats(stores: list[EmbeddingStore]) -> Index:
    """Join the rows; of one path with one content the first counts, a vector before a failure."""
    joined = stores[0].index.joined(*(store.index for store in stores[1:]))
    chosen: dict[str, tuple[int, Key | None, bool]] = {}
    rows = zip(*(joined.values(name) for name in ("path", "key", "status")), strict=True)
    for row, (path, key, status) in enumerate(rows):
        former = chosen.get(path)
        if former is not None and None not in (key, former[1]) and key != former[1]:
            raise StoreError(
                f"two of the stores hold different images under the path {printable(path)}: "
                "embed one of the sources from a folder above, so that the paths differ"
            )
        if former is None or (status == "ok" and not former[2]):
            chosen[path] = (row, key, status == "ok")
    keep = np.zeros(len(joined), dtype=bool)
    keep[[row for row, _, _ in chosen.values()]] = True
    return joined.where(keep)


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
    has_vector = [status == "ok" for status in store.index.values("status")]
    rows = store.index.where(has_vector).table.drop_columns(["part", "row", "status", "reason"])
    element = pa.float32() if store.manifest.dtype == "float32" else pa.float16()
    kind = pa.list_(element, store.dimension)
    schema = rows.schema.append(pa.field("embedding", kind))
    with atomic_file(output) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, len(store), _TABLE_ROWS):
            vectors = np.ascontiguousarray(store.X[start : start + _TABLE_ROWS]).reshape(-1)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors, element), type=kind)
            block = rows.slice(start, _TABLE_ROWS)
            writer.write_table(block.append_column(schema.field("embedding"), lists))
    return len(store)


def disk_usage(path: Path) -> int:
    """Return the bytes that a store takes on disk."""
    total = 0
    for found in path.rglob("*"):
        with suppress(FileNotFoundError):  # a writer's temporary file comes and goes
            total += found.stat().st_size if found.is_file() else 0
    return total
