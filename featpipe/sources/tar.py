"""Tar archives: plain ones, and the shards of WebDataset."""

from __future__ import annotations

import os
import threading
from array import array
from collections import Counter
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featpipe._columns import BLOCK_ROWS, LISTED, path_column
from featpipe._files import escape_path, printable
from featpipe.errors import SourceError
from featpipe.sources.base import MAX_FILE_BYTES, TOO_LARGE, Source
from featpipe.sources.container import CHANGED, Container, Listing, version_of
from featpipe.sources.containers import ContainerSource
from featpipe.sources.headers import DamagedTarError, Member, read_headers
from featpipe.sources.names import (
    distinct_names,
    has_braces,
    has_suffix,
    location_of,
    places_of,
    stem_of,
)
from featpipe.sources.pieces import Pieces
from featpipe.sources.places import IMAGE_SUFFIXES, NOT_OURS, suffix_of
from featpipe.sources.ranges import Ranges
from featpipe.sources.sidecars import MOST_BYTES, SIDECAR_SUFFIXES, Sidecars
from featpipe.storage import Entry, is_url, look_at, open_file, shown

TAR_SUFFIXES = (".tar",)
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

NEIGHBOUR_BYTES = 2**26
"""Of neighbours that are kept in memory, all archives behind addresses together."""

_PROBLEMS = {
    "link": "it is a link inside an archive, which is not followed",
    "sparse": "it is stored sparse: pack it without --sparse",
    "other": "it is not a regular file",
}
_OUTSIDE = "its name leads out of the archive"
_CUT = "the archive ends in the middle of it"


def is_archives(text: str) -> bool:
    """Tell whether a source is one or several tar archives, compressed ones included."""
    if not has_suffix(text, TAR_SUFFIXES + COMPRESSED_SUFFIXES):
        return False
    return is_url(text) or os.path.isfile(text) or has_braces(text)


def open_archives(text: str) -> Source:
    """Return the images of an archive, or of those that a text with braces names.

    Raises
    ------
    SourceError
        When they are compressed, or none of them is there.
    """
    if has_suffix(text, COMPRESSED_SUFFIXES):
        raise SourceError(
            f"{printable(shown(text))} is compressed as a whole, so no image in it can be read by "
            "itself: decompress it to a .tar (images hardly shrink), or unpack it"
        )
    return archives(places_of(text), text)


def archives(places: list[str], text: str) -> ContainerSource:
    """Return several archives as one source, which is named after ``text``."""
    pieces = Pieces(NEIGHBOUR_BYTES)
    named = zip(places, distinct_names(places), strict=True)
    containers = [TarArchive(place, name, pieces) for place, name in named]
    return ContainerSource(containers, name=stem_of(text), location=location_of(text))


class TarArchive(Container):
    """One tar archive, local or behind an address; only headers are read to list it.

    Members with the suffix of an image are images. Links, devices and sparse members of such a
    name are problems, and none is followed. What stands in ``.cls``, ``.json`` and ``.txt``
    files of the same name is known of an image, see `Sidecars`.
    """

    kind: ClassVar[str] = "archive"

    def __init__(self, place: str, name: str, pieces: Pieces) -> None:
        super().__init__(place, name)
        self._pieces = pieces
        self._ranges = Ranges(place, pieces)
        self._lock = threading.Lock()
        self._open: _OpenFile | None = None

    def further(self) -> tuple[Any, ...]:
        """Return the pieces that archives share."""
        return (self._pieces,)

    def listed(self) -> Listing:
        """Read all headers, and the files beside images."""
        size = look_at(self.place).size
        with open_file(self.place) as file:
            if size is None:
                size = file.seek(0, os.SEEK_END)
            return _Reading(file, size).go()

    def read(self, listing: Listing, row: int) -> bytes:
        """Return the bytes of one member."""
        start = listing.table.column("_offset")[row].as_py()
        length = listing.table.column("size")[row].as_py()
        if length > MAX_FILE_BYTES:
            raise OSError(TOO_LARGE)
        if is_url(self.place):
            data = self._ranges.read(start, length, listing.version)
        else:
            data = self._opened(listing.version).read(start, length)
        if len(data) < length:
            raise OSError(CHANGED)
        return data

    def release(self) -> None:
        """Let go of the open file, which is closed when no thread reads from it."""
        with self._lock:
            self._open = None

    def _opened(self, version: str | None) -> _OpenFile:
        with self._lock:
            if self._open is None or self._open.version != version:
                self._open = _OpenFile(self.place)
            if self._open.version != version:
                raise OSError(CHANGED)
            return self._open


