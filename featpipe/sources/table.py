"""A table of images: CSV, TSV or Parquet with a path column and whatever is known of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from featpipe import storage
from featpipe._files import printable
from featpipe.errors import SourceError
from featpipe.sources.cells import as_text
from featpipe.sources.files import FileSource
from featpipe.sources.places import SPLITS
from featpipe.types import ImageRef

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
PATH_COLUMNS = ("path", "file_name", "filename", "file", "image", "url", "image_url")
_LONGEST_LINE = 2**22
_Said: TypeAlias = "tuple[str | None, str | None, str | None]"
"""Label, split and group."""


class TableSource(FileSource):
    """The images that a table names, in its order.

    Columns: ``path`` (or ``file_name``, ``filename``, ``file``, ``image``, ``url``), relative to
    the table's folder, absolute, or an address; ``label``; ``split`` (train, val, test and their
    usual other names); ``group``. Every further column is kept as a label column of its own.

    Parameters
    ----------
    path : path or text
        Of the table; a text may be an address.
    group : str, optional
        The column that holds the groups, in place of ``group``.

    Raises
    ------
    SourceError
        When the table cannot be read, has no path column, or gives one path two labels.
    """

    def __init__(self, path: str | os.PathLike[str], group: str | None = None) -> None:
        text = os.fspath(path)
        if storage.is_url(text):
            super().__init__(text.partition("?")[0].rpartition("/")[0])
            self.location = storage.shown(text)
            self.name = Path(storage.path_of(text)).stem
        else:
            super().__init__(Path(text).parent)
            self.location, self.name = str(Path(text).resolve()), Path(text).stem
        self._table, self._group = text, group

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that may hold the groups."""
        names = column_names(self._table)
        taken = path_column(names, self._table)
        return tuple(n for n in names if n != taken and n.lower() not in {"label", "split"})

    def with_groups(self, column: str) -> TableSource:
        """Return the same table with another column for the groups; none where it lacks that."""
        return TableSource(self._table, column)

    def __iter__(self) -> Iterator[ImageRef]:
        return self.located(self.rows())

    def count(self) -> int:
        """Return how many images the table names; none is looked at."""
        return sum(1 for _ in self.rows())

    def between(self, begin: int, end: int) -> Iterator[ImageRef]:
        """List some of the images; no other is looked at."""
        return self.located(islice(self.rows(), begin, end))

    def rows(self) -> Iterator[ImageRef]:
        """Yield what the table says; no file is looked at."""
        self.notes.clear()
        # What is told of an image is kept once for all that share it, not for each of millions.
        seen: dict[str, _Said] = {}
        known: dict[_Said, _Said] = {}
        repeated = 0
        for number, row in enumerate(read_table(self._table), start=1):
            ref = _as_ref(row, self._table, number, self._group)
            ref = replace(ref, path=self.named(ref.path))
            said = (ref.label, ref.split, ref.group)
            if ref.path in seen:
                _refuse_contradiction(self._table, ref.path, said, seen[ref.path])
                repeated += 1
                continue
            seen[ref.path] = known.setdefault(said, said)
            yield ref
        if repeated:
            self.notes.append(f"rows that name a path again: {repeated}")


def read_table(path: str) -> Iterator[dict[str, str | None]]:
    """Yield the rows of a CSV, TSV or Parquet file as text; empty cells are None.

    Raises
    ------
    SourceError
        When the file cannot be read as what its suffix says.
    """
    with _reading(path):
        yield from _read_parquet(path) if _is_parquet(path) else _read_csv(path)


def column_names(path: str) -> list[str]:
    """Return the names of the columns of a table; errors as of `read_table`."""
    with _reading(path):
        if _is_parquet(path):
            with _parquet_file(path) as file:
                return list(file.schema_arrow.names)
        with _open_text(path) as text:
            return _header(text, path)[0]


def _is_parquet(path: str) -> bool:
    name = storage.path_of(path) if storage.is_url(path) else path
    return name.lower().endswith((".parquet", ".pq"))


@contextmanager
def _reading(path: str) -> Iterator[None]:
    shown = printable(storage.shown(path))
    try:
        yield
    except OSError as exc:
        raise SourceError(f"cannot read the table {shown}: {exc.strerror or exc}") from exc
    except (csv.Error, ValueError) as exc:
        raise SourceError(f"the table {shown} is damaged: {exc}") from exc


