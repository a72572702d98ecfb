"""``index.parquet``: one row an image, and where its vector lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from featpipe.store.outcomes import Outcome, Outcomes
from featpipe.store.places import Places, Words, words
from featpipe.types import ImageRef, Key

FILE_NAME = "index.parquet"
_BLOCK_ROWS = 2**16
_DISTINCT = frozenset({"path", "key", "size", "mtime_ns", "row"})
"""Columns of which a dictionary would be as long as they are."""

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
    """The rows of a store, column by column."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and bool(self.table.equals(other.table))

    __hash__ = None  # type: ignore[assignment]

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
    def read(cls, store: Place) -> Index:
        """Read the index of a store.

        Raises
        ------
        StoreError
            When it is missing or damaged.
        """
        folder = folder_of(store)
        shown = printable(str(folder.place(FILE_NAME)))
        again = "run `featpipe embed` again; no vector is computed twice"
        try:
            # Read at once and not kept open: a writer may replace the file at any time.
            with folder.opened(FILE_NAME) as file:
                table = pq.ParquetFile(file).read()
        except FileNotFoundError as exc:
            raise StoreError(f"{shown} is missing: {again}") from exc
        except (OSError, pa.ArrowException) as exc:
            raise StoreError(f"{shown} is damaged: {again}") from exc
        for field in _SCHEMA:
            if field.name not in table.column_names:
                raise StoreError(f"{shown} is damaged (no column {field.name!r}): {again}")
            if table.schema.field(field.name).type != field.type:
                raise StoreError(f"{shown} is damaged (column {field.name!r}): {again}")
        return cls(table)

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
        return list(self.table.column(column).to_pylist())

    def integers(self, column: str) -> NDArray[np.int64]:
        """Return an integer column; missing values are -1."""
        filled = self.table.column(column).fill_null(-1)
        return np.asarray(filled.to_numpy(), dtype=np.int64)

    def paths(self) -> list[str]:
        """Return the paths as the operating system knows them."""
        return [unescape_path(path) for path in self.values("path")]

    @property
    def label_columns(self) -> list[str]:
        """Names of the label columns beside the main one."""
        names = self.table.column_names
        return [n[len(LABEL_PREFIX) :] for n in names if n.startswith(LABEL_PREFIX)]

    def with_vector(self) -> NDArray[np.bool_]:
        """Tell of every row whether it has a vector."""
        return _flags(pc.equal(self.table.column("status"), "ok"))

    def where(self, keep: Sequence[bool] | NDArray[np.bool_]) -> Index:
        """Return the rows where ``keep`` is true."""
        return Index(self.table.filter(pa.array(keep, pa.bool_())))

    def at(self, rows: NDArray[np.int64]) -> Index:
        """Return the rows of these numbers, in their order."""
        return Index(self.table.take(pa.array(rows)))

    def places_of(self, keys: Sequence[Key]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Return part and row of every key, or None where one of them has no vector here."""
        places = zip(self.integers("part"), self.integers("row"), strict=True)
        known = dict(zip(self.values("key"), places, strict=True))
        if any(known.get(key, (-1, -1))[0] < 0 for key in keys):
            return None
        found = np.array([known[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def joined(self, *others: Index) -> Index:
        """Append the rows of others; a label column that one side lacks is empty there."""
        tables = [self.table, *(other.table for other in others)]
        return Index(pa.concat_tables(tables, promote_options="default").combine_chunks())

    def placed(self, places: Places) -> Index:
        """Return the same rows, their vectors looked up anew by key; some may have none."""
        right = [_is_placed(block, places) for block in self._blocks()]
        wrong = np.flatnonzero(~np.concatenate([*right, np.empty(0, dtype=bool)]))
        if not len(wrong):
            return self
        part, row = self.integers("part"), self.integers("row")
        astray = self.table.select(["key", "status"]).take(wrong).to_pylist()
        for at, image in zip(wrong.tolist(), astray, strict=True):
            has_vector = image["status"] == "ok" and image["key"] is not None
            place = places.get(image["key"]) if has_vector else None
            part[at], row[at] = place or (-1, -1)
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
