"""Parquet files with the bytes of images in a column, as Hugging Face publishes them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featpipe._columns import BLOCK_ROWS
from featpipe.sources.base import Source
from featpipe.sources.container import CHANGED, Container, Listing
from featpipe.sources.containers import ContainerSource
from featpipe.sources.imagetables import ImageColumns, arrow_errors, bytes_in
from featpipe.sources.names import (
    distinct_names,
    expanded,
    has_braces,
    has_suffix,
    location_of,
    places_of,
    stem_of,
)
from featpipe.sources.pieces import Pieces
from featpipe.storage import is_url, open_file

PARQUET_SUFFIXES = (".parquet", ".pq")
MOST_BYTES = 2**29
"""Of row groups that are kept in memory, all files of a source together."""
_MOST_PIECE = 2**28
"""A larger row group is read in pieces of `_PIECE` bytes, in order."""
_PIECE = 2**24


def is_image_parquet(text: str) -> bool:
    """Tell whether a source is one or several Parquet files whose rows hold images."""
    if not has_suffix(text, PARQUET_SUFFIXES):
        return False
    if is_url(text) or os.path.isfile(text):
        return _holds_images(expanded(text)[0] if is_url(text) else text)
    return has_braces(text)


def open_parquet(text: str) -> Source:
    """Return the images in a Parquet file, or in those that a text with braces names.

    Raises
    ------
    SourceError
        When none of them is there.
    """
    return parquet_files(places_of(text), text)


def parquet_files(places: list[str], text: str) -> ContainerSource:
    """Return several files as one source, which is named after ``text``."""
    pieces = Pieces(MOST_BYTES)
    named = zip(places, distinct_names(places), strict=True)
    containers = [ParquetImages(place, name, pieces) for place, name in named]
    return ContainerSource(containers, name=stem_of(text), location=location_of(text))


def _holds_images(place: str) -> bool:
    try:
        with arrow_errors(), _opened(place) as file:
            return ImageColumns.of(file.schema_arrow) is not None
    except (OSError, ValueError):
        return False  # whoever reads tables says what is wrong with it


class ParquetImages(Container):
    """One Parquet file with images, local or behind an address.

    Only the column of images is read for them, a row group at a time; row groups stay in memory
    for a while, as the next image is likely to be in the same one.
    """

    kind: ClassVar[str] = "Parquet file"

    def __init__(self, place: str, name: str, pieces: Pieces) -> None:
        super().__init__(place, name)
        self._pieces = pieces
        self._lock = threading.Lock()
        self._groups: _Groups | None = None

    def further(self) -> tuple[Any, ...]:
        """Return the pieces that files share."""
        return (self._pieces,)

    def listed(self) -> Listing:
        """Read all columns but that of the images."""
        with arrow_errors(), _opened(self.place) as file:
            columns = _columns(file)
            batches = (
                file.iter_batches(BLOCK_ROWS, columns=columns.needed) if columns.needed else ()
            )
            table, notes = columns.listing(batches, file.metadata.num_rows)
            return Listing(table, notes=notes)

    def read(self, listing: Listing, row: int) -> bytes:
        """Return the bytes of one row."""
        with arrow_errors():
            groups = self._opened_groups(listing)
            group, piece, at = groups.locate(row)
            values = self._pieces.get(
                (self.place, listing.version, group, piece), lambda: groups.load(group, piece)
            )
            return bytes_in(values, at, is_struct=groups.columns.is_struct)

    def release(self) -> None:
        """Let go of what is open."""
        with self._lock:
            self._groups = None

    def _opened_groups(self, listing: Listing) -> _Groups:
        with self._lock:
            if self._groups is None or self._groups.version != listing.version:
                if self.version() != listing.version:
                    raise OSError(CHANGED)
                self._groups = _Groups(self.place, listing.version)
            return self._groups


class _Groups:
    """The row groups of one file, those that are too large in pieces."""

    def __init__(self, place: str, version: str | None) -> None:
        self._place, self.version = place, version
        with _opened(place) as file:
            self.columns = _columns(file)
            self._metadata = file.metadata
        leaf = self._leaf()
        rows, pieces = [0], []
        for at in range(self._metadata.num_row_groups):
            group = self._metadata.row_group(at)
            size = group.column(leaf).total_uncompressed_size
            rows.append(rows[-1] + group.num_rows)
            share = group.num_rows * _PIECE // max(size, 1)
            pieces.append(group.num_rows if size <= _MOST_PIECE else max(share, 1))
        self._ends, self._rows_a_piece = np.array(rows), pieces
        self._lock = threading.Lock()
        self._stream: tuple[int, int, Iterator[Any]] | None = None

    def _leaf(self) -> int:
        schema = self._metadata.schema
        names = [schema.column(at).path for at in range(len(schema))]
        return names.index(self.columns.of_bytes)

    def locate(self, row: int) -> tuple[int, int, int]:
        """Return row group, piece in it, and row in that."""
        group = int(np.searchsorted(self._ends, row, side="right")) - 1
        piece, at = divmod(row - int(self._ends[group]), max(self._rows_a_piece[group], 1))
        return group, piece, at

    def load(self, group: int, piece: int) -> tuple[Any, int]:
        """Read a piece: the column of images, and its bytes in memory."""
        columns = [self.columns.of_bytes]
        rows = self._rows_a_piece[group]
        with self._lock:
            if rows >= self._metadata.row_group(group).num_rows:
                # Values that are stored once stay so: a million rows may share one of them.
                once = [self.columns.of_bytes]
                with _opened(self._place, self._metadata, once) as file:
                    table = file.read_row_group(group, columns=columns, use_threads=False)
            else:
                table = self._next_piece(group, piece, rows)
        values = table.column(self.columns.image)
        return values, int(values.nbytes)

    def _next_piece(self, group: int, piece: int, rows: int) -> Any:
        """Go on to a piece of a large row group; back only from its beginning."""
        if self._stream is None or self._stream[0] != group or self._stream[1] > piece:
            file = pq.ParquetFile(
                open_file(self._place) if is_url(self._place) else self._place,
                metadata=self._metadata,
                buffer_size=2**20,
                pre_buffer=False,
            )
            batches = file.iter_batches(
                rows, row_groups=[group], columns=[self.columns.of_bytes], use_threads=False
            )
            self._stream = group, 0, _even(batches, rows)
        _, begin, tables = self._stream
        table = next(islice(tables, piece - begin, None), None)
        if table is None:
            raise OSError(CHANGED)
        self._stream = group, piece + 1, tables
        return table


def _even(batches: Iterable[Any], rows: int) -> Iterator[Any]:
    """Yield tables of so many rows; Arrow's batches may have fewer."""
    held = None
    for batch in batches:
        table = pa.table(batch)
        held = table if held is None else pa.concat_tables([held, table])
        while len(held) >= rows:
            yield held.slice(0, rows)
            held = held.slice(rows)
    if held is not None and len(held):
        yield held


def _columns(file: Any) -> ImageColumns:
    columns = ImageColumns.of(file.schema_arrow)
    if columns is None:
        raise ValueError("no column of it holds images")
    return columns


@contextmanager
def _opened(place: str, metadata: Any = None, once: list[str] | None = None) -> Iterator[Any]:
    options = {"metadata": metadata, "read_dictionary": once}
    if not is_url(place):
        with pq.ParquetFile(place, **options) as file:
            yield file
        return
    with open_file(place) as source, pq.ParquetFile(source, **options) as file:
        yield file
