"""What lies in files that hold many images, kept in the user's cache: none is read twice.

A listing is a small Parquet file named after the place of the container, and holds the version
of which it was made; one of another version is replaced. The folder may be deleted at any time.
It never holds more than a gibibyte: those that were used longest ago go.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from platformdirs import user_cache_path

from featpipe._files import atomic_file
from featpipe.errors import WriteError

_FORMAT = b"1"
"""Changes when a listing means something else."""
_VERSION = b"featpipe.version"
_MOST_BYTES = 2**30
_TIDY_EVERY = 64
_USED_AGAIN_SECONDS = 3600

_written = itertools.count()


def listing_folder() -> Path:
    """Return the folder that keeps the listings."""
    return user_cache_path("featpipe", appauthor=False) / "listings"


def kept_listing(kind: str, place: str, version: str) -> pa.Table | None:
    """Return what was kept of a container, or None where that is of another version, or damaged."""
    path = _path(kind, place)
    try:
        table = pq.read_table(path, use_threads=False)
    except (OSError, ValueError, pa.ArrowException):
        return None
    if (table.schema.metadata or {}).get(_VERSION) != _stamp(version):
        return None
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _USED_AGAIN_SECONDS:
            os.utime(path)
    return table


def keep_listing(kind: str, place: str, version: str, table: pa.Table) -> bool:
    """Keep a listing, and tell whether that was possible; a full or closed disk is no error."""
    metadata = {**(table.schema.metadata or {}), _VERSION: _stamp(version)}
    try:
        with atomic_file(_path(kind, place)) as file:
            pq.write_table(table.replace_schema_metadata(metadata), file, compression="zstd")
    except WriteError:
        return False
    if next(_written) % _TIDY_EVERY == 0:
        _tidy()
    return True


def _path(kind: str, place: str) -> Path:
    name = hashlib.blake2b(os.fsencode(f"{kind}\0{place}"), digest_size=16).hexdigest()
    return listing_folder() / f"{name}.parquet"


def _stamp(version: str) -> bytes:
    return _FORMAT + b" " + version.encode("utf-8", "surrogateescape")


def _tidy() -> None:
    """Remove what was used longest ago, until the rest is small enough."""
    found = []
    with suppress(OSError), os.scandir(listing_folder()) as entries:
        for entry in entries:
            with suppress(OSError):
                stat = entry.stat(follow_symlinks=False)
                found.append((stat.st_mtime_ns, stat.st_size, entry.path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > _MOST_BYTES:
            with suppress(OSError):
                os.unlink(path)
