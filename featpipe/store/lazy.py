"""Columns of a Parquet file, each read when it is first asked for.

The file is kept open: whoever replaces it leaves the old one to those who have it, so that a
reader sees one state from the beginning to the end. It is read, not mapped: on a network disk a
file that is gone is an error then, not the end of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


class LazyColumns:
    """Stands for a `pyarrow.Table` of which few columns are looked at.

    Parameters
    ----------
    schema : pyarrow.Schema
    num_rows : int
    read : callable
        Returns the column of a name.
    """

    def __init__(
        self, schema: pa.Schema, num_rows: int, read: Callable[[str], pa.ChunkedArray]
    ) -> None:
        self.schema, self.num_rows, self._read = schema, num_rows, read
        self._columns: dict[str, pa.ChunkedArray] = {}

    @property
    def column_names(self) -> list[str]:
        """Names of all columns, read or not."""
        return list(self.schema.names)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column, and keep it."""
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = self._read(name)
        return found

    def table(self) -> pa.Table:
        """Return all columns."""
        self._fill()
        return pa.table([self.column(name) for name in self.schema.names], schema=self.schema)

    def _fill(self) -> None:
        """Read what has not been read yet, where that is quicker than column by column."""

    def filter(self, keep: NDArray[np.bool_]) -> LazyColumns:
        """Return the rows where ``keep`` is true; no column is read for that."""
        mask = pa.array(keep, pa.bool_())

        def kept(name: str) -> pa.ChunkedArray:
            # Not `column`: that would keep the whole column beside a part of it.
            column = self._columns.get(name)
            return (self._read(name) if column is None else column).filter(mask)

        return LazyColumns(self.schema, int(np.count_nonzero(keep)), kept)

    def only_value(self, name: str) -> object:
        """Return the value that all rows have, where that is known without reading; else None."""
        del name
        return None

    def is_empty(self, name: str) -> bool:
        """Tell whether no row has a value in this column."""
        column = self.column(name)
        return bool(column.null_count == len(column))

    def batches(self, rows: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns, at most so many rows at a time."""
        chosen = pa.table([self.column(name) for name in names], names=names)
        yield from chosen.to_batches(max_chunksize=rows)


class FileColumns(LazyColumns):
    """Columns of a file.

    Parameters
    ----------
    file : pyarrow.NativeFile
        A Parquet file; it stays open as long as this object is there.
    fail : callable
        Returns what is raised where the file turns out to be damaged, at any time.
    """

    def __init__(self, file: pa.NativeFile, fail: Callable[[Exception], Exception]) -> None:
        self._file, self._fail = file, fail
        try:
            self._metadata = pq.read_metadata(self._file)
            schema = self._metadata.schema.to_arrow_schema()
        except (OSError, pa.ArrowException) as exc:
            raise fail(exc) from exc
        super().__init__(schema, int(self._metadata.num_rows), self._read_column)

    def _open(self) -> pq.ParquetFile:
        """Return a reader of one's own: threads may read at once, one object of them may not."""
        return pq.ParquetFile(self._file, metadata=self._metadata)

    def _read_column(self, name: str) -> pa.ChunkedArray:
        try:
            return self._open().read(columns=[name]).column(name)
        except (OSError, pa.ArrowException) as exc:
            raise self._fail(exc) from exc

    def _fill(self) -> None:
        missing = [name for name in self.schema.names if name not in self._columns]
        try:
            read = self._open().read(columns=missing)
        except (OSError, pa.ArrowException) as exc:
            raise self._fail(exc) from exc
        self._columns.update((name, read.column(name)) for name in missing)

    def batches(self, rows: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns, at most so many rows at a time; nothing is kept."""
        try:
            yield from self._open().iter_batches(rows, columns=names)
        except (OSError, pa.ArrowException) as exc:
            raise self._fail(exc) from exc

    def only_value(self, name: str) -> object:
        """Return the value that all rows have, where the file's statistics say so; else None."""
        found = self._statistics(name)
        values = {
            value
            for one in found or ()
            for value in ((one.min, one.max) if one.has_min_max and not one.null_count else (None,))
        }
        return values.pop() if len(values) == 1 else None

    def is_empty(self, name: str) -> bool:
        """Tell whether no row has a value in this column; the file's statistics say it."""
        found = self._statistics(name)
        if found is None or not all(one.has_null_count for one in found):
            return super().is_empty(name)
        return bool(self.num_rows == sum(one.null_count for one in found))

    def _statistics(self, name: str) -> list[pq.Statistics] | None:
        """Return the statistics of a column for every group of rows, or None."""
        at = self.schema.names.index(name)
        groups = [self._metadata.row_group(i) for i in range(self._metadata.num_row_groups)]
        if any(group.num_columns != len(self.schema) for group in groups):
            return None
        found = [group.column(at).statistics for group in groups]
        # Not `None in found`: pyarrow 26 ends the process when it compares statistics with None.
        return None if any(one is None for one in found) else found
