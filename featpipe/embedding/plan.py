"""What needs to be opened, and what is known already: two tables compared column by column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featpipe._columns import LISTED, VERSION, in_objects
from featpipe._files import unescape_path
from featpipe.sources import Source
from featpipe.store import Index, Places
from featpipe.types import ImageRef, Progress, ProgressCallback

_SAY_EVERY = 1000
_CHUNK_ROWS = 2**16
"""Rows of a chunk in the listing: a tree of very small folders must not become as many chunks."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every image of a source, with what is known of it; no object for any.

    Attributes
    ----------
    listed : pyarrow.Table
        The listing, in the order of the source; see `featpipe._columns.LISTED`.
    former : Index
        What the store knew before; a row without a place has no vector.
    rows : ndarray of int32, (n,), or None
        For every listed image its row in ``former``, or -1; None where that has the same
        images in the same order.
    missing : ndarray of int64, (m,)
        Positions of the images that must be opened.
    """

    listed: pa.Table
    former: Index
    rows: NDArray[np.int32] | None
    missing: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.listed.num_rows)

    def refs(self) -> Iterator[ImageRef]:
        """Yield the images that must be opened."""
        return in_objects(self.to_open())

    def to_open(self) -> pa.Table:
        """Return the part of the listing that must be opened, in its order."""
        is_missing = np.zeros(len(self), dtype=bool)
        is_missing[self.missing] = True
        # Not `take`: that would copy the listing into one chunk, whatever it takes.
        return self.listed.filter(pa.array(is_missing))

    def path(self, position: int) -> str:
        """Return the path of one image."""
        return unescape_path(self.listed.column("path")[position].as_py())

    def former_rows(self) -> NDArray[np.int64]:
        """Return for every listed image its row in ``former``, or -1."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return rows.astype(np.int64)

    def gone(self) -> NDArray[np.int64]:
        """Return the rows of ``former`` whose images the source lists no more."""
        if self.rows is None:
            return np.empty(0, dtype=np.int64)
        is_gone = np.ones(len(self.former), dtype=bool)
        is_gone[self.rows[self.rows >= 0]] = False
        return np.flatnonzero(is_gone)

    def known_failures(self) -> Iterator[tuple[str, str]]:
        """Yield path and reason of the images that failed before and need not be opened."""
        failed = ~self.former.with_vector()
        if not failed.any():
            return
        rows = self.former_rows()
        is_known = (rows >= 0) & failed[rows]
        is_known[self.missing] = False
        reasons = self.former.table.column("reason")
        for position in np.flatnonzero(is_known).tolist():
            yield self.path(position), reasons[int(rows[position])].as_py()


def make_plan(
    source: Source,
    previous: Index,
    places: Places,
    *,
    rehash: bool = False,
    progress: ProgressCallback | None = None,
) -> Plan:
    """Compare what a source lists with what a store knows; opens no image.

    An image is known where its path, and its version or else size and time of change, are those
    of the former index, and its vector is held; so is one that could not be decoded, as its
    bytes are the same. One that could not be read is tried again.
    """
    former = previous.placed(places)
    listed = _listing(source, former.table, progress)
    paths, known_paths = listed.column("path"), former.table.column("path")
    # The usual case costs neither a search nor a copy.
    rows = None if paths.equals(known_paths) else _find(paths, known_paths)
    is_known = np.zeros(len(listed), dtype=bool) if rehash else _are_known(listed, former, rows)
    return Plan(listed, former, rows, np.flatnonzero(~is_known))


def _listing(source: Source, former: pa.Table, progress: ProgressCallback | None) -> pa.Table:
    chunks, waiting = [LISTED.empty_table()], list[pa.Table]()
    count = said = begin = 0
    for batch in source.batches():
        waiting.append(batch)
        count += len(batch)
        if progress is not None and count - said >= _SAY_EVERY:
            said = count
            progress(Progress(count, None, stage="listing"))
        if count - begin >= _CHUNK_ROWS:
            chunks.append(_shared(_joined(waiting), former.slice(begin, count - begin)))
            waiting.clear()
            begin = count
    chunks.append(_shared(_joined(waiting), former.slice(begin)))
    return pa.concat_tables(chunks, promote_options="default")


def _joined(tables: list[pa.Table]) -> pa.Table:
    """Return tables as one, in one chunk; a label column that one of them lacks is empty there."""
    joined = pa.concat_tables([LISTED.empty_table(), *tables], promote_options="default")
    return joined.combine_chunks()


def _shared(chunk: pa.Table, former: pa.Table) -> pa.Table:
    """Let go of the columns that are as they were at the same place; those stand in for them."""
    for at, field in enumerate(chunk.schema):
        same = former.column(field.name) if field.name in former.column_names else None
        if same is not None and chunk.column(at).equals(same):
            chunk = chunk.set_column(at, field, same)
    return chunk


def _find(paths: pa.ChunkedArray, known: pa.ChunkedArray) -> NDArray[np.int32]:
    found = pc.index_in(paths, value_set=known)
    return np.asarray(found.fill_null(-1), dtype=np.int32)


def _are_known(
    listed: pa.Table, former: Index, rows: NDArray[np.int32] | None
) -> NDArray[np.bool_]:
    names = ["size", "mtime_ns", "status", "part"]
    has_versions = VERSION in listed.column_names and VERSION in former.table.column_names
    columns = former.table.select([*names, VERSION] if has_versions else names)
    if rows is not None:
        columns = columns.take(pa.array(rows, mask=rows < 0))
    size, mtime_ns, status, part = columns.columns[:4]
    is_same = pc.and_(
        pc.equal(listed.column("size"), size), pc.equal(listed.column("mtime_ns"), mtime_ns)
    )
    if has_versions:
        is_same = pc.coalesce(pc.equal(listed.column(VERSION), columns.column(4)), is_same)
    has_vector = pc.and_(pc.equal(status, "ok"), part.is_valid())
    is_settled = pc.or_(has_vector, pc.equal(status, "undecodable"))
    return np.asarray(pc.and_(is_same, is_settled).fill_null(False), dtype=bool)