def _open_text(path: str) -> TextIOWrapper:
    # Spreadsheets begin their CSV files with a byte-order mark; names may be no UTF-8 at all.
    return TextIOWrapper(
        storage.open_file(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def _header(file: TextIOWrapper, path: str) -> tuple[list[str], str]:
    """Read the first line: the names of the columns, and what stands between them."""
    header = file.readline(_LONGEST_LINE)
    if len(header) == _LONGEST_LINE:
        raise ValueError(f"its first line has more than {_LONGEST_LINE - 1} characters")
    delimiter = "\t" if path.lower().endswith(".tsv") else max(",;\t", key=header.count)
    cells = next(csv.reader([header], delimiter=delimiter), [])
    return [name.strip() for name in cells], delimiter


def _lines(file: TextIOWrapper) -> Iterator[str]:
    """Yield lines in pieces of a bounded length: a file may be one line, and large."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE and line[-1] not in "\r\n":
            raise ValueError(f"a line of it has more than {_LONGEST_LINE - 1} characters")
        yield line


def _read_csv(path: str) -> Iterator[dict[str, str | None]]:
    with _open_text(path) as file:
        names, delimiter = _header(file, path)
        for cells in csv.reader(_lines(file), delimiter=delimiter):
            if any(cell.strip() for cell in cells[len(names) :]):
                raise ValueError(
                    f"a row has {len(cells)} cells and the header {len(names)}: put quotes "
                    f"around what holds a {delimiter!r}"
                )
            if any(cell.strip() for cell in cells):
                padded = cells + [""] * (len(names) - len(cells))
                yield {
                    name: cell.strip() or None for name, cell in zip(names, padded, strict=False)
                }


@contextmanager
def _parquet_file(path: str) -> Iterator[Any]:
    import pyarrow as pa  # noqa: PLC0415 - a CSV file needs none of it
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with storage.open_file(path) as opened, pq.ParquetFile(opened) as file:
            _refuse_bytes(file.schema_arrow, path)
            yield file
    except pa.ArrowException as exc:
        raise ValueError(str(exc).splitlines()[0]) from exc


def _read_parquet(path: str) -> Iterator[dict[str, str | None]]:
    with _parquet_file(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield {name: as_text(value) for name, value in row.items()}


def _refuse_bytes(schema: Any, path: str) -> None:
    for field in schema:
        if str(field.type).startswith(("struct", "binary", "large_binary", "list", "fixed_size")):
            raise SourceError(
                f"the column {printable(field.name)!r} of {printable(storage.shown(path))} holds "
                "bytes or nested values that are no images: leave it out, or name the column of "
                "the images' bytes 'image'"
            )


def path_column(names: Iterable[str], table: str) -> str:
    """Return the name of the column that holds the paths.

    Raises
    ------
    SourceError
        When there is none; the message names the columns that there are.
    """
    lower = {name.lower(): name for name in names}
    found = next((lower[name] for name in PATH_COLUMNS if name in lower), None)
    if found is None:
        columns = ", ".join(printable(name) for name in names) or "none"
        raise SourceError(
            f"the table {printable(storage.shown(table))} has no column 'path' (its columns: "
            f"{columns}): name the column that holds the image paths 'path'"
        )
    return found


def _as_ref(
    row: dict[str, str | None], table: str, number: int, group: str | None = None
) -> ImageRef:
    column = path_column(row, table)
    path = row[column]
    if path is None:
        raise SourceError(
            f"row {number} of the table {printable(storage.shown(table))} names no path"
        )
    others = {name: value for name, value in row.items() if name != column}
    known = {name.lower(): value for name, value in others.items()}
    own = {"label", "split", "group"} if group is None else {"label", "split"}
    further = {
        name: value for name, value in others.items() if name.lower() not in own and name != group
    }
    return ImageRef(
        path.replace(os.sep, "/"),
        label=known.get("label"),
        split=_split(known.get("split"), table, number),
        group=known.get("group") if group is None else others.get(group),
        labels=further,
    )


def _split(text: str | None, table: str, number: int) -> str | None:
    if text is None:
        return None
    split = SPLITS.get(text.lower())
    if split is None:
        raise SourceError(
            f"row {number} of the table {printable(storage.shown(table))} has the split "
            f"{printable(text)!r}: it can be train, val or test"
        )
    return split


def _refuse_contradiction(table: str, path: str, said: _Said, former: _Said) -> None:
    for what, one, two in zip(("label", "split", "group"), former, said, strict=True):
        if one != two:
            raise SourceError(
                f"the table {printable(storage.shown(table))} gives {printable(path)} two "
                f"{what}s, {printable(str(one))!r} and {printable(str(two))!r}: keep one of the "
                "rows"
            )
