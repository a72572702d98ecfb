"""One file that holds many images: what a container is, and what its listing says.

A container lists its images in columns and reads one of them by its row. Its listing is kept in
the user's cache. No object is kept for any image.
"""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featpipe._columns import BLOCK_ROWS, LISTED
from featpipe._files import escape_path, printable
from featpipe.sources.base import NOT_REGULAR, is_regular
from featpipe.sources.listings import keep_listing, kept_listing
from featpipe.storage import Entry, is_url, look_at, shown

_MOST_SUFFIXES = 100
_FACTS = b"featpipe.facts"
CHANGED = "the file that holds it has changed since it was listed"


class Container(ABC):
    """One file that holds images.

    Parameters
    ----------
    place : str
        A local path or an address.
    name : str
        Short and distinct; it stands before the paths of the images.

    Attributes
    ----------
    split : str or None
        That of its images, where something beside it tells.
    """

    kind: ClassVar[str]
    """What it is, as a word for messages and for the name of its listing."""

    def __init__(self, place: str, name: str) -> None:
        self.place, self.name = place, name
        self.split: str | None = None

    @property
    def shown(self) -> str:
        """The place, fit for a message."""
        return printable(shown(self.place) if is_url(self.place) else self.place)

    def look(self) -> Entry:
        """Return what is known of the file without opening it.

        Raises
        ------
        OSError
            When there is no such file.
        """
        if not is_url(self.place) and not is_regular(os.stat(self.place)):
            raise OSError(NOT_REGULAR)
        return look_at(self.place)

    def version(self) -> str | None:
        """Return a text that changes with the bytes, or None where nobody tells one; see `look`."""
        return version_of(self.look())

    @abstractmethod
    def listed(self) -> Listing:
        """Read the container and list what is in it.

        Raises
        ------
        OSError, ValueError
            When it cannot be opened; what is wrong further on is in the listing.
        """

    @abstractmethod
    def read(self, listing: Listing, row: int) -> bytes:
        """Return the bytes of one image; from any thread.

        Raises
        ------
        OSError, ValueError
            When that cannot be done.
        """

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel closed, as what makes the same elsewhere, where another folder may be current."""
        place = self.place if is_url(self.place) else os.path.abspath(self.place)
        return type(self), (place, self.name, *self.further()), {"split": self.split}

    def further(self) -> tuple[Any, ...]:
        """Return what the container was made with after place and name."""
        return ()

    def release(self) -> None:  # noqa: B027 - not all keep something open
        """Let go of what is open; the next read opens it again."""


def version_of(entry: Entry) -> str | None:
    """Return what stands for the bytes of a file: its ETag, else its size and time of change."""
    if entry.version is not None:
        return entry.version
    return None if entry.mtime_ns is None else f"{entry.size}-{entry.mtime_ns}"


class Listing:
    """What is in one container, in columns.

    Attributes
    ----------
    table : pyarrow.Table
        `LISTED`, label columns, and columns of the container's own, whose names begin with
        ``_``. ``path`` is escaped, and distinct.
    left_out : Counter
        Files that are no images, by suffix.
    notes : list of str
        What a person should know of it.
    version : str or None
        Of the container that was listed.
    mtime_ns : int or None
        Its time of change: that of images that have none of their own.
    """

    def __init__(
        self,
        table: pa.Table,
        left_out: Counter[str] | None = None,
        notes: Sequence[str] = (),
        version: str | None = None,
    ) -> None:
        self.table, self.left_out, self.notes = table, _shortened(left_out), list(notes)
        self.version = version
        self.mtime_ns: int | None = None
        self._lock = threading.Lock()
        self._sorted: tuple[NDArray[np.int64], NDArray[np.intp]] | None = None

    @classmethod
    def kept(cls, container: Container, version: str) -> Listing | None:
        """Return the listing that was kept of a container of this version, if there is one."""
        table = kept_listing(container.kind, _where(container), version)
        if table is None or table.schema.names[: len(LISTED)] != LISTED.names:
            return None
        try:
            facts = json.loads((table.schema.metadata or {})[_FACTS])
            return cls(table, Counter(facts["left_out"]), facts["notes"], version)
        except (KeyError, ValueError):
            return None

    def keep(self, container: Container, version: str) -> bool:
        """Keep it for the next run, and tell whether that was possible."""
        facts = json.dumps({"left_out": self.left_out, "notes": self.notes}).encode()
        table = self.table.replace_schema_metadata({_FACTS: facts})
        return keep_listing(container.kind, _where(container), version, table)

    def find(self, path: str) -> int | None:
        """Return the row of a path (not escaped), or None."""
        with self._lock:
            if self._sorted is None:
                hashes = np.empty(len(self.table), dtype=np.int64)
                for start in range(0, len(hashes), BLOCK_ROWS):
                    block = self.table.column("path").slice(start, BLOCK_ROWS).to_pylist()
                    hashes[start : start + len(block)] = [hash(name) for name in block]
                order = np.argsort(hashes, kind="stable")
                self._sorted = hashes[order], order
        hashes, order = self._sorted
        escaped = escape_path(path)
        at = int(np.searchsorted(hashes, hash(escaped)))
        while at < len(hashes) and hashes[at] == hash(escaped):
            row = int(order[at])
            if self.table.column("path")[row].as_py() == escaped:
                return row
            at += 1
        return None


def _where(container: Container) -> str:
    place = container.place
    return shown(place) if is_url(place) else os.path.abspath(place)


def listing_of(container: Container) -> Listing:
    """Return the listing that was kept of a container, or read it, and keep that."""
    entry = container.look()
    version = version_of(entry)
    listing = None if version is None else Listing.kept(container, version)
    if listing is None:
        listing = container.listed()
        # One that is being written to is listed again the next time.
        if version is not None and container.version() == version:
            listing.version = version
            listing.keep(container, version)
    listing.mtime_ns = entry.mtime_ns
    return listing


def _shortened(left_out: Counter[str] | None) -> Counter[str]:
    """Keep the commonest suffixes: an archive may hold as many as it has files."""
    counts = left_out or Counter[str]()
    kept = Counter(dict(counts.most_common(_MOST_SUFFIXES)))
    rest = counts.total() - kept.total()
    return kept + Counter({"with other suffixes": rest})
