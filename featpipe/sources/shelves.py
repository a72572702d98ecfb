"""Folders that hold files of many images, and no image beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from featpipe.sources.base import Source
from featpipe.sources.containers import ContainerSource
from featpipe.sources.places import IMAGE_SUFFIXES, NOT_OURS, suffix_of
from featpipe.sources.rows import PARQUET_SUFFIXES, is_image_parquet, parquet_files
from featpipe.sources.tar import TAR_SUFFIXES, archives

_FOLDERS_BELOW = 1
"""Where shards lie in practice: in the folder itself, in ``data/``, or in one a split."""


def is_shelf(text: str) -> bool:
    """Tell whether a folder holds shards: archives, or Parquet files with images."""
    return os.path.isdir(text) and _shards(text) is not None


def open_shelf(text: str) -> Source:
    """Return the images of all shards in a folder, in the order of their names."""
    places = _shards(text) or []
    is_tar = places[0].lower().endswith(TAR_SUFFIXES)
    found: ContainerSource = (archives if is_tar else parquet_files)(places, text)
    found.name = Path(text).resolve().name or "root"
    return found


def _shards(folder: str) -> list[str] | None:
    """Return the shards below a folder, where they are of one kind and alone."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for path in _files(folder, _FOLDERS_BELOW):
        suffix = suffix_of(os.path.basename(path))
        if suffix in IMAGE_SUFFIXES:
            return None
        if suffix in TAR_SUFFIXES + PARQUET_SUFFIXES:
            found[suffix in TAR_SUFFIXES].append(path)
    tars, tables = sorted(found[True]), sorted(found[False])
    if tars and not tables:
        return tars
    return tables if tables and not tars and is_image_parquet(tables[0]) else None


def _files(folder: str, depth: int) -> Iterator[str]:
    """Yield files, those of a folder before those below it: images end the search early."""
    below = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] == "." or entry.name.lower() in NOT_OURS:
                    continue
                if entry.is_dir():
                    below.append(entry.path)
                elif entry.is_file():
                    yield entry.path
    except OSError:
        return
    for path in below if depth else ():
        yield from _files(path, depth - 1)
