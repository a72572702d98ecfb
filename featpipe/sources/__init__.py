"""Where images come from: every source lists `ImageRef` records and reads their bytes.

`open_source` chooses by what it is given. To add a kind (a tar file, a bucket), write a
class with the three members of `Source` and put it into ``_OPENERS``; nothing to the right
of this package needs to know.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from featpipe import storage
from featpipe._files import printable
from featpipe.errors import SourceError
from featpipe.sources.base import LocalSource, Source, grouped
from featpipe.sources.files import FileSource
from featpipe.sources.folder import FolderSource
from featpipe.sources.labels import LabelledSource
from featpipe.sources.paths import PathSource, read_path_list
from featpipe.sources.places import IMAGE_SUFFIXES, suffix_of
from featpipe.sources.remote import BucketSource
from featpipe.sources.rows import is_image_parquet, open_parquet
from featpipe.sources.saved import is_saved_dataset, open_saved_dataset
from featpipe.sources.sharding import empty_piece, require_images, sharded
from featpipe.sources.shelves import is_shelf, open_shelf
from featpipe.sources.table import TABLE_SUFFIXES, TableSource
from featpipe.sources.tar import is_archives, open_archives

__all__ = [
    "IMAGE_SUFFIXES",
    "BucketSource",
    "FileSource",
    "FolderSource",
    "LabelledSource",
    "LocalSource",
    "PathSource",
    "Source",
    "SourceLike",
    "TableSource",
    "empty_piece",
    "grouped",
    "open_source",
    "require_images",
    "sharded",
]

SourceLike: TypeAlias = "Source | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"


def open_source(
    source: SourceLike,
    labels: str | os.PathLike[str] | None = None,
    group: str | None = None,
) -> Source:
    """Return the source that ``source`` names.

    Parameters
    ----------
    source : Source, str, path or iterable of paths
        A folder, an image file, a table (``.csv``, ``.tsv``, ``.parquet``), tar archives or
        Parquet files with images (``shard-{0000..0099}.tar``), each local or behind an address
        (``s3://``, ``gs://``, ``https://``); a folder of Hugging Face's ``datasets``; ``"-"`` for
        a list of paths on standard input, or the paths themselves.
    labels : path, optional
        A table with a column ``path`` and label columns, for a source without labels of its
        own; its labels win over those of the source.
    group : str, optional
        The column of these tables that names the group of an image; ``group`` by default.

    Raises
    ------
    SourceError
        When there is nothing of that name, nothing that featpipe reads, or no such column.
    """
    opened = _open(source)
    if labels is not None:
        opened = LabelledSource(opened, labels)
    return opened if group is None else grouped(opened, group)


def _open(source: SourceLike) -> Source:
    if isinstance(source, Source):
        return source
    if not isinstance(source, str | os.PathLike):
        return PathSource([os.fspath(path) for path in source], name="paths", location="paths")
    text = os.fspath(source)
    if text == "-":
        paths = read_path_list(sys.stdin.buffer.read())
        return PathSource(paths, name="stdin", location=f"stdin in {Path.cwd()}")
    for matches, opener in _OPENERS:
        if matches(text):
            return opener(text)
    raise SourceError(
        f"there is nothing at {printable(text)}: check the path (it is looked for from "
        f"{printable(str(Path.cwd()))})"
    )


def _open_url(text: str) -> Source:
    path = storage.path_of(text)
    if suffix_of(path.rpartition("/")[2]) in IMAGE_SUFFIXES:
        return PathSource([text], name=Path(path).stem, location=storage.shown(text))
    if storage.has_folders(text):
        return BucketSource(text)
    raise SourceError(
        f"{printable(storage.shown(text))} is no image and no table, and a web server lists no "
        "folders: give a table of addresses (column 'path')"
    )


def _refuse_archive(text: str) -> Source:
    raise SourceError(
        f"featpipe reads no zip archives: unpack {printable(text)} and give the folder"
    )


def _open_file(text: str) -> Source:
    path = Path(text)
    return PathSource([path.name], name=path.stem, location=str(path.absolute()), root=path.parent)


def _is_table(text: str) -> bool:
    if storage.is_url(text):
        return storage.path_of(text).lower().endswith(TABLE_SUFFIXES)
    return text.lower().endswith(TABLE_SUFFIXES) and os.path.isfile(text)


_OPENERS: tuple[tuple[Callable[[str], bool], Callable[[str], Source]], ...] = (
    (is_archives, open_archives),
    (is_image_parquet, open_parquet),
    (_is_table, TableSource),
    (storage.is_url, _open_url),
    (is_saved_dataset, open_saved_dataset),
    (is_shelf, open_shelf),
    (os.path.isdir, lambda text: FolderSource(Path(text))),
    (lambda text: text.lower().endswith(".zip") and os.path.isfile(text), _refuse_archive),
    (os.path.isfile, _open_file),
)
