"""Labels from a table beside the images: what ``--labels`` names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from featpipe import storage
from featpipe._files import printable
from featpipe.errors import SourceError
from featpipe.sources.base import Source
from featpipe.sources.table import TABLE_SUFFIXES, TableSource
from featpipe.types import ImageRef


class LabelledSource(Source):
    """A source whose labels, splits and groups come from a table where that has them.

    A row of the table belongs to the image of the same path (as the source lists it, or in
    full); a row that gives a file name alone, to the only image of that name.

    Raises
    ------
    SourceError
        When the table cannot be read, no row of it belongs to any image, or one could mean two.
    """

    def __init__(
        self, source: Source, table: str | os.PathLike[str], group: str | None = None
    ) -> None:
        super().__init__()
        table = os.fspath(table)
        shown, is_far = printable(storage.shown(table)), storage.is_url(table)
        if not is_far and not os.path.isfile(table):
            raise SourceError(f"there is no table at {shown}: check --labels")
        if not (storage.path_of(table) if is_far else table).lower().endswith(TABLE_SUFFIXES):
            raise SourceError(f"the label table {shown} must end in {', '.join(TABLE_SUFFIXES)}")
        self.name, self.location, self.piece = source.name, source.location, source.piece
        self._source, self._table = source, table
        self._by_path = _rows(table, group)
        self._by_name = _bare_names(self._by_path)

    @property
    def readers(self) -> int:
        """As many as the source itself wants."""
        return self._source.readers

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of either table that may hold the groups."""
        return tuple(dict.fromkeys((*self._source.columns, *TableSource(self._table).columns)))

    def with_groups(self, column: str) -> LabelledSource:
        """Return the same with groups from that column of either table; that of labels wins."""
        return LabelledSource(self._source.with_groups(column), self._table, column)

    @property
    def whole(self) -> int | None:
        """How many images the whole place lists, where the labelled source is a piece of it."""
        return self._source.whole

    def __iter__(self) -> Iterator[ImageRef]:
        self.notes.clear()
        claimed: dict[str, str] = {}
        without = 0
        for ref in self._source:
            row = self._row(ref)
            if row is None:
                without += 1
                yield ref
                continue
            self._claim(claimed, row, ref)
            yield _labelled(ref, row)
        self._tell(len(claimed), without)

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one image, from the source itself."""
        return self._source.read(ref)

    def reader(self) -> Source:
        """Return what reads the images: the source itself, without the labels."""
        return self._source.reader()

    def _row(self, ref: ImageRef) -> ImageRef | None:
        full = f"{self.location}/{ref.path}"
        return (
            self._by_path.get(ref.path)
            or self._by_path.get(full)
            or self._by_name.get(ref.path.rpartition("/")[2])
        )

    def _claim(self, claimed: dict[str, str], row: ImageRef, ref: ImageRef) -> None:
        if claimed.setdefault(row.path, ref.path) != ref.path:
            raise SourceError(
                f"the row {printable(row.path)} of {printable(storage.shown(self._table))} could "
                f"mean {printable(claimed[row.path])} or {printable(ref.path)}: write its path as "
                "the source lists it"
            )

    def _tell(self, found: int, without: int) -> None:
        self.notes.extend(self._source.notes)
        shown = printable(storage.shown(self._table))
        if not found:
            raise SourceError(
                f"no row of the label table {shown} names an image of {printable(self.location)}: "
                "its paths must be relative to the source"
            )
        if without:
            self.notes.append(
                f"{without} images have no row in {shown}; they keep what the source says"
            )
        if found < len(self._by_path):
            self.notes.append(f"{len(self._by_path) - found} rows of {shown} name no image here")


def _rows(table: str, group: str | None) -> dict[str, ImageRef]:
    return {_normal(ref.path): ref for ref in TableSource(table, group).rows()}


def _normal(path: str) -> str:
    return path if storage.is_url(path) else os.path.normpath(path).replace(os.sep, "/")


def _bare_names(rows: dict[str, ImageRef]) -> dict[str, ImageRef]:
    """Return the rows that give a file name alone: they may belong to an image in any folder."""
    return {path: ref for path, ref in rows.items() if "/" not in path}


def _labelled(ref: ImageRef, row: ImageRef) -> ImageRef:
    return replace(
        ref,
        label=row.label if row.label is not None else ref.label,
        split=row.split if row.split is not None else ref.split,
        group=row.group if row.group is not None else ref.group,
        labels={**ref.labels, **row.labels},
    )