class _OpenFile:
    """A local file that threads read without a common position; closed when nobody uses it."""

    def __init__(self, place: str) -> None:
        self._descriptor = -1
        self._descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        stat = os.fstat(self._descriptor)
        self.version = version_of(Entry(place, stat.st_size, stat.st_mtime_ns))
        self._lock = threading.Lock()

    def read(self, start: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, length, start)
        with self._lock:  # pragma: no cover - Windows
            os.lseek(self._descriptor, start, os.SEEK_SET)
            return os.read(self._descriptor, length)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class _Reading:
    """One archive, as it is read: blocks of objects that become columns."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._left_out: Counter[str] = Counter()
        self._notes: list[str] = []
        self._sidecars = Sidecars()
        self._paths: list[str] = []
        self._path_blocks: list[pa.Array] = []
        self._numbers = {name: array("q") for name in ("size", "mtime_ns", "_offset")}
        self._problems: dict[int, str] = {}

    def go(self) -> Listing:
        try:
            for member in read_headers(self._file, self._size):
                self._take(member)
        except DamagedTarError as exc:
            self._add("", Member("", "other", 0, 0, 0), f"the archive is damaged: {exc}")
            self._notes.append(f"{exc}; the images before that are listed")
        table = self._table()
        return Listing(table, self._left_out, [*self._notes, *self._sidecars.notes])

    def _take(self, member: Member) -> None:
        if member.kind == "folder":
            return
        path = member.name
        if path[:1] in {"/", "."}:
            path = _relative(path)
        name = path[path.rfind("/") + 1 :]
        if not name or name[0] == "." or ("/" in path and not _is_ours(path)):
            return
        suffix = suffix_of(name)
        if suffix in IMAGE_SUFFIXES:
            self._add(path, member, self._problem(path, member))
        elif suffix in SIDECAR_SUFFIXES and member.kind == "file" and member.size <= MOST_BYTES:
            self._file.seek(member.offset)
            stem = escape_path(path[: -len(suffix)])
            self._sidecars.take(stem, suffix, self._file.read(member.size))
        else:
            self._left_out[suffix or "without suffix"] += 1

    def _problem(self, path: str, member: Member) -> str | None:
        if ".." in path and ".." in path.split("/"):
            return _OUTSIDE
        if member.kind != "file":
            return _PROBLEMS[member.kind]
        if member.offset + member.size > self._size:
            return _CUT
        return None

    def _add(self, path: str, member: Member, problem: str | None) -> None:
        if problem is not None:
            self._problems[len(self._numbers["size"])] = problem
        size = min(member.size, self._size)
        numbers = (size, member.mtime_ns, member.offset)
        for column, value in zip(self._numbers.values(), numbers, strict=True):
            column.append(value)
        self._paths.append(path)
        if len(self._paths) >= BLOCK_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._path_blocks.append(path_column(self._paths))
        self._paths.clear()

    def _table(self) -> pa.Table:
        self._flush()
        paths = pa.chunked_array(self._path_blocks, pa.string())
        count = len(paths)
        none = pa.nulls(count, pa.string())
        said = self._sidecars.columns(_stems(paths))
        columns = {name: said.pop(name, none) for name in ("label", "split", "group")}
        numbers = {
            name: pa.array(np.frombuffer(values, dtype=np.int64))
            for name, values in self._numbers.items()
        }
        problem = self._problem_column(count)
        known = problem.is_null()
        for name in ("size", "mtime_ns"):
            numbers[name] = pc.if_else(known, numbers[name], pa.scalar(None, pa.int64()))
        given = {"path": paths, **numbers, **columns, "problem": problem}
        listed = pa.table([given[name] for name in LISTED.names], schema=LISTED)
        for name, values in {**said, "_offset": numbers["_offset"]}.items():
            listed = listed.append_column(name, values)
        return self._without_repeated(listed)

    def _problem_column(self, count: int) -> pa.Array:
        if not self._problems:
            return pa.nulls(count, pa.string())
        return pa.array([self._problems.get(at) for at in range(count)], pa.string())

    def _without_repeated(self, listed: pa.Table) -> pa.Table:
        """Keep the last of the members of one name, as unpacking does."""
        paths = listed.column("path")
        repeated = len(paths) - pc.count_distinct(paths).as_py()
        if not repeated:
            return listed
        self._notes.append(f"members stored again: {repeated}; the last of each name counts")
        at = pa.array(np.arange(len(listed)))
        last = pa.table({"path": paths, "at": at}).group_by("path").aggregate([("at", "max")])
        return listed.take(pa.array(np.sort(last.column("at_max").to_numpy())))


def _relative(path: str) -> str:
    """Return a name below the archive, without ``.`` and ``/`` at its beginning."""
    parts = path.split("/")
    while parts and parts[0] in {"", "."}:
        del parts[0]
    return "/".join(parts)


def _is_ours(path: str) -> bool:
    folders = path.split("/")[:-1]
    return not any(
        (name[:1] == "." and name not in {".", ".."}) or name.lower() in NOT_OURS
        for name in folders
    )


def _stems(paths: Any) -> tuple[Any, Any]:
    """Return the names without the last suffix, and up to the first point, as WebDataset's."""
    last = pc.replace_substring_regex(paths, r"\.[^./]*$", "")
    first = pc.replace_substring_regex(paths, r"\.[^/]*$", "")
    return last, first
