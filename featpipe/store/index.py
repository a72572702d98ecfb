"""``index.parquet``: one row an image, and where its vector lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featpipe._files import KEY_BYTES, atomic_file, escape_path, printable, unescape_path
from featpipe.errors import StoreError
from featpipe.types import ImageRef, Key, Status

FILE_NAME = "index.parquet"
LABEL_PREFIX = "label:"
"""Label columns beside the main one are named ``label:NAME``."""

_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("key", pa.binary(KEY_BYTES)),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),
        pa.field("part", pa.int32()),
        pa.field("row", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image; ``width`` and ``height`` are in pixels, upright."""

    status: Status
    key: Key | None = None
    width: int | None = None
    height: int | None = None
    reason: str | None = None


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
        outcomes: list[Outcome] = []
        for ref, outcome in rows:
            refs.append(ref)
            outcomes.append(outcome)
        found = [
            places[o.key] if o.status == "ok" and o.key is not None else (None, None)
            for o in outcomes
        ]
        columns: dict[str, list[Any]] = {
            "path": [escape_path(r.path) for r in refs],
            "key": [o.key for o in outcomes],
            "size": [r.size for r in refs],
            "mtime_ns": [r.mtime_ns for r in refs],
            "width": [o.width for o in outcomes],
            "height": [o.height for o in outcomes],
            "status": [o.status for o in outcomes],
            "reason": [None if o.reason is None else escape_path(o.reason) for o in outcomes],
            "label": [_text(r.label) for r in refs],
            "split": [_text(r.split) for r in refs],
            "group": [_text(r.group) for r in refs],
            "part": [place[0] for place in found],
            "row": [place[1] for place in found],
        }
        table = pa.table(columns, schema=_SCHEMA)
        for name in dict.fromkeys(name for r in refs for name in r.labels):
            values = pa.array([_text(r.labels.get(name)) for r in refs], pa.string())
            table = table.append_column(LABEL_PREFIX + escape_path(name), values)
        return cls(table)

    @classmethod
    def read(cls, store: Path) -> Index:
        """Read the index of a store.

        Raises
        ------
        StoreError
            When it is missing or damaged.
        """
        path = store / FILE_NAME
        shown = printable(str(path))
        again = "run `featpipe embed` again; no vector is computed twice"
        if not path.exists():
            raise StoreError(f"{shown} is missing: {again}")
        try:
            # Read at once and not kept open: a writer may replace the file at any time.
            table = pq.read_table(pa.BufferReader(path.read_bytes()))
        except (OSError, pa.ArrowException) as exc:
            raise StoreError(f"{shown} is damaged: {again}") from exc
        for field in _SCHEMA:
            if field.name not in table.column_names:
                raise StoreError(f"{shown} is damaged (no column {field.name!r}): {again}")
            if table.schema.field(field.name).type != field.type:
                raise StoreError(f"{shown} is damaged (column {field.name!r}): {again}")
        return cls(table)

    def write(self, store: Path) -> None:
        """Replace the index of a store atomically."""
        with atomic_file(store / FILE_NAME) as file:
            pq.write_table(self.table, file, compression="zstd")

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

    def where(self, keep: Sequence[bool] | NDArray[np.bool_]) -> Index:
        """Return the rows where ``keep`` is true."""
        return Index(self.table.filter(pa.array(keep, pa.bool_())))

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

    def placed(self, places: Mapping[Key, tuple[int, int]]) -> Index:
        """Return the same rows, their vectors looked up anew by key."""
        found = [
            places[key] if status == "ok" else (None, None)
            for key, status in zip(self.values("key"), self.values("status"), strict=True)
        ]
        table = self.table
        for column, position in (("part", 0), ("row", 1)):
            values = pa.array([place[position] for place in found], pa.int32())
            at = table.column_names.index(column)
            table = table.set_column(at, _SCHEMA.field(column), values)
        return Index(table)


def _text(value: str | None) -> str | None:
    return None if value is None else escape_path(value)
