"""``index.parquet``: one row an image, and where its vector lies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featpipe._columns import LABEL_PREFIX, LISTED, VERSION, in_columns
from featpipe._files import printable, unescape_path
from featpipe.errors import StoreError
from featpipe.store import outcomes
from featpipe.store.folder import Place, folder_of
from featpipe.store.lazy import FileColumns, LazyColumns
from featpipe.store.outcomes import Outcome, Outcomes
from featpipe.store.places import Places, Words, by_key, firsts, positions, words
from featpipe.types import ImageRef, Key

FILE_NAME = "index.parquet"
_BLOCK_ROWS = 2**16
_SMALL_BYTES = 2**22
"""A file up to here is read at once, and not kept open: some hundred thousand rows."""
_DISTINCT = frozenset({"path", "key", "size", "mtime_ns", "row"})
"""Columns of which a dictionary would be as long as they are."""
_KEEPS_OPEN = os.name == "posix"
"""Windows lets nobody replace a file that is open."""

_SCHEMA = pa.schema(
    [
        (LISTED if name in LISTED.names else outcomes.SCHEMA).field(name)
        for name in (
            *("path", "key", "size", "mtime_ns", "width", "height", "status", "reason"),
            *("label", "split", "group", "part", "row"),
        )
    ]
)


class Index:
    """The rows of a store, column by column; those of a large file are read when asked for."""

    def __init__(self, columns: pa.Table | LazyColumns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return int(self._columns.num_rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and bool(self.table.equals(other.table))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Index], tuple[pa.Table]]:
        return Index, (self.table,)

    @property
    def table(self) -> pa.Table:
        """All columns, read where they have not been yet."""
        if isinstance(self._columns, LazyColumns):
            self._columns = self._columns.table()
        return self._columns

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column."""
        return self._columns.column(name)

    @classmethod
    def empty(cls) -> Index:
        """Return an index without rows."""
        return cls(_SCHEMA.empty_table())

    @classmethod
    def build(
        cls,
        rows: Iterable[tuple[ImageRef, Outcome]],
        places: Mapping[Key, tuple[int, int]],
    ) -> Index:
        """Put together what the source said, what became of it, and where the vectors lie.

        ``places`` gives part and row of a key; an image without a place must have failed.
        """
        refs: list[ImageRef] = []
        found: list[Outcome] = []
        for ref, outcome in rows:
            refs.append(ref)
            found.append(outcome)
        columns = Outcomes(len(refs))
        for at, outcome in enumerate(found):
            key = outcome.key if outcome.status == "ok" else None
            columns.put(at, outcome, None if key is None else places[key])
        return cls.of(in_columns(refs), columns.table())

    @classmethod
    def of(cls, listed: pa.Table, became: pa.Table) -> Index:
        """Put together a listing and what became of its images, row by row; nothing is copied."""
        table = pa.table(
            [(listed if f.name in LISTED.names else became).column(f.name) for f in _SCHEMA],
            schema=_SCHEMA,
        )
        for name in listed.column_names:
            if name == VERSION or name.startswith(LABEL_PREFIX):
                table = table.append_column(name, listed.column(name))
        return cls(table)

    @classmethod
    def read(cls, store: Place, *, at_once: bool = False) -> Index:
        """Read the index of a store.

        It stays as it is now, whatever a writer does: a small file is read at once, a larger
        one kept open, and a column read when it is asked for. ``at_once`` reads all of any.

        Raises
        ------
        StoreError
            When it is missing or damaged; a column that is read later may raise it later.
        """
        folder = folder_of(store)
        shown = printable(str(folder.place(FILE_NAME)))
        again = "run `featpipe embed` again; no vector is computed twice"
        try:
            file = folder.opened(FILE_NAME)
        except FileNotFoundError as exc:
            raise StoreError(f"{shown} is missing: {again}") from exc
        except OSError as exc:
            raise StoreError(f"{shown} is damaged: {again}") from exc
        columns = FileColumns(file, lambda _: StoreError(f"{shown} is damaged: {again}"))
        for field in _SCHEMA:
            if field.name not in columns.column_names:
                raise StoreError(f"{shown} is damaged (no column {field.name!r}): {again}")
            if columns.schema.field(field.name).type != field.type:
                raise StoreError(f"{shown} is damaged (column {field.name!r}): {again}")
        is_lazy = not at_once and _KEEPS_OPEN and file.size() > _SMALL_BYTES
        return cls(columns if is_lazy else columns.table())

    def write(self, store: Place) -> None:
        """Replace the index of a store atomically."""
        with folder_of(store).written(FILE_NAME) as file:
            repeating = [n for n in self.table.column_names if n not in _DISTINCT]
            pq.write_table(
                self.table,
                file,
                compression="zstd",
                use_dictionary=repeating,
                row_group_size=_BLOCK_ROWS,
            )

    def values(self, column: str) -> list[Any]:
        """Return one column as a list; missing values are None."""
        return list(self.column(column).to_pylist())

    def objects(self, column: str) -> NDArray[np.object_]:
        """Return a column of texts that recur, one object a text; missing values are None."""
        encoded = self.column(column).dictionary_encode().combine_chunks()
        codes, texts = encoded.indices.fill_null(-1).to_numpy(), encoded.dictionary.to_pylist()
        return np.asarray(np.array([*texts, None], dtype=object)[codes])

    def codes(self, column: str) -> NDArray[np.int32]:
        """Return a number for every row, equal where the values are, from 0 on; none is missing."""
        encoded = self.column(column).dictionary_encode().combine_chunks()
        return np.asarray(encoded.indices, dtype=np.int32)

    def counts(self, column: str) -> dict[str, int]:
        """Return how many rows have each of the texts of a column, in their order."""
        found = pc.value_counts(self.column(column).drop_null()).to_pylist()
        return dict(sorted((one["values"], one["counts"]) for one in found))

    def integers(self, column: str) -> NDArray[np.int64]:
        """Return an integer column; missing values are -1."""
        filled = self.column(column).fill_null(-1)
        return np.asarray(filled.to_numpy(), dtype=np.int64)

    def paths(self) -> list[str]:
        """Return the paths as the operating system knows them."""
        column = self.column("path")
        has_escapes = pc.any(pc.match_substring(column, "\\x")).as_py()
        paths = list[str](column.to_pylist())
        return [unescape_path(path) for path in paths] if has_escapes else paths

    @property
    def label_columns(self) -> list[str]:
        """Names of the label columns beside the main one."""
        names = self._columns.column_names
        return [n[len(LABEL_PREFIX) :] for n in names if n.startswith(LABEL_PREFIX)]

    def is_empty(self, column: str) -> bool:
        """Tell whether no row has a value in this column."""
        if isinstance(self._columns, LazyColumns):
            return self._columns.is_empty(column)
        return bool(self.column(column).null_count == len(self))

    def with_vector(self) -> NDArray[np.bool_]:
        """Tell of every row whether it has a vector."""
        if isinstance(self._columns, LazyColumns) and self._columns.only_value("status") == "ok":
            return np.ones(len(self), dtype=bool)
        return _flags(pc.equal(self.column("status"), "ok"))

    def where(self, keep: Sequence[bool] | NDArray[np.bool_]) -> Index:
        """Return the rows where ``keep`` is true."""
        flags = np.asarray(keep, dtype=bool)
        if isinstance(self._columns, LazyColumns):
            return Index(self._columns.filter(flags))
        return Index(self._columns.filter(pa.array(flags)))

    def at(self, rows: NDArray[np.int64]) -> Index:
        """Return the rows of these numbers, in their order."""
        return Index(self.table.take(pa.array(rows)))

    def blocks(self, rows: int, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns, at most so many rows at a time; a file is not read whole for it."""
        if isinstance(self._columns, LazyColumns):
            batches = self._columns.batches(rows, list(names))
        else:
            batches = iter(self._columns.select(list(names)).to_batches(rows))
        return (pa.Table.from_batches([batch]) for batch in batches)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._columns.schema

    def has_value(self, column: str) -> NDArray[np.bool_]:
        """Tell of every row whether it has a value in this column."""
        return _flags(self.column(column).is_valid())

    def keys(self) -> Words:
        """Return the keys, (n, 2); of missing ones any words."""
        return key_words(self.column("key"))

    def distinct_keys(self) -> int:
        """Return how many different contents there are."""
        return int(firsts(self.keys()[self.has_value("key")]).sum())

    def places_of(self, keys: Sequence[Key]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Return part and row of every key, or None where one of them has no vector here."""
        part, row = self.integers("part"), self.integers("row")
        placed = np.flatnonzero(part >= 0)
        held = self.keys()[placed]
        found = positions(words(b"".join(keys)), held, by_key(held))
        if (found < 0).any():
            return None
        return part[placed[found]], row[placed[found]]

    def joined(self, *others: Index) -> Index:
        """Append the rows of others; a label column that one side lacks is empty there."""
        tables = [self.table, *(other.table for other in others)]
        return Index(pa.concat_tables(tables, promote_options="default"))

    def placed(self, places: Places) -> Index:
        """Return the same rows, their vectors looked up anew by key; some may have none."""
        right = [_is_placed(block, places) for block in self._blocks()]
        wrong = np.flatnonzero(~np.concatenate([*right, np.empty(0, dtype=bool)]))
        if not len(wrong):
            return self
        part, row = self.integers("part"), self.integers("row")
        astray = self.table.select(["key", "status"]).take(wrong)
        has_vector = pc.and_(
            pc.equal(astray.column("status"), "ok"), astray.column("key").is_valid()
        )
        held = places.find(key_words(astray.column("key")))
        part[wrong], row[wrong] = np.where(_flags(has_vector), held, -1)
        table = self.table
        for column, values in (("part", part), ("row", row)):
            at = table.column_names.index(column)
            found = pa.array(values.astype(np.int32), mask=values < 0)
            table = table.set_column(at, _SCHEMA.field(column), found)
        return Index(table)

    def _blocks(self) -> list[pa.RecordBatch]:
        columns = self.table.select(["key", "status", "part", "row"])
        return list(columns.to_batches(max_chunksize=_BLOCK_ROWS))


def key_words(column: pa.ChunkedArray) -> Words:
    """Return a column of keys as an array, (n, 2); of missing ones any words."""
    found = [np.empty((0, 2), dtype=np.uint64)]
    for chunk in column.chunks:
        data = chunk.buffers()[1]
        block = (
            words(data)[chunk.offset : chunk.offset + len(chunk)]
            if data is not None
            else (np.zeros((len(chunk), 2), dtype=np.uint64))
        )
        found.append(block)
    return np.concatenate(found) if len(found) != 2 else found[1]


def _is_placed(block: pa.RecordBatch, places: Places) -> NDArray[np.bool_]:
    """Tell of every row whether its vector lies where it says, or it has none and says so."""
    part, row = (block.column(name).fill_null(-1).to_numpy() for name in ("part", "row"))
    keys = key_words(pa.chunked_array([block.column("key")]))
    at_place = places.are_at(keys, part, row) & _flags(block.column("key").is_valid())
    has_vector = _flags(pc.equal(block.column("status"), "ok"))
    return np.where(has_vector, at_place, (part < 0) & (row < 0))


def _flags(column: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(column, dtype=bool)
